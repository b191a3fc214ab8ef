"""Tensors looked at: whether their values are finite, and how objects that hold them are printed."""

from typing import Any, TypeVar

import torch
from torch import Tensor

Class = TypeVar("Class", bound=type)
LONGEST = 300


def finite(*tensors: Tensor) -> bool:
    """Whether all values are finite, as far as looking costs nothing: True for tensors of a GPU.

    Looking there would make every step of a training wait for the device; NaN shows in its loss
    (`Run.backward`), and every method looks at its answer once.
    """
    return all(
        tensor.device.type != "cpu"
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # values cannot be looked at
        or bool(torch.isfinite(tensor).all())
        for tensor in tensors
    )


def one_line(kind: Class) -> Class:
    """A class decorator: `repr` names the attributes that are there, and what they are."""

    def represent(self: Any) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        parts = [f"{name} {said}" for name, value in shown.items() if (said := _said(value))]
        text = f"{kind.__name__}({', '.join(parts)})"
        return text if len(text) <= LONGEST else f"{text[:LONGEST - 2]}…)"

    setattr(kind, "__repr__", represent)  # noqa: B010, mypy takes the assignment for a mistake
    return kind


def _said(value: Any) -> str:
    """What a value is, in a few words without a line break; "" if it is nothing."""
    if isinstance(value, Tensor):
        kind = "" if value.dtype == torch.float32 else f" {str(value.dtype).removeprefix('torch.')}"
        return f"{tuple(value.shape)}{kind}" if value.numel() else ""
    if value is None or (isinstance(value, dict | list | tuple | str) and not value):
        return ""
    if isinstance(value, dict | list | tuple):
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
    if isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:58]}…'"
    return type(value).__name__
