"""What `make reproduce` says of rows and figures that are, and are not, the committed ones."""

from __future__ import annotations

import importlib.util
import io
import sys
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from facelab.evaluation.scoreboard import Outcome, Row, load_rows, save_row
from facelab.support.errors import ParameterError

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script that is run there
spec = importlib.util.spec_from_file_location("reproduce", ROOT / "benchmarks" / "reproduce.py")
assert spec is not None and spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def row(*values: float) -> Row:
    outcomes = [Outcome(f"p{k}", {}, 1.0, {"geometry_mm": v}) for k, v in enumerate(values)]
    return Row("m", "in_model", "full", 0, "CPU", "2", "abc", "abc", "2026-11-28", outcomes)


def scaled(values: dict[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in values.items()}


def test_pictures_are_compared_one_by_one() -> None:
    """Rows of equal medians whose pictures differ are not the same."""
    (same,) = script.differences(row(1, 2, 3), row(1, 2, 3, 4))
    assert same["apart, %"] == 0 and same["pictures"] == 3
    (mixed,) = script.differences(row(3, 2, 1), row(1, 2, 3))
    assert mixed["here"] == mixed["committed"] == 2 and mixed["apart, %"] == 100
    stranger = replace(row(1), outcomes=[Outcome("other", {}, 1.0, {"geometry_mm": 1.0})])
    with pytest.raises(ParameterError, match="no picture"):
        script.differences(stranger, row(1))


def test_the_average_face_is_what_was_committed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (ROOT / "results" / "in_model.csv").read_bytes()
    assert script.reproduce_table("in_model", ["average face"], 1)
    assert "average face" in capsys.readouterr().out
    assert (ROOT / "results" / "in_model.csv").read_bytes() == before
    changed = [
        replace(one, outcomes=[replace(o, values=scaled(o.values, 1.2)) for o in one.outcomes])
        for one in load_rows(ROOT / "results") if one.test_set == "in_model"
    ]  # fmt: skip
    folder = tmp_path / "results"
    for one in changed:
        save_row(one, folder)
    assert not script.reproduce_table("in_model", ["average face"], 1, folder)


def test_a_figures_pixels_are_read_whatever_it_is_kept_as(tmp_path: Path) -> None:
    pixels = np.zeros((8, 9, 3), np.uint8)
    pixels[:, :4] = 200
    outputs = []
    for kind, name in (("PNG", "image/png"), ("JPEG", "image/jpeg")):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        outputs.append(nbformat.v4.new_output("display_data", {name: b64encode(file.getvalue()).decode()}))
    cell = nbformat.v4.new_code_cell("1", outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    found = list(script.figures(tmp_path / "n.ipynb"))
    assert [name for name, _ in found] == ["cell 0, output 0", "cell 0, output 1"]
    assert np.array_equal(found[0][1], pixels) and np.abs(found[1][1] - pixels).mean() < 8


def test_an_unknown_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no notebook '22'"):
        script.reproduce_figures("22", tmp_path)
