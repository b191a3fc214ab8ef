"""Soft silhouettes: the step that lets an image loss move an outline.

A rasterized pixel jumps from one surface to another when an outline passes its centre, so its gradient with
respect to the outline is zero. Following nvdiffrast (Laine et al. 2020, "Modular primitives for
high-performance differentiable rendering", section 3.4), the two pixels at either side of an outline are
blended by the position at which it crosses the line between their centres. Unlike nvdiffrast, which looks at
the triangles seen in the two pixels, this walks along the silhouette edges of the mesh: on a fine mesh the
triangles at an outline are slivers that few pixels see.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from facelab.support.errors import MeshError

from .inputs import (
    NEAR,
    check_face_index,
    check_mesh,
    common_batch,
    one_batch,
    remembered,
    working_type,
)
from .torch_backend import repeat_and_count

DEPTH_TOLERANCE = 1e-4  # relative; two surfaces closer than this are one


def antialias(image: Tensor, depth: Tensor, face_index: Tensor, screen: Tensor, triangles: Tensor) -> Tensor:
    """Blend the pixel pairs that a silhouette passes between, so that the image follows the outline.

    Silhouettes are edges between a triangle that faces the camera and one that does not (or none): made for
    images with back faces culled. The area of a disc, say, then changes with its radius as 2 pi R.

    Args:
        image: (..., C, H, W), any channels; their gradients pass through.
        depth: (..., 1, H, W) from `interpolate`; no gradient.
        face_index: (..., H, W) from `rasterize`.
        screen: (..., V, 3) the positions that were rasterized; gets the gradient of the outline.
        triangles: (T, 3) int64. Its edges are found once and remembered for as long as this tensor lives.

    Returns:
        The image, (..., C, H, W), changed at pixels next to a silhouette.

    Raises:
        MeshError, ParameterError: as `rasterize`; also if the image does not fit the face index.
    """
    check_mesh(screen, triangles)
    check_face_index(face_index, triangles.shape[0])
    if triangles.shape[0] == 0:
        return image
    size = face_index.shape[-2:]
    if image.ndim < 3 or image.shape[-2:] != size or depth.ndim < 3 or depth.shape[-3:] != (1, *size):
        raise MeshError(
            f"The image is {tuple(image.shape)} and the depth {tuple(depth.shape)} for a face index of "
            f"{tuple(size)} pixels; give (..., C, H, W) and (..., 1, H, W)."
        )
    batch = common_batch(image.shape[:-3], depth.shape[:-3], face_index.shape[:-2], screen.shape[:-2])
    points = one_batch(batch, screen.to(working_type(screen)), 2)
    seen = one_batch(batch, face_index, 2) >= 0
    surface = torch.where(seen, one_batch(batch, depth.detach(), 3).squeeze(1), torch.inf).to(points.dtype)
    pixels = one_batch(batch, image, 3)

    silhouettes = _silhouettes(points.detach(), triangles)
    changes = [
        _blend(pixels, points, _crossings(points.detach(), surface, silhouettes, a), a) for a in (0, 1)
    ]
    index, change = (torch.cat(parts) for parts in zip(*changes))
    return pixels.reshape(-1).index_add(0, index, change).view(batch + image.shape[-3:])


class _Edges(NamedTuple):
    """The E edges of a mesh. The second triangle is T where there is none."""

    ends: Tensor  # (2, E) vertices
    triangles: Tensor  # (2, E) the triangles at either side
    opposite: Tensor  # (2, E) the corner of each that is not on the edge


class _Silhouettes(NamedTuple):
    """The S silhouette edges of all images of a batch; vertices are numbered through the batch."""

    image: Tensor  # (S,)
    ends: Tensor  # (2, S)
    opposite: Tensor  # (S,) a vertex at the side where the surface is


class _Crossings(NamedTuple):
    """The M places where a silhouette crosses the line between two neighbouring pixel centres."""

    image: Tensor  # (M,)
    inner: Tensor  # number of the pixel at the surface's side, row W + column
    outer: Tensor  # number of the pixel at the other side
    ends: Tensor  # (2, M) vertices of the edge
    line: Tensor  # coordinate of the line between the centres
    centre: Tensor  # coordinate of the inner pixel's centre on the line
    outward: Tensor  # +1 or -1: the direction from inner to outer


@remembered
def _edges(triangles: Tensor) -> _Edges:
    """Each edge of the mesh once, with its (at most two) triangles."""
    one, two = triangles.roll(-1, 1).reshape(-1), triangles.roll(-2, 1).reshape(-1)
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    key, order = (low * (triangles.max() + 1) + high).sort(stable=True)
    starts = torch.ones_like(key, dtype=torch.bool)
    starts[1:] = key[1:] != key[:-1]
    first = starts.nonzero().squeeze(1)
    second = (first + 1).clamp(max=key.shape[0] - 1)
    paired = ~starts[second]
    half = torch.stack([order[first], order[second]])  # number of the half edge, 3 t + corner opposite
    faces = torch.where(torch.stack([torch.ones_like(paired), paired]), half // 3, triangles.shape[0])
    return _Edges(torch.stack([low, high])[:, half[0]], faces, triangles.reshape(-1)[half])


def _silhouettes(screen: Tensor, triangles: Tensor) -> _Silhouettes:
    """Edges of which exactly one triangle faces the camera."""
    batch, n_vertices = screen.shape[:2]
    edges = _edges(triangles)
    table = screen[..., :2].permute(2, 0, 1).reshape(2 * batch, n_vertices)
    corners = table.index_select(1, triangles.mT.reshape(-1)).view(2, batch, 3, -1)
    (x0, x1, x2), (y0, y1, y2) = (corner.unbind(1) for corner in corners)
    front = screen.new_zeros(batch, triangles.shape[0] + 1, dtype=torch.bool)
    front[:, :-1] = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) < 0
    first, second = (front.index_select(1, side) for side in edges.triangles)
    image, edge = (first != second).nonzero(as_tuple=True)
    opposite = torch.where(first[image, edge], edges.opposite[0, edge], edges.opposite[1, edge])
    return _Silhouettes(image, edges.ends[:, edge] + image * n_vertices, opposite + image * n_vertices)


def _crossings(screen: Tensor, surface: Tensor, silhouettes: _Silhouettes, axis: int) -> _Crossings:
    """Where silhouettes cross lines of pixel centres along `axis` (0: rows, for steep edges; 1: columns).

    surface (B, H, W) is the depth that is seen, infinite at the background.
    """
    (height, width), other = surface.shape[1:], 1 - axis
    points = screen.reshape(-1, 3).mT
    low, high = silhouettes.ends
    low, high = torch.where(
        points[other, low] <= points[other, high], silhouettes.ends, silhouettes.ends.flip(0)
    )
    extent = (points[:, high] - points[:, low]).abs()
    wanted = (extent[1] >= extent[0]) if axis == 0 else (extent[1] < extent[0])
    wanted &= torch.minimum(points[2, low], points[2, high]) > NEAR

    # Every line that the edge crosses: low <= line + 0.5 < high, so a corner of the outline counts once
    n_lines, n_along, line_step, step = (height, width, width, 1) if axis == 0 else (width, height, 1, width)
    start = (points[other, low] - 0.5).ceil().clamp(0, n_lines)
    stop = (points[other, high] - 0.5).ceil().clamp(0, n_lines)
    number = torch.where(wanted, stop - start, 0).long()
    edge, count = repeat_and_count(number)
    line = start[edge].long() + count

    # Where along the line, at which depth, and at which side of the edge the surface is
    a, b, c = points[:, low][:, edge], points[:, high][:, edge], points[:, silhouettes.opposite][:, edge]
    part = (line + 0.5 - a[other]) / (b - a)[other]
    along = torch.lerp(a[axis], b[axis], part)
    near = torch.lerp(1 / a[2], 1 / b[2], part)  # 1 / depth, linear on the screen
    area = (c - a)[axis] * (b - a)[other] - (c - a)[other] * (b - a)[axis]
    slope = ((1 / c[2] - 1 / a[2]) * (b - a)[other] - (c - a)[other] * (1 / b[2] - 1 / a[2])) / area
    side = area.sign()
    before = (along - 0.5).floor()  # the last pixel whose centre is not after the crossing
    valid = ((before >= 0) & (before < n_along - 1) & (side != 0)).nonzero().squeeze(1)
    edge, line, along, near, slope, side, before = (
        v[valid] for v in (edge, line, along, near, slope, side, before)
    )

    # The outline is seen if the outer pixel shows something behind it, and the inner pixel does not show
    # anything behind the surface, which may come nearer or recede from the outline to the pixel
    image = silhouettes.image[edge]
    inner = line * line_step + (before.long() + (side > 0)) * step
    outer = line * line_step + (before.long() + (side < 0)) * step
    flat, first = surface.reshape(-1), image * height * width

    centre = torch.where(side > 0, before + 1.5, before + 0.5)
    least = torch.minimum(near, near + slope * (centre - along)).clamp(min=1e-12)
    limit = 1 + DEPTH_TOLERANCE
    visible = (flat[first + outer] * near > limit) & (flat[first + inner] * least <= limit)

    # Where several silhouettes pass between two pixels, the outermost is seen
    distance = torch.where(visible, (centre - along) * side, -1)
    pair = 2 * (first + outer) + (side > 0)
    outermost = distance.new_full((2 * flat.shape[0],), 0).scatter_reduce_(0, pair, distance, "amax")
    use = (distance >= outermost[pair]).nonzero().squeeze(1)
    ends = torch.stack([low, high])[:, edge]
    return _Crossings(
        image[use], inner[use], outer[use], ends[:, use], line[use] + 0.5, centre[use], -side[use]
    )


def _blend(image: Tensor, screen: Tensor, at: _Crossings, axis: int) -> tuple[Tensor, Tensor]:
    """Places in the flat image and what to add there, both (M C,), differentiable in image and screen.

    The crossing is at a distance d in [0, 1] from the inner centre. Up to 0.5 the inner pixel takes 0.5 - d
    of the outer colour; beyond, the surface spills d - 0.5 of its colour into the outer pixel.
    """
    channels, size = image.shape[1], image.shape[2] * image.shape[3]
    a, b = screen.reshape(-1, 3).index_select(0, at.ends.reshape(-1)).view(2, -1, 3).unbind(0)
    part = (at.line - a[:, 1 - axis]) / (b - a)[:, 1 - axis]
    along = a[:, axis] + part * (b - a)[:, axis]
    spill = ((along - at.centre) * at.outward - 0.5).to(image.dtype)

    plane = at.image * channels * size + torch.arange(channels, device=image.device)[:, None] * size  # (C, M)
    flat = image.reshape(-1)
    inner, outer = (flat.index_select(0, (plane + p).reshape(-1)) for p in (at.inner, at.outer))
    target = torch.where(spill.detach() > 0, at.outer, at.inner)
    return (plane + target).reshape(-1), spill.expand(channels, -1).reshape(-1) * (inner - outer)
