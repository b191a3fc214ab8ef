"""GANFIT: what it minimises, what it averages, and that it finds faces which it can make."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from facelab import losses
from facelab.geometry.camera import PerspectiveCamera
from facelab.methods.ganfit import GANFIT, GanFit, Settings, Weights, average_person, nth
from facelab.model.face import Face, draw
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import DEFAULT_MODEL
from facelab.model.textures import bake_texture, unit_uv
from facelab.networks.texture_gan import Generator, Scaled, encode
from facelab.photos import Crop, crop_face
from facelab.rendering.illumination import PhongLight
from facelab.support.errors import DivergenceError, ModelFileError, ParameterError
from facelab.support.files import sha256_of
from facelab.training import save_checkpoint

SIZE = 96
GREY = torch.full((3, 160, 160), 0.5)  # as Eq. 7's pictures
PHOTOGRAPH = ("identity", "content", "pixel", "landmark")


@pytest.fixture(scope="module")
def method() -> GANFIT:
    """With a generator of random weights about the model's average skin: every latent is another pattern."""
    generator = Generator(8, (16, 12, 8), torch.Generator().manual_seed(0))
    for layer in (m for m in generator.modules() if isinstance(m, Scaled)):  # as a trained one has
        layer.bias.data.normal_(generator=torch.Generator().manual_seed(len(layer.bias)))
    made = GANFIT(generator, settings=Settings(size=SIZE, steps=40, rate=0.02))
    model = made.coarse
    mean = bake_texture(model.albedo_mean, model.triangles, unit_uv(model), model.uv_triangles, 16)
    generator.mean.copy_(encode(mean))
    generator.spread.fill_(0.2)
    return made


def person(method: GANFIT, count: int, seed: int = 1) -> tuple[list[Crop], Tensor]:
    """Crops of one person whom the method can make, and the latent."""
    g = torch.Generator().manual_seed(seed)
    drawn = method.coarse.sample(count, g, expression_scale=0.3)
    latent = torch.randn(method.generator.latent, generator=g)
    camera = PerspectiveCamera.from_fov(24.0, 160, 160, 700.0)
    light = PhongLight(
        torch.full((3,), 0.5), torch.tensor([100.0, 400.0, 300.0]), torch.full((3,), 0.6), torch.tensor(20.0)
    )
    crops = []
    with torch.no_grad():
        for k in range(count):
            pose = camera.look([0.0, 0.3 * k - 0.15 * (count - 1), 0.0])
            texture = method.generator.texture(latent)
            face = Face(
                drawn["identity"][0], drawn["expression"][k], drawn["albedo"][0, :0], pose, light, texture
            )
            surface = face.surface(method.coarse)
            image = draw(surface, pose, light, 160, 160, background=GREY).image.clamp(0, 1)
            crops.append(crop_face(image, face.landmarks(method.coarse), size=SIZE))
    return crops, latent


@pytest.fixture(scope="module")
def fitted(method: GANFIT) -> tuple[list[Crop], Tensor, GanFit]:
    crops, latent = person(method, 2)
    return crops, latent, method.fit(crops)


def test_it_finds_the_texture_that_was_drawn(
    method: GANFIT, fitted: tuple[list[Crop], Tensor, GanFit]
) -> None:
    """Where it is seen, and up to the light's colour: as shares of the mean. What compares with the
    photographs falls by a third at least; Eq. 7's pictures, of which four that the fit has not seen are
    drawn, are more like the person than those of the start."""
    crops, latent, fit = fitted
    truth = method.generator.texture(latent)
    start = method.generator.texture(method.layout.split(method.start(1))["texture"])[0]
    middle = [t[:3, 5:10, 5:11] for t in (truth, fit.faces.texture[0].detach(), start)]
    near = [t / t.mean((1, 2), keepdim=True) for t in middle]
    assert (near[1] - near[0]).abs().mean() < 0.8 * (near[2] - near[0]).abs().mean()
    target = method.aligned(crops)
    with torch.no_grad():
        before, after = (
            [method.terms(theta, target, 900 + draw) for draw in range(4)]
            for theta in (method.start(2), fit.theta)
        )
    energy = [sum(float(terms[0][name]) for name in PHOTOGRAPH) for terms in (before, after)]
    assert energy[1] < 0.7 * energy[0]
    again = [sum(float(one["identity again"]) for one in terms) for terms in (before, after)]
    assert again[1] < again[0]


def test_the_light_hears_of_pixels_only(method: GANFIT) -> None:
    crops, _ = person(method, 1, seed=5)
    target, theta = method.aligned(crops), method.start(1).requires_grad_()
    terms = method.terms(theta, target, 0)
    part = method.layout.slice("light")
    pull = {}
    for name in ("identity", "content", "identity again", "pixel"):
        (pull[name],) = torch.autograd.grad(terms[name], theta, retain_graph=True)
    heard = {name for name, gradient in pull.items() if bool(gradient[:, part].any())}
    assert heard == {"pixel"} and all(bool(gradient.any()) for gradient in pull.values())


