"""Train FineNet (Richardson et al. 2017, Section 4) without truth: by how well its depth explains the
shading.

    python data_scripts/train_finenet.py runs/finenet                        # preset cpu; resumable
    python data_scripts/train_finenet.py runs/finenet --photos my_pictures   # or FACELAB_PHOTOS=my_pictures
    python data_scripts/train_finenet.py runs/both --coarse runs/coarsenet/coarsenet.safetensors --end-to-end

Without photographs it learns on rendered faces with folds, whose depth it never sees. The coarse depth comes
from a trained CoarseNet (--coarse), or from the face that fits the landmarks (of renders: the true face,
somewhat off). --end-to-end trains CoarseNet as well, through the depth map (Figure 7). Run again to go on
after a kill. Either way what comes out is measured on rendered faces with folds of known depth.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facelab.methods.base import load_trained
from facelab.methods.coarse_to_fine import EndToEnd
from facelab.methods.coarsenet import LandmarkFace, iterate, layout, shrunk
from facelab.methods.finenet import FineNet, observe
from facelab.methods.wrinkles import relief_errors, wrinkled_faces
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.networks import encoder
from facelab.photos.folders import PhotoFolder
from facelab.support.errors import ParameterError
from facelab.support.files import as_json, sha256_of, write_whole
from facelab.training import Run, batch_indices, load_checkpoint, save_checkpoint

HELD_OUT = 8  # faces with folds, of another seed
OFF = {"shape": 0.25, "pose": 0.05}  # how far a render's coarse face is from the truth, in r's units


@dataclass(frozen=True)
class Settings:
    """The numbers of a training. The paper prints none but the picture's size and the network."""

    width: int = 64
    side: int = 200
    batch: int = 8
    steps: int = 50_000
    rate: float = 1e-4
    precision: str = "16-mixed"
    subdivisions: int = 1
    colour: bool = False
    robust: bool = True
    seed: int = 61


PRESETS = {
    "full": Settings(),
    "cpu": Settings(16, 200, 4, 3_000, 5e-4, "bf16-mixed"),
    "tiny": Settings(4, 64, 2, 6, 1e-3, "32-true", 0),
}


class Renders:
    """Batches of rendered faces with folds, and coarse faces that are somewhat off."""

    def __init__(self, settings: Settings, model: MorphableModel) -> None:
        self.settings, self.model = settings, model

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) and CoarseNet's vectors (B, P)."""
        drawn = torch.Generator().manual_seed(1_000_003 * self.settings.seed + index)
        faces = wrinkled_faces(self.model, self.settings.batch, self.settings.side, drawn)
        unit = torch.full_like(faces.r[0], OFF["shape"])
        unit[-6:] = OFF["pose"]
        return faces.images, faces.r + unit * torch.randn(faces.r.shape, generator=drawn)


class Photographs:
    """Batches of a folder's faces."""

    def __init__(self, settings: Settings, model: MorphableModel, folder: Path, cache: Path) -> None:
        self.settings, self.model = settings, model
        self.pictures = PhotoFolder(folder, settings.side, cache)
        if len(self.pictures) < settings.batch:
            raise ParameterError(
                f"Only {len(self.pictures)} faces are found in '{folder}', fewer than a batch of "
                f"{settings.batch}; give more photographs."
            )
        self.vector = lru_cache(maxsize=None)(self._vector)

    def _vector(self, index: int) -> Tensor:
        item = self.pictures[index]
        return LandmarkFace(self.model).vector(item["landmarks"], self.settings.side)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) and the vectors (B, P) of the faces that fit their landmarks."""
        chosen = batch_indices(index, self.settings.batch, len(self.pictures), self.settings.seed).tolist()
        images = torch.stack([self.pictures[k]["image"] for k in chosen])
        return images, torch.stack([self.vector(k) for k in chosen])


def load_coarse(path: Path, model: MorphableModel) -> tuple[nn.Module, int]:
    """A network of train_coarsenet.py, and the side of its pictures. Raises ModelFileError for others."""

    def build(card: dict[str, Any]) -> nn.Module:
        if card["method"] != "CoarseNet" or card["channels"] != "both":
            raise ParameterError("It is no CoarseNet with both feedback channels.")
        return encoder(card["network"], layout(model).size, "normal", None, 7)

    network, card = load_trained(path, "train_coarsenet.py", build)
    return network.eval(), card["side"]


@torch.no_grad()
def evaluate(network: FineNet, settings: Settings, model: MorphableModel) -> dict[str, float]:
    """Errors of the coarse and of the fine depth on held-out faces with folds."""
    network.eval()
    held_out = replace(settings, batch=HELD_OUT, seed=settings.seed + 1)
    faces = wrinkled_faces(
        model, HELD_OUT, settings.side, torch.Generator().manual_seed(1_000_003 * held_out.seed)
    )
    images, r = Renders(held_out, model).batch(0)
    assert torch.equal(images, faces.images)
    view = observe(model, r, images, settings.colour, settings.robust)
    fine = network(images, view.coarse, view.mask, view.camera.scale)
    network.train()
    errors = {"coarse": relief_errors(view.coarse, faces), "fine": relief_errors(fine, faces)}
    return {f"{which}_{name}": value for which, part in errors.items() for name, value in part.items()}


def losses_of(
    network: nn.Module, settings: Settings, model: MorphableModel, images: Tensor, r: Tensor
) -> dict[str, Tensor]:
    """The criterion's terms, each (B,), of FineNet alone."""
    view = observe(model, r, images, settings.colour, settings.robust)
    return view.loss(network(images, view.coarse, view.mask, view.camera.scale).float())


