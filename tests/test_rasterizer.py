"""The rasterizer against brute force, analytic values, and the real PyTorch3D."""

import importlib.util
import math
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from facelab.rendering.rasterizer import (
    NEAR,
    antialias,
    antialiasing,
    backends,
    inputs,
    interpolate,
    rasterize,
    torch_backend,
)
from facelab.support.errors import FacelabError, ImageSizeError, MeshError, ParameterError

INTERPRETER = [
    pytest.mark.skipif(
        not importlib.util.find_spec("triton") or os.environ.get("TRITON_INTERPRET") != "1",
        reason="no triton for its interpreter, or a GPU is here (test_cuda.py)",
    ),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # infinities, as on purpose
]
BACKENDS = [
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="no numba")),
    pytest.param("triton", marks=INTERPRETER),
]
GOLDEN = sorted((Path(__file__).parent / "golden").glob("pytorch3d_*.npz"))


def ball(level: int, bumps: float = 0.1) -> tuple[Tensor, Tensor]:
    """A bumpy sphere of 20 * 4**level triangles, turned so that nothing is aligned with the axes."""
    mesh = trimesh.creation.icosphere(level)
    x, y, _ = mesh.vertices.T[:, :, None]
    points = mesh.vertices * (1 + bumps * np.sin(4 * x + 1) * np.cos(5 * y))
    points = points @ trimesh.transformations.euler_matrix(0.4, 0.7, 0.2)[:3, :3]
    return torch.tensor(points), torch.tensor(mesh.faces)


