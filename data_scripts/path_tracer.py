"""Busts path-traced by Mitsuba 3: soft shadows, light between nose, cheeks and lips, glossy skin, wet eyes.

Jakob et al., Mitsuba 3, 2022 (mitsuba-renderer.org, BSD licence). Camera space is the world; the same lamps
and surroundings as in light_rig.py, as spheres and a panorama that shine. The camera is a pinhole, and pixel
and lens conventions were checked against our rasterizer (tests/test_build_test_sets.py).
"""

from typing import Any

import mitsuba as mi
import numpy as np
import torch
from light_rig import Rig
from numpy.typing import NDArray
from torch import Tensor

from facelab.geometry.camera import PerspectiveCamera
from facelab.model.morphable_model import REGIONS, SKIN_F0

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

mi.set_variant("scalar_rgb")
SPECULAR = SKIN_F0 / 0.08  # of the principled material: reflects 0.028 at normal incidence
BOUNCES = 6
PASSES, SAMPLES = 8, 16  # per pixel and pass
EYE_ROUGHNESS = 0.06


def glossy(colour: dict[str, Any], roughness: dict[str, Any] | float, specular: float) -> dict[str, Any]:
    """Burley's principled material: a diffuse base under a rough dielectric. (Mitsuba's own rough plastic
    loses a third of the light in a white furnace, this one nothing.)"""
    return {"type": "principled", "base_color": colour, "roughness": roughness, "specular": specular}


def texture(values: Floats) -> dict[str, Any]:
    """An (S, S, C) map in linear units, row 0 at the top of UV."""
    bitmap = mi.Bitmap(np.ascontiguousarray(values[::-1], np.float32))
    return {"type": "bitmap", "bitmap": bitmap, "raw": True, "wrap_mode": "clamp"}


def mesh(
    name: str,
    points: Floats,
    normals: Floats,
    triangles: Ints,
    bsdf: dict[str, Any],
    uv: Floats | None = None,
) -> Any:
    """A Mitsuba mesh with its own vertices."""
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(bsdf)
    made = mi.Mesh(name, len(points), len(triangles), properties, True, uv is not None)
    parameters = mi.traverse(made)
    parameters["vertex_positions"] = np.ascontiguousarray(points, np.float32).ravel()
    parameters["vertex_normals"] = np.ascontiguousarray(normals, np.float32).ravel()
    parameters["faces"] = triangles.astype(np.uint32).ravel()
    if uv is not None:
        parameters["vertex_texcoords"] = np.ascontiguousarray(uv, np.float32).ravel()
    parameters.update()
    return made


def emitters(rig: Rig) -> dict[str, Any]:
    """Lamps as shining spheres, surroundings as a panorama of 64 × 32 pixels."""
    scene: dict[str, Any] = {}
    for k, lamp in enumerate(rig.lamps):
        distance = np.linalg.norm(lamp.centre - rig.head)
        # A far sphere of radiance L shades what faces it with L (radius / distance)².
        radiance = lamp.colour * (distance / lamp.radius) ** 2
        scene[f"lamp{k}"] = {
            "type": "sphere",
            "center": lamp.centre.tolist(),
            "radius": lamp.radius,
            "emitter": {"type": "area", "radiance": {"type": "rgb", "value": radiance.tolist()}},
        }
    rows, columns = np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(64) + 0.5) / 64, indexing="ij")
    theta, phi = np.pi * rows, 2 * np.pi * columns
    # Mitsuba's panorama: the middle column looks along -z, columns run towards +x... u = atan2(x, -z) / 2π.
    directions = np.stack([np.sin(phi) * np.sin(theta), np.cos(theta), -np.cos(phi) * np.sin(theta)], -1)
    radiance = rig.around * (1 + directions @ rig.tilt)[..., None]
    scene["around"] = {"type": "envmap", "bitmap": mi.Bitmap(radiance.astype(np.float32))}
    return scene


def sensor(camera: PerspectiveCamera, size: int, samples: int) -> dict[str, Any]:
    """Our camera: at the origin, looks along -z; the principal point must be the middle."""
    field = 2 * np.degrees(np.arctan(size / 2 / float(camera.focal)))
    forward = mi.ScalarTransform4f().look_at(origin=[0, 0, 0], target=[0, 0, -1], up=[0, 1, 0])
    return {
        "type": "perspective",
        "fov": field,
        "fov_axis": "x",
        "near_clip": 10.0,
        "far_clip": 1e6,
        "to_world": forward,
        "film": {
            "type": "hdrfilm",
            "width": size,
            "height": size,
            "pixel_format": "rgba",
            "rfilter": {"type": "box"},
        },
        "sampler": {"type": "multijitter", "sample_count": samples},
    }


def trace(busts: Any, scene: Any, size: int, seed: int, samples: int = SAMPLES) -> Tensor:
    """(4, size, size): linear colours before black, and how much of a pixel the bust covers.

    `busts` and `scene` are those of outside_faces.py and build_test_sets.py.
    """
    bust, model = scene.bust, busts.model
    rotation = scene.camera.rotation.double().numpy()
    points = bust.vertices @ rotation.T + scene.camera.translation.double().numpy()
    normals = bust.normals @ rotation.T
    roughness = float(np.sqrt(2 / (scene.shininess + 2)) ** 0.5)

    # The face corner by corner, because texture coordinates have seams; eyes are a mesh of their own.
    corners, uv = busts.triangles[: len(model.triangles)], model.uv.numpy()[model.uv_triangles.numpy()]
    eyes = model.triangle_region.numpy() == REGIONS.index("eyes")
    diffuse = texture(bust.atlas[..., :3])
    # The material takes one specular reflectance, so the map of it acts as a roughness: oily skin is smooth.
    gloss = (bust.atlas[..., 3:] / SKIN_F0).clip(0.25, 2.5)
    skin_roughness = texture((roughness / np.sqrt(gloss)).clip(0.2, 0.9))
    parts: dict[str, Any] = {}
    for name, chosen, rough in (("face", ~eyes, skin_roughness), ("eyes", eyes, EYE_ROUGHNESS)):
        ids = corners[chosen].ravel()
        own = np.arange(len(ids)).reshape(-1, 3)
        bsdf = glossy(diffuse, rough, SPECULAR)
        parts[name] = mesh(name, points[ids], normals[ids], own, bsdf, uv[chosen].reshape(-1, 2))
    ids, rest = np.unique(busts.triangles[len(corners) :], return_inverse=True)
    colours = {"type": "mesh_attribute", "name": "vertex_colour"}
    parts["rest"] = mesh("rest", points[ids], normals[ids], rest.reshape(-1, 3), glossy(colours, 0.6, 0.3))
    parts["rest"].add_attribute(
        "vertex_colour", 3, bust.rest[ids - busts.faces, :3].astype(np.float32).ravel()
    )

    world = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "path", "max_depth": BOUNCES, "hide_emitters": True},
            "sensor": sensor(scene.camera, size, samples),
            **parts,
            **emitters(scene.rig),
        }
    )
    render: Any = mi.render
    passes = np.stack([np.array(render(world, seed=PASSES * seed + k)) for k in range(PASSES)])
    # A rare path by way of an eye carries as much light as thousands of others: no pass may stand out.
    picture = np.minimum(passes, 1.5 * np.median(passes, 0) + 0.01).mean(0)
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)
