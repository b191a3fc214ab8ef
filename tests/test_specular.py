"""Deng et al. 2022: each equation against a readable twin, the pictures, the gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from facelab.methods import specular
from facelab.methods import specular_losses as eq
from facelab.methods.specular import Drawn, Specular, decode, draw_parts, layout
from facelab.methods.specular_losses import Batch, Weights, loss_terms
from facelab.model.face import draw
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.illumination import SH_CONSTANTS
from facelab.rendering.rasterizer import rasterize
from facelab.support.errors import ParameterError
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.training import load_checkpoint

SIZE = 64


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0, dtype=torch.float64)


def some(model: MorphableModel, count: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    theta = 0.3 * torch.randn(count, layout(model).size, generator=generator, dtype=torch.float64)
    theta[:, layout(model).slice("rotation")] *= 0.5
    return theta


def batch_of(model: MorphableModel, theta: Tensor, seed: int = 9) -> Batch:
    """Pictures of other faces, their true landmarks, skin weights at random."""
    generator = torch.Generator().manual_seed(seed)
    face = decode(model, theta, SIZE)
    drawn = draw_parts(face, face.surface(model), SIZE)
    skin = torch.rand(len(theta), 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    skin = torch.where(skin < 0.2, 0.0, skin)
    return Batch(drawn.both.clamp(0, 1), face.landmarks(model), skin)


def test_zero_is_the_mean_face_in_the_middle(model: MorphableModel) -> None:
    theta = layout(model).zeros(1).double()
    points = decode(model, theta, SIZE).landmarks(model)[0]
    low, high = points.amin(0), points.amax(0)
    assert float((high - low).max()) == pytest.approx(specular.BOX_SHARE * SIZE)
    middle = (low + high) / 2 / SIZE
    assert middle.tolist() == pytest.approx([0.5, 0.5 + specular.UP], abs=1e-6)
    with pytest.raises(ParameterError):
        decode(model, theta[:, 1:], SIZE)


def test_the_pictures_are_the_renderer_s_and_add_up(model: MorphableModel) -> None:
    theta = some(model, 1)
    face = decode(model, theta, SIZE)
    surface = face.surface(model)
    drawn = draw_parts(face, surface, SIZE)
    picture = draw(surface, face.camera, face.light, SIZE, SIZE)
    torch.testing.assert_close(drawn.both, picture.image)
    torch.testing.assert_close(drawn.lit, picture.albedo * picture.shading)
    shine = srgb_to_linear(drawn.both) - srgb_to_linear(drawn.diffuse)
    torch.testing.assert_close(shine, picture.specular * drawn.mask)
    assert shine.max() > 1e-3  # there is a highlight


def test_eq_5_at_one_vertex(model: MorphableModel) -> None:
    """Blinn-Phong by hand: t_s (h · n)^φ, h half way between lamp and eye, times the lamp's colour."""
    theta = some(model, 1)
    face = decode(model, theta, SIZE)
    surface, light = face.surface(model), face.light
    points = face.camera.to_camera(surface.vertices)[0]
    normals = (surface.normals @ face.camera.rotation.mT)[0]
    k = int(normals[:, 2].argmax())
    to_light = light.position[0] - points[k]  # type: ignore[union-attr]
    half = to_light / to_light.norm() + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    cosine = (half / half.norm()) @ normals[k]
    wanted = specular.LAMP_COLOUR * surface.specular[0, k] * cosine ** light.shininess[0]  # type: ignore[union-attr]
    eye = face.camera.view_directions(points[None])
    shading = light.shade(  # type: ignore[union-attr]
        normals[None], points[None], eye, surface.diffuse, surface.specular
    )
    torch.testing.assert_close(shading.specular_radiance[0, k], wanted.expand(3))


