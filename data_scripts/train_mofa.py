"""Train MoFA's encoder, without truth: on rendered faces, or on a folder of photographs.

    python data_scripts/train_mofa.py runs/mofa_corpus runs/mofa                     # with the surrogate loss
    python data_scripts/train_mofa.py runs/mofa_corpus runs/mofa_without --no-surrogate
    python data_scripts/train_mofa.py my_photographs runs/mofa_photos --photos --start .../mofa.safetensors
    torchrun --nproc_per_node 4 data_scripts/train_mofa.py ... --preset full

The corpus is rendered first if it is not there; its parameters are never looked at. Landmarks, for the
surrogate loss, are what a detector would say: on photographs what it says, on renders the true projections
plus the errors that it made on one of 128 other renders (running it on all takes longer than the training).
Killed and started again, training goes on where it was. `RUN/mofa.safetensors` is the checkpoint and
`RUN/curves.json` holds what Figure 10 shows, measured on 256 held-out renders.
"""

import argparse
import json
import platform
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
from facelab.photos.folders import PhotoFolder
from facelab.photos.packed import PackedPhotos
from facelab.support.errors import CorpusError
from facelab.support.files import as_json, guarded, read_tensors, write_whole
from facelab.support.tensors import send
from facelab.synthetic.augmentation import Degradations
from facelab.synthetic.corpora import Corpus, CorpusSpec, Renderer, build_corpus, is_finished
from facelab.training import Run, ahead, batch_indices, load_checkpoint, save_checkpoint

PRESETS: dict[str, dict[str, Any]] = {
    # kind, side, border, pictures, batch, steps, optimiser, rate, z rate, w_reg at first and at last, w_beta
    "tiny": dict(kind="small", side=120, pictures=1024, batch=16, steps=40, adam=True, rate=1e-3, z_rate=5e-3,
                 reg=(1e-3, 1e-3), reflectance=0.1),
    "quick": dict(kind="small", side=120, pictures=40_960, batch=32, steps=5750, adam=True, rate=1e-3,
                  z_rate=5e-3, reg=(1e-3, 1e-3), reflectance=0.1),
    "shipped": dict(kind="medium", side=160, border=1 / 8, pictures=57_344, batch=32, steps=9_000, adam=True,
                    rate=1e-3, z_rate=5e-3, reg=(1e-3, 1e-3), reflectance=0.1, precision="bf16-mixed"),
    "full": dict(kind="alexnet", side=240, pictures=100_000, batch=5, steps=200_000, adam=False, rate=0.1,
                 z_rate=0.0005, reg=(2.9e-5, 2.9e-5), reflectance=1.7e-3),
}  # fmt: skip
# The one that shipped before: smaller pictures, seen whole.
PRESETS["coarse"] = PRESETS["shipped"] | {"side": 120, "border": 0.0, "pictures": 65_536, "steps": 11_000}

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
    return scatter.min() / scatter


class Pictures(Dataset):
    """{image (3, S, S), landmarks (68, 2) px} and nothing else: truth is thrown away here."""

    def __init__(self, source: Corpus | PhotoFolder | PackedPhotos, errors: Tensor | None, side: int) -> None:
        self.source, self.errors, self.side = source, errors, side

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        item = self.source[index]
        landmarks = item["landmarks"]
        if self.errors is not None:
            landmarks = landmarks + self.side * self.errors[index % len(self.errors)]
        return item["image"], landmarks


def schedule(progress: float, reg: tuple[float, float]) -> tuple[float, float]:
    """(share of the learning rate, w_reg): a short warm-up, the second half a slope to nothing; the prior is
    relaxed geometrically over the first half, so that pose is learned before shape."""
    share = min(1.0, progress / 0.01) * min(1.0, 2 * (1 - progress))
    return max(share, 1e-3), max(reg[1], reg[0] * (reg[1] / reg[0]) ** (progress / 0.5))


def blur(images: Tensor, progress: float) -> Tensor:
    """Pictures as the loss of an unaided training sees them: averaged over blocks of pixels at first."""
    block = next(pixels for until, pixels in UNAIDED_BLUR if progress <= until)
    return avg_pool2d(images, block) if block > 1 else images


