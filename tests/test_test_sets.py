"""The six test sets: what their records say must be true, and what is wrong with a file must be named."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save
from skimage.data import astronaut
from torch import Tensor

from facelab.evaluation import test_sets
from facelab.evaluation.metrics import photometric_rmse
from facelab.evaluation.test_set_file import FORMAT, pack, unpack
from facelab.evaluation.test_sets import COMMITTED, load_test_set
from facelab.geometry.subdivision import catmull_clark
from facelab.model.model_file import read_checked
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.model.records import FaceRecord
from facelab.rendering import rasterizer
from facelab.rendering.illumination import SphericalHarmonicsLight
from facelab.rendering.image_formation import render
from facelab.support.errors import ModelFileError, ParameterError, PhotoNotFoundError, TruncatedImageError

RENDERED = ("in_model", "outside", "path_traced")


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(None, 1)


@pytest.fixture(scope="module")
def sets() -> dict[str, Sequence[FaceRecord]]:
    return {name: list(load_test_set(name, limit=6)) for name in RENDERED}


def shaded(record: FaceRecord) -> Tensor:
    """A record's truth, rendered again with nine coefficients per channel."""
    assert record.mesh and record.camera and record.diffuse is not None and record.light is not None
    size = record.image.shape[-1]
    light = SphericalHarmonicsLight(record.light)
    mesh = record.mesh
    picture = render(
        mesh.vertices, mesh.triangles, record.camera, light, record.diffuse, None, size, size, antialias=True
    )
    return picture.image.clamp(0, 1)


def away_from_border(mask: Tensor) -> Tensor:
    """Pixels of a (1, H, W) mask whose 3×3 neighbours are in it, too."""
    return torch.nn.functional.max_pool2d(~mask[None] * 1.0, 3, 1, 1)[0] == 0


@pytest.mark.parametrize("name", RENDERED)
def test_truth_fits_together(name: str, sets: dict[str, Sequence[FaceRecord]], model: MorphableModel) -> None:
    """Landmarks, mask and depth are those of the mesh before the camera; every field is there."""
    for record in sets[name]:
        mesh, camera = record.mesh, record.camera
        assert mesh and camera and mesh.topology == model.name and mesh.landmarks is not None
        assert mesh.vertices.shape == (10098, 3) and record.diffuse is not None and record.light is not None
        points = camera.project(model.landmarks(mesh.vertices, camera.rotation))[:, :2]
        torch.testing.assert_close(record.landmarks, points)
        screen = camera.project(mesh.vertices)
        face_index = rasterizer.rasterize(screen, mesh.triangles, 240, 240)
        _, depth = rasterizer.interpolate(screen, mesh.triangles, face_index, mesh.vertices)
        silhouette = (face_index >= 0)[None]
        assert record.mask is not None and record.depth is not None and record.light_direction is not None
        assert not (record.mask & ~silhouette).any()
        hidden = (silhouette & ~record.mask).float().mean() / silhouette.float().mean()
        limit = {"in_model": 0, "outside": 0.9 if record.groups.get("occluded") == "yes" else 0.1}
        assert hidden <= limit.get(name, 0.1), (record.name, float(hidden))
        torch.testing.assert_close(record.depth[record.mask], depth[record.mask])
        assert float(record.light_direction.norm()) == pytest.approx(1, abs=1e-5)
        assert record.image.shape == (3, 240, 240) and 0 <= record.image.min() <= record.image.max() <= 1
        assert {"skin", "yaw"} <= set(record.groups)


def test_in_model_is_what_its_truth_renders(sets: dict[str, Sequence[FaceRecord]]) -> None:
    """Only the outline differs, which is blended with the background."""
    for record in sets["in_model"]:
        assert record.mask is not None
        inside = away_from_border(record.mask).expand(3, -1, -1)
        torch.testing.assert_close(shaded(record)[inside], record.image[inside], atol=1e-4, rtol=0)


