"""The pictures that InverseFaceNet is trained with: rendered with their truth (Sec. 5), and bred (Sec. 7).

    theta = DISTRIBUTION.sample(model, 16, generator)
    images, truth = synthesise(model, theta, generator)      # a corpus
    theta = breed(model, estimates_of_photographs, generator)  # parameters of the next one

Sections are those of Kim et al., CVPR 2018; what is not theirs says so.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.nn.functional import interpolate as resize

from facelab.methods.inversefacenet import DISTRIBUTION, SIDE, box_of, clamp_parameters, face_mask
from facelab.model.morphable_model import MorphableModel
from facelab.rendering import rasterizer
from facelab.rendering.colour import linear_to_srgb
from facelab.support.errors import ParameterError
from facelab.support.tensors import send
from facelab.synthetic.augmentation import (
    Degradations,
    degrade,
    occlude,
    procedural_backgrounds,
    to_bytes,
    uniform,
)

# Sec. 7, standard deviations in the paper's units; degrees for the rotation, which is uniform
NOISE = {"rotation": 5.0, "shape": 0.05, "expression": 0.1, "reflectance": 0.2, "light": 0.02}
OCCLUDED = 0.15  # each of three kinds
FLAWS = Degradations(probability=0.3)


# --- a corpus (Sec. 5) --------------------------------------------------------------------------------------


def detector_noise(landmarks: Tensor, generator: torch.Generator) -> Tensor:
    """Landmarks (B, 68, 2) as a detector might have found them.

    Smooth errors of jaw, brows and mouth, the parts that decide on box and mask, as large as dlib's on 68
    rendered pictures (median distance 3 % of the face); waves of zero, one half and one period along a part.
    """
    size = (landmarks.amax(-2) - landmarks.amin(-2)).amax(-1)[:, None, None]
    shift = torch.randn(len(landmarks), 1, 2, generator=generator)
    moved = landmarks + 0.01 * size * send(shift, landmarks)
    for part, strength in ((slice(0, 17), 0.02), (slice(17, 27), 0.014), (slice(48, 68), 0.015)):
        count = part.stop - part.start
        wave = torch.outer(torch.linspace(0, math.pi, count), torch.arange(3.0)).cos()
        heights = torch.randn(len(landmarks), 3, 2, generator=generator)
        moved[:, part] += strength * size * send(wave @ heights, landmarks)
    return moved


@torch.no_grad()
def synthesise(
    model: MorphableModel,
    theta: Tensor,
    generator: torch.Generator,
    side: int = SIDE,
    noise: bool = True,
    flaws: bool = False,
) -> tuple[Tensor, Tensor]:
    """Training pairs from parameters (B, layout.size): (pictures (B, 3, side, side) uint8, truth (B, P + 3)).

    Shaded per vertex (Eqs. 3 and 4) before a random background, in the square around landmarks as a detector
    finds them (`noise`; without it the true ones), as few pixels wide as in a photo with a face of 120 to 240
    pixels, and enlarged from there; then masked like `network_input`. `side` 120 halves the pictures, which
    is what the small networks see. `flaws` (ours): some have hair, glasses or a hand before the face
    (`OCCLUDED`), some the flaws of a camera (`FLAWS`), as the pictures have that a network will meet.
    """
    faces = DISTRIBUTION.decode(model, theta, SIDE)
    surface = faces.surface(model)
    landmarks = faces.camera.project(surface.landmarks)[..., :2]
    found = detector_noise(landmarks, generator) if noise else landmarks
    width = SIDE if not noise else int(uniform(SIDE / 2, SIDE + 1, 1, generator=generator))
    low, high = found.amin(-2), found.amax(-2)
    length = (high - low).amax(-1, keepdim=True)
    zoom, corner = width / length, (low + high - length) / 2
    faces = replace(faces, camera=faces.camera.rescaled(zoom[:, 0], -zoom * corner))
    found, truth = (zoom[:, None] * (points - corner[:, None]) for points in (found, landmarks))

    shaded = faces.shade(surface)
    index = rasterizer.rasterize(shaded.screen, model.triangles, width, width)
    colours = linear_to_srgb(shaded.colour.clamp(0, 1))
    values, _ = rasterizer.interpolate(shaded.screen, model.triangles, index, colours)
    background = procedural_backgrounds(len(theta), width, width, generator, values.device)
    image = torch.where(index[:, None] >= 0, values, background)
    if flaws:
        image, _ = occlude(image, index[:, None] >= 0, truth, OCCLUDED, generator)
        image = degrade(image, FLAWS, generator)
    if width != SIDE:
        image = resize(image, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    masks = [face_mask(points * (SIDE / width)) for points in found.cpu()]  # waits for a GPU
    image = image * send(torch.stack(masks), image)
    image = avg_pool2d(image, SIDE // side) if side < SIDE else image
    return to_bytes(image), torch.cat([theta, box_of(truth, width)], -1)


def mirror_signs(model: MorphableModel) -> Tensor:
    """(layout.size + FRAME,) of -1 and 1: what a mirrored picture does to parameters and frame.

    Exact for a model whose components are symmetric or antisymmetric each, as the shipped one's are.
    Raises ParameterError for another.
    """
    signs = []
    for basis, axes in ((model.identity_basis, 3), (model.expression_basis, 3), (model.albedo_basis, 4)):
        flip = basis.new_tensor([-1.0, 1.0, 1.0] if axes == 3 else [1.0] * 4)
        other = basis[:, model.mirror] * flip if model.mirror.numel() else 0 * basis
        signs.append((other * basis).sum((1, 2)) / basis.square().sum((1, 2)))
        if not bool(((signs[-1].abs() - 1).abs() < 0.01).all()):
            raise ParameterError("The face model's components are not symmetric; train without mirroring.")
    light = model.mean.new_tensor([1.0, 1, 1, -1, -1, 1, 1, -1, 1]).repeat_interleave(3)  # x, xy, xz
    parts = [model.mean.new_tensor([1.0, -1, -1]), *signs, light, model.mean.new_tensor([-1.0, 1, 1])]
    return torch.cat(parts).sign()


# --- breeding (Sec. 7) --------------------------------------------------------------------------------------


def breed(
    model: MorphableModel,
    theta: Tensor,
    generator: torch.Generator,
    copies: int = 2,
    people: bool = False,
    errors: Tensor | None = None,
) -> Tensor:
    """Step 2 of Algorithm 1: `copies` perturbed vectors of each (B, layout.size) -> (copies * B, ...).

    The printed noise: U(-5°, 5°) on the angles, N(0, s) on the rest, s taken as a standard deviation.
    `people` (ours): estimates say little of what a network has not learned to see: of most expressions
    nothing, and their shapes vary far less than people's. So who stands there, with what face, is drawn from
    the model (`MorphableModel.sample`); pose and light come from one target each.
    `errors` (N, 27) (ours): of the light, truth minus estimate on pictures whose truth is known. A random one
    instead of the printed noise makes a corpus cover every light that the network takes for the same.
    """
    parts = DISTRIBUTION.layout(model).split(theta.repeat(copies, 1))
    if people:
        parts = {name: _shuffled(part, generator) for name, part in parts.items()}
    bred = {}
    for name, part in parts.items():
        if name == "rotation":
            drawn = 2 * torch.rand(part.shape, generator=generator) - 1
            bred[name] = part + math.radians(NOISE[name]) * send(drawn, part)
            continue
        if name == "light" and errors is not None:
            drawn = torch.randint(len(errors), (len(part),), generator=generator)
            bred[name] = part + send(errors[drawn], part)
            continue
        bred[name] = part + NOISE[name] * send(torch.randn(part.shape, generator=generator), part)
    if people:
        bred |= population(model, len(bred["light"]), generator)
    return clamp_parameters(model, DISTRIBUTION.layout(model).join(bred))


def population(model: MorphableModel, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Shape, reflectance and expression of `count` people whom the model draws, in the paper's units."""
    layout, drawn = DISTRIBUTION.layout(model), model.sample(count, generator)
    unit = DISTRIBUTION.coefficients(model, layout.zeros(1)[0].to(model.mean) + 1)["expression"]
    return {
        "shape": drawn["identity"],
        "reflectance": drawn["albedo"],
        "expression": drawn["expression"] / unit,
    }


def _shuffled(part: Tensor, generator: torch.Generator) -> Tensor:
    """Rows (N, C) in another order."""
    return part[send(torch.rand(len(part), generator=generator).argsort(), part)]
