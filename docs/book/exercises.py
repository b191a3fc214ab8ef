"""The list of exercises, read from the notebooks: what each asks for, and which mistakes its check names."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]


def registered(source: str) -> list[dict[str, object]]:
    """Of each checks.Exercise(...) in a cell: its plain arguments, and the messages of its mistakes."""
    found = []
    for call in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]:
        if ast.unparse(call.func) != "checks.Exercise":
            continue
        values: dict[str, object] = {"mistakes": []}
        for word in call.keywords:
            if word.arg == "mistakes" and isinstance(word.value, ast.Dict):
                values["mistakes"] = [k.value for k in word.value.keys if isinstance(k, ast.Constant)]
            elif isinstance(word.value, ast.Constant):
                values[str(word.arg)] = word.value.value
        found.append(values)
    return found


def page(folder: Path = ROOT / "notebooks") -> str:
    """The list as a page of the book."""
    lines = [
        "# Exercises",
        "",
        "Each has a check that names the mistake. They are in `notebooks/exercises/`; the solutions are",
        "folded into the book's pages. Stars are difficulty, from one line (★) to hard.",
        "",
    ]
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        found = [e for c in cells if c.cell_type == "code" and "checks.Exercise(" in c.source
                 for e in registered(c.source)]  # fmt: skip
        if not found:
            continue
        title = cells[0].source.splitlines()[0].lstrip("# ")
        lines += [f"## [{title}](notebooks/{path.name})", ""]
        for one in found:
            stars, mistakes = "★" * int(str(one["difficulty"])), one["mistakes"]
            assert isinstance(mistakes, list)
            lines += [f"**{one['name']}** ({stars}, {one['minutes']} minutes). The check names:", ""]
            lines += [f"- {text}" for text in mistakes] + [""]
    return "\n".join(lines)
