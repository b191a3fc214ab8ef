"""Train facelab/methods/segmentation.py: where is a face's skin?

    python data_scripts/train_segmentation.py RUN FOLDER [--preset shipped|tiny]

FOLDER holds photographs NAME.jpg with class masks NAME.png as CelebAMask-HQ has them. A fifth of them, chosen
by their names, is kept apart: the card says how well skin is found on those, by its lightness. A quarter of
every batch are rendered faces with hair, glasses and hands before them, of which only the visible face is
known: which of its classes a pixel is, is left open. Light and dark skin are shown equally often, and every
picture is darkened or brightened. Killed and started again, it goes on where it was.
RUN/segmentation.safetensors is the checkpoint.
"""

import argparse
import time
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from facelab.methods.segmentation import CLASSES, FACE, Segmentation, make_network
from facelab.photos import load_photo
from facelab.photos.crops import seed_of
from facelab.photos.skin import LUMINANCE
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.support.errors import PhotoNotFoundError
from facelab.synthetic.augmentation import Degradations, degrade
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.training import Run, save_checkpoint

PARSED = (0, 1, 1, 0, 2, 2, 2, 2, 4, 4, 3, 2, 2, 0, 0, 0, 0, 4, 0)
"""Which of `CLASSES` each of the 19 is."""
ALL = 2 ** len(CLASSES) - 1  # a label is a set of classes, one bit each: nothing is known
COVERED = 1  # only "other"
VISIBLE = ALL - COVERED
THIRDS = ("darker", "middle", "lighter")
ZOOM = (0.75, 1.15)  # of the window over the picture
GAIN = (0.25, 1.3)  # of the light


@dataclass(frozen=True)
class Preset:
    """Numbers of a training."""

    side: int = 128
    batch: int = 16
    of_renders: int = 4
    renders: int = 512
    steps: int = 500
    rate: float = 2e-3
    precision: str = "bf16-mixed"


PRESETS = {"shipped": Preset(), "tiny": Preset(64, 4, 1, 16, 12, precision="32-true")}


@dataclass(frozen=True)
class Labelled:
    """N pictures (N, 3, H, H) uint8, sets of classes (N, 1, H, H) uint8, and luminance of the skin (N,)."""

    images: Tensor
    labels: Tensor
    luminance: Tensor

    def rows(self, index: Tensor) -> "Labelled":
        """Some of them."""
        return Labelled(self.images[index], self.labels[index], self.luminance[index])


def read(folder: Path, apart: bool, size: int = 256) -> Labelled:
    """The pairs of a folder: the fifth that is kept apart, or the others. Raises PhotoNotFoundError for less
    than four."""
    classes = torch.tensor(PARSED)
    images, labels, luminance = [], [], []
    for path in sorted(folder.glob("*.jpg")):
        mask = path.with_suffix(".png")
        if not mask.is_file() or (zlib.crc32(path.stem.encode()) % 5 == 0) != apart:
            continue
        image = load_photo(path)
        with Image.open(mask) as opened:
            names = classes[torch.from_numpy(np.array(opened)).long()]
        skin = names == CLASSES.index("skin")
        if image.shape[1:] != (size, size) or names.shape != (size, size) or not bool(skin.any()):
            continue
        linear = srgb_to_linear(image) * image.new_tensor(LUMINANCE)[:, None, None]
        images.append((255 * image).round().byte())
        labels.append((2**names).byte()[None])
        luminance.append(linear.sum(0)[skin].median())
    if len(images) < 4:
        raise PhotoNotFoundError(
            f"'{folder}' has {len(images)} photographs of {size}×{size} px with masks for this; 4 are needed."
        )
    return Labelled(torch.stack(images), torch.stack(labels), torch.stack(luminance))


