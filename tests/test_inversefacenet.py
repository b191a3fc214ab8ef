"""InverseFaceNet: loss, masked input, breeding, a miniature training, the shipped checkpoint."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from facelab.evaluation.metrics import geometry_rmse_mm, landmark_error_px, nme
from facelab.methods import breeding
from facelab.methods import inversefacenet as ifn
from facelab.methods.inversefacenet import DISTRIBUTION, FRAME, InverseFaceNet
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.networks import encoder
from facelab.photos import Face
from facelab.support.errors import ModelFileError, NoFaceError, NotAnImageError
from facelab.support.files import sha256_of
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.synthetic.distributions import LIMITS_DEGREES
from facelab.training import CHECKPOINTS, batch_indices, save_checkpoint


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


# --- loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_the_matrix_form(model: MorphableModel, dtype: torch.dtype) -> None:
    """Eqs. 6 and 7: (p - theta)^T Sigma^T Sigma (p - theta)."""
    weights = ifn.model_space_weights(model).to(dtype)
    p, theta = torch.randn(2, 5, len(weights), generator=seeded()).to(dtype)
    sigma = weights.diag()
    difference = p - theta
    want = torch.einsum("bi,ij,bj->b", difference, sigma.T @ sigma, difference)
    torch.testing.assert_close(ifn.parameter_loss(p, theta, weights), want, rtol=1e-4, atol=0)
    torch.testing.assert_close(ifn.parameter_loss(p, theta), (difference**2).sum(-1))


def test_loss_gradient() -> None:
    weights = torch.rand(6, generator=seeded(), dtype=torch.float64)
    p, theta = torch.randn(2, 3, 6, generator=seeded(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: ifn.parameter_loss(p, theta, weights), p.requires_grad_())


def test_weights_are_the_model_s_sigmas(model: MorphableModel) -> None:
    """Eq. 8: 50² times the mean squared displacement in mm is about the loss of an error of shape."""
    layout, weights = DISTRIBUTION.layout(model), ifn.model_space_weights(model, balanced=False)
    for name, given in (("shape", "identity"), ("expression", "expression")):
        theta = layout.zeros(1)
        theta[:, layout.slice(name)][:, 0] = 2.0
        moved = model.vertices(**{given: DISTRIBUTION.coefficients(model, theta)[given]}) - model.mean
        want = 50**2 * moved.square().sum(-1).mean()
        loss = ifn.parameter_loss(theta, layout.zeros(1), weights[:-FRAME])[0]
        assert 0.5 < loss / want < 2  # the model's sigmas are of the face, not of neck and shoulders
    torch.testing.assert_close(weights[layout.slice("shape")], 50 * model.identity_sigma)
    torch.testing.assert_close(weights[layout.slice("expression")], 50 * model.expression_sigma / 12)
    assert weights[layout.slice("rotation")].tolist() == [400.0] * 3
    assert set(weights[layout.slice("light")].tolist()) == {20.0}


def test_balanced_weights_make_shape_skin_and_light_count_alike(model: MorphableModel) -> None:
    layout, weights = DISTRIBUTION.layout(model), ifn.model_space_weights(model)[:-FRAME]
    drawn = DISTRIBUTION.sample(model, 4000, seeded())
    shares = (weights * (drawn - drawn.mean(0))).square().mean(0)
    of = {name: float(shares[layout.slice(name)].sum()) for name in layout.names}
    assert of["reflectance"] == pytest.approx(of["shape"], rel=0.1)
    assert of["light"] == pytest.approx(of["shape"], rel=0.1)
    printed = ifn.model_space_weights(model, balanced=False)[:-FRAME]
    same = [name for name in layout.names if name != "light"]
    assert all(torch.equal(weights[layout.slice(n)], printed[layout.slice(n)]) for n in same)


def test_untrained_network_says_the_mean_of_the_corpus(model: MorphableModel) -> None:
    """And one standard deviation of an output is one of the parameters that are drawn."""
    mean, deviation = ifn.corpus_moments(model)
    drawn = DISTRIBUTION.sample(model, 20_000, seeded())
    torch.testing.assert_close(mean / deviation, drawn.mean(0) / deviation, atol=0.04, rtol=0)
    torch.testing.assert_close(deviation / drawn.std(0), torch.ones_like(deviation), atol=0.04, rtol=0)
    network = ifn.make_network("small", model).eval()
    torch.nn.init.zeros_(network.network.classifier.weight)
    said = network(torch.rand(2, 3, 60, 60, generator=seeded()))
    torch.testing.assert_close(said[:, :-FRAME], mean.expand(2, -1))
    assert not said[:, -FRAME:].any()


# --- pictures -----------------------------------------------------------------------------------------------


def test_input_is_masked_and_fits(model: MorphableModel) -> None:
    theta = DISTRIBUTION.sample(model, 4, seeded())
    images, truth = breeding.synthesise(model, theta, seeded(1), noise=False)
    assert images.shape == (4, 3, 240, 240) and images.dtype == torch.uint8
    assert truth.shape == (4, theta.shape[1] + FRAME) and torch.equal(truth[:, :-FRAME], theta)
    assert truth[:, -FRAME:].abs().max() < 0.01  # whole pixels of a 192 px box
    seen = images.amax(1) > 0
    for mask in seen:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        extent = max(rows.max() - rows.min(), columns.max() - columns.min())
        assert 234 <= extent <= 239
    half, _ = breeding.synthesise(model, theta, seeded(1), side=120, noise=False)
    assert (half.float() - torch.nn.functional.avg_pool2d(images.float(), 2)).abs().max() <= 1


def test_mirrored_parameters_make_the_mirrored_picture(model: MorphableModel) -> None:
    signs = breeding.mirror_signs(model)
    theta = DISTRIBUTION.sample(model, 2, seeded())
    theta[:, -27:] += 0.1 * torch.randn(2, 27, generator=seeded(1))  # coloured light
    pictures = []
    for parameters in (theta, signs[:-FRAME] * theta):
        face = DISTRIBUTION.decode(model, parameters, 120)
        pictures.append(face.render(model, 120, 120).image.clamp(0, 1))
    difference = (pictures[0] - pictures[1].flip(-1)).abs().amax(1)
    assert (difference > 0.05).float().mean() < 0.01  # but for pixels on an edge
    assert signs[-FRAME:].tolist() == [-1, 1, 1]


def test_mouth_and_66_landmarks(model: MorphableModel) -> None:
    points = DISTRIBUTION.decode(model, torch.zeros(1, 302), 240).landmarks(model)[0]
    points[61:64, 1] -= 10  # open the mouth
    points[65:68, 1] += 10
    mask = ifn.face_mask(points)[0]
    column, row = points[[62, 66]].mean(0).int().tolist()
    assert not mask[row, column]  # between the lips
    column, row = points[33].int().tolist()
    assert mask[row, column]  # under the nose
    points[[60, 64], 1] += 30  # the two that the paper's tracker does not have
    assert torch.equal(mask, ifn.face_mask(points)[0])


def test_frame_says_where_the_face_is(model: MorphableModel) -> None:
    """A camera made of truth and frame puts the landmarks where the picture has them."""
    theta = DISTRIBUTION.sample(model, 3, seeded(4))
    method = InverseFaceNet(torch.nn.Identity(), model)
    photo = torch.rand(3, 300, 300, generator=seeded())
    where = 150 + 0.7 * (DISTRIBUTION.decode(model, theta, 240).landmarks(model) - 120)
    for k, points in enumerate(breeding.detector_noise(where, seeded(5))):
        _, crop = ifn.network_input(photo, points)
        frame = ifn.box_of(crop.to_crop(where[k]), 240)
        seen = method.face(theta[k], frame).in_photo(crop).landmarks(model)
        torch.testing.assert_close(seen, where[k], atol=0.02, rtol=0)


def test_flaws_change_some_pictures_and_no_truth(model: MorphableModel) -> None:
    theta = DISTRIBUTION.sample(model, 32, seeded())
    clean, truth = breeding.synthesise(model, theta, seeded(1), side=120)
    flawed, same = breeding.synthesise(model, theta, seeded(1), side=120, flaws=True)
    assert torch.equal(truth, same)
    changed = (clean != flawed).flatten(1).any(1)
    assert 8 < changed.sum() < 31  # (1 - 0.85^3) of them have something before the face; and the camera's
    covered = ((clean.float() - flawed.float()).abs() > 40).any(1).float().mean((1, 2))
    assert covered.max() > 0.02  # a hand, say
    black = (clean == 0).all(1)
    lit = (flawed > 0).any(1) & black
    assert lit.sum() / black.sum() < 0.01  # masked as before


def test_detector_noise_is_as_large_as_stated(model: MorphableModel) -> None:
    points = DISTRIBUTION.decode(model, torch.zeros(1, 302), 240).landmarks(model).expand(500, 68, 2)
    moved = breeding.detector_noise(points, seeded())
    distance = (moved - points).norm(dim=-1)[:, :27] / 240
    assert 0.02 < distance.median() < 0.045 and moved.mean(0).sub(points[0]).abs().max() < 1.5


# --- breeding -----------------------------------------------------------------------------------------------


def test_bred_noise_is_the_printed_one(model: MorphableModel) -> None:
    layout = DISTRIBUTION.layout(model)
    theta = DISTRIBUTION.sample(model, 400, seeded()) * 0.5
    theta[:, layout.slice("light")][:, :3] = 1.0
    bred = breeding.breed(model, theta, seeded(1))
    assert bred.shape == (800, layout.size)
    moved = layout.split(bred - theta.repeat(2, 1))
    assert 4.9 < moved["rotation"].abs().max().rad2deg() <= 5.0 + 1e-4
    assert abs(moved["rotation"].rad2deg().std() - 10 / math.sqrt(12)) < 0.1
    for name in ("shape", "expression", "reflectance", "light"):
        assert abs(moved[name].std() / breeding.NOISE[name] - 1) < 0.03, name
    colours = moved["light"].unflatten(-1, (9, 3))
    assert (colours[..., 0] - colours[..., 1]).std() > 0.02  # breeding brings coloured light


def told_by_skin(skins: Tensor, shapes: Tensor) -> float:
    """How much of the variance of four shape components eight of the skin's tell, linearly."""
    skin = torch.cat([skins[:, :8], torch.ones(len(skins), 1)], 1)
    guess = skin @ torch.linalg.lstsq(skin, shapes[:, :4]).solution
    return float(guess.var(0).mean() / shapes[:, :4].var(0).mean())


