"""What the converters of other face models share: checks, units, landmarks and the command line.

A converter reads its file into `Parts` (millimetres, +x image right, +y up, +z towards the viewer, bases per
standard deviation) and hands them to `finish`, which checks them and adds what `MorphableModel` wants beside
them: outward triangles, all 68 landmarks, contour rows, the mirror map.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from registration import borrow_albedo, closest_on_surface, fit_reference, normals_of
from scipy.spatial import cKDTree

from facelab.geometry.mesh import check_triangles
from facelab.model.morphable_model import REGIONS, SKIN_F0, MorphableModel
from facelab.rendering.colour import srgb_to_linear
from facelab.support.errors import FacelabError, MeshError, ModelFileError
from facelab.support.files import guarded, shown

Array = np.ndarray
Landmarks = dict[int, tuple[int, Array]]  # iBUG number -> (triangle, (3,) barycentric weights)

HEAD_HEIGHT_MM = (120.0, 450.0)  # from a mask of the face to a head with its neck
SKIN_LINEAR_RGB = (0.42, 0.25, 0.18)  # a plain mid-tone skin, for models that come without any albedo
ROW_STEPS = 12


@dataclass
class Parts:
    """A face model as its file holds it, in our units and axes: V vertices, T triangles."""

    name: str
    terms: str  # where it is had and under which licence: one line, kept in the converted file
    mean: Array  # (V, 3) mm
    triangles: Array  # (T, 3)
    identity: Array  # (Ki, V, 3) mm per sigma
    expression: Array  # (Ke, V, 3) mm per sigma
    actions: dict[str, Array] = field(default_factory=dict)  # blend shapes (V, 3) in mm at full strength
    albedo_mean: Array | None = None  # (V, 4) linear RGB and F0
    albedo: Array | None = None  # (Ka, V, 4) per sigma
    uv: Array | None = None  # (U, 2)
    uv_triangles: Array | None = None  # (T, 3) into uv
    triangle_region: Array | None = None  # (T,) index into REGIONS
    landmarks: Landmarks = field(default_factory=dict)


def require(condition: object, message: str) -> None:
    """Raise `ModelFileError(message)` unless the condition holds."""
    if not condition:
        raise ModelFileError(message)


def converter(convert: Callable[..., MorphableModel]) -> Callable[..., MorphableModel]:
    """A damaged source is a ModelFileError that names it, however its parser fails."""

    @wraps(convert)
    def checked(source: str | Path, *args: Any, **options: Any) -> MorphableModel:
        with guarded(f"'{shown(source)}' cannot be read; download it again", ModelFileError):
            return convert(source, *args, **options)

    return checked


def existing_file(path: str | Path) -> Path:
    """The path, after checking that there is a file that is not empty."""
    path = Path(path)
    require(path.is_file(), f"There is no file {path}: download it as this script's --help describes.")
    require(path.stat().st_size > 0, f"The file {path} is empty: download it again.")
    return path


def per_sigma(basis: Array, sigma: Array, what: str) -> Array:
    """PCA columns (3·V, K) and their standard deviations (K,) as a basis per sigma (K, V, 3).

    Columns are of unit norm, or (in files of old statismo) already times sigma; anything else is refused.
    """
    sigma = np.asarray(sigma, dtype=np.float64).reshape(-1)
    fits = basis.ndim == 2 and basis.shape[1] == len(sigma) > 0 and basis.shape[0] % 3 == 0
    require(fits, f"The {what} basis of shape {basis.shape} does not fit its {len(sigma)} deviations.")
    require((sigma >= 0).all(), f"The {what} deviations are not positive numbers: download the file again.")
    norms = np.linalg.norm(basis, axis=0)
    used = sigma > 1e-6 * sigma.max()
    known = any(np.allclose(norms[used], scale, rtol=0.03) for scale in (1, sigma[used]))
    require(
        known,
        f"The {what} basis has columns of norm {norms.min():.3g} to {norms.max():.3g}, neither 1 nor the "
        "standard deviations: the file is damaged or of another version.",
    )
    scale = np.where(used, sigma / np.maximum(norms, 1e-30), 0)
    return np.ascontiguousarray((basis * scale).T, dtype=np.float32).reshape(len(sigma), -1, 3)


def linear_albedo(mean_srgb: Array, basis_srgb: Array) -> tuple[Array, Array]:
    """sRGB vertex colours (V, 3) in [0, 1] and basis (K, V, 3) as linear albedo and F0: (V, 4), (K, V, 4).

    The basis is carried over to first order at the mean, d linear / d sRGB, so that coefficients keep their
    meaning. Such models have no specular part: F0 is constant.
    """
    mean = torch.from_numpy(np.clip(mean_srgb, 0, 1).astype(np.float64)).requires_grad_()
    linear = srgb_to_linear(mean)
    (slope,) = torch.autograd.grad(linear.sum(), mean)
    albedo_mean = np.pad(linear.detach().numpy(), ((0, 0), (0, 1)), constant_values=SKIN_F0)
    return albedo_mean, np.pad(basis_srgb * slope.numpy().astype(np.float32), ((0, 0), (0, 0), (0, 1)))


def principal(directions: Array) -> Array:
    """Independent unit-variance directions (K, V, 3) as principal components of the same covariance."""
    flat = directions.reshape(len(directions), -1)
    values, vectors = np.linalg.eigh(flat.astype(np.float64) @ flat.T.astype(np.float64))
    keep = np.flatnonzero(values > 1e-9 * values[-1])[::-1]
    return (vectors[:, keep].T.astype(np.float32) @ flat).reshape(-1, *directions.shape[1:])


# --- landmarks ----------------------------------------------------------------------------------------------


def on_vertices(indices: dict[int, int], triangles: Array, vertex_count: int) -> Landmarks:
    """Landmarks that sit on vertices, as a corner of some triangle that holds the vertex."""
    flat = triangles.reshape(-1)
    require(
        flat.size and flat.min() >= 0 and flat.max() < vertex_count, "Triangles point outside of the mesh."
    )
    corner = np.full(vertex_count, -1)
    corner[flat] = np.arange(flat.size)
    for number, vertex in indices.items():
        require(
            0 <= vertex < vertex_count and corner[vertex] >= 0,
            f"Landmark {number} is on vertex {vertex}, which this mesh of {vertex_count} does not use.",
        )
    return {number: (int(corner[v]) // 3, np.eye(3)[corner[v] % 3]) for number, v in indices.items()}


def read_landmark_indices(path: str | Path) -> dict[int, int]:
    """68 vertex indices from 0 in iBUG order (-1: unknown), as a JSON list or separated by white space."""
    text = existing_file(path).read_text(errors="replace")
    try:
        numbers = [
            int(value) for value in (json.loads(text) if text.lstrip().startswith("[") else text.split())
        ]
    except (ValueError, TypeError) as problem:
        raise ModelFileError(f"{path} is not a list of whole numbers: give 68 vertex indices.") from problem
    require(len(numbers) == 68, f"{path} holds {len(numbers)} numbers: give 68 vertex indices in iBUG order.")
    return {k: number for k, number in enumerate(numbers) if number >= 0}


def landmark_points(landmarks: Landmarks, vertices: Array, triangles: Array) -> dict[int, Array]:
    """iBUG number -> position (3,)."""
    return {k: weights @ vertices[triangles[t]] for k, (t, weights) in landmarks.items()}


def complete(landmarks: Landmarks, vertices: Array, triangles: Array) -> Landmarks:
    """All 68 landmarks; missing ones are carried over from facelab's own model, fitted to the mean face."""
    if len(landmarks) < 68:
        reference = MorphableModel.load()
        fitted = fit_reference(
            reference, vertices, triangles, landmark_points(landmarks, vertices, triangles)
        )
        wanted = reference.landmarks(torch.from_numpy(fitted).to(reference.mean)).double().numpy()
        landmarks = dict(enumerate(closest_on_surface(wanted, vertices, triangles))) | landmarks
    return dict(sorted(landmarks.items()))


