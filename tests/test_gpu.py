"""`make gpu`: its stages in order, kept, stopped and gone on from; and one training in miniature."""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import gpu
import gpu_kit
from gpu import STAGES, Runner, Stage, cut, whole

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
    (rows,) = (stage for stage in STAGES if stage.weights)
    assert trainings == set(rows.weights) == set(gpu.CHECKPOINTS)
    assert all(f"{{work}}/weights/{name}.safetensors" in rows.command for name in trainings)
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
    found = gpu.KIT.parent / Path(next(stage.brought for stage in STAGES if stage.brought)).name
    assert torch.equal(load_file(folder / found.name)["errors"], errors)
    fabric = ModuleType("lightning.fabric")
    fabric.Fabric = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.fabric", fabric)
    scope: dict[str, object] = {}
    exec((folder / "lightning_fabric" / "__init__.py").read_text(), scope)
    assert scope["Fabric"] is fabric.Fabric


def test_inversefacenet_in_miniature(tmp_path: Path) -> None:
    """The real stages from pictures to weights; all of them: make gpu GPU="--device cpu --minutes 20"."""
    assert runner(tmp_path, 10.0).all(["pictures", "inversefacenet"])
    entry = json.loads((tmp_path / "out" / "stages.json").read_text())["inversefacenet"]
    assert entry["state"] == "done" and 2 <= entry["steps"] <= 4 and entry["seconds a step"] > 0
    weights, card = load_checkpoint(tmp_path / "out" / "weights" / "inversefacenet.safetensors")
    assert card["row"] == "unbred" and weights
    assert gpu.take_weights(("inversefacenet",), tmp_path / "out", tmp_path / "work") == []
