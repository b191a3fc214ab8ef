"""Damaged files before every reader: whatever happens must have a name. Run in a process of its own.

    python tests/fuzz.py TARGET --seed 0 --count 200 --folder runs/fuzz

A target makes a folder of whole files. A trial damages one of them (flipped bits, cut, doubled, other numbers
and values, NaN in tensors) and reads: allowed are a FacelabError, or a result that makes sense. The
last line printed is JSON: the counts, and what was found. A process that dies is a finding, too: the line
before says at which trial. `tests/test_fuzz.py` runs all targets, `make fuzz COUNT=...` more of it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1] / "data_scripts"), str(Path(__file__).parent)]

from facelab.evaluation import test_sets
from facelab.evaluation.photo_truth import LANDMARK_FILE, photo_records
from facelab.evaluation.scoreboard import Row, evaluate, load_rows, save_row
from facelab.evaluation.test_set_file import FORMAT, pack, unpack
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.model.records import FaceRecord, Reconstruction
from facelab.photos import Face, load_photo
from facelab.photos.folders import PhotoFolder
from facelab.support.errors import FacelabError, NoFaceError
from facelab.support.files import sha256_of, write_whole
from facelab.synthetic.corpora import Corpus, CorpusSpec, build_corpus
from facelab.training import Run, load_checkpoint, save_checkpoint

SECONDS, GIBIBYTES = 20, 1.5  # that one trial may take, beyond what the process had before


class TooLongError(BaseException):
    """No Exception, so that no guard takes it for damage."""


def sensible(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), "NaN or infinity got through"


# ------------------------------------------------------------------------------------------------ damage

WILD = [None, True, -1, 0, 3, 10**30, -(10**30), 0.5, 1e308, "", "x", "../x", "\0", [], {}, [[]], {"a": {}}]
NUMBERS = [b"NaN", b"inf", b"-1", b"0", b"1e39", b"1e999", b"9" * 30, b"", b"0x1f", b"\xff\xfe", b"{", b","]


def other_json(data: bytes, random: np.random.Generator) -> bytes:
    """One value somewhere in it is replaced, removed or doubled; sometimes it is nested very deeply."""
    content = json.loads(data)
    if random.random() < 0.05:
        return b"[" * 100_000
    places: list[tuple[Any, Any]] = []
    stack = [content]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        places += [(node, key) for key in keys]
        stack += [node[key] for key in keys if isinstance(node[key], dict | list)]
    if not places:
        return b"null"
    node, key = places[random.integers(len(places))]
    kind = random.integers(4)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = WILD[random.integers(len(WILD))]
    return json.dumps(content).encode()


def other_tensors(data: bytes, random: np.random.Generator) -> bytes:
    """A valid file in which one tensor is missing, empty, of another type or shape, or has wild numbers."""
    tensors = load(data)
    name = sorted(tensors)[random.integers(len(tensors))]
    tensor = tensors.pop(name)
    floating = tensor.is_floating_point()
    kind = random.integers(6)
    if kind == 0 or tensor.numel() == 0:
        pass
    elif kind == 1:
        tensors[name] = tensor.flatten()[: tensor.numel() // 2].clone()
    elif kind == 2:
        tensors[name] = tensor[:0].clone()
    elif kind == 3:
        tensors[name] = tensor.bool() if random.random() < 0.5 else tensor.double()
    elif kind == 4:
        wild = [float("nan"), float("inf"), 1e38] if floating else [-1, 200, 10**6]
        changed = tensor.clone() if tensor.dtype in (torch.float32, torch.int64) else tensor.float()
        changed.view(-1)[random.integers(changed.numel())] = wild[random.integers(3)]
        tensors[name] = changed
    else:
        tensors[name] = tensor[None].clone()
    return save(tensors, metadata(data))


def metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def damaged(path: Path, data: bytes, random: np.random.Generator) -> bytes:
    """Another content for a file, never the same."""
    if path.suffix in (".json", ".jsonl") and random.random() < 0.6:
        lines = data.splitlines(keepends=True) if path.suffix == ".jsonl" else [data]
        line = random.integers(len(lines))
        lines[line] = other_json(lines[line], random) + b"\n" * (path.suffix == ".jsonl")
        return b"".join(lines)
    if path.suffix == ".safetensors" and random.random() < 0.5:
        return other_tensors(data, random)
    text = path.suffix in (".pts", ".obj", ".mtl", ".txt", ".lm3", ".abs", ".csv") or data[:1] in b"{["
    kind = random.integers(8) if not text else random.choice([0, 1, 2, 3, 7, 8, 8, 8, 8])
    # headers are short and say most: half of the damage goes there
    span = len(data) if random.random() < 0.5 else min(len(data), 256)
    at = int(random.integers(max(1, span)))
    length = int(random.integers(1, 1 + max(1, min(64, len(data) - at))))
    if kind == 0:
        return data[: int(random.integers(len(data)))] if len(data) else b"x"
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + data[at : at + length] * int(random.integers(2, 5)) + data[at + length :]
    if kind == 3:
        return data[:at] + random.bytes(length) + data[at + length :]
    if kind == 4:
        return data[:at] + bytes([0, 255][random.integers(2)] for _ in range(length)) + data[at + length :]
    if kind == 8:
        numbers = [*_tokens(data)]
        if numbers:
            first, last = numbers[random.integers(len(numbers))]
            return data[:first] + NUMBERS[random.integers(len(NUMBERS))] + data[last:]
    flipped = bytearray(data or b"x")
    for _ in range(int(random.integers(1, 9))):
        flipped[int(random.integers(max(1, min(len(flipped), span))))] ^= 1 << int(random.integers(8))
    return bytes(flipped)


@lru_cache(maxsize=64)
def _tokens(data: bytes) -> tuple[tuple[int, int], ...]:
    return tuple(match.span() for match in re.finditer(rb"[-+.\deE]*\d[-+.\deE]*", data))


# ----------------------------------------------------------------------------------------------- targets


class Target:
    """Whole files in `folder`, made once, and how they are read."""

    untouched: tuple[str, ...] = ()
    """files that are not damaged"""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trying = folder, False

    def make(self) -> None:
        raise NotImplementedError

    def read(self, changed: Path) -> None:
        raise NotImplementedError


TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


class Photos(Target):
    def make(self) -> None:
        random = np.random.default_rng(0)
        smooth = np.kron(random.integers(0, 255, (6, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        picture = Image.fromarray(smooth)
        kinds: dict[str, dict[str, Any]] = {
            "a.jpg": {}, "progressive.jpg": {"progressive": True}, "a.png": {}, "a.webp": {}, "a.tif": {},
            "lzw.tif": {"compression": "tiff_lzw"}, "a.gif": {}, "a.bmp": {}, "a.ppm": {}, "a.jp2": {},
            "a.avif": {}, "exif.jpg": {"exif": TURNED},
        }  # fmt: skip
        for name, options in kinds.items():
            try:
                picture.save(self.folder / name, **options)
            except (KeyError, OSError):  # a decoder that this Pillow was built without
                (self.folder / name).unlink(missing_ok=True)
        Image.fromarray(smooth[..., 0].astype(np.uint16) * 257).save(self.folder / "deep.png")
        picture.convert("CMYK").save(self.folder / "cmyk.jpg")
        picture.quantize(9).save(self.folder / "palette.png")
        Image.fromarray(smooth[..., 0].astype(np.float32) / 255).save(self.folder / "float.tif")

    def read(self, changed: Path) -> None:
        image = load_photo(changed)
        assert image.ndim == 3 and image.shape[0] == 3 and image.dtype == torch.float32
        sensible(image)
        assert float(image.min()) >= 0 and float(image.max()) <= 1


class FaceModels(Target):
    def make(self) -> None:
        seeded = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=seeded)

        model = MorphableModel(
            normal(5, 3), torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4]]), normal(2, 5, 3), normal(3, 5, 3),
            albedo_mean=normal(5, 4).abs(), albedo_basis=normal(2, 5, 4), details=normal(2, 5, 4),
            uv=normal(6, 2).sigmoid(), uv_triangles=torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 5]]),
            landmark_triangles=torch.zeros(68, dtype=torch.int64),
            landmark_weights=torch.full((68, 3), 1 / 3),
            mirror=torch.arange(5), contour_rows=torch.full((17, 2), -1), actions=normal(2, 3),
            action_names=("jawOpen", "smile"), people_identity=normal(4, 2), people_albedo=normal(4, 2),
        )  # fmt: skip
        model.save(self.folder / "checked.safetensors")
        model.save(self.folder / "bare.safetensors")
        (self.folder / "bare.safetensors.sha256").unlink()
        data = DEFAULT_MODEL.read_bytes()
        parts = load(data)
        for name in ("identity", "expression", "albedo"):
            for part in (f"{name}_basis", f"{name}_basis.scale", f"{name}_sigma"):
                if part in parts:
                    parts[part] = parts[part][:2].clone()
        for name in ("actions", "people_identity", "people_albedo"):
            parts[name] = parts[name][:, :2].clone()
        for name in ("details", "details.scale"):
            if name in parts:
                parts[name] = parts[name][:1].clone()
        (self.folder / "quads.safetensors").write_bytes(save(parts, metadata(data)))

    def read(self, changed: Path) -> None:
        path = changed.with_suffix("") if changed.suffix == ".sha256" else changed
        model = MorphableModel.load(path, subdivisions=0)
        drawn = model.sample(2, torch.Generator().manual_seed(0))
        vertices = model.vertices(drawn["identity"], drawn["expression"])
        if model.landmark_triangles.numel():
            sensible(model.landmarks(vertices))
        sensible(vertices, *model.albedo(drawn["albedo"]))


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


class Checkpoints(Target):
    def make(self) -> None:
        save_checkpoint(self.folder / "net.safetensors", small_network(), {"method": "none", "losses": [1.0]})
        # one whose card agrees with whatever it holds
        save_checkpoint(self.folder / "free.safetensors", small_network(), {"method": "none"})
        self.train()

    def train(self) -> Run:
        run = Run(self.folder / "run", device="cpu", every=1, progress=False)
        network = small_network()
        adam = torch.optim.Adam(network.parameters())
        state = dict(zip(("network", "optimizer"), run.setup(network, adam)))
        for _ in run.steps(state, 2):
            run.backward(state["network"](torch.ones(1, 3)).square().sum())
            state["optimizer"].step()
        sensible(*network.parameters())
        return run

    def read(self, changed: Path) -> None:
        if changed.suffix == ".ckpt":
            self.train()
            return
        if changed.stem == "free" and changed.suffix == ".safetensors":
            card = changed.with_suffix(".json")
            content = json.loads(card.read_text()) | {"sha256": sha256_of(changed)}
            card.write_text(json.dumps(content))
        weights, card_read = load_checkpoint(changed.with_suffix(".safetensors"))
        sensible(*weights.values())
        assert isinstance(card_read, dict)


class Corpora(Target):
    def make(self) -> None:
        spec = CorpusSpec("portrait", size=16, subdivisions=0, batch=2, background="black")
        build_corpus(self.folder, spec, 3, shard=1, progress=False)

    def read(self, changed: Path) -> None:
        for verify in (False, True):
            corpus = Corpus(self.folder, verify=verify)
            for item in corpus:
                sensible(*item.values())
                assert item["image"].shape == (3, 16, 16) and item["mask"].shape == (1, 16, 16)
                assert float(item["image"].min()) >= 0 and float(item["image"].max()) <= 1
            if changed.suffix == ".safetensors" and verify and self.trying:
                raise AssertionError("a changed shard was not noticed")


class Nobody:
    name = "nobody"

    def reconstruct(self, image: Tensor) -> Reconstruction:
        raise NoFaceError("there is no face")


class Evaluations(Target):
    def make(self) -> None:
        row = self.run()
        for k in range(3):
            values = {"geometry_mm": 1.5 + k}
            outcomes = [replace(outcome, values=values, failure=None) for outcome in row.outcomes]
            save_row(replace(row, method=f"method {k}", outcomes=outcomes), self.folder)

    def run(self) -> Row:
        records = [FaceRecord(f"r{k}", torch.zeros(3, 40, 40), groups={"skin": "dark"}) for k in range(4)]
        return evaluate(Nobody(), records, "set", measures={}, folder=self.folder)

    def read(self, changed: Path) -> None:
        if changed.suffix == ".jsonl":
            assert len(self.run().outcomes) == 4
        else:
            rows = load_rows(self.folder)
            assert all(len(row.outcomes) == 4 for row in rows), "pictures got lost"
            for row in rows:
                assert json.dumps([row.summary(), row.milliseconds], allow_nan=False)


class TestSets(Target):
    def make(self) -> None:
        loaded = MorphableModel.load(None, test_sets.SUBDIVISIONS)
        checked = test_sets.read_checked(DEFAULT_MODEL, True)
        cage, manifest = checked[0]["quads"].numpy(), {}
        tensors = load((test_sets.COMMITTED / "path_traced.safetensors").read_bytes())
        about = json.loads((test_sets.COMMITTED / "manifest.json").read_text())["path_traced"]
        if about.get("format", 1) == FORMAT:
            tensors = unpack(tensors, cage, "")
        count, end = len(tensors["vertices"]), int(tensors["image_ends"][1])
        small = {k: v[:2].clone() if len(v) == count else v[:end].clone() for k, v in tensors.items()}
        for name, kind, content in (("path_traced", 1, small), ("outside", FORMAT, pack(small, cage))):
            path = self.folder / f"{name}.safetensors"
            write_whole({path: save(content)})
            own = {"count": 2, "groups": about["groups"][:2], "sha256": sha256_of(path), "format": kind}
            manifest[name] = about | own
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        test_sets.COMMITTED = self.folder
        MorphableModel.load = classmethod(lambda *_: loaded)  # type: ignore[assignment, method-assign]
        test_sets.read_checked = lambda *_, **__: checked  # type: ignore[assignment]

    def read(self, changed: Path) -> None:
        name = "outside" if changed.stem == "outside" else "path_traced"
        if changed.suffix == ".safetensors" and self.trying:  # past the digest, as if whoever changed it knew
            manifest = json.loads((self.folder / "manifest.json").read_text())
            manifest[name]["sha256"] = sha256_of(changed)
            (self.folder / "manifest.json").write_text(json.dumps(manifest))
        for record in test_sets.load_test_set(name, 1, size=64):
            assert record.mesh is not None and record.diffuse is not None
            sensible(record.image, record.mesh.vertices, record.diffuse)


class Nose:
    """A detector that needs no network."""

    def detect(self, image: Tensor) -> list[Face]:
        points = torch.rand((68, 2), generator=torch.Generator().manual_seed(0)) * 100 + 30
        return [Face(torch.tensor([30.0, 30.0, 130.0, 130.0]), points, 1.0)]


class Folders(Target):
    untouched = ("a.jpg", "b.jpg")

    def make(self) -> None:
        pixels = np.full((160, 160, 3), 90, np.uint8)
        for name in self.untouched:
            Image.fromarray(pixels).save(self.folder / name)
        classes = np.zeros((160, 160), np.uint8)
        classes[30:130, 30:130] = 1
        Image.fromarray(classes).save(self.folder / "a.png")
        names, points = np.array(["a.jpg", "b.jpg"]), np.random.default_rng(0).uniform(30, 130, (2, 68, 2))
        np.savez(self.folder / LANDMARK_FILE, names=names, landmarks=points)
        PhotoFolder(self.folder, 32, self.folder / "cache.jsonl", Nose(), progress=False)

    def read(self, changed: Path) -> None:
        if changed.suffix == ".jsonl":
            photos = PhotoFolder(self.folder, 32, changed, Nose(), progress=False)
            assert len(photos) >= 2
            sensible(*(photos[k]["landmarks"] for k in range(len(photos))))
        else:
            for record in photo_records(self.folder, 32, self.folder / "elsewhere"):
                sensible(record.image, *([] if record.landmarks is None else [record.landmarks]))


class Datasets(Target):
    def make(self) -> None:
        from test_datasets import SETS

        for name, build in SETS.items():
            (self.folder / name).mkdir()
            build(self.folder / name)

    def read(self, changed: Path) -> None:
        from datasets import READERS
        from datasets.common import read_scan
        from datasets.facescape import read_json

        read_scan.cache_clear(), read_json.cache_clear()
        name = changed.relative_to(self.folder).parts[0]
        for record in READERS[name](self.folder / name):
            sensible(record.image)
            if record.mesh is not None:
                sensible(record.mesh.vertices)
            if record.landmarks is not None:
                sensible(record.landmarks)


class FaceFiles(Target):
    """Files of other face models, each for its converter."""

    def make(self) -> None:
        import pytest
        import test_converters as made

        head = made.grid_head()
        (self.folder / "points.txt").write_text(" ".join(map(str, head["landmarks"])))
        made.write_bfm2009(self.folder / "bfm2009.mat", head)
        made.write_bfm2017(self.folder / "bfm2017.h5", head)
        made.write_embedding(self.folder / "embedding.npy", head)
        arrays = made.flame_arrays(head)
        np.savez(self.folder / "flame.npz", **arrays)
        np.savez(self.folder / "gnm.npz", **made.gnm_arrays(head))
        made.gnm_landmarks(self.folder / "gnm.txt", head)
        with pytest.MonkeyPatch.context() as patch:
            made.write_flame_pickle(self.folder / "flame.pkl", arrays, patch)

    def read(self, changed: Path) -> None:
        import convert_bfm2009
        import convert_bfm2017
        import convert_flame
        import convert_gnm

        convert: dict[str, Callable[..., MorphableModel]] = {
            ".mat": convert_bfm2009.convert, ".h5": convert_bfm2017.convert, ".npz": convert_flame.convert,
            ".pkl": convert_flame.convert, "gnm.npz": convert_gnm.convert,
        }  # fmt: skip
        whose = {"points.txt": "bfm2009.mat", "embedding.npy": "flame.npz", "gnm.txt": "gnm.npz"}
        source = whose.get(changed.name, changed.name)
        points = {"flame": "embedding.npy", "gnm": "gnm.txt"}.get(Path(source).stem, "points.txt")
        model = convert.get(source, convert[Path(source).suffix])(self.folder / source, self.folder / points)
        sensible(*(part for part in vars(model).values() if isinstance(part, Tensor)))


TARGETS: dict[str, type[Target]] = {
    "photos": Photos, "face_models": FaceModels, "checkpoints": Checkpoints, "corpora": Corpora,
    "evaluations": Evaluations, "test_sets": TestSets, "folders": Folders, "datasets": Datasets,
    "face_files": FaceFiles,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- trials


def peak_gibibytes() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 2**30


def limit_memory(gibibytes: float) -> None:
    """Of the whole process; where the system can."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(gibibytes * 2**30),) * 2)
    except (ImportError, OSError, ValueError):
        pass


