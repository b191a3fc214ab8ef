"""What is known about a face in a picture, and what a method says about it: the two sides of a comparison.

    record = FaceRecord("anna", image, landmarks=points)
    said = Reconstruction.from_coefficients(model, camera, 240, 240, identity, expression, albedo, light)

A field that is None is unknown, or not estimated; nothing is invented for it, and no metric that needs it
is computed. Units and axes are those of docs/conventions.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from facelab.camera import PerspectiveCamera, WeakPerspectiveCamera
from facelab.illumination import SphericalHarmonicsLight
from facelab.image_formation import render
from facelab.morphable_model import MorphableModel

Camera = PerspectiveCamera | WeakPerspectiveCamera


@dataclass(frozen=True, eq=False)
class Mesh:
    """One face as a surface, with its expression, in model space (mm; the face looks along +z)."""

    vertices: Tensor
    """(V, 3) mm"""
    triangles: Tensor
    """(T, 3)"""
    landmarks: Tensor | None = None
    """(68, 3) mm, iBUG order; [30] is the nose tip"""
    topology: str | None = None
    """Two meshes with the same name (not None) and the same V have corresponding vertices."""


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """A picture with one face and whatever truth is known about it."""

    name: str
    image: Tensor
    """(3, H, W) sRGB in [0, 1]"""
    landmarks: Tensor | None = None
    """(68, 2) px, iBUG order; the jaw's points lie on the visible contour"""
    mask: Tensor | None = None
    """(1, H, W) bool: where the face is seen, without what hides it"""
    mesh: Mesh | None = None
    camera: Camera | None = None
    """takes the mesh's model space to this picture"""
    diffuse: Tensor | None = None
    """(V, 3) linear diffuse albedo per vertex of the mesh"""
    light: Tensor | None = None
    """(9, 3) spherical harmonics of the shading, camera space, as SphericalHarmonicsLight takes them"""
    light_direction: Tensor | None = None
    """(3,) unit vector towards the strongest light, camera space"""
    depth: Tensor | None = None
    """(1, H, W) mm in front of the camera; 0 or NaN where it is not known"""
    person: str | None = None
    """who it is: two records of one person have the same"""
    groups: Mapping[str, str] = field(default_factory=dict)
    """such as {"skin": "dark", "age": "old", "sex": "female", "yaw": "20-40"}; errors are given for each"""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a method says about one picture (3, H, W)."""

    mesh: Mesh
    camera: Camera
    """takes the mesh to the picture that the method was given"""
    landmarks: Tensor
    """(68, 2) px of that picture: the estimated face's, projected; never a detector's"""
    diffuse: Tensor | None = None
    """(V, 3) linear diffuse albedo"""
    light: Tensor | None = None
    """(9, 3) spherical harmonics, camera space"""
    image: Tensor | None = None
    """(3, H, W) sRGB: the estimate rendered, black where it is not"""
    mask: Tensor | None = None
    """(1, H, W) bool: where it is"""

    @classmethod
    @torch.no_grad()
    def from_coefficients(
        cls,
        model: MorphableModel,
        camera: Camera,
        height: int,
        width: int,
        identity: Tensor | None = None,
        expression: Tensor | None = None,
        albedo: Tensor | None = None,
        light: Tensor | None = None,
    ) -> "Reconstruction":
        """From coefficients of a face model in standard deviations, each one vector (K,); None is the mean.

        `light` (9, 3); without it there is no rendered picture, only its mask, and no albedo.
        Raises ParameterError for NaN or a wrong length.
        """
        vertices = model.vertices(identity, expression)
        points = model.landmarks(vertices, camera.rotation)
        diffuse, _ = model.albedo(albedo)
        shine = SphericalHarmonicsLight(diffuse.new_zeros(9, 3) if light is None else light)
        picture = render(vertices, model.triangles, camera, shine, diffuse, None, height, width)
        return cls(
            Mesh(vertices, model.triangles, model.landmarks(vertices), model.name),
            camera,
            camera.project(points)[..., :2],
            None if light is None else diffuse,
            light,
            None if light is None else picture.image.clamp(0, 1),
            picture.mask,
        )
