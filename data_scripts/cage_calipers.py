"""Calipers and landmarks for shapes on the cage, measured on the smoother mesh that people see."""

from dataclasses import dataclass

import numpy as np
from anthropometry import Calipers
from face_cage import Cage
from face_landmarks import landmark_positions, locate_landmarks, refine
from numpy.typing import NDArray
from scipy.sparse import csr_array
from uv_maps import vertex_normals

from facelab.geometry.subdivision import catmull_clark
from facelab.model.morphable_model import REGIONS

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass
class CageCalipers:
    """Measures heads on the cage (N, V, 3) as they are after one subdivision, which smooths lids and tip."""

    calipers: Calipers  # on the measured vertices alone
    rows: csr_array  # (R, V) of the subdivision: those vertices

    def measure(self, shapes: Floats) -> dict[str, Floats]:
        """See `Calipers.measure`."""
        return self.calipers.measure(self._refined(shapes))

    def ratios(self, shapes: Floats) -> dict[str, Floats]:
        """See `Calipers.ratios`."""
        return self.calipers.ratios(self._refined(shapes))

    def _refined(self, shapes: Floats) -> Floats:
        count, vertices, _ = shapes.shape
        fine = self.rows @ shapes.transpose(1, 0, 2).reshape(vertices, -1)
        return fine.reshape(-1, count, 3).transpose(1, 0, 2).astype(np.float32)


def place_on_cage(cage: Cage, mean: Floats) -> CageCalipers:
    """Calipers for shapes (N, V, 3) of the cage; the 68 landmark positions were found on its `mean`."""
    level = refine(cage, mean)[0][1]
    on, weights = locate_landmarks(level, landmark_positions() + mean[cage.nose_tip])

    def vertices_of(*names: str) -> Ints:
        return np.unique(level.quads[np.isin(level.region, [REGIONS.index(name) for name in names])])

    normals, skin = vertex_normals(level.vertices, level.triangles), vertices_of("skin", "lips")
    corners = level.triangles[on]
    placed = Calipers.place(level.vertices, normals, corners, weights, skin, vertices_of("eyes"))
    used = np.unique(np.r_[corners.ravel(), placed.tip, placed.alae, placed.cheekbones, placed.eyes])
    parts = [np.searchsorted(used, part) for part in (corners, placed.alae, placed.cheekbones, placed.eyes)]
    tip = int(np.searchsorted(used, placed.tip))
    few = Calipers(parts[0], weights, tip, *parts[1:])
    return CageCalipers(few, catmull_clark(cage.quads, len(mean)).matrix.tocsr()[used])