def test_bred_people_are_the_model_s_in_the_targets_light(model: MorphableModel) -> None:
    layout = DISTRIBUTION.layout(model)
    theta = layout.zeros(300)
    theta[:, 1] = torch.linspace(-0.3, 0.3, 300)
    light = layout.slice("light")
    theta[:, light] = torch.linspace(0.6, 1.2, 300)[:, None].expand(-1, 27)
    errors = torch.zeros(2, 27)
    errors[1, 6:9] = 0.1
    bred = layout.split(breeding.breed(model, theta, seeded(1), copies=8, people=True, errors=errors))

    # who: not the targets' one average face; the model's people, whose skin goes with their shape
    assert abs(bred["shape"].std(0)[:20].mean() - 1) < 0.05
    strangers = bred["reflectance"][torch.randperm(2400, generator=seeded(4))]
    people = model.sample(2400, seeded(5))
    told, mixed, usual = (
        told_by_skin(*pair)
        for pair in ((bred["reflectance"], bred["shape"]), (strangers, bred["shape"]),
                     (people["albedo"], people["identity"]))
    )  # fmt: skip
    assert told > 10 * mixed and abs(told - usual) < 0.04
    sampled = breeding.population(model, 2400, seeded(2))["expression"]
    assert sampled.std() > 8  # 12 is one standard deviation; Section 5 has 6.9
    assert (bred["expression"].std(0) / sampled.std(0) - 1).abs().mean() < 0.1

    # where: each pose and each light is one target's, and a pose says nothing of the light
    lights = bred["light"]
    without = lights - lights[:, 6:7].sub(lights[:, :1]) * (errors[1] / 0.1)
    assert torch.isin((without[:, 0] * 1e4).round(), (theta[:, light][:, 0] * 1e4).round()).all()
    torch.testing.assert_close(without, without[:, :1].expand_as(without), atol=1e-5, rtol=0)
    assert 0.4 < (lights[:, 6] - lights[:, 0] > 0.05).float().mean() < 0.6  # every other has the error
    turned = bred["rotation"][:, 1]
    assert abs(turned.std() - theta[:, 1].std()) < 0.02
    assert torch.stack([turned, lights[:, 0]]).corrcoef()[0, 1].abs() < 0.1


