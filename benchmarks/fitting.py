"""How good is fitting by optimisation? On synthetic faces with truth, and on a folder of photographs.

    python benchmarks/fitting.py synthetic [--count 100]
    python benchmarks/fitting.py photos FOLDER [--count 300]

`synthetic` renders the shipped model itself (finest level, yaw ± 40°, pitch ± 15°, random expression, skin
and spherical harmonics light, over an unsharp background) and reconstructs from the picture alone.
`photos` takes a folder of pictures with `landmarks68.npz` (`names`, `landmarks` (n, 68, 2)) and compares the
projected landmarks of the fitted model, never the detector's, with the annotation.
A picture in which no face is found counts as a failure. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm import tqdm

from facelab.evaluation import metrics
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.energy import Settings
from facelab.methods.fitting import Fit, reconstruct
from facelab.model.morphable_model import MorphableModel
from facelab.photos import load_photo
from facelab.rendering.illumination import SphericalHarmonicsLight, ambient_to_sh, directional_to_sh
from facelab.rendering.image_formation import render
from facelab.support.errors import FacelabError

from report import describe_run

RESULTS = Path(__file__).parent / "results"
SIZE = 320


def random_light(generator: torch.Generator) -> Tensor:
    """Ambient light and one to three broad directional lights from the front, slightly coloured: (9, 3)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    light = ambient_to_sh(uniform(0.35, 0.7, 1) * (1 + 0.06 * torch.randn(3, generator=generator)))
    for _ in range(int(torch.randint(1, 4, (1,), generator=generator))):
        direction = torch.randn(3, generator=generator) * torch.tensor([1.0, 0.6, 0.4])
        direction = direction + torch.tensor([0.0, 0.3, 1.0])
        colour = uniform(0.15, 0.6, 1) * (1 + 0.08 * torch.randn(3, generator=generator))
        light = light + directional_to_sh(direction, colour)
    return light


def synthetic_case(model: MorphableModel, seed: int) -> dict[str, Any]:
    """One rendered face and all its truth; `model` at the finest level."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = {k: v[0] for k, v in model.sample(1, generator).items()}
    vertices = model.vertices(coefficients["identity"], coefficients["expression"])
    diffuse, _ = model.albedo(coefficients["albedo"])
    yaw, pitch, roll = (
        float(torch.rand(1, generator=generator) * 2 - 1) * np.deg2rad(limit) for limit in (40, 15, 10)
    )
    angles = torch.tensor([pitch, yaw, roll], dtype=torch.float32)
    camera = PerspectiveCamera(
        euler_to_matrix(angles),
        torch.tensor([0.0, 0.0, -900.0]) - euler_to_matrix(angles) @ vertices.mean(0),
        torch.tensor(900.0 * SIZE / 290.0),
        torch.tensor([SIZE / 2, SIZE / 2]),
    )
    light = random_light(generator)
    rng = np.random.default_rng(seed)
    blur = gaussian_filter(rng.normal(size=(3, SIZE, SIZE)), (1.0, 40, 40))  # an unsharp, greyish room
    background = rng.uniform(0.2, 0.8) + 0.06 * blur / blur.std()
    background = torch.from_numpy(background.clip(0, 1)).float()
    picture = render(
        vertices,
        model.triangles,
        camera,
        SphericalHarmonicsLight(light),
        diffuse,
        None,
        SIZE,
        SIZE,
        antialias=True,
        background=background,
    )
    image = (picture.image.clamp(0, 1) * 255).round() / 255
    return dict(
        image=image, mask=picture.mask, vertices=vertices, diffuse=diffuse, light=light, camera=camera,
        landmarks=camera.project(model.landmarks(vertices, camera.rotation))[:, :2],
        yaw=abs(float(np.rad2deg(yaw))),
    )  # fmt: skip


def compare(fit: Fit, truth: dict[str, Any], fine: MorphableModel) -> dict[str, float]:
    """Per-factor errors of a fit against what was rendered."""
    assert fit.crop is not None
    skin = fine.region_vertices("skin")
    front = skin & ((fine.mean - fine.landmarks(fine.mean)[30]).norm(dim=1) < 95)
    estimated, true = fit.vertices(fine)[front], truth["vertices"][front]
    landmarks = fit.crop.to_crop(truth["landmarks"])
    picture = fit.render(model=fine)
    mask = picture.mask[0] * (picture.mask[0] > 0.5)
    diffuse, _ = fine.truncate(fit.settings.identity, fit.settings.expression, fit.settings.albedo).albedo(
        fit.estimate.albedo
    )
    mean = metrics.geometry_rmse_mm(fine.mean[front], true)
    return {
        "geometry_mm": float(metrics.geometry_rmse_mm(estimated, true)),
        "geometry_of_mean_face_mm": float(mean),
        "landmarks_px": float(metrics.landmark_error_px(fit.landmarks(), landmarks)),
        "detector_px": float(metrics.landmark_error_px(fit.crop.landmarks, landmarks)),
        "pose_degrees": float(metrics.pose_error_degrees(fit.estimate.rotation, truth["camera"].rotation)),
        "photometric_rmse": float(metrics.photometric_rmse(picture.image, fit.crop.image, mask[None] > 0.5)),
        "albedo_relative": float(metrics.scale_free_error(diffuse[front], truth["diffuse"][front])),
        "light_relative": float(metrics.scale_free_error(fit.estimate.light, truth["light"])),
        "yaw_degrees": truth["yaw"],
    }


def summarise(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, mean and 90th percentile of every column."""
    table = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        table[key] = {
            "median": float(np.median(values)),
            "mean": float(values.mean()),
            "p90": float(np.quantile(values, 0.9)),
        }
    return table


