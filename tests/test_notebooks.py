"""Every notebook runs top to bottom through papermill at PRESET=tiny, and what its numbers claim is true."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import symtable
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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


# Run between the cells of a notebook. `numbers` is what it measures, and goes to OUT_DIR/numbers.json.
MUST_FAIL = """
try:
    exec({check!r}, globals())
except Exception as error:
    print("as it should:", type(error).__name__, error)
else:
    raise AssertionError({title!r} + " passes its check " + {how!r})
"""
WRONG = """
def _off(answer, exact={name}):
    if isinstance(answer, (tuple, dict)):
        parts = [_off(part) for part in (answer.values() if isinstance(answer, dict) else answer)]
        return dict(zip(answer, parts)) if isinstance(answer, dict) else tuple(parts)
    return 1.1 * answer if answer.is_floating_point() else answer ^ 1  # the negation of a mask
{name} = lambda *arguments, exact={name}, **named: _off(exact(*arguments, **named))
"""
ELSEWHERE = """
_once = dict(globals().get("numbers", {{}}))
__import__("os").chdir({folder!r})
"""
THE_SAME = """
__import__("os").chdir({folder!r})
_twice = globals().get("numbers", {{}})
assert _twice.keys() == _once.keys(), _twice.keys() ^ _once.keys()
for _key in _once:
    _change = f"{{_key}} is {{_once[_key]}}, then {{_twice[_key]}} in the second run of " + {title!r}
    # an optimisation of many steps repeats to some per cent: sums depend on where memory lies
    _allowed = 1 if isinstance(_once[_key], int) else 1e-6 + 0.1 * abs(_once[_key])
    assert abs(_twice[_key] - _once[_key]) <= _allowed, _change
"""


def failures(unsolved: str, solution: str, check: str, function: str) -> list[str]:
    """Cells that see the check fail without a solution, and with one that is a tenth too large."""
    nothing, wrong = (
        MUST_FAIL.format(check=check, title=function, how=how) for how in ("unsolved", "10 % off")
    )
    return [unsolved, nothing, solution, WRONG.format(name=function), wrong]


def lesson(name: str, home: Path, elsewhere: Path) -> nbformat.NotebookNode:
    """The notebook as a learner runs it who tries everything: each check without a solution and with a
    wrong one first, where it must fail, and every cell twice, in the folder `home` and again in `elsewhere`,
    with the same numbers.

    Trainings (tagged `long`) run once, or twice as well with `make notebooks-test LONG=1`."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    path = ROOT / "notebooks" / "exercises" / f"{name}.ipynb"
    exercise = nbformat.read(path, as_version=4) if path.exists() else notebook
    pairs = zip(exercise.cells, build.solve(exercise, notebook).cells)
    code = [(cell, solved) for cell, solved in pairs if cell.cell_type == "code"]
    cells = []
    for position, (unsolved, cell) in enumerate(code):
        title = cell.source.strip().split("\n")[0]
        tags = cell.metadata.get("tags", [])
        first = nbformat.v4.new_code_cell(cell.source, metadata={"tags": tags})
        if "parameters" in tags:  # papermill puts its own after them
            cells.append(first)
            continue
        if "solution" in tags:
            check, (function,) = (
                code[position + 1][1].source,
                re.findall(r"^def (\w+)", cell.source, re.MULTILINE),
            )
            cells += map(nbformat.v4.new_code_cell, failures(unsolved.source, cell.source, check, function))
        cells.append(first)
        if "long" not in tags or os.environ.get("LONG"):
            again = (ELSEWHERE.format(folder=str(elsewhere)), cell.source)
            again += (THE_SAME.format(folder=str(home), title=title),)
            cells += map(nbformat.v4.new_code_cell, again)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_runs_anywhere_twice_and_its_claims_are_true(name: str, tmp_path: Path) -> None:
    """From a folder that has nothing to do with the repository. Margins: benchmarks/margins.py."""
    home, out, repository = tmp_path / "elsewhere", tmp_path / "out", ROOT / "notebooks" / "exercises"
    home.mkdir()
    before = sorted(repository.rglob("*"))
    nbformat.write(lesson(name, home, repository), tmp_path / "lesson.ipynb")
    papermill.execute_notebook(
        tmp_path / "lesson.ipynb",
        tmp_path / f"{name}.ipynb",
        parameters={"PRESET": "tiny", "OUT_DIR": str(out)},
        cwd=str(home),
        progress_bar=False,
        execution_timeout=300,  # of one cell: a widget that waits for a browser must not hang the tests
    )
    assert not list(home.iterdir()) and sorted(repository.rglob("*")) == before, "files beside the caller"
    left = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert left < 10e6, f"{left / 1e6:.0f} MB are left in OUT_DIR"  # the face model of notebook 10 is 8 MB
    hold(CLAIMS[name], json.loads((out / "numbers.json").read_text()))


