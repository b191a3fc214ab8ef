"""Photographs: load, find the face and its 68 landmarks, crop, mask, paste back.

Pictures are (3, H, W) float32 sRGB in [0, 1]; points are pixels with the centre of the first pixel at
(0.5, 0.5) (docs/conventions.md). Every bad input is a named error of `facelab.support.errors`.
"""

from facelab.photos.crop import (
    Crop,
    crop_face,
    landmark_confidence,
    landmark_mask,
    share_outside,
)
from facelab.photos.detect import DlibDetector, Face, LandmarkDetector, find_face, find_faces, number_faces
from facelab.photos.load import check_image, load_photo

__all__ = [
    "Crop",
    "DlibDetector",
    "Face",
    "LandmarkDetector",
    "check_image",
    "crop_face",
    "find_face",
    "find_faces",
    "landmark_confidence",
    "landmark_mask",
    "load_photo",
    "number_faces",
    "share_outside",
]
