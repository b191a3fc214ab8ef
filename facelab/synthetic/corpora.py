"""Corpora: rendered faces with their truth, on the fly or in files.

    spec = CorpusSpec("inversefacenet", seed=1)
    for batch in CorpusStream(spec): ...                            # endless, nothing is stored
    build_corpus("runs/corpus", spec, count=200_000, workers=8)     # can be killed and started again
    corpus = Corpus("runs/corpus")                                  # a torch Dataset

Batch number b of a spec is a function of (spec, b) alone, so the stream and the files hold the same pictures,
and neither killing a build nor the number of processes changes a byte (on one kind of processor and one
version of torch). Under torchrun each process (RANK of WORLD_SIZE) takes its own share of batches or shards.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as count_from
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from tqdm import tqdm

from facelab.model.layout import ParameterLayout
from facelab.support.errors import CorpusError, ParameterError
from facelab.support.files import (
    LEFT_OVER,
    as_json,
    digest_beside,
    guarded,
    read_json,
    read_tensors,
    sha256_of,
    with_digest,
    write_whole,
)
from facelab.synthetic.augmentation import to_bytes
from facelab.synthetic.renderer import CorpusSpec, Renderer

FORMAT = 1  # of the files; raise it when what (spec, batch) gives changes
MANIFEST = "corpus.json"


def _share(workers: bool = False) -> tuple[int, int]:
    """Number of this process and how many there are: under torchrun, and times a DataLoader's workers."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    info = get_worker_info() if workers else None
    return (rank, world) if info is None else (rank * info.num_workers + info.id, world * info.num_workers)


class CorpusStream(IterableDataset):
    """Batches `start`, `start` + 1, ... (to `stop`, or without end) of a spec, as from `Renderer.batch`.

    Processes under torchrun and a DataLoader's workers (batch_size=None) share them without overlap.
    """

    def __init__(
        self, spec: CorpusSpec, start: int = 0, stop: int | None = None, device: str = "cpu"
    ) -> None:
        self.renderer, self.start, self.stop = Renderer(spec, device), start, stop

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        mine, processes = _share(workers=True)
        for index in count_from(self.start + mine, processes):
            if self.stop is not None and index >= self.stop:
                return
            yield self.renderer.batch(index)


# --- files --------------------------------------------------------------------------------------------------


