"""Fitting: Jacobians against automatic differentiation, and known truths recovered."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import Tensor

from facelab.evaluation import metrics
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.energy import Problem, Settings, View
from facelab.methods.fitting import Fit, fit_adam, fit_landmarks, fit_photos, initial_pose, reconstruct
from facelab.methods.residuals import Estimate, VertexBases, shrink, visible_vertices
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.illumination import SphericalHarmonicsLight, ambient_to_sh, directional_to_sh
from facelab.rendering.image_formation import render
from facelab.support.errors import NoFaceError, ParameterError

SMALL = Settings(identity=20, expression=10, albedo=20, size=120, levels=((60, 0, 5), (120, 0, 5)))


@pytest.fixture(scope="module")
def cage() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def some_light(dtype: torch.dtype = torch.float32) -> Tensor:
    light = ambient_to_sh(torch.tensor([0.5, 0.5, 0.5], dtype=dtype))
    return light + directional_to_sh(
        torch.tensor([-0.6, 0.4, 0.7], dtype=dtype), torch.tensor([0.5, 0.48, 0.45], dtype=dtype)
    )


def some_estimate(model: MorphableModel, seed: int, yaw: float = 0.3, strength: float = 0.7) -> Estimate:
    g = torch.Generator().manual_seed(seed)
    dtype = model.mean.dtype

    def normal(count: int) -> Tensor:
        return strength * torch.randn(count, generator=g).to(dtype)

    rotation = euler_to_matrix(torch.tensor([0.1, yaw, -0.05], dtype=dtype))
    middle = model.landmarks(model.mean).mean(0)
    return Estimate(
        identity=normal(len(model.identity_basis)),
        albedo=normal(len(model.albedo_basis)),
        expression=normal(len(model.expression_basis)),
        rotation=rotation,
        translation=torch.tensor([4.0, -6.0, -900.0], dtype=dtype) - rotation @ middle,
        light=some_light(dtype),
    )


def draw(model: MorphableModel, estimate: Estimate, settings: Settings) -> tuple[Tensor, Tensor]:
    """The picture of an estimate over grey, and its landmarks."""
    size = settings.size
    camera = estimate.camera(settings.focal * size, size)
    vertices = model.vertices(estimate.identity, estimate.expression)
    diffuse, _ = model.albedo(estimate.albedo)
    light = SphericalHarmonicsLight(estimate.light)
    grey = torch.full((3, size, size), 0.4)
    picture = render(
        vertices, model.triangles, camera, light, diffuse, None, size, size, antialias=True, background=grey
    )
    return picture.image, camera.project(model.landmarks(vertices, estimate.rotation))[:, :2]


@pytest.fixture(scope="module")
def double(cage: MorphableModel) -> VertexBases:
    return VertexBases(cage.to(dtype=torch.float64).truncate(5, 4, 3))


def numerical_jacobian(function, size: int, step: float = 1e-6) -> Tensor:
    columns = []
    for i in range(size):
        delta = torch.zeros(size, dtype=torch.float64)
        delta[i] = step
        columns.append((function(delta) - function(-delta)) / (2 * step))
    return torch.stack(columns, -1)


def test_landmark_jacobian_is_the_derivative(double: VertexBases) -> None:
    start = some_estimate(double.model, 1)
    target = torch.zeros(68, 2, dtype=torch.float64)

    def residual(step: Tensor) -> Tensor:
        moved = start.moved(double.layout.split(step))
        return double.landmark_residuals(moved, moved.camera(420.0, 120), target)[0]

    _, jacobian = double.landmark_residuals(start, start.camera(420.0, 120), target)
    torch.testing.assert_close(
        jacobian, numerical_jacobian(residual, double.layout.size), rtol=1e-5, atol=1e-5
    )
    assert jacobian[..., double.layout.slice("albedo")].abs().max() == 0


def test_photometric_jacobian_is_the_derivative(double: VertexBases, monkeypatch: pytest.MonkeyPatch) -> None:
    start = some_estimate(double.model, 2)
    camera = start.camera(420.0, 120)
    seen = visible_vertices(
        double.model, double.model.vertices(start.identity, start.expression), camera, 120
    )
    assert len(seen) > 400
    monkeypatch.setattr("facelab.methods.residuals.visible_vertices", lambda *_: seen)
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(120.0), indexing="ij")
    image = torch.stack([x / 120, y / 120, (x + y) / 240]).double()  # no kinks for finite differences

    def residual(step: Tensor) -> Tensor:
        moved = start.moved(double.layout.split(step))
        return double.photometric_residuals(moved, moved.camera(420.0, 120), image)[0]

    _, jacobian, weight = double.photometric_residuals(start, camera, image)
    numerical = numerical_jacobian(residual, double.layout.size)
    scale = numerical.abs().amax((0, 1)).clamp(min=1e-9)
    assert ((jacobian - numerical).abs() / scale).max() < 1e-4
    for name in double.layout.names:
        assert jacobian[..., double.layout.slice(name)].abs().max() > 0, name
    assert float(weight.sum()) == pytest.approx(1)


def test_size_correction_counts_what_the_picture_determines(double: VertexBases) -> None:
    """Of nine shape coefficients most, as long as they are as large as the prior expects; of a face that is
    nearly the average one no more than their squares."""
    settings = replace(SMALL, identity=5, expression=4, albedo=3)
    truth = some_estimate(double.model, 3)
    landmarks = torch.rand(68, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 120
    problem = Problem(double, [View(landmarks)], settings)
    large = replace(truth, identity=truth.identity.sign() * 2, expression=truth.expression.sign() * 2)
    problem.correct_size([large])
    assert 3 < problem.determined[0] < 9
    small = replace(truth, identity=large.identity / 20, expression=large.expression / 20)
    problem.correct_size([small])
    assert problem.determined[0] == pytest.approx(9 * 0.1**2)
    problem.correct_size([replace(large, expression=small.expression)])
    assert 1 < problem.determined[0] < 5 + 4 * 0.1**2


def test_normal_equations_give_the_gradient_of_the_energy(double: VertexBases) -> None:
    settings = replace(SMALL, identity=5, expression=4, albedo=3)
    truth = some_estimate(double.model, 3)
    start = replace(truth, identity=truth.identity * 0.5, expression=truth.expression + 0.3)
    camera = truth.camera(settings.focal * 120, 120)
    vertices = double.model.vertices(truth.identity, truth.expression)
    landmarks = camera.project(double.model.landmarks(vertices, truth.rotation))[:, :2]
    problem = Problem(double, [View(landmarks)], settings)
    problem.correct_size([start])
    system = problem.linearise([start])
    size = double.layout.size

    def energy(step: Tensor) -> Tensor:
        return torch.tensor(problem.linearise(problem.move([start], step)).energy, dtype=torch.float64)

    torch.testing.assert_close(
        2 * system.gradient, numerical_jacobian(energy, size, 1e-5), rtol=1e-4, atol=1e-3
    )


def test_pose_of_the_mean_face_from_landmarks(cage: MorphableModel) -> None:
    for yaw in (-0.6, 0.0, 0.6):
        true = some_estimate(cage, 0, yaw, strength=0.0)
        camera = true.camera(420.0, 120)
        landmarks = camera.project(cage.landmarks(cage.mean))[:, :2]
        rotation, translation = initial_pose(cage, landmarks, 420.0, 120)
        assert float(metrics.pose_error_degrees(rotation, true.rotation)) < 8
        assert abs(float(translation[2] / true.translation[2]) - 1) < 0.1


def test_landmarks_alone_are_met_and_better_than_the_mean_face(cage: MorphableModel) -> None:
    true = some_estimate(cage.truncate(20, 10, 20), 4, yaw=-0.4, strength=1.0)
    _, landmarks = draw(cage.truncate(20, 10, 20), true, SMALL)
    fit = fit_landmarks(cage, [landmarks], SMALL)[0]
    assert float(metrics.landmark_error_px(fit.landmarks(), landmarks)) < 0.5
    assert fit.energies[-1] < 0.2 * fit.energies[0]
    assert all(b <= a * 1.01 for a, b in zip(fit.energies, fit.energies[1:]))


@pytest.mark.parametrize("seed", [5, 6])
def test_photometric_fit_recovers_a_rendered_face(seed: int) -> None:
    """Landmarks off by several pixels, as a detector's are on drawings: the colours must overrule them."""
    model = MorphableModel.load(subdivisions=1).truncate(20, 10, 20)
    true = some_estimate(model, seed, strength=0.9)
    image, landmarks = draw(model, true, SMALL)
    landmarks = landmarks + 2 * torch.randn(68, 2, generator=torch.Generator().manual_seed(seed))
    first = fit_landmarks(model, [landmarks], SMALL)[0]
    settings = replace(SMALL, levels=((60, 0, 4), (120, 1, 6)))
    fit = fit_photos([image], [landmarks], model, settings)[0]
    truth = model.vertices(true.identity, true.expression)
    error = float(metrics.geometry_rmse_mm(fit.vertices(), truth))
    assert error < 0.5 * float(metrics.geometry_rmse_mm(first.vertices(), truth))
    assert error < 0.35 * float(metrics.geometry_rmse_mm(model.mean, truth))
    picture = fit.render()
    assert float(metrics.photometric_rmse(picture.image, image, picture.mask > 0.5)) < 8
    assert float(metrics.pose_error_degrees(fit.estimate.rotation, true.rotation)) < 1.5


