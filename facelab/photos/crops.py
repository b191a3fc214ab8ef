"""The faces of folders of photographs, cut out once and kept in one file, for trainings.

    faces = FaceCrops.cut(["lfw", "portraits"], "runs/faces.safetensors")
    images, landmarks = faces.views(faces.draw(step, 16, seed), 160, generator)
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from facelab.photos.detect import DlibDetector, LandmarkDetector
from facelab.photos.folders import PhotoFolder, held_out, list_pictures
from facelab.photos.packed import PackedPhotos
from facelab.rendering.colour import srgb_to_linear
from facelab.support.errors import CorpusError, NoFaceError
from facelab.support.files import find_file, guarded, read_tensors, sha256_of, write_whole
from facelab.support.tensors import one_line

SIDE, SCALE = 200, 2.0  # px, and the square's side over that of the landmarks' box; crop_face shows 1.6
UP = 0.08 * 1.6 / SCALE  # of `crop_face`, as far as it goes by itself
TONES = (30.0, 40.0, 50.0, 60.0, 70.0)  # L* of cheeks, limits between classes
RAREST = 6.0  # times as often as its share the rarest tone is shown, at most
SHIFT, ZOOM = 0.05, 0.1  # of a view: share of its side, logarithm
CHEEKS = ((2, 31, 41), (14, 35, 46))  # landmarks around the middle of each


@one_line
@dataclass(frozen=True)
class FaceCrops:
    """N squares around faces: more than trainings see, so that views can be shifted and zoomed."""

    images: Tensor
    """(N, 3, SIDE, SIDE) uint8 sRGB."""
    landmarks: Tensor
    """(N, 68, 2) px."""
    lightness: Tensor
    """(N,) L* of the lighter cheek, 0 to 100: skin and light together."""

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def cut(
        cls,
        folders: Sequence[str | Path],
        file: str | Path,
        most: int | None = None,
        detector: LandmarkDetector | None = None,
        workers: int = 0,
    ) -> "FaceCrops":
        """From `file`, if it holds these folders' faces; else they are found, cut out and written there.

        Pictures in FOLDER/PERSON/FILE: those of a tenth of the people are left out (`held_out`). `most`: no
        more pictures of a folder, evenly chosen, of as many people as there are. Landmarks are kept in
        FILE.jsonl as they are found; a run that was killed goes on.
        Raises PhotoNotFoundError for a folder without pictures, NoFaceError if no face is found, CorpusError
        if the file is damaged or was made of others.
        """
        path = find_file(file)
        pictures = [_chosen(Path(folder), most) for folder in folders]
        label = {"pictures": _digest(pictures), "side": str(SIDE), "scale": str(SCALE)}
        if not path.is_file():
            images, landmarks, lightness = [], [], []
            for folder, chosen in zip(folders, pictures):
                found = PhotoFolder(
                    folder, SIDE, path.with_suffix(".jsonl"), detector or DlibDetector(fallback=False),
                    workers, chosen, scale=SCALE, up=UP,
                )  # fmt: skip
                for i in range(len(found)):
                    face = found[i]
                    images.append((face["image"] * 255).round().byte())
                    landmarks.append(face["landmarks"].float())
                    lightness.append(cheek_lightness(face["image"], face["landmarks"]))
            if not images:
                raise NoFaceError("No face was found in any of the photographs; give others.")
            lists = {"images": images, "landmarks": landmarks, "lightness": lightness}
            write_whole({path: save({name: torch.stack(parts) for name, parts in lists.items()}, label)})
        return cls(*_read(path, label))

    @classmethod
    def unpacked(cls, path: str | Path) -> "FaceCrops":
        """From a file of `pack_photos` with size=`SIDE`, scale=`SCALE`, up=`UP`. Raises CorpusError if it is
        damaged."""
        packed = PackedPhotos(path, SIDE)
        parts = [packed[i] for i in range(len(packed))]
        images = torch.stack([(part["image"] * 255).round().byte() for part in parts])
        landmarks = torch.stack([part["landmarks"] for part in parts])
        return cls(images, landmarks, torch.stack([cheek_lightness(*part.values()) for part in parts]))

    def draw(self, step: int, count: int, seed: int) -> Tensor:
        """(count,) indices for a training's step, a function of the arguments: evenly over tones.

        Rare tones are shown more often than they come, `RAREST` times at most.
        """
        tone = torch.bucketize(self.lightness, torch.tensor(TONES))
        share = torch.bincount(tone, minlength=len(TONES) + 1) / len(self)
        weight = 1 / share.clamp(min=share.max() / RAREST)
        generator = torch.Generator().manual_seed(seed_of(seed, step))
        return torch.multinomial(weight[tone], count, replacement=True, generator=generator)

    def views(self, index: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, side, side) in [0, 1], framed as by `crop_face` and shifted and zoomed at random,
        and their landmarks (B, 68, 2) px."""
        windows = Windows.random(len(index), generator)
        images = windows.cut(self.images[index].float() / 255, side)
        return images, windows.move(self.landmarks[index], side)


