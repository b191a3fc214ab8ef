"""People who look like people: how a face model's coefficients are drawn.

Independent normal numbers give skins that do not go with the shapes, and contort every part of the face at
once. So identity and albedo are those of a random person whom the model was made from, mixed with normal
noise (sex, age and origin then agree), and an expression is a sparse mixture of named actions. A model that
has no people, or no actions, gets normal numbers.
"""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from facelab.support.tensors import send

# Share of normal noise in a sampled person's coefficients; more of it stains dark skins.
IDENTITY_NOISE, ALBEDO_NOISE = 0.3, 0.1
# Actions that people show often; others are drawn a third as often.
FREQUENT_ACTIONS = ("jawOpen", "mouthSmile", "mouth-corner", "mouth-part", "mouthPucker", "mouthFunnel",
                    "browInnerUp", "browDown", "eyeBlink", "cheekSquint")  # fmt: skip


def draw_people(
    identities: Tensor, albedos: Tensor, sizes: tuple[int, int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Coefficients (count, Ki) and (count, Ka), of mean 0 and variance 1, for `sizes` (Ki, Ka).

    `identities` (P, Ki) and `albedos` (P, Ka) are those of people, or empty.
    """
    identity, albedo = (_normal(count, size, generator) for size in sizes)
    if len(identities):
        who = torch.randint(len(identities), (count,), generator=generator, device=generator.device)
        who = send(who, identities)
        identity = _mixed(identities[who], identity, IDENTITY_NOISE)
        if len(albedos):
            albedo = _mixed(albedos[who], albedo, ALBEDO_NOISE)
    return identity, albedo


def draw_expressions(
    actions: Tensor, names: Sequence[str], size: int, count: int, generator: torch.Generator
) -> Tensor:
    """Coefficients (count, size) of expressions: mixtures of `actions` (N, size) with N names, or normal."""
    if not len(actions):
        return _normal(count, size, generator)
    return send(sample_actions(names, count, generator), actions) @ actions


def _mixed(coefficients: Tensor, noise: Tensor, share: float) -> Tensor:
    """Coefficients with a share of noise; both, and so the mixture, of variance 1."""
    return math.sqrt(1 - share**2) * coefficients + share * send(noise, coefficients)


def _normal(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randn((count, size), generator=generator, device=generator.device)


def sample_actions(names: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
    """Strengths (count, N) in [0, 0.9] of facial actions, one to four at a time.

    Names that differ only by left and right act together in most draws; moving jaw or mouth to both sides at
    once makes no sense, so those never do.
    """
    device = generator.device
    plain = [re.sub("-?(left|right)", "", name, flags=re.IGNORECASE) for name in names]
    groups = {name: i for i, name in enumerate(dict.fromkeys(plain))}
    member = torch.tensor([groups[name] for name in plain], device=device)
    weight = torch.tensor([3.0 if g.startswith(FREQUENT_ACTIONS) else 1.0 for g in groups], device=device)
    is_right = torch.tensor(["right" in name.lower() for name in names], device=device)
    paired = torch.bincount(member, minlength=len(groups))[member] == 2
    sideways = torch.tensor([g in ("jaw", "mouth") for g in groups], device=device)

    def uniform(columns: int) -> Tensor:
        return torch.rand((count, columns), generator=generator, device=device)

    # The k largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis 2006).
    rank = (uniform(len(groups)) ** (1 / weight)).argsort(-1, descending=True).argsort(-1)
    active = rank < torch.randint(1, 5, (count, 1), generator=generator, device=device)
    strength = 0.9 * uniform(len(groups)) * active
    one_sided = (uniform(len(groups)) < 0.2) | sideways
    right_only = uniform(len(groups)) < 0.5
    silent = paired & one_sided[:, member] & (right_only[:, member] != is_right)
    return strength[:, member].masked_fill(silent, 0.0)
