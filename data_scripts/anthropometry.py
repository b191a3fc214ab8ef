"""People measured with calipers and in photographs: the table, and the same measures on a face mesh.

`anthropometry.json` holds the numbers with the source of each. A measure here is what its source defines, as
far as the mesh has the points: breadths are the widest of a patch, others distances between landmarks. What
calipers did not measure, frontal photographs did, as ratios to the distance of the outer canthi.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

TABLE = Path(__file__).with_name("anthropometry.json")
GROUPS = ("african", "asian", "european")  # in the order of makehuman.ANCESTRIES
SEXES = ("men", "women")
# Rows of the table that stand for a group where it has none of its own, and no source gives it by sex.
STAND_INS = {
    "asian": ("asian", "chinese", "south_indian"),
    "african": ("african",),
    "european": ("european",),
}
# Distances between two of the 68 landmarks, mean of both sides where there are two.
DISTANCES = {
    "inner_canthal": ((39, 42),),
    "fissure_length": ((36, 39), (42, 45)),
    "outer_canthal": ((36, 45),),
    "fissure_height": ((37, 41), (38, 40), (43, 47), (44, 46)),
    "nose_height": ((27, 33),),
    "face_height": ((8, 27),),
    "mouth_width": ((48, 54),),
}
LID_ARC = 9 / 8  # an arc's height in the middle, over that at its thirds, where the lids' landmarks are
# mm that calipers reach beyond where annotators click: the corners of the lids, the underside of the chin.
BEYOND_CLICKS = {"fissure_length": 0.8, "outer_canthal": 1.6, "face_height": 3.5}
MEASURES = (*DISTANCES, "nose_protrusion", "nose_width", "face_width", "pupil_distance")


# The same in a picture; each is divided by the distance between landmarks 36 and 45.
RATIOS = {
    "eye width": ((36, 39), (42, 45)),
    "inner canthal": ((39, 42),),
    "brow width": ((17, 21), (22, 26)),
    "brow gap": ((21, 22),),
    "brow to eye": ((19, 37), (24, 44)),
    "nose width": ((31, 35),),
    "nose length": ((27, 33),),
    "mouth width": ((48, 54),),
    "jaw width": ((4, 12),),
    "eye height": ((37, 41), (38, 40), (43, 47), (44, 46)),
    "lip height": ((51, 57),),
}
PHOTO_DISTANCE = 900.0  # mm from the camera to the face, a selfie to a portrait


def photograph_ratios(marks: Floats) -> dict[str, Floats]:
    """RATIOS and "eyes to mouth" (N,) of landmarks in pictures (N, 68, 2)."""

    def apart(a: Floats, b: Floats) -> Floats:
        return np.linalg.norm(a - b, axis=-1)

    unit = apart(marks[:, 36], marks[:, 45])
    out = {
        name: np.mean([apart(marks[:, a], marks[:, b]) for a, b in pairs], axis=0) / unit
        for name, pairs in RATIOS.items()
    }
    eyes, mouth = marks[:, [36, 39, 42, 45]].mean(1), marks[:, [48, 54]].mean(1)
    out["eyes to mouth"] = apart(eyes, mouth) / unit
    return out


def is_frontal(marks: Floats) -> NDArray[np.bool_]:
    """Which faces (N, 68, 2) look straight ahead with closed lips, as far as landmarks tell."""

    def apart(a: int, b: int) -> Floats:
        return np.linalg.norm(marks[:, a] - marks[:, b], axis=-1)

    unit = apart(36, 45)
    turned = np.abs(apart(30, 2) - apart(30, 14)) / (apart(30, 2) + apart(30, 14))
    eyes = np.abs(apart(36, 39) - apart(42, 45)) / (apart(36, 39) + apart(42, 45))
    return (turned < 0.06) & (eyes < 0.05) & (apart(62, 66) < 0.06 * unit)


def portrait(points: Floats) -> Floats:
    """Points (N, P, 3) mm in a frontal picture of their centre from PHOTO_DISTANCE, (N, P, 2)."""
    centred = points - points.mean(1, keepdims=True)
    return centred[..., :2] * PHOTO_DISTANCE / (PHOTO_DISTANCE - centred[..., 2:])


@dataclass
class Calipers:
    """Measures shapes (N, V, 3) in mm that share the topology of one mean face."""

    triangles: Ints  # (68, 3) vertices of the triangle that each landmark lies on
    weights: Floats  # (68, 3)
    tip: int
    alae: Ints
    cheekbones: Ints
    eyes: Ints

    @classmethod
    def place(
        cls, mean: Floats, normals: Floats, corners: Ints, weights: Floats, skin: Ints, eyes: Ints
    ) -> "Calipers":
        """Find the patches on the mean face (V, 3) with its normals: `corners` and `weights` (68, 3) are its
        landmarks, `skin` and `eyes` vertex numbers."""
        marks = np.einsum("lkc,lk->lc", mean[corners], weights)
        x, y, z = mean[skin].T
        low, high = marks[33, 1], marks[27, 1]
        beside = (np.abs(normals[skin, 0]) > 0.85) & (np.abs(x) < 2 * marks[35, 0]) & (z > marks[31, 2] - 7)
        alae = skin[beside & (y > low - 1) & (y < marks[30, 1] + 7)]
        # Zygion lies in front of the ear; landmarks 0 and 16 lie at the ear itself.
        ear = marks[0, 2]
        cheekbones = skin[(y > low + 20) & (y < high) & (z > ear + 18) & (z < ear + 40)]
        near_tip = skin[np.abs(mean[skin, 0]) < 1e-3]
        tip = int(near_tip[mean[near_tip, 2].argmax()])
        return cls(corners, weights, tip, alae, cheekbones, eyes)

    def landmarks(self, shapes: Floats) -> Floats:
        """(N, 68, 3) mm."""
        return np.einsum("nlkc,lk->nlc", shapes[:, self.triangles], self.weights)

    def ratios(self, shapes: Floats) -> dict[str, Floats]:
        """What a frontal photograph of each shape shows, (N,) each; see `photograph_ratios`."""
        return photograph_ratios(portrait(self.landmarks(shapes)))

    def measure(self, shapes: Floats) -> dict[str, Floats]:
        """Every one of MEASURES, (N,) mm each."""
        marks = self.landmarks(shapes)
        out = {
            name: np.mean([np.linalg.norm(marks[:, a] - marks[:, b], axis=1) for a, b in pairs], axis=0)
            for name, pairs in DISTANCES.items()
        }
        out["fissure_height"] = LID_ARC * out["fissure_height"]
        for name, more in BEYOND_CLICKS.items():
            out[name] = out[name] + more
        out["nose_protrusion"] = np.linalg.norm(shapes[:, self.tip] - marks[:, 33], axis=1)
        out["nose_width"] = np.ptp(shapes[:, self.alae, 0], axis=1)
        out["face_width"] = np.ptp(shapes[:, self.cheekbones, 0], axis=1)
        left = shapes[:, self.eyes[shapes[0, self.eyes, 0] > 0], 0].mean(1)
        right = shapes[:, self.eyes[shapes[0, self.eyes, 0] < 0], 0].mean(1)
        out["pupil_distance"] = left - right
        return out


@dataclass(frozen=True)
class Norm:
    """What people measure: mean and standard deviation in mm, and the sources' keys."""

    mean: float
    sd: float
    sources: tuple[str, ...]


