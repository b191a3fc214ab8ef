"""FineNet: detail from a grey picture and a coarse depth map (Richardson et al., CVPR 2017, Section 4).

    view = observe(model, r, images)                      # what the criterion needs to know, at each pixel
    fine = network(images, view.coarse, view.mask, view.camera.scale)      # depth in, depth out, any size
    loss = view.loss(fine)["total"].mean()                # Eqs. 8 to 14: no truth, no labels
    fine = optimise(view)                                 # what the network approximates: one picture at a
    time

Depth maps are (B, 1, H, W) in mm; equation numbers are the paper's. Its weights (1, 5e-3, 1) are for units
that it does not give. Ours: intensities are divided by their mean over the skin, so that a dark skin's folds
weigh as much as a light one's; depth in the criterion is in pixels; terms are means over the skin; and the
weights are `WEIGHTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.methods.coarsenet import GREY, decode, depth_map
from facelab.methods.shading_criterion import (
    SKIN_COMPONENTS,
    Weights,
    criterion,
    estimate_albedo,
    estimate_light,
    shade_first_order,
)
from facelab.model.morphable_model import MorphableModel
from facelab.networks import Hypercolumn
from facelab.rendering.colour import srgb_to_linear
from facelab.rendering.gbuffer import depth_normals, rasterize_surface, region_mask
from facelab.support.errors import ModelFileError, ParameterError
from facelab.support.tensors import finite, one_line
from facelab.training import load_checkpoint

SMALLEST = 64  # px: a face in a smaller picture shows no folds
WEIGHTS = Weights(shading=1.0, fidelity=0.05, smoothness=0.02)
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear RGB (ITU-R BT.709)
REGIONS = ("skin", "lips")  # of the face model: where detail is looked for
DEPTH_UNIT = 32.0  # px of depth that the network sees as 1
STRANGE = 0.5  # a blurred intensity that differs from its explanation by this share is no bare skin


@one_line
@dataclass(frozen=True, eq=False)
class View:
    """B pictures of S×S px and their coarse faces, as the criterion sees them."""

    intensity: Tensor
    """(B, C, S, S) linear, grey or RGB, over the mean of the skin"""
    coarse: Tensor
    """(B, 1, S, S) mm: z₀, 0 where no face is"""
    mask: Tensor
    """(B, 1, S, S) bool: skin"""
    camera: WeakPerspectiveCamera
    albedo: Tensor
    """(B, C, S, S) linear: ρ, by Eq. 12"""
    light: Tensor
    """(B, C, 4): l*, by Eq. 11, over the skin's mean intensity"""

    @property
    def drawn(self) -> Tensor:
        """(B, C, S, S): ρ <l, Y(z₀)>, what the coarse face looks like in the light that was found."""
        return self.draw(self.coarse)

    def draw(self, depth: Tensor) -> Tensor:
        """ρ <l, Y(z)> of another depth map."""
        return self.albedo * shade_first_order(self.light, depth_normals(depth, self.camera))

    def loss(self, fine: Tensor, weights: Weights = WEIGHTS) -> dict[str, Tensor]:
        """Eq. 14 and its terms, each (B,), of depth maps ẑ (B, 1, S, S). Light and albedo are constants: the
        paper solves for them with z₀, and differentiates with respect to ẑ."""
        seen = (self.intensity, self.albedo, self.light)
        return criterion(fine, self.coarse, *seen, self.camera, self.mask, weights)


