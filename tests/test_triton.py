"""The Triton backend beyond what test_rasterizer.py asks of every backend, in Triton's interpreter on a CPU.

A GPU is not needed to compile for one either: the last test reads the machine code's text.
"""

import importlib
import math
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from test_rasterizer import INTERPRETER, ball, grid, two_balls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from facelab.rendering.rasterizer import NEAR, antialias, backends, interpolate, rasterize, torch_backend
from facelab.support.errors import FacelabError

pytestmark = INTERPRETER


@pytest.fixture
def triton_backend():
    return importlib.import_module("facelab.rendering.rasterizer.triton_backend")


@pytest.fixture
def gpu_sizes(triton_backend, monkeypatch):
    """Programs as small as on a GPU, and each box shared by several."""
    monkeypatch.setattr(triton_backend, "BLOCK", 64)
    monkeypatch.setattr(triton_backend, "PLACES", 16)
    monkeypatch.setattr(triton_backend, "PROGRAMS", 9)
    monkeypatch.setattr(triton_backend, "MOST_CHANNELS", 2)


def agree(screen: Tensor, triangles: Tensor, height: int, width: int) -> Tensor:
    """The face index, after comparing that of Triton with that of torch for both precisions and sides."""
    for dtype in (torch.float32, torch.float64):
        for cull in (False, True):
            one, two = (
                rasterize(screen.to(dtype), triangles, height, width, cull=cull, backend=name)
                for name in ("triton", "torch")
            )
            assert torch.equal(one, two)
    return two


def test_ids_and_gradients_with_programs_as_small_as_on_a_gpu(gpu_sizes) -> None:
    screen, triangles = two_balls(1, 13, 17)
    batch = torch.stack([screen, screen + 2.3])
    faces = agree(batch, triangles, 13, 17)
    generator = torch.Generator().manual_seed(0)
    # 5 channels, 2 at a time
    colour = torch.rand(2, len(screen), 5, generator=generator, dtype=torch.float64)
    results = []
    for backend in ("triton", "torch"):
        inputs = batch.clone().requires_grad_(), colour.clone().requires_grad_()
        values, depth = interpolate(inputs[0], triangles, faces, inputs[1], backend=backend)
        loss = (values.sin() * values).sum() + depth.cos().sum()
        results.append((values, depth, *torch.autograd.grad(loss, inputs)))
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_slivers_huge_and_degenerate_triangles() -> None:
    generator = torch.Generator().manual_seed(1)
    corners = torch.randn(80, 3, 3, generator=generator, dtype=torch.float64)
    exponent = 6 * torch.rand(80, 1, 1, generator=generator, dtype=torch.float64) - 1
    scale = 10**exponent  # 0.1 to 100,000 pixels
    screen = corners * scale + torch.tensor([12.0, 10, 30])
    screen[..., 2] = screen[..., 2].clamp(-5, 900)  # some behind the camera, some at one depth
    screen[:8, 2] = (screen[:8, 0] + screen[:8, 1]) / 2  # no area but for rounding
    screen[8:12, 1] = screen[8:12, 0]  # none at all
    screen[12, 0, 0], screen[13, 1, 1], screen[14, 2, 2] = torch.inf, -torch.inf, torch.inf
    screen[20:40] = (4 * screen[20:40]).round() / 4  # edges through pixel centres
    screen[40:50, :, 2] = 30.0
    faces = agree(screen.view(-1, 3), torch.arange(240).view(-1, 3), 21, 25)
    assert len(faces.unique()) > 5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (16, 32)])
def test_pictures_of_one_row_and_of_round_sizes(height: int, width: int) -> None:
    screen, triangles = two_balls(1, 40, 40)
    screen[:, :2] -= 20 - torch.tensor([width / 2, height / 2])
    faces = agree(screen, triangles, height, width)
    assert (faces >= 0).any()
    values, _ = interpolate(screen, triangles, faces, screen[:, :1], backend="triton")
    centres = (torch.arange(width) + 0.5).expand(height, width).double()
    assert ((values[0] - centres)[faces >= 0].abs() < 5).all()


def test_near_plane_is_decided_in_the_precision_of_the_positions() -> None:
    """float32's nearest number to NEAR is 4.7e-11 above it."""
    triangle = torch.tensor([[0, 1, 2]])
    for depth, seen in ((NEAR + 1e-11, True), (NEAR, False), (NEAR - 1e-11, False)):
        screen = torch.tensor([[1, 9, depth], [9, 9, depth], [5, 1, depth]], dtype=torch.float64)
        assert (rasterize(screen, triangle, 10, 10, backend="triton") == 0).any() == seen


def test_sheets_at_one_depth_go_to_the_lower_number() -> None:
    flat, triangles = grid(5, 4)
    both = torch.cat([flat, flat]), torch.cat([triangles, triangles + len(flat)])
    found = agree(*both, 40, 40)
    assert found[found >= 0].min() >= 0 and found.max() < len(triangles)