def test_other_sets_have_light_that_nine_coefficients_miss(sets: dict[str, Sequence[FaceRecord]]) -> None:
    """Shadows and highlights: the truth in spherical harmonics comes close to the picture but is not it."""
    clean = [record for record in sets["outside"] if "yes" not in record.groups.values()]
    for record in [*clean, *sets["path_traced"]]:
        error = float(photometric_rmse(shaded(record), record.image, record.mask))
        assert 3 < error < 60, (record.name, error)


def test_faces_lie_outside_the_model(sets: dict[str, Sequence[FaceRecord]], model: MorphableModel) -> None:
    """The model comes close to them only with coefficients that no face of its own has, and still misses
    folds, creases and crooked parts; kept to its prior it misses them by millimetres."""
    near = (model.mean - model.landmarks(model.mean)[30]).norm(dim=1) < 95
    chosen = (near & (model.region_vertices("skin") | model.region_vertices("lips"))).nonzero()[:, 0]
    bases = torch.cat([model.identity_basis, model.expression_basis])[:, chosen].flatten(1).double()
    point, axes = model.mean[chosen].double(), torch.eye(3).double()
    moves = [torch.linalg.cross(axis.expand_as(point), point) for axis in axes]
    moves += [axis.expand_as(point) for axis in axes]
    system = torch.cat([bases, torch.stack(moves).flatten(1)]).T
    free = torch.ones(len(system.T), dtype=torch.float64)
    free[-6:] = 0  # rigid motion has no prior

    def fit(record: FaceRecord, prior: float) -> tuple[float, float]:
        """Distance of the worst vertex in mm, RMS of the identity coefficients."""
        assert record.mesh
        wanted = (record.mesh.vertices[chosen].double() - point).flatten()
        normal = system.T @ system + prior * len(chosen) * free.diag()
        solution = torch.linalg.solve(normal, system.T @ wanted)
        missed = (wanted - system @ solution).view(-1, 3).norm(dim=1)
        identity = solution[: len(model.identity_basis)]
        return float(missed.max()), float(identity.square().mean().sqrt())

    for name in ("outside", "path_traced"):
        unbound = np.array([fit(record, 0.0) for record in sets[name]])
        bound = np.array([fit(record, 5e-4) for record in sets[name]])
        assert unbound[:, 0].min() > 0.4 and unbound[:, 1].min() > 1.5, (name, unbound)
        assert np.median(bound[:, 0]) > 1.0 and bound[:, 0].max() > 1.5, (name, bound)
    own = np.array([fit(record, 0.0) for record in sets["in_model"]])
    assert own[:, 0].max() < 1e-3 and own[:, 1].max() < 1.3


def test_the_same_every_time_and_limits() -> None:
    """Two loads agree, indices and slices do, and records of different sets are different faces."""
    for name in RENDERED:
        one, two = load_test_set(name), load_test_set(name, limit=5)
        assert len(one) >= 48 and len(two) == 5
        for i in (0, 4, -1):
            again = load_test_set(name, limit=5)[i]
            assert torch.equal(two[i].image, again.image) and two[i].name == again.name
        assert torch.equal(one[4].image, two[4].image) and one[2:4][1].name == one[3].name
        assert len({float(record.image.mean()) for record in two}) == 5
        with pytest.raises(IndexError):
            two[5]


def test_the_first_stand_for_all() -> None:
    """Two dozen faces of a committed set show every origin, sex, age, light and yaw."""
    for name in ("outside", "path_traced"):
        groups = [record.groups for record in load_test_set(name, limit=24)]
        for key, least in {"origin": 4, "sex": 2, "age": 3, "light": 6, "skin": 3, "yaw": 2}.items():
            assert len({group[key] for group in groups}) >= least, (name, key)
    outside = [record.groups for record in load_test_set("outside", limit=24)]
    assert 4 <= sum(group["occluded"] == "yes" for group in outside) <= 14
    assert 4 <= sum(group["degraded"] == "yes" for group in outside) <= 16


