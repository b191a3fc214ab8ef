"""The book: what it gathers, the index of equations, its check for broken links, its packages."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from data_scripts.lock import BOOK, ROOT, requirement

sys.path.insert(0, str(ROOT / "docs" / "book"))
spec = importlib.util.spec_from_file_location("book_build", ROOT / "docs" / "book" / "build.py")
assert spec is not None and spec.loader is not None
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
equations = build.equations
slides = importlib.import_module("slides")

PAPERS = {paper.key: paper for paper in equations.PAPERS}


# --------------------------------------------------------------------------------------- index of equations


@pytest.mark.parametrize("key", PAPERS)
def test_every_numbered_equation_has_code_or_a_reason(key: str) -> None:
    """Also of a paper whose notebook comes later: then of all its equations at once."""
    assert not equations.missing(PAPERS[key])


@pytest.mark.parametrize("key", ["inversefacenet", "mofa", "coarse"])
def test_every_equation_is_tested(key: str) -> None:
    found = equations.places(PAPERS[key])
    untested = [n for n, place in found.items() if place.judged is None and not place.tests]
    assert not untested, f"name Eq. {untested} where it is asserted, in a cell or in {PAPERS[key].tests}"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("see Eq. 3.", {3}),
        ("Eqs. 6 to 8 and more", {6, 7, 8}),
        ("(Eqs. 8, 13, 14)", {8, 13, 14}),
        ("Eqs. 4 and 5", {4, 5}),
        ("over a line, Eq.\n5", {5}),
        (r"$$x = 1.\tag{12}$$", {12}),
        ("Section 3, Table 4, Eqn 5, equation 6", set()),
    ],
)
def test_what_names_an_equation(text: str, named: set[int]) -> None:
    assert equations.numbers_in(text) == named


def paper_of(folder: Path, cells: list[tuple[str, str]]) -> list[str]:
    """What is missing where a notebook of a paper with two equations has these cells."""
    make = {"text": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(cells=[make[kind](source) for kind, source in cells])
    nbformat.write(notebook, folder / "40_paper.ipynb")
    return equations.missing(equations.Paper("paper", "Paper", 2, ("40",), ()), folder)


def test_an_equation_without_code_is_found(tmp_path: Path) -> None:
    both = [("text", "## A\n\nEq. 1"), ("code", "x = 1"), ("text", "## B"), ("code", "y = 2  # Eq. 2")]
    assert paper_of(tmp_path, both) == []
    (gone,) = paper_of(tmp_path, both[:2])
    assert "Eq. 2;" in gone
    (gone,) = paper_of(tmp_path, [both[0], ("text", "## B"), both[3]])
    assert "Eq. 1;" in gone, "the code below is another section's"
    (strange,) = paper_of(tmp_path, [*both, ("text", "Eq. 3")])
    assert "no Eq. 3" in strange
    assert equations.missing(equations.Paper("paper", "Paper", 2, ("41",), ()), tmp_path) == []
    half = equations.Paper("paper", "Paper", 2, ("40", "41"), ())
    assert equations.missing(half, tmp_path) == [], "one of two notebooks is there"


def test_a_reason_replaces_a_cell_and_goes_when_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(equations.WITHOUT, ("paper", 2), "It is a definition.")
    cells = [("text", "Eq. 1"), ("code", "x = 1")]
    assert paper_of(tmp_path, cells) == []
    (stale,) = paper_of(tmp_path, [*cells, ("code", "Eq. 2")])
    assert "take it out" in stale


def test_the_page_names_tests_and_cells() -> None:
    text = equations.page()
    for paper in PAPERS.values():
        rows = text.partition(f"## {paper.name}\n")[2].partition("\n## ")[0]
        if equations.notebooks(paper, ROOT / "notebooks"):
            assert re.findall(r"^\| (\d+) \|", rows, re.MULTILINE) == [str(n + 1) for n in range(paper.count)]
    assert "test_inversefacenet.py::" in text and "test_mofa.py::" in text


def test_every_paper_is_in_the_bibliography() -> None:
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "docs/book/references.bib").read_text(), re.MULTILINE)
    assert len(keys) == len(set(keys)) and {paper.cite for paper in PAPERS.values()} <= set(keys)


# ------------------------------------------------------------------------------------------ what is gathered


def test_every_page_and_notebook_is_gathered(tmp_path: Path) -> None:
    build.stage(tmp_path / "source")
    gathered = {str(p.relative_to(tmp_path / "source")) for p in (tmp_path / "source").rglob("*")}
    for path in [*ROOT.glob("notebooks/[0-9]*.ipynb"), *ROOT.glob("docs/*.md")]:
        assert str(path.relative_to(ROOT)) in gathered
    assert {"index.md", "glossary.md", "equations.md", "exercises.md", "docs/astronaut.webp"} <= gathered
    read = nbformat.read(tmp_path / "source" / "notebooks" / "10_morphable_model.ipynb", as_version=4)
    folded = [c for c in read.cells if "hide-input" in c.metadata.get("tags", [])]
    assert len(folded) >= 6, "imports, parameters, presets, solutions"
    measured = tmp_path / "source" / "benchmarks" / "results" / "calipers.md"
    assert measured.read_text().startswith("---\norphan: true\n"), "a page that another links to comes along"
    mistakes = (tmp_path / "source" / "exercises.md").read_text()
    assert "barycentric coordinates" in mistakes and "Do not clip" in mistakes


def test_a_deck_has_headings_first_words_and_figures(tmp_path: Path) -> None:
    figure = nbformat.v4.new_output("display_data", data={"image/png": "aGVsbG8="})
    words = " ".join(["word"] * slides.WORDS)
    cells = [
        nbformat.v4.new_markdown_cell(f"# 40 · A title\n\nfirst\n\n{words}\n\n**Time:** long"),
        nbformat.v4.new_markdown_cell("## 1 · A part\n\nbefore\n\n$$x=1$$\n\nafter\n\n### Exercise\n\nno"),
        nbformat.v4.new_code_cell("plot()", outputs=[figure]),
        nbformat.v4.new_code_cell("plot()", outputs=[figure], metadata={"tags": ["no-slide"]}),
    ]
    text = slides.deck(nbformat.v4.new_notebook(cells=cells), "40_paper", tmp_path)
    assert re.findall(r"^#+ .+", text, re.MULTILINE) == ["# 40 · A title", "## 1 · A part", "### 1 · A part"]
    assert "first" in text and "before" in text and "$$x=1$$" in text and "![1 · A part](40_0.png)" in text
    assert not any(word in text for word in ("word", "Time", "after", "Exercise", "no"))
    assert (tmp_path / "40_0.png").read_bytes() == b"hello" and len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------------ its check


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="b.html#there">b</a> <a href="https://example.org">c</a> <img src="p.png">', ""),
        ('<a href="c.html">c</a>', "leads nowhere"),
        ('<a href="b.html#gone">b</a>', "no such place"),
        ('<a href="#gone">b</a>', "no such place"),
        ('<img src="q.png">', "leads nowhere"),
        ('<script src="https://cdn.example.org/x.js"></script>', "fetches"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "fetches"),
        ('<link rel="canonical" href="https://example.org/">', ""),
    ],
)
def test_what_is_broken_in_a_site_is_found(body: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text('<p id="there">')
    (tmp_path / "p.png").write_bytes(b"")
    found = build.problems(tmp_path)
    assert (len(found) == 1 and problem in found[0]) if problem else not found


# ---------------------------------------------------------------------------------------------- its packages


def test_the_lock_of_the_book_has_hashes_and_agrees_with_pyproject() -> None:
    text = (ROOT / BOOK).read_text()
    entries = [e for e in re.split(r"\n(?=\S)", text.strip()) if not e.startswith("#")]
    assert "://" not in text and "index-url" not in text
    for entry in entries:
        first, *hashes = entry.split(" \\\n")
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["book"]
    for wanted in map(Requirement, group):
        versions = [str(p.specifier)[2:] for p in map(requirement, entries) if p.name == wanted.name]
        assert versions and all(version in wanted.specifier for version in versions), wanted


def test_the_workflow_makes_the_book_and_publishes_the_main_branch_only() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
    jobs = workflow["jobs"]
    assert {"make book", "make slides"} <= {step.get("run") for step in jobs["build"]["steps"]}
    assert jobs["publish"]["if"] == "github.event_name == 'push'" and jobs["publish"]["needs"] == "build"
    for step in (step for job in jobs.values() for step in job["steps"]):
        assert "uses" not in step or re.search(r"@(v\d+|[0-9a-f]{40})$", step["uses"]), step


def test_warnings_are_errors_and_nothing_is_executed() -> None:
    assert '"-W"' in (ROOT / "docs/book/build.py").read_text()
    assert 'nb_execution_mode = "off"' in (ROOT / "docs/book/conf.py").read_text()
