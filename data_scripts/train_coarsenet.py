"""Train CoarseNet (Richardson et al. 2017, Section 3): from pictures and an estimate on its way to the truth.

    python data_scripts/train_coarsenet.py runs/coarsenet                      # preset cpu; resumable
    torchrun --nproc-per-node 4 data_scripts/train_coarsenet.py runs/coarsenet --preset full

Pictures are drawn on the fly from the distribution "portrait" with hair, glasses, hands and flaws of cameras
in some; they are seen by perspective cameras, the truth is the nearest weak perspective (`vectors_of`).
--channels pncc, normals or none are the paper's ablations. Run again to go on after a kill.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facelab.evaluation.metrics import geometry_rmse_mm
from facelab.methods.coarsenet import (
    SIDE,
    GeometryLoss,
    decode,
    iterate,
    layout,
    mixed,
    network_input,
    pose_loss,
    vectors_of,
)
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.networks import encoder
from facelab.support.files import as_json, sha256_of, write_whole
from facelab.support.tensors import send
from facelab.synthetic.augmentation import Degradations
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.training import Run, ahead, save_checkpoint

CHANNELS = {"both": ("pncc", "normals"), "pncc": ("pncc",), "normals": ("normals",), "none": ()}
HELD_OUT = 4  # batches of 16, of another seed


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


PRESETS = {
    "full": Settings(),
    "cpu": Settings("medium", 120, 32, 12_000, 1e-3, "bf16-mixed"),
    "tiny": Settings("small", 60, 8, 12, 1e-3, "32-true"),
}


def renderer(settings: Settings, seed: int, device: str = "cpu") -> Renderer:
    """Pictures as CoarseNet will meet them, drawn with a coarse mesh."""
    flaws = Degradations(probability=0.3)
    side, batch = settings.side, settings.batch
    return Renderer(CorpusSpec("portrait", seed, side, 0, "procedural", 0.1, flaws, batch), device)


def truth_of(source: Renderer, parameters: Tensor, side: int) -> Tensor:
    """r_gt of a batch of a corpus."""
    return vectors_of(source.model, source.distribution.decode(source.model, parameters, side), side)


@torch.no_grad()
def examples(source: Renderer, settings: Settings, number: int) -> tuple[Tensor, Tensor]:
    """What the network sees in batch `number`, and the truth: a function of the number alone."""
    batch = source.batch(number)
    truth = truth_of(source, batch["parameters"], settings.side)
    drawn = torch.Generator().manual_seed(1_000_003 * settings.seed + number)
    other = truth[send(torch.randperm(len(truth), generator=drawn), truth)]
    estimate = mixed(truth, other, drawn)
    return network_input(source.model, estimate, batch["image"], CHANNELS[settings.channels]), truth


@torch.no_grad()
def evaluate(network: nn.Module, settings: Settings, model: MorphableModel) -> dict[str, float]:
    """Errors on held-out pictures after one and four iterations, beside those of the mean face."""
    network.eval()
    source = renderer(replace(settings, batch=16), settings.seed + 1)
    sums: dict[str, float] = defaultdict(float)
    for index in range(HELD_OUT):
        batch = source.batch(index)
        truth = truth_of(source, batch["parameters"], settings.side).to(model.mean)
        said = iterate(network, model, batch["image"].to(model.mean), 4, CHANNELS[settings.channels])
        answers = {"mean_face": torch.zeros_like(truth), "one": said[0], "four": said[-1]}
        shape = decode(model, truth).surface(model).vertices
        for name, r in answers.items():
            error = geometry_rmse_mm(decode(model, r).surface(model).vertices, shape)
            sums[f"{name}_mm"] += float(error.mean()) / HELD_OUT
            sums[f"{name}_pose"] += float(pose_loss(r, truth).mean()) / HELD_OUT
    network.train()
    return dict(sums)


def train(folder: Path, settings: Settings, device: str) -> dict[str, Any]:
    """From nothing, or from the folder's checkpoint, to `coarsenet.safetensors` with its card."""
    run = Run(folder, device, settings.precision, every=max(1, settings.steps // 20), seed=settings.seed)
    source = renderer(settings, settings.seed, str(run.device))
    model, channels = source.model, CHANNELS[settings.channels]
    inputs, outputs = 1 + 3 * len(channels), layout(model).size
    start = torch.Generator().manual_seed(settings.seed)
    module = encoder(settings.network, outputs, "normal", None, inputs, start)
    network, optimizer = run.setup(module, torch.optim.AdamW(module.parameters(), settings.rate))
    geometry = GeometryLoss(model)
    sample = truth_of(source, source.batch(0)["parameters"], settings.side)
    balance = float(geometry(sample, 0 * sample).mean() / pose_loss(sample, 0 * sample).mean())
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "seconds": 0.0}
    began, before = time.perf_counter(), 0.0
    rank, processes = run.fabric.global_rank, run.fabric.world_size
    batches = None
    for step in run.steps(state, settings.steps):
        if batches is None:  # after the state has been resumed
            before = state["seconds"]
            numbers = (k * processes + rank for k in range(step, settings.steps))
            batches = ahead(lambda number: examples(source, settings, number), numbers, run.device)
        seen, truth = next(batches)
        said = network(seen).float()
        loss = (geometry(said, truth) + balance * pose_loss(said, truth)).mean()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 200, 2 * (1 - step / settings.steps) + 0.02)
        optimizer.zero_grad()
        run.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
        optimizer.step()
        state["seconds"] = before + time.perf_counter() - began
    card: dict[str, Any] = {
        "method": "CoarseNet", **asdict(settings), "balance": balance,
        "held_out": evaluate(module, settings, model),
        "presentations": settings.steps * settings.batch * processes,
        "minutes": round(state["seconds"] / 60, 1),
        "hardware": platform.processor() or platform.machine(), "device": str(run.device),
        "face_model": sha256_of(DEFAULT_MODEL), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
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
    parser.add_argument("--channels", choices=CHANNELS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("channels", "steps", "seed")}
    settings = replace(PRESETS[arguments.preset], **{k: v for k, v in chosen.items() if v is not None})
    print(as_json(train(arguments.folder, settings, arguments.device)["held_out"]))


if __name__ == "__main__":
    main()
