import math
from dataclasses import fields, replace

import pytest
import torch
import trimesh
from torch import Tensor

from facelab.geometry.camera import Camera, PerspectiveCamera, WeakPerspectiveCamera
from facelab.geometry.mesh import normalise, vertex_normals
from facelab.geometry.rotations import euler_to_matrix
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.illumination import (
    BlinnPhongLight,
    Light,
    PhongLight,
    SphericalHarmonicsLight,
    ambient_to_sh,
    directional_to_sh,
)
from facelab.rendering.image_formation import (
    Picture,
    normalised_coordinates,
    render,
    render_attributes,
    shade_vertices,
)
from facelab.support.errors import ImageSizeError, MeshError, ParameterError

RADIUS = 80.0


def sphere(subdivisions: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=RADIUS)
    return torch.tensor(mesh.vertices, dtype=dtype), torch.tensor(mesh.faces, dtype=torch.int64)


def perspective(size: int = 64, dtype: torch.dtype = torch.float64) -> PerspectiveCamera:
    return PerspectiveCamera.from_fov(22.0, size, size, distance=600.0, dtype=dtype)


def weak(size: int = 64, dtype: torch.dtype = torch.float64) -> WeakPerspectiveCamera:
    return WeakPerspectiveCamera.frontal(size / 240, size, size, dtype=dtype)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


SH = ambient_to_sh(tensor(0.4, 0.3, 0.5)) + directional_to_sh(tensor(0.5, 0.5, 0.8), tensor(0.6, 0.7, 0.5))
POSITION = tensor(300.0, 400.0, -100.0)


def lights() -> dict[str, Light]:
    colour, shininess = tensor(1.0, 0.9, 0.8), torch.tensor(15.0, dtype=torch.float64)
    return {
        "harmonics": SphericalHarmonicsLight(SH),
        "phong": PhongLight(tensor(0.2, 0.3, 0.4), POSITION, colour, shininess),
        "blinn_phong": BlinnPhongLight(SH, POSITION, colour, shininess),
    }


