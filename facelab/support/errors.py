"""Every failure that a user can cause, by name.

Each is raised with one sentence that says what is wrong and what to do about it.
"""


class FacelabError(Exception):
    """Base of all errors that facelab raises on purpose."""


class PhotoError(FacelabError):
    """Something is wrong with a photograph."""


class PhotoNotFoundError(PhotoError):
    """There is no file at the path."""


class NotAnImageError(PhotoError):
    """The file is empty or is not a picture."""


class TruncatedImageError(PhotoError):
    """The picture ends before all its pixels have been read."""


class ImageTooLargeError(PhotoError):
    """The picture has more pixels than we are willing to decode."""


class ImageTooSmallError(PhotoError):
    """The picture, or the face in it, is too small to be reconstructed."""


class NoFaceError(PhotoError):
    """No face was found in the picture."""


class FaceIndexError(PhotoError):
    """A face was asked for by an index that the picture does not have."""


class ModelFileError(FacelabError):
    """A data file is missing, truncated, tampered with, or of the wrong structure."""


class ParameterError(FacelabError):
    """A parameter is not finite, or has the wrong size."""


class MeshError(FacelabError):
    """Triangles or vertices do not fit together."""


class ImageSizeError(FacelabError):
    """An image size is not a pair of positive whole numbers."""


class CorpusError(FacelabError):
    """A corpus on disk is missing, unfinished, damaged, changed, or made with other settings."""


class DatasetError(FacelabError):
    """A downloaded data set, or a file of it, is missing, incomplete, damaged, or of another structure."""


class OutputError(FacelabError):
    """A file cannot be written: the disk is full, or its place is not ours to write to."""


class DivergenceError(FacelabError):
    """The loss of a training is no longer a number, or has exploded."""


class MissingPackageError(FacelabError, ImportError):
    """A package that only a part of facelab needs is not installed."""


class CheckFailedError(FacelabError, AssertionError):
    """A learner's function does not do what the exercise asks."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows instead of a traceback: the sentence, in red."""
        return [f"\x1b[31m{self}\x1b[0m"]
