"""benchmarks/people.py on landmarks of the model's own people."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import people

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.energy import Settings
from facelab.model.morphable_model import MorphableModel

COUNT = 3


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0).truncate(40, 20, 0)


@pytest.fixture(scope="module")
def marks(model: MorphableModel) -> torch.Tensor:
    """Landmarks (COUNT, 68, 2) of people of the model, some turned and tilted."""
    drawn = model.sample(COUNT, torch.Generator().manual_seed(3), expression_scale=0.3)
    pictures = []
    for i in range(COUNT):
        rotation = euler_to_matrix(torch.tensor([0.1 * (i - 1), 0.2 * (i - 1), 0.1 * i]))
        points = model.landmarks(model.vertices(drawn["identity"][i], drawn["expression"][i]), rotation)
        offset = -rotation @ points.mean(0) - torch.tensor([0.0, 0.0, 850.0])
        camera = PerspectiveCamera(rotation, offset, torch.tensor(3.5 * 256), torch.full((2,), 128.0))
        pictures.append(camera.project(points)[:, :2])
    return torch.stack(pictures)


def test_the_models_own_people_fit_and_a_shifted_landmark_shows_as_bias(
    model: MorphableModel, marks: torch.Tensor
) -> None:
    own = people.measure(model, marks)
    assert set(own) == set(people.MEASURES)
    shifted = marks.clone()
    shifted[:, 21, 0] += 9.0  # one inner end of a brow, always to the same side
    other = people.measure(model, shifted)
    assert own["inner_percent"] < 0.8 * other["inner_percent"] and own["bias_mm"] < 0.8 * other["bias_mm"]
    assert own["inner_percent"] < own["hidden_half_percent"] < other["hidden_half_percent"]


def test_residuals_are_in_the_faces_frame(model: MorphableModel, marks: torch.Tensor) -> None:
    """A landmark moved up along a tilted head's axis has a residual that points up, whatever the roll."""
    settings = Settings(size=256)
    for roll in (-0.4, 0.5):
        turn = torch.tensor([[torch.cos(torch.tensor(roll)), -torch.sin(torch.tensor(roll))],
                             [torch.sin(torch.tensor(roll)), torch.cos(torch.tensor(roll))]])  # fmt: skip
        rolled = (marks[1] - 128) @ turn.T + 128
        plain = people.fit_photograph(model, rolled, settings).residual[30]
        moved = rolled.clone()
        moved[30] += turn @ torch.tensor([0.0, -9.0])
        residual = people.fit_photograph(model, moved, settings).residual[30] - plain
        assert residual[1] > 1.0 and residual[1] > 3 * residual[0].abs()
