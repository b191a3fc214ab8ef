import math

import pytest
import torch

from facelab.geometry.camera import NEAR_MM, Camera, PerspectiveCamera, WeakPerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.support.errors import ParameterError

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])


def points(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return 80 * torch.randn(*batch, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_cameras(count: int, dtype: torch.dtype = torch.float64) -> list[Camera]:
    generator = torch.Generator().manual_seed(1)
    angles = 0.5 * torch.randn(count, 3, generator=generator, dtype=dtype)
    offset = 120 + 10 * torch.rand(count, 2, generator=generator, dtype=dtype)
    focal = 500 + 100 * torch.rand(count, generator=generator, dtype=dtype)
    translation = 20 * torch.randn(count, 3, generator=generator, dtype=dtype)
    translation[:, 2] -= 600
    rotation = euler_to_matrix(angles)
    return [
        PerspectiveCamera(rotation, translation, focal, offset),
        WeakPerspectiveCamera(rotation, focal / 600, offset),
    ]


@DTYPES
def test_perspective_by_hand(dtype: torch.dtype, tolerance: float) -> None:
    camera = PerspectiveCamera.from_fov(90.0, 200, 320, distance=500.0, dtype=dtype)
    torch.testing.assert_close(camera.focal, torch.tensor(100.0, dtype=dtype))  # tan 45° = 1: half the height
    screen = camera.project(torch.tensor([[0.0, 0.0, 0.0], [50.0, 100.0, 100.0]], dtype=dtype))
    # 400 mm away: 100 px * 50 / 400 to the right of the middle, 100 px * 100 / 400 above it.
    expected = torch.tensor([[160.0, 100.0, 500.0], [172.5, 75.0, 400.0]], dtype=dtype)
    torch.testing.assert_close(screen, expected, rtol=tolerance, atol=0)


@DTYPES
def test_weak_perspective_by_hand(dtype: torch.dtype, tolerance: float) -> None:
    camera = WeakPerspectiveCamera.frontal(2.0, 200, 320, dtype=dtype)
    screen = camera.project(torch.tensor([[0.0, 0.0, 0.0], [10.0, 20.0, 30.0]], dtype=dtype))
    expected = torch.tensor([[160.0, 100.0, 10_000.0], [180.0, 60.0, 9970.0]], dtype=dtype)
    torch.testing.assert_close(screen, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("kind", [0, 1])
def test_batches_broadcast(kind: int) -> None:
    cameras = random_cameras(5)[kind]
    shared, own = points(30), points(5, 30)
    together, apart = cameras.project(shared), cameras.project(own)
    assert together.shape == apart.shape == (5, 30, 3)
    for k in range(5):
        one = type(cameras)(*(v[k] if isinstance(v, torch.Tensor) else v for v in vars(cameras).values()))
        torch.testing.assert_close(together[k], one.project(shared))
        torch.testing.assert_close(apart[k], one.project(own[k]))
    assert cameras.view_directions(cameras.to_camera(shared)).shape == (5, 30, 3)


def test_one_batched_field_is_enough() -> None:
    camera = PerspectiveCamera.from_fov(20.0, 240, 240, dtype=torch.float64)
    principal = camera.principal + torch.arange(4, dtype=torch.float64)[:, None]
    many = PerspectiveCamera(camera.rotation, camera.translation, camera.focal, principal)
    expected = camera.project(points(7)) + torch.tensor([3.0, 3.0, 0.0])
    torch.testing.assert_close(many.project(points(7))[3], expected)
    assert many.to_opencv()[2].shape == (4, 3, 3)


def test_depth_is_positive_and_falls_towards_the_viewer() -> None:
    along_z = torch.stack([torch.zeros(9), torch.zeros(9), torch.linspace(-150, 150, 9)], -1)
    for camera in (PerspectiveCamera.from_fov(20.0, 240, 240), WeakPerspectiveCamera.frontal(1.0, 240, 240)):
        depth = camera.project(along_z)[:, 2]
        assert (depth > 0).all() and (depth.diff() < 0).all()
        torch.testing.assert_close(depth, -camera.to_camera(along_z)[:, 2])


def test_points_behind_the_camera_stay_finite_and_keep_their_depth() -> None:
    camera = PerspectiveCamera.from_fov(20.0, 240, 240, distance=600.0, dtype=torch.float64)
    behind = torch.tensor([[10.0, 5.0, 600.0], [10.0, 5.0, 900.0]], dtype=torch.float64, requires_grad=True)
    screen = camera.project(behind)
    torch.testing.assert_close(screen[:, 2].detach(), torch.tensor([0.0, -300.0], dtype=torch.float64))
    expected_x = 120 + camera.focal * 10 / NEAR_MM
    torch.testing.assert_close(screen[:, 0].detach(), expected_x.expand(2))
    screen.sum().backward()
    assert behind.grad is not None and torch.isfinite(behind.grad).all()


def test_opencv_formula_gives_the_same_pixels() -> None:
    camera = random_cameras(4)[0]
    assert isinstance(camera, PerspectiveCamera)
    x = points(4, 25)
    rotation, translation, matrix = camera.to_opencv()
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4, dtype=torch.float64))
    projected = (x @ rotation.mT + translation[:, None]) @ matrix.mT
    screen = camera.project(x)
    assert (projected[..., 2] > 0).all()
    # OpenCV counts from the centre of the first pixel, we from its corner.
    torch.testing.assert_close(projected[..., :2] / projected[..., 2:] + 0.5, screen[..., :2])
    torch.testing.assert_close(projected[..., 2], screen[..., 2])


def test_view_directions() -> None:
    x = points(40)
    camera = PerspectiveCamera.from_fov(30.0, 100, 100, dtype=torch.float64)
    camera_points = camera.to_camera(x)
    directions = camera.view_directions(camera_points)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(40, dtype=torch.float64))
    distances = camera_points.norm(dim=-1, keepdim=True)
    assert (camera_points + distances * directions).abs().max() < 1e-10
    weak = WeakPerspectiveCamera.frontal(1.0, 100, 100)
    assert (weak.view_directions(weak.to_camera(x.float())) == torch.tensor([0.0, 0.0, 1.0])).all()


