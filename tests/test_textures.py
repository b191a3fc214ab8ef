"""UV textures on faces, and textures taken from photographs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from facelab.export import export_glb, textured_mesh
from facelab.geometry.camera import PerspectiveCamera
from facelab.methods.textures import pull_push, unwrap
from facelab.model.face import Face
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.model.textures import at_vertices, bake_texture, unit_uv
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.illumination import SphericalHarmonicsLight, ambient_to_sh, directional_to_sh
from facelab.support.errors import MeshError, NotAnImageError, ParameterError

SIZE, SIDE = 96, 200


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=1)


def seen(model: MorphableModel, yaw: float = 0.0, seed: int = 0) -> Face:
    """A person of the model under a lamp and some light from everywhere, without a texture."""
    person = model.sample(1, torch.Generator().manual_seed(seed), expression_scale=0.0)
    light = directional_to_sh(torch.tensor([0.4, 0.5, 1.0]), torch.full((3,), 0.8))
    light = SphericalHarmonicsLight(light + ambient_to_sh(torch.full((3,), 0.5)))
    camera = PerspectiveCamera.from_fov(24.0, SIDE, SIDE, 700.0).look([0.0, yaw, 0.0])
    parts = [person[name][0] for name in ("identity", "expression", "albedo")]
    return Face(*parts, camera, light)


def vertex_texture(face: Face, model: MorphableModel, size: int = SIZE) -> Tensor:
    surface = replace(face, texture=None).surface(model)
    colours = torch.cat([surface.diffuse, surface.specular[:, None]], -1)
    return bake_texture(colours, model.triangles, unit_uv(model), model.uv_triangles, size)


def spotted(face: Face, model: MorphableModel, strength: float = 0.25) -> Tensor:
    """The face's own albedo with symmetric spots of all colours that no face model holds."""
    noise = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    spots = torch.nn.functional.interpolate(noise, (SIZE, SIZE), mode="bicubic")[0]
    texture = vertex_texture(face, model)
    texture[:3] = (texture[:3] * (strength * (spots + spots.flip(-1)) / 2).exp()).clamp(0.01, 1)
    return texture


def photograph(face: Face, model: MorphableModel, texture: Tensor) -> Tensor:
    return replace(face, texture=texture).render(model, SIDE, SIDE).image.clamp(0, 1)


def skin_of(model: MorphableModel, low: float, high: float) -> Tensor:
    """Vertices of the face's front, between two heights and on no edge, (V,) bool."""
    tip = model.landmarks(model.mean)[30]
    x, y, z = (model.mean - tip).T
    near = (x.abs() < 45) & (z > -45) & (y > low) & (y < high)
    return near & model.region_vertices("skin") & ~model.region_vertices("lids")


def error(a: Tensor, b: Tensor, model: MorphableModel, where: Tensor) -> float:
    logs = [at_vertices(t[:3], model)[where].log() for t in (a, b)]
    return float((logs[0] - logs[1]).abs().mean())


def test_a_texture_of_the_vertices_colours_draws_as_they_do(model: MorphableModel) -> None:
    face = seen(model, 0.3)
    plain = face.render(model, SIDE, SIDE)
    drawn = replace(face, texture=vertex_texture(face, model, 512)).render(model, SIDE, SIDE)
    assert torch.equal(plain.mask, drawn.mask) and torch.equal(plain.depth, drawn.depth)
    flat = replace(face, albedo=torch.zeros_like(face.albedo)).render(model, SIDE, SIDE)
    apart = [(plain.image - other.image)[:, plain.mask[0]].abs().mean() for other in (drawn, flat)]
    assert apart[0] < 0.1 * apart[1]
    surface = replace(face, texture=vertex_texture(face, model, 512)).surface(model)
    assert (surface.diffuse - face.surface(model).diffuse).abs().median() < 1e-3


@pytest.mark.parametrize("yaw", [0.0, -0.25])
def test_an_unwrapped_texture_is_the_one_that_was_drawn(model: MorphableModel, yaw: float) -> None:
    face = seen(model, yaw)
    truth, where = spotted(face, model), skin_of(model, -50, 45)
    picture = photograph(face, model, truth)
    found = unwrap(face, picture, model, SIZE, torch.ones(1, SIDE, SIDE, dtype=torch.bool))
    assert found.shape == (4, SIZE, SIZE) and bool((found > 0).all())
    assert error(found, truth, model, where) < 0.35 * error(vertex_texture(face, model), truth, model, where)
    again = photograph(face, model, found)
    mask = face.render(model, SIDE, SIDE).mask[0]
    plain = face.render(model, SIDE, SIDE).image.clamp(0, 1)
    apart = [(picture - other)[:, mask].abs().mean() for other in (again, plain)]
    assert apart[0] < 0.6 * apart[1]


