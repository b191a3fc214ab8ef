"""How far a reconstruction is from the truth. Every metric returns one number per batch element, `(...)`.

Lists are `(..., N, C)`, images `(..., 3, H, W)`; the two arguments must have the same trailing shape.
"""

from typing import Literal

import roma
import torch
from torch import Tensor

from facelab.errors import ParameterError

INNER_LANDMARKS = slice(17, 68)
"""The 51 iBUG points that are not on the jaw."""


def _check_alike(estimate: Tensor, truth: Tensor, trailing: int) -> None:
    if estimate.shape[-trailing:] != truth.shape[-trailing:]:
        raise ParameterError(
            f"Cannot compare {tuple(estimate.shape)} with {tuple(truth.shape)}: "
            f"their last {trailing} dimensions must be the same."
        )


def rigid_align(source: Tensor, target: Tensor, weights: Tensor | None = None, scale: bool = False) -> Tensor:
    """`source` `(..., N, 3)` moved onto `target` `(..., N, 3)` by the best rotation and translation.

    Least squares, weighted by `weights` `(..., N)` >= 0 (Kabsch 1976); with `scale` the size is fitted too
    (Umeyama 1991). Reflections are not allowed.
    """
    _check_alike(source, target, 2)
    batch = torch.broadcast_shapes(source.shape[:-2], target.shape[:-2])
    source, target = source.expand(*batch, -1, -1), target.expand(*batch, -1, -1)
    if weights is not None:
        weights = weights.to(source).expand(*batch, -1)
    if scale:
        rotation, shift, size = roma.rigid_points_registration(source, target, weights, compute_scaling=True)
        rotation = size[..., None, None] * rotation
    else:
        rotation, shift = roma.rigid_points_registration(source, target, weights)
    return source @ rotation.mT + shift[..., None, :]


def geometry_rmse_mm(
    estimate: Tensor,
    truth: Tensor,
    align: Literal["rigid", "similarity", "none"] = "rigid",
    weights: Tensor | None = None,
) -> Tensor:
    """Root mean squared distance in mm between corresponding vertices `(..., V, 3)`, after alignment.

    `weights` `(..., V)` select or weight the vertices, in the alignment and in the mean. "similarity"
    forgives a wrong size too, which one photograph cannot tell from a wrong distance: say which was used.
    """
    _check_alike(estimate, truth, 2)
    if align not in ("rigid", "similarity", "none"):
        raise ParameterError(f'Alignment must be "rigid", "similarity" or "none", not {align!r}.')
    if align != "none":
        estimate = rigid_align(estimate, truth, weights, scale=align == "similarity")
    squared = (estimate - truth).square().sum(-1)
    if weights is None:
        return squared.mean(-1).sqrt()
    weights = weights.to(squared)
    return ((weights * squared).sum(-1) / weights.sum(-1)).sqrt()


def pose_error_degrees(estimate: Tensor, truth: Tensor) -> Tensor:
    """Angle in degrees, 0 to 180, of the rotation between two rotation matrices `(..., 3, 3)`."""
    _check_alike(estimate, truth, 2)
    return torch.rad2deg(roma.rotmat_geodesic_distance(estimate, truth))


def landmark_error_px(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean distance in pixels between corresponding points `(..., N, 2)`."""
    _check_alike(estimate, truth, 2)
    return torch.linalg.vector_norm(estimate - truth, dim=-1).mean(-1)


def nme(
    estimate: Tensor,
    truth: Tensor,
    normaliser: Literal["box_diagonal", "interocular"] = "box_diagonal",
    points: slice = slice(None),
) -> Tensor:
    """Normalised mean error of 68 landmarks `(..., 68, 2)`: mean distance over the size of the true face.

    "box_diagonal" divides by the diagonal of the true landmarks' bounding box, "interocular" by the distance
    of the outer eye corners (points 36 and 45; 300-W, Sagonas et al. 2013). `points` are the ones averaged,
    such as INNER_LANDMARKS; the size always comes from all 68. A ratio, not per cent.
    """
    _check_alike(estimate, truth, 2)
    if normaliser == "box_diagonal":
        extent = truth.amax(-2) - truth.amin(-2)
    elif normaliser == "interocular":
        extent = truth[..., 45, :] - truth[..., 36, :]
    else:
        raise ParameterError(f'The normaliser must be "box_diagonal" or "interocular", not {normaliser!r}.')
    error = landmark_error_px(estimate[..., points, :], truth[..., points, :])
    return error / torch.linalg.vector_norm(extent, dim=-1)


def photometric_rmse(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean squared difference of two pictures `(..., 3, H, W)` in [0, 1], in 8-bit levels (0 to 255).

    Over the pixels of `mask` `(..., 1, H, W)` and all channels; NaN where the mask is empty.
    """
    _check_alike(image, truth, 3)
    squared = (255 * (image - truth)).square().mean(-3, keepdim=True)
    if mask is None:
        return squared.mean((-3, -2, -1)).sqrt()
    squared, weights = torch.broadcast_tensors(squared, mask.to(squared))
    return ((weights * squared).sum((-3, -2, -1)) / weights.sum((-3, -2, -1))).sqrt()


def scale_free_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """Relative error of albedo or light `(..., N, C)` once each channel is scaled by the best common factor.

    One picture fixes only the product of albedo and light, per channel, so their common scale is no error:
    sqrt(sum |s_c estimate_c - truth_c|² / sum |truth_c|²) with s_c by least squares. 0 is perfect, 1 is
    as bad as saying nothing.
    """
    _check_alike(estimate, truth, 2)
    tiny = torch.finfo(estimate.dtype).tiny
    scale = (estimate * truth).sum(-2, keepdim=True) / estimate.square().sum(-2, keepdim=True).clamp(min=tiny)
    residual = (scale * estimate - truth).square().sum((-2, -1))
    return (residual / truth.square().sum((-2, -1))).sqrt()
