"""What is known about a face in a picture, and what a method says about it: the two sides of a comparison.

    record = FaceRecord("anna", image, landmarks=points)
    said = Reconstruction.of(Face(identity, expression, albedo, camera, light), model, 240, 240)

A field that is None is unknown, or not estimated; nothing is invented for it, and no metric that needs it
is computed. Units and axes are those of docs/conventions.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from facelab.geometry.camera import Camera
from facelab.model.face import Face, draw
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.illumination import Light, SphericalHarmonicsLight
from facelab.support.tensors import one_line


@one_line
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


@one_line
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


@one_line
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
    specular: Tensor | None = None
    """(V,) reflectance at normal incidence"""
    light: Light | None = None
    """of any kind, camera space"""
    image: Tensor | None = None
    """(3, H, W) sRGB: the estimate rendered, black where it is not"""
    mask: Tensor | None = None
    """(1, H, W) bool: where it is"""
    face: Face | None = None
    """the coefficients, camera and light that it was made of, where a face model was"""

    @classmethod
    @torch.no_grad()
    def of(cls, face: Face, model: MorphableModel, height: int, width: int) -> "Reconstruction":
        """What a `Face` of a model, whose camera takes it to a picture of height×width, looks like.

        Without a light there is no rendered picture, only its mask, and no albedo.
        Raises ParameterError for NaN or a wrong number of coefficients.
        """
        surface, lit = face.surface(model), face.light is not None
        dark = SphericalHarmonicsLight(surface.diffuse.new_zeros(9, 3))
        picture = draw(surface, face.camera, face.light if lit else dark, height, width)
        return cls(
            Mesh(surface.vertices, model.triangles, model.landmarks(surface.vertices), model.name),
            face.camera,
            face.camera.project(surface.landmarks)[..., :2],
            surface.diffuse if lit else None,
            surface.specular if lit else None,
            face.light,
            picture.image.clamp(0, 1) if lit else None,
            picture.mask,
            face,
        )
