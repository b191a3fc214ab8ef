"""Files are there whole or not at all: full disks, places that cannot be written to, kills, two writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

from matlab import read_matlab

from facelab.evaluation.metrics import frechet_distance
from facelab.evaluation.scoreboard import Outcome, Row, evaluate, load_rows, save_row
from facelab.export import TexturedMesh, export_glb, export_obj
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import FaceRecord
from facelab.support.errors import DatasetError, ModelFileError, OutputError, ParameterError
from facelab.support.files import (
    append_line,
    as_json,
    guarded,
    read_npz,
    replacing,
    with_digest,
    write_whole,
)
from facelab.synthetic.corpora import CorpusSpec, build_corpus
from facelab.training import Run, save_checkpoint


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Every writer of the library: writes into `folder` what depends on `version`.


def model(folder: Path, version: int) -> None:
    triangles = torch.tensor([[0, 1, 2]])
    MorphableModel(torch.full((400, 3), float(version)), triangles).save(folder / "model.safetensors")


def checkpoint(folder: Path, version: int) -> None:
    network = nn.Linear(60, 60)
    nn.init.constant_(network.weight, float(version))
    save_checkpoint(folder / "net.safetensors", network, {"version": version})


def mesh(version: int) -> TexturedMesh:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, version, 0]])
    texture = torch.rand((3, 32, 32), generator=torch.Generator().manual_seed(version))
    triangles, uv = torch.tensor([[0, 1, 2]]), points[:, :2].clamp(0, 1)
    return TexturedMesh(points, torch.eye(3), triangles, uv, texture, None)


def glb(folder: Path, version: int) -> None:
    export_glb(mesh(version), folder / "face.glb")


def obj(folder: Path, version: int) -> None:
    export_obj(mesh(version), folder / "face.obj")


def a_row(version: int) -> Row:
    outcomes = [Outcome(f"p{k}", {}, 1.0, {"geometry_mm": float(version)}) for k in range(40)]
    return Row("method", "set", "quick", version, "a CPU", "2", "0123", "abc", "2026-01-01", outcomes)


def row(folder: Path, version: int) -> None:
    save_row(a_row(version), folder)


def training(folder: Path, version: int) -> None:
    run = Run(folder, device="cpu", every=1, progress=False)
    network, optimizer = run.setup(module := nn.Linear(60, 60), torch.optim.SGD(module.parameters(), 0.1))
    for _ in run.steps({"network": network, "optimizer": optimizer}, version):
        run.backward(network(torch.ones(1, 60)).square().mean())
        optimizer.step()


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "model": model, "checkpoint": checkpoint, "glb": glb, "obj": obj, "row": row, "training": training,
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_destroys_nothing(name: str, tmp_path: Path) -> None:
    """A limit of 600 bytes a file stands for the full disk: writing fails half-way."""
    import resource

    WRITERS[name](tmp_path, 1)
    before = contents(tmp_path)
    assert any(len(data) > 600 for data in before.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        with pytest.raises(OutputError, match="cannot be written"):
            WRITERS[name](tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(tmp_path) == before, "the old files are whole, and nothing is left behind"
    WRITERS[name](tmp_path, 2)
    assert contents(tmp_path) != before


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written_to_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        WRITERS[name](tmp_path / "file" / "below", 1)
    assert contents(tmp_path) == {"file": b"in the way"}


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_folder_is_named(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError):
            WRITERS[name](tmp_path, 1)
    finally:
        tmp_path.chmod(0o700)


def test_folders_and_devices_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write_whole({tmp_path / "taken": b"x"})
    if Path("/dev/null").exists():
        with pytest.raises(OutputError, match="device"):
            write_whole({Path("/dev/null"): b"x"})
        assert not Path("/dev/null").is_file()


def test_a_link_keeps_pointing(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    try:
        (tmp_path / "link").symlink_to(tmp_path / "there")
    except OSError:
        pytest.skip("links need a right here")
    write_whole({tmp_path / "link": "new"})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"


def test_files_that_belong_together_change_together(tmp_path: Path) -> None:
    write_whole(with_digest(tmp_path / "a", b"old"))
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a", tmp_path / "a.sha256") as (one, two):
        one.write_bytes(b"new")
        raise KeyboardInterrupt
    with pytest.raises(OutputError), replacing(tmp_path / "a", tmp_path / "a.sha256") as (one, two):
        one.write_bytes(b"new")  # the second is missing
        two.read_bytes()
    assert contents(tmp_path) == before


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_files
from tqdm import tqdm
version = 1
while True:
    test_files.WRITERS[sys.argv[2]](Path(sys.argv[3]), version)
    print(version, flush=True)
    version += 1
"""


@pytest.mark.parametrize("name", ["row", "training"])
def test_a_kill_leaves_a_whole_file(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), name, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
        if name == "row":
            (read,) = load_rows(tmp_path)
            assert read == a_row(read.seed)
        else:
            training(tmp_path, 3)  # is read, goes on
    WRITERS[name](tmp_path, 4)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".csv", ".lock", ".ckpt", ".tmp")]


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, device="cpu", every=1, progress=False)
    network, optimizer = run.setup(module := nn.Linear(2, 2), torch.optim.SGD(module.parameters(), 0.1))
    with pytest.raises(ParameterError, match="Another training"):
        for step in run.steps({"network": network, "optimizer": optimizer}, 4):
            run.backward(network(torch.ones(1, 2)).square().mean())
            if step == 1:
                (tmp_path / "last.ckpt").unlink()
                training(tmp_path, 1)
    training(tmp_path, 3)  # the other's is whole