def test_the_light_is_divided_out(model: MorphableModel) -> None:
    """Two photographs of one skin under two lights give one texture."""
    face, where = seen(model), skin_of(model, -50, 45)
    truth = spotted(face, model)
    other_light = ambient_to_sh(torch.tensor([0.9, 0.6, 0.4]))
    other = replace(face, light=SphericalHarmonicsLight(other_light))
    one, two = (unwrap(f, photograph(f, model, truth), model, SIZE) for f in (face, other))
    swapped = unwrap(other, photograph(face, model, truth), model, SIZE)  # with the wrong light
    assert error(one, two, model, where) < 0.2 * error(one, swapped, model, where)


def test_what_is_hidden_comes_from_the_other_side(model: MorphableModel) -> None:
    face = seen(model, 0.7)
    truth = spotted(face, model)
    found = unwrap(face, photograph(face, model, truth), model, SIZE)
    normals = face.surface(model).normals @ face.camera.rotation.mT
    hidden = skin_of(model, -50, 45) & (normals[:, 2] < 0.1)
    assert int(hidden.sum()) > 50
    assert error(found, truth, model, hidden) < 0.6 * error(vertex_texture(face, model), truth, model, hidden)


@pytest.mark.parametrize("hair", [[0.08, 0.05, 0.03], [0.75, 0.6, 0.35], [0.2, 0.25, 0.7]])
def test_no_hair_is_painted_on_the_forehead(model: MorphableModel, hair: list[float]) -> None:
    face = seen(model)
    truth = vertex_texture(face, model)
    picture, clean = photograph(face, model, truth), photograph(face, model, truth)
    brow = face.landmarks(model)[17:27, 1].min()
    above = face.render(model, SIDE, SIDE).mask[0] & (torch.arange(SIDE)[:, None] < brow - 14)
    grain = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    strands = torch.tensor(hair)[:, None, None] * (0.8 + 0.4 * grain)
    picture = torch.where(above, strands, picture)
    where = skin_of(model, 62, 90)
    found, expected = (unwrap(face, p, model, SIZE) for p in (picture, clean))
    naive = srgb_to_linear(torch.tensor(hair)) / face.render(model, SIDE, SIDE).shading[:, above].mean(1)
    skin = at_vertices(expected[:3], model)[where].mean(0)
    smear = (at_vertices(found[:3], model)[where].mean(0).log() - skin.log()).abs().max()
    assert smear < 0.4 * (naive.clamp(min=0.01).log() - skin.log()).abs().max()


