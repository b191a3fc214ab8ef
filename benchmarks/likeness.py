"""Would one recognise them? Faces estimated from one photograph, beside another one of the same people.

    python benchmarks/likeness.py FOLDER [--people 100] [--method "full fitting" mofa ...] [--seed 0]

FOLDER/PERSON/FILE: photographs by person, two or more each (Labeled Faces in the Wild, say). Only the tenth
of the people that no training here sees are looked at (`photos.folders.held_out`).

A face is estimated from one photograph of each person and drawn with a neutral expression from three sides
(-20°, 0°, 20°) under one soft light on grey. A recognition network that no method trains with (SFace) embeds
the three pictures; the mean of their embeddings, centred over the people, is compared with that of another
photograph, centred likewise. `auc`: how often a person's own photograph is nearer than another person's;
`first`: how often it is the nearest of all. "photographs" compares the photographs themselves, the "average
face" says what is left when nobody has a face of his own but for the skin.

Prints a table; writes likeness.json and likeness.md under benchmarks/results/, where other methods' rows stay
if they are of the same people.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.base import METHODS, make_method
from facelab.methods.baselines import FittingOwnSkin
from facelab.model.face import Face, draw
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.photos import DlibDetector, find_face, load_photo
from facelab.photos.crops import cheek_lightness
from facelab.photos.folders import held_out, list_pictures
from facelab.recognition.networks import SFaceRecogniser
from facelab.rendering.illumination import SphericalHarmonicsLight, ambient_to_sh, directional_to_sh
from facelab.support.errors import FacelabError

from report import describe_run

RESULTS = Path(__file__).parent / "results"
SIZE, YAWS = 240, (-20.0, 0.0, 20.0)
DISTANCE = 900.0  # mm
COMPARED = ("average face", "full fitting", "own skin", "mofa", "inversefacenet", "specular")


def soft_light() -> SphericalHarmonicsLight:
    """Mostly from everywhere, some from above and the left."""
    aim = torch.tensor([-0.4, 0.6, 1.0])
    return SphericalHarmonicsLight(
        ambient_to_sh(torch.full((3,), 0.6)) + directional_to_sh(aim, torch.full((3,), 0.9))
    )


@torch.no_grad()
def portraits(face: Face, model: MorphableModel) -> tuple[Tensor, Tensor]:
    """A face with a neutral expression from three sides: pictures (3, 3, SIZE, SIZE), landmarks (3, 68, 2)
    px."""
    pictures, points = [], []
    for yaw in YAWS:
        turn = euler_to_matrix(torch.tensor([0.0, math.radians(yaw), 0.0]))
        away = torch.tensor([0.0, 0.0, -DISTANCE])
        centre = torch.full((2,), SIZE / 2)
        camera = PerspectiveCamera(turn, away, torch.tensor(SIZE * DISTANCE / 250), centre)
        still = replace(face, expression=torch.zeros_like(face.expression), camera=camera)
        surface = still.surface(model)
        camera = replace(camera, translation=away - turn @ surface.landmarks.mean(0))
        grey = torch.full((3, SIZE, SIZE), 0.5)
        picture = draw(surface, camera, soft_light(), SIZE, SIZE, background=grey, antialias=True)
        pictures.append(picture.image.clamp(0, 1))
        points.append(camera.project(surface.landmarks)[..., :2])
    return torch.stack(pictures), torch.stack(points)


def pairs_of(folder: Path, people: int, seed: int) -> list[tuple[Path, Path]]:
    """Two photographs each of people that no training sees, in an order of chance."""
    by_person: dict[Path, list[Path]] = {}
    for path in list_pictures(folder):
        if held_out(path):
            by_person.setdefault(path.parent, []).append(path)
    several = sorted(person for person, photos in by_person.items() if len(photos) > 1)
    random.Random(seed).shuffle(several)
    return [(by_person[p][0], by_person[p][1]) for p in several[: 2 * people]]


def unit(embeddings: Tensor) -> Tensor:
    """Centred over the people, of length 1."""
    return torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=1)


def compare(estimates: Tensor, photographs: Tensor, lightness: Tensor) -> dict[str, float]:
    """`auc` and `first` of embeddings (N, D) of estimates and of other photographs of the same people; the
    AUC also of the darker and the lighter half alone."""
    score = unit(estimates) @ unit(photographs).T
    others = ~torch.eye(len(score), dtype=torch.bool)

    def auc(rows: Tensor) -> float:
        own, rest = score.diagonal()[rows], score[rows][others[rows]].view(len(rows), -1)
        return float((own[:, None] > rest).float().mean())

    order = lightness.argsort()
    half = len(order) // 2
    return {
        "auc": auc(order),
        "first": float((score.argmax(1) == torch.arange(len(score))).float().mean()),
        "auc_darker": auc(order[:half]),
        "auc_lighter": auc(order[half:]),
    }


def kept(file: Path, run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The rows of a file of results, if it is of as many people drawn with the same seed; else none."""
    if not file.is_file():
        return {}
    rows = json.loads(file.read_text())
    about = rows.pop("run")
    return rows if all(about[key] == run[key] for key in ("people", "seed")) else {}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--method", nargs="+", default=COMPARED, choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    judge, detector = SFaceRecogniser(), DlibDetector(fallback=False)
    model = MorphableModel.load()
    methods = {name: make_method(name) for name in arguments.method}
    embedded: dict[str, list[Tensor]] = {name: [] for name in ("photographs", "others", *methods)}
    lightness: list[Tensor] = []
    for first, second in tqdm(pairs_of(arguments.folder, arguments.people, arguments.seed), "people"):
        if len(lightness) == arguments.people:
            break
        try:
            photos = [load_photo(path) for path in (first, second)]
            points = [find_face(photo, detector).landmarks for photo in photos]
            said: dict[str, Reconstruction] = {}
            for name, method in methods.items():
                fitted = said.get("full fitting")
                if fitted is not None and isinstance(method, FittingOwnSkin):
                    said[name] = method.dressed(fitted, photos[0])
                else:
                    said[name] = method.reconstruct(photos[0])
        except FacelabError as error:
            tqdm.write(f"{first.parent.name} is left out: {error}")
            continue
        for name, estimate in said.items():
            if estimate.face is None:
                raise SystemExit(f"{name} gives no face of the model, so it cannot be drawn anew.")
            embedded[name].append(judge.embed(*portraits(estimate.face, model)).mean(0))
        embedded["photographs"].append(judge.embed(photos[0], points[0]))
        embedded["others"].append(judge.embed(photos[1], points[1]))
        lightness.append(cheek_lightness(photos[0], points[0]))
    others, tone = torch.stack(embedded.pop("others")), torch.stack(lightness)
    results = {name: compare(torch.stack(rows), others, tone) for name, rows in embedded.items()}
    run = describe_run(arguments.seed) | {"people": len(tone)}
    results = kept(arguments.out / "likeness.json", run) | results
    columns = ("auc", "first", "auc_darker", "auc_lighter")
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(f"{one[c]:.3f}" for c in columns)] for name, one in results.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = f"{table}\n\n{', '.join(f'{key} {value}' for key, value in run.items())}\n"
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "likeness.json").write_text(json.dumps({"run": run} | results, indent=1) + "\n")
    (arguments.out / "likeness.md").write_text(text)


if __name__ == "__main__":
    main()
