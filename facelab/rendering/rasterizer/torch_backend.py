"""The readable backend, in plain PyTorch on any device: visibility, and interpolation with its gradient.

Visibility: for every triangle, every pixel centre in its bounding box is a candidate. Three edge functions
tell which candidates lie inside (Pineda 1988, "A parallel algorithm for polygon rasterization"); the nearest
wins the pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MAX_CANDIDATES = 1 << 21  # pixel-triangle pairs looked at together; bounds the memory (about 150 bytes each)


def rasterize(screen: Tensor, triangles: Tensor, height: int, width: int, cull: bool, near: float) -> Tensor:
    """Face index (B, H, W) of screen (B, V, 3); -1 where there is no triangle. See the rasterizer."""
    images_at_once = max(1, MAX_CANDIDATES // (triangles.shape[0] + height * width))
    some = screen.split(images_at_once)
    parts = [_rasterize_some(part, triangles, height, width, cull, near) for part in some]
    return torch.cat(parts) if parts else triangles.new_empty(0, height, width)


def _rasterize_some(
    screen: Tensor, triangles: Tensor, height: int, width: int, cull: bool, near: float
) -> Tensor:
    batch, n_triangles = screen.shape[0], triangles.shape[0]
    # Coordinates of the three corners of each triangle of each image: x, y, depth of shape (3, B T).
    # index_select on a matrix is many times faster on a CPU than the other ways to gather.
    table = screen.permute(2, 0, 1).reshape(3 * batch, screen.shape[1])
    corners = table.index_select(1, triangles.mT.reshape(-1)).view(3, batch, 3, n_triangles)
    x, y, depth = corners.transpose(1, 2).reshape(3, 3, -1)

    # The pixel centres (c + 0.5, r + 0.5) in the bounding box have left <= c < left + columns, same for rows
    left = (x.amin(0) - 0.5).ceil().clamp(0, width)
    top = (y.amin(0) - 0.5).ceil().clamp(0, height)
    columns = (x.amax(0) - 0.5).floor().clamp(-1, width - 1) - left + 1
    rows = (y.amax(0) - 0.5).floor().clamp(-1, height - 1) - top + 1
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])  # negative: faces us, as y is down
    keep = (columns > 0) & (rows > 0) & (depth.amin(0) > near) & ((area < 0) if cull else (area != 0))

    kept = keep.nonzero().squeeze(1)
    x, y, depth = (value.index_select(1, kept) for value in (x, y, depth))
    left, top, columns, rows = (value.index_select(0, kept).long() for value in (left, top, columns, rows))
    side = area.index_select(0, kept).sign()
    image, face = kept // n_triangles, kept % n_triangles

    nearest = screen.new_full((batch * height * width,), torch.inf)
    seen = triangles.new_full((batch * height * width,), n_triangles)
    for some in _chunks(columns * rows):
        # One entry per candidate: its triangle t, and its pixel (column, row)
        t, count = repeat_and_count((columns * rows)[some])
        t = t + some.start
        n_columns = columns.index_select(0, t)
        row = torch.div(count, n_columns, rounding_mode="floor")
        column = left.index_select(0, t) + count - row * n_columns
        row += top.index_select(0, t)

        # Edge functions: twice the signed area of the triangle (pixel, corner, next corner). Corners relative
        # to the pixel make them exactly opposite for the two triangles at an edge: no pixel falls between.
        dx = x.index_select(1, t) - (column + 0.5)
        dy = y.index_select(1, t) - (row + 0.5)
        e0 = dx[1] * dy[2] - dx[2] * dy[1]
        e1 = dx[2] * dy[0] - dx[0] * dy[2]
        e2 = dx[0] * dy[1] - dx[1] * dy[0]
        s = side.index_select(0, t)
        inside = ((e0 * s >= 0) & (e1 * s >= 0) & (e2 * s >= 0)).nonzero().squeeze(1)

        # Depth with perspective: 1 / depth is linear on the screen
        e0, e1, e2, t, column, row = (value.index_select(0, inside) for value in (e0, e1, e2, t, column, row))
        z = depth.index_select(1, t)
        z = (e0 + e1 + e2) / (e0 / z[0] + e1 / z[1] + e2 / z[2])
        pixel = (image.index_select(0, t) * height + row) * width + column
        _keep_nearest(nearest, seen, pixel, z, face.index_select(0, t))
    return torch.where(seen == n_triangles, -1, seen).view(batch, height, width)


def repeat_and_count(number: Tensor) -> tuple[Tensor, Tensor]:
    """number[i] copies of each i, and their count: (2, 0, 3) gives (0, 0, 2, 2, 2) and (0, 1, 0, 1, 2)."""
    item = torch.repeat_interleave(number)
    first = number.cumsum(0) - number
    return item, torch.arange(item.shape[0], device=number.device) - first.index_select(0, item)


def _chunks(number: Tensor) -> Iterator[slice]:
    """Cut the triangles into runs of at most MAX_CANDIDATES candidates (or one triangle)."""
    last = number.cumsum(0) - 1
    sizes = torch.unique_consecutive(last // MAX_CANDIDATES, return_counts=True)[1].tolist()
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size


def _keep_nearest(nearest: Tensor, seen: Tensor, pixel: Tensor, depth: Tensor, face: Tensor) -> None:
    """The z-buffer, in place: smaller depth wins, then lower triangle number. Chunks come in its order."""
    better = (depth < nearest.index_select(0, pixel)).nonzero().squeeze(1)
    pixel, depth, face = (value.index_select(0, better) for value in (pixel, depth, face))
    nearest.scatter_reduce_(0, pixel, depth, "amin")
    won = (depth == nearest.index_select(0, pixel)).nonzero().squeeze(1)
    pixel, face = pixel.index_select(0, won), face.index_select(0, won)
    seen.index_fill_(0, pixel, torch.iinfo(seen.dtype).max)
    seen.scatter_reduce_(0, pixel, face, "amin")


class _Covered(NamedTuple):
    """The N pixels where there is a triangle; corners come first: vertex, dx, dy, edge, q are (3, N)."""

    pixel: Tensor  # number of the pixel in the batch, (b H + row) W + column
    vertex: Tensor  # number of the corner in the batch, b V + v
    z: Tensor  # depth of the corner
    dx: Tensor  # corner minus pixel centre
    dy: Tensor
    edge: Tensor  # edge functions
    inverse: Tensor  # 1 / S, (N,)
    weight: Tensor  # barycentric weights


def _covered(screen: Tensor, triangles: Tensor, face_index: Tensor) -> _Covered:
    height, width = face_index.shape[1:]
    faces = face_index.reshape(-1)
    pixel = (faces >= 0).nonzero().squeeze(1)
    vertex = triangles.mT.index_select(1, faces.index_select(0, pixel))
    vertex = vertex + pixel.div(height * width, rounding_mode="floor") * screen.shape[1]
    x, y, z = screen.reshape(-1, 3).mT.index_select(1, vertex.reshape(-1)).view(3, 3, -1)
    column, row = pixel % width, pixel.div(width, rounding_mode="floor") % height
    dx, dy = x - (column + 0.5), y - (row + 0.5)
    edge = dx.roll(-1, 0) * dy.roll(-2, 0) - dx.roll(-2, 0) * dy.roll(-1, 0)
    q = edge / z
    inverse = q.sum(0).reciprocal()
    inverse = torch.where(inverse.isinf(), 0, inverse)  # a triangle without area here: weights 0, not NaN
    return _Covered(pixel, vertex, z, dx, dy, edge, inverse, q * inverse)


def interpolate(
    screen: Tensor, attributes: Tensor, triangles: Tensor, face_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (B, C, H, W) and depth (B, 1, H, W); the formulas stand in `interpolation`."""
    (batch, height, width), channels = face_index.shape, attributes.shape[2]
    at = _covered(screen, triangles, face_index)
    table = attributes.reshape(-1, channels).mT
    found = table.index_select(1, at.vertex[0]) * at.weight[0]
    for k in (1, 2):
        found += table.index_select(1, at.vertex[k]) * at.weight[k]
    values = screen.new_zeros(channels, face_index.numel()).index_copy_(1, at.pixel, found)
    depth = screen.new_zeros(face_index.numel()).index_copy_(0, at.pixel, at.edge.sum(0) * at.inverse)
    values = values.view(channels, batch, height, width).transpose(0, 1).contiguous()
    return values, depth.view(batch, 1, height, width)


