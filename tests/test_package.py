"""facelab as a package: what can be taken from it, how it prints, and a wheel without the repository."""

import ast
import dataclasses
import importlib
import os
import pkgutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import facelab
from facelab.model.morphable_model import MorphableModel
from facelab.support.errors import MissingPackageError
from facelab.support.tensors import LONGEST, one_line
from facelab.support.third_party import needs

ROOT = Path(__file__).resolve().parents[1]
INSIDE = """
import pathlib, sys, torch, facelab
from skimage.data import astronaut
from facelab import export_glb, load_test_set, reconstruct
folder, outside = pathlib.Path(facelab.__file__).parent, pathlib.Path(sys.argv[1])
assert outside not in folder.parents, folder
assert not any(pathlib.Path(entry or ".").resolve() == outside for entry in sys.path), sys.path
(fit,) = reconstruct(torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255)
assert fit.vertices().isfinite().all()
for name in ("in_model", "outside", "path_traced"):
    (record,) = load_test_set(name, 1)
    assert record.mesh is not None
from facelab.methods.inversefacenet import InverseFaceNet
from facelab.methods.mofa import MoFA
assert InverseFaceNet.load() and MoFA.load().reconstruct(record.image).mesh.vertices.isfinite().all()
print("reconstructed")
"""


# ----------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", facelab.__all__)
def test_every_name_exists(name: str) -> None:
    assert getattr(facelab, name).__name__ == name and name in dir(facelab)


def test_editors_are_told_the_same() -> None:
    (block,) = (n for n in ast.parse(Path(facelab.__file__).read_text()).body if isinstance(n, ast.If))
    told = {a.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert told == {name: f"facelab.{module}" for name, module in facelab._MODULES.items()}


def test_importing_is_quick_and_wrong_names_are_refused() -> None:
    code = "import sys, facelab; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules); facelab.render"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' in sys.modules"], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'rendr'"):
        facelab.rendr  # noqa: B018


def test_what_is_missing_names_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with pytest.raises(MissingPackageError, match=r"'not_there'.*facelab\[notebooks\]"), needs("notebooks"):
        import not_there.inside  # noqa: F401
    named = {
        node.args[0].value
        for path in (ROOT / "facelab").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needs"
    }
    assert named and named <= set(extras)


def test_the_viewer_without_matplotlib() -> None:
    code = "import sys; sys.modules['matplotlib'] = None\nimport facelab.course.viewer"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "MissingPackageError: The package 'matplotlib' is not installed" in ran.stderr


# ------------------------------------------------------------------------------------------------ repr


def kinds_with_tensors() -> list[type]:
    """Every public dataclass of facelab that has a tensor among its fields."""
    found = []
    for module in pkgutil.walk_packages(facelab.__path__, "facelab."):
        if "triton" not in module.name and "pytorch3d" not in module.name:
            for kind in vars(importlib.import_module(module.name)).values():
                own = getattr(kind, "__module__", "") == module.name and dataclasses.is_dataclass(kind)
                types = [str(part.type) for part in dataclasses.fields(kind)] if own else []
                if not getattr(kind, "__name__", "_").startswith("_") and (
                    {"Tensor", "Tensor | None", "<class 'torch.Tensor'>"} & set(types)
                ):
                    found.append(kind)
    return found


@pytest.mark.parametrize("kind", kinds_with_tensors())
def test_classes_with_tensors_print_on_one_line(kind: Any) -> None:
    made = kind.__new__(kind)
    for number, name in enumerate(kind.__dataclass_fields__):
        object.__setattr__(made, name, torch.rand(1000, 3 + number))
    text = repr(made)
    assert text.startswith(f"{kind.__name__}(") and "\n" not in text and len(text) <= LONGEST
    assert "(1000, 3)" in text and "tensor" not in text


def test_a_line_says_what_is_there() -> None:
    model = MorphableModel.load(subdivisions=0)
    text = repr(model)
    assert f"mean {tuple(model.mean.shape)}" in text and "\n" not in text

    @one_line
    class Some:
        def __init__(self, **parts: object) -> None:
            vars(self).update(parts)

    wide = {f"name{k}": torch.zeros(3) for k in range(100)}
    assert repr(Some()) == "Some()"
    assert repr(Some(a=None, b=torch.empty(0), c=[], d="")) == "Some()"
    assert repr(Some(a=torch.zeros(2, 3), b=torch.ones(2).long(), c=[1, 2], d="x\ny", e=True, f=Some())) == (
        "Some(a (2, 3), b (2,) int64, c 2 entries, d 'x\\ny', e True, f Some)"
    )
    assert len(repr(Some(**wide))) <= LONGEST and len(repr(Some(a="x" * 999))) < 100


# ----------------------------------------------------------------------------------------------- wheel


def test_a_wheel_works_from_any_folder(tmp_path: Path) -> None:
    """Built, installed beside the packages that are here but away from the repository, and used."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", str(tmp_path), str(copy_of_the_source(tmp_path / "source"))], check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    wanted = [path.relative_to(ROOT).as_posix() for path in tracked("facelab")]
    assert set(wanted) <= set(names), (
        "all of the package is in it: code, py.typed, face model, sets, networks"
    )
    assert "facelab/py.typed" in names
    assert not [name for name in names if not name.startswith("facelab")], "and nothing else"
    venv.create(tmp_path / "clean", with_pip=False, symlinks=os.name != "nt")
    place = {"base": str(tmp_path / "clean"), "platbase": str(tmp_path / "clean")}
    packages = Path(sysconfig.get_path("purelib", "venv", place))
    zipfile.ZipFile(wheel).extractall(packages)  # what installing a plain wheel is
    here = sysconfig.get_path("purelib")
    (packages / "others.pth").write_text(here + "\n")  # the other packages; its own .pth files are not read
    python = Path(sysconfig.get_path("scripts", "venv", place)) / Path(sys.executable).name
    away = tmp_path / "away"
    away.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        [python, "-c", INSIDE, str(ROOT)],
        cwd=away,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0 and "reconstructed" in ran.stdout, ran.stderr[-3000:]
    assert not list(away.iterdir()), "nothing is written where it runs"


def tracked(folder: str) -> list[Path]:
    """The files of a folder that belong to it: no caches."""
    return [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def copy_of_the_source(target: Path) -> Path:
    """What a wheel is built from, elsewhere: building leaves a folder `build` behind."""
    for path in [*tracked("facelab"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]:
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return target
