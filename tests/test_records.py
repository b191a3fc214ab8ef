"""A Reconstruction of a Face is what the parts say it is."""

from dataclasses import replace

import pytest
import torch

from facelab.geometry.camera import PerspectiveCamera, WeakPerspectiveCamera
from facelab.model.face import Face
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.photos import crop_face
from facelab.rendering.illumination import (
    BlinnPhongLight,
    Light,
    PhongLight,
    SphericalHarmonicsLight,
    ambient_to_sh,
    directional_to_sh,
    shading_coefficients,
)
from facelab.support.errors import ParameterError


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def test_a_reconstruction_renders_what_the_coefficients_say(model: MorphableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    person = {name: value[0] for name, value in model.sample(1, generator).items()}
    camera = PerspectiveCamera.from_fov(24.0, 96, 96).look((0.0, 0.5, 0.0))
    light = ambient_to_sh(torch.ones(3))
    face = Face(**person, camera=camera, light=SphericalHarmonicsLight(light))
    said = Reconstruction.of(face, model, 96, 96)
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
    nothing = torch.zeros(0)
    face = Face(nothing, nothing, nothing, PerspectiveCamera.from_fov(24.0, 64, 64))
    said = Reconstruction.of(face, model, 64, 64)
    assert said.image is None and said.diffuse is None and said.light is None
    assert said.mask is not None and said.mask.any()
    torch.testing.assert_close(said.mesh.vertices, model.mean)


def test_nan_is_refused(model: MorphableModel) -> None:
    bad = torch.full((3,), torch.nan)
    camera = PerspectiveCamera.from_fov(24.0, 64, 64)
    with pytest.raises(ParameterError):
        Reconstruction.of(Face(bad, bad, bad, camera), model, 64, 64)


def test_a_face_in_the_photo_is_the_face_in_the_crop(model: MorphableModel) -> None:
    generator = torch.Generator().manual_seed(1)
    person = {name: value[0] for name, value in model.sample(1, generator).items()}
    photo = torch.rand(3, 150, 200, generator=generator)
    corners = torch.tensor([[60.0, 30.0], [120.0, 100.0]]).repeat(34, 1)
    crop = crop_face(photo, corners, 96)
    light = SphericalHarmonicsLight(ambient_to_sh(torch.ones(3)))
    for camera in (
        PerspectiveCamera.from_fov(24.0, 96, 96).look((0.1, 0.5, 0.2)),
        WeakPerspectiveCamera.frontal(0.4, 96, 96).look((0.1, 0.5, 0.2)),
    ):
        face = Face(**person, camera=camera, light=light)
        in_photo = face.in_photo(crop)
        moved = crop.to_photo(face.landmarks(model))
        torch.testing.assert_close(in_photo.landmarks(model), moved, atol=1e-3, rtol=0)
        depth = in_photo.camera.project(model.mean)[:, 2]
        torch.testing.assert_close(depth, face.camera.project(model.mean)[:, 2])


def test_a_face_with_fewer_components_is_that_of_the_first_ones(model: MorphableModel) -> None:
    camera = PerspectiveCamera.from_fov(24.0, 64, 64)
    few = Face(torch.ones(3), torch.ones(2), torch.ones(4), camera)
    whole = [torch.zeros(len(b)) for b in (model.identity_basis, model.expression_basis, model.albedo_basis)]
    for part, count in zip(whole, (3, 2, 4)):
        part[:count] = 1
    one, other = few.surface(model), Face(*whole, camera).surface(model)
    for name in ("vertices", "diffuse", "specular", "landmarks", "normals"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    with pytest.raises(ParameterError, match="light"):
        few.render(model, 64, 64)


@pytest.mark.parametrize("kind", ["phong", "blinn"])
def test_any_light_is_drawn_and_has_coefficients(kind: str, model: MorphableModel) -> None:
    ones, position = torch.ones(3), torch.tensor([0.0, 40_000.0, 40_000.0])  # far: as good as directional
    known = ambient_to_sh(0.3 * ones) + directional_to_sh(torch.tensor([0.0, 1.0, 1.0]), 0.5 * ones)
    light: Light = PhongLight(0.3 * ones, position, 0.5 * ones, torch.tensor(20.0))
    if kind == "blinn":
        light = BlinnPhongLight(known, position, 0.5 * ones, torch.tensor(20.0))
    torch.testing.assert_close(shading_coefficients(light), known, atol=0.02, rtol=0)
    nothing = torch.zeros(0)
    face = Face(nothing, nothing, nothing, PerspectiveCamera.from_fov(24.0, 96, 96), light)
    shiny = Reconstruction.of(face, model, 96, 96)
    matt = Reconstruction.of(replace(face, light=SphericalHarmonicsLight(known)), model, 96, 96)
    assert shiny.image is not None and matt.image is not None and shiny.specular is not None
    assert (shiny.image - matt.image).max() > 0.02, "highlights are drawn"
