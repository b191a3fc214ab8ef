"""From a mesh, a camera and a light to a picture: per pixel (deferred shading) and per vertex (MoFA).

Vertices are in model space (mm), albedo and light in linear RGB, pictures in sRGB. Leading batch dimensions
of vertices, camera, light and albedo broadcast: one mesh under many lights is rasterized once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from facelab.geometry.camera import NEAR_MM, Camera
from facelab.geometry.mesh import dot, vertex_normals
from facelab.rendering import rasterizer
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.gbuffer import GBuffer, rasterize_surface
from facelab.rendering.illumination import Light
from facelab.support.errors import MeshError, ParameterError
from facelab.support.tensors import finite, one_line


@one_line
@dataclass(frozen=True, eq=False)
class Picture:
    """What `render` makes. Maps are zero where there is no mesh, except for `image` and `linear`."""

    image: Tensor
    """`(..., 3, H, W)` sRGB, over the background; above 1 where the light is too strong for the picture"""
    linear: Tensor
    """`(..., 3, H, W)` the same in linear RGB"""
    mask: Tensor
    """`(..., 1, H, W)` bool, where the mesh is seen"""
    depth: Tensor
    """`(..., 1, H, W)` mm"""
    normals: Tensor
    """`(..., 3, H, W)` unit, camera space"""
    albedo: Tensor
    """`(..., 3, H, W)` diffuse albedo, linear"""
    shading: Tensor
    """`(..., 3, H, W)` diffuse shading, linear: what a white matt face would look like"""
    specular: Tensor
    """`(..., 3, H, W)` highlights, linear: linear = albedo * shading + specular"""
    face_index: Tensor
    """`(..., H, W)` int64 triangle seen at each pixel, -1 for none"""


@one_line
@dataclass(frozen=True, eq=False)
class VertexPicture:
    """What `shade_vertices` makes: F_i(x) = (u_i, c_i) of MoFA, Eq. 5."""

    screen: Tensor
    """`(..., V, 3)` x, y in pixels and depth in mm"""
    colour: Tensor
    """`(..., V, 3)` linear RGB"""
    normals: Tensor
    """`(..., V, 3)` unit, camera space"""
    visible: Tensor
    """`(..., V)` bool: in front of the camera and facing it. Hidden parts that face it count as visible."""


def render(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    light: Light,
    diffuse: Tensor,
    specular: Tensor | None,
    height: int,
    width: int,
    *,
    antialias: bool = False,
    backend: str = "auto",
    background: Tensor | None = None,
) -> Picture:
    """Rasterize a mesh and shade every covered pixel (deferred shading, as in GANFIT, Sec. 3.2).

    Normals, positions and albedo are interpolated to the pixels and only then shaded. Differentiable in all
    floating-point arguments and those of camera and light. Gradients of silhouettes need `antialias`.

    Args:
        vertices: (..., V, 3) mm, model space.
        triangles: (T, 3) int64, counter-clockwise seen from outside; back faces are not drawn.
        camera, light: see facelab.geometry.camera and facelab.rendering.illumination.
        diffuse: (..., V, 3) linear albedo.
        specular: (..., V) reflectance at normal incidence, or None for a matt surface.
        height, width: pixels.
        antialias: blend silhouettes, in linear light. Only `image` and `linear` are blended.
        backend: of the rasterizer.
        background: (..., 3, H, W) sRGB picture behind the mesh; black if None.

    Raises:
        ParameterError: NaN or infinity in an argument, or a background or albedo of the wrong shape.
        ImageSizeError, MeshError: see the rasterizer.
    """
    _check_surface(vertices, camera, light, diffuse, specular)
    attributes = diffuse if specular is None else _concatenate([diffuse, specular[..., None]])
    maps = rasterize_surface(vertices, triangles, camera, attributes, height, width, backend=backend)
    albedo = maps.attributes[..., :3, :, :]
    shine = None if specular is None else maps.attributes[..., 3:, :, :]
    return shade(maps, camera, light, albedo, shine, antialias=antialias, background=background)


def shade(
    maps: GBuffer,
    camera: Camera,
    light: Light,
    diffuse: Tensor,
    specular: Tensor | None = None,
    *,
    antialias: bool = False,
    background: Tensor | None = None,
) -> Picture:
    """The picture of a g-buffer: `render`'s second half.

    `diffuse` (..., 3, H, W) linear and `specular` (..., 1, H, W) are what the pixels show: the g-buffer's own
    attributes, or a texture looked up. Other normals than the mesh's: `replace(maps, normals=...)`.
    Arguments and errors otherwise as for :func:`render`.
    """
    height, width = maps.face_index.shape[-2:]
    n, p, a = (part.flatten(-2).mT for part in (maps.normals, maps.positions, diffuse))  # (..., H*W, C)
    f0 = None if specular is None else specular.flatten(-2)[..., 0, :]
    shading = light.shade(n, p, camera.view_directions(p), a, f0)  # zero normals shade to zero

    mask = maps.mask
    linear = torch.where(mask, _to_map(shading.colour, height, width), 0.0)
    if background is not None:
        if background.shape[-3:] != (3, height, width):
            shape = tuple(background.shape)
            raise ParameterError(f"The background must be (..., 3, {height}, {width}), not {shape}.")
        _check_finite(background=background)
        linear = torch.where(mask, linear, srgb_to_linear(background))
    if antialias:
        linear = rasterizer.antialias(linear, maps.depth, maps.face_index, maps.screen, maps.triangles)
    batch = linear.shape[:-3]
    diffuse_shading = torch.where(mask, _to_map(shading.diffuse_shading, height, width), 0.0)
    return Picture(
        image=linear_to_srgb(linear),
        linear=linear,
        mask=mask.expand(*batch, -1, -1, -1),
        depth=maps.depth.expand(*batch, -1, -1, -1),
        normals=maps.normals.expand(*batch, -1, -1, -1),
        albedo=torch.where(mask, diffuse, 0.0).expand(*batch, -1, -1, -1),
        shading=diffuse_shading.expand(*batch, -1, -1, -1),
        specular=_to_map(shading.specular_radiance, height, width).expand(*batch, -1, -1, -1),
        face_index=maps.face_index.expand(*batch, -1, -1),
    )


def render_attributes(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    attributes: Tensor,
    height: int,
    width: int,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Interpolate any vertex attributes `(..., V, C)` to a map `(..., C, H, W)`, with its bool mask.

    Model-space vertices and camera as for :func:`render`, with the same errors. The mask is `(..., 1, H, W)`.
    """
    _check_finite(vertices=vertices, attributes=attributes, **_tensors(camera))
    screen = camera.project(vertices)
    face_index = rasterizer.rasterize(screen, triangles, height, width, backend=backend)
    values, _ = rasterizer.interpolate(screen, triangles, face_index, attributes)
    return values, (face_index >= 0).unsqueeze(-3).expand(*values.shape[:-3], -1, -1, -1)


