"""A folder of photographs as a torch Dataset, with landmarks found once and kept.

photos = PhotoFolder("my_pictures", workers=4)
photos[0]["image"], photos[0]["landmarks"], photos.failures
"""

import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from facelab.photos import DlibDetector, LandmarkDetector, crop_face, find_face, load_photo
from facelab.support.errors import FacelabError, ModelFileError, ParameterError, PhotoNotFoundError
from facelab.support.files import find_file, guarded, sha256_of, shown

PICTURES = {
    *(".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
    *(".avif", ".heic", ".heif", ".jp2"),
}


def list_pictures(folder: str | Path) -> list[Path]:
    """The picture files below a folder (`~` is expanded), sorted; no pipes, devices, or links that lead out.

    Raises PhotoNotFoundError if there are none.
    """
    with guarded(f"The folder '{shown(folder)}' cannot be read; check the path", PhotoNotFoundError):
        folder = find_file(folder)
        home = folder.resolve()
        paths = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in PICTURES and path.is_file() and path.resolve().is_relative_to(home)
        )
    if not paths:
        raise PhotoNotFoundError(f"There are no pictures in the folder '{shown(folder)}'; check the path.")
    return paths


def held_out(picture: Path) -> bool:
    """Whether a picture of FOLDER/PERSON/FILE is of the tenth of all people that no training shall see."""
    return zlib.crc32(picture.parent.name.encode()) % 10 == 0


def random_piece(paths: Sequence[Path], size: int, generator: torch.Generator) -> Tensor:
    """A random square (3, size, size) uint8 of a random photograph, for a background.

    A file that cannot be read gives way to the next, with a warning. Raises PhotoNotFoundError if none can.
    """
    first, x, y = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    for k in range(len(paths)):
        try:
            photo = _small_photo(paths[(int(first * len(paths)) + k) % len(paths)], size)
        except FacelabError as error:
            warnings.warn(f"Left out as a background: {error}", stacklevel=2)
            continue
        row, column = int(y * (photo.shape[1] - size + 1)), int(x * (photo.shape[2] - size + 1))
        return photo[:, row : row + size, column : column + size]
    raise PhotoNotFoundError(f"None of {len(paths)} background pictures can be read; give another folder.")


@lru_cache(maxsize=256)  # 90 MB at 240 pixels
def _small_photo(path: Path, size: int) -> Tensor:
    """A photograph as uint8 (3, H, W) whose shorter side is 1.25 `size`."""
    photo = load_photo(path)
    factor = 1.25 * size / min(photo.shape[1:])
    shape = [max(size, round(factor * side)) for side in photo.shape[1:]]
    small = interpolate(photo[None], shape, mode="bilinear", antialias=True)[0]
    return (small * 255).round().byte()


class PhotoFolder(Dataset):
    """The pictures of a folder in which a face is found: {image (3, S, S), landmarks (68, 2) px, name}.

    Landmarks are found once, by `workers` processes, and kept in `cache` (a file of JSON lines, in the folder
    if None) under the picture's SHA-256: a picture may move, one that changes is looked at again. What fails
    is kept too: `failures` {name: reason}. `pictures`: only these of the folder's. Raises PhotoNotFoundError
    for a folder without pictures.
    """

    def __init__(
        self,
        folder: str | Path,
        size: int = 240,
        cache: str | Path | None = None,
        detector: LandmarkDetector | None = None,
        workers: int = 0,
        pictures: Sequence[Path] | None = None,
        progress: bool = True,
        **crop: float,
    ) -> None:
        self.folder, self.size, self.crop = find_file(folder), size, crop
        self.failures: dict[str, str] = {}
        self._photos: list[tuple[Path, Tensor]] = []
        cache = find_file(cache or self.folder / "facelab_landmarks.jsonl")
        problem = f"The landmark file '{shown(cache)}' cannot be read and written; give another as `cache`"
        if cache.exists() and not cache.is_file():
            raise ParameterError(f"{problem}.")
        paths = list_pictures(folder) if pictures is None else list(pictures)
        try:
            search = _Search(paths, detector or DlibDetector(), _read_lines(cache))
            self._find(search, workers, cache, progress)
        except OSError as error:  # of the landmark file: those of pictures become records
            raise ParameterError(f"{problem} ({error.strerror}).") from error

    def _find(self, search: "_Search", workers: int, cache: Path, progress: bool) -> None:
        loader = DataLoader(search, batch_size=None, num_workers=workers)
        with cache.open("ab") as file:
            if file.tell() and not cache.read_bytes().endswith(b"\n"):
                file.write(b"\n")  # closes a line that a kill cut off
            for path, record in zip(search.paths, tqdm(loader, unit=" photos", disable=not progress)):
                if record.pop("new"):
                    file.write(json.dumps(record).encode() + b"\n")
                    file.flush()
                if "error" in record:
                    self.failures[str(path.relative_to(self.folder))] = record["error"]
                else:
                    self._photos.append((path, torch.tensor(record["landmarks"])))

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, landmarks = self._photos[index]
        crop = crop_face(load_photo(path), landmarks, self.size, **self.crop)
        name = str(path.relative_to(self.folder))
        return {"image": crop.image, "landmarks": crop.landmarks, "name": name}


def _read_lines(cache: Path) -> dict[str, dict[str, Any]]:
    """Records by key; a line that is cut off or damaged is passed over, and its picture looked at again."""
    known = {}
    for line in cache.read_bytes().splitlines() if cache.is_file() else []:
        try:
            record = json.loads(line)
            points = torch.tensor(record.get("landmarks", [[0.0, 0.0]] * 68), dtype=torch.float32)
            whole = isinstance(record.get("error", ""), str) and ("error" in record) != (
                "landmarks" in record
            )
            if whole and points.shape == (68, 2) and points.isfinite().all():
                known[str(record["key"])] = record
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # RecursionError too
            continue
    return known


class _Search(Dataset):
    """Item i is the record of picture i: its landmarks, or why there are none."""

    def __init__(
        self, paths: list[Path], detector: LandmarkDetector, known: dict[str, dict[str, Any]]
    ) -> None:
        self.paths, self.detector, self.known = paths, detector, known
        self.tool = repr(detector) if is_dataclass(detector) else type(detector).__qualname__

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            key = f"{sha256_of(path)} {self.tool}"
            if key in self.known:
                return self.known[key] | {"new": False}
            with warnings.catch_warnings():  # that there are several faces
                warnings.simplefilter("ignore")
                points = find_face(load_photo(path), self.detector).landmarks
            return {"key": key, "landmarks": points.double().round(decimals=2).tolist(), "new": True}
        except ModelFileError:  # the detector is not installed
            raise
        except FacelabError as error:
            return {"key": key, "error": f"{type(error).__name__}: {error}", "new": True}
        except OSError as error:  # cannot be opened now, perhaps later
            return {"error": f"{type(error).__name__}: {error}", "new": False}
