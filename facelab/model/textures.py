"""UV textures on a face model: four channels, linear diffuse RGB and specular F0, row 0 at v = 1.

uv = unit_uv(model)                                       # (U, 2) in [0, 1]
values = at_vertices(texture, model)                      # (..., V, 4)
"""

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from facelab.geometry.mesh import check_triangles
from facelab.model.morphable_model import MorphableModel
from facelab.rendering import rasterizer
from facelab.rendering.gbuffer import look_up
from facelab.support.errors import MeshError, ParameterError
from facelab.support.tensors import finite

F0_WHITE = 0.08  # the F0 that white means in an 8-bit picture


def unit_uv(model: MorphableModel) -> Tensor:
    """(U, 2) in [0, 1]: beyond, a texture would repeat. Raises MeshError for a model that has none."""
    if model.uv.numel() == 0:
        raise MeshError(f"The model {model.name!r} has no UV map, which a texture needs; use one that has.")
    low, high = model.uv.amin(0).clamp(max=0), model.uv.amax(0).clamp(min=1)
    return (model.uv - low) / (high - low)


def bake_texture(
    attributes: Tensor, triangles: Tensor, uv: Tensor, uv_triangles: Tensor, size: int
) -> Tensor:
    """Paint per-vertex attributes (V, C) into a UV map: (C, size, size), row 0 at v = 1.

    Texels outside the UV map's islands take the value of the nearest texel inside, so that filtering and
    mipmaps bring no background over a seam. uv (U, 2), triangles and uv_triangles (T, 3).
    Raises MeshError if the triangles do not fit, or if nothing of the UV map lies in [0, 1].
    """
    _check_uv(attributes, triangles, uv, uv_triangles)
    screen = torch.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size, torch.ones_like(uv[:, 0])], -1)
    face_index = rasterizer.rasterize(screen, uv_triangles, size, size, cull=False)
    if not bool((face_index >= 0).any()):
        raise MeshError("The UV map covers no texel; check that its coordinates are in [0, 1].")
    # One corner per row: a vertex may have several UV coordinates.
    corners = torch.arange(3 * len(triangles), device=triangles.device).view(-1, 3)
    values, _ = rasterizer.interpolate(
        screen[uv_triangles.flatten()], corners, face_index, attributes[triangles.flatten()]
    )
    outside = (face_index < 0).cpu().numpy()
    row, column = distance_transform_edt(outside, return_distances=False, return_indices=True)
    return values[:, torch.from_numpy(row).to(values.device), torch.from_numpy(column).to(values.device)]


def at_vertices(texture: Tensor, model: MorphableModel) -> Tensor:
    """A texture (..., C, S, S) at the vertices: (..., V, C). A vertex on a seam takes one of its places."""
    uv = unit_uv(model)
    place = uv.new_zeros(len(model.mean), 2)
    place[model.triangles.flatten()] = uv[model.uv_triangles.flatten()]
    return look_up(texture, place.T[:, None])[..., 0, :].mT


def check_texture(texture: Tensor) -> None:
    """Raise MeshError unless it is (..., 4, S, S), ParameterError for NaN or infinity."""
    if texture.ndim < 3 or texture.shape[-3] != 4 or texture.shape[-1] != texture.shape[-2]:
        raise MeshError(f"A texture is (..., 4, S, S), diffuse RGB and specular, not {tuple(texture.shape)}.")
    if not finite(texture):
        raise ParameterError("The texture has NaN or infinity; check what made it.")


def _check_uv(attributes: Tensor, triangles: Tensor, uv: Tensor, uv_triangles: Tensor) -> None:
    check_triangles(triangles, len(attributes))
    check_triangles(uv_triangles, len(uv))
    if len(triangles) != len(uv_triangles):
        raise MeshError(f"There are {len(triangles)} triangles but {len(uv_triangles)} in the UV map.")
