"""The index "equation -> cell -> test" of the five papers, from what the notebooks and tests say.

An equation is marked where it stands: "Eq. 3", "Eqs. 6 to 8", "Eqs. 8, 13, 14" or a formula's tag, in any
cell of the paper's notebooks. Its code is the first code cell that names it, or else the first one below in
the same section. Its tests are the functions of the paper's test files that name it, and the cells that name
it and assert something, or check an exercise whose text names it (`tests/test_notebooks.py` runs them all).
An equation that is nowhere has a reason instead.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
TAG = re.compile(r"\\tag\{(\d+)\}")
NAMED = re.compile(r"\bEqs?\. (\d+(?:(?:,| and|, and| to) \d+)*)")
JUDGED = re.compile(r"^ *assert |\bchecks\.check\(", re.MULTILINE)


@dataclass(frozen=True)
class Paper:
    """A paper, its numbered equations, and where the course has them."""

    key: str
    name: str
    count: int
    """its equations are 1 ... count"""
    notebooks: tuple[str, ...]
    """numbers of the notebooks that teach it"""
    tests: tuple[str, ...]
    """test files in which "Eq. N" means this paper's"""
    cite: str | None = None


PAPERS = (
    Paper("inversefacenet", "InverseFaceNet (2018)", 8, ("40",), ("test_inversefacenet",), "kim2018"),
    Paper("mofa", "MoFA (2017)", 10, ("50",), ("test_mofa",), "tewari2017"),
    Paper(
        "coarse",
        "CoarseNet and FineNet (2017)",
        14,
        ("60", "61"),
        ("test_coarsenet", "test_finenet"),
        "richardson2017",
    ),
    Paper("ganfit", "GANFIT (2019)", 13, ("70", "71"), ("test_ganfit", "test_texture_gan"), "gecer2019"),
    Paper(
        "specular",
        "Expressions and specular albedos (2022)",
        13,
        ("80",),
        ("test_specular", "test_skin_weights", "test_train_specular"),
        "deng2022",
    ),
)
WITHOUT: dict[tuple[str, int], str] = {}
"""(paper, equation) -> why it has no cell"""


@dataclass
class Place:
    """Where an equation is: cells by (notebook, position), tests by "file::function"."""

    text: tuple[str, int] | None = None
    code: tuple[str, int] | None = None
    judged: tuple[str, int] | None = None
    tests: list[str] = field(default_factory=list)


def numbers_in(source: str, tags: bool = True) -> set[int]:
    """The equations that a text names."""
    found = {int(n) for n in TAG.findall(source)} if tags else set()
    for group in NAMED.findall(re.sub(r"\s+#?\s*", " ", source)):
        parts = [int(n) for n in re.findall(r"\d+", group)]
        found |= set(range(parts[0], parts[-1] + 1)) if " to " in group else set(parts)
    return found


def notebooks(paper: Paper, folder: Path) -> dict[str, nbformat.NotebookNode]:
    """The paper's notebooks by name; none until all of them are there."""
    paths = [path for number in paper.notebooks for path in sorted(folder.glob(f"{number}_*.ipynb"))]
    if len(paths) < len(paper.notebooks):
        return {}
    return {path.stem: nbformat.read(path, as_version=4) for path in paths}


def section(cells: list[nbformat.NotebookNode], start: int) -> list[int]:
    """Positions from `start` to the end of its section (the next heading of the second level)."""
    heading = re.compile(r"^##? ", re.MULTILINE)
    for end in range(start + 1, len(cells)):
        if cells[end].cell_type == "markdown" and heading.search(cells[end].source):
            return list(range(start, end))
    return list(range(start, len(cells)))


