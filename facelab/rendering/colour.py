"""Transfer curves between linear light and the numbers stored in pictures.

Albedo, light and shading are linear RGB everywhere in facelab; pictures are sRGB in [0, 1].
All functions work elementwise on tensors of any shape, and have finite gradients everywhere, 0 included.
"""

import torch
from torch import Tensor

# IEC 61966-2-1. The straight part meets the power curve at these two values.
_LINEAR_KNEE = 0.0031308
_SRGB_KNEE = 0.04045


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Decode sRGB values to linear light (IEC 61966-2-1).

    Values outside [0, 1] continue along the same curve: the straight part below 0, the power curve above 1.
    """
    # Both branches of a `where` are differentiated, so the unused one is kept away from its singularity.
    curve = ((srgb.clamp(min=_SRGB_KNEE) + 0.055) / 1.055) ** 2.4
    return torch.where(srgb <= _SRGB_KNEE, srgb / 12.92, curve)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Encode linear light as sRGB values (IEC 61966-2-1); the inverse of :func:`srgb_to_linear`.

    Nothing is clipped: light above 1 gives values above 1, so that a fit still gets a gradient there.
    """
    curve = 1.055 * linear.clamp(min=_LINEAR_KNEE) ** (1 / 2.4) - 0.055
    return torch.where(linear <= _LINEAR_KNEE, linear * 12.92, curve)


def gamma_encode(linear: Tensor, gamma: float = 2.2, floor: float = 1e-4) -> Tensor:
    """The plain power curve linear^(1/gamma) of Deng et al. 2022, Eq. 2.

    Its slope at 0 is infinite, so below `floor` a straight line to (0, 0) replaces it.
    """
    curve = linear.clamp(min=floor) ** (1 / gamma)
    return torch.where(linear <= floor, linear * floor ** (1 / gamma - 1), curve)
