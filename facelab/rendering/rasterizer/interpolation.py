"""Values at pixels from values at vertices, perspective-correct, with a hand-derived backward pass.

Visibility (which triangle is at a pixel) is given here and has no gradient; the barycentric weights are
computed again from the screen positions, so gradients do not depend on the backend that found the triangles.

At a pixel centre p let e_k be the edge function opposite corner k (twice the area of p and the two other
corners), z_k the depth of corner k. With q_k = e_k / z_k and S = q_0 + q_1 + q_2, the perspective-correct
weights are b_k = q_k / S, a value is sum_k b_k A_k, and the depth is (e_0 + e_1 + e_2) / S.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facelab.support.errors import MeshError

from .backends import FORMULAS, choose
from .inputs import check_face_index, check_mesh, common_batch, one_batch, working_type


def interpolate(
    screen: Tensor, triangles: Tensor, face_index: Tensor, attributes: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Interpolate vertex attributes over the visible triangles.

    Args:
        screen: (..., V, 3) x right and y down in pixels, depth in mm (positive in front of the camera).
        triangles: (T, 3) int64.
        face_index: (..., H, W) int64 from `rasterize`, -1 is background.
        attributes: (..., V, C) values at the vertices, any meaning and unit.
        backend: "numba", "triton" or "torch" formulas, which agree; "auto" takes the fastest for the device.

    Returns:
        values (..., C, H, W) and depth (..., 1, H, W) in the unit of `screen`, both 0 at the background.
        Both are differentiable in `screen` and `attributes`, once. Leading dimensions broadcast.

    Raises:
        MeshError, ParameterError: see `rasterize`; also if attributes or face_index do not fit the mesh.
    """
    check_mesh(screen, triangles)
    check_face_index(face_index, triangles.shape[0])
    if attributes.ndim < 2 or attributes.shape[-2] != screen.shape[-2]:
        raise MeshError(
            f"Attributes are {tuple(attributes.shape)} for {screen.shape[-2]} vertices; give (..., V, C)."
        )
    batch = common_batch(screen.shape[:-2], face_index.shape[:-2], attributes.shape[:-2])
    dtype = working_type(screen, attributes)
    values, depth = _Interpolate.apply(
        one_batch(batch, screen.to(dtype), 2),
        one_batch(batch, attributes.to(dtype), 2),
        triangles,
        one_batch(batch, face_index, 2),
        choose(backend, screen.device, FORMULAS),
    )
    return values.view(batch + values.shape[1:]), depth.view(batch + depth.shape[1:])


class _Interpolate(torch.autograd.Function):
    """Saves only its inputs and computes the weights again in the backward pass: cheap, and less memory."""

    @staticmethod
    def forward(
        ctx: Any,
        screen: Tensor,
        attributes: Tensor,
        triangles: Tensor,
        face_index: Tensor,
        backend: ModuleType,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(screen, attributes, triangles, face_index)
        ctx.backend = backend
        return backend.interpolate(screen, attributes, triangles, face_index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, values_grad: Tensor, depth_grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.backend.interpolate_backward(*ctx.saved_tensors, values_grad, depth_grad)
        return (*gradients, None, None, None)