def test_breeding_keeps_parameters_in_range(model: MorphableModel) -> None:
    layout = DISTRIBUTION.layout(model)
    wild = 30 * torch.randn(64, layout.size, generator=seeded())
    parts = layout.split(breeding.breed(model, wild, seeded(1)))
    limits = 1.5 * torch.tensor(LIMITS_DEGREES)
    assert (parts["rotation"].rad2deg().abs() <= limits + 1e-3).all()
    assert parts["shape"].abs().max() <= 4 and parts["reflectance"].abs().max() <= 4
    assert 60 < parts["expression"].abs().max() <= 72.001  # six standard deviations
    assert parts["light"][:, :3].min() >= 0.05
    images, _ = breeding.synthesise(model, layout.join(parts)[:8], seeded(), side=120)  # can be rendered
    assert (images.amax((1, 2, 3)) > 0).all()
    drawn = DISTRIBUTION.sample(model, 1000, seeded(2))
    kept = (ifn.clamp_parameters(model, drawn) - drawn).abs()
    assert kept.mean() < 1e-3  # what the sampler draws stays as it is, but for rare Gaussians


# --- network ------------------------------------------------------------------------------------------------


def test_a_miniature_training_beats_the_average_face(model: MorphableModel) -> None:
    """A little network on 192 little pictures; on others it predicts pose and light better than the mean."""
    theta = DISTRIBUTION.sample(model, 224, seeded())
    images, truth = breeding.synthesise(model, theta, seeded(1), side=60)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 5, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 5, 2), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(16 * 8 * 8, 64), torch.nn.ReLU(),
        torch.nn.Linear(64, truth.shape[1]),
    )  # fmt: skip
    for p in network.parameters():
        bound = 1 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.01
        torch.nn.init.uniform_(p, -bound, bound, generator=seeded(p.numel()))
    weights = ifn.model_space_weights(model)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    pictures = images.float() / 255 - 0.5
    for step in range(120):
        rows = batch_indices(step, 32, 192)
        loss = ifn.parameter_loss(network(pictures[rows]), truth[rows], weights).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = network(pictures[192:])
    mean = truth[:192].mean(0)
    rotation = slice(0, 3)
    error = (said - truth[192:])[:, rotation].square().mean()
    assert error < 0.6 * (mean - truth[192:])[:, rotation].square().mean()
    total = ifn.parameter_loss(said, truth[192:], weights).mean()
    assert total < 0.9 * ifn.parameter_loss(mean, truth[192:], weights).mean()