def test_reconstructions_and_exports_carry_it(model: MorphableModel, tmp_path) -> None:
    face = seen(model)
    texture = spotted(face, model)
    said = Reconstruction.of(replace(face, texture=texture), model, SIDE, SIDE)
    assert torch.equal(said.image, photograph(face, model, texture))
    surface = face.surface(model)
    mesh = textured_mesh(model, surface.vertices, surface.diffuse, texture=texture)
    assert torch.equal(mesh.diffuse, texture[:3]) and torch.equal(mesh.specular, texture[3:])
    loaded = trimesh.load(export_glb(mesh, tmp_path / "face.glb"))
    (geometry,) = loaded.geometry.values()
    stored = np.asarray(geometry.visual.material.baseColorTexture.convert("RGB")).astype(int)
    expected = (linear_to_srgb(texture[:3]) * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(stored - expected).max() <= 1


def test_gradients_reach_the_texture_and_the_face() -> None:
    model = MorphableModel.load(subdivisions=0, dtype=torch.float64)
    face = seen(MorphableModel.load(subdivisions=0))
    camera = face.camera
    parts = (camera.rotation, camera.translation, camera.focal, camera.principal)
    camera = PerspectiveCamera(*(part.double() for part in parts))
    light = SphericalHarmonicsLight(face.light.coefficients.double())
    # a smooth texture: between texels a bilinear one has a bend, which no difference quotient survives
    ramp = torch.linspace(0.2, 0.6, 16, dtype=torch.float64)
    texture = (ramp[:, None] + 0.3 * ramp).expand(4, 16, 16).clone().requires_grad_()
    identity = face.identity.double().requires_grad_()
    weights = torch.rand(3, 60, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    small = camera.rescaled(60 / SIDE, torch.zeros(2))

    def value(texture: Tensor, identity: Tensor) -> Tensor:
        drawn = Face(identity, face.expression.double(), face.albedo.double(), small, light, texture)
        picture = drawn.render(model, 60, 60)
        inner = picture.mask & (torch.arange(60) > 22) & (torch.arange(60) < 38)
        return (picture.linear * weights * inner).sum()

    slopes = torch.autograd.grad(value(texture, identity), (texture, identity))
    g = torch.Generator().manual_seed(2)
    step = torch.randn(texture.shape, generator=g, dtype=torch.float64)
    numeric = (value(texture + 1e-4 * step, identity) - value(texture - 1e-4 * step, identity)) / 2e-4
    torch.testing.assert_close(numeric, (slopes[0] * step).sum(), rtol=1e-5, atol=1e-8)
    # where a triangle covers a pixel jumps; within one pixel's triangle the derivative is exact
    step = torch.zeros_like(identity)
    step[0] = 1.0
    numeric = (value(texture, identity + 1e-6 * step) - value(texture, identity - 1e-6 * step)) / 2e-6
    torch.testing.assert_close(numeric, (slopes[1] * step).sum(), rtol=1e-2, atol=1e-6)


def test_pull_push_keeps_what_is_known_and_continues_it_smoothly() -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(2, 31, 31, generator=g)
    known = (torch.rand(1, 31, 31, generator=g) > 0.5).float()
    filled = pull_push(values, known)
    assert torch.allclose(filled[:, known[0] > 0], values[:, known[0] > 0], atol=1e-6)
    assert float(filled.abs().max()) <= float(values.abs().max()) + 1e-5, "nothing is made up"
    assert torch.equal(pull_push(values, torch.zeros(1, 31, 31)), torch.zeros(2, 31, 31))
    corner = torch.zeros(1, 64, 64)
    corner[..., :9, :9] = 1
    ramp = pull_push(torch.ones(1, 64, 64), corner)[0, 4]
    assert float(ramp[10]) > 0.5 > float(ramp[63]), "it fades away from what is known"
    assert float((ramp[1:] - ramp[:-1]).abs().max()) < 0.3, "without a step"


def test_bad_input_is_named(model: MorphableModel) -> None:
    face = seen(model)
    picture = torch.full((3, SIDE, SIDE), 0.5)
    with pytest.raises(ParameterError, match="light"):
        unwrap(replace(face, light=None), picture, model)
    with pytest.raises(ParameterError, match="one face"):
        unwrap(replace(face, identity=face.identity[None]), picture, model)
    with pytest.raises(NotAnImageError):
        unwrap(face, picture[0], model)
    with pytest.raises(MeshError, match="UV"):
        unwrap(face, picture, replace(model, uv=torch.empty(0), uv_triangles=torch.empty(0)))
    away = replace(face.camera, principal=face.camera.principal + 5 * SIDE)
    with pytest.raises(ParameterError, match="seen"):
        unwrap(replace(face, camera=away), picture, model, 64)
    for texture in (torch.zeros(3, 8, 8), torch.zeros(4, 8, 9)):
        with pytest.raises(MeshError, match="texture"):
            replace(face, texture=texture).surface(model)
    with pytest.raises(ParameterError, match="NaN"):
        replace(face, texture=torch.full((4, 8, 8), torch.nan)).surface(model)


def test_what_is_before_the_face_is_not_painted_on_it(model: MorphableModel) -> None:
    """A hand of skin's colour over a cheek: only the mask knows."""
    face = seen(model)
    truth = spotted(face, model)
    picture = photograph(face, model, truth)
    x, y = face.landmarks(model)[2].round().long().tolist()
    hidden = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    hidden[:, y - 20 : y + 20, x : x + 40] = True
    covered = torch.where(hidden, torch.tensor([0.75, 0.55, 0.45])[:, None, None], picture)
    where = skin_of(model, -50, 45)
    everything = torch.ones_like(hidden)
    wrong, right = (unwrap(face, covered, model, SIZE, mask) for mask in (everything, ~hidden))
    assert error(right, truth, model, where) < 0.8 * error(wrong, truth, model, where)
    with pytest.raises(ParameterError, match="must be"):
        unwrap(face, covered, model, SIZE, hidden[:, 1:])
