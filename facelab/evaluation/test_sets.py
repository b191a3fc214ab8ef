"""The six test sets: pictures of faces with whatever truth is known, as `FaceRecord`s.

    records = load_test_set("outside", limit=20)
    records = load_test_set("photos", folder="my_pictures")

| set | what | truth |
|---|---|---|
| in_model | faces, poses and light from the face model's own "portrait" distribution | everything |
| outside | raw sliders, hard shadows, highlights, things before the face, bad cameras | everything |
| path_traced | the same kind of faces, path-traced | everything |
| ict | heads from ICT-FaceKit's scans, which the user has | everything, on another mesh |
| scan | a scanned head, path-traced by data_scripts/build_scan_set.py | all but its size; another mesh |
| photos | a user's folder | landmarks, masks or light directions, where they lie beside the pictures |

Records are made when they are asked for; the first n stand for all, so `limit` only costs precision.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor
from torch.nn.functional import interpolate as resize

from facelab.evaluation.metrics import light_direction
from facelab.evaluation.photo_truth import Records, photo_records
from facelab.evaluation.scan_truth import scan_records
from facelab.evaluation.test_set_file import FORMAT, unpack
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import normalise
from facelab.geometry.rotations import matrix_to_euler
from facelab.geometry.subdivision import catmull_clark
from facelab.model.face import draw
from facelab.model.model_file import read_checked
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.model.records import Camera, FaceRecord, Mesh
from facelab.rendering import rasterizer
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.gbuffer import region_mask
from facelab.rendering.illumination import shading_coefficients
from facelab.support.errors import ModelFileError, ParameterError
from facelab.support.files import DATA, guarded, read_json, read_tensors
from facelab.synthetic.augmentation import procedural_backgrounds
from facelab.synthetic.distributions import DISTRIBUTIONS

TEST_SETS = ("in_model", "outside", "path_traced", "ict", "scan", "photos")
COUNTS = {"in_model": 200, "ict": 100}
SEED = 7_000_000_001  # far from those of training corpora
SUBDIVISIONS = 1
COMMITTED = DATA / "test_sets"
POSITION_UNIT = 0.005  # mm, of the committed vertices


def load_test_set(
    name: str, limit: int | None = None, folder: str | Path | None = None, size: int = 240
) -> Sequence[FaceRecord]:
    """The first `limit` records (None: all) of a test set, with pictures of `size`×`size`.

    `folder` is needed for three sets. "ict": the .safetensors that data_scripts/convert_ict_facekit.py makes
    of ICT-FaceKit with --borrow-albedo, or its folder. "scan": what data_scripts/build_scan_set.py makes of a
    scan. "photos": a folder of pictures
    with some of: `landmarks68.npz` (names (N,), landmarks (N, 68, 2) px, iBUG); NAME.png with the classes of
    CelebAMask-HQ beside NAME.jpg; light directions in degrees in the names, PERSON_azAAA_elEE.png (positive:
    from the picture's left, from above). If there are none of these, a detector frames the faces.
    Left out, it is taken from the environment: FACELAB_ICT, FACELAB_SCAN or FACELAB_PHOTOS.

    Raises ParameterError for an unknown name, a limit below one, or a missing folder; ModelFileError for a
    file of a set that is missing, damaged or changed; PhotoNotFoundError for a folder without pictures. A
    photo that is broken raises its error of `facelab.photos` when its record is asked for.
    """
    if name not in TEST_SETS:
        raise ParameterError(f"There is no test set {name!r}: choose from {', '.join(TEST_SETS)}.")
    if (limit is not None and limit < 1) or size < 1:
        raise ParameterError(f"A test set needs a positive limit and size, not {limit}, {size}.")
    if name == "in_model":
        records = _in_model(size)
    elif name in ("ict", "scan", "photos"):
        variable = f"FACELAB_{name.upper()}"
        place = folder or os.environ.get(variable)
        if place is None:
            raise ParameterError(f"The test set {name!r} needs a folder: give `folder` or set {variable}.")
        place = Path(place)
        if name == "photos":
            records = photo_records(place, size, _cache())
        else:
            records = (_ict if name == "ict" else scan_records)(place, size)
    else:
        committed = _Committed.read(name)
        records = Records(len(committed.groups), lambda i: committed.record(i, size))
    return records[: len(records) if limit is None else limit]


# --- what is said about a face ------------------------------------------------------------------------------


def skin_group(diffuse: Tensor) -> str:
    """ "light", "medium" or "dark" for linear albedos (N, 3) of skin, by the median's typology angle.

    The angle is atan((L* - 50) / b*); from 28 and 10 degrees down skin counts as tan and as brown (Chardon et
    al. 1991).
    """
    lab = rgb2lab(linear_to_srgb(diffuse.median(0).values).double().numpy()[None, None])[0, 0]
    angle = float(np.degrees(np.arctan2(lab[0] - 50, lab[2])))
    return "light" if angle > 28 else "medium" if angle > 10 else "dark"


def yaw_group(camera: Camera) -> str:
    """How far a head is turned to either side: "0-15", "15-30" or "30-90" degrees."""
    yaw = abs(float(matrix_to_euler(camera.rotation)[1].rad2deg()))
    return "0-15" if yaw < 15 else "15-30" if yaw < 30 else "30-90"


# --- rendered on the fly ------------------------------------------------------------------------------------


def _generator(index: int) -> torch.Generator:
    state = np.random.SeedSequence([SEED, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _in_model(size: int) -> Records:
    model = MorphableModel.load(None, SUBDIVISIONS)
    return Records(COUNTS["in_model"], lambda i: _portrait("in_model", i, model, model, size))


def _ict(place: Path, size: int) -> Records:
    """ICT-FaceKit heads, w ~ N(0, 1), under the portrait distribution, with skins of our own model.

    They are whole heads without hair; the mask is the part in front of the ears that other models have, too.
    """
    model, ours = MorphableModel.load(_ict_model(place)), MorphableModel.load(None, 0)
    model.name = "ict"
    if len(model.albedo_basis) != len(ours.albedo_basis):
        raise ModelFileError(f"The model in '{place}' has no skins: convert it again with --borrow-albedo.")
    tip, *jaw = model.landmarks(model.mean)[[30, 0, 16]]
    centre = model.mean[model.triangles].mean(1)
    face = ((centre - tip).norm(dim=-1) < 125) & (centre[:, 2] > jaw[0][2] - 5)
    return Records(COUNTS["ict"], lambda i: _portrait("ict", i, model, ours, size, face))


@torch.no_grad()
def _portrait(
    name: str,
    index: int,
    model: MorphableModel,
    skins: MorphableModel,
    size: int,
    front: Tensor | None = None,
) -> FaceRecord:
    """Record `index` of a set: a face of `model` with a skin that `skins` draws; `front` (T,) is the mask."""
    generator, portrait = _generator(index), DISTRIBUTIONS["portrait"]
    theta = portrait.sample(model, 1, generator)
    if skins is not model:
        parts = portrait.layout(model).split(theta)
        theta = portrait.layout(model).join(parts | {"albedo": skins.sample(1, generator)["albedo"]})
    background = procedural_backgrounds(1, size, size, generator)
    face = portrait.decode(model, theta[0], size)
    surface, coefficients = face.surface(model), shading_coefficients(face.light)
    picture = draw(surface, face.camera, face.light, size, size, background=background[0], antialias=True)
    skin = surface.diffuse[model.region_vertices("skin")]
    return FaceRecord(
        f"{name}_{index:04d}",
        picture.image.clamp(0, 1),
        face.camera.project(surface.landmarks)[..., :2],
        picture.mask if front is None else region_mask(picture.face_index, front.byte(), (1,)),
        Mesh(surface.vertices, model.triangles, model.landmarks(surface.vertices), model.name),
        face.camera,
        surface.diffuse,
        coefficients,
        normalise(light_direction(coefficients)),
        picture.depth,
        person=f"{name}_{index:04d}",
        groups={"skin": skin_group(skin), "yaw": yaw_group(face.camera)},
    )


def _ict_model(place: Path) -> Path:
    """The converted model: the file itself, or the first of a folder."""
    found = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if not found or found[0].suffix != ".safetensors":
        raise ModelFileError(
            f"There is no converted ICT-FaceKit in '{place}': run data_scripts/convert_ict_facekit.py with "
            "--borrow-albedo on its folder FaceXModel, and give what it makes, or its folder."
        )
    return found[0]


def _cache() -> Path:
    return Path(os.environ.get("FACELAB_CACHE", Path.home() / ".cache" / "facelab"))


# --- committed files ----------------------------------------------------------------------------------------


def topology_of(model: MorphableModel) -> str:
    """What a committed set must agree on with the face model: a hash of the triangles."""
    return hashlib.sha256(model.triangles.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class _Committed:
    """A set that data_scripts/build_test_sets.py made: pictures, and faces on the model's coarse mesh."""

    name: str
    problem: str
    tensors: dict[str, Tensor]
    groups: list[dict[str, str]]
    side: int
    """px of its pictures"""
    model: MorphableModel
    refine: Any
    """sparse matrix from the coarse mesh to the model's"""
    ends: list[int]
    """where each picture ends among the bytes of all, after a 0"""

    @classmethod
    def read(cls, name: str) -> "_Committed":
        """Raises ModelFileError for a file that is missing, damaged, changed, or of another face model."""
        path, manifest = COMMITTED / f"{name}.safetensors", COMMITTED / "manifest.json"
        problem = f"The test set '{path}' or its manifest is missing or damaged; restore it"
        manifest_of = read_json(manifest, problem)
        with guarded(problem, ModelFileError):
            about = manifest_of[name]
            data, groups = path.read_bytes(), [dict(group) for group in about["groups"]]
            side, count, digest, topology = (about[key] for key in ("size", "count", "sha256", "topology"))
            if type(side) is not int or not 0 < side < 10_000 or not len(groups) == count > 0:
                raise ValueError("it has another number of faces or pixels")
            if not all(
                isinstance(text, str) for group in groups for entry in group.items() for text in entry
            ):
                raise TypeError("groups are text")
        if hashlib.sha256(data).hexdigest() != digest:
            raise ModelFileError(f"'{path}' is damaged or changed: its SHA-256 is not that of the manifest.")
        tensors, model = read_tensors(data, problem), MorphableModel.load(None, SUBDIVISIONS)
        if topology != topology_of(model):
            raise ModelFileError(
                f"'{path}' was made for another face model; run data_scripts/build_test_sets.py."
            )
        cage = read_checked(DEFAULT_MODEL, must_have_digest=True)[0]["quads"].numpy()
        if about.get("format", 1) == FORMAT:
            tensors = unpack(tensors, cage, problem)
        elif about.get("format", 1) != 1:
            raise ModelFileError(f"'{path}' is of a newer facelab: install that, or restore the file.")
        with guarded(problem, ModelFileError):
            if len(tensors["vertices"]) != count or tensors["hidden"].shape[1] != -(-(side**2) // 8):
                raise ModelFileError(f"{problem}: it has another number of faces or pixels.")
            refine = catmull_clark(cage, int(cage.max()) + 1).matrix
            ends = [0, *tensors["image_ends"].tolist()]
            return cls(name, problem, tensors, groups, side, model, refine, ends)

    def record(self, i: int, size: int) -> FaceRecord:
        """Face number `i` in a picture of size×size. Raises ModelFileError for a damaged one."""
        with guarded(self.problem, ModelFileError):
            return self._record(i, size)

    def _record(self, i: int, size: int) -> FaceRecord:
        tensors, model, scale = self.tensors, self.model, size / self.side
        vertices = torch.from_numpy(
            self.refine @ (POSITION_UNIT * tensors["vertices"][i].double().numpy())
        ).float()
        camera = PerspectiveCamera(
            tensors["rotation"][i],
            tensors["translation"][i],
            scale * tensors["focal"][i],
            scale * tensors["principal"][i],
        )
        screen = camera.project(vertices)
        face_index = rasterizer.rasterize(screen, model.triangles, size, size)
        _, depth = rasterizer.interpolate(screen, model.triangles, face_index, vertices)
        hidden = torch.from_numpy(np.unpackbits(tensors["hidden"][i].numpy())).view(
            1, 1, self.side, self.side
        )
        seen = (face_index >= 0) & (resize(hidden, (size, size), mode="nearest")[0] == 0)
        return FaceRecord(
            f"{self.name}_{i:04d}",
            self._picture(i, size),
            camera.project(model.landmarks(vertices, camera.rotation))[:, :2],
            seen,
            Mesh(vertices, model.triangles, model.landmarks(vertices), model.name),
            camera,
            srgb_to_linear(tensors["diffuse"][i].float() / 255),
            tensors["light"][i],
            tensors["light_direction"][i],
            depth * seen,
            person=f"{self.name}_{i:04d}",
            groups=self.groups[i],
        )

    def _picture(self, i: int, size: int) -> Tensor:
        encoded = self.tensors["images"][self.ends[i] : self.ends[i + 1]].numpy().tobytes()
        picture = torch.from_numpy(np.array(Image.open(io.BytesIO(encoded)))).permute(2, 0, 1).float() / 255
        if size == self.side:
            return picture
        return resize(picture[None], (size, size), mode="bilinear", antialias=True)[0]
