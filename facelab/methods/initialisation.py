"""Where a fit begins: pose by linear least squares over landmarks, light by ridge regression over colours."""

from __future__ import annotations

import roma
import torch
from torch import Tensor

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import vertex_normals
from facelab.methods.residuals import Estimate, VertexBases, visible_vertices
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import srgb_to_linear
from facelab.rendering.illumination import sh_basis
from facelab.support.errors import ParameterError


def initial_pose(
    model: MorphableModel, landmarks: Tensor, focal: float, size: int, spread: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rotation (3, 3) and translation (3,) of the mean face from (68, 2) landmarks, without iterations.

    A scaled orthographic camera by linear least squares over the 51 inner points (POS, DeMenthon and Davis
    1995), its rows made orthonormal, its scale turned into a distance. `spread` (68, 1): how many times as
    large as usual each landmark's error is expected to be.
    """
    points = model.landmarks(model.mean)[17:]
    share = torch.ones_like(landmarks[17:, :1]) if spread is None else spread[17:].to(landmarks) ** -2
    share = share / share.sum()
    middle = (share * points).sum(0)
    target = landmarks[17:] * landmarks.new_tensor([1.0, -1.0])
    centre = (share * landmarks[17:]).sum(0) - size / 2
    root = share.sqrt()
    about = target - (share * target).sum(0)
    rows = torch.linalg.lstsq(root * (points - middle), root * about).solution.T  # (2, 3)
    rotation = roma.special_procrustes(torch.cat([rows, torch.linalg.cross(rows[:1], rows[1:])], 0))
    depth = focal / (rows.norm(dim=1).mean())
    offset = torch.stack([centre[0] * depth / focal, -centre[1] * depth / focal, -depth])
    return rotation, offset - rotation @ middle


def initial_light(
    bases: VertexBases,
    estimate: Estimate,
    camera: PerspectiveCamera,
    image: Tensor,
    inside: Tensor | None = None,
) -> Tensor:
    """SH light (9, 3) that explains the photograph if the skin is average: ridge regression, linear RGB."""
    model = bases.model
    vertices = model.vertices(estimate.identity, estimate.expression)
    seen = visible_vertices(model, vertices, camera, image.shape[-1])
    column, row = camera.project(vertices[seen])[:, :2].long().unbind(-1)
    if inside is not None:
        kept = inside[0, row, column]
        seen, column, row = seen[kept], column[kept], row[kept]
    if len(seen) < 50:
        raise ParameterError("The face is almost outside the picture; crop the photo around the face.")
    observed = srgb_to_linear(image[:, row, column].T)
    basis = sh_basis(vertex_normals(vertices, model.triangles)[seen] @ estimate.rotation.T)
    diffuse = (model.albedo_mean[seen, :3] + bases.albedo[seen] @ estimate.albedo).clamp(min=0.004)
    light = []
    ridge = basis.new_full((9,), 0.05 * len(seen) * float(diffuse.mean()) ** 2)
    ridge[0] = 0.0
    for channel in range(3):
        design = diffuse[:, channel, None] * basis
        light.append(torch.linalg.solve(design.T @ design + ridge.diag(), design.T @ observed[:, channel]))
    return torch.stack(light, -1)