# --- finishing ----------------------------------------------------------------------------------------------


def faces_outward(vertices: Array, triangles: Array) -> bool:
    """Whether the triangles are counter-clockwise from outside.

    A head, or a mask of its front, bulges away from its centroid, so outward normals point away from it.
    """
    corners = vertices[triangles]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float((area * (corners.mean(1) - vertices.mean(0))).sum()) > 0


def contour_rows(vertices: Array, triangles: Array, skin: Array, jaw: Array) -> Array:
    """(17, R) vertices from each jaw landmark (17, 3) forwards across the cheek at its height, -1 fills up.

    On a turned head the visible contour moves along such a row (Zhu et al., High-Fidelity Pose and Expression
    Normalization, CVPR 2015). The chin (8) stays where it is.
    """
    normals = normals_of(vertices, triangles)
    rows = np.full((17, ROW_STEPS), -1)
    for k in (*range(8), *range(9, 17)):
        side = -1 if k < 8 else 1
        outward, (x, y, z) = vertices[:, 0] * side, jaw[k] * [side, 1, 1]
        cheek = (outward > 0.4 * x) & (outward <= x) & (vertices[:, 2] > z) & (np.abs(vertices[:, 1] - y) < 6)
        candidates = np.flatnonzero(skin & cheek & (normals[:, 0] * side + normals[:, 2] > 0))
        if not len(candidates):
            continue
        forwards = vertices[candidates, 2] - outward[candidates]
        edges = np.linspace(forwards.min(), forwards.max(), ROW_STEPS + 1)[1:-1]
        step = np.digitize(forwards, edges)
        for s in np.unique(step):
            inside = candidates[step == s]
            rows[k, s] = inside[np.argmin(np.abs(vertices[inside, 1] - y))]
    return rows


