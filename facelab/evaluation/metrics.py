"""How far a reconstruction is from the truth. Every metric returns one number per batch element, `(...)`.

Lists are `(..., N, C)`, images `(..., 3, H, W)`; the two arguments must have the same trailing shape.
(`icp_distance_mm`, which compares meshes of different topology, takes one pair at a time.)
"""

from typing import Literal

import numpy as np
import roma
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from facelab.geometry.mesh import vertex_normals
from facelab.rendering.illumination import sh_basis
from facelab.support.errors import ParameterError

INNER_LANDMARKS = slice(17, 68)
"""The 51 iBUG points that are not on the jaw."""
INNER_MOUTH = slice(60, 68)
"""The eight on the inner rim of the lips."""


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


def posed_distance_mm(estimate: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """MoFA's geometric error: mean distance in mm of corresponding points `(..., V, 3)` in camera space.

    Translation and isotropic scale are compensated by least squares, the rotation is not: a wrong pose
    counts (Tewari et al. 2017, Sec. 7, "including the estimated rotation"). `weights` as in geometry_rmse_mm.
    """
    _check_alike(estimate, truth, 2)
    share = torch.ones_like(truth[..., 0]) if weights is None else weights.to(truth)
    share = (share / share.sum(-1, keepdim=True))[..., None]
    estimate = estimate - (share * estimate).sum(-2, keepdim=True)
    truth = truth - (share * truth).sum(-2, keepdim=True)
    scale = (share * estimate * truth).sum((-2, -1)) / (share * estimate.square()).sum((-2, -1))
    distance = torch.linalg.vector_norm(scale[..., None, None] * estimate - truth, dim=-1)
    return (share[..., 0] * distance).sum(-1)


def icp_distance_mm(
    estimate: tuple[Tensor, Tensor],
    truth: tuple[Tensor, Tensor],
    start: tuple[Tensor, Tensor],
    nose_tip: Tensor,
    radius: float = 95.0,
    iterations: int = 30,
) -> Tensor:
    """Symmetric point-to-plane distance in mm of two surfaces after ICP with isotropic scale: one pair.

    The protocol of GANFIT (Gecer et al. 2019, Sec. 4.3) and Deng et al. 2022 (Sec. 5.2): the estimate is
    moved and scaled until the distances of nearest points, both ways, along the other surface's normal are
    least (Chen and Medioni 1992, Gauss-Newton); then their mean absolute value, each way, is averaged.
    Both surfaces count within `radius` of the true nose tip. Nearest points on a border do not count.
    No correspondence is asked for, so this flatters: a surface that slides along itself makes no error.

    Args:
        estimate, truth: (vertices (V, 3) mm, triangles (T, 3)); the topologies may differ.
        start: corresponding points (N, 3) of estimate and truth, for the first similarity alignment.
        nose_tip: (3,) of the truth.
        iterations: at most.

    Returns:
        the distance, NaN where the surfaces do not meet (fewer than 10 pairs, also when ICP diverges).
    """
    source, target = (_Surface(v.detach().double().cpu(), t.cpu()) for v, t in (estimate, truth))
    points, goal = (p.detach().to(target.vertices) for p in start)
    only = torch.cat([torch.ones(len(points)), torch.zeros(len(source.vertices))]).to(goal)
    both = torch.cat([points, source.vertices]), torch.cat([goal, source.vertices])
    source.place(rigid_align(*both, only, scale=True)[len(points) :])
    tip = nose_tip.to(goal)
    moving = True
    while True:
        # residuals n.(p - q) of all pairs: p on the estimate moves, q on the truth and all normals stay
        p1, q1, n1 = target.pairs(source.near(tip, radius))
        q2, p2, n2 = source.pairs(target.near(tip, radius))
        if min(len(p1), len(q2)) < 10:
            return tip.new_tensor(torch.nan)
        p, q, n = torch.cat([p1, p2]) - tip, torch.cat([q1, q2]) - tip, torch.cat([n1, n2])
        residual = ((p - q) * n).sum(1)
        if not moving or iterations == 0:
            distance = residual.abs()
            return (distance[: len(p1)].mean() + distance[len(p1) :].mean()) / 2
        columns = torch.cat([torch.linalg.cross(p, n), n, (p * n).sum(1, keepdim=True)], 1)
        step = torch.linalg.lstsq(columns, -residual[:, None]).solution[:, 0]
        turn = step[6].exp() * roma.rotvec_to_rotmat(step[:3])
        source.place((source.vertices - tip) @ turn.T + step[3:6] + tip)
        moving = bool((step * step.new_tensor([radius] * 3 + [1.0] * 3 + [radius])).abs().max() > 1e-3)
        iterations -= 1


class _Surface:
    """A mesh that can be asked for nearest vertices."""

    def __init__(self, vertices: Tensor, triangles: Tensor) -> None:
        self.triangles = triangles
        edges = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
        unique, count = edges.sort(1).values.unique(dim=0, return_counts=True)
        border = torch.zeros(len(vertices), dtype=torch.bool)
        border[unique[count == 1]] = True
        self.used = triangles.unique()
        self.on_border = border[self.used]
        self.place(vertices)

    def place(self, vertices: Tensor) -> None:
        self.vertices = vertices
        self.points = vertices[self.used]
        self.normals = vertex_normals(vertices, self.triangles)[self.used]
        self.tree = cKDTree(np.asarray(self.points))

    def near(self, centre: Tensor, radius: float) -> Tensor:
        return self.points[(self.points - centre).norm(dim=1) < radius]

    def pairs(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (N, 3), their nearest vertices here, and those' normals; without those on the border."""
        nearest = torch.from_numpy(self.tree.query(np.asarray(points))[1])
        kept = ~self.on_border[nearest]
        nearest = nearest[kept]
        return points[kept], self.points[nearest], self.normals[nearest]


def depth_errors_mm(estimate: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 90th percentile of the absolute depth error in mm: depths and `valid` `(..., 1, H, W)`.

    The measures of Richardson et al. 2017 (Table 1), over the pixels that are valid in both. A picture does
    not tell the distance, and the paper not what it did about it: here the median difference is taken away.
    NaN where no pixel is valid.
    """
    _check_alike(estimate, truth, 3)
    difference = torch.where(valid, estimate - truth, torch.nan).flatten(-3)
    error = (difference - difference.nanquantile(0.5, -1, keepdim=True)).abs()
    return error.nanmean(-1), error.nanquantile(0.9, -1)


def pose_error_degrees(estimate: Tensor, truth: Tensor) -> Tensor:
    """Angle in degrees, 0 to 180, of the rotation between two rotation matrices `(..., 3, 3)`."""
    _check_alike(estimate, truth, 2)
    return torch.rad2deg(roma.rotmat_geodesic_distance(estimate, truth))


def direction_error_degrees(estimate: Tensor, truth: Tensor) -> Tensor:
    """Angle in degrees, 0 to 180, between two directions `(..., 3)` of any length; 90 for a zero vector."""
    _check_alike(estimate, truth, 1)
    across = torch.linalg.vector_norm(torch.linalg.cross(estimate, truth), dim=-1)
    along = (estimate * truth).sum(-1)
    return torch.where((across == 0) & (along == 0), 90.0, torch.rad2deg(torch.atan2(across, along)))


def light_direction(coefficients: Tensor) -> Tensor:
    """Where most light comes from `(..., 3)`, not normalised: for a light's true harmonics `(..., 9, 3)`.

    The first-order coefficients are y, z, x of the brightness' gradient over the normal; grey is the mean of
    the channels. Its length over that of the constant term says how directed the light is.
    """
    return coefficients[..., [3, 1, 2], :].mean(-1)


def seen_light_direction(coefficients: Tensor) -> Tensor:
    """The same for estimated coefficients `(..., 9, 3)`, from what they do to normals that are seen.

    Over normals that face the camera 1, z and 3z²-1 nearly stand in for each other, so an estimate that
    explains a picture lit from in front may well have a negative z. So of all distant lights (beside equal
    light from everywhere) this takes the one whose shading of normals with z > 0 goes best with that of the
    coefficients, to about 5 degrees. Unit length; zero if the shading does not vary.
    """
    index = torch.arange(4000, dtype=coefficients.dtype, device=coefficients.device)
    z, turn = 1 - (2 * index + 1) / 4000, index * torch.pi * (3 - 5**0.5)  # a Fibonacci sphere
    radius = (1 - z * z).sqrt()
    directions = torch.stack([radius * turn.cos(), radius * turn.sin(), z], -1)
    seen = directions[:2000:5]
    lobes = (directions @ seen.mT).clamp(min=0)
    share = seen[:, 2] / seen[:, 2].sum()  # as a ball in a picture has pixels
    lobes = lobes - (lobes * share).sum(-1, keepdim=True)  # light from everywhere does not matter
    length = (lobes.square() * share).sum(-1, keepdim=True).sqrt().clamp(min=0.01)  # from behind: dark
    shading = coefficients.mean(-1) @ sh_basis(seen).mT
    shading = shading - (shading * share).sum(-1, keepdim=True)
    likeness = (shading * share) @ (lobes / length).mT
    varies = shading.abs().amax(-1) > 1e-4 * coefficients[..., 0, :].abs().mean(-1)
    return torch.where(varies[..., None], directions[likeness.argmax(-1)], 0.0)


def landmark_error_px(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean distance in pixels between corresponding points `(..., N, 2)`."""
    _check_alike(estimate, truth, 2)
    return torch.linalg.vector_norm(estimate - truth, dim=-1).mean(-1)


def inner_mouth_error_mm(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean distance in mm of the inner mouth's 8 points, of landmarks `(..., 68, 3)` aligned rigidly.

    After Deng et al. 2022, Table 5, which does not say how faces are aligned: here by the 51 inner points.
    """
    _check_alike(estimate, truth, 2)
    estimate, truth = estimate[..., INNER_LANDMARKS, :], truth[..., INNER_LANDMARKS, :]
    distance = torch.linalg.vector_norm(rigid_align(estimate, truth) - truth, dim=-1)
    return distance[..., -8:].mean(-1)


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


def colour_distance(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean distance of two pictures' colours `(..., 3, H, W)` in RGB space, each channel in [0, 1].

    MoFA's photometric error (Tewari et al. 2017, Sec. 7); mask as in photometric_rmse.
    """
    _check_alike(image, truth, 3)
    distance = torch.linalg.vector_norm(image - truth, dim=-3, keepdim=True)
    weights = torch.ones_like(distance) if mask is None else mask.to(distance)
    distance, weights = torch.broadcast_tensors(distance, weights)
    return (weights * distance).sum((-3, -2, -1)) / weights.sum((-3, -2, -1))


def mask_iou(estimate: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of two bool masks `(..., 1, H, W)`: 0 to 1; NaN if both are empty."""
    _check_alike(estimate, truth, 3)
    both, either = (estimate & truth).sum((-3, -2, -1)), (estimate | truth).sum((-3, -2, -1))
    return both / either


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


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between Gaussians fitted to two clouds of points (N, D) and (M, D), both > D: how unlike they are.

    d² = |μ_a - μ_b|² + tr(C_a + C_b - 2 (C_a C_b)^½) (Dowson and Landau 1982), the formula of the FID.
    Raises ParameterError for clouds of different dimensions, with fewer than two points, NaN or infinity.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ParameterError(f"Two clouds (N, D), (M, D) are needed, not {tuple(a.shape)}, {tuple(b.shape)}.")
    if not bool(a.isfinite().all() and b.isfinite().all()):  # LAPACK would end the process
        raise ParameterError("A cloud of points has NaN or infinity; leave those points out.")
    ca, cb = a.T.cov(), b.T.cov()
    cross = torch.linalg.eigvals(ca @ cb).real.clamp(min=0).sqrt().sum()
    squared = (a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * cross
    return float(squared.clamp(min=0).sqrt())
