"""Distributions, augmentation, corpora on disk, folders of photographs."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from facelab.model.morphable_model import MorphableModel
from facelab.photos import DlibDetector, Face
from facelab.photos.folders import PhotoFolder
from facelab.rendering.image_formation import render_attributes
from facelab.support.errors import CorpusError, ParameterError, PhotoNotFoundError
from facelab.synthetic.augmentation import (
    Degradations,
    degrade,
    glasses,
    hair,
    hand,
    occlude,
    procedural_backgrounds,
)
from facelab.synthetic.corpora import Corpus, CorpusSpec, CorpusStream, Renderer, build_corpus
from facelab.synthetic.distributions import DISTRIBUTIONS

TINY = CorpusSpec("inversefacenet", seed=3, size=32, subdivisions=0, batch=2)
COUNT, SHARD = 9, 2  # three shards, the last one of a single picture


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "whole"
    assert len(build_corpus(folder, TINY, COUNT, SHARD, progress=False)) == 3
    return folder


# --- distributions ------------------------------------------------------------------------------------------


def test_inversefacenet_draws_what_section_5_prints(model: MorphableModel) -> None:
    distribution = DISTRIBUTIONS["inversefacenet"]
    layout = distribution.layout(model)
    assert layout.names == ("rotation", "shape", "expression", "reflectance", "light")
    parts = layout.split(distribution.sample(model, 20_000, seeded()))

    def is_uniform(values: Tensor, low: float, high: float) -> None:
        width = high - low
        assert low <= values.min() < low + 0.01 * width and high - 0.01 * width < values.max() <= high
        assert (values.mean(0) - (low + high) / 2).abs().max() < 0.015 * width
        assert (values.std(0) - width / math.sqrt(12)).abs().max() < 0.01 * width

    for angle, limit in enumerate((40, 40, 15)):
        is_uniform(parts["rotation"][:, angle].rad2deg(), -limit, limit)
    is_uniform(parts["expression"][:, 1:], -12, 12)
    is_uniform(parts["expression"][:, 0], -12 + 4.8, 12 + 4.8)
    light = parts["light"].unflatten(-1, (9, 3))
    assert torch.equal(light, light[..., :1].expand_as(light)), "monochrome"
    is_uniform(light[:, 1:, 0], -0.2, 0.2)
    is_uniform(light[:, 0, 0], 0.6, 1.2)
    for name in ("shape", "reflectance"):
        assert parts[name].mean(0).abs().max() < 0.04
        assert (parts[name].std(0) - 1).abs().max() < 0.03
        assert 3.5 < parts[name].abs().max() < 7, "normal, not uniform"
    # Eq. 5: the parts are independent.
    columns = torch.cat([part[:, :3] for part in parts.values()], 1)
    correlation = torch.corrcoef(columns[:, :-2].T) - torch.eye(columns.shape[1] - 2)
    assert correlation.abs().max() < 0.04


def test_inversefacenet_meaning(model: MorphableModel) -> None:
    distribution = DISTRIBUTIONS["inversefacenet"]
    layout = distribution.layout(model)
    face = distribution.decode(model, distribution.sample(model, 16, seeded()), 240)
    landmarks = face.landmarks(model)
    box = landmarks.amax(1) - landmarks.amin(1)
    torch.testing.assert_close(box.amax(1), torch.full((16,), 240.0), atol=0.01, rtol=0)
    middle = (landmarks.amax(1) + landmarks.amin(1)) / 2
    torch.testing.assert_close(middle, torch.full((16, 2), 120.0), atol=0.01, rtol=0)
    # The bias on the first expression opens the mouth; a constant light is the shading it says.
    theta = layout.zeros(2)
    theta[1, layout.slice("expression").start] = 4.8
    theta[:, layout.slice("light").start :][:, :3] = 0.9
    face = distribution.decode(model, theta, 240)
    landmarks = face.landmarks(model)
    points = model.landmarks(face.surface(model).vertices)
    gap = (points[:, 62] - points[:, 66])[:, 1]
    assert gap[1] > gap[0] + 1
    flipped = replace(model, expression_basis=-model.expression_basis)  # whatever the basis' sign
    turned = distribution.decode(flipped, theta, 240)
    torch.testing.assert_close(flipped.landmarks(turned.surface(flipped).vertices), points)
    normals = torch.nn.functional.normalize(torch.randn(1, 50, 3, generator=seeded()), dim=-1)
    shading = face.light.shade(normals, normals, normals, torch.ones(1, 50, 3), None).diffuse_shading
    torch.testing.assert_close(shading, torch.full_like(shading, 0.9))


def test_portraits(model: MorphableModel) -> None:
    distribution = DISTRIBUTIONS["portrait"]
    theta = distribution.sample(model, 600, seeded())
    parts = distribution.layout(model).split(theta)
    degrees = parts["rotation"].rad2deg()
    for axis, sigma in enumerate((9, 20, 6)):
        assert 0.85 * sigma < degrees[:, axis].std() < 1.05 * sigma
        assert degrees[:, axis].abs().max() <= 2.51 * sigma
    distance = -parts["translation"][:, 2]
    assert distance.min() > 400 and distance.max() < 2000 and distance.std() > 300
    face = distribution.decode(model, theta, 240)
    landmarks = face.landmarks(model)
    inside = (landmarks > 0) & (landmarks < 240)
    assert inside.all(), "framed"
    fraction = (landmarks.amax(1) - landmarks.amin(1)).amax(1) / 240
    assert fraction.min() > 0.45 and fraction.max() < 0.77 and 0.57 < fraction.mean() < 0.65
    front = torch.tensor([0.0, 0.0, 1.0]).expand(600, 1, 3)
    shading = face.light.shade(front, front, front, torch.ones(600, 1, 3), None).diffuse_shading
    assert shading.min() > 0.3 and shading.max() < 2.5
    assert 0.02 < shading.std(-1).mean() / shading.mean() < 0.15, "lights are a little coloured"


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_landmarks_are_where_the_picture_shows_them(name: str, model: MorphableModel) -> None:
    distribution = DISTRIBUTIONS[name]
    face = distribution.decode(model, distribution.sample(model, 12, seeded(1)), 240)
    landmarks = face.landmarks(model)
    # Each pixel is asked which point of the mean face it shows.
    vertices = face.surface(model).vertices
    shown, mask = render_attributes(vertices, model.triangles, face.camera, model.mean, 240, 240)
    wanted = model.landmarks(model.mean)
    column, row = landmarks.floor().long().clamp(0, 239).unbind(-1)
    batch = torch.arange(12)[:, None]
    off = (shown.permute(0, 2, 3, 1)[batch, row, column] - wanted).norm(dim=-1)
    mouth_nose_eyes = off[:, 27:60]  # the jaw slides along the contour; some hide behind the nose
    assert mouth_nose_eyes.median() < 1.5 and (mouth_nose_eyes < 8).float().mean() > 0.85
    assert mask.any(1).flatten(1).any(1).all()


def test_a_detector_finds_the_landmarks_in_the_picture() -> None:
    batch = Renderer(CorpusSpec("portrait", seed=5, batch=8)).batch(0)
    chosen = torch.cat([torch.arange(27, 36), torch.arange(48, 68)])  # it misjudges rendered eyelids
    errors = []
    for image, truth in zip(batch["image"], batch["landmarks"]):
        for face in DlibDetector().detect(image)[:1]:
            errors.append(float((face.landmarks - truth)[chosen].norm(dim=1).mean()))
    assert len(errors) >= 6
    assert np.median(errors) < 4, "pixels of a picture of 240"


# --- pictures -----------------------------------------------------------------------------------------------


def test_masked_input() -> None:
    batch = Renderer(replace(TINY, size=120)).batch(0)
    assert batch["image"].shape == (2, 3, 120, 120) and batch["mask"].shape == (2, 1, 120, 120)
    assert (batch["image"][~batch["mask"].expand(-1, 3, -1, -1)] == 0).all()
    share = batch["mask"].float().mean((1, 2, 3))
    assert (share > 0.35).all() and (share < 0.8).all(), "the face fills its box"


def test_batches_are_functions_of_their_number() -> None:
    renderer, other = Renderer(TINY), Renderer(TINY)
    first, second = renderer.batch(0), renderer.batch(1)
    again = other.batch(1)
    assert all(torch.equal(second[name], again[name]) for name in second)
    assert not torch.equal(first["parameters"], second["parameters"])
    different = Renderer(replace(TINY, seed=4)).batch(1)
    assert not torch.equal(second["parameters"], different["parameters"])


def test_given_parameters_give_their_pictures() -> None:
    """Breeding renders parameters that it did not draw."""
    renderer = Renderer(TINY)
    batch = renderer.batch(0)
    again = renderer.picture(batch["parameters"], seeded(9))
    assert torch.equal(batch["image"], again["image"])


def test_degradations() -> None:
    images = procedural_backgrounds(8, 64, 64, seeded())
    assert images.shape == (8, 3, 64, 64) and images.min() >= 0 and images.max() <= 1
    assert images.std((2, 3)).mean() > 0.02
    nothing = Degradations(exposure=0, blur=0, noise=0, jpeg=95, probability=0)
    assert torch.equal(degrade(images, nothing, seeded()), images)
    everything = degrade(images, Degradations(probability=1), seeded())
    assert everything.min() >= 0 and everything.max() <= 1 and everything.isfinite().all()
    assert not torch.equal(everything, images)

    def only(**strength: float) -> Tensor:
        return degrade(images, replace(nothing, probability=1, **strength), seeded())

    def roughness(x: Tensor) -> Tensor:
        return x.diff(dim=-1).square().mean((1, 2, 3))

    plain = only()  # JPEG of the best quality remains
    assert (plain - images).abs().mean() < 0.02
    blurred, noisy = only(blur=2.0), only(noise=0.1)
    assert roughness(blurred).mean() < 0.8 * roughness(plain).mean()
    assert (roughness(noisy) > roughness(plain)).all()
    assert (blurred.mean((1, 2, 3)) - plain.mean((1, 2, 3))).abs().max() < 0.01
    ratio = only(exposure=1.0).mean((1, 2, 3)) / plain.mean((1, 2, 3))
    assert ratio.min() < 0.9 and ratio.max() > 1.1
    many = torch.full((200, 3, 8, 8), 128 / 255)  # JPEG does not change grey
    changed = (
        (degrade(many, replace(nothing, noise=0.1, probability=0.3), seeded()) != many).flatten(1).any(1)
    )
    assert 0.2 < changed.float().mean() < 0.4


def test_occluders_cover_what_the_mask_says() -> None:
    renderer = Renderer(CorpusSpec("portrait", size=96, subdivisions=0, batch=8, background="black"))
    batch = renderer.batch(0)
    image, mask, points = batch["image"], batch["mask"], batch["landmarks"]
    untouched = occlude(image, mask, points, 0.0, seeded())
    assert torch.equal(untouched[0], image) and torch.equal(untouched[1], mask)
    covered, visible = occlude(image, mask, points, 1.0, seeded())
    assert covered.min() >= 0 and covered.max() <= 1
    assert not (visible & ~mask).any(), "an occluder makes nothing visible"
    hidden = (mask & ~visible).float().sum((1, 2, 3)) / mask.sum((1, 2, 3))
    assert (hidden > 0.03).all() and (hidden < 0.95).all()
    moved = (covered - image).abs().amax(1, keepdim=True)
    assert moved[mask & ~visible].mean() > 10 * moved[visible].mean(), "what is visible has not changed"


def test_occluders_are_where_they_belong() -> None:
    renderer = Renderer(CorpusSpec("portrait", seed=1, size=128, subdivisions=0, batch=8, background="black"))
    rows = torch.arange(128) + 0.5
    pixels = torch.stack(torch.meshgrid(rows, rows, indexing="ij")[::-1], -1)
    batch = renderer.batch(0)
    for i, points in enumerate(batch["landmarks"]):
        _, frame = glasses(points, pixels, seeded(i))
        y, x = (frame > 0.5).nonzero().float().mean(0) + 0.5
        eyes = points[36:48].mean(0)
        size = (points[8] - eyes).norm()
        assert (torch.stack([x, y]) - eyes).norm() < 0.25 * size, "around the eyes"
        _, wig = hair(points, pixels, seeded(i))
        nose = points[30].long()
        assert wig[nose[1], nose[0]] == 0 and wig[:5].max() > 0.5, "above the face, not over the nose"
        colour, fingers = hand(points, pixels, torch.tensor([0.6, 0.4, 0.3]), seeded(i))
        inside = fingers > 0.5
        assert inside.any() and (colour[0] >= colour[2])[inside].all(), "skin coloured"
        edge = torch.cat([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
        assert edge.any(), "the arm comes from outside the picture"


def test_backgrounds_from_a_folder(tmp_path: Path) -> None:
    colours = {"a.png": (200, 30, 30), "sub/b.jpg": (30, 30, 200)}
    for name, colour in colours.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (90, 60), colour).save(tmp_path / name, quality=95)
    (tmp_path / "c.png").write_bytes(b"not a picture")
    (tmp_path / "notes.txt").write_text("left alone")
    spec = CorpusSpec("portrait", size=48, subdivisions=0, batch=12, background=str(tmp_path))
    with pytest.warns(UserWarning, match=r"c\.png"):
        batch = Renderer(spec).batch(0)
    corners = (batch["image"][:, :, 0, 0] * 255).round()
    expected = torch.tensor(list(colours.values())).float()
    which = (corners[:, None] - expected).abs().amax(-1)
    assert (which.amin(1) <= 3).all(), "each corner shows one of the photographs"
    assert set(which.argmin(1).tolist()) == {0, 1}
    for name in colours:
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(PhotoNotFoundError, match="another folder"), pytest.warns(UserWarning):
        Renderer(replace(spec, size=40)).batch(0)
    with pytest.raises(PhotoNotFoundError, match="no pictures"):
        Renderer(replace(spec, background=str(tmp_path / "nowhere")))


def test_bad_settings() -> None:
    for bad in ({"distribution": "nobody"}, {"size": 0}, {"batch": 0}, {"occluders": 1.5}, {"seed": -1}):
        with pytest.raises(ParameterError):
            CorpusSpec(**bad)
    for flaw in ({"jpeg": 96}, {"blur": -1.0}, {"probability": 2.0}):
        with pytest.raises(ParameterError):
            Degradations(**flaw)


# --- corpora on disk ----------------------------------------------------------------------------------------


def test_a_corpus_returns_what_was_rendered(whole: Path) -> None:
    corpus = Corpus(whole)
    assert len(corpus) == COUNT == len(list(iter(corpus)))
    renderer = Renderer(TINY)
    assert corpus.layout == DISTRIBUTIONS["inversefacenet"].layout(renderer.model)
    for index in (0, 3, 8):
        batch = renderer.batch(index // 2)
        expected = {name: part[index % 2] for name, part in batch.items()}
        item = corpus[index]
        assert (item["image"] - expected["image"]).abs().max() <= 0.5 / 255 + 1e-6
        for name in ("mask", "landmarks", "parameters"):
            torch.testing.assert_close(item[name], expected[name])
    manifest = json.loads((whole / "corpus.json").read_text())
    assert manifest["spec"]["seed"] == 3 and manifest["format"] == 1
    assert all(len(shard["sha256"]) == 64 for shard in manifest["shards"])
    item = corpus[3]
    for value in item.values():  # what a user does to an item stays out of the corpus
        value.zero_()
    assert all(bool(value.any()) for value in corpus[3].values())
    assert torch.equal(pickle.loads(pickle.dumps(corpus))[3]["image"], corpus[3]["image"])
    loaded = next(iter(DataLoader(corpus, batch_size=4, num_workers=1)))
    assert loaded["image"].shape == (4, 3, 32, 32) and loaded["mask"].dtype == torch.bool


def test_interrupted_and_resumed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = Renderer.batch

    def fails(self: Renderer, index: int) -> dict[str, Tensor]:
        if index == 3:  # in the middle of the second shard
            raise KeyboardInterrupt
        return rendered(self, index)

    monkeypatch.setattr(Renderer, "batch", fails)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path, TINY, COUNT, SHARD, progress=False)
    assert "shard_000001.safetensors" not in files(tmp_path)
    with pytest.raises(CorpusError, match="not finished"):
        Corpus(tmp_path)
    (tmp_path / ".facelab-77-0.tmp").write_bytes(b"half a sh")  # what a kill leaves behind
    monkeypatch.undo()
    made = build_corpus(tmp_path, TINY, COUNT, SHARD, progress=False)
    assert made == ["shard_000001.safetensors", "shard_000002.safetensors"], "the first is kept"
    assert files(tmp_path) == files(whole)
    assert build_corpus(tmp_path, TINY, COUNT, SHARD, progress=False) == []
    assert files(tmp_path) == files(whole)


def test_a_file_is_there_as_a_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        if b"landmarks" in data[:2000] and b"F32" in data[:2000]:  # a shard, not the list of them
            written(self, data[: len(data) // 2])
            raise KeyboardInterrupt
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path, TINY, 2, 1, progress=False)
    assert set(files(tmp_path)) == {"corpus.json"}


def test_killed_and_resumed(tmp_path: Path) -> None:
    """The same with a real SIGKILL, and with worker processes."""
    code = (
        "from facelab.synthetic.corpora import *\nimport sys\n"
        f"build_corpus(sys.argv[1], {TINY!r}, 200, 4, workers=int(sys.argv[2]), progress=False)"
    )
    killed, clean = tmp_path / "killed", tmp_path / "clean"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, str(killed), "0"], env=environment)
    deadline = time.monotonic() + 60
    while not (killed / "shard_000002.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= len(list(killed.glob("*.safetensors"))) < 25, "killed in the middle"
    made = build_corpus(killed, TINY, 200, 4, workers=2, progress=False)
    assert 0 < len(made) < 25
    build_corpus(clean, TINY, 200, 4, progress=False)
    assert files(killed) == files(clean)


def test_ranks_share_the_shards(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        made.append(build_corpus(tmp_path, TINY, COUNT, SHARD, progress=False))
        if rank == "1":
            with pytest.raises(CorpusError, match="not finished"):
                Corpus(tmp_path)
    assert made == [["shard_000001.safetensors"], ["shard_000000.safetensors", "shard_000002.safetensors"]]
    assert files(tmp_path) == files(whole)


def test_streams_share_the_batches(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = torch.stack([item["parameters"] for item in iter(Corpus(whole))])
    alone = [batch["parameters"] for batch in CorpusStream(TINY, stop=5)]
    torch.testing.assert_close(torch.cat(alone)[:COUNT], stored)
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        loader = DataLoader(CorpusStream(TINY, start=1, stop=8), batch_size=None, num_workers=2)
        seen += [batch["parameters"] for batch in loader]
    expected = [Renderer(TINY).batch(k)["parameters"] for k in range(1, 8)]
    assert len(seen) == 7
    assert sorted(float(p.sum()) for p in seen) == sorted(float(p.sum()) for p in expected)


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for name, data in files(folder).items():
        (target / name).write_bytes(data)
    return target


def test_a_changed_shard_is_named(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path / "copy")
    path = folder / "shard_000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"shard_000001\.safetensors' is damaged or was changed"):
        Corpus(folder)
    assert len(Corpus(folder, verify=False)) == COUNT
    path.write_bytes(data[:300])
    with pytest.raises(CorpusError, match=r"shard_000001.*cannot be read"):
        Corpus(folder, verify=False)[5]
    with pytest.warns(UserWarning, match=r"shard_000001.*made again"):
        assert build_corpus(folder, TINY, COUNT, SHARD, progress=False) == ["shard_000001.safetensors"]
    assert files(folder) == files(whole)
    path.unlink()
    with pytest.raises(CorpusError, match=r"shard_000001.*missing"):
        Corpus(folder)


def test_other_corpora_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="differs in spec"):
        build_corpus(whole, replace(TINY, seed=4), COUNT, SHARD, progress=False)
    with pytest.raises(CorpusError, match="differs in count"):
        build_corpus(whole, TINY, COUNT + 1, SHARD, progress=False)
    with pytest.raises(ParameterError):
        build_corpus(tmp_path, TINY, 0)
    with pytest.raises(CorpusError, match="no corpus"):
        Corpus(tmp_path)
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(CorpusError, match="damaged"):
        Corpus(tmp_path)


# --- photographs --------------------------------------------------------------------------------------------


class CountingDetector:
    """Finds a face in the middle of a picture unless it is black."""

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, image: Tensor) -> list[Face]:
        self.calls += 1
        if image.max() == 0:
            return []
        _, height, width = image.shape
        middle = torch.tensor([width / 2, height / 2])
        ring = torch.linspace(0, 6, 68)
        points = middle + 40 * torch.stack([ring.cos(), ring.sin()], -1)
        return [Face(torch.cat([middle - 40, middle + 40]), points, 1.0)] * 2


def picture(path: Path, value: int, size: tuple[int, int] = (200, 150)) -> None:
    Image.new("RGB", size, (value, value, value)).save(path)


def test_photo_folder(tmp_path: Path) -> None:
    folder, cache = tmp_path / "photos", tmp_path / "cache.jsonl"
    folder.mkdir()
    picture(folder / "a.png", 120)
    picture(folder / "b.png", 200, (160, 160))
    picture(folder / "empty.png", 0)
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")

    def read() -> tuple[PhotoFolder, int]:
        detector = CountingDetector()
        photos = PhotoFolder(folder, 64, cache, detector, progress=False)
        return photos, detector.calls

    photos, calls = read()
    assert calls == 3 and len(photos) == 2
    assert photos.failures.keys() == {"empty.png", "torn.jpg"}
    assert photos.failures["empty.png"].startswith("NoFaceError")
    assert photos.failures["torn.jpg"].startswith("TruncatedImageError")
    item = photos[1]
    assert item["name"] == "b.png" and item["image"].shape == (3, 64, 64)
    assert item["image"].mean() == pytest.approx(200 / 255, abs=0.01)
    assert item["landmarks"].min() > 0 and item["landmarks"].max() < 64

    again, calls = read()
    assert calls == 0 and again.failures == photos.failures
    torch.testing.assert_close(again[0]["landmarks"], photos[0]["landmarks"])
    (folder / "a.png").rename(folder / "moved.png")
    assert read()[1] == 0, "known by its content"
    picture(folder / "b.png", 90, (160, 160))
    assert read()[1] == 1, "a changed picture is looked at again"
    cache.write_text(cache.read_text()[:-30])  # killed while writing
    assert read()[1] == 1
    photos, calls = read()
    assert calls == 0 and len(photos) == 2
    with pytest.raises(PhotoNotFoundError):
        PhotoFolder(tmp_path / "photos" / "nothing")


def test_photo_folder_with_workers(tmp_path: Path) -> None:
    for k in range(5):
        picture(tmp_path / f"{k}.png", 50 + k)
    photos = PhotoFolder(tmp_path, 32, detector=CountingDetector(), workers=2, progress=False)
    assert [photos[k]["name"] for k in range(len(photos))] == [f"{k}.png" for k in range(5)]
    assert (tmp_path / "facelab_landmarks.jsonl").read_text().count("\n") == 5
