"""How a notebook of the course begins: parameters checked, a folder made, data found from anywhere."""

import ast
import difflib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from facelab.support.errors import ParameterError

Preset = TypeVar("Preset")
INJECTED = "# Parameters"  # how papermill begins the cell that it puts in


def begin(notebook: str, variables: Mapping[str, Any], presets: Mapping[str, Preset]) -> tuple[Preset, Path]:
    """Check the parameters of `notebook`; return the settings of the chosen preset and the results' folder.

    `variables` is the notebook's `globals()`: PRESET is one of `presets`, SEED in 0 ... 2³² − 1, DEVICE one
    that this machine has, OUT_DIR a folder ("": `runs/NOTEBOOK` of the repository), which is made; a relative
    one is relative to where the kernel runs. PHOTO ("": none) is a file and FACE a whole number, where the
    notebook has them. Raises ParameterError for other values, and for a parameter of papermill's that the
    notebook has not: papermill itself would run with the default in silence.
    """
    _check_names(variables.get("In", ()))
    preset, seed = variables["PRESET"], variables["SEED"]
    if not isinstance(preset, str) or preset not in presets:
        raise ParameterError(f"PRESET is {preset!r}; choose one of {', '.join(presets)}.")
    if not _whole(seed) or not 0 <= seed < 2**32:
        raise ParameterError(f"SEED is {seed!r}; give a whole number from 0 to 2**32 - 1.")
    if not _whole(variables.get("FACE", 0)):
        raise ParameterError(f"FACE is {variables['FACE']!r}; give a whole number, -1 for the largest face.")
    check_device(variables["DEVICE"])
    photo = variables.get("PHOTO", "")
    if not isinstance(photo, (str, Path)):
        raise ParameterError(f'PHOTO is {photo!r}; give the path of a picture, or "" for the astronaut.')
    folder = variables["OUT_DIR"]
    if not isinstance(folder, (str, Path)):
        raise ParameterError(f"OUT_DIR is {folder!r}; give the path of a folder.")
    return presets[preset], make_folder(folder or repository("notebooks").parent / "runs" / notebook)


def check_device(name: Any) -> torch.device:
    """`name` ("cpu", "cuda", "cuda:1") as a device; ParameterError if this machine cannot compute there."""
    try:
        device = torch.device(str(name))  # PyTorch would take a number as well, and bytes
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ImportError) as error:
        raise ParameterError(
            f'DEVICE is {name!r}, which PyTorch cannot use on this machine; give "cpu", or see that '
            "torch.cuda.is_available() is true."
        ) from error
    return device


def make_folder(folder: str | Path) -> Path:
    """`folder`, with ~ for the home, as an absolute path, made if need be; ParameterError if nothing can be
    written there."""
    try:
        path = Path(folder).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of nobody; ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ParameterError(
            f"The results cannot be written to {str(folder)!r} ({reason}); name a folder of your own."
        ) from error


def repository(part: str = "") -> Path:
    """A file or folder of the repository ("results/mofa_training.json"), wherever a notebook runs.

    Looked for beside the installed package, then in the present folder and those above it. Raises
    ParameterError if it is nowhere.
    """
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[2], here, *here.parents):
        if (folder / "notebooks" / "src").is_dir() and (folder / part).exists():
            return folder / part
    raise ParameterError(
        f"{part!r} of facelab's repository is neither beside the installed package nor above {str(here)!r}; "
        "run the notebook inside a clone, or install with `pip install --editable`."
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_names(executed: Any) -> None:
    """Refuse what papermill set and no cell before had: `executed` are the sources of the cells that ran."""
    known: set[str] = set()
    for source in executed:
        names = _assigned(source)
        if source.lstrip().startswith(INJECTED):
            for name in sorted(names - known):
                near = difflib.get_close_matches(name.upper(), known, 1)
                wanted = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
                raise ParameterError(f"This notebook has no parameter {name!r}; {wanted}")
        known |= {name for name in names if name.isupper()}


def _assigned(source: str) -> set[str]:
    """The names that a cell assigns at its top level; none for one with magics."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return set()
    targets = [t for s in body if isinstance(s, ast.Assign) for t in s.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}