def see_sphere(camera: Camera, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Analytic points, normals (H, W, 3) and mask of the sphere at the model's origin, by casting rays."""
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    if isinstance(camera, PerspectiveCamera):
        x = (columns - camera.principal[0]) / camera.focal
        y = (camera.principal[1] - rows) / camera.focal
        rays, start = normalise(torch.stack([x, y, -torch.ones_like(x)], -1)), torch.zeros(3).double()
        centre = camera.translation
    else:
        x, y = (columns - camera.offset[0]) / camera.scale, (camera.offset[1] - rows) / camera.scale
        rays, start = tensor(0.0, 0.0, -1.0).expand(size, size, 3), torch.stack([x, y, 0 * x], -1)
        centre = tensor(0.0, 0.0, -camera.depth)
    middle = ((centre - start) * rays).sum(-1)
    discriminant = middle**2 - (centre - start).square().sum(-1) + RADIUS**2
    points = start + (middle - discriminant.clamp(min=0).sqrt())[..., None] * rays
    return points, (points - centre) / RADIUS, discriminant > 0


TURN = [0.3, -0.5, 0.2]


@pytest.mark.parametrize("camera", [perspective(), weak(), perspective().look(TURN), weak().look(TURN)])
@pytest.mark.parametrize("name", lights())
def test_a_sphere_looks_like_the_formula(camera: Camera, name: str) -> None:
    """Geometry by ray casting, light by its formula at the hit point: independent of mesh and rasterizer."""
    vertices, triangles = sphere(5)
    light = lights()[name]
    if name != "harmonics" and isinstance(camera, WeakPerspectiveCamera):
        light = replace(light, position=POSITION - tensor(0.0, 0.0, camera.depth - 600.0))
    diffuse, specular = tensor(0.6, 0.4, 0.3).expand_as(vertices), torch.full((len(vertices),), 0.04).double()
    picture = render(vertices, triangles, camera, light, diffuse, specular, 64, 64)

    points, normals, mask = see_sphere(camera, 64)
    # The mesh lies inside the sphere, so at the rim a pixel may be covered by one and not by the other.
    assert (picture.mask[0] != mask).sum() <= 8
    inner = mask & (torch.nn.functional.avg_pool2d(mask[None].double(), 5, 1, 2)[0] == 1)
    assert inner.sum() > 1000
    p, n = points[inner], normals[inner]
    eye = camera.view_directions(p)
    expected = light.shade(
        n, p, eye, tensor(0.6, 0.4, 0.3).expand_as(p), torch.full((len(p),), 0.04).double()
    )

    def pixels(image: Tensor) -> Tensor:
        return image[:, inner].mT

    torch.testing.assert_close(pixels(picture.depth)[:, 0], -p[:, 2], atol=0.3, rtol=0)
    torch.testing.assert_close(pixels(picture.normals), n, atol=5e-3, rtol=0)
    torch.testing.assert_close(pixels(picture.shading), expected.diffuse_shading, atol=5e-3, rtol=0)
    torch.testing.assert_close(pixels(picture.specular), expected.specular_radiance, atol=1e-2, rtol=0)
    torch.testing.assert_close(pixels(picture.linear), expected.colour, atol=1e-2, rtol=0)


def test_lambert_sphere_under_a_distant_light() -> None:
    """Seen from far away, the brightness falls with the sine of the distance from the lit pole: I = n.l."""
    vertices, triangles = sphere(5)
    light = PhongLight(tensor(0, 0, 0), tensor(1e9, 0, 0), tensor(1, 1, 1), torch.tensor(1.0).double())
    picture = render(vertices, triangles, weak(), light, torch.ones_like(vertices), None, 64, 64)
    x = (torch.arange(64, dtype=torch.float64) + 0.5 - 32) * 240 / 64  # mm from the centre, row through it
    inside = x.abs() < RADIUS - 6
    expected = (x / RADIUS).clamp(min=0).expand(2, -1)
    torch.testing.assert_close(picture.linear[0, 31:33][:, inside], expected[:, inside], atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_composition(dtype: torch.dtype) -> None:
    vertices, triangles = sphere(3, dtype)
    generator = torch.Generator().manual_seed(0)
    background = torch.rand(3, 40, 48, generator=generator, dtype=dtype)
    diffuse = torch.rand(*vertices.shape, generator=generator, dtype=dtype)
    light = lights()["blinn_phong"]
    light = type(light)(*(v.to(dtype) if isinstance(v, Tensor) else v for v in vars(light).values()))
    specular = torch.full((len(vertices),), 0.03, dtype=dtype)
    camera = PerspectiveCamera.from_fov(25.0, 40, 48, dtype=dtype)
    picture = render(vertices, triangles, camera, light, diffuse, specular, 40, 48, background=background)
    mask = picture.mask.expand_as(picture.image)
    assert all(getattr(picture, name).dtype == dtype for name in ("image", "linear", "normals", "depth"))
    torch.testing.assert_close(picture.image, linear_to_srgb(picture.linear))
    torch.testing.assert_close(picture.image[~mask], background[~mask])
    torch.testing.assert_close(
        picture.linear[mask], (picture.albedo * picture.shading + picture.specular)[mask]
    )
    for name in ("depth", "normals", "albedo", "shading", "specular"):
        values = getattr(picture, name)
        assert (values[~picture.mask.expand_as(values)] == 0).all(), name
    torch.testing.assert_close(
        picture.normals.norm(dim=0)[picture.mask[0]], torch.ones((), dtype=dtype).expand(mask[0].sum())
    )
    assert torch.equal(picture.mask[0], picture.face_index >= 0)
    without = render(vertices, triangles, camera, light, diffuse, specular, 40, 48)
    assert (without.image[~mask] == 0).all()
    torch.testing.assert_close(without.image[mask], picture.image[mask])


def test_plain_light_gives_the_albedo_in_srgb() -> None:
    vertices, triangles = sphere(2)
    light = SphericalHarmonicsLight(ambient_to_sh(tensor(1, 1, 1)))
    picture = render(vertices, triangles, perspective(), light, torch.full_like(vertices, 0.5), None, 64, 64)
    torch.testing.assert_close(
        picture.image[:, 32, 32], torch.full((3,), 0.7353570).double(), atol=1e-6, rtol=0
    )


def test_batches_broadcast() -> None:
    vertices, triangles = sphere(2)
    stretch = 1 + 0.1 * torch.arange(6, dtype=torch.float64).view(2, 3, 1, 1)
    angles = torch.tensor([[0.0, 0.2, 0.1], [0.3, -0.2, 0.0], [0.1, 0.1, -0.4]], dtype=torch.float64)
    camera = perspective(32).look(angles)
    light = BlinnPhongLight(
        SH * tensor(1.0, 0.5).view(2, 1, 1, 1), POSITION, tensor(1, 1, 1), tensor(10.0)[0]
    )
    diffuse, specular = vertices.abs() / RADIUS, torch.full((len(vertices),), 0.05).double()
    background = torch.full((3, 32, 32), 0.2).double()
    options = {"height": 32, "width": 32, "antialias": True, "background": background}
    batch = render(vertices * stretch, triangles, camera, light, diffuse, specular, **options)
    for field in fields(Picture):
        assert getattr(batch, field.name).shape[:2] == (2, 3), field.name
    for i in range(2):
        for j in range(3):
            one = render(
                vertices * stretch[i, j],
                triangles,
                replace(camera, rotation=camera.rotation[j]),
                replace(light, coefficients=light.coefficients[i, 0]),
                diffuse,
                specular,
                **options,
            )
            for field in fields(Picture):
                torch.testing.assert_close(getattr(one, field.name), getattr(batch, field.name)[i, j])


def test_many_lights_on_one_mesh() -> None:
    vertices, triangles = sphere(2)
    light = SphericalHarmonicsLight(SH * torch.linspace(0.5, 1, 4, dtype=torch.float64).view(4, 1, 1))
    for antialias in (False, True):
        picture = render(
            vertices, triangles, perspective(), light, vertices.abs() / 100, None, 64, 64, antialias=antialias
        )
        assert picture.image.shape == (4, 3, 64, 64) and picture.mask.shape == (4, 1, 64, 64)
        torch.testing.assert_close(picture.linear[0], picture.linear[3] / 2)


@pytest.mark.parametrize("name", lights())
@pytest.mark.parametrize("kind", ["perspective", "weak"])
def test_gradients(name: str, kind: str) -> None:
    vertices, triangles = sphere(1)
    diffuse, specular = vertices.abs() / RADIUS + 0.1, torch.linspace(0.02, 0.06, len(vertices)).double()
    angles, light = tensor(0.1, 0.2, 0.3), lights()[name]
    camera = perspective(9) if kind == "perspective" else weak(9)
    parameters = [v for part in (camera, light) for v in vars(part).values() if isinstance(v, Tensor)][1:]
    split = len([v for v in vars(camera).values() if isinstance(v, Tensor)]) - 1

    def image(vertices: Tensor, diffuse: Tensor, specular: Tensor, angles: Tensor, *rest: Tensor) -> tuple:
        turned = type(camera)(euler_to_matrix(angles), *rest[:split])
        lit = type(light)(*rest[split:])
        picture = render(vertices, triangles, turned, lit, diffuse, specular, 9, 9)
        return picture.image[:, 2:7, 2:7].sum((1, 2)), picture.depth.sum()

    inputs = [v.clone().requires_grad_() for v in (vertices, diffuse, specular, angles, *parameters)]
    assert torch.autograd.gradcheck(image, inputs, fast_mode=True)


def test_antialiasing_makes_the_outline_differentiable() -> None:
    """A white disc of radius s R pixels: its area changes with the scale s as 2π s R²."""
    vertices, triangles = sphere(4)
    light = SphericalHarmonicsLight(ambient_to_sh(tensor(1, 1, 1)))

    def area(scale: Tensor, antialias: bool) -> Tensor:
        camera = replace(weak(64), scale=scale)
        white = torch.ones_like(vertices)
        return (
            render(vertices, triangles, camera, light, white, None, 64, 64, antialias=antialias)
            .linear[0]
            .sum()
        )

    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    smooth = area(scale, True)
    assert float(smooth.detach()) == pytest.approx(math.pi * (0.3 * RADIUS) ** 2, rel=0.01)
    (slope,) = torch.autograd.grad(smooth, scale)
    assert float(slope) == pytest.approx(2 * math.pi * 0.3 * RADIUS**2, rel=0.02)
    (hard,) = torch.autograd.grad(area(scale, False), scale)
    assert abs(float(hard)) < 1e-6


def test_antialiasing_blends_linear_light_with_the_background() -> None:
    vertices, triangles = sphere(3)
    light = SphericalHarmonicsLight(ambient_to_sh(tensor(1, 1, 1)))
    white, background = torch.ones_like(vertices), torch.full((3, 64, 64), 0.5).double()
    options = {"height": 64, "width": 64, "background": background}
    hard = render(vertices, triangles, weak(), light, white, None, **options)
    soft = render(vertices, triangles, weak(), light, white, None, antialias=True, **options)
    changed = (hard.linear - soft.linear).abs() > 1e-6
    grey = srgb_to_linear(background[0, 0, 0])
    assert 20 < int(changed[0].sum()) < 300
    blended = soft.linear[changed]
    assert (blended >= grey - 1e-9).all() and (blended <= 1 + 1e-9).all()
    torch.testing.assert_close(soft.image, linear_to_srgb(soft.linear))


# Vertices and attributes


@pytest.mark.parametrize("camera", [perspective(), weak()])
def test_vertices_shaded_as_mofa_does(camera: Camera) -> None:
    vertices, triangles = sphere(3)
    angles = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.4, 0.1]], dtype=torch.float64)
    camera = camera.look(angles)
    diffuse = vertices.abs() / RADIUS
    picture = shade_vertices(vertices, triangles, camera, lights()["harmonics"], diffuse)
    assert picture.screen.shape == picture.colour.shape == picture.normals.shape == (2, len(vertices), 3)
    torch.testing.assert_close(picture.screen, camera.project(vertices))
    normals = torch.stack([vertex_normals(vertices, triangles) @ camera.rotation[k].mT for k in range(2)])
    torch.testing.assert_close(picture.normals, normals)
    # Eq. 4 of MoFA, the sum over nine coefficients written out
    x, y, z = normals.unbind(-1)
    basis = [0.282095 + 0 * x, 0.488603 * y, 0.488603 * z, 0.488603 * x, 1.092548 * x * y, 1.092548 * y * z]
    basis += [0.315392 * (3 * z * z - 1), 1.092548 * x * z, 0.546274 * (x * x - y * y)]
    expected = diffuse * sum(h[..., None] * SH[b] for b, h in enumerate(basis))
    torch.testing.assert_close(picture.colour, expected, atol=1e-5, rtol=0)
    # A point of the sphere is seen if it is nearer than the rim, whose cosine is R / distance.
    rim = RADIUS / 600 if isinstance(camera, PerspectiveCamera) else 0.0
    cosine = (vertices @ camera.rotation.mT)[..., 2] / RADIUS
    clear = (cosine - rim).abs() > 1e-2
    assert torch.equal(picture.visible[clear], (cosine > rim)[clear])


