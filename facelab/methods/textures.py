"""A complete UV texture from one photograph and the face that was fitted to it.

    said = reconstruct(photo)[0].reconstruction(photo)
    texture = unwrap(said.face, photo, model)                # (4, 512, 512)
    face = replace(said.face, texture=texture)               # draws, and exports, the person's own skin

What the camera sees of the skin, with the light divided out, is kept as it is; what is hidden on one side
comes from the other side of the face, and what is hidden on both (by hair, by the head itself) from the
model's own albedo in the tone that the visible skin has. All three are blended as ratios to the model's
albedo, over several scales, so that no seam is left (Burt and Adelson 1983; Gortler et al. 1996: pull-push).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor
from torch.nn import functional as F

from facelab.geometry.camera import Camera
from facelab.geometry.mesh import dot
from facelab.methods.segmentation import visible_part
from facelab.model.face import Face, Surface, draw
from facelab.model.morphable_model import MIN_DIFFUSE, MorphableModel
from facelab.model.textures import bake_texture, unit_uv
from facelab.photos.crop import crop_face, polygon
from facelab.photos.skin import SkinModel
from facelab.rendering.colour import srgb_to_linear
from facelab.rendering.illumination import Light, SphericalHarmonicsLight
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line

LARGEST_CROP = 1024  # px a side: what more a photograph has, no texture shows
EDGE_MM = 8.0  # a texel this much behind what is seen around it is hidden, or in doubt
FLOOR = 0.01  # added to albedos before their ratio is taken: black hair is no infinite change
RATIO = 3.5  # largest logarithm of such a ratio
FACING = (0.15, 0.55)  # cosine to the viewer from which, and from which fully, a texel is believed
SKIN = (0.1, 0.5)  # the same of the probability of skin, where there may be hair
UNLIKE = (2.5, 4.0)  # standard deviations from the person's skin, from which on it is hair
LEAST_SPREAD = 0.1
BRIGHTER = (0.35, 0.55)  # than the person's skin, as a logarithm: no skin
FAR_MM = 1e5
FADE = 0.4  # what a texel's weight keeps from one scale to the next, twice as coarse
ABOVE_BROWS = 0.25  # of their distance to the bridge of the nose
TRUSTED = [*range(5, 12), *range(17, 68)]  # landmarks around what is a face's even if it is no skin
PARTS = (("skin", "lips", "lids"), ("eyes",), ("interior", "teeth"))  # they do not colour each other


@one_line
@dataclass(frozen=True, eq=False)
class Texels:
    """What every texel is on the face: maps (C, S, S)."""

    albedo: Tensor
    """(4, S, S) the model's own"""
    position: Tensor
    """(3, S, S) mm, model space"""
    normal: Tensor
    """(3, S, S)"""
    opposite: tuple[Tensor, Tensor]
    """position and normal of the same place on the other side of the face"""
    part: Tensor
    """(S, S) int64: which of `PARTS`"""
    trusted: Tensor
    """(1, S, S) in [0, 1]: where what is no skin is the face's all the same, brows, eyes, lips, beard"""


@one_line
@dataclass(frozen=True, eq=False)
class Observation:
    """A photograph around the face, and what is known of its pixels; all of them maps (C, R, R)."""

    linear: Tensor
    depth: Tensor
    """(1, R, R) mm of the face; far beyond it"""
    around: Tensor
    """the same of what is nearest around each pixel"""
    skin: Tensor
    """(1, R, R) in [0, 1]"""
    inside: Tensor
    """(1, R, R) 1 where there is a photograph"""
    camera: Camera
    light: Light


