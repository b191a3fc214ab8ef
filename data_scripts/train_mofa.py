"""Train MoFA's encoder, without truth: on rendered faces and, if there are some, photographs.

    python data_scripts/train_mofa.py runs/mofa_corpus runs/mofa                     # with the surrogate loss
    python data_scripts/train_mofa.py runs/mofa_corpus runs/mofa_without --no-surrogate
    python data_scripts/train_mofa.py runs/mofa_corpus runs/mofa --preset shipped --photos FOLDER ...
    torchrun --nproc_per_node 4 data_scripts/train_mofa.py ... --preset full

The corpus is rendered first if it is not there; its parameters are never looked at. Landmarks, for the
surrogate loss, are what a detector would say: on photographs what it says, on renders the true projections
plus the errors that it made on one of 128 other renders (running it on all takes longer than the training).
With photographs, half of every batch are of those, evenly over light and dark skins; a tenth of the people
(FOLDER/PERSON/FILE) is left out, to measure with. Killed and started again, training goes on where it was.
`RUN/mofa.safetensors` is the checkpoint and `RUN/curves.json` holds what Figure 10 shows, measured on 256
held-out renders.
"""

import argparse
import json
import subprocess
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from facelab.evaluation.mofa_progress import beginners_code, complaints, evaluate, mirrored, warning_signs
from facelab.methods.mofa import LAYOUT, UNITS, Decoder, Encoder, Weights, card_of, loss_terms, make_network
from facelab.photos import DlibDetector
from facelab.photos.crops import FaceCrops, seed_of
from facelab.support.errors import CorpusError
from facelab.support.files import as_json, guarded, read_tensors, write_whole
from facelab.support.tensors import send
from facelab.synthetic.augmentation import Degradations
from facelab.synthetic.corpora import Corpus, CorpusSpec, Renderer, build_corpus, is_finished
from facelab.training import Run, ahead, batch_indices, load_checkpoint, save_checkpoint

PRESETS: dict[str, dict[str, Any]] = {
    # kind, side, border, pictures, batch, steps, optimiser, rate, z rate, w_reg, w_beta, w_land
    "tiny": dict(kind="small", side=120, pictures=1024, batch=16, steps=40, adam=True, rate=1e-3, z_rate=5e-3,
                 reg=1e-3, reflectance=0.1),
    "quick": dict(kind="small", side=120, pictures=40_960, batch=32, steps=5750, adam=True, rate=1e-3,
                  z_rate=5e-3, reg=1e-3, reflectance=0.1),
    "shipped": dict(kind="small", side=160, border=1 / 8, pictures=24_576, batch=32, steps=5_000, adam=True,
                    rate=1e-3, z_rate=5e-3, reg=1e-3, reflectance=0.1, land=10.0, precision="bf16-mixed"),
    "full": dict(kind="alexnet", side=240, pictures=100_000, batch=5, steps=200_000, adam=False, rate=0.1,
                 z_rate=0.0005, reg=2.9e-5, reflectance=1.7e-3),
}  # fmt: skip

LANDMARKS = "by dlib's predictor, or true ones with its errors; it learned from iBUG 300-W: non-commercial"
HELD_OUT = 16  # batches of 16 renders, to measure with

# Without landmarks a network that knows nothing loses its way, and these settings only slow that down: with
# them it had not found the pose when our budget of a CPU was spent (32,000 pictures, notebook 50). Poses move
# slowly, pictures are blurred at first, few parameters are free (`beginners_code`), heads are held upright.
UNAIDED_UNITS = UNITS | {"rotation": 0.03, "translation": 10.0}
UNAIDED_RATES = (2e-4, 2e-5)  # of all, of z; faster, faces shrink until all is cheek
UNAIDED_UPRIGHT = 0.15  # weight of the squared angles, falling to 0 at half time; without it faces turn away
UNAIDED_BLUR = ((0.15, 8), (0.35, 4), (0.5, 2), (1.0, 1))  # until this progress, pixels averaged


def corpus_spec(side: int, seed: int, clean: bool = False) -> CorpusSpec:
    """Portraits before backgrounds; a tenth with hair, glasses, a hand; a third with each camera flaw."""
    flaws = {} if clean else {"occluders": 0.1, "degradations": Degradations(probability=0.3)}
    return CorpusSpec("portrait", seed=seed, size=side, subdivisions=1, **flaws)  # type: ignore[arg-type]


