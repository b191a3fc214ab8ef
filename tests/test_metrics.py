import math

import pytest
import torch

from facelab.errors import ParameterError
from facelab.geometry import euler_to_matrix
from facelab.metrics import (
    INNER_LANDMARKS,
    geometry_rmse_mm,
    landmark_error_px,
    nme,
    photometric_rmse,
    pose_error_degrees,
    rigid_align,
    scale_free_error,
)

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


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ParameterError, match=r"\(60, 3\) with \(59, 3\)"):
        geometry_rmse_mm(face(), face()[1:])
    with pytest.raises(ParameterError, match="icp"):
        geometry_rmse_mm(face(), face(), align="icp")
    with pytest.raises(ParameterError, match="pupils"):
        nme(torch.zeros(68, 2), torch.zeros(68, 2), "pupils")
    with pytest.raises(ParameterError, match="last 3 dimensions"):
        photometric_rmse(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))
