"""Run: resume equals no interruption, divergence is stopped; checkpoints that ship are checked."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from facelab.support.errors import DivergenceError, FacelabError, ModelFileError, ParameterError
from facelab.training import Run, batch_indices, load_checkpoint, save_checkpoint

TRUTH = torch.tensor([[1.0, -2.0, 0.5]])


def fresh() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=generator)
    return network


def train(folder: Path, total: int, rate: float = 0.02, stop: int | None = None, every: int = 10) -> dict:
    """Learn a linear function; `stop` leaves the loop as a kill would."""
    run = Run(folder, "cpu", every=every, progress=False)
    network = fresh()
    network, optimizer = run.setup(network, torch.optim.Adam(network.parameters(), rate))
    state = {"network": network, "optimizer": optimizer}
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    for step in run.steps(state, total):
        if step == stop:
            break
        x = data[batch_indices(step, 8, len(data))]
        run.backward((network(x) - x @ TRUTH.T).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return state


def weights(state: dict) -> Tensor:
    return torch.cat([p.detach().flatten() for p in state["network"].parameters()])


def test_resume_equals_no_interruption(tmp_path: Path) -> None:
    """Dropout, Adam's moments and the order of examples included; killed between two checkpoints."""
    whole = train(tmp_path / "whole", 60)
    train(tmp_path / "parts", 60, stop=37)
    parts = train(tmp_path / "parts", 60)
    assert torch.equal(weights(whole), weights(parts))
    assert whole["losses"] == parts["losses"] and parts["step"] == 60
    assert whole["losses"][-1] < 0.5 * whole["losses"][0]
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_global_generator_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    drawn = []
    run = Run(tmp_path, "cpu", progress=False, every=2)
    for _ in run.steps({}, 3):
        drawn.append(float(torch.rand(())))
        run.backward(torch.ones(1, requires_grad=True).sum())
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(drawn)) == 3


def test_more_steps_continue(tmp_path: Path) -> None:
    train(tmp_path / "a", 40)
    assert torch.equal(weights(train(tmp_path / "a", 60)), weights(train(tmp_path / "b", 60)))


def test_divergence_is_stopped_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="learning rate"):
        train(tmp_path, 400, rate=1e4, every=1000)
    assert not (tmp_path / "last.ckpt").exists()
    assert issubclass(DivergenceError, FacelabError)
    run = Run(tmp_path, "cpu", progress=False)
    state: dict = {}
    with pytest.raises(DivergenceError, match="nan"):
        for _ in run.steps(state, 100):
            run.backward(torch.tensor(float("nan"), requires_grad=True))
    assert state["step"] == 20


def test_damaged_or_foreign_run(tmp_path: Path) -> None:
    train(tmp_path, 10)
    data = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match="delete it"):
        train(tmp_path, 20)
    torch.save({"network": print}, tmp_path / "last.ckpt")  # code is not run
    with pytest.raises(ModelFileError, match="delete it"):
        train(tmp_path, 20)


def test_batches_cover_each_epoch_once() -> None:
    seen = torch.cat([batch_indices(step, 7, 21, seed=2) for step in range(6)])
    assert sorted(seen[:21].tolist()) == list(range(21)) == sorted(seen[21:].tolist())
    assert seen[:21].tolist() != seen[21:].tolist()
    assert len(batch_indices(5, 32, 10)) == 32  # more than there are
    shared = torch.cat([batch_indices(0, 7, 21, seed=2, rank=r, processes=3) for r in range(3)])
    assert torch.equal(shared, seen[:21])


def test_checkpoint_round_trip_and_tampering(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, network, {"samples": 12})
    tensors, card = load_checkpoint(path)
    assert card["samples"] == 12 and tensors["1.num_batches_tracked"].dtype == torch.int64
    network.load_state_dict(tensors)
    torch.testing.assert_close(network[0].weight, tensors["0.weight"], atol=1e-3, rtol=1e-3)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="SHA-256"):
        load_checkpoint(path)
    with pytest.raises(ModelFileError, match="missing"):
        load_checkpoint("no such checkpoint")
    nn.init.constant_(network[0].weight, 1e6)  # too large for float16
    with pytest.raises(ParameterError, match="16-bit"):
        save_checkpoint(path, network, {})


SCRIPT = """
import sys, torch
from facelab.training import Run, batch_indices
torch.set_num_threads(1)
run = Run(sys.argv[1], "cpu", progress=False)
network = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(network.weight)
network, optimizer = run.setup(network, torch.optim.SGD(network.parameters(), 1.0))
for step in run.steps({"network": network, "optimizer": optimizer}, 1):
    rank, processes = run.fabric.global_rank, run.fabric.world_size
    x = batch_indices(step, 2, 4, rank=rank, processes=processes).float()[:, None]
    run.backward(network(x).mean())
    optimizer.step()
assert processes == 2
assert abs(float(network.module.weight) + 1.5) < 1e-6, float(network.module.weight)
"""


def test_large_matrices_are_kept_in_eight_bits_a_row(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 200, 3), nn.Linear(100, 90), nn.BatchNorm1d(7))
    with torch.no_grad():
        network[1].weight *= torch.logspace(-4, 2, 90)[:, None]  # each row has its own scale
        network[1].weight[5] = 0
    save_checkpoint(path := tmp_path / "net.safetensors", network, {})
    read, _ = load_checkpoint(path)
    known = network.state_dict()
    size = sum(p.numel() for p in network.parameters())
    assert set(read) == set(known) and path.stat().st_size < 1.3 * size
    for name, value in known.items():
        rows = value.float().reshape(len(value), -1) if value.ndim else value.float().reshape(1, 1)
        allowed = rows.abs().amax(1, keepdim=True) / 253 + 1e-12 if value.ndim > 1 else 1e-3 * rows.abs()
        assert ((read[name].float().reshape(rows.shape) - rows).abs() <= allowed).all(), name
    again = nn.Sequential(nn.Conv2d(3, 200, 3), nn.Linear(100, 90), nn.BatchNorm1d(7))
    again.load_state_dict(read)
    save_checkpoint(tmp_path / "again.safetensors", again, {})
    for name, value in load_checkpoint(tmp_path / "again.safetensors")[0].items():
        torch.testing.assert_close(value, read[name], rtol=1e-3, atol=1e-9)


def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    """Examples 0..3 between two processes: the gradient is their mean, 1.5, in both."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "last.ckpt").is_file()
