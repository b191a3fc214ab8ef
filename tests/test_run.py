"""`make run`: any file name reaches the notebook as it is, and no photograph's results are overwritten."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "my photo (1).jpg", "o'brien.jpg", 'say "hi".jpg', "a&touch hacked&.jpg",
    "-v.jpg", "$HOME $(touch hacked) `id`.jpg", "~/me.jpg",
    "日本 é.png", "a;b|c>d#e.jpg", "back\\slash%.jpg", "a$$b.jpg",
]  # fmt: skip

spec = importlib.util.spec_from_file_location("notebooks_run", ROOT / "notebooks" / "run.py")
assert spec is not None and spec.loader is not None
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("name", NAMES)
def test_make_hands_over_any_name(name: str, tmp_path: Path) -> None:
    """The Makefile with an interpreter that only says what it was given."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for path in (ROOT / "pyproject.toml", *ROOT.glob("*.lock")):
        (tmp_path / path.name).touch()
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "notebooks" / "run.py").write_text("import os; print(ascii(os.environ['PHOTO']))")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "-s", "run", f"PHOTO={name}"]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ascii(name)
    assert not (tmp_path / "hacked").exists()


def test_results_of_another_photograph_are_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "A" / "me.webp", tmp_path / "B" / "me.jpg"
    folder = run.choose_folder(first, tmp_path / "runs")
    assert folder == tmp_path / "runs" / "me"
    folder.mkdir(parents=True)
    (folder / run.SOURCE).write_bytes(os.fsencode(first))
    assert run.choose_folder(first, tmp_path / "runs") == folder  # again: the same place
    assert run.choose_folder(second, tmp_path / "runs") == tmp_path / "runs" / "me-2"
    assert run.choose_folder(Path("-rf.jpg"), tmp_path / "runs").name == "rf"


@pytest.mark.parametrize("kind", ["missing", "out is a file", "no picture", "empty folder"])
def test_what_cannot_be_used_is_one_sentence(kind: str, tmp_path: Path) -> None:
    photo, out = tmp_path / "me.jpg", tmp_path / "out"
    if kind == "out is a file":
        from skimage.data import astronaut
        from skimage.io import imsave

        imsave(photo, astronaut())
        out.touch()
    elif kind == "no picture":
        photo.write_text("hello")
    elif kind == "empty folder":
        photo.mkdir()
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), "--out", str(out), str(photo)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 2 and "Traceback" not in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1 and "Error: " in said.stderr
