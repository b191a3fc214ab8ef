"""How a notebook begins: wrong parameters are refused in one sentence before anything is computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from facelab.course import notebook as course
from facelab.course.notebook import begin, check_device, make_folder, repository
from facelab.support.errors import ParameterError

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {"tiny": {"size": 60}, "quick": {"size": 120}}
DEFAULTS = 'PRESET = "tiny"\nDEVICE = "cpu"\nSEED = 0\nOUT_DIR = ""\nPHOTO = ""\nFACE = -1'


def variables(folder: Path, **changed: Any) -> dict[str, Any]:
    """The globals of a notebook whose parameters are right but for `changed`."""
    right = {"PRESET": "tiny", "DEVICE": "cpu", "SEED": 0, "OUT_DIR": str(folder / "out")}
    return right | {"PHOTO": "", "FACE": -1} | changed


def refused(changed: dict[str, Any], folder: Path) -> str:
    """The one sentence that a wrong parameter gets."""
    with pytest.raises(ParameterError) as caught:
        begin("90_scoreboard", variables(folder, **changed), PRESETS)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


WRONG = {
    "SEED": [-1, 2**32, 10**30, 0.0, 1.5, float("nan"), True, None, "0", "", [0], (1,), {}],
    "PRESET": ["Tiny", "tiny ", "", "fast", None, 0, True, ["tiny"], {"tiny": 1}, b"tiny"],
    "DEVICE": [
        "",
        "gpu",
        "CPU ",
        "cpu:x",
        "cuda:99",
        "cuda:-1",
        "meta",
        "hpu",
        None,
        0,
        1.5,
        True,
        b"cpu",
        {},
    ],
    "OUT_DIR": [None, 5, True, ["runs"], b"runs", "a\0b", "x" * 300, "~nobody_of_this_name/runs"],
    "PHOTO": [None, 5, True, ["me.jpg"], b"me.jpg"],
    "FACE": ["1", "", 1.0, 1.5, True, None, [1]],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_refused_by_name(name: str, tmp_path: Path) -> None:
    for value in WRONG[name]:
        message = refused({name: value}, tmp_path)
        assert name in message or (name == "OUT_DIR" and "results" in message), (value, message)
        assert repr(value)[:20] in message, (value, message)


def test_right_parameters_give_the_preset_and_a_folder(tmp_path: Path) -> None:
    for seed in (0, 1, 2**32 - 1):
        preset, out = begin("90_scoreboard", variables(tmp_path, SEED=seed), PRESETS)
        assert preset is PRESETS["tiny"] and out.is_dir() and out.is_absolute()
    for place in (tmp_path / "a path" / "of several", str(tmp_path / "日本 é")):
        assert begin("x", variables(tmp_path, OUT_DIR=place), PRESETS)[1].is_dir()
    few = {"PRESET": "quick", "DEVICE": "cpu", "SEED": 3, "OUT_DIR": str(tmp_path)}  # no PHOTO, no FACE
    assert begin("x", few, PRESETS)[0] is PRESETS["quick"]
    assert begin("x", few | {"PHOTO": tmp_path / "me.jpg"}, PRESETS)[0] is PRESETS["quick"]


def test_a_place_for_results_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("mine")
    for place in (file, file / "below", file / "far" / "below", "/dev/null", "/dev/null/x"):
        assert repr(str(place)) in refused({"OUT_DIR": str(place)}, tmp_path)
    assert file.read_text() == "mine"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(course.tempfile, "TemporaryFile", full)  # permissions do not stop every user
    with pytest.raises(ParameterError, match="No space left on device"):
        make_folder(tmp_path / "out")


def test_folders_of_the_home_and_relative_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    monkeypatch.chdir(tmp_path)
    assert make_folder("~/a") == tmp_path / "a"
    assert make_folder("b/c") == tmp_path / "b" / "c"
    assert not list((tmp_path / "a").iterdir()), "what was tried is gone"


def test_the_default_place_is_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    monkeypatch.setattr(course, "__file__", str(tmp_path / "facelab" / "course" / "notebook.py"))
    monkeypatch.chdir(Path(tmp_path.anchor))
    _, out = begin("20_rasterizer", variables(tmp_path, OUT_DIR=""), PRESETS)
    assert out == tmp_path / "runs" / "20_rasterizer" and out.is_dir()


def test_the_repository_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path, ROOT / "notebooks" / "exercises", Path(tmp_path.anchor)):
        monkeypatch.chdir(place)
        assert repository("results") == ROOT / "results"
    with pytest.raises(ParameterError, match="no_such_part"):
        repository("no_such_part")
    # installed elsewhere, as `pip install .` does: a clone around the present folder, or none
    monkeypatch.setattr(
        course, "__file__", str(tmp_path / "site-packages" / "facelab" / "course" / "notebook.py")
    )
    monkeypatch.chdir(ROOT / "notebooks" / "exercises")
    assert repository("results") == ROOT / "results"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=re.escape(repr(str(tmp_path)))):
        repository("results")


def test_devices_of_this_machine() -> None:
    assert check_device("cpu").type == "cpu"


def small_notebook(folder: Path) -> Path:
    """A notebook that begins as those of the course do."""
    parts = [
        ("from facelab.course.notebook import begin\nLIMIT = 3", []),
        (DEFAULTS, ["parameters"]),
        (f"preset, out = begin('x', globals(), {PRESETS!r})", []),
    ]
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, tags in parts]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel | {"language_info": {"name": "python"}})
    nbformat.write(notebook, folder / "small.ipynb")
    return folder / "small.ipynb"


def executed(folder: Path, **parameters: Any) -> list[str]:
    """IPython's `In` when papermill has executed the small notebook with these parameters."""
    notebook = papermill.execute_notebook(small_notebook(folder), None, parameters, prepare_only=True)
    cells = [cell.source for cell in notebook.cells]
    assert any(source.startswith(course.INJECTED) for source in cells), "papermill's cell looks different"
    return ["", *cells]


MISTYPED = {
    "PRESETS": "PRESET", "preset": "PRESET", "Seed": "SEED", "SED": "SEED", "OUTDIR": "OUT_DIR",
    "out_dir": "OUT_DIR", "DEVICES": "DEVICE", "PHOTOS": "PHOTO",
}  # fmt: skip


@pytest.mark.parametrize("name", [*MISTYPED, "colour", "x"])
def test_a_parameter_that_the_notebook_has_not(name: str, tmp_path: Path) -> None:
    message = refused({"In": executed(tmp_path, **{name: 1}, PRESET="quick")}, tmp_path)
    wanted = f"did you mean {MISTYPED[name]}?" if name in MISTYPED else "there are DEVICE, FACE"
    assert repr(name) in message and wanted in message


def test_its_own_parameters_and_magics_pass(tmp_path: Path) -> None:
    cells = ["%matplotlib inline", "!ls", "def f(:", *executed(tmp_path, PRESET="tiny", FACE=0), "later = 1"]
    assert begin("x", variables(tmp_path, In=cells), PRESETS)[0] is PRESETS["tiny"]


@pytest.mark.notebook
def test_papermill_stops_at_a_mistyped_parameter(tmp_path: Path) -> None:
    notebook = small_notebook(tmp_path)
    parameters = {"PRESSET": "tiny", "OUT_DIR": str(tmp_path / "out")}
    with pytest.raises(PapermillExecutionError, match="did you mean PRESET"):
        papermill.execute_notebook(notebook, None, parameters, progress_bar=False, cwd=str(tmp_path))
    assert not (tmp_path / "out").exists()
