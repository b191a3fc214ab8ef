"""Train the 2022 network (expressions, specular albedos) on photographs alone: facelab/methods/specular.py.

    python data_scripts/train_specular.py RUN --photos FOLDER ... --preset shipped --start mofa
    python data_scripts/train_specular.py RUN --photos FOLDER ... [--preset cpu|full|tiny]

Landmarks are a detector's, found once; so are skin weights (Eq. 9): `SkinModel` inside the landmarks' hull,
or with `--segmentation` where that network sees skin, eyes, brows and lips. A tenth of the people
(FOLDER/PERSON/FILE) is left out. `--start mofa`: not from nothing, but from the shipped MoFA network, whose
features and rows for pose, face and light are taken over (the lamp's start at zero); or from a checkpoint of
this script. Killed and started again, it goes on where it was. RUN/specular.safetensors is the checkpoint,
its card says how it came about.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from facelab.evaluation.mofa_progress import mirrored
from facelab.methods.mofa import FOCAL, Decoder, Z
from facelab.methods.mofa import LAYOUT as MOFA
from facelab.methods.segmentation import CLASSES, FACE, Segmentation
from facelab.methods.specular import UNITS, decode, layout, make_network
from facelab.methods.specular_losses import Batch, Weights, loss_terms
from facelab.model.morphable_model import MorphableModel
from facelab.networks import Regressor, last_layer
from facelab.photos import landmark_mask
from facelab.photos.crops import SIDE, FaceCrops, Windows, seed_of
from facelab.photos.skin import SkinModel, skin_weights
from facelab.recognition.networks import DlibRecogniser
from facelab.support.errors import CorpusError, ModelFileError
from facelab.support.files import guarded, read_tensors, write_whole
from facelab.training import Run, load_checkpoint, save_checkpoint

LOSSES = ("identity", "photo", "mouth", "prior", "uniform")  # that can be left out (Tables 1 and 2)


@dataclass(frozen=True)
class Preset:
    """Numbers of a training; the defaults are the paper's (Sec. 4.2)."""

    kind: str = "resnet50"
    pretrained: str | None = "imagenet"
    side: int = 224
    drawn: int = 224
    """px of the pictures that the losses look at"""
    border: float = 0.0
    """of a picture's side, that the network does not see on each side; the losses do"""
    batch: int = 32
    recognised: int | None = None
    """pictures of a batch that the identity loss looks at; None: all"""
    steps: int = 200_000
    rate: float = 5e-5
    mouth_from: float = 0.25
    """share of the steps after which the inner mouth counts: 50k of 200k"""
    decay_from: float = 1.0
    """share of the steps after which the rate falls, to nothing in the end; the paper's does not"""
    precision: str = "16-mixed"


PRESETS = {
    "full": Preset(),
    "shipped": Preset(
        "slim", None, 160, 112, 1 / 8, 16, 4, 1_500, 3e-4, mouth_from=0.2, decay_from=0.6, precision="32-true"
    ),
    "cpu": Preset("small", None, 112, 112, 0.0, 16, None, 8_000, 1e-3, decay_from=0.5, precision="32-true"),
    "tiny": Preset("small", None, 64, 64, 0.0, 4, None, 12, 1e-4, precision="32-true"),
}
LABEL_SIDE = 100  # px, of the skin weights that are kept


