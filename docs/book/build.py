"""Make the book: gather the executed notebooks and the documents, let Sphinx write HTML, check the links.

    python docs/book/build.py                    build/book/html, for which nothing is executed or fetched

Runs in an environment of its own (requirements-book.lock); `make book` sees to it. What it gathers lies as in
the repository, so that links between notebooks and documents hold in both.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

sys.path.insert(0, str(Path(__file__).parent))
import equations
import exercises

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!https?://|#|data:|attachment:)([^)\s#]+)")
# no part of a page: links to it are the reader's choice
SCHEMES = {"http", "https", "mailto", "data", "javascript"}


def stage(folder: Path, root: Path = ROOT) -> None:
    """Gather everything in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = {path: folder / path.name for path in sorted((root / "docs" / "book").glob("*.md"))}
    pages |= {path: folder / "docs" / path.name for path in sorted((root / "docs").glob("*.md"))}
    for source, copy in pages.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    for name in ("conf.py", "references.bib", "slides.css"):
        shutil.copy(root / "docs" / "book" / name, folder / name)
    labels = wanted_labels(root / "notebooks")
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        prepare(notebook, path.stem, labels)
        copy = folder / "notebooks" / path.name
        copy.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, copy)
    (folder / "equations.md").write_text(equations.page(root / "notebooks"), encoding="utf8")
    (folder / "exercises.md").write_text(exercises.page(root / "notebooks"), encoding="utf8")
    waiting = [path for path in folder.rglob("*") if path.suffix in (".md", ".ipynb")]
    while waiting:
        waiting += bring(waiting.pop(), folder.resolve(), root)


def bring(page: Path, folder: Path, root: Path) -> list[Path]:
    """Gather the files that a page links to: pictures, scripts, pages of measurements. Returns new pages."""
    new = []
    for link in LINK.findall(page.read_text(encoding="utf8")):
        there = (page.parent / unquote(link)).resolve()
        original = root / there.relative_to(folder)
        if there.exists() or not original.is_file():
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.suffix == ".md":  # in no table of contents
            there.write_text(
                "---\norphan: true\n---\n" + original.read_text(encoding="utf8"), encoding="utf8"
            )
            new.append(there)
        else:
            shutil.copy(original, there)
    return new


def wanted_labels(folder: Path) -> set[str]:
    """The labels of the cells that the index of equations leads to."""
    found = set()
    for paper in equations.PAPERS:
        for place in equations.places(paper, folder).values():
            found |= {equations.target(*at) for at in (place.text, place.code, place.judged) if at}
    return found


def prepare(notebook: nbformat.NotebookNode, name: str, labels: set[str]) -> None:
    """Fold away imports, settings and solutions; put labels where the index of equations leads to; leave out
    what only a running kernel could show."""
    cells, first = [], True
    for position, cell in enumerate(notebook.cells):
        label, tags = equations.target(name, position), set(cell.metadata.get("tags", []))
        if cell.cell_type == "code":
            if first or tags & {"parameters", "solution"} or "PRESETS = {" in cell.source:
                cell.metadata["tags"] = sorted(tags | {"hide-input"})
            first = False
            for output in cell.outputs:
                for kind in [k for k in output.get("data", {}) if k.startswith("application/")]:
                    del output.data[kind]
        if label in labels:
            cells.append(nbformat.v4.new_markdown_cell(f'<span id="{label}"></span>'))
        cells.append(cell)
    notebook.cells = cells


class Page(HTMLParser):
    """What a page refers to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        fetched = values.get("rel", "") in ("stylesheet", "icon", "preload", "shortcut icon")
        if (tag == "link" and fetched) or "src" in values:
            self.loads.append(values["href"] if tag == "link" else values["src"])


def problems(site: Path) -> list[str]:
    """What is broken in a site: links to nothing, and pages that fetch something from elsewhere."""
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts]
    pages = {path.resolve(): Page(path.read_text(encoding="utf8")) for path in paths}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name} fetches {url}" for url in page.loads if urlsplit(url).scheme in {"http", "https"}]
        found += [f"{name} fetches {url}" for url in page.loads if url.startswith("//")]
        for url in [*page.links, *page.loads]:
            parts = urlsplit(url)
            if parts.scheme in SCHEMES or url.startswith("//"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.exists():
                found.append(f"{name}: {url} leads nowhere")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].ids:
                found.append(f"{name}: {url} has no such place")
    return found


def main() -> None:
    source, site = ROOT / "build" / "book" / "source", ROOT / "build" / "book" / "html"
    stage(source)
    shutil.rmtree(site, ignore_errors=True)  # a page whose source is gone must go
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += [str(source), str(site)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
    if found := problems(site):
        sys.exit("\n".join(found))
    print(f"{site / 'index.html'}: no broken link, nothing from elsewhere")


if __name__ == "__main__":
    main()
