"""Does the face model measure like people? Calipers on its mesh, ratios in frontal pictures, skin colours.

    python benchmarks/calipers.py [--model FILE] [--photos FOLDER] [--people 2000] [--seed 0]

The norms and their sources are in data_scripts/anthropometry.json. A shift is the model's mean less people's
in their standard deviations; a spread is the model's standard deviation over people's. --photos measures the
ratios anew in a folder with landmarks68.npz (`landmarks` (N, 68, 2)) instead of taking the table's.
Prints the tables; writes calipers.json and calipers.md under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

from anthropometry import (
    MEASURES,
    Calipers,
    Floats,
    Norm,
    compare,
    is_frontal,
    photograph_norm,
    photograph_ratios,
    pooled_norm,
    portrait,
    read_table,
    table,
)
from pigment import individual_typology_angle_degrees, linear_rgb_to_lab
from uv_maps import vertex_normals

from facelab.morphable_model import MorphableModel

from report import describe_run

RESULTS = Path(__file__).parent / "results"
CHUNK = 200
QUANTILES = (1, 5, 25, 50, 75, 95, 99)


def place_calipers(model: MorphableModel) -> Calipers:
    """Calipers for a model with 68 landmarks and the regions "skin" and "eyes"."""
    mean, triangles = model.mean.numpy(), model.triangles.numpy()
    skin = np.flatnonzero((model.region_vertices("skin") | model.region_vertices("lips")).numpy())
    eyes = np.flatnonzero(model.region_vertices("eyes").numpy())
    corners, weights = triangles[model.landmark_triangles.numpy()], model.landmark_weights.numpy()
    return Calipers.place(mean, vertex_normals(mean, triangles), corners, weights, skin, eyes)


def measure_model(model: MorphableModel, identity: torch.Tensor) -> tuple[dict[str, Floats], Floats]:
    """Caliper measures of neutral faces with these coefficients (N, Ki), and their landmarks (N, 68, 3)."""
    calipers = place_calipers(model)
    parts, marks = [], []
    for some in identity.split(CHUNK):
        shapes = model.vertices(some).numpy()
        parts.append(calipers.measure(shapes))
        marks.append(calipers.landmarks(shapes))
    return {name: np.concatenate([part[name] for part in parts]) for name in MEASURES}, np.concatenate(marks)


def skin_colours(model: MorphableModel, albedo: torch.Tensor) -> dict[str, list[float]]:
    """Quantiles, over people with these coefficients (N, Ka), of their mean skin's L*, a*, b* and ITA."""
    skin = model.region_vertices("skin")
    means = [model.albedo(some)[0][:, skin].mean(1) for some in albedo.split(CHUNK)]
    lab = linear_rgb_to_lab(torch.cat(means).double().numpy())
    ita = individual_typology_angle_degrees(lab)
    columns = {"L*": lab[:, 0], "a*": lab[:, 1], "b*": lab[:, 2], "ITA": ita}
    return {name: np.percentile(values, QUANTILES).tolist() for name, values in columns.items()}


def photograph_norms(folder: Path) -> tuple[int, Callable[[str], Norm]]:
    """The number of frontal faces of a folder, and their norm for each ratio."""
    marks = np.load(folder / "landmarks68.npz")["landmarks"].astype(np.float64)
    marks = marks[is_frontal(marks)]
    ratios = photograph_ratios(marks)

    def norm(name: str) -> Norm:
        values = ratios[name]
        return Norm(float(values.mean()), float(values.std(ddof=1)), (f"{len(values)} photographs",))

    return len(marks), norm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model file; default: the shipped one")
    parser.add_argument(
        "--photos", type=Path, help="folder with landmarks68.npz; default: the table's ratios"
    )
    parser.add_argument("--people", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    model, norms = MorphableModel.load(arguments.model, subdivisions=1), read_table()
    drawn = model.sample(arguments.people, torch.Generator().manual_seed(arguments.seed))
    measures, marks = measure_model(model, drawn["identity"])
    calipers = [compare(n, v, norm) for n, v in measures.items() if (norm := pooled_norm(norms, n))]
    photos, ratio_norm = norms["photograph_ratios"]["n"], lambda name: photograph_norm(norms, name)
    if arguments.photos:
        photos, ratio_norm = photograph_norms(arguments.photos)
    ratios = [compare(n, v, ratio_norm(n)) for n, v in photograph_ratios(portrait(marks)).items()]
    colours = skin_colours(model, drawn["albedo"])

    lines = [["quantile / %", *map(str, QUANTILES)], ["---"] * (len(QUANTILES) + 1)]
    lines += [[name, *(f"{value:.1f}" for value in values)] for name, values in colours.items()]
    skin = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    run: dict[str, Any] = describe_run(arguments.seed) | {"people": arguments.people, "photographs": photos}
    text = (
        f"{arguments.people} sampled people, neutral, calipers in mm (people: equal shares of three groups "
        f"and two sexes):\n\n{table(calipers, 1)}\n\nFrontal pictures, over the outer canthal distance "
        f"({photos} photographs):\n\n{table(ratios, 3)}\n\nMean skin of the face, CIELAB under D65:\n\n"
        f"{skin}\n\n{', '.join(f'{key} {value}' for key, value in run.items())}\n"
    )
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "run": run,
        "calipers": [asdict(row) for row in calipers],
        "ratios": [asdict(row) for row in ratios],
    }
    result["skin"] = {"quantiles": list(QUANTILES), **colours}
    (arguments.out / "calipers.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "calipers.md").write_text(text)


if __name__ == "__main__":
    main()
