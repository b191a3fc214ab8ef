"""What makes a rendered face look like a photograph: things behind it and before it, and a camera's flaws.

Pictures are (..., 3, H, W) sRGB in [0, 1]. Random numbers are drawn on the generator's device (the CPU), so
that a seed means the same everywhere, and moved to that of the pictures.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from facelab.support.errors import ParameterError
from facelab.support.tensors import send


def uniform(low: float, high: float, *shape: int, generator: torch.Generator) -> Tensor:
    """Numbers of the given shape in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def procedural_backgrounds(
    count: int, height: int, width: int, generator: torch.Generator, device: str | torch.device = "cpu"
) -> Tensor:
    """(count, 3, H, W) backdrops: a plain colour plus a gradient, smooth noise and blocks, each or none."""
    half = (max(height // 2, 1), max(width // 2, 1))  # soft enough, and a quarter of the work
    sides = (torch.linspace(-1, 1, side, device=device) for side in half)
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    angle = send(uniform(0, 2 * math.pi, count, 1, 1, 1, generator=generator), device)
    slope = send(uniform(-0.5, 0.5, count, 3, 1, 1, generator=generator), device)
    gradient = (angle.cos() * columns + angle.sin() * rows) * slope

    def field(cells: int, mode: str) -> Tensor:
        grid = torch.randn(count, 3, cells, cells, generator=generator)
        grid = grid + 2 * torch.randn(
            count, 1, cells, cells, generator=generator
        )  # greyish rather than gaudy
        smooth = {"align_corners": False} if mode != "nearest" else {}
        return interpolate(send(grid, device), half, mode=mode, **smooth)

    layers = [(gradient, 0.6), (field(4, "bicubic"), 0.06), (field(24, "bilinear"), 0.03)]
    layers.append((field(7, "nearest"), 0.06))
    base = uniform(0.05, 0.9, count, 1, 1, 1, generator=generator)
    picture = send(base + uniform(-0.08, 0.08, count, 3, 1, 1, generator=generator), device)
    for layer, strength in layers:
        share = uniform(-0.5, 1, count, 1, 1, 1, generator=generator).clamp(min=0)  # a third does without
        picture = picture + send(strength * share, device) * layer
    return interpolate(picture.clamp(0, 1), (height, width), mode="bilinear")


@dataclass(frozen=True)
class Degradations:
    """How bad photographs get. Each flaw befalls a picture with `probability`, up to the given strength."""

    exposure: float = 0.7
    """stops, both ways; and a third of it per colour channel (white balance)"""
    blur: float = 1.5
    """standard deviation, pixels"""
    noise: float = 0.03
    """standard deviation, of sRGB values"""
    jpeg: int = 30
    """lowest JPEG quality; the highest is 95"""
    probability: float = 0.5

    def __post_init__(self) -> None:
        if min(self.exposure, self.blur, self.noise) < 0 or not 1 <= self.jpeg <= 95:
            raise ParameterError(f"Strengths must not be negative and JPEG quality be 1 to 95: {self}.")
        if not 0 <= self.probability <= 1:
            raise ParameterError(f"A probability must be between 0 and 1: {self}.")


def degrade(images: Tensor, how: Degradations, generator: torch.Generator) -> Tensor:
    """Exposure and white balance, blur, noise and JPEG, in this order: (B, 3, H, W) -> (B, 3, H, W)."""
    count, device = len(images), images.device
    hit = torch.rand(count, 4, generator=generator) < how.probability
    stops = uniform(-1, 1, count, 1, generator=generator) + uniform(-1, 1, count, 3, generator=generator) / 3
    # sRGB is close to a power of 1/2.2, so a gain of linear light is a gain of the values, too.
    gain = 2 ** (how.exposure * stops * hit[:, :1] / 2.2)
    result = (images * send(gain[..., None, None], device)).clamp(0, 1)

    sigma = uniform(0.2, 1, count, generator=generator) * how.blur
    if how.blur > 0 and (chosen := hit[:, 1].nonzero()[:, 0]).numel():
        radius = math.ceil(3 * how.blur)
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1.0) / sigma[chosen, None]) ** 2)
        taps = send((taps / taps.sum(1, keepdim=True)).repeat_interleave(3, 0), device)
        chosen = send(chosen, device)
        stack = pad(result[chosen], (radius,) * 4, mode="replicate").flatten(0, 1)[None]
        stack = conv2d(stack, taps[:, None, None, :], groups=len(taps))
        stack = conv2d(stack, taps[:, None, :, None], groups=len(taps))
        result[chosen] = stack[0].unflatten(0, (-1, 3))

    level = uniform(0, how.noise, count, generator=generator)
    for i in hit[:, 2].nonzero()[:, 0].tolist():
        grain = torch.randn(images.shape[1:], generator=generator)
        result[i] = (result[i] + send(level[i] * grain, device)).clamp(0, 1)

    quality = torch.randint(how.jpeg, 96, (count,), generator=generator)
    if (chosen := hit[:, 3].nonzero()[:, 0]).numel():
        there = send(chosen, device)
        pictures = to_bytes(result[there]).permute(0, 2, 3, 1).cpu()  # waits for a GPU
        coded = [_through_jpeg(picture, int(quality[i])) for i, picture in zip(chosen.tolist(), pictures)]
        result[there] = send(torch.stack(coded), device).permute(0, 3, 1, 2).to(result.dtype) / 255
    return result


