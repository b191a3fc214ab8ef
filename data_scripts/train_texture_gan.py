"""Train the progressive GAN of UV textures (Gecer et al. 2019, Sec. 3.1; Karras et al. 2018).

    python data_scripts/build_textures.py runs/textures.safetensors --photos FOLDER ...
    python data_scripts/train_texture_gan.py runs/texture_gan runs/textures.safetensors
    python data_scripts/train_texture_gan.py runs/full runs/textures512.safetensors --preset full

The losses are the logistic ones with R1, a gradient penalty on real textures (Mescheder et al. 2018), which
need one step of the discriminator per step of the generator; what is kept is the running mean of the
generator's weights. Half the textures are mirrored.

Not in Karras et al.: what the layers draw is added to the principal components of real textures; half the
latents of a step are real textures' own, of which it has to make something near (L1) the texture, as in a
VAE-GAN (Larsen et al. 2016) whose encoder is a PCA; the others are mixtures of two people's, turned so that
their spread stays. A GAN alone finds all kinds of faces only after days on a GPU; a PCA has them from the
start, and blurs. What is seen of a face from the front counts more. `anchor=0` is the GAN alone.

Run again to go on after a kill: the same bytes come out.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from facelab.geometry.camera import PerspectiveCamera
from facelab.model.morphable_model import MorphableModel
from facelab.model.textures import unit_uv
from facelab.networks.texture_gan import Components, Discriminator, Generator, at_level, decode, project
from facelab.rendering.gbuffer import rasterize_surface, uv_map
from facelab.support.errors import ModelFileError, ParameterError
from facelab.support.files import as_json, guarded, read_tensors, write_whole
from facelab.training import Run, batch_indices, save_checkpoint

HELD_OUT = 16  # textures that it never sees, the last of the file
MIRROR_SHARE = 0.5
UNSEEN = 0.15  # weight of texels that nobody sees from the front


@dataclass(frozen=True)
class Settings:
    """The numbers of a training; `full` are those of Karras et al. at 512², with R1 in place of WGAN-GP."""

    latent: int = 512
    channels: Sequence[int] = (512, 512, 512, 512, 256, 128, 64, 32)
    batches: Sequence[int] = (64, 64, 64, 32, 32, 16, 8, 8)
    steps: Sequence[int] = (20_000, 20_000, 20_000, 40_000, 40_000, 60_000, 80_000, 120_000)
    rate: float = 1e-3
    r1: float = 10.0
    every_r1: int = 8
    anchor: float = 0.0
    """weight of the distance of what is made of real textures' components to them"""
    average: float = 0.999
    precision: str = "32-true"
    projection: int = 300
    """steps of the search for held-out textures in the end"""
    seed: int = 70


PRESETS = {
    "full": Settings(),
    "cpu": Settings(
        64, (64, 64, 48, 32, 24), (16,) * 5, (100, 150, 250, 600, 2400), 2e-3, 10.0, 8, 10.0, 0.995,
        "bf16-mixed", 200,
    ),
    "tiny": Settings(8, (8, 8), (4, 4), (3, 5), 2e-3, 1.0, 2, 1.0, 0.9, projection=10),
}  # fmt: skip


def level_of(step: int, steps: Sequence[int]) -> tuple[int, float]:
    """(stage, level) of a step: each stage but the first is faded in over its first half."""
    for stage, count in enumerate(steps):
        if step < count or stage == len(steps) - 1:
            share = 1.0 if stage == 0 else min(1.0, 2 * (step + 1) / max(count, 1))
            return stage, stage - 1 + share
        step -= count
    raise AssertionError


def read_textures(path: Path) -> Tensor:
    """(N, 4, S, S) uint8 of a file of build_textures.py. Raises ModelFileError."""
    problem = f"'{path}' is no file of textures; make one with data_scripts/build_textures.py"
    with guarded(problem, ModelFileError):
        textures = read_tensors(path.read_bytes(), problem)["textures"]
        if textures.ndim != 4 or textures.shape[1] != 4 or textures.dtype != torch.uint8:
            raise ValueError(f"its textures are {tuple(textures.shape)}")
    return textures