def test_names_that_look_alike_do_not_share_a_row(tmp_path: Path) -> None:
    from dataclasses import replace

    names = ["MoFA", "mofa", "MoFA+", "μοφα", "顔", "顔2", "mofa 2", 'a "b", c', "two\nlines\r", "\udcff", ""]
    for test_set in names:
        for name in names:
            save_row(replace(a_row(1), method=name, test_set=test_set), tmp_path)
    found = {(row.test_set, row.method) for row in load_rows(tmp_path)}
    assert found == {(test_set, name) for test_set in names for name in names}
    files = [path.name.lower() for path in tmp_path.glob("*.csv")]
    assert len(set(files)) == len(names), "nor do test sets share a file, also where case is lost"


def test_an_evaluation_on_a_full_disk_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fuzz import Nobody

    records = [FaceRecord(f"r{k}", torch.zeros(3, 40, 40)) for k in range(3)]
    calls = []

    def full(path: Path, line: str) -> None:
        calls.append(line)
        if len(calls) == 2:
            with path.open("a") as file:
                file.write(line[:9])
            raise OutputError("the disk is full")
        append_line(path, line)

    monkeypatch.setattr("facelab.evaluation.scoreboard.append_line", full)
    with pytest.raises(OutputError):
        evaluate(Nobody(), records, "set", measures={}, folder=tmp_path)
    monkeypatch.undo()
    found = evaluate(Nobody(), records, "set", measures={}, folder=tmp_path)
    assert [outcome.name for outcome in found.outcomes] == ["r0", "r1", "r2"]


# --- values -------------------------------------------------------------------------------------------------


def test_nan_ends_before_native_code(tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        cloud = torch.randn((9, 3), generator=torch.Generator().manual_seed(0))
        wrong = cloud.clone()
        wrong[4, 1] = bad
        for pair in ((cloud, wrong), (wrong, cloud)):
            with pytest.raises(ParameterError, match="NaN"):
                frechet_distance(*pair)
        with pytest.raises(ParameterError, match="JSON"):
            as_json({"a": [1.0, bad]})
        points = torch.full((4, 3), bad)
        MorphableModel(points, torch.tensor([[0, 1, 2]])).save(tmp_path / "m.safetensors")
        with pytest.raises(ModelFileError, match="NaN"):
            MorphableModel.load(tmp_path / "m.safetensors")


def test_edge_values_of_coefficients() -> None:
    face = MorphableModel.load(subdivisions=0).truncate(4, 3, 2)
    count = len(face.mean)
    for lead in ((), (0,), (3,), (2, 0), (2, 3)):
        vertices = face.vertices(torch.zeros(*lead, 4), torch.zeros(*lead, 3))
        assert vertices.shape == (*lead, count, 3)
        assert face.albedo(torch.zeros(*lead, 2))[0].shape == (*lead, count, 3)
        assert face.landmarks(vertices).shape == (*lead, 68, 3)
    truth = face.vertices(torch.tensor([1.0, -2.0, 0.5, 0.25]))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):  # all four numbers are exact in each
        assert torch.equal(face.vertices(torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=dtype)), truth)


def test_a_checkpoint_every_no_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="at least 1"):
        Run(tmp_path, device="cpu", every=0)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**28, np.float64))  # 2 GiB in 2 MB
    with pytest.raises(ModelFileError, match="1 GiB"):
        read_npz(tmp_path / "bomb.npz", "no")


def test_a_guard_passes_named_errors_and_interrupts() -> None:
    with pytest.raises(OutputError, match=r"^mine$"), guarded("x", ModelFileError):
        raise OutputError("mine")
    with pytest.raises(KeyboardInterrupt), guarded("x", ModelFileError):
        raise KeyboardInterrupt
    said = r"^x \(there is not enough memory\)\.$"
    with pytest.raises(ModelFileError, match=said), guarded("x", ModelFileError):
        raise MemoryError


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_files_are_read_as_scipy_reads_them(compressed: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    types = ("f8", "f4", "u1", "i2", "i4")
    arrays = {f"of_{t}": (100 * random.uniform(0, 1, (3, 4, 2))).astype(t) for t in types}
    others = {"text": "abc", "cell": np.array([1, "a"], object), "complex": np.ones(3) * 1j, "s": {"a": 1.0}}
    scipy.io.savemat(tmp_path / "a.mat", arrays | others | {"one": 3}, do_compression=compressed)
    read = read_matlab(tmp_path / "a.mat", (*arrays, *others, "one"), "no", DatasetError)
    assert set(read) == {*arrays, "one"} and read["one"] == 3
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    data = (tmp_path / "a.mat").read_bytes()
    for cut in (0, 5, 127, 130, 140, len(data) // 2, len(data) - 3):
        (tmp_path / "a.mat").write_bytes(data[:cut])
        try:
            short = read_matlab(tmp_path / "a.mat", tuple(arrays), "no", DatasetError)
        except DatasetError:
            continue
        assert len(short) < len(arrays) or cut >= len(data) - 8


def test_a_corpus_that_was_killed_goes_on(tmp_path: Path) -> None:
    spec = CorpusSpec("portrait", size=16, subdivisions=0, batch=2, background="black")
    made = build_corpus(tmp_path, spec, 4, shard=1, progress=False)
    whole = contents(tmp_path)
    manifest = json.loads((tmp_path / "corpus.json").read_text()) | {"shards": None}
    (tmp_path / "corpus.json").write_text(json.dumps(manifest))
    (tmp_path / made[1]).unlink()
    assert build_corpus(tmp_path, spec, 4, shard=1, progress=False) == [made[1]]
    assert contents(tmp_path) == whole
