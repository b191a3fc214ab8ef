import pytest
import torch

from facelab.rendering.colour import gamma_encode, linear_to_srgb, srgb_to_linear

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])


@DTYPES
def test_srgb_values_of_the_standard(dtype: torch.dtype, tolerance: float) -> None:
    # Photographer's middle grey: 18 % reflectance is 118/255; 50 % grey decodes to 21.4 %.
    linear = torch.tensor([0.0, 0.0031308, 0.18, 0.5, 1.0], dtype=dtype)
    expected = torch.tensor([0.0, 0.0404500, 0.4613561, 0.7353570, 1.0], dtype=dtype)
    torch.testing.assert_close(linear_to_srgb(linear), expected, atol=1e-6, rtol=0)
    grey = srgb_to_linear(torch.tensor(0.5, dtype=dtype))
    torch.testing.assert_close(grey, torch.tensor(0.2140411, dtype=dtype), atol=1e-6, rtol=0)


@DTYPES
def test_srgb_round_trip(dtype: torch.dtype, tolerance: float) -> None:
    linear = torch.linspace(-0.1, 1.5, 2001, dtype=dtype)
    # The published constants make the two pieces meet only to 3e-8.
    torch.testing.assert_close(
        srgb_to_linear(linear_to_srgb(linear)), linear, atol=max(tolerance, 3e-8), rtol=0
    )


def test_curves_increase() -> None:
    x = torch.linspace(-0.05, 1.2, 5001, dtype=torch.float64)
    for curve in (linear_to_srgb, srgb_to_linear, gamma_encode):
        assert (curve(x).diff() > 0).all(), curve.__name__


def test_gamma() -> None:
    x = torch.tensor([0.0, 1e-3, 0.18, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gamma_encode(x), x ** (1 / 2.2))


@pytest.mark.parametrize("curve", [linear_to_srgb, srgb_to_linear, gamma_encode])
def test_gradients_are_finite_and_right(curve) -> None:
    x = torch.tensor([-0.1, 0.0, 1e-5, 0.001, 0.02, 0.2, 1.0, 1.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(curve, x)
