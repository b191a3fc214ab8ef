"""What the rasterizer accepts: checks with named errors, and any batch shape made one dimension.

Values on a GPU are not looked at in each call, since Python would have to wait for them: triangles once for
as long as their tensor lives, NaN positions (drawn by no backend) and face indices not at all.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from facelab.geometry.mesh import check_triangles
from facelab.support.errors import ImageSizeError, MeshError, ParameterError

T = TypeVar("T")
NEAR = 1e-3  # mm; a triangle with a corner at or before this depth is dropped as a whole, not clipped


def remembered(function: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """What a function says of a tensor, for as long as the tensor lives and is not changed in place."""
    memory = WeakIdKeyDictionary()

    @wraps(function)
    def remembering(tensor: Tensor) -> T:
        version = 0 if tensor.is_inference() else tensor._version  # counts changes in place
        if tensor not in memory or memory[tensor][0] != version:
            memory[tensor] = (version, function(tensor))
        found: T = memory[tensor][1]
        return found

    return remembering


@remembered
def _range(triangles: Tensor) -> tuple[int, int]:
    low, high = torch.aminmax(triangles)
    return int(low), int(high)


def _check_triangles(triangles: Tensor, vertex_count: int) -> None:
    """As `geometry.check_triangles`, which looks at the values each time."""
    is_mesh = triangles.ndim == 2 and triangles.shape[1] == 3 and triangles.dtype == torch.int64
    if is_mesh and triangles.numel() and _range(triangles)[0] >= 0 and _range(triangles)[1] < vertex_count:
        return
    check_triangles(triangles, vertex_count)


def check_image_size(height: int, width: int) -> tuple[int, int]:
    """Height and width as plain ints; ImageSizeError unless both are positive whole numbers."""
    for name, size in (("height", height), ("width", width)):
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size <= 0:
            raise ImageSizeError(f"The image {name} is {size!r}; give a positive whole number of pixels.")
    return int(height), int(width)


def check_mesh(screen: Tensor, triangles: Tensor) -> None:
    """Raise MeshError for shapes, types or indices that do not fit, ParameterError for NaN positions."""
    if screen.ndim < 2 or screen.shape[-1] != 3 or not screen.is_floating_point():
        raise MeshError(
            f"Screen positions are {tuple(screen.shape)} {screen.dtype}; give floats (..., V, 3)."
        )
    _check_triangles(triangles, screen.shape[-2])
    if triangles.device != screen.device:
        raise MeshError(
            f"Triangles are on {triangles.device}, vertices on {screen.device}; move one of them."
        )
    if screen.device.type == "cpu" and screen.isnan().any():
        raise ParameterError("Screen positions contain NaN; check the parameters and camera they come from.")


def check_face_index(face_index: Tensor, n_triangles: int) -> None:
    """Raise MeshError unless face_index is an int64 map (..., H, W) of triangle numbers or -1."""
    if face_index.ndim < 2 or face_index.dtype != torch.int64:
        raise MeshError(
            f"The face index is {tuple(face_index.shape)} {face_index.dtype}; pass what rasterize() returned."
        )
    if face_index.device.type == "cpu" and face_index.numel():
        low, high = (int(bound) for bound in torch.aminmax(face_index))
        if low < -1 or high >= n_triangles:
            raise MeshError(
                f"The face index runs from {low} to {high} but there are {n_triangles} triangles; "
                "rasterize these triangles first."
            )


def one_batch(batch: torch.Size, tensor: Tensor, item_ndim: int) -> Tensor:
    """Broadcast the leading dimensions to `batch` and flatten them: (..., item) -> (B, item), contiguous."""
    item = tensor.shape[tensor.ndim - item_ndim :]
    return tensor.expand(batch + item).reshape((batch.numel(),) + item).contiguous()


def common_batch(*leading: torch.Size) -> torch.Size:
    """The shape that leading dimensions broadcast to; MeshError if they do not."""
    try:
        return torch.broadcast_shapes(*leading)
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(shape)) for shape in leading)
        raise MeshError(
            f"The batch shapes {shapes} do not broadcast; give them equal leading sizes."
        ) from error


def working_type(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: half precision cannot resolve pixels."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
