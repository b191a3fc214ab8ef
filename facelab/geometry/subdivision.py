"""Catmull-Clark subdivision of a quad mesh as one sparse matrix.

The scheme is linear in the vertices, so a mean shape and its bases are refined by the same matrix. Vertices
come in the order [old vertices, edge points, face points]: those of a coarse level are the first rows of
every finer one.
Source: Catmull and Clark 1978; boundaries are cubic B-spline curves, boundary corners stay where they are.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Subdivision:
    """One refinement step: `matrix` (V', V) float64 and the finer `quads` (4 Q, 4).

    Quad q of the coarse mesh becomes the quads 4q .. 4q+3, one per corner; `edges` (E, 2) are the coarse
    edges in the order of their edge points.
    """

    matrix: sp.csr_array
    quads: Ints
    edges: Ints


def catmull_clark(quads: ArrayLike, n_vertices: int) -> Subdivision:
    """One Catmull-Clark step for `quads` (Q, 4) over `n_vertices` vertices (all of them used).

    A mesh may have boundaries (border of a cropped face, seams of a UV layout).
    """
    faces = np.asarray(quads, dtype=np.int64)
    n_faces, n = len(faces), n_vertices
    sides = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    edges, edge_of_side, sharing = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
    edge_of_side = edge_of_side.reshape(n_faces, 4)
    n_edges = len(edges)
    boundary = sharing == 1

    def incidence(rows: Ints, columns: Ints, shape: tuple[int, int]) -> sp.csr_array:
        return sp.csr_array((np.ones(rows.size), (rows.ravel(), columns.ravel())), shape=shape)

    def scale(values: NDArray[np.float64]) -> sp.dia_array:
        return sp.diags_array(values)

    corner_face = np.repeat(np.arange(n_faces), 4).reshape(-1, 4)
    face_corners = incidence(corner_face, faces, (n_faces, n))
    edge_ends = incidence(np.repeat(np.arange(n_edges), 2), edges, (n_edges, n))
    edge_faces = incidence(edge_of_side, corner_face, (n_edges, n_faces))

    face_points = 0.25 * face_corners
    midpoints = 0.5 * edge_ends
    # Edge point: mean of the two ends and the two face points; on the boundary the midpoint.
    edge_points = scale(np.where(boundary, 1.0, 0.5)) @ midpoints
    edge_points = edge_points + scale(np.where(boundary, 0.0, 0.25)) @ edge_faces @ face_points

    # Old vertex of valence k: (mean of face points + 2 mean of midpoints + (k - 3) vertex) / k.
    valence = np.maximum(np.asarray(edge_ends.sum(axis=0)).ravel(), 1)
    face_count = np.maximum(np.asarray(face_corners.sum(axis=0)).ravel(), 1)
    boundary_ends = (scale(boundary.astype(float)) @ edge_ends).T.tocsr()
    boundary_count = np.asarray(boundary_ends.sum(axis=1)).ravel()
    inner, border, corner = boundary_count == 0, boundary_count == 2, ~np.isin(boundary_count, (0, 2))
    vertex_points = (
        scale(np.where(inner, 1 / (valence * face_count), 0.0)) @ face_corners.T @ face_points
        + scale(np.where(inner, 2 / valence**2, 0.0)) @ edge_ends.T @ midpoints
        + scale(np.where(inner, (valence - 3) / valence, 0.5 * border + corner))
        + scale(np.where(border, 0.25, 0.0)) @ boundary_ends @ midpoints
    )
    matrix = sp.vstack([vertex_points, edge_points, face_points], format="csr")

    edge_ids = n + edge_of_side
    centre = n + n_edges + np.arange(n_faces)
    corners = [np.stack([faces[:, k], edge_ids[:, k], centre, edge_ids[:, k - 1]], 1) for k in range(4)]
    return Subdivision(matrix, np.stack(corners, axis=1).reshape(-1, 4), edges)


def triangulate(quads: ArrayLike) -> Ints:
    """Triangles (2 Q, 3) of `quads` (Q, 4), split from the first to the third corner; quad q gives 2q, 2q+1.

    After a subdivision step the split runs from an old vertex to a face centre, so a mirror-symmetric quad
    mesh keeps mirror-symmetric triangles.
    """
    faces = np.asarray(quads, dtype=np.int64)
    return faces[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
