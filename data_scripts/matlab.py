"""Numeric arrays of MATLAB files (version 5, as `save` writes them up to -v7), every length checked.

SciPy's reader trusts the lengths in a file: a flipped bit can end the process. Format: "MAT-File Format",
The MathWorks. Other kinds of variables (cells, structures, text, sparse or complex matrices) are passed over.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facelab.support.errors import FacelabError
from facelab.support.files import guarded, shown

TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
NUMERIC = range(6, 16)  # classes of arrays: double to uint64
COMPLEX = 0x0800
MAX_UNPACKED = 2**31


def read_matlab(
    path: str | Path, names: tuple[str, ...], problem: str, error: type[FacelabError]
) -> dict[str, np.ndarray]:
    """The named arrays that there are, as stored; `error`, saying `problem`, for a file that is damaged."""
    with guarded(f"'{shown(path)}': {problem}", error):
        data = memoryview(Path(path).read_bytes())
        order = {b"IM": "<", b"MI": ">"}[bytes(data[126:128])]
        found = {}
        for kind, content in _elements(data[128:], order):
            if kind == COMPRESSED:
                inflate = zlib.decompressobj()
                inflated = memoryview(inflate.decompress(content, MAX_UNPACKED))
                ((kind, content),) = _elements(inflated, order)
            if kind == MATRIX:
                name, array = _matrix(content, order)
                if array is not None and name in names:
                    found[name] = array
        return found


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of the elements in some bytes; small ones keep four bytes inside their tag."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        small = kind >> 16
        first = at + 4 if small else at + 8
        kind, size = (kind & 0xFFFF, small) if small else (kind, size)
        if first + size > len(data) or small > 4:
            raise ValueError("an element is longer than its file")
        yield kind, data[first : first + size]
        at = at + 8 if small else first + size + (0 if kind == COMPRESSED else -size % 8)


def _matrix(data: memoryview, order: str) -> tuple[str, np.ndarray | None]:
    """Name and values of a numeric matrix, in MATLAB's order of axes; no values for another kind."""
    parts = _elements(data, order)
    _, flags = next(parts)
    (word,) = struct.unpack_from(order + "I", flags)
    if word & 0xFF not in NUMERIC or word & COMPLEX:
        return "", None
    (_, sizes), (_, name), (kind, values) = next(parts), next(parts), next(parts)
    shape = tuple(np.frombuffer(sizes, order + "i4").tolist())
    array = np.frombuffer(values, order + TYPES[kind])
    if len(shape) < 2 or min(shape) < 0 or int(np.prod(shape, dtype=object)) != array.size:
        raise ValueError(f"an array of {array.size} numbers says that it has the shape {shape}")
    return bytes(name).decode("ascii"), array.reshape(shape, order="F")