def faces_of(faces: FaceCrops, segmentation: Segmentation | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Every picture (3, LABEL_SIDE, LABEL_SIDE) and the mask (1, LABEL_SIDE, LABEL_SIDE) of its face: the
    landmarks' hull, or where a segmentation sees skin, eyes, brows and lips inside twice its size."""
    of_face = [CLASSES.index(name) for name in FACE]
    for first in range(0, len(faces), 32):
        some = slice(first, first + 32)
        pictures = interpolate(faces.images[some] / 255, (LABEL_SIDE, LABEL_SIDE), mode="area")
        hulls = [
            landmark_mask(points * LABEL_SIDE / SIDE, LABEL_SIDE, LABEL_SIDE)
            for points in faces.landmarks[some]
        ]
        if segmentation is None:
            yield from zip(pictures, hulls)
            continue
        seen = segmentation.framed(pictures)[:, of_face].sum(1, keepdim=True)
        seen = interpolate(seen, (LABEL_SIDE, LABEL_SIDE), mode="area") > 0.5
        for picture, mask, hull in zip(pictures, seen, hulls):
            yield picture, mask if (mask & hull).sum() > hull.sum() / 4 else hull  # else it sees no face


def skin_labels(faces: FaceCrops, file: Path, segmentation: Segmentation | None = None) -> Tensor:
    """(N, 1, LABEL_SIDE, LABEL_SIDE) uint8, 255 C_skin (Eq. 9), 0 only outside the face: from `file`, or made
    and kept there.

    Raises CorpusError if the file is damaged.
    """
    if not file.is_file():
        skin, found = SkinModel.load(), []
        for picture, face in tqdm(faces_of(faces, segmentation), desc="skin", total=len(faces)):
            label = face * skin_weights(skin.probability(picture, face)).clamp(min=2 / 255)
            found.append((255 * label).round().byte())
        write_whole({file: save({"skin": torch.stack(found)})})
    problem = f"'{file}' is damaged or of other photographs; delete it"
    with guarded(problem, CorpusError):
        labels = read_tensors(file.read_bytes(), problem, CorpusError)["skin"]
        if labels.shape != (len(faces), 1, LABEL_SIDE, LABEL_SIDE):
            raise ValueError(f"its labels have the shape {tuple(labels.shape)}")
    return labels


class Labelled(Dataset):
    """Item k is the batch of step k, a function of its number: what the network sees (B, 3, side, side), and
    what the losses look at: pictures (B, 3, drawn, drawn), landmarks and skin weights."""

    def __init__(
        self, faces: FaceCrops, skin: Tensor, preset: Preset, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.faces, self.skin, self.preset, self.seed = faces, skin, preset, seed
        self.rank, self.world = rank, world

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, self.rank))
        preset = self.preset
        index = self.faces.draw(step * self.world + self.rank, preset.batch, self.seed)
        windows = Windows.random(preset.batch, generator)
        images = windows.cut(self.faces.images[index].float() / 255, preset.side)
        skin = windows.cut(self.skin[index].float() / 255, preset.drawn)
        landmarks = windows.move(self.faces.landmarks[index], preset.drawn)
        small = images
        if preset.drawn != preset.side:
            small = interpolate(images, (preset.drawn, preset.drawn), mode="bilinear", antialias=True)
        flip = torch.rand(preset.batch, generator=generator) < 0.5
        small, landmarks = mirrored(small, landmarks, flip)
        images, skin = (torch.where(flip.view(-1, 1, 1, 1), maps.flip(-1), maps) for maps in (images, skin))
        return images, small, landmarks, skin


def start_from_mofa(network: Regressor, model: MorphableModel) -> None:
    """Features and last rows of the shipped MoFA network, of which this one has the convolutions ("slim").

    Its perspective camera becomes the weak perspective one that sees the average face where it does; turned
    faces and those off the middle come out a little otherwise. Identity has components that MoFA has not: 0.
    """
    weights, card = load_checkpoint("mofa")
    rows, biases = (
        torch.cat([weights[f"final.{name}"][:Z], weights[f"final.z_{name}"], weights[f"final.{name}"][Z:]])
        for name in ("weight", "bias")
    )
    table = torch.cat([rows, biases[:, None]], 1)  # (257, features + 1)
    table *= torch.cat([torch.full((n, 1), card["units"][name]) for name, n in MOFA.sizes.items()])
    decoder, own = Decoder(), layout(model)
    x, y, z = table[MOFA.slice("translation")]
    depth = -float(decoder.start[2])
    wanted = decoder.face(torch.zeros(1, MOFA.size), 1).landmarks(decoder.model)[0]
    points = decode(model, own.zeros(1), 1).landmarks(model)[0]
    size = float((wanted.amax(0) - wanted.amin(0)).max() / (points.amax(0) - points.amin(0)).max())
    away = wanted.mean(0) - 0.5 - size * (points.mean(0) - 0.5)
    new = torch.zeros(own.size, table.shape[1])
    for name, old in (("identity", "shape"), ("expression", "expression"), ("albedo", "reflectance"),
                      ("rotation", "rotation"), ("light", "light")):  # fmt: skip
        new[own.slice(name)][: MOFA.sizes[old]] = table[MOFA.slice(old)] / UNITS[name]
    new[own.slice("translation")] = torch.stack([x, -y]) * FOCAL / depth / UNITS["translation"]
    new[own.slice("scale")] = z / depth / UNITS["scale"]
    new[own.slice("translation"), -1] += away / UNITS["translation"]
    new[own.slice("scale"), -1] += math.log(size) / UNITS["scale"]
    last = last_layer(network)
    with torch.no_grad():
        last.weight.copy_(new[:, :-1])
        last.bias.copy_(new[:, -1])
    trunk = {name: value for name, value in weights.items() if name.startswith("network.features.")}
    network.load_state_dict(trunk, strict=False)


