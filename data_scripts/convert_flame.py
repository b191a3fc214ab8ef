"""FLAME (Max Planck Institute for Intelligent Systems) as a facelab face model.

Where:  https://flame.is.tue.mpg.de: register, then download FLAME 2020, 2023 or 2023 Open.
Terms:  FLAME 2020, 2023: MPI licence, non-commercial research; FLAME 2023 Open: CC BY 4.0 (read the page).
        Paper: Li et al., Learning a model of facial shape and expression from 4D scans, SIGGRAPH Asia 2017.
File:   generic_model.pkl, flame2023.pkl ... or an .npz of plain arrays: v_template, f, shapedirs (V, 3, 400),
        weights (V, 5), posedirs (V, 3, 36), J_regressor (5, V). The pickle is never executed: only numpy
        arrays, sparse matrices and chumpy arrays are read out of it, and anything else is refused.
Units:  metres, +x the subject's left, +y up, +z out of the face; directions are per standard deviation.
Kept:   300 identity and 100 expression components. The jaw, a joint in FLAME, becomes one more expression in
        front: its opening, linearised at rest, 0.1 rad per sigma (assumed). Neck and eye joints are dropped.
        There is no albedo; --borrow-albedo takes that of facelab's own model. --landmarks takes an embedding
        (landmark_embedding.npy with 68 points, flame_static_embedding.pkl with the inner 51); missing points
        are carried over from facelab's own model.

    python data_scripts/convert_flame.py generic_model.pkl flame.safetensors \\
        --landmarks landmark_embedding.npy
"""

import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from conversion import Array, Landmarks, Parts, command_line, converter, existing_file, finish, require
from scipy.sparse import csc_matrix

from facelab.model.morphable_model import REGIONS, MorphableModel
from facelab.support.errors import ModelFileError
from facelab.support.files import read_npz

MM = 1000.0
IDENTITY, EXPRESSION = 300, 100
JAW, EYES = 2, (3, 4)  # joints: root, neck, jaw, left eye, right eye
JAW_SIGMA = 0.1  # radians of opening per standard deviation; talking and laughing stay within three
EMBEDDINGS = (
    ("full_lmk_faces_idx", "full_lmk_bary_coords"),
    ("static_lmk_faces_idx", "static_lmk_bary_coords"),
    ("lmk_face_idx", "lmk_b_coords"),
)


class Record:
    """Stands for whatever the pickle builds: holds what it was made from, and does nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class ArrayRecord(Record):
    """numpy's _reconstruct: the state is (version, shape, dtype, Fortran order, bytes or list of objects)."""


class BufferRecord(Record):
    """numpy's _frombuffer (pickle protocol 5): the arguments are bytes, dtype, shape, order."""


class ObjectRecord(Record):
    """A chumpy array or a sparse matrix: the state is its dictionary of attributes."""


def _rebuild(kind: type, base: type, state: Any) -> Record:
    """copyreg._reconstructor."""
    require(issubclass(kind, Record), "The pickle tries to build an unknown object.")
    return kind()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, through which Python 3 writes bytes in old protocols."""
    require(encoding == "latin1", "The pickle holds text in an unknown encoding.")
    return text.encode("latin1")


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays as inert records, and refuses every class or function that is not listed."""

    allowed = {  # noqa: RUF012
        ("numpy", "ndarray"): Record, ("numpy", "dtype"): Record, ("multiarray", "scalar"): Record,
        ("multiarray", "_reconstruct"): ArrayRecord, ("numeric", "_frombuffer"): BufferRecord,
        ("scipy.sparse.csc", "csc_matrix"): ObjectRecord, ("scipy.sparse._csc", "csc_matrix"): ObjectRecord,
        ("chumpy.ch", "Ch"): ObjectRecord, ("builtins", "object"): Record, ("builtins", "set"): Record,
        ("copyreg", "_reconstructor"): _rebuild, ("_codecs", "encode"): _encode,
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        short = module.removeprefix("numpy._core.").removeprefix("numpy.core.")
        short = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(short, short)  # as Python 2 wrote them
        if (short, name) not in self.allowed:
            raise ModelFileError(
                f"The pickle asks for {module}.{name}, which is no array: it was not executed; "
                "take the file from the authors' page."
            )
        return self.allowed[short, name]


def _array(raw: bytes | str, dtype: Record, shape: tuple[int, ...], order: str) -> Array:
    """Numbers from their bytes; a dtype is the record of a code ("f8") with the byte order in its state."""
    code, byte_order = dtype.args[0], dtype.state[1] if dtype.state else "="
    require(
        re.fullmatch("[biuf][1248]", code) and byte_order in "<>|=", f"The file holds an array of {code}."
    )
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # str: the bytes of Python 2
    return np.frombuffer(data, dtype=byte_order + code).reshape(shape, order="F" if order == "F" else "C")


def _plain(value: Any) -> Any:
    """A record as the array (or, in .npy files, the dictionary) it stands for."""
    if isinstance(value, ArrayRecord):
        _, shape, dtype, fortran, raw = value.state
        order = "F" if fortran else "C"
        return _plain(raw[0]) if isinstance(raw, list) else _array(raw, dtype, shape, order)
    if isinstance(value, BufferRecord):
        return _array(*value.args)
    if isinstance(value, ObjectRecord):
        if "x" in value.state:
            return _plain(value.state["x"])
        parts = [_plain(value.state[key]) for key in ("data", "indices", "indptr")]
        return csc_matrix(tuple(parts), shape=value.state["_shape"]).toarray()
    return {str(key): _plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The dictionary in a .pkl, .npz or .npy (pickled dictionary) file, without executing anything."""
    file_path = existing_file(path)
    try:
        if file_path.suffix == ".npz":
            return dict(read_npz(file_path, f"{path} cannot be read as arrays; download it again"))
        with open(file_path, "rb") as stream:
            if file_path.suffix == ".npy":
                _skip_npy_header(stream)
            data = _plain(ArrayUnpickler(stream, encoding="latin1").load())
        require(isinstance(data, dict), f"{path} does not hold a dictionary of arrays: it is another file.")
        return data
    except ModelFileError:
        raise
    except Exception as problem:  # a damaged or hostile pickle can raise anything
        raise ModelFileError(f"{path} cannot be read as arrays ({problem}): download it again.") from problem


def _skip_npy_header(stream: BinaryIO) -> None:
    """Leave the stream at the pickle inside an .npy file of dtype object."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    require(read(stream)[2].hasobject, "The .npy file holds numbers instead of a dictionary.")


def jaw_opening(vertices: Array, data: dict[str, Any]) -> Array:
    """(1, V, 3): what vertices do per radian of jaw opening, linear blend skinning linearised at rest.

    d v / d θ = w_jaw · x × (v − J_jaw) + posedirs · vec(d R / d θ), for a rotation R about the x axis.
    """
    weights, posedirs = np.asarray(data["weights"], float), np.asarray(data["posedirs"], float)
    regressor = np.asarray(data["J_regressor"], float)
    count = len(vertices)
    require(
        weights.shape == (count, 5) and posedirs.shape == (count, 3, 36) and regressor.shape == (5, count),
        f"weights {weights.shape}, posedirs {posedirs.shape} or J_regressor {regressor.shape} do not fit "
        f"FLAME's five joints and {count} vertices.",
    )
    joint = regressor[JAW] @ vertices
    generator = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], float)
    turn = weights[:, JAW, None] * ((vertices - joint) @ generator.T)
    return (turn + posedirs[..., 9 * (JAW - 1) : 9 * JAW] @ generator.reshape(9))[None]


