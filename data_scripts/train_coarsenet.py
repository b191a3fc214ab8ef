"""Train CoarseNet (Richardson et al. 2017, Section 3): from pictures and an estimate on its way to the truth.

    python data_scripts/train_coarsenet.py runs/coarsenet --corpus runs/mofa_corpus     # resumable
    torchrun --nproc-per-node 4 data_scripts/train_coarsenet.py runs/coarsenet --preset full

Preset cpu, the shipped network, learns from the corpus of train_mofa.py, which is rendered first if it is not
there; the others' pictures are drawn on the fly. They show the distribution "portrait", in some with hair,
glasses, hands and flaws of cameras, seen by perspective cameras; the truth is the nearest weak perspective
(`vectors_of`). --channels pncc, normals or none are the paper's ablations. Run again to go on after a kill.

Which estimates the network is shown. The paper: Eq. 3, truth and chance mixed (preset full). In a short
training that teaches to copy: the estimate already knows of the truth, and reading it off its own drawing is
easier than off the picture (notebook 60 measures it). So preset cpu shows the mean face alone at first
(`warm`), then each picture `looks` times, with what the network itself has just said of it; a share `mixed`
of the pictures begins at Eq. 3.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from train_mofa import corpus_spec

from facelab.evaluation.metrics import geometry_rmse_mm
from facelab.methods.coarsenet import (
    CHANNELS,
    SIDE,
    GeometryLoss,
    decode,
    iterate,
    make_network,
    mixed,
    network_input,
    pose_loss,
    shrunk,
    vectors_of,
)
from facelab.model.morphable_model import MorphableModel
from facelab.support.files import as_json, write_whole
from facelab.support.tensors import send
from facelab.synthetic.augmentation import Degradations
from facelab.synthetic.corpora import Corpus, CorpusSpec, Renderer, build_corpus, is_finished
from facelab.training import Run, ahead, batch_indices, save_checkpoint

HELD_OUT = 4  # batches of 16, of another seed
CORPUS_SIDE, CORPUS_SEED = 160, 50  # as train_mofa.py draws it for its preset shipped


@dataclass(frozen=True)
class Settings:
    """The numbers of a training. The paper prints none but the picture's size and the kind of network."""

    network: str = "resnet18"
    side: int = SIDE
    batch: int = 64
    steps: int = 100_000
    rate: float = 1e-3
    precision: str = "16-mixed"
    channels: str = "both"
    seed: int = 60
    pictures: int = 0
    """of the corpus; 0: drawn on the fly"""
    looks: int = 1
    """how often a picture is shown, each time with the last answer"""
    mixed: float = 1.0
    """share of the pictures whose first estimate is Eq. 3's; of the others it is the mean face"""
    warm: float = 0.0
    """share of the steps, at first, that show the mean face only"""


PRESETS = {
    "full": Settings(),
    "cpu": Settings("slim", 80, 32, 2_400, 1e-3, "32-true", pictures=24_576, looks=4, mixed=0.25, warm=0.4),
    "tiny": Settings("small", 60, 8, 12, 1e-3, "32-true", looks=2, mixed=0.5, warm=0.3),
}


