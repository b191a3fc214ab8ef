"""The jaw's landmarks lie on the visible contour: which point of the cheek that is in a picture."""

import math

import torch
from torch import Tensor


def visible_contour(
    points: Tensor, vertices: Tensor, rows: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """To which vertices (..., 17, 1) the jaw's landmarks slide, and whether they do, (..., 17, 1) bool.

    A landmark slides to the point of its row that lies furthest to the head's side in the picture, sideways
    as the head stands there: across the projection of its own up axis.

    Args:
        points: (..., 17, 3) the landmarks on the skin, from the image's left over the chin, model space.
        vertices: (..., V, 3).
        rows: (17, R) int64, vertices across the cheek; -1 fills up.
        rotation: (..., 3, 3) from model to camera.
    """
    batch = torch.broadcast_shapes(points.shape[:-2], rotation.shape[:-2])
    across = vertices[..., rows.clamp(min=0), :].expand(*batch, *rows.shape, 3)
    candidates = torch.cat([points[..., None, :].expand(*batch, 17, 1, 3), across], -2)
    up = torch.nn.functional.normalize(rotation[..., :2, 1], dim=-1)
    side = up[..., 1:] * rotation[..., 0, :] - up[..., :1] * rotation[..., 1, :]
    outward = (candidates * side[..., None, None, :]).sum(-1)
    outward[..., :8, :] *= -1
    outward[..., 1:].masked_fill_(rows < 0, -math.inf)
    best = outward.argmax(-1)  # 0 keeps the landmark itself
    chosen = rows.expand(*batch, -1, -1).gather(-1, (best - 1).clamp(min=0)[..., None])
    return chosen, (best > 0)[..., None]
