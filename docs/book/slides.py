"""Slides of the notebooks: of each section its heading, its first paragraph and formula, and its figures.

    python docs/book/slides.py                   build/slides/html: a deck a notebook, which needs no network

A cell with the tag `no-slide` is left out. Runs in the book's environment (`make slides`).
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent))
import build

ROOT = Path(__file__).resolve().parents[2]
WORDS = 70  # of a slide's text
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def lead(text: str) -> str:
    """The first paragraphs below a heading, as far as they fit on a slide, with the first formula."""
    kept, words = [], 0
    for paragraph in text.strip().split("\n\n"):
        plain = paragraph.strip()
        formula = plain.startswith("$$")
        if plain.startswith(("**Time:**", "|")) or re.match(r"\*\*Exercise|Exercise ", plain):
            continue
        words += 0 if formula else len(plain.split())
        if words > WORDS and kept:
            break
        kept.append(plain)
        if formula:
            break
    return "\n\n".join(kept)


def deck(notebook: nbformat.NotebookNode, name: str, folder: Path) -> str:
    """The deck of a notebook as a page for Sphinx; its figures go into `folder`."""
    lines: list[str] = []
    heading, count = "", 0
    for cell in notebook.cells:
        if "no-slide" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "markdown":
            for part in re.split(r"^(?=##? )", cell.source, flags=re.MULTILINE):
                if found := re.match(r"(##?) (.+)\n?", part):
                    heading = found[2]
                    lines += [
                        f"{found[1]} {heading}",
                        "",
                        lead(part[found.end() :].partition("\n### ")[0]),
                        "",
                    ]
            continue
        for output in cell.get("outputs", []):
            for kind in [k for k in PICTURES if k in output.get("data", {})][:1]:
                path = folder / f"{name[:2]}_{count}.{PICTURES[kind]}"
                path.write_bytes(base64.b64decode(output.data[kind]))
                count += 1
                lines += [f"### {heading}", "", f"![{heading}]({path.name})", ""]
    return re.sub(r"\]\((?!\d\d_\d)(?!https?:)[^)]*\)", "]", "\n".join(lines))  # links lead out of the deck


def stage(folder: Path, root: Path = ROOT) -> list[str]:
    """Gather all decks; their names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("conf.py", "references.bib", "slides.css"):
        shutil.copy(root / "docs" / "book" / name, folder / name)
    names = []
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        text = deck(nbformat.read(path, as_version=4), path.stem, folder)
        (folder / f"{path.stem}.md").write_text(text, encoding="utf8")
        names.append(path.stem)
    index = ["# Slides", "", "```{toctree}", ":maxdepth: 1", "", *names, "```", ""]
    (folder / "index.md").write_text("\n".join(index), encoding="utf8")
    return names


def main() -> None:
    source, site = ROOT / "build" / "slides" / "source", ROOT / "build" / "slides" / "html"
    stage(source)
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "revealjs"]
    command += ["-D", "extensions=myst_nb,sphinxcontrib.bibtex,sphinx_revealjs", str(source), str(site)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
    if found := [problem for problem in build.problems(site) if "fetches" in problem]:
        sys.exit("\n".join(found))
    print(f"{site / 'index.html'}: a deck a notebook, nothing from elsewhere")


if __name__ == "__main__":
    main()
