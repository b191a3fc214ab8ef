"""MoFA: the decoder and its derivatives, the loss, the encoder's start, learning without truth, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from facelab import losses
from facelab.evaluation.mofa_progress import MIRROR, complaints, evaluate, mirrored, warning_signs
from facelab.methods.mofa import (
    AMBIENT_OFFSET,
    LANDMARKS,
    LAYOUT,
    Decoder,
    Encoder,
    FramedMoFA,
    MoFA,
    Weights,
    Z,
    colours_at,
    face_square,
    loss_terms,
    make_network,
)
from facelab.networks import KINDS
from facelab.photos import Face
from facelab.rendering.colour import linear_to_srgb
from facelab.support.errors import (
    FacelabError,
    ModelFileError,
    NoFaceError,
    NotAnImageError,
    ParameterError,
)
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.training import save_checkpoint


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder()


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return Renderer(CorpusSpec("portrait", seed=5, size=60, subdivisions=0)).batch(0)


def random_codes(count: int, seed: int = 0) -> Tensor:
    """Plausible codes: some shape, expression, skin, pose and light."""
    parts = LAYOUT.split(torch.randn(count, LAYOUT.size, generator=torch.Generator().manual_seed(seed)))
    sizes = {
        "shape": 0.7,
        "expression": 0.5,
        "reflectance": 0.7,
        "rotation": 0.2,
        "translation": 15,
        "light": 0.1,
    }
    return LAYOUT.join({name: sizes[name] * part for name, part in parts.items()})


# ---------------------------------------------------------------------------------------------- the decoder


def test_the_code_is_that_of_the_paper() -> None:
    assert LAYOUT.size == 257 and len(LANDMARKS) == 46
    assert LAYOUT.names == ("shape", "expression", "reflectance", "rotation", "translation", "light")


def test_jacobian_agrees_with_finite_differences() -> None:
    """Eq. 6, 5 × 257 per vertex: position and colour of some vertices to all parameters, float64."""
    decoder = Decoder().to(dtype=torch.float64)
    chosen = torch.arange(0, len(decoder.model.mean), 500)

    def five(code: Tensor) -> Tensor:
        picture = decoder(code, 1)
        return torch.cat([picture.screen[..., :2], picture.colour], -1)[:, chosen].flatten(1)

    code = random_codes(1).double().requires_grad_()
    outputs = five(code)[0]
    rows = [torch.autograd.grad(output, code, retain_graph=True)[0][0] for output in outputs]
    step = 1e-5 * torch.eye(257, dtype=torch.float64)
    with torch.no_grad():
        ends = [torch.cat([five(code + part) for part in (sign * step).split(32)]) for sign in (1, -1)]
    numeric = (ends[0] - ends[1]).T / 2e-5
    assert numeric.abs().amax(0).min() > 1e-6  # every parameter does something
    torch.testing.assert_close(torch.stack(rows), numeric, rtol=1e-6, atol=1e-8)


def test_gradient_of_the_whole_loss_agrees_with_finite_differences(batch: dict[str, Tensor]) -> None:
    """Along random directions: the loss is smooth but for vertices that pass a pixel or turn their back."""
    decoder = Decoder().to(dtype=torch.float64)
    images = nn.functional.avg_pool2d(batch["image"][:1].double(), 6)
    marks = batch["landmarks"][:1].double() / 6
    code = random_codes(1, 3).double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_terms(decoder, code, images, marks)["total"].sum(), code)
    for seed in range(3):
        direction = random_codes(1, 10 + seed).double()
        with torch.no_grad():
            ends = [loss_terms(decoder, code + s * 1e-6 * direction, images, marks)["total"] for s in (1, -1)]
        numeric = float(ends[0] - ends[1]) / 2e-6
        assert numeric == pytest.approx(float((gradient * direction).sum()), rel=0.02, abs=2e-4)


def test_zero_code_is_the_average_face_centred_and_lit(decoder: Decoder) -> None:
    code = LAYOUT.zeros(1)
    picture, size = decoder(code, 240), 240
    marks = decoder.face(code[0], size).camera.project(decoder.model.landmarks(decoder.model.mean))[:, :2]
    low, high = marks.amin(0), marks.amax(0)
    assert float((low + high)[0]) / 2 == pytest.approx(size / 2, abs=0.5)
    assert float((low + high)[1]) / 2 == pytest.approx(0.56 * size, abs=0.1)
    assert float((high - low).max()) == pytest.approx(0.61 * size, rel=1e-3)
    assert bool(
        (picture.screen[0, decoder.used, :2] > 0).all() & (picture.screen[0, decoder.used, :2] < size).all()
    )
    torch.testing.assert_close(picture.colour[0], AMBIENT_OFFSET * decoder.model.albedo_mean[:, :3])
    assert bool((decoder.face(code).camera.translation[..., 2] < -500).all())


def test_front_facing_vertices_are_those_a_rasterizer_sees(decoder: Decoder) -> None:
    """On the parts that nothing can hide. A vertex is seen if a triangle around it is, at 480 px. Vertices
    whose normal is nearly at a right angle to the view, and those that the nose, brows or lips may hide when
    the head is turned, are where the two definitions differ: there are few of both."""
    code = random_codes(3, 1)
    picture, model = decoder(code, 480), decoder.model
    face = decoder.face(code, 480)
    vertices, drawn = face.surface(model).vertices, face.render(model, 480, 480)
    for k in range(3):
        seen = torch.zeros(len(model.mean), dtype=torch.bool)
        seen[model.triangles[drawn.face_index[k][drawn.face_index[k] >= 0].unique()]] = True
        inside = ((picture.screen[k, :, :2] > 1) & (picture.screen[k, :, :2] < 479)).all(-1)
        compared = decoder.used & inside
        agree = (picture.visible[k] == seen)[compared].float().mean()
        assert agree > 0.93
        cosine = (picture.normals[k] * -nn.functional.normalize(
            decoder.face(code[k], 480).camera.to_camera(vertices[k]), dim=-1)).sum(-1)  # fmt: skip
        corners = vertices[k][model.triangles]
        facing = nn.functional.normalize(
            torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=-1
        ) @ decoder.face(code[k], 480).camera.rotation.mT  # fmt: skip
        around = (picture.normals[k][model.triangles] * facing[:, None]).sum(-1)
        folded = torch.zeros(len(model.mean), dtype=torch.bool)  # a normal says nothing there
        folded[model.triangles[around < 0]] = True
        assert folded[compared].float().mean() < 0.05
        assert not (compared & ~folded & seen & (cosine < -0.35)).any()  # nothing that turns away is seen
        convex = compared & (model.mean[:, 1] > 60) & (model.mean[:, 2] > -60)
        clear = convex & (cosine.abs() > 0.25)
        assert int(clear.sum()) > 60
        assert (picture.visible[k] == seen)[clear].float().mean() > 0.995  # the forehead


def test_nan_and_wrong_lengths_have_names(decoder: Decoder) -> None:
    code = LAYOUT.zeros(2)
    code[1, Z] = math.nan
    with pytest.raises(ParameterError, match="translation"):
        decoder(code)
    with pytest.raises(ParameterError):
        decoder(torch.zeros(2, 256))


# -------------------------------------------------------------------------------------------------- the loss


def test_photometric_loss_is_zero_on_the_decoders_own_colours(decoder: Decoder) -> None:
    """A picture of one colour, and a face that has it: E_photo is 0; off by (3, 4, 0)/50 it is 0.1."""
    code, images = LAYOUT.zeros(1), torch.full((1, 3, 40, 40), 0.5)
    picture = decoder(code, 40)
    grey = torch.full_like(picture.colour, 0.21404114)  # sRGB 0.5
    same = type(picture)(picture.screen, grey, picture.normals, picture.visible)
    used = same.visible & decoder.used

    def photo(which: Tensor) -> Tensor:
        seen = colours_at(images, same.screen, 40)
        return losses.photometric(linear_to_srgb(same.colour), seen, which)

    assert photo(used) < 1e-4
    images[:, 0] += 0.06
    images[:, 1] += 0.08
    for which in (used, used & (same.screen[..., 0] < 20)):
        torch.testing.assert_close(photo(which), torch.tensor([0.1]), atol=1e-4, rtol=0)


def test_only_the_visible_front_is_compared(decoder: Decoder, batch: dict[str, Tensor]) -> None:
    """Eq. 8's sum is over what the camera sees: pictures that differ elsewhere have the same loss."""
    code, images = random_codes(4), batch["image"][:4]
    picture = decoder(code, 60)
    used = picture.visible & decoder.used
    assert 0.2 < used.float().mean() < 0.9
    drawn, seen = linear_to_srgb(picture.colour), colours_at(images, picture.screen, 60)
    mean = torch.stack([(s - d)[u].norm(dim=-1).mean() for s, d, u in zip(seen, drawn, used)])
    torch.testing.assert_close(loss_terms(decoder, code, images)["photo"], mean, atol=1e-5, rtol=1e-4)