def read_table(path: Path = TABLE) -> dict:
    """The whole table."""
    return json.loads(path.read_text())


def group_norm(table: dict, measure: str, group: str, sex: str) -> Norm | None:
    """Mean over the sources for one sex of one group; None where the table has nothing."""
    rows = [r for r in table["rows"] if r["measure"] == measure and r["sex"] in (sex, "both")]
    rows = [r for r in rows if r["group"] in STAND_INS[group]]
    if not rows:
        return None
    correlations = table["correlations"]
    deviations = [r["sd"] for r in rows if r["sd"]]
    if measure in correlations["measures"]:
        deviations = [correlations["sd_within"][correlations["measures"].index(measure)]]
    means = [r["mean"] for r in rows]
    sd = float(np.mean(deviations)) if deviations else float("nan")
    return Norm(float(np.mean(means)), sd, tuple(sorted({r["source"] for r in rows})))


def photograph_norm(table: dict, ratio: str) -> Norm:
    """Mean and standard deviation of a ratio in frontal photographs."""
    mean, sd = table["photograph_ratios"]["values"][ratio]
    return Norm(mean, sd, (table["photograph_ratios"]["source"],))


def pooled_norm(table: dict, measure: str) -> Norm | None:
    """The norm of a world of equal groups and sexes: the spread is that within and between them."""
    norms = [group_norm(table, measure, group, sex) for group in GROUPS for sex in SEXES]
    known = [norm for norm in norms if norm]
    if not known:
        return None
    within = [norm.sd for norm in known if np.isfinite(norm.sd)]
    if not within:
        return None
    between = float(np.var([norm.mean for norm in known]))
    spread = float(np.sqrt(np.mean(np.square(within)) + between))
    sources = tuple(sorted({source for norm in known for source in norm.sources}))
    return Norm(float(np.mean([norm.mean for norm in known])), spread, sources)


@dataclass(frozen=True)
class Row:
    """One measure of the model beside people's."""

    measure: str
    model_mean: float
    model_sd: float
    people_mean: float
    people_sd: float
    shift: float
    spread: float
    sources: tuple[str, ...]


def compare(measure: str, values: Floats, norm: Norm) -> Row:
    """How far the values (N,) lie from the norm."""
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    shift = (mean - norm.mean) / norm.sd
    return Row(measure, mean, sd, norm.mean, norm.sd, shift, sd / norm.sd, norm.sources)


def table(rows: list[Row], digits: int) -> str:
    """Markdown."""
    lines = ["| measure | model | people | shift / sd | spread |", "|---|---|---|---|---|"]
    for row in rows:
        model = f"{row.model_mean:.{digits}f} ± {row.model_sd:.{digits}f}"
        people = f"{row.people_mean:.{digits}f} ± {row.people_sd:.{digits}f}"
        lines.append(f"| {row.measure} | {model} | {people} | {row.shift:+.2f} | {row.spread:.2f} |")
    return "\n".join(lines)