@pytest.mark.parametrize("name", RENDERED)
def test_size(name: str) -> None:
    """A smaller picture is the same face: landmarks and mask shrink with it."""
    large, small = load_test_set(name, 1)[0], load_test_set(name, 1, size=120)[0]
    assert small.image.shape == (3, 120, 120)
    assert large.landmarks is not None and small.landmarks is not None
    torch.testing.assert_close(small.landmarks, large.landmarks / 2, atol=1e-3, rtol=0)
    assert small.mask is not None and large.mask is not None
    assert float(small.mask.float().mean()) == pytest.approx(float(large.mask.float().mean()), abs=0.01)


def quads() -> np.ndarray:
    return read_checked(DEFAULT_MODEL, must_have_digest=True)[0]["quads"].numpy()


def made_up(count: int, cage: np.ndarray, side: int = 40) -> dict[str, Tensor]:
    """Tensors of a set with smooth positions and colours, a mask each, and wild values that must survive."""
    random, coarse = np.random.default_rng(count), int(cage.max()) + 1
    fine = catmull_clark(cage, coarse).matrix.shape[0]
    diffuse = (
        128 + 20 * random.standard_normal((count, 1, 3)) + random.standard_normal((count, fine, 3))
    ).astype(np.uint8)
    diffuse[:, ::97] = random.choice([0, 255], (count, len(diffuse[0, ::97]), 3))
    vertices = np.cumsum(random.integers(-90, 90, (count, coarse, 3)), 1).astype(np.int16)
    vertices[:, :2] = [[-(2**15)] * 3, [2**15 - 1] * 3]
    hidden = np.packbits(random.random((count, side, side)).cumsum(1) > side / 2, axis=None).reshape(
        count, -1
    )
    parts = {"diffuse": diffuse, "vertices": vertices, "hidden": hidden, "focal": np.ones(count, np.float32)}
    return {name: torch.from_numpy(part) for name, part in parts.items()}


@pytest.mark.parametrize("count", [1, 3])
def test_packing_loses_nothing(count: int) -> None:
    cage = quads()
    tensors = made_up(count, cage)
    back = unpack(pack(tensors, cage), cage, "damaged")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_packing_makes_the_committed_sets_smaller() -> None:
    tensors, cage = load((COMMITTED / "path_traced.safetensors").read_bytes()), quads()
    if "vertices" not in tensors:  # they are packed
        tensors = unpack(tensors, cage, "damaged")
    few = {
        name: tensor[:6].contiguous()
        for name, tensor in tensors.items()
        if len(tensor) == len(tensors["focal"])
    }
    packed, names = pack(few, cage), ("hidden", "diffuse", "vertices")
    sizes = {name: packed[f"{name}.packed"].nbytes / few[name].nbytes for name in names}
    assert sizes["hidden"] < 0.1 and sizes["diffuse"] < 0.5 and sizes["vertices"] < 0.8
    back = unpack(packed, cage, "damaged")
    assert all(torch.equal(back[name], few[name]) for name in few)


def test_damaged_packing_is_named() -> None:
    cage = quads()
    packed = pack(made_up(2, cage), cage)
    for name in [name for name in packed if name.endswith(".packed")]:
        data = packed[name]
        for bad in (
            data[:-9],
            data[:0],
            data.flip(0),
            torch.cat([data, data]),
            pack(made_up(1, cage), cage)[name],
        ):
            if name == "hidden.packed" and bad.numel() not in (
                0,
                data.numel() - 9,
                data.numel(),
                2 * data.numel(),
            ):
                continue  # fewer masks are noticed by the reader, which knows their size
            with pytest.raises(ModelFileError, match="it is damaged"):
                unpack(packed | {name: bad}, cage, "it is damaged")
        with pytest.raises(ModelFileError, match="it is damaged"):
            unpack({key: value for key, value in packed.items() if key != name}, cage, "it is damaged")