def rendered(count: int, side: int, seed: int) -> Labelled:
    """Faces with half of them behind hair, glasses, hands, and where they are seen."""
    spec = CorpusSpec("portrait", seed, side, 0, occluders=0.5, degradations=Degradations(probability=0.3))
    renderer = Renderer(spec)
    batches = [renderer.batch(k) for k in range(-(-count // spec.batch))]
    images = torch.cat([(255 * batch["image"]).round().byte() for batch in batches])[:count]
    masks = torch.cat([batch["mask"] for batch in batches])[:count]
    return Labelled(images, torch.where(masks, VISIBLE, COVERED).byte(), torch.ones(count))


def even(luminance: Tensor) -> Tensor:
    """Probabilities (N,) with which every fifth of the range of lightness comes equally often, as far as six
    times its share."""
    level = luminance.clamp(min=1e-3).log()
    part = ((level - level.min()) / (level.max() - level.min() + 1e-6) * 5).long().clamp(max=4)
    share = torch.bincount(part, minlength=5) / len(part)
    return (1 / share.clamp(min=float(share.max()) / 6))[part]


def views(pairs: Labelled, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, side, side) and sets of classes (B, side, side), each another window and light."""
    count = len(pairs.images)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    zoom, turn = draw(*ZOOM), draw(-0.35, 0.35)
    theta = torch.zeros(count, 2, 3)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta[:, 0, 0], theta[:, 0, 1] = mirror * zoom * turn.cos(), -zoom * turn.sin()
    theta[:, 1, 0], theta[:, 1, 1] = mirror * zoom * turn.sin(), zoom * turn.cos()
    theta[:, :, 2] = draw(-0.2, 0.2, 2)
    grid = affine_grid(theta, [count, 3, side, side], align_corners=False)
    images = grid_sample(pairs.images / 255, grid, "bilinear", "border", align_corners=False)
    labels = grid_sample(pairs.labels.float(), grid, "nearest", "zeros", align_corners=False)[:, 0].byte()
    labels[labels == 0] = ALL  # beyond the picture nothing is known
    gain = (draw(0, 1) * (np.log(GAIN[1]) - np.log(GAIN[0])) + np.log(GAIN[0])).exp()
    dimmed = linear_to_srgb(srgb_to_linear(images) * gain[:, None, None, None]).clamp(0, 1)
    return degrade(dimmed, Degradations(probability=0.3), generator), labels


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy () of logits (B, C, S, S) and sets of classes (B, S, S): -ln of the set's probability."""
    bits = 2 ** torch.arange(logits.shape[1], device=logits.device)
    inside = (labels[:, None].int() & bits[:, None, None]) > 0
    known = (labels != ALL).to(logits)
    return -(inside.to(logits).log() + logits.log_softmax(1)).logsumexp(1).mul(known).sum() / known.sum()


def overlap(found: Tensor, truth: Tensor) -> float:
    """Intersection over union of two masks."""
    return float((found & truth).sum() / (found | truth).sum().clamp(min=1))


@torch.no_grad()
def measure(network: nn.Module, side: int, pairs: Labelled, renders: Labelled) -> dict[str, Any]:
    """IoU of skin and of the face on photographs, by thirds of lightness, and of the face on renders."""
    segmentation = Segmentation(network, side)
    face, skin = [CLASSES.index(name) for name in FACE], CLASSES.index("skin")
    table: dict[str, list[float]] = {"skin": [], "face": []}
    for image, label in zip(pairs.images, pairs.labels[:, 0]):
        found = segmentation(image / 255).argmax(0)
        table["skin"].append(overlap(found == skin, label == 2**skin))
        wanted = (label == 2 ** face[0]) | (label == 2 ** face[1])
        table["face"].append(overlap((found == face[0]) | (found == face[1]), wanted))
    thirds = np.array_split(np.argsort(pairs.luminance.numpy(), kind="stable"), 3)
    result: dict[str, Any] = {"photographs": len(pairs.images), "skin": float(np.mean(table["skin"]))}
    result["face"] = float(np.mean(table["face"]))
    result["skin by lightness"] = {
        name: round(float(np.mean([table["skin"][k] for k in rows])), 4) for name, rows in zip(THIRDS, thirds)
    }
    behind = [
        overlap(segmentation(image / 255).argmax(0) > 0, label == VISIBLE)
        for image, label in zip(renders.images, renders.labels[:, 0])
    ]
    return result | {"renders": len(behind), "visible face of renders": float(np.mean(behind))}


def train(args: argparse.Namespace, preset: Preset) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network and what the card says of it."""
    pairs = read(args.folder, apart=False)
    renders = rendered(preset.renders, preset.side, args.seed)
    run = Run(args.run, args.device, preset.precision, every=max(1, preset.steps // 10), seed=args.seed)
    torch.manual_seed(args.seed)
    network: nn.Module = make_network()
    optimizer = torch.optim.AdamW(network.parameters(), preset.rate, weight_decay=1e-2)
    network, optimizer = run.setup(network, optimizer)
    chances, of_photos = even(pairs.luminance), preset.batch - preset.of_renders
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "seconds": 0.0}
    before, started = None, time.process_time()
    for step in run.steps(state, preset.steps):
        before = state["seconds"] if before is None else before
        generator = torch.Generator().manual_seed(seed_of(args.seed, step))
        chosen = torch.multinomial(chances, of_photos, replacement=True, generator=generator)
        others = torch.randint(len(renders.images), (preset.of_renders,), generator=generator)
        parts = [views(part, preset.side, generator) for part in (pairs.rows(chosen), renders.rows(others))]
        images, labels = (torch.cat(both).to(run.device) for both in zip(*parts))
        network.train()
        progress = step / preset.steps
        optimizer.param_groups[0]["lr"] = preset.rate * min(1.0, 20 * progress + 0.05, 1.01 - progress)
        run.backward(loss_of(network(images).float(), labels))
        optimizer.step()
        optimizer.zero_grad()
        state["seconds"] = before + time.process_time() - started
    plain = make_network()
    plain.load_state_dict({name: value.cpu() for name, value in network.state_dict().items()})
    held_out = measure(plain, preset.side, read(args.folder, apart=True), rendered(64, preset.side, 7777))
    return network, {
        "photographs": len(pairs.images), "seen": preset.steps * preset.batch, "losses": state["losses"][-1],
        "held_out": held_out, **run.provenance(state["seconds"]),
    }  # fmt: skip


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="shipped", choices=PRESETS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=81)
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    preset = replace(preset, steps=args.steps) if args.steps else preset
    args.run.mkdir(parents=True, exist_ok=True)
    network, history = train(args, preset)
    card = {
        "network": "U-Net", "classes": list(CLASSES), "side": preset.side, "preset": asdict(preset),
        "seed": args.seed, "licence": "that of the photographs", **history,
    }  # fmt: skip
    save_checkpoint(args.run / "segmentation.safetensors", network, card)
    print(history["held_out"])


if __name__ == "__main__":
    main()