def make_start(args: argparse.Namespace, preset: Preset, model: MorphableModel) -> Regressor:
    """The network to train. Raises ModelFileError for a start that is damaged or of another network."""
    torch.manual_seed(args.seed)
    network = make_network(preset.kind, model, None if args.start else preset.pretrained, preset.border)
    if args.start == "mofa":
        start_from_mofa(network, model)
    elif args.start:
        with guarded(f"'{args.start}' is not a checkpoint of this preset's network", ModelFileError):
            network.load_state_dict(load_checkpoint(args.start)[0])
    return network


def rate_share(preset: Preset, step: int) -> float:
    """Of the learning rate, at a step: 1, and down to nothing from `decay_from` on."""
    left = (1 - step / preset.steps) / max(1e-9, 1 - preset.decay_from)
    return min(1.0, max(left, 0.01)) if preset.decay_from < 1 else 1.0


def train(args: argparse.Namespace, preset: Preset) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The trained network and what the card says of its training."""
    every = max(1, preset.steps // 20)
    run = Run(args.run, args.device, preset.precision, every=every, seed=args.seed)
    model = MorphableModel.load(subdivisions=0, device=str(run.device))
    network = make_start(args, preset, MorphableModel.load(subdivisions=0))
    network, optimizer = run.setup(network, torch.optim.Adam(network.parameters(), preset.rate))
    left_out = {name: 0.0 for name in args.without}
    weights = replace(Weights(), **left_out)
    recogniser = None if "identity" in left_out else DlibRecogniser().to(run.device)
    faces = FaceCrops.cut(args.photos, args.faces or args.run / "faces.safetensors", args.most)
    segmentation = Segmentation.load(args.segmentation) if args.segmentation else None
    skin = skin_labels(faces, args.run / "skin.safetensors", segmentation)
    batches = Labelled(faces, skin, preset, args.seed, run.fabric.global_rank, run.fabric.world_size)
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "terms": [], "seconds": 0.0}
    sums: dict[str, Any] = {}
    loader, before, started = None, 0.0, time.process_time()
    for step in run.steps(state, preset.steps):
        if loader is None:  # after the state has been resumed
            before, order = state["seconds"], range(step, preset.steps)
            loader = iter(DataLoader(batches, batch_size=None, sampler=order, num_workers=args.workers))
        network.train()
        optimizer.param_groups[0]["lr"] = preset.rate * rate_share(preset, step)
        images, small, landmarks, skin_weight = (part.to(run.device) for part in next(loader))
        batch = Batch(small, landmarks, skin_weight, recognised=preset.recognised)
        theta = network(images).float()
        mouth = step >= preset.mouth_from * preset.steps
        terms = loss_terms(model, theta, batch, recogniser, weights, mouth)
        run.backward(terms["total"].mean())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach().mean()
        state["seconds"] = before + time.process_time() - started
        if (step + 1) % every == 0:
            state["terms"].append({name: float(value) / every for name, value in sums.items()})
            tqdm.write(f"{step + 1} " + "  ".join(f"{k} {v:.3f}" for k, v in state["terms"][-1].items()))
            sums = {}
    return network, {
        "photographs": len(faces), "seen": preset.steps * preset.batch * run.fabric.world_size,
        "terms": state["terms"], **run.provenance(state["seconds"]),
    }  # fmt: skip


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", nargs="+", type=Path, required=True)
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--start", help="'mofa', or a checkpoint of this script (.safetensors) to go on from")
    parser.add_argument(
        "--segmentation", help="'segmentation' (the shipped one) or a checkpoint: where faces are"
    )
    parser.add_argument("--without", nargs="*", default=[], choices=LOSSES, help="losses to leave out")
    parser.add_argument("--most", type=int, help="no more photographs of a folder")
    parser.add_argument("--faces", type=Path, help="file to keep their faces in (default: in RUN)")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=80)
    args = parser.parse_args()
    changed = {name: value for name in ("steps", "rate") if (value := getattr(args, name))}
    preset = replace(PRESETS[args.preset], **changed)
    args.run.mkdir(parents=True, exist_ok=True)
    network, history = train(args, preset)
    card = {
        "method": "specular", "kind": preset.kind, "side": preset.side, "border": preset.border,
        "preset": asdict(preset), "without": args.without, "start": args.start and Path(args.start).name,
        "segmentation": args.segmentation and Path(args.segmentation).name,
        "seed": args.seed, "licence": "that of the photographs", **history,
    }  # fmt: skip
    save_checkpoint(args.run / "specular.safetensors", network, card)
    print({name: round(value, 4) for name, value in history["terms"][-1].items()})


if __name__ == "__main__":
    main()
