"""The fast CPU backend: visibility, and interpolation forward and backward, one image at a time, in numba.

The same formulas in the same order of operations as the torch code, so visibility is equal bit by bit.
No fastmath and no fused multiply-add: both would break the antisymmetry of the edge functions.
Kernels release the GIL; images of a batch are shared among `torch.get_num_threads()` threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from numba import njit
from torch import Tensor


def rasterize(screen: Tensor, triangles: Tensor, height: int, width: int, cull: bool, near: float) -> Tensor:
    """Face index (B, H, W) of screen (B, V, 3); -1 where there is no triangle. See the rasterizer."""
    face_index = triangles.new_full((screen.shape[0], height, width), -1)
    points, corners, faces = screen.detach().numpy(), triangles.contiguous().numpy(), face_index.numpy()

    def one(b: int) -> None:
        nearest = screen.new_full((height, width), torch.inf).numpy()
        _visibility(points[b], corners, cull, near, faces[b], nearest)

    _for_each_image(one, screen.shape[0])
    return face_index


def interpolate(
    screen: Tensor, attributes: Tensor, triangles: Tensor, face_index: Tensor
) -> tuple[Tensor, Tensor]:
    """As `interpolation.forward`."""
    batch, height, width = face_index.shape
    values = screen.new_zeros(batch, attributes.shape[2], height, width)
    depth = screen.new_zeros(batch, 1, height, width)
    inputs = [tensor.detach().numpy() for tensor in (screen, attributes, face_index)]
    outputs = [values.numpy(), depth.numpy()]
    corners = triangles.contiguous().numpy()
    _for_each_image(lambda b: _forward(corners, *(a[b] for a in inputs), *(a[b] for a in outputs)), batch)
    return values, depth


def interpolate_backward(
    screen: Tensor,
    attributes: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    values_grad: Tensor,
    depth_grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `interpolation.backward`."""
    screen_grad, attributes_grad = torch.zeros_like(screen), torch.zeros_like(attributes)
    tensors = (screen, attributes, face_index, values_grad.contiguous(), depth_grad.contiguous())
    inputs = [tensor.detach().numpy() for tensor in tensors]
    outputs = [screen_grad.numpy(), attributes_grad.numpy()]
    corners = triangles.contiguous().numpy()
    _for_each_image(
        lambda b: _backward(corners, *(a[b] for a in inputs), *(a[b] for a in outputs)), screen.shape[0]
    )
    return screen_grad, attributes_grad


def _for_each_image(work: Callable[[int], None], count: int) -> None:
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        for b in range(count):
            work(b)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(count)))


@njit(cache=True, nogil=True, error_model="numpy")
def _visibility(screen, triangles, cull, near, face_index, nearest):  # type: ignore[no-untyped-def]
    height, width = face_index.shape
    half, near = screen.dtype.type(0.5), screen.dtype.type(near)
    for t in range(triangles.shape[0]):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        x0, x1, x2 = screen[i, 0], screen[j, 0], screen[k, 0]
        y0, y1, y2 = screen[i, 1], screen[j, 1], screen[k, 1]
        z0, z1, z2 = screen[i, 2], screen[j, 2], screen[k, 2]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if not (area < 0 or (area > 0 and not cull)) or not min(z0, z1, z2) > near:
            continue
        left = math.ceil(min(max(min(x0, x1, x2) - half, 0), width))
        right = math.floor(max(min(max(x0, x1, x2) - half, width - 1), -1))
        top = math.ceil(min(max(min(y0, y1, y2) - half, 0), height))
        bottom = math.floor(max(min(max(y0, y1, y2) - half, height - 1), -1))
        front = area < 0
        for row in range(top, bottom + 1):
            cy = screen.dtype.type(row) + half
            dy0, dy1, dy2 = y0 - cy, y1 - cy, y2 - cy
            for column in range(left, right + 1):
                cx = screen.dtype.type(column) + half
                dx0, dx1, dx2 = x0 - cx, x1 - cx, x2 - cx
                e0 = dx1 * dy2 - dx2 * dy1
                e1 = dx2 * dy0 - dx0 * dy2
                e2 = dx0 * dy1 - dx1 * dy0
                inside = (e0 <= 0 and e1 <= 0 and e2 <= 0) if front else (e0 >= 0 and e1 >= 0 and e2 >= 0)
                if inside:
                    z = (e0 + e1 + e2) / (e0 / z0 + e1 / z1 + e2 / z2)
                    if z < nearest[row, column]:  # a tie keeps the lower triangle number, drawn before
                        nearest[row, column] = z
                        face_index[row, column] = t


