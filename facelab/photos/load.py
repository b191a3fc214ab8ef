"""Picture files to (3, H, W) float32 sRGB tensors in [0, 1]; every bad file is a named error."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from facelab.errors import (
    ImageTooLargeError,
    ImageTooSmallError,
    NotAnImageError,
    PhotoNotFoundError,
    TruncatedImageError,
)

MAX_PIXELS = 60_000_000  # 60 megapixels: 720 MB as float32
MAX_SIDE = 20_000
MIN_SIDE = 32
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises


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
