"""A progressive GAN of UV textures: GANFIT's texture model (Gecer et al. 2019, Sec. 3.1; Karras et al. 2018).

    generator, card = load_trained(path, "train_texture_gan.py", build_generator)
    texture = generator.texture(latent)                    # (B, K) -> (B, 4, S, S) linear diffuse RGB and F0
    latent = project(generator, texture)                   # min |G(p) - I|, the paper's answer to PCA

As in Karras et al.: growing from 4² by doubling, new layers faded in; pixel norm (of maps, not of latents:
how long one is says how unusual the skin); weights scaled at run time so that all learn at the same rate; the
deviation over the minibatch as one more map of the discriminator. The networks see *whitened* textures: sRGB
and F0 / 0.08, less their mean over people, over their spread at each texel, with the four channels made
independent: what all faces share need not be learned. Nor need what is linear: `hang_on` gives the generator
the principal components of real textures, and what its layers draw is added to them. (In the paper the layers
draw it all, which takes days on a GPU.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facelab.model.textures import F0_WHITE
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line

FIRST = 4  # px of the coarsest textures
LEAST_SPREAD = 0.02  # of a texel over people, and of a mixture of channels


def encode(texture: Tensor) -> Tensor:
    """Linear diffuse RGB and F0 (..., 4, S, S) -> sRGB and F0 / 0.08 in [0, 1]."""
    colours = linear_to_srgb(texture[..., :3, :, :].clamp(0, 1))
    return torch.cat([colours, (texture[..., 3:, :, :] / F0_WHITE).clamp(0, 1)], -3)


def decode(coded: Tensor) -> Tensor:
    """The inverse of `encode`."""
    return torch.cat(
        [srgb_to_linear(coded[..., :3, :, :].clamp(0, 1)), F0_WHITE * coded[..., 3:, :, :].clamp(0, 1)], -3
    )


def to_bytes(texture: Tensor) -> Tensor:
    """`encode` in 8 bits."""
    return (encode(texture) * 255).round().to(torch.uint8)


class Scaled(nn.Module):
    """A convolution, or a linear layer, whose N(0, 1) weights are scaled by He's constant at run time."""

    def __init__(self, inputs: int, outputs: int, window: int = 0, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        shape = (outputs, inputs, window, window) if window else (outputs, inputs)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.window = gain / math.sqrt(inputs * max(window, 1) ** 2), window

    def forward(self, x: Tensor) -> Tensor:
        if self.window:
            return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.window // 2)
        return F.linear(x, self.weight * self.scale, self.bias)


def _draw_weights(network: nn.Module, generator: torch.Generator | None) -> None:
    """N(0, 1) in all of them, in order; zeros without a generator, for weights that are loaded."""
    for module in network.modules():
        if generator is not None and isinstance(module, Scaled):
            module.weight.data.normal_(generator=generator)


def pixel_norm(x: Tensor) -> Tensor:
    """Every pixel's channels (B, C, ...) scaled to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def minibatch_deviation(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C + 1, H, W): with the deviation over the batch, averaged over all maps."""
    spread = (x.var(0, correction=0) + 1e-8).sqrt().mean()
    return torch.cat([x, spread.expand(len(x), 1, *x.shape[2:])], 1)


def stage_of(level: float, last: int) -> tuple[int, float]:
    """Which stage is the finest at a level, and how far it is faded in: 2.25 -> (3, 0.25), 3 -> (3, 1)."""
    stage = min(math.ceil(level), last)
    return stage, min(1.0, 1 - (stage - level))


class Generator(nn.Module):
    """Latents (B, K) -> coded textures of 4·2^stage pixels a side.

    Args:
        latent: K.
        channels: of each stage, the coarsest first; the last one's side is 4·2^(stages - 1).
        generator: draws the weights; without one they are zero, and have to be loaded.
    """

    mean: Tensor
    spread: Tensor
    mixing: Tensor
    linear: Tensor

    def __init__(
        self, latent: int, channels: Sequence[int], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.latent, self.last = latent, len(channels) - 1
        side = FIRST * 2**self.last
        self.register_buffer("mean", torch.zeros(4, side, side))
        self.register_buffer("spread", torch.ones(4, side, side))
        self.register_buffer("mixing", torch.eye(4))
        self.register_buffer("linear", torch.zeros(latent, 4, side, side))
        self.first = Scaled(latent, channels[0] * FIRST**2, gain=math.sqrt(2) / FIRST)
        pairs = list(zip([channels[0], *channels], channels))
        self.layers = nn.ModuleList(
            nn.ModuleList([*([Scaled(a, b, 3)] if k else []), Scaled(b, b, 3)])
            for k, (a, b) in enumerate(pairs)
        )
        self.colours = nn.ModuleList(Scaled(c, 4, 1, gain=1.0) for c in channels)
        _draw_weights(self, generator)

    def forward(self, latent: Tensor, level: float | None = None) -> Tensor:
        """Whitened textures. `level`: see `stage_of`; None is all of it."""
        level = self.last if level is None else level
        known = (latent @ self.linear.flatten(1)).unflatten(1, self.linear.shape[1:])
        return at_level(known, level, self.last) + self.drawn(latent, level)

    def drawn(self, latent: Tensor, level: float) -> Tensor:
        """What the layers add to the components."""
        stage, share = stage_of(level, self.last)
        x = before = F.leaky_relu(self.first(latent), 0.2).unflatten(1, (-1, FIRST, FIRST))
        for k in range(stage + 1):
            before = x
            x = F.interpolate(x, scale_factor=2.0) if k else x
            for layer in cast(nn.ModuleList, self.layers[k]):
                x = pixel_norm(F.leaky_relu(layer(x), 0.2))
        picture = self.colours[stage](x)
        if share == 1:
            return picture
        coarse = F.interpolate(self.colours[stage - 1](before), scale_factor=2.0)
        return coarse + share * (picture - coarse)

    def texture(self, latent: Tensor) -> Tensor:
        """G(p) of Eq. 5: latents (..., K) -> linear textures (..., 4, S, S), as `Face` has them."""
        if latent.shape[-1] != self.latent:
            raise ParameterError(
                f"The generator's latents are (..., {self.latent}), not {tuple(latent.shape)}."
            )
        drawn = decode(self.coloured(self(latent.reshape(-1, self.latent))))
        return drawn.reshape(*latent.shape[:-1], *self.mean.shape)

    @torch.no_grad()
    def look_at(self, coded: Tensor) -> None:
        """Take mean, spread and mixing from coded textures (N, 4, S, S), as if each had its mirror image."""
        self.mean.copy_((coded.mean(0) + coded.mean(0).flip(-1)) / 2)
        squares = (coded - self.mean).square().mean(0)
        self.spread.copy_(((squares + squares.flip(-1)) / 2).sqrt().clamp(min=LEAST_SPREAD))
        apart = ((coded - self.mean) / self.spread).movedim(1, 0).flatten(1)
        size, axes = torch.linalg.eigh(apart @ apart.T / apart.shape[1])
        self.mixing.copy_(axes * size.clamp(min=LEAST_SPREAD).sqrt())

    @torch.no_grad()
    def hang_on(self, coded: Tensor, weight: Tensor) -> Components:
        """Take the principal components of coded textures (N, 4, S, S), as if each had its mirror image, for
        what the layers' pictures are added to; those are nothing at first. `weight` (S, S): how much a texel
        counts. Call `look_at` before. Returns the components of whitened textures."""
        white = self.whitened(coded)
        components = Components.of(torch.cat([white, white.flip(-1)]), self.latent, weight)
        self.linear.copy_(components.shapes)
        for layer in self.colours:
            cast(Scaled, layer).weight.data.zero_()
        return components

    def whitened(self, coded: Tensor) -> Tensor:
        """Coded textures (..., 4, S, S) as the networks see them."""
        apart = (coded - self.mean) / self.spread
        return torch.einsum("kc,...chw->...khw", torch.linalg.inv(self.mixing), apart)

    def coloured(self, white: Tensor) -> Tensor:
        """The inverse of `whitened`."""
        return torch.einsum("ck,...khw->...chw", self.mixing, white) * self.spread + self.mean


class Discriminator(nn.Module):
    """Coded textures of a level -> one number (B,), large for real ones."""

    def __init__(self, channels: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.last = len(channels) - 1
        self.colours = nn.ModuleList(Scaled(4, c, 1) for c in channels)
        pairs = list(zip(channels[1:], channels))
        self.layers = nn.ModuleList(nn.ModuleList([Scaled(a, a, 3), Scaled(a, b, 3)]) for a, b in pairs)
        self.final = Scaled(channels[0] + 1, channels[0], 3)
        self.dense = Scaled(channels[0] * FIRST**2, channels[0])
        self.answer = Scaled(channels[0], 1, gain=1.0)
        _draw_weights(self, generator)

    def forward(self, pictures: Tensor, level: float | None = None) -> Tensor:
        stage, share = stage_of(self.last if level is None else level, self.last)
        x = F.leaky_relu(self.colours[stage](pictures), 0.2)
        for k in range(stage, 0, -1):
            for layer in cast(nn.ModuleList, self.layers[k - 1]):
                x = F.leaky_relu(layer(x), 0.2)
            x = F.avg_pool2d(x, 2)
            if k == stage and share < 1:
                coarse = F.leaky_relu(self.colours[k - 1](F.avg_pool2d(pictures, 2)), 0.2)
                x = coarse + share * (x - coarse)
        x = F.leaky_relu(self.final(minibatch_deviation(x)), 0.2)
        return self.answer(F.leaky_relu(self.dense(x.flatten(1)), 0.2))[:, 0]


def at_level(pictures: Tensor, level: float, last: int) -> Tensor:
    """Real pictures (B, C, S, S) as a level's networks see them: smaller, and blurred while it fades in."""
    stage, share = stage_of(level, last)
    small = F.avg_pool2d(pictures, 2 ** (last - stage)) if stage < last else pictures
    if share == 1:
        return small
    coarse = F.interpolate(F.avg_pool2d(small, 2), scale_factor=2.0)
    return coarse + share * (small - coarse)


@one_line
@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of textures, in standard deviations."""

    mean: Tensor
    """(...) of a texture"""
    shapes: Tensor
    """(K, ...): what one standard deviation adds"""
    duals: Tensor
    """(K, ...): what a texture's scalar product with is its latent"""

    @classmethod
    def of(cls, textures: Tensor, count: int, weight: Tensor | float = 1.0) -> Components:
        """Of textures (N, ...); differences of texels count `weight` times, which is nowhere 0.

        Raises ParameterError for count >= N."""
        if count >= len(textures):
            raise ParameterError(f"{len(textures)} textures have fewer components than {count}.")
        mean = textures.mean(0)
        apart = ((textures - mean) * weight).flatten(1)
        square, vectors = torch.linalg.eigh(apart @ apart.T)  # of (N, N): a texture has more numbers
        length, vectors = square[-count:].flip(0).clamp(min=1e-12).sqrt(), vectors[:, -count:].flip(1)
        axes = ((vectors.T @ apart) / length[:, None]).unflatten(1, mean.shape)
        spread = (length / len(textures) ** 0.5).view(-1, *[1] * mean.ndim)
        return cls(mean, spread * axes / weight, axes * weight / spread)

    def latents(self, textures: Tensor) -> Tensor:
        """(N, K) of textures (N, ...): unit variance over those of `of`."""
        return (textures - self.mean).flatten(1) @ self.duals.flatten(1).T

    def textures(self, latents: Tensor) -> Tensor:
        """(N, ...): the nearest that the components have."""
        return self.mean + torch.einsum("nk,k...->n...", latents, self.shapes)


def project(generator: Generator, textures: Tensor, steps: int = 300, rate: float = 0.1) -> Tensor:
    """The latents (N, K) whose pictures are nearest to textures (N, 4, S, S): min |G(p) - I|, by Adam.

    Distances are those of coded textures, in spreads. Raises ParameterError for another size."""
    if textures.shape[-3:] != generator.mean.shape:
        shapes = f"{tuple(generator.mean.shape)}, not {tuple(textures.shape)}"
        raise ParameterError(f"The generator's textures are (N, …) of {shapes}.")
    wanted = encode(textures)
    latent = torch.zeros(len(textures), generator.latent).to(textures).requires_grad_()
    adam = torch.optim.Adam([latent], rate, betas=(0.9, 0.9))
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        adam.zero_grad()
        apart = (generator.coloured(generator(latent)) - wanted) / generator.spread
        apart.abs().mean((1, 2, 3)).sum().backward()
        adam.step()
    return latent.detach()


def build_generator(card: dict[str, Any]) -> Generator:
    """The network that a card of train_texture_gan.py describes, without its weights."""
    return Generator(int(card["latent"]), [int(c) for c in card["channels"]])