def detector_errors(path: Path, count: int = 128) -> Tensor:
    """(N, 68, 2) in picture widths: what dlib says minus the truth, on renders where it finds a face."""
    if path.is_file():
        with guarded(problem := f"'{path}' is damaged; delete it", CorpusError):
            errors = read_tensors(path.read_bytes(), problem, CorpusError)["errors"]
            if errors.shape[1:] != (68, 2) or not len(errors):
                raise ValueError(f"its errors have the shape {tuple(errors.shape)}")
        return errors
    renderer, found = Renderer(corpus_spec(240, 7777, clean=True)), []
    detector = DlibDetector(fallback=False)
    for index in tqdm(range(count // 16), desc="landmark detector"):
        batch = renderer.batch(index)
        for image, truth in zip(batch["image"], batch["landmarks"]):
            found += [(face.landmarks - truth) / 240 for face in detector.detect(image)[:1]]
    write_whole({path: save({"errors": torch.stack(found)})})
    return torch.stack(found)


def confidences(errors: Tensor) -> Tensor:
    """(68,) in [0, 1]: the square of the steadiest landmark's scatter over each one's (robust: medians)."""
    scatter = (errors - errors.median(0).values).square().sum(-1).median(0).values
    scatter = scatter.clamp(min=1e-12)  # of a detector that makes no errors
    return scatter.min() / scatter


class Batches(Dataset):
    """Item k is the batch of step k, a function of its number: pictures (B, 3, S, S), landmarks (B, 68, 2)
    px. Truth is thrown away here. With photographs, they are the batch's second half."""

    def __init__(
        self, corpus: Corpus, errors: Tensor, photos: FaceCrops | None, batch: int, seed: int,
        processes: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        self.corpus, self.errors, self.photos, self.seed, self.processes = (
            corpus, errors, photos, seed, processes,
        )  # fmt: skip
        self.of_photos = batch // 2 if photos else 0
        self.of_renders = batch - self.of_photos

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        side, (rank, world) = self.corpus.side, self.processes
        rows = batch_indices(step, self.of_renders, len(self.corpus), self.seed, rank, world).tolist()
        items = [self.corpus[i] for i in rows]
        noise = torch.stack([self.errors[i % len(self.errors)] for i in rows])
        images = torch.stack([item["image"] for item in items])
        landmarks = torch.stack([item["landmarks"] for item in items]) + side * noise
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, rank))
        if self.photos:
            chosen = self.photos.draw(step * world + rank, self.of_photos, self.seed)
            more, points = self.photos.views(chosen, side, generator)
            images, landmarks = torch.cat([images, more]), torch.cat([landmarks, points])
        return mirrored(images, landmarks, torch.rand(len(images), generator=generator) < 0.5)


def share_of_rate(progress: float) -> float:
    """Of the learning rate: a short warm-up, and down to nothing over the second half."""
    return max(1e-3, min(1.0, progress / 0.01) * min(1.0, 2 * (1 - progress)))


def blur(images: Tensor, progress: float) -> Tensor:
    """Pictures as the loss of an unaided training sees them: averaged over blocks of pixels at first."""
    block = next(pixels for until, pixels in UNAIDED_BLUR if progress <= until)
    return avg_pool2d(images, block) if block > 1 else images


def shown(parts: Iterator[list[Tensor]], device: torch.device, _: int) -> tuple[Tensor, Tensor]:
    """The next pictures and landmarks, on the device."""
    images, landmarks = (send(part, device) for part in next(parts))
    return images, landmarks


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--preset", default="quick", choices=PRESETS)
    parser.add_argument("--no-surrogate", action="store_true")
    parser.add_argument(
        "--photos", nargs="+", type=Path, help="folders of photographs to learn from, too, or a packed file"
    )
    parser.add_argument("--pictures", type=int, help="of a corpus that is rendered first")
    parser.add_argument("--most", type=int, help="no more photographs of a folder")
    parser.add_argument("--faces", type=Path, help="file to keep their faces in (default: in RUN)")
    parser.add_argument("--kind", help="encoder: small, medium, alexnet, vgg (default: the preset's)")
    parser.add_argument("--pretrained", help="see facelab.networks.encoder")
    parser.add_argument("--start", type=Path, help="a checkpoint (.safetensors) to go on from")
    parser.add_argument("--rate", type=float, help="learning rate; that of z keeps its ratio to it")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--every", type=int, default=250, help="steps between two measurements")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=50)
    given = parser.parse_args()
    settings = dict(PRESETS[given.preset])
    if given.rate:
        settings |= {"rate": given.rate, "z_rate": given.rate * settings["z_rate"] / settings["rate"]}
    settings |= {name: value for name in ("kind", "steps", "pictures") if (value := getattr(given, name))}
    given.settings = settings
    return given


def make_encoder(args: argparse.Namespace, gentle: bool) -> Encoder:
    """The network to train. Raises SystemExit for a start that saw other pictures."""
    settings = args.settings
    network = make_network(settings["kind"], args.pretrained)
    encoder = Encoder(network, UNAIDED_UNITS if gentle else UNITS, settings.get("border", 0.0))
    if args.start:
        before, card = load_checkpoint(args.start)
        if (card.get("side"), card.get("border", 0.0)) != (settings["side"], encoder.border):
            raise SystemExit(f"'{args.start}' saw pictures of another size or border; name its --preset.")
        encoder.load_state_dict(before)
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU


def make_batches(args: argparse.Namespace, run: Run) -> Batches:
    """The corpus and the photographs, made if they are not there."""
    settings = args.settings
    if not is_finished(args.corpus):
        spec = corpus_spec(settings["side"], args.seed)
        build_corpus(args.corpus, spec, settings["pictures"], 32, args.workers)
    corpus = Corpus(args.corpus, verify=False)
    errors = detector_errors(args.corpus / "detector_errors.safetensors")
    photos = None
    if args.photos:
        file = args.faces or args.run / "faces.safetensors"
        photos = (
            FaceCrops.unpacked(args.photos[0])
            if args.photos[0].is_file()
            else FaceCrops.cut(args.photos, file, args.most, workers=args.workers)
        )
    processes = run.fabric.global_rank, run.fabric.world_size
    return Batches(corpus, errors, photos, settings["batch"], args.seed, processes)


def train(args: argparse.Namespace, run: Run, batches: Batches) -> tuple[Encoder, dict[str, Any]]:
    """The trained encoder and what was measured on the way: {"curves", "seconds", "signs", "units"}."""
    settings, steps = args.settings, args.settings["steps"]
    gentle = args.no_surrogate and settings["adam"] and not args.start  # who has started can see
    torch.manual_seed(args.seed)
    encoder, decoder = make_encoder(args, gentle), Decoder().to(run.device)
    groups = encoder.parameter_groups(*(UNAIDED_RATES if gentle else (settings["rate"], settings["z_rate"])))
    optimiser = torch.optim.Adam(groups, fused=True) if settings["adam"] else torch.optim.Adadelta(groups)
    rates = [group["lr"] for group in optimiser.param_groups]
    network, optimizer = run.setup(encoder, optimiser)
    renderer = Renderer(corpus_spec(settings["side"], 999, clean=True))
    held_out = [renderer.batch(i) for i in range(HELD_OUT)]
    weights = Weights(
        land=settings.get("land", 1.0), reg=settings["reg"], reflectance=settings["reflectance"]
    )
    trust = confidences(batches.errors).to(run.device)
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "curves": [], "seconds": 0.0}

    def measure(step: int) -> None:
        encoder.eval()
        seen = step * settings["batch"] * run.fabric.world_size
        state["curves"].append({"step": step, "pictures": seen} | evaluate(decoder, encoder, held_out))
        tqdm.write(json.dumps({k: round(v, 4) for k, v in state["curves"][-1].items()}))
        encoder.train()

    start_time, loader, before = time.process_time(), None, 0.0
    for step in run.steps(state, steps):
        if loader is None:  # after the state has been resumed
            before = state["seconds"]
            order = range(step, steps)
            parts = iter(DataLoader(batches, batch_size=None, sampler=order, num_workers=args.workers))
            loader = ahead(partial(shown, parts, run.device), order, run.device)
        if step % args.every == 0 and run.fabric.global_rank == 0:
            measure(step)
        encoder.train()
        images, landmarks = next(loader)
        for group, rate in zip(optimiser.param_groups, rates):  # the paper's rates are constant
            group["lr"] = share_of_rate(step / steps) * rate if settings["adam"] else rate
        code = network(images).float()
        if gentle:
            code, images = code * beginners_code(step / steps).to(code), blur(images, step / steps)
        surrogate = None if args.no_surrogate else landmarks
        loss = loss_terms(decoder, code, images, surrogate, trust, weights)["total"].mean()
        if gentle:
            upright = UNAIDED_UPRIGHT * max(0.0, 1 - 2 * step / steps)
            loss = loss + upright * LAYOUT.split(code)["rotation"].square().sum(-1).mean()
        optimizer.zero_grad()
        run.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        state["seconds"] = before + time.process_time() - start_time
    measure(steps)
    encoder.eval()
    with torch.no_grad():
        codes = torch.cat([encoder(batch["image"].to(run.device)) for batch in held_out])
    signs = warning_signs(decoder, codes)
    units = UNAIDED_UNITS if gentle else UNITS
    return encoder, {
        "curves": state["curves"], "seconds": state["seconds"], "signs": signs, "units": units
    }  # fmt: skip


