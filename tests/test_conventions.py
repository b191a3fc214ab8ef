"""docs/conventions.md, line by line, and the rules of the source that keep it true.

Every row of the page's table has a test here that is named after it.
"""

import ast
import inspect
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import facelab.support.errors
from facelab.geometry.camera import Camera, PerspectiveCamera, WeakPerspectiveCamera
from facelab.geometry.mesh import triangle_normals, vertex_normals
from facelab.geometry.rotations import euler_to_matrix
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.illumination import (
    SphericalHarmonicsLight,
    ambient_to_sh,
    directional_to_sh,
    sh_basis,
)
from facelab.rendering.image_formation import render, shade_vertices
from facelab.rendering.rasterizer import interpolate, rasterize

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "facelab"
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# The rooms, folders or single files: each may import those that stand before it.
ROOMS = [
    "support",
    "geometry",
    "rendering",
    "photos",
    "model",
    "recognition",
    "networks",
    "losses",
    "synthetic",
    "training",
    "methods",
    "evaluation",
    "export",
    "course",
]


def cameras() -> list[Camera]:
    return [PerspectiveCamera.from_fov(24.0, 240, 240), WeakPerspectiveCamera.frontal(1.0, 240, 240)]


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


@pytest.fixture(scope="module")
def landmarks(model: MorphableModel) -> Tensor:
    return model.landmarks(model.mean)


# The page


def table_rows() -> list[str]:
    return re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs" / "conventions.md").read_text(), re.MULTILINE)


def test_every_line_of_the_page_has_a_test() -> None:
    rows = table_rows()
    assert len(rows) > 10
    for row in rows:
        assert f"test_{row.replace(' ', '_')}" in globals(), f"no test for {row!r}"


def test_every_name_on_the_page_exists() -> None:
    page = (ROOT / "docs" / "conventions.md").read_text()
    assert (PACKAGE / "rendering" / "rasterizer" / "pytorch3d_backend.py").exists()
    for module, name in re.findall(r"`(camera|illumination)\.(\w+)`", page):
        (path,) = PACKAGE.rglob(f"{module}.py")
        text = path.read_text()
        assert f"def {name}(" in text, f"{module}.{name}"


# The table


def test_model_space(model: MorphableModel, landmarks: Tensor) -> None:
    nose, chin, brow = landmarks[30], landmarks[8], landmarks[19:25].mean(0)
    image_left_eye, image_right_eye = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    assert image_right_eye[0] > 10 > -10 > image_left_eye[0], "+x is the image's right"
    assert brow[1] > nose[1] > chin[1], "+y is up"
    assert nose[2] > max(landmarks[0, 2], landmarks[16, 2]) + 50, "+z comes out of the face"
    assert 50 < image_right_eye[0] - image_left_eye[0] < 75, "millimetres"
    assert model.mean.mean(0).norm() < 100, "the origin is near the middle of the head's front"


def test_camera_space(model: MorphableModel) -> None:
    """The identity rotation is a frontal face, and normals that face the camera have positive z."""
    x = torch.tensor([[10.0, 20.0, 30.0]])
    perspective, weak = cameras()
    assert torch.equal(perspective.to_camera(x), x + torch.tensor([0.0, 0.0, -600.0]))
    assert torch.equal(weak.to_camera(x), x + torch.tensor([0.0, 0.0, -10_000.0]))
    light = SphericalHarmonicsLight(torch.zeros(9, 3))
    seen = shade_vertices(model.mean, model.triangles, weak, light, model.mean)
    assert torch.equal(seen.visible, seen.normals[:, 2] > 0)
    assert seen.normals[int(model.mean[:, 2].argmax()), 2] > 0.5, "the tip of the nose faces the camera"


