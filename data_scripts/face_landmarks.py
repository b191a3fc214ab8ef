"""The mesh at its levels of detail, and its marks: 68 landmarks, jaw contour rows, the inner-mouth cap."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from face_cage import Cage, border_loop, ladder
from linear_models import FLIP
from numpy.typing import NDArray
from scipy.spatial import KDTree
from uv_maps import vertex_normals

from facelab.geometry.subdivision import Subdivision, catmull_clark, triangulate
from facelab.model.morphable_model import REGIONS

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

# The landmark on the other side of the face, for each of the 68.
LANDMARK_MIRROR = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46]
    + [39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)
ROW_LENGTH = 24
LEVELS = 2


@dataclass
class Level:
    """The mean face at one level of detail."""

    vertices: Floats  # (V, 3) mm, exactly symmetric about x = 0
    quads: Ints  # (Q, 4)
    triangles: Ints  # (2 Q, 3)
    region: NDArray[np.uint8]  # (Q,)
    mirror: Ints  # (V,)


def refine(cage: Cage, face: Floats) -> tuple[list[Level], Floats, Ints]:
    """A face (V, 3) at all levels of detail, and the UV (U, 2) with its triangles at the finest."""
    vertices, quads, mirror = face.astype(np.float64), cage.quads, cage.mirror
    uv, uv_quads = cage.uv.astype(np.float64), cage.uv_quads
    levels = []
    for n in range(LEVELS + 1):
        if n:
            fine, fine_uv = catmull_clark(quads, len(vertices)), catmull_clark(uv_quads, len(uv))
            mirror = refine_mirror(mirror, quads, fine)
            vertices, quads = fine.matrix @ vertices, fine.quads
            vertices = 0.5 * (vertices + vertices[mirror] * FLIP)
            uv, uv_quads = fine_uv.matrix @ uv, fine_uv.quads
        region = np.repeat(cage.region, 4**n)
        levels.append(Level(vertices.astype(np.float32), quads, triangulate(quads), region, mirror))
    return levels, uv.astype(np.float32), triangulate(uv_quads)


def refine_mirror(mirror: Ints, quads: Ints, fine: Subdivision) -> Ints:
    """Mirror map of a subdivided mesh: edges and faces go where their corners go."""
    edge_of = {tuple(edge): i for i, edge in enumerate(fine.edges.tolist())}
    face_of = {frozenset(quad): i for i, quad in enumerate(quads.tolist())}
    edges = [edge_of[tuple(edge)] for edge in np.sort(mirror[fine.edges], 1).tolist()]
    faces = [face_of[frozenset(quad)] for quad in mirror[quads].tolist()]
    n, e = len(mirror), len(edges)
    return np.concatenate([mirror, n + np.array(edges), n + e + np.array(faces)])


def landmark_positions() -> Floats:
    """The committed 68 positions (68, 3) in mm relative to the tip of the cage's nose, symmetric."""
    table = json.loads(Path(__file__).with_name("landmarks68.json").read_text())
    return np.array(table["positions_mm"], np.float32)


def locate_landmarks(level: Level, positions: Floats) -> tuple[Ints, Floats]:
    """Nearest points on the skin: triangle (68,) and barycentric weights (68, 3), mirror-symmetric.

    One half is projected and the other half mirrored; points on the midline are put on it exactly.
    """
    skin = np.isin(np.repeat(level.region, 2), [REGIONS.index("skin"), REGIONS.index("lips")])
    ids = np.flatnonzero(skin)
    corners = level.vertices[level.triangles[ids]].astype(np.float64)
    tree = KDTree(corners.mean(1))
    by_corners = {frozenset(t): i for i, t in enumerate(level.triangles.tolist())}
    triangle, weights = np.zeros(68, np.int64), np.zeros((68, 3), np.float32)
    for i, other in enumerate(LANDMARK_MIRROR):
        if other < i:
            continue
        _, near = tree.query(positions[i], k=40)
        at = trimesh.triangles.closest_point(corners[near], np.repeat(positions[i : i + 1], 40, 0))
        best = int(np.argmin(np.linalg.norm(at - positions[i], axis=1)))
        bary = trimesh.triangles.points_to_barycentric(corners[near[best]][None], at[best][None])[0]
        bary = np.clip(bary, 0, 1)
        t = level.triangles[ids[near[best]]]
        if other == i:  # keep to the edge on the midline
            bary[np.abs(level.vertices[t, 0]) > 1e-4] = 0
        bary /= bary.sum()
        triangle[i], weights[i] = ids[near[best]], bary
        if other != i:
            twin = by_corners[frozenset(level.mirror[t].tolist())]
            order = [list(level.mirror[t]).index(v) for v in level.triangles[twin]]
            triangle[other], weights[other] = twin, bary[order]
    return triangle, weights


def contour_rows(level: Level, landmarks: Floats) -> Ints:
    """Rows (17, ROW_LENGTH) of vertices at the height of each jaw landmark (68, 3), filled up with -1.

    A row runs over the skin from the landmark to the front of the cheek, one vertex per step of the direction
    around the vertical axis of the head. Rows that also ran back towards the ear fitted annotated photographs
    worse. The three chin landmarks have no row: they stay.
    """
    vertices = level.vertices
    skin = np.unique(level.quads[np.isin(level.region, [REGIONS.index("skin"), REGIONS.index("lips")])])
    axis_z = landmarks[0, 2]
    direction = np.arctan2(-vertices[skin, 0], vertices[skin, 2] - axis_z)  # 0 in front, rising to the left
    normals = vertex_normals(vertices, level.triangles)[skin]
    outside = (normals[:, 0] * vertices[skin, 0] + normals[:, 2] * (vertices[skin, 2] - axis_z)) > 0
    rows = np.full((17, ROW_LENGTH), -1)
    for i in range(7):
        x, y, _ = landmarks[i]
        start = np.arctan2(-x, landmarks[i, 2] - axis_z)
        radius = np.hypot(x, landmarks[i, 2] - axis_z)
        inner = max(0.55 * abs(x), 20)
        steps = np.linspace(start, start - 1.25, ROW_LENGTH)
        chosen: list[int] = []
        for step in steps:
            off = np.hypot((direction - step) * radius, 3 * (vertices[skin, 1] - y))
            usable = outside & (vertices[skin, 0] < -inner) & (off < 12) & (direction <= start)
            if usable.any():
                vertex = int(skin[usable][np.argmin(off[usable])])
                if vertex not in chosen:
                    chosen.append(vertex)
        rows[i, : len(chosen)] = chosen
        rows[16 - i, : len(chosen)] = level.mirror[chosen]
    return rows


def mouth_cap(level: Level) -> Ints:
    """Triangles (C, 3) over the opening between the lips: a ladder between the upper and lower inner lip."""
    mouth = level.quads[level.region == REGIONS.index("interior")]
    outer = level.quads[np.isin(level.region, [REGIONS.index("skin"), REGIONS.index("lips")])]
    inside = np.setdiff1d(mouth, outer)
    upper, lower = ladder(border_loop(mouth, inside), level.vertices)
    rungs = np.stack([lower[:-1], lower[1:], upper[1:], upper[:-1]], 1)
    triangles = np.concatenate([rungs[:, [0, 1, 2]], rungs[:, [0, 2, 3]]])
    return triangles[[len(set(t)) == 3 for t in triangles.tolist()]]