def test_vertex_colours_are_the_picture_at_the_vertices() -> None:
    vertices, triangles = sphere(5)
    diffuse, specular = vertices.abs() / RADIUS, torch.full((len(vertices),), 0.03).double()
    light = lights()["blinn_phong"]
    picture = render(vertices, triangles, perspective(), light, diffuse, specular, 64, 64)
    seen = shade_vertices(vertices, triangles, perspective(), light, diffuse, specular)
    inner = seen.visible & (seen.screen[:, :2] - 32).norm(dim=-1).lt(18)
    column, row = seen.screen[inner, :2].long().unbind(-1)
    difference = (picture.linear[:, row, column].mT - seen.colour[inner]).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.06  # up to half a pixel apart


def test_points_behind_the_camera_are_not_visible() -> None:
    vertices, triangles = sphere(2)
    camera = replace(perspective(), translation=tensor(0, 0, 300))
    assert not shade_vertices(vertices, triangles, camera, lights()["harmonics"], vertices).visible.any()
    picture = render(vertices, triangles, camera, lights()["harmonics"], vertices.abs(), None, 16, 16)
    assert not picture.mask.any() and torch.isfinite(picture.image).all()


@pytest.mark.parametrize("camera", [perspective(), weak()])
def test_rendered_positions_project_onto_their_pixels(camera: Camera) -> None:
    vertices, triangles = sphere(3)
    camera = camera.look([0.2, 0.3, 0.1])
    positions, mask = render_attributes(vertices, triangles, camera, vertices, 64, 64)
    screen = camera.project(positions[:, mask[0]].mT)
    rows, columns = mask[0].nonzero().unbind(-1)
    # The weak camera interpolates as if it were 10 m away, hence not exactly.
    torch.testing.assert_close(
        screen[:, :2], torch.stack([columns, rows], -1).double() + 0.5, atol=2e-3, rtol=0
    )


