"""Detail on the mesh: what a fine depth map adds to a coarse face, as moved vertices and as a normal map in
UV.

    vertices = displaced(surface, detail)                          # on the finest level of the face model
    normals = detailed_normals(points, normals, detail)            # where the surface lies on the screen

`facelab.export` makes a normal map of the second and puts it into a file.

Only what the picture shows can be moved: hidden and grazing points stay where the face model has them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import grid_sample

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.geometry.mesh import normalise
from facelab.methods.finenet import feathered
from facelab.model.face import Surface
from facelab.rendering.gbuffer import depth_normals
from facelab.support.tensors import one_line

GRAZING = (0.15, 0.45)  # cosines between which detail fades in
NEAR_MM = 4.0  # a vertex this far behind the visible surface is hidden


@one_line
@dataclass(frozen=True, eq=False)
class Detail:
    """One picture's coarse and fine depth."""

    coarse: Tensor
    """(1, S, S) mm"""
    fine: Tensor
    """(1, S, S) mm"""
    mask: Tensor
    """(1, S, S) bool: where there is detail"""
    camera: WeakPerspectiveCamera
    """takes the face to this picture"""


def displaced(surface: Surface, detail: Detail) -> Tensor:
    """Vertices (V, 3) mm in model space, moved along the line of sight by what the fine depth adds."""
    offset = (detail.fine - detail.coarse) * feathered(detail.mask[None])[0]
    points = detail.camera.project(surface.vertices)
    cosine = (surface.normals @ detail.camera.rotation.mT)[:, 2]
    moved = _sampled(offset, points)[:, 0] * _seen(points, cosine, detail)
    return surface.vertices - moved[:, None] * detail.camera.rotation[2]


def detailed_normals(points: Tensor, normals: Tensor, detail: Detail) -> Tensor:
    """Unit normals (N, 3) in model space at screen points (N, 3) px, px, mm of the coarse face, whose own
    normals are `normals` (N, 3): these, plus the difference between the fine and the coarse depth's."""
    rotation = detail.camera.rotation
    fine, coarse = (depth_normals(depth, detail.camera) for depth in (detail.fine, detail.coarse))
    more = _sampled((fine - coarse) * feathered(detail.mask[None])[0], points)
    more = more * _seen(points, (normals @ rotation.mT)[:, 2], detail)[:, None]
    return normalise(normals + more @ rotation)


def _sampled(maps: Tensor, points: Tensor) -> Tensor:
    """(N, C): maps (C, S, S) at points (N, 2 or 3) px, bilinear."""
    grid = (2 * points[:, :2] / maps.shape[-1] - 1)[None, None]
    return grid_sample(maps[None], grid, padding_mode="border", align_corners=False)[0, :, 0].T


def _seen(points: Tensor, cosine: Tensor, detail: Detail) -> Tensor:
    """(N,) in [0, 1]: how well the picture shows screen points (N, 3) whose normals have this cosine."""
    size, (low, high) = detail.coarse.shape[-1], GRAZING
    inside = ((points[:, :2] >= 0) & (points[:, :2] <= size)).all(-1)
    in_front = points[:, 2] < _sampled(detail.coarse, points)[:, 0] + NEAR_MM
    return ((cosine - low) / (high - low)).clamp(0, 1) * inside * in_front
