"""Does the face model measure like people? Calipers on its mesh, ratios in frontal pictures, skin colours.

    python benchmarks/calipers.py [--model FILE] [--before FILE] [--photos FOLDER] [--people 2000] [--seed 0]

The norms and their sources are in data_scripts/anthropometry.json. A shift is the model's mean less people's
in their standard deviations; a spread is the model's standard deviation over people's. --photos measures the
ratios anew in a folder with landmarks68.npz (`landmarks` (N, 68, 2)) instead of taking the table's.
--before measures another model in the same way, beside it.
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
)
from pigment import individual_typology_angle_degrees, linear_rgb_to_lab
from uv_maps import vertex_normals

from facelab.model.morphable_model import MorphableModel

from report import compared_models, describe_run

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


def measure_everything(
    file: Path | None, people: int, seed: int, norms: dict, ratio_norm: Callable[[str], Norm]
) -> dict[str, Any]:
    """Rows of calipers and ratios, and quantiles of the skin's colours, of one model file."""
    model = MorphableModel.load(file, subdivisions=1)
    drawn = model.sample(people, torch.Generator().manual_seed(seed))
    measures, marks = measure_model(model, drawn["identity"])
    calipers = [compare(n, v, norm) for n, v in measures.items() if (norm := pooled_norm(norms, n))]
    ratios = [compare(n, v, ratio_norm(n)) for n, v in photograph_ratios(portrait(marks)).items()]
    skin = {"quantiles": list(QUANTILES), **skin_colours(model, drawn["albedo"])}
    return {"calipers": [asdict(r) for r in calipers], "ratios": [asdict(r) for r in ratios], "skin": skin}


def report(results: dict[str, dict[str, Any]], run: dict[str, Any]) -> str:
    """Markdown of `measure_everything` for each name; the norms are the same for all."""

    def markdown(lines: list[list[str]]) -> str:
        lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def beside(kind: str, digits: int) -> str:
        head = ["measure", "people"] + [h for name in results for h in (name, "shift / sd", "spread")]
        lines = [head]
        for rows in zip(*(result[kind] for result in results.values())):
            line = [
                rows[0]["measure"],
                f"{rows[0]['people_mean']:.{digits}f} ± {rows[0]['people_sd']:.{digits}f}",
            ]
            for row in rows:
                line += [f"{row['model_mean']:.{digits}f} ± {row['model_sd']:.{digits}f}"]
                line += [f"{row['shift']:+.2f}", f"{row['spread']:.2f}"]
            lines.append(line)
        return markdown(lines)

    skin = [["quantile / %", *map(str, QUANTILES)]]
    for name, result in results.items():
        values = {key: row for key, row in result["skin"].items() if key != "quantiles"}
        skin += [[f"{key}, {name}", *(f"{value:.1f}" for value in row)] for key, row in values.items()]
    people, photographs = run["people"], run["photographs"]
    return "\n\n".join([
        f"{people} sampled people, neutral, calipers in mm (people: three groups and two sexes, equally):",
        beside("calipers", 1),
        f"Frontal pictures, over the outer canthal distance ({photographs} photographs):",
        beside("ratios", 3),
        "Mean skin of the face, CIELAB under D65:",
        markdown(skin),
        ", ".join(f"{key} {value}" for key, value in run.items()) + "\n",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model file; default: the shipped one")
    parser.add_argument("--before", type=Path, help="another model file, measured beside it")
    parser.add_argument(
        "--photos", type=Path, help="folder with landmarks68.npz; default: the table's ratios"
    )
    parser.add_argument("--people", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    norms = read_table()
    photos, ratio_norm = norms["photograph_ratios"]["n"], lambda name: photograph_norm(norms, name)
    if arguments.photos:
        photos, ratio_norm = photograph_norms(arguments.photos)
    files, digests = compared_models(arguments.model, arguments.before)
    results = {
        name: measure_everything(file, arguments.people, arguments.seed, norms, ratio_norm)
        for name, file in files.items()
    }
    run: dict[str, Any] = describe_run(arguments.seed) | {"people": arguments.people, "photographs": photos}
    run |= digests
    text = report(results, run)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "calipers.json").write_text(json.dumps({"run": run} | results, indent=1) + "\n")
    (arguments.out / "calipers.md").write_text(text)


if __name__ == "__main__":
    main()