@pytest.mark.parametrize("name", [n for n in NAMES if (ROOT / "notebooks/exercises" / f"{n}.ipynb").exists()])
def test_every_blank_can_be_skipped(name: str) -> None:
    exercise, notebook = (
        nbformat.read(ROOT / "notebooks" / folder / f"{name}.ipynb", as_version=4)
        for folder in ("exercises", ".")
    )
    left = build.skipping(exercise, notebook)
    blanks = [c for c in notebook.cells if "solution" in c.metadata.get("tags", [])]
    code = [c.source for c in left.cells if c.cell_type == "code"]
    assert sum(c.count("checks.skip(") for c in code) == len(blanks) > 0, "each blank has a check with a name"
    assert not any("...  # your code" in c for c in code) and code[-1] == "checks.progress()"


@pytest.mark.notebook
def test_an_unsolved_notebook_runs_through_with_skips(tmp_path: Path) -> None:
    (name,) = [name for name in NAMES if name.startswith("21")]  # takes least time
    exercise, notebook = (
        nbformat.read(ROOT / "notebooks" / folder / f"{name}.ipynb", as_version=4)
        for folder in ("exercises", ".")
    )
    nbformat.write(build.skipping(exercise, notebook), tmp_path / "skipped.ipynb")
    papermill.execute_notebook(
        tmp_path / "skipped.ipynb",
        tmp_path / "out.ipynb",
        parameters={"PRESET": "tiny", "OUT_DIR": str(tmp_path / "out")},
        cwd=str(tmp_path),
        progress_bar=False,
        execution_timeout=300,
    )
    last = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text
    blanks = sum("solution" in c.metadata.get("tags", []) for c in notebook.cells)
    assert last.count("skipped") == blanks


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [("correct", 0, ""), ("unsolved", 1, "project"), ("one is wrong", 1, "SH basis")],
)
def test_the_grading_command_of_the_document(kind: str, status: int, message: str, tmp_path: Path) -> None:
    (command,) = re.findall(r"`(papermill [^`]+)`", (ROOT / "docs" / "teaching.md").read_text())
    (name,) = [name for name in NAMES if name.startswith("21")]  # takes least time
    exercise, notebook = (
        nbformat.read(ROOT / "notebooks" / folder / f"{name}.ipynb", as_version=4)
        for folder in ("exercises", ".")
    )
    hand_in = exercise if kind == "unsolved" else build.solve(exercise, notebook)
    if kind == "one is wrong":
        for cell in hand_in.cells:
            cell.source = cell.source.replace("c3 * (3 * z * z - 1)", "c3 * (z * z - 1)")
    words = shlex.split(command)
    nbformat.write(hand_in, tmp_path / words[1])
    ran = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == status and message in ran.stderr, ran.stderr
    assert (tmp_path / words[2]).is_file(), "what was executed shows where it stopped"


def hold(claims: dict[str, Any], numbers: dict[str, float]) -> None:
    """Fail for the first claim that the numbers of a run contradict."""
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


LINK = re.compile(r"\]\((?!https?://|#|data:|attachment:)([^)\s#]+)")