def trial(target: Target, whole: dict[Path, bytes], seed: int) -> tuple[str, str]:
    """What became of one damaged file: ("read" | "named" | a kind of finding, a description)."""
    random = np.random.default_rng(seed)
    path = sorted(whole)[random.integers(len(whole))]
    if target.folder.joinpath(path).name in target.untouched:
        return trial(target, whole, seed + 1_000_003)
    content = damaged(path, whole[path], random)
    path.write_bytes(content)
    before, what = peak_gibibytes(), f"{path.relative_to(target.folder)}, seed {seed}"
    try:
        target.read(path)
        outcome = ("read", "")
    except FacelabError as error:
        outcome = ("named", str(error)) if "\n" not in str(error) else ("several lines", what)
    except TooLongError:
        outcome = ("too long", what)
    except AssertionError as error:
        outcome = ("nonsense", f"{what}: {error}")
    except BaseException:
        outcome = ("raw", f"{what}: {traceback.format_exc()[-1500:]}")
    if peak_gibibytes() - before > GIBIBYTES:
        outcome = ("memory", what)
    for other, data in whole.items():
        if not other.is_file() or other.stat().st_size != len(data) or other.read_bytes() != data:
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_bytes(data)
    for left in set(target.folder.rglob("*")) - set(whole):
        if left.is_file():
            left.unlink()
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    faulthandler.enable()
    arguments.folder.mkdir(parents=True)
    target = TARGETS[arguments.target](arguments.folder)
    target.make()
    whole = {path: path.read_bytes() for path in target.folder.rglob("*") if path.is_file()}
    for path in whole:  # whole files are read, or nothing said below means anything
        target.read(path)
    target.trying = True
    limit_memory(3.0)

    def ring(*_: object) -> None:
        raise TooLongError

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, ring)
    counts: dict[str, int] = {}
    found = []
    for k in range(arguments.count):
        print(f"trial {k}", flush=True)
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        if hasattr(signal, "SIGALRM"):
            signal.alarm(SECONDS)
        kind, text = trial(target, whole, arguments.seed * 1_000_000 + k)
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
        counts[kind] = counts.get(kind, 0) + 1
        if kind not in ("read", "named"):
            found.append(f"{kind}: {text}")
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"counts": counts, "found": found}))


if __name__ == "__main__":
    main()
