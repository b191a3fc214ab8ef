"""A device that is not the CPU, on a CPU: it computes, and it tells who would wait for it.

    with watched() as watch:                     # whatever is on DEVICE is computed by the CPU, unseen
        step()
    assert not watch.waits

On a GPU the processor hands out work and does not wait for it, unless it wants a value (`.item()`, a branch,
a shape that depends on values) or copies between the two at once. DEVICE is PyTorch's place for a device that
somebody else has built: its tensors lie on the CPU, but nobody gets at them without being noticed, and an
operation on tensors of two devices is an error, as on a GPU.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "beside"
DEVICE = f"{NAME}:0"
ROOT = Path(__file__).parents[1]
# Operations whose result the processor has to see before it can go on: a number, or a shape
WANT_VALUES = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "unique_consecutive", "_unique2",
    "unique_dim", "equal", "is_nonzero", "_assert_async",
}  # fmt: skip
HALVED = (
    "conv2d",
    "conv_transpose2d",
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
)  # by autocast, as on a GPU


class DeviceTensor(Tensor):
    """A tensor on DEVICE; `inner` is where its values are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"


class Watch(TorchDispatchMode):
    """What has waited: (operation, file:line of the project)."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, str]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """Python numbers that become a tensor on DEVICE: made on the CPU, and copied."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "__getitem__" and isinstance(args[0], DeviceTensor):
            key = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(torch.tensor(k) if isinstance(k, list) else k for k in key)
        elif name in ("new_tensor", "tensor", "as_tensor"):
            device = kwargs.get("device") or (args[0].device if name == "new_tensor" else None)
            data = args[1] if name == "new_tensor" else args[0]
            if _is_there(device) and not isinstance(data, Tensor):
                dtype = kwargs.get("dtype") or (args[0].dtype if name == "new_tensor" else None)
                return torch.tensor(data, dtype=dtype).to(device)
        return function(*args, **kwargs)


_watches: list[Watch] = []


def _note(what: str) -> None:
    frames = reversed(traceback.extract_stack())
    project = [f for f in frames if f.filename.startswith(f"{ROOT}{os.sep}") and f.filename != __file__]
    mine = [f for f in project if "site-packages" not in f.filename]
    where = f"{Path(mine[0].filename).name}:{mine[0].lineno}" if mine else "?"
    for watch in _watches:
        watch.waits.append((what, where))


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _check(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Note what would wait; whether the result is on DEVICE."""
    name = function._schema.name.removeprefix("aten::")
    flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [isinstance(value, DeviceTensor) for value in flat]
    if name in ("_to_copy", "copy_"):
        source = flat[-1]
        to = there[0] if name == "copy_" else _is_there(kwargs.get("device", source.device))
        blocking = not (args[2:] and args[2] if name == "copy_" else kwargs.get("non_blocking", False))
        if isinstance(source, DeviceTensor) and not to:
            _note(f"{name} to the CPU")
        elif to and not isinstance(source, DeviceTensor) and blocking and (source.ndim or name != "copy_"):
            _note(f"{name} to the device, blocking")
        return to
    if not any(there):
        return _is_there(kwargs.get("device"))
    if name in WANT_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _note(name)
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        for index in (index for index in args[1] if index is not None):
            if index.dtype in (torch.bool, torch.uint8):
                _note(f"{name} by a mask")
            if not isinstance(index, DeviceTensor):
                _note(f"{name} by an index of the CPU")
        flat = [args[0], *args[2:3]]
    mixed = [value for value in flat if not isinstance(value, DeviceTensor) and value.ndim]
    if mixed:
        raise RuntimeError(f"{name}: tensors of two devices, {[tuple(value.shape) for value in flat]}")
    return True


def _compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    there = _check(function, args, kwargs)
    own = {k: (torch.device("cpu") if k == "device" and _is_there(v) else v) for k, v in kwargs.items()}
    inside, own = tree_map(lambda v: v.inner if isinstance(v, DeviceTensor) else v, (args, own))
    found = function(*inside, **own)
    if not there:
        return found
    name = function._schema.name.removeprefix("aten::")
    if name == "_to_copy" and found is inside[0]:
        found = found.clone()
    wrapped = tree_map(lambda v: DeviceTensor(v) if isinstance(v, Tensor) else v, found)
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


class _Backend:
    """What PyTorch asks of a device."""

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _halved(name: str) -> Any:
    """The operation as autocast runs it: float32 in the precision that was asked for."""
    operation = getattr(torch.ops.aten, name)
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any) -> Any:
        single = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(torch.get_autocast_dtype(NAME)) if single else value

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*tree_map(cast, args), **kwargs)

    return run


_library: list[torch.library.Library] = []


def _set_up() -> None:
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    _library.extend(torch.library.Library(name, "IMPL") for name in ("_", "aten"))
    _library[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in HALVED:
        _library[1].impl(name, _halved(name), "AutocastPrivateUse1")


def on_device(network: torch.nn.Module) -> torch.nn.Module:
    """A network with its parameters and buffers on DEVICE, in place."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(DeviceTensor(value.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = DeviceTensor(buffer)
    return network


@contextmanager
def watched() -> Iterator[Watch]:
    """Operations on DEVICE work inside, and are watched."""
    if not _library:
        _set_up()
    with Watch() as watch, Numbers():
        _watches.append(watch)
        try:
            yield watch
        finally:
            _watches.remove(watch)
