"""Pictures of a real head, scanned: the test set `scan`, made from a folder of yours.

    python data_scripts/build_scan_set.py FOLDER runs/scan [--upside-down]     # needs Mitsuba 3
    python benchmarks/scoreboard.py --set scan=runs/scan ...

FOLDER holds one .glb or .obj with UV coordinates, color.jpg and, if there is one, normal.jpg (tangent space).
Made for Infinite-Realities' scan of Lee Perry-Smith (CC BY 3.0; name them where you show it), which comes
with three.js as LeePerrySmith.glb, its pictures upside down. Path-traced under several lights, poses and
lenses, as "path_traced" is (pip install mitsuba).

The scan has neither a size nor landmarks. It is scaled to the width of the average face between the outer
corners of the eyes, so only measures that forgive size say something. A detector finds the landmarks in five
pictures of the head; where their rays meet it, the median counts. The jaw's points are those of a head that
looks straight on: of turned heads trust the inner ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from light_rig import STYLES, Rig, draw_rig
from numpy.typing import NDArray
from safetensors.torch import save
from scipy.stats import norm, qmc
from skimage.io import imread
from torch import Tensor
from tqdm import tqdm

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.model.morphable_model import MorphableModel
from facelab.photos import DlibDetector
from facelab.rendering import rasterizer
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.support.errors import ModelFileError, NoFaceError
from facelab.support.files import guarded, write_whole
from facelab.synthetic.augmentation import procedural_backgrounds, to_bytes

Floats = NDArray[np.float64]
SIZE, SEED = 240, 9_000_000_003
VIEWS = (-20.0, -10.0, 0.0, 10.0, 20.0)  # degrees of yaw from which the landmarks are looked for
FACE_RADIUS = 110.0  # mm about the nose's tip: what other models have of a head, too
PASSES, SAMPLES, BOUNCES = 8, 16, 6


@dataclass(frozen=True)
class Scan:
    """A head in model space (mm, +y up, looks along +z)."""

    vertices: Floats  # (V, 3)
    normals: Floats  # (V, 3)
    triangles: NDArray[np.integer]  # (T, 3)
    uv: Floats  # (V, 2), v upwards
    colour: Floats  # (H, W, 3) linear, row 0 on top
    relief: Floats | None  # (H, W, 3) tangent space normals in [0, 1]
    landmarks: Floats  # (68, 3)

    @property
    def diffuse(self) -> Floats:
        """(V, 3): the map at each vertex."""
        height, width = self.colour.shape[:2]
        column = np.clip((self.uv[:, 0] * width).astype(int), 0, width - 1)
        row = np.clip(((1 - self.uv[:, 1]) * height).astype(int), 0, height - 1)
        return self.colour[row, column]

    @property
    def face(self) -> NDArray[np.bool_]:
        """(T,): the part in front, about the nose."""
        centre = self.vertices[self.triangles].mean(1)
        near = np.linalg.norm(centre - self.landmarks[30], axis=1) < FACE_RADIUS
        return near & (centre[:, 2] > self.landmarks[[0, 16], 2].mean() - 5)


def read_scan(folder: Path, upside_down: bool = False) -> Scan:
    """The head as it lies there, its landmarks not known yet. Raises ModelFileError."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".glb", ".gltf", ".obj"))
    if not files or not (folder / "color.jpg").is_file():
        raise ModelFileError(f"'{folder}' needs a scan (.glb or .obj) and its color.jpg; give their folder.")
    with guarded(f"The scan '{files[0]}' or its pictures cannot be read; restore them", ModelFileError):
        mesh: Any = trimesh.load(files[0], process=False, force="mesh")
        uv = np.asarray(mesh.visual.uv, np.float64)
        uv = uv * [1, -1] + [0, 1] if upside_down else uv
        colour = imread(folder / "color.jpg")[..., :3] / 255.0
        relief = folder / "normal.jpg"
        normals = imread(relief)[..., :3] / 255.0 if relief.is_file() else None
    linear = srgb_to_linear(torch.from_numpy(colour)).numpy()
    vertices, triangles = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    none = np.zeros((68, 3))
    return Scan(vertices, np.asarray(mesh.vertex_normals, np.float64), triangles, uv, linear, normals, none)