def interpolate_backward(
    screen: Tensor,
    attributes: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    values_grad: Tensor,
    depth_grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of (screen, attributes) from those of (values, depth).

    With g_k = sum_c dL/dvalue_c A_kc and h = dL/ddepth / S, by the chain rule

        dL/dq_k = (g_k - sum_j b_j g_j) / S - h depth
        dL/de_k = dL/dq_k / z_k + h
        dL/dz_k = -dL/dq_k q_k / z_k

    and the edge functions e_0 = dx_1 dy_2 - dx_2 dy_1 (and cyclic) pass dL/de on to the corners' x and y.
    """
    channels, n_vertices = attributes.shape[2], screen.shape[0] * screen.shape[1]
    at = _covered(screen, triangles, face_index)
    vertex = at.vertex.reshape(-1)
    value_grad = values_grad.transpose(0, 1).reshape(channels, -1).index_select(1, at.pixel)
    table = attributes.reshape(-1, channels).mT
    g = torch.stack([(value_grad * table.index_select(1, at.vertex[k])).sum(0) for k in range(3)])

    h = depth_grad.reshape(-1).index_select(0, at.pixel) * at.inverse
    depth = at.edge.sum(0) * at.inverse
    q_grad = (g - (g * at.weight).sum(0)) * at.inverse - h * depth
    edge_grad = q_grad / at.z + h
    after, before = edge_grad.roll(-1, 0), edge_grad.roll(-2, 0)
    x_grad = before * at.dy.roll(-1, 0) - after * at.dy.roll(-2, 0)
    y_grad = after * at.dx.roll(-2, 0) - before * at.dx.roll(-1, 0)
    z_grad = -q_grad * at.edge / at.z**2

    def collect(gradient: Tensor) -> Tensor:
        """Sum the gradients that arrive at each vertex."""
        return gradient.new_zeros(n_vertices).scatter_add_(0, vertex, gradient.reshape(-1))

    screen_grad = torch.stack([collect(grad) for grad in (x_grad, y_grad, z_grad)], -1)
    attributes_grad = torch.stack([collect(value_grad[c] * at.weight) for c in range(channels)], -1)
    return screen_grad.view(screen.shape), attributes_grad.view(attributes.shape)