def build_corpus(
    folder: str | Path,
    spec: CorpusSpec,
    count: int,
    shard: int = 16,
    workers: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> list[str]:
    """Render `count` pictures into `folder`, `shard` batches to a file, and return the files made just now.

    A shard is a safetensors file with `images` (n, 3, S, S) uint8, `masks` (n, S*S/8) packed bits,
    `parameters` float32, `landmarks` (n, 68, 2) float32. It gets its name only when it is complete, its
    SHA-256 stands in a file beside it; shards that are there and whole are kept. When none is missing,
    `corpus.json` gets the list. `workers` processes render at once (0: this one).
    Raises CorpusError if the folder holds another corpus, ParameterError for a count that is not positive.
    """
    folder = Path(folder)
    if min(count, shard) < 1:
        raise ParameterError(f"A corpus needs at least one picture and batch a shard, not {count}, {shard}.")
    job = _Shards(folder, Renderer(spec, device), count, shard)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if path.is_file():
        found = _read_manifest(folder)
        different = [key for key, value in job.manifest.items() if found.get(key) != value]
        if different:
            raise CorpusError(
                f"'{folder}' holds a corpus that differs in {', '.join(different)}; give another folder."
            )
    else:
        write_whole({path: as_json(job.manifest | {"shards": None})})
    rank, world = _share()
    mine, made = range(rank, len(job), world), []
    context = "spawn" if workers and device != "cpu" else None  # CUDA does not survive a fork
    loader = DataLoader(
        job, batch_size=None, sampler=mine, num_workers=workers, multiprocessing_context=context
    )
    with tqdm(total=sum(map(job.size, mine)), unit=" images", disable=not progress) as bar:
        for index, new in loader:
            made += [job.name(index)] if new else []
            bar.update(job.size(index))
    if all((folder / job.name(k)).is_file() for k in range(len(job))):
        names = [job.name(k) for k in range(len(job))]
        shards = [{"file": name, "sha256": digest_beside(folder / name)} for name in names]
        write_whole({path: as_json(job.manifest | {"shards": shards})})
        for left in folder.glob(LEFT_OVER):  # by processes that were killed
            left.unlink(missing_ok=True)
    return made


class _Shards(Dataset):
    """Item k writes shard k if it is not there, and says whether it did: a DataLoader is the process pool."""

    def __init__(self, folder: Path, renderer: Renderer, count: int, shard: int) -> None:
        self.folder, self.renderer, self.count, self.batches = folder, renderer, count, shard
        self.images = shard * renderer.spec.batch
        self.manifest = dict(format=FORMAT, count=count, images_per_shard=self.images, **renderer.describe())

    def __len__(self) -> int:
        return -(-self.count // self.images)

    def name(self, index: int) -> str:
        return f"shard_{index:06d}.safetensors"

    def size(self, index: int) -> int:
        return min(self.images, self.count - index * self.images)

    def __getitem__(self, index: int) -> tuple[int, bool]:
        path = self.folder / self.name(index)
        if path.is_file():
            if digest_beside(path) == sha256_of(path):
                return index, False
            warnings.warn(f"'{path}' is damaged and is made again.", stacklevel=2)
            path.unlink()
        with _one_thread():
            first = index * self.batches
            needed = -(-self.size(index) // self.renderer.spec.batch)
            parts = [self._encode(self.renderer.batch(first + k)) for k in range(needed)]
        tensors = {name: torch.cat([part[name] for part in parts])[: self.size(index)] for name in parts[0]}
        write_whole(with_digest(path, save(tensors)))
        return index, True

    @staticmethod
    def _encode(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "images": to_bytes(batch["image"]).cpu(),
            "masks": torch.from_numpy(np.packbits(batch["mask"].flatten(1).cpu().numpy(), axis=1)),
            "parameters": batch["parameters"].float().cpu(),
            "landmarks": batch["landmarks"].float().cpu(),
        }


@contextmanager
def _one_thread() -> Iterator[None]:
    """The order of sums, and with it the last bit, can depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_finished(folder: str | Path) -> bool:
    """Whether `build_corpus` came to its end here; if not, it goes on from where it was."""
    return (Path(folder) / MANIFEST).is_file() and _read_manifest(Path(folder))["shards"] is not None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CorpusError(f"There is no corpus in '{folder}': {MANIFEST} is missing; build one.")
    problem = f"'{path}' is damaged; delete it and build again"
    manifest = read_json(path, problem, CorpusError)
    with guarded(problem, CorpusError):
        shards, count, each = (manifest[name] for name in ("shards", "count", "images_per_shard"))
        sizes = [manifest["spec"]["size"], count, each, manifest["format"], *manifest["layout"].values()]
        if not all(type(size) is int and size >= 0 for size in sizes) or min(sizes[:3]) < 1:
            raise ValueError("its sizes are not whole numbers")
        names = [f"shard_{k:06d}.safetensors" for k in range(-(-count // each))]
        if shards is not None and [shard["file"] for shard in shards] != names:
            raise ValueError(f"{count} pictures need {len(names)} files, {each} in each")
        if shards is not None and not all(re.fullmatch("[0-9a-f]{64}", shard["sha256"]) for shard in shards):
            raise ValueError("a SHA-256 is none")
    return manifest


class Corpus(Dataset):
    """A finished corpus: item i is {image (3, S, S) in [0, 1], mask (1, S, S) bool, landmarks, parameters}.

    `verify` compares every shard with its SHA-256 first (about a second per gigabyte); otherwise only that
    all are there. Raises CorpusError for a corpus that is not finished, or names the shard that is missing,
    damaged or changed.
    """

    def __init__(self, folder: str | Path, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        if self.manifest["format"] != FORMAT or self.manifest["shards"] is None:
            raise CorpusError(
                f"The corpus in '{folder}' is not finished or of another version; call build_corpus again."
            )
        self._mapped: dict[int, dict[str, Tensor]] = {}  # shards, once: page faults are slow
        self.layout = ParameterLayout(**self.manifest["layout"])
        self.side = self.manifest["spec"]["size"]
        for shard in self.manifest["shards"]:
            path = self.folder / shard["file"]
            if not path.is_file():
                raise CorpusError(f"'{path}' is missing; call build_corpus again to restore it.")
            if verify and sha256_of(path) != shard["sha256"]:
                raise CorpusError(
                    f"'{path}' is damaged or was changed: its SHA-256 is not that in {MANIFEST}; "
                    "delete it and call build_corpus again."
                )

    def __len__(self) -> int:
        return int(self.manifest["count"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # to the processes of a DataLoader

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a for loop
        shard, row = divmod(index, self.manifest["images_per_shard"])
        if shard not in self._mapped:
            self._mapped[shard] = self._read(shard)
        names = ("images", "masks", "landmarks", "parameters")
        image, mask, landmarks, parameters = (self._mapped[shard][name][row].clone() for name in names)
        bits = torch.from_numpy(np.unpackbits(mask.numpy(), count=self.side**2)).bool()
        return {
            "image": image.float() / 255,
            "mask": bits.view(1, self.side, self.side),
            "landmarks": landmarks,
            "parameters": parameters,
        }

    def _read(self, shard: int) -> dict[str, Tensor]:
        path, each = self.folder / self.manifest["shards"][shard]["file"], self.manifest["images_per_shard"]
        problem = f"'{path}' cannot be read; delete it and call build_corpus again"
        with guarded(problem, CorpusError):
            tensors = read_tensors(path.read_bytes(), problem, CorpusError)
            shapes = {
                "images": (3, self.side, self.side),
                "masks": (-(-(self.side**2) // 8),),
                "landmarks": (68, 2),
                "parameters": (self.layout.size,),
            }
            for name, shape in shapes.items():
                wanted = (min(each, len(self) - shard * each), *shape)
                if tensors[name].shape != wanted:
                    raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, not {wanted}")
                if (tensors[name].dtype == torch.uint8) != (name in ("images", "masks")):
                    raise ValueError(f"{name} are {tensors[name].dtype}")
        return tensors
