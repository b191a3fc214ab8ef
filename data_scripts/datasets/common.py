"""What the readers share: folders that are checked, small parsers, and the way into our units.

Pixel coordinates count from the centre of the first pixel in three ways: 1 in MATLAB's files and iBUG's .pts,
0 in OpenCV's, 0.5 in ours (docs/conventions.md).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matlab import read_matlab
from numpy.typing import ArrayLike
from torch import Tensor

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord, Mesh
from facelab.photos.folders import PICTURES
from facelab.support.errors import DatasetError
from facelab.support.files import guarded, shown

MATLAB_TO_OURS = -0.5
OPENCV_TO_OURS = 0.5
HEIGHT_MM = (90.0, 900.0)  # of a scan, from a face's mask to a head with shoulders: less than a power of ten


def require(condition: object, message: str) -> None:
    """Raise `DatasetError(message)` unless the condition holds."""
    if not condition:
        raise DatasetError(message)


def place(folder: str | Path, names: Sequence[str], page: str) -> Path:
    """The first of the relative paths `names` (patterns as in glob) that is there below `folder`."""
    root = Path(folder)
    require(root.is_dir(), f"There is no folder '{root}': get the set from {page} and unpack it there.")
    for name in names:
        for found in sorted(root.glob(name)):
            return found
    raise DatasetError(f"'{root}' has no {' or '.join(names)}: give the folder unpacked from {page}.")


def records(keys: Sequence[Any], make: Callable[[Any], FaceRecord], folder: str | Path, what: str) -> Records:
    """Records made by `make(key)` when asked for; without keys, an error that says `what` is not there."""
    require(keys, f"There is no {what} below '{folder}': unpack all parts of the set there.")

    def one(index: int) -> FaceRecord:
        with guarded(f"Record {shown(keys[index])!r} is damaged; unpack the set again", DatasetError):
            return make(keys[index])

    return Records(len(keys), one)


def by_number(paths: Sequence[Path]) -> list[Path]:
    """Paths sorted with the numbers in their names as numbers: 2 before 10."""
    return sorted(paths, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", str(p))])


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        return [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read ({error.strerror}): unpack the set again.") from error


def numbers(text: Sequence[str], path: Path) -> np.ndarray:
    """Rows of numbers, all of the same length, as float64."""
    try:
        return np.array([row.split() for row in text], dtype=np.float64)
    except ValueError as error:
        raise DatasetError(f"'{path}' does not hold rows of numbers: unpack it again.") from error


def table(path: Path, columns: int, header: int = 0) -> dict[str, list[str]]:
    """Rows `name value ... value` of a text file, after `header` lines, by their name."""
    rows = {name: values for name, *values in (line.split() for line in text_lines(path)[header:])}
    short = next((name for name, values in rows.items() if len(values) != columns), None)
    require(rows and short is None, f"'{path}' is cut off or damaged at {short!r}: unpack it again.")
    return rows


def landmarks_68(points: ArrayLike, path: Path, shift: float = MATLAB_TO_OURS) -> Tensor:
    """68 finite points (68, 2) in iBUG order, moved by `shift` into our pixel coordinates."""
    array = np.asarray(points, dtype=np.float64)
    require(array.shape == (68, 2), f"'{path}' holds points of shape {array.shape}: 68 points are needed.")
    result = torch.from_numpy(array + shift).float()
    require(result.isfinite().all(), f"'{path}' holds points that are not numbers: unpack it again.")
    return result


def read_pts(path: Path) -> Tensor:
    """iBUG's .pts: `version: 1`, `n_points: 68`, then rows x y in braces, counted from 1."""
    inside = re.search(r"\{(.*?)\}", "\n".join(text_lines(path)), re.DOTALL)
    require(inside, f"'{path}' has no points in braces: it is cut off, or not a .pts file.")
    return landmarks_68(numbers(inside[1].strip().splitlines() if inside else [], path), path)


def read_mat(path: Path, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The named arrays of a MATLAB file, of the given shapes."""
    require(path.is_file(), f"There is no '{path}': unpack all parts of the set.")
    problem = f"it lacks {', '.join(shapes)} or is damaged, unpack the set again"
    arrays = read_matlab(path, tuple(shapes), problem, DatasetError)
    require(set(arrays) == set(shapes), f"'{path}': {problem}.")
    for name, shape in shapes.items():
        found = arrays[name].shape
        require(found == shape, f"'{path}': {name} has the shape {found} instead of {shape}.")
    return {name: array.astype(np.float64) for name, array in arrays.items()}


@lru_cache(maxsize=8)
def read_scan(path: Path, mm: float | None = None) -> tuple[Tensor, Tensor, float]:
    """Vertices (V, 3) mm, triangles (T, 3) and millimetres per unit of an OBJ file, in the file's order.

    Only positions and faces are read; polygons become fans. `mm` None: the power of ten that makes the scan
    between 90 and 900 mm high.
    """
    vertices, faces = [], []
    try:
        for line in text_lines(path):
            kind, *rest = line.split()
            if kind == "v":
                vertices.append([float(value) for value in rest[:3]])
            elif kind == "f":
                corners = [int(corner.split("/")[0]) - 1 for corner in rest]
                faces += [(corners[0], *pair) for pair in pairwise(corners[1:])]
        points = torch.tensor(vertices, dtype=torch.float64).reshape(-1, 3)
    except ValueError as error:
        raise DatasetError(f"'{path}' is not a complete OBJ file: unpack it again.") from error
    triangles = torch.tensor(faces).reshape(-1, 3)
    finite = points.float().isfinite().all()
    whole = len(faces) and triangles.min() >= 0 and triangles.max() < len(points) and finite
    require(whole, f"'{path}' is cut off or damaged: its faces do not fit its {len(points)} vertices.")
    height = float(points[:, 1].max() - points[:, 1].min())
    low, high = HEIGHT_MM
    units = [mm] if mm else [10.0**power for power in range(-4, 5)]
    scale = next((unit for unit in units if low <= unit * height < high), None)
    require(scale, f"'{path}' is {height:.3g} units high: it is no face, or in units not expected.")
    return (points * (scale or 0)).float(), triangles, float(scale or 0)


def scan_mesh(
    path: Path, points: Mapping[int, ArrayLike], mm: float | None = None, topology: str | None = None
) -> Mesh:
    """An OBJ file as a Mesh; `points`: landmarks in the file's units by iBUG number, the others are NaN."""
    vertices, triangles, scale = read_scan(path, mm)
    landmarks = torch.full((68, 3), torch.nan)
    for number, point in points.items():
        landmarks[number] = torch.as_tensor(np.asarray(point, dtype=np.float64) * scale).float()
    return Mesh(vertices, triangles, landmarks if points else None, topology)


def frames(video: Path) -> dict[int, Path]:
    """The frames of a video by their number from 1: pictures in the folder beside it that bears its name.

    A video is not decoded here; the error says how its frames are written.
    """
    folder = video.with_suffix("")
    found = {int(p.stem): p for p in folder.glob("*") if p.suffix.lower() in PICTURES and p.stem.isdigit()}
    command = f"mkdir '{folder}' && ffmpeg -i '{video}' -start_number 1 '{folder}/%06d.png'"
    require(found, f"The frames of '{video}' are not there; write them first, for each video: {command}")
    return dict(sorted(found.items()))
