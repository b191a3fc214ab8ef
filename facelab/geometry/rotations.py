"""Rotations from angles and back."""

import roma
from torch import Tensor


def euler_to_matrix(angles: Tensor) -> Tensor:
    """R = Rz(roll) Ry(yaw) Rx(pitch) from `(..., 3)` = (pitch, yaw, roll) in radians -> `(..., 3, 3)`.

    Positive pitch turns the face down, positive yaw turns it to the image's right, positive roll tilts it
    counter-clockwise in the image. This is the "xyz" order (about fixed axes, x first) of the papers.
    """
    return roma.euler_to_rotmat("xyz", angles.unbind(-1))


def matrix_to_euler(rotation: Tensor) -> Tensor:
    """Angles (pitch, yaw, roll) in radians, `(..., 3, 3)` -> `(..., 3)`; undoes :func:`euler_to_matrix`.

    Yaw is in [-π/2, π/2]. At yaw = ±π/2 pitch and roll turn about the same axis, and roll is set to 0.
    """
    return roma.rotmat_to_euler("xyz", rotation)