def test_eq_8_against_a_loop(model: MorphableModel) -> None:
    theta, batch = some(model), batch_of(model, some(model, seed=5))
    face = decode(model, theta, SIZE)
    drawn = draw_parts(face, face.surface(model), SIZE)
    found = eq.photometric_loss(drawn, batch, eta=0.7)
    for k in range(2):
        matt = shiny = weight = count = 0.0
        for y in range(SIZE):
            for x in range(SIZE):
                c = float(batch.skin[k, 0, y, x])
                if not drawn.mask[k, 0, y, x] or c == 0:
                    continue
                seen = batch.images[k, :, y, x]
                matt += c * float((drawn.diffuse[k, :, y, x] - seen).norm())
                shiny += float((drawn.both[k, :, y, x] - seen).norm())
                weight, count = weight + c, count + 1
        assert float(found[k]) == pytest.approx(matt / weight + 0.7 * shiny / count, rel=1e-4)


def test_eqs_10_to_12_against_loops(model: MorphableModel) -> None:
    theta, batch = some(model), batch_of(model, some(model, seed=5))
    terms = loss_terms(model, theta, batch)
    face = decode(model, theta, SIZE)
    points, unit = face.landmarks(model), SIZE / 224
    for k in range(2):
        lengths = squares = 0.0
        for i in range(68):
            weight = 20 if 17 <= i < 27 or 48 <= i < 60 else 1
            length = float((points[k, i] - batch.landmarks[k, i]).norm()) / unit
            lengths, squares = lengths + weight * length, squares + weight * length**2
        assert float(terms["landmark"][k]) == pytest.approx(squares / 68, rel=1e-4)
        printed = eq.landmark_loss(points, batch, Weights(), as_printed=True)
        assert float(printed[k]) == pytest.approx(lengths / 68, rel=1e-4)
        vector = torch.cat([face.identity[k], face.albedo[k], face.expression[k]])
        assert float(terms["prior"][k]) == pytest.approx(float(vector.square().sum()))


def test_eq_11_is_the_area_between_the_lips(model: MorphableModel) -> None:
    """By triangles it is what a filled outline of the cap covers; both areas grow as the jaw opens."""
    theta = layout(model).zeros(1).double()
    jaw = model.actions[model.action_names.index("jawOpen")]
    areas = []
    for strength in (0.0, 0.5, 1.0):
        theta[:, layout(model).slice("expression")] = strength * jaw
        face = decode(model, theta, 224)
        surface = face.surface(model)
        screen = face.camera.project(surface.vertices)
        opened = eq.mouth_opening(screen[..., :2], model.mouth_cap)
        covered = rasterize(screen[0], model.mouth_cap, 224, 224) >= 0
        assert abs(float(opened) - float(covered.sum())) < 0.1 * float(covered.sum()) + 12
        outline = eq.polygon_area(face.landmarks(model)[:, eq.INNER_LIPS])
        areas.append((float(opened), float(outline)))
        closed = replace(batch_of(model, layout(model).zeros(1).double()), mouth=torch.tensor([7.0]).double())
        by_area = eq.mouth_loss(model, face, surface, closed)
        torch.testing.assert_close(by_area, (opened - 7).abs())
    assert areas[0][0] < areas[1][0] < areas[2][0] and areas[0][1] < areas[1][1] < areas[2][1]
    square = torch.tensor([[0.0, 0], [0, 2], [3, 2], [3, 0]])
    assert float(eq.polygon_area(square)) == float(eq.polygon_area(square.flip(0))) == 6


def test_eq_13_as_printed_says_nothing_and_as_meant_wants_grey(model: MorphableModel) -> None:
    theta = some(model)
    face = decode(model, theta, SIZE)
    drawn = draw_parts(face, face.surface(model), SIZE)
    printed = eq.uniform_loss(drawn, face, as_printed=True)
    assert printed.abs().max() < 1e-12
    meant = eq.uniform_loss(drawn, face)
    colours = drawn.lit[0][:, drawn.mask[0, 0]]
    variance = float((colours - colours.mean(1, keepdim=True)).square().sum(0).mean())
    light = SH_CONSTANTS[0] * face.light.coefficients[0]  # type: ignore[union-attr]
    tint = sum(float((light[b] - light[b].mean()).square().sum()) for b in range(9))
    assert float(meant[0]) == pytest.approx(variance + tint)
    flat = Drawn(drawn.diffuse, drawn.both, drawn.mask, 0.4 * drawn.mask.double().expand(-1, 3, -1, -1))
    grey = theta.clone()
    grey[:, layout(model).slice("light")] = 0.2
    assert float(eq.uniform_loss(flat, decode(model, grey, SIZE)).max()) < 1e-12