class Faces:
    """Pictures (B, 3, S, S) and their r_gt (B, P): a function of the batch's number.

    Drawn on the fly with a coarse mesh; or, of a finished corpus, the next ones of a new order each epoch.
    """

    def __init__(
        self, settings: Settings, seed: int, batch: int, device: str = "cpu", corpus: Path | None = None
    ) -> None:
        self.side, self.batch, self.seed = settings.side, batch, seed
        size = CORPUS_SIDE if settings.pictures else settings.side
        flaws = Degradations(probability=0.3)
        spec = CorpusSpec("portrait", seed, size, 0, "procedural", 0.1, flaws, batch)
        self.renderer = Renderer(spec, device)
        self.model, self.corpus = self.renderer.model, None
        if corpus is not None:
            if not is_finished(corpus):
                build_corpus(corpus, corpus_spec(CORPUS_SIDE, CORPUS_SEED), settings.pictures, 32)
            self.corpus = Corpus(corpus, verify=False)

    @torch.no_grad()
    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        if self.corpus is None:
            batch = self.renderer.batch(number)
        else:
            rows = batch_indices(number, self.batch, len(self.corpus), self.seed).tolist()
            items = [self.corpus[row] for row in rows]
            batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "parameters")}
            batch = {key: send(part, self.model.mean) for key, part in batch.items()}
        faces = self.renderer.distribution.decode(self.model, batch["parameters"], self.side)
        return shrunk(batch["image"], self.side), vectors_of(self.model, faces, self.side)


def first_estimates(settings: Settings, truth: Tensor, number: int, warm: bool) -> Tensor:
    """What the network is shown first of the pictures of batch `number`: Eq. 3, or zeros, the mean face."""
    drawn = torch.Generator().manual_seed(1_000_003 * settings.seed + number)
    other = truth[send(torch.randperm(len(truth), generator=drawn), truth)]
    estimate = mixed(truth, other, drawn)
    chosen = send(torch.rand((len(truth), 1), generator=drawn) < settings.mixed * (not warm), truth)
    return torch.where(chosen, estimate, 0.0)


def is_warm(settings: Settings, step: int) -> bool:
    """Whether a step shows the mean face only."""
    return step < settings.warm * settings.steps


def new_parts(settings: Settings, step: int) -> list[int]:
    """The numbers of the parts of a batch that a step sees first: all, or one of `looks`."""
    count = settings.looks if is_warm(settings, step) else 1
    return [settings.looks * step + k for k in range(count)]


def all_parts(settings: Settings, step: int) -> list[int]:
    """The numbers of all parts that a step sees, new ones first."""
    steps = range(step, max(-1, step - settings.looks), -1)
    return [number for s in steps for number in new_parts(settings, s)][: settings.looks]