def test_far_perspective_is_weak_perspective() -> None:
    distance = 1e7
    weak = random_cameras(1)[1]
    assert isinstance(weak, WeakPerspectiveCamera)
    translation = torch.tensor([[0.0, 0.0, -distance]], dtype=torch.float64)
    full = PerspectiveCamera(weak.rotation, translation, weak.scale * distance, weak.offset)
    torch.testing.assert_close(
        full.project(points(20))[..., :2], weak.project(points(20))[..., :2], rtol=1e-4, atol=0
    )


def test_look_turns_the_head() -> None:
    nose = torch.tensor([[0.0, 0.0, 100.0]])
    for camera in (PerspectiveCamera.from_fov(20.0, 240, 240), WeakPerspectiveCamera.frontal(1.0, 240, 240)):
        assert camera.look([0.3, 0.0, 0.0]).project(nose)[0, 1] > 120, "positive pitch looks down"
        assert camera.look([0.0, 0.3, 0.0]).project(nose)[0, 0] > 120, (
            "positive yaw looks to the image's right"
        )
        ear = torch.tensor([[80.0, 0.0, 0.0]])
        assert camera.look([0.0, 0.0, 0.3]).project(ear)[0, 1] < 120, "positive roll is counter-clockwise"
    moved = PerspectiveCamera.from_fov(20.0, 240, 240).look([0.0, 0.0, 0.0], torch.tensor([0.0, 0.0, -900.0]))
    assert moved.project(torch.zeros(1, 3))[0, 2] == 900


def test_impossible_field_of_view() -> None:
    for bad in (0.0, 180.0, -20.0, math.nan):
        with pytest.raises(ParameterError, match="between 0 and 180"):
            PerspectiveCamera.from_fov(bad, 240, 240)


def test_gradients() -> None:
    x = points(6).requires_grad_()
    angles = torch.tensor([0.2, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([3.0, -5.0, -600.0], dtype=torch.float64, requires_grad=True)
    focal = torch.tensor(700.0, dtype=torch.float64, requires_grad=True)
    centre = torch.tensor([120.0, 118.0], dtype=torch.float64, requires_grad=True)

    def perspective(x, angles, shift, focal, centre):
        camera = PerspectiveCamera(euler_to_matrix(angles), shift, focal, centre)
        return camera.project(x), camera.view_directions(camera.to_camera(x))

    def weak(x, angles, scale, centre):
        return WeakPerspectiveCamera(euler_to_matrix(angles), scale, centre).project(x)

    assert torch.autograd.gradcheck(perspective, (x, angles, shift, focal, centre))
    assert torch.autograd.gradcheck(weak, (x, angles, focal, centre))
