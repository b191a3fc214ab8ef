"""Write a face for other programs: glTF binary (.glb), and Wavefront OBJ with MTL and PNG textures.

Per-vertex albedo is baked into a UV texture; vertices are split where the UV map has a seam. Our axes are
glTF's (+y up, +z out of the face), so nothing is turned. Units: .glb is in metres, as glTF demands, and opens
at true size; .obj has no units and stays in millimetres (in Blender: import with scale 0.001).
"""

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import trimesh
from PIL import Image
from torch import Tensor
from trimesh.exchange.gltf import export_glb as trimesh_glb
from trimesh.exchange.obj import export_obj as trimesh_obj

from facelab.geometry.mesh import dot, normalise, vertex_normals
from facelab.methods.relief import Detail, detailed_normals
from facelab.model.face import Surface
from facelab.model.morphable_model import MorphableModel
from facelab.model.textures import F0_WHITE, bake_texture, check_texture, unit_uv
from facelab.rendering.colour import linear_to_srgb
from facelab.support.errors import MeshError, ParameterError
from facelab.support.files import write_whole
from facelab.support.tensors import one_line

METRES_PER_MM = 0.001


@one_line
@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """A mesh with one UV coordinate per vertex: N vertices, some of them copies of one point at a seam."""

    vertices: Tensor
    """(N, 3) mm"""
    normals: Tensor
    """(N, 3) unit; of the mesh before the split, so that a seam is not seen"""
    triangles: Tensor
    """(T, 3) int64, in the order of the mesh before the split"""
    uv: Tensor
    """(N, 2) in [0, 1], origin at the lower left"""
    diffuse: Tensor
    """(3, S, S) linear albedo"""
    specular: Tensor | None
    """(1, S, S) reflectance at normal incidence (F0), or None"""
    relief: Tensor | None = None
    """(3, S, S) unit normals in tangent space, x along u, y along v, z outwards, or None: see
    `with_relief`"""


def textured_mesh(
    model: MorphableModel,
    vertices: Tensor,
    diffuse: Tensor,
    specular: Tensor | None = None,
    size: int = 1024,
    texture: Tensor | None = None,
) -> TexturedMesh:
    """Bake a reconstructed face of `model`: vertices (V, 3) mm, diffuse (V, 3) linear, specular (V,) F0.

    A `texture` (4, S, S), as `Face` has it, takes the place of the vertices' colours.

    Raises MeshError for a model without a UV map or arguments of other sizes, ParameterError for NaN.
    """
    uv, count = unit_uv(model), len(model.mean)
    if vertices.shape != (count, 3) or diffuse.shape != (count, 3):
        raise MeshError(
            f"The model has {count} vertices: pass one face's vertices and albedo as ({count}, 3), "
            f"not {tuple(vertices.shape)} and {tuple(diffuse.shape)}."
        )
    if specular is not None and specular.shape != (count,):
        raise MeshError(f"The specular albedo must be ({count},), not {tuple(specular.shape)}.")
    attributes = diffuse if specular is None else torch.cat([diffuse, specular[:, None]], -1)
    if not torch.isfinite(vertices).all() or not torch.isfinite(attributes).all():
        raise ParameterError("The face has NaN or infinity in its vertices or albedo; check the fit.")
    vertices, attributes = vertices.detach(), attributes.detach()
    if texture is None:
        texture = bake_texture(attributes, model.triangles, uv, model.uv_triangles, size)
    else:
        check_texture(texture)
        texture = texture.detach()
        attributes = texture.new_zeros(1, 4)
    corners = torch.stack([model.triangles.flatten(), model.uv_triangles.flatten()], -1)
    pairs, index = torch.unique(corners, dim=0, return_inverse=True)
    return TexturedMesh(
        vertices=vertices[pairs[:, 0]],
        normals=vertex_normals(vertices, model.triangles)[pairs[:, 0]],
        triangles=index.view(-1, 3),
        uv=uv[pairs[:, 1]],
        diffuse=texture[:3],
        specular=texture[3:] if attributes.shape[-1] == 4 else None,
    )


