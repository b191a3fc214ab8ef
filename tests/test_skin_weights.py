"""Skin or not, by colour: Eq. 9 of Deng et al. 2022."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from skimage.data import astronaut

from facelab.photos.skin import SKIN_MODEL, Mixture, SkinModel, skin_features, skin_weights
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.support.errors import ModelFileError, ParameterError


def test_a_mixture_s_density_is_scipy_s() -> None:
    rng = np.random.default_rng(0)
    shares, means, points = np.array([0.3, 0.7]), rng.normal(size=(2, 3)), rng.normal(size=(5, 3))
    roots = rng.normal(size=(2, 3, 3))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(3)
    parts = zip(shares, means, covariances)
    plain = sum(share * multivariate_normal.pdf(points, mean, cov) for share, mean, cov in parts)
    tensors = (torch.from_numpy(part) for part in (shares, means, np.linalg.inv(covariances)))
    found = Mixture(*tensors).log_density(torch.from_numpy(points))
    np.testing.assert_allclose(found.exp(), plain, rtol=1e-10)


def test_probability_is_bayes_rule_and_weights_are_eq_9() -> None:
    model = SkinModel.load()
    generator = torch.Generator().manual_seed(0)
    image, face = 0.2 + 0.6 * torch.rand(3, 8, 9, generator=generator), torch.ones(1, 8, 9).bool()
    face[:, 0] = False
    probability = model.probability(image, face)
    points = skin_features(image, face).flatten(1).T
    skin, other = (mixture.log_density(points).exp() for mixture in (model.skin, model.other))
    wanted = model.share * skin / (model.share * skin + (1 - model.share) * other)
    torch.testing.assert_close(probability.flatten()[9:], wanted[9:], rtol=1e-4, atol=1e-6)
    assert probability[:, 0].eq(0).all()
    weights = skin_weights(torch.tensor([0.0, 0.3, 0.5, 0.51, 1.0]))
    assert weights.tolist() == pytest.approx([0.0, 0.3, 0.5, 1.0, 1.0])


def test_a_face_s_exposure_and_tone_are_no_feature() -> None:
    """Half and a third of the light, or of the skin's albedo, which is the same: equal to rounding."""
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float()[:, 60:220, 150:300] / 255
    face = torch.zeros(1, 160, 150).bool()
    face[:, 40:140, 30:110] = True
    bright = photo.clamp(0.25, 1)
    first = SkinModel.load().probability(bright, face)
    for gain in (0.5, 0.33):
        dimmed = linear_to_srgb(gain * srgb_to_linear(bright))
        again = SkinModel.load().probability(dimmed, face)
        torch.testing.assert_close(again, first, rtol=0, atol=1e-3)


def test_cheeks_are_skin_and_a_black_collar_is_not() -> None:
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    face = torch.zeros(1, 512, 512).bool()
    face[:, 70:175, 180:275] = True
    everywhere = SkinModel.load().of_features(skin_features(photo, face))
    cheeks, collar = everywhere[:, 120:150, 195:215], everywhere[:, 195:220, 200:250]
    assert (cheeks > 0.5).float().mean() > 0.9
    assert (collar > 0.5).float().mean() < (cheeks > 0.5).float().mean() - 0.5


def test_errors_are_reported_by_tone() -> None:
    about = json.loads(SKIN_MODEL.read_text())["about"]
    table = about["skin taken for something else, something else for skin"]
    assert set(table) == {"darker", "middle", "lighter"}
    assert all(0 < error < 0.3 for errors in table.values() for error in errors)


def test_damage_has_a_name(tmp_path: Path) -> None:
    content = json.loads(SKIN_MODEL.read_text())
    for change in ({"share": 2}, {"skin": {}}, {"other": content["other"] | {"means": [[0.0]]}}):
        path = tmp_path / "mixtures.json"
        path.write_text(json.dumps(content | change))
        with pytest.raises(ModelFileError, match="skin model"):
            SkinModel.load(path)
    negative = [[[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]]] * len(content["skin"]["shares"])
    path.write_text(json.dumps(content | {"skin": content["skin"] | {"covariances": negative}}))
    with pytest.raises(ModelFileError, match="skin model"):
        SkinModel.load(path)
    with pytest.raises(ParameterError, match="not empty"):
        skin_features(torch.rand(3, 4, 4), torch.zeros(1, 4, 4).bool())
