"""Train CoarseNet (Richardson et al. 2017, Section 3): from pictures and an estimate on its way to the truth.

    python data_scripts/train_coarsenet.py runs/coarsenet --corpus runs/mofa_corpus     # resumable
    torchrun --nproc-per-node 4 data_scripts/train_coarsenet.py runs/coarsenet --preset full

Preset cpu, the shipped network, learns from the corpus of train_mofa.py, which is rendered first if it is not
there; the others' pictures are drawn on the fly. They show the distribution "portrait", in some with hair,
glasses, hands and flaws of cameras, seen by perspective cameras; the truth is the nearest weak perspective
(`vectors_of`). --channels pncc, normals or none are the paper's ablations. Run again to go on after a kill.

The network is shown estimates between truth and chance (Eq. 3); in preset cpu, for the first `warm` share of
the steps, the mean face only, whose maps are drawn once: such steps are cheap.
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
    warm: float = 0.0
    """share of the steps, at first, that show the mean face only"""


PRESETS = {
    "full": Settings(),
    "cpu": Settings("slim", 80, 32, 3_000, 1e-3, "32-true", pictures=24_576, warm=0.6),
    "tiny": Settings("small", 60, 8, 12, 1e-3, "32-true", warm=0.3),
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


@torch.no_grad()
def examples(faces: Faces, settings: Settings, number: int, warm: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, truth r_gt and estimate r_t of batch `number`, a function of it: Eq. 3, or (1, P) zeros."""
    images, truth = faces(number)
    drawn = torch.Generator().manual_seed(1_000_003 * settings.seed + number)
    other = truth[send(torch.randperm(len(truth), generator=drawn), truth)]
    return images, truth, truth.new_zeros(1, truth.shape[1]) if warm else mixed(truth, other, drawn)


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
    faces = Faces(settings, settings.seed, settings.batch, str(run.device), corpus)
    model, first_true = faces.model, round(settings.warm * settings.steps)
    module = make_network(settings.network, model, settings.channels, settings.seed)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    network, optimizer = run.setup(module, torch.optim.AdamW(module.parameters(), settings.rate))
    geometry, channels = GeometryLoss(model), CHANNELS[settings.channels]
    sample = faces(0)[1][:8]
    balance = float(geometry(sample, 0 * sample).mean() / pose_loss(sample, 0 * sample).mean())
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "seconds": 0.0}
    began, before = time.process_time(), 0.0
    batches = None
    for step in run.steps(state, settings.steps):
        if batches is None:  # after the state has been resumed
            before = state["seconds"]
            batches = ahead(
                lambda k: examples(faces, settings, k * processes + rank, k < first_true),
                range(step, settings.steps), run.device,
            )  # fmt: skip
        images, truth, estimate = next(batches)
        said = network(network_input(model, estimate, images, channels)).float()
        loss = (geometry(said, truth) + balance * pose_loss(said, truth)).mean()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 200, 4 * (1 - step / settings.steps) + 0.02)
        optimizer.zero_grad()
        run.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
        optimizer.step()
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