def test_terms_follow_the_printed_formulas(decoder: Decoder, batch: dict[str, Tensor]) -> None:
    code, images, marks = random_codes(4), batch["image"][:4], batch["landmarks"][:4]
    trust = torch.rand(68, generator=torch.Generator().manual_seed(0))
    terms = loss_terms(decoder, code, images, marks, trust)
    parts = LAYOUT.split(code)
    squares = {name: part.square().sum(1) for name, part in parts.items()}
    prior = squares["shape"] + 1.7e-3 * squares["reflectance"] + 0.8 * squares["expression"]
    torch.testing.assert_close(terms["reg"], prior)
    expected = torch.zeros(4)
    points = decoder.landmarks(code, 60)
    for j, k in enumerate(LANDMARKS):
        expected += trust[k] * ((points[:, j] - marks[:, k]) / 60).square().sum(1)
    torch.testing.assert_close(terms["land"], expected)
    total = 1.92 * terms["photo"] + terms["land"] + 2.9e-5 * prior
    torch.testing.assert_close(terms["total"], total)
    assert "land" not in loss_terms(decoder, code, images)


def test_gradient_reaches_every_part_of_the_code(decoder: Decoder, batch: dict[str, Tensor]) -> None:
    code = LAYOUT.zeros(4).requires_grad_()
    terms = loss_terms(decoder, code, batch["image"][:4], weights=Weights(reg=0.0))
    (gradient,) = torch.autograd.grad(terms["total"].sum(), code)
    for name, part in LAYOUT.split(gradient).items():
        assert bool((part.abs().amax(0) > 0).all()), name