def _through_jpeg(picture: Tensor, quality: int) -> Tensor:
    """(H, W, 3) bytes, encoded and decoded."""
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file)))


def to_bytes(images: Tensor) -> Tensor:
    """Values in [0, 1] (others are clipped) as uint8, rounded."""
    return (images.clamp(0, 1) * 255).round().byte()


# --- things in front of the face ----------------------------------------------------------------------------


def _capsule(pixels: Tensor, start: Tensor, end: Tensor, radius: float | Tensor) -> Tensor:
    """Signed distance (H, W) to a thick line with round ends; negative inside."""
    along = end - start
    share = ((pixels - start) @ along / along.square().sum().clamp(min=1e-6)).clamp(0, 1)
    return (pixels - start - share[..., None] * along).norm(dim=-1) - radius


@dataclass(frozen=True)
class _Face:
    """Where a face is: middle of the eyes, unit vectors to the image's right and down, sizes in pixels."""

    eyes: Tensor
    right: Tensor
    down: Tensor
    eye_distance: Tensor
    height: Tensor

    @classmethod
    def of(cls, landmarks: Tensor) -> "_Face":
        left, right = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
        down = landmarks[8] - (left + right) / 2
        height, axis = down.norm(), right - left
        return cls((left + right) / 2, axis / axis.norm(), down / height, axis.norm(), height)


