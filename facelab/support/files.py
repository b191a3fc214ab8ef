"""Files: written whole or not at all, and read with errors that name them."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from facelab.support.errors import (
    FacelabError,
    ImageTooLargeError,
    ModelFileError,
    OutputError,
    ParameterError,
    PhotoError,
)

LEFT_OVER = ".facelab-*.tmp"  # what a process that was killed while writing leaves
MAX_UNPACKED = 2**30  # bytes
DATA = Path(__file__).parents[1] / "data"  # what the package brings


# ---------------------------------------------------------------------------------------------- reading


def shown(path: object) -> str:
    """A path as text that can be printed: line breaks and bytes that are no UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


@contextmanager
def guarded(problem: str, error: type[FacelabError] = PhotoError) -> Iterator[None]:
    """Turn whatever the enclosed parser or third-party call raises into `error`, saying `problem (why)`.

    Pillow, dlib, their codecs, and parsers of damaged files raise far more than they document (RuntimeError,
    struct.error, AttributeError, ...). Named errors pass; where a picture does not fit into memory it is
    ImageTooLargeError.
    """
    try:
        yield
    except FacelabError:
        raise
    except Exception as caught:
        why = " ".join(shown(caught).split())[:200] or type(caught).__name__
        if isinstance(caught, MemoryError):
            why = "there is not enough memory"
            error = ImageTooLargeError if issubclass(error, PhotoError) else error
        named = error(f"{problem} ({why}).")
        raise named from caught


def find_file(path: str | Path) -> Path:
    """The path as it is if it exists, else with a leading `~` expanded to the home folder."""
    path = Path(path)
    return path if path.exists() or not str(path).startswith("~") else Path(expanduser(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(path: Path) -> Path:
    """Where the SHA-256 of a file stands, as the sha256sum command writes it."""
    return path.with_name(path.name + ".sha256")


def digest_beside(path: Path) -> str:
    """The 64 hexadecimal digits in the file beside `path`; "" if there is none, or nothing like them."""
    try:
        return beside(path).read_text().split()[0]
    except (OSError, ValueError, IndexError):
        return ""


def read_json(path: Path, problem: str, error: type[FacelabError] = ModelFileError) -> dict[str, Any]:
    """The dictionary in a JSON file; `error`, saying `problem`, if there is none."""
    with guarded(problem, error):
        return _dictionary(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant))


def _dictionary(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError("it holds no dictionary")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def read_tensors(data: bytes, problem: str, error: type[FacelabError] = ModelFileError) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content; `error` if it is damaged or has NaN or infinity."""
    with guarded(problem, error):
        tensors = load(data)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            named = error(f"{problem} ({name!r} has NaN or infinity).")
            raise named
    return tensors


def read_npz(path: Path, problem: str, error: type[FacelabError] = ModelFileError) -> dict[str, np.ndarray]:
    """All plain arrays of an .npz file, at most 1 GiB of them when unpacked."""
    with guarded(problem, error), np.load(path, allow_pickle=False) as file:
        size = sum(member.file_size for member in file.zip.infolist())
        if size <= MAX_UNPACKED:
            return {name: file[name] for name in file.files}
    named = error(f"{problem} (it unpacks to more than 1 GiB).")
    raise named


# ---------------------------------------------------------------------------------------------- writing


@contextmanager
def replacing(*paths: str | Path) -> Iterator[list[Path]]:
    """Temporary files for new versions of `paths`, which take their places together when the block ends.

    If anything fails in it (a full disk, an interrupt) what was there stays, and nothing is left behind.
    Folders are made. Raises OutputError if a file cannot be written.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    temporary = [path.with_name(f".facelab-{os.getpid()}-{secrets.token_hex(4)}.tmp") for path in targets]
    try:
        for path in targets:
            _make_place(path)
        yield temporary
        for new, path in zip(temporary, targets):
            os.replace(new, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch says a full disk by the last two
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise OutputError(
            f"'{shown(paths[0])}' cannot be written ({reason}); what was there is unchanged. Free some "
            "space, or give a folder of your own."
        ) from error
    finally:
        for new in temporary:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def _make_place(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError("it is a folder, pipe or device")


def write_whole(files: Mapping[Path, bytes | str]) -> None:
    """Write files that belong together: all are there as a whole, or none is. Raises OutputError."""
    with replacing(*files) as temporary:
        for path, data in zip(temporary, files.values()):
            path.write_bytes(data.encode() if isinstance(data, str) else data)


def with_digest(path: Path, data: bytes) -> dict[Path, bytes | str]:
    """For `write_whole`: a file, and its SHA-256 beside it."""
    return {beside(path): f"{hashlib.sha256(data).hexdigest()}  {path.name}\n", path: data}


def as_json(content: Any) -> str:
    """JSON text, one entry a line. Raises ParameterError for NaN and infinity, which are no JSON."""
    with guarded("The results cannot be written as JSON", ParameterError):
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def append_line(path: Path, line: str) -> None:
    """Add a line to a log; a reader passes over a last line that has no end. Raises OutputError."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OutputError(
            f"'{shown(path)}' cannot be written ({error.strerror}); free some space."
        ) from error
