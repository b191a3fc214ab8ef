"""FineNet: the network, the criterion on faces, folds of known depth, detail on the mesh, end to end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import train_coarsenet
import train_finenet

from facelab.export import relief_normals, textured_mesh, with_relief
from facelab.methods.coarse_to_fine import CoarseToFine, EndToEnd
from facelab.methods.coarsenet import LandmarkFace, decode, layout, load_network
from facelab.methods.finenet import FineNet, View, feathered, observe, optimise, skin_maps
from facelab.methods.relief import Detail, detailed_normals, displaced
from facelab.methods.shading_criterion import Weights
from facelab.methods.wrinkles import WrinkledFaces, relief_errors, wrinkled_faces
from facelab.model.morphable_model import MorphableModel
from facelab.networks import encoder
from facelab.photos.crops import FaceCrops
from facelab.rendering.gbuffer import depth_normals, rasterize_surface
from facelab.support.errors import FacelabError, ModelFileError, NoFaceError, ParameterError
from facelab.training import Run, save_checkpoint

SIZE = 160


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=1)


@pytest.fixture(scope="module")
def faces(model: MorphableModel) -> WrinkledFaces:
    return wrinkled_faces(model, 2, SIZE, seeded(5), relief=2.0)


@pytest.fixture(scope="module")
def view(model: MorphableModel, faces: WrinkledFaces) -> View:
    return observe(model, faces.r, faces.images, robust=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(width: int = 4, seed: int = 1) -> FineNet:
    """Random weights, the last layer's too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = FineNet(width)
    nn.init.normal_(made.network.regressor[-1].weight, generator=seeded(seed))
    return made.eval()


def inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images = torch.rand((2, 3, height, width), generator=seeded())
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    depth = (10_000 + 30 * (x.square() + y.square())).expand(2, 1, -1, -1)
    return images, depth, (x.square() + 1.3 * y.square() < 0.8).expand(2, 1, -1, -1), torch.tensor([0.5, 0.8])


# --- the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (65, 67), (101, 64), (200, 200), (511, 512)])
def test_any_size_of_picture(size: tuple[int, int]) -> None:
    images, coarse, mask, scale = inputs(*size)
    with torch.no_grad():
        fine = network(2)(images, coarse, mask, scale)
        untrained = FineNet(2)(images, coarse, mask, scale)
    assert fine.shape == coarse.shape and torch.equal(untrained, coarse), "it starts with the coarse depth"
    assert torch.equal(fine[~mask], coarse[~mask]), "nothing changes outside of the skin"
    assert (fine - coarse)[mask].abs().max() > 0.1


@pytest.mark.parametrize("size", [(64, 64), (66, 71)])
def test_mirrored_pictures_have_mirrored_answers(size: tuple[int, int]) -> None:
    maps = inputs(*size)
    tilted = (maps[0], maps[1] + torch.linspace(0, 20, size[1]), *maps[2:])
    mirrored = (*(part.flip(-1) for part in tilted[:3]), tilted[3])
    made = network()
    with torch.no_grad():
        one, other = made(*tilted), made(*mirrored).flip(-1)
        alone = made.train()(*mirrored).flip(-1)
    torch.testing.assert_close(one, other, atol=5e-3, rtol=0)
    assert (alone - one).abs().max() > 0.1, "one look alone has no such symmetry"


def test_detail_fades_towards_the_border_of_the_skin() -> None:
    mask = torch.zeros(1, 1, 100, 100, dtype=torch.bool)
    mask[..., 30:70, 20:60] = True
    share = feathered(mask)
    assert share.min() == 0 and share.max() == 1 and (share[~mask] == 0).all()
    row = share[0, 0, 50]
    assert row[20] < row[21] < row[22] <= 1 and row[40] == 1