def normalised_coordinates(mean: Tensor) -> Tensor:
    """The mean face `(V, 3)` scaled to the unit cube, axis by axis: the vertex colours of a PNCC.

    Rendered with :func:`render_attributes` on a posed face they are the Projected Normalised Coordinate Code
    that CoarseNet is fed with (Richardson et al. 2017, Sec. 3.2; Zhu et al. 2016, Eq. 7).
    """
    lowest, highest = mean.amin(-2, keepdim=True), mean.amax(-2, keepdim=True)
    return (mean - lowest) / (highest - lowest)


def shade_vertices(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    light: Light,
    diffuse: Tensor,
    specular: Tensor | None = None,
) -> VertexPicture:
    """Project and shade every vertex, without a rasterizer (MoFA, Eqs. 4 and 5).

    Cheap and smooth; hidden parts are not removed, only what turns its back to the camera is marked.
    Arguments and errors as for :func:`render`.
    """
    _check_surface(vertices, camera, light, diffuse, specular)
    points = camera.to_camera(vertices)
    normals = vertex_normals(vertices, triangles) @ camera.rotation.mT
    to_eye = camera.view_directions(points)
    colour = light.shade(normals, points, to_eye, diffuse, specular).colour
    batch = colour.shape[:-2]
    visible = (dot(normals, to_eye) > 0) & (points[..., 2] < -NEAR_MM)
    return VertexPicture(
        screen=camera.to_screen(points).expand(*batch, -1, -1),
        colour=colour,
        normals=normals.expand(*batch, -1, -1),
        visible=visible.expand(*batch, -1),
    )


def _to_map(pixels: Tensor, height: int, width: int) -> Tensor:
    """A list of pixels `(..., H*W, C)` as a map `(..., C, H, W)`."""
    return pixels.mT.unflatten(-1, (height, width))


def _concatenate(attributes: list[Tensor]) -> Tensor:
    """Concatenate channels of vertex lists `(..., V, C)` whose leading dimensions broadcast."""
    batch = torch.broadcast_shapes(*(attribute.shape[:-2] for attribute in attributes))
    return torch.cat([attribute.expand(*batch, -1, -1) for attribute in attributes], -1)


def _tensors(parameters: object) -> dict[str, Tensor]:
    """The tensors of a camera or a light, by name."""
    return {name: value for name, value in vars(parameters).items() if isinstance(value, Tensor)}


def _check_finite(**tensors: Tensor) -> None:
    bad = [name for name, tensor in tensors.items() if not finite(tensor)]
    if bad:
        raise ParameterError(f"NaN or infinity in {', '.join(bad)}: check the parameters that made them.")


def _check_surface(
    vertices: Tensor, camera: Camera, light: Light, diffuse: Tensor, specular: Tensor | None
) -> None:
    count = vertices.shape[-2:-1]
    if diffuse.shape[-2:] != (*count, 3) or (specular is not None and specular.shape[-1:] != count):
        raise MeshError(
            f"Vertices {tuple(vertices.shape)} need diffuse (..., V, 3) and specular (..., V) or None, "
            f"not {tuple(diffuse.shape)} and {None if specular is None else tuple(specular.shape)}."
        )
    _check_finite(vertices=vertices, diffuse=diffuse, **_tensors(camera), **_tensors(light))
    if specular is not None:
        _check_finite(specular=specular)