def places(paper: Paper, folder: Path = ROOT / "notebooks", tests: Path = ROOT / "tests") -> dict[int, Place]:
    """Equation -> where it is, for all that a cell names."""
    found: dict[int, Place] = {}
    for name, notebook in notebooks(paper, folder).items():
        cells = notebook.cells
        for position, cell in enumerate(cells):
            for number in numbers_in(cell.source):
                place = found.setdefault(number, Place())
                if cell.cell_type == "markdown":
                    place.text = place.text or (name, position)
                place.code = place.code or ((name, position) if cell.cell_type == "code" else None)
                if cell.cell_type == "code":
                    last = len(cells) if "checks.register(" in cell.source else position + 1
                    judged = [i for i in range(position, last) if JUDGED.search(cells[i].source)]
                    place.judged = place.judged or ((name, judged[0]) if judged else None)
        for place in found.values():  # only a text names it: the code is below
            if place.code is None and place.text is not None and place.text[0] == name:
                below = [i for i in section(cells, place.text[1]) if cells[i].cell_type == "code"]
                place.code = (name, below[0]) if below else None
    for number, place in found.items():
        place.tests = [test for test, named in named_in_tests(paper, tests).items() if number in named]
    return found


def named_in_tests(paper: Paper, folder: Path) -> dict[str, set[int]]:
    """Test function -> the equations that it names."""
    found = {}
    for path in (folder / f"{name}.py" for name in paper.tests):
        text = path.read_text(encoding="utf8") if path.exists() else ""
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                source = ast.get_source_segment(text, node) or ""
                found[f"{path.name}::{node.name}"] = numbers_in(source, tags=False)
    return found


def missing(paper: Paper, folder: Path = ROOT / "notebooks") -> list[str]:
    """A sentence for each equation that has neither a cell of code nor a reason; empty where all is well."""
    if not notebooks(paper, folder):
        return []
    found = places(paper, folder)
    gone = [n for n in range(1, paper.count + 1) if (n not in found or found[n].code is None)]
    problems = [
        f"{paper.name}: no cell of {', '.join(paper.notebooks)} has code for Eq. {n}; write `Eq. {n}` into "
        f"it, or the reason into WITHOUT of docs/book/equations.py."
        for n in gone
        if (paper.key, n) not in WITHOUT
    ]
    stale = [n for key, n in WITHOUT if key == paper.key and n not in gone]
    problems += [f"{paper.name}: Eq. {n} has a cell now; take it out of WITHOUT." for n in stale]
    strange = [n for n in found if not 1 <= n <= paper.count]
    return problems + [f"{paper.name} has no Eq. {n}, which a cell names." for n in strange]


def title(notebook: nbformat.NotebookNode, position: int) -> str:
    """The heading above a cell."""
    for cell in reversed(notebook.cells[: position + 1]):
        headings = re.findall(r"^#{1,3} (.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and headings:
            return headings[-1]
    return "top"


def page(folder: Path = ROOT / "notebooks") -> str:
    """The index as a page of the book."""
    lines = ["# From equation to cell to test", "", (__doc__ or "").split("\n\n", 1)[1].strip(), ""]
    for paper in PAPERS:
        cite = f" {{cite:p}}`{paper.cite}`" if paper.cite else ""
        lines += [f"## {paper.name}", "", f"{paper.count} numbered equations{cite}."]
        read, found = notebooks(paper, folder), places(paper, folder)
        if not read:
            lines += [f"Not all of it ({', '.join(paper.notebooks)}) is in the course yet.", ""]
            continue
        lines += ["", "| Eq. | told in | code | tested in |", "|---|---|---|---|"]
        for number in range(1, paper.count + 1):
            place = found.get(number, Place())
            if place.code is None:
                lines.append(f"| {number} | {WITHOUT[paper.key, number]} | – | – |")
                continue
            told, code = (link(read, at) for at in (place.text, place.code))
            judged = [link(read, place.judged)] if place.judged else []
            tests = "; ".join([*judged, *(f"`{test}`" for test in place.tests)]) or "–"
            lines.append(f"| {number} | {told} | {code} | {tests} |")
        lines.append("")
    return "\n".join(lines)


def link(read: dict[str, nbformat.NotebookNode], at: tuple[str, int] | None) -> str:
    """A link to a cell; build.py puts the target before it."""
    if at is None:
        return "–"
    name, position = at
    there = f"notebooks/{name}.html#{target(name, position)}"
    part = re.sub(r"^(\d+) · .*", r"§\1", title(read[name], position))
    return f'<a href="{there}">{name[:2]} {part}</a>'


def target(name: str, position: int) -> str:
    """The label of a cell in the book."""
    return f"cell-{name[:2]}-{position}"
