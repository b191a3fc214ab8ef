"""The fast backend for NVIDIA GPUs: visibility, and interpolation forward and backward, as Triton kernels.

The same formulas in the same order of operations as the torch code, so visibility is equal bit by bit:
kernels are compiled without fused multiply-add, and divide as IEEE says (Triton's `/` of float32 does not).
Pixels are won by an atomic minimum, which is the same in any order. The gradients of a vertex are added up
atomically, in no fixed order: the last bits of a sum differ from call to call. Under
`torch.use_deterministic_algorithms(True)` the torch code sums instead.

On a CPU the kernels run in Triton's interpreter, for tests, if TRITON_INTERPRET=1 before the first import.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import torch_backend

INTERPRETED = bool(triton.knobs.runtime.interpret)
if not INTERPRETED and not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang", "cl"))):
    raise ImportError("Triton needs a C compiler (CC, gcc or clang) to start kernels")

# A program looks at BLOCK triangles x PLACES pixels of their boxes together, or at BLOCK pixels x channels:
# many in the interpreter, where each step costs the same. Where a mesh has too few triangles for PROGRAMS
# programs, several share the pixels of its boxes.
BLOCK, PLACES, PROGRAMS = (1024, 128, 1) if INTERPRETED else (64, 16, 1024)
MOST_CHANNELS = 16  # together
EMPTY = torch.iinfo(torch.int64).max
OPTIONS = {} if INTERPRETED else {"enable_fp_fusion": False, "num_warps": 4}
# A size of 1, or a multiple of 16, would be compiled again for its own sake
SIZES = ["n_vertices", "n_triangles", "height", "width", "blocks", "channels"]


def rasterize(screen: Tensor, triangles: Tensor, height: int, width: int, cull: bool, near: float) -> Tensor:
    """Face index (B, H, W) of screen (B, V, 3); -1 where there is no triangle. See the rasterizer.

    Depth is positive, so its bits have its order: of float32, they and the triangle's number make one int64
    key; float64 takes two turns.
    """
    batch, n_vertices = screen.shape[:2]
    key = triangles.new_full((batch, height, width), EMPTY)
    if batch == 0 or triangles.shape[0] == 0:
        return key.fill_(-1)
    blocks = triton.cdiv(triangles.shape[0], BLOCK)
    grid = (batch * blocks, triton.cdiv(PROGRAMS, batch * blocks))
    sizes = (n_vertices, triangles.shape[0], height, width, blocks)
    corners = triangles.contiguous()
    with _device_of(screen):
        if screen.dtype == torch.float32:
            _visibility[grid](screen, corners, key, key, *sizes, cull, near, 0, BLOCK, PLACES, **OPTIONS)
            return torch.where(key == EMPTY, -1, key & 0xFFFFFFFF)
        seen = torch.full_like(key, EMPTY)
        for turn in (1, 2):
            _visibility[grid](screen, corners, key, seen, *sizes, cull, near, turn, BLOCK, PLACES, **OPTIONS)
        return torch.where(seen == EMPTY, -1, seen)


def interpolate(
    screen: Tensor, attributes: Tensor, triangles: Tensor, face_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (B, C, H, W) and depth (B, 1, H, W); the formulas stand in `interpolation`."""
    batch, height, width = face_index.shape
    values = screen.new_zeros(batch, attributes.shape[2], height, width)
    depth = screen.new_zeros(batch, 1, height, width)
    _over_pixels(_forward, screen, attributes, triangles, face_index, values, depth)
    return values, depth