@one_line
@dataclass(frozen=True)
class Windows:
    """B windows into crops of FaceCrops: framed as by `crop_face`, and shifted and zoomed at random.

    Whatever is known per pixel of the crops goes through the same ones.
    """

    zoom: Tensor
    """(B,) the window's side over the crop's"""
    shift: Tensor
    """(B, 2) of its middle, in half sides of the crop"""

    @classmethod
    def random(cls, count: int, generator: torch.Generator) -> "Windows":
        """As many, each another one."""
        zoom = torch.exp(ZOOM * (2 * torch.rand(count, generator=generator) - 1)) * 1.6 / SCALE
        shift = 2 * SHIFT * zoom[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
        return cls(zoom, shift)

    def cut(self, maps: Tensor, side: int) -> Tensor:
        """Maps (B, C, H, H) of whole crops, H of any size -> (B, C, side, side)."""
        theta = torch.zeros(len(self.zoom), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = self.zoom
        theta[:, :, 2] = self.shift
        grid = affine_grid(theta, [*maps.shape[:2], side, side], align_corners=False)
        return grid_sample(maps, grid, "bilinear", "border", align_corners=False)

    def move(self, landmarks: Tensor, side: int) -> Tensor:
        """Points (B, N, 2) in px of crops of `SIDE` px -> px of windows of `side` px."""
        points = (2 * landmarks / SIDE - 1 - self.shift[:, None]) / self.zoom[:, None, None]
        return (points + 1) * side / 2


def cheek_lightness(image: Tensor, landmarks: Tensor) -> Tensor:
    """() L* of the lighter cheek of a picture (3, H, W) sRGB with landmarks (68, 2) px, light included."""
    height, width = image.shape[1:]
    radius = 0.06 * float((landmarks.amax(0) - landmarks.amin(0)).max())
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    luminance = (srgb_to_linear(image) * image.new_tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0)
    found = []
    for corners in CHEEKS:
        middle = landmarks[list(corners)].mean(0)
        near = (x - middle[0]).square() + (y - middle[1]).square() < radius**2
        found.append(luminance[near].median() if bool(near.any()) else luminance.new_zeros(()))
    return 116 * torch.stack(found).max().clamp(min=0.008856) ** (1 / 3) - 16


def seed_of(*numbers: int) -> int:
    """A seed from several numbers."""
    return int.from_bytes(hashlib.sha256(json.dumps(numbers).encode()).digest()[:7], "little")


def _chosen(folder: Path, most: int | None) -> list[Path]:
    """The pictures of a folder that a training may see: first one of every person, then a second."""
    pictures = [path for path in list_pictures(folder) if path.parent == folder or not held_out(path)]
    seen: dict[Path, int] = {}
    turns = []
    for path in pictures:
        seen[path.parent] = seen.get(path.parent, -1) + 1
        turns.append(0 if path.parent == folder else seen[path.parent])
    ordered = [path for _, path in sorted(zip(turns, pictures))]
    if most is None or len(ordered) <= most:
        return ordered
    first = [path for turn, path in sorted(zip(turns, pictures)) if turn == 0]
    return ordered[:most] if len(first) <= most else [first[k * len(first) // most] for k in range(most)]


def _read(path: Path, label: dict[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Images, landmarks and lightness of a file that was made for `label`."""
    problem = f"'{path}' is damaged; delete it"
    with guarded(problem, CorpusError), safe_open(path, "pt") as opened:
        made = opened.metadata()
    if made != label:
        raise CorpusError(f"'{path}' was made of other photographs; delete it, or name another file.")
    with guarded(problem, CorpusError):
        tensors = read_tensors(path.read_bytes(), problem, CorpusError)
        images, landmarks, lightness = (tensors[name] for name in ("images", "landmarks", "lightness"))
        count = len(images)
        if images.shape != (count, 3, SIDE, SIDE) or images.dtype != torch.uint8 or not count:
            raise ValueError(f"its images have the shape {tuple(images.shape)}")
        if landmarks.shape != (count, 68, 2) or lightness.shape != (count,):
            raise ValueError("its parts do not go together")
    return images, landmarks, lightness


def _digest(pictures: list[list[Path]]) -> str:
    """Of the names and contents of pictures."""
    state = hashlib.sha256()
    for path in (path for chosen in pictures for path in chosen):
        state.update(f"{path.name} {sha256_of(path)}\n".encode())
    return state.hexdigest()
