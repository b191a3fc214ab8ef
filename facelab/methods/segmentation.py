"""Which pixels of a photograph show a face's skin, and no hair, glasses, hands? A small network's answer.

    skin = skin_mask(photo)                          # (H, W) in [0, 1]; the picture is a framed face
    skin = skin_mask(photo, landmarks)               # in a picture of any kind, by its 68 landmarks
    probabilities = Segmentation.load()(photo)       # (5, H, W), see CLASSES

It learned from 19 classes of CelebAMask-HQ, here five, and from renders with things before the face.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from facelab.networks.unet import STEP, UNet
from facelab.photos.crop import Crop, crop_face, landmark_mask
from facelab.photos.load import check_image
from facelab.support.errors import ModelFileError, ParameterError
from facelab.training import load_checkpoint

CLASSES = ("other", "skin", "features", "mouth", "neck")
"""Background, hair and all that covers a face; skin with the nose; eyes, brows and lips; between the lips;
neck and ears."""
FACE = ("skin", "features")
SIDE, SCALE = 128, 2.0  # px of the network's pictures, and their side over that of the landmarks' box
LEAST_VISIBLE = 0.5  # of the landmarks' hull; a segmentation that leaves less of a face was fooled


class Segmentation:
    """A trained network: a picture in, the probability of each of `CLASSES` per pixel out.

    Args:
        network: (B, 3, side, side) -> (B, 5, side, side) logits. side: px, a multiple of 32.
    """

    def __init__(self, network: nn.Module, side: int = SIDE) -> None:
        if side < STEP or side % STEP:
            raise ParameterError(f"A side must be a multiple of {STEP} px, not {side}.")
        self.network, self.side = network.eval(), side

    @classmethod
    def load(cls, path: str | Path = "segmentation") -> "Segmentation":
        """From a checkpoint, by default the shipped one. Raises ModelFileError if it is not what it says."""
        weights, card = load_checkpoint(path)
        again = f"The checkpoint '{path}' is of another network; train again with train_segmentation.py."
        if card.get("classes") != list(CLASSES):
            raise ModelFileError(again)
        network = make_network()
        try:
            network.load_state_dict(weights)
            return cls(network, card["side"])
        except (RuntimeError, KeyError, TypeError, ParameterError) as error:
            raise ModelFileError(again) from error

    @torch.no_grad()
    def __call__(self, image: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """(5, H, W) of a picture (3, H, W) sRGB, adding up to 1 at every pixel.

        Without landmarks (68, 2) px the picture is a framed face, a square as `crop_face` cuts it. With them
        it may be any; beyond twice the size of the face all is "other". Raises what `check_image` and
        `crop_face` raise.
        """
        check_image(image)
        height, width = image.shape[1:]
        if landmarks is None:
            return _resized(self.framed(image[None]), height, width)[0]
        crop = crop_face(image, landmarks, self.side, SCALE)
        found = self.framed(crop.image[None])[0]
        result = torch.zeros(len(CLASSES), height, width)
        covered = torch.ones(1, self.side, self.side)
        for k in range(0, len(CLASSES), 3):  # `paste` takes three
            layer = torch.cat([found[k : k + 3], found.new_zeros(3, *found.shape[1:])])[:3]
            pasted = crop.paste(image.new_zeros(3, height, width), layer, covered)
            result[k : k + 3] = pasted[: len(CLASSES) - k]
        result = result.clamp(0, 1)
        result[0] = 1 - result[1:].sum(0).clamp(max=1)
        return result

    @torch.no_grad()
    def framed(self, pictures: Tensor) -> Tensor:
        """(B, 5, side, side) of framed pictures (B, 3, H, W), at the network's size."""
        return self.network(_resized(pictures.float(), self.side, self.side)).softmax(1)


def make_network() -> UNet:
    """Untrained."""
    return UNet(len(CLASSES))


def skin_mask(image: Tensor, landmarks: Tensor | None = None, classes: Sequence[str] = ("skin",)) -> Tensor:
    """(H, W) in [0, 1]: the shipped network's probability that a pixel of a picture (3, H, W) is skin.

    `classes`: others of `CLASSES`, added up; `FACE` is skin, eyes, brows and lips. For `landmarks` and errors
    see `Segmentation`. Raises ParameterError for a class that there is not.
    """
    unknown = set(classes) - set(CLASSES)
    if unknown:
        raise ParameterError(f"There is no class {min(unknown)!r}; choose from {', '.join(CLASSES)}.")
    return _shipped()(image, landmarks)[[CLASSES.index(name) for name in classes]].sum(0)


def visible_part(crop: Crop) -> Tensor:
    """(1, S, S) bool: where a crop shows the face, without hair, hands and glasses, for `fit_photos`.

    By the shipped segmentation network; where that finds less than half of what the landmarks surround, it is
    not believed, and everything on the photograph counts.
    """
    seen = skin_mask(crop.image, crop.landmarks, (*FACE, "mouth")).to(crop.image)[None] > 0.5
    hull = landmark_mask(crop.landmarks, *crop.image.shape[-2:]) & crop.inside
    fooled = (seen & hull).sum() < LEAST_VISIBLE * hull.sum()
    return crop.inside if fooled else seen & crop.inside


@lru_cache(maxsize=1)
def _shipped() -> Segmentation:
    return Segmentation.load()


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width)."""
    return interpolate(maps, (height, width), mode="bilinear", antialias=True, align_corners=False)
