"""FRGC v2: 4,950 range images by a Minolta Vivid scanner (4,007 of 466 people for validation), 640×480.

Where:  https://www.nist.gov/programs-projects/face-recognition-grand-challenge-frgc; data from the University
        of Notre Dame, https://cvrl.nd.edu (by a signed licence).
Terms:  research, no passing on; publishing pictures only as the licence says. Paper: Phillips et al.,
        Overview of the Face Recognition Grand Challenge, CVPR 2005.
Folder: nd1/Fall2003range, Spring2003range, Spring2004range (or any folders of range images), each with
        02463d546.abs or .abs.gz and the picture of the next number, 02463d547.ppm (gunzip it).
        .abs: "480 rows", "640 columns", "pixels (flag X Y Z):", then a line each of flags, X, Y and Z, row by
        row from the top; millimetres, invalid where the flag is 0.
Truth:  depth, |Z| along the scanner's axis, NaN where there is none; who it is (the digits before the d). The
        scanner takes colours after shape: in Spring2003 above all, people have moved in between.
Checked: format and naming against public readers; not against the set itself. Valid Z must have one sign; on
        which side of the origin the scanner is, it tells.
"""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord
from facelab.photos import load_photo
from facelab.support.errors import DatasetError

from .common import numbers, place, records, require

PAGE = "https://www.nist.gov/programs-projects/face-recognition-grand-challenge-frgc"


def read_depth(path: Path) -> Tensor:
    """(1, H, W) mm, NaN where the scanner saw nothing."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            lines = file.read().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DatasetError(f"'{path}' is cut off or damaged: copy it again.") from error
    size = re.match(r"(\d+)\s+rows\s+(\d+)\s+columns\b", "\n".join(lines[:2]))
    require(size and len(lines) >= 7, f"'{path}' is cut off, or not a range image in FRGC's .abs format.")
    height, width = (int(number) for number in size.groups()) if size else (0, 0)
    flag, _, _, z = numbers(lines[3:7], path)
    require(len(z) == height * width, f"'{path}' has {len(z)} values for {height}×{width} pixels.")
    seen = (flag > 0) & np.isfinite(z)
    one_side = seen.any() and ((z[seen] > 0).all() or (z[seen] < 0).all())
    require(one_side, f"'{path}' has no valid pixels, or some on both sides of the scanner.")
    return torch.from_numpy(np.where(seen, np.abs(z), np.nan).reshape(1, height, width)).float()


def picture_of(path: Path) -> Path:
    """The picture that belongs to a range image: that of the next number."""
    person, number = path.name.split(".")[0].split("d")
    picture = path.with_name(f"{person}d{int(number) + 1:0{len(number)}}.ppm")
    hint = "gunzip it" if picture.with_name(f"{picture.name}.gz").is_file() else f"get it from {PAGE}"
    require(picture.is_file(), f"There is no picture '{picture}' to the range image '{path.name}': {hint}.")
    return picture


def read(folder: str | Path) -> Records:
    """Every range image. Raises DatasetError."""
    first = ("*.abs", "*.abs.gz", "*/*.abs", "*/*.abs.gz", "*/*/*.abs", "*/*/*.abs.gz")
    place(folder, first, PAGE)
    scans: dict[Path, Path] = {}
    for pattern in reversed(first):  # one that is unpacked goes before its .gz
        scans |= {path.with_name(path.name.split(".")[0]): path for path in Path(folder).glob(pattern)}
    named = [key for key in sorted(scans) if re.fullmatch(r"\d+d\d+", key.name)]
    pairs = [(scans[key], picture_of(scans[key])) for key in named]

    def make(pair: tuple[Path, Path]) -> FaceRecord:
        path, picture = pair
        image, depth = load_photo(picture), read_depth(path)
        require(image.shape[1:] == depth.shape[1:], f"'{path}' and '{picture}' differ in size.")
        name = path.name.split(".")[0]
        groups = {"session": path.parent.name}
        return FaceRecord(name, image, depth=depth, person=name.split("d")[0], groups=groups)

    return records(pairs, make, folder, "range image such as 02463d546.abs")
