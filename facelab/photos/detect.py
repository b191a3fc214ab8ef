"""Where the faces are: boxes and 68 landmarks."""

import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from facelab.photos.crop import share_outside
from facelab.photos.load import check_image
from facelab.support.errors import FaceIndexError, ImageTooSmallError, ModelFileError, NoFaceError
from facelab.support.files import guarded
from facelab.support.tensors import one_line
from facelab.support.third_party import dlib_file

LEAST_FACE = 24  # px of the landmarks' box
_WINDOW = 80  # px, the HOG detector's own: smaller pictures are padded to it
_TILE, _OVERLAP = 1024, 240  # px; the overlap holds the largest face that the scale before has missed
_NOT_INSTALLED = (
    "The landmark detector or its model file is missing; run `pip install 'facelab[photos]'`"
)

Hit = tuple[np.ndarray, float, float, float]  # centre (2,) px, side px, roll radians, score


@one_line
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


class _Models(threading.local):
    """dlib's detectors: they keep their work inside themselves, so every thread has its own."""

    @cached_property
    def hog(self) -> Any:
        with guarded(_NOT_INSTALLED, ModelFileError):
            import dlib

            return dlib.get_frontal_face_detector()

    @cached_property
    def cnn(self) -> Any:
        with guarded(_NOT_INSTALLED, ModelFileError):
            import dlib

            return dlib.cnn_face_detection_model_v1(dlib_file("mmod_human_face_detector.dat"))


_MODELS = _Models()


@cache
def _predictor() -> Any:
    """dlib's 68-point predictor, 100 MB, which is constant: one for all threads."""
    with guarded(_NOT_INSTALLED, ModelFileError):
        import dlib

        return dlib.shape_predictor(dlib_file("shape_predictor_68_face_landmarks.dat"))


@dataclass(frozen=True)
class DlibDetector:
    """dlib's face detectors (King 2009, 2015) and its 68-point predictor (Kazemi and Sullivan, CVPR 2014).

    The HOG detector is tried as is and at double size, then with a grey frame (faces cut by the border), on
    the picture turned by multiples of 30°, then dlib's slower CNN; if the picture is larger than
    `detection_size`, last in tiles at finer scales, down to faces of 40 px of the photo. Landmarks are the
    mean of predictions from seven slightly moved boxes on a chip of the photo that is turned upright, which
    also undoes dlib's rounding to whole pixels. Beyond the photo's border the chip is its mirror image, and
    points may lie there.

    The predictor's file was trained on iBUG 300-W, whose images are for NON-COMMERCIAL use: replace this
    detector (any `LandmarkDetector`) in a commercial product.

    `detection_size`: longer side, px, at which faces are searched first (landmarks use the full photo).
    `fallback=False` leaves out the frame, the turned picture, the CNN and the finer scales, which take some
    2 s per megapixel of a photo in which there is no face. Several threads may use one detector.
    """

    detection_size: int = 1024
    fallback: bool = True
    version: int = field(default=3, init=False)  # of the answers: kept landmarks of another are found anew

    def detect(self, image: Tensor) -> list[Face]:
        """The faces of a (3, H, W) sRGB picture, largest first; empty if there are none."""
        check_image(image)
        photo = _to_pillow(image)
        faces = []
        for centre, side, roll, score in self._boxes(photo):
            points = _predict(photo, centre, side, roll, jitter=False)
            left_eye, right_eye = points[36:42].mean(0), points[42:48].mean(0)
            points = _predict(photo, centre, side, math.atan2(*(right_eye - left_eye)[::-1]), jitter=True)
            box = np.concatenate([centre - side / 2, centre + side / 2])
            faces.append(Face(torch.tensor(box).float(), torch.tensor(points).float(), score))
        return sorted(faces, key=lambda face: -face.size)

    def _boxes(self, photo: Image.Image) -> list[Hit]:
        """The faces found by the first stage that finds any, in photo px."""
        small, scale = _resized(photo, self.detection_size)
        for upsample in (0, 1):
            if hits := _hog(small, upsample, 0.2):  # below 0.2 most hits are chance
                return _scaled(hits, scale)
        hits = (_framed(small) or _turned(small) or _cnn(small)) if self.fallback else []
        finer = self._finer(photo) if self.fallback and not hits else []
        return _scaled(hits, scale) or finer or _scaled(_hog(small, 1, 0.0), scale)

    def _finer(self, photo: Image.Image) -> list[Hit]:
        """Faces that are too small at `detection_size`: in tiles, at scales that double up to 2."""
        longer, size = max(photo.size), 4 * self.detection_size
        sizes = [size * 2**k for k in range(8) if size * 2**k < 0.6 * longer]
        stages = [(side, 0) for side in sizes]
        if longer > 2 * self.detection_size:
            stages.append((longer, 0))
        if longer > self.detection_size:
            stages.append((longer, 1))
        for side, upsample in stages:
            view, scale = _resized(photo, side)
            hits: list[Hit] = []
            for left, top, tile in _tiles(view):
                for centre, width, roll, score in _hog(tile, upsample, 0.5):
                    hits.append((centre + (left, top), width, roll, score))
            if hits:
                return _scaled(_merged(hits), scale)
        return []


