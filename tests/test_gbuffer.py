"""The g-buffer: one picture by two halves, textures as vertex colours, normals and positions of depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from facelab.export import bake_texture
from facelab.geometry.camera import Camera, PerspectiveCamera, WeakPerspectiveCamera
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.gbuffer import (
    depth_normals,
    depth_positions,
    look_up,
    rasterize_surface,
    region_mask,
    uv_map,
)
from facelab.rendering.illumination import BlinnPhongLight, ambient_to_sh, directional_to_sh
from facelab.rendering.image_formation import render, shade
from facelab.support.errors import ParameterError

SIZE = 96


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def cameras() -> list[Camera]:
    return [
        PerspectiveCamera.from_fov(24.0, SIZE, SIZE).look((0.1, 0.4, -0.1)),
        WeakPerspectiveCamera.frontal(0.42, SIZE, SIZE).look((0.1, 0.4, -0.1)),
    ]


def lamp() -> BlinnPhongLight:
    sun = directional_to_sh(torch.tensor([0.4, 0.5, 1.0]), torch.tensor([0.6, 0.5, 0.4]))
    shine = torch.tensor([200.0, 300.0, 400.0]), torch.ones(3), torch.tensor(20.0)
    return BlinnPhongLight(sun + ambient_to_sh(torch.full((3,), 0.4)), *shine)


@pytest.mark.parametrize("camera", cameras(), ids=["perspective", "weak"])
def test_two_halves_make_the_picture(camera: Camera, model: MorphableModel) -> None:
    diffuse, specular = model.albedo()
    background = torch.rand((3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    options = {"antialias": True, "background": background}
    whole = render(model.mean, model.triangles, camera, lamp(), diffuse, specular, SIZE, SIZE, **options)
    carried = torch.cat([diffuse, specular[:, None]], -1)
    maps = rasterize_surface(model.mean, model.triangles, camera, carried, SIZE, SIZE)
    parts = shade(maps, camera, lamp(), maps.attributes[:3], maps.attributes[3:], **options)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(parts, name), value, rtol=0, atol=0)


def test_a_texture_is_seen_as_the_vertex_colours_it_was_made_of(model: MorphableModel) -> None:
    camera = cameras()[0]
    texture = bake_texture(model.albedo_mean[:, :3], model.triangles, model.uv, model.uv_triangles, 512)
    maps = rasterize_surface(model.mean, model.triangles, camera, model.albedo_mean[:, :3], 240, 240)
    seen = look_up(texture, uv_map(maps, model.uv, model.uv_triangles))
    inside = maps.mask.expand(3, -1, -1)
    difference = (seen - maps.attributes).abs()[inside]
    plain = (maps.attributes - maps.attributes[inside].mean()).abs()[inside]
    assert difference.mean() < 0.1 * plain.mean() and difference.quantile(0.99) < 0.5 * plain.quantile(0.99)
    batch = look_up(torch.stack([texture, 0 * texture]), uv_map(maps, model.uv, model.uv_triangles))
    torch.testing.assert_close(batch[0], seen)
    assert (batch[1] == 0).all()


def test_uv_coordinates_of_a_square() -> None:
    """A square that fills the screen shows its texture as it is, its first row on top."""
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    camera = WeakPerspectiveCamera.frontal(4.0, 8, 8)
    maps = rasterize_surface(square, triangles, camera, torch.zeros(4, 1), 8, 8)
    texture = torch.rand((2, 8, 8), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(look_up(texture, uv_map(maps, uv, triangles)), texture, atol=1e-3, rtol=0)


def sphere_depth(camera: Camera, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Depth of a sphere of 70 mm by ray casting in float64, its normals, and where it is seen."""
    axis = torch.arange(size, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    if isinstance(camera, PerspectiveCamera):
        centre = camera.translation.double()
        cx, cy = camera.principal.double()
        ray = torch.stack([x - cx, cy - y, -camera.focal.double().expand_as(x)])
        ray = ray / ray.norm(dim=0)
        along = (ray * centre[:, None, None]).sum(0)
        gap = along**2 - centre.square().sum() + 70.0**2
        points = ray * (along - gap.clamp(min=0).sqrt())
    else:
        centre = torch.tensor([0.0, 0.0, -camera.depth], dtype=torch.float64)
        flat = torch.stack([(x - camera.offset[0]) / camera.scale, (camera.offset[1] - y) / camera.scale])
        gap = 70.0**2 - flat.square().sum(0)
        points = torch.cat([flat, (centre[2] + gap.clamp(min=0).sqrt())[None]])
    seen = gap > 70.0**2 * 0.3  # away from the silhouette
    return -points[2:], (points - centre[:, None, None]) / 70.0, seen


@pytest.mark.parametrize("camera", cameras(), ids=["perspective", "weak"])
def test_normals_and_positions_of_a_spheres_depth(camera: Camera) -> None:
    still = replace(camera, rotation=torch.eye(3))
    depth, normals, seen = sphere_depth(still, SIZE)
    found = depth_normals(depth, replace(still, **{
        name: value.double() for name, value in vars(still).items() if isinstance(value, Tensor)
    }))  # fmt: skip
    cosine = (found * normals).sum(0)[seen]
    assert torch.rad2deg(cosine.clamp(-1, 1).acos()).max() < 1.0
    positions = depth_positions(depth, still)
    centre = still.to_camera(torch.zeros(1, 3))[0].double()
    torch.testing.assert_close(
        (positions - centre[:, None, None]).norm(dim=0)[seen],
        torch.full((int(seen.sum()),), 70.0, dtype=torch.float64), atol=0.01, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("camera", cameras(), ids=["perspective", "weak"])
def test_positions_of_the_depth_are_those_of_the_surface(camera: Camera, model: MorphableModel) -> None:
    maps = rasterize_surface(model.mean, model.triangles, camera, model.mean, SIZE, SIZE)
    inside = maps.mask[0]
    torch.testing.assert_close(
        depth_positions(maps.depth, camera)[:, inside], maps.positions[:, inside], atol=0.02, rtol=0
    )


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()

    camera = WeakPerspectiveCamera.frontal(0.5, 6, 6, torch.float64)
    assert gradcheck(lambda depth: depth_normals(100 + depth, camera), drawn(1, 6, 6))
    assert gradcheck(lambda texture, uv: look_up(texture, 0.1 + 0.77 * uv), (drawn(2, 5, 5), drawn(2, 3, 3)))


def test_a_map_of_one_row_has_no_normals() -> None:
    with pytest.raises(ParameterError, match="2×2"):
        depth_normals(torch.ones(1, 1, 9), cameras()[0])


def test_region_mask() -> None:
    face_index = torch.tensor([[[-1, 0], [1, 2]]])
    region = torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert region_mask(face_index, region).tolist() == [[[[False, True], [False, False]]]]
    assert region_mask(face_index, region, (0, 2)).tolist() == [[[[False, True], [False, True]]]]
