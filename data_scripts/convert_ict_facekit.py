"""ICT-FaceKit Light (University of Southern California, Light Stage scans) as a facelab face model.

Where:  https://github.com/ICT-VGL/ICT-FaceKit; SOURCE is its folder FaceXModel (417 MB of OBJ files).
Terms:  MIT licence. Paper: Li et al., Learning Formation of Physically-Based Face Attributes, CVPR 2020.
File:   generic_neutral_mesh.obj, identity000.obj ..., an OBJ per expression, vertex_indices.json; or an .npz
        of neutral, identity, expression, expression_names, quads, uv, quads_uv beside the same .json.
Units:  centimetres. Identity modes are offsets of one standard deviation, expressions are blend shapes.
Kept:   the first 14,062 vertices: face, head and neck, mouth socket, eye sockets; and the front of the
        eyeballs, moved with their sockets. No teeth, tongue, lashes.
        Blend shapes become principal components, assuming independent weights of RMS 0.25, and stay reachable
        by name as `actions`. There is no albedo; --borrow-albedo takes that of facelab's own model.

    python data_scripts/convert_ict_facekit.py FaceXModel ict.safetensors
"""

import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from conversion import (
    Array,
    Parts,
    command_line,
    converter,
    existing_file,
    finish,
    on_vertices,
    principal,
    require,
)

from facelab.model.morphable_model import REGIONS, MorphableModel
from facelab.support.errors import ModelFileError

MM = 10.0
EXPRESSION_RMS_WEIGHT = 0.25  # blend shape weights live in [0, 1] and few are active at a time
UV_TILES = 2  # the face is in the first UDIM tile, head and sockets in the second
EYE_BOXES = ((1.80, 0.62), (1.90, 0.62))  # lower left corners of free places in the second tile
EYE_BOX_SIZE = 0.09


@dataclass(frozen=True)
class Layout:
    """Documented vertex ranges: face, head and neck come first, then mouth socket and eye sockets."""

    skin_end: int = 11248
    mouth_end: int = 13294
    sockets: tuple[tuple[int, int], ...] = ((13294, 13678), (13678, 14062))
    scleras: tuple[tuple[int, int], ...] = ((21451, 22221), (23021, 23791))

    @property
    def end(self) -> int:
        """Number of vertices for which the files hold useful offsets."""
        return self.sockets[-1][1]


def read_obj(path: Path, faces: bool = False) -> tuple[Array, Array, list[list[list[int]]]]:
    """Vertices (V, 3), uv (U, 2) and per polygon its (vertex, uv) pairs from 0, in the order of the file.

    (trimesh splits vertices at seams, which would break the correspondence between the files.)
    """
    lines = existing_file(path).read_bytes().split(b"\n")
    try:
        vertices = np.array([line.split()[1:4] for line in lines if line.startswith(b"v ")], dtype=np.float64)
        uv = np.array(
            [line.split()[1:3] for line in lines if line.startswith(b"vt ")] if faces else [], np.float64
        )
        polygons = [
            [[int(index) - 1 for index in corner.split(b"/")[:2]] for corner in line.split()[1:]]
            for line in lines
            if faces and line.startswith(b"f ")
        ]
    except ValueError as problem:
        raise ModelFileError(
            f"{path} is not a complete OBJ file ({problem}): download it again."
        ) from problem
    require(vertices.ndim == 2 and vertices.shape[1] == 3, f"{path} holds no vertices: download it again.")
    return vertices, uv.reshape(-1, 2), polygons


def read_folder(folder: Path, names: list[str], count: int) -> dict[str, Array]:
    """The OBJ folder as the arrays of the .npz, quads as two triangles each."""
    neutral, uv, polygons = read_obj(folder / "generic_neutral_mesh.obj", faces=True)
    require(
        all(len(corner) == 2 for polygon in polygons for corner in polygon),
        f"{folder}/generic_neutral_mesh.obj has faces without texture coordinates: it is another export.",
    )
    fans = np.array([[p[0], p[i], p[i + 1]] for p in polygons for i in range(1, len(p) - 1)]).reshape(
        -1, 3, 2
    )

    def offsets(paths: list[Path]) -> Array:
        found = []
        for path in paths:
            vertices, _, _ = read_obj(path)
            require(
                len(vertices) == len(neutral),
                f"{path} has {len(vertices)} vertices, the neutral mesh "
                f"{len(neutral)}: the folder mixes versions, clone it again.",
            )
            found.append((vertices - neutral)[:count].astype(np.float32))
        return np.stack(found)

    identities = sorted(folder.glob("identity[0-9][0-9][0-9].obj"))
    require(len(identities) > 0, f"{folder} holds no identity000.obj: give the folder FaceXModel.")
    return {
        "neutral": neutral, "uv": uv, "triangles": fans[..., 0], "uv_triangles": fans[..., 1],
        "identity": offsets(identities), "expression": offsets([folder / f"{name}.obj" for name in names]),
    }  # fmt: skip


