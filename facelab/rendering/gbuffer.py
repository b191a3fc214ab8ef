"""The first half of a picture: what of a surface is seen at each pixel, before any light falls on it.

    maps = rasterize_surface(vertices, triangles, camera, attributes, 240, 240)    # a g-buffer
    albedo = look_up(texture, uv_map(maps, model.uv, model.uv_triangles))          # or maps.attributes
    normals = depth_normals(maps.depth, camera)                                    # of any depth map

`image_formation.shade` is the second half. The split is that of PyTorch3D's fragments and shaders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from facelab.geometry.camera import Camera, PerspectiveCamera
from facelab.geometry.mesh import normalise, vertex_normals
from facelab.rendering import rasterizer
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line


@one_line
@dataclass(frozen=True, eq=False)
class GBuffer:
    """Maps of a rasterized surface, zero where it is not seen."""

    face_index: Tensor
    """`(..., H, W)` int64 triangle seen at each pixel, -1 for none"""
    depth: Tensor
    """`(..., 1, H, W)` mm"""
    normals: Tensor
    """`(..., 3, H, W)` unit, camera space"""
    positions: Tensor
    """`(..., 3, H, W)` mm, camera space"""
    attributes: Tensor
    """`(..., C, H, W)` whatever the vertices carry"""
    screen: Tensor
    """`(..., V, 3)` px, px, mm: the vertices on the screen"""
    triangles: Tensor
    """`(T, 3)`"""

    @property
    def mask(self) -> Tensor:
        """`(..., 1, H, W)` bool, where the surface is seen."""
        return (self.face_index >= 0).unsqueeze(-3)


def rasterize_surface(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    attributes: Tensor,
    height: int,
    width: int,
    *,
    backend: str = "auto",
) -> GBuffer:
    """Rasterize a mesh `(..., V, 3)` mm in model space, with its vertices' attributes `(..., V, C)`.

    Normals, positions and attributes are interpolated to the pixels, perspective-correct and differentiable;
    visibility has no gradient. Raises ImageSizeError and MeshError, see the rasterizer.
    """
    points = camera.to_camera(vertices)
    screen = camera.to_screen(points)
    face_index = rasterizer.rasterize(screen, triangles, height, width, backend=backend)
    # Normals in model space: far from the origin the float32 positions are too coarse for small triangles.
    normals = vertex_normals(vertices, triangles) @ camera.rotation.mT
    carried = [normals, points, attributes]
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in carried))
    together = torch.cat([part.expand(*batch, -1, -1) for part in carried], -1)
    values, depth = rasterizer.interpolate(screen, triangles, face_index, together)
    directions = normalise(values[..., 0:3, :, :].movedim(-3, -1)).movedim(-1, -3)
    return GBuffer(
        face_index, depth, directions, values[..., 3:6, :, :], values[..., 6:, :, :], screen, triangles
    )


def region_mask(face_index: Tensor, triangle_region: Tensor, regions: Sequence[int] = (0,)) -> Tensor:
    """(..., 1, H, W) bool: pixels of a rasterized (..., H, W) `face_index` whose triangle is in `regions`.

    `triangle_region` (T,) and the numbers are the model's (`morphable_model.REGIONS`: 0 is skin); background
    (-1) is False.
    """
    wanted = torch.isin(triangle_region, torch.tensor(regions).to(triangle_region))
    return (wanted[face_index.clamp(min=0)] & (face_index >= 0)).unsqueeze(-3)


def uv_map(maps: GBuffer, uv: Tensor, uv_triangles: Tensor) -> Tensor:
    """`(..., 2, H, W)`: the coordinates seen at each pixel, of a UV map (U, 2) with its triangles (T, 3).

    A vertex on a seam has several; each triangle keeps its own.
    """
    corners = torch.arange(3 * len(maps.triangles), device=maps.screen.device).view(-1, 3)
    screen = maps.screen[..., maps.triangles.flatten(), :]
    return rasterizer.interpolate(screen, corners, maps.face_index, uv[uv_triangles.flatten()])[0]


def look_up(texture: Tensor, uv: Tensor) -> Tensor:
    """A texture `(..., C, S, S)` at the coordinates `(..., 2, H, W)` of a `uv_map`: `(..., C, H, W)`.

    Bilinear; row 0 of the texture is at v = 1, as in OBJ and glTF. Differentiable in both.
    """
    batch = torch.broadcast_shapes(texture.shape[:-3], uv.shape[:-3])
    pixels = texture.expand(*batch, *texture.shape[-3:]).flatten(0, -4) if batch else texture[None]
    where = uv.expand(*batch, *uv.shape[-3:]).flatten(0, -4) if batch else uv[None]
    grid = torch.stack([2 * where[:, 0] - 1, 1 - 2 * where[:, 1]], -1)
    found = grid_sample(pixels, grid.to(pixels), padding_mode="border", align_corners=False)
    return found.view(*batch, *found.shape[1:])


def depth_positions(depth: Tensor, camera: Camera) -> Tensor:
    """Camera-space positions `(..., 3, H, W)` in mm of the pixels of a depth map `(..., 1, H, W)` in mm."""
    height, width = depth.shape[-2:]
    column = torch.arange(width, dtype=depth.dtype, device=depth.device) + 0.5
    row = torch.arange(height, dtype=depth.dtype, device=depth.device)[:, None] + 0.5
    z = depth[..., 0, :, :]
    if isinstance(camera, PerspectiveCamera):
        centre, mm_per_pixel = camera.principal, z / camera.focal[..., None, None]
    else:
        centre, mm_per_pixel = camera.offset, (1 / camera.scale[..., None, None]).expand_as(z)
    x = (column - centre[..., 0, None, None]) * mm_per_pixel
    y = (centre[..., 1, None, None] - row) * mm_per_pixel
    return torch.stack([x, y, -z], -3)


def depth_normals(depth: Tensor, camera: Camera) -> Tensor:
    """Unit normals `(..., 3, H, W)`, camera space, of the surface that a depth map `(..., 1, H, W)` shows.

    The cross product of central differences (one-sided at the border), so a pixel beside the background has
    no meaning. Differentiable. Raises ParameterError for a map of less than 2×2 pixels.
    """
    if min(depth.shape[-2:]) < 2:
        raise ParameterError(f"Normals need a depth map of at least 2×2 px, not {tuple(depth.shape[-2:])}.")
    positions = depth_positions(depth, camera)
    down, right = torch.gradient(positions, dim=(-2, -1))
    return normalise(torch.linalg.cross(down, right, dim=-3).movedim(-3, -1)).movedim(-1, -3)
