"""Train the 2022 network (expressions, specular albedos) on photographs alone: facelab/methods/specular.py.

    python data_scripts/train_specular.py RUN --photos FOLDER ... [--preset cpu|full|tiny]

Landmarks are a detector's, found once; skin weights (Eq. 9) come from `SkinModel` inside the landmarks' hull.
A tenth of the people (FOLDER/PERSON/FILE) is left out. Killed and started again, it goes on where it was.
RUN/specular.safetensors is the checkpoint, its card says how it came about.
"""

import argparse
import datetime
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from facelab.evaluation.mofa_progress import mirrored
from facelab.methods.specular import Batch, Weights, loss_terms, make_network
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.photos import landmark_mask
from facelab.photos.crops import FaceCrops, seed_of
from facelab.photos.skin import SkinModel, skin_weights
from facelab.recognition.networks import DlibRecogniser
from facelab.support.files import sha256_of
from facelab.training import Run, save_checkpoint

LOSSES = ("identity", "photo", "mouth", "prior", "uniform")  # that can be left out (Tables 1 and 2)


@dataclass(frozen=True)
class Preset:
    """Numbers of a training; the defaults are the paper's (Sec. 4.2)."""

    kind: str = "resnet50"
    pretrained: str | None = "imagenet"
    side: int = 224
    batch: int = 32
    steps: int = 200_000
    rate: float = 5e-5
    mouth_from: float = 0.25
    """share of the steps after which the inner mouth counts: 50k of 200k"""
    precision: str = "16-mixed"


PRESETS = {
    "full": Preset(),
    "cpu": Preset("small", None, 112, 16, 8_000, 1e-3, precision="32-true"),
    "tiny": Preset("small", None, 64, 4, 12, 1e-4, precision="32-true"),
}


class Labelled(Dataset):
    """Item k is the batch of step k: pictures, landmarks and skin weights, a function of its number."""

    def __init__(self, faces: FaceCrops, preset: Preset, seed: int, rank: int = 0, world: int = 1) -> None:
        self.faces, self.preset, self.seed, self.rank, self.world = faces, preset, seed, rank, world
        self.skin = SkinModel.load()

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, self.rank))
        index = self.faces.draw(step * self.world + self.rank, self.preset.batch, self.seed)
        images, landmarks = self.faces.views(index, self.preset.side, generator)
        flip = torch.rand(len(images), generator=generator) < 0.5
        images, landmarks = mirrored(images, landmarks, flip)
        return images, landmarks, torch.stack([self.weights(*pair) for pair in zip(images, landmarks)])

    def weights(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """C_skin (1, S, S); 0 outside the face."""
        face = landmark_mask(landmarks, *image.shape[1:])
        return skin_weights(self.skin.probability(image, face))


def train(args: argparse.Namespace, preset: Preset) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The trained network and what the card says of its training."""
    run = Run(args.run, args.device, preset.precision, every=max(1, preset.steps // 20), seed=args.seed)
    model = MorphableModel.load(subdivisions=0, device=str(run.device))
    torch.manual_seed(args.seed)
    network = make_network(preset.kind, model, preset.pretrained)
    network, optimizer = run.setup(network, torch.optim.Adam(network.parameters(), preset.rate))
    left_out = {name: 0.0 for name in args.without}
    weights = replace(Weights(), **left_out)
    recogniser = None if "identity" in left_out else DlibRecogniser().to(run.device)
    faces = FaceCrops.cut(args.photos, args.faces or args.run / "faces.safetensors", args.most)
    batches = Labelled(faces, preset, args.seed, run.fabric.global_rank, run.fabric.world_size)
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "terms": []}
    loader = None
    for step in run.steps(state, preset.steps):
        if loader is None:  # after the state has been resumed
            order = range(step, preset.steps)
            loader = iter(DataLoader(batches, batch_size=None, sampler=order, num_workers=args.workers))
        network.train()
        batch = Batch(*(part.to(run.device) for part in next(loader)))
        theta = network(batch.images).float()
        mouth = step >= preset.mouth_from * preset.steps
        terms = loss_terms(model, theta, batch, recogniser, weights, mouth)
        run.backward(terms["total"].mean())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % max(1, preset.steps // 20) == 0:
            state["terms"].append({name: float(value.detach().mean()) for name, value in terms.items()})
    return network, {
        "photographs": len(faces), "seen": preset.steps * preset.batch * run.fabric.world_size,
        "terms": state["terms"], "hardware": platform.processor() or platform.machine(),
        "device": str(run.device),
    }  # fmt: skip


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", nargs="+", type=Path, required=True)
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--without", nargs="*", default=[], choices=LOSSES, help="losses to leave out")
    parser.add_argument("--most", type=int, help="no more photographs of a folder")
    parser.add_argument("--faces", type=Path, help="file to keep their faces in (default: in RUN)")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=80)
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    preset = replace(preset, steps=args.steps) if args.steps else preset
    args.run.mkdir(parents=True, exist_ok=True)
    network, history = train(args, preset)
    card = {
        "method": "specular", "kind": preset.kind, "side": preset.side,
        "face_model": sha256_of(DEFAULT_MODEL),
        "preset": asdict(preset), "without": args.without, "seed": args.seed, "torch": torch.__version__,
        "date": datetime.date.today().isoformat(), "licence": "that of the photographs", **history,
    }  # fmt: skip
    save_checkpoint(args.run / "specular.safetensors", network, card)
    print({name: round(value, 4) for name, value in history["terms"][-1].items()})


if __name__ == "__main__":
    main()
