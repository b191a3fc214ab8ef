"""Train FineNet (Richardson et al. 2017, Section 4) without truth: by how well its depth explains the
shading.

    python data_scripts/train_finenet.py runs/finenet                        # preset cpu; resumable
    python data_scripts/train_finenet.py runs/finenet --photos FOLDER ...    # or FACELAB_PHOTOS=FOLDER
    python data_scripts/train_finenet.py runs/both --coarse runs/coarsenet/coarsenet.safetensors --end-to-end

It learns on rendered faces with folds, whose depth it never sees; with photographs these are half of every
batch, evenly over light and dark skins (`facelab.photos.crops`, as train_mofa.py). The coarse depth comes
from a trained CoarseNet (--coarse), or from the face that fits the landmarks (of renders: the true face,
somewhat off). --end-to-end trains CoarseNet as well, through the depth map (Figure 7). Run again to go on
after a kill. Either way what comes out is measured on rendered faces with folds of known depth.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facelab.methods.coarse_to_fine import EndToEnd
from facelab.methods.coarsenet import CHANNELS, LandmarkFace, iterate, load_network, shrunk
from facelab.methods.finenet import FineNet, observe
from facelab.methods.wrinkles import relief_errors, wrinkled_faces
from facelab.model.morphable_model import MorphableModel
from facelab.photos.crops import FaceCrops, seed_of
from facelab.support.errors import ParameterError
from facelab.support.files import as_json, write_whole
from facelab.training import Run, save_checkpoint

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
    "cpu": Settings(16, 200, 4, 3_000, 5e-4, "32-true"),
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
    """Batches of photographs' faces, beside as many renders, where no hair misleads the criterion."""

    def __init__(self, settings: Settings, model: MorphableModel, faces: FaceCrops) -> None:
        half = settings.batch // 2
        self.settings, self.faces, self.count = settings, faces, settings.batch - half
        self.renders = Renders(replace(settings, batch=half), model) if half else None
        self.fitted = LandmarkFace(MorphableModel.load(subdivisions=0))

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S), and vectors (B, P): the faces that fit the landmarks, and the renders'."""
        seed, side = self.settings.seed, self.settings.side
        chosen = self.faces.draw(index, self.count, seed)
        drawn = torch.Generator().manual_seed(seed_of(seed, index))
        images, landmarks = self.faces.views(chosen, side, drawn)
        r = torch.stack([self.fitted.vector(points, side) for points in landmarks])
        if self.renders is None:
            return images, r
        more, others = self.renders.batch(index)
        return torch.cat([images, more]), torch.cat([r, others])


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
    photos: FaceCrops | None = None,
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
        source = Photographs(settings, model, photos)
    first, about = (None, {}) if coarse is None else load_network(coarse, model)
    side = about.get("side", 0)
    module: nn.Module = fine
    if end_to_end:
        if first is None:
            raise ParameterError("End to end needs a trained CoarseNet; name its file with --coarse.")
        if about["channels"] != "both":
            raise ParameterError("End to end needs a CoarseNet with both feedback channels; give another.")
        module = EndToEnd(model, first, fine, side)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    network, optimizer = run.setup(module.train(), torch.optim.Adam(trained, settings.rate))
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "seconds": 0.0}
    began, before = time.process_time(), None
    rank, processes = run.fabric.global_rank, run.fabric.world_size
    for step in run.steps(state, settings.steps):
        before = state["seconds"] if before is None else before
        images, r = (part.to(run.device) for part in source.batch(step * processes + rank))
        if end_to_end:
            loss = network(images)["total"].mean()
        else:
            if first is not None:
                shown = CHANNELS[about["channels"]]
                r = iterate(first.to(run.device), model, shrunk(images, side), 4, shown)[-1]
            loss = losses_of(network, settings, model, images, r)["total"].mean()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 100, 2 * (1 - step / settings.steps) + 0.02)
        optimizer.zero_grad()
        run.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        state["seconds"] = before + time.process_time() - began
    card: dict[str, Any] = {
        "method": "FineNet", **asdict(settings), "held_out": evaluate(fine, settings, model),
        "pictures": "renders with folds", "photographs": len(photos or ()), "end_to_end": end_to_end,
        "coarse": "landmarks" if coarse is None else coarse.name,
        "presentations": settings.steps * settings.batch * processes,
        **run.provenance(state["seconds"]),
        "licence": "that of the photographs" if photos else "Apache-2.0",
    }  # fmt: skip
    if rank == 0:
        save_checkpoint(folder / "finenet.safetensors", fine, card)
        if end_to_end and first is not None and coarse is not None:
            kept = {k: v for k, v in about.items() if k not in ("sha256", "held_out")}
            save_checkpoint(folder / "coarsenet.safetensors", first, kept | {"end_to_end": card["date"]})
        write_whole({folder / "losses.json": as_json(state["losses"])})
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--photos", nargs="+", type=Path, help="folders of photographs to learn from, too")
    parser.add_argument("--most", type=int, help="no more photographs of a folder")
    parser.add_argument("--faces", type=Path, help="file to keep their faces in (default: in FOLDER)")
    parser.add_argument("--coarse", type=Path, help="a CoarseNet to start from (.safetensors)")
    parser.add_argument("--end-to-end", action="store_true", help="train CoarseNet, too")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("steps", "seed")}
    settings = replace(PRESETS[arguments.preset], **{k: v for k, v in chosen.items() if v is not None})
    folders = arguments.photos or [Path(name) for name in [os.environ.get("FACELAB_PHOTOS")] if name]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.faces or arguments.folder / "faces.safetensors"
    photos = FaceCrops.cut(folders, file, arguments.most) if folders else None
    card = train(arguments.folder, settings, arguments.device, photos, arguments.coarse, arguments.end_to_end)
    print(as_json(card["held_out"]))


if __name__ == "__main__":
    main()
