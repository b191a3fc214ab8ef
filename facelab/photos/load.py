"""Picture files to (3, H, W) float32 sRGB tensors in [0, 1]; every bad file is a named error."""

import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from facelab.support.errors import (
    ImageTooLargeError,
    ImageTooSmallError,
    NotAnImageError,
    PhotoError,
    PhotoNotFoundError,
    TruncatedImageError,
)
from facelab.support.files import find_file, guarded, shown

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "HEIF", "JPEG2000")
MAX_BYTES = 2**30  # of memory while a picture is read
MIN_SIDE = 32
_STRIP = 256  # rows that are converted at a time, so that no second copy of the picture is made
_DECODER_BYTES = {"WEBP": 9, "AVIF": 12, "JPEG2000": 24, "GIF": 8}  # per pixel, beside Pillow's own


# ------------------------------------------------------------------------------------------ files


def load_photo(path: str | Path, max_bytes: int = MAX_BYTES) -> Tensor:
    """Read a picture file as (3, H, W) float32 sRGB in [0, 1], upright as its EXIF says.

    CMYK, grey, palette, 1, 8 and 16 bit, and float (taken as [0, 1]) pictures are converted; transparency is
    composited over white; an embedded ICC profile is converted to sRGB; of an animation, the first frame.
    Grey pictures of 10, 12 or 14 bit often come in 16: their white is what TIFF's MaxSampleValue or
    BitsPerSample says, and where those say nothing (16), the largest value of the smallest of 8, 10, 12, 14,
    16 bit that holds all pixels. So a 16-bit picture whose brightest pixel is below a quarter is brightened.

    `max_bytes` bounds the memory that reading takes, as estimated from the header: a picture that needs more
    is read at 1/2, 1/4 or 1/8 of its size, with a warning, or refused if not even that is enough.

    Raises PhotoNotFoundError (also for folders, pipes and devices), NotAnImageError, TruncatedImageError,
    ImageTooSmallError (a side below 32 px), and ImageTooLargeError before anything is decoded.
    """
    with open_picture(path) as picture:
        name, (width, height) = shown(path), picture.size
        if min(width, height) < MIN_SIDE:
            raise ImageTooSmallError(
                f"The photo '{name}' has {width}×{height} pixels; use one of at least {MIN_SIDE} px a side."
            )
        shrink = _shrink(picture, max_bytes, name)
        warning = f"The photo '{name}' is read at 1/{shrink} of its {width}×{height} px to save memory."
        if reduced := shrink > 1:
            picture.draft(picture.mode, (width // shrink, height // shrink))  # JPEG alone can do this
            shrink = max(1, round(shrink * picture.width / width))  # what is left to do
        with guarded(f"The photo '{name}' is damaged or cut off; copy it again", TruncatedImageError):
            picture.load()
        with guarded(f"The pixels of '{name}' cannot be read as colours", NotAnImageError):
            image = _to_srgb(picture, shrink)
    if reduced:
        warnings.warn(warning, stacklevel=2)
    return image


def open_picture(path: str | Path) -> Image.Image:
    """A picture file, its header read and nothing decoded: only of `FORMATS`, and only a regular file.

    Raises PhotoNotFoundError, NotAnImageError, TruncatedImageError, ImageTooLargeError (179 megapixels).
    """
    name = shown(path)
    with guarded(f"The photo '{name}' cannot be opened; check the path", PhotoNotFoundError):
        path = find_file(path)
        if not stat.S_ISREG(path.stat().st_mode):  # asked first: opening a pipe waits for ever
            raise PhotoNotFoundError(
                f"The photo '{name}' is a folder, pipe or device, not a file; check the path."
            )
        with path.open("rb") as file:
            head = file.read(4)
    if not head:
        raise NotAnImageError(f"The photo '{name}' is an empty file; copy or download it again.")
    kind: type[PhotoError] = NotAnImageError
    problem = f"'{name}' is not a picture that can be read; use a JPEG or PNG"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        kind, problem = TruncatedImageError, f"The photo '{name}' ends inside its header; copy it again"
    Image.init()
    with guarded(problem, kind), warnings.catch_warnings():  # about sizes: `max_bytes` decides
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(
                f"The photo '{name}' is too large: at most 179 megapixels, so make it smaller."
            ) from error


def _shrink(picture: Image.Image, max_bytes: int, name: str) -> int:
    """1, 2, 4 or 8: by how much a picture must be reduced so that reading it takes at most `max_bytes`."""
    pixels = picture.width * picture.height
    own = 1 if picture.mode in ("1", "L", "P") else 2 if picture.mode.startswith("I;16") else 4
    decoder = _DECODER_BYTES.get(str(picture.format), 0)
    is_jpeg = picture.format in ("JPEG", "MPO")
    if is_jpeg and picture.info.get("progressive"):
        decoder = 6  # its coefficients, as 16-bit numbers
    for shrink in (1, 2, 4, 8):
        decoded = pixels * (decoder + (own / shrink**2 if is_jpeg else own))
        if decoded + 12 * pixels / shrink**2 <= max_bytes:  # 12: the float32 result
            return shrink
    raise ImageTooLargeError(
        f"The photo '{name}' has {picture.width}×{picture.height} px, which take more than "
        f"{max_bytes / 2**20:.0f} MiB of memory to read; make it smaller."
    )


# ---------------------------------------------------------------------------------------- pixels

# How the stored picture looks in the upright one (3, H, W), by EXIF orientation: views, no copies.
_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda upright: upright[:, :, ::-1],
    3: lambda upright: upright[:, ::-1, ::-1],
    4: lambda upright: upright[:, ::-1],
    5: lambda upright: upright.transpose(0, 2, 1),
    6: lambda upright: np.rot90(upright, 1, (1, 2)),
    7: lambda upright: upright[:, ::-1, ::-1].transpose(0, 2, 1),
    8: lambda upright: np.rot90(upright, -1, (1, 2)),
}


def _to_srgb(picture: Image.Image, shrink: int) -> Tensor:
    """A decoded Pillow picture of any mode as (3, H, W) float32 sRGB, reduced by `shrink`."""
    try:
        turn = int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever the parser throws must not lose the picture
        warnings.warn("The photo's EXIF data is damaged; its orientation is ignored.", stacklevel=3)
        turn = 1
    convert = _grey(picture) if picture.mode.startswith(("I", "F")) else _colour(picture)
    width, height = -(-picture.width // shrink), -(-picture.height // shrink)
    upright = np.empty((3, width, height) if turn in (5, 6, 7, 8) else (3, height, width), np.float32)
    stored = _STORED.get(turn, lambda same: same)(upright)
    for top in range(0, picture.height, _STRIP):  # a multiple of any `shrink`
        strip = picture.crop((0, top, picture.width, min(top + _STRIP, picture.height)))
        part = convert(strip)
        part = part.reduce(shrink) if shrink > 1 else part
        values = np.asarray(part, dtype=np.float32)
        first = top // shrink
        rows = stored[:, first : first + part.height]
        rows[:] = values if part.mode == "F" else values.transpose(2, 0, 1) / 255
    return torch.from_numpy(upright)


def _grey(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Strips of a 16-bit, 32-bit or float grey picture as floats in [0, 1]."""
    low, high = cast(tuple[float, float], picture.getextrema())
    white = 1.0
    if picture.mode != "F":
        tags = getattr(picture, "tag_v2", {})
        said = max(tags.get(281, (0,))), 2 ** max(tags.get(258, (16,))) - 1  # MaxSampleValue, BitsPerSample
        known = [value for value in said if value > 0 and value not in (65535, 2**32 - 1) and value >= high]
        white = known[0] if known else next(v for b in (8, 10, 12, 14, 16, 32) if (v := 2**b - 1) >= high)
    if not (low >= 0 and high <= white):  # NaN as well
        raise ValueError("grey values that are not finite or beyond their range")

    def to_float(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.float32) / np.float32(white)
        if not np.isfinite(values).all():
            raise ValueError("grey values that are not finite or beyond their range")
        return Image.fromarray(values)

    return to_float


def _colour(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Strips of an 8-bit picture as sRGB."""
    transparent = picture.has_transparency_data
    mode = picture.mode if picture.mode in ("RGB", "CMYK", "L") and not transparent else "RGB"
    transform = None
    if icc := picture.info.get("icc_profile"):
        try:
            profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
            transform = ImageCms.buildTransform(profile, srgb, mode, "RGB")
        except Exception:
            warnings.warn("The photo's colour profile cannot be used; taking it as sRGB.", stacklevel=4)

    def to_rgb(strip: Image.Image) -> Image.Image:
        if transparent:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        strip = strip if strip.mode == mode else strip.convert(mode)
        if transform is not None:
            strip = ImageCms.applyTransform(strip, transform) or strip
        return strip.convert("RGB")

    return to_rgb


def check_image(image: Tensor) -> None:
    """Raise NotAnImageError unless `image` is a (3, H, W) float32 or float64 tensor, finite and in [0, 1]."""
    if not isinstance(image, Tensor):
        raise NotAnImageError(
            f"A picture is a float (3, H, W) tensor, not {type(image).__name__}; read files with load_photo."
        )
    got = f"a picture is a float32 (3, H, W) tensor, not {image.dtype} {tuple(image.shape)}"
    if image.ndim == 4:
        raise NotAnImageError(f"Give one picture of the batch, image[i]: {got}.")
    if image.ndim == 3 and image.shape[-1] == 3 != image.shape[0]:
        raise NotAnImageError(f"The channels come last; use image.permute(2, 0, 1): {got}.")
    if image.ndim != 3 or image.shape[0] != 3:
        raise NotAnImageError(f"Give three channels, rows and columns: {got}.")
    if image.dtype not in (torch.float32, torch.float64):
        advice = "image.float()" if image.is_floating_point() else "image.float() / 255 for 8 bit"
        raise NotAnImageError(f"Convert the picture with {advice}: {got}.")
    if min(image.shape[1:]) < MIN_SIDE:
        raise ImageTooSmallError(
            f"The picture has {image.shape[2]}×{image.shape[1]} px; use {MIN_SIDE} or more."
        )
    low, high = image.detach().aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise NotAnImageError("The picture has pixels that are NaN or infinite; repair it first.")
    if low < 0 or high > 1:
        raise NotAnImageError("The picture has values outside [0, 1]; divide 8-bit values by 255.")
