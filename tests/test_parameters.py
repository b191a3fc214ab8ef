import math

import pytest
import torch

from facelab.model.layout import ParameterLayout
from facelab.support.errors import ParameterError

LAYOUTS = {
    "InverseFaceNet": (ParameterLayout(rotation=3, shape=128, expression=64, reflectance=128, light=27), 350),
    "MoFA": (
        ParameterLayout(shape=80, expression=64, reflectance=80, rotation=3, translation=3, light=27),
        257,
    ),
    "CoarseNet": (ParameterLayout(identity=200, expression=84, pose=6), 290),
}


@pytest.mark.parametrize("paper", LAYOUTS)
def test_layouts_of_the_papers(paper: str) -> None:
    layout, size = LAYOUTS[paper]
    assert layout.size == size
    theta = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(0))
    parts = layout.split(theta)
    assert tuple(parts) == layout.names
    for name, part in parts.items():
        assert part.shape == (2, 3, layout.sizes[name])
        assert torch.equal(part, theta[..., layout.slice(name)])
    assert torch.equal(layout.join(parts), theta)


def test_join_broadcasts_and_ignores_the_order_given() -> None:
    layout = ParameterLayout(a=1, b=2)
    theta = layout.join({"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a": torch.tensor([9.0])})
    assert torch.equal(theta, torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]))


def test_gradients_go_through() -> None:
    layout = ParameterLayout(a=2, b=3)
    theta = layout.zeros(4, dtype=torch.float64).requires_grad_()
    layout.split(theta)["b"].sum().backward()
    expected = torch.tensor([0.0, 0, 1, 1, 1], dtype=torch.float64).expand(4, 5)
    assert theta.grad is not None and torch.equal(theta.grad, expected)


def test_zeros() -> None:
    layout = ParameterLayout(a=2, b=3)
    assert layout.zeros().shape == (5,) and layout.zeros(4, 2).shape == (4, 2, 5)
    assert layout.zeros(dtype=torch.float64).dtype == torch.float64
    layout.check(layout.zeros(7))


def test_equality_and_repr() -> None:
    assert ParameterLayout(a=2, b=3) == ParameterLayout(a=2, b=3) != ParameterLayout(b=3, a=2)
    assert repr(ParameterLayout(a=2, b=3)) == "ParameterLayout(a=2, b=3)"


def test_bad_parameters_are_named() -> None:
    layout = ParameterLayout(pose=2, light=3)
    for bad in (math.nan, math.inf):
        theta = layout.zeros(2)
        theta[1, 4] = bad
        with pytest.raises(ParameterError, match="in light"):
            layout.check(theta)
    for wrong in (torch.zeros(6), torch.tensor(0.0)):
        with pytest.raises(ParameterError, match="vector of 5"):
            layout.split(wrong)
        with pytest.raises(ParameterError, match="vector of 5"):
            layout.check(wrong)
    with pytest.raises(ParameterError, match="no part 'shape'"):
        layout.slice("shape")
    with pytest.raises(ParameterError, match="Expected the parts pose, light"):
        layout.join({"pose": torch.zeros(2)})
    with pytest.raises(ParameterError, match=r"'light' must be \(..., 3\)"):
        layout.join({"pose": torch.zeros(2), "light": torch.zeros(2)})
    for sizes in ({}, {"a": -1}, {"a": 2.5}):
        with pytest.raises(ParameterError, match="whole size of 0 or more"):
            ParameterLayout(**sizes)