def tangents(mesh: TexturedMesh) -> Tensor:
    """(N, 4), as glTF has them: the unit direction of u in the surface, and ±1, with which normal × tangent
    is the direction of v."""
    corners, uv = mesh.vertices[mesh.triangles], mesh.uv[mesh.triangles].to(mesh.vertices)
    edges, steps = corners[:, 1:] - corners[:, :1], uv[:, 1:] - uv[:, :1]  # (T, 2, 3), (T, 2, 2)
    area = steps[:, 0, 0] * steps[:, 1, 1] - steps[:, 0, 1] * steps[:, 1, 0]
    # the directions of u and v, times the triangle's area on the map: large triangles count more
    sign = area.sign()[:, None]
    along_u = sign * (edges[:, 0] * steps[:, 1, 1:] - edges[:, 1] * steps[:, 0, 1:])
    along_v = sign * (edges[:, 1] * steps[:, 0, :1] - edges[:, 0] * steps[:, 1, :1])
    both = torch.cat([along_u, along_v], -1)
    sums = torch.zeros_like(mesh.vertices.repeat(1, 2))
    for k in range(3):
        sums.index_add_(0, mesh.triangles[:, k], both)
    u, v = sums[:, :3], sums[:, 3:]
    u = u - dot(u, mesh.normals)[:, None] * mesh.normals
    helper = torch.eye(3).to(u)[mesh.normals.abs().argmin(-1)]  # for vertices of no extent on the map
    spare = torch.linalg.cross(mesh.normals, helper)
    u = normalise(torch.where(u.norm(dim=-1, keepdim=True) > 1e-12, u, spare))
    side = torch.where(dot(torch.linalg.cross(mesh.normals, u), v) < 0, -1.0, 1.0).to(u)
    return torch.cat([u, side[:, None]], -1)


def relief_normals(model: MorphableModel, surface: Surface, detail: Detail, size: int) -> Tensor:
    """Normals (3, size, size) in model space for the texels of the model's UV map: those of the coarse face,
    and what the fine depth adds where the picture shows it. Raises MeshError for a model without a UV map."""
    carried = torch.cat([detail.camera.project(surface.vertices), surface.normals], -1)
    texels = bake_texture(carried, model.triangles, unit_uv(model), model.uv_triangles, size).flatten(1).T
    normals = detailed_normals(texels[:, :3], normalise(texels[:, 3:]), detail)
    return normals.T.unflatten(1, (size, size)).contiguous()


def with_relief(mesh: TexturedMesh, normals: Tensor) -> TexturedMesh:
    """The mesh with a normal map: `normals` (3, S, S) in model space are what its texels shall look like.

    They are written in the frame of normal, tangent and bitangent that a renderer interpolates from the
    vertices.
    Raises MeshError for another shape, ParameterError for NaN.
    """
    if normals.ndim != 3 or normals.shape[0] != 3 or normals.shape[1] != normals.shape[2]:
        raise MeshError(f"A normal map is (3, S, S), not {tuple(normals.shape)}.")
    if not bool(torch.isfinite(normals).all()):
        raise ParameterError("The normals have NaN or infinity; check the depth that they come from.")
    relief = torch.einsum("khw,kchw->chw", normals, frames(mesh, normals.shape[-1]))
    relief[2].clamp_(min=0.05)  # what turns away from the mesh cannot be drawn
    return replace(mesh, relief=normalise(relief.movedim(0, -1)).movedim(-1, 0))


def frames(mesh: TexturedMesh, size: int) -> Tensor:
    """(3, 3, size, size): at each texel, as columns, the tangent, bitangent and normal in model space, (xyz,
    frame)."""
    tangent = tangents(mesh)
    both = torch.cat([mesh.normals, tangent], -1)
    values = bake_texture(both, mesh.triangles, mesh.uv, mesh.triangles, size)
    n, t = (normalise(values[part].movedim(0, -1)) for part in (slice(0, 3), slice(3, 6)))
    t = normalise(t - dot(t, n)[..., None] * n)
    b = torch.linalg.cross(n, t) * values[6].sign()[..., None]
    return torch.stack([t, b, n], -1).permute(2, 3, 0, 1)


def export_glb(mesh: TexturedMesh, path: str | Path, shininess: float = 20.0) -> Path:
    """Write `mesh` as glTF 2.0 binary, in metres, textures inside.

    The base colour texture is the diffuse albedo, sRGB. The specular map goes into the extension
    KHR_materials_specular: F0 = 0.04 · specularColorFactor (2) · texture, so white is 0.08; programs that do
    not know the extension show glTF's fixed F0 of 0.04. A relief becomes the normalTexture, with tangents.
    `shininess` is a Blinn-Phong exponent s and becomes the roughness (2 / (s + 2))^¼ (Karis 2013).
    """
    path = Path(path)
    material = trimesh.visual.material.PBRMaterial(
        name=path.stem,
        baseColorTexture=_picture(mesh.diffuse),
        metallicFactor=0.0,
        roughnessFactor=roughness(shininess),
    )

    def add_maps(buffers: dict[Any, bytes], tree: dict[str, Any]) -> None:
        look = tree["materials"][0]
        if mesh.specular is not None:
            texture = _add_texture(buffers, tree, "specular", _png(mesh.specular / F0_WHITE))
            extension = {"specularColorFactor": [F0_WHITE / 0.04] * 3, "specularColorTexture": texture}
            look["extensions"] = {"KHR_materials_specular": extension}
            tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), "KHR_materials_specular"]
        if mesh.relief is not None:
            png = io.BytesIO()
            _bytes_picture(0.5 + 0.5 * mesh.relief).save(png, "PNG")
            look["normalTexture"] = _add_texture(buffers, tree, "relief", png.getvalue())
            buffers["tangents"] = tangents(mesh).float().cpu().numpy().tobytes()
            view = {"bufferView": len(buffers) - 1, "componentType": 5126, "type": "VEC4"}
            tree["accessors"]["tangents"] = view | {"count": len(mesh.vertices), "byteOffset": 0}
            tree["meshes"][0]["primitives"][0]["attributes"]["TANGENT"] = len(tree["accessors"]) - 1

    scene = trimesh.Scene()
    scene.add_geometry(_to_trimesh(mesh, material, METRES_PER_MM), geom_name=path.stem)
    data = trimesh_glb(scene, include_normals=True, buffer_postprocessor=add_maps)
    write_whole({path: data})
    return path