def test_several_photographs_share_one_identity(cage: MorphableModel) -> None:
    model = cage.truncate(20, 10, 20)
    person = some_estimate(model, 7, strength=1.0)
    views = [
        replace(some_estimate(model, 7, yaw), identity=person.identity, albedo=person.albedo)
        for yaw in (-0.5, 0.0, 0.5)
    ]
    pictures = [draw(model, view, SMALL) for view in views]
    fits = fit_photos([p for p, _ in pictures], [points for _, points in pictures], model, SMALL)
    assert all(torch.equal(f.estimate.identity, fits[0].estimate.identity) for f in fits)
    assert all(torch.equal(f.estimate.albedo, fits[0].estimate.albedo) for f in fits)
    truth = model.vertices(person.identity)
    single = fit_photos([pictures[1][0]], [pictures[1][1]], model, SMALL)[0]
    together, alone = (
        float(metrics.geometry_rmse_mm(model.vertices(f.estimate.identity), truth)) for f in (fits[0], single)
    )
    assert together < alone


def test_adam_lowers_the_same_energy(cage: MorphableModel) -> None:
    model = cage.truncate(20, 10, 20)
    true = some_estimate(model, 8)
    image, landmarks = draw(model, true, SMALL)
    start = fit_landmarks(model, [landmarks], SMALL)[0]
    fit = fit_adam(image, landmarks, start, steps=60)
    assert fit.energies[-1] < 0.5 * fit.energies[0]
    truth = model.vertices(true.identity, true.expression)
    assert metrics.geometry_rmse_mm(fit.vertices(), truth) < metrics.geometry_rmse_mm(model.mean, truth)


