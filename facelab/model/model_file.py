"""The file of a face model: safetensors with a SHA-256 beside it, and how the shipped one is unpacked.

The shipped model keeps its shape bases on a coarse quad mesh as 16-bit floats and its albedo on the vertices
of the next level as 8-bit numbers with scales, a fortieth of the size of the finest level's tensors.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from facelab.geometry.subdivision import catmull_clark, triangulate
from facelab.support.errors import ModelFileError, ParameterError
from facelab.support.files import beside, digest_beside, guarded, read_tensors, with_digest, write_whole


def write_model(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors and header, and beside them the SHA-256 in the format of the sha256sum command.

    The header is kept under one key, because safetensors writes several in random order.
    """
    data = save(tensors, {"facelab": json.dumps(header, sort_keys=True)})
    write_whole(with_digest(path, data))


def read_checked(path: Path, must_have_digest: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file after comparing its SHA-256."""
    if not path.is_file():
        raise ModelFileError(f"There is no face model at {path}; give another path, or build it again.")
    problem = f"{path} is not a complete safetensors file; get it again"
    with guarded(problem, ModelFileError):
        data = path.read_bytes()
    if beside(path).is_file():
        if hashlib.sha256(data).hexdigest() != digest_beside(path):
            raise ModelFileError(f"{path} is damaged or changed: its SHA-256 is not that beside it.")
    elif must_have_digest:
        raise ModelFileError(f"{beside(path)} is missing; restore it from the repository.")
    tensors = read_tensors(data, problem)
    with guarded(problem, ModelFileError):
        return tensors, _read_header(data)


def _read_header(data: bytes) -> dict[str, str]:
    (length,) = struct.unpack_from("<Q", data)
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    header = dict(json.loads(metadata.get("facelab", "{}")))
    if not all(isinstance(text, str) for entry in header.items() for text in entry):
        raise TypeError("its header is not text")
    return header


def decode(tensors: dict[str, Tensor], name: str, rows: int | None = None) -> Tensor:
    """A stored tensor; `name.scale` turns 8-bit numbers into reflectance, `rows` keeps the first vertices."""
    tensor = tensors[name]
    if name + ".scale" in tensors:
        tensor = tensor[:, :rows].float() * tensors[name + ".scale"][:, None, :]
    if tensor.dtype in (torch.uint16, torch.int16, torch.int32):
        tensor = tensor.long()
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def between(values: Tensor, steps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Values (K, V, C) of a coarse level's vertices on the finest: means on edges and faces, others stay.

    `steps` are (edges (E, 2), quads (Q, 4)) of each coarser level; those whose vertices have values already
    are passed over.
    """
    for edges, quads in steps:
        coarse = int(quads.max()) + 1
        if values.shape[1] == coarse:
            first, second = (values[:, edges[:, k]] for k in range(2))
            a, b, c, d = (values[:, quads[:, k]] for k in range(4))  # a mirrored quad gives the same sum
            values = torch.cat([values, (first + second) / 2, ((a + c) + (b + d)) / 4], 1)
    return values


def refine(tensors: dict[str, Tensor], subdivisions: int) -> dict[str, Any]:
    """The shipped model at one level of detail: subdivide cage and UV, pick the level's index tables."""
    if subdivisions not in (0, 1, 2):
        raise ParameterError(f"The face model has 0, 1 or 2 subdivisions, not {subdivisions}.")
    quads, uv_quads = tensors["quads"].numpy().astype(np.int64), tensors["uv_quads"].numpy().astype(np.int64)
    shape = torch.cat([tensors["mean"][None], tensors["identity_basis"], tensors["expression_basis"]])
    columns = shape.double().permute(1, 0, 2).flatten(1).numpy()
    uv = tensors["uv"].double().numpy()
    steps = []
    for _ in range(subdivisions):
        fine, fine_uv = catmull_clark(quads, len(columns)), catmull_clark(uv_quads, len(uv))
        steps.append((torch.from_numpy(fine.edges), torch.from_numpy(quads)))
        columns, quads = fine.matrix @ columns, fine.quads
        uv, uv_quads = fine_uv.matrix @ uv, fine_uv.quads
    shape = torch.from_numpy(columns).float().unflatten(1, (len(shape), 3)).permute(1, 0, 2).contiguous()
    v, k = len(columns), len(tensors["identity_basis"])
    parts: dict[str, Any] = {
        "mean": shape[0],
        "identity_basis": shape[1 : 1 + k],
        "expression_basis": shape[1 + k :],
        "triangles": torch.from_numpy(triangulate(quads)),
        "uv": torch.from_numpy(uv).float(),
        "uv_triangles": torch.from_numpy(triangulate(uv_quads)),
        "triangle_region": tensors["quad_region"].repeat_interleave(2 * 4**subdivisions),
        "mirror": decode(tensors, "mirror")[:v],
        "albedo_mean": between(decode(tensors, "albedo_mean")[None, :v], steps)[0],
    }
    sigmas = ("identity_sigma", "expression_sigma", "albedo_sigma")
    for name in (*sigmas, "actions", "people_identity", "people_albedo"):
        parts[name] = decode(tensors, name)
    for name in ("albedo_basis", "details"):
        parts[name] = between(decode(tensors, name, v), steps)
    for name in ("mouth_cap", "landmark_triangles", "landmark_weights", "contour_rows"):
        parts[name] = decode(tensors, f"{name}.{subdivisions}")
    return parts
