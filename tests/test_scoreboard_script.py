"""benchmarks/scoreboard.py prints rows; the committed ones change only when that is asked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from facelab.evaluation.scoreboard import load_rows
from facelab.model.records import FaceRecord, Reconstruction
from facelab.support.errors import NoFaceError

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script that is run there
spec = importlib.util.spec_from_file_location("scoreboard_script", ROOT / "benchmarks" / "scoreboard.py")
assert spec is not None and spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


class Nobody:
    """A method that finds no face."""

    name = "nobody"

    def reconstruct(self, image: Tensor) -> Reconstruction:
        raise NoFaceError(f"There is no face in {tuple(image.shape)}.")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_printed_and_written_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, runs = tmp_path / "results", tmp_path / "runs"
    sizes = [20]
    monkeypatch.setattr(script, "RESULTS", results)
    monkeypatch.setattr(script, "named_method", lambda _: Nobody())
    monkeypatch.setattr(
        script, "load_test_set", lambda *_: [FaceRecord(f"wall {n}", torch.zeros(3, n, n)) for n in sizes]
    )

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["script", "--set", "in_model", "--runs", str(runs), *options])
        threads = torch.get_num_threads()
        try:
            script.main()
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    assert "nobody" in run("--method", "Nobody", "--write")
    (row,) = load_rows(results)
    assert row.method == "nobody" and len(row.outcomes) == 1
    before = contents(results)
    sizes.append(30)
    assert "nobody" in run("--method", "Nobody")
    assert contents(results) == before, "a committed row was changed without --write"
    assert "nobody" in run("--method", "Nobody", "--results", str(tmp_path / "mine"))
    assert contents(results) == before and not (tmp_path / "mine").exists()
    run("--method", "Nobody", "--write")
    (row,) = load_rows(results)
    assert len(row.outcomes) == 2
    assert not contents(runs), "what a finished run kept to be resumed is gone"
