"""A Reconstruction from coefficients is what the parts say it is."""

import pytest
import torch

from facelab.camera import PerspectiveCamera
from facelab.errors import ParameterError
from facelab.illumination import ambient_to_sh
from facelab.morphable_model import MorphableModel
from facelab.records import Reconstruction


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def test_from_coefficients_renders_what_the_coefficients_say(model: MorphableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    person = {name: value[0] for name, value in model.sample(1, generator).items()}
    camera = PerspectiveCamera.from_fov(24.0, 96, 96).look((0.0, 0.5, 0.0))
    light = ambient_to_sh(torch.ones(3))
    said = Reconstruction.from_coefficients(model, camera, 96, 96, light=light, **person)
    expected = model.vertices(person["identity"], person["expression"])
    torch.testing.assert_close(said.mesh.vertices, expected)
    assert said.mesh.topology == model.name and said.mesh.landmarks is not None
    projected = camera.project(model.landmarks(expected, camera.rotation))[:, :2]
    torch.testing.assert_close(said.landmarks, projected)
    # The jaw of a turned head slides; the points of the mesh are fixed.
    fixed = camera.project(said.mesh.landmarks)[:, :2]
    assert (fixed - said.landmarks)[:17].norm(dim=1).max() > 1 > (fixed - said.landmarks)[17:].abs().max()
    assert said.image is not None and said.mask is not None and said.diffuse is not None
    assert 0.2 < said.mask.float().mean() < 0.8
    assert said.image[:, ~said.mask[0]].abs().max() == 0 < said.image[:, said.mask[0]].min()


def test_what_is_not_estimated_stays_unknown(model: MorphableModel) -> None:
    said = Reconstruction.from_coefficients(model, PerspectiveCamera.from_fov(24.0, 64, 64), 64, 64)
    assert said.image is None and said.diffuse is None and said.light is None
    assert said.mask is not None and said.mask.any()
    torch.testing.assert_close(said.mesh.vertices, model.mean)


def test_nan_is_refused(model: MorphableModel) -> None:
    bad = torch.full((3,), torch.nan)
    camera = PerspectiveCamera.from_fov(24.0, 64, 64)
    with pytest.raises(ParameterError):
        Reconstruction.from_coefficients(model, camera, 64, 64, identity=bad)