def test_area_of_a_sphere_changes_with_its_outline() -> None:
    points, triangles = ball(3, bumps=0)
    radius = torch.tensor(17.3, dtype=torch.float64, requires_grad=True)
    screen = torch.stack([24.3 + radius * points[:, 0], 23.6 - radius * points[:, 1], 10 - points[:, 2]], -1)
    faces = rasterize(screen, triangles, 48, 48, backend="triton")
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    white, depth = interpolate(screen, triangles, faces, ones, backend="triton")
    area = antialias(white, depth, faces, screen, triangles).sum()
    (derivative,) = torch.autograd.grad(area, radius)
    assert area.item() == pytest.approx(math.pi * 17.3**2, rel=0.01)
    assert derivative.item() == pytest.approx(2 * math.pi * 17.3, rel=0.02)


def test_deterministic_sums_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, triangles = two_balls(1, 12, 14)
    faces = rasterize(screen, triangles, 12, 14)
    results = []
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    for backend in ("triton", "torch"):
        points = screen.clone().requires_grad_()
        values, depth = interpolate(points, triangles, faces, points, backend=backend)
        results.append(torch.autograd.grad(values.sum() + depth.sum(), points)[0])
    assert torch.equal(*results)


def test_triangle_numbers_that_do_not_exist_are_not_read(triton_backend) -> None:
    """On a GPU nobody has looked at them before."""
    screen, triangles = two_balls(1, 12, 14)
    faces = rasterize(screen, triangles, 12, 14)
    wrong = torch.where(faces == faces.max(), len(triangles) + 7, faces)
    arguments = screen[None], screen[None], triangles
    expected = triton_backend.interpolate(*arguments, torch.where(wrong >= len(triangles), -1, faces)[None])
    found = triton_backend.interpolate(*arguments, wrong[None])
    assert all(torch.equal(one, two) for one, two in zip(expected, found))


class Waits(TorchDispatchMode):
    """The files of facelab whose operations would wait for a GPU: those whose output's size or Python value
    depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "repeat_interleave")):
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            self.files.add(next(file.name for file in reversed(files) if file.parent.name == "rasterizer"))
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_gpu_but_the_checks_of_a_cpu() -> None:
    screen, triangles = two_balls(1, 12, 14)
    found = {}
    for backend in ("triton", "torch"):
        points = screen.clone().requires_grad_()
        with Waits() as waits:
            faces = rasterize(points, triangles, 12, 14, backend=backend)
            values, depth = interpolate(points, triangles, faces, points, backend=backend)
            (values.sum() + depth.sum()).backward()
        found[backend] = waits.files
    assert found == {"triton": {"inputs.py"}, "torch": {"inputs.py", "torch_backend.py"}}


# --- choosing -----------------------------------------------------------------------------------------------


def test_chosen_first_on_cuda_and_never_by_itself_on_a_cpu(triton_backend, monkeypatch) -> None:
    assert backends.choose("auto", torch.device("cuda")) is triton_backend
    assert backends.choose("auto", torch.device("cuda"), backends.FORMULAS) is triton_backend
    assert backends.choose("auto", torch.device("cpu")) is not triton_backend
    original = backends._load
    monkeypatch.setattr(backends, "_load", lambda n: ImportError(n) if n != "torch" else original(n))
    assert backends.choose("auto", torch.device("cuda")) is torch_backend


def test_compiled_kernels_refuse_a_cpu(triton_backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    with pytest.raises(FacelabError, match="on a GPU"):
        backends.choose("triton", torch.device("cpu"))


# --- compiled -----------------------------------------------------------------------------------------------

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from facelab.rendering.rasterizer import triton_backend as backend

def text(kernel, real, **constants):
    types = dict.fromkeys(kernel.arg_names, "*" + real)
    types |= dict.fromkeys(("triangles", "face_index", "key", "seen"), "*i64")
    types |= dict.fromkeys(backend.SIZES, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
    return triton.compile(source, GPUTarget("cuda", int(sys.argv[1]), 32), backend.OPTIONS).asm["ptx"]

for real, turn in (("fp32", 0), ("fp64", 2)):
    print(text(backend._visibility, real, CULL=turn < 2, NEAR=1e-3, TURN=turn, BLOCK=64, PLACES=16))
print(text(backend._forward, "fp32", BLOCK=64, CHANNELS=8))
print(text(backend._backward, "fp64", BLOCK=64, CHANNELS=1))
"""


def test_kernels_compile_for_a_gpu_without_fused_or_approximate_arithmetic(tmp_path) -> None:
    """Down to the machine code of an H100, by the assembler that comes with Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, "90"], env=environment, capture_output=True, text=True
    )
    if "needs a C compiler" in run.stderr:
        pytest.skip("no C compiler")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(".entry") == 4
    assert not re.findall(r"\b(?:fma|mad|div\.full|div\.approx|rcp\.approx)\S*f(?:32|64)", run.stdout)
    assert len(re.findall(r"\bdiv\.rn\.f32", run.stdout)) > 20
    assert re.search(r"min\.s64", run.stdout) and re.search(r"add\.f64", run.stdout)
    assert "0d3F50624DD2F1A9FC" in run.stdout  # NEAR in float64
