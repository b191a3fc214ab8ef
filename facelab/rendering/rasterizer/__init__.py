"""A differentiable triangle rasterizer: what is seen where, values at pixels, soft silhouettes.

    face_index = rasterize(screen, triangles, height, width)                  # visibility: no gradient
    values, depth = interpolate(screen, triangles, face_index, attributes)    # differentiable
    image = antialias(image, depth, face_index, screen, triangles)            # differentiable silhouettes

All take screen positions (x, y, depth) as docs/conventions.md defines them, and any leading batch shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .antialiasing import antialias
from .backends import choose
from .inputs import NEAR, check_image_size, check_mesh, one_batch, working_type
from .interpolation import interpolate

__all__ = ["NEAR", "antialias", "interpolate", "rasterize"]


@torch.no_grad()
def rasterize(
    screen: Tensor, triangles: Tensor, height: int, width: int, *, cull: bool = True, backend: str = "auto"
) -> Tensor:
    """Find the triangle that is seen at the centre of each pixel.

    A pixel centre on an edge belongs to both triangles at the edge; the smaller depth, then the lower number
    wins, and a closed surface has no cracks. Decided in the precision of `screen`, at least float32.
    A triangle with a corner at or before the depth `NEAR`, or without area on the screen, is dropped.

    Args:
        screen: (..., V, 3) x right and y down in pixels, depth in mm (positive in front of the camera).
        triangles: (T, 3) int64, counter-clockwise seen from outside.
        height, width: image size in pixels.
        cull: drop triangles that turn their back to the camera.
        backend: "numba" (CPU), "triton" (NVIDIA GPU), "pytorch3d", "torch", or "auto": the fastest that is
            installed for the device.

    Returns:
        (..., H, W) int64: triangle number, -1 where there is none. It has no gradient.

    Raises:
        ImageSizeError: a size that is not a positive whole number.
        MeshError: wrong shapes or types, or triangles that use vertices the mesh does not have.
        ParameterError: NaN in screen, if it is on a CPU; on a GPU its triangles are dropped.
        FacelabError: a backend that is unknown, not installed, or not made for the device.
    """
    height, width = check_image_size(height, width)
    check_mesh(screen, triangles)
    batch = screen.shape[:-2]
    items = one_batch(batch, screen.detach().to(working_type(screen)), 2)
    chosen = choose(backend, screen.device)
    return chosen.rasterize(items, triangles, height, width, cull, NEAR).view(batch + (height, width))
