"""Writes the lock files from pyproject.toml, `make lock`: each version that `make` installs, with hashes.

Two resolutions with uv for all systems and Pythons, written as files that pip reads:
- requirements.lock: everything but the two below, each file's sha256 beside it.
- requirements-cuda.lock: what only torch's CUDA build asks for, with sha256; `make` skips it for a CPU build.
- requirements-torch.lock: torch's version alone, since its build depends on where it is installed: the
  CUDA build, a vendor's CPU build ("2.13.0+cpu") and others are different files of one version.
- requirements-book.lock: the group `book`, which lives in an environment of its own, with sha256.
No address of a package index is written: pip takes the files from its own, and the hashes say whether
they are the right ones.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("notebooks", "photos", "judge", "dev")  # what `make` installs; the others are a choice
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
BOOK = "requirements-book.lock"
HEADER = "# Made by `make lock` from pyproject.toml; docs/supply.md says how it is used. {}\n"
NOTES = {
    "requirements.lock": "All but torch. pip install --no-deps --require-hashes -r",
    "requirements-cuda.lock": "For torch's CUDA build only. pip install --no-deps --require-hashes -r",
    "requirements-torch.lock": "No hashes: CPU and CUDA builds are other files. pip install --no-deps -r",
    BOOK: "For `make book` only. pip install --no-deps --require-hashes -r",
}


def resolve() -> list[str]:
    """The resolved entries of what `make` installs."""
    with tempfile.TemporaryDirectory() as folder:
        # setuptools builds facelab itself, without isolation: so it is locked too
        build = Path(folder, "build.in")
        build.write_text("setuptools>=77\n")
        extras = [option for name in EXTRAS for option in ("--extra", name)]
        return compiled(*extras, "pyproject.toml", str(build))


def compiled(*sources: str) -> list[str]:
    """uv's entries for some sources, "name==version ; marker" with their hashes on lines below, by name."""
    options = "--quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate"
    options += " --no-emit-index-url"
    command = [sys.executable, "-m", "uv", "pip", "compile", *options.split(), *sources]
    text = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.split(r"\n(?=\S)", text.strip())


def requirement(entry: str) -> Requirement:
    """The entry without its hashes."""
    return Requirement(entry.partition(" \\\n")[0])


def file_of(entry: str) -> str:
    """Which of the three files an entry belongs to."""
    name = requirement(entry).name
    if name == "torch":
        return "requirements-torch.lock"
    return "requirements-cuda.lock" if CUDA.match(name) else "requirements.lock"


def lock() -> dict[str, str]:
    """File name -> content."""
    lines: dict[str, list[str]] = {name: [HEADER.format(f"{note} {name}")] for name, note in NOTES.items()}
    for entry in resolve():
        pin = requirement(entry)
        marker: Marker | None = pin.marker
        if pin.name == "torch":
            entry = f"torch{pin.specifier}" + (f" ; {marker}" if marker else "")
        lines[file_of(entry)].append(entry + "\n")
    lines[BOOK] += [entry + "\n" for entry in compiled("--group", "pyproject.toml:book")]
    return {name: "".join(parts) for name, parts in lines.items()}


if __name__ == "__main__":
    for name, content in lock().items():
        (ROOT / name).write_text(content)
        print(f"{name}: {content.count('==')} versions, {content.count('--hash')} hashes")
