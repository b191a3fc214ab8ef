"""A folder of photographs with the truth that lies beside them: landmarks, class masks, light directions."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelab.model.records import FaceRecord
from facelab.photos import crop_face, load_photo
from facelab.photos.folders import PhotoFolder, list_pictures
from facelab.photos.load import open_picture
from facelab.support.errors import ModelFileError, PhotoNotFoundError
from facelab.support.files import guarded, read_npz, shown

LANDMARK_FILE = "landmarks68.npz"
LIGHT_NAME = re.compile(r"(?P<person>.+)_az(?P<azimuth>[+-]?\d+)_el(?P<elevation>[+-]?\d+)")
FACE_CLASSES = (1, 2, 4, 5, 6, 7, 10, 11, 12)  # CelebAMask-HQ: skin, nose, eyes, brows, mouth, lips; no ears


class Records(Sequence[FaceRecord]):
    """Records that are made when they are asked for, the same ones every time."""

    def __init__(self, count: int, make: Callable[[int], FaceRecord]) -> None:
        self._items, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:  # a record, or Records for a slice
        chosen = self._items[index]
        if isinstance(chosen, int):
            return self._make(chosen)
        part = Records(0, self._make)
        part._items = chosen
        return part


def photo_records(folder: Path, size: int, cache: Path) -> Records:
    """Records of a folder's pictures, with the truth that lies beside them; see `test_sets.load_test_set`.

    In an order of chance, because names often begin with the source or the person. What a detector finds
    goes to a file in the folder `cache`.
    """
    pictures, known = list_pictures(folder), _read_landmarks(folder)
    if missing := sorted(set(known) - {path.name for path in pictures}):
        raise PhotoNotFoundError(
            f"'{folder / LANDMARK_FILE}' names {missing[0]!r}, which is not there; restore the picture."
        )
    photographs = {path.with_suffix(""): path for path in pictures if path.suffix.lower() != ".png"}
    masks = {
        photographs[path.with_suffix("")]: path
        for path in pictures
        if path.suffix.lower() == ".png" and path.with_suffix("") in photographs
    }

    def has_truth(path: Path) -> bool:
        return path.name in known or path in masks or bool(LIGHT_NAME.fullmatch(path.stem))

    chosen = [path for path in pictures if has_truth(path)]
    random.Random(0).shuffle(chosen)
    if chosen:
        return Records(
            len(chosen), lambda i: _photo(chosen[i], known.get(chosen[i].name), masks.get(chosen[i]), size)
        )
    cache.mkdir(parents=True, exist_ok=True)
    found = PhotoFolder(folder, size, cache / "landmarks.jsonl")
    if not len(found):
        raise PhotoNotFoundError(f"No face was found in the pictures of '{folder}'; give other ones.")
    order = random.Random(0).sample(range(len(found)), len(found))

    def plain(index: int) -> FaceRecord:
        photo = found[order[index]]
        return FaceRecord(photo["name"], photo["image"])  # the detector's landmarks are no truth

    return Records(len(found), plain)


def _photo(path: Path, landmarks: Tensor | None, mask_path: Path | None, size: int) -> FaceRecord:
    """A picture framed about its landmarks, else its mask, else as Extended Yale B's own tight crops need."""
    image, light = load_photo(path), LIGHT_NAME.fullmatch(path.stem)
    mask = torch.ones_like(image[:1]) if mask_path is None else _read_mask(mask_path, image)
    rows, columns = (mask[0].any(axis).nonzero()[:, 0] for axis in (1, 0))
    corners = torch.stack([columns[[0, -1]], rows[[0, -1]]], 1) + torch.tensor([[0.0], [1.0]])
    points, frame = (
        corners.repeat(34, 1),
        {"scale": 1.35, "up": 0.03} if mask_path else {"scale": 1.3, "up": 0},
    )
    if landmarks is not None:
        points, frame = landmarks, {}
    crop = crop_face(image, points, size, **frame)
    seen = crop_face(mask.float().expand(3, -1, -1), points, size, **frame)
    direction, groups = None, {}
    if light:
        azimuth, elevation = (np.radians(float(light[name])) for name in ("azimuth", "elevation"))
        level = np.cos(elevation)
        direction = torch.tensor(
            [-np.sin(azimuth) * level, np.sin(elevation), np.cos(azimuth) * level], dtype=torch.float32
        )
        off = float(direction[2].clamp(-1, 1).acos().rad2deg())
        groups["light"] = "0-30" if off < 30 else "30-60" if off < 60 else "60-180"
    return FaceRecord(
        path.name,
        crop.image,
        crop.landmarks if landmarks is not None else None,
        (seen.image[:1] > 0.5) & seen.inside if mask_path else None,
        light_direction=direction,
        person=light["person"] if light else None,
        groups=groups,
    )


def _read_landmarks(folder: Path) -> dict[str, Tensor]:
    """Picture's name -> (68, 2) px; empty without a landmark file."""
    path = folder / LANDMARK_FILE
    if not path.is_file():
        return {}
    problem = f"'{shown(path)}' cannot be read; it needs names and landmarks"
    arrays = read_npz(path, problem)
    with guarded(problem, ModelFileError):
        names, points = arrays["names"], torch.from_numpy(arrays["landmarks"]).float()
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ModelFileError(f"'{shown(path)}' needs names (N,) as text, not {names.dtype}.")
    if points.shape != (len(names), 68, 2) or not points.isfinite().all():
        raise ModelFileError(
            f"'{path}' needs finite landmarks ({len(names)}, 68, 2), not {tuple(points.shape)}."
        )
    return dict(zip(names.tolist(), points))


def _read_mask(path: Path, image: Tensor) -> Tensor:
    """(1, H, W) bool: the skin, nose, eyes, brows and lips of a CelebAMask-HQ class map."""
    problem = f"The mask '{shown(path)}' is not a picture; restore it"
    with guarded(problem, ModelFileError), open_picture(path) as picture:
        same = (picture.height, picture.width) == image.shape[1:]  # else it is not decoded
        classes = np.asarray(picture) if same else np.zeros((1, 1), np.uint8)
    mask = np.isin(classes, FACE_CLASSES)
    if classes.shape != image.shape[1:] or classes.max() > 18 or not mask.any():
        raise ModelFileError(
            f"The mask '{path}' must hold one class (0 to 18) for each pixel of its picture, and some face."
        )
    return torch.from_numpy(mask)[None]
