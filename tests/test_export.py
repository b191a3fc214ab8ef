import io
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from facelab.export import (
    F0_WHITE,
    bake_texture,
    export_glb,
    export_obj,
    frames,
    roughness,
    tangents,
    textured_mesh,
    with_relief,
)
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import vertex_normals
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.illumination import SphericalHarmonicsLight, ambient_to_sh, directional_to_sh
from facelab.rendering.image_formation import render
from facelab.support.errors import MeshError, ParameterError

AROUND, UP, SIZE = 48, 12, 256


@pytest.fixture(scope="module")
def tube() -> MorphableModel:
    """A barrel of radius 60 mm whose UV map is cut open along one line: the seam."""
    column, row = torch.meshgrid(torch.arange(AROUND + 1), torch.arange(UP), indexing="xy")
    angle, height = column * 2 * math.pi / AROUND, row / (UP - 1)
    radius = 60 - 80 * (height - 0.5) ** 2
    points = torch.stack([radius * angle.sin(), 120 * height - 60, radius * angle.cos()], -1)
    uv = torch.stack([0.1 + 0.8 * column / AROUND, 0.2 + 0.7 * height], -1)
    corner = row[:-1, :-1] * (AROUND + 1) + column[:-1, :-1]
    a, b, c, d = (corner + step for step in (0, 1, AROUND + 2, AROUND + 1))
    uv_triangles = torch.stack([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).view(-1, 3)
    point_of = (row * AROUND + column % AROUND).flatten()  # the last column is the first one again
    angle = angle[:, :-1].flatten()
    albedo = torch.stack(
        [0.4 + 0.3 * angle.cos(), 0.3 + 0.2 * angle.sin(), height[:, :-1].flatten() * 0.6], -1
    )
    return MorphableModel(
        mean=points[:, :-1].reshape(-1, 3),
        triangles=point_of[uv_triangles],
        albedo_mean=torch.cat([albedo, 0.02 + 0.05 * height[:, :-1].reshape(-1, 1)], -1),
        uv=uv.reshape(-1, 2),
        uv_triangles=uv_triangles,
        name="tube",
    )


@pytest.fixture(scope="module")
def mesh(tube):
    diffuse, specular = tube.albedo()
    return textured_mesh(tube, tube.mean, diffuse, specular, SIZE)


def sample(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear values (N, C) of a picture (H, W, C) at UV coordinates (N, 2) with the origin lower left."""
    grid = torch.from_numpy(np.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], -1)).float()[None, None]
    picture = torch.from_numpy(np.ascontiguousarray(texture)).permute(2, 0, 1).float()[None]
    values = torch.nn.functional.grid_sample(picture, grid, padding_mode="border", align_corners=False)
    return values[0, :, 0].T.numpy()


def read_glb(path):
    """The JSON tree of a .glb, and a function that gives the bytes of a buffer view."""
    data = path.read_bytes()
    magic, version, length, json_length = struct.unpack_from("<4sIII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    tree = json.loads(data[20 : 20 + json_length])

    def view(index):
        part = tree["bufferViews"][index]
        start = 28 + json_length + part.get("byteOffset", 0)
        return data[start : start + part["byteLength"]]

    return tree, view


def test_baked_texels_have_the_value_of_the_surface_there(tube):
    diffuse, _ = tube.albedo()
    texture = bake_texture(diffuse, tube.triangles, tube.uv, tube.uv_triangles, SIZE)
    centre = (torch.arange(SIZE) + 0.5) / SIZE
    u, v = centre, 1 - centre
    columns, rows = (u > 0.1) & (u < 0.9), (v > 0.2) & (v < 0.9)
    angle = ((u[columns] - 0.1) / 0.8) * 2 * math.pi
    patch = texture[:, rows][:, :, columns]
    torch.testing.assert_close(patch[0], (0.4 + 0.3 * angle.cos()).expand_as(patch[0]), atol=2e-3, rtol=0)
    height = (v[rows] - 0.2) / 0.7
    expected = (0.6 * height).clamp(min=0.004)[:, None].expand_as(patch[2])
    torch.testing.assert_close(patch[2, :-25], expected[:-25], atol=1e-5, rtol=0)


def test_texels_outside_repeat_the_nearest_inside(tube):
    diffuse, _ = tube.albedo()
    texture = bake_texture(diffuse, tube.triangles, tube.uv, tube.uv_triangles, SIZE)
    middle = SIZE // 2
    inside = round(0.1 * SIZE) + 1
    torch.testing.assert_close(texture[:, middle, 0], texture[:, middle, inside], atol=0.01, rtol=0)
    assert torch.equal(texture[:, 0, middle], texture[:, 5, middle])
    assert texture.amax((1, 2)).min() > 0.4 and texture.min() >= 0.004 - 1e-6


def test_seam_splits_vertices_and_nothing_else(tube, mesh):
    assert len(mesh.vertices) == len(tube.mean) + UP
    assert len(mesh.triangles) == len(tube.triangles)
    assert torch.equal(mesh.vertices[mesh.triangles], tube.mean[tube.triangles])
    torch.testing.assert_close(mesh.uv[mesh.triangles], tube.uv[tube.uv_triangles])
    left, right = (mesh.uv[:, 0] < 0.101).nonzero()[:, 0], (mesh.uv[:, 0] > 0.899).nonzero()[:, 0]
    left, right = left[mesh.uv[left, 1].argsort()], right[mesh.uv[right, 1].argsort()]
    assert len(left) == UP
    assert torch.equal(mesh.vertices[left], mesh.vertices[right])
    assert torch.equal(mesh.normals[left], mesh.normals[right])


def test_uv_beyond_the_unit_square_is_fitted_into_it(tube):
    wide = tube._replace(uv=tube.uv * 2 - 0.5)
    diffuse, _ = tube.albedo()
    mesh = textured_mesh(wide, wide.mean, diffuse, None, SIZE)
    assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1
    colours = sample(mesh.diffuse.permute(1, 2, 0).numpy(), mesh.uv.numpy())
    corners = colours[mesh.triangles.numpy()]
    assert np.abs(corners - diffuse[tube.triangles].numpy()).max() < 0.04


def check_round_trip(loaded, mesh, scale):
    assert len(loaded.faces) == len(mesh.triangles)
    triangles = mesh.triangles.numpy()
    np.testing.assert_allclose(
        loaded.vertices[loaded.faces], mesh.vertices.numpy()[triangles] * scale, atol=1e-4 * scale
    )
    np.testing.assert_allclose(loaded.visual.uv[loaded.faces], mesh.uv.numpy()[triangles], atol=2e-6)


def expected_png(linear):
    return (linear_to_srgb(linear.clamp(0, 1)) * 255).round().byte().permute(1, 2, 0).numpy()


def test_glb_round_trip(mesh, tmp_path):
    path = export_glb(mesh, tmp_path / "new folder" / "face.glb", shininess=30)
    loaded = trimesh.load_mesh(path, process=False)
    check_round_trip(loaded, mesh, 0.001)
    material = loaded.visual.material
    assert np.array_equal(np.array(material.baseColorTexture.convert("RGB")), expected_png(mesh.diffuse))
    tree, view = read_glb(path)  # trimesh computes its own normals when it reads
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]]
    normals = np.frombuffer(view(accessor["bufferView"]), np.float32).reshape(-1, 3)
    np.testing.assert_allclose(normals, mesh.normals.numpy(), atol=1e-6)
    assert material.metallicFactor == 0 and material.roughnessFactor == pytest.approx(0.5)


def test_glb_specular_extension(mesh, tmp_path):
    tree, view = read_glb(export_glb(mesh, tmp_path / "face.glb"))
    extension = tree["materials"][0]["extensions"]["KHR_materials_specular"]
    assert "KHR_materials_specular" in tree["extensionsUsed"]
    image = tree["images"][tree["textures"][extension["specularColorTexture"]["index"]]["source"]]
    with Image.open(io.BytesIO(view(image["bufferView"]))) as png:
        decoded = srgb_to_linear(torch.from_numpy(np.array(png)).float() / 255)[..., 0]
    f0 = 0.04 * extension["specularColorFactor"][0] * decoded  # as the extension's specification says
    torch.testing.assert_close(f0, mesh.specular[0], atol=4e-4, rtol=0)


def test_obj_round_trip(mesh, tmp_path):
    files = export_obj(mesh, tmp_path / "face.obj")
    assert [f.name for f in files] == ["face.obj", "face.mtl", "face_diffuse.png", "face_specular.png"]
    loaded = trimesh.load_mesh(files[0], process=False)
    check_round_trip(loaded, mesh, 1.0)
    texture = np.array(loaded.visual.material.image.convert("RGB"))
    assert np.array_equal(texture, expected_png(mesh.diffuse))
    with Image.open(files[3]) as png:
        assert np.array_equal(np.array(png), expected_png(mesh.specular.expand(3, -1, -1) / F0_WHITE))
    normals = [line.split()[1:] for line in files[0].read_text().split("\n") if line.startswith("vn ")]
    np.testing.assert_allclose(np.array(normals, float), mesh.normals.numpy(), atol=2e-6)
    lines = files[1].read_text().split("\n")
    assert "map_Kd face_diffuse.png" in lines and "map_Ks face_specular.png" in lines


def test_without_specular_map(tube, tmp_path):
    mesh = textured_mesh(tube, tube.mean, tube.albedo()[0], None, 64)
    assert len(export_obj(mesh, tmp_path / "a")) == 3
    assert b"KHR_materials" not in export_glb(mesh, tmp_path / "a.glb").read_bytes()


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_render_of_the_reimported_mesh_looks_the_same(tube, mesh, tmp_path, kind):
    """Colours are read back through UV and texture, so swapped or mirrored coordinates would show."""
    path = tmp_path / f"face.{kind}"
    export_glb(mesh, path) if kind == "glb" else export_obj(mesh, path)
    loaded = trimesh.load_mesh(path, process=False)
    material = loaded.visual.material
    texture = np.array((material.baseColorTexture if kind == "glb" else material.image).convert("RGB"))
    colours = srgb_to_linear(torch.from_numpy(sample(texture / 255.0, np.array(loaded.visual.uv))))
    camera = PerspectiveCamera.from_fov(20, 120, 120).look((0.3, 0.4, 0.1))
    sun = directional_to_sh(torch.tensor([0.3, 0.4, 0.8]), torch.ones(3))
    light = SphericalHarmonicsLight(sun + ambient_to_sh(torch.full((3,), 0.4)))
    vertices = torch.tensor(loaded.vertices).float() * (1000 if kind == "glb" else 1)
    after = render(vertices, torch.tensor(loaded.faces).long(), camera, light, colours, None, 120, 120)
    diffuse, _ = tube.albedo()
    before = render(tube.mean, tube.triangles, camera, light, diffuse, None, 120, 120)
    assert before.mask.sum() > 2000
    assert (before.mask ^ after.mask).sum() <= 2
    both = (before.mask & after.mask)[0]
    difference = (before.image - after.image).abs().amax(0)[both]
    assert difference.mean() < 0.01 and difference.quantile(0.99) < 0.05


def test_shipped_model_exports(tmp_path):
    model = MorphableModel.load(subdivisions=0)
    diffuse, specular = model.albedo()
    mesh = textured_mesh(model, model.mean, diffuse, specular, 512)
    colours = sample(mesh.diffuse.permute(1, 2, 0).numpy(), mesh.uv.numpy())[mesh.triangles.numpy()]
    assert np.abs(colours - diffuse[model.triangles].numpy()).mean() < 0.01
    loaded = trimesh.load_mesh(export_glb(mesh, tmp_path / "face.glb"), process=False)
    assert 0.10 < loaded.extents[0] < 0.25  # a face is some 15 cm wide: true size in metres


def test_errors(tube):
    diffuse, specular = tube.albedo()
    with pytest.raises(MeshError, match="no UV map"):
        textured_mesh(MorphableModel(mean=tube.mean, triangles=tube.triangles), tube.mean, diffuse)
    with pytest.raises(MeshError, match="vertices"):
        textured_mesh(tube, tube.mean[None], diffuse)
    with pytest.raises(MeshError, match="specular"):
        textured_mesh(tube, tube.mean, diffuse, specular[:-1])
    with pytest.raises(ParameterError, match="NaN"):
        textured_mesh(tube, tube.mean * torch.nan, diffuse)
    with pytest.raises(MeshError, match="covers no texel"):
        bake_texture(diffuse, tube.triangles, tube.uv + 3, tube.uv_triangles, 64)
    with pytest.raises(MeshError):
        bake_texture(diffuse, tube.triangles, tube.uv, tube.uv_triangles[1:], 64)


@pytest.mark.parametrize("name", ["john.smith", "my face", "o'brien.obj", "日本"])
def test_obj_keeps_any_name_and_has_the_glb_s_roughness(tube: MorphableModel, name: str, tmp_path) -> None:
    mesh = textured_mesh(tube, tube.mean, tube.albedo()[0], None, size=32)
    obj, mtl, *_ = export_obj(mesh, tmp_path / name)
    assert obj.name == name.removesuffix(".obj") + ".obj" and obj.is_file() and mtl.stem == obj.stem
    values = dict(line.split(" ", 1) for line in mtl.read_text().splitlines())
    used = [line.split(" ", 1)[1] for line in obj.read_text().splitlines() if line.startswith("usemtl")]
    assert used == [values["newmtl"]] and " " not in values["newmtl"]
    assert 1 - math.sqrt(float(values["Ns"]) / 1000) == pytest.approx(roughness(20.0), abs=1e-3)
    assert float(values["Pr"]) == pytest.approx(roughness(20.0), abs=1e-3)


# --- relief
# --------------------------------------------------------------------------------------------------


def bumpy(tube: MorphableModel, size: int) -> torch.Tensor:
    """Normals (3, size, size) in model space of the barrel with waves around and along it."""
    normals = vertex_normals(tube.mean, tube.triangles)
    baked = bake_texture(
        torch.cat([tube.mean, normals], -1), tube.triangles, tube.uv, tube.uv_triangles, size
    )
    wave = torch.stack([baked[1].mul(0.2).sin(), baked[0].mul(0.15).cos(), 0 * baked[0]])
    return torch.nn.functional.normalize(baked[3:] + 0.3 * wave, dim=0)


def test_tangents_follow_the_map(tube, mesh):
    """Around the barrel u runs along the horizontal tangent and v upwards."""
    tangent = tangents(mesh)
    assert torch.equal(tangent[:, 3], torch.ones(len(tangent)))
    x, _, z = mesh.vertices.T
    around = torch.stack([z, 0 * x, -x], -1)
    around = around / around.norm(dim=-1, keepdim=True)
    inner = (mesh.uv[:, 1] > 0.25) & (mesh.uv[:, 1] < 0.85)
    assert ((tangent[:, :3] * around).sum(-1)[inner] > 0.99).all()
    assert (tangent[:, :3] * mesh.normals).sum(-1).abs().max() < 1e-5
    assert ((torch.linalg.cross(mesh.normals, tangent[:, :3])[:, 1])[inner] > 0.8).all(), "v goes up"
    mirrored_uv = replace(mesh, uv=torch.stack([1 - mesh.uv[:, 0], mesh.uv[:, 1]], -1))
    assert torch.equal(tangents(mirrored_uv)[:, 3], -torch.ones(len(tangent))), "a mirrored map says so"


def test_a_flat_relief_is_glTF_s_neutral_colour(tube, mesh):
    flat = with_relief(mesh, frames(mesh, 64)[:, 2])
    torch.testing.assert_close(flat.relief[2], torch.ones(64, 64), atol=1e-5, rtol=0)
    assert flat.relief[:2].abs().max() < 1e-5


def test_normal_texture_round_trip(tube, mesh, tmp_path):
    """Read as a glTF viewer does: the texture in the frame of the vertices' NORMAL and TANGENT gives the
    normals that went in; the mesh alone does not."""
    wanted = bumpy(tube, SIZE)
    path = export_glb(with_relief(mesh, wanted), tmp_path / "relief.glb")
    tree, view = read_glb(path)
    material, attributes = tree["materials"][0], tree["meshes"][0]["primitives"][0]["attributes"]

    def values(name: str, width: int) -> torch.Tensor:
        accessor = tree["accessors"][attributes[name]]
        assert accessor["count"] == len(mesh.vertices)
        data = np.frombuffer(view(accessor["bufferView"]), np.float32).reshape(-1, width)[: accessor["count"]]
        return torch.from_numpy(data.copy())

    normals, tangent = values("NORMAL", 3), values("TANGENT", 4)
    source = tree["textures"][material["normalTexture"]["index"]]["source"]
    picture = np.asarray(Image.open(io.BytesIO(view(tree["images"][source]["bufferView"]))), dtype=np.float32)
    local = torch.from_numpy(sample(picture / 255 * 2 - 1, mesh.uv.numpy()))
    bitangent = torch.linalg.cross(normals, tangent[:, :3]) * tangent[:, 3:]
    shown = local[:, :1] * tangent[:, :3] + local[:, 1:2] * bitangent + local[:, 2:] * normals
    expected = torch.from_numpy(sample(wanted.permute(1, 2, 0).numpy(), mesh.uv.numpy()))

    def angle(a: torch.Tensor) -> float:
        cosine = torch.nn.functional.cosine_similarity(a, expected, dim=-1).clamp(-1, 1)
        return float(cosine.acos().rad2deg().mean())

    assert angle(shown) < 1.5 and angle(shown) < 0.15 * angle(normals)
    loaded = trimesh.load_mesh(path, process=False)
    assert loaded.visual.material.normalTexture is not None
    check_round_trip(loaded, mesh, 0.001)
    both = export_glb(with_relief(mesh, wanted), tmp_path / "both.glb")
    assert "KHR_materials_specular" in read_glb(both)[0]["materials"][0]["extensions"]


def test_relief_of_another_shape_or_with_nan_is_refused(mesh):
    with pytest.raises(MeshError, match="normal map"):
        with_relief(mesh, torch.zeros(3, 8, 9))
    with pytest.raises(ParameterError, match="NaN"):
        with_relief(mesh, torch.full((3, 8, 8), float("nan")))