def main() -> None:
    """See the top of the file."""
    args = arguments()
    args.run.mkdir(parents=True, exist_ok=True)
    run = Run(args.run, args.device, args.settings.get("precision", "32-true"), every=250)
    batches = make_batches(args, run)
    encoder, history = train(args, run, batches)
    if run.fabric.global_rank > 0:
        return
    for sentence in complaints(history["signs"]):
        warnings.warn(sentence, stacklevel=1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    settings, last = args.settings, history["curves"][-1]
    card = card_of(settings["kind"], settings["side"], history["units"], encoder.border) | {
        "preset": args.preset, "seed": args.seed, "surrogate": not args.no_surrogate,
        "corpus": len(batches.corpus), "photographs": len(batches.photos or ()),
        "start": args.start and args.start.name,
        "pretrained": args.pretrained and Path(args.pretrained).name,
        "seen": last["pictures"], "settings": settings,
        "commit": commit, "held_out": last, "warning_signs": history["signs"],
        "landmarks": LANDMARKS, "licence": "that of the photographs" if batches.photos else "Apache-2.0",
    }  # fmt: skip
    card |= run.provenance(history["seconds"])
    save_checkpoint(args.run / "mofa.safetensors", encoder, card)
    write_whole({args.run / "curves.json": as_json(history["curves"])})
    print(json.dumps(last, indent=1))


if __name__ == "__main__":
    main()