def test_wrong_inputs_have_names(model: MorphableModel) -> None:
    images, coarse, mask, scale = inputs(64, 64)
    made, nan = network(2), torch.full_like(images, float("nan"))
    for wrong, message in (
        ((images[..., :60], coarse[..., :60], mask[..., :60], scale), "at least 64"),
        ((images[:, :1], coarse, mask, scale), r"\(B, 3, H, W\)"),
        ((nan, coarse, mask, scale), "NaN"),
        ((images, coarse / 0 * 0, mask, scale), "NaN"),
        ((images, coarse[..., :63], mask, scale), "must be"),
        ((images, coarse, mask[:1], scale), "must be"),
        ((images, coarse, mask, scale[:1]), "scale"),
    ):
        with pytest.raises(ParameterError, match=message):
            made(*wrong)
    r = torch.zeros(2, layout(model).size)
    with pytest.raises(ParameterError, match="square"):
        observe(model, r, torch.rand(2, 3, 70, 80))
    with pytest.raises(ParameterError, match="NaN"):
        observe(model, r, nan)
    with pytest.raises(ParameterError, match="at least 64"):
        CoarseToFine(LandmarkFace(model), made, 63)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    made = network()
    save_checkpoint(tmp_path / "a.safetensors", made, {"method": "FineNet", "width": 4})
    again, maps = FineNet.load(tmp_path / "a.safetensors"), inputs(64, 64)
    with torch.no_grad():
        expected, said = (n(*maps) - maps[1] for n in (made, again))
    assert (said - expected).abs().max() < 0.05 * expected.abs().max(), "rounded to 8 bits"
    save_checkpoint(tmp_path / "b.safetensors", made, {"method": "MoFA", "width": 4})
    save_checkpoint(tmp_path / "c.safetensors", made, {"method": "FineNet", "width": 8})
    for name in ("b", "c"):
        with pytest.raises(ModelFileError, match="FineNet"):
            FineNet.load(tmp_path / f"{name}.safetensors")


# --- folds of known depth -----------------------------------------------------------------------------------


def test_folds_are_what_the_depth_has_and_the_coarse_face_lacks(
    model: MorphableModel, faces: WrinkledFaces
) -> None:
    smooth = wrinkled_faces(model, 2, SIZE, seeded(5), relief=0.0)
    assert torch.equal(faces.r, smooth.r) and torch.equal(faces.skin, smooth.skin)
    torch.testing.assert_close(faces.depth - smooth.depth, faces.relief, atol=4e-3, rtol=0)
    assert smooth.relief.abs().max() == 0 and 0.3 < faces.relief.max() < 5 and faces.relief.min() >= 0
    changed = (faces.images - smooth.images).abs().amax(1, keepdim=True)
    near = torch.nn.functional.max_pool2d(faces.relief, 5, 1, 2) > 1e-4
    assert changed[~near].max() < 1e-3 < 0.03 < changed[near].max() and changed[near].mean() > 2e-3
    assert faces.images.min() >= 0 and faces.images.max() <= 1
    errors = [relief_errors(depth, faces) for depth in (faces.depth, smooth.depth, smooth.depth + 7)]
    assert max(errors[0].values()) < 0.1 and errors[1]["folds_degrees"] > 4
    assert errors[2] == pytest.approx(errors[1], abs=0.1), "distance is forgiven"


def test_folds_of_both_sides_mirror_each_other(model: MorphableModel) -> None:
    """On the mean face, seen from the front, both sides have their share."""
    r = torch.zeros(1, layout(model).size)
    face = decode(model, r, SIZE)
    surface = face.surface(model)
    maps = rasterize_surface(surface.vertices, model.triangles, face.camera, surface.vertices, SIZE, SIZE)
    total = torch.zeros(1, 1, SIZE, SIZE)
    from facelab.methods.wrinkles import furrows

    for seed in range(12):
        total += furrows(model, maps.attributes, 1, seeded(seed)) * maps.mask
    middle = int(face.camera.offset[..., 0].round())
    left, right = total[..., :middle].sum(), total[..., middle:].sum()
    assert 0.7 < float(left / right) < 1.4


# --- the criterion on faces ---------------------------------------------------------------------------------