# ----------------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize("kind", ["small", "alexnet", "vgg"])
def test_every_encoder_starts_with_the_average_face(kind: str) -> None:
    if kind == "vgg":
        with torch.device("meta"):  # 135 million weights are not needed to count the outputs
            network = Encoder(KINDS["vgg"](257, 3))
        assert network.final.weight.shape == (256, 4096)
        return
    network = Encoder(make_network(kind)).eval()
    with torch.no_grad():
        code = network(torch.rand(2, 3, 120, 120, generator=torch.Generator().manual_seed(0)))
    assert code.shape == (2, 257) and code.abs().max() == 0


def test_z_translation_learns_at_its_own_rate() -> None:
    network = Encoder(make_network("small"))
    groups = network.parameter_groups(0.1, 0.0005)
    assert [group["lr"] for group in groups] == [0.1, 0.0005]
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in network.parameters())
    optimiser = torch.optim.SGD(groups)
    code = network(torch.rand(2, 3, 120, 120))
    code.sum().backward()
    optimiser.step()
    bias = network.final.z_bias.item() / network.final.bias[0].item()
    units = network.units[Z] / network.units[0]
    assert bias == pytest.approx(0.005 * float(units), rel=1e-4)
    with torch.no_grad():  # and its row is where the layout says
        network.final.z_bias.fill_(1.0)
        network.final.bias.zero_()
        network.final.weight.zero_()
        network.final.z_weight.zero_()
    expected = torch.zeros(257)
    expected[Z] = network.units[Z]
    torch.testing.assert_close(network(torch.rand(1, 3, 120, 120))[0], expected)


def test_an_encoder_may_see_only_the_middle() -> None:
    """What is in the border says nothing, and what is inside does."""
    network = Encoder(make_network("small"), border=0.125).eval()
    nn.init.normal_(network.final.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    images = (
        torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1).clone()
    )
    images[1, :, :20] = images[1, :, :, 140:] = 0
    images[2, :, 20] = 0
    with torch.no_grad():
        one, two, three = network(images)
        assert torch.equal(one, two) and not torch.equal(one, three)
        torch.testing.assert_close(network.network(images[:1, :, 20:140, 20:140])[0] * network.units, one)