class Looks:
    """What each step shows: its new pictures, and those of the last steps with what the network said of them.

    Args:
        faces: a part of a batch by its number. processes: this one's number, and how many there are.
    """

    def __init__(self, settings: Settings, faces: Faces, processes: tuple[int, int] = (0, 1)) -> None:
        self.settings, self.faces, self.processes = settings, faces, processes
        self.parts: list[tuple[Tensor, Tensor]] = []

    def part(self, number: int) -> tuple[Tensor, Tensor]:
        """Pictures and truth of a part of a batch, of this process."""
        rank, world = self.processes
        return self.faces(number * world + rank)

    def new(self, step: int) -> tuple[Tensor, ...]:
        """Pictures, truth and first estimate of each part that is new in a step, one after the other."""
        found: list[Tensor] = []
        for number in new_parts(self.settings, step):
            images, truth = self.part(number)
            first = first_estimates(self.settings, truth, number, is_warm(self.settings, step))
            found += [images, truth, first]
        return tuple(found)

    def resume(self, step: int) -> None:
        """Fetch the pictures again that the step before had."""
        self.parts = [self.part(number) for number in all_parts(self.settings, step - 1)] if step else []

    def shown(self, new: tuple[Tensor, ...], said: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(pictures, truth, estimate) of a step, each (B, ...): the new ones, then older ones with what the
        network said (B', P) of them in the step before."""
        fresh = [new[k : k + 3] for k in range(0, len(new), 3)]
        older = said.split(len(new[0])) if len(said) else ()
        self.parts = ([(images, truth) for images, truth, _ in fresh] + self.parts)[: self.settings.looks]
        estimates = ([first for _, _, first in fresh] + [*older])[: len(self.parts)]
        images, truth = (torch.cat(part) for part in zip(*self.parts))
        return images, truth, torch.cat(estimates)


@torch.no_grad()
def evaluate(network: nn.Module, settings: Settings, model: MorphableModel) -> dict[str, float]:
    """Errors on held-out pictures after one and four iterations, beside those of the mean face."""
    network.eval()
    faces = Faces(settings, settings.seed + 1, 16)
    sums: dict[str, float] = defaultdict(float)
    for index in range(HELD_OUT):
        images, truth = (part.to(model.mean) for part in faces(index))
        said = iterate(network, model, images, 4, CHANNELS[settings.channels])
        answers = {"mean_face": torch.zeros_like(truth), "one": said[0], "four": said[-1]}
        shape = decode(model, truth).surface(model).vertices
        for name, r in answers.items():
            error = geometry_rmse_mm(decode(model, r).surface(model).vertices, shape)
            sums[f"{name}_mm"] += float(error.mean()) / HELD_OUT
            sums[f"{name}_pose"] += float(pose_loss(r, truth).mean()) / HELD_OUT
    network.train()
    return dict(sums)


def train(folder: Path, settings: Settings, device: str, corpus: Path | None = None) -> dict[str, Any]:
    """From nothing, or from the folder's checkpoint, to `coarsenet.safetensors` with its card."""
    run = Run(folder, device, settings.precision, every=max(1, settings.steps // 20), seed=settings.seed)
    rank, processes = run.fabric.global_rank, run.fabric.world_size
    if settings.pictures and corpus is None:
        corpus = folder / "corpus"
    faces = Faces(settings, settings.seed, settings.batch // settings.looks, str(run.device), corpus)
    looks, model = Looks(settings, faces, (rank, processes)), faces.model
    module = make_network(settings.network, model, settings.channels, settings.seed)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    network, optimizer = run.setup(module, torch.optim.AdamW(module.parameters(), settings.rate))
    geometry, channels = GeometryLoss(model), CHANNELS[settings.channels]
    _, sample = faces(0)
    balance = float(geometry(sample, 0 * sample).mean() / pose_loss(sample, 0 * sample).mean())
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "seconds": 0.0, "said": sample[:0]}
    began, before = time.process_time(), 0.0
    batches = None
    for step in run.steps(state, settings.steps):
        if batches is None:  # after the state has been resumed
            before = state["seconds"]
            if processes > 1:  # what the others' networks said of their pictures is not kept
                state["said"] = sample[:0]
            else:
                looks.resume(step)
            batches = ahead(looks.new, range(step, settings.steps), run.device)
        images, truth, estimate = looks.shown(next(batches), state["said"].to(sample))
        drawn = estimate[:1] if is_warm(settings, step) else estimate
        said = network(network_input(model, drawn, images, channels)).float()
        loss = (geometry(said, truth) + balance * pose_loss(said, truth)).mean()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 200, 2 * (1 - step / settings.steps) + 0.02)
        optimizer.zero_grad()
        run.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
        optimizer.step()
        state["said"] = said.detach()
        state["seconds"] = before + time.process_time() - began
    card: dict[str, Any] = {
        "method": "CoarseNet", **asdict(settings), "balance": balance,
        "held_out": evaluate(module, settings, model),
        "presentations": settings.steps * settings.batch * processes,
        **run.provenance(state["seconds"]),
        "licence": "Apache-2.0; trained on rendered faces only",
    }  # fmt: skip
    if rank == 0:
        save_checkpoint(folder / "coarsenet.safetensors", module, card)
        write_whole({folder / "losses.json": as_json(state["losses"])})
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--corpus", type=Path, help="with preset cpu: default FOLDER/corpus")
    parser.add_argument("--channels", choices=CHANNELS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("channels", "steps", "seed")}
    settings = replace(PRESETS[arguments.preset], **{k: v for k, v in chosen.items() if v is not None})
    print(as_json(train(arguments.folder, settings, arguments.device, arguments.corpus)["held_out"]))


if __name__ == "__main__":
    main()
