"""GNM Head v3 (Google, from scans of people) as a facelab face model.

Where:  https://github.com/google/GNM: gnm/shape/data/versions/v3_0/gnm_head.npz, and beside the versions
        landmarks/head_sparse_68.txt for --landmarks.
Terms:  Apache-2.0.
File:   an .npz of plain arrays: template_vertex_positions (V, 3), vertex_identity_basis (I, V, 3),
        expression_basis (E, V, 3), triangles (T, 3), triangle_uvs (T, 3, 2), vertex_groups (G, V) and their
        names, identity_names, expression_names, and what moves joints. V is 17,821, I 253, E 383.
Units:  metres (recognised by the height of the head); directions are per standard deviation.
Kept:   all identity and expression components that move what is kept by more than a micrometre: the
        tongue, and the insides of the eyeballs behind their clear surfaces, are left out; teeth stay.
        Joints (neck, eyeballs) rest. There is no albedo; --borrow-albedo takes that of facelab's own model.
        --landmarks takes rows of three vertices with their weights; without it all 68 are carried over from
        facelab's own model.

    python data_scripts/convert_gnm.py gnm_head.npz gnm.safetensors --landmarks head_sparse_68.txt
"""

from pathlib import Path

import numpy as np
from conversion import Array, Landmarks, Parts, command_line, converter, existing_file, finish, require
from registration import closest_on_surface

from facelab.model.morphable_model import REGIONS, MorphableModel
from facelab.support.errors import ModelFileError
from facelab.support.files import read_npz

NEEDED = (
    "template_vertex_positions", "vertex_identity_basis", "expression_basis", "triangles", "triangle_uvs",
    "vertex_groups", "vertex_group_names",
)  # fmt: skip
LEFT_OUT = ("tongue", "eyeball_interior", "eye_interiors")  # groups of vertices, by any of their names
EYES = ("eyeball_exterior", "eye_exteriors", "sclera", "scleras", "left_eye", "right_eye", "eyes")
TEETH = ("upper_teeth", "lower_teeth", "upper_teeth_and_gums", "lower_teeth_and_gums", "teeth", "gums")
LEAST = 1e-3  # mm: what moves nothing by more is no component


def in_groups(data: dict[str, Array], wanted: tuple[str, ...]) -> Array:
    """(V,) bool: the vertices of the groups that have one of these names."""
    names = [str(name) for name in data["vertex_group_names"]]
    groups = np.asarray(data["vertex_groups"], np.float64)
    require(len(names) == len(groups), f"There are {len(groups)} vertex groups and {len(names)} names.")
    chosen = [group for name, group in zip(names, groups) if name in wanted]
    return np.max(chosen, 0) > 0.5 if chosen else np.zeros(groups.shape[1], bool)


def read_landmarks(path: str | Path, vertices: Array, triangles: Array) -> Landmarks:
    """68 rows of three vertices and their weights, as points of the triangles that are kept."""
    with existing_file(path).open(errors="replace") as file:
        try:
            rows = np.loadtxt(file, ndmin=2)
        except ValueError as problem:
            raise ModelFileError(f"{path} is no table of numbers: give head_sparse_68.txt.") from problem
    require(rows.shape == (68, 6), f"{path} holds {rows.shape} numbers: give 68 rows of three pairs.")
    corners, weights = rows[:, ::2].astype(np.int64), rows[:, 1::2]
    known = ((corners >= 0) & (corners < len(vertices))).all() and np.isfinite(weights).all()
    require(known, f"{path} names vertices that this mesh of {len(vertices)} has not.")
    points = (vertices[corners] * weights[..., None]).sum(1) / weights.sum(1, keepdims=True)
    return dict(enumerate(closest_on_surface(points, vertices, triangles)))


def used_components(basis: Array, used: Array, scale: float) -> Array:
    """(K', V, 3) in mm: the components that move a vertex that is used."""
    basis = np.asarray(basis, np.float32) * np.float32(scale)
    most = np.linalg.norm(basis[:, used], axis=-1).max(-1)
    return basis[~(most <= LEAST)]  # NaN stays, for `finish` to find


@converter
def convert(source: str | Path, landmarks: str | Path | None = None) -> MorphableModel:
    """GNM as a `MorphableModel`; errors: `ModelFileError`."""
    data = read_npz(existing_file(source), f"'{source}' is not a complete .npz of plain arrays")
    missing = [name for name in NEEDED if name not in data]
    require(not missing, f"{source} lacks {', '.join(missing)}: it is not a GNM model of version 3.")
    vertices = np.asarray(data["template_vertex_positions"], np.float64)
    triangles = np.asarray(data["triangles"]).astype(np.int64)
    uv = np.asarray(data["triangle_uvs"], np.float32)
    fits = vertices.ndim == 2 and triangles.ndim == 2 and uv.shape == (len(triangles), 3, 2)
    fits = fits and data["vertex_groups"].shape[1:] == (len(vertices),)
    fits = fits and len(triangles) > 0 and triangles.min() >= 0 and triangles.max() < len(vertices)
    require(fits, f"{source}: vertices, triangles, UV coordinates and groups do not fit: download it again.")
    height = float(np.ptp(vertices[:, 1]))
    scale = 1000.0 if height < 1 else 10.0 if height < 100 else 1.0
    kept = ~in_groups(data, LEFT_OUT)[triangles].any(1)
    triangles, uv = triangles[kept], uv[kept]
    used = np.unique(triangles)
    place = np.full(len(vertices), -1)
    place[used] = np.arange(len(used))
    region = np.full(len(triangles), REGIONS.index("skin"))
    for name, groups in (("teeth", TEETH), ("eyes", EYES)):
        region[in_groups(data, groups)[triangles].all(1)] = REGIONS.index(name)
    known = read_landmarks(landmarks, scale * vertices, triangles) if landmarks else {}
    corners, uv_triangles = np.unique(uv.reshape(-1, 2), axis=0, return_inverse=True)
    parts = Parts(
        name="GNM",
        terms="github.com/google/GNM, Apache-2.0 licence",
        mean=scale * vertices[used],
        triangles=place[triangles],
        identity=used_components(data["vertex_identity_basis"], used, scale)[:, used],
        expression=used_components(data["expression_basis"], used, scale)[:, used],
        uv=corners,
        uv_triangles=uv_triangles.reshape(-1, 3),
        triangle_region=region,
        landmarks=known,
    )
    return finish(parts)


if __name__ == "__main__":
    command_line(convert, __doc__, {"landmarks": "head_sparse_68.txt"})
