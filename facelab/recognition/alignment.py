"""Cuts and aligns a face by its 68 landmarks as a recognition network was trained on, differentiably."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from facelab.support.errors import ImageSizeError, ParameterError

# dlib's mean face in a unit square, `get_face_chip_details` in dlib/image_transforms/interpolation.h: of the
# 68 landmarks only nose (27-35), eyes (36-47), upper lip and mouth corners (48-54, 60-64); brows, lower lip
# and jaw move too much.
DLIB_LANDMARKS = [*range(27, 55), *range(60, 65)]
DLIB_TEMPLATE_X = [
    0.490127, 0.490127, 0.490127, 0.490127, 0.36688, 0.426036, 0.490127, 0.554217, 0.613373, 0.121737,
    0.187122, 0.265825, 0.334606, 0.260918, 0.182743, 0.645647, 0.714428, 0.793132, 0.858516, 0.79751,
    0.719335, 0.254149, 0.340985, 0.428858, 0.490127, 0.551395, 0.639268, 0.726104, 0.290379, 0.428096,
    0.490127, 0.552157, 0.689874,
]  # fmt: skip
DLIB_TEMPLATE_Y = [
    0.203352, 0.307009, 0.409805, 0.515625, 0.587326, 0.609345, 0.628106, 0.609345, 0.587326, 0.216423,
    0.178758, 0.179852, 0.231733, 0.245099, 0.244077, 0.231733, 0.179852, 0.178758, 0.216423, 0.244077,
    0.245099, 0.780233, 0.745405, 0.727388, 0.742578, 0.727388, 0.745405, 0.780233, 0.784792, 0.778746,
    0.785343, 0.778746, 0.784792,
]  # fmt: skip
DLIB_PADDING = 0.25  # what `compute_face_descriptor` uses: a quarter of the square on every side

# ArcFace's five points in a 112 x 112 crop: eye centres, nose tip, mouth corners, image's left first.
ARCFACE_TEMPLATE = [
    (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041),
]  # fmt: skip


def similarity_transform(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares rotation, uniform scale and translation in the plane, in closed form.

    source (..., K, 2), target (..., K, 2) -> linear (..., 2, 2), offset (..., 2) such that
    target ≈ linear @ source + offset. In the plane a scaled rotation is one complex number, so the solution
    (Umeyama 1991, without its SVD) is a ratio of two inner products, smooth everywhere; no reflection.
    """
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    s, t = source - source_mean[..., None, :], target - target_mean[..., None, :]
    norm = s.square().sum((-2, -1))
    cosine = (s * t).sum((-2, -1)) / norm
    sine = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / norm
    linear = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    return linear, target_mean - (linear @ source_mean[..., None])[..., 0]


def dlib_chip(image: Tensor, landmarks: Tensor, size: int = 150) -> Tensor:
    """Face chip as `dlib.get_face_chip(image, shape, size, padding=0.25)` cuts it, differentiable.

    image (..., 3, H, W), landmarks (..., 68, 2) in pixels (centre of the first pixel at 0.5, so dlib's own
    points plus 0.5) -> (..., 3, size, size). Differs from dlib only in that dlib truncates to 8 bits. Black
    outside the image. Differentiable in image and landmarks.
    Raises ImageSizeError for wrong shapes, ParameterError for landmarks that are not finite, coincide or are
    centred outside the image.
    """
    image, points, leading = _flatten(image, landmarks)
    template = points.new_tensor([DLIB_TEMPLATE_X, DLIB_TEMPLATE_Y]).mT
    template = (template + DLIB_PADDING) / (1 + 2 * DLIB_PADDING) * size
    linear, offset = similarity_transform(template, points[:, DLIB_LANDMARKS] - 0.5)
    # dlib's chip is a rectangle of `size * scale` pixels whose corner *pixels* map to the chip's corner
    # pixels, centred on the image of (size / 2, size / 2): half a chip pixel off a plain similarity.
    centre = offset + linear.sum(-1) * size / 2
    scale = torch.linalg.vector_norm(linear[:, 0], dim=-1)[:, None, None]
    linear = linear / scale * (size * scale - 1) / (size - 1)
    chips = _resample(image, linear, centre - linear.sum(-1) * (size - 1) / 2, size)
    return chips.reshape(*leading, *chips.shape[1:])


