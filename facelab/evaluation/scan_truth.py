"""Pictures of one scanned head with its truth: what data_scripts/build_scan_set.py makes."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate as resize

from facelab.evaluation.photo_truth import Records
from facelab.geometry.camera import PerspectiveCamera
from facelab.model.records import FaceRecord, Mesh
from facelab.rendering import rasterizer
from facelab.rendering.gbuffer import region_mask
from facelab.support.errors import ModelFileError
from facelab.support.files import guarded, read_tensors

SCAN_FILE = "scan.safetensors"
SHAPES = {"vertices": (3,), "landmarks": (3,), "diffuse": (3,), "triangles": (3,), "face": ()}
VIEW = {
    "images": (3,), "rotation": (3, 3), "translation": (3,), "focal": (), "principal": (2,), "light": (9, 3),
    "light_direction": (3,),
}  # fmt: skip


def scan_records(place: Path, size: int) -> Records:
    """Records in pictures of size×size, of a folder or its scan.safetensors; their person is one.

    Raises ModelFileError for a file that is missing or is not what the script makes.
    """
    path = place / SCAN_FILE if place.is_dir() else place
    problem = f"The scan '{path}' is missing or damaged; make it with data_scripts/build_scan_set.py"
    with guarded(problem, ModelFileError):
        data = path.read_bytes()
    tensors = read_tensors(data, problem)
    with guarded(problem, ModelFileError):
        views = {len(tensors[name]) for name in VIEW}
        shaped = all(tensors[n].shape[1 : 1 + len(inner)] == inner for n, inner in (SHAPES | VIEW).items())
        finite = all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
        faces, corners = tensors["triangles"], len(tensors["vertices"])
        known = bool(((faces >= 0) & (faces < corners)).all()) and len(tensors["face"]) == len(faces)
        if len(views) > 1 or not (shaped and finite and known) or len(tensors["landmarks"]) != 68:
            raise ModelFileError(f"{problem}: shapes or numbers are not those of a scan.")
    return Records(views.pop(), lambda i: _record(tensors, i, size))


def _record(tensors: dict[str, Tensor], i: int, size: int) -> FaceRecord:
    image = tensors["images"][i].float() / 255
    scale = size / image.shape[-1]
    if scale != 1:
        image = resize(image[None], (size, size), mode="bilinear", antialias=True)[0]
    camera = PerspectiveCamera(*(tensors[n][i] for n in ("rotation", "translation", "focal", "principal")))
    camera = camera.rescaled(scale, torch.zeros(2))
    vertices, triangles = tensors["vertices"], tensors["triangles"]
    screen = camera.project(vertices)
    face_index = rasterizer.rasterize(screen, triangles, size, size)
    seen = region_mask(face_index, tensors["face"].byte(), (1,))
    _, depth = rasterizer.interpolate(screen, triangles, face_index, vertices)
    return FaceRecord(
        f"scan_{i:04d}",
        image,
        camera.project(tensors["landmarks"])[:, :2],
        seen,
        Mesh(vertices, triangles, tensors["landmarks"], "scan"),
        camera,
        tensors["diffuse"],
        tensors["light"][i],
        tensors["light_direction"][i],
        depth * seen,
        person="scan",
    )