def read_embedding(path: str | Path) -> Landmarks:
    """Landmarks as triangles and barycentric weights; 51 points are the inner iBUG points 17 to 67."""
    data = read_arrays(path)
    for faces, weights in EMBEDDINGS:
        if faces in data and weights in data:
            index = np.asarray(data[faces], dtype=np.int64).reshape(-1)
            barycentric = np.asarray(data[weights], dtype=np.float64).reshape(-1, 3)
            require(
                len(index) == len(barycentric) and len(index) in (51, 68),
                f"{path} holds {len(index)} landmarks where 68 or the inner 51 are needed.",
            )
            return {68 - len(index) + k: (int(t), w) for k, (t, w) in enumerate(zip(index, barycentric))}
    raise ModelFileError(
        f"{path} has none of the landmark embeddings {', '.join(faces for faces, _ in EMBEDDINGS)}."
    )


@converter
def convert(source: str | Path, landmarks: str | Path | None = None) -> MorphableModel:
    """FLAME as a `MorphableModel`; errors: `ModelFileError`."""
    data = read_arrays(source)
    missing = [
        name
        for name in ("v_template", "shapedirs", "f", "weights", "posedirs", "J_regressor")
        if name not in data
    ]
    require(not missing, f"{source} lacks {', '.join(missing)}: it is not a FLAME model.")
    try:
        vertices = np.asarray(data["v_template"], dtype=np.float64)
        directions = np.asarray(data["shapedirs"], dtype=np.float32)
        triangles = np.asarray(data["f"]).astype(np.int64)
        jaw = jaw_opening(vertices, data)
    except (TypeError, ValueError) as problem:
        raise ModelFileError(
            f"{source} does not hold arrays of numbers ({problem}): download it again."
        ) from problem
    wanted = (*vertices.shape, IDENTITY + EXPRESSION)  # identity first
    require(
        directions.shape == wanted, f"{source}: shapedirs has shape {directions.shape} instead of {wanted}."
    )
    basis = directions.transpose(2, 0, 1) * MM
    eye = np.asarray(data["weights"], float)[:, EYES].sum(1) > 0.5
    parts = Parts(
        name="FLAME",
        terms="flame.is.tue.mpg.de, MPI licence: non-commercial research (FLAME 2023 Open: CC BY 4.0)",
        mean=vertices * MM,
        triangles=triangles,
        identity=basis[:IDENTITY],
        expression=np.concatenate([(jaw * (MM * JAW_SIGMA)).astype(np.float32), basis[IDENTITY:]]),
        triangle_region=np.where(eye[triangles].all(1), REGIONS.index("eyes"), REGIONS.index("skin")),
        landmarks=read_embedding(landmarks) if landmarks else {},
    )
    return finish(parts)


if __name__ == "__main__":
    command_line(convert, __doc__, {"landmarks": "landmark embedding file (.npy, .npz or .pkl)"})