class Known:
    """A detector that knows the landmarks."""

    def __init__(self, landmarks: Tensor) -> None:
        self.landmarks = landmarks

    def detect(self, image: Tensor) -> list[Face]:
        low, high = self.landmarks.amin(0), self.landmarks.amax(0)
        return [Face(torch.cat([low, high]), self.landmarks, 1.0)]


@pytest.fixture(scope="module")
def portraits() -> tuple[Renderer, dict[str, Tensor]]:
    renderer = Renderer(CorpusSpec("portrait", seed=77, size=240, subdivisions=0, batch=8))
    return renderer, renderer.batch(0)


def test_the_shipped_network_reconstructs(portraits: tuple[Renderer, dict[str, Tensor]]) -> None:
    """Better than the average face, its landmarks where they are, the same picture rendered."""
    renderer, batch = portraits
    method = InverseFaceNet.load(subdivisions=0)
    errors, means, points, colours = [], [], [], []
    faces = renderer.distribution.decode(renderer.model, batch["parameters"], 240)
    truth = faces.surface(renderer.model).vertices
    for k, image in enumerate(batch["image"]):
        method.detector = Known(batch["landmarks"][k])
        said = method.reconstruct(image)
        assert said.image is not None and said.mask is not None and said.light is not None
        assert said.image.shape == (3, 240, 240) and said.mask.shape == (1, 240, 240)
        errors.append(geometry_rmse_mm(said.mesh.vertices, truth[k]))
        means.append(geometry_rmse_mm(renderer.model.mean, truth[k]))
        points.append(nme(said.landmarks, batch["landmarks"][k]))
        both = said.mask & batch["mask"][k]
        assert both.sum() > 0.85 * (said.mask | batch["mask"][k]).sum()
        colours.append((said.image - image)[both.expand(3, -1, -1)].square().mean().sqrt())
    assert np.mean(errors) < 0.85 * np.mean(means)
    assert np.mean(points) < 0.03 and np.mean(colours) * 255 < 34