def two_balls(level: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Screen positions (V, 3) of two balls that cut each other, in perspective, partly outside."""
    points, triangles = ball(level)
    shift = 0.4 * torch.rand(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x, y, z = torch.cat([points - 0.4 + shift[0], 0.6 * points + 0.3 + shift[1]]).unbind(-1)
    depth = 4 - z
    screen = torch.stack(
        [width / 2 + 1.6 * width * x / depth, height / 2 - 1.6 * width * y / depth, depth], -1
    )
    return screen, torch.cat([triangles, triangles + len(points)])


def brute_force(screen: Tensor, triangles: Tensor, height: int, width: int, cull: bool) -> Tensor:
    """Every triangle at every pixel in float64, barycentric coordinates from their definition."""
    row, column = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([column, row, np.ones_like(row)]).reshape(3, -1)
    nearest, face_index = np.full(height * width, np.inf), np.full(height * width, -1)
    for number, corners in enumerate(screen.double().numpy()[triangles.numpy()]):
        matrix = np.stack([corners[:, 0], corners[:, 1], np.ones(3)])
        if np.linalg.det(matrix) == 0 or (cull and np.linalg.det(matrix) > 0) or corners[:, 2].min() <= NEAR:
            continue
        weights = np.linalg.solve(matrix, pixels)
        depth = 1 / (weights / corners[:, 2:]).sum(0)
        wins = (weights >= 0).all(0) & (depth < nearest)
        nearest[wins], face_index[wins] = depth[wins], number
    return torch.tensor(face_index).view(height, width)


# --- visibility ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_visibility_is_that_of_brute_force(backend: str, dtype: torch.dtype, cull: bool) -> None:
    for level, height, width in ((1, 40, 64), (3, 56, 48)):
        screen, triangles = two_balls(level, height, width)
        screen = screen.to(dtype)
        expected = brute_force(screen, triangles, height, width, cull)
        assert 0.3 < (expected >= 0).double().mean() < 0.95
        found = rasterize(screen, triangles, height, width, cull=cull, backend=backend)
        assert (found != expected).sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_triangles_that_cross_the_near_plane_are_dropped_whole(backend: str) -> None:
    screen = torch.tensor([[1.0, 9, 5], [9, 9, 5], [5, 1, 5]])
    triangle = torch.tensor([[0, 1, 2]])
    assert (rasterize(screen, triangle, 10, 10, backend=backend) == 0).sum() > 20
    for depth in (NEAR, 0.0, -3.0):
        screen[2, 2] = depth
        assert (rasterize(screen, triangle, 10, 10, backend=backend) == -1).all()
    screen[2, 2] = 2 * NEAR
    assert (rasterize(screen, triangle, 10, 10, backend=backend) == 0).any()
    screen[2] = torch.tensor([torch.inf, -torch.inf, 5])  # a point projected from the camera's own plane
    assert (rasterize(screen, triangle, 10, 10, backend=backend) == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_counter_clockwise_triangles_face_the_camera(backend: str) -> None:
    screen = torch.tensor([[1.0, 9, 5], [9, 9, 5], [5, 1, 5]])  # counter-clockwise when y points up
    front, back = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 1]])
    seen = rasterize(screen, front, 10, 10, backend=backend)
    assert (seen == 0).any()
    assert (rasterize(screen, back, 10, 10, backend=backend) == -1).all()
    assert torch.equal(rasterize(screen, back, 10, 10, cull=False, backend=backend), seen)


def grid(n: int = 21, spacing: int = 3) -> tuple[Tensor, Tensor]:
    """n x n points on pixel centres from (10.5, 10.5), two triangles per cell, facing the camera."""
    row, column = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    screen = torch.stack([10.5 + spacing * column, 10.5 + spacing * row, torch.full((n, n), 2)], -1).float()
    index = torch.arange(n * n).view(n, n)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = torch.stack([torch.stack([a, c, b], -1), torch.stack([b, c, d], -1)], 2).reshape(-1, 3)
    return screen.view(-1, 3), triangles


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_on_edges_and_corners_are_covered_and_go_to_the_lower_number(backend: str) -> None:
    screen, triangles = grid()
    found = rasterize(screen, triangles, 80, 80, backend=backend)
    covered = torch.zeros(80, 80, dtype=torch.bool)
    covered[10:71, 10:71] = True
    assert torch.equal(found >= 0, covered)
    order = torch.randperm(len(triangles), generator=torch.Generator().manual_seed(0))
    shuffled = rasterize(screen, triangles[order], 80, 80, backend=backend)
    inside = torch.zeros(len(triangles), 80, 80, dtype=torch.bool)  # all triangles that touch each pixel
    for number, (x, y, _) in enumerate(screen[triangles[order]].transpose(1, 2)):
        c, r = (torch.arange(80) + 0.5)[None], (torch.arange(80) + 0.5)[:, None]
        edges = [(x[i] - c) * (y[j] - r) - (x[j] - c) * (y[i] - r) for i, j in ((0, 1), (1, 2), (2, 0))]
        inside[number] = torch.stack(edges).amax(0) <= 0
    lowest = torch.where(inside.any(0), inside.int().argmax(0), -1)
    assert torch.equal(shuffled, lowest)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_surface_has_no_cracks(backend: str) -> None:
    flat, triangles = grid()
    border = ((flat[:, :2] == 10.5) | (flat[:, :2] == 70.5)).any(-1, keepdim=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):  # corners on multiples of 0.1 px: many edges pass exactly through pixel centres
        jitter = (10 * (torch.rand(flat.shape, generator=generator) - 0.5)).round() / 5
        jitter[:, 2] = 0
        found = rasterize(flat + jitter * ~border, triangles, 80, 80, cull=False, backend=backend)
        assert (found[11:70, 11:70] >= 0).all()


def test_backends_agree_pixel_by_pixel_on_a_large_mesh() -> None:
    pytest.importorskip("numba")
    scenes = [two_balls(5, 240, 240, seed) for seed in range(2)]
    triangles = scenes[0][1]
    for dtype in (torch.float32, torch.float64):
        screen = torch.stack([scene for scene, _ in scenes]).to(dtype)
        one, two = (rasterize(screen, triangles, 240, 240, backend=name) for name in ("torch", "numba"))
        assert torch.equal(one, two)


def test_torch_backend_works_in_chunks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, triangles = two_balls(2, 50, 70)
    batch = torch.stack([screen, screen + 3.3, screen - 7.1])
    expected = rasterize(batch, triangles, 50, 70, backend="torch")
    sizes = []
    original = torch_backend._keep_nearest
    monkeypatch.setattr(torch_backend, "MAX_CANDIDATES", 500)
    monkeypatch.setattr(torch_backend, "_keep_nearest", lambda *a: (sizes.append(len(a[2])), original(*a)))
    assert torch.equal(rasterize(batch, triangles, 50, 70, backend="torch"), expected)
    assert len(sizes) > 20 and max(sizes) < 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_batch_shape(backend: str) -> None:
    screen, triangles = two_balls(1, 20, 30)
    generator = torch.Generator().manual_seed(2)
    batch = screen + torch.rand(2, 3, 1, 3, generator=generator, dtype=screen.dtype)
    colour = torch.rand(3, len(screen), 5, generator=generator, dtype=screen.dtype)
    faces = rasterize(batch, triangles, 20, 30, backend=backend)
    values, depth = interpolate(batch, triangles, faces, colour, backend=backend)
    soft = antialias(values, depth, faces, batch, triangles)
    assert (
        faces.shape == (2, 3, 20, 30)
        and values.shape == (2, 3, 5, 20, 30)
        and depth.shape == (2, 3, 1, 20, 30)
    )
    for i in range(2):
        for j in range(3):
            one = rasterize(batch[i, j], triangles, 20, 30, backend=backend)
            value, z = interpolate(batch[i, j], triangles, one, colour[j], backend=backend)
            assert torch.equal(faces[i, j], one)
            assert torch.equal(values[i, j], value) and torch.equal(depth[i, j], z)
            torch.testing.assert_close(soft[i, j], antialias(value, z, one, batch[i, j], triangles))
    assert rasterize(batch[:0], triangles, 20, 30, backend=backend).shape == (0, 3, 20, 30)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mesh_without_triangles_is_all_background(backend: str) -> None:
    screen, triangles = torch.rand(4, 3), torch.zeros(0, 3, dtype=torch.int64)
    faces = rasterize(screen, triangles, 4, 5, backend=backend)
    values, depth = interpolate(screen, triangles, faces, torch.rand(4, 2), backend=backend)
    assert (faces == -1).all() and not values.any() and not depth.any()
    assert torch.equal(antialias(values, depth, faces, screen, triangles), values)


def test_threads_share_the_images_of_a_batch() -> None:
    pytest.importorskip("numba")
    screen, triangles = two_balls(2, 40, 40)
    batch = (screen + torch.arange(5).view(5, 1, 1)).requires_grad_()
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            faces = rasterize(batch, triangles, 40, 40, backend="numba")
            values, depth = interpolate(batch, triangles, faces, batch, backend="numba")
            results.append((faces, values, *torch.autograd.grad((values**2).sum() + depth.sum(), batch)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results))


# --- interpolation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_interpolation_is_perspective_correct(backend: str) -> None:
    """On a steeply tilted plane, interpolated positions are those where the pixel's ray hits it."""
    focal, size = 50.0, 32
    plane_x = torch.tensor([-3.0, 3, 3, -3], dtype=torch.float64)
    plane_y = torch.tensor([-3.0, -3, 3, 3], dtype=torch.float64)
    depth = 6 + 1.5 * plane_x + 0.2 * plane_y  # the plane: depth = 6 + 1.5 x + 0.2 y
    screen = torch.stack([16 + focal * plane_x / depth, 16 - focal * plane_y / depth, depth], -1)
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    faces = rasterize(screen, triangles, size, size, backend=backend)
    values, found = interpolate(
        screen, triangles, faces, torch.stack([plane_x, plane_y], -1), backend=backend
    )
    ray_x = ((torch.arange(size) + 0.5 - 16) / focal).double().expand(size, size)
    ray_y = -ray_x.mT
    expected = 6 / (1 - 1.5 * ray_x - 0.2 * ray_y)
    seen = faces >= 0
    assert seen.sum() > 300
    torch.testing.assert_close(found[0][seen], expected[seen])
    torch.testing.assert_close(values[0][seen], (ray_x * expected)[seen])
    torch.testing.assert_close(values[1][seen], (ray_y * expected)[seen])
    assert not values[:, ~seen].any() and not found[:, ~seen].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_interpolation(backend: str) -> None:
    screen, triangles = two_balls(1, 12, 14)
    faces = rasterize(screen, triangles, 12, 14)
    colour = torch.rand(len(screen), 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = (screen.requires_grad_(), colour.requires_grad_())
    fast = backend == "triton"  # one random direction: its interpreter is slow
    assert torch.autograd.gradcheck(
        lambda s, c: interpolate(s, triangles, faces, c, backend=backend), inputs, fast_mode=fast
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numba_and_torch_formulas_agree(dtype: torch.dtype) -> None:
    pytest.importorskip("numba")
    scenes = [two_balls(4, 120, 100, seed) for seed in range(2)]
    screen, triangles = torch.stack([scene for scene, _ in scenes]).to(dtype), scenes[0][1]
    generator = torch.Generator().manual_seed(4)
    colour = torch.rand(2, screen.shape[1], 7, generator=generator, dtype=dtype)
    faces = rasterize(screen, triangles, 120, 100)
    results = []
    for backend in ("torch", "numba"):
        inputs = (screen.clone().requires_grad_(), colour.clone().requires_grad_())
        values, depth = interpolate(inputs[0], triangles, faces, inputs[1], backend=backend)
        loss = (values * values.detach().cos()).sum() + (depth * depth.detach().sin()).sum()
        results.append((values, depth, *torch.autograd.grad(loss, inputs)))
    for one, two in zip(*results):
        assert one.dtype == dtype
        tolerance = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]  # slivers lose digits in float32
        assert (one - two).abs().max() <= tolerance * one.abs().max()


def test_half_precision_is_computed_in_single() -> None:
    screen, triangles = two_balls(1, 20, 20)
    faces = rasterize(screen.half(), triangles, 20, 20)
    values, _ = interpolate(screen.half(), triangles, faces, screen.half())
    assert values.dtype == torch.float32 and torch.equal(
        faces, rasterize(screen.half().float(), triangles, 20, 20)
    )


# --- PyTorch3D ----------------------------------------------------------------------------------------------


def compare_with_pytorch3d(backend: str, buffers: dict[str, Tensor]) -> None:
    screen, triangles, expected = (buffers[key] for key in ("screen", "triangles", "face_index"))
    cull = bool(buffers["cull"])
    found = rasterize(screen, triangles.long(), *expected.shape, cull=cull, backend=backend)
    assert (found != expected).sum() == 0
    soup = screen[triangles.long()].reshape(-1, 3)  # corners of their own, so that weights can be attributes
    corners = torch.arange(len(soup)).view(-1, 3)
    weights, depth = interpolate(soup, corners, found, torch.eye(3).repeat(len(corners), 1))
    seen = found >= 0
    torch.testing.assert_close(depth[0][seen], buffers["depth"][seen], rtol=1e-5, atol=0)
    torch.testing.assert_close(weights.movedim(0, -1)[seen], buffers["barycentric"][seen], rtol=0, atol=1e-4)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", BACKENDS)
def test_buffers_are_those_of_pytorch3d(backend: str, path: Path) -> None:
    with np.load(path) as file:
        buffers = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    assert (buffers["face_index"] >= 0).sum() > 500
    compare_with_pytorch3d(backend, buffers)


def test_live_pytorch3d_agrees() -> None:
    pytest.importorskip("pytorch3d")
    assert len(GOLDEN) == 4
    for height, width in ((64, 80), (80, 64), (60, 60)):
        screen, triangles = two_balls(3, height, width)
        batch = torch.stack([screen, screen + 2.2]).float()
        batch[1, triangles[5], 2] = -1  # one triangle behind the camera
        for cull in (True, False):
            one, two = (
                rasterize(batch, triangles, height, width, cull=cull, backend=name)
                for name in ("pytorch3d", "torch")
            )
            assert (one != two).sum() == 0


# --- silhouettes --------------------------------------------------------------------------------------------


def disc(centre_x: Tensor, centre_y: Tensor, radius: Tensor, level: int, size: int) -> tuple[Tensor, ...]:
    """A white sphere without perspective: picture (1, size, size), depth, faces, screen, triangles."""
    points, triangles = ball(level, bumps=0)
    screen = torch.stack(
        [centre_x + radius * points[:, 0], centre_y - radius * points[:, 1], 10 - points[:, 2]], -1
    )
    faces = rasterize(screen, triangles, size, size)
    white, depth = interpolate(screen, triangles, faces, torch.ones(len(points), 1, dtype=torch.float64))
    return white, depth, faces, screen, triangles


def test_antialiased_area_of_a_sphere_and_its_derivatives() -> None:
    radius = 80.3
    pose = torch.tensor([120.3, 119.6, radius], dtype=torch.float64, requires_grad=True)
    white, *mesh = disc(*pose, level=4, size=240)
    image = antialias(white, *mesh)
    column = torch.arange(240, dtype=torch.float64) + 0.5
    area, moment = image.sum(), (image * column).sum()
    circle = math.pi * radius**2
    assert area.item() == pytest.approx(circle, rel=3e-3)
    d_area, d_moment = (
        torch.autograd.grad(value, pose, retain_graph=True)[0].tolist() for value in (area, moment)
    )
    assert d_area[2] == pytest.approx(2 * math.pi * radius, rel=0.01)
    assert max(map(abs, d_area[:2])) < 0.01 * d_area[2]
    assert d_moment[0] == pytest.approx(circle, rel=0.01)  # the disc moves as a whole
    assert d_moment[2] == pytest.approx(2 * math.pi * radius * 120.3, rel=0.01)
    assert not torch.autograd.grad(white.sum(), pose)[0].abs().max() > 1e-6  # a hard picture gives nothing


@pytest.mark.parametrize("behind", [0.0, 0.25])
def test_antialiased_rectangle_is_exact(behind: float) -> None:
    """A white sheet with edges at x = 4.8 and 20.3, y = 3.6 and 14.9, before nothing or a grey sheet."""
    places = [[4.8, 3.6, 5], [20.3, 3.6, 5], [20.3, 14.9, 5], [4.8, 14.9, 5]]
    corners = torch.tensor(places, dtype=torch.float64, requires_grad=True)
    screen, triangles = corners, torch.tensor([[0, 2, 1], [0, 3, 2]])
    colour = torch.ones(4, 1, dtype=torch.float64)
    if behind:
        backdrop = torch.tensor([[-9.0, -9, 9], [99, -9, 9], [99, 99, 9], [-9, 99, 9]]).double()
        screen, triangles = torch.cat([corners, backdrop]), torch.cat([triangles, triangles + 4])
        colour = torch.cat([colour, behind * colour])
    faces = rasterize(screen, triangles, 20, 30)
    white, depth = interpolate(screen, triangles, faces, colour)
    image = antialias(white, depth, faces, screen, triangles)[0]
    coverage = (image - behind) / (1 - behind)
    assert coverage[10, 18:23].tolist() == pytest.approx([1, 1, 0.3, 0, 0])
    assert coverage[10, 3:6].tolist() == pytest.approx([0, 0.2, 1])
    assert coverage[13:16, 10].tolist() == pytest.approx([1, 0.9, 0])
    assert coverage[2:5, 10].tolist() == pytest.approx([0, 0.4, 1])
    gradient = torch.autograd.grad(coverage[10].sum(), corners)[0]
    assert gradient[[1, 2], 0].sum().item() == pytest.approx(1)
    assert gradient[[0, 3], 0].sum().item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [
        (
            (4, 20.3, 1.0),
            (4, 20.45, 1.0),
            [1, 1, 0.45, 0],
        ),  # two ends between two pixels: the outermost counts
        ((20.1, 28, 0.5), (4, 20.3, 1.0), [1, 1, 0.55, 0.5]),  # the far sheet's end is hidden by the near one
        ((4, 28, 0.5), (4, 20.3, 1.0), [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_silhouettes_that_are_hidden_do_not_count(near: tuple, far: tuple, expected: list[float]) -> None:
    """Sheets (left edge, right edge, brightness) at depths 5 and 6; expected are pixels 18 to 21 of a row."""
    sheets = [[[a, 3, z], [b, 3, z], [b, 15, z], [a, 15, z]] for (a, b, _), z in ((near, 5), (far, 6))]
    screen = torch.tensor(sheets, dtype=torch.float64).view(8, 3)
    colour = torch.tensor([near[2]] * 4 + [far[2]] * 4, dtype=torch.float64)[:, None]
    triangles = torch.tensor([[0, 2, 1], [0, 3, 2], [4, 6, 5], [4, 7, 6]])
    faces = rasterize(screen, triangles, 20, 30)
    bright, depth = interpolate(screen, triangles, faces, colour)
    image = antialias(bright, depth, faces, screen, triangles)[0]
    assert image[10, 18:22].tolist() == pytest.approx(expected)


def test_outline_of_a_sheet_that_recedes_from_it() -> None:
    """As at an eyelid: the rim at x = 20.3 is nearer than the surface it ends."""
    places = [[4, 3, 9], [20.3, 3, 5], [20.3, 15, 5], [4, 15, 9]]
    screen, triangles = torch.tensor(places, dtype=torch.float64), torch.tensor([[0, 2, 1], [0, 3, 2]])
    faces = rasterize(screen, triangles, 20, 30)
    white, depth = interpolate(screen, triangles, faces, torch.ones(4, 1, dtype=torch.float64))
    image = antialias(white, depth, faces, screen, triangles)[0]
    assert image[10, 18:22].tolist() == pytest.approx([1, 1, 0.3, 0])


def test_a_surface_thinner_than_a_pixel_changes_nothing_where_it_is_not_seen() -> None:
    sheets = [[[a, 3, z], [b, 3, z], [b, 15, z], [a, 15, z]] for a, b, z in ((20.1, 20.4, 5), (4, 28, 6))]
    screen = torch.tensor(sheets, dtype=torch.float64).view(8, 3)
    triangles = torch.tensor([[0, 2, 1], [0, 3, 2], [4, 6, 5], [4, 7, 6]])
    faces = rasterize(screen, triangles, 20, 30)
    ramp, depth = interpolate(screen, triangles, faces, screen[:, :1])
    soft = antialias(ramp, depth, faces, screen, triangles)
    assert torch.equal(soft[0, 6:12, 10:24], ramp[0, 6:12, 10:24])


def test_gradients_of_antialiasing() -> None:
    """Also at the outline of one ball before the other; the image's own gradient passes through."""
    screen, triangles = two_balls(1, 16, 14, seed=9)
    faces = rasterize(screen, triangles, 16, 14)
    colour = torch.rand(len(screen), 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    image, depth = interpolate(screen, triangles, faces, colour)
    soft = antialias(image, depth, faces, screen, triangles)
    changed = (soft != image).any(0)
    occluding = torch.nn.functional.max_pool2d(-(faces >= 0).double()[None], 3, 1, 1)[0] == -1
    assert 20 < changed.sum() < 100 and (changed & occluding).any()
    assert soft.min() >= 0 and soft.max() <= 1
    inputs = (image.requires_grad_(), screen.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda i, s: antialias(i, depth, faces, s, triangles), inputs, eps=1e-7, fast_mode=True
    )


def test_pose_of_a_sphere_is_recovered_from_its_outline() -> None:
    def picture(pose: Tensor) -> Tensor:
        return antialias(*disc(*pose, level=3, size=96))

    truth = torch.tensor([51.7, 44.1, 31.0], dtype=torch.float64)
    target = picture(truth)
    pose = torch.tensor([43.0, 50.0, 24.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([pose], lr=0.5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [70, 110], gamma=0.15)
    for _ in range(150):
        optimizer.zero_grad()
        ((picture(pose) - target) ** 2).mean().backward()
        optimizer.step()
        schedule.step()
    assert (pose - truth).abs().max() < 0.02


def test_edges_of_a_mesh_are_remembered_and_forgotten() -> None:
    white, depth, faces, screen, triangles = disc(*torch.tensor([10.0, 10, 6]).double(), level=1, size=20)
    soft = antialias(white, depth, faces, screen, triangles)
    edges = antialiasing._edges(triangles)
    assert antialiasing._edges(triangles) is edges
    assert edges.ends.shape[1] == 3 * len(triangles) // 2  # closed: every edge has two triangles
    assert edges.triangles.max() < len(triangles)
    triangles[:] = triangles.roll(1, 1)  # the same triangles, written in place: found again
    assert antialiasing._edges(triangles) is not edges
    assert torch.allclose(antialias(white, depth, faces, screen, triangles), soft)
    kept = weakref.ref(antialiasing._edges(triangles).ends)
    assert kept() is not None
    del triangles
    assert kept() is None


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (10.0, 10), (True, 10), ("10", 10)])
def test_image_sizes_that_are_not_positive_whole_numbers(size: tuple) -> None:
    screen, triangles = two_balls(0, 10, 10)
    with pytest.raises(ImageSizeError):
        rasterize(screen, triangles, *size)


def test_meshes_that_do_not_fit() -> None:
    screen, triangles = two_balls(0, 10, 10)
    faces = rasterize(screen, triangles, 10, 10)
    image, depth = interpolate(screen, triangles, faces, screen)
    wrong = [
        lambda: rasterize(screen, triangles + 1, 10, 10),
        lambda: rasterize(screen, triangles - 1, 10, 10),
        lambda: rasterize(screen, triangles.int(), 10, 10),
        lambda: rasterize(screen, triangles[:, :2], 10, 10),
        lambda: rasterize(screen[:, :2], triangles, 10, 10),
        lambda: rasterize(screen.long(), triangles, 10, 10),
        lambda: interpolate(screen, triangles, faces, screen[1:]),
        lambda: interpolate(screen, triangles[:3], faces, screen),
        lambda: interpolate(screen, triangles, faces.int(), screen),
        lambda: interpolate(screen.expand(2, -1, -1), triangles, faces.expand(3, -1, -1), screen),
        lambda: antialias(image[..., 1:], depth, faces, screen, triangles),
        lambda: antialias(image, depth[0], faces, screen, triangles),
    ]
    for call in wrong:
        with pytest.raises(MeshError):
            call()


def test_nan_positions() -> None:
    screen, triangles = two_balls(0, 10, 10)
    faces = rasterize(screen, triangles, 10, 10)
    screen[3, 1] = torch.nan
    with pytest.raises(ParameterError, match="NaN"):
        rasterize(screen, triangles, 10, 10)
    with pytest.raises(ParameterError, match="NaN"):
        interpolate(screen, triangles, faces, screen)


def test_values_that_are_not_on_a_cpu_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would have to be waited for. Tensors without values refuse to be looked at."""
    screen, triangles = (part.to("meta") for part in two_balls(0, 10, 10))
    faces = torch.empty(10, 10, dtype=torch.int64, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        inputs.check_mesh(screen, triangles)  # the triangles are, once
    monkeypatch.setattr(inputs, "_range", lambda triangles: (0, 5))
    inputs.check_mesh(screen, triangles)
    inputs.check_face_index(faces, 7)


def test_backends_that_cannot_be_used() -> None:
    screen, triangles = two_balls(0, 10, 10)
    with pytest.raises(FacelabError, match="no backend 'opengl'"):
        rasterize(screen, triangles, 10, 10, backend="opengl")
    if not importlib.util.find_spec("pytorch3d"):
        with pytest.raises(FacelabError, match="install it"):
            rasterize(screen, triangles, 10, 10, backend="pytorch3d")
    if importlib.util.find_spec("numba"):
        with pytest.raises(FacelabError, match="CPU"):
            backends.choose("numba", torch.device("cuda"))


def test_auto_falls_back_to_torch_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, triangles = two_balls(0, 10, 10)
    expected = rasterize(screen, triangles, 10, 10)
    original = backends._load
    missing = ImportError("No module named 'numba'")
    monkeypatch.setattr(backends, "_load", lambda name: missing if name == "numba" else original(name))
    assert backends.choose("auto", torch.device("cpu")) is torch_backend
    assert torch.equal(rasterize(screen, triangles, 10, 10), expected)
    with pytest.raises(FacelabError, match="install it"):
        rasterize(screen, triangles, 10, 10, backend="numba")