class Recogniser(torch.nn.Module):
    """Stands for a recognition network: a linear map of the pixels around the face."""

    mean_embedding = torch.zeros(6, dtype=torch.float64)

    def embed(self, image: Tensor, landmarks: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        weights = torch.randn(3 * 16 * 16, 6, generator=generator, dtype=torch.float64)
        small = torch.nn.functional.adaptive_avg_pool2d(image, 16) - 0.3
        return small.flatten(1) @ weights


def test_eq_6_adds_up_and_every_loss_can_be_left_out(model: MorphableModel) -> None:
    theta, batch = some(model), batch_of(model, some(model, seed=5))
    recogniser = Recogniser()
    terms = loss_terms(model, theta, batch, recogniser)  # type: ignore[arg-type]
    weights = Weights()
    wanted = sum(getattr(weights, name) * value for name, value in terms.items() if name != "total")
    torch.testing.assert_close(terms["total"], wanted)
    assert (weights.identity, weights.photo, weights.landmark) == (0.2, 1.92, 1.8e-3)  # as printed
    assert (weights.mouth, weights.prior, weights.uniform) == (1.3e-3, 5e-4, 5.0)
    for name in ("identity", "photo", "landmark", "mouth", "prior", "uniform"):
        less = loss_terms(model, theta, batch, recogniser, replace(weights, **{name: 0.0}))  # type: ignore[arg-type]
        torch.testing.assert_close(less["total"], wanted - getattr(weights, name) * terms[name])
    early = loss_terms(model, theta, batch, recogniser, mouth=False)  # type: ignore[arg-type]
    torch.testing.assert_close(early["total"], wanted - weights.mouth * terms["mouth"])
    assert terms["identity"].min() >= 0 and terms["identity"].max() <= 2


def test_identity_of_some_pictures_stands_for_the_others(model: MorphableModel) -> None:
    """The first two of three are looked at; the batch's mean and its gradient are those of the two."""
    theta, batch = some(model, 3).requires_grad_(), batch_of(model, some(model, 3, seed=5))
    few = Batch(batch.images[:2], batch.landmarks[:2], batch.skin[:2])
    wanted = loss_terms(model, theta[:2], few, Recogniser())["identity"]  # type: ignore[arg-type]
    found = loss_terms(model, theta, replace(batch, recognised=2), Recogniser())["identity"]  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.cat([wanted, wanted.mean()[None]]))
    one, two = (torch.autograd.grad(terms.mean(), theta)[0] for terms in (found, wanted))
    torch.testing.assert_close(one, two)
    assert two[:2].abs().max() > 0 and two[2].eq(0).all()


def test_the_truth_explains_its_own_picture(model: MorphableModel) -> None:
    theta = some(model)
    batch = batch_of(model, theta)
    own, other = (loss_terms(model, t, batch, Recogniser()) for t in (theta, some(model, seed=5)))  # type: ignore[arg-type]
    for name in ("identity", "photo", "landmark"):
        assert (own[name] < 0.3 * other[name]).all(), name
    assert own["landmark"].max() < 1e-4


