"""`make run`: reconstruct photographs by executing notebook 00 with papermill, and say where things are.

    python notebooks/run.py [--preset quick] [--face 1] [--out DIR] [PHOTO]

PHOTO is a picture, or a folder: each picture in it. Without it the environment's PHOTO counts (`make run`
hands names over there, which a shell never reads), and without that the astronaut is taken. A photograph that
cannot be used is refused in one sentence, before anything is executed; in a folder the others go on.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from facelab import photos
from facelab.course.notebook import make_folder
from facelab.photos.folders import list_pictures
from facelab.support.errors import FacelabError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "00_reconstruct_a_photo.ipynb"
SOURCE = "photo.txt"  # in a folder of results: whose they are


def choose_folder(photo: Path | None, root: Path) -> Path:
    """`root`/STEM, or STEM-2, STEM-3, ... where the results of another photograph lie already."""
    if photo is None:
        return root / "astronaut"
    stem = photo.stem.lstrip("-.") or "photo"
    for count in itertools.count(1):
        folder = root / (stem if count == 1 else f"{stem}-{count}")
        source = folder / SOURCE
        if not folder.exists() or (source.is_file() and source.read_bytes() == os.fsencode(photo)):
            return folder
    raise AssertionError("unreachable")


def reconstruct(photo: Path | None, face: int, preset: str, out: Path) -> None:
    """Execute notebook 00 for one photograph into `out`; FacelabError for one that cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notebook prints them
        if photo is not None:
            picture = photos.load_photo(photo)
            faces = photos.find_faces(picture)
            photos.find_face(picture, index=None if face < 0 else face)
    out = make_folder(out)
    if photo is not None:
        (out / SOURCE).write_bytes(os.fsencode(photo))
        if len(faces) > 1:
            photos.number_faces(picture, faces).save(out / "faces.png")
            print(f"{len(faces)} faces: who is who is in {out / 'faces.png'}; choose with FACE=0, 1, ...")
    name = "the astronaut Eileen Collins (NASA, public domain)" if photo is None else repr(str(photo))[1:-1]
    print(f"Reconstructing {name} ...", flush=True)
    start = time.perf_counter()
    papermill.execute_notebook(
        NOTEBOOK,
        out / NOTEBOOK.name,
        parameters={
            "PRESET": preset, "PHOTO": str(photo or ""), "FACE": face, "OUT_DIR": str(out)
        },
        cwd=str(NOTEBOOK.parent),
        progress_bar=True,
    )  # fmt: skip
    print(f"Done in {time.perf_counter() - start:.0f} s. In {out}:")
    for path in sorted(p for p in out.iterdir() if p.is_file()):
        print(f"  {path.name:32s} {path.stat().st_size / 1e3:9.0f} kB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", nargs="?", help="a picture with a face, or a folder of such")
    parser.add_argument("--preset", choices=("tiny", "quick", "full"), default="quick")
    parser.add_argument("--face", type=int, default=-1, help="which face; 0 is the largest (default: that)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/<name of the photo>)")
    arguments = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    name = arguments.photo or os.environ.get("PHOTO", "")
    failed = 0
    try:
        pictures: list[Path | None] = [None]
        root = ROOT / "runs"
        if name:
            given = Path(name).expanduser().absolute()
            pictures = [*list_pictures(given)] if given.is_dir() else [given]
            root = root / given.name if given.is_dir() else root
        several = len(pictures) > 1
        for photo in pictures:
            try:
                out = (
                    choose_folder(photo, arguments.out or root)
                    if several or not arguments.out
                    else arguments.out
                )
                reconstruct(photo, arguments.face, arguments.preset, out)
            except FacelabError as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                failed = failed or 2
            except PapermillExecutionError as error:
                print(f"{error.ename}: {error.evalue}", file=sys.stderr)
                print(f"The notebook up to the error: {out / NOTEBOOK.name}", file=sys.stderr)
                failed = 1
    except FacelabError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return failed


if __name__ == "__main__":
    sys.exit(main())
