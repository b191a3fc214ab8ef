"""facelab/methods/segmentation.py, its network and data_scripts/train_segmentation.py."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage.data import astronaut
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import train_segmentation as script

from facelab.methods import fitting, segmentation
from facelab.methods.segmentation import CLASSES, FACE, Segmentation, skin_mask, visible_part
from facelab.networks.unet import UNet
from facelab.photos import crop_face, find_face
from facelab.photos.crops import CHEEKS
from facelab.support.errors import ModelFileError, NotAnImageError, ParameterError, PhotoNotFoundError
from facelab.training import CHECKPOINTS


class Bright(nn.Module):
    """Stands for a network: what is bright is skin, what is red is mouth."""

    def forward(self, images: Tensor) -> Tensor:
        red, green, _ = images.unbind(1)
        zero = torch.zeros_like(red)
        return 40 * torch.stack([zero, green - 0.5, zero - 9, red - green - 0.5, zero - 9], 1)


def test_the_network_takes_sides_of_whole_steps_and_sees_all_of_the_picture() -> None:
    network = UNet(5, (4, 6, 8)).eval()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = network(images)
    assert logits.shape == (2, 5, 64, 96)
    logits[0, 0, 32, 48].backward()
    assert images.grad is not None and images.grad[1].eq(0).all()  # pictures know nothing of each other
    touched = images.grad[0].abs().sum(0) > 0
    assert touched.any(0).sum() > 30 and touched.any(1).sum() > 30


def test_landmarks_say_where_the_picture_is_looked_at() -> None:
    """A bright patch comes back where it is, in a picture that is no square; beyond the crop is nothing."""
    image = torch.full((3, 150, 260), 0.1)
    image[:, 60:90, 180:210] = 0.9
    image[:, 60:90, 20:40] = 0.9  # too far away
    image[0, 92:110, 180:210], image[1:, 92:110, 180:210] = 0.95, 0.05
    angle = torch.linspace(0, 6.2, 68)
    marks = torch.stack([195 + 30 * angle.cos(), 75 + 30 * angle.sin()], 1)
    found = Segmentation(Bright(), 128)(image, marks)
    assert found.shape == (5, 150, 260)
    torch.testing.assert_close(found.sum(0), torch.ones(150, 260))
    where = found.argmax(0)
    assert (where[62:88, 182:208] == 1).all() and (where[95:107, 183:207] == 3).all()
    assert (where[:, :100] == 0).all() and (where[:55] == 0).all()
    square = image[:, 10:140, 130:260]
    framed = Segmentation(Bright(), 64)(square)
    assert framed.shape == (5, 130, 130) and (framed.argmax(0)[53:76, 53:76] == 1).all()


def test_bad_questions_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="multiple of 32"):
        Segmentation(Bright(), 100)
    with pytest.raises(NotAnImageError):
        Segmentation(Bright(), 64)(torch.rand(4, 64, 64))
    with pytest.raises(ParameterError, match="68 finite"):
        Segmentation(Bright(), 64)(torch.rand(3, 64, 64), torch.zeros(5, 2))
    monkeypatch.setattr(segmentation, "_shipped", lambda: Segmentation(Bright(), 64))
    with pytest.raises(ParameterError, match="no class 'nose'"):
        skin_mask(torch.rand(3, 64, 64), classes=("nose",))
    picture = torch.rand(3, 64, 64)
    both = skin_mask(picture, classes=("skin", "mouth"))
    torch.testing.assert_close(both, skin_mask(picture) + skin_mask(picture, classes=("mouth",)))
    with pytest.raises(ModelFileError):
        Segmentation.load(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match=r"train_segmentation"):
        Segmentation.load(CHECKPOINTS / "mofa.safetensors")


def test_the_shipped_network_knows_cheeks_from_hair_and_from_what_covers_them() -> None:
    """NASA's portrait: cheeks and nose, hair and collar, an eye; a cheek under a painted bar."""
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    marks = find_face(photo).landmarks
    skin = skin_mask(photo, marks)
    assert skin.shape == (512, 512) and skin.min() >= 0 and skin.max() <= 1

    def around(values: Tensor, point: Tensor) -> float:
        x, y = (round(v) for v in point.tolist())
        return float(values[y - 3 : y + 4, x - 3 : x + 4].mean())

    eyes, chin = (marks[36] + marks[45]) / 2, marks[8]
    up = (eyes - chin) / (eyes - chin).norm()
    face = float((eyes - chin).norm())
    cheeks = [marks[list(corners)].mean(0) for corners in CHEEKS]
    shown = [around(skin, point) for point in (*cheeks, marks[30])]
    hidden = [around(skin, point) for point in (eyes + 1.0 * face * up, chin - 0.6 * face * up)]
    assert min(shown) > 0.8 and max(hidden) < 0.2, (shown, hidden)
    x, y = (round(v) for v in cheeks[0].tolist())
    covered = photo.clone()
    covered[:, y - 12 : y + 13, x - 25 : x + 26] = 0.03
    assert around(skin_mask(covered, marks), cheeks[0]) < 0.5 * shown[0]
    both = skin_mask(photo, marks, FACE)
    assert (both >= skin - 1e-6).all() and around(both, marks[36:42].mean(0)) > around(
        skin, marks[36:42].mean(0)
    )