def test_networks_with_other_outputs_are_refused() -> None:
    with pytest.raises(ParameterError, match="257"):
        Encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 100)))


# -------------------------------------------------------------------------------------------- while training


def test_mirror_of_landmarks(decoder: Decoder) -> None:
    points = decoder.model.landmarks(decoder.model.mean)
    assert sorted(MIRROR) == list(range(68))
    torch.testing.assert_close(points[MIRROR] * points.new_tensor([-1.0, 1, 1]), points, atol=1e-3, rtol=0)
    image = torch.rand(1, 3, 8, 8)
    marks = torch.rand(1, 68, 2) * 8
    once = mirrored(image, marks, torch.tensor([True]))
    torch.testing.assert_close(once[0], image.flip(-1))
    back = mirrored(*once, torch.tensor([True]))
    torch.testing.assert_close(back, (image, marks))
    torch.testing.assert_close(mirrored(image, marks, torch.tensor([False])), (image, marks))


def test_a_tiny_training_lowers_all_three_errors_on_held_out_truth(decoder: Decoder) -> None:
    """Pictures and landmarks only; the truth is for measuring. Figure 10 in miniature."""
    renderer = Renderer(CorpusSpec("portrait", seed=1, size=60, subdivisions=0))
    data = [renderer.batch(i) for i in range(24)]
    held_out = [renderer.batch(100 + i) for i in range(2)]
    torch.manual_seed(0)
    network = Encoder(make_network("small"))
    before = evaluate(decoder, network.eval(), held_out)
    optimiser = torch.optim.Adam(network.parameter_groups(1e-3, 5e-3))
    rates = [group["lr"] for group in optimiser.param_groups]
    network.train()
    weights = Weights(land=3.0, reg=3e-3)
    for step in range(400):
        for group, rate in zip(optimiser.param_groups, rates):  # a last step at full rate is one of chance
            group["lr"] = rate * min(1.0, 2 * (1 - step / 400))
        part = data[step % len(data)]
        terms = loss_terms(
            decoder, network(part["image"]), part["image"], part["landmarks"], weights=weights
        )
        optimiser.zero_grad()
        terms["total"].mean().backward()
        optimiser.step()
    after = evaluate(decoder, network.eval(), held_out)
    assert after["geometry_mm"] < 0.92 * before["geometry_mm"]
    assert after["photometric"] < 0.8 * before["photometric"]
    assert after["landmarks_px"] < 0.75 * before["landmarks_px"]


def test_what_goes_wrong_is_noticed(decoder: Decoder) -> None:
    people = decoder.model.sample(16, torch.Generator().manual_seed(3))
    good = random_codes(16)
    for name, kind in (("shape", "identity"), ("expression", "expression"), ("reflectance", "albedo")):
        good[:, LAYOUT.slice(name)] = people[kind]
    assert complaints(warning_signs(decoder, good)) == []

    def wrong(name: str, value: float | Tensor) -> str:
        code = good.clone()
        code[:, LAYOUT.slice(name)] = value
        return " ".join(complaints(warning_signs(decoder, code)))

    assert "one shape" in wrong("shape", 0.0)
    assert "one expression" in wrong("expression", 0.0)
    assert "leave the picture" in wrong("translation", torch.tensor([200.0, 0, 0]))
    assert "faces turn away:" in wrong("rotation", torch.tensor([0.0, 1.5, 0]))
    assert "turn away together" in wrong("rotation", torch.tensor([0.0, 0.5, 0]))
    assert "shrink" in wrong("translation", torch.tensor([0.0, 0, -400.0]))
    assert "light explains" in wrong("reflectance", 0.0)


# ----------------------------------------------------------------------------------------------- as a method


class OneFace:
    """A detector that knows where the face is."""

    def __init__(self, box: tuple[float, float, float, float] | None) -> None:
        self.box = box

    def detect(self, image: Tensor) -> list[Face]:
        if self.box is None:
            return []
        return [
            Face(
                torch.tensor(self.box), torch.rand(68, 2, generator=torch.Generator().manual_seed(0)) * 90, 1
            )
        ]