def test_a_second_look_undoes_wrong_landmarks(portraits: tuple[Renderer, dict[str, Tensor]]) -> None:
    _, batch = portraits
    method = InverseFaceNet.load(subdivisions=0)
    errors = []
    for image, landmarks in zip(batch["image"], batch["landmarks"]):
        wrong = landmarks.mean(0) + 1.15 * (landmarks - landmarks.mean(0)) + torch.tensor([9.0, -6.0])
        first = method.reconstruct_at(image, wrong)
        second = method.reconstruct_at(image, first.landmarks)
        errors.append([landmark_error_px(said.landmarks, landmarks) for said in (first, second)])
    before, after = np.mean(errors, axis=0)
    assert after < 0.8 * before


def test_named_errors(tmp_path: Path) -> None:
    method = InverseFaceNet.load(subdivisions=0)
    with pytest.raises(NoFaceError):
        method.reconstruct(torch.full((3, 100, 100), 0.5))
    with pytest.raises(NotAnImageError):
        method.reconstruct(torch.full((3, 100, 100), math.nan))
    shipped = CHECKPOINTS / "inversefacenet.safetensors"
    assert shipped.stat().st_size <= 15e6
    data = bytearray(shipped.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(data)
    (tmp_path / "changed.json").write_text(shipped.with_suffix(".json").read_text())
    with pytest.raises(ModelFileError, match="SHA-256"):
        InverseFaceNet.load(tmp_path / "changed.safetensors")


def test_a_checkpoint_for_another_model_or_network_says_so(tmp_path: Path) -> None:
    path, network = tmp_path / "other.safetensors", encoder("small", 7)
    save_checkpoint(path, network, {"network": "small", "face_model": sha256_of(DEFAULT_MODEL)})
    with pytest.raises(ModelFileError, match="not of the network"):
        InverseFaceNet.load(path)
    save_checkpoint(path, network, {"network": "small", "face_model": "0" * 64})
    with pytest.raises(ModelFileError, match="another face model"):
        InverseFaceNet.load(path)
