"""Faces with folds of known depth: what shape from shading is measured with, and trained on without
photographs.

    faces = wrinkled_faces(model, 8, 200, torch.Generator().manual_seed(0))
    faces.images, faces.r, faces.depth          # pictures, CoarseNet's vectors, the true depth, folds
    included

Forehead, frown, crow's feet, bags and the folds beside the mouth are furrows of random place, length, width
and depth, drawn on the mean face and carried by its points, so that they lie where people have them.
Everything else is the distribution "portrait": people, expressions, poses, skins, lights of nine spherical
harmonics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.methods.coarsenet import decode, vectors_of
from facelab.methods.finenet import feathered
from facelab.methods.shading_criterion import interior
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.gbuffer import GBuffer, depth_normals, rasterize_surface, region_mask
from facelab.rendering.illumination import Light
from facelab.support.tensors import one_line
from facelab.synthetic.augmentation import procedural_backgrounds
from facelab.synthetic.distributions import DISTRIBUTIONS

# place from the mean face's landmarks (index, mm to its outside, mm up), direction in degrees from the
# horizontal on the image's right side, half length and curvature (mm, 1/mm), whether the other side has it,
# too
FAMILIES = (
    (27, 0.0, 45.0, 0.0, 26.0, -0.002, False),  # forehead
    (27, 0.0, 36.0, 0.0, 24.0, -0.003, False),
    (27, 0.0, 54.0, 0.0, 22.0, -0.002, False),
    (27, 5.0, 16.0, 80.0, 8.0, 0.0, True),  # frown
    (45, 10.0, 3.0, 25.0, 8.0, 0.0, True),  # crow's feet
    (45, 10.0, -3.0, -20.0, 8.0, 0.0, True),
    (46, -2.0, -9.0, -5.0, 13.0, 0.012, True),  # below the eye
    (54, 5.0, 12.0, -58.0, 17.0, -0.008, True),  # from the nose to the mouth
    (8, 0.0, 14.0, 0.0, 12.0, 0.02, False),  # chin
)


FOLD_MM = 0.1  # deeper than this is a fold


@one_line
@dataclass(frozen=True, eq=False)
class WrinkledFaces:
    """B pictures of S×S px and their truth."""

    images: Tensor
    """(B, 3, S, S) sRGB"""
    r: Tensor
    """(B, P): CoarseNet's vectors, exact but for the folds"""
    depth: Tensor
    """(B, 1, S, S) mm, folds included; 0 where no face is"""
    relief: Tensor
    """(B, 1, S, S) mm: how deep the folds are"""
    skin: Tensor
    """(B, 1, S, S) bool"""
    camera: WeakPerspectiveCamera


def furrows(model: MorphableModel, points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """How deep (B, 1, S, S) mm random furrows are at the points of the mean face (B, 3, S, S) mm that B
    pictures show. Each family is there in two of three faces; 1.2 to 2.6 mm wide (standard deviation), .25 to
    1 mm deep."""
    landmarks, total = model.landmarks(model.mean).to(points), torch.zeros_like(points[:, :1])
    for index, aside, up, degrees, half, bend, both in FAMILIES:
        there, length, width, deep, turn, *shift = torch.rand(7, count, generator=generator).to(points)
        strength = (there < 2 / 3) * (0.25 + 0.75 * deep.square())
        width, half_length = 1.2 + 1.4 * width, half * (0.6 + 0.6 * length)
        angle = math.radians(degrees) + 0.3 * (turn - 0.5)
        for side in (1.0, -1.0) if both else (1.0,):
            x = side * (points[:, 0] - side * landmarks[index, 0].abs() * both) - aside
            y = points[:, 1] - landmarks[index, 1] - up
            x, y = (part - 5 * (s - 0.5)[:, None, None] for part, s in ((x, shift[0]), (y, shift[1])))
            cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
            along, across = cosine * x + sine * y, cosine * y - sine * x
            across = across - bend * along.square()
            end = (along.abs() - half_length[:, None, None]).clamp(min=0) / 3
            shape = (-0.5 * ((across / width[:, None, None]).square() + end.square())).exp()
            total = total + (strength[:, None, None] * shape)[:, None]
    return total * (points[:, 2:] > 0)  # not on the back of the head


@torch.no_grad()
def wrinkled_faces(
    model: MorphableModel, count: int, size: int, generator: torch.Generator, relief: float = 1.0
) -> WrinkledFaces:
    """Draw `count` faces in pictures of size×size; their folds are `relief` times as deep as people's."""
    portrait = DISTRIBUTIONS["portrait"]
    theta = portrait.sample(model, count, generator)
    drawn = portrait.decode(model, theta, size)
    r = vectors_of(model, drawn, size)
    face = decode(model, r, size)
    surface = face.surface(model)
    assert isinstance(face.camera, WeakPerspectiveCamera) and drawn.light is not None
    carried = torch.cat([drawn.surface(model).diffuse, model.mean.expand_as(surface.vertices)], -1)
    maps = rasterize_surface(surface.vertices, model.triangles, face.camera, carried, size, size)
    skin = region_mask(maps.face_index, model.triangle_region)
    deep = relief * furrows(model, maps.attributes[:, 3:], count, generator) * feathered(skin)
    background = procedural_backgrounds(count, size, size, generator).to(deep)
    images = shaded(maps, maps.depth + deep, face.camera, drawn.light, background)
    return WrinkledFaces(images, r, (maps.depth + deep) * maps.mask, deep, skin, face.camera)


def shaded(
    maps: GBuffer, depth: Tensor, camera: WeakPerspectiveCamera, light: Light, background: Tensor
) -> Tensor:
    """Pictures (B, 3, S, S) sRGB of a g-buffer whose first three attributes are the albedo, with the normals
    of a finer depth map (B, 1, S, S) where that differs."""
    finer = depth_normals(depth, camera) - depth_normals(maps.depth, camera)
    normals = torch.nn.functional.normalize(maps.normals + finer, dim=-3)
    n, p, a = (part.flatten(-2).mT for part in (normals, maps.positions, maps.attributes[:, :3]))
    colour = light.shade(n, p, camera.view_directions(p), a, None).colour.mT.unflatten(-1, depth.shape[-2:])
    linear = torch.where(maps.mask, colour, srgb_to_linear(background))
    return linear_to_srgb(linear).clamp(0, 1)


def relief_errors(depth: Tensor, faces: WrinkledFaces) -> dict[str, float]:
    """How far depth maps (B, 1, S, S) mm are from the truth: mean angle between the normals in degrees on the
    whole skin ("skin_degrees") and where there are folds ("folds_degrees"), and "depth_mm", distance
    forgiven. Grazing skin, where normals from a depth map mean little, is left out, and so are pixels that
    the estimate does not cover (depth 0)."""
    truth, said = (depth_normals(part, faces.camera) for part in (faces.depth, depth))
    skin = interior(faces.skin & (depth > 0)) & (truth[:, 2:] > 0.3)
    angle = (truth * said).sum(-3, keepdim=True).clamp(-1, 1).acos().rad2deg()
    off = depth - faces.depth
    level = (off * skin).sum((-2, -1), keepdim=True) / skin.sum((-2, -1), keepdim=True).clamp(min=1)
    folds = skin & (faces.relief > FOLD_MM)
    values = {
        "skin_degrees": angle[skin],
        "folds_degrees": angle[folds],
        "depth_mm": (off - level)[skin].abs(),
    }
    return {name: float(value.mean()) for name, value in values.items()}
