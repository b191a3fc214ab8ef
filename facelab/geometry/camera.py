"""Cameras: from model space (mm) to camera space (mm) to the screen (pixels, and depth in mm).

Camera space has +x right, +y up, +z towards the viewer; the camera sits at the origin and looks along -z.
The screen is (x, y, depth) with y down, depth = -z, and the centre of pixel (row 0, column 0) at (0.5, 0.5).

A batch of cameras has leading dimensions on every field; they broadcast with those of the points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from facelab.geometry.mesh import normalise
from facelab.geometry.rotations import euler_to_matrix
from facelab.support.errors import ParameterError
from facelab.support.tensors import constant, one_line

NEAR_MM = 1.0
"""Points nearer than this (or behind the camera) are projected as if they were this far away, so that x and y
stay finite. Their depth is reported as it is: a depth below NEAR_MM marks a point that cannot be seen."""


@one_line
@dataclass(frozen=True, eq=False)
class PerspectiveCamera:
    """Full perspective (pinhole) camera of InverseFaceNet, MoFA (Eq. 5) and GANFIT (Eq. 6).

    x_camera = R x_model + t;  x = c_x + f X / depth,  y = c_y - f Y / depth,  depth = -Z.
    """

    rotation: Tensor
    """`(..., 3, 3)`, model to camera."""
    translation: Tensor
    """`(..., 3)` mm; a face in front of the camera has a negative z."""
    focal: Tensor
    """`(...)` pixels."""
    principal: Tensor
    """`(..., 2)` pixels, the image point on the optical axis."""

    @classmethod
    def from_fov(
        cls,
        fov_degrees: float,
        height: int,
        width: int,
        distance: float = 600.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Self:
        """A camera `distance` mm in front of a frontal face, with the given vertical field of view.

        Raises ParameterError for a field of view that is not between 0 and 180 degrees.
        """
        if not 0 < fov_degrees < 180:
            raise ParameterError(f"The field of view must be between 0 and 180 degrees, not {fov_degrees}.")
        focal = height / 2 / math.tan(math.radians(fov_degrees) / 2)
        return cls(
            rotation=torch.eye(3, dtype=dtype, device=device),
            translation=torch.tensor([0.0, 0.0, -distance], dtype=dtype, device=device),
            focal=torch.tensor(focal, dtype=dtype, device=device),
            principal=torch.tensor([width / 2, height / 2], dtype=dtype, device=device),
        )

    def look(self, angles: Tensor | Sequence[float], translation: Tensor | None = None) -> Self:
        """This camera with the head turned by `angles` `(..., 3)` = (pitch, yaw, roll) in radians.

        `translation` `(..., 3)` mm replaces the camera's own, if given.
        """
        rotation = euler_to_matrix(torch.as_tensor(angles).to(self.rotation))
        return replace(
            self, rotation=rotation, translation=self.translation if translation is None else translation
        )

    def to_camera(self, points: Tensor) -> Tensor:
        """Model space -> camera space, both `(..., N, 3)` in mm."""
        return points @ self.rotation.mT + self.translation[..., None, :]

    def to_screen(self, points_camera: Tensor) -> Tensor:
        """Camera space `(..., N, 3)` mm -> screen `(..., N, 3)` = x, y in pixels and depth in mm."""
        x, y, z = points_camera.unbind(-1)
        magnification = self.focal[..., None] / (-z).clamp(min=NEAR_MM)
        right = self.principal[..., 0, None] + magnification * x
        down = self.principal[..., 1, None] - magnification * y
        return torch.stack([right, down, (-z).expand_as(right)], -1)

    def project(self, points: Tensor) -> Tensor:
        """Model space `(..., N, 3)` mm -> screen `(..., N, 3)` = x, y in pixels and depth in mm."""
        return self.to_screen(self.to_camera(points))

    def view_directions(self, points_camera: Tensor) -> Tensor:
        """Unit vectors from points `(..., N, 3)` in camera space towards the camera; zero at the camera."""
        return -normalise(points_camera)

    def rescaled(self, scale: Tensor | float, shift: Tensor) -> Self:
        """The same camera for a picture whose pixels are scale · x + shift: a crop's, or the photograph's."""
        scale = torch.as_tensor(scale).to(self.principal)
        principal = scale[..., None] * self.principal + shift.to(self.principal)
        return replace(self, focal=scale * self.focal, principal=principal)

    def to_opencv(self) -> tuple[Tensor, Tensor, Tensor]:
        """(R, t, K) for OpenCV: x right, y down, z forward, and u = K (R x + t) up to scale.

        OpenCV's pixel (0, 0) has its *centre* at (0, 0), so OpenCV coordinates are ours minus one half: K
        holds the principal point in OpenCV's coordinates. Shapes `(..., 3, 3)`, `(..., 3)`, `(..., 3, 3)`.
        """
        flip = self.rotation.new_tensor([1.0, -1.0, -1.0])
        cx, cy = (self.principal - 0.5).unbind(-1)
        focal, cx, cy = torch.broadcast_tensors(self.focal, cx, cy)
        zero, one = torch.zeros_like(focal), torch.ones_like(focal)
        matrix = torch.stack([focal, zero, cx, zero, focal, cy, zero, zero, one], -1).unflatten(-1, (3, 3))
        return flip[:, None] * self.rotation, flip * self.translation, matrix


@one_line
@dataclass(frozen=True, eq=False)
class WeakPerspectiveCamera:
    """Scaled orthographic camera of CoarseNet (Richardson et al. 2017, Eq. 2) and Deng et al. 2022 (Eq. 3).

    x = o_x + s (R x)_x,  y = o_y - s (R x)_y,  depth = reference depth - (R x)_z.

    Six degrees of freedom. The reference depth moves nothing on the screen; it puts the face in front of a
    camera at the origin, far enough that perspective interpolation over a triangle is as good as linear.
    """

    rotation: Tensor
    """`(..., 3, 3)`, model to camera."""
    scale: Tensor
    """`(...)` pixels per mm."""
    offset: Tensor
    """`(..., 2)` pixels: where the model's origin lands."""
    depth: float = 10_000.0
    """mm, larger than any (R x)_z."""

    @classmethod
    def frontal(
        cls,
        scale: float,
        height: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Self:
        """A frontal face in the middle of the image, `scale` pixels per mm."""
        return cls(
            rotation=torch.eye(3, dtype=dtype, device=device),
            scale=torch.tensor(scale, dtype=dtype, device=device),
            offset=torch.tensor([width / 2, height / 2], dtype=dtype, device=device),
        )

    def look(self, angles: Tensor | Sequence[float]) -> Self:
        """This camera with the head turned by `angles` `(..., 3)` = (pitch, yaw, roll) in radians."""
        return replace(self, rotation=euler_to_matrix(torch.as_tensor(angles).to(self.rotation)))

    def rescaled(self, scale: Tensor | float, shift: Tensor) -> Self:
        """See `PerspectiveCamera.rescaled`."""
        scale = torch.as_tensor(scale).to(self.offset)
        offset = scale[..., None] * self.offset + shift.to(self.offset)
        return replace(self, scale=scale * self.scale, offset=offset)

    def to_camera(self, points: Tensor) -> Tensor:
        """Model space -> camera space, both `(..., N, 3)` in mm; the origin goes to (0, 0, -depth)."""
        return points @ self.rotation.mT - constant(self.rotation, 0.0, 0.0, self.depth)

    def to_screen(self, points_camera: Tensor) -> Tensor:
        """Camera space `(..., N, 3)` mm -> screen `(..., N, 3)` = x, y in pixels and depth in mm."""
        x, y, z = points_camera.unbind(-1)
        right = self.offset[..., 0, None] + self.scale[..., None] * x
        down = self.offset[..., 1, None] - self.scale[..., None] * y
        return torch.stack([right, down, (-z).expand_as(right)], -1)

    def project(self, points: Tensor) -> Tensor:
        """Model space `(..., N, 3)` mm -> screen `(..., N, 3)` = x, y in pixels and depth in mm."""
        return self.to_screen(self.to_camera(points))

    def view_directions(self, points_camera: Tensor) -> Tensor:
        """Unit vectors towards the camera: +z for every point `(..., N, 3)`, since all rays are parallel."""
        return constant(points_camera, 0.0, 0.0, 1.0).expand_as(points_camera)


Camera = PerspectiveCamera | WeakPerspectiveCamera