def interpolate_backward(
    screen: Tensor,
    attributes: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    values_grad: Tensor,
    depth_grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of (screen, attributes); the derivation stands in `torch_backend.interpolate_backward`."""
    inputs = screen, attributes, triangles, face_index
    if torch.are_deterministic_algorithms_enabled():
        return torch_backend.interpolate_backward(*inputs, values_grad, depth_grad)
    gradients = torch.zeros_like(screen), torch.zeros_like(attributes)
    _over_pixels(_backward, *inputs, values_grad.contiguous(), depth_grad.contiguous(), *gradients)
    return gradients


def _over_pixels(
    kernel: triton.JITFunction,
    screen: Tensor,
    attributes: Tensor,
    triangles: Tensor,
    face_index: Tensor,
    *images: Tensor,
) -> None:
    (batch, height, width), (n_vertices, channels) = face_index.shape, attributes.shape[1:]
    blocks = triton.cdiv(height * width, BLOCK)
    if batch == 0 or triangles.shape[0] == 0:
        return
    together = min(MOST_CHANNELS, triton.next_power_of_2(max(1, channels)))
    sizes = (n_vertices, triangles.shape[0], channels, height, width, blocks)
    inputs = (screen, attributes, triangles.contiguous(), face_index)
    with _device_of(screen):
        kernel[batch * blocks,](*inputs, *images, *sizes, BLOCK, together, **OPTIONS)


def _device_of(tensor: Tensor) -> AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def _divide(a, b):  # type: ignore[no-untyped-def]
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def _corners(screen, triangles, t, mask):  # type: ignore[no-untyped-def]
    """Vertex numbers, x, y and depth of the corners of triangles."""
    i = tl.load(triangles + 3 * t, mask, 0)
    j = tl.load(triangles + 3 * t + 1, mask, 0)
    k = tl.load(triangles + 3 * t + 2, mask, 0)
    x0 = tl.load(screen + 3 * i, mask, 0)
    x1 = tl.load(screen + 3 * j, mask, 0)
    x2 = tl.load(screen + 3 * k, mask, 0)
    y0 = tl.load(screen + 3 * i + 1, mask, 0)
    y1 = tl.load(screen + 3 * j + 1, mask, 0)
    y2 = tl.load(screen + 3 * k + 1, mask, 0)
    z0 = tl.load(screen + 3 * i + 2, mask, 1)
    z1 = tl.load(screen + 3 * j + 2, mask, 1)
    z2 = tl.load(screen + 3 * k + 2, mask, 1)
    return i, j, k, x0, x1, x2, y0, y1, y2, z0, z1, z2


@triton.jit
def _box(a, b, c, size):  # type: ignore[no-untyped-def]
    """First and number of the pixel centres between the least and the greatest of three coordinates."""
    low, high = tl.minimum(tl.minimum(a, b), c), tl.maximum(tl.maximum(a, b), c)
    first = tl.minimum(tl.maximum(tl.ceil(low - 0.5), 0.0), size.to(a.dtype)).to(tl.int32)
    last = tl.minimum(tl.maximum(tl.floor(high - 0.5), -1.0), (size - 1).to(a.dtype)).to(tl.int32)
    return first, tl.maximum(last - first + 1, 0)


@triton.jit(do_not_specialize=SIZES)
def _visibility(  # type: ignore[no-untyped-def]
    screen,
    triangles,
    key,
    seen,
    n_vertices,
    n_triangles,
    height,
    width,
    blocks,
    CULL: tl.constexpr,
    NEAR: tl.constexpr,
    TURN: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Turn 0: key is depth and number. Turn 1: key is depth; 2: seen is the lowest number of that depth."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = t < n_triangles
    real = screen.dtype.element_ty
    _, _, _, x0, x1, x2, y0, y1, y2, z0, z1, z2 = _corners(
        screen + image * n_vertices * 3, triangles, t, mask
    )
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)  # negative: faces us, as y is down
    front = area < 0
    keep = mask & (tl.minimum(tl.minimum(z0, z1), z2) > tl.full([BLOCK], NEAR, real))
    if CULL:
        keep &= front
    else:
        keep &= front | (area > 0)
    left, columns = _box(x0, x1, x2, width)
    top, rows = _box(y0, y1, y2, height)
    count = tl.where(keep, columns * rows, 0)[:, None]

    x0, x1, x2, y0, y1, y2 = x0[:, None], x1[:, None], x2[:, None], y0[:, None], y1[:, None], y2[:, None]
    z0, z1, z2, front = z0[:, None], z1[:, None], z2[:, None], front[:, None]
    left, top, columns, t = left[:, None], top[:, None], tl.maximum(columns, 1)[:, None], t[:, None]
    key += image * height * width
    seen += image * height * width
    for start in range(tl.program_id(1) * PLACES, tl.max(tl.max(count, 1), 0), tl.num_programs(1) * PLACES):
        place = start + tl.arange(0, PLACES)[None, :]
        row, column = top + place // columns, left + place % columns
        cx, cy = column.to(real) + 0.5, row.to(real) + 0.5
        dx0, dx1, dx2, dy0, dy1, dy2 = x0 - cx, x1 - cx, x2 - cx, y0 - cy, y1 - cy, y2 - cy
        e0, e1, e2 = dx1 * dy2 - dx2 * dy1, dx2 * dy0 - dx0 * dy2, dx0 * dy1 - dx1 * dy0
        inside = (front & (e0 <= 0) & (e1 <= 0) & (e2 <= 0)) | (~front & (e0 >= 0) & (e1 >= 0) & (e2 >= 0))
        z = _divide(e0 + e1 + e2, _divide(e0, z0) + _divide(e1, z1) + _divide(e2, z2))
        inside = inside & (place < count) & (z < float("inf"))
        at = row * width + column
        if TURN == 0:
            value = (z.to(tl.int32, bitcast=True).to(tl.int64) << 32) | t.to(tl.int64)
            tl.atomic_min(key + at, value, inside, sem="relaxed")
        else:
            bits = z.to(tl.int64, bitcast=True)
            if TURN == 1:
                tl.atomic_min(key + at, bits, inside, sem="relaxed")
            else:
                won = inside & (tl.load(key + at, inside, 0) == bits)
                tl.atomic_min(seen + at, t.to(tl.int64) + tl.zeros_like(bits), won, sem="relaxed")


@triton.jit
def _geometry(  # type: ignore[no-untyped-def]
    screen, triangles, face_index, n_vertices, n_triangles, height, width, blocks, BLOCK: tl.constexpr
):
    """Of BLOCK pixels: number in the image, mask, corners, their positions from its centre, and depth."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < height * width
    t = tl.load(face_index + image * height * width + pixel, mask, -1)
    mask = mask & (t >= 0) & (t < n_triangles)  # numbers are not checked on a GPU, see `inputs`
    base = screen + image * n_vertices * 3
    i, j, k, x0, x1, x2, y0, y1, y2, z0, z1, z2 = _corners(base, triangles, t, mask)
    real = screen.dtype.element_ty
    cx, cy = (pixel % width).to(real) + 0.5, (pixel // width).to(real) + 0.5
    dx0, dx1, dx2, dy0, dy1, dy2 = x0 - cx, x1 - cx, x2 - cx, y0 - cy, y1 - cy, y2 - cy
    return image, pixel, mask, i, j, k, dx0, dx1, dx2, dy0, dy1, dy2, z0, z1, z2


@triton.jit
def _weights(dx0, dx1, dx2, dy0, dy1, dy2, z0, z1, z2):  # type: ignore[no-untyped-def]
    """q_k, 1 / S (0 for a triangle without area here) and depth, as `interpolation` names them."""
    e0, e1, e2 = dx1 * dy2 - dx2 * dy1, dx2 * dy0 - dx0 * dy2, dx0 * dy1 - dx1 * dy0
    q0, q1, q2 = _divide(e0, z0), _divide(e1, z1), _divide(e2, z2)
    total = q0 + q1 + q2
    flat = total == 0
    inverse = tl.where(flat, 0.0, _divide(tl.full(total.shape, 1, total.dtype), tl.where(flat, 1.0, total)))
    return q0, q1, q2, inverse, (e0 + e1 + e2) * inverse


@triton.jit(do_not_specialize=SIZES)
def _forward(  # type: ignore[no-untyped-def]
    screen,
    attributes,
    triangles,
    face_index,
    values,
    depth,
    n_vertices,
    n_triangles,
    channels,
    height,
    width,
    blocks,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image, pixel, mask, i, j, k, dx0, dx1, dx2, dy0, dy1, dy2, z0, z1, z2 = _geometry(
        screen, triangles, face_index, n_vertices, n_triangles, height, width, blocks, BLOCK
    )
    q0, q1, q2, inverse, z = _weights(dx0, dx1, dx2, dy0, dy1, dy2, z0, z1, z2)
    tl.store(depth + image * height * width + pixel, z, mask)
    b0, b1, b2 = (q0 * inverse)[:, None], (q1 * inverse)[:, None], (q2 * inverse)[:, None]
    attributes += image * n_vertices * channels
    values += image * channels * height * width
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)[None, :]
        both = mask[:, None] & (c < channels)
        a0 = tl.load(attributes + i[:, None] * channels + c, both, 0)
        a1 = tl.load(attributes + j[:, None] * channels + c, both, 0)
        a2 = tl.load(attributes + k[:, None] * channels + c, both, 0)
        place = c.to(tl.int64) * height * width + pixel[:, None]
        tl.store(values + place, b0 * a0 + b1 * a1 + b2 * a2, both)


@triton.jit(do_not_specialize=SIZES)
def _backward(  # type: ignore[no-untyped-def]
    screen,
    attributes,
    triangles,
    face_index,
    values_grad,
    depth_grad,
    screen_grad,
    attributes_grad,
    n_vertices,
    n_triangles,
    channels,
    height,
    width,
    blocks,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image, pixel, mask, i, j, k, dx0, dx1, dx2, dy0, dy1, dy2, z0, z1, z2 = _geometry(
        screen, triangles, face_index, n_vertices, n_triangles, height, width, blocks, BLOCK
    )
    q0, q1, q2, inverse, z = _weights(dx0, dx1, dx2, dy0, dy1, dy2, z0, z1, z2)
    b0, b1, b2 = q0 * inverse, q1 * inverse, q2 * inverse
    g0 = tl.zeros([BLOCK], screen.dtype.element_ty)
    g1, g2 = g0, g0
    attributes += image * n_vertices * channels
    attributes_grad += image * n_vertices * channels
    values_grad += image * channels * height * width
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)[None, :]
        both = mask[:, None] & (c < channels)
        g = tl.load(values_grad + c.to(tl.int64) * height * width + pixel[:, None], both, 0)
        at0, at1, at2 = i[:, None] * channels + c, j[:, None] * channels + c, k[:, None] * channels + c
        g0 += tl.sum(g * tl.load(attributes + at0, both, 0), 1)
        g1 += tl.sum(g * tl.load(attributes + at1, both, 0), 1)
        g2 += tl.sum(g * tl.load(attributes + at2, both, 0), 1)
        tl.atomic_add(attributes_grad + at0, g * b0[:, None], both, sem="relaxed")
        tl.atomic_add(attributes_grad + at1, g * b1[:, None], both, sem="relaxed")
        tl.atomic_add(attributes_grad + at2, g * b2[:, None], both, sem="relaxed")

    h = tl.load(depth_grad + image * height * width + pixel, mask, 0) * inverse
    common = (b0 * g0 + b1 * g1 + b2 * g2) * inverse + h * z
    u0, u1, u2 = g0 * inverse - common, g1 * inverse - common, g2 * inverse - common
    w0, w1, w2 = _divide(u0, z0) + h, _divide(u1, z1) + h, _divide(u2, z2) + h
    screen_grad += image * n_vertices * 3
    to0, to1, to2 = screen_grad + 3 * i, screen_grad + 3 * j, screen_grad + 3 * k
    tl.atomic_add(to0, w2 * dy1 - w1 * dy2, mask, sem="relaxed")
    tl.atomic_add(to1, w0 * dy2 - w2 * dy0, mask, sem="relaxed")
    tl.atomic_add(to2, w1 * dy0 - w0 * dy1, mask, sem="relaxed")
    tl.atomic_add(to0 + 1, w1 * dx2 - w2 * dx1, mask, sem="relaxed")
    tl.atomic_add(to1 + 1, w2 * dx0 - w0 * dx2, mask, sem="relaxed")
    tl.atomic_add(to2 + 1, w0 * dx1 - w1 * dx0, mask, sem="relaxed")
    tl.atomic_add(to0 + 2, -_divide(u0 * q0, z0), mask, sem="relaxed")
    tl.atomic_add(to1 + 2, -_divide(u1 * q1, z1), mask, sem="relaxed")
    tl.atomic_add(to2 + 2, -_divide(u2 * q2, z2), mask, sem="relaxed")
