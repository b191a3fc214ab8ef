import json
import math
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms, ImageOps

from facelab.photos import (
    DlibDetector,
    Face,
    check_image,
    crop_face,
    find_face,
    find_faces,
    landmark_confidence,
    landmark_mask,
    load_photo,
    number_faces,
)
from facelab.photos.folders import PhotoFolder, list_pictures
from facelab.support import errors


@pytest.fixture(scope="module")
def astronaut():
    return torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def astronaut_face(astronaut):
    return find_face(astronaut)


def ramp(height=40, width=60):
    """An 8-bit RGB picture in which every pixel differs, (H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8)


def oval(centre, size):
    """68 made-up landmarks: 60 on a circle, 8 on a smaller one (the inner lips)."""
    angle = torch.linspace(0, 2 * math.pi, 61)[:-1]
    outer = torch.stack([angle.cos(), angle.sin()], -1) * size / 2
    inner = torch.stack([angle[::8].cos(), angle[::8].sin()], -1) * size / 8
    return torch.cat([outer, inner]) + torch.tensor(centre)


# ---------------------------------------------------------------------------------------------- loading


def test_load_is_exact_for_png(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    image = load_photo(tmp_path / "a.png")
    assert image.shape == (3, 40, 60) and image.dtype == torch.float32
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(ramp()).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # inverse of what the loader must apply
    stored = Image.fromarray(ramp())
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    image = load_photo(tmp_path / "a.png")
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(ramp()).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "LA", "RGBA"])
def test_every_mode_gives_rgb(tmp_path, mode):
    picture = Image.fromarray(ramp()).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    image = load_photo(path)
    expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
    assert image.shape == (3, 40, 60)
    torch.testing.assert_close(image, expected.float())
    assert image.max() - image.min() > 0.5


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = load_photo(tmp_path / "a.jpg").mean((1, 2))
    assert red[0] > 0.98 and red[1:].max() < 0.02


def test_alpha_is_composited_over_white(tmp_path):
    Image.new("RGBA", (40, 40), (200, 0, 0, 51)).save(tmp_path / "a.png")
    expected = torch.tensor([200, 0, 0]) * 0.2 + 255 * 0.8
    torch.testing.assert_close(load_photo(tmp_path / "a.png")[:, 5, 5] * 255, expected, atol=1, rtol=0)


def test_palette_transparency(tmp_path):
    picture = Image.new("P", (40, 40), 0)
    picture.putpalette([10, 20, 30] + [0, 0, 0] * 255)
    picture.save(tmp_path / "a.png", transparency=0)
    assert load_photo(tmp_path / "a.png").min() == 1


def test_sixteen_bit_grey_keeps_its_precision(tmp_path):
    values = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = load_photo(tmp_path / "a.png")
    np.testing.assert_allclose(image[1].numpy() * 65535, values, atol=0.02)


def test_float_picture_and_its_nan(tmp_path):
    values = np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(load_photo(tmp_path / "a.tif")[0].numpy(), values)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "b.tif")
    with pytest.raises(errors.NotAnImageError, match="not finite"):
        load_photo(tmp_path / "b.tif")


def test_colour_profile_is_applied_and_a_broken_one_is_ignored(tmp_path):
    picture = Image.fromarray(ramp())
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / "srgb.png", icc_profile=srgb)
    plain = torch.from_numpy(ramp()).permute(2, 0, 1) / 255
    assert (load_photo(tmp_path / "srgb.png") - plain).abs().max() < 2.5 / 255
    swapped = srgb.replace(b"rXYZ", b"tmp1").replace(b"bXYZ", b"rXYZ").replace(b"tmp1", b"bXYZ")
    picture.save(tmp_path / "swapped.png", icc_profile=swapped)  # red and blue primaries exchanged
    assert (load_photo(tmp_path / "swapped.png") - plain.flip(0)).abs().max() < 2.5 / 255
    picture.save(tmp_path / "broken.png", icc_profile=b"nonsense")
    with pytest.warns(UserWarning, match="colour profile"):
        torch.testing.assert_close(load_photo(tmp_path / "broken.png"), plain.float())


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG that claims a size; there are no pixels behind them."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(tmp_path: Path) -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)).save(tmp_path / "t.jpg")
    return (tmp_path / "t.jpg").read_bytes()


def png(tmp_path: Path) -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)).save(tmp_path / "t.png")
    return (tmp_path / "t.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (lambda t: b"", errors.NotAnImageError),
        (lambda t: b"Dear Sir or Madam, this is not a picture.", errors.NotAnImageError),
        (lambda t: jpeg(t)[:2000], errors.TruncatedImageError),
        (lambda t: jpeg(t)[:30], errors.TruncatedImageError),
        (lambda t: png(t)[:4000], errors.TruncatedImageError),
        (lambda t: png(t)[:12], errors.TruncatedImageError),
        (lambda t: png_header(30_000, 30_000), errors.ImageTooLargeError),
        (lambda t: png_header(13_000, 13_000), errors.TruncatedImageError),  # Pillow itself would only warn
        (lambda t: png_header(20, 100), errors.ImageTooSmallError),
    ],
)
def test_bad_files_are_named_errors_in_one_sentence(tmp_path, content, error):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error) as caught:
            load_photo(path)
    assert "bad.jpg" in str(caught.value) and "\n" not in str(caught.value)


def test_every_truncation_is_a_photo_error(tmp_path):
    content, path = jpeg(tmp_path), tmp_path / "cut.jpg"
    for length in range(1, len(content) - 100, 211):
        path.write_bytes(content[:length])
        with pytest.raises(errors.PhotoError):
            load_photo(path)


def test_wrong_path_and_folder(tmp_path):
    for path in (tmp_path / "nothing.jpg", tmp_path, "a\0b.jpg"):
        with pytest.raises(errors.PhotoNotFoundError, match="check the path"):
            load_photo(path)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (torch.full((3, 40, 40), torch.nan), errors.NotAnImageError),
        (torch.full((3, 40, 40), 200.0), errors.NotAnImageError),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), errors.NotAnImageError),
        (torch.zeros(40, 40, 3), errors.NotAnImageError),
        (torch.zeros(1, 3, 40, 40), errors.NotAnImageError),
        (torch.zeros(3, 40, 40).half(), errors.NotAnImageError),
        (torch.full((3, 40, 40), -0.1), errors.NotAnImageError),
        (np.zeros((3, 40, 40), np.float32), errors.NotAnImageError),
        ("me.jpg", errors.NotAnImageError),
        ([], errors.NotAnImageError),
        (torch.zeros(3, 0, 40), errors.ImageTooSmallError),
    ],
)
def test_check_image(image, error):
    with pytest.raises(error):
        check_image(image)


# -------------------------------------------------------------------------------------------- detection


def test_astronaut_is_found_where_she_is(astronaut_face):
    points = astronaut_face.landmarks
    found = torch.stack([points[36:42].mean(0), points[42:48].mean(0), points[48], points[54], points[8]])
    # irises, mouth corners and chin, read by eye off the enlarged picture
    seen = torch.tensor([[203.0, 101.5], [247.5, 103.5], [202.0, 140.0], [244.0, 141.0], [222.0, 177.5]])
    assert (found - seen).norm(dim=-1).max() < 3.5


def test_landmarks_move_with_the_photo(astronaut, astronaut_face):
    """Shifted, mirrored, enlarged: the same points, which also pins the half-pixel convention."""
    piece = astronaut[:, :256, 96:352]
    shifted = find_face(piece).landmarks + torch.tensor([96.0, 0])
    assert (shifted - astronaut_face.landmarks).norm(dim=-1).mean() < 1.0
    mirrored = find_face(piece.flip(-1)).landmarks
    middle = torch.tensor([27, 28, 29, 30, 33, 8, 51, 57, 62, 66])
    flipped = torch.stack([352 - mirrored[middle, 0], mirrored[middle, 1]], -1)
    assert (flipped - shifted[middle]).mean(0).abs().max() < 0.5
    large = torch.nn.functional.interpolate(piece[None], scale_factor=6, mode="bicubic")[0].clamp(0, 1)
    enlarged = find_face(large, DlibDetector(detection_size=512)).landmarks / 6 + torch.tensor([96.0, 0])
    assert (enlarged - astronaut_face.landmarks).mean(0).abs().max() < 0.5


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_photo_is_found(astronaut, astronaut_face, turns):
    piece = astronaut[:, :256, 96:352]
    points = find_face(torch.rot90(piece, turns, (1, 2)).contiguous()).landmarks
    for _ in range(turns):  # rot90 is counter-clockwise: undo it on the points
        points = torch.stack([256 - points[:, 1], points[:, 0]], -1)
    assert (points + torch.tensor([96.0, 0]) - astronaut_face.landmarks).norm(dim=-1).mean() < 2.0


def test_several_faces(astronaut):
    small = torch.nn.functional.interpolate(astronaut[None, :, :256, 96:352], scale_factor=0.75, mode="area")[
        0
    ]
    pair = torch.full((3, 256, 256 + 192), 0.5)
    pair[:, :, 192:], pair[:, :192, :192] = astronaut[:, :256, 96:352], small
    with pytest.warns(UserWarning, match="2 faces"):
        largest = find_face(pair)
    assert largest.landmarks[30, 0] > 192
    assert torch.equal(find_face(pair, index=0).landmarks, largest.landmarks)
    assert find_face(pair, index=1).landmarks[30, 0] < 192
    for index in (2, -1):
        with pytest.raises(errors.FaceIndexError, match="2, counted from 0"):
            find_face(pair, index=index)


def test_a_chance_hit_is_no_second_face(astronaut):
    large = torch.nn.functional.interpolate(astronaut[None], size=(1024, 1024), mode="bicubic")[0]
    assert len(DlibDetector().detect(large.clamp(0, 1))) == 1  # dlib also likes a fold of her suit


def test_no_face():
    noise = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    for picture in (noise, torch.zeros(3, 64, 64)):
        with pytest.raises(errors.NoFaceError):
            find_face(picture)


def test_any_detector_can_be_swapped_in():
    class Fixed:
        def __init__(self, size):
            self.size = size

        def detect(self, image):
            return [Face(torch.zeros(4), oval((50.0, 50.0), self.size), 1.0)]

    picture = torch.zeros(3, 100, 100)
    assert find_face(picture, Fixed(60.0)).size == pytest.approx(60, abs=0.2)
    with pytest.raises(errors.ImageTooSmallError):
        find_face(picture, Fixed(10.0))


# --------------------------------------------------------------------------------------- crops and masks


@pytest.mark.parametrize("size", [200, 240, 256])
def test_crop_maps_points_there_and_back(astronaut, astronaut_face, size):
    crop = crop_face(astronaut, astronaut_face.landmarks, size)
    assert crop.image.shape == (3, size, size) and crop.image.min() >= 0 and crop.image.max() <= 1
    torch.testing.assert_close(crop.to_crop(astronaut_face.landmarks), crop.landmarks)
    torch.testing.assert_close(crop.to_photo(crop.landmarks), astronaut_face.landmarks, atol=1e-3, rtol=0)
    extent = (crop.landmarks.amax(0) - crop.landmarks.amin(0)).max()
    assert float(extent) == pytest.approx(size / 1.6, rel=0.01)
    tight = crop_face(astronaut, astronaut_face.landmarks, size, scale=1, up=0).landmarks
    assert tight.min() > -1.5 and tight.max() < size + 1.5


@pytest.mark.parametrize("size", [20, 80, 200])
def test_crop_pixels_agree_with_the_matrix(size):
    """A smooth picture f(x, y) must have, at every crop pixel, the value f at the mapped point."""
    y, x = torch.meshgrid(torch.arange(160) + 0.5, torch.arange(200) + 0.5, indexing="ij")
    image = torch.stack([x / 200, y / 160, (x + y) / 360])
    crop = crop_face(image, oval((90.3, 80.9), 50.0), size)
    centres = torch.stack(torch.meshgrid(*[torch.arange(size) + 0.5] * 2, indexing="xy"), -1)
    x, y = crop.to_photo(centres).unbind(-1)
    inner = slice(2, -2)
    expected = torch.stack([x / 200, y / 160, (x + y) / 360])
    torch.testing.assert_close(crop.image[:, inner, inner], expected[:, inner, inner], atol=2e-3, rtol=0)
    assert crop.inside.all()


def test_crop_does_not_alias():
    stripes = (torch.arange(400) % 2).float().expand(3, 400, 400)
    assert crop_face(stripes, oval((200.0, 200.0), 200.0), 40).image[:, 2:-2, 2:-2].std() < 0.02


def test_crop_beyond_the_border_says_so():
    crop = crop_face(torch.ones(3, 60, 60), oval((0.0, 30.0), 40.0), 64, up=0)
    assert torch.equal(crop.image, torch.ones(3, 64, 64))
    assert not crop.inside[:, :, :31].any() and crop.inside[:, 2:-2, 33:].all()


def test_paste_puts_a_crop_back(astronaut, astronaut_face):
    crop = crop_face(astronaut, astronaut_face.landmarks, 240)
    mask = landmark_mask(crop.landmarks, 240, 240).float()
    assert (crop.paste(astronaut, crop.image, mask) - astronaut).abs().mean() < 1e-3
    green = crop.paste(astronaut, torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 240, 240), mask)
    expected = landmark_mask(astronaut_face.landmarks, 512, 512)
    painted = (green - torch.tensor([0.0, 1, 0])[:, None, None]).abs().amax(0) < 0.02
    assert (painted ^ expected[0]).sum() < 0.06 * expected.sum()
    far = ~torch.nn.functional.max_pool2d(expected.float(), 7, 1, 3).bool()[0]
    assert torch.equal(green[:, far], astronaut[:, far])


def test_paste_over_the_border():
    photo, points = torch.zeros(3, 60, 60), oval((2.0, 57.0), 40.0)
    crop = crop_face(photo, points, 64)
    painted = crop.paste(photo, torch.ones(3, 64, 64), torch.ones(1, 64, 64)).mean() * 60**2
    assert float(painted) == pytest.approx(float(crop.inside.sum() / crop.matrix[0, 0] ** 2), rel=0.05)


@pytest.mark.parametrize("points", [torch.full((68, 2), torch.nan), torch.zeros(68, 2), torch.zeros(66, 2)])
def test_bad_landmarks(points):
    with pytest.raises(errors.ParameterError):
        crop_face(torch.zeros(3, 100, 100), points)


def test_landmark_mask_has_the_area_of_the_hull():
    points = oval((50.0, 40.0), 60.0)
    full, holed = landmark_mask(points, 90, 100), landmark_mask(points, 90, 100, mouth_hole=True)
    assert full.shape == (1, 90, 100) and full.dtype == torch.bool
    assert float(full.sum()) == pytest.approx(math.pi * 30**2, rel=0.01)
    octagon = 2 * math.sqrt(2) * 7.5**2
    assert float((full & ~holed).sum()) == pytest.approx(octagon, rel=0.06)
    y, x = full[0].nonzero().float().add(0.5).unbind(-1)
    assert abs(x.mean() - 50) < 0.1 and abs(y.mean() - 40) < 0.1  # the half-pixel convention
    with pytest.raises(errors.ParameterError):
        landmark_mask(points * torch.nan, 90, 100)


# ------------------------------------------------------------------------- files that strangers have


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.webp"])
def test_orientation_in_other_formats(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp()).save(tmp_path / name, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1) / 255
    torch.testing.assert_close(load_photo(tmp_path / name), expected)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.bmp", "a.ppm", "a.tif", "a.jp2", "a.avif"])
def test_formats_that_users_have(tmp_path, name):
    more = {"save_all": True, "append_images": [Image.new("RGB", (60, 40))]} if name == "a.gif" else {}
    picture = Image.fromarray(ramp())
    try:
        picture.save(tmp_path / name, **more)
    except (OSError, ValueError, KeyError) as error:  # Pillow was built without it
        pytest.skip(f"{name}: {error}")
    assert (load_photo(tmp_path / name) * 255 - torch.from_numpy(ramp()).permute(2, 0, 1)).abs().mean() < 12


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PSD", "ICO", "TGA"])
def test_other_decoders_are_not_started(tmp_path, kind):
    path = tmp_path / "me.jpg"
    if kind == "PSD":
        path.write_bytes(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 40, 40, 8, 3) + bytes(9000))
    else:
        Image.fromarray(ramp()).save(path, format=kind)
    with pytest.raises(errors.NotAnImageError, match="JPEG or PNG"):
        load_photo(path)


def test_pipes_devices_and_links_out_are_refused(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(ramp()).save(tmp_path / "secret.png")
    Image.fromarray(ramp()).save(folder / "own.png")
    (folder / "within.png").symlink_to("own.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    assert [path.name for path in list_pictures(folder)] == ["own.png", "within.png"]
    for path in (folder / "pipe.png", "/dev/zero", folder):
        with pytest.raises(errors.PhotoNotFoundError, match="pipe or device"):
            load_photo(path)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_grey_of_fewer_bits_in_sixteen(tmp_path, bits, name):
    values = np.linspace(0, 2**bits - 1, 1600).round().astype(np.uint16).reshape(40, 40)
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_allclose(load_photo(tmp_path / name)[0].numpy(), values / (2**bits - 1), atol=1e-6)


def test_a_tag_says_what_white_is(tmp_path):
    values = np.full((40, 40), 1000, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={281: 4095})  # MaxSampleValue
    assert float(load_photo(tmp_path / "a.tif").mean()) == pytest.approx(1000 / 4095, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.jpg", "RGB"), ("a.jpg", "L"), ("a.png", "P"), ("a.png", "I;16"), ("a.png", "RGBA")]
)
def test_what_needs_too_much_memory_is_reduced_then_refused(tmp_path, name, mode):
    x = np.tile(np.arange(601), (403, 1))
    picture = Image.fromarray((x / 3).astype(np.uint8))
    picture = Image.fromarray((x * 100).astype(np.uint16)) if mode == "I;16" else picture.convert(mode)
    picture.save(tmp_path / name)
    whole = load_photo(tmp_path / name)
    with pytest.warns(UserWarning, match="read at 1/2"):
        half = load_photo(tmp_path / name, max_bytes=403 * 601 * 8)
    assert half.shape == (3, 202, 301)
    assert (half - torch.nn.functional.avg_pool2d(whole[None], 2, ceil_mode=True)[0]).abs().max() < 0.02
    with pytest.raises(errors.ImageTooLargeError, match="601×403"):
        load_photo(tmp_path / name, max_bytes=1000)


PEAK = """
import resource, sys
from facelab.photos import load_photo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_photo(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_peak_memory_is_what_the_header_lets_expect(tmp_path, mode):
    """Of 20 megapixels: the result's 12 bytes a pixel and the picture's own, no second copy."""
    Image.new(mode, (5000, 4000)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 20e6 * (12 + Image.new(mode, (1, 1)).im.bands + 3)


NAMES = [
    "-rf.png",
    "my photo (1).png",
    "o'brien.png",
    'a"b$&;.png',
    "a\nb.png",
    "日本 é.png",
    b"\xff\xfe.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name(tmp_path, name, astronaut):
    path = tmp_path / os.fsdecode(name)
    try:
        Image.fromarray(skimage.data.astronaut()[:256, 96:352]).save(path)
    except (OSError, UnicodeError) as error:
        pytest.skip(f"this file system has no such name: {error}")
    for _ in range(2):  # the second time from the cache
        found = PhotoFolder(tmp_path, 64, progress=False)
        assert (
            len(found) == 1
            and found.failures == {}
            and os.fsencode(found[0]["name"]) == os.fsencode(path.name)
        )
    path.write_bytes(b"no picture")
    with pytest.raises(errors.NotAnImageError) as caught:
        load_photo(path)
    assert str(caught.value).encode() and "\n" not in str(caught.value)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Image.fromarray(ramp()).save(tmp_path / "me.png")
    assert load_photo("~/me.png").shape == (3, 40, 60)
    assert list_pictures("~") == [tmp_path / "me.png"]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff",
        b"[" * 100_000,
        b"7",
        b"{}",
        b'{"key": "KEY", "landmarks": [[1e999, 0]]}',
        b'{"key": "KEY", "error": 3}',
    ]
    + [b'{"key": "KEY", "landmarks": "x"}', b'{"key": "KEY"', b"\0"],
)
def test_a_damaged_landmark_file_is_passed_over(tmp_path, line):
    Image.fromarray(skimage.data.astronaut()[:256, 96:352]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    first = PhotoFolder(tmp_path, 64, progress=False)
    cache = tmp_path / "facelab_landmarks.jsonl"
    key = json.loads(cache.read_bytes().splitlines()[0])["key"]
    cache.write_bytes(line.replace(b"KEY", key.encode()))
    again = PhotoFolder(tmp_path, 64, progress=False)
    assert torch.equal(again[0]["landmarks"], first[0]["landmarks"]) and list(again.failures) == ["b.png"]


def test_a_landmark_file_that_cannot_be_written(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    for cache in (tmp_path, tmp_path / "nowhere" / "a.jsonl", tmp_path / "a.png" / "a.jsonl"):
        with pytest.raises(errors.ParameterError, match="another as `cache`"):
            PhotoFolder(tmp_path, 64, cache, progress=False)


# ------------------------------------------------------------------------ faces that strangers have


@pytest.mark.parametrize("shape", [(3000, 32), (32, 3000), (19000, 40), (33, 32), (20000, 33), (40, 300)])
def test_narrow_pictures_have_no_face(shape):
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    for picture in (torch.full((3, *shape), 0.7), noise):
        with pytest.raises(errors.NoFaceError):
            find_face(picture)


def test_what_a_detector_throws_is_named(tmp_path):
    class Broken:
        def __init__(self, error):
            self.error = error

        def detect(self, image):
            raise self.error

    Image.fromarray(ramp()).save(tmp_path / "a.png")
    for error in (RuntimeError("two\nlines"), SystemError(), KeyError(3), MemoryError()):
        with pytest.raises(errors.PhotoError) as caught:
            find_face(torch.zeros(3, 40, 40), Broken(error))
        assert "\n" not in str(caught.value)
        found = PhotoFolder(tmp_path, 64, tmp_path / "kept.jsonl", Broken(error), progress=False)
        assert list(found.failures) == ["a.png"]


def test_a_small_face_in_a_large_picture(astronaut, astronaut_face):
    """41 px of 3,000: seven pixels where faces are searched first."""
    factor = 0.45
    small = torch.nn.functional.interpolate(
        astronaut[None], scale_factor=factor, mode="bilinear", antialias=True
    )
    picture = torch.full((3, 1100, 3000), 0.4)
    picture[:, 700 : 700 + small.shape[2], 2300 : 2300 + small.shape[3]] = small[0]
    found = find_face(picture)
    expected = astronaut_face.landmarks * factor + torch.tensor([2300.0, 700.0])
    assert (found.landmarks - expected).norm(dim=-1).mean() < 0.05 * found.size
    with pytest.raises(errors.NoFaceError):
        find_face(picture, DlibDetector(fallback=False))


def test_threads_find_what_one_alone_finds(astronaut):
    pictures = [astronaut[:, : 300 - 10 * i, 90 + 5 * i : 350].contiguous() for i in range(4)]
    detector = DlibDetector()
    alone = [detector.detect(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, pictures * 2))
    for one, other in zip(alone * 2, together):
        assert len(one) == len(other) == 1 and torch.equal(one[0].landmarks, other[0].landmarks)


@pytest.mark.parametrize("degrees", [15, 45, 75, 120, 165, 200, 290])
def test_any_roll(astronaut, astronaut_face, degrees):
    centre = astronaut_face.landmarks.mean(0)
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    whole = Image.fromarray(skimage.data.astronaut())
    turned = whole.rotate(degrees, Image.Resampling.BICUBIC, center=tuple(centre.tolist()))
    picture = torch.from_numpy(np.array(turned)).permute(2, 0, 1) / 255
    expected = (astronaut_face.landmarks - centre) @ turn.T + centre
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_face(picture)
    assert (found.landmarks - expected).norm(dim=-1).mean() < 3


@pytest.mark.parametrize("side", ["left", "right", "chin"])
def test_a_face_at_the_border(astronaut, astronaut_face, side):
    low, high = astronaut_face.landmarks.amin(0), astronaut_face.landmarks.amax(0)
    cut = 0.2 * (high - low)
    rows, columns = {
        "left": (slice(0, 512), slice(round(float(low[0] + cut[0])), 512)),
        "right": (slice(0, 512), slice(0, round(float(high[0] - cut[0])))),
        "chin": (slice(0, round(float(high[1] - cut[1]))), slice(0, 512)),
    }[side]
    part = astronaut[:, rows, columns].contiguous()
    expected = astronaut_face.landmarks - torch.tensor([float(columns.start), float(rows.start)])
    with pytest.warns(UserWarning, match=r"\d+% of the face lies outside"):
        face = find_face(part)
    crop = crop_face(part, face.landmarks)
    true = landmark_confidence(expected, *part.shape[1:])
    off = (face.landmarks - expected).norm(dim=-1) / astronaut_face.size
    assert off[crop.confidence == 1].mean() < 0.02 < 0.1 and off.mean() < 0.06
    assert (crop.confidence[true == 0] < 0.6).all() and (true == 0).any()
    assert crop.missing == pytest.approx(0.2, abs=0.07)
    assert not crop.inside.all() and crop_face(astronaut, astronaut_face.landmarks).missing == 0


def test_who_is_who(astronaut):
    pair = torch.cat([astronaut[:, :256, 96:352]] * 2, -1)
    pair[:, :, :256] = 0.5
    pair[:, 40:232, 20:212] = torch.nn.functional.interpolate(astronaut[None, :, :256, 96:352], (192, 192))[0]
    faces = find_faces(pair)
    assert [face.size for face in faces] == sorted((face.size for face in faces), reverse=True)
    with pytest.warns(UserWarning, match=r"index= .* FACE="):
        assert torch.equal(find_face(pair).landmarks, faces[0].landmarks)
    shown = np.asarray(number_faces(pair, faces)).astype(int)
    changed = np.abs(shown - (pair * 255).permute(1, 2, 0).numpy()).max(-1) > 60
    for face in faces:
        left, top, right, bottom = (
            round(v) for v in [*face.landmarks.amin(0).tolist(), *face.landmarks.amax(0).tolist()]
        )
        assert (
            changed[top:bottom, left : left + 2].max(1).mean() > 0.8
            and changed[top:bottom, left:right].sum() > 50
        )
