"""How values with tensors in them look when they are printed: one line, with shapes instead of numbers."""

from typing import Any, TypeVar

import torch
from torch import Tensor

Class = TypeVar("Class", bound=type)
LONGEST = 300


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