def moved(scan: Scan, scale: float, shift: Floats, landmarks: Floats) -> Scan:
    """The head scaled, then shifted; `landmarks` are given after both."""
    return Scan(
        scale * scan.vertices + shift, scan.normals, scan.triangles, scan.uv, scan.colour, scan.relief,
        landmarks,
    )  # fmt: skip


# --- pictures -----------------------------------------------------------------------------------------------


def trace(scan: Scan, camera: PerspectiveCamera, rig: Rig, seed: int, size: int = SIZE) -> Tensor:
    """(4, size, size): linear colours before black, and how much of a pixel the head covers."""
    import mitsuba as mi
    from path_tracer import SPECULAR, emitters, glossy, mesh, sensor, texture

    rotation = camera.rotation.double().numpy()
    points = scan.vertices @ rotation.T + camera.translation.double().numpy()
    skin = glossy(texture(scan.colour), 0.45, SPECULAR)
    if scan.relief is not None:
        skin = {"type": "normalmap", "normalmap": texture(scan.relief), "bsdf": skin}
    head = mesh("head", points, scan.normals @ rotation.T, scan.triangles, skin, scan.uv)
    parts = {"head": head, "sensor": sensor(camera, size, SAMPLES), **emitters(rig)}
    path = {"type": "path", "max_depth": BOUNCES, "hide_emitters": True}
    world = mi.load_dict({"type": "scene", "integrator": path, **parts})
    render: Any = mi.render
    passes = np.stack([np.array(render(world, seed=PASSES * seed + k)) for k in range(PASSES)])
    picture = np.minimum(passes, 1.5 * np.median(passes, 0) + 0.01).mean(0)
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)


def framing(points: Tensor, rotation: Tensor, distance: float, share: float, size: int) -> PerspectiveCamera:
    """A camera before which the landmarks (68, 3) fill `share` of the picture."""
    seen = points @ rotation.mT
    low, high = seen[:, :2].amin(0), seen[:, :2].amax(0)
    depth = distance - float(seen[:, 2].mean())
    focal = share * depth / float((high - low).max())
    shift = torch.tensor([0.0, -0.05]) * depth / focal - (low + high) / 2
    place = torch.tensor([float(shift[0]), float(shift[1]), -distance])
    return PerspectiveCamera(rotation, place, torch.tensor(size * focal), torch.full((2,), size / 2))


def turned(pitch: float, yaw: float, roll: float) -> Tensor:
    """(3, 3) from degrees."""
    return euler_to_matrix(torch.tensor(np.radians([pitch, yaw, roll]), dtype=torch.float32))


def developed(layers: Tensor, background: Tensor) -> tuple[Tensor, float]:
    """(3, S, S) sRGB, exposed for what is covered, and the gain."""
    level = float(layers[:3].mean(0)[layers[3] > 0.9].median())
    gain = float((0.22 / max(level, 1e-4)) ** 0.75)
    behind = srgb_to_linear(background)
    return linear_to_srgb(gain * layers[:3] + (1 - layers[3:]) * behind).clamp(0, 1), gain


# --- landmarks ----------------------------------------------------------------------------------------------


def met(scan: Scan, camera: PerspectiveCamera, landmarks: Tensor, zoom: int = 4) -> Floats:
    """(68, 3) mm: where rays through landmarks px of a picture of SIZE meet the head.

    A point beside the head is moved towards the middle of all until it lies on it: jaws are found a little
    outside.
    """
    size, corners = zoom * SIZE, torch.from_numpy(scan.vertices).float()
    triangles = torch.from_numpy(scan.triangles).long()
    screen = camera.rescaled(zoom, torch.zeros(2)).project(corners)
    index = rasterizer.rasterize(screen, triangles, size, size)
    places, _ = rasterizer.interpolate(screen, triangles, index, corners)
    points, middle = landmarks.clone(), landmarks.mean(0)
    for _ in range(40):
        column, row = (zoom * points).long().clamp(0, size - 1).unbind(-1)
        missed = index.reshape(size, size)[row, column] < 0
        points[missed] += 0.01 * (middle - points[missed])
    return torch.where(missed[:, None], torch.nan, places[:, row, column].T).double().numpy()


