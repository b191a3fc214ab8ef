"""What every training loop shares; the loop itself stays where it can be read.

    run = Run("runs/ifn", device="cuda", precision="16-mixed", devices=4)      # or under torchrun
    network, optimizer = run.setup(network, optimizer)
    state = {"network": network, "optimizer": optimizer}
    for step in run.steps(state, total=75_000):                                # resumes where it was
        loss = criterion(network(images(step)), truth(step))
        run.backward(loss)                                                     # or DivergenceError
        optimizer.step(); optimizer.zero_grad()
    save_checkpoint("facelab/data/checkpoints/ifn.safetensors", network, card)

What a step computes must be a function of its number (its pictures too: see `batch_indices`); then a run that
was killed and started again ends with the same weights as one that was not.
"""

import hashlib
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from facelab.model.morphable_model import DEFAULT_MODEL
from facelab.support.errors import DivergenceError, ModelFileError, ParameterError
from facelab.support.files import (
    DATA,
    as_json,
    guarded,
    read_json,
    read_tensors,
    replacing,
    sha256_of,
    write_whole,
)

CHECKPOINTS = DATA / "checkpoints"
SCALE, SMALL = ".scale", 4096  # of rows kept as 8-bit numbers; tensors that are not worth it
Batch = TypeVar("Batch", dict[str, Tensor], tuple[Tensor, ...])
WINDOW = 20  # steps between two looks at the loss: each makes a GPU wait