@pytest.mark.parametrize("kind", [1, FORMAT, FORMAT + 1])
def test_both_formats_are_read(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same records from a file as it was and a packed one; one of the future is refused by name."""
    wanted = load_test_set("path_traced", 1)[0]
    tensors, cage = load((COMMITTED / "path_traced.safetensors").read_bytes()), quads()
    if "vertices" not in tensors:
        tensors = unpack(tensors, cage, "damaged")
    about = json.loads((COMMITTED / "manifest.json").read_text())["path_traced"]
    data = save(tensors if kind == 1 else pack(tensors, cage))
    (tmp_path / "path_traced.safetensors").write_bytes(data)
    about |= {"format": kind, "sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps({"path_traced": about}))
    monkeypatch.setattr(test_sets, "COMMITTED", tmp_path)
    if kind > FORMAT:
        with pytest.raises(ModelFileError, match="newer facelab"):
            load_test_set("path_traced", 1)
        return
    record = load_test_set("path_traced", 1)[0]
    for name in ("image", "mask", "diffuse", "landmarks", "depth"):
        assert torch.equal(getattr(record, name), getattr(wanted, name)), name
    assert record.mesh and wanted.mesh and torch.equal(record.mesh.vertices, wanted.mesh.vertices)


def test_tampered_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("outside.safetensors", "manifest.json"):
        shutil.copy(COMMITTED / file, tmp_path / file)
    monkeypatch.setattr(test_sets, "COMMITTED", tmp_path)
    load_test_set("outside", 1)
    with pytest.raises(ModelFileError, match="missing"):
        load_test_set("path_traced")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["outside"]["topology"] = "another"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="another face model"):
        load_test_set("outside")
    path = tmp_path / "outside.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="SHA-256"):
        load_test_set("outside")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ModelFileError, match="manifest"):
        load_test_set("outside")


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FACELAB_ICT", "FACELAB_SCAN", "FACELAB_PHOTOS"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ParameterError, match="in_model"):
        load_test_set("inside")
    with pytest.raises(ParameterError, match="limit"):
        load_test_set("in_model", limit=0)
    for name in ("ict", "scan", "photos"):
        with pytest.raises(ParameterError, match="FACELAB"):
            load_test_set(name)


def test_ict_takes_a_converted_model(tmp_path: Path) -> None:
    """Our own coarse model as the converted one: another mesh, a mask of the front of the face."""
    other = MorphableModel.load(None, 0)
    other.name = "converted"
    with pytest.raises(ModelFileError, match="FaceXModel"):
        load_test_set("ict", folder=tmp_path)
    other.save(tmp_path / "model.safetensors")
    record = load_test_set("ict", 2, tmp_path)[1]
    assert record.mesh and record.mesh.topology == "ict" and record.mesh.landmarks is not None
    assert record.mesh.vertices.shape == other.mean.shape and record.diffuse is not None
    assert record.mask is not None and record.depth is not None
    assert not (record.mask & (record.depth == 0)).any()
    replace(
        other, albedo_basis=torch.empty(0), albedo_sigma=torch.empty(0), people_albedo=torch.empty(0)
    ).save(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="skins"):
        load_test_set("ict", folder=tmp_path)


def test_ict_that_is_not_converted(tmp_path: Path) -> None:
    """The library runs no data script: it says which one."""
    (tmp_path / "ict_facekit_light.npz").write_bytes(b"arrays")
    for folder in (tmp_path, tmp_path / "ict_facekit_light.npz", tmp_path / "nowhere"):
        with pytest.raises(ModelFileError, match=r"convert_ict_facekit\.py"):
            load_test_set("ict", folder=folder)


# --- photographs --------------------------------------------------------------------------------------------


def picture(path: Path, height: int = 100, width: int = 80) -> None:
    """A grey picture with a bright rectangle at rows 30-70, columns 20-60."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[30:70, 20:60] = 200
    Image.fromarray(pixels).save(path)


def test_photos_with_landmarks(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform([20, 30], [60, 70], (2, 68, 2)).astype(np.float32)
    for name in ("a.jpg", "b.png", "without.jpg"):
        picture(tmp_path / name)
    np.savez(tmp_path / "landmarks68.npz", names=np.array(["a.jpg", "b.png"]), landmarks=points)
    records = load_test_set("photos", folder=tmp_path, size=64)
    assert sorted(record.name for record in records) == ["a.jpg", "b.png"]
    for record in records:
        assert record.landmarks is not None and record.image.shape == (3, 64, 64)
        extent = record.landmarks.amax(0) - record.landmarks.amin(0)
        assert float(extent.max()) == pytest.approx(64 / 1.6, rel=0.03)  # crop_face's frame
        row, column = record.landmarks.mean(0).flip(0).long().tolist()
        assert float(record.image[0, row, column]) > 0.7
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:400])
    with pytest.raises(TruncatedImageError):
        _ = [record.name for record in load_test_set("photos", folder=tmp_path)]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(PhotoNotFoundError, match=r"a\.jpg"):
        load_test_set("photos", folder=tmp_path)
    np.savez(tmp_path / "landmarks68.npz", names=np.array(["b.png"]), landmarks=points)
    with pytest.raises(ModelFileError, match="finite"):
        load_test_set("photos", folder=tmp_path)
    (tmp_path / "landmarks68.npz").write_bytes(b"no zip file")
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_test_set("photos", folder=tmp_path)