def _to_pillow(image: Tensor) -> Image.Image:
    pixels = (image.detach().cpu() * 255).round_().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())


def _resized(photo: Image.Image, longer: float) -> tuple[Image.Image, float]:
    """The photo with its longer side reduced to `longer` px, and the factor from there to the photo."""
    scale = max(photo.size) / longer
    if scale <= 1:
        return photo, 1.0
    size = (max(1, round(photo.width / scale)), max(1, round(photo.height / scale)))
    return photo.resize(size, reducing_gap=3), scale


def _scaled(hits: list[Hit], scale: float) -> list[Hit]:
    return [(centre * scale, side * scale, roll, score) for centre, side, roll, score in hits]


def _tiles(view: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """Left, top and picture of overlapping tiles that cover the view, without those of one colour."""
    step = _TILE - _OVERLAP
    for top in range(0, max(1, view.height - _OVERLAP), step):
        for left in range(0, max(1, view.width - _OVERLAP), step):
            tile = view.crop((left, top, min(left + _TILE, view.width), min(top + _TILE, view.height)))
            if max(high - low for low, high in tile.getextrema()) > 8:  # type: ignore[misc, operator]
                yield left, top, tile


def _merged(hits: list[Hit]) -> list[Hit]:
    """Without the weaker of two hits whose centres lie within half a face of each other."""
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: -hit[3]):
        if all(np.abs(hit[0] - other[0]).max() > max(hit[1], other[1]) / 2 for other in kept):
            kept.append(hit)
    return kept