def test_pose() -> None:
    def about(axis: int, angle: float) -> Tensor:
        angles = torch.zeros(3)
        angles[axis] = angle
        return euler_to_matrix(angles)

    pitch, yaw, roll = 0.4, -0.3, 0.2
    matrix = euler_to_matrix(torch.tensor([pitch, yaw, roll]))
    torch.testing.assert_close(matrix, about(2, roll) @ about(1, yaw) @ about(0, pitch))
    quarter = math.pi / 2  # right-handed: x turns y to z, y turns z to x, z turns x to y
    for axis in range(3):
        start, end = torch.eye(3)[(axis + 1) % 3], torch.eye(3)[(axis + 2) % 3]
        torch.testing.assert_close(about(axis, quarter) @ start, end, atol=1e-6, rtol=0)
    x, t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 2.0, -600.0])
    camera = PerspectiveCamera(matrix, t, torch.tensor(500.0), torch.tensor([120.0, 120.0]))
    torch.testing.assert_close(camera.to_camera(x), torch.stack([matrix @ p + t for p in x]))
    assert (camera.project(x)[:, 2] > 0).all(), "t_z < 0 is in front of the camera"


def test_screen_space() -> None:
    for camera in cameras():
        x = torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 10.0]])
        middle, right, up, near = camera.project(x)
        assert right[0] > middle[0] and right[1] == middle[1]
        assert up[1] < middle[1] and up[0] == middle[0], "y down"
        assert 0 < near[2] < middle[2]
        torch.testing.assert_close(camera.project(x)[:, 2], -camera.to_camera(x)[:, 2])
    # A speck at (0.5, 0.5) covers the centre of the first pixel and no other; (2.5, 1.5) is row 1, column 2.
    speck = torch.tensor([[-0.2, 0.2, 100.0], [0.2, 0.2, 100.0], [0.0, -0.2, 100.0]])
    for (x, y), pixel in {(0.5, 0.5): (0, 0), (2.5, 1.5): (1, 2)}.items():
        screen = speck + torch.tensor([x, y, 0.0])
        covered = rasterize(screen, torch.tensor([[0, 1, 2]]), 4, 6) >= 0
        assert covered.nonzero().tolist() == [list(pixel)]


def test_other_libraries() -> None:
    """OpenCV's axes: x right, y down, z forward; its first pixel's centre is (0, 0)."""
    camera = cameras()[0]
    assert isinstance(camera, PerspectiveCamera)
    x = torch.tensor([[10.0, 20.0, 30.0], [-40.0, 5.0, 60.0]])
    rotation, translation, matrix = camera.to_opencv()
    u, v, w = ((x @ rotation.mT + translation) @ matrix.mT).unbind(-1)
    expected = camera.project(x)
    torch.testing.assert_close(torch.stack([u / w + 0.5, v / w + 0.5, w], -1), expected)
    # Nobody else knows those libraries.
    for path, tree in SOURCES.items():
        for name in imported(tree):
            if name.split(".")[0] in ("cv2", "pytorch3d"):
                assert path.name == "pytorch3d_backend.py", path