def sized(textures: Tensor, side: int) -> Tensor:
    """Coded textures (N, 4, side, side) in [0, 1] of larger ones in 8 bits. Raises ParameterError."""
    if textures.shape[-1] % side or textures.shape[-2] != textures.shape[-1]:
        raise ParameterError(
            f"Textures of {side}² cannot be made of {tuple(textures.shape[-2:])}; build them anew."
        )
    if len(textures) < 4 * HELD_OUT:
        raise ParameterError(
            f"{len(textures)} textures are too few to learn from; build at least {4 * HELD_OUT}."
        )
    return torch.cat(
        [F.avg_pool2d(part.float() / 255, textures.shape[-1] // side) for part in textures.split(256)]
    )


def seen_from_the_front(size: int) -> Tensor:
    """(size, size) how large texels are in a picture of the average face, 1 at most, `UNSEEN` at least; lids
    and lips, which fold, as large as what is around them."""
    model = MorphableModel.load(subdivisions=1)
    camera, side = PerspectiveCamera.from_fov(24.0, 8 * size, 8 * size, 700.0), 8 * size
    maps = rasterize_surface(model.mean, model.triangles, camera, model.mean, side, side)
    uv = uv_map(maps, unit_uv(model), model.uv_triangles)[:, maps.mask[0]]
    column, row = (uv * size).long().clamp(0, size - 1)
    pixels = torch.zeros(size * size).index_add_(0, (size - 1 - row) * size + column, torch.ones(len(row)))
    reach = max(1, size // 16)
    pixels = F.max_pool2d(F.avg_pool2d(pixels.view(1, size, size), 3, 1, 1), 2 * reach + 1, 1, reach)[0]
    pixels = (pixels + pixels.flip(-1)) / (2 * pixels.quantile(0.95))
    return UNSEEN + (1 - UNSEEN) * pixels.clamp(max=1)


def fineness(pictures: Tensor) -> float:
    """Mean square of what an average over 4×4 texels takes away from pictures (N, C, S, S)."""
    coarse = F.interpolate(F.avg_pool2d(pictures, 4), scale_factor=4.0)
    return float((pictures - coarse).square().mean())


def evaluate(generator: Generator, known: Tensor, held_out: Tensor, steps: int) -> dict[str, float]:
    """How good a prior it is, beside a PCA of as many numbers: errors are mean |·| of coded textures, in
    spreads.

    `fineness` is the energy of details over that of real textures; `nearest` the distance of generated ones
    to the nearest they were learned from, over that of held-out ones: far below 1, they are known by heart.
    """
    latents = project(generator, decode(held_out), steps)
    latents_drawn = torch.randn(4 * HELD_OUT, generator.latent, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made, found = (generator.coloured(generator(part.to(known))) for part in (latents_drawn, latents))
    known, held_out, made, found = (
        (part - generator.mean) / generator.spread for part in (known, held_out, made, found)
    )
    rows = {"gan": found}
    flat = known.flatten(1), held_out.flatten(1)
    components = Components.of(known, generator.latent)
    rows["pca"] = components.textures(components.latents(held_out))
    rows["mean"] = known.mean(0).expand_as(held_out)
    result = {f"error_{name}": float((row - held_out).abs().mean()) for name, row in rows.items()}
    result |= {
        f"fineness_{name}": fineness(row) / fineness(held_out) for name, row in rows.items() if name != "mean"
    }
    result["fineness_drawn"] = fineness(made) / fineness(held_out)
    result["spread_drawn"] = float(made.std(0).mean() / known.std(0).mean())
    near = [torch.cdist(rows_, flat[0]).amin(1).mean() for rows_ in (made.flatten(1), flat[1])]
    return result | {"nearest": float(near[0] / near[1])}


def train(
    folder: Path, textures: Tensor, settings: Settings, device: str = "auto", progress: bool = True
) -> dict[str, Any]:
    """From nothing, or from the folder's checkpoint, to `texture_gan.safetensors` with its card.

    `textures` (N, 4, S, S) uint8. Raises ParameterError for textures that are too few or too small."""
    total = sum(settings.steps)
    run = Run(
        folder, device, settings.precision, every=max(1, total // 20), seed=settings.seed, progress=progress
    )
    drawn = torch.Generator().manual_seed(settings.seed)
    generator = Generator(settings.latent, settings.channels, drawn)
    critic = Discriminator(settings.channels, drawn)
    for part in (generator, critic):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    order = torch.randperm(len(textures), generator=torch.Generator().manual_seed(settings.seed))
    coded = sized(textures[order], generator.mean.shape[-1])
    coded, held_out = coded[:-HELD_OUT], coded[-HELD_OUT:]
    generator.look_at(coded)
    weight = seen_from_the_front(coded.shape[-1])
    components = generator.hang_on(coded, weight) if settings.anchor else None
    average = copy.deepcopy(generator).requires_grad_(False).to(run.device)
    real_ones = generator.whitened(coded).to(run.device)
    betas = (0.0, 0.99)
    generator, g_optimizer = run.setup(
        generator, torch.optim.Adam(generator.parameters(), settings.rate, betas)
    )
    critic, d_optimizer = run.setup(critic, torch.optim.Adam(critic.parameters(), settings.rate, betas))
    state: dict[str, Any] = {"generator": generator, "critic": critic, "average": average, "seconds": 0.0}
    state |= {"g_optimizer": g_optimizer, "d_optimizer": d_optimizer}
    began, before, last = time.perf_counter(), None, len(settings.channels) - 1
    for step in run.steps(state, total):
        before = state["seconds"] if before is None else before
        stage, level = level_of(step, settings.steps)
        rate = settings.rate * min(1.0, 4 * (1 - step / total) + 0.02)
        for group in (*g_optimizer.param_groups, *d_optimizer.param_groups):
            group["lr"] = rate
        real, latents = batch(real_ones, step, settings, run, stage)
        own = len(real) // 2 if components is not None else 0  # so many latents are the textures' own
        if components is not None:
            theirs = components.latents(real)
            latents = turned(theirs, latents)
            latents[1, :own] = theirs[:own]
        penalised = step % settings.every_r1 == 0
        real = at_level(real, level, last).requires_grad_(penalised)
        with torch.no_grad():
            fake = generator(latents[0], level)
        says = (critic.module if penalised else critic)(real, level)  # slopes of slopes want all 32 bits
        loss = F.softplus(-says).mean() + F.softplus(critic(fake, level)).mean()
        if penalised:
            (slope,) = torch.autograd.grad(says.sum(), real, create_graph=True)
            loss = loss + settings.every_r1 * settings.r1 / 2 * slope.square().sum((1, 2, 3)).mean()
        d_optimizer.zero_grad()
        run.backward(loss)
        d_optimizer.step()
        g_optimizer.zero_grad()
        made = generator(latents[1], level)
        loss = F.softplus(-critic(made, level)).mean()
        if own:
            apart = (made[:own] - real[:own].detach()).abs() * at_level(weight[None, None], level, last)
            loss = loss + settings.anchor * apart.mean()
        run.backward(loss)
        g_optimizer.step()
        keep = min(settings.average, (step + 1) / (step + 10))
        for kept, now in zip(average.parameters(), generator.parameters()):
            kept.lerp_(now.detach(), 1 - keep)
        state["seconds"] = before + time.perf_counter() - began
    card: dict[str, Any] = {
        "method": "texture GAN",
        **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()},
        "textures": len(coded), "side": generator.mean.shape[-1],
        "held_out": evaluate(average.cpu(), coded, held_out, settings.projection),
        **run.provenance(state["seconds"]),
    }  # fmt: skip
    if run.fabric.global_rank == 0:
        save_checkpoint(folder / "texture_gan.safetensors", average, card)
        write_whole({folder / "losses.json": as_json(state["losses"])})
    return card


def batch(real: Tensor, step: int, settings: Settings, run: Run, stage: int) -> tuple[Tensor, Tensor]:
    """A step's real textures (B, 4, S, S), half of them mirrored, and latents (2, B, K)."""
    size, rank, processes = settings.batches[stage], run.fabric.global_rank, run.fabric.world_size
    chosen = batch_indices(step, size, len(real), settings.seed, rank, processes)
    drawn = torch.Generator().manual_seed(1_000_003 * settings.seed + step * processes + rank)
    mirrored = torch.rand(size, 1, 1, 1, generator=drawn) < MIRROR_SHARE
    latents = torch.randn(2, size, settings.latent, generator=drawn).to(real.device)
    pictures = real[chosen.to(real.device)]
    return torch.where(mirrored.to(real.device), pictures.flip(-1), pictures), latents


def turned(latents: Tensor, drawn: Tensor) -> Tensor:
    """Latents (2, B, K) between two of (B, K) each: turned from one to the other by an angle that the first
    numbers drawn (2, B, K) say, so that means of 0 and variances of 1 stay."""
    angle = math.pi * torch.sigmoid(1.7 * drawn[..., :1])  # all but even over (0, pi)
    return angle.cos() * latents + angle.sin() * latents.roll(1, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("textures", type=Path, nargs="+", help="files of build_textures.py")
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    settings = PRESETS[arguments.preset]
    if arguments.seed is not None:
        settings = replace(settings, seed=arguments.seed)
    textures = torch.cat([read_textures(path) for path in arguments.textures])
    print(as_json(train(arguments.folder, textures, settings, arguments.device)["held_out"]))


if __name__ == "__main__":
    main()
