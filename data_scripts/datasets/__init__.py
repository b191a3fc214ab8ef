"""Readers of real sets of faces that their authors give out: downloaded folder in, `FaceRecord`s out.

    records = READERS["aflw2000"]("downloads/AFLW2000-3D")
    len(records), records[0], records[:100]

Each reader checks the folder, and makes a record when it is asked for. Nothing is downloaded, nothing is
unpickled. Where a set is had, under which terms, and what about its structure could not be checked without
having it, is said in the docstring of its module. Errors: DatasetError, and those of `load_photo`.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

from facelab.evaluation.test_sets import Records
from facelab.support.errors import DatasetError
from facelab.support.files import guarded, shown

from . import aflw2000, celeba, facescape, facewarehouse, frgc, lfw, micc, now, vw300, w300lp

_READERS: dict[str, Callable[[str | Path], Records]] = {
    "celeba": celeba.read,
    "lfw": lfw.read,
    "300w-lp": w300lp.read,
    "aflw2000": aflw2000.read,
    "300-vw": vw300.read,
    "facewarehouse": facewarehouse.read,
    "micc": micc.read,
    "now": now.read,
    "facescape": facescape.read,
    "frgc": frgc.read,
}


def _guarded(read: Callable[[str | Path], Records]) -> Callable[[str | Path], Records]:
    """Damaged lists and tables are a DatasetError, however the parser fails."""

    @wraps(read)
    def checked(folder: str | Path) -> Records:
        with guarded(f"The set in '{shown(folder)}' is damaged; unpack it again", DatasetError):
            return read(folder)

    return checked


READERS = {name: _guarded(read) for name, read in _READERS.items()}