def test_one_person_in_all_photographs(method: GANFIT, fitted: tuple[list[Crop], Tensor, GanFit]) -> None:
    faces = fitted[2].faces
    assert torch.equal(faces.identity[0], faces.identity[1]) and torch.equal(
        faces.texture[0], faces.texture[1]
    )
    assert not torch.equal(faces.expression[0], faces.expression[1])
    assert not set(fitted[2].first[0]) & {"identity", "content", "identity again"}
    assert len(fitted[2].first) == method.settings.first and len(fitted[2].history) == method.settings.steps
    one = nth(faces, 1)
    both = faces.render(method.coarse, 64, 64).image
    torch.testing.assert_close(one.render(method.coarse, 64, 64).image, both[1], atol=1e-4, rtol=0)


def test_averaging_is_of_identity_only() -> None:
    """Eq. 13 as a mean."""
    layout = ParameterLayout(shape=2, expression=2, texture=1)
    theta = torch.tensor([[1.0, 2, 3, 4, 5], [3, 6, 7, 8, 9]])
    average_person(theta, layout)
    assert theta.tolist() == [[2, 4, 3, 4, 7], [2, 4, 7, 8, 7]]


def test_every_term_of_the_energy_is_the_papers(method: GANFIT) -> None:
    """Each against a plain computation (Eqs. 8 to 12) of a picture by Eq. 6; a weight of zero leaves its
    term out."""
    crops, _ = person(method, 1, seed=3)
    target = method.aligned(crops)
    theta = method.start(1)
    g = torch.Generator().manual_seed(2)
    theta = theta + 0.05 * torch.randn(theta.shape, generator=g)
    with torch.no_grad():
        terms = method.terms(theta, target, 0)
        face = nth(method.decode(theta, target.start), 0)
        picture = face.render(method.coarse, SIZE, SIZE)
    image, mask = picture.image.clamp(0, 1), picture.mask & crops[0].inside
    pixel = (image - crops[0].image).abs().sum(0)[mask[0]].mean()
    torch.testing.assert_close(terms["pixel"], pixel, rtol=1e-4, atol=1e-6)
    apart = (face.landmarks(method.coarse) - crops[0].landmarks).norm(dim=1) * crops[0].confidence
    torch.testing.assert_close(terms["landmark"], 0.001 * apart.sum(), rtol=1e-4, atol=1e-6)
    over = torch.where(mask, image, crops[0].image)
    a, b = (
        method.recogniser.embed(p, crops[0].landmarks) - method.recogniser.mean_embedding
        for p in (over, crops[0].image)
    )
    torch.testing.assert_close(
        terms["identity"], 2 * (1 - (a @ b) / (a.norm() * b.norm())), rtol=1e-3, atol=1e-5
    )
    maps = [method.recogniser.features(p, crops[0].landmarks) for p in (over, crops[0].image)]
    content = sum((x - y).norm() / x.numel() for x, y in zip(*maps))
    torch.testing.assert_close(terms["content"], 50 * content, rtol=1e-3, atol=1e-5)
    shape = 0.05 * (face.identity.square().mean() + face.expression.square().mean())
    torch.testing.assert_close(terms["shape"], shape)
    left_out = replace(method.settings, weights=Weights(identity=0, content=0, identity_again=0))
    fewer = GANFIT(method.generator, method.recogniser, left_out).terms(theta, target, 0)
    assert set(terms) - set(fewer) == {"identity", "content", "identity again"}


def test_another_picture_is_of_the_same_person(method: GANFIT) -> None:
    """Eq. 7."""
    crops, _ = person(method, 1, seed=4)
    with torch.no_grad():
        face = method.decode(method.start(1), method.aligned(crops).start)
        one, points = method.another_picture(face, 0)
        same, other = method.another_picture(face, 0)[0], method.another_picture(face, 1)[0]
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(points.min()) > 0 and float(points.max()) < SIZE, "it is in the picture"


def test_content_is_a_length_over_a_size() -> None:
    a, b = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
    torch.testing.assert_close(losses.content([a], [b]), torch.full((2,), 60**0.5 / 60))
    assert losses.content([a, a], [b, b])[0] == 2 * losses.content([a], [b])[0]


def test_a_trained_generator_comes_back(method: GANFIT, tmp_path: Path) -> None:
    card = {"latent": 8, "channels": [16, 12, 8], "face_model": sha256_of(DEFAULT_MODEL)}
    save_checkpoint(tmp_path / "small.safetensors", method.generator, card)
    again = GANFIT.load(tmp_path / "small.safetensors")
    latent = torch.randn(1, 8, generator=torch.Generator().manual_seed(7))
    # weights are kept in 8 or 16 bits
    apart = (again.generator.texture(latent) - method.generator.texture(latent)).abs().max()
    assert apart < 0.01 * method.generator.texture(latent).max()
    with pytest.raises(ModelFileError, match="missing"):
        GANFIT.load(tmp_path / "none.safetensors")


def test_bad_input_is_named(method: GANFIT) -> None:
    with pytest.raises(ParameterError, match="at least one"):
        method.fit([])
    crops, _ = person(method, 1)
    with pytest.raises(ParameterError, match="crops of"):
        method.fit([replace(crops[0], image=crops[0].image[:, :50, :50])])
    broken = Generator(8, (16, 12, 8), torch.Generator().manual_seed(0))
    broken.colours[2].weight.data.fill_(torch.inf)
    with pytest.raises((DivergenceError, ParameterError), match=r"number|NaN"):
        GANFIT(broken, method.recogniser, method.settings).fit(crops)
