"""A population of adult heads that measures like people: sliders fitted to drawn measurements.

    python data_scripts/population.py [--people 2000] [--seed 2026]     # its measures beside people's

Each person gets a sex, an ancestry and an age, and measurements drawn from the published norms of that group
(anthropometry.json), correlated as in the survey. MakeHuman's sliders are then drawn as before and moved, as
little as possible in their standard deviations, until the head measures as drawn: minimum-norm Gauss-Newton
steps. So means, spreads and correlations are people's, and what nobody measured keeps the sliders' own
distribution. Who would need sliders beyond what an ordinary adult has is left out.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from anthropometry import (
    GROUPS,
    MEASURES,
    SEXES,
    compare,
    group_norm,
    photograph_norm,
    pooled_norm,
    read_table,
    table,
)
from brow_slides import SLIDES, slide_offsets
from cage_calipers import CageCalipers, place_on_cage
from face_cage import Cage, crop_face
from makehuman import (
    ANCESTRIES,
    NOSE_TIP,
    BaseMesh,
    Population,
    Slider,
    Targets,
    read_base_mesh,
    read_mask,
    sample_macros,
    sample_population,
)
from numpy.typing import NDArray
from uv_maps import vertex_normals

from facelab.geometry.subdivision import triangulate

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

# What is drawn for everyone, in mm. The outer canthi follow from the inner ones and the lids' length; how far
# the lids are open is taken from photographs: who is measured opens the eyes wide.
MATCHED = tuple(name for name in MEASURES if name not in ("outer_canthal", "fissure_height"))
# Annotators of photographs click this far from where calipers touch; halfway is taken.
CLICKED = {"inner_canthal": 1.4, "fissure_length": -0.2, "face_height": -1.5, "mouth_width": 0.8}
# Ratios to the outer canthal distance; share of the photographs' spread that is people, not pose or clicks.
FROM_PHOTOGRAPHS = {
    "eyes to mouth": 0.8,
    "jaw width": 0.85,
    "brow to eye": 0.75,
    "brow gap": 0.75,
    "brow width": 0.95,
    "eye height": 0.75,
    "lip height": 0.8,
}
AT_REST = {"eye height": 1.15}  # over the mean of photographs, where most people smile
# What goes with a ratio: the measure, and how it is correlated with it. A long nose has a mouth below it.
COMPANIONS = {"eyes to mouth": ("nose_height", 0.7), "jaw width": ("face_width", 0.6)}
EXPECTED_SPREAD = {"fissure_length": 1.9}  # mm, where a group's sources give none
# What looks like an expression at rest: a mouth drawn down or up, brows drawn together.
CALM = {
    "mouth-angles-down-up": 0.35,
    "mouth-laugh-lines-in-out": 0.6,
    "mouth-upperlip-ext-down-up": 0.6,
    "mouth-lowerlip-ext-down-up": 0.6,
    "head-fat-decr-incr": 0.7,
    "eyebrows-angle-down-up": 0.4,
    "eyebrows-trans-down-up": 0.5,
}
SPARE = 1.8  # heads drawn for each one that is kept
STEPS = 8
DAMPING = 0.01
LARGEST_SLIDER = 0.9
AGE_GROUPS = np.array([23.5, 37.0, 55.0])  # years in the middle of the survey's groups


@dataclass
class Heads:
    """Linear targets at the chosen vertices, and how sliders drive them."""

    sides: Floats  # (2, T, K * 3) of the negative and the positive targets of all sides
    owner: Ints  # (T,) which slider moves it
    sigma: Floats  # (S,)

    @classmethod
    def read(cls, targets: Targets) -> "Heads":
        by_name: dict[str, list[Slider]] = {}
        for slider in targets.local():
            if isinstance(slider, Slider):
                by_name.setdefault(slider.name, []).append(slider)
        sides = [side for pair in by_name.values() for side in pair]
        owner = np.repeat(np.arange(len(by_name)), [len(pair) for pair in by_name.values()])
        ends = [[targets.read(s.negative) for s in sides], [targets.read(s.positive) for s in sides]]
        sigma = np.array([pair[0].sigma * CALM.get(name, 1.0) for name, pair in by_name.items()])
        return cls(np.array(ends, np.float32), owner, sigma)

    def with_brow_slides(self, points: Floats, normals: Floats) -> "Heads":
        """These and the sliders of `brow_slides.py`; see `slide_offsets` for points and normals (K, 3)."""
        slid = np.array([slide_offsets(s, side, points, normals).ravel() for s in SLIDES for side in (-1, 1)])
        owner = len(self.sigma) + np.repeat(np.arange(len(SLIDES)), 2)
        sides = np.concatenate([self.sides, np.stack([-slid, slid])], 1)
        sigma = np.concatenate([self.sigma, [slide.sigma for slide in SLIDES]])
        return Heads(sides, np.concatenate([self.owner, owner]), sigma)

    def at(self, vertices: Ints) -> "Heads":
        """The same at some of the vertices only."""
        some = self.sides.reshape(2, len(self.owner), -1, 3)[:, :, vertices]
        return Heads(some.reshape(2, len(self.owner), -1), self.owner, self.sigma)

    def offsets(self, values: Floats, uneven: Floats) -> Floats:
        """Offsets (N, K * 3) for slider values (N, S) and their sides' differences from them (N, T)."""
        each = (values[:, self.owner] + uneven).astype(np.float32)
        return np.maximum(-each, 0) @ self.sides[0] + np.maximum(each, 0) @ self.sides[1]