def test_light_and_albedo_are_least_squares_over_the_skin(
    model: MorphableModel, faces: WrinkledFaces
) -> None:
    """Eqs. 11 and 12 beside a solver that knows nothing of ours, pixel by pixel in a list."""
    plain = observe(model, faces.r, faces.images)
    camera, mask, albedos = skin_maps(model, faces.r, SIZE)
    share = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    for k in range(2):
        inside = mask[k, 0]
        intensity = plain.intensity[k, 0][inside].double()
        assert float(intensity.mean()) == pytest.approx(1, abs=1e-4)
        normals = depth_normals(plain.coarse, camera)[k][:, inside].double()
        skins = torch.einsum("kcn,c->kn", albedos[k][..., inside].double(), share)
        basis = torch.cat([torch.ones(1, normals.shape[1], dtype=torch.float64), normals])
        light = torch.linalg.lstsq((skins[0] * basis).T, intensity[:, None]).solution[:, 0]
        torch.testing.assert_close(plain.light[k, 0].double(), light, rtol=1e-2, atol=1e-2)
        shading = light @ basis
        rows, wanted = (skins[1:] * shading).T, intensity - skins[0] * shading
        coefficients = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]
        albedo = (skins[0] + coefficients @ skins[1:]).clamp(min=1e-3)
        torch.testing.assert_close(plain.albedo[k, 0][inside].double(), albedo, rtol=2e-2, atol=5e-3)
        drawn = plain.drawn[k, 0][inside].double()
        torch.testing.assert_close(drawn, albedo * shading, rtol=3e-2, atol=2e-2)
    assert not plain.light.requires_grad and not plain.albedo.requires_grad


def test_the_depth_has_a_gradient_to_the_coarse_face(model: MorphableModel, faces: WrinkledFaces) -> None:
    r = faces.r.clone().requires_grad_()
    seen = observe(model, r, faces.images)
    assert seen.coarse.requires_grad
    seen.coarse.sum().backward()
    assert r.grad is not None and r.grad[:, :10].abs().min() > 0


def test_the_criterion_alone_finds_the_folds_of_a_face(faces: WrinkledFaces, view: View) -> None:
    """From a picture with nine harmonics of light, a skin that ten components do not span, and no truth.
    Without the shading term the same steps find nothing."""
    weights = Weights(1.0, 0.1, 0.01)
    coarse = relief_errors(view.coarse, faces)
    fine = relief_errors(optimise(view, weights, 60, 0.08), faces)
    blind = relief_errors(optimise(view, replace(weights, shading=0.0), 60, 0.08), faces)
    assert fine["folds_degrees"] < 0.92 * blind["folds_degrees"], (blind, fine)
    assert blind["folds_degrees"] > 0.97 * coarse["folds_degrees"], (coarse, blind)


def test_hair_is_no_skin_to_the_robust_mask(model: MorphableModel, faces: WrinkledFaces) -> None:
    skin, images = faces.skin, faces.images.clone()
    rows = torch.nonzero(skin[0, 0].any(1))[:, 0]
    band = torch.zeros_like(skin)
    band[..., int(rows[0]) + 4 : int(rows[0]) + 16, :] = True
    hair = band & skin
    images = torch.where(hair, 0.05, images)
    kept = {robust: observe(model, faces.r, images, robust=robust).mask for robust in (False, True)}
    assert (kept[False] & hair).sum() > 0.95 * hair.sum(), "the paper's criterion takes it for skin"
    assert (kept[True] & hair).sum() < 0.15 * hair.sum()
    clear = skin & ~torch.nn.functional.max_pool2d(hair.float(), 9, 1, 4).bool()
    assert (kept[True] & clear).sum() > 0.75 * clear.sum()


def test_colour_gives_each_channel_its_light(model: MorphableModel, faces: WrinkledFaces) -> None:
    grey, colour = (observe(model, faces.r, faces.images, colour=c) for c in (False, True))
    assert grey.light.shape == (2, 1, 4) and colour.light.shape == (2, 3, 4)
    assert colour.intensity.shape == (2, 3, SIZE, SIZE)
    level = (colour.intensity * colour.mask).sum((1, 2, 3)) / colour.mask.sum((1, 2, 3)) / 3
    torch.testing.assert_close(level, torch.ones(2))
    assert set(colour.loss(colour.coarse)) == {"shading", "fidelity", "smoothness", "total"}