@pytest.mark.parametrize("name", ["photo", "landmark", "mouth", "prior", "uniform", "identity"])
def test_gradients_are_finite_differences(model: MorphableModel, name: str) -> None:
    """Along a random direction of what moves no silhouette: colours of pixels at the border jump."""
    theta, batch = some(model, 1), batch_of(model, some(model, 1, seed=5))
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if name in ("photo", "uniform", "identity"):
        parts = layout(model)
        for still in ("identity", "expression", "rotation", "translation", "scale"):
            direction[:, parts.slice(still)] = 0

    def value(t: Tensor) -> Tensor:
        return loss_terms(model, t, batch, Recogniser())[name].sum()  # type: ignore[arg-type]

    moving = theta.clone().requires_grad_()
    value(moving).backward()
    assert moving.grad is not None
    step = 1e-6
    numeric = (value(theta + step * direction) - value(theta - step * direction)) / (2 * step)
    assert float((moving.grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-4, abs=1e-8)


def test_a_known_specular_map_is_recovered_under_known_light(model: MorphableModel) -> None:
    """Shape, pose and light being known: albedo's coefficients by least squares from the two pictures."""
    generator = torch.Generator().manual_seed(6)
    theta = layout(model).zeros(1).double()
    few = 4
    where = layout(model).slice("albedo").start
    theta[:, where : where + few] = 0.5 * torch.randn(1, few, generator=generator, dtype=torch.float64)

    def linear(albedo: Tensor) -> Tensor:
        trial = theta.clone()
        trial[:, where : where + few] = albedo
        face = decode(model, trial, SIZE)
        return srgb_to_linear(draw_parts(face, face.surface(model), SIZE).both).flatten()

    seen, start = linear(theta[:, where : where + few]), linear(torch.zeros(1, few).double())
    basis = torch.stack([linear(row[None]) - start for row in 0.1 * torch.eye(few).double()], 1) / 0.1
    found = torch.linalg.lstsq(basis, (seen - start)[:, None]).solution[:, 0]
    truth = theta[0, where : where + few]
    assert (found - truth).abs().max() < 0.05
    specular_of = [model.albedo(layout(model).zeros(1)[0, : len(model.albedo_basis)].double())[1]]
    for values in (found, truth):
        full = torch.zeros(len(model.albedo_basis)).double()
        full[:few] = values
        specular_of.append(model.albedo(full)[1])
    mean, got, wanted = specular_of
    assert (got - wanted).norm() < 0.2 * (mean - wanted).norm()


def test_descent_on_the_losses_finds_a_face(model: MorphableModel) -> None:
    """From zero, by Adam, without a network: pose, colours and mouth come nearer to another face's."""
    truth = some(model, 1, seed=5)
    batch = batch_of(model, truth)
    theta = layout(model).zeros(1).double().requires_grad_()
    optimizer = torch.optim.Adam([theta], 0.02)
    history = []
    for _ in range(60):
        terms = loss_terms(model, theta, batch)
        history.append({name: float(value.detach()) for name, value in terms.items()})
        optimizer.zero_grad()
        terms["total"].sum().backward()
        optimizer.step()
    for name, share in (("photo", 0.6), ("landmark", 0.05)):
        assert history[-1][name] < share * history[0][name], name


def test_numbers_that_are_none_are_named(model: MorphableModel) -> None:
    theta, batch = some(model), batch_of(model, some(model, seed=5))
    theta[0, 0] = float("nan")
    with pytest.raises(ParameterError):
        loss_terms(model, theta, batch)
    assert linear_to_srgb(torch.zeros(1)) == 0


def test_the_shipped_network_knows_faces_that_it_has_not_seen() -> None:
    """Renders, of which it saw none: landmarks and colours beside the average face's in the middle."""
    method, coarse = Specular.load(framed=True), MorphableModel.load(subdivisions=0)
    unseen = Renderer(CorpusSpec("portrait", seed=4321, size=method.side, subdivisions=0)).batch(0)
    images, marks = unseen["image"], unseen["landmarks"]
    codes = {"network": method.regress(images), "average": layout(coarse).zeros(len(images))}
    off, colours = {}, {}
    for name, theta in codes.items():
        face = decode(coarse, theta, method.side)
        drawn = draw_parts(face, face.surface(coarse), method.side)
        both = (drawn.mask & unseen["mask"]).float()
        off[name] = float((face.landmarks(coarse) - marks).norm(dim=-1).mean())
        errors = (drawn.both - images).norm(dim=1, keepdim=True) * both
        colours[name] = float(errors.sum() / both.sum())
    assert off["network"] < 0.4 * off["average"] and colours["network"] < 0.6 * colours["average"], (
        off,
        colours,
    )
    lamps = decode(coarse, codes["network"], method.side).light.position  # type: ignore[union-attr]
    assert lamps.std(0).max() > 1  # mm: it is not one lamp for everybody


def test_the_card_says_how_it_came_about() -> None:
    card = load_checkpoint("specular")[1]
    assert card["method"] == "specular" and card["licence"] == "that of the photographs"
    assert card["start"] == "mofa" and card["without"] == [] and card["photographs"] > 1000
    assert set(card["terms"][-1]) == {"identity", "photo", "landmark", "mouth", "prior", "uniform", "total"}