@dataclass
class Norms:
    """Means by group and sex, and the covariance within them, of what is drawn for everyone."""

    names: tuple[str, ...]
    means: Floats  # (groups, sexes, M)
    covariance: Floats  # (M, M)
    ageing: Floats  # (3, M) difference of the survey's age groups

    @classmethod
    def read(cls, norms: dict) -> "Norms":
        known = norms["correlations"]
        means = np.zeros((len(GROUPS), len(SEXES), len(MATCHED)))
        spread = np.zeros(len(MATCHED))
        for m, name in enumerate(MATCHED):
            each = [[group_norm(norms, name, group, sex) for sex in SEXES] for group in GROUPS]
            everyone = np.mean([norm.mean for pair in each for norm in pair if norm])
            for g, pair in enumerate(each):
                for s, norm in enumerate(pair):
                    means[g, s, m] = (norm.mean if norm else everyone) + CLICKED.get(name, 0.0)
            spreads = [norm.sd for pair in each for norm in pair if norm and np.isfinite(norm.sd)]
            spread[m] = EXPECTED_SPREAD.get(name, float(np.mean(spreads)))
        correlation, ageing = np.eye(len(MATCHED)), np.zeros((3, len(MATCHED)))
        for a, first in enumerate(MATCHED):
            if first not in known["measures"]:
                continue
            row = known["measures"].index(first)
            ageing[:, a] = np.array(norms["age_effect"]["difference"])[:, row]
            for b, second in enumerate(MATCHED):
                if second in known["measures"]:
                    correlation[a, b] = known["matrix"][row][known["measures"].index(second)]
        # The eyes keep their distance to each other as the survey's pupils do to the other measures.
        eyes, pupils = MATCHED.index("inner_canthal"), known["measures"].index("pupil_distance")
        for b, second in enumerate(MATCHED):
            if second in known["measures"]:
                share = 0.8 * known["matrix"][pupils][known["measures"].index(second)]
                correlation[eyes, b] = correlation[b, eyes] = share
        return cls(MATCHED, means, correlation * np.outer(spread, spread), ageing)

    def draw(self, rng: np.random.Generator, ancestry: Floats, gender: Floats, age: Floats) -> Floats:
        """Measurements (N, M) of people of this ancestry (N, 3), gender and age (N,)."""
        sexes = np.stack([gender < 0.5, gender >= 0.5], 1).astype(float)
        years = 18 + 62 * age / 0.9
        ageing = np.stack([np.interp(years, AGE_GROUPS, column) for column in self.ageing.T], 1)
        noise = rng.multivariate_normal(np.zeros(len(self.names)), self.covariance, len(age), method="eigh")
        return np.einsum("ng,ns,gsm->nm", ancestry, sexes, self.means) + ageing + noise