def test_bad_inputs_are_named(cage: MorphableModel) -> None:
    with pytest.raises(ParameterError, match="68"):
        fit_landmarks(cage, [torch.zeros(5, 2)], SMALL)
    with pytest.raises(ParameterError, match="finite"):
        fit_landmarks(cage, [torch.full((68, 2), float("nan"))], SMALL)
    with pytest.raises(ParameterError, match="Crops"):
        fit_photos([torch.zeros(3, 50, 50)], [torch.zeros(68, 2)], cage, SMALL)
    with pytest.raises(NoFaceError):
        reconstruct(torch.full((3, 200, 200), 0.5), cage, SMALL)


def test_shrink_keeps_the_mean() -> None:
    image = torch.rand(3, 240, 240, generator=torch.Generator().manual_seed(0))
    assert shrink(image, 60).shape == (3, 60, 60)
    assert float((shrink(image, 60).mean() - image.mean()).abs()) < 2e-3
    assert shrink(image, 240) is image


# --- what must not change a fit -----------------------------------------------------------------------------


def exposed(image: Tensor, stops: float) -> Tensor:
    """Brighter by so many stops, clipped, with 8 bits."""
    changed = linear_to_srgb((srgb_to_linear(image) * 2.0**stops).clamp(0, 1))
    return (changed * 255).round() / 255


def shape_moved(one: Fit, other: Fit) -> float:
    """RMS over all vertices after alignment with scale, mm."""
    return float(metrics.geometry_rmse_mm(one.vertices(), other.vertices(), "similarity"))


@pytest.mark.parametrize("stops", [-3.0, -1.0, 1.0])
def test_exposure_changes_light_and_not_the_face(cage: MorphableModel, stops: float) -> None:
    model = cage.truncate(20, 10, 20)
    image, landmarks = draw(model, some_estimate(model, 5), SMALL)
    image = exposed(image, 0)
    usual = fit_photos([image], [landmarks], model, SMALL)[0]
    changed = fit_photos([exposed(image, stops)], [landmarks], model, SMALL)[0]
    start = fit_landmarks(model, [landmarks], SMALL)[0]  # the control: what colours move at all
    assert shape_moved(changed, usual) < 0.5 * shape_moved(start, usual)
    ratio = changed.estimate.light[0].mean() / usual.estimate.light[0].mean()
    assert abs(float(ratio.log2()) - stops) < 0.15
    skin = [model.albedo(fit.estimate.albedo)[0].mean() for fit in (changed, usual)]
    assert abs(float((skin[0] / skin[1]).log2())) < 0.15
    picture = changed.render()
    told = picture.mask[0] & (exposed(image, stops).amax(0) < 1)
    off = (picture.image.clamp(0, 1) - exposed(image, stops))[:, told].square().mean().sqrt()
    assert off < 0.5 * (picture.image.clamp(0, 1) - image)[:, told].square().mean().sqrt()


