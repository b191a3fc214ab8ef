"""Faces cut out of folders of photographs."""

import shutil
from pathlib import Path

import pytest
import torch
from skimage.data import astronaut
from skimage.io import imsave

from facelab.photos import Face
from facelab.photos.crops import RAREST, SCALE, SIDE, UP, FaceCrops, cheek_lightness
from facelab.photos.folders import held_out
from facelab.photos.packed import pack_photos
from facelab.support.errors import CorpusError, NoFaceError, PhotoNotFoundError


class Marks:
    """A detector for pictures in which every landmark is a spot: says where they were put."""

    def __init__(self, points: torch.Tensor) -> None:
        self.points = points

    def detect(self, image: torch.Tensor) -> list[Face]:
        low, high = self.points.amin(0), self.points.amax(0)
        found = Face(torch.cat([low, high]), self.points, 1.0)
        return [found] if image.shape[1:] == (240, 240) else []


def spots() -> tuple[torch.Tensor, torch.Tensor]:
    """A grey picture with a bright spot at landmark 30, and the landmarks."""
    angle = torch.linspace(0, 6.2, 68)
    points = torch.stack([120 + 50 * angle.cos(), 125 + 50 * angle.sin()], 1)
    y, x = torch.meshgrid(torch.arange(240) + 0.5, torch.arange(240) + 0.5, indexing="ij")
    spot = torch.exp(-((x - points[30, 0]).square() + (y - points[30, 1]).square()) / 18)
    return (0.2 + 0.7 * spot).expand(3, -1, -1), points


def write(path: Path, image: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, (image * 255).round().byte().permute(1, 2, 0).numpy(), check_contrast=False)


def test_views_move_pictures_and_landmarks_together(tmp_path: Path) -> None:
    image, points = spots()
    write(tmp_path / "photos" / "a.png", image)
    faces = FaceCrops.cut([tmp_path / "photos"], tmp_path / "faces.safetensors", detector=Marks(points))
    assert faces.images.shape == (1, 3, SIDE, SIDE)
    low, high = faces.landmarks[0].amin(0), faces.landmarks[0].amax(0)
    assert float((high - low).max()) == pytest.approx(SIDE / SCALE, rel=0.02)
    generator = torch.Generator().manual_seed(0)
    images, landmarks = faces.views(torch.zeros(16, dtype=torch.long), 120, generator)
    assert images.shape == (16, 3, 120, 120)
    assert landmarks[:, 30].std(0).min() > 1  # px: no two views are the same
    for view, where in zip(images, landmarks[:, 30]):
        weight = (view[0] - 0.35).clamp(min=0)
        axis = torch.arange(120) + 0.5
        centre = torch.stack([(weight.sum(0) * axis).sum(), (weight.sum(1) * axis).sum()]) / weight.sum()
        assert (centre - where).norm() < 0.3


def test_a_file_is_kept_and_a_tenth_of_the_people_left_out(tmp_path: Path) -> None:
    image, points = spots()
    people = [f"person {k}" for k in range(30)]
    for name in people:
        for n in range(2):
            write(tmp_path / "photos" / name / f"{n}.png", image * (1 - 0.01 * n))
    kept = [name for name in people if not held_out(tmp_path / name / "0.png")]
    assert 20 <= len(kept) < 30
    file, folders = tmp_path / "faces.safetensors", [tmp_path / "photos"]
    assert len(FaceCrops.cut(folders, file, detector=Marks(points))) == 2 * len(kept)
    again = FaceCrops.cut(folders, file, detector=None)  # no detector is asked
    assert len(again) == 2 * len(kept)
    with pytest.raises(CorpusError, match="other photographs"):
        FaceCrops.cut(folders, file, 5)
    few = FaceCrops.cut(folders, tmp_path / "few.safetensors", 5, Marks(points))
    assert len(few) == 5
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorpusError, match="damaged"):
        FaceCrops.cut(folders, file)


def test_a_packed_file_holds_the_same_faces(tmp_path: Path) -> None:
    image, points = spots()
    people = [f"person {k}" for k in range(12)]
    for name in people:
        write(tmp_path / "photos" / name / "0.png", image)
    kept = [name for name in people if not held_out(tmp_path / name / "0.png")]
    packed = tmp_path / "packed.safetensors"
    count = pack_photos(tmp_path / "photos", packed, SIDE, 1 << 22, Marks(points), scale=SCALE, up=UP)
    cut = FaceCrops.cut([tmp_path / "photos"], tmp_path / "faces.safetensors", detector=Marks(points))
    unpacked = FaceCrops.unpacked(packed)
    assert count == len(kept) == len(cut) == len(unpacked)
    torch.testing.assert_close(unpacked.landmarks, cut.landmarks, atol=0.02, rtol=0)
    assert (unpacked.images.float() - cut.images.float()).abs().mean() < 3  # of 255: JPEG
    torch.testing.assert_close(unpacked.lightness, cut.lightness, atol=1.5, rtol=0)


def test_folders_without_faces_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoNotFoundError):
        FaceCrops.cut([tmp_path / "empty"], tmp_path / "faces.safetensors")
    write(tmp_path / "nobody" / "a.png", torch.full((3, 100, 100), 0.5))
    with pytest.raises(NoFaceError, match="any of the photographs"):
        FaceCrops.cut([tmp_path / "nobody"], tmp_path / "faces.safetensors", detector=Marks(spots()[1]))
    assert not (tmp_path / "faces.safetensors").exists()


def test_a_found_landmark_is_not_looked_for_again(tmp_path: Path) -> None:
    imsave(tmp_path / "astronaut.png", astronaut()[:240, 80:340], check_contrast=False)
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.move(tmp_path / "astronaut.png", photos / "a.png")
    first = FaceCrops.cut([photos], tmp_path / "faces.safetensors")
    (tmp_path / "faces.safetensors").unlink()  # as if killed before the end
    lines = (tmp_path / "faces.jsonl").read_text()
    second = FaceCrops.cut([photos], tmp_path / "faces.safetensors")
    assert (tmp_path / "faces.jsonl").read_text() == lines
    assert torch.equal(first.images, second.images) and torch.equal(first.landmarks, second.landmarks)


def test_rare_tones_are_drawn_more_often() -> None:
    lightness = torch.cat([torch.full((90,), 65.0), torch.full((10,), 35.0)])
    faces = FaceCrops(torch.zeros(100, 3, 1, 1).byte(), torch.zeros(100, 68, 2), lightness)
    drawn = faces.draw(3, 20_000, 7)
    assert torch.equal(drawn, faces.draw(3, 20_000, 7)) and not torch.equal(drawn, faces.draw(4, 20_000, 7))
    # the rare class's ninth is shown RAREST times as often: 6 · 10 of 6 · 10 + 90
    share = float((lightness[drawn] < 50).float().mean())
    assert share == pytest.approx(RAREST * 10 / (RAREST * 10 + 90), abs=0.02)


def test_lightness_is_that_of_the_lighter_cheek() -> None:
    _, points = spots()
    points = points.clone()
    points[[2, 31, 41]] = torch.tensor([[80.0, 150], [110, 150], [95, 110]])
    points[[14, 35, 46]] = torch.tensor([[160.0, 150], [130, 150], [145, 110]])
    image = torch.full((3, 240, 240), 0.5)
    # sRGB .5 is a luminance of .2140, L* = 116 · .2140^(1/3) - 16
    assert float(cheek_lightness(image, points)) == pytest.approx(53.39, abs=0.05)
    image[:, :, :120] = 0.0
    assert float(cheek_lightness(image, points)) == pytest.approx(53.39, abs=0.05)
