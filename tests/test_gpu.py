"""`make gpu`: its stages in order, kept, stopped and gone on from; and one training in miniature."""

import argparse
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import gpu
import gpu_kit
from gpu import STAGES, Runner, Stage, cut, whole

from facelab.photos import Face
from facelab.photos.packed import PackedPhotos, pack_photos
from facelab.support.errors import CorpusError
from facelab.support.third_party import DLIB_FILES, dlib_file
from facelab.synthetic.augmentation import to_bytes
from facelab.synthetic.renderer import CorpusSpec, Renderer
from facelab.training import load_checkpoint


def runner(tmp_path: Path, minutes: float = 5.0) -> Runner:
    return Runner(
        argparse.Namespace(out=tmp_path / "out", work=tmp_path / "work", device="cpu", minutes=minutes)
    )


def state(tmp_path: Path, name: str) -> str:
    return json.loads((tmp_path / "out" / "stages.json").read_text())[name]["state"]


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stages that are scripts given as text, in place of the real ones."""

    def replace(**scripts: str) -> list[str]:
        made = []
        for name, text in scripts.items():
            path = tmp_path / f"{name}.py"
            path.write_text(text)
            made.append(Stage(name, "", str(path)))
        monkeypatch.setattr(gpu, "STAGES", tuple(made))
        return list(scripts)

    return replace


def test_a_stage_that_is_done_is_not_run_again_and_one_that_failed_is(tmp_path, stages, capsys) -> None:
    count = tmp_path / "count"
    names = stages(
        good=f"open({str(count)!r}, 'a').write('x')", bad="raise SystemExit('what went wrong')", last=""
    )
    for _ in range(2):
        assert not runner(tmp_path).all(names)
    assert count.read_text() == "x"
    assert [state(tmp_path, name) for name in names] == ["done", "failed (1)", "done"]
    assert "what went wrong" in capsys.readouterr().out
    stages(bad="")
    assert runner(tmp_path).all(["bad"]) and state(tmp_path, "bad") == "done"
    stages(good=f"open({str(count)!r}, 'a').write('y')")
    (tmp_path / "out" / "stages.json").write_text("{}")
    assert runner(tmp_path).all(["good"]) and count.read_text() == "xy"


def test_a_stage_is_interrupted_when_time_is_up_so_that_it_can_save(tmp_path, stages, capsys) -> None:
    saved = tmp_path / "saved"
    names = stages(
        slow="import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
        f"    open({str(saved)!r}, 'w').write('saved')\n",
        never="",
    )
    start = time.monotonic()
    assert runner(tmp_path, minutes=0.06).all(names)
    assert time.monotonic() - start < 30
    assert saved.read_text() == "saved" and state(tmp_path, "slow").startswith("stopped")
    assert "never: not begun" in capsys.readouterr().out


def test_stages_that_lack_something_say_what(tmp_path, monkeypatch, capsys) -> None:
    made = Stage("a", "", "-c pass", ("no_such_package",)), Stage("b", "", "-c pass", weights=("mofa",))
    monkeypatch.setattr(gpu, "STAGES", made)
    assert runner(tmp_path).all(["a", "b"])
    said = capsys.readouterr().out
    assert "a: left out: it needs no_such_package" in said and "b: left out: no weights of mofa" in said
    monkeypatch.setattr(gpu, "STAGES", (Stage("c", "", "-c pass", brought="photographs.x"),))
    assert runner(tmp_path).all(["c"])
    assert "c: left out: it needs photographs.x of the kit" in capsys.readouterr().out
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "x.bin").write_bytes(b"1")
    monkeypatch.setattr(gpu, "KIT", kit)
    monkeypatch.setattr(
        gpu, "STAGES", (Stage("a", "", "-c pass", ("no_such_package",), brought="data/x.bin"),)
    )
    assert runner(tmp_path).all(["a"]) and state(tmp_path, "a") == "done"
    assert (tmp_path / "work" / "data" / "x.bin").read_bytes() == b"1"


@pytest.mark.parametrize("size", [0, 99, 100, 101, 350])
def test_large_files_are_cut_and_put_together(tmp_path: Path, monkeypatch, size: int) -> None:
    monkeypatch.setattr(gpu, "PIECE", 100)
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "kept.005").write_bytes(b"of a larger file before")
    cut(tmp_path / "source", tmp_path / "kept")
    assert all(path.stat().st_size <= 100 for path in tmp_path.glob("kept*"))
    assert whole(tmp_path / "kept", tmp_path / "again") and (tmp_path / "again").read_bytes() == data
    assert not whole(tmp_path / "nothing", tmp_path / "again")


def test_weights_of_every_training_are_read_by_the_rows() -> None:
    trainings = {stage.name for stage in STAGES if stage.training}
    rows = [stage for stage in STAGES if stage.weights and not stage.training]
    assert trainings == {name for stage in rows for name in stage.weights} == set(gpu.CHECKPOINTS)
    for stage in STAGES:
        for command in (stage.command, stage.small):
            read = re.findall(r"\{work\}/weights/(\w+)\.safetensors", command)
            assert sorted(read) == sorted(stage.weights)
    assert all(bool(stage.training) == bool(stage.small_training) for stage in STAGES)


def test_the_kit_is_of_locked_wheels_and_another_name_of_fabric(tmp_path: Path, monkeypatch) -> None:
    errors = torch.ones(3, 68, 2)
    monkeypatch.setattr(gpu_kit, "detector_errors", lambda path: save_file({"errors": errors}, path))
    asked = []

    def pip(command: list[str], check: bool) -> None:
        asked.append(Path(command[-1]).read_text())
        assert "--require-hashes" in command and check
        (Path(command[command.index("--dest") + 1]) / "roma-1-py3-none-any.whl").touch()

    monkeypatch.setattr(gpu_kit.subprocess, "run", pip)
    folder, wheel = gpu_kit.pack(tmp_path / "kit")
    assert wheel.name == "roma-1-py3-none-any.whl" and "--hash=sha256:" in asked[0]
    assert re.match(r"roma==[\d.]+ ", asked[0]) and asked[0].count("==") == 1
    brought = {Path(stage.brought).name for stage in STAGES if stage.brought}
    assert brought == {"detector_errors.safetensors", gpu_kit.PHOTOGRAPHS}
    found = Path("detector_errors.safetensors")
    assert torch.equal(load_file(folder / found.name)["errors"], errors)
    fabric = ModuleType("lightning.fabric")
    fabric.Fabric = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.fabric", fabric)
    scope: dict[str, object] = {}
    exec((folder / "lightning_fabric" / "__init__.py").read_text(), scope)
    assert scope["Fabric"] is fabric.Fabric


def test_what_has_no_room_stays_out_of_the_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = gpu_kit.add_recognition(tmp_path, 12 << 20)
    assert said.startswith("a recognition network, 1") and gpu.RECOGNITION.name == gpu_kit.RECOGNITION
    assert (tmp_path / gpu_kit.RECOGNITION).stat().st_size < 12 << 20
    assert "there is room for 1.0" in gpu_kit.add_recognition(tmp_path, 1 << 20)
    assert not (tmp_path / gpu_kit.RECOGNITION).exists()
    monkeypatch.delenv("FACELAB_PHOTOS", raising=False)
    assert "FACELAB_PHOTOS names no folder" in gpu_kit.add_photographs(tmp_path, 1 << 20)
    monkeypatch.setattr(gpu_kit, "dlib_file", lambda name: dlib_file("no such file"))
    monkeypatch.setitem(DLIB_FILES, "no such file", "")
    assert "is not installed" in gpu_kit.add_recognition(tmp_path, 12 << 20)


class Known:
    """A detector for renders whose landmarks are known, in order."""

    def __init__(self, landmarks: Tensor) -> None:
        self.landmarks = landmarks

    def detect(self, image: Tensor) -> list[Face]:
        number = round(float(image[:, 0, 0].mean()) * 255) // 25  # written into the corner
        points = self.landmarks[number]
        box = torch.cat([points.amin(0), points.amax(0)])
        return [Face(box, points, 1.0)] if number else []  # none in the first


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some renders as a file of photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    batch = Renderer(CorpusSpec("portrait", size=120, subdivisions=0, batch=8)).batch(0)
    for number, image in enumerate(batch["image"]):
        image[:, :4, :4] = 25 * number / 255
        Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    (folder / "none.png").write_bytes(b"no picture")
    path = folder / "photographs.safetensors"
    assert pack_photos(folder, path, 96, 1 << 20, Known(batch["landmarks"])) == 7
    small = folder / "small.safetensors"
    assert 0 < pack_photos(folder, small, 96, 16 << 10, Known(batch["landmarks"])) < 7
    assert small.stat().st_size <= 16 << 10
    assert pack_photos(folder, folder / "x", 96, 4096, Known(batch["landmarks"])) == 0
    assert not (folder / "x").exists()
    return path


def test_packed_photographs_are_crops_around_their_faces(packed: Path) -> None:
    photos, smaller = PackedPhotos(packed, 96), PackedPhotos(packed, 48)
    assert len(photos) == 7 and len(list(photos)) == 7
    for item, small in zip(photos, smaller):
        assert item["image"].shape == (3, 96, 96) and item["image"].std() > 0.05
        middle = (item["landmarks"].amin(0) + item["landmarks"].amax(0)) / 2
        assert (middle - 48).abs().max() < 12  # the crop is around the face
        half = torch.nn.functional.avg_pool2d(item["image"], 2)
        assert (half - small["image"]).abs().mean() < 0.02
        torch.testing.assert_close(small["landmarks"], item["landmarks"] / 2)
    data = packed.read_bytes()
    for damaged in (data[:-5], data[:100], b"", save({"jpeg": torch.zeros(3, dtype=torch.uint8)})):
        (packed.parent / "damaged").write_bytes(damaged)
        with pytest.raises(CorpusError, match="pack them again"):
            PackedPhotos(packed.parent / "damaged")


def test_every_stage_in_miniature(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """make gpu GPU="--device cpu --minutes 2", with a kit that has photographs."""
    kit = tmp_path / "kit"
    kit.mkdir()
    shutil.copyfile(packed, kit / "photographs.safetensors")
    monkeypatch.setattr(gpu, "KIT", kit)
    names = [stage.name for stage in STAGES]
    assert runner(tmp_path, 30.0).all(names)
    entries = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert {name: entry["state"] for name, entry in entries.items()} == dict.fromkeys(names, "done")
    for stage in (stage for stage in STAGES if stage.training):
        assert 2 <= entries[stage.name]["steps"] <= 4 and entries[stage.name]["seconds a step"] > 0
        weights, card = load_checkpoint(tmp_path / "out" / "weights" / f"{stage.name}.safetensors")
        assert weights and card["face_model"]
    assert card["photographs"] and card["start"] == "mofa.safetensors"
    rows = "".join(path.read_text() for path in (tmp_path / "out" / "rows").glob("*.csv"))
    assert all(name in rows for name in ("InverseFaceNet (GPU)", "MoFA (GPU)", "MoFA (GPU, photographs)"))
    assert all(path.stat().st_size < 16 << 20 for path in (tmp_path / "out").rglob("*") if path.is_file())