def draw_ratios(norms: dict, rng: np.random.Generator, measured: Floats) -> Floats:
    """FROM_PHOTOGRAPHS (N, R) over the outer canthal distance, of people who measure MATCHED (N, M)."""
    unit = (measured - measured.mean(0)) / measured.std(0)
    columns = []
    for name, share in FROM_PHOTOGRAPHS.items():
        norm, own = photograph_norm(norms, name), rng.standard_normal(len(measured))
        if name in COMPANIONS:
            other, together = COMPANIONS[name]
            own = together * unit[:, MATCHED.index(other)] + np.sqrt(1 - together**2) * own
        columns.append(AT_REST.get(name, 1.0) * norm.mean + share * norm.sd * own)
    return np.stack(columns, 1)


def measure(calipers: CageCalipers, shapes: Floats) -> Floats:
    """MATCHED and FROM_PHOTOGRAPHS (N, M + R) of shapes (N, V, 3), the ratios in hundredths."""
    direct, ratios = calipers.measure(shapes), calipers.ratios(shapes)
    columns = [direct[name] for name in MATCHED] + [100 * ratios[name] for name in FROM_PHOTOGRAPHS]
    return np.stack(columns, 1)


def jacobian(heads: Heads, calipers: CageCalipers, mean: Floats) -> Floats:
    """Change (M, S) of each measure of the mean face (V, 3) per unit of each slider."""
    count, step = len(heads.sigma), 0.2
    values = np.concatenate([np.eye(count), -np.eye(count)]) * step
    offsets = heads.offsets(values, np.zeros((2 * count, len(heads.owner)))).reshape(2 * count, -1, 3)
    measured = measure(calipers, mean + offsets)
    return ((measured[:count] - measured[count:]) / (2 * step)).T


def fit_sliders(
    heads: Heads, calipers: CageCalipers, base: Floats, values: Floats, uneven: Floats, wanted: Floats
) -> tuple[Floats, Floats]:
    """Move slider values (N, S) the least, in standard deviations, until faces measure as `wanted` (N, M).

    `base` (N, V, 3) are the faces without sliders. Returns the values and what is left, in the wanted spread.
    """
    slope = jacobian(heads, calipers, base.mean(0)) * heads.sigma
    spread = wanted.std(0)
    scaled = slope / spread[:, None]
    gain = scaled.T @ np.linalg.inv(scaled @ scaled.T + DAMPING * np.eye(len(spread)))
    for step in range(STEPS + 1):
        shapes = base + heads.offsets(values, uneven).reshape(base.shape)
        left = (wanted - measure(calipers, shapes)) / spread
        if step < STEPS:
            values = np.clip(values + (left @ gain.T) * heads.sigma, -LARGEST_SLIDER, LARGEST_SLIDER)
    return values, left


def skin_of(mesh: BaseMesh, head: Ints, mean: Floats) -> tuple[Floats, Floats]:
    """Points (K, 3) of a head from the tip of its nose, and their normals; zero off the skin."""
    quads = mesh.quads[mesh.part == "head"]
    skin = np.unique(quads)
    normals = np.zeros_like(mean)
    inside = np.searchsorted(head, quads)
    normals[np.searchsorted(head, skin)] = 1
    normals *= vertex_normals(mean, triangulate(inside))
    return mean - mean[np.searchsorted(head, NOSE_TIP)], normals