def evaluate_synthetic(count: int, settings: Settings, seed: int = 0) -> dict[str, Any]:
    """Reconstruct `count` rendered faces from their pictures alone."""
    fine = MorphableModel.load(subdivisions=2)
    rows, failures = [], []
    for i in tqdm(range(count), desc="synthetic faces"):
        truth = synthetic_case(fine, seed * 100_000 + i)
        start = time.perf_counter()
        try:
            fit = reconstruct(truth["image"], settings=settings)[0]
        except FacelabError as error:
            failures.append(f"{i}: {type(error).__name__}")
            continue
        rows.append(compare(fit, truth, fine) | {"seconds": time.perf_counter() - start})
    return {"count": count, "failures": failures, "errors": summarise(rows)}


def evaluate_photos(folder: Path, count: int, settings: Settings, seed: int = 0) -> dict[str, Any]:
    """NME over the diagonal of the landmark box on a random choice of annotated photographs."""
    annotation = np.load(folder / "landmarks68.npz", allow_pickle=False)
    choice = np.random.default_rng(seed).permutation(len(annotation["names"]))[:count]
    rows, failures = [], []
    for i in tqdm(choice, desc="photographs"):
        name, true = str(annotation["names"][i]), torch.from_numpy(annotation["landmarks"][i]).float()
        start = time.perf_counter()
        try:
            fit = reconstruct(load_photo(folder / name), settings=settings)[0]
        except FacelabError as error:
            failures.append(f"{name}: {type(error).__name__}")
            continue
        assert fit.crop is not None
        seconds = time.perf_counter() - start
        points, found = fit.crop.to_photo(fit.landmarks()), fit.crop.to_photo(fit.crop.landmarks)
        diagonal = (true.amax(0) - true.amin(0)).norm()
        model_error, detector = ((p - true).norm(dim=1) / diagonal * 100 for p in (points, found))
        picture = fit.render()
        rows.append(
            {
                "nme_inner_percent": float(model_error[17:].mean()),
                "nme_all_percent": float(model_error.mean()),
                "detector_inner_percent": float(detector[17:].mean()),
                "detector_all_percent": float(detector.mean()),
                "photometric_rmse": float(
                    metrics.photometric_rmse(picture.image, fit.crop.image, picture.mask > 0.5)
                ),
                "identity_rms_sigma": float(fit.estimate.identity.square().mean().sqrt()),
                "seconds": seconds,
            }
        )
    wrong = sum(row["nme_all_percent"] > 8 for row in rows)  # another face in the picture, mostly
    return {
        "count": len(choice),
        "failures": failures,
        "errors_above_8_percent": wrong,
        "errors": summarise(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("synthetic", "photos"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="change a setting")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = {name: ast.literal_eval(value) for name, value in (s.split("=") for s in arguments.set)}
    settings = Settings(**changes)
    if arguments.what == "synthetic":
        result = evaluate_synthetic(arguments.count, settings, arguments.seed)
    else:
        result = evaluate_photos(arguments.folder, arguments.count, settings, arguments.seed)
    print(f"failures: {len(result['failures'])} of {result['count']}")
    for key, row in result["errors"].items():
        print(f"{key:28s} median {row['median']:8.3f}  mean {row['mean']:8.3f}  p90 {row['p90']:8.3f}")
    if not changes:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"fitting_{arguments.what}.json"
        path.write_text(json.dumps(describe_run(arguments.seed) | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