def test_a_network_learns_from_the_criterion(view: View, faces: WrinkledFaces) -> None:
    """On two pictures again and again: the loss goes the way of the per-picture optimisation's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = FineNet(8).train()
    weights = Weights(1.0, 0.05, 0.01)
    adam = torch.optim.Adam(made.parameters(), 2e-3)
    maps = (faces.images, view.coarse, view.mask, view.camera.scale)
    start = float(view.loss(view.coarse, weights)["total"].sum())
    for _ in range(40):
        loss = view.loss(made(*maps), weights)["total"].sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        end = float(view.loss(made(*maps), weights)["total"].sum())
    best = float(view.loss(optimise(view, weights, 40), weights)["total"].sum())
    assert start - end > 0.05 * (start - best) > 0, (start, end, best)


# --- detail on the mesh -------------------------------------------------------------------------------------


def detail_of(model: MorphableModel, faces: WrinkledFaces, k: int = 0) -> tuple[Detail, object]:
    face = decode(model, faces.r[k], SIZE)
    maps = faces.depth[k] - faces.relief[k]
    return Detail(maps, faces.depth[k], faces.skin[k], face.camera), face


def test_moved_vertices_have_the_fine_depth(faces: WrinkledFaces) -> None:
    finest = MorphableModel.load(subdivisions=2)
    detail, face = detail_of(finest, faces)
    surface = face.surface(finest)
    moved = displaced(surface, detail)
    depths = [
        rasterize_surface(v, finest.triangles, face.camera, v, SIZE, SIZE).depth
        for v in (surface.vertices, moved)
    ]
    inside = (feathered(detail.mask[None])[0] == 1) & (depth_normals(detail.fine, face.camera)[2:] > 0.5)
    off = [float((depth - detail.fine)[inside].square().mean().sqrt()) for depth in depths]
    assert off[1] < 0.45 * off[0], off
    step = (moved - surface.vertices) @ face.camera.rotation.mT
    assert step[:, :2].abs().max() < 1e-2, "along the line of sight"
    behind = surface.normals @ face.camera.rotation[2] < 0
    assert torch.equal(moved[behind], surface.vertices[behind])


def test_the_normal_map_has_the_folds(model: MorphableModel, faces: WrinkledFaces) -> None:
    detail, face = detail_of(model, faces)
    surface = face.surface(model)
    flat = replace(detail, fine=detail.coarse)
    points = face.camera.project(surface.vertices)
    torch.testing.assert_close(detailed_normals(points, surface.normals, flat), surface.normals)
    finer = detailed_normals(points, surface.normals, detail)
    wanted = depth_normals(detail.fine, face.camera) - depth_normals(detail.coarse, face.camera)
    row, column = (points[:, k].floor().long().clamp(0, SIZE - 1) for k in (1, 0))
    seen = (detail.coarse[0, row, column] - points[:, 2]).abs() < 1
    seen &= (surface.normals @ face.camera.rotation[2] > 0.6) & (faces.relief[0, 0, row, column] > 0.2)
    change = ((finer - surface.normals) @ face.camera.rotation.mT)[seen]
    cosine = torch.nn.functional.cosine_similarity(change, wanted[:, row, column].T[seen], dim=-1)
    assert seen.sum() > 20 and cosine.mean() > 0.8
    normals = relief_normals(model, surface, detail, 256)
    assert normals.shape == (3, 256, 256) and (normals.norm(dim=0) - 1).abs().max() < 1e-4
    plain = with_relief(textured_mesh(model, surface.vertices, surface.diffuse, size=256), normals)
    smooth = relief_normals(model, surface, flat, 256)
    flat_map = with_relief(plain, smooth).relief
    assert plain.relief is not None and flat_map is not None
    tilt = plain.relief[:2].norm(dim=0)
    assert tilt.max() > 0.1 and flat_map[:2].norm(dim=0).median() < 0.02


# --- both networks ------------------------------------------------------------------------------------------


def test_the_method_answers_with_a_finer_mesh(model: MorphableModel) -> None:
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    coarse = LandmarkFace()
    plain, fine = (CoarseToFine(coarse, made, 96) for made in (FineNet(2), network(2)))
    said, more = plain.reconstruct(photo), fine.reconstruct(photo)
    assert len(said.mesh.vertices) == len(MorphableModel.load(subdivisions=2).mean)
    seen = plain.look(photo)
    assert torch.equal(seen.detail.coarse, seen.detail.fine)
    surface = seen.face.surface(plain.finest)
    torch.testing.assert_close(said.mesh.vertices, surface.vertices, atol=1e-3, rtol=0)
    change = (more.mesh.vertices - said.mesh.vertices).norm(dim=1)
    assert change.max() > 0.05 and (change < 1e-4).float().mean() > 0.05, "hidden points stay"
    error = (said.landmarks - find(photo)).norm(dim=1)
    assert error[17:].mean() < 0.03 * float((find(photo).amax(0) - find(photo).amin(0)).max())
    for broken, kind in (
        (torch.full((3, 200, 200), 0.5), NoFaceError),
        (photo * float("nan"), FacelabError),
    ):
        with pytest.raises(kind):
            plain.reconstruct(broken)


def test_pixels_without_a_face_in_the_estimate_do_not_count(faces: WrinkledFaces) -> None:
    """A coarse face that lies beside the real one leaves skin uncovered: no depth there, not one of 0 mm."""
    hole = torch.zeros_like(faces.skin)
    hole[..., : SIZE // 2] = True
    said = relief_errors(torch.where(hole, 0.0, faces.depth), faces)
    assert said["depth_mm"] < 1e-2 and said["skin_degrees"] < 0.5, said


def find(photo: Tensor) -> Tensor:
    from facelab.photos import find_face

    return find_face(photo).landmarks


def test_end_to_end_the_gradient_reaches_both_networks() -> None:
    model = MorphableModel.load(subdivisions=0)
    coarse = encoder("small", layout(model).size, "normal", None, 7, seeded())
    both = EndToEnd(model, coarse, network(2).train(), 64, iterations=2)
    images = wrinkled_faces(model, 2, 64, seeded()).images
    terms = both(images)
    assert terms["coarse"].max() < 1e-9, "it has not moved yet"
    torch.testing.assert_close(terms["total"], terms["fine"])
    terms["total"].mean().backward()
    last = coarse.classifier.weight.grad
    assert last is not None and last.abs().max() > 0
    assert all(p.grad is not None for p in both.fine.parameters())
    assert all(p.grad is None for p in both.original.parameters())
    with torch.no_grad():
        coarse.classifier.bias += 0.5
        moved = both(images)
    torch.testing.assert_close(moved["coarse"], torch.full((2,), 0.25), atol=0.1, rtol=0)
    torch.testing.assert_close(moved["total"], moved["fine"] + 10 * moved["coarse"])


# --- training -----------------------------------------------------------------------------------------------


def test_a_training_is_resumed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = train_finenet.PRESETS["tiny"]
    card = train_finenet.train(tmp_path / "whole", tiny, "cpu")
    steps = Run.steps

    def stopped(self: Run, state: dict, total: int) -> Iterator[int]:
        for step in steps(self, state, total):
            if step == 4:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "steps", stopped)
        train_finenet.train(tmp_path / "killed", tiny, "cpu")
    train_finenet.train(tmp_path / "killed", tiny, "cpu")
    whole, killed = (tmp_path / name / "finenet.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    names = ("skin_degrees", "folds_degrees", "depth_mm")
    assert set(card["held_out"]) == {f"{a}_{b}" for a in ("coarse", "fine") for b in names}
    assert FineNet.load(whole).width == tiny.width


def test_photographs_and_a_coarsenet_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(2):
        Image.fromarray(astronaut()[k : 300 + k, 100:400]).save(folder / f"{k}.png")
    photos = FaceCrops.cut([folder], tmp_path / "faces.safetensors")
    tiny = replace(train_finenet.PRESETS["tiny"], steps=2)
    card = train_finenet.train(tmp_path / "alone", tiny, "cpu", photos)
    assert card["photographs"] == 2 and card["coarse"] == "landmarks"
    short = replace(train_coarsenet.PRESETS["tiny"], steps=1)
    monkeypatch.setattr(train_coarsenet, "HELD_OUT", 1)
    train_coarsenet.train(tmp_path / "coarse", short, "cpu")
    checkpoint = tmp_path / "coarse" / "coarsenet.safetensors"
    with pytest.raises(ParameterError, match="--coarse"):
        train_finenet.train(tmp_path / "none", tiny, "cpu", None, None, True)
    with pytest.raises(ModelFileError, match="train_coarsenet"):
        train_finenet.train(tmp_path / "none", tiny, "cpu", None, tmp_path / "alone" / "finenet.safetensors")
    card = train_finenet.train(tmp_path / "both", tiny, "cpu", None, checkpoint, True)
    assert card["end_to_end"] and card["coarse"] == "coarsenet.safetensors"
    again, about = load_network(
        tmp_path / "both" / "coarsenet.safetensors", MorphableModel.load(subdivisions=0)
    )
    assert about["side"] == short.side and all(bool(p.isfinite().all()) for p in again.parameters())