def shown(loader: Iterator[list[Tensor]], device: torch.device, step: int) -> tuple[Tensor, Tensor]:
    """The loader's next pictures and landmarks on the device, half of them mirrored."""
    images, landmarks = (send(part, device) for part in next(loader))
    flip = torch.rand(len(images), generator=torch.Generator().manual_seed(step)) < 0.5
    return mirrored(images, landmarks, send(flip, device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--preset", default="quick", choices=PRESETS)
    parser.add_argument("--no-surrogate", action="store_true")
    parser.add_argument(
        "--photos", action="store_true", help="CORPUS is a folder of photographs, or a file of `pack_photos`"
    )
    parser.add_argument("--kind", help="encoder: small, medium, alexnet, vgg (default: the preset's)")
    parser.add_argument("--pretrained", help="see facelab.networks.encoder")
    parser.add_argument("--start", type=Path, help="a checkpoint (.safetensors) to go on from")
    parser.add_argument("--rate", type=float, help="learning rate; that of z keeps its ratio to it")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pictures", type=int, help="of a corpus that is rendered first")
    parser.add_argument("--every", type=int, default=250, help="steps between two measurements")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=50)
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    kind, side, batch = arguments.kind or preset["kind"], preset["side"], preset["batch"]
    steps = arguments.steps or preset["steps"]
    arguments.run.mkdir(parents=True, exist_ok=True)

    errors = None
    if arguments.photos:
        source: Corpus | PhotoFolder | PackedPhotos
        if arguments.corpus.is_file():
            source = PackedPhotos(arguments.corpus, side)
        else:
            landmarks = arguments.run / "landmarks.jsonl"
            source = PhotoFolder(arguments.corpus, side, landmarks, workers=arguments.workers)
    else:
        if not is_finished(arguments.corpus):
            spec = corpus_spec(side, arguments.seed)
            count = arguments.pictures or preset["pictures"]
            build_corpus(arguments.corpus, spec, count, 32, arguments.workers)
        source = Corpus(arguments.corpus, verify=False)
        errors = detector_errors(arguments.corpus / "detector_errors.safetensors")
    pictures = Pictures(source, errors, side)

    if arguments.rate:
        preset = preset | {
            "rate": arguments.rate,
            "z_rate": arguments.rate * preset["z_rate"] / preset["rate"],
        }
    run = Run(arguments.run, arguments.device, preset.get("precision", "32-true"), every=250)
    decoder = Decoder()
    decoder.to(run.device)
    trust = None if errors is None else confidences(errors).to(run.device)
    torch.manual_seed(arguments.seed)
    gentle = arguments.no_surrogate and preset["adam"] and not arguments.start  # who has started can see
    units = UNAIDED_UNITS if gentle else UNITS
    encoder = Encoder(make_network(kind, arguments.pretrained), units, preset.get("border", 0.0))
    if arguments.start:
        before_it, its_card = load_checkpoint(arguments.start)
        if (its_card.get("side"), its_card.get("border", 0.0)) != (side, encoder.border):
            parser.error(f"'{arguments.start}' saw pictures of another size or border; name its --preset.")
        encoder.load_state_dict(before_it)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    groups = encoder.parameter_groups(*(UNAIDED_RATES if gentle else (preset["rate"], preset["z_rate"])))
    optimiser = torch.optim.Adam(groups, fused=True) if preset["adam"] else torch.optim.Adadelta(groups)
    rates = [group["lr"] for group in optimiser.param_groups]
    network, optimizer = run.setup(encoder, optimiser)
    renderer = Renderer(corpus_spec(side, 999, clean=True))
    held_out = [renderer.batch(i) for i in range(HELD_OUT)]
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "curves": [], "seconds": 0.0}

    rank, processes = run.fabric.global_rank, run.fabric.world_size
    start_time, batches, before = time.process_time(), None, 0.0
    for step in run.steps(state, steps):
        if batches is None:  # after the state has been resumed
            before = state["seconds"]
            order = (
                batch_indices(k, batch, len(pictures), arguments.seed, rank, processes).tolist()
                for k in range(step, steps)
            )
            loader = iter(DataLoader(pictures, batch_sampler=order, num_workers=arguments.workers))  # type: ignore[arg-type]
            show = partial(shown, loader, run.device)
            batches = ahead(show, range(step, steps), run.device)
        if step % arguments.every == 0 and rank == 0:
            encoder.eval()
            point = {"step": step, "pictures": step * batch * processes} | evaluate(
                decoder, encoder, held_out
            )
            state["curves"].append(point)
            tqdm.write(json.dumps({k: round(v, 4) for k, v in point.items()}))
        encoder.train()
        images, landmarks = next(batches)
        share, reg = schedule(step / steps, preset["reg"])
        for group, rate in zip(optimiser.param_groups, rates):
            group["lr"] = share * rate if preset["adam"] else rate  # the paper's rates are constant
        weights = Weights(reg=reg, reflectance=preset["reflectance"])
        code = network(images).float()
        if gentle:
            code, images = code * beginners_code(step / steps).to(code), blur(images, step / steps)
        surrogate = None if arguments.no_surrogate else landmarks
        loss = loss_terms(decoder, code, images, surrogate, trust, weights)["total"].mean()
        if gentle:
            upright = UNAIDED_UPRIGHT * max(0.0, 1 - 2 * step / steps)
            loss = loss + upright * LAYOUT.split(code)["rotation"].square().sum(-1).mean()
        optimizer.zero_grad()
        run.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        state["seconds"] = before + time.process_time() - start_time
    if rank > 0:
        return
    encoder.eval()
    last = {"step": steps, "pictures": steps * batch * processes} | evaluate(decoder, encoder, held_out)
    with torch.no_grad():
        signs = warning_signs(decoder, torch.cat([encoder(b["image"].to(run.device)) for b in held_out]))
    for sentence in complaints(signs):
        warnings.warn(sentence, stacklevel=1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    card = card_of(kind, side, units, encoder.border) | {
        "preset": arguments.preset, "seed": arguments.seed, "surrogate": not arguments.no_surrogate,
        "pictures": "photographs" if arguments.photos else "synthetic",
        "start": arguments.start and arguments.start.name,
        "pretrained": arguments.pretrained and Path(arguments.pretrained).name, "corpus": len(pictures),
        "seen": last["pictures"], "settings": preset | {"steps": steps},
        "hardware": platform.processor() or platform.machine(), "device": str(run.device),
        "cpu_seconds": round(state["seconds"]), "torch": torch.__version__, "commit": commit,
        "date": time.strftime("%Y-%m-%d"), "held_out": last, "warning_signs": signs,
    }  # fmt: skip
    save_checkpoint(arguments.run / "mofa.safetensors", encoder, card)
    write_whole({arguments.run / "curves.json": as_json(state["curves"] + [last])})
    print(json.dumps(last, indent=1))


if __name__ == "__main__":
    main()
