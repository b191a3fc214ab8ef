"""What must not change a fit, and by how much it does: exposure, roll, a face cut by the picture's border.

    python benchmarks/robustness.py --photos FOLDER --count 20 [--out before.json]
    python benchmarks/robustness.py --table before.json after.json     benchmarks/results/robustness.md

A photograph is changed, its face fitted again, and the two shapes compared: RMS over all vertices after
alignment with scale, in millimetres. Landmarks are detected once, in the unchanged photograph, and moved
along, so that the fit is judged and not the detector; the rows "detected" find the face anew in the cut
picture. Exposure is changed in linear light and the picture stored with 8 bits again. Without `--photos` only
the astronaut of scikit-image is measured. PYTHONPATH chooses the commit whose fitting is run.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from skimage.data import astronaut
from torch import Tensor

from facelab.geometry.rotations import matrix_to_euler
from facelab.methods.fitting import Fit, fit_landmarks, fit_photos
from facelab.model.morphable_model import MorphableModel
from facelab.photos import crop_face, find_face, load_photo
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.support.errors import FacelabError

from report import describe_run

RESULTS = Path(__file__).parent / "results"
STOPS = (-3.0, -2.0, -1.0, 0.5, 1.0, 1.5)
ROLLS = (10, 30, 45, 60, 90, 120, 180)
CUTS = {"left 190": (190, None), "left 205": (205, None), "below 170": (None, 170), "below 155": (None, 155)}


def fit(photo: Tensor, landmarks: Tensor) -> Fit:
    crop = crop_face(photo, landmarks)
    known: dict[str, Any] = {"inside": [crop.inside], "confidences": [getattr(crop, "confidence", None)]}
    known = {name: known[name] for name in inspect.signature(fit_photos).parameters if name in known}
    return fit_photos([crop.image], [crop.landmarks], **known)[0]


def moved(one: Fit, other: Fit) -> float:
    """RMS in mm over all vertices, after alignment with scale."""
    a, b = one.vertices().double(), other.vertices().double()
    rotation, shift, scale = roma.rigid_points_registration(a, b, compute_scaling=True)
    return float((scale * a @ rotation.T + shift - b).square().sum(-1).mean().sqrt())


def exposed(photo: Tensor, stops: float) -> Tensor:
    changed = linear_to_srgb((srgb_to_linear(photo) * 2.0**stops).clamp(0, 1))
    return (changed * 255).round() / 255


def exposure_rows(photos: list[Tensor]) -> dict[str, list[float]]:
    """For each number of stops, what every photograph's shape moved, mm."""
    rows: dict[str, list[float]] = {f"{stops:+g}": [] for stops in STOPS}
    for photo in photos:
        landmarks = find_face(photo).landmarks
        reference = fit(photo, landmarks)
        for stops in STOPS:
            rows[f"{stops:+g}"].append(moved(fit(exposed(photo, stops), landmarks), reference))
    return rows


def roll_rows(photo: Tensor) -> dict[str, float]:
    """What the landmark fit of a turned head moved, mm."""
    crop, model = crop_face(photo, find_face(photo).landmarks), MorphableModel.load()
    reference, rows = fit_landmarks(model, [crop.landmarks])[0], {}
    for degrees in ROLLS:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turned = (crop.landmarks - 120) @ torch.tensor([[c, -s], [s, c]]).T + 120
        rows[str(degrees)] = moved(fit_landmarks(model, [turned])[0], reference)
    return rows


def border_rows(photo: Tensor) -> dict[str, dict[str, Any]]:
    """What a cut face's shape (mm) and yaw (degrees) moved, and the missing share of its landmarks' box."""
    found = find_face(photo).landmarks
    reference = fit(photo, found)
    rows: dict[str, dict[str, Any]] = {}
    low, high = found.amin(0), found.amax(0)
    for name, (left, bottom) in CUTS.items():
        part, points = photo, found
        if left is not None:
            part, points = photo[:, :, left:], found - torch.tensor([float(left), 0.0])
            missing = (left - float(low[0])) / float(high[0] - low[0])
        else:
            part = photo[:, :bottom]
            missing = (float(high[1]) - float(bottom or 0)) / float(high[1] - low[1])
        for how in ("moved along", "detected"):
            try:
                points = points if how == "moved along" else find_face(part).landmarks
                cut = fit(part, points)
            except FacelabError as error:
                rows[f"{name}, {how}"] = {"missing": missing, "error": type(error).__name__}
                continue
            turned = [float(matrix_to_euler(f.estimate.rotation)[1].rad2deg()) for f in (cut, reference)]
            row = {"missing": missing, "mm": moved(cut, reference), "yaw": turned[0] - turned[1]}
            rows[f"{name}, {how}"] = row
    return rows


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = [
        "# What must not change a fit",
        "",
        "Made by `benchmarks/robustness.py`: RMS of the shape in mm.",
        "",
    ]
    for name, run in (("before", before), ("after", after)):
        where = f"commit {run['commit']}, {run['hardware']}, {run['date']}"
        lines.append(f"- {name}: {run['photographs']} photographs, seed {run['seed']}, {where}")
    lines += ["", "| exposure, stops | before: median, largest | after: median, largest |", "|---|---|---|"]
    for stops in after["exposure"]:
        cells = (f"{np.median(run['exposure'][stops]):.2f}, {max(run['exposure'][stops]):.2f}"
                 for run in (before, after))  # fmt: skip
        lines.append(f"| {stops} | {' | '.join(cells)} |")
    lines += ["", "| roll, degrees | before | after |", "|---|---|---|"]
    lines += [f"| {d} | {before['roll'][d]:.2f} | {after['roll'][d]:.2f} |" for d in after["roll"]]
    lines += ["", "| cut; landmarks | missing | before: mm, yaw | after: mm, yaw |", "|---|---|---|---|"]
    for name, row in after["border"].items():
        cells = (f"{r['mm']:.1f}, {r['yaw']:+.0f}°" if "mm" in r else r["error"]
                 for r in (before["border"][name], row))  # fmt: skip
        lines.append(f"| {name} | {100 * row['missing']:.0f} % | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    arguments = parser.parse_args()
    if arguments.table:
        before, after = (json.loads(path.read_text()) for path in arguments.table)
        (RESULTS / "robustness.md").write_text(table(before, after))
        record = {"before": before, "after": after}
        (RESULTS / "robustness.json").write_text(json.dumps(record, indent=1) + "\n")
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that a face is cut
    face = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    photos = [face]
    if arguments.photos:
        paths = sorted(p for p in arguments.photos.iterdir() if p.suffix in (".jpg", ".png"))
        order = np.random.default_rng(0).permutation(len(paths))
        photos += [load_photo(paths[i]) for i in order[: arguments.count - 1]]
    result = describe_run(0) | {
        "photographs": len(photos),
        "roll": roll_rows(face),
        "border": border_rows(face),
    }
    print(json.dumps(result, indent=1), flush=True)
    result["exposure"] = exposure_rows(photos)
    for stops, values in result["exposure"].items():
        print(f"{stops} stops: median {np.median(values):.3f} mm, largest {max(values):.3f} mm")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
