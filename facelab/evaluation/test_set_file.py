"""What makes a committed test set small: masks, albedo and positions of its faces, packed without loss.

Neighbours are alike: what is kept of a vertex between others is the difference from their mean, of the others
that from the vertex before, and of colours green, red - green and blue - green. LZMA does the rest.
"""

import lzma
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from facelab.geometry.subdivision import catmull_clark
from facelab.support.errors import ModelFileError
from facelab.support.files import guarded

FORMAT = 2
"""of the files; 1 had these tensors as they are"""
LARGEST = 2**28  # bytes of a tensor
Numbers = NDArray[np.int64]


def pack(tensors: Mapping[str, Tensor], cage: ArrayLike) -> dict[str, Tensor]:
    """The tensors of a test set, with those packed that can be: "hidden" (N, B) uint8, "diffuse" (N, V, 3)
    uint8, "vertices" (N, W, 3) int16. `cage` are quads (Q, 4) over W vertices; subdivided they have V."""
    hidden, diffuse, vertices = (tensors[name].numpy() for name in ("hidden", "diffuse", "vertices"))
    colours = diffuse.astype(np.int64) - _between(diffuse, cage)
    colours[..., [0, 2]] -= colours[..., [1]]
    coarse = np.asarray(cage).max() + 1
    colours[:, :coarse] = np.diff(colours[:, :coarse], axis=1, prepend=0)
    middle = np.rint(vertices.mean(0)).astype(np.int16)
    moved = vertices.astype(np.int64) - middle
    moved[:, 1:] = np.diff(moved, axis=1)
    positions = moved.astype(np.int16).transpose(2, 0, 1).copy().view(np.uint8)
    parts = {
        "hidden": hidden,
        "diffuse": colours.astype(np.uint8).transpose(2, 0, 1),
        "vertices": np.concatenate([positions[..., 1::2].ravel(), positions[..., ::2].ravel()]),
    }
    packed = {
        f"{name}.packed": _tensor(lzma.compress(part.tobytes(), preset=9)) for name, part in parts.items()
    }
    rest = {name: tensor for name, tensor in tensors.items() if name not in parts}
    return rest | packed | {"vertices.middle": torch.from_numpy(middle)}


def unpack(tensors: Mapping[str, Tensor], cage: ArrayLike, problem: str) -> dict[str, Tensor]:
    """What `pack` was given. Raises ModelFileError, which says `problem`, for tensors that are damaged."""
    with guarded(problem, ModelFileError):
        rest, middle = dict(tensors), tensors["vertices.middle"].numpy()
        count, coarse = len(tensors["focal"]), int(np.asarray(cage).max()) + 1
        fine = catmull_clark(cage, coarse).matrix.shape[0]
        data = {name: _bytes(rest.pop(f"{name}.packed")) for name in ("hidden", "diffuse", "vertices")}
        colours = data["diffuse"].reshape(3, count, fine).transpose(1, 2, 0).astype(np.int64)
        colours[:, :coarse] = colours[:, :coarse].cumsum(1)
        colours[..., [0, 2]] += colours[..., [1]]
        colours[:, :coarse] %= 256
        colours[:, coarse:] += _between(colours, cage)[:, coarse:]
        high, low = data["vertices"].reshape(2, 3, count, coarse)
        moved = np.stack([low, high], -1).view(np.int16)[..., 0].transpose(1, 2, 0).astype(np.int64)
        del rest["vertices.middle"]
        return rest | {
            "hidden": torch.from_numpy(data["hidden"].reshape(count, -1)),
            "diffuse": torch.from_numpy((colours % 256).astype(np.uint8, "C")),
            "vertices": torch.from_numpy((moved.cumsum(1) + middle).astype(np.int16, "C")),
        }


def _between(values: ArrayLike, cage: ArrayLike) -> Numbers:
    """Means (N, V, 3) of edges and quads after the zeros of a cage's vertices, rounded; from (N, V, 3)."""
    cage, whole = np.asarray(cage), np.asarray(values, np.int64)
    coarse = int(cage.max()) + 1
    ends = whole[:, catmull_clark(cage, coarse).edges].sum(2)
    return np.concatenate([0 * whole[:, :coarse], (ends + 1) // 2, (whole[:, cage].sum(2) + 2) // 4], 1)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(packed: Tensor) -> NDArray[np.uint8]:
    decompressor = lzma.LZMADecompressor()
    data = decompressor.decompress(packed.numpy().tobytes(), max_length=LARGEST)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("a packed tensor is too large, or not whole")
    return np.frombuffer(bytearray(data), np.uint8)