def pages() -> dict[Path, str]:
    """Every page with links: the documents, and the text of each notebook where it lies."""
    found = {path: path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
    for path in (*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/exercises/*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        found[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return found


def test_every_link_leads_to_a_file_that_jupyterlab_serves() -> None:
    """`make lab` serves a folder; what is outside of it is a 404."""
    (command,) = re.findall(r"^\t\$\(BIN\)/jupyter lab (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (folder,) = re.findall(r"--notebook-dir (\S+)", command)
    root, (opened,) = (ROOT / folder).resolve(), re.findall(r"default_url=/lab/tree/(\S+)", command)
    assert (root / opened).is_dir()
    links = [(page, link) for page, text in pages().items() for link in LINK.findall(text)]
    assert len({page for page, _ in links}) > 10, "the notebooks link to docs/conventions.md"
    for page, link in links:
        target = (page.parent / unquote(link)).resolve()
        assert page.is_relative_to(root) and target.is_relative_to(root), f"{page.name}: {link} is not served"
        assert target.exists(), f"{page.name}: {link} leads nowhere"


def made_by(source: str) -> tuple[set[str], set[str], set[str]]:
    """Of a cell: the names that it binds; those that are functions, classes or imports; those that hold a
    random generator or are functions that draw from one."""
    table = symtable.symtable(source, "cell", "exec")
    symbols = {symbol.get_name(): symbol for symbol in table.get_symbols()}
    bound = {n for n, s in symbols.items() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    tools = {n for n, s in symbols.items() if s.is_imported() or s.is_namespace()}
    pairs = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs += zip(target.elts, value.elts) if both else [(target, value)]
    random = {ast.unparse(target) for target, value in pairs if GENERATOR.search(ast.unparse(value))}
    random |= {child.get_name() for child in table.get_children() if read_by(child) & random}
    return bound, tools, random


def read_by(table: symtable.SymbolTable) -> set[str]:
    """The notebook's names that a cell or a function reads, at any depth."""
    top = table.get_type() == "module"
    own = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return own.union(*map(read_by, table.get_children()))


GENERATOR = re.compile(r"(manual_seed|default_rng|Generator)\([^()]*\)$")
DRAWS = "g = torch.Generator().manual_seed(SEED)\ndef draw():\n    return torch.rand(3, generator=g)"


def test_what_is_made_by_a_cell_is_seen() -> None:
    bound, tools, random = made_by(DRAWS)
    assert bound == {"g", "draw"} and tools == {"draw"} and random == {"g", "draw"}
    assert made_by("x, g = 1, np.random.default_rng(SEED)\nimport a.b")[1:] == ({"a"}, {"g"})
    assert made_by("def f(generator):\n    return torch.rand(3, generator=generator)")[2] == set()


@pytest.mark.parametrize("master", MASTERS, ids=NAMES)
def test_cells_can_be_run_again_in_any_order(master: Path) -> None:
    """No cell draws from another's generator, and none takes a function's or a module's name for something
    else; with that, a cell above would do other things than before."""
    code = [cell.source for cell in build.to_notebook(master).cells if cell.cell_type == "code"]
    made = [made_by(source) for source in code]
    for i, (_, tools, random) in enumerate(made):
        for j, source in enumerate(code):
            if i != j:
                assert not tools & made[j][0], f"{tools & made[j][0]} is made anew by the cell\n{source}"
                foreign = random & read_by(symtable.symtable(source, "cell", "exec")) - made[j][0]
                assert not foreign, f"draws from the {foreign} of another cell:\n{source}"


WORDS, LINES = 250, 40  # of a cell
LONG = {
    "00": 1,
    "10": 4,
    "20": 7,
    "21": 7,
    "30": 7,
    "40": 4,
    "50": 2,
    "90": 4,
    "91": 1,
}  # code cells over it; to shrink


@pytest.mark.parametrize("master", MASTERS, ids=NAMES)
def test_cells_are_short(master: Path) -> None:
    cells = build.to_notebook(master).cells
    wordy = [c.source[:60] for c in cells if c.cell_type == "markdown" and len(c.source.split()) > WORDS]
    assert not wordy, f"more than {WORDS} words"
    long = [c.source[:60] for c in cells if c.cell_type == "code" and c.source.count("\n") + 1 > LINES]
    allowed = LONG.get(master.stem[:2], 0)
    assert len(long) <= allowed, f"more than {LINES} lines"
    assert len(long) == allowed, f"{master.stem} has {len(long)} long cells by now: set LONG to it"


@pytest.mark.parametrize("master", MASTERS, ids=NAMES)
def test_a_notebook_says_what_is_learned_and_what_was(master: Path) -> None:
    texts = [c.source for c in build.to_notebook(master).cells if c.cell_type == "markdown"]
    assert texts[0].count("**What you will learn**") == 1 and texts[0].count("\n- ") >= 3
    ends = [t for t in texts if "**What you have now.**" in t or "## What to keep in mind" in t]
    assert len(ends) == 1 and texts.index(ends[0]) >= len(texts) - 4