def read_npz(path: Path, names: list[str]) -> dict[str, Array]:
    """The .npz layout."""
    try:
        with np.load(existing_file(path), allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as problem:
        raise ModelFileError(f"{path} is not a complete .npz of plain arrays: make it again.") from problem
    wanted = {"neutral", "uv", "quads", "quads_uv", "identity", "expression", "expression_names"}
    require(
        wanted <= data.keys(), f"{path} lacks {', '.join(sorted(wanted - data.keys()))}: it is another file."
    )
    order = {str(name): i for i, name in enumerate(data["expression_names"])}
    require(set(names) <= order.keys(), f"{path} lacks expressions that vertex_indices.json names.")
    split = [[0, 1, 2], [0, 2, 3]]
    triangles, uv_triangles = (data[key][:, split].reshape(-1, 3) for key in ("quads", "quads_uv"))
    if "triangles" in data:  # the few polygons that are no quads, of eyeballs and teeth, without uv
        triangles = np.concatenate([triangles, data["triangles"]])
        uv_triangles = np.concatenate([uv_triangles, np.zeros_like(data["triangles"])])
    return {
        "neutral": data["neutral"], "uv": data["uv"], "identity": data["identity"].astype(np.float32),
        "expression": data["expression"][[order[name] for name in names]].astype(np.float32),
        "triangles": triangles, "uv_triangles": uv_triangles,
    }  # fmt: skip


def crop(data: dict[str, Array], layout: Layout) -> dict[str, Array]:
    """The vertices up to the eye sockets and the scleras, which move with the mean of their sockets.

    Scleras get a frontal projection as texture coordinates: in the file theirs lie on those of the face.
    """
    neutral, uv, uv_triangles = data["neutral"], data["uv"] / [UV_TILES, 1], data["uv_triangles"].copy()
    require(len(neutral) >= layout.scleras[-1][1], f"The neutral mesh has {len(neutral)} vertices: too few.")
    kept, identity, expression = [np.arange(layout.end)], [data["identity"]], [data["expression"]]
    for socket, sclera, box in zip(layout.sockets, layout.scleras, EYE_BOXES):
        kept.append(np.arange(*sclera))
        size = (1, len(kept[-1]), 1)
        identity.append(np.tile(data["identity"][:, slice(*socket)].mean(1, keepdims=True), size))
        expression.append(np.tile(np.zeros_like(data["expression"][:, :1]), size))
        corner = neutral[slice(*sclera), :2].min(0)
        extent = np.ptp(neutral[slice(*sclera), :2], axis=0).max()
        own = ((data["triangles"] >= sclera[0]) & (data["triangles"] < sclera[1])).all(1)
        uv_triangles[own] = data["triangles"][own] - sclera[0] + len(uv)
        flat = (neutral[slice(*sclera), :2] - corner) / extent * EYE_BOX_SIZE + box
        uv = np.concatenate([uv, flat / [UV_TILES, 1]])
    index = np.full(len(neutral), -1)
    index[np.concatenate(kept)] = np.arange(sum(map(len, kept)))
    inside = (index[data["triangles"]] >= 0).all(1)
    last = data["triangles"][inside].max(1)
    region = np.where(last < layout.skin_end, "skin", np.where(last < layout.mouth_end, "interior", "eyes"))
    return {
        "mean": neutral[np.concatenate(kept)], "triangles": index[data["triangles"][inside]],
        "uv": uv, "uv_triangles": uv_triangles[inside], "region": np.vectorize(REGIONS.index)(region),
        "identity": np.concatenate(identity, 1), "expression": np.concatenate(expression, 1),
    }  # fmt: skip


@converter
def convert(source: str | Path, layout: Layout = Layout()) -> MorphableModel:
    """ICT-FaceKit Light, from its OBJ folder or its .npz, as a `MorphableModel`; errors: `ModelFileError`."""
    source = Path(source)
    config_path = existing_file((source if source.is_dir() else source.parent) / "vertex_indices.json")
    try:
        config = json.loads(config_path.read_text())
        names, landmarks = list(config["expressions"]), [int(v) for v in config["idx_to_landmark_verts"]]
    except (ValueError, KeyError, TypeError) as problem:
        raise ModelFileError(
            f"{config_path} does not list expressions and landmarks: download it again."
        ) from problem
    require(len(landmarks) == 68, f"{config_path} names {len(landmarks)} landmarks instead of 68.")
    data = read_folder(source, names, layout.end) if source.is_dir() else read_npz(source, names)
    for what in ("identity", "expression"):
        shape = data[what].shape
        require(
            shape[1:] == (layout.end, 3), f"The {what} offsets have shape {shape}: the file mixes two models."
        )
    data = crop(data, layout)
    expression = data["expression"]
    if {"mouthClose", "jawOpen"} <= set(names):  # the first only corrects the second: make it closed lips
        expression[names.index("mouthClose")] += expression[names.index("jawOpen")]
    actions = [name.replace("_L", "Left").replace("_R", "Right") for name in names]
    parts = Parts(
        name="ICT-FaceKit Light",
        terms="github.com/ICT-VGL/ICT-FaceKit, MIT licence",
        mean=data["mean"] * MM,
        triangles=data["triangles"],
        identity=data["identity"] * MM,
        expression=principal(expression * (MM * EXPRESSION_RMS_WEIGHT)),
        actions=dict(zip(actions, expression * MM)),
        uv=data["uv"],
        uv_triangles=data["uv_triangles"],
        triangle_region=data["region"],
        landmarks=on_vertices(dict(enumerate(landmarks)), data["triangles"], len(data["mean"])),
    )
    return finish(parts)


if __name__ == "__main__":
    command_line(convert, __doc__)