def _add_texture(buffers: dict[Any, bytes], tree: dict[str, Any], name: str, png: bytes) -> dict[str, int]:
    """Put a PNG into a glTF; returns the reference to it."""
    buffers[name] = png + bytes(-len(png) % 4)
    tree["images"].append({"bufferView": len(buffers) - 1, "mimeType": "image/png"})
    tree["textures"].append({"source": len(tree["images"]) - 1})
    return {"index": len(tree["textures"]) - 1}


def roughness(shininess: float) -> float:
    """glTF's roughness of a Blinn-Phong exponent s: (2 / (s + 2))^¼ (Karis 2013)."""
    return float((2 / (shininess + 2)) ** 0.25)


def blender_exponent(shininess: float) -> float:
    """The MTL `Ns` of the same roughness to Blender's importer: roughness = 1 - (Ns / 1000)^½."""
    return 1000 * (1 - roughness(shininess)) ** 2


def export_obj(mesh: TexturedMesh, path: str | Path, shininess: float = 20.0) -> list[Path]:
    """Write `mesh` as NAME.obj in millimetres, NAME.mtl, NAME_diffuse.png and NAME_specular.png (if any).

    `path` is given with or without `.obj`. PNGs hold sRGB; in the specular one white is F0 = 0.08, and
    the MTL's map_Ks points to it. A relief is left out: MTL has no normal maps. `Ns` and `Pr` have the
    roughness of `export_glb`.
    """
    path = Path(path)
    path = path if path.suffix.lower() == ".obj" else path.with_name(path.name + ".obj")  # john.smith
    stem = path.with_suffix("")
    material_name = re.sub(r"[^\w.-]+", "_", stem.name)  # MTL ends a name at a space
    maps = {"Kd": (f"{stem.name}_diffuse.png", mesh.diffuse)}
    if mesh.specular is not None:
        maps["Ks"] = (f"{stem.name}_specular.png", mesh.specular / F0_WHITE)
    ks = 0 if mesh.specular is None else 1
    lines = [f"newmtl {material_name}", "Ka 0 0 0", "Kd 1 1 1", f"Ks {ks} {ks} {ks}"]
    lines += [f"Ns {blender_exponent(shininess):.4f}", f"Pr {roughness(shininess):.4f}"]
    lines += [f"map_{key} {name}" for key, (name, _) in maps.items()]
    material = trimesh.visual.material.SimpleMaterial(image=_picture(mesh.diffuse), name=material_name)
    body = trimesh_obj(
        _to_trimesh(mesh, material),
        include_normals=True,
        write_texture=False,
        digits=6,
        mtl_name=f"{stem.name}.mtl",
        header=f"{stem.name}: face in millimetres, +y up, +z out of the face",
    )
    files: dict[Path, bytes | str] = {path: body, stem.with_name(stem.name + ".mtl"): "\n".join(lines) + "\n"}
    files |= {stem.with_name(name): _png(values) for name, values in maps.values()}
    write_whole(files)
    return list(files)


def _picture(linear: Tensor) -> Image.Image:
    """A linear (3 or 1, H, W) map as an 8-bit sRGB picture."""
    return _bytes_picture(linear_to_srgb(linear.clamp(0, 1)).expand(3, -1, -1))


def _bytes_picture(values: Tensor) -> Image.Image:
    """Values (3, H, W) in [0, 1] as they are, in 8 bits."""
    return Image.fromarray((values * 255).round().byte().permute(1, 2, 0).cpu().contiguous().numpy())


def _png(linear: Tensor) -> bytes:
    file = io.BytesIO()
    _picture(linear).save(file, "PNG")
    return file.getvalue()


def _to_trimesh(mesh: TexturedMesh, material: Any, scale: float = 1.0) -> trimesh.Trimesh:
    visual = trimesh.visual.TextureVisuals(uv=mesh.uv.double().cpu().numpy(), material=material)
    return trimesh.Trimesh(
        vertices=mesh.vertices.double().cpu().numpy() * scale,
        faces=mesh.triangles.cpu().numpy(),
        vertex_normals=mesh.normals.double().cpu().numpy(),
        visual=visual,
        process=False,
    )
