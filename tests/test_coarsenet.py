"""CoarseNet's representation, feedback, losses; FineNet's criterion: light, skin and relief from shading."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from skimage.data import astronaut
from torch import Tensor, nn
from torch.autograd import gradcheck

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import train_coarsenet

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.methods import coarsenet
from facelab.methods.coarsenet import (
    CoarseNet,
    GeometryLoss,
    decode,
    depth_map,
    feedback,
    iterate,
    layout,
    mixed,
    network_input,
    pose_loss,
    vectors_of,
)
from facelab.methods.shading_criterion import (
    Weights,
    criterion,
    estimate_albedo,
    estimate_light,
    laplacian,
    shade_first_order,
)
from facelab.model.morphable_model import MorphableModel
from facelab.networks import Hypercolumn, encoder
from facelab.photos import find_face
from facelab.rendering.gbuffer import depth_normals, rasterize_surface
from facelab.rendering.image_formation import normalised_coordinates
from facelab.support.errors import ModelFileError, NoFaceError, ParameterError
from facelab.synthetic.distributions import DISTRIBUTIONS
from facelab.training import Run

SIZE = 64


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(model: MorphableModel, count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, layout(model).size), generator=seeded(seed))


# --- CoarseNet ----------------------------------------------------------------------------------------------


def test_zero_is_the_mean_face_in_the_middle_from_the_front(model: MorphableModel) -> None:
    assert layout(model).sizes == {
        "identity": 128, "expression": 64, "rotation": 3, "translation": 2, "scale": 1,
    }  # fmt: skip
    face = decode(model, layout(model).zeros(1), 200)
    surface = face.surface(model)
    torch.testing.assert_close(surface.vertices[0], model.mean)
    points = face.camera.project(model.landmarks(model.mean))[0, :, :2]
    low, high = points.amin(0), points.amax(0)
    assert float((high - low).max()) == pytest.approx(coarsenet.BOX_SHARE * 200, abs=1e-3)
    torch.testing.assert_close((low + high) / 2, torch.tensor([100.0, 112.0]), atol=1e-3, rtol=0)
    assert torch.equal(face.camera.rotation[0], torch.eye(3))


def test_mixed_vectors_lie_between_truth_and_chance(model: MorphableModel) -> None:
    truth, other = vectors(model, 400), vectors(model, 400, 1)
    on_way = mixed(truth, other, seeded())
    share = (on_way - other)[:, 0] / (truth - other)[:, 0]
    twin = share[:, None] * truth + (1 - share[:, None]) * other
    torch.testing.assert_close(on_way, twin, atol=1e-3, rtol=0)
    assert share.min() >= -1e-3 and share.max() <= 1.001 and 0.45 < share.mean() < 0.55


def test_feedback_shows_where_each_point_of_the_mean_face_is(model: MorphableModel) -> None:
    """A readable twin: project a vertex that is seen, look its colour up at that pixel."""
    r = 0.7 * vectors(model, 3)
    maps, mask = feedback(model, r, 200)
    assert maps.shape == (3, 6, 200, 200) and maps.min() >= 0 and maps.max() <= 1
    assert (maps * ~mask == 0).all()
    face = decode(model, r, 200)
    surface = face.surface(model)
    screen, code = face.camera.project(surface.vertices), normalised_coordinates(model.mean)
    normals = surface.normals @ face.camera.rotation.mT
    for k in range(3):
        seen = torch.nonzero((normals[k, :, 2] > 0.8) & model.region_vertices("skin"))[::7, 0]
        column, row = screen[k, seen, :2].floor().long().unbind(-1)
        inside = (column >= 0) & (column < 200) & (row >= 0) & (row < 200)
        seen, column, row = seen[inside], column[inside], row[inside]
        assert len(seen) > 30
        shown = maps[k, :, row, column].T
        for said, true in ((shown[:, :3], code[seen]), (2 * shown[:, 3:] - 1, normals[k, seen])):
            own, other = ((said - point).norm(dim=1).median() for point in (true, true.flip(0)))
            assert own < 0.25 * other, "beside another vertex's"


def test_the_network_sees_grey_masked_by_the_face(model: MorphableModel) -> None:
    r, images = 0.5 * vectors(model, 2), torch.rand((2, 3, SIZE, SIZE), generator=seeded())
    seen = network_input(model, r, images)
    _, mask = feedback(model, r, SIZE)
    grey = 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]
    for k in range(2):
        inside, said = grey[k, 0][mask[k, 0]], seen[k, 0]
        twin = (inside - inside.mean()) / inside.std(correction=0)
        torch.testing.assert_close(said[mask[k, 0]], 0.5 + twin, rtol=1e-3, atol=1e-3)
        assert (said[~mask[k, 0]] == 0.5).all()
    assert seen.shape == (2, 7, SIZE, SIZE)
    torch.testing.assert_close(network_input(model, r, 0.2 + 0.3 * images), seen, rtol=1e-3, atol=1e-3)
    both = network_input(model, r[:1].expand(2, -1), images)
    torch.testing.assert_close(network_input(model, r[:1], images), both)
    assert network_input(model, r + 100, images).isfinite().all(), "no face in the picture"
    assert network_input(model, r, 0 * images).isfinite().all()
    assert network_input(model, r, images, ("pncc",)).shape == (2, 4, SIZE, SIZE)
    whole = network_input(model, r, images, ())
    assert whole.shape == grey.shape and float((whole - 0.5).square().mean()) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ParameterError, match="square"):
        network_input(model, r, images[..., :50])


def test_geometry_loss_is_the_vertices_squared_distance(model: MorphableModel) -> None:
    truth, said = vectors(model, 4), vectors(model, 4, 1)
    shapes = [decode(model, r).surface(model).vertices for r in (truth, said)]
    expected = (shapes[0] - shapes[1]).square().sum(-1).mean(-1)
    torch.testing.assert_close(GeometryLoss(model)(said, truth), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pose_loss(said, truth), (said - truth)[:, -6:].square().mean(1))
    moved = truth.clone()
    moved[:, -6:] += 1
    assert GeometryLoss(model)(moved, truth).abs().max() == 0
    torch.testing.assert_close(pose_loss(moved, truth), torch.ones(4))


def test_depth_map_is_the_rasterized_surface(model: MorphableModel) -> None:
    """Eq. 6."""
    r = 0.5 * vectors(model, 2)
    depth, mask = depth_map(model, r, SIZE)
    face = decode(model, r, SIZE)
    surface = face.surface(model)
    maps = rasterize_surface(surface.vertices, model.triangles, face.camera, surface.vertices, SIZE, SIZE)
    assert torch.equal(mask, maps.mask)
    torch.testing.assert_close(depth, maps.depth)
    torch.testing.assert_close(depth[mask], -maps.positions[:, 2:][mask], atol=2e-2, rtol=0)


def test_gradients_of_the_depth_map_are_the_barycentric_weights(model: MorphableModel) -> None:
    """Eq. 7, against finite differences: a step along -z moves the seen pixels by it, a step sideways by
    nothing, unless x and y are asked for."""
    exact = model.to(dtype=torch.float64)
    r = torch.zeros(1, layout(model).size, dtype=torch.float64, requires_grad=True)
    k = 3  # a component of shape
    gradients = {}
    for through in ("z", "xyz"):
        depth, mask = depth_map(exact, r, SIZE, through)
        (gradients[through],) = torch.autograd.grad(depth.sum(), r)
    # with fixed places on the screen: the vertices' own depths, interpolated
    face = decode(exact, r.detach(), SIZE)
    surface = face.surface(exact)
    moved = face.camera.rotation[0] @ exact.identity_basis[k].T
    maps = rasterize_surface(surface.vertices, exact.triangles, face.camera, -moved.T[:, 2:], SIZE, SIZE)
    assert float(gradients["z"][0, k]) == pytest.approx(float(maps.attributes.sum()), rel=1e-3)
    assert gradients["z"][0, -3:].abs().max() < 1e-6 < gradients["xyz"][0, -3:].abs().max()
    # with them: what the map does when the component changes (but for pixels that change their triangle)
    step = 1e-4
    with torch.no_grad():
        up, down = r.detach().clone(), r.detach().clone()
        up[0, k] += step
        down[0, k] -= step
        (high, seen), (low, also) = depth_map(exact, up, SIZE), depth_map(exact, down, SIZE)
        both = seen & also & mask
        change = ((high - low)[both] / (2 * step)).sum()
    assert float(gradients["xyz"][0, k]) == pytest.approx(float(change), rel=0.03)


@pytest.mark.parametrize("size", [(64, 64), (65, 63), (70, 130), (9, 8)])
def test_the_hypercolumn_network_takes_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = Hypercolumn(width=4)
    maps = torch.rand((2, 2, *size), generator=seeded())
    assert network(maps).shape == (2, 1, *size) and network(maps).abs().max() == 0, "zero at the start"
    nn.init.normal_(network.regressor[-1].weight, generator=seeded(1))
    said = network(maps)
    assert (said[0] - said[1]).abs().max() > 0 and Hypercolumn().regressor[0].in_channels == 450


# --- the criterion ------------------------------------------------------------------------------------------

CAMERA = WeakPerspectiveCamera.frontal(0.5, SIZE, SIZE, torch.float64)


def bowl(detail: float = 0.0) -> Tensor:
    """Depth (1, S, S) in mm of a convex face-like surface; `detail` mm of fine folds."""
    axis = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    depth = 10_000 + 40 * (x**2 + 0.6 * y**2)
    return (depth + detail * torch.sin(14 * x) * torch.cos(11 * y))[None]


def scene(detail: float) -> dict[str, Tensor]:
    normals = depth_normals(bowl(detail), CAMERA)
    tint = torch.tensor([[1.1], [1.0], [0.9]], dtype=torch.float64)
    light = tint * torch.tensor([0.35, 0.2, 0.25, 0.4], dtype=torch.float64)
    generator = seeded(3)
    basis = torch.rand((4, 3, SIZE, SIZE), generator=generator, dtype=torch.float64) - 0.5
    mean = torch.full((3, SIZE, SIZE), 0.4, dtype=torch.float64)
    coefficients = torch.tensor([0.1, -0.05, 0.08, 0.02], dtype=torch.float64)
    albedo = mean + torch.einsum("k,kchw->chw", coefficients, basis)
    image = albedo * shade_first_order(light, normals)
    mask = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, :5] = False
    return {
        "normals": normals, "light": light, "basis": basis, "mean": mean, "coefficients": coefficients,
        "albedo": albedo, "image": image, "mask": mask,
    }  # fmt: skip


def test_least_squares_find_the_light_and_the_skin_that_made_a_picture() -> None:
    """Eqs. 9 to 12."""
    s = scene(0.0)
    known = dict(rtol=0, atol=1e-4)
    light = estimate_light(s["image"], s["normals"], s["albedo"], s["mask"])
    torch.testing.assert_close(light, s["light"], **known)
    args = (s["image"], s["normals"], s["light"], s["mean"], s["basis"], s["mask"])
    albedo, coefficients = estimate_albedo(*args)
    torch.testing.assert_close(coefficients, s["coefficients"], **known)
    torch.testing.assert_close(albedo, s["albedo"], **known)
    # a batch is its parts; what is outside of the mask does not matter
    noise = torch.where(s["mask"], s["image"], 7.0)
    both = estimate_light(
        torch.stack([s["image"], noise]), s["normals"].expand(2, -1, -1, -1), s["albedo"], s["mask"]
    )
    torch.testing.assert_close(both, light.expand(2, -1, -1))
    empty = torch.zeros_like(s["mask"])
    assert estimate_light(s["image"], s["normals"], s["albedo"], empty).abs().max() == 0


def test_terms_are_those_of_a_loop_over_pixels() -> None:
    """Eqs. 8, 13 and 14."""
    s, coarse, depth = scene(0.5), bowl(), bowl(0.7)
    terms = criterion(depth, coarse, s["image"], s["albedo"], s["light"], CAMERA, s["mask"])
    normals, pixels = depth_normals(depth, CAMERA), 0
    sums = {"shading": 0.0, "fidelity": 0.0, "smoothness": 0.0}
    for i in range(SIZE):
        for j in range(SIZE):
            near = [(i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            near = [(min(max(a, 0), SIZE - 1), min(max(b, 0), SIZE - 1)) for a, b in near]
            if not all(s["mask"][0, a, b] for a, b in near):
                continue
            pixels += 1
            basis = torch.cat([torch.ones(1, dtype=torch.float64), normals[:, i, j]])
            drawn = s["albedo"][:, i, j] * (s["light"] @ basis)
            sums["shading"] += float((drawn - s["image"][:, i, j]).square().sum())
            sums["fidelity"] += float((0.5 * (depth - coarse)[0, i, j]) ** 2)
            curved = -4 * depth[0, i, j]
            for a, b in near[1:]:
                curved = curved + depth[0, a, b]
            sums["smoothness"] += abs(0.5 * float(curved))
    for name, value in sums.items():
        assert float(terms[name]) == pytest.approx(value / pixels, rel=1e-6), name
    total = sum(getattr(Weights(), name) * float(terms[name]) for name in sums)
    assert float(terms["total"]) == pytest.approx(total)
    assert laplacian(3 + 0 * bowl()).abs().max() == 0


def test_gradients() -> None:
    generator = seeded()
    small = replace(CAMERA, offset=torch.tensor([3.0, 3.0], dtype=torch.float64))
    image, albedo = (torch.rand((2, 6, 6), generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(1, 6, 6, dtype=torch.bool)
    start = 1000 + torch.rand((1, 6, 6), generator=generator).double()

    def total(depth: Tensor) -> Tensor:
        light = estimate_light(image, depth_normals(depth, small), albedo, mask)
        return criterion(depth, start, image, albedo, light, small, mask)["total"]

    moved = (start + torch.rand((1, 6, 6), generator=generator).double()).requires_grad_()
    assert gradcheck(total, moved, atol=1e-5)


def test_the_criterion_alone_finds_folds_from_their_shading() -> None:
    """What FineNet approximates: start from the smooth surface, follow the gradient. The same steps without
    the shading term find nothing."""
    s, coarse, truth = scene(0.6), bowl(), bowl(0.6)
    wanted = depth_normals(truth, CAMERA)
    inner = (slice(None), slice(8, -3), slice(3, -3))

    def angle(depth: Tensor) -> float:
        cosine = (depth_normals(depth, CAMERA) * wanted).sum(0, keepdim=True)[inner]
        return float(cosine.clamp(-1, 1).acos().rad2deg().mean())

    errors = {}
    for name, shading in (("with", 1.0), ("without", 0.0)):
        offset = torch.zeros_like(coarse).requires_grad_()
        adam = torch.optim.Adam([offset], 0.02)
        weights = Weights(shading=shading, fidelity=5e-5, smoothness=1e-5)
        for _ in range(150):
            loss = criterion(
                coarse + offset, coarse, s["image"], s["albedo"], s["light"], CAMERA, s["mask"], weights
            )["total"]
            adam.zero_grad()
            loss.backward()
            adam.step()
        errors[name] = angle((coarse + offset).detach())
    before = angle(coarse)
    assert errors["with"] < 0.5 * before and errors["without"] > 0.9 * before, (before, errors)


# --- training and use ---------------------------------------------------------------------------------------


def test_vectors_of_faces_are_what_decode_undoes(model: MorphableModel) -> None:
    r = 0.8 * vectors(model, 3)
    torch.testing.assert_close(vectors_of(model, decode(model, r, 120), 120), r, atol=1e-4, rtol=0)
    # a perspective portrait: the same shape, its landmarks within a small share of the picture
    portrait = DISTRIBUTIONS["portrait"]
    faces = portrait.decode(model, portrait.sample(model, 8, seeded()), 120)
    weak = decode(model, vectors_of(model, faces, 120), 120)
    torch.testing.assert_close(weak.surface(model).vertices, faces.surface(model).vertices, atol=1e-3, rtol=0)
    off = (weak.landmarks(model) - faces.landmarks(model)).norm(dim=-1)[:, 17:]
    still = (decode(model, 0 * r[:1], 120).landmarks(model) - faces.landmarks(model)).norm(dim=-1)[:, 17:]
    assert off.mean() < 3 and off.mean() < 0.3 * still.mean()


class Oracle(nn.Module):
    """Says the truth but for a tenth of what its input shows to be missing: more looks, better answers."""

    def __init__(self, truth: Tensor) -> None:
        super().__init__()
        self.truth, self.said = truth, torch.zeros_like(truth)

    def forward(self, seen: Tensor) -> Tensor:
        assert seen.shape[1:] == (7, SIZE, SIZE)
        self.said = self.truth + 0.1 * (self.said - self.truth)
        return self.said


def test_iterating_feeds_the_answer_back(model: MorphableModel) -> None:
    truth, images = 0.5 * vectors(model, 2), torch.rand((2, 3, SIZE, SIZE), generator=seeded())
    said = iterate(Oracle(truth), model, images, 4)
    assert len(said) == 4
    errors = [float((r - truth).norm()) for r in said]
    assert errors == sorted(errors, reverse=True) and errors[3] < 1e-3 * float(truth.norm()) + 1e-6

    class Broken(nn.Module):
        def forward(self, seen: Tensor) -> Tensor:
            return torch.full((len(seen), layout(model).size), float("nan"))

    with pytest.raises(ParameterError, match="NaN"):
        iterate(Broken(), model, images)


def test_the_method_answers_in_the_photographs_pixels(model: MorphableModel) -> None:
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    truth = torch.zeros(1, layout(model).size)
    method = CoarseNet(Oracle(truth), SIZE, model)
    said = method.reconstruct(photo)
    torch.testing.assert_close(said.mesh.vertices, model.mean, atol=0.1, rtol=0)
    found = find_face(photo).landmarks
    assert (said.landmarks.mean(0) - found.mean(0)).norm() < 0.15 * (found.amax(0) - found.amin(0)).max()
    assert said.light is None and said.mask is not None and said.mask.shape == (1, *photo.shape[1:])
    with pytest.raises(NoFaceError):
        method.reconstruct(torch.full((3, 200, 200), 0.5))


def test_a_step_sees_the_papers_estimates_or_the_mean_face(model: MorphableModel) -> None:
    settings = replace(train_coarsenet.PRESETS["tiny"], batch=64)
    faces = train_coarsenet.Faces(settings, 0, 64)
    images, truth, estimate = train_coarsenet.examples(faces, settings, 3, False)
    assert all(torch.equal(a, b) for a, b in zip((images, truth), faces(3)))
    share = torch.nn.functional.cosine_similarity(estimate, truth).mean()
    assert 0.4 < share < 0.9, "half of the truth, on average"
    again = train_coarsenet.examples(faces, settings, 3, False)[2]
    assert torch.equal(estimate, again)
    warm = train_coarsenet.examples(faces, settings, 3, True)
    assert torch.equal(warm[1], truth) and warm[2].shape == (1, truth.shape[1]) and warm[2].abs().max() == 0


def test_a_corpus_is_shown_shrunk_and_with_its_own_truth(tmp_path: Path, model: MorphableModel) -> None:
    settings = replace(train_coarsenet.PRESETS["cpu"], pictures=4)
    faces = train_coarsenet.Faces(settings, 0, 4, corpus=tmp_path / "corpus")
    assert faces.corpus is not None
    images, truth = faces(0)
    assert images.shape == (4, 3, settings.side, settings.side)
    landmarks = decode(model, truth, settings.side).landmarks(model)
    found = torch.stack([item["landmarks"] for item in faces.corpus]) * settings.side / faces.corpus.side
    off = (landmarks[:, None] - found[None]).norm(dim=-1)[..., 17:].mean(-1)
    assert sorted(off.argmin(1).tolist()) == [0, 1, 2, 3], "each picture once"
    assert off.amin(1).max() < 3 and off.amin(1).mean() < 0.5 * off.mean()
    again = train_coarsenet.Faces(settings, 0, 4, corpus=tmp_path / "corpus")
    assert all(torch.equal(a, b) for a, b in zip(again(0), (images, truth)))


@pytest.mark.parametrize("channels", ["both", "normals", "none"])
def test_a_trained_network_comes_back_as_a_method(
    tmp_path: Path, model: MorphableModel, channels: str
) -> None:
    tiny = replace(train_coarsenet.PRESETS["tiny"], steps=2, channels=channels)
    train_coarsenet.train(tmp_path, tiny, "cpu")
    method = CoarseNet.load(tmp_path / "coarsenet.safetensors", iterations=2)
    assert (method.side, method.iterations, method.name) == (tiny.side, 2, "coarsenet")
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    crop, r = method.look(photo)
    said = iterate(method.network, model, crop.image[None], 2, coarsenet.CHANNELS[channels])
    torch.testing.assert_close(r, said[-1][0])
    one = coarsenet.OneLook.load(tmp_path / "coarsenet.safetensors")
    crop, r = one.look(photo)
    torch.testing.assert_close(r, iterate(one.network, model, crop.image[None], 1, one.channels)[0][0])
    card = tmp_path / "coarsenet.json"
    card.write_text(card.read_text().replace("CoarseNet", "MoFA"))
    with pytest.raises(ModelFileError, match="train_coarsenet"):
        CoarseNet.load(tmp_path / "coarsenet.safetensors")
    with pytest.raises(ParameterError, match=r"both, pncc, normals, none"):
        coarsenet.make_network("slim", model, "depth")


def test_the_shipped_network_knows_faces_that_it_has_not_seen(model: MorphableModel) -> None:
    """Renders, of which it saw others; beside the mean face in the middle, and beside its own first look."""
    method = CoarseNet.load()
    faces = train_coarsenet.Faces(replace(train_coarsenet.PRESETS["cpu"], side=method.side), 4321, 32)
    images, truth = faces(0)
    said = iterate(method.network, model, images, 4, method.channels)
    geometry, zero = GeometryLoss(model), torch.zeros_like(truth)
    assert pose_loss(said[3], truth).mean() < 0.25 * pose_loss(zero, truth).mean()
    assert geometry(said[3], truth).mean() < 0.9 * geometry(zero, truth).mean()
    with torch.no_grad():  # it looks at the picture: a wrong estimate is corrected
        other = truth.roll(1, 0)
        after = method.network(network_input(model, other, images, method.channels))
    assert pose_loss(after, truth).mean() < 0.3 * pose_loss(other, truth).mean()
    assert pose_loss(after, truth).mean() < 0.3 * pose_loss(after, other).mean()


def test_a_training_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    tiny = replace(train_coarsenet.PRESETS["tiny"], steps=6)
    train_coarsenet.train(tmp_path / "whole", tiny, "cpu")
    steps = Run.steps

    def stopped(self: Run, state: dict, total: int) -> Iterator[int]:
        for step in steps(self, state, total):
            if step == 4:
                raise KeyboardInterrupt
            yield step

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "steps", stopped)
        train_coarsenet.train(tmp_path / "killed", tiny, "cpu")
    card = train_coarsenet.train(tmp_path / "killed", tiny, "cpu")
    whole, killed = (tmp_path / name / "coarsenet.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert set(card["held_out"]) == {f"{a}_{b}" for a in ("mean_face", "one", "four") for b in ("mm", "pose")}


def test_the_loss_reaches_the_network(model: MorphableModel) -> None:
    """Shown the same eight pictures again and again, whatever estimate it is given, it learns their faces."""
    settings = replace(train_coarsenet.PRESETS["tiny"], side=SIZE)
    images, truth = train_coarsenet.Faces(settings, 0, settings.batch)(0)
    network = encoder("small", layout(model).size, "normal", None, 7, seeded())
    adam, geometry = torch.optim.Adam(network.parameters(), 2e-3), GeometryLoss(model)
    balance = geometry(truth, 0 * truth).mean() / pose_loss(truth, 0 * truth).mean()
    losses = []
    for step in range(40):
        estimate = mixed(truth, truth.flip(0), seeded(step))
        said = network(network_input(model, estimate, images))
        loss = (geometry(said, truth) + balance * pose_loss(said, truth)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
