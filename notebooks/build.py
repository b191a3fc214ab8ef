"""Make the notebooks that people open from their text masters.

    python notebooks/build.py                  every notebook: convert, execute, write
    python notebooks/build.py 10 20            only those whose number starts so
    python notebooks/build.py --no-execute     sources only, with the outputs that are there

`notebooks/src/NN_name.py` (py:percent, reviewed and linted as Python) becomes `notebooks/NN_name.ipynb`,
executed with the defaults of its parameters cell, and, where cells carry the tag `solution`,
`notebooks/exercises/NN_name.ipynb` with those cells emptied. Cell ids are made from names and positions, so
building twice changes nothing but what the code itself changes. A cell with the tag `solution` keeps what
stands above its line `# SOLUTION`. `long` is for trainings, which the tests run once instead of twice.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import re
import time
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parent
SOURCES = NOTEBOOKS / "src"
EXERCISES = NOTEBOOKS / "exercises"
MARKER = "# SOLUTION"
CHECKED = re.compile(r'checks\.check\("(.+?)"')
JPEG = {"quality": 65, "subsampling": 2, "progressive": True}
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def masters(numbers: list[str] | None = None) -> list[Path]:
    """The text masters in order, all of them or those whose names start with one of `numbers`."""
    paths = sorted(SOURCES.glob("[0-9][0-9]_*.py"))
    return [p for p in paths if not numbers or p.name.startswith(tuple(numbers))]


def to_notebook(master: Path) -> nbformat.NotebookNode:
    """A notebook without outputs, the same bytes each time."""
    notebook = jupytext.read(master)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for position, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{master.stem}/{position}".encode()).hexdigest()[:8]
    return notebook


def to_exercise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The learner's copy: cells tagged `solution` lose what follows the marker. None where there are none."""
    exercise = nbformat.from_dict(notebook)
    found = False
    for cell in exercise.cells:
        if "solution" not in cell.metadata.get("tags", []):
            continue
        if MARKER not in cell.source:
            raise ValueError(f"a cell tagged `solution` has no line `{MARKER}`: {cell.source[:60]!r}")
        cell.source = cell.source.split(MARKER)[0].rstrip() + "\n    ...  # your code"
        found = True
    for cell in exercise.cells:  # one folder further down
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", "](../../")
    exercise.cells.append(nbformat.v4.new_code_cell("checks.progress()", id="progress"))
    return exercise if found else None


def solve(exercise: nbformat.NotebookNode, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The learner's copy with the solutions of `notebook` in it: what a correct hand-in looks like."""
    solved = nbformat.from_dict(exercise)
    for cell, solution in zip(
        solved.cells, notebook.cells
    ):  # a last cell, the progress, is the learner's only
        if "solution" in cell.metadata.get("tags", []):
            cell.source = solution.source
    return solved


def skipping(exercise: nbformat.NotebookNode, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The learner's copy where each blank is skipped: the check below says which exercise it is."""
    left = nbformat.from_dict(exercise)
    waiting: list[nbformat.NotebookNode] = []
    for cell, original in zip(left.cells, notebook.cells):
        if "solution" in original.metadata.get("tags", []):
            waiting.append(cell)
        for name in CHECKED.findall(cell.source):
            if waiting:
                blank = waiting.pop(0)
                blank.source, cell.source = "", f'checks.skip("{name}")\n{cell.source}'
    return left


def keep_outputs(notebook: nbformat.NotebookNode, target: Path) -> None:
    """Take over the outputs of the notebook at `target`, cell by cell, also where its source has changed:
    who builds without executing says that they are still true. A new cell has none."""
    old = [c for c in nbformat.read(target, as_version=4).cells if c.cell_type == "code"]
    new = [c for c in notebook.cells if c.cell_type == "code"]
    pairs = SequenceMatcher(None, [c.source for c in old], [c.source for c in new], autojunk=False)
    for kind, a, b, c, d in pairs.get_opcodes():
        if kind == "equal" or (kind == "replace" and b - a == d - c):
            for before, after in zip(old[a:b], new[c:d]):
                after.outputs, after.execution_count = before.outputs, before.execution_count


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run in `notebooks/`, as a person in JupyterLab would, and drop what differs from run to run."""
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        merged: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            output.get("metadata", {}).pop("execution", None)
            # a widget is alive only in its own session; its picture stays, a progress bar goes
            data = output.get("data", {})
            if data.pop("application/vnd.jupyter.widget-view+json", None) and set(data) <= {"text/plain"}:
                continue
            same = merged and output.output_type == "stream" and merged[-1].get("name") == output.name
            if same:  # a stream arrives in chunks that depend on timing
                merged[-1].text += output.text
            else:
                merged.append(output)
        cell.outputs = merged
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Figures whose JPEG is less than half the PNG, photographs and renders, become JPEG; the others, line
    art, stay PNG with a palette of 256 colours."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
                opaque = Image.new("RGB", picture.size, "white")
                opaque.paste(picture, mask=picture.getchannel("A"))
                jpeg = encoded(opaque, "JPEG", **JPEG)
                if 2 * len(jpeg) < len(png):
                    del output.data["image/png"]
                    output.data["image/jpeg"] = jpeg
                else:
                    output.data["image/png"] = encoded(opaque.quantize(256), "PNG")


def encoded(picture: Image.Image, kind: str, **options: Any) -> str:
    """The bytes of an image file in base 64."""
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, **options)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*")
    parser.add_argument("--no-execute", action="store_true")
    arguments = parser.parse_args()
    EXERCISES.mkdir(exist_ok=True)
    for master in masters(arguments.numbers):
        start = time.perf_counter()
        notebook = to_notebook(master)
        exercise = to_exercise(to_notebook(master))
        if exercise is not None:
            nbformat.write(exercise, EXERCISES / f"{master.stem}.ipynb")
        target = NOTEBOOKS / f"{master.stem}.ipynb"
        if not arguments.no_execute:
            execute(notebook)
            shrink(notebook)
        elif target.exists():
            keep_outputs(notebook, target)
        nbformat.write(notebook, target)
        print(f"{target.name:36s} {time.perf_counter() - start:6.1f} s {target.stat().st_size / 1e3:8.0f} kB")


if __name__ == "__main__":
    main()