def observe(
    model: MorphableModel, r: Tensor, images: Tensor, colour: bool = False, robust: bool = False
) -> View:
    """Depth, light and albedo of Sections 4.1 and 4.3 for CoarseNet's vectors (B, P) and pictures
    (B, 3, S, S). The depth has a gradient to r (Eq. 7), the rest has none.

    Args:
        colour: the criterion compares RGB, each channel with a light of its own, and not the intensity alone.
        robust: what light and albedo cannot explain (hair, glasses, highlights, cast shadows) is taken out of
            the mask; and the albedo is corrected where a neighbourhood as a whole is brighter or darker than
            its explanation (stubble, blush, light that four numbers cannot describe), so that only detail is
            left to the depth. The paper has nothing of the kind.

    Raises ParameterError for pictures that are not square, are too small, or have NaN.
    """
    check_pictures(images)
    if images.shape[-1] != images.shape[-2]:
        raise ParameterError(f"Pictures must be square, not {tuple(images.shape)}; crop the face first.")
    coarse, _ = depth_map(model, r, images.shape[-1])
    with torch.no_grad():
        camera, mask, albedos = skin_maps(model, r, images.shape[-1])
        linear = srgb_to_linear(images)
        if not colour:
            share = images.new_tensor(LUMINANCE)[:, None, None]
            albedos, linear = ((part * share).sum(-3, keepdim=True) for part in (albedos, linear))
        intensity = linear / _mean_over(linear, mask).mean(-3, keepdim=True).clamp(min=1e-4)
        normals, mean, basis = depth_normals(coarse, camera), albedos[:, 0], albedos[:, 1:]
        light, albedo = explain(intensity, normals, mean, basis, mask)
        for _ in range(2 if robust else 0):
            plain = mask & ~strange(intensity, albedo * shade_first_order(light, normals), mask)
            light, albedo = explain(intensity, normals, mean, basis, plain)
        if robust:
            mask, radius = plain, max(2, images.shape[-1] // 20)
            drawn = _blurred(albedo * shade_first_order(light, normals), mask, radius)
            albedo = albedo * (_blurred(intensity, mask, radius) / drawn.clamp(min=0.05)).clamp(0.3, 3)
    return View(intensity, coarse, mask, camera, albedo, light)


@torch.no_grad()
def skin_maps(model: MorphableModel, r: Tensor, size: int) -> tuple[WeakPerspectiveCamera, Tensor, Tensor]:
    """What the face model says about each pixel of the faces r (B, P): their camera, where there is skin
    (B, 1, S, S), and the mean albedo with the first 10 components (B, 1 + 10, 3, S, S): mu_T and A_T of Eq.
    10."""
    face = decode(model, r, size)
    assert isinstance(face.camera, WeakPerspectiveCamera)
    surface, count = face.surface(model), min(SKIN_COMPONENTS, len(model.albedo_basis))
    carried = torch.cat([model.albedo_mean[None], model.albedo_basis[:count]])[..., :3]
    seen = (surface.vertices, model.triangles, face.camera, carried.movedim(1, 0).flatten(1))
    maps = rasterize_surface(*seen, size, size)
    regions = [model.regions.index(name) for name in REGIONS]
    mask = region_mask(maps.face_index, model.triangle_region, regions)
    return face.camera, mask, maps.attributes.unflatten(-3, (1 + count, 3))


def explain(
    intensity: Tensor, normals: Tensor, mean: Tensor, basis: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Eqs. 11 and 12: light (B, C, 4) with the mean albedo, albedo (B, C, S, S) with that light."""
    light = estimate_light(intensity, normals, mean, mask)
    albedo, _ = estimate_albedo(intensity, normals, light, mean, basis, mask)
    return light, albedo.clamp(min=1e-3)


def strange(intensity: Tensor, drawn: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, S, S) bool: pixels whose surroundings look unlike their explanation: no bare skin. Folds are too
    small to."""
    radius = max(1, intensity.shape[-1] // 100)
    off = (_blurred(intensity, mask, radius) - _blurred(drawn, mask, radius)).abs().mean(-3, keepdim=True)
    return off > STRANGE * _blurred(drawn, mask, radius).mean(-3, keepdim=True).clamp(min=0.2)


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """(B, C, 1, 1): the mean of (B, C, S, S) over a mask (B, 1, S, S)."""
    return (values * mask).sum((-2, -1), keepdim=True) / mask.sum((-2, -1), keepdim=True).clamp(min=1)


def _blurred(values: Tensor, mask: Tensor, radius: int) -> Tensor:
    """The mean of (B, C, S, S) over the mask in a square of 2 radius + 1 px."""
    size = 2 * radius + 1
    both = (avg_pool2d(part, size, 1, radius) for part in (values * mask, mask.to(values)))
    total, share = both
    return total / share.clamp(min=1e-6)


def feathered(mask: Tensor) -> Tensor:
    """(B, 1, S, S) in [0, 1]: 0 outside of a mask, rising to 1 within 2 % of the picture. Detail fades
    there."""
    radius = max(1, mask.shape[-1] // 50)
    inside = avg_pool2d(mask.float(), 2 * radius + 1, 1, radius)
    return (2 * inside - 1).clamp(min=0) * mask


class FineNet(nn.Module):
    """The network of Section 4.2: a hypercolumn per pixel, a regressor on it, and what it says is added to
    the coarse depth. `width` 64 is the paper's, a column of 450 numbers.

    VGG-Face, which the paper starts from, nobody can hand out: we start from random weights.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.network = Hypercolumn(2, 1, width)

    def forward(self, images: Tensor, coarse: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        """Fine depth (B, 1, H, W) in mm of any size.

        Args:
            images: (B, 3, H, W) sRGB. coarse: (B, 1, H, W) mm. mask: (B, 1, H, W) bool, where detail may be.
            scale: (B,) px per mm, the camera's.

        Not in training it looks at the mirrored picture, too, and answers with the mean of both: mirrored,
        its answer is the same. Raises ParameterError for sizes that do not fit together, and for NaN.
        """
        check_pictures(images)
        wanted = (len(images), 1, *images.shape[-2:])
        if coarse.shape != wanted or mask.shape != wanted or scale.shape != wanted[:1]:
            shapes = ", ".join(str(tuple(part.shape)) for part in (coarse, mask, scale))
            raise ParameterError(f"Depth and mask must be {wanted}, the scale {wanted[:1]}; got {shapes}.")
        if not finite(torch.where(mask, coarse, 0.0)):
            raise ParameterError("The coarse depth has NaN or infinity; check CoarseNet's answer.")
        maps = network_maps(images, coarse, mask, scale)
        offset = self.network(maps)
        if not self.training:
            offset = (offset + self.network(maps.flip(-1)).flip(-1)) / 2
        return coarse + feathered(mask) * offset / scale[:, None, None, None]

    @classmethod
    def load(cls, path: str | Path) -> FineNet:
        """A trained one, ready for use. Raises ModelFileError for a file that is none of FineNet."""
        weights, card = load_checkpoint(path)
        if card.get("method") != "FineNet" or type(card.get("width")) is not int:
            raise ModelFileError(f"'{path}' holds no FineNet; train one with data_scripts/train_finenet.py.")
        network = cls(card["width"])
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelFileError(
                f"The weights in '{path}' are not of a FineNet of width {network.width}."
            ) from error
        return network.eval()


def network_maps(images: Tensor, coarse: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """What FineNet sees (B, 2, H, W): grey over its mean, and depth in pixels from its mean, 0 outside of the
    mask."""
    grey = (images * images.new_tensor(GREY)[:, None, None]).sum(-3, keepdim=True)
    depth = torch.where(mask, coarse, 0.0) * scale[:, None, None, None] / DEPTH_UNIT
    grey_mean, depth_mean = _mean_over(grey, mask), _mean_over(depth, mask)
    return torch.cat([grey / grey_mean.clamp(min=0.02) - 1, depth_mean - depth], -3) * mask


def check_pictures(images: Tensor) -> None:
    """Raise ParameterError unless (B, 3, H, W), finite, and each side at least 64 px."""
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < SMALLEST:
        raise ParameterError(
            f"FineNet takes pictures (B, 3, H, W) of at least {SMALLEST} px, not {tuple(images.shape)}."
        )
    if not finite(images):
        raise ParameterError("A picture has NaN or infinity; check how it was loaded.")


def optimise(view: View, weights: Weights = WEIGHTS, steps: int = 150, rate: float = 0.05) -> Tensor:
    """Shape from shading as it was before: the fine depth (B, 1, S, S) that the criterion likes best, by
    `steps` of Adam on each picture's own pixels. `rate` in px. What FineNet is trained to say at once."""
    inside = feathered(view.mask) / view.camera.scale[:, None, None, None]
    coarse = view.coarse.detach()
    offset = torch.zeros_like(coarse, requires_grad=True)
    adam = torch.optim.Adam([offset], rate)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        loss = view.loss(coarse + inside * offset, weights)["total"].sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (coarse + inside * offset).detach()