def test_triangles(model: MorphableModel) -> None:
    triangles = model.triangles
    assert triangles.dtype == torch.int64 and triangles.shape[1] == 3
    outward = triangle_normals(model.mean, triangles)
    screen = cameras()[1].project(model.mean)
    a, b, c = (screen[triangles[:, k], :2] for k in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    clear = area.abs() > 1e-2
    assert torch.equal(area[clear] < 0, outward[clear, 2] > 0), "facing the camera is negative on the screen"
    skin = model.region_vertices("skin")
    assert (vertex_normals(model.mean, triangles)[skin, 2] > 0).float().mean() > 0.8, "outside is outside"
    for facing in (triangles[:50][area[:50] < -1e-2], triangles[:50].flip(1)[area[:50] < -1e-2]):
        seen = rasterize(screen, facing, 240, 240) >= 0
        assert seen.any() == bool(torch.equal(facing, triangles[:50][area[:50] < -1e-2])), (
            "back faces are culled"
        )


def test_images(model: MorphableModel) -> None:
    light = SphericalHarmonicsLight(ambient_to_sh(torch.ones(3)))
    diffuse, specular = model.albedo()
    camera = PerspectiveCamera.from_fov(24.0, 20, 30)
    picture = render(
        model.mean.expand(2, 4, -1, -1), model.triangles, camera, light, diffuse, specular, 20, 30
    )
    for name in ("image", "linear", "normals", "albedo", "shading", "specular"):
        assert getattr(picture, name).shape == (2, 4, 3, 20, 30), name
    assert picture.mask.shape == picture.depth.shape == (2, 4, 1, 20, 30)
    assert picture.face_index.shape == (2, 4, 20, 30)
    assert picture.mask.dtype == torch.bool and picture.image.min() >= 0 and picture.image.max() <= 1


def test_lists(model: MorphableModel) -> None:
    screen = cameras()[0].project(model.mean)
    assert screen.shape == vertex_normals(model.mean, model.triangles).shape == (len(model.mean), 3)
    values, _ = interpolate(
        screen, model.triangles, rasterize(screen, model.triangles, 8, 8), model.mean[:, :2]
    )
    assert values.shape == (2, 8, 8), "(N, C) lists become (C, H, W) maps"


def test_batches(model: MorphableModel) -> None:
    camera = PerspectiveCamera.from_fov(24.0, 8, 8).look(torch.zeros(3, 3))
    diffuse, _ = model.albedo()
    batched_light = SphericalHarmonicsLight(
        torch.rand(2, 1, 9, 3, generator=torch.Generator().manual_seed(0))
    )
    picture = render(model.mean, model.triangles, camera, batched_light, diffuse, None, 8, 8)
    assert picture.image.shape == (2, 3, 3, 8, 8)
    single = SphericalHarmonicsLight(torch.zeros(9, 3))
    alone = render(model.mean, model.triangles, cameras()[0], single, diffuse, None, 8, 8)
    assert alone.image.shape == (3, 8, 8), "no batch in, no batch out"


def test_angles() -> None:
    """Radians, unless the name ends in _degrees."""
    names = [
        argument.arg
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for argument in node.args.args + node.args.kwonlyargs
    ]
    assert "fov_degrees" in names
    assert [name for name in names if "deg" in name.split("_") or "degree" in name.split("_")] == []
    assert [name for name in names if "degrees" in name and not name.endswith("degrees")] == []


def test_colour(model: MorphableModel) -> None:
    half = torch.full_like(model.mean, 0.5)
    light = SphericalHarmonicsLight(ambient_to_sh(torch.ones(3)))
    picture = render(model.mean, model.triangles, cameras()[0], light, half, None, 64, 64)
    seen = picture.mask.expand(3, -1, -1)
    torch.testing.assert_close(picture.linear[seen], torch.tensor(0.5).expand(seen.sum()))
    torch.testing.assert_close(picture.image, linear_to_srgb(picture.linear))
    assert float(picture.image.max()) == pytest.approx(0.735357, abs=1e-5)


def test_specular(model: MorphableModel) -> None:
    _, specular = model.albedo()
    assert specular.shape == (len(model.mean),)
    assert 0.02 < specular[model.region_vertices("skin")].median() < 0.04


def test_spherical_harmonics() -> None:
    order = ["1", "y", "z", "x", "x*y", "y*z", "3*z*z-1", "x*z", "x*x-y*y"]
    normals = torch.nn.functional.normalize(
        torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    x, y, z = normals.unbind(-1)
    basis = sh_basis(normals)
    for b, formula in enumerate(order):
        polynomial = eval(formula, {"x": x, "y": y, "z": z}) * torch.ones(200)
        factor = (basis[:, b] * polynomial).sum() / polynomial.square().sum()
        assert factor > 0
        torch.testing.assert_close(basis[:, b], factor * polynomial, atol=1e-5, rtol=0)
    above = directional_to_sh(torch.tensor([0.0, 1.0, 0.0]), torch.ones(3))
    assert above.shape == (9, 3) and above[1, 0] > 0.5 and above[2:4].abs().max() < 1e-6


def test_model_coefficients(model: MorphableModel) -> None:
    one = torch.zeros(len(model.identity_basis))
    one[0] = 1.0
    torch.testing.assert_close(model.vertices(one), model.mean + model.identity_basis[0])
    # A population has coefficients of unit variance, and differs by some millimetres per vertex.
    drawn = model.sample(1000, torch.Generator().manual_seed(0))
    for name in ("identity", "albedo"):
        assert 0.8 < drawn[name].std(0).median() < 1.2, name
        assert drawn[name].mean(0).abs().median() < 0.1, name
    assert 2 < model.identity_basis.square().sum((0, 2)).mean().sqrt() < 6, "mm per standard deviation"


def test_landmarks(model: MorphableModel, landmarks: Tensor) -> None:
    assert landmarks.shape == (68, 3)
    for camera in cameras():
        x, y, _ = camera.project(landmarks).unbind(-1)
        jaw, brows, nose, eyes, mouth = (
            slice(0, 17),
            slice(17, 27),
            slice(27, 36),
            slice(36, 48),
            slice(48, 68),
        )
        assert (x[jaw].diff() > 0).all() and int(y[jaw].argmax()) == 8, (
            "jaw from the image's left over the chin"
        )
        assert y[brows].mean() < y[eyes].mean() < y[nose].mean() < y[mouth].mean()
        assert x[36:42].max() < x[27] < x[42:48].min(), "36 to 41 is the eye on the image's left"
        assert x[48] < x[54] and y[51] < y[57], "48 is the mouth's corner on the image's left"


RANDOM_FUNCTIONS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
RANDOM_METHODS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "multinomial"}
SEEDED = {"default_rng", "Generator", "SeedSequence", "RandomState", "PCG64", "Random"}


def test_random_numbers() -> None:
    """No call in facelab reads or sets the global random state of Python, NumPy or torch.

    Unless it is put back: layers and dropout draw from torch's global generator and know no other.
    """
    for path, tree in SOURCES.items():
        forked = {node for part in ast.walk(tree) if restores_state(part) for node in ast.walk(part)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node not in forked:
                assert not uses_global_state(node), f"{path.relative_to(ROOT)}:{node.lineno}"
    for bad in (
        "torch.rand(3)",
        "np.random.rand(2)",
        "x.normal_()",
        "torch.manual_seed(0)",
        "random.random()",
    ):
        assert uses_global_state(ast.parse(bad).body[0].value), bad
    for good in ("torch.rand(3, generator=g)", "np.random.default_rng(0)", "g.manual_seed(1)"):
        assert not uses_global_state(ast.parse(good).body[0].value), good


def restores_state(part: ast.AST) -> bool:
    if isinstance(part, ast.With):
        return "fork_rng" in ast.unparse(part.items[0])
    return isinstance(part, ast.Try) and any("set_rng_state" in ast.unparse(s) for s in part.finalbody)


def uses_global_state(call: ast.Call) -> bool:
    name, owner = call.func.attr, ast.unparse(call.func.value)
    seeded = any(keyword.arg in ("generator", "random_state") for keyword in call.keywords)
    if name in SEEDED:  # torch's generators start from a constant of their own
        return owner != "torch" and not call.args and not call.keywords
    if owner in ("random", "np.random", "numpy.random"):
        return True
    if owner == "torch":
        return name in ("manual_seed", "seed", "rand_like", "randn_like", "randint_like") or (
            name in RANDOM_FUNCTIONS and not seeded
        )
    return name in RANDOM_METHODS and not seeded


def test_errors() -> None:
    """Every class in errors.py is a FacelabError, and public functions raise nothing else themselves."""
    names = {
        name: error
        for name, error in vars(facelab.support.errors).items()
        if inspect.isclass(error) and error.__module__ == "facelab.support.errors"
    }
    assert all(
        issubclass(error, facelab.support.errors.FacelabError) and error.__doc__ for error in names.values()
    )
    for path, tree in SOURCES.items():
        # A private function may raise a ValueError for its public caller to catch and name.
        for _, definition in public_definitions(tree.body):
            for node in ast.walk(definition) if isinstance(definition, ast.FunctionDef) else ():
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    name = ast.unparse(node.exc.func).split(".")[-1]
                    assert name in names, f"{path.relative_to(ROOT)}:{node.lineno} raises {name}"


# The source


def imported(tree: ast.Module) -> Iterator[str]:
    """Full names of the modules that a module imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module(path: Path) -> str:
    """Its name below facelab, "rendering.colour"; that of the folder for an `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in SOURCES}


def modules_used(path: Path, tree: ast.Module) -> set[str]:
    """The modules of facelab that a file imports, at any depth."""
    names = {name.removeprefix("facelab.") for name in imported(tree) if name.startswith("facelab.")}
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names |= {".".join(part for part in (*base, alias.name) if part) for alias in node.names}
            names.add(".".join(part for part in base if part))
    return {name for name in names if name in MODULES} - {module(path), ""}


def test_imports_go_down_only() -> None:
    """From room to room, and within a room never in a circle."""
    uses = {module(path): modules_used(path, tree) for path, tree in SOURCES.items() if module(path)}
    assert {name.split(".")[0] for name in uses} == set(ROOMS), f"give every room its place in {__file__}"
    for name, others in uses.items():
        for other in others:
            above = ROOMS.index(other.split(".")[0]) > ROOMS.index(name.split(".")[0])
            assert not above, f"{name} imports {other} from a room above"
    found = uses["rendering.image_formation"], uses["rendering.rasterizer.interpolation"]
    assert "rendering.rasterizer" in found[0] and "rendering.rasterizer.inputs" in found[1]
    done: set[str] = set()
    while done != set(uses):
        # A folder's own `__init__.py`, which gathers what its modules hold, is no use of it by them.
        free = {
            name
            for name in set(uses) - done
            if all(other in done or name.startswith(f"{other}.") for other in uses[name])
        }
        assert free, f"import circle among {sorted(set(uses) - done)}"
        done |= free


def test_there_are_few_rooms() -> None:
    assert len(ROOMS) <= 14


LONGEST_MODULE, LONGEST_FUNCTION, MOST_PARAMETERS = 350, 60, 8
WIDER = {"rendering.image_formation.render": 11, "course.viewer.turntable": 9, "training.Run.__init__": 9}
"""Whose parameters are more; they are given by name."""


def functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions and methods at any depth, with full names."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}".lstrip(".")
            if isinstance(node, ast.FunctionDef):
                yield name, node
            yield from functions(node.body, name)


def lines_of_code(function: ast.FunctionDef) -> int:
    """Without decorators and docstring."""
    documented = ast.get_docstring(function) is not None
    doc = function.body[0].end_lineno - function.body[0].lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - doc


def parameters(function: ast.FunctionDef) -> int:
    """How many a caller has to know, without self and cls."""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return sum(argument.arg not in ("self", "cls") for argument in arguments)


def test_nothing_is_too_long() -> None:
    """A module fits on a few screens, a function on one, and a caller can remember what it takes.

    Kernels of Triton are left out: their parameters are pointers and sizes.
    """
    text = {path: path.read_text() for path in SOURCES}
    assert {module(p): n for p, t in text.items() if (n := t.count("\n")) > LONGEST_MODULE} == {}
    found = {
        name: function
        for path, tree in SOURCES.items()
        for name, function in functions(tree.body, module(path))
        if not any("triton" in ast.unparse(decorator) for decorator in function.decorator_list)
    }
    assert len(found) > 500
    assert {name: n for name, f in found.items() if (n := lines_of_code(f)) > LONGEST_FUNCTION} == {}
    assert {name: n for name, f in found.items() if (n := parameters(f)) > MOST_PARAMETERS} == WIDER


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


def test_everything_public_is_documented() -> None:
    """Modules, classes, functions and methods; a method that overrides another needs no text of its own."""
    inherited = {"forward", "train"}  # of torch.nn.Module
    missing = []
    for path, tree in SOURCES.items():
        for name, node in public_definitions(tree.body):
            if "." in name and ast.get_docstring(node):
                inherited.add(name.split(".")[-1])
            elif not ast.get_docstring(node):
                missing.append((path.relative_to(ROOT), name))
    assert [
        (path, name) for path, name in missing if "." not in name or name.split(".")[-1] not in inherited
    ] == []
    assert [str(path) for path, tree in SOURCES.items() if not ast.get_docstring(tree) and tree.body] == []


def test_nothing_touches_a_gpu_on_import_or_by_itself() -> None:
    """The device comes from the caller: no .cuda() in the library."""
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "cuda", f"{path.relative_to(ROOT)}:{node.lineno}"