def arcface_chip(image: Tensor, landmarks: Tensor, size: int = 112) -> Tensor:
    """Crop aligned by five points as ArcFace's family of networks expects it; see `dlib_chip`."""
    image, points, leading = _flatten(image, landmarks)
    template = points.new_tensor(ARCFACE_TEMPLATE) * size / 112
    eyes = [points[:, 36:42].mean(1), points[:, 42:48].mean(1)]
    five = torch.stack([*eyes, points[:, 30], points[:, 48], points[:, 54]], 1)
    # Fitted in the crop, as OpenCV and ArcFace do, then inverted (dlib fits in the image: another scale).
    to_crop, shift = similarity_transform(five - 0.5, template)
    linear = to_crop.mT / torch.linalg.det(to_crop)[:, None, None]
    chips = _resample(image, linear, -(linear @ shift[..., None])[..., 0], size)
    return chips.reshape(*leading, *chips.shape[1:])


def _flatten(image: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """Checks both, broadcasts their leading dimensions and merges those into one."""
    if image.shape[-3:-2] != (3,) or landmarks.shape[-2:] != (68, 2):
        raise ImageSizeError(
            f"Recognition needs images (..., 3, H, W) and landmarks (..., 68, 2), got {tuple(image.shape)} "
            f"and {tuple(landmarks.shape)}."
        )
    leading = torch.broadcast_shapes(image.shape[:-3], landmarks.shape[:-2])
    flat = image.expand(*leading, *image.shape[-3:]).reshape(-1, *image.shape[-3:])
    points = landmarks.to(image).expand(*leading, 68, 2).reshape(-1, 68, 2)
    centre = points.detach().mean(1)
    if not ((centre >= 0) & (centre <= centre.new_tensor([image.shape[-1], image.shape[-2]]))).all():
        raise ParameterError("A face's landmarks are not finite, or outside its image: detect them again.")
    return flat, points, leading


def _resample(image: Tensor, linear: Tensor, offset: Tensor, size: int) -> Tensor:
    """Chips (N, 3, size, size): chip pixel u comes from image pixel `linear @ u + offset` (whole numbers at
    pixel centres). Where the image is more than twice as fine, it is halved first, as dlib does."""
    scales = torch.linalg.vector_norm(linear[:, 0], dim=-1).tolist()
    if not all(math.isfinite(scale) and scale > 1e-6 for scale in scales):
        raise ParameterError("A face's landmarks are all in one place: detect them again.")
    levels = [max(0, math.ceil(math.log2(scale)) - 1) for scale in scales]
    if not any(levels):
        return _bilinear(image, linear, offset, size)
    chips = []
    for face, level in enumerate(levels):
        pixels, to_pixels, origin = image[face], linear[face], offset[face]
        if level:
            pixels, to_pixels, origin = _halve(pixels, to_pixels, origin, size, level)
        chips.append(_bilinear(pixels[None], to_pixels[None], origin[None], size))
    return torch.cat(chips)


def _halve(image: Tensor, linear: Tensor, offset: Tensor, size: int, levels: int) -> tuple[Tensor, ...]:
    """Binomial image pyramid over the part of the image (3, H, W) under the chip, as dlib's
    `extract_image_chips` builds it (the same margin, so the same pixels survive)."""
    with torch.no_grad():
        corners = offset + offset.new_tensor([(0, 0), (0, 1), (1, 0), (1, 1)]) * (size - 1) @ linear.mT
        margin = 2 ** (levels + 2) - 2
        last = offset.new_tensor([image.shape[-1] - 1, image.shape[-2] - 1])
        low = (corners.amin(0) - margin).clamp(min=0).add(0.5).floor()
        high = torch.minimum(corners.amax(0) + margin, last).add(0.5).floor()
        (left, top), (right, bottom) = low.long().tolist(), high.long().tolist()
    row = image.new_tensor([1, 4, 6, 4, 1]) / 16
    kernel = (row[:, None] * row).expand(3, 1, 5, 5)
    pixels, offset = image[None, :, top : bottom + 1, left : right + 1], offset - low
    for _ in range(levels):
        pixels = F.conv2d(pixels, kernel, stride=2, groups=3)
        # Exact would be (1, 1), but (1.25, 0.75) is what dlib's `pyramid_down<2>::point_down` says.
        linear, offset = linear / 2, offset / 2 - offset.new_tensor([1.25, 0.75])
    return pixels[0], linear, offset


def _bilinear(image: Tensor, linear: Tensor, offset: Tensor, size: int) -> Tensor:
    steps = torch.arange(size, dtype=image.dtype, device=image.device)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(1, -1, 2)
    points = (grid @ linear.mT + offset[:, None]).reshape(-1, size, size, 2)
    last = points.new_tensor([image.shape[-1] - 1, image.shape[-2] - 1])
    inside = ((points >= 0) & (points < last)).all(-1)[:, None]  # dlib blackens the outside without a blend
    sampled = F.grid_sample(image, points * 2 / last - 1, "bilinear", "zeros", align_corners=True)
    return sampled * inside
