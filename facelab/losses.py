"""The papers' losses: tensors in, one value a picture out. Methods weigh them and add them up.

Points and their coordinates or colours are the last two axes, (..., N, C); a picture (..., C, H, W) is
`picture.flatten(-2).mT`. What stands before them is the batch. Equation numbers are those of MoFA (Tewari et
al. 2017), CoarseNet and FineNet (Richardson et al. 2017), InverseFaceNet (Kim et al. 2018), GANFIT (Gecer et
al. 2019) and the network with specular albedos of 2022.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from facelab.recognition.networks import identity_similarity

Norm = Literal["l2", "l2,1", "l1"]


def lengths(difference: Tensor, norm: Norm) -> Tensor:
    """Of every point's difference (..., N, C) -> (..., N): "l2" its square, "l2,1" its length, "l1" Σ|·|.

    The sum of squares of all points is their squared ℓ2 norm, the sum of lengths the ℓ2,1 norm, in which a
    point that is far off (hair, a highlight) counts in proportion. A length has a finite gradient at zero.
    """
    if norm == "l1":
        return difference.abs().sum(-1)
    squared = difference.square().sum(-1)
    return squared if norm == "l2" else (squared + 1e-10).sqrt()


def photometric(drawn: Tensor, seen: Tensor, weights: Tensor | None = None, norm: Norm = "l2,1") -> Tensor:
    """Weighted mean over points of the errors of colours (..., N, C), (..., N, C) -> (...).

    `weights` (..., N): which points are seen, bool or 0 and 1, probabilities of skin, or areas; None is 1.
    The loss is 0 where all of them are 0. MoFA's Eq. 8 is "l2,1" over the visible vertices; both terms of
    Eq. 8 of 2022 are "l2,1" over pixels, the first weighted by Eq. 9; GANFIT's Eq. 10 is "l1", FineNet's
    Eq. 8 "l2".
    """
    errors = lengths(drawn - seen, norm)
    if weights is None:
        return errors.mean(-1)
    kept = (weights * errors).masked_fill(weights == 0, 0.0)  # whatever the colour of a hidden point is
    return kept.sum(-1) / weights.sum(-1).clamp(min=1e-12)


def landmark(
    projected: Tensor, detected: Tensor, weights: Tensor | None = None, unit: float = 1.0, norm: Norm = "l2"
) -> Tensor:
    """Weighted sum of the errors of landmarks (..., N, 2), (..., N, 2) px -> (...), in `unit`s of so many px.

    `weights` (..., N): a detector's confidences; None is 1. MoFA's Eq. 9 is "l2"; Eq. 10 of 2022 is "l2,1",
    divided by N.
    """
    errors = lengths((projected - detected) / unit, norm)
    return (errors if weights is None else weights * errors).sum(-1)


def prior(coefficients: Tensor) -> Tensor:
    """Σ α² of coefficients in standard deviations (..., K) -> (...): how improbable they are.

    The terms of MoFA's Eq. 10 and of Eq. 12 of 2022. Of Sigma (p - θ) it is InverseFaceNet's Eq. 6.
    """
    return coefficients.square().sum(-1)


def identity(drawn: Tensor, seen: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """One minus the cosine of a recognition network's embeddings (..., D), (..., D) -> (...) in [0, 2].

    GANFIT's Eq. 8, Eq. 7 of 2022. `mean` (D,) is subtracted from both (not in the papers; see
    `identity_similarity`): `FaceRecogniser.mean_embedding`.
    """
    return 1 - identity_similarity(drawn, seen, mean)


def content(drawn: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    """Σ_j ‖F_j(drawn) - F_j(seen)‖₂ / (H_j W_j C_j) of maps (..., C_j, H_j, W_j) -> (...): GANFIT's Eq. 9.

    The norm is not squared and has a finite gradient at zero: a map of C·H·W values that all differ by d
    adds d / √(C·H·W).
    """
    parts = [
        lengths((a - b).flatten(-3), "l2,1") / math.prod(b.shape[-3:])
        for a, b in zip(drawn, seen, strict=True)
    ]
    return torch.stack(parts).sum(0)


def mask_area(drawn: Tensor, seen: Tensor) -> Tensor:
    """|A - Aᵖ|, the difference of two masks' areas as a share of the picture: (..., 1, H, W) -> (...).

    Masks are bool or in [0, 1]; a gradient comes from an antialiased one. Eq. 11 of 2022, of the inner mouth.
    """
    return (drawn.float().mean((-3, -2, -1)) - seen.float().mean((-3, -2, -1))).abs()
