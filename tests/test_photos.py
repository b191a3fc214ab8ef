import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms

from facelab import errors
from facelab.photos import (
    DlibDetector,
    Face,
    check_image,
    crop_face,
    find_face,
    landmark_mask,
    load_photo,
    skin_mask,
)


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
        (lambda t: png_header(30_000, 100), errors.ImageTooLargeError),
        (lambda t: png_header(11_000, 11_000), errors.ImageTooLargeError),  # Pillow itself would only warn
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


def test_max_pixels(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    with pytest.raises(errors.ImageTooLargeError, match="60×40"):
        load_photo(tmp_path / "a.png", max_pixels=2000)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (torch.full((3, 40, 40), torch.nan), errors.NotAnImageError),
        (torch.full((3, 40, 40), 200.0), errors.NotAnImageError),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), errors.NotAnImageError),
        (torch.zeros(40, 40, 3), errors.NotAnImageError),
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


def test_skin_mask():
    face_index = torch.tensor([[[-1, 0], [1, 2]]])
    region = torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert skin_mask(face_index, region).tolist() == [[[[False, True], [False, False]]]]
    assert skin_mask(face_index, region, (0, 2)).tolist() == [[[[False, True], [False, True]]]]
