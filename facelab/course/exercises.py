"""The exercises of the course: what to write, the right answer, random inputs, and the usual mistakes.

`checks.check` compares with them. To add one, `checks.register` an `Exercise`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import normalise
from facelab.geometry.rotations import euler_to_matrix
from facelab.rendering import rasterizer
from facelab.rendering.illumination import sh_basis


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise: what to write, how it is judged."""

    name: str
    task: str
    """the signature and what to return, with shapes and units"""
    reference: Callable[..., Any]
    """the right answer: a tensor or a tuple of tensors"""
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    """random arguments"""
    difficulty: int
    """1 (one line) to 5"""
    minutes: int
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """what to say to somebody whose answer is that of this wrong function"""
    canonical: Callable[[Tensor, int], Tensor] = lambda result, position: result
    """brings answers that are equally right, such as the sign of a basis vector, to one form"""
    hint: str = ""
    tolerance: float = 1e-4
    """of the error over the largest expected value"""
    rounds: int = 3


EXERCISES: dict[str, Exercise] = {}


def register(exercise: Exercise) -> Exercise:
    """Make an exercise known to `checks.check`."""
    EXERCISES[exercise.name] = exercise
    return exercise


def _uniform(generator: torch.Generator, *shape: int, low: float = -1, high: float = 1) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _project(
    points: Tensor, rotation: Tensor, translation: Tensor, focal: Tensor, principal: Tensor
) -> Tensor:
    return PerspectiveCamera(rotation, translation, focal, principal).project(points)


def _camera(generator: torch.Generator) -> tuple[Tensor, ...]:
    rotation = euler_to_matrix(_uniform(generator, 3))
    translation = torch.tensor([0.0, 0, -600]) + _uniform(generator, 3, low=-50, high=50)
    focal, principal = _uniform(generator, low=300, high=900), _uniform(generator, 2, low=100, high=140)
    return _uniform(generator, 20, 3, low=-100, high=100), rotation, translation, focal, principal


register(
    Exercise(
        name="project points with a perspective camera",
        task="f(points (N, 3), rotation (3, 3), translation (3,), focal (), principal (2,)) -> (N, 3): "
        "x and y in pixels and depth in mm; the camera looks along -z.",
        reference=_project,
        inputs=_camera,
        difficulty=1,
        minutes=5,
        mistakes={
            "The rotation is the wrong way round: x_camera = R x, so rows of points need `points @ R.T`.": (
                lambda x, r, *rest: _project(x, r.T, *rest)
            ),
            "y runs down on the screen but up in camera space: y = c_y - f Y / depth.": lambda *a: (
                torch.stack([_project(*a)[:, 0], 2 * a[4][1] - _project(*a)[:, 1], _project(*a)[:, 2]], -1)
            ),
            "Depth is -Z, positive in front of the camera.": (
                lambda x, r, t, f, c: 2 * F.pad(c, (0, 1)) - _project(x, r, t, f, c)
            ),
            "Add the principal point: the optical axis does not meet the picture at (0, 0).": (
                lambda x, r, t, f, c: _project(x, r, t, f, 0 * c)
            ),
        },
        hint="docs/conventions.md has the axes; similar triangles give x = c_x + f X / depth.",
    )
)


def _barycentric(points: Tensor, triangle: Tensor) -> Tensor:
    corners = torch.cat([triangle.mT, torch.ones_like(triangle[..., :1, :1]).expand(1, 3)], -2)
    return torch.linalg.solve(corners, F.pad(points, (0, 1), value=1.0).mT).mT