def test_average_face_lands_where_the_detector_saw_one() -> None:
    """An untrained encoder says "the average face in the middle": of the box, then of its first answer."""
    network = Encoder(make_network("small"))
    method = MoFA(network, detector=OneFace((100.0, 50.0, 200.0, 150.0)))
    said = method.reconstruct(torch.full((3, 260, 400), 0.5))
    marks = said.landmarks
    middle = (marks.amax(0) + marks.amin(0)) / 2
    side = 100 / 0.625  # of the first crop, in photo px
    again = 1.6 * 0.61 * side  # of the second, around the landmarks that the first answer has
    low = 100 + 0.06 * side + (0.06 - 0.08) * again  # what is cut out shows a little more forehead
    torch.testing.assert_close(middle, torch.tensor([150.0, low]), atol=1.0, rtol=0)
    assert float((marks.amax(0) - marks.amin(0)).max()) == pytest.approx(0.61 * again, rel=0.02)
    assert (
        said.mesh.vertices.shape == (10098, 3)
        and said.image is not None
        and said.image.shape == (3, 260, 400)
    )
    framed = MoFA(network, framed=True, model=None).reconstruct(torch.full((3, 240, 240), 0.5))
    assert framed.mask is not None and 0.15 < float(framed.mask.float().mean()) < 0.6


def test_bad_pictures_have_names() -> None:
    method = MoFA(Encoder(make_network("small")), detector=OneFace(None))
    with pytest.raises(NoFaceError):
        method.reconstruct(torch.full((3, 100, 100), 0.5))
    with pytest.raises(NotAnImageError):
        method.reconstruct(torch.full((3, 100, 100), math.nan))
    with pytest.raises(NoFaceError):
        face_square(torch.full((3, 100, 100), 0.5))
    method.framed = True
    with pytest.raises(ParameterError, match="square"):
        method.reconstruct(torch.full((3, 100, 120), 0.5))
    nn.init.constant_(method.encoder.final.bias, math.nan)
    with pytest.raises(ParameterError, match="NaN"):
        method.reconstruct(torch.full((3, 120, 120), 0.5))


def test_checkpoints_round_trip_and_changed_ones_are_refused(tmp_path: Path) -> None:
    from facelab.methods.mofa import card_of

    network = Encoder(make_network("small"), border=0.1)
    nn.init.normal_(network.final.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "mofa.safetensors"
    save_checkpoint(path, network, card_of("small", 120, border=0.1))
    image = torch.rand(1, 3, 240, 240, generator=torch.Generator().manual_seed(1))
    again = MoFA.load(path, framed=True)
    assert again.encoder.border == 0.1
    torch.testing.assert_close(
        again.regress(image), MoFA(network, framed=True).regress(image), atol=2e-2, rtol=2e-2
    )

    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"face_model": "another"}))
    with pytest.raises(ModelFileError, match="face model"):
        MoFA.load(path)
    path.with_suffix(".json").write_text(json.dumps(card | {"kind": "alexnet"}))
    with pytest.raises(ModelFileError):
        MoFA.load(path)
    path.with_suffix(".json").write_text(json.dumps(card))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="SHA-256"):
        MoFA.load(path)
    assert issubclass(ModelFileError, FacelabError)


def test_the_shipped_encoder_knows_faces_that_it_has_not_seen(decoder: Decoder) -> None:
    """Renders, of which it saw others; beside the average face in the middle, which knows nothing."""
    method = MoFA.load(framed=True)
    unseen = [Renderer(CorpusSpec("portrait", seed=4321, size=method.side, subdivisions=0)).batch(0)]
    errors = evaluate(decoder, method.encoder, unseen)
    nothing = evaluate(decoder, Encoder(make_network("small")).eval(), unseen)
    assert errors["geometry_mm"] < 0.5 * nothing["geometry_mm"]
    assert errors["photometric"] < 0.5 * nothing["photometric"]
    assert errors["landmarks_px"] < 0.3 * nothing["landmarks_px"]
    assert errors["pose_degrees"] < 0.4 * nothing["pose_degrees"]
    assert complaints(warning_signs(decoder, method.regress(unseen[0]["image"]))) == []


def test_framed_mofa_takes_a_picture_as_it_is() -> None:
    flat = torch.full((3, 96, 96), 0.5)  # nobody: a detector would refuse it
    assert bool(torch.isfinite(FramedMoFA.load().reconstruct(flat).mesh.vertices).all())
    with pytest.raises(NoFaceError):
        MoFA.load().reconstruct(flat)
