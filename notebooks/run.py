"""`make run`: reconstruct one photograph by executing notebook 00 with papermill, and say where things are.

    python notebooks/run.py [--preset quick] [--out DIR] [PHOTO]

A photograph that cannot be used is refused in one sentence, before anything is executed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from facelab import photos
from facelab.errors import FacelabError

NOTEBOOK = Path(__file__).resolve().parent / "00_reconstruct_a_photo.ipynb"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", nargs="?", help="a picture with a face (default: skimage's astronaut)")
    parser.add_argument("--preset", choices=("tiny", "quick", "full"), default="quick")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/<name of the photo>)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    name = Path(arguments.photo).stem if arguments.photo else "astronaut"
    out = (arguments.out or Path("runs") / name).resolve()
    photo = str(Path(arguments.photo).resolve()) if arguments.photo else ""
    try:
        if photo:
            photos.find_face(photos.load_photo(photo))
    except FacelabError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    print(f"Reconstructing {photo or 'the astronaut Eileen Collins (NASA, public domain)'} ...", flush=True)
    try:
        papermill.execute_notebook(
            NOTEBOOK,
            out / NOTEBOOK.name,
            parameters={"PRESET": arguments.preset, "PHOTO": photo, "OUT_DIR": str(out)},
            cwd=str(NOTEBOOK.parent),
            progress_bar=True,
        )
    except PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
        print(f"The notebook up to the error: {out / NOTEBOOK.name}", file=sys.stderr)
        return 1
    print(f"Done in {time.perf_counter() - start:.0f} s. In {out}:")
    for path in sorted(p for p in out.iterdir() if p.is_file()):
        print(f"  {path.name:32s} {path.stat().st_size / 1e3:9.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
