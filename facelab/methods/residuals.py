"""What a fit minimises, with hand-derived Jacobians: landmark and photometric residuals of one photograph.

The photometric term is per vertex, as in Garrido et al. 2013, Thies et al. 2016 and MoFA (eq. 8): the colour
that the model predicts at a vertex against the photograph at the vertex's projection. Everything is linear
in the bases up to projection, unit normals and the sRGB curve, so a Gauss-Newton Jacobian is a few products;
`tests/test_fitting.py` checks each against automatic differentiation in float64.

Unknowns of one photograph, in this order (`unknowns`): first what photographs of one person share
(identity, albedo), then the photograph's own (expression, rotation, translation, light). A rotation step is
a rotation vector w in camera space: R <- exp([w]x) R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import roma
import torch
from torch import Tensor
from torch.nn import functional as F

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import vertex_areas, vertex_normals
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.illumination import SH_CONSTANTS, sh_basis
from facelab.rendering.rasterizer import interpolate, rasterize
from facelab.support.tensors import one_line

SHARED = ("identity", "albedo")


def unknowns(model: MorphableModel) -> ParameterLayout:
    """The order of the columns of every Jacobian here."""
    return ParameterLayout(
        identity=len(model.identity_basis),
        albedo=len(model.albedo_basis),
        expression=len(model.expression_basis),
        rotation=3,
        translation=3,
        light=27,
    )


@one_line
@dataclass(frozen=True)
class Estimate:
    """The unknowns of one photograph: coefficients in standard deviations, pose in camera space (mm)."""

    identity: Tensor  # (Ki,)
    albedo: Tensor  # (Ka,)
    expression: Tensor  # (Ke,)
    rotation: Tensor  # (3, 3)
    translation: Tensor  # (3,)
    light: Tensor  # (9, 3)

    def moved(self, step: dict[str, Tensor]) -> Estimate:
        """The estimate after a Gauss-Newton step, split by `unknowns`."""
        return replace(
            self,
            identity=self.identity + step["identity"],
            albedo=self.albedo + step["albedo"],
            expression=self.expression + step["expression"],
            rotation=roma.rotvec_to_rotmat(step["rotation"]) @ self.rotation,
            translation=self.translation + step["translation"],
            light=self.light + step["light"].reshape(9, 3),
        )

    def camera(self, focal: Tensor | float, size: int) -> PerspectiveCamera:
        """Perspective camera of a square picture whose principal point is its middle."""
        centre = self.translation.new_full((2,), size / 2)
        focal = torch.as_tensor(focal, dtype=centre.dtype, device=centre.device)
        return PerspectiveCamera(self.rotation, self.translation, focal, centre)


def _cross_matrix(v: Tensor) -> Tensor:
    """(..., 3) -> (..., 3, 3) with [v]x u = v x u."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def _sh_gradient(normals: Tensor) -> Tensor:
    """Derivative of `illumination.sh_basis` by the normal: (N, 3) -> (N, 9, 3)."""
    x, y, z = normals.unbind(-1)
    o = torch.zeros_like(x)
    _, c1, c2, c3, c4 = SH_CONSTANTS
    i = torch.full_like(x, c1)
    rows = [o, o, o, o, i, o, o, o, i, i, o, o]
    rows += [c2 * y, c2 * x, o, o, c2 * z, c2 * y, o, o, 6 * c3 * z, c2 * z, o, c2 * x]
    rows += [2 * c4 * x, -2 * c4 * y, o]
    return torch.stack(rows, -1).unflatten(-1, (9, 3))


def _srgb_slope(linear: Tensor) -> Tensor:
    """Derivative of the sRGB curve."""
    return torch.where(
        linear <= 0.0031308, 12.92, (1.055 / 2.4) * linear.clamp(min=0.0031308) ** (1 / 2.4 - 1)
    )


def _projection_jacobian(points: Tensor, focal: Tensor | float) -> Tensor:
    """Derivative of the pixel by the camera-space point: (N, 3) -> (N, 2, 3)."""
    x, y, depth = points[:, 0], points[:, 1], -points[:, 2]
    o = torch.zeros_like(x)
    rows = [1 / depth, o, x / depth**2, o, -1 / depth, -y / depth**2]
    return torch.stack(rows, -1).unflatten(-1, (2, 3)) * focal


