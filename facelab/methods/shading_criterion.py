"""Detail from shading: the criterion that FineNet is trained with (Richardson et al. 2017, Section 4.3).

    light = estimate_light(image, normals, albedo_mean, mask)                # Eq. 11, least squares
    albedo = estimate_albedo(image, normals, light, mean, basis, mask)       # Eq. 12, least squares
    loss = criterion(depth, coarse, image, albedo, light, camera, mask)      # Eq. 14, per picture

Everything is linear and grey or RGB alike: maps (..., C, H, W), each channel with its own light. The printed
weights (1, 5e-3, 1) are for the authors' units, which are not said. Here depth is in pixels (mm times the
camera's scale), so that a slope is what it looks like, and errors are means over the mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.rendering.gbuffer import depth_normals

SKIN_COMPONENTS = 10  # of the albedo basis, in Eq. 12


@dataclass(frozen=True)
class Weights:
    """λ of Eq. 14, as printed."""

    shading: float = 1.0
    fidelity: float = 5e-3
    smoothness: float = 1.0


def first_order(normals: Tensor) -> Tensor:
    """Y(z) = (1, n_x, n_y, n_z) of Eq. 9: (..., 3, H, W) -> (..., 4, H, W)."""
    return torch.cat([torch.ones_like(normals[..., :1, :, :]), normals], -3)


def shade_first_order(light: Tensor, normals: Tensor) -> Tensor:
    """<l, Y(z)>: light (..., C, 4), normals (..., 3, H, W) -> (..., C, H, W)."""
    return torch.einsum("...ck,...khw->...chw", light, first_order(normals))


def estimate_light(image: Tensor, normals: Tensor, albedo: Tensor, mask: Tensor) -> Tensor:
    """Eq. 11: the light (..., C, 4) that explains an image (..., C, H, W) with this albedo (..., C, H, W).

    Least squares over the mask (..., 1, H, W), differentiable in everything but the mask.
    """
    basis = first_order(normals).flatten(-2)  # (..., 4, N)
    rows = (albedo * mask).flatten(-2)[..., None, :] * basis[..., None, :, :]  # (..., C, 4, N)
    wanted = (image * mask).flatten(-2)  # (..., C, N)
    return _solve(rows, wanted[..., None, :])[..., 0]


def estimate_albedo(
    image: Tensor, normals: Tensor, light: Tensor, mean: Tensor, basis: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Eqs. 10, 12: the albedo (..., C, H, W), and its coefficients (..., K), that explain an image.

    `mean` (..., C, H, W) and `basis` (..., K, C, H, W) are what a face model's skin looks like at each pixel.
    """
    shading = shade_first_order(light, normals)
    rows = (basis * (shading * mask)[..., None, :, :, :]).flatten(-3)  # (..., K, C·N)
    wanted = ((image - mean * shading) * mask).flatten(-3)
    coefficients = _solve(rows, wanted[..., None, :])[..., 0]
    return mean + torch.einsum("...k,...kchw->...chw", coefficients, basis), coefficients


def _solve(rows: Tensor, wanted: Tensor) -> Tensor:
    """min |rowsᵀ x - wanted|: rows (..., K, N), wanted (..., 1, N) -> (..., K, 1), by normal equations, in
    double precision: they square how nearly alike the rows are (a frontal face's n_z and 1).

    A millionth of the diagonal is added, so that an empty mask, or a light that no normal shows, gives zero.
    """
    kind, rows, wanted = rows.dtype, rows.double(), wanted.double()
    normal = rows @ rows.mT
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    ridge = 1e-6 * diagonal + 1e-12
    return torch.linalg.solve(normal + torch.diag_embed(ridge), rows @ wanted.mT).to(kind)


def laplacian(depth: Tensor) -> Tensor:
    """The five-point Laplacian (..., 1, H, W), the border repeated outwards: Δ of Eq. 13."""
    kernel = depth.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    flat = depth.reshape(-1, 1, *depth.shape[-2:])
    return conv2d(pad(flat, (1, 1, 1, 1), mode="replicate"), kernel).reshape(depth.shape)


def interior(mask: Tensor) -> Tensor:
    """The pixels of a mask (..., 1, H, W) bool whose four neighbours are in it; the border repeats itself."""
    around = pad(mask.reshape(-1, 1, *mask.shape[-2:]).float(), (1, 1, 1, 1), mode="replicate").bool()
    rows, columns = slice(1, -1), slice(1, -1)
    whole = around[..., rows, columns]
    for other in (around[..., :-2, columns], around[..., 2:, columns]):
        whole = whole & other
    for other in (around[..., rows, :-2], around[..., rows, 2:]):
        whole = whole & other
    return whole.reshape(mask.shape)


def criterion(
    depth: Tensor,
    coarse: Tensor,
    image: Tensor,
    albedo: Tensor,
    light: Tensor,
    camera: WeakPerspectiveCamera,
    mask: Tensor,
    weights: Weights | None = None,
) -> dict[str, Tensor]:
    """Eqs. 8, 13 and 14 per picture: {"shading", "fidelity", "smoothness", "total"}, each (...).

    Args:
        depth, coarse: (..., 1, H, W) mm: ẑ and z₀.
        image, albedo: (..., C, H, W) linear. light: (..., C, 4).
        camera: weak perspective; its scale turns mm into pixels.
        mask: (..., 1, H, W) bool, where there is skin. Pixels beside others do not count: their normal and
            Laplacian look across the edge.
    """
    weights, share = weights or Weights(), interior(mask).to(depth)
    pixels = share.sum((-3, -2, -1)).clamp(min=1)
    scale = camera.scale[..., None, None, None]

    def mean(values: Tensor) -> Tensor:
        return (values * share).sum((-3, -2, -1)) / pixels

    drawn = albedo * shade_first_order(light, depth_normals(depth, camera))
    terms = {
        "shading": mean((drawn - image).square().sum(-3, keepdim=True)),
        "fidelity": mean((scale * (depth - coarse)).square()),
        "smoothness": mean(laplacian(scale * depth).abs()),
    }
    total = sum(getattr(weights, name) * value for name, value in terms.items())
    return terms | {"total": torch.as_tensor(total)}
