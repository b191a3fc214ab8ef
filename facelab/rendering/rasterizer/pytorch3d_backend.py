"""Visibility by PyTorch3D's rasterizer; worth having on a GPU.

PyTorch3D's normalised device coordinates have +x left and +y up, and [-1, 1] is the image's shorter
side. Its edge rule is strict: a pixel centre exactly on an edge belongs to no triangle.
"""

from __future__ import annotations

import torch
from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
from pytorch3d.structures import Meshes
from torch import Tensor


def rasterize(screen: Tensor, triangles: Tensor, height: int, width: int, cull: bool, near: float) -> Tensor:
    """Face index (B, H, W) of screen (B, V, 3); -1 where there is no triangle. See the rasterizer."""
    batch, n_triangles = screen.shape[0], triangles.shape[0]
    if batch == 0 or n_triangles == 0:
        return triangles.new_full((batch, height, width), -1)
    face_index = _fragments(screen, triangles, height, width, cull, near)[0][..., 0]
    # PyTorch3D numbers the triangles through the batch
    first = torch.arange(batch, device=screen.device).view(-1, 1, 1) * n_triangles
    return torch.where(face_index >= 0, face_index - first, -1)


def _fragments(
    screen: Tensor, triangles: Tensor, height: int, width: int, cull: bool, near: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """PyTorch3D's own answer, one triangle per pixel: face index, depth, barycentrics, distance."""
    size = screen.new_tensor([width, height])
    flipped = (size - 2 * screen[..., :2]) / min(height, width)
    faces = triangles.expand(screen.shape[0], -1, -1)
    reaches_near = (screen[..., 2].index_select(1, triangles.reshape(-1)) <= near).view(faces.shape).any(-1)
    faces = torch.where(reaches_near[..., None], 0, faces)  # a triangle without area is skipped
    meshes = Meshes(torch.cat([flipped, screen[..., 2:]], -1).float(), faces)
    return rasterize_meshes(
        meshes,
        (height, width),
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=True,
        cull_backfaces=cull,
    )