class VertexBases:
    """A model's bases with the coefficient last, as the products below want them."""

    def __init__(self, model: MorphableModel) -> None:
        self.model = model
        self.shape = torch.cat([model.identity_basis, model.expression_basis]).permute(1, 2, 0).contiguous()
        self.albedo = model.albedo_basis[..., :3].permute(1, 2, 0).contiguous()  # (V, 3, Ka)
        self.layout = unknowns(model)

    def _geometry_columns(self, jacobian: Tensor, rows: int) -> Tensor:
        """Scatter columns (identity, expression, rotation, translation) into the full layout."""
        full = jacobian.new_zeros(rows, self.layout.size)
        start = 0
        for name in ("identity", "expression", "rotation", "translation"):
            where = self.layout.slice(name)
            width = where.stop - where.start
            full[:, where] = jacobian[:, start : start + width]
            start += width
        return full

    def moves(self, shape: Tensor, rotated: Tensor, rotation: Tensor) -> Tensor:
        """How camera-space points move: (N, 3, Ki + Ke + 6). `shape` (N, 3, Ki + Ke), `rotated` = R x."""
        eye = torch.eye(3, dtype=shape.dtype, device=shape.device).expand(len(rotated), 3, 3)
        return torch.cat([rotation @ shape, -_cross_matrix(rotated), eye], -1)

    def landmark_residuals(
        self, estimate: Estimate, camera: PerspectiveCamera, landmarks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Projected minus detected landmarks in pixels.

        Args:
            estimate: the unknowns.
            camera: `estimate.camera(...)`, so that focal length and size are known.
            landmarks: (68, 2) detected points.

        Returns:
            residuals (68, 2) and their Jacobian (68, 2, P) by `unknowns`.
        """
        vertices = self.model.vertices(estimate.identity, estimate.expression)
        index, weight = self.model.landmark_embedding(vertices, estimate.rotation)
        points = (vertices[index] * weight[..., None]).sum(1)
        shape = (self.shape[index] * weight[..., None, None]).sum(1)
        projected = camera.project(points)[:, :2]
        moves = self.moves(shape, points @ estimate.rotation.T, estimate.rotation)
        jacobian = _projection_jacobian(camera.to_camera(points), camera.focal) @ moves
        full = self._geometry_columns(jacobian.flatten(0, 1), 136)
        return projected - landmarks, full.unflatten(0, (68, 2))

    def _normal_moves(self, vertices: Tensor, selected: Tensor, length: Tensor, normal: Tensor) -> Tensor:
        """How unit normals of the selected vertices turn with the shape: (N, 3, Ki + Ke), model space.

        The unnormalised normal is the sum over its triangles of a x b + b x c + c x a, so corner a moves it
        by da x (b - c).
        """
        lookup = torch.full((len(vertices),), -1, dtype=torch.long, device=vertices.device)
        lookup[selected] = torch.arange(len(selected), device=vertices.device)
        triangles = self.model.triangles
        triangles = triangles[(lookup[triangles] >= 0).any(1)]
        corners = vertices[triangles]
        opposite = corners.roll(-1, 1) - corners.roll(-2, 1)
        turn = -_cross_matrix(opposite).transpose(1, 2).flatten(2)  # (T, 3, 9), applied to all corners' moves
        moved = turn @ self.shape[triangles].flatten(1, 2)  # (T, 3, K)
        total = moved.new_zeros(len(selected) + 1, *moved.shape[1:])
        target = lookup[triangles]
        target = torch.where(target < 0, len(selected), target)
        for corner in range(3):
            total.index_add_(0, target[:, corner], moved)
        total = total[:-1] / length[:, None, None]
        return total - normal[:, :, None] * (normal[:, None, :] @ total)

    def photometric_residuals(
        self,
        estimate: Estimate,
        camera: PerspectiveCamera,
        image: Tensor,
        jacobian: bool = True,
        inside: Tensor | None = None,
        ceiling: float = math.inf,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Predicted minus observed sRGB colour of every vertex that the camera sees.

        Args:
            estimate: the unknowns.
            camera: its camera at the resolution of `image`.
            image: (3, S, S) sRGB.
            jacobian: also return the Jacobian.
            inside: (1, S, S) bool; vertices on other pixels do not count.
            ceiling: a colour from here on was clipped, and a prediction above it is no error.

        Returns:
            residuals (N, 3), Jacobian (N, 3, P) by `unknowns` or None, weights (N,) that sum to one:
            the vertex's share of the picture (its area as seen by the camera).
        """
        model, rotation = self.model, estimate.rotation
        vertices = model.vertices(estimate.identity, estimate.expression)
        seen = visible_vertices(model, vertices, camera, image.shape[-1])
        screen = camera.project(vertices[seen])
        if inside is not None:
            column, row = screen[:, :2].long().unbind(-1)
            kept = inside[0, row, column]
            seen, screen = seen[kept], screen[kept]
        raw = vertex_areas(vertices, model.triangles)[seen]
        length = raw.norm(dim=-1).clamp(min=1e-12)
        model_normal = raw / length[:, None]
        normal = model_normal @ rotation.T
        colours, slopes = _sample(image, screen[:, :2])
        diffuse = (model.albedo_mean[seen, :3] + self.albedo[seen] @ estimate.albedo).clamp(min=0.004)
        basis = sh_basis(normal)
        shading = basis @ estimate.light
        linear = diffuse * shading
        dark = linear < 1e-4
        residual = linear_to_srgb(linear.clamp(min=1e-4)) - colours
        beyond = (colours >= ceiling) & (residual > 0)
        residual = residual.masked_fill(beyond, 0.0)
        # the foreshortened share of the surface; the squared length of depth is common to a face
        weight = length * normal[:, 2].clamp(min=0.0)
        weight = weight / weight.sum().clamp(min=1e-12)
        if not jacobian:
            return residual, None, weight
        points = camera.to_camera(vertices[seen])
        moves = self.moves(self.shape[seen], points - estimate.translation, rotation)
        pixel = _projection_jacobian(points, camera.focal) @ moves  # (N, 2, G)
        turns = rotation @ self._normal_moves(vertices, seen, length, model_normal)
        zeros = turns.new_zeros(len(turns), 3, 3)
        turns = torch.cat([turns, -_cross_matrix(normal), zeros], -1)  # (N, 3, G)
        by_normal = torch.einsum("nbk,bc->nck", _sh_gradient(normal), estimate.light)  # (N, 3 colours, 3)
        slope = torch.where(dark, 0.0, _srgb_slope(linear))
        geometry = (slope * diffuse)[..., None] * (by_normal @ turns) - slopes @ pixel
        full = self._geometry_columns(geometry.flatten(0, 1), 3 * len(seen)).unflatten(0, (-1, 3))
        full[..., self.layout.slice("albedo")] = (slope * shading)[..., None] * self.albedo[seen]
        light = torch.einsum("nc,nb,cd->ncbd", slope * diffuse, basis, torch.eye(3).to(basis))
        full[..., self.layout.slice("light")] = light.flatten(2)
        return residual, full.masked_fill_(beyond[..., None], 0.0), weight


def _sample(image: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (N, 3) and their slopes by the pixel position (N, 3, 2), bilinear.

    The slope is that of the bilinear patch itself, so Gauss-Newton sees the function it minimises.
    """
    size = image.shape[-1]
    position = (pixels - 0.5).clamp(0, size - 1.001)
    corner = position.floor()
    fx, fy = (position - corner).unbind(-1)
    x, y = corner.long().unbind(-1)
    i00, i01 = image[:, y, x].T, image[:, y, x + 1].T
    i10, i11 = image[:, y + 1, x].T, image[:, y + 1, x + 1].T
    fx, fy = fx[:, None], fy[:, None]
    top, bottom = i00 + fx * (i01 - i00), i10 + fx * (i11 - i10)
    along_x = (i01 - i00) * (1 - fy) + (i11 - i10) * fy
    return top + fy * (bottom - top), torch.stack([along_x, bottom - top], -1)


@torch.no_grad()
def visible_vertices(
    model: MorphableModel, vertices: Tensor, camera: PerspectiveCamera, size: int, min_cosine: float = 0.2
) -> Tensor:
    """Indices of the vertices that the camera sees: not grazing, inside the picture, not behind the face.

    Args:
        model: whose triangles are drawn.
        vertices: (V, 3) model space.
        camera: of a square picture.
        size: its side in pixels.
        min_cosine: between normal and view; colours of a surface seen more obliquely are unreliable.
    """
    points = camera.to_camera(vertices)
    screen = camera.to_screen(points)
    facing = (vertex_normals(points, model.triangles) * camera.view_directions(points)).sum(-1)
    inside = ((screen[:, :2] > 1) & (screen[:, :2] < size - 1)).all(-1)
    face_index = rasterize(screen, model.triangles, size, size)
    _, depth = interpolate(screen, model.triangles, face_index, screen[:, 2:])
    column, row = screen[:, :2].long().clamp(0, size - 1).unbind(-1)
    front = depth[0, row, column]
    hidden = (front > 0) & (screen[:, 2] > front + 4.0)  # 4 mm: a pixel spans a slope of the surface
    return torch.nonzero(inside & ~hidden & (facing > min_cosine)).squeeze(1)


def robust_weights(residual: Tensor, scale: float) -> Tensor:
    """Weight of an observation by the length of its residual, (N, D) -> (N,): 1 at 0, 1/4 at `scale`.

    The weights of Geman and McClure's penalty |r|² / (1 + |r|²/s²), which is |r|² times their square root.
    """
    return 1 / (1 + residual.square().sum(-1) / scale**2) ** 2


def shrink(image: Tensor, size: int) -> Tensor:
    """The picture at a smaller size, low-pass filtered: (3, S, S) -> (3, size, size)."""
    if size == image.shape[-1]:
        return image
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
