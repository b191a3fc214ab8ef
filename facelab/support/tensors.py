"""Tensors looked at, and sent to a GPU without the processor waiting for it, as a plain copy does.

light = send(drawn, image)                     # random numbers of the CPU, beside `image`
grey = (image * constant(image, 0.3, 0.6, 0.1)[:, None, None]).sum(-3)
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

Class = TypeVar("Class", bound=type)
LONGEST = 300
_constants: dict[tuple[object, ...], Tensor] = {}


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


def constant(like: Tensor, *values: float, dtype: torch.dtype | None = None) -> Tensor:
    """The values as a vector `(N,)` on the device of `like`, of its type or `dtype`. Made once and shared:
    never change it in place."""
    key = (values, dtype or like.dtype, like.device)
    if key in _constants:
        return _constants[key]
    with torch.inference_mode(False):
        made = torch.tensor(values, dtype=dtype or like.dtype, device=like.device)
    if not torch._C._functorch.is_functorch_wrapped_tensor(made):  # of one transformation only
        _constants[key] = made
    return made


def send(values: Tensor, like: Tensor | torch.device | str) -> Tensor:
    """`values` of the CPU on the device of `like`; if that is a tensor, in its type, too, whole numbers and
    truth values excepted. The copy is in order with what the device does, and nobody waits for it."""
    if not isinstance(like, Tensor):
        return values.to(like, non_blocking=True)
    dtype = like.dtype if values.is_floating_point() else values.dtype
    return values.to(like.device, dtype, non_blocking=True)


def one_line(kind: Class) -> Class:
    """A class decorator: `repr` names the attributes that are there, and what they are."""

    def represent(self: Any) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        parts = [f"{name} {said}" for name, value in shown.items() if (said := _said(value))]
        text = f"{kind.__name__}({', '.join(parts)})"
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}…)"

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