@torch.no_grad()
def unwrap(
    face: Face,
    image: Tensor,
    model: MorphableModel | None = None,
    size: int = 512,
    visible: Tensor | None = None,
) -> Tensor:
    """The texture (4, size, size) of the face that is seen in a photograph.

    Args:
        face: one face, with a light, whose camera takes it to the photograph; a texture that it has is not
            looked at.
        image: (3, H, W) sRGB in [0, 1].
        model: of the face, the finer the better; by default the shipped one, subdivided twice.
        size: texels a side.
        visible: (1, H, W) bool, where the photograph shows the face and nothing before it; by default what
            the segmentation network says (`segmentation.visible_part`).

    Raises:
        ParameterError: a mask of another size; a face without a light, a batch of faces, or one that is not
            in the picture.
        MeshError: a model without a UV map.
        NotAnImageError: see `photos.check_image`.
    """
    if face.light is None or face.identity.ndim != 1:
        raise ParameterError("A texture is taken from one face with a light; fit the photograph first.")
    model = model or MorphableModel.load(subdivisions=2, device=image.device)
    surface = replace(face, texture=None).surface(model)
    texels = lay_out(surface, model, size)
    if visible is not None and visible.shape != (1, *image.shape[-2:]):
        raise ParameterError(f"`visible` must be (1, H, W) as the picture, not {tuple(visible.shape)}.")
    seen = observe(face, surface, image, visible)
    views = [_observed(*place, texels, seen) for place in ((texels.position, texels.normal), texels.opposite)]
    tone = _skin_tone(views[0], texels)
    (own, weight), (other, other_weight) = ((v.ratio, v.weight * _of_face(v, texels, tone)) for v in views)
    ratio = torch.zeros_like(own)
    for k in range(len(PARTS)):
        inside = (texels.part == k).to(own)[None]
        usual = tone[0] if k == 0 else torch.zeros_like(tone[0])
        maps = (part - usual for part in (own, other))
        own_part, other_part = (part * inside for part in maps)
        ratio += inside * (usual + _complete(own_part, weight * inside, other_part, other_weight * inside))
    diffuse = (texels.albedo[:3] + FLOOR) * ratio.exp() - FLOOR
    return torch.cat([diffuse.clamp(MIN_DIFFUSE, 1), texels.albedo[3:]])