def test_photos_with_masks(tmp_path: Path) -> None:
    picture(tmp_path / "anna.jpg")
    classes = np.zeros((100, 80), np.uint8)
    classes[30:70, 20:60] = 1
    classes[30:36, 20:60] = 13  # hair
    classes[50:54, 30:50] = 3  # glasses
    Image.fromarray(classes).save(tmp_path / "anna.png")
    (record,) = load_test_set("photos", folder=tmp_path, size=200)
    assert record.name == "anna.jpg" and record.mask is not None and record.landmarks is None
    bright = record.image[0] > 0.55
    assert float(bright[record.mask[0]].float().mean()) > 0.97
    share = float(record.mask.sum() / bright.sum())
    assert share == pytest.approx(1 - 6 / 40 - 80 / 1600, abs=0.04)
    for wrong in (np.full((100, 80), 19, np.uint8), np.zeros((100, 80), np.uint8), classes[:50]):
        Image.fromarray(wrong).save(tmp_path / "anna.png")
        with pytest.raises(ModelFileError, match=r"anna\.png"):
            load_test_set("photos", folder=tmp_path)[0]


def test_photos_with_light_directions(tmp_path: Path) -> None:
    """Azimuth is positive from the picture's left, elevation from above; +x is the picture's right."""
    wanted = {
        "bob_az+000_el+00": [0, 0, 1],
        "bob_az+090_el+00": [-1, 0, 0],
        "eve_az-045_el+00": [0.5**0.5, 0, 0.5**0.5],
        "eve_az+000_el+45": [0, 0.5**0.5, 0.5**0.5],
    }
    for name in wanted:
        picture(tmp_path / f"{name}.png")
    records = {
        record.name.removesuffix(".png"): record for record in load_test_set("photos", folder=tmp_path)
    }
    for name, direction in wanted.items():
        record = records[name]
        torch.testing.assert_close(record.light_direction, torch.tensor(direction, dtype=torch.float32))
        assert record.person == name[:3] and record.landmarks is None
    assert records["bob_az+090_el+00"].groups == {"light": "60-180"}


def test_photos_without_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector frames the face, but what it says is no truth; nothing is written beside the pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(PhotoNotFoundError):
        load_test_set("photos", folder=folder)
    monkeypatch.setenv("FACELAB_CACHE", str(tmp_path / "cache"))
    Image.fromarray(astronaut()).save(folder / "someone.jpg")
    (record,) = load_test_set("photos", folder=folder)
    assert record.landmarks is None and record.mesh is None and record.image.shape == (3, 240, 240)
    assert [path.name for path in folder.iterdir()] == ["someone.jpg"]
