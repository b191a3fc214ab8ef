"""Whole albedos on the mesh: skin from the pigment model's UV maps; eyes, mouth and teeth by formula."""

import numpy as np
from face_landmarks import Level
from makehuman import ANCESTRIES, Population
from numpy.typing import NDArray
from skin import sample_skin
from skin_maps import SkinMaps
from uv_maps import UvMaps, sample_map

from facelab.model.morphable_model import REGIONS

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class Painter:
    """Draws whole albedos (V, 4) at the finest level: skin from UV maps, eyes and mouth by formula."""

    def __init__(
        self, fine: Level, uv: Floats, uv_triangles: Ints, maps: UvMaps, people: Population, seed: int
    ) -> None:
        self.people, self.seed = people, seed
        lips, lids = maps.masks["lips"], maps.masks["eyelids"]
        self.skin_maps = SkinMaps(maps.position, maps.normal, maps.valid, lips, lids, seed=seed)
        quads_of = {name: fine.quads[fine.region == k] for k, name in enumerate(REGIONS)}
        self.skin = np.unique(np.concatenate([quads_of["skin"], quads_of["lips"]]))
        self.inside = {
            name: np.setdiff1d(quads_of[name], self.skin) for name in ("lids", "eyes", "interior", "teeth")
        }
        on_skin = np.isin(np.repeat(fine.region, 2), [REGIONS.index("skin"), REGIONS.index("lips")])
        uv_of = np.zeros((len(fine.vertices), 2), np.float32)
        uv_of[fine.triangles[on_skin].ravel()] = uv[uv_triangles[on_skin].ravel()]
        self.skin_uv = uv_of[self.skin]
        self.count = len(fine.vertices)
        depth = fine.vertices[self.inside["interior"], 2]
        self.mouth_dark = np.exp((depth - depth.max()) / 12)[:, None]
        self.eyes = [eye_coordinates(fine, self.inside["eyes"], side) for side in (-1, 1)]

    def paint(self, i: int) -> Floats:
        """Linear diffuse RGB and specular F0 (V, 4) of person i."""
        rng = np.random.default_rng([self.seed, i])
        who = self.people
        diffuse, specular = sample_skin(
            rng, self.skin_maps, who.ancestry[i], float(who.gender[i]), float(who.age[i])
        )
        colours = np.empty((self.count, 4), np.float32)
        colours[self.skin] = sample_map(np.dstack([diffuse, specular]), self.skin_uv)
        tone = np.median(colours[self.skin], axis=0)
        colours[self.inside["lids"]] = [*(0.6 * tone[:3] + [0.06, 0.015, 0.012]), 0.03]
        colours[self.inside["interior"]] = self.mouth_dark * [0.16, 0.04, 0.035, 0.02]
        yellow = 0.25 * who.age[i] + rng.normal(0, 0.03)
        enamel = rng.normal(0.46, 0.03) * (1 - yellow * np.array([0.2, 0.4, 0.9]))
        colours[self.inside["teeth"]] = [*enamel, 0.04]
        iris = iris_colour(rng, float(who.ancestry[i, ANCESTRIES.index("caucasian")]))
        pattern = rng.standard_normal((8, 64))
        for ids, radius, angle, shade in self.eyes:
            colours[ids] = paint_eye(radius, angle, shade, iris, pattern)
        return colours.clip(0.004, 1)


def eye_coordinates(fine: Level, ids: Ints, side: int) -> tuple[Ints, Floats, Floats, Floats]:
    """One eyeball's vertices, their distance (mm of arc) from the pupil, angle, and the shade of the lid."""
    ids = ids[np.sign(fine.vertices[ids, 0]) == side]
    points = fine.vertices[ids].astype(np.float64)
    system = np.c_[2 * points, np.ones(len(points))]
    centre = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0][:3]  # a sphere through the points
    offset = points - centre
    radius = np.linalg.norm(offset, axis=1)
    direction = offset / radius[:, None]
    arc = np.arccos(direction[:, 2].clip(-1, 1)) * radius
    # Neither SH nor point lights cast the shadow of the upper lid, without which eyes look glued on.
    shade = (0.80 - 1.1 * direction[:, 1]).clip(0.3, 1)
    shade *= 1 - 0.4 * ((np.abs(direction[:, 0]) - 0.3) / 0.4).clip(0, 1)  # and in the corners
    return ids, arc, side * np.arctan2(direction[:, 1], side * direction[:, 0]), shade


def iris_colour(rng: np.random.Generator, european: float) -> Floats:
    """Linear RGB of an iris: brown to black, with grey-blue and green ones among Europeans."""
    brown = np.array([0.075, 0.034, 0.015]) * np.exp(rng.normal(0, 0.4))
    light = np.array([[0.13, 0.18, 0.23], [0.12, 0.13, 0.07], [0.18, 0.19, 0.19]])[rng.integers(3)]
    share = rng.uniform(0.5, 1) if rng.random() < 0.5 * european else 0.0
    return (1 - share) * brown + share * light


def paint_eye(radius: Floats, angle: Floats, shade: Floats, iris: Floats, pattern: Floats) -> Floats:
    """Pupil, iris with radial fibres and a dark rim, sclera: linear RGB and F0 (N, 4)."""
    rings, spokes = pattern.shape
    ring = (radius / 6 * rings).astype(int).clip(0, rings - 1)
    spoke = ((angle / (2 * np.pi)) % 1 * spokes).astype(int).clip(0, spokes - 1)
    fibres = 1 + 0.12 * pattern[ring, spoke] - 0.5 * np.exp(-(((radius - 5.7) / 0.6) ** 2))
    reddening = ((radius[:, None] - 7) / 6).clip(0, 1) * [0.02, 0.10, 0.12]
    sclera = np.array([0.44, 0.42, 0.41]) * (1 - reddening)
    in_iris = 1 / (1 + np.exp((radius[:, None] - 5.9) / 0.25))
    in_pupil = 1 / (1 + np.exp((radius[:, None] - 2.0) / 0.25))
    colour = sclera * (1 - in_iris) + (fibres[:, None] * iris) * in_iris
    colour = colour * (1 - in_pupil) + 0.006 * in_pupil
    return np.c_[colour * shade[:, None], 0.035 * shade]
