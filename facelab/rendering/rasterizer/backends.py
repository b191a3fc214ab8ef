"""Choosing among numba, Triton, PyTorch3D and plain PyTorch, by what is installed and the device."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

from facelab.support.errors import FacelabError

ALL = ("numba", "triton", "torch", "pytorch3d")
FORMULAS = ("numba", "triton", "torch")  # those that interpolate
BEST_FIRST = {"cpu": ("numba", "torch"), "cuda": ("triton", "pytorch3d", "torch")}


@cache
def _load(name: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(f".{name}_backend", __package__)
    except (ImportError, OSError, RuntimeError) as error:  # missing, unfit, no cache folder
        return error


def choose(name: str, device: torch.device, known: tuple[str, ...] = ALL) -> ModuleType:
    """The module of a backend by name; "auto" is the best installed one for the device.

    Raises FacelabError for an unknown name, a backend that is not installed or cannot use the device.
    """
    if name == "auto":
        wanted = [best for best in BEST_FIRST.get(device.type, ("torch",)) if best in known]
        return next(module for best in wanted if isinstance(module := _load(best), ModuleType))
    if name not in known:
        raise FacelabError(f"There is no backend {name!r} for this; choose auto, {', '.join(known)}.")
    module = _load(name)
    if isinstance(module, Exception):
        raise FacelabError(f"The backend {name!r} fails here ({module}); install it or choose 'auto'.")
    if name == "numba" and device.type != "cpu":
        raise FacelabError(f"The numba backend needs tensors on the CPU, not on {device}; choose 'auto'.")
    if name == "triton" and device.type != "cuda" and not module.INTERPRETED:
        raise FacelabError(f"The triton backend needs tensors on a GPU, not on {device}; choose 'auto'.")
    return module