def check_parts(parts: Parts) -> None:
    """Shapes, finite numbers, triangle indices, and that the mean face has the height of a head in mm."""
    mean, count = parts.mean, len(parts.mean)
    require(mean.ndim == 2 and mean.shape[1] == 3, f"The mean face has shape {mean.shape}, not (V, 3).")
    require(np.isfinite(mean).all(), "The mean face holds NaN or infinity: download the file again.")
    for what, basis in (("identity", parts.identity), ("expression", parts.expression)):
        require(
            basis.shape == (len(basis), count, 3),
            f"The {what} basis has shape {basis.shape}, the mean face "
            f"{count} vertices: the file mixes two models.",
        )
        require(np.isfinite(basis).all(), f"The {what} basis holds NaN or infinity: download the file again.")
    try:
        check_triangles(torch.from_numpy(parts.triangles.astype(np.int64)), count)
    except MeshError as problem:
        raise ModelFileError(f"The triangles do not fit the mean face: {problem}") from problem
    height, (low, high) = np.ptp(mean[:, 1]), HEAD_HEIGHT_MM
    require(
        low < height < high,
        f"The mean face is {height:.3g} mm high where a head has {low:.0f} to {high:.0f}: "
        "the file is in other units than this converter expects.",
    )


def check_axes(points: Array) -> None:
    """68 landmark positions (68, 3): a head of usual size, upright, facing +z, its right eye at -x."""
    eyes = points[45, 0] - points[36, 0]
    require(
        60 < eyes < 130,
        f"The outer eye corners are {eyes:.0f} mm apart along x where 75 to 110 are usual: axes, "
        "units or the order of the landmarks are not those that this converter expects.",
    )
    require(
        points[27, 1] > points[8, 1] + 40, "The nose is not above the chin: y does not point up in this file."
    )
    require(points[30, 2] > points[[0, 16], 2].mean() + 30, "The nose is not in front: z does not point out.")


def tensor(array: ArrayLike | None, dtype: type = np.float32) -> torch.Tensor:
    """A contiguous tensor; None is the empty one."""
    return torch.from_numpy(np.array(array, dtype=dtype, order="C")) if array is not None else torch.empty(0)