@pytest.mark.parametrize("degrees", [60.0, 90.0, 135.0, 180.0, -100.0])
def test_a_turned_head_has_the_same_face(cage: MorphableModel, degrees: float) -> None:
    model = cage.truncate(20, 10, 5)
    _, landmarks = draw(model, some_estimate(model, 6, yaw=0.5), SMALL)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = (landmarks - 60) @ torch.tensor([[c, -s], [s, c]]).T + 60
    upright, other = (fit_landmarks(model, [p], SMALL)[0] for p in (landmarks, turned))
    assert shape_moved(other, upright) < 0.05  # of rounding alone
    angle = metrics.pose_error_degrees(other.estimate.rotation, upright.estimate.rotation)
    assert abs(float(angle) - abs(degrees)) < 0.5


def test_what_lies_outside_of_the_photograph_does_not_count(cage: MorphableModel) -> None:
    """A third of the crop is white and its landmarks squeezed to the border; known to be so, or not."""
    model = cage.truncate(20, 10, 20)
    image, landmarks = draw(model, some_estimate(model, 7, yaw=0.0), SMALL)
    whole = fit_photos([image], [landmarks], model, SMALL)[0]
    inside = torch.ones(1, 120, 120, dtype=torch.bool)
    inside[..., :45] = False
    cut = torch.where(inside, image, 1.0)
    squeezed = landmarks.clone()
    squeezed[:, 0] = squeezed[:, 0].clamp(min=45.0)
    trust = (landmarks[:, 0] > 47).float()
    told = fit_photos([cut], [squeezed], model, SMALL, inside=[inside], confidences=[trust])[0]
    untold = fit_photos([cut], [squeezed], model, SMALL)[0]
    assert shape_moved(told, whole) < 0.5 * shape_moved(untold, whole)


# --- input --------------------------------------------------------------------------------------------------


def test_a_model_with_fewer_parts_is_fitted_with_what_there_is(cage: MorphableModel) -> None:
    image, landmarks = draw(cage.truncate(20, 10, 20), some_estimate(cage.truncate(20, 10, 20), 8), SMALL)
    for parts in ({"identity": 4}, {"expression": 0}, {"albedo": 0}, {"identity": 0, "albedo": 0}):
        fit = fit_photos([image], [landmarks], cage.truncate(**parts), SMALL)[0]
        for name, count in parts.items():
            assert getattr(fit.estimate, name).shape == (count,)
        assert bool(torch.isfinite(fit.render().image).all())
    bare = replace(cage, landmark_triangles=torch.empty(0), landmark_weights=torch.empty(0))
    with pytest.raises(ParameterError, match="no landmarks"):
        fit_photos([image], [landmarks], bare, SMALL)


def test_a_path_and_other_number_types_are_taken(tmp_path: Path) -> None:
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    path = tmp_path / "o'brien & me.png"
    Image.fromarray(astronaut()).save(path)
    quick = replace(SMALL, levels=((60, 0, 1),))
    by_tensor = reconstruct(photo, settings=quick)[0].vertices()
    for same in (path, str(path), photo.double(), [photo.half()]):
        torch.testing.assert_close(
            reconstruct(same, settings=quick)[0].vertices(), by_tensor, atol=0.5, rtol=0
        )


def test_wrong_input_is_named(cage: MorphableModel) -> None:
    crop, points = torch.rand(3, 120, 120), torch.rand(68, 2) * 100
    wrong: list[tuple[list, list]] = [
        ([], []), ([crop, crop], [points]), ([crop * 255], [points]), ([crop * torch.nan], [points]),
        ([crop.byte()], [points]), ([crop], [points * torch.inf]),
    ]  # fmt: skip
    for images, landmarks in wrong:
        with pytest.raises(ParameterError):
            fit_photos(images, landmarks, cage, SMALL)
    with pytest.raises(ParameterError):
        reconstruct([])
    settings: list[dict] = [
        {"focal": -3.5}, {"focal": math.nan}, {"size": 0}, {"levels": ()}, {"levels": ((60, 3, 2),)},
        {"levels": ((500, 0, 2),)}, {"identity": -1}, {"colour_sigma": (0.2, 0.1)},
    ]  # fmt: skip
    for changed in settings:
        with pytest.raises(ParameterError):
            replace(SMALL, **changed)