@njit(cache=True, nogil=True, error_model="numpy")
def _geometry(screen, i, j, k, row, column):  # type: ignore[no-untyped-def]
    """Corners relative to the pixel centre, edge functions, and the sum of edge function / depth."""
    real = screen.dtype.type
    cx, cy = real(column) + real(0.5), real(row) + real(0.5)
    dx0, dx1, dx2 = screen[i, 0] - cx, screen[j, 0] - cx, screen[k, 0] - cx
    dy0, dy1, dy2 = screen[i, 1] - cy, screen[j, 1] - cy, screen[k, 1] - cy
    e0, e1, e2 = dx1 * dy2 - dx2 * dy1, dx2 * dy0 - dx0 * dy2, dx0 * dy1 - dx1 * dy0
    q0, q1, q2 = e0 / screen[i, 2], e1 / screen[j, 2], e2 / screen[k, 2]
    return dx0, dx1, dx2, dy0, dy1, dy2, e0, e1, e2, q0, q1, q2, q0 + q1 + q2


@njit(cache=True, nogil=True, error_model="numpy")
def _forward(triangles, screen, attributes, face_index, values, depth):  # type: ignore[no-untyped-def]
    height, width = face_index.shape
    for row in range(height):
        for column in range(width):
            t = face_index[row, column]
            if t < 0:
                continue
            i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
            _, _, _, _, _, _, e0, e1, e2, q0, q1, q2, total = _geometry(screen, i, j, k, row, column)
            if total == 0:
                continue
            b0, b1, b2 = q0 / total, q1 / total, q2 / total
            depth[0, row, column] = (e0 + e1 + e2) / total
            for c in range(attributes.shape[1]):
                values[c, row, column] = b0 * attributes[i, c] + b1 * attributes[j, c] + b2 * attributes[k, c]


@njit(cache=True, nogil=True, error_model="numpy")
def _backward(  # type: ignore[no-untyped-def]
    triangles, screen, attributes, face_index, values_grad, depth_grad, screen_grad, attributes_grad
):
    """Derivation: `interpolation.backward`."""
    height, width = face_index.shape
    for row in range(height):
        for column in range(width):
            t = face_index[row, column]
            if t < 0:
                continue
            i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
            geometry = _geometry(screen, i, j, k, row, column)
            dx0, dx1, dx2, dy0, dy1, dy2, e0, e1, e2, q0, q1, q2, total = geometry
            if total == 0:
                continue
            z0, z1, z2 = screen[i, 2], screen[j, 2], screen[k, 2]
            b0, b1, b2 = q0 / total, q1 / total, q2 / total
            g0 = g1 = g2 = screen.dtype.type(0)
            for c in range(attributes.shape[1]):
                g = values_grad[c, row, column]
                g0 += g * attributes[i, c]
                g1 += g * attributes[j, c]
                g2 += g * attributes[k, c]
                attributes_grad[i, c] += g * b0
                attributes_grad[j, c] += g * b1
                attributes_grad[k, c] += g * b2
            h = depth_grad[0, row, column] / total
            common = (b0 * g0 + b1 * g1 + b2 * g2) / total + h * (e0 + e1 + e2) / total
            u0, u1, u2 = g0 / total - common, g1 / total - common, g2 / total - common
            w0, w1, w2 = u0 / z0 + h, u1 / z1 + h, u2 / z2 + h
            screen_grad[i, 0] += w2 * dy1 - w1 * dy2
            screen_grad[j, 0] += w0 * dy2 - w2 * dy0
            screen_grad[k, 0] += w1 * dy0 - w0 * dy1
            screen_grad[i, 1] += w1 * dx2 - w2 * dx1
            screen_grad[j, 1] += w2 * dx0 - w0 * dx2
            screen_grad[k, 1] += w0 * dx1 - w1 * dx0
            screen_grad[i, 2] -= u0 * q0 / z0
            screen_grad[j, 2] -= u1 * q1 / z1
            screen_grad[k, 2] -= u2 * q2 / z2
