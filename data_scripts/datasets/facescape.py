"""FaceScape: 359 people in 20 expressions from about 60 calibrated views, with meshes of one topology.

Where:  https://facescape.nju.edu.cn (licence key on request); toolkit: github.com/zhuhao-nju/facescape.
Terms:  non-commercial research, no passing on; only people in publishable_list_v1.txt may be shown. Paper:
        Yang et al., FaceScape: a Large-Scale High Quality 3D Face Dataset, CVPR 2020.
Folder: put side by side: fsmview_images/ID/EXPRESSION/VIEW.jpg and params.json (multi-view data), the TU
        models in any folder, */ID/models_reg/EXPRESSION.obj, and from the toolkit's folder predef
        Rt_scale_dict.json and landmark_indices.npz.
Truth:  mesh in mm, all in correspondence, with 68 landmarks (vertices "v10"); a camera (OpenCV's axes, and
        its radial and tangential distortion, which is taken out of the picture); who it is; the expression.
        Views marked invalid are left out. The scale is the authors': the distance of the eyes is set to a
        statistical mean, so millimetres are true on average only. Cameras live in the coordinates of
        structure from motion; Rt_scale_dict.json leads from there to the mesh: X_mesh = scale R X + t.
Checked: layout, params.json and the alignment against the authors' documents, issues and public code; not
        against the set itself. That pixel centres of K are whole numbers (OpenCV) is assumed; its two focal
        lengths are averaged.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from facelab.evaluation.test_sets import Records
from facelab.geometry.camera import PerspectiveCamera
from facelab.model.records import FaceRecord
from facelab.photos import load_photo
from facelab.support import files
from facelab.support.errors import DatasetError

from .common import OPENCV_TO_OURS, by_number, place, read_scan, records, require, scan_mesh

PAGE = "https://facescape.nju.edu.cn"
TO_OPENGL = np.diag([1.0, -1.0, -1.0])


@lru_cache(maxsize=4)
def read_json(path: Path) -> dict[str, Any]:
    """A dictionary."""
    return files.read_json(path, f"'{path}' is not a complete JSON file; unpack it again", DatasetError)


def undistort(image: Tensor, k: np.ndarray, distortion: np.ndarray) -> Tensor:
    """A picture (3, H, W) as an ideal pinhole camera with the same matrix K (3, 3) would have taken it.

    OpenCV's model: k1, k2, p1, p2, k3 distort ideal points into the picture's. Black where nothing was seen.
    """
    k1, k2, p1, p2, k3 = distortion
    height, width = image.shape[1:]
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    x, y = (column - k[0, 2]) / k[0, 0], (row - k[1, 2]) / k[1, 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    u = k[0, 0] * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + k[0, 2]
    v = k[1, 1] * (y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)) + k[1, 2]
    grid = np.stack([(2 * u + 1) / width - 1, (2 * v + 1) / height - 1], -1)
    return grid_sample(image[None], torch.from_numpy(grid[None]).to(image), align_corners=False)[0]


def mesh_camera(k: np.ndarray, rt: np.ndarray, scale: float, to_mesh: np.ndarray) -> PerspectiveCamera:
    """The camera for the mesh's points: x_camera = R_cam R^T (X - t) + scale t_cam, mm, in our axes."""
    rotation = rt[:, :3] @ to_mesh[:3, :3].T
    translation = scale * rt[:, 3] - rotation @ to_mesh[:3, 3]
    focal, principal = (k[0, 0] + k[1, 1]) / 2, k[:2, 2] + OPENCV_TO_OURS
    parts = (TO_OPENGL @ rotation, TO_OPENGL @ translation, focal, principal)
    return PerspectiveCamera(*(torch.as_tensor(part, dtype=torch.float32) for part in parts))


def read(folder: str | Path) -> Records:
    """Every valid view of every expression of every person. Raises DatasetError."""
    images = place(folder, ("fsmview_images",), PAGE)
    alignment = read_json(place(folder, ("Rt_scale_dict.json",), "the toolkit's predef folder"))
    indices = place(folder, ("landmark_indices.npz",), "the toolkit's predef folder")
    problem = f"'{indices}' lacks the plain array v10; get the toolkit's file again"
    with files.guarded(problem, DatasetError):
        vertices = files.read_npz(indices, problem, DatasetError)["v10"].astype(np.int64).reshape(-1)
    require(len(vertices) == 68, f"'{indices}' holds {len(vertices)} landmarks instead of 68.")
    views = []
    for parameters in by_number(list(images.glob("*/*/params.json"))):
        content, shot = read_json(parameters), parameters.parent
        numbers = sorted(int(key[:-2]) for key in content if key.endswith("_K"))
        views += [(shot, view) for view in numbers if content.get(f"{view}_valid", True)]

    def make(key: tuple[Path, int]) -> FaceRecord:
        shot, view = key
        person, expression = shot.parent.name, shot.name
        content = read_json(shot / "params.json")
        model = place(folder, (f"*/{person}/models_reg/{expression}.obj",), PAGE)
        try:
            k = np.array(content[f"{view}_K"], dtype=np.float64)[:3, :3]
            rt = np.array(content[f"{view}_Rt"], dtype=np.float64).reshape(3, 4)
            distortion = np.array(content[f"{view}_distortion"], dtype=np.float64).reshape(5)
            scale, to_mesh = alignment[person][expression.split("_")[0]]
            camera = mesh_camera(k, rt, float(scale), np.array(to_mesh, dtype=np.float64))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise DatasetError(f"View {view} of '{shot}' has no complete camera ({error!r}).") from error
        points = read_scan(model, 1.0)[0]
        require(vertices.max() < len(points), f"'{model}' has {len(points)} vertices: it is not a TU model.")
        mesh = scan_mesh(model, dict(enumerate(points[vertices].numpy())), 1.0, topology="facescape")
        image = undistort(load_photo(shot / f"{view}.jpg"), k, distortion)
        groups = {"expression": expression}
        name = f"{person}/{expression}/{view}"
        return FaceRecord(name, image, mesh=mesh, camera=camera, person=person, groups=groups)

    return records(views, make, images, "ID/EXPRESSION/params.json")
