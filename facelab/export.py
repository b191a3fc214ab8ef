"""Write a face for other programs: glTF binary (.glb), and Wavefront OBJ with MTL and PNG textures.

Per-vertex albedo is baked into a UV texture; vertices are split where the UV map has a seam. Our axes are
glTF's (+y up, +z out of the face), so nothing is turned. Units: .glb is in metres, as glTF demands, and opens
at true size; .obj has no units and stays in millimetres (in Blender: import with scale 0.001).
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import trimesh
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from trimesh.exchange.gltf import export_glb as trimesh_glb
from trimesh.exchange.obj import export_obj as trimesh_obj

from facelab.geometry.mesh import check_triangles, vertex_normals
from facelab.model.morphable_model import MorphableModel
from facelab.rendering import rasterizer
from facelab.rendering.colour import linear_to_srgb
from facelab.support.errors import MeshError, ParameterError
from facelab.support.files import write_whole
from facelab.support.tensors import one_line

METRES_PER_MM = 0.001
F0_WHITE = 0.08  # the F0 that white means in the specular PNG


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


def bake_texture(
    attributes: Tensor, triangles: Tensor, uv: Tensor, uv_triangles: Tensor, size: int
) -> Tensor:
    """Paint per-vertex attributes (V, C) into a UV map: (C, size, size), row 0 at v = 1.

    Texels outside the UV map's islands take the value of the nearest texel inside, so that filtering and
    mipmaps bring no background over a seam. uv (U, 2), triangles and uv_triangles (T, 3).
    Raises MeshError if the triangles do not fit, or if nothing of the UV map lies in [0, 1].
    """
    _check_uv(attributes, triangles, uv, uv_triangles)
    screen = torch.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size, torch.ones_like(uv[:, 0])], -1)
    face_index = rasterizer.rasterize(screen, uv_triangles, size, size, cull=False)
    if not bool((face_index >= 0).any()):
        raise MeshError("The UV map covers no texel; check that its coordinates are in [0, 1].")
    # One corner per row: a vertex may have several UV coordinates.
    corners = torch.arange(3 * len(triangles), device=triangles.device).view(-1, 3)
    values, _ = rasterizer.interpolate(
        screen[uv_triangles.flatten()], corners, face_index, attributes[triangles.flatten()]
    )
    outside = (face_index < 0).cpu().numpy()
    row, column = distance_transform_edt(outside, return_distances=False, return_indices=True)
    return values[:, torch.from_numpy(row).to(values.device), torch.from_numpy(column).to(values.device)]


def textured_mesh(
    model: MorphableModel,
    vertices: Tensor,
    diffuse: Tensor,
    specular: Tensor | None = None,
    size: int = 1024,
) -> TexturedMesh:
    """Bake a reconstructed face of `model`: vertices (V, 3) mm, diffuse (V, 3) linear, specular (V,) F0.

    Raises MeshError for a model without a UV map or arguments of other sizes, ParameterError for NaN.
    """
    if model.uv.numel() == 0:
        raise MeshError(f"The model {model.name!r} has no UV map, which a texture needs; use one that has.")
    count = len(model.mean)
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
    low, high = model.uv.amin(0).clamp(max=0), model.uv.amax(0).clamp(min=1)
    uv = (model.uv - low) / (high - low)  # beyond [0, 1] a texture would repeat
    texture = bake_texture(attributes, model.triangles, uv, model.uv_triangles, size)
    corners = torch.stack([model.triangles.flatten(), model.uv_triangles.flatten()], -1)
    pairs, index = torch.unique(corners, dim=0, return_inverse=True)
    return TexturedMesh(
        vertices=vertices[pairs[:, 0]],
        normals=vertex_normals(vertices, model.triangles)[pairs[:, 0]],
        triangles=index.view(-1, 3),
        uv=uv[pairs[:, 1]],
        diffuse=texture[:3],
        specular=texture[3:] if specular is not None else None,
    )


def export_glb(mesh: TexturedMesh, path: str | Path, shininess: float = 20.0) -> Path:
    """Write `mesh` as glTF 2.0 binary, in metres, textures inside.

    The base colour texture is the diffuse albedo, sRGB. The specular map goes into the extension
    KHR_materials_specular: F0 = 0.04 · specularColorFactor (2) · texture, so white is 0.08; programs that do
    not know the extension show glTF's fixed F0 of 0.04. `shininess` is a Blinn-Phong exponent s and becomes
    the roughness (2 / (s + 2))^¼ (Karis 2013).
    """
    path = Path(path)
    material = trimesh.visual.material.PBRMaterial(
        name=path.stem,
        baseColorTexture=_picture(mesh.diffuse),
        metallicFactor=0.0,
        roughnessFactor=roughness(shininess),
    )

    def add_specular(buffers: dict[Any, bytes], tree: dict[str, Any]) -> None:
        if mesh.specular is None:
            return
        data = _png(mesh.specular / F0_WHITE)
        buffers["specular"] = data + bytes(-len(data) % 4)
        tree["images"].append({"bufferView": len(buffers) - 1, "mimeType": "image/png"})
        tree["textures"].append({"source": len(tree["images"]) - 1})
        texture = {"index": len(tree["textures"]) - 1}
        extension = {"specularColorFactor": [F0_WHITE / 0.04] * 3, "specularColorTexture": texture}
        tree["materials"][0]["extensions"] = {"KHR_materials_specular": extension}
        tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), "KHR_materials_specular"]

    scene = trimesh.Scene()
    scene.add_geometry(_to_trimesh(mesh, material, METRES_PER_MM), geom_name=path.stem)
    data = trimesh_glb(scene, include_normals=True, buffer_postprocessor=add_specular)
    write_whole({path: data})
    return path


def roughness(shininess: float) -> float:
    """glTF's roughness of a Blinn-Phong exponent s: (2 / (s + 2))^¼ (Karis 2013)."""
    return float((2 / (shininess + 2)) ** 0.25)


def blender_exponent(shininess: float) -> float:
    """The MTL `Ns` of the same roughness to Blender's importer: roughness = 1 - (Ns / 1000)^½."""
    return 1000 * (1 - roughness(shininess)) ** 2


def export_obj(mesh: TexturedMesh, path: str | Path, shininess: float = 20.0) -> list[Path]:
    """Write `mesh` as NAME.obj in millimetres, NAME.mtl, NAME_diffuse.png and NAME_specular.png (if any).

    `path` is given with or without `.obj`. PNGs hold sRGB; in the specular one white is F0 = 0.08, and
    the MTL's map_Ks points to it. `Ns` and `Pr` have the roughness of `export_glb`.
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


def _check_uv(attributes: Tensor, triangles: Tensor, uv: Tensor, uv_triangles: Tensor) -> None:
    check_triangles(triangles, len(attributes))
    check_triangles(uv_triangles, len(uv))
    if len(triangles) != len(uv_triangles):
        raise MeshError(f"There are {len(triangles)} triangles but {len(uv_triangles)} in the UV map.")


def _picture(linear: Tensor) -> Image.Image:
    """A linear (3 or 1, H, W) map as an 8-bit sRGB picture."""
    srgb = linear_to_srgb(linear.clamp(0, 1)).expand(3, -1, -1)
    return Image.fromarray((srgb * 255).round().byte().permute(1, 2, 0).cpu().contiguous().numpy())


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