def train(
    folder: Path,
    settings: Settings,
    device: str,
    photos: Path | None = None,
    coarse: Path | None = None,
    end_to_end: bool = False,
) -> dict[str, Any]:
    """From nothing, or from the folder's checkpoint, to `finenet.safetensors` with its card."""
    if end_to_end:  # depth is drawn inside: 16 bits are not enough for pixels and millimetres
        settings = replace(settings, precision="32-true")
    run = Run(folder, device, settings.precision, every=max(1, settings.steps // 20), seed=settings.seed)
    model = MorphableModel.load(subdivisions=settings.subdivisions, device=run.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        fine = FineNet(settings.width)
    source: Renders | Photographs = Renders(settings, model)
    if photos is not None:
        folder.mkdir(parents=True, exist_ok=True)
        source = Photographs(settings, model, photos, folder / "landmarks.jsonl")
    first, side = (None, 0) if coarse is None else load_coarse(coarse, model)
    module: nn.Module = fine
    if end_to_end:
        if first is None:
            raise ParameterError("End to end needs a trained CoarseNet; name its file with --coarse.")
        module = EndToEnd(model, first, fine, side)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    network, optimizer = run.setup(module.train(), torch.optim.Adam(trained, settings.rate))
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "seconds": 0.0}
    began, before = time.perf_counter(), None
    rank, processes = run.fabric.global_rank, run.fabric.world_size
    for step in run.steps(state, settings.steps):
        before = state["seconds"] if before is None else before
        images, r = (part.to(run.device) for part in source.batch(step * processes + rank))
        if end_to_end:
            loss = network(images)["total"].mean()
        else:
            if first is not None:
                r = iterate(first.to(run.device), model, shrunk(images, side))[-1]
            loss = losses_of(network, settings, model, images, r)["total"].mean()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 100, 2 * (1 - step / settings.steps) + 0.02)
        optimizer.zero_grad()
        run.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        state["seconds"] = before + time.perf_counter() - began
    card: dict[str, Any] = {
        "method": "FineNet", **asdict(settings), "held_out": evaluate(fine, settings, model),
        "pictures": "renders with folds" if photos is None else "photographs", "end_to_end": end_to_end,
        "coarse": "landmarks" if coarse is None else coarse.name,
        "presentations": settings.steps * settings.batch * processes,
        "minutes": round(state["seconds"] / 60, 1),
        "hardware": platform.processor() or platform.machine(), "device": str(run.device),
        "face_model": sha256_of(DEFAULT_MODEL), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if rank == 0:
        save_checkpoint(folder / "finenet.safetensors", fine, card)
        if end_to_end and first is not None and coarse is not None:
            about = {k: v for k, v in load_checkpoint(coarse)[1].items() if k not in ("sha256", "held_out")}
            save_checkpoint(folder / "coarsenet.safetensors", first, about | {"end_to_end": card["date"]})
        write_whole({folder / "losses.json": as_json(state["losses"])})
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--photos", type=Path, default=os.environ.get("FACELAB_PHOTOS"))
    parser.add_argument("--coarse", type=Path, help="a CoarseNet to start from (.safetensors)")
    parser.add_argument("--end-to-end", action="store_true", help="train CoarseNet, too")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("steps", "seed")}
    settings = replace(PRESETS[arguments.preset], **{k: v for k, v in chosen.items() if v is not None})
    photos = Path(arguments.photos) if arguments.photos else None
    card = train(arguments.folder, settings, arguments.device, photos, arguments.coarse, arguments.end_to_end)
    print(as_json(card["held_out"]))


if __name__ == "__main__":
    main()
