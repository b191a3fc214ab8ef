"""Make a fit independent of how brightly a photograph was exposed.

What fitting expects of colours (how much hair and shadows are off, how noisy a pixel is) is said for a face
of ordinary brightness. So linear light is multiplied by a gain that brings the face there, and the estimated
light divided by it afterwards. What a camera clipped is at least as bright as it looks: a residual in that
direction counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facelab.photos import landmark_mask
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear

FACE_LEVEL = 0.23  # median linear luminance inside the landmarks' hull, of ordinary photographs
WHITE_LEVEL = 0.75  # the same of a whole crop's brightest hundredth
CLIPPED = 254 / 255  # sRGB, of 8-bit pictures


@dataclass(frozen=True)
class Exposure:
    """How one crop was exposed.

    `gain`: linear light was multiplied by it. `ceiling`: sRGB of the normalised crop from which on the camera
    had clipped. `white`, `doubt`: what a white surface that faces the camera is expected to have, as a
    multiple of the settings' `exposure`, and the factor on the standard deviation of that.
    """

    gain: float = 1.0
    ceiling: float = float("inf")
    white: float = 1.0
    doubt: float = 1.0


def normalise_exposure(image: Tensor, landmarks: Tensor, inside: Tensor) -> tuple[Tensor, Exposure]:
    """The crop (3, S, S) sRGB with a face of ordinary brightness, and what was done; may exceed 1.

    The photographer's choice still says something of the skin: a face that is dark beside the rest of its
    picture is rather a dark face. So `white` keeps the ratio of the face to the picture's brightest
    hundredth. Of a face that is clipped nobody knows how bright it was: `doubt` grows with the clipped share.
    """
    linear = srgb_to_linear(image)
    luminance = linear.mean(0)
    face = (landmark_mask(landmarks, *image.shape[1:]) & inside)[0]
    if int(face.sum()) < 50:
        face = inside[0]
    level = max(float(luminance[face].median()), FACE_LEVEL / 64)
    bright = max(float(luminance[inside[0]].quantile(0.99)), level)
    gain = FACE_LEVEL / level
    clipped = float((image.amax(0) >= CLIPPED)[face].float().mean())
    ceiling = float(linear_to_srgb(gain * srgb_to_linear(torch.tensor(CLIPPED))))
    white = gain * bright / WHITE_LEVEL
    return linear_to_srgb(gain * linear), Exposure(gain, ceiling, white, 1 + 20 * clipped)
