"""The one guard about third-party code, and paths as text."""

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path

from facelab.errors import FacelabError, ImageTooLargeError, PhotoError


def shown(path: object) -> str:
    """A path as text that can be printed: line breaks and bytes that are no UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


@contextmanager
def guarded(problem: str, error: type[FacelabError] = PhotoError) -> Iterator[None]:
    """Turn whatever the enclosed third-party calls raise into `error`, whose sentence is `problem (why)`.

    Pillow, dlib and their codecs raise far more than they document (RuntimeError, SystemError, struct.error,
    AttributeError, ...). Named errors pass; a lack of memory becomes ImageTooLargeError.
    """
    try:
        yield
    except FacelabError:
        raise
    except Exception as caught:
        why = " ".join(shown(caught).split())[:200] or type(caught).__name__
        if isinstance(caught, MemoryError):
            error, why = ImageTooLargeError, "there is not enough memory; use a smaller picture"
        named = error(f"{problem} ({why}).")
        raise named from caught


def find_file(path: str | Path) -> Path:
    """The path as it is if it exists, else with a leading `~` expanded to the home folder."""
    path = Path(path)
    return path if path.exists() or not str(path).startswith("~") else Path(expanduser(path))
