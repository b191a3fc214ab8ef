"""Photographs as one file, for a machine that takes few: square crops as JPEG, with their landmarks.

pack_photos("my_pictures", "photographs.safetensors", size=160, limit=10 << 20)
photos = PackedPhotos("photographs.safetensors", size=160)
photos[0]["image"], photos[0]["landmarks"]
"""

import io
import random
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from facelab.photos.crop import crop_face
from facelab.photos.detect import LandmarkDetector, find_face
from facelab.photos.folders import held_out, list_pictures
from facelab.photos.load import load_photo
from facelab.support.errors import CorpusError, FacelabError, ModelFileError
from facelab.support.files import find_file, guarded, read_tensors, write_whole

QUALITY = 90  # of the JPEG


def pack_photos(
    folder: str | Path,
    path: str | Path,
    size: int,
    limit: int,
    detector: LandmarkDetector | None = None,
    **frame: float,
) -> int:
    """Write crops (size×size) of the folder's photographs, in random order, until `limit` bytes are full.

    `frame`: see `crop_face`. Of FOLDER/PERSON/FILE a tenth of the people is left out (`held_out`).

    What is no picture, or has no face, is left out. Returns how many there are; without any, no file is
    written. Raises PhotoNotFoundError for a folder without pictures, ModelFileError without a detector.
    """
    home = find_file(folder)
    paths = [path for path in list_pictures(folder) if path.parent == home or not held_out(path)]
    random.Random(0).shuffle(paths)
    coded: list[bytes] = []
    landmarks: list[Tensor] = []
    room = limit - 4096  # the file's header
    for photo in paths:
        try:
            with warnings.catch_warnings():  # that there are several faces
                warnings.simplefilter("ignore")
                image = load_photo(photo)
                crop = crop_face(image, find_face(image, detector).landmarks, size, **frame)
        except ModelFileError:  # the detector is not installed
            raise
        except FacelabError:
            continue
        file, pixels = io.BytesIO(), (crop.image.clamp(0, 1) * 255).round().byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=QUALITY)
        room -= file.tell() + 8 + 4 * crop.landmarks.numel()
        if room < 0:
            break
        coded.append(file.getvalue())
        landmarks.append(crop.landmarks.float())
    if coded:
        jpeg = torch.from_numpy(np.frombuffer(b"".join(coded), np.uint8).copy())
        ends = torch.tensor([len(data) for data in coded]).cumsum(0)
        tensors = {"jpeg": jpeg, "ends": ends, "landmarks": torch.stack(landmarks) / size}
        write_whole({Path(path): save(tensors)})
    return len(coded)


class PackedPhotos(Dataset):
    """Item i is {image (3, size, size), landmarks (68, 2) px}. Raises CorpusError for a damaged file."""

    def __init__(self, path: str | Path, size: int = 240) -> None:
        self.size = size
        self._problem = f"'{path}' holds no packed photographs, or is damaged; pack them again"
        with guarded(self._problem, CorpusError):
            tensors = read_tensors(Path(path).read_bytes(), self._problem, CorpusError)
            self._jpeg, self._ends, self._landmarks = (
                tensors[name] for name in ("jpeg", "ends", "landmarks")
            )
            starts = torch.cat([self._ends.new_zeros(1), self._ends[:-1]])
            in_order = bool((starts < self._ends).all()) and int(self._ends[-1]) == len(self._jpeg)
            points = self._landmarks
            if not in_order or points.shape != (len(self._ends), 68, 2) or not bool(points.isfinite().all()):
                raise ValueError("its parts do not fit together")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a for loop
        start = int(self._ends[index - 1]) if index else 0
        data = self._jpeg[start : int(self._ends[index])].numpy().tobytes()
        with guarded(self._problem, CorpusError):
            pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        if image.shape[1:] != (self.size, self.size):
            shape = (self.size, self.size)
            image = interpolate(image[None], shape, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return {"image": image, "landmarks": self.size * self._landmarks[index]}
