"""`Face`: what every method estimates, in one set of names; and the surface that it has on a face model.

face = Face(identity, expression, albedo, camera, light)       # (..., K) in standard deviations
surface = face.surface(model)                                  # vertices, albedo, landmarks: once
picture = face.render(model, 240, 240)
face = face.in_photo(crop)                                     # the same, in the photograph's pixels
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from facelab.geometry.camera import Camera
from facelab.geometry.mesh import vertex_normals
from facelab.model.morphable_model import MorphableModel
from facelab.model.textures import at_vertices, check_texture, unit_uv
from facelab.photos import Crop
from facelab.rendering.gbuffer import look_up, rasterize_surface, uv_map
from facelab.rendering.illumination import Light, SphericalHarmonicsLight
from facelab.rendering.image_formation import Picture, VertexPicture, render, shade, shade_vertices
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line


@one_line
@dataclass(frozen=True, eq=False)
class Surface:
    """A face as a mesh in model space: what a camera and a light need to know of it."""

    vertices: Tensor
    """(..., V, 3) mm"""
    triangles: Tensor
    """(T, 3)"""
    diffuse: Tensor
    """(..., V, 3) linear albedo"""
    specular: Tensor
    """(..., V) reflectance at normal incidence"""
    landmarks: Tensor
    """(..., 68, 3) mm, iBUG order; the jaw's on the contour that the face's camera sees"""
    texture: Tensor | None = None
    """(..., 4, S, S) linear diffuse RGB and specular in UV, or None: then the vertices have all the colour"""
    uv: Tensor | None = None
    """(U, 2) in [0, 1], where there is a texture"""
    uv_triangles: Tensor | None = None
    """(T, 3) into `uv`"""

    @cached_property
    def normals(self) -> Tensor:
        """(..., V, 3) unit."""
        return vertex_normals(self.vertices, self.triangles)


@one_line
@dataclass(frozen=True, eq=False)
class Face:
    """One face, or a batch of them: coefficients of a face model, the camera that sees it and its light.

    Coefficients (..., K) are in standard deviations; an empty one (..., 0) is the mean. Cameras and lights
    may be of any kind; without a light (None) the face has a shape and a place, and cannot be drawn.
    A texture (..., 4, S, S), linear diffuse RGB and specular in the model's UV map, replaces `albedo`.
    """

    identity: Tensor
    expression: Tensor
    albedo: Tensor
    camera: Camera
    light: Light | None = None
    texture: Tensor | None = None

    def surface(self, model: MorphableModel) -> Surface:
        """Its mesh, on any level of detail of the model. A face with fewer components than the model uses the
        first ones. Raises ParameterError for more components than there are, NaN or infinity; MeshError for a
        texture of another shape or on a model without a UV map."""
        counts = [part.shape[-1] for part in (self.identity, self.expression, self.albedo)]
        if counts != [len(model.identity_basis), len(model.expression_basis), len(model.albedo_basis)]:
            model = model.truncate(*counts)
        vertices = model.vertices(self.identity, self.expression)
        landmarks = model.landmarks(vertices, self.camera.rotation)
        if self.texture is None:
            return Surface(vertices, model.triangles, *model.albedo(self.albedo), landmarks)
        check_texture(self.texture)
        colours = at_vertices(self.texture, model)
        maps = (self.texture, unit_uv(model), model.uv_triangles)
        return Surface(vertices, model.triangles, colours[..., :3], colours[..., 3], landmarks, *maps)

    def landmarks(self, model: MorphableModel) -> Tensor:
        """(..., 68, 2) px: the landmarks of its surface, projected."""
        return self.camera.project(self.surface(model).landmarks)[..., :2]

    def in_photo(self, crop: Crop) -> "Face":
        """The same face in the pixels of the photograph that the crop was cut from."""
        scale = 1 / crop.matrix[0, 0]
        return replace(self, camera=self.camera.rescaled(scale, -scale * crop.matrix[:2, 2]))

    def render(self, model: MorphableModel, height: int, width: int) -> Picture:
        """The face on black, with the highlights that its light makes. Errors: `image_formation.render`."""
        return draw(self.surface(model), self.camera, self.light, height, width)

    def shade(self, surface: Surface) -> VertexPicture:
        """Where each vertex of its surface lands, and in which colour (MoFA, Eq. 5)."""
        light = _present(self.light)
        return shade_vertices(surface.vertices, surface.triangles, self.camera, light, surface.diffuse)


def draw(
    surface: Surface, camera: Camera, light: Light | None, height: int, width: int, **options: Any
) -> Picture:
    """`image_formation.render` of a surface, options included; a texture is looked up at every pixel.

    Raises ParameterError without a light."""
    light = _present(light)
    matt = isinstance(light, SphericalHarmonicsLight)
    mesh = (surface.vertices, surface.triangles)
    if surface.texture is None:
        specular = None if matt else surface.specular
        return render(*mesh, camera, light, surface.diffuse, specular, height, width, **options)
    assert surface.uv is not None and surface.uv_triangles is not None
    backend = options.pop("backend", "auto")
    maps = rasterize_surface(*mesh, camera, surface.vertices[..., :0], height, width, backend=backend)
    texels = look_up(surface.texture, uv_map(maps, surface.uv, surface.uv_triangles))
    parts = texels[..., :3, :, :], None if matt else texels[..., 3:, :, :]
    return shade(maps, camera, light, *parts, **options)


def _present(light: Light | None) -> Light:
    if light is None:
        raise ParameterError("This face has no light, so it cannot be drawn; give it one.")
    return light
