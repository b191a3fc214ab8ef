"""Are the people in photographs people of the face model? Landmarks of annotated photographs, fitted.

    python benchmarks/people.py FOLDER [--model FILE] [--before FILE] [--count 300] [--seed 0]

FOLDER holds `landmarks68.npz` with `landmarks` (N, 68, 2) in square crops of 256 pixels. For each model:

- inner, all: distance of fitted to annotated landmarks, in percent of the diagonal of their box;
- bias: RMS over the 51 inner landmarks of the mean residual in mm of the face, which has no noise left in it:
  landmarks that lie elsewhere on the mesh than where annotators click;
- mean identity: Mahalanobis distance of the mean of the estimated identities from the model's mean; were the
  photographed people drawn from the model, it would be near the noise: their spread over the root of N;
- hidden half: every second inner landmark is hidden from the fit, jaw too, and predicted.

Prints a table; writes people.json and people.md under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from facelab.methods.energy import Settings
from facelab.methods.fitting import Fit, fit_landmarks
from facelab.model.morphable_model import MorphableModel

from report import compared_models, describe_run

RESULTS = Path(__file__).parent / "results"
SIZE = 256
INNER = torch.arange(17, 68)
IGNORED = 1e4  # times the usual error: a landmark that is hidden from a fit
MEASURES = {
    "inner_percent": "inner / %",
    "all_percent": "all / %",
    "bias_mm": "bias / mm",
    "mean_identity": "mean identity / sd",
    "mean_identity_noise": "its noise / sd",
    "hidden_half_percent": "hidden half / %",
}


@dataclass(frozen=True)
class Fitted:
    """One photograph."""

    errors: Tensor  # (68,) percent of the diagonal
    residual: Tensor  # (68, 2) mm in the face's own frame, to the image's right and up
    identity: Tensor  # (Ki,)


def errors_percent(fit: Fit, marks: Tensor) -> Tensor:
    """Distance (68,) of fitted to annotated landmarks (68, 2), over the diagonal of their box."""
    diagonal = (marks.amax(0) - marks.amin(0)).norm()
    return (fit.landmarks() - marks).norm(dim=1) / diagonal * 100


def fit_photograph(model: MorphableModel, marks: Tensor, settings: Settings) -> Fitted:
    """Fit the landmarks (68, 2) of one photograph."""
    fit = fit_landmarks(model, [marks], settings)[0]
    millimetres = -float(fit.estimate.translation[2]) / (settings.focal * settings.size)
    up = torch.nn.functional.normalize(fit.estimate.rotation[:2, 1], dim=0)
    axes = torch.stack([torch.stack([up[1], -up[0]]), up])
    offset = (marks - fit.landmarks()) * torch.tensor([1.0, -1.0])
    return Fitted(errors_percent(fit, marks), millimetres * offset @ axes.T, fit.estimate.identity)


def hidden_half(model: MorphableModel, marks: Tensor, settings: Settings) -> float:
    """Mean error, in percent, of inner landmarks (68, 2) that were hidden, either half once."""
    errors = []
    for first in (0, 1):
        spread, hidden = torch.ones(68, 1), INNER[first::2]
        spread[:17] = spread[hidden] = IGNORED
        fit = fit_landmarks(model, [marks], settings, [spread])[0]
        errors.append(errors_percent(fit, marks)[hidden].mean())
    return float(torch.stack(errors).mean())


def measure(model: MorphableModel, marks: Tensor) -> dict[str, float]:
    """Every one of MEASURES over photographs (N, 68, 2)."""
    settings = Settings(size=SIZE)
    fitted = [fit_photograph(model, one, settings) for one in tqdm(marks, "fits")]
    identity = torch.stack([one.identity for one in fitted])
    errors = torch.stack([one.errors for one in fitted])
    bias = torch.stack([one.residual for one in fitted]).mean(0)[17:]
    return {
        "inner_percent": float(errors[:, 17:].mean()),
        "all_percent": float(errors.mean()),
        "bias_mm": float(bias.square().sum(1).mean().sqrt()),
        "mean_identity": float(identity.mean(0).norm()),
        "mean_identity_noise": float((identity.var(0) / len(marks)).sum().sqrt()),
        "hidden_half_percent": float(
            np.mean([hidden_half(model, one, settings) for one in tqdm(marks, "halves")])
        ),
    }


def read_marks(folder: Path, count: int, seed: int) -> Tensor:
    """A random choice of `count` photographs' landmarks (N, 68, 2)."""
    marks: NDArray[np.float32] = np.load(folder / "landmarks68.npz", allow_pickle=False)["landmarks"]
    chosen = np.random.default_rng(seed).permutation(len(marks))[:count]
    return torch.from_numpy(marks[chosen].astype(np.float32))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, help="a model file; default: the shipped one")
    parser.add_argument("--before", type=Path, help="another model file, measured beside it")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    marks = read_marks(arguments.folder, arguments.count, arguments.seed)
    files, digests = compared_models(arguments.model, arguments.before)
    results = {name: measure(MorphableModel.load(file, 0), marks) for name, file in files.items()}
    run: dict[str, Any] = describe_run(arguments.seed) | {"photographs": len(marks)} | digests
    lines = [["measure", *results], ["---"] * (1 + len(results))]
    lines += [[text, *(f"{one[key]:.2f}" for one in results.values())] for key, text in MEASURES.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = f"{table}\n\n{', '.join(f'{key} {value}' for key, value in run.items())}\n"
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "people.json").write_text(json.dumps({"run": run} | results, indent=1) + "\n")
    (arguments.out / "people.md").write_text(text)


if __name__ == "__main__":
    main()
