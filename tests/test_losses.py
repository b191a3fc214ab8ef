"""The losses against their formulas written out, on cases whose value is known, and their gradients."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from facelab import losses

NORMS: tuple[losses.Norm, ...] = ("l2", "l2,1", "l1")


def points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("norm", "length"), [("l2", 0.25), ("l2,1", 0.5), ("l1", 0.7)])
def test_one_point_off_by_3_4_0_tenths(norm: losses.Norm, length: float) -> None:
    drawn = torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, 0.0]])
    seen = torch.zeros(2, 3)
    assert float(losses.photometric(drawn, seen, None, norm)) == pytest.approx(length / 2, abs=1e-5)
    assert float(losses.landmark(drawn, seen, norm=norm)) == pytest.approx(length, abs=2e-5)
    for weights, expected in ((torch.tensor([1.0, 3.0]), length / 4), (torch.tensor([True, False]), length)):
        assert float(losses.photometric(drawn, seen, weights, norm)) == pytest.approx(expected, abs=1e-5)
    weighted = losses.landmark(drawn, seen, torch.tensor([2.0, 1.0]), norm=norm)
    assert float(weighted) == pytest.approx(2 * length, abs=3e-5)


def test_landmarks_in_picture_widths() -> None:
    """3 px of 240 are as far as 1.5 px of 120; squares of them too."""
    drawn, seen = points(4, 46, 2), points(4, 46, 2, seed=1)
    for norm in NORMS:
        whole = losses.landmark(drawn, seen, unit=240, norm=norm)
        torch.testing.assert_close(whole, losses.landmark(drawn / 2, seen / 2, unit=120, norm=norm))
    torch.testing.assert_close(losses.landmark(drawn, seen, unit=10), losses.landmark(drawn, seen) / 100)


@pytest.mark.parametrize("norm", NORMS)
def test_every_picture_by_itself(norm: losses.Norm) -> None:
    """Batches of any shape, and a mask is the same as leaving the other points out."""
    drawn, seen = points(2, 3, 20, 3), points(2, 3, 20, 3, seed=1)
    mask = points(2, 3, 20, seed=2) > 0
    together = losses.photometric(drawn, seen, mask, norm)
    marks = losses.landmark(drawn, seen, mask, norm=norm)
    assert together.shape == marks.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            left = drawn[i, j, mask[i, j]], seen[i, j, mask[i, j]]
            torch.testing.assert_close(together[i, j], losses.photometric(*left, None, norm))
            torch.testing.assert_close(marks[i, j], losses.landmark(*left, norm=norm))


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_hidden_says_nothing(norm: losses.Norm) -> None:
    """Neither NaN behind the camera nor a picture without any visible point spoils the others."""
    drawn, seen = points(2, 4, 3), points(2, 4, 3, seed=1)
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    wild = drawn.clone()
    wild[~mask] = math.nan
    loss = losses.photometric(wild, seen, mask, norm)
    torch.testing.assert_close(loss, losses.photometric(drawn, seen, mask, norm))
    assert loss[0] > 0 and loss[1] == 0


@pytest.mark.parametrize("norm", NORMS)
def test_gradients(norm: losses.Norm) -> None:
    drawn, seen = points(2, 5, 3, dtype=torch.float64), points(2, 5, 3, seed=1, dtype=torch.float64)
    weights = points(2, 5, seed=2, dtype=torch.float64).square()
    for loss in (partial(losses.photometric, norm=norm), partial(losses.landmark, unit=2.0, norm=norm)):
        assert torch.autograd.gradcheck(loss, (drawn.requires_grad_(), seen, weights))
        same = seen.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(same, seen, weights).sum(), same)
        assert bool(gradient.isfinite().all()), "a perfect answer stops, and does not explode"


def test_an_outlier_counts_less_in_the_robust_norm() -> None:
    """Ten times as far off: ten times the ℓ2,1 loss, a hundred times the ℓ2 one."""
    seen, near = torch.zeros(1, 3), torch.tensor([[0.1, 0.0, 0.0]])
    for norm, factor in (("l2", 100), ("l2,1", 10), ("l1", 10)):
        ratio = losses.photometric(10 * near, seen, None, norm) / losses.photometric(near, seen, None, norm)
        assert float(ratio) == pytest.approx(factor, rel=1e-4)


def test_prior_is_the_density_s_logarithm() -> None:
    coefficients = points(4, 30)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = 2 * (normal.log_prob(torch.zeros(4, 30)) - normal.log_prob(coefficients)).sum(-1)
    torch.testing.assert_close(losses.prior(coefficients), expected)
    assert losses.prior(coefficients[:, :0]).tolist() == [0.0] * 4, "no coefficients, no doubt"


def test_identity() -> None:
    """Eq. 8 of GANFIT: 0 for one direction at any length, 1 for a right angle, 2 for opposites."""
    one = torch.tensor([1.0, 0.0, 0.0])
    others = torch.stack([5 * one, torch.tensor([0.0, 2.0, 0.0]), -one])
    torch.testing.assert_close(losses.identity(others, one.expand(3, 3)), torch.tensor([0.0, 1.0, 2.0]))
    mean = points(128, seed=1)
    a, b = points(2, 6, 128)
    by_hand = torch.stack([1 - (p @ q) / (p.norm() * q.norm()) for p, q in zip(a, b)])
    torch.testing.assert_close(losses.identity(a, b), by_hand)
    torch.testing.assert_close(losses.identity(a + mean, b + mean, mean), by_hand, rtol=1e-4, atol=1e-5)


def test_mask_area() -> None:
    """A square of 4×4 pixels against one of 2×2 in 8×8: 12 of 64, wherever they are."""
    large, small = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    large[0, :, :4, :4] = large[1, :, 4:, 4:] = 1
    small[:, :, 3:5, 3:5] = 1
    expected = torch.full((2,), 12 / 64)
    for first, second in ((large, small), (small, large), (large.bool(), small.bool())):
        torch.testing.assert_close(losses.mask_area(first, second), expected)
    (gradient,) = torch.autograd.grad(losses.mask_area(large.requires_grad_(), small).sum(), large)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 64))