def _triangle(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    triangle = torch.tensor([[10.0, 80], [20, 15], [90, 40]]) + _uniform(generator, 3, 2, low=-9, high=9)
    return _uniform(generator, 30, 2, low=0, high=100), triangle


register(
    Exercise(
        name="barycentric coordinates",
        task="f(points (..., 2), triangle (3, 2)) -> (..., 3): weights w of sum 1 with w @ triangle = point.",
        reference=_barycentric,
        inputs=_triangle,
        difficulty=1,
        minutes=5,
        mistakes={
            "The weights belong to other corners: w_0 is 1 at corner 0.": lambda p, t: _barycentric(
                p, t.roll(1, 0)
            ),
            "The weights belong to other corners; w_0 is 1 at corner 0.": lambda p, t: _barycentric(
                p, t.roll(-1, 0)
            ),
            "Do not clip: outside the triangle a weight is negative.": lambda p, t: _barycentric(p, t).clamp(
                min=0
            ),
        },
        hint="w_0 is the signed area of (point, corner 1, corner 2) over that of the triangle.",
    )
)


def _z_buffer(screen: Tensor, triangles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    face_index = rasterizer.rasterize(screen, triangles, height, width, backend="torch")
    _, depth = rasterizer.interpolate(screen, triangles, face_index, screen[:, :1])
    return face_index, torch.where(face_index < 0, torch.inf, depth[0])


def _two_triangles(generator: torch.Generator) -> tuple[Tensor, Tensor, int, int]:
    """Two overlapping triangles that face the camera, one wholly before the other."""
    xy = torch.tensor([[5.0, 35], [36, 30], [14, 4], [4, 8], [20, 36], [34, 6]])
    near, far = _uniform(generator, 3, 1, low=500, high=540), _uniform(generator, 3, 1, low=560, high=600)
    swap = torch.rand((), generator=generator) < 0.5
    depth = torch.cat([far, near] if swap else [near, far])
    moved = torch.cat([xy + _uniform(generator, 6, 2, low=-3, high=3), depth], -1)
    return moved, torch.tensor([[0, 1, 2], [3, 4, 5]]), 40, 44


def _with_depth(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The z-buffer of a mesh whose depths decide differently."""
    return lambda s, *rest: _z_buffer(torch.cat([s[:, :2], change(s[:, 2:])], -1), *rest)


register(
    Exercise(
        name="z-buffer of two triangles",
        task="f(screen (V, 3), triangles (T, 3), height, width) -> face index (H, W) int64, the number of "
        "the nearest triangle at the pixel's centre, -1 for none; and its depth (H, W), infinite for none.",
        reference=_z_buffer,
        inputs=_two_triangles,
        difficulty=3,
        minutes=15,
        mistakes={
            "The farthest triangle is kept: depth grows away from the camera.": _with_depth(
                lambda z: 2000 - z
            ),
            "The triangle drawn last wins: compare depths before you overwrite.": _with_depth(
                lambda z: torch.linspace(900, 500, len(z)).to(z)[:, None]
            ),
            "The triangle drawn first wins: compare depths.": _with_depth(
                lambda z: torch.linspace(500, 900, len(z)).to(z)[:, None]
            ),
            "Pixel (0, 0) has its centre at (0.5, 0.5), not at (0, 0).": (
                lambda s, *rest: _z_buffer(s + s.new_tensor([0.5, 0.5, 0]), *rest)
            ),
            "The background is -1.": lambda *a: (_z_buffer(*a)[0].clamp(min=0), _z_buffer(*a)[1]),
        },
        hint="A pixel is inside where all barycentric weights are >= 0; the reciprocal of depth is linear.",
        rounds=4,
    )
)

_SH_NORMS = tuple(math.sqrt(k / (16 * math.pi)) for k in (4, 12, 12, 12, 60, 60, 5, 60, 15))

register(
    Exercise(
        name="SH basis",
        task="f(normals (N, 3)) -> (N, 9): real spherical harmonics of unit normals, in the order "
        "1, y, z, x, xy, yz, 3z²-1, xz, x²-y².",
        reference=sh_basis,
        inputs=lambda generator: (normalise(_uniform(generator, 40, 3)),),
        difficulty=1,
        minutes=5,
        mistakes={
            "The constants are missing.": lambda n: sh_basis(n) / n.new_tensor(_SH_NORMS),
            "The first order is y, z, x, not x, y, z.": lambda n: sh_basis(n)[:, [0, 3, 1, 2, 4, 5, 6, 7, 8]],
        },
        hint="The constants are sqrt(1/4π), sqrt(3/4π), sqrt(15/4π), sqrt(5/16π) and sqrt(15/16π).",
    )
)


def _gauss_newton(residuals: Tensor, jacobian: Tensor) -> Tensor:
    return -torch.linalg.lstsq(jacobian, residuals[:, None]).solution[:, 0]


register(
    Exercise(
        name="Gauss-Newton step",
        task="f(residuals (M,), jacobian (M, P)) -> (P,): the step δ that minimises |r + J δ|².",
        reference=_gauss_newton,
        inputs=lambda generator: (_uniform(generator, 30), _uniform(generator, 30, 6)),
        difficulty=2,
        minutes=10,
        mistakes={
            "The step goes uphill: δ = -(JᵀJ)⁻¹ Jᵀ r.": lambda r, j: -_gauss_newton(r, j),
            "That is -Jᵀr, steepest descent; solve (JᵀJ) δ = -Jᵀr.": lambda r, j: -j.T @ r,
            "That is the gradient Jᵀr; solve (JᵀJ) δ = -Jᵀr.": lambda r, j: j.T @ r,
        },
        hint="Set the derivative of |r + J δ|² to zero, and use torch.linalg.solve.",
    )
)


def _pca(population: Tensor, count: int, centre: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    mean = population.mean(0)
    _, values, rows = torch.linalg.svd(population - centre * mean, full_matrices=False)
    return mean, rows[:count], values[:count] / math.sqrt(len(population) - 1)


def _sigma(change: Callable[[Tensor, int], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, count: (*_pca(x, count)[:2], change(_pca(x, count)[2], len(x)))


def _population(generator: torch.Generator) -> tuple[Tensor, int]:
    mixing = torch.linalg.qr(_uniform(generator, 18, 6))[0]
    return 30 + _uniform(generator, 40, 6) * torch.tensor([9.0, 6, 4, 2.5, 1.5, 0.3]) @ mixing.T, 4


def _same_sign(result: Tensor, position: int) -> Tensor:
    """Basis vectors (the second result) may point either way: make the largest entry positive."""
    largest = result.gather(-1, result.abs().argmax(-1, keepdim=True))
    return result * largest.sign() if position == 1 else result


register(
    Exercise(
        name="PCA of a population",
        task="f(population (S, D), count) -> mean (D,), basis (count, D) of orthonormal rows, the largest "
        "variance first, and sigma (count,), the standard deviations along them.",
        reference=_pca,
        inputs=_population,
        difficulty=2,
        minutes=10,
        mistakes={
            "Subtract the mean before the decomposition.": lambda x, count: _pca(x, count, centre=0.0),
            "Those are variances; sigma is their square root.": _sigma(lambda s, n: s**2),
            "Divide by S - 1, not by S: the mean comes from the same data.": _sigma(
                lambda s, n: s * math.sqrt(1 - 1 / n)
            ),
            "Those are singular values; divide them by sqrt(S - 1).": _sigma(
                lambda s, n: s * math.sqrt(n - 1)
            ),
        },
        canonical=_same_sign,
        hint="torch.linalg.svd of the centred population: Vh holds the basis, sigma = S / sqrt(n - 1).",
    )
)


def _model_space_loss(predicted: Tensor, theta: Tensor, sigma: Tensor) -> Tensor:
    return (sigma * (predicted - theta)).square().sum(-1)


register(
    Exercise(
        name="model-space loss",
        task="f(predicted (B, P), theta (B, P), sigma (P,)) -> (B,): (p - θ)ᵀ ΣᵀΣ (p - θ), Σ = diag(sigma).",
        reference=_model_space_loss,
        inputs=lambda g: (_uniform(g, 5, 7), _uniform(g, 5, 7), _uniform(g, 7, low=0.1, high=3.0)),
        difficulty=1,
        minutes=5,
        mistakes={
            "Sigma is squared, too: it stands on both sides of A = ΣᵀΣ.": lambda p, t, s: (
                s * (p - t).square()
            ).sum(-1),
            "That is the plain l2 loss; weight the difference with sigma.": lambda p, t, s: (
                (p - t).square().sum(-1)
            ),
            "Sum over the parameters, do not average.": lambda p, t, s: _model_space_loss(p, t, s) / len(s),
            "That is its root; the loss is squared.": lambda p, t, s: _model_space_loss(p, t, s).sqrt(),
        },
        hint="Weight the difference first, then square and sum.",
    )
)