def glasses(landmarks: Tensor, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spectacles on 68 landmarks: colour (3, H, W) and opacity (H, W). Every fourth pair is sunglasses."""
    face = _Face.of(landmarks)
    width, tall, power, rim = (
        float(uniform(*limits, 1, generator=generator))
        for limits in ((0.36, 0.44), (0.17, 0.26), (2, 4), (0.8, 3))
    )
    lens_a, lens_b = width * face.eye_distance, tall * face.height
    thickness = rim / 100 * face.height
    frame, lens = pixels.new_full(pixels.shape[:2], torch.inf), pixels.new_full(pixels.shape[:2], torch.inf)
    hinges = []
    for side, ear in ((-1, 0), (1, 16)):
        centre = face.eyes + side * face.eye_distance / 2 * face.right + 0.03 * face.height * face.down
        x, y = (pixels - centre) @ face.right, (pixels - centre) @ face.down
        size = ((x / lens_a).abs() ** power + (y / lens_b).abs() ** power) ** (1 / power)
        outline = (size - 1) * torch.minimum(lens_a, lens_b)
        hinge = centre + side * lens_a * face.right - 0.3 * lens_b * face.down
        temple = _capsule(pixels, hinge, landmarks[ear], thickness)
        frame = torch.minimum(frame, torch.minimum(outline.abs() - thickness, temple))
        lens = torch.minimum(lens, outline)
        hinges.append(centre - side * lens_a * face.right - 0.2 * lens_b * face.down)
    frame = torch.minimum(frame, _capsule(pixels, hinges[0], hinges[1], thickness))
    dark = bool(torch.rand(1, generator=generator) < 0.25)
    tint = float(
        uniform(0.8, 0.97, 1, generator=generator) if dark else uniform(0, 0.15, 1, generator=generator)
    )
    opacity = torch.maximum((0.5 - frame).clamp(0, 1), tint * (0.5 - lens).clamp(0, 1))
    colour = uniform(0.02, 0.35, 3, generator=generator) * uniform(0.3, 1, 1, generator=generator)
    return send(colour, pixels)[:, None, None].expand(3, *pixels.shape[:2]), opacity


def hand(
    landmarks: Tensor, pixels: Tensor, skin: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A hand of `skin` colour (3,) that comes from below or the side: colour (3, H, W) and opacity (H, W)."""
    face = _Face.of(landmarks)
    angle, turn, reach = (
        float(uniform(*limits, 1, generator=generator)) for limits in ((-0.3, 3.4), (-0.5, 0.5), (0.55, 0.9))
    )
    centre = face.eyes + 0.4 * face.height * face.down  # of the face, about the tip of the nose
    towards = send(torch.tensor([-math.cos(angle), -math.sin(angle)]), pixels)
    palm = centre - reach * face.height * towards
    c, s = math.cos(turn), math.sin(turn)
    ahead = send(torch.tensor([[c, -s], [s, c]]), pixels) @ towards
    across = torch.stack([-ahead[1], ahead[0]])
    unit = 0.5 * face.height  # half a face: the palm is about as wide
    parts = [
        _capsule(pixels, palm - 0.2 * unit * ahead, palm + 0.15 * unit * ahead, 0.38 * unit),
        _capsule(pixels, palm - 0.5 * unit * ahead, palm - 6 * unit * ahead, 0.3 * unit),
    ]
    spread = float(uniform(0.0, 0.25, 1, generator=generator))
    curl = uniform(0.6, 1.0, 5, generator=generator)
    for k in range(5):
        side = (k - 1.5) if k < 4 else -1.6  # the fifth is the thumb
        knuckle = palm + unit * ((0.35 if k < 4 else -0.1) * ahead + 0.2 * side * across)
        bend = spread * side if k < 4 else -0.7
        length = (0.85 - 0.1 * abs(side - 0.3) if k < 4 else 0.5) * float(curl[k])
        tip = knuckle + length * unit * (math.cos(bend) * ahead + math.sin(bend) * across)
        parts.append(_capsule(pixels, knuckle, tip, 0.105 * unit))
    distance = torch.stack(parts).amin(0)
    depth = (1 + distance / (0.12 * unit)).clamp(0, 1)  # 0 well inside, 1 at the outline: round fingers
    shade = (1 - 0.55 * depth**2) * float(uniform(0.75, 1.1, 1, generator=generator))
    return (skin[:, None, None] * shade).clamp(0, 1), (0.5 - distance).clamp(0, 1)


def hair(landmarks: Tensor, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hair around the face, short or long: colour (3, H, W) and opacity (H, W).

    An ellipse about the skull, open below, without an oval for the face. Its edges and the strands' shades
    are noise as a function of the angle about the crown, from which strands fan out.
    """
    face = _Face.of(landmarks)
    offset = (pixels - face.eyes) / face.height
    x, y = offset @ face.right, offset @ face.down
    skull = (landmarks[0:17:16].mean(0) - face.eyes) @ face.right / face.height  # beside a turned face
    angle = torch.atan2(x - skull / 2, y + 0.95)  # 0 points to the chin

    def along_angle(knots: int) -> Tensor:
        """Noise in [-1, 1] with `knots` random values on the full circle."""
        table = send(uniform(-1, 1, knots + 1, generator=generator), pixels)
        position = (angle / (2 * math.pi) + 0.5).clamp(0, 1 - 1e-6) * knots
        low = position.long()
        return torch.lerp(table[low], table[low + 1], position - low)

    hairline, width, volume, ends = (
        float(uniform(*limits, 1, generator=generator))
        for limits in ((0.2, 0.6), (0.5, 0.68), (0.74, 0.95), (-0.2, 1.6))
    )
    ragged = 0.06 * along_angle(20) + 0.08 * along_angle(150)
    outside = ((x - skull / 2) / volume) ** 2 + ((y + 0.1).clamp(max=0) / (volume + 0.25)) ** 2
    oval = ((x / width) ** 2 + ((y - 0.45) / (hairline + 0.45)) ** 2).sqrt()
    soft = 50.0
    opacity = (soft * (1 - outside.sqrt() + 0.5 * ragged)).clamp(0, 1) * (soft * (oval - 1 + ragged)).clamp(
        0, 1
    )
    opacity = opacity * (soft / 2 * (ends + 2 * ragged - y)).clamp(0, 1)
    base = torch.tensor([0.45, 0.3, 0.2]) * uniform(0.15, 1.5, 1, generator=generator)
    base = send(base + uniform(0, 0.08, 3, generator=generator), pixels)
    shade = 1 + 0.3 * along_angle(240) + 0.25 * along_angle(40)
    return (base[:, None, None] * shade).clamp(0, 1), opacity


def occlude(
    images: Tensor, masks: Tensor, landmarks: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Put hair, glasses and hands before faces, each with `probability`.

    images (B, 3, H, W), masks (B, 1, H, W) bool, landmarks (B, 68, 2) px -> new images and masks, from which
    the pixels that are more than half covered are taken out.
    """
    images, masks = images.clone(), masks.clone()
    height, width = images.shape[-2:]
    sides = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    pixels = torch.stack(torch.meshgrid(*sides, indexing="ij")[::-1], -1).to(images.dtype)
    for image, mask, points, has in zip(
        images, masks, landmarks, torch.rand(len(images), 3, generator=generator) < probability
    ):
        skin = (image * mask).sum((1, 2)) / mask.sum().clamp(min=1)
        layers = []
        if has[0]:
            layers.append(hair(points, pixels, generator))
        if has[1]:
            layers.append(glasses(points, pixels, generator))
        if has[2]:
            layers.append(hand(points, pixels, skin, generator))
        for colour, opacity in layers:
            image.copy_(torch.lerp(image, colour, opacity))
            mask &= opacity < 0.5
    return images, masks