def lay_out(surface: Surface, model: MorphableModel, size: int) -> Texels:
    """What a face's surface is at every texel of a map. Raises MeshError for a model without a UV map."""
    normals, uv = surface.normals, unit_uv(model)
    mirror = model.mirror if model.mirror.numel() else torch.arange(len(model.mean)).to(model.triangles)
    columns = [surface.diffuse, surface.specular[:, None], surface.vertices, normals]
    columns += [surface.vertices[mirror], normals[mirror]]
    drawn = bake_texture(torch.cat(columns, -1), model.triangles, uv, model.uv_triangles, size)
    albedo, position, normal, *opposite = drawn.split([4, 3, 3, 3, 3])
    part = torch.zeros(len(model.triangles), 1).to(normals)
    for k, names in enumerate(PARTS):
        known = [model.regions.index(name) for name in names if name in model.regions]
        part[torch.isin(model.triangle_region.long(), torch.tensor(known).to(model.triangles))] = k
    corners = torch.arange(3 * len(part), device=part.device).view(-1, 3)
    parts = bake_texture(part.repeat_interleave(3, 0), corners, uv, model.uv_triangles, size)[0]
    trusted = torch.ones_like(albedo[:1])
    if model.landmark_triangles.numel():
        at = (uv[model.uv_triangles[model.landmark_triangles]] * model.landmark_weights[..., None]).sum(1)
        points = torch.stack([at[:, 0], 1 - at[:, 1]], -1) * size
        brows, bridge = points[17:27], points[27]
        above = brows + ABOVE_BROWS * (brows.mean(0) - bridge)  # or a rest of the model's brows is left there
        hull = polygon(torch.cat([points[TRUSTED], above]), size, size).to(albedo)
        trusted = _blur(hull, size // 128) * (parts == 0) + (parts != 0)
    return Texels(albedo, position, normal, (opposite[0], opposite[1]), parts.round().long(), trusted)


def observe(face: Face, surface: Surface, image: Tensor, visible: Tensor | None = None) -> Observation:
    """The photograph (3, H, W) around a face, large enough for its details, with depth and skin."""
    points = face.camera.project(surface.landmarks)[..., :2]
    side = float((points.amax(0) - points.amin(0)).max())
    pixels = round(min(LARGEST_CROP, max(96.0, 1.7 * side)))
    crop = crop_face(image, points, size=pixels, scale=1.7)
    if visible is None:
        shown = visible_part(crop)
    else:
        layer = visible.to(image).expand(3, -1, -1)
        shown = (crop_face(layer, points, size=pixels, scale=1.7).image[:1] > 0.5) & crop.inside
    scale = crop.matrix[0, 0]
    camera, resolution = face.camera.rescaled(scale, crop.matrix[:2, 2]), crop.image.shape[-1]
    dark = SphericalHarmonicsLight(surface.diffuse.new_zeros(9, 3))
    picture = draw(surface, camera, dark, resolution, resolution)
    if not bool((picture.mask & crop.inside).any()):
        raise ParameterError("Nothing of the face is seen in the photograph; check the fit's camera.")
    depth = torch.where(picture.mask, picture.depth, FAR_MM)
    reach = max(1, resolution // 120)
    around = -_widest(-depth, reach)
    # what is near the outline of the face is mixed with hair and background, and seldom well aligned
    solid = -_widest(-picture.mask.to(depth), reach)
    skin = SkinModel.load().probability(crop.image, picture.mask & crop.inside)
    skin = _blur(skin, reach)
    linear = srgb_to_linear(crop.image.to(depth))
    assert face.light is not None
    inside = -_widest(-shown.to(depth), reach) * solid
    return Observation(linear, depth, around, skin, inside, camera, face.light)


@one_line
@dataclass(frozen=True, eq=False)
class Sample:
    """What the photograph says of places on the face: maps (C, S, S)."""

    ratio: Tensor
    """(3, S, S) logarithm of the ratio of the albedo that is seen to the model's"""
    weight: Tensor
    """(1, S, S) in [0, 1]: how well it is seen"""
    skin: Tensor
    """(1, S, S) in [0, 1]: whether it looks like skin"""


def _observed(position: Tensor, normal: Tensor, texels: Texels, seen: Observation) -> Sample:
    size = position.shape[-1]
    points = seen.camera.to_camera(position.flatten(1).T)
    normals = F.normalize(normal.flatten(1).T @ seen.camera.rotation.mT, dim=-1)
    screen, to_eye = seen.camera.to_screen(points), seen.camera.view_directions(points)
    albedo = texels.albedo.flatten(1).T
    light = seen.light.shade(normals, points, to_eye, albedo[:, :3], albedo[:, 3])
    known = torch.cat([seen.linear, seen.skin, seen.inside, seen.around, seen.depth])
    grid = 2 * screen[:, :2] / seen.linear.shape[-1] - 1
    found = F.grid_sample(known[None], grid[None, None], align_corners=False)[0, :, 0].T
    shade = light.diffuse_shading
    albedo_seen = (found[:, :3] - light.specular_radiance).clamp(min=0) / shade.clamp(min=1e-3)
    ratio = ((albedo_seen + FLOOR) / (albedo[:, :3] + FLOOR)).log().clamp(-RATIO, RATIO)
    hole = texels.part.flatten() > 0  # eyes lie behind their lids; a mouth is seen through its opening only
    nearest = torch.where(hole, found[:, 6], found[:, 5])
    behind = torch.where(texels.part.flatten() == 2, 0.0, (screen[:, 2] - nearest) / EDGE_MM)
    usual = shade.median(0).values.clamp(min=1e-6)
    lit = (shade / usual).amin(-1)  # no channel is divided by next to nothing
    facing = torch.where(hole, 1.0, _ramp(dot(normals, to_eye), *FACING))
    weight = facing * (1 - _ramp(behind, 0.5, 1.0))
    weight = weight * _ramp(lit, 0.25, 0.5) * _ramp(found[:, 4], 0.5, 0.95)
    return Sample(
        ratio.T.unflatten(1, (size, size)), weight.view(1, size, size), found[:, 3].view(1, size, size)
    )


def _skin_tone(view: Sample, texels: Texels) -> tuple[Tensor, Tensor]:
    """Median and spread (3, 1, 1) of the skin's ratio, over what is certainly skin."""
    sure = (view.weight > 0.7) & (view.skin > 0.7) & (texels.trusted > 0.9) & (texels.part == 0)
    if not bool(sure.any()):
        sure = view.weight >= view.weight.max()
    values = view.ratio[:, sure[0]]
    tone = values.median(1, keepdim=True).values
    spread = 1.5 * (values - tone).abs().median(1, keepdim=True).values
    return tone[..., None], spread.clamp(min=LEAST_SPREAD)[..., None]


def _of_face(view: Sample, texels: Texels, tone: tuple[Tensor, Tensor]) -> Tensor:
    """(1, S, S) in [0, 1]: what is seen is the face's. Where hair may be, it has to look like this person's
    skin, and no strand may lie between it and the middle of the face; there, it must not be much brighter
    (teeth on a lip, highlights)."""
    away = view.ratio - tone[0]
    unlike = (away / tone[1]).square().mean(0, keepdim=True).sqrt()
    skin = _ramp(view.skin, *SKIN) * (1 - _ramp(unlike, *UNLIKE))
    size = skin.shape[-1]
    middle = (texels.trusted > 0.9) & (texels.part == 0)[None]
    wide, narrow = size // 20, size // 40
    broad = ((-_widest(-skin, wide) > 0.5) | middle)[0].cpu().numpy()  # no bridge of a few millimetres
    pieces = label(broad)[0]
    reached = np.isin(pieces, np.unique(pieces[middle[0].cpu().numpy()])) & broad
    reached = _widest(torch.from_numpy(reached).to(skin)[None], wide - narrow)
    skin = _blur(torch.minimum(-_widest(-skin, narrow), reached), size // 128)
    colour = view.ratio + (texels.albedo[:3] + FLOOR).log()
    sure = (unlike < 1) & (texels.trusted > 0.9) & (view.weight > 0.7)
    usual = colour[:, sure[0]].mean() if bool(sure.any()) else colour.mean()
    inner = 1 - _ramp(colour.mean(0, keepdim=True) - usual, *BRIGHTER) * (texels.part == 0)
    return texels.trusted * inner + (1 - texels.trusted) * skin


def _complete(own: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
    """Two incomplete maps (3, S, S) with their weights (1, S, S) as one without holes: the first where it is
    seen; else the other, in the first's tone; else what both fade into."""
    shift = pull_push(own - other, weight * other_weight)
    rest = (1 - weight) * other_weight
    mixed = (weight * own + rest * (other + shift)) / (weight + rest).clamp(min=1e-6)
    return pull_push(mixed, torch.maximum(weight, other_weight))


def pull_push(values: Tensor, weight: Tensor) -> Tensor:
    """Values (C, S, S) where their weight (1, S, S) in [0, 1] is 1, elsewhere smoothly continued from there,
    and fading to 0 far away."""
    if values.shape[-1] < 2:
        return values * weight
    rows = F.pad(torch.cat([values * weight, weight])[None], [0, values.shape[-1] % 2] * 2)
    half = 4 * F.avg_pool2d(rows, 2)[0]
    known = half[-1:]
    coarse = pull_push(half[:-1] / known.clamp(min=1e-6), (FADE * known).clamp(max=1))
    up = F.interpolate(coarse[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return weight * values + (1 - weight) * up[:, : values.shape[-1], : values.shape[-1]]


def _ramp(values: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between."""
    t = ((values - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _widest(values: Tensor, reach: int) -> Tensor:
    """The largest value of a map (1, H, W) within so many pixels."""
    return F.max_pool2d(values[None], 2 * reach + 1, 1, reach)[0]


def _blur(values: Tensor, reach: int) -> Tensor:
    """The mean of a map (1, H, W) over so many pixels around, twice."""
    for _ in range(2):
        values = F.avg_pool2d(values[None], 2 * reach + 1, 1, reach, count_include_pad=False)[0]
    return values
