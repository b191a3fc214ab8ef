import math

import pytest
import torch

from facelab.evaluation.metrics import (
    INNER_LANDMARKS,
    INNER_MOUTH,
    colour_distance,
    depth_errors_mm,
    direction_error_degrees,
    frechet_distance,
    geometry_rmse_mm,
    icp_distance_mm,
    inner_mouth_error_mm,
    landmark_error_px,
    light_direction,
    mask_iou,
    nme,
    photometric_rmse,
    pose_error_degrees,
    posed_distance_mm,
    rigid_align,
    scale_free_error,
    seen_light_direction,
)
from facelab.geometry.mesh import vertex_normals
from facelab.geometry.rotations import euler_to_matrix
from facelab.rendering.illumination import ambient_to_sh, directional_to_sh, sh_basis
from facelab.support.errors import ParameterError

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
ROTATION = euler_to_matrix(torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64))
SHIFT = torch.tensor([10.0, -20.0, 600.0], dtype=torch.float64)


def face(*batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return 50 * torch.randn(*batch, 60, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moved(points: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return scale * points @ ROTATION.mT.to(points) + SHIFT.to(points)


@DTYPES
def test_a_moved_copy_has_no_geometry_error(dtype: torch.dtype, tolerance: float) -> None:
    truth = face(2, 3, dtype=dtype)
    copy = moved(truth)
    assert geometry_rmse_mm(copy, truth).shape == (2, 3)
    assert geometry_rmse_mm(copy, truth).max() < tolerance
    torch.testing.assert_close(rigid_align(copy, truth), truth, atol=10 * tolerance, rtol=0)
    assert geometry_rmse_mm(copy, truth, align="none").min() > 500


@DTYPES
def test_only_similarity_forgives_size(dtype: torch.dtype, tolerance: float) -> None:
    truth = face(dtype=dtype)
    bigger = moved(truth, scale=1.1)
    assert geometry_rmse_mm(bigger, truth, align="similarity") < tolerance
    # Rigidly aligned, every point is 10 % of its distance from the centre away.
    spread = (truth - truth.mean(0)).square().sum(-1).mean().sqrt()
    torch.testing.assert_close(geometry_rmse_mm(bigger, truth), 0.1 * spread)


def test_known_offset() -> None:
    truth = face(4)
    offset = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    error = geometry_rmse_mm(truth + offset, truth, align="none")
    torch.testing.assert_close(error, torch.full((4,), 3.0, dtype=torch.float64))


def test_a_mirrored_face_is_not_the_same() -> None:
    assert geometry_rmse_mm(face() * torch.tensor([-1.0, 1.0, 1.0]), face()) > 5


@pytest.mark.parametrize("align", ["rigid", "similarity", "none"])
def test_weights_select_vertices(align: str) -> None:
    truth = face(2)
    estimate = truth if align == "none" else moved(truth)
    wrong = estimate.clone()
    wrong[:, :20] += 100 * face(seed=1)[:20]
    good = (torch.arange(60) >= 20).expand(2, 60)
    assert geometry_rmse_mm(wrong, truth, align, weights=good).max() < 1e-9
    assert geometry_rmse_mm(wrong, truth, align).min() > 10


def test_alignment_is_differentiable() -> None:
    noisy = (moved(face()) + face(seed=2) * 0.1).requires_grad_()
    geometry_rmse_mm(noisy, face()).backward()
    assert noisy.grad is not None and torch.isfinite(noisy.grad).all()
    # Moving all points together changes nothing.
    assert noisy.grad.sum(0).abs().max() < 1e-9


@DTYPES
def test_pose_error(dtype: torch.dtype, tolerance: float) -> None:
    angles = torch.tensor([0.0, 0.5, 30.0, 179.0], dtype=dtype)
    zero = torch.zeros_like(angles)
    turn = euler_to_matrix(torch.stack([zero, torch.deg2rad(angles), zero], -1))
    start = ROTATION.to(dtype)
    tolerance = 0.02 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(pose_error_degrees(turn @ start, start), angles, atol=tolerance, rtol=0)


def test_landmark_errors() -> None:
    truth = torch.zeros(68, 2)
    truth[0], truth[8] = torch.tensor([0.0, 0.0]), torch.tensor([30.0, 40.0])  # a box with diagonal 50
    truth[36], truth[45] = torch.tensor([5.0, 20.0]), torch.tensor([25.0, 20.0])  # eyes 20 apart
    estimate = truth + torch.tensor([3.0, 4.0])
    estimate[:17] += torch.tensor([3.0, 4.0])  # the jaw is twice as far off
    mean = (51 * 5 + 17 * 10) / 68
    assert float(landmark_error_px(estimate, truth)) == pytest.approx(mean)
    assert float(nme(estimate, truth)) == pytest.approx(mean / 50)
    assert float(nme(estimate, truth, "interocular")) == pytest.approx(mean / 20)
    assert float(nme(estimate, truth, points=INNER_LANDMARKS)) == pytest.approx(5 / 50)
    assert nme(estimate.expand(2, 3, 68, 2), truth).shape == (2, 3)


def test_photometric_rmse() -> None:
    truth = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = truth + 10 / 255
    torch.testing.assert_close(photometric_rmse(image, truth), torch.tensor([10.0, 10.0]))
    image[..., :4] += 1
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = True
    torch.testing.assert_close(photometric_rmse(image, truth, mask), torch.tensor([10.0, 10.0]))
    # One channel of three off by 30 is 30 / sqrt(3) in the mean square.
    one_channel = truth.clone()
    one_channel[:, 1] -= 30 / 255
    torch.testing.assert_close(photometric_rmse(one_channel, truth), torch.full((2,), 30 / math.sqrt(3)))
    assert photometric_rmse(image, truth, torch.zeros(1, 8, 8)).isnan().all()


def test_common_scale_is_no_error() -> None:
    truth = face().abs() + 1
    assert scale_free_error(truth * torch.tensor([0.5, 2.0, 3.0]), truth) < 1e-9
    assert float(scale_free_error(torch.zeros_like(truth), truth)) == pytest.approx(1)
    # Two points, one channel: (1, 1) explains (1, 3) best as (2, 2), which leaves sqrt(2/10).
    error = scale_free_error(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
    assert float(error) == pytest.approx(math.sqrt(0.2))


@DTYPES
def test_mofas_error_forgives_size_and_place_but_not_rotation(dtype: torch.dtype, tolerance: float) -> None:
    truth = face(2, dtype=dtype)
    assert posed_distance_mm(1.3 * truth + SHIFT.to(truth), truth).max() < tolerance
    assert posed_distance_mm(moved(truth), truth).min() > 30
    # Turned by 2a about an axis, the best size is cos 2a, and a point at distance r is r sin 2a off.
    ring = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=dtype) * 100
    turn = euler_to_matrix(torch.tensor([0.0, 0.0, math.radians(30)], dtype=dtype))
    error = posed_distance_mm(ring @ turn.mT, ring)
    assert float(error) == pytest.approx(50, abs=10 * tolerance)
    # The far point has no weight: it neither moves the centre nor counts.
    far = torch.cat([ring, ring.new_full((1, 3), 1e4)])
    weights = torch.tensor([1.0, 1, 1, 1, 0])
    assert float(posed_distance_mm(far @ turn.mT, far, weights)) == pytest.approx(50, abs=10 * tolerance)


def sheet(height, step: float, half: float = 120.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The surface z = height(x, y) over a square, as a triangle mesh with the given grid step in mm."""
    side = torch.arange(-half, half + step / 2, step, dtype=torch.float64)
    x, y = torch.meshgrid(side, side, indexing="xy")
    index = torch.arange(len(side) ** 2).view(len(side), -1)
    a, b, c, d = (i.flatten() for i in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    triangles = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
    return torch.stack([x, y, height(x, y).expand_as(x)], -1).flatten(0, 1), triangles


def bowl(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -(x**2) / 200 - y**2 / 350 + x * y / 900


CORNERS = torch.tensor([[60.0, 60], [-60, 60], [60, -60], [-60, -60], [0, 0]], dtype=torch.float64)
ANCHORS = torch.cat([CORNERS, bowl(CORNERS[:, 0], CORNERS[:, 1])[:, None]], 1)


def test_icp_forgives_size_place_and_topology() -> None:
    truth = sheet(bowl, 2.0)
    vertices, triangles = sheet(bowl, 2.7)  # the same surface, other vertices
    elsewhere = (moved(vertices, 1.4).float(), triangles)
    start = (moved(ANCHORS, 1.4) + torch.tensor([5.0, -4.0, 3.0]), ANCHORS + CORNERS.roll(1, 0)[:, :1] / 30)
    error = icp_distance_mm(elsewhere, truth, start, ANCHORS[-1])
    assert error < 0.02
    assert icp_distance_mm(elsewhere, truth, start, ANCHORS[-1], iterations=0) > 1


def test_icp_of_a_wavy_bowl_is_the_mean_height_of_the_waves() -> None:
    truth, triangles = sheet(bowl, 1.5)
    around_nose = truth.norm(dim=1) < 95
    upright = vertex_normals(truth, triangles)[around_nose, 2].mean()  # waves are measured along the normal
    for height in (0.2, 0.4):
        wavy = sheet(lambda x, y, h=height: bowl(x, y) + h * torch.cos(x * math.pi / 8), 1.0)
        error = icp_distance_mm(wavy, (truth, triangles), (ANCHORS, ANCHORS), torch.zeros(3))
        assert float(error) == pytest.approx(2 / math.pi * height * float(upright), rel=0.03)


def test_icp_does_not_see_a_surface_slide_along_itself() -> None:
    """Why the scoreboard shows the true error beside it."""
    vertices, triangles = sheet(lambda x, y: torch.zeros(()), 2.0, half=150.0)
    slid = vertices.clone()
    slid[:, 0] += 8 * torch.sin(vertices[:, 1] / 20)
    assert geometry_rmse_mm(slid, vertices) > 4
    assert icp_distance_mm((slid, triangles), (vertices, triangles), (ANCHORS, ANCHORS), ANCHORS[-1]) < 1e-6


def test_icp_looks_only_around_the_nose_and_not_over_the_border() -> None:
    vertices, triangles = sheet(bowl, 3.0)
    outside = vertices[:, :2].norm(dim=1) > 105
    damaged = torch.where(outside[:, None], vertices + torch.tensor([0.0, 0.0, 6.0]), vertices)
    both = (ANCHORS, ANCHORS)
    assert icp_distance_mm((damaged, triangles), (vertices, triangles), both, ANCHORS[-1]) < 0.02
    assert icp_distance_mm((damaged, triangles), (vertices, triangles), both, ANCHORS[-1], radius=140) > 0.5
    small = triangles[(vertices[triangles][..., :2].norm(dim=-1) < 50).all(1)]
    assert icp_distance_mm((vertices, small), (vertices, triangles), both, ANCHORS[-1]) < 0.05
    assert icp_distance_mm((vertices, triangles), (vertices, triangles), both, ANCHORS[-1] + 1000).isnan()


def test_depth_errors() -> None:
    truth = torch.full((2, 1, 10, 10), 600.0)
    valid = torch.ones(2, 1, 10, 10, dtype=torch.bool)
    valid[..., 0, :] = False
    offset = torch.zeros(10, 10)
    offset[1:3] = 10.0  # 20 of 90 valid pixels
    estimate = truth + 55 + offset  # the distance is not an error
    estimate[..., 0, :] = torch.nan
    mean, p90 = depth_errors_mm(estimate, truth, valid)
    torch.testing.assert_close(mean, torch.full((2,), 10 * 20 / 90))
    torch.testing.assert_close(p90, torch.full((2,), 10.0))
    offset[1], offset[2, 0] = 0.0, 0.0  # now 9 of 90: rank 0.9 * 89 = 80.1 is between the last 0 and a 10
    mean, p90 = depth_errors_mm(truth + offset, truth, valid)
    torch.testing.assert_close(mean, torch.full((2,), 10 * 9 / 90))
    torch.testing.assert_close(p90, torch.full((2,), 1.0), atol=1e-4, rtol=0)
    assert depth_errors_mm(truth, truth, torch.zeros_like(valid))[0].isnan().all()


def test_light_direction() -> None:
    towards = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.5, 1.0]], dtype=torch.float64)
    colour = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    light = directional_to_sh(towards, colour) + ambient_to_sh(colour)
    assert direction_error_degrees(light_direction(light), towards).max() < 1e-6
    x, y = torch.eye(3)[:2]
    assert float(direction_error_degrees(2 * x, x + y)) == pytest.approx(45)
    assert float(direction_error_degrees(-x, x)) == pytest.approx(180)
    assert float(direction_error_degrees(light_direction(ambient_to_sh(colour)).float(), x)) == 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_light_direction_is_found_from_what_is_seen(dtype: torch.dtype) -> None:
    towards = torch.tensor([[0.0, 0, 1], [1, 0.2, 0.3], [-0.3, 0.8, 0.1], [0.5, -0.5, 1]], dtype=dtype)
    colour = torch.tensor([0.9, 0.6, 0.3], dtype=dtype)
    light = directional_to_sh(towards, colour) + ambient_to_sh(0.5 * colour)
    assert direction_error_degrees(seen_light_direction(light), towards).max() < 3
    assert direction_error_degrees(seen_light_direction(3 * light), towards).max() < 3
    # z ~ (1 + 5 (3z²-1)/2 ...)/...: add what hardly changes normals with z > 0, so that z's sign turns.
    side = torch.linspace(0.15, 1, 50, dtype=torch.float64)
    normals = torch.stack([(1 - side**2).sqrt(), 0 * side, side], -1)
    basis = sh_basis(normals)[:, [0, 2, 6]]
    weakest = torch.linalg.eigh(basis.T @ basis)[1][:, 0]
    unseen = light.clone()
    unseen[0, [0, 2, 6]] -= (2 * light[0, 2].mean() / weakest[1] * weakest)[:, None].to(light)
    assert light[0, 2].mean() > 0 > unseen[0, 2].mean()
    assert direction_error_degrees(light_direction(unseen), towards)[0] > 90
    assert direction_error_degrees(seen_light_direction(unseen), towards)[0] < 30
    assert float(direction_error_degrees(seen_light_direction(ambient_to_sh(colour)), towards[0])) == 90


def test_inner_mouth() -> None:
    truth = face(dtype=torch.float64).repeat(2, 1)[:68]
    estimate = truth.clone()
    estimate[INNER_MOUTH, 2] += 3.0
    # the alignment shares a little of the shift among all 51 points
    assert 2.0 < inner_mouth_error_mm(moved(estimate), truth) < 3.0
    estimate = truth.clone()
    estimate[:17] += 40  # the jaw takes no part
    assert inner_mouth_error_mm(moved(estimate), truth) < 1e-9


def test_colour_distance_and_overlap() -> None:
    truth = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = truth + torch.tensor([0.1, 0.2, 0.2])[:, None, None]
    torch.testing.assert_close(colour_distance(image, truth), torch.full((2,), 0.3))
    image[..., :4] += 1
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = True
    torch.testing.assert_close(colour_distance(image, truth, mask), torch.full((2,), 0.3))
    assert float(mask_iou(mask, mask)) == 1 and float(mask_iou(mask, ~mask)) == 0
    assert float(mask_iou(mask, mask.roll(2, -1))) == pytest.approx(2 / 6)
    assert mask_iou(mask & False, mask & False).isnan()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ParameterError, match=r"\(60, 3\) with \(59, 3\)"):
        geometry_rmse_mm(face(), face()[1:])
    with pytest.raises(ParameterError, match="icp"):
        geometry_rmse_mm(face(), face(), align="icp")
    with pytest.raises(ParameterError, match="pupils"):
        nme(torch.zeros(68, 2), torch.zeros(68, 2), "pupils")
    with pytest.raises(ParameterError, match="last 3 dimensions"):
        photometric_rmse(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))


def test_frechet_distance_of_known_gaussians() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=g, dtype=torch.float64)
    b = 2 * torch.randn(200_000, 3, generator=g, dtype=torch.float64) + torch.tensor([3.0, 0.0, 4.0])
    # of equal axes: the means' distance, and the difference of the standard deviations on every axis
    assert frechet_distance(a, b) == pytest.approx((25 + 3) ** 0.5, rel=0.01)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)
    with pytest.raises(ParameterError, match="clouds"):
        frechet_distance(a, b[:, :2])