def find_landmarks(scan: Scan, model: MorphableModel) -> Scan:
    """The head in millimetres, its landmarks found by a detector from several sides. Raises NoFaceError."""
    usual = model.landmarks(model.mean).double().numpy()
    tip = scan.vertices[scan.vertices[:, 2].argmax()]
    scale = 300 / np.ptp(
        scan.vertices[:, 1]
    )  # a head with its neck is about 30 cm high; shoulders: see below
    scan = moved(scan, scale, usual[30] - scale * tip, usual)
    for _ in range(2):  # the second time in pictures of the right size
        points = _seen_landmarks(scan, torch.from_numpy(usual).float())
        wide, found = (float(np.linalg.norm(p[45] - p[36])) for p in (usual, points))
        shift = usual[30] - wide / found * points[30]
        scan = moved(scan, wide / found, shift, wide / found * points + shift)
    return scan


def _seen_landmarks(scan: Scan, about: Tensor) -> Floats:
    """(68, 3) mm, from pictures about the points `about` (68, 3)."""
    found, detector = {}, DlibDetector()
    for yaw in VIEWS:
        camera = framing(about, turned(0, yaw, 0), 700.0, 0.5, SIZE)
        head = camera.to_camera(about.mean(0, keepdim=True))[0].double().numpy()
        rig = draw_rig(np.random.default_rng(0), head, "overcast")
        image, _ = developed(trace(scan, camera, rig, 0), torch.full((3, SIZE, SIZE), 0.5))
        for face in detector.detect(image)[:1]:
            found[yaw] = met(scan, camera, face.landmarks)
    if len(found) < 3 or 0.0 not in found:
        raise NoFaceError("The detector finds no face in pictures of this scan; turn it to look along +z.")
    points = np.nanmedian(np.stack(list(found.values())), 0)
    points[:17] = found[0.0][:17]
    if not np.isfinite(points).all():
        raise NoFaceError("Some landmarks miss the scan; give one of a whole face that looks along +z.")
    return points


# --- the set ------------------------------------------------------------------------------------------------


def pictures(scan: Scan, count: int) -> Iterator[dict[str, Tensor]]:
    """Each picture with its truth."""
    shares = qmc.Halton(6, rng=np.random.default_rng(SEED)).random(count).clip(1e-6, 1 - 1e-6)
    points = torch.from_numpy(scan.landmarks).float()
    for i, share in enumerate(tqdm(shares, unit=" pictures")):
        pitch, yaw, roll = np.array([8, 18, 5]) * norm.ppf(0.0062 + 0.9876 * share[:3])
        camera = framing(points, turned(pitch, yaw, roll), 280 * 14 ** share[3], 0.52 + 0.18 * share[4], SIZE)
        head = camera.to_camera(points.mean(0, keepdim=True))[0].double().numpy()
        rig = draw_rig(np.random.default_rng([SEED, i]), head, STYLES[int(share[5] * len(STYLES))])
        generator = torch.Generator().manual_seed(SEED + i)
        background = procedural_backgrounds(1, SIZE, SIZE, generator)[0]
        image, gain = developed(trace(scan, camera, rig, i), background)
        rig = rig.scaled(gain)
        seen = {"images": to_bytes(image), "light": rig.coefficients(), "light_direction": rig.direction()}
        where = ("rotation", "translation", "focal", "principal")
        yield seen | {name: getattr(camera, name) for name in where}


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--upside-down", action="store_true", help="the pictures' first row is v = 0")
    parser.add_argument("--pictures", type=int, default=18)
    args = parser.parse_args()
    scan = find_landmarks(read_scan(args.folder, args.upside_down), MorphableModel.load(subdivisions=1))
    rows = list(pictures(scan, args.pictures))
    tensors = {name: torch.stack([row[name] for row in rows]).contiguous() for name in rows[0]}
    for name in ("vertices", "landmarks", "diffuse"):
        tensors[name] = torch.from_numpy(getattr(scan, name)).float().contiguous()
    tensors |= {"triangles": torch.from_numpy(scan.triangles).long(), "face": torch.from_numpy(scan.face)}
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole({args.out / "scan.safetensors": save(tensors)})


if __name__ == "__main__":
    main()
