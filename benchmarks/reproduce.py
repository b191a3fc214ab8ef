"""Make a table or a notebook's figures again, in a folder of their own, beside the committed ones.

    make reproduce TABLE=in_model                     every shipped method on its first three pictures
    make reproduce TABLE=outside METHOD=mofa LIMIT=60
    make reproduce FIGURE=21                          notebook 21 at the preset quick, figure by figure

A table is compared picture by picture: a method that is shipped says the same of the same picture, up to the
rounding of another processor. `TOLERANCE` is what medians of those differences, as shares of the committed
value's median, may be. Figures are compared in levels of 255; those of trainings are chaotic, and differ.
Nothing that is committed is written to. Ends with 1 if something differs by more.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import papermill
import torch
from numpy.typing import NDArray
from PIL import Image

from facelab.evaluation.scoreboard import Row, evaluate, load_rows, markdown
from facelab.evaluation.test_sets import load_test_set
from facelab.methods.base import METHODS, make_method
from facelab.support.errors import ParameterError

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "reproduce"
TOLERANCE = 0.02  # of a measure's median; ten times what AVX2 and AVX-512 differ by in a fit
FIGURE_LEVELS = 3.0  # mean difference of a figure's pixels; committed ones are JPEG or have 256 colours


def differences(now: Row, committed: Row) -> list[dict[str, str | float]]:
    """For every measure that both have: its medians over the same pictures, and how far pictures differ.

    Raises ParameterError if they have no picture in common."""
    lines: list[dict[str, str | float]] = []
    for measure in now.summary():
        new, old = now.values(measure), committed.values(measure)
        both = [name for name in new if name in old]
        if not both:
            continue
        before, after = (np.array([values[name] for name in both]) for values in (old, new))
        middle = float(np.median(np.abs(before)))
        apart = float(np.median(np.abs(after - before))) / max(middle, 1e-9)
        lines.append({
            "method": now.method, "measure": measure, "pictures": len(both), "committed": middle,
            "here": float(np.median(np.abs(after))), "apart, %": 100 * apart,
        })  # fmt: skip
    if not lines:
        raise ParameterError(f"The committed rows have no picture of {now.test_set} for {now.method!r}.")
    return lines


def reproduce_table(test_set: str, names: list[str], limit: int, results: Path = ROOT / "results") -> bool:
    """Print a test set's rows beside the committed ones; whether all are within the tolerance."""
    torch.set_num_threads(1)
    records = load_test_set(test_set, limit)
    committed = {row.method.lower(): row for row in load_rows(results) if row.test_set == test_set}
    lines = []
    for name in names:
        method = make_method(name)
        row = committed.get(method.name.lower())
        if row is None:
            print(f"{method.name}: no row of {test_set} is committed")
            continue
        lines += differences(evaluate(method, records, test_set), row)
    print(markdown(lines))
    far = [line for line in lines if float(line["apart, %"]) > 100 * TOLERANCE]
    print(f"{len(lines) - len(far)} of {len(lines)} measures are the committed ones up to {TOLERANCE:.0%}")
    return not far


def figures(notebook: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Name and pixels (H, W, 3) in levels of every picture among a notebook's outputs."""
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
        for part, output in enumerate(cell.get("outputs", [])):
            for kind in ("image/png", "image/jpeg"):
                if data := output.get("data", {}).get(kind):
                    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
                    opaque = Image.new("RGB", picture.size, "white")
                    opaque.paste(picture, mask=picture.getchannel("A"))
                    yield f"cell {number}, output {part}", np.asarray(opaque, dtype=float)


def reproduce_figures(number: str, out: Path, preset: str = "quick") -> bool:
    """Execute a notebook into `out` and print how far each figure is from the committed one; whether all are
    within `FIGURE_LEVELS`. Raises ParameterError for a number that no notebook has."""
    found = sorted((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    if len(found) != 1:
        raise ParameterError(f"There is no notebook {number!r}; give its number, 21 say.")
    out.mkdir(parents=True, exist_ok=True)
    executed = out / found[0].name
    parameters = {"PRESET": preset, "OUT_DIR": str(out)}
    papermill.execute_notebook(found[0], executed, parameters, cwd=str(found[0].parent), progress_bar=False)
    names = [name for name, _ in figures(found[0])]
    old, new = ([part for _, part in figures(path)] for path in (found[0], executed))
    print(f"{len(new)} figures here, {len(old)} committed; {executed}")
    good = len(new) == len(old)
    for name, before, after in zip(names, old, new):
        same = before.shape == after.shape
        apart = float(np.abs(before - after).mean()) if same else float("nan")
        good &= same and apart < FIGURE_LEVELS
        print(f"{name:24} " + (f"{apart:.2f} levels" if same else "another size"))
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", metavar="SET", choices=("in_model", "outside", "path_traced"))
    what.add_argument("--figure", metavar="NUMBER")
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    parser.add_argument("--limit", type=int, default=3, help="pictures (default 3)")
    parser.add_argument("--out", type=Path, default=RUNS)
    arguments = parser.parse_args()
    if arguments.table:
        good = reproduce_table(arguments.table, arguments.method, arguments.limit)
    else:
        good = reproduce_figures(arguments.figure, arguments.out / arguments.figure)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