def test_pncc_does_not_move_with_the_pose() -> None:
    vertices, triangles = sphere(4)
    code = normalised_coordinates(vertices)
    assert code.amin(0).tolist() == [0, 0, 0] and code.amax(0).tolist() == [1, 1, 1]
    for angles in ([0.0, 0.0, 0.0], [0.4, -0.6, 0.2]):
        camera = weak().look(angles)
        values, mask = render_attributes(vertices, triangles, camera, code, 64, 64)
        assert mask.shape == (1, 64, 64) and (values[:, ~mask[0]] == 0).all()
        # The middle pixel sees the point of the sphere that the rotation turns towards the camera.
        expected = (camera.rotation[2] + 1) / 2
        torch.testing.assert_close(values[:, 31:33, 31:33].mean((1, 2)), expected, atol=0.02, rtol=0)


# Bad input


def test_bad_input_is_named() -> None:
    vertices, triangles = sphere(1)
    camera, light, diffuse = perspective(), lights()["phong"], torch.ones_like(vertices)
    good = {
        "vertices": vertices,
        "triangles": triangles,
        "camera": camera,
        "light": light,
        "diffuse": diffuse,
    }
    good |= {"specular": None, "height": 8, "width": 8}

    def broken(values: Tensor) -> Tensor:
        values = values.clone()
        values.view(-1)[0] = math.nan
        return values

    for name, value in {
        "vertices": broken(vertices),
        "diffuse": broken(diffuse),
        "specular": broken(vertices[:, 0]),
        "focal": replace(camera, focal=broken(camera.focal)),
        "ambient": replace(light, ambient=broken(light.ambient)),
        "background": torch.full((3, 8, 8), math.inf),
    }.items():
        key = {"focal": "camera", "ambient": "light"}.get(name, name)
        with pytest.raises(ParameterError, match=f"in {name}"):
            render(**(good | {key: value}))
    with pytest.raises(ParameterError, match="in vertices"):
        shade_vertices(broken(vertices), triangles, camera, light, diffuse)
    with pytest.raises(ParameterError, match="in attributes"):
        render_attributes(vertices, triangles, camera, broken(diffuse), 8, 8)
    for size in ({"height": 0}, {"width": -1}, {"height": 2.5}):
        with pytest.raises(ImageSizeError):
            render(**(good | size))
    with pytest.raises(MeshError, match=r"diffuse \(..., V, 3\)"):
        render(**(good | {"diffuse": diffuse[1:]}))
    with pytest.raises(MeshError, match="specular"):
        render(**(good | {"specular": diffuse}))
    with pytest.raises(MeshError):
        render(**(good | {"triangles": triangles + 1}))
    with pytest.raises(ParameterError, match="background must be"):
        render(**(good | {"background": torch.zeros(3, 8, 9)}))