def sample_people(
    mesh: BaseMesh, head: Ints, cage: Cage, calipers: CageCalipers, count: int, rng: np.random.Generator
) -> Population:
    """Sample `count` adults at the vertices `head` (K,) of the base mesh, which must hold the cage's.

    SPARE times as many are drawn, and those kept that measure as drawn and need the smallest sliders.
    """
    targets, drawn, inside = Targets(head), int(SPARE * count), np.searchsorted(head, cage.base_vertices)
    ancestry, gender, age, strengths = sample_macros(drawn, rng)
    base = _without_sliders(targets, strengths, rng)
    base = base.reshape(drawn, -1, 3) + mesh.vertices[head]
    norms = read_table()
    wanted = Norms.read(norms).draw(rng, ancestry, gender, age)
    wanted = np.concatenate([wanted, 100 * draw_ratios(norms, rng, wanted)], 1)

    heads = Heads.read(targets).with_brow_slides(*skin_of(mesh, head, base.mean(0)))
    values: Floats = np.clip(rng.normal(0, 0.55 * heads.sigma, (drawn, len(heads.sigma))), -0.9, 0.9)
    uneven = rng.normal(0, 0.15 * heads.sigma[heads.owner], (drawn, len(heads.owner)))
    uneven = uneven * (np.bincount(heads.owner)[heads.owner] > 1)
    values, left = fit_sliders(heads.at(inside), calipers, base[:, inside], values, uneven, wanted)
    strain = np.square(values / heads.sigma).mean(1) / 4 + np.square(left).sum(1)
    kept = np.sort(np.argsort(strain, kind="stable")[:count])
    shapes = base[kept] + heads.offsets(values[kept], uneven[kept]).reshape(count, -1, 3)
    people = [part[kept].astype(np.float32) for part in (ancestry, gender, age)]
    return Population(shapes.astype(np.float32), *people)


def _without_sliders(
    targets: Targets, strengths: dict[str, NDArray[np.float64]], rng: np.random.Generator
) -> Floats:
    """Offsets (N, K * 3) of ancestry, sex and age, with head shapes and asymmetries drawn at random."""
    rows = np.stack([targets.read(name) for name in strengths])
    offsets = np.stack(list(strengths.values()), 1).astype(np.float32) @ rows
    count = len(offsets)
    for name in targets.local():
        if isinstance(name, str):  # half of the head shapes are active
            active = np.maximum(rng.normal(0, 0.25, count), 0) * (rng.random(count) < 0.5)
            offsets += active[:, None].astype(np.float32) * targets.read(name)
    for name in targets.asymmetric():
        value = rng.normal(0, 0.07, (count, 1)).astype(np.float32)
        offsets += np.maximum(value, 0) * targets.read(f"{name}-l")
        offsets += np.maximum(-value, 0) * targets.read(f"{name}-r")
    return offsets


def reference_cage(mesh: BaseMesh, head: Ints, count: int, seed: int) -> tuple[Cage, Floats]:
    """The cage of the model before this population, and its mean (V, 3): so mesh, UV and landmarks stay."""
    mean = mesh.vertices.copy()
    mean[head] = sample_population(mesh, head, count, np.random.default_rng(seed)).shapes.mean(0)
    mean = 0.5 * (mean + mean[mesh.mirror] * np.array([-1, 1, 1], np.float32))
    cage = crop_face(mesh, mean, read_mask("lips"))
    return cage, cage.shapes(mean[cage.base_vertices][None])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--people", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    mesh = read_base_mesh()
    head = np.unique(mesh.quads[mesh.part != "other"])
    cage, mean = reference_cage(mesh, head, 2000, arguments.seed)
    calipers = place_on_cage(cage, mean)
    people = sample_people(
        mesh, head, cage, calipers, arguments.people, np.random.default_rng(arguments.seed)
    )
    shapes = cage.shapes(people.shapes[:, np.searchsorted(head, cage.base_vertices)])
    norms, measured = read_table(), calipers.measure(shapes)
    rows = [compare(n, v, norm) for n, v in measured.items() if (norm := pooled_norm(norms, n))]
    ratios = [compare(n, v, photograph_norm(norms, n)) for n, v in calipers.ratios(shapes).items()]
    print(f"{table(rows, 1)}\n\n{table(ratios, 3)}")


assert tuple({"caucasian": "european"}.get(name, name) for name in ANCESTRIES) == GROUPS

if __name__ == "__main__":
    main()
