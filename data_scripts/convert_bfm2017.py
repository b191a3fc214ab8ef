"""Basel Face Model 2017 or 2019 (.h5) as a facelab face model.

Where:  https://faces.dmi.unibas.ch/bfm/bfm2017.html or .../bfm2019.html, by a form; the link comes by e-mail.
Terms:  University of Basel licence: research and teaching, no passing on; do not publish the converted file.
        Paper: Gerig et al., Morphable Face Models - An Open Framework, FG 2018.
File:   model2017-1_face12_nomouth.h5, model2017-1_bfm_nomouth.h5, model2019_face12.h5, model2019_bfm.h5 or
        model2019_fullHead.h5 (statismo: shape, color and expression with mean, pcaBasis, pcaVariance).
Units:  millimetres, +x the subject's left, +y up, +z out of the face. Colours are in [0, 1] and taken as sRGB
        (assumed: camera colours under even light); they become linear albedo.
Kept:   199 shape, 100 expression and 199 colour components. The mean of the expression model, a deformation
        that is not zero, becomes one more expression in front, so that coefficients of zero are neutral.
        Of the landmarks that the file names, those with an iBUG number are kept; the other iBUG points are
        carried over from facelab's own model, or read from --landmarks (68 vertex indices, -1 where unknown).

    python data_scripts/convert_bfm2017.py model2019_face12.h5 bfm2019.safetensors
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from conversion import (
    Array,
    Parts,
    command_line,
    converter,
    existing_file,
    finish,
    linear_albedo,
    on_vertices,
    per_sigma,
    read_landmark_indices,
    require,
)
from scipy.spatial import cKDTree

from facelab.model.morphable_model import MorphableModel
from facelab.support.errors import ModelFileError

TERMS = "faces.dmi.unibas.ch/bfm, University of Basel licence: research and teaching, no passing on"
LANDMARKS = "metadata/landmarks/json"
NAMED_IBUG = {  # the file's landmark names that mean exactly one iBUG point; left and right are the subject's
    "center.chin.tip": 8, "center.nose.tip": 30, "center.nose.attachement_to_philtrum": 33,
    "right.eye.corner_outer": 36, "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42, "left.eye.corner_outer": 45,
    "right.lips.corner": 48, "left.lips.corner": 54,
    "center.lips.upper.outer": 51, "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62, "center.lips.lower.inner": 66,
}  # fmt: skip


@contextmanager
def open_h5(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; anything wrong with it is a `ModelFileError`."""
    try:
        with h5py.File(existing_file(path), "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as problem:  # h5py on damage
        raise ModelFileError(f"{path} is not a complete HDF5 file: download it again.") from problem


def dataset(file: h5py.File, name: str) -> Array:
    """One data set as an array."""
    require(
        isinstance(file.get(name), h5py.Dataset),
        f"{file.filename} has no data set {name} (at its root: {', '.join(file)}): is it the right model?",
    )
    return np.asarray(file[name][()])


def read_pca(file: h5py.File, group: str) -> tuple[Array, Array]:
    """Mean (V, 3) and per-sigma basis (K, V, 3) of one statismo model."""
    mean = dataset(file, f"{group}/model/mean").astype(np.float64).reshape(-1)
    basis = dataset(file, f"{group}/model/pcaBasis")
    variance = dataset(file, f"{group}/model/pcaVariance").astype(np.float64)
    fits = mean.size % 3 == 0 and basis.shape == (mean.size, variance.size)
    require(
        fits, f"{file.filename}: {group} has a mean of {mean.size} values and a basis of shape {basis.shape}."
    )
    require((variance >= 0).all(), f"{file.filename}: {group} has negative variances: download it again.")
    return mean.reshape(-1, 3), per_sigma(basis, np.sqrt(variance), group)


def read_named_landmarks(file: h5py.File, mean: Array) -> dict[int, int]:
    """iBUG number -> vertex, for the landmarks that the file names."""
    if LANDMARKS not in file:
        return {}
    raw = file[LANDMARKS][()]
    if isinstance(raw, np.ndarray):  # a string in a list of one, or its bytes as numbers
        raw = raw.item() if raw.dtype.kind in "SO" and raw.size == 1 else raw.tobytes()
    try:
        entries = json.loads(raw.decode().strip("\0") if isinstance(raw, bytes) else raw)
        named = {str(entry["id"]): np.array(entry["coordinates"], dtype=np.float64) for entry in entries}
    except (ValueError, KeyError, TypeError) as problem:
        raise ModelFileError(f"The landmarks in {file.filename} are not a JSON list of points.") from problem
    known = {number: named[name] for name, number in NAMED_IBUG.items() if name in named}
    if not known:
        return {}
    points = dataset(file, "shape/representer/points").astype(np.float64).reshape(3, -1).T
    surfaces = [points, mean] if points.shape == mean.shape else [mean]  # the points are on one or the other
    queries = (cKDTree(surface).query(np.stack(list(known.values()))) for surface in surfaces)
    distance, vertex = min(queries, key=lambda found: float(np.median(found[0])))
    off = f"A landmark in {file.filename} is {distance.max():.0f} mm off the surface: it mixes two models."
    require(distance.max() < 5, off)
    return dict(zip(known, vertex.tolist()))


def read_shape(file: h5py.File, landmarks: str | Path | None = None) -> Parts:
    """Everything but the colour."""
    mean, identity = read_pca(file, "shape")
    cells = dataset(file, "shape/representer/cells")
    require(cells.shape[:1] == (3,), f"{file.filename} has cells of shape {cells.shape}, not (3, triangles).")
    expression = np.zeros((0, *mean.shape), dtype=np.float32)
    if "expression" in file:
        offset, expression = read_pca(file, "expression")
        if np.abs(offset).max() > 1e-6:
            expression = np.concatenate([offset[None].astype(np.float32), expression])
    indices = read_named_landmarks(file, mean)
    if landmarks is not None:
        indices |= read_landmark_indices(landmarks)
    return Parts(
        name=Path(file.filename).stem,
        terms=TERMS,
        mean=mean,
        triangles=cells.T.astype(np.int64),
        identity=identity,
        expression=expression,
        landmarks=on_vertices(indices, cells.T.astype(np.int64), len(mean)),
    )


@converter
def convert(source: str | Path, landmarks: str | Path | None = None) -> MorphableModel:
    """Basel Face Model 2017 or 2019 as a `MorphableModel`; errors: `ModelFileError`."""
    with open_h5(source) as file:
        parts = read_shape(file, landmarks)
        colour, basis = read_pca(file, "color")
    low, high = colour.min(), colour.max()
    require(low > -0.2 and high < 1.5, f"{source} has colours from {low:.3g} to {high:.3g}, not in [0, 1].")
    parts.albedo_mean, parts.albedo = linear_albedo(colour, basis)
    return finish(parts)


if __name__ == "__main__":
    command_line(convert, __doc__, {"landmarks": "file of 68 vertex indices in iBUG order"})