def finish(parts: Parts) -> MorphableModel:
    """Check the parts and complete them to a `MorphableModel`; errors: `ModelFileError`.

    Triangles are turned outward, missing landmarks carried over from facelab's own model, the origin moved to
    the middle of the front of the head (the centroid of the vertices within 95 mm of the nose tip).
    """
    check_parts(parts)
    order = [0, 1, 2] if faces_outward(parts.mean, parts.triangles) else [0, 2, 1]
    mean, triangles = parts.mean.astype(np.float64), parts.triangles[:, order].astype(np.int64)
    known = {k: (t, np.asarray(weights)[order]) for k, (t, weights) in parts.landmarks.items()}
    require(
        all(0 <= t < len(triangles) for t, _ in known.values()),
        "A landmark is on a triangle that is not there.",
    )
    require(
        all(weights.shape == (3,) and np.abs(weights).max() < 3 for _, weights in known.values()),
        "A landmark has weights that are no barycentric coordinates.",
    )
    known = complete(known, mean, triangles)
    points = np.stack(list(landmark_points(known, mean, triangles).values()))
    check_axes(points)
    origin = mean[np.linalg.norm(mean - points[30], axis=1) < 95].mean(0)
    mean, points = mean - origin, points - origin

    region = np.zeros(len(triangles)) if parts.triangle_region is None else parts.triangle_region
    skin = np.zeros(len(mean), dtype=bool)
    skin[triangles[region == REGIONS.index("skin")]] = True
    actions = None
    if parts.actions:
        flat = parts.expression.reshape(len(parts.expression), mean.size).astype(np.float64)
        shapes = np.stack([shape.reshape(-1) for shape in parts.actions.values()])
        actions = np.linalg.lstsq(flat @ flat.T, flat @ shapes.T)[0].T
    plain = np.tile(SKIN_LINEAR_RGB, (len(mean), 1))
    return MorphableModel(
        mean=tensor(mean),
        triangles=tensor(triangles, np.int64),
        identity_basis=tensor(parts.identity),
        expression_basis=tensor(parts.expression),
        albedo_mean=tensor(plain if parts.albedo_mean is None else parts.albedo_mean),
        albedo_basis=tensor(parts.albedo),
        uv=tensor(parts.uv),
        uv_triangles=tensor(None if parts.uv_triangles is None else parts.uv_triangles[:, order], np.int64),
        triangle_region=tensor(region, np.uint8),
        mirror=tensor(cKDTree(mean).query(mean * [-1, 1, 1])[1], np.int64),
        landmark_triangles=tensor([t for t, _ in known.values()], np.int64),
        landmark_weights=tensor([weights for _, weights in known.values()]),
        contour_rows=tensor(contour_rows(mean, triangles, skin, points[:17]), np.int64),
        actions=tensor(actions),
        action_names=tuple(parts.actions),
        name=parts.name,
        metadata={"terms": parts.terms},
    )


def command_line(
    convert: Callable[..., MorphableModel],
    description: str | None,
    options: dict[str, str] | None = None,
) -> None:
    """`script SOURCE OUT [--option FILE]`: convert, save, say what came out; expected errors are one line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    parser.add_argument("source", help="the downloaded file or folder")
    parser.add_argument("out", help="the face model to write (.safetensors), for MorphableModel.load")
    for name, text in (options or {}).items():
        parser.add_argument(f"--{name}", metavar="FILE", help=text)
    parser.add_argument("--borrow-albedo", action="store_true", help="take the albedo of facelab's own model")
    arguments = vars(parser.parse_args())
    source, out, borrow = (arguments.pop(name) for name in ("source", "out", "borrow_albedo"))
    try:
        model = convert(source, **arguments)
        if borrow:
            model = borrow_albedo(model, MorphableModel.load())
        model.save(out)
    except FacelabError as problem:
        raise SystemExit(f"Error: {problem}") from problem
    counts = {part: len(getattr(model, f"{part}_basis")) for part in ("identity", "expression", "albedo")}
    print(f"{out}: {model.name}, {len(model.mean)} vertices, components: {counts}")