def _pixels(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, at least the detector's window high and wide: native code dies of less."""
    pad = [(0, max(0, _WINDOW - side)) for side in (picture.height, picture.width)]
    return np.pad(np.asarray(picture), (*pad, (0, 0)), mode="edge")


def _hog(picture: Image.Image, upsample: int, least: float) -> list[Hit]:
    """Upright faces of at least 80 px (40 px if upsampled once) whose score is at least `least`."""
    with guarded(f"The face detector failed on a picture of {picture.width}×{picture.height} px"):
        return [_box(*hit) for hit in zip(*_MODELS.hog.run(_pixels(picture), upsample, least)[:2])]


def _framed(picture: Image.Image) -> list[Hit]:
    """Faces that the border cuts: the detector wants to see what is around them."""
    pad = max(picture.size) // 4
    view = Image.new("RGB", (picture.width + 2 * pad, picture.height + 2 * pad), "grey")
    view.paste(picture, (pad, pad))
    return [(centre - pad, side, roll, score) for centre, side, roll, score in _hog(view, 1, 0.5)]


def _turned(picture: Image.Image) -> list[Hit]:
    """The best face in the picture turned by multiples of 30°."""
    hits: list[Hit] = []
    middle = np.array(picture.size) / 2
    for degrees in range(30, 360, 30):  # counter-clockwise, as Pillow turns
        view = picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        roll = math.radians(degrees)
        back = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
        for centre, side, _, score in _hog(view, 0, 0.5):  # 0.5: no chance hits
            hits.append((middle + back @ (centre - np.array(view.size) / 2), side, roll, score))
    return [max(hits, key=lambda hit: hit[3])] if hits else []


def _cnn(picture: Image.Image) -> list[Hit]:
    """Faces by dlib's CNN, which takes 3 µs per pixel."""
    view, scale = _resized(picture, 640)
    with guarded(f"The face detector failed on a picture of {picture.width}×{picture.height} px"):
        hits = [(hit.rect, hit.confidence) for hit in _MODELS.cnn(_pixels(view), 0)]
    return _scaled([_box(*hit) for hit in hits if hit[1] > 0.8], scale)


def _box(rectangle: Any, score: float) -> Hit:
    """Centre, side, roll 0 and score of a dlib rectangle (whose right and bottom pixels are inside)."""
    corners = np.array([rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1.0])
    return (corners[:2] + corners[2:]) / 2, float(corners[2] - corners[0]), 0.0, float(score)


def _predict(photo: Image.Image, centre: np.ndarray, side: float, roll: float, jitter: bool) -> np.ndarray:
    """Landmarks (68, 2) in photo px, read on a chip of the box that is turned upright by `roll` radians."""
    box_side, chip_side = (300, 660) if jitter else (150, 330)
    shrink = max(1, int(side / box_side))  # so that the bicubic below does not alias
    source, origin = _surroundings(photo, centre, 0.75 * side * chip_side / box_side, shrink)
    c, s = math.cos(roll) * side / box_side / shrink, math.sin(roll) * side / box_side / shrink
    turn = np.array([[c, -s], [s, c]])  # chip px -> source px
    shift = (centre - origin) / shrink - turn @ np.full(2, chip_side / 2)
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
    with guarded(f"The landmark predictor failed on a face of {side:.0f} px"):
        from dlib import rectangle

        for x, y, size in moves:
            middle, half = chip_side / 2 + np.array([x, y]) * box_side, size * box_side / 2
            box = rectangle(*(int(v) for v in np.round(np.concatenate([middle - half, middle + half]))))
            predictions.append([(p.x + 0.5, p.y + 0.5) for p in _predictor()(pixels, box).parts()])
    return origin + shrink * (np.mean(predictions, axis=0) @ turn.T + shift)


def _surroundings(
    photo: Image.Image, centre: np.ndarray, reach: float, shrink: int
) -> tuple[Image.Image, np.ndarray]:
    """What lies within `reach` px of `centre`, reduced by `shrink`, and its origin (2,) in photo px.

    Beyond its edge the photo is mirrored: a black border pulls the landmarks to itself, and doubles the error
    of those outside.
    """
    size = np.array(photo.size)
    first = np.floor((centre - reach) / shrink).astype(int) * shrink
    last = np.ceil((centre + reach) / shrink).astype(int) * shrink
    low = np.clip(first, 0, (size - 1) // shrink * shrink)
    high = np.clip(last, low + 1, size)
    piece = np.asarray(photo.crop((*low, *high)).reduce(shrink))
    before, after = (low - first).clip(0) // shrink, (last - high).clip(0) // shrink
    piece = np.pad(piece, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="symmetric")
    return Image.fromarray(piece), np.minimum(first, low)


def find_face(image: Tensor, detector: LandmarkDetector | None = None, index: int | None = None) -> Face:
    """The face in a (3, H, W) sRGB picture: the largest, with a warning if there are several, or by `index`.

    `index` counts from 0, the largest face first (`number_faces` shows who is who). `detector` None: a
    `DlibDetector()`. A face that the border cuts gives a warning with the share that is missing.

    Raises NoFaceError, FaceIndexError, ImageTooSmallError (a face below 24 px), PhotoError (the detector
    failed) and what `check_image` raises.
    """
    faces = find_faces(image, detector)
    if index is not None and not 0 <= index < len(faces):
        raise FaceIndexError(
            f"Face {index} was asked for but the picture has {len(faces)}, counted from 0 "
            "(index= in Python, FACE= for make)."
        )
    if index is None and len(faces) > 1:
        warnings.warn(
            f"The picture has {len(faces)} faces; taking the largest, 0 "
            f"(for another, up to {len(faces) - 1}: index= in Python, FACE= for make).",
            stacklevel=2,
        )
    face = faces[index or 0]
    if face.size < LEAST_FACE:
        raise ImageTooSmallError(f"The face has only {face.size:.0f} px; use a larger picture.")
    missing = share_outside(face.landmarks, *image.shape[1:])
    if missing >= 0.02:
        warnings.warn(
            f"{missing:.0%} of the face lies outside the picture, and is guessed; use a picture of all.",
            stacklevel=2,
        )
    return face


def find_faces(image: Tensor, detector: LandmarkDetector | None = None) -> list[Face]:
    """All faces of a (3, H, W) sRGB picture, the largest first. Raises as `find_face` does."""
    check_image(image)
    with guarded(f"The face detector failed on a picture of {image.shape[2]}×{image.shape[1]} px"):
        faces = (detector or DlibDetector()).detect(image)
    if not faces:
        raise NoFaceError(
            "No face was found in the picture; use one with a face that looks at the camera, 40 px or larger."
        )
    return sorted(faces, key=lambda face: -face.size)


def number_faces(image: Tensor, faces: list[Face]) -> Image.Image:
    """The picture (3, H, W), at most 1024 px, with a box and the index on each of `find_faces`."""
    picture, scale = _resized(_to_pillow(image), 1024)
    draw = ImageDraw.Draw(picture)
    for index, face in enumerate(faces):
        low, high = (face.landmarks.amin(0) / scale).tolist(), (face.landmarks.amax(0) / scale).tolist()
        draw.rectangle((*low, *high), outline="yellow", width=2)
        corner = (max(0.0, low[0]), max(0.0, low[1]))
        font = max(14.0, (high[1] - low[1]) / 3)
        draw.text(corner, str(index), "yellow", font_size=font, stroke_width=2, stroke_fill="black")
    return picture
