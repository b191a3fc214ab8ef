"""Where things are on a face: fields over the upright UV window, shared by all people that are drawn.

Lengths are in mm on the mean face, x and y measured from the tip of the nose (axes: docs/conventions.md).
The constants of anatomy are ours, read off the mean face.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import interpolate, ndimage
from scipy.special import expit

Map = NDArray[np.float32]

NOISE_SCALES = (0.25, 0.6, 1.5, 4.0, 9.0, 20.0)  # mm: pores, mottle, blotches
EYE_HEIGHT = 40.0  # of the eyes' centres above the tip of the nose


class SkinMaps:
    """Fields over the UV window, all (S, S) float32, mirror symmetric where the input is.

    Args:
        positions: (S, S, 3) mm on the mean face, any origin.
        normals: (S, S, 3) unit normals.
        valid: (S, S) bool, texels on the skin; eye openings and mouth are holes in it.
        lips, eyelids: (S, S) in [0, 1].
        seed: of the bank of noise that all samples share.

    Raises:
        ValueError: shapes differ, or `valid` has no hole for both eyes and the mouth.
    """

    def __init__(
        self,
        positions: ArrayLike,
        normals: ArrayLike,
        valid: ArrayLike,
        lips: ArrayLike,
        eyelids: ArrayLike,
        seed: int = 0,
    ) -> None:
        self.valid = np.asarray(valid, bool)
        size = self.size = len(self.valid)
        positions, normals = np.asarray(positions, np.float32), np.asarray(normals, np.float32)
        shapes = {self.valid.shape, np.shape(lips), np.shape(eyelids), positions.shape[:2], normals.shape[:2]}
        if shapes != {(size, size)}:
            raise ValueError(f"all maps must be square and of one size, got {sorted(shapes)}")
        # Texels off the skin take the values of the nearest one on it, so that the fields have no edge there.
        row, column = ndimage.distance_transform_edt(~self.valid, return_distances=False, return_indices=True)
        tip = positions[self.valid][positions[self.valid][:, 2].argmax()] * [0, 1, 1]
        filled = (positions - tip)[row, column].astype(np.float32)
        x, y, z = (filled[..., axis] for axis in range(3))
        self.side, self.y, self.z = np.abs(x), y, z
        self.normal_y = normals[row, column, 1]
        self.lips, self.eyelids = (np.clip(np.asarray(m, np.float32), 0, 1) for m in (lips, eyelids))
        both = self.valid[:, 1:] & self.valid[:, :-1]
        self.texel_mm = float(np.median(np.linalg.norm(np.diff(filled, axis=1), axis=2)[both]))
        self.eye_distance, self.mouth_distance = self._distances_to_openings()
        self.frontal = (x, y, self.valid & (z > -75) & (normals[row, column, 2] > 0.15))
        self._locate = self._frontal_to_texel()
        self.region = self._regions()
        self.beard = self._beard_regions()
        rng = np.random.default_rng(seed)
        self._noise = {scale: [self._noise_tile(rng, scale) for _ in range(2)] for scale in NOISE_SCALES}

    def bump(self, x: float, y: float, width: float, height: float) -> Map:
        """A Gaussian bump at (x, y) mm on both sides of the face."""
        return np.exp(-0.5 * (((self.side - x) / width) ** 2 + ((self.y - y) / height) ** 2))

    def _regions(self) -> dict[str, Map]:
        return {
            "cheek": self.bump(42, 2, 15, 14) * expit((self.z + 75) / 6),
            "nose": self.bump(0, 4, 13, 17) * expit((self.z + 28) / 4),
            "nose_wing": self.bump(16, 2, 5, 6),
            "forehead": self.bump(0, 85, 42, 22),
            "chin": self.bump(0, -58, 18, 12) * expit((self.z + 50) / 5),
            "under_eye": self.bump(31, 28, 13, 6),
            "upper_lid": np.maximum(self.bump(31, 49, 15, 6), 0.8 * self.eyelids * (self.y > EYE_HEIGHT)),
            "perioral": self.bump(0, -34, 32, 20) * expit((self.z + 60) / 8),
            "jaw": expit((-45 - self.y) / 8) * expit((-30 - self.z) / 8),
        }

    def _beard_regions(self) -> dict[str, Map]:
        """Where beards of different cuts grow, as shares of the densest growth."""
        jaw = expit((-26 - self.y - 0.25 * np.maximum(self.side - 30, 0)) / 3)
        moustache = 0.95 * expit((-13 - self.y) / 2) * expit((30 - self.side) / 3)
        sideburns = 0.8 * expit((self.side - 52) / 5) * expit((6 - self.y) / 6)
        bare_cheek = 1 - 0.45 * self.bump(40, -22, 12, 9)
        under_lip = 1 - 0.6 * self.bump(0, -46, 7, 3)
        full = np.clip(jaw + moustache + sideburns, 0, 1) * expit((5 - self.z) / 5)
        full *= np.clip(1 - 1.3 * self.lips, 0, 1) * bare_cheek * under_lip
        above_mouth = expit((self.y + 32) / 1.5)
        goatee = full * expit((29 - self.side) / 2.5) * expit((self.z + 62) / 5)
        return {"full": full, "moustache": goatee * above_mouth, "goatee": goatee}

    def _distances_to_openings(self) -> tuple[Map, Map]:
        holes, count = ndimage.label(~self.valid)
        eyes, mouth = np.zeros_like(self.valid), np.zeros_like(self.valid)
        for hole in (holes == k for k in range(1, count + 1)):
            if hole[[0, -1]].any() or hole[:, [0, -1]].any():
                continue
            side, height = float(np.median(self.side[hole])), float(np.median(self.y[hole]))
            if side > 15 and height > 20:
                eyes |= hole
            elif side < 15 and height < -20:
                mouth |= hole
        if not eyes.any() or not mouth.any():
            raise ValueError("`valid` must have holes at both eyes and at the mouth")
        return tuple(
            ndimage.distance_transform_edt(~m).astype(np.float32) * self.texel_mm for m in (eyes, mouth)
        )

    def _frontal_to_texel(self) -> interpolate.RegularGridInterpolator:
        """Where a point (x, y) mm of the frontal view lies in the window, as (row, column)."""
        x, y, frontal = self.frontal
        known = np.stack([x[frontal], y[frontal]], 1)
        texels = np.argwhere(frontal).astype(float)
        grid = np.arange(-75.0, 75.1), np.arange(-70.0, 125.1)
        points = np.stack(np.meshgrid(*grid, indexing="ij"), -1)
        inside = interpolate.LinearNDInterpolator(known, texels)(points)
        nearest = interpolate.NearestNDInterpolator(known, texels)(points)
        table = np.where(np.isnan(inside), nearest, inside)
        return interpolate.RegularGridInterpolator(grid, table, bounds_error=False, fill_value=None)

    def _noise_tile(self, rng: np.random.Generator, scale: float) -> Map:
        tile = rng.standard_normal((2 * self.size, 2 * self.size), dtype=np.float32)
        tile = ndimage.gaussian_filter(tile, scale / self.texel_mm, mode="wrap")
        return tile / tile.std()

    def noise(self, rng: np.random.Generator, scale: float) -> Map:
        """Gaussian noise of unit variance, smooth over `scale` mm: a random window of a fixed tile."""
        tile = self._noise[scale][rng.integers(2)]
        row, column = rng.integers(0, self.size, 2)
        tile = tile[row : row + self.size, column : column + self.size]
        return tile[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]

    def strokes(self, points: ArrayLike, weights: ArrayLike, width: float) -> Map:
        """Draw points (N, 2) mm of the frontal view as a density, each a Gaussian of `width` mm.

        A row of points one texel apart, each of weight 1, gives a line whose middle has a density near 1.
        """
        texels = self._locate(np.asarray(points))
        low = np.floor(texels).astype(int)
        part = texels - low
        canvas = np.zeros((self.size + 1, self.size + 1), np.float32)
        for down in (0, 1):
            for right in (0, 1):
                share = np.abs(1 - down - part[:, 0]) * np.abs(1 - right - part[:, 1]) * weights
                where = np.clip(low + [down, right], 0, self.size)
                np.add.at(canvas, (where[:, 0], where[:, 1]), share)
        sigma = width / self.texel_mm
        return ndimage.gaussian_filter(canvas[:-1, :-1], sigma) * np.sqrt(2 * np.pi) * max(sigma, 0.4)