class Run:
    """One training on one or more devices, through Lightning Fabric.

    Args:
        folder: for `last.ckpt`, written every `every` steps, whole or not at all, read without pickled code.
        device: "auto", "cpu", "cuda", ...
        precision: "32-true", "bf16-mixed" (on a CPU only where it has such numbers: without, a step takes
            three times as long), "16-mixed".
        devices, num_nodes: processes per machine, machines; under torchrun its numbers.
        explosion: the loss may be this many times the lowest so far, averaged over 20 steps.
        seed: of what networks draw themselves (dropout): torch's global generator is set before each step
            from (seed, step, process) and restored in the end.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "auto",
        precision: Any = "32-true",
        devices: int = 1,
        num_nodes: int = 1,
        every: int = 1000,
        explosion: float = 1e4,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.folder, self.every, self.explosion, self.seed = Path(folder), every, explosion, seed
        self.progress = progress
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        self.fabric = Fabric(
            accelerator=device,
            devices=int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun else devices,
            num_nodes=int(os.environ["GROUP_WORLD_SIZE"]) if under_torchrun else num_nodes,
            precision=_affordable(precision, device),
        )
        self.fabric.launch()
        self._recent: list[Tensor] = []
        self._written: tuple[int, int, int] | None = None
        if every < 1:
            raise ParameterError(f"A checkpoint is written every so many steps, at least 1, not {every}.")

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.fabric.device

    @property
    def path(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "last.ckpt"

    def provenance(self, seconds: float) -> dict[str, Any]:
        """What every card says of how its weights came about: the face model, the machine, the day."""
        name = platform.processor() or platform.machine()
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return {
            "face_model": sha256_of(DEFAULT_MODEL), "minutes": round(seconds / 60, 1), "hardware": name,
            "device": str(self.device), "processes": self.fabric.world_size,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip

    def setup(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Both wrapped by Fabric: moved to the device, gradients averaged over processes."""
        network, optimizer = self.fabric.setup(network, optimizer)
        return network, optimizer

    def backward(self, loss: Tensor) -> None:
        """Back-propagate. Raises DivergenceError, at the latest after 20 steps, for a loss that is no number
        or has exploded; nothing is saved after that."""
        self.fabric.backward(loss)
        self._recent.append(loss.detach().float())

    def steps(self, state: dict[str, Any], total: int) -> Iterator[int]:
        """The numbers of the steps that are still to do, with a progress bar.

        `state` holds what is saved: modules, optimizers, numbers, lists. It gets "step" and "losses" (the
        mean of every 20 steps). If there is a checkpoint in the folder the state continues from it.
        Raises ModelFileError if that is damaged or of another run.
        """
        state.setdefault("step", 0)
        state.setdefault("losses", [])
        if self.path.is_file():
            self._resume(state)
        hidden = not self.progress or self.fabric.global_rank > 0
        before = torch.get_rng_state()
        try:
            with tqdm(initial=state["step"], total=total, unit=" steps", disable=hidden) as bar:
                while state["step"] < total:
                    torch.manual_seed(_seed(self.seed, state["step"], self.fabric.global_rank))
                    yield state["step"]
                    state["step"] += 1
                    if len(self._recent) >= WINDOW or state["step"] == total:
                        self._look(state)
                        bar.set_postfix(loss=f"{state['losses'][-1]:.4g}", refresh=False)
                    if state["step"] % self.every == 0 or state["step"] == total:
                        self.save(state)
                    bar.update()
        finally:
            torch.set_rng_state(before)

    def _look(self, state: dict[str, Any]) -> None:
        if not self._recent:
            raise ParameterError("A step has to call run.backward(loss).")
        recent, self._recent = torch.stack(self._recent), []
        mean, step = float(recent.mean()), state["step"]
        lowest = min(float(recent[0]), *state["losses"], math.inf)
        if not math.isfinite(mean) or mean > self.explosion * lowest > 0:
            raise DivergenceError(
                f"Training has diverged before step {step}: the loss is {mean:.3g} after a lowest of "
                f"{lowest:.3g}. Start again from the last checkpoint with a lower learning rate."
            )
        state["losses"].append(mean)

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint; only the first process does."""
        if self._recent:
            self._look(state)
        if self.fabric.global_rank == 0:
            if _stamp(self.path) != self._written:
                raise ParameterError(
                    f"Another training writes to '{self.path}' as well; give each a folder of its own."
                )
            with replacing(self.path) as (temporary,):
                self.fabric.save(temporary, state)
            self._written = _stamp(self.path)
        else:
            self.fabric.save(self.path, state)  # writes nothing, but takes part
        self.fabric.barrier()

    def _resume(self, state: dict[str, Any]) -> None:
        problem = (
            f"'{self.path}' is damaged or of another run; delete it to start from the beginning, or give "
            "another folder"
        )
        self._written = _stamp(self.path)
        with guarded(problem, ModelFileError):
            self.fabric.load(self.path, state, weights_only=True)
            whole = isinstance(state["step"], int) and isinstance(state["losses"], list)
            if not whole or not _all_finite([value for value in state.values()]):
                raise ValueError("it has NaN or infinity, or lacks a part")


def _affordable(precision: Any, device: str) -> Any:
    """`precision`, but no bfloat16 on a CPU that would have to imitate it."""
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # x86's; private
    has_bfloat16 = any(getattr(torch.cpu, test, lambda: False)() for test in tests)
    return "32-true" if precision == "bf16-mixed" and on_cpu and not has_bfloat16 else precision


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when somebody else writes the file."""
    if not path.is_file():
        return None
    about = path.stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def _all_finite(value: Any) -> bool:
    """Of the numbers in nested lists, dictionaries and state dictionaries."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        value = value.state_dict()
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batch_indices(
    step: int, batch: int, count: int, seed: int = 0, rank: int = 0, processes: int = 1
) -> Tensor:
    """Which of `count` examples make up the batch (batch,) of a step, in a new random order each epoch.

    A function of its arguments alone; the processes of one step get different examples.
    """
    first = (step * processes + rank) * batch
    epochs = range(first // count, (first + batch - 1) // count + 1)
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(count) for epoch in epochs])
    return torch.from_numpy(order[first - epochs[0] * count :][:batch])


def ahead(
    make: Callable[[int], Batch], numbers: Iterable[int], device: torch.device, count: int = 2
) -> Iterator[Batch]:
    """The batches `make(number)` of `numbers`, in order, without gradients.

    On a GPU a thread makes `count` of them ahead, on a stream of its own: whatever making a batch waits for
    (files, JPEG, masks, a copy that is not pinned) no step waits for. On a CPU, which would only be shared,
    each is made when it is its turn. Raises what `make` raises, in the place of its batch.
    """
    if device.type == "cpu":
        for number in numbers:
            with torch.no_grad():
                batch = make(number)
            yield batch
        return
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def work(number: int) -> tuple[Batch, Any]:
        with torch.no_grad(), torch.cuda.stream(stream) if stream else nullcontext():
            return make(number), stream and stream.record_event()

    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[tuple[Batch, Any]]] = deque()
        try:
            for number in numbers:
                waiting.append(thread.submit(work, number))
                if len(waiting) > count:
                    yield _taken(*waiting.popleft().result())
            while waiting:
                yield _taken(*waiting.popleft().result())
        finally:
            thread.shutdown(cancel_futures=True)


def _taken(batch: Batch, made: Any) -> Batch:
    """Let the GPU, not the processor, wait for a batch of another stream, and keep its memory until used."""
    if made is not None:
        here = torch.cuda.current_stream()
        here.wait_event(made)
        for tensor in batch.values() if isinstance(batch, dict) else batch:
            tensor.record_stream(here)
    return batch


# --- weights that ship --------------------------------------------------------------------------------------


def save_checkpoint(path: str | Path, network: nn.Module, card: dict[str, Any]) -> None:
    """Weights as safetensors, and beside them a JSON card: how they came about, and their SHA-256.

    Large matrices and kernels are kept as 8-bit numbers with one scale a row (output channel), which rounds
    them by 1/254 of the row's largest at most; everything else as 16-bit floats.
    Raises ParameterError for weights that are not finite as such, OutputError.
    """
    path = Path(path)
    weights: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        kept = value.detach().cpu()
        if not kept.is_floating_point():
            weights[name] = kept.contiguous()
            continue
        if not bool(torch.isfinite(kept.half()).all()):
            raise ParameterError(f"The weights of {name} are not finite as 16-bit numbers; nothing is saved.")
        if kept.ndim < 2 or kept.numel() < SMALL:
            weights[name] = kept.half().contiguous()
            continue
        scale = kept.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        rows = kept.float() / scale.view(-1, *[1] * (kept.ndim - 1))
        weights |= {name: rows.round().to(torch.int8).contiguous(), name + SCALE: scale}
    data = save(weights)
    card = card | {"sha256": hashlib.sha256(data).hexdigest()}
    write_whole({path: data, path.with_suffix(".json"): as_json(card)})


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights in float32, card) of `save_checkpoint`; a bare name is looked for among the shipped ones.

    Raises ModelFileError if a file is missing, or the weights are not those of the card.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = CHECKPOINTS / f"{path}.safetensors"
    problem = f"The checkpoint '{path}' or its card is missing or damaged; get both again"
    card = read_json(path.with_suffix(".json"), problem)
    with guarded(problem, ModelFileError):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != card.get("sha256"):
        raise ModelFileError(f"'{path}' is damaged or was changed: its SHA-256 is not the card's.")
    weights = read_tensors(data, problem)
    with guarded(problem, ModelFileError):
        for name in [name for name in weights if name.endswith(SCALE)]:
            scale, rows = weights.pop(name), weights[name.removesuffix(SCALE)]
            weights[name.removesuffix(SCALE)] = rows.float() * scale.view(-1, *[1] * (rows.ndim - 1))
    return {n: v.float() if v.is_floating_point() else v for n, v in weights.items()}, card
