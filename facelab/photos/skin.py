"""How surely is a pixel of a face skin? Naive Bayes over two mixtures of Gaussians (Deng et al. 2022, Eq. 9).

    probability = SkinModel.load().probability(photo, face)        # (1, H, W) in [0, 1]
    weights = skin_weights(probability)                            # C_skin of Eq. 9

The features of a pixel are two ratios of its linear colours and its luminance over the face's median, as
logarithms: a picture of another exposure, or a darker face in the same light, has the same ones.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facelab.rendering.colour import srgb_to_linear
from facelab.support.errors import ModelFileError, ParameterError
from facelab.support.files import DATA, guarded, read_json
from facelab.support.tensors import one_line

SKIN_MODEL = DATA / "skin_mixtures.json"
DARKEST = 2e-3  # linear: below, a colour has no ratio that means anything
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB


def skin_features(image: Tensor, face: Tensor) -> Tensor:
    """(3, H, W): ln(R/G), ln(G/B), ln(Y / median Y over the face), of a picture (3, H, W) sRGB.

    `face` (1, H, W) bool is where it is, most of it skin. Raises ParameterError for an empty face.
    """
    if face.shape != (1, *image.shape[1:]) or not bool(face.any()):
        raise ParameterError(
            f"The face must be a mask (1, {image.shape[1]}, {image.shape[2]}) that is not empty, not "
            f"{tuple(face.shape)}."
        )
    linear = srgb_to_linear(image.clamp(0, 1)).clamp(min=DARKEST)
    red, green, blue = linear.log()
    luminance = (linear * linear.new_tensor(LUMINANCE)[:, None, None]).sum(0).log()
    return torch.stack([red - green, green - blue, luminance - luminance[face[0]].median()])


@one_line
@dataclass(frozen=True)
class Mixture:
    """K Gaussians in D dimensions."""

    shares: Tensor  # (K,)
    means: Tensor  # (K, D)
    precisions: Tensor  # (K, D, D): inverse covariances

    def log_density(self, points: Tensor) -> Tensor:
        """(..., D) -> (...)."""
        away = points[..., None, :] - self.means
        squared = torch.einsum("...kd,kde,...ke->...k", away, self.precisions, away)
        constant = self.shares.log() + torch.linalg.slogdet(self.precisions)[1] / 2
        return torch.logsumexp(constant - squared / 2, -1) - points.shape[-1] / 2 * math.log(2 * math.pi)


@dataclass(frozen=True)
class SkinModel:
    """Mixtures of the features of skin and of what else is seen in faces, and how often a pixel is skin."""

    skin: Mixture
    other: Mixture
    share: float

    @classmethod
    def load(cls, path: str | Path = SKIN_MODEL) -> "SkinModel":
        """The mixtures that data_scripts/train_skin_mixtures.py wrote. Raises ModelFileError."""
        return cls(*_read(Path(path)))

    def probability(self, image: Tensor, face: Tensor) -> Tensor:
        """p_i of Eq. 9 (1, H, W) for a picture (3, H, W) sRGB; 0 outside the face, a mask (1, H, W)."""
        return self.of_features(skin_features(image, face)) * face

    def of_features(self, features: Tensor) -> Tensor:
        """The same (1, H, W) from `skin_features`, everywhere."""
        points = features.movedim(0, -1)
        odds = self.skin.log_density(points) - self.other.log_density(points)
        prior = math.log(self.share) - math.log1p(-self.share)
        return torch.sigmoid(odds + prior)[None]


def _read(path: Path) -> tuple[Mixture, Mixture, float]:
    problem = f"The skin model '{path}' is missing or damaged; get it again"
    content = read_json(path, problem)
    with guarded(problem, ModelFileError):
        mixtures = []
        for name in ("skin", "other"):
            parts = {key: torch.tensor(content[name][key]) for key in ("shares", "means", "covariances")}
            count = len(parts["shares"])
            if parts["means"].shape != (count, 3) or parts["covariances"].shape != (count, 3, 3):
                raise ValueError(f"the mixture of {name} has parts that do not go together")
            precisions = torch.linalg.inv(parts["covariances"])
            torch.linalg.cholesky(precisions)  # or it is none
            mixtures.append(Mixture(parts["shares"], parts["means"], precisions))
        share = float(content["share"])
        if not 0 < share < 1:
            raise ValueError(f"its share of skin is {share}")
    return mixtures[0], mixtures[1], share


def skin_weights(probability: Tensor) -> Tensor:
    """C_skin of Eq. 9: 1 above one half, the probability itself below."""
    return torch.where(probability > 0.5, 1.0, probability)


def as_file(skin: dict[str, list], other: dict[str, list], share: float, about: dict[str, object]) -> str:
    """What `SkinModel.load` reads: mixtures {"shares", "means", "covariances"}, and how they came about."""
    return json.dumps({"share": share, "skin": skin, "other": other, "about": about}, indent=1) + "\n"