def test_what_covers_a_face_does_not_count_in_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    landmarks = find_face(photo).landmarks
    crop = crop_face(photo, landmarks, 240)
    left, top = crop.landmarks[3].round().long().tolist()
    patch = (slice(top - 12, top + 12), slice(left + 14, left + 38))  # on her cheek
    covered = replace(crop, image=crop.image.clone())
    covered.image[(slice(None), *patch)] = torch.tensor([0.05, 0.5, 0.1])[:, None, None]
    before, after = (visible_part(c)[(0, *patch)].float().mean() for c in (crop, covered))
    assert before > 0.9 and after < 0.5
    assert visible_part(crop)[0, 200, 20] == 0  # her hair and collar

    given: dict[str, Tensor] = {}

    def remember(*arguments: Any) -> list[Any]:
        given["inside"] = arguments[5][0]
        raise ParameterError("enough")

    monkeypatch.setattr(fitting, "fit_photos", remember)
    for mask, expected in ((True, visible_part(crop)), (False, crop.inside)):
        with pytest.raises(ParameterError, match="enough"):
            fitting.reconstruct(photo, mask=mask)
        assert torch.equal(given["inside"], expected)


def test_a_fooled_network_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    crop = crop_face(photo, find_face(photo).landmarks, 240)
    for share, believed in ((0.3, False), (0.8, True)):
        rows = torch.arange(240)[:, None] < crop.landmarks[:, 1].quantile(share)
        monkeypatch.setattr(segmentation, "skin_mask", lambda *_, rows=rows: rows.float().expand(240, 240))
        seen = visible_part(crop)
        assert torch.equal(seen, crop.inside & rows if believed else crop.inside)


def test_the_card_says_how_well_and_for_whom() -> None:
    card = json.loads((CHECKPOINTS / "segmentation.json").read_text())
    found = card["held_out"]
    assert card["licence"] == "that of the photographs" and found["photographs"] > 100
    assert set(found["skin by lightness"]) == set(script.THIRDS)
    assert 0.5 < found["skin"] < 1 and all(0.5 < v < 1 for v in found["skin by lightness"].values())


def test_the_loss_is_that_of_the_set_s_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5, 1, 4, generator=generator)
    labels = torch.tensor([[[1, 2 + 4, script.VISIBLE, script.ALL]]], dtype=torch.uint8)
    p = logits[0, :, 0].softmax(0)
    parts = [-p[0, 0].log(), -(p[1, 1] + p[2, 1]).log(), -p[1:, 2].sum().log()]  # the last says nothing
    torch.testing.assert_close(script.loss_of(logits, labels), torch.stack(parts).mean())


def test_views_move_pictures_and_classes_together() -> None:
    image = torch.full((1, 3, 256, 256), 60, dtype=torch.uint8)
    image[:, :, 100:150, 90:170] = 200
    labels = torch.where(image[:, :1] > 100, 2, 1).byte()
    pairs = script.Labelled(image, labels, torch.ones(1)).rows(torch.zeros(12, dtype=torch.long))
    images, sets = script.views(pairs, 96, torch.Generator().manual_seed(0))
    for view, names in zip(images, sets):
        inside, outside = view.mean(0)[names == 2], view.mean(0)[names == 1]
        assert inside.quantile(0.1) > outside.quantile(0.9)
    assert (images.flatten(1).mean(1).std() > 0.02) and len({int((s == 2).sum()) for s in sets}) > 8


def pairs_in(folder: Path, count: int) -> Path:
    """Rendered faces as a folder of photographs with masks: what is seen of them is skin."""
    folder.mkdir()
    faces = script.rendered(count, 256, 5)
    for k, (image, label) in enumerate(zip(faces.images, faces.labels[:, 0])):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"face{k}.jpg", quality=92)
        Image.fromarray((label == script.VISIBLE).byte().numpy()).save(folder / f"face{k}.png")
    return folder


def run(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *map(str, arguments)])
        script.main()


def test_a_training_from_end_to_end_and_a_kill_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pairs_in(tmp_path / "pairs", 32)
    options = (folder, "--preset", "tiny", "--device", "cpu")
    run(tmp_path / "a", *options)
    steps, loss_of = iter(range(100)), script.loss_of

    def killed(logits: Tensor, labels: Tensor) -> Tensor:
        if next(steps) == 9:
            raise KeyboardInterrupt
        return loss_of(logits, labels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "loss_of", killed)
        run(tmp_path / "b", *options)
    run(tmp_path / "b", *options)
    one, two = (load_file(tmp_path / name / "segmentation.safetensors") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    card = json.loads((tmp_path / "a" / "segmentation.json").read_text())
    assert card["photographs"] + card["held_out"]["photographs"] == 32
    assert set(card["held_out"]["skin by lightness"]) == {"darker", "middle", "lighter"}
    found = Segmentation.load(tmp_path / "a" / "segmentation.safetensors")(torch.rand(3, 90, 70))
    assert found.shape == (len(CLASSES), 90, 70) and bool(found.isfinite().all())
    with pytest.raises(PhotoNotFoundError, match="4 are needed"):
        script.read(tmp_path / "a", apart=False)
