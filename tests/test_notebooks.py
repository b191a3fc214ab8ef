"""Every notebook runs top to bottom through papermill at PRESET=tiny, and what its numbers claim is true."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = json.loads((ROOT / "tests" / "notebook_claims.json").read_text())

spec = importlib.util.spec_from_file_location("notebooks_build", ROOT / "notebooks" / "build.py")
assert spec is not None and spec.loader is not None
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

MASTERS = build.masters()
NAMES = [master.stem for master in MASTERS]


def sources(notebook: nbformat.NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(c.cell_type, c.source, tuple(c.metadata.get("tags", []))) for c in notebook.cells]


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_runs_and_its_claims_are_true(name: str, tmp_path: Path) -> None:
    """A notebook writes what it measured to OUT_DIR/numbers.json; margins: benchmarks/margins.py."""
    papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        tmp_path / f"{name}.ipynb",
        parameters={"PRESET": "tiny", "OUT_DIR": str(tmp_path / "out")},
        cwd=str(ROOT / "notebooks"),
        progress_bar=False,
        execution_timeout=300,  # of one cell: a widget that waits for a browser must not hang the tests
    )
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    claims = CLAIMS[name]
    assert claims["less"] and claims["within"], "every notebook states something"
    for less, more, ratio in claims["less"]:
        a, b = (numbers[term] if isinstance(term, str) else term for term in (less, more))
        assert ratio < 1 and a < ratio * b, f"{less} = {a} is not below {ratio} · {more} = {b}"
    for key, (low, high) in claims["within"].items():
        assert low <= numbers[key] <= high, f"{key} = {numbers[key]}, outside [{low}, {high}]"


@pytest.mark.parametrize("master", MASTERS, ids=NAMES)
def test_notebook_is_made_from_its_text_master(master: Path) -> None:
    committed = nbformat.read(ROOT / "notebooks" / f"{master.stem}.ipynb", as_version=4)
    assert sources(committed) == sources(build.to_notebook(master)), "run `make notebooks`"
    assert [c.id for c in committed.cells] == [c.id for c in build.to_notebook(master).cells]


@pytest.mark.parametrize("master", MASTERS, ids=NAMES)
def test_exercise_is_derived_from_the_solution(master: Path) -> None:
    exercise = build.to_exercise(build.to_notebook(master))
    path = ROOT / "notebooks" / "exercises" / f"{master.stem}.ipynb"
    assert path.exists() == (exercise is not None)
    if exercise is not None:
        assert sources(nbformat.read(path, as_version=4)) == sources(exercise), "run `make notebooks`"
        assert not any(build.MARKER in c.source for c in exercise.cells)


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_complete_and_light(name: str) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size <= 1_000_000
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code), "every cell was executed"
    outputs = [o for c in code for o in c.outputs]
    assert not any(o.output_type == "error" for o in outputs)
    assert not any(" at 0x" in o.get("data", {}).get("text/plain", "") for o in outputs), "plt.show()"
    figures = {"image/png", "image/jpeg"}
    assert any(figures & set(o.get("data", {})) for o in outputs), "at least one figure survives on GitHub"


def test_photographs_get_light_and_line_art_stays_sharp() -> None:
    x = np.linspace(0, 1, 200)
    photo = 255 * np.stack([np.sin(9 * x[:, None] * x) ** 2, x[:, None] * x, x[:, None] * (1 - x)], -1)
    photo += np.random.default_rng(0).normal(0, 2, photo.shape)
    art = np.full((200, 200, 3), 255.0)
    art[100] = 0
    cells = [nbformat.v4.new_code_cell("", outputs=[figure(pixels)]) for pixels in (photo, art)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    before = [cell.outputs[0].data["image/png"] for cell in cells]
    build.shrink(notebook)
    assert set(cells[1].outputs[0].data) == {"image/png"} and set(cells[0].outputs[0].data) == {"image/jpeg"}
    jpeg, png = cells[0].outputs[0].data["image/jpeg"], cells[1].outputs[0].data["image/png"]
    shown, lines = (np.asarray(picture(data), dtype=float) for data in (jpeg, png))
    assert len(jpeg) < 0.5 * len(before[0]) and np.abs(shown - photo.clip(0, 255)).mean() < 3
    assert (lines == art).all()


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def figure(pixels: np.ndarray) -> nbformat.NotebookNode:
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    return nbformat.v4.new_output("display_data", data)


def test_there_are_notebooks_and_each_has_a_parameters_cell() -> None:
    assert len(MASTERS) >= 5
    for master in MASTERS:
        tagged = [c for c in build.to_notebook(master).cells if "parameters" in c.metadata.get("tags", [])]
        assert len(tagged) == 1, master.name
        for word in ("PRESET", "DEVICE", "SEED", "OUT_DIR"):
            assert word in tagged[0].source, f"{master.name} misses {word}"


def test_no_committed_notebook_without_a_master() -> None:
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")) == NAMES
