"""The scoreboard's columns: what is measured of a reconstruction where a record knows the truth.

    METRICS["geometry_mm"](record, reconstruction)      # 1.7, or None where one of them does not say enough

Formulas are in `metrics`; here is which pixels and vertices they are given.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import roma
import torch
from torch import Tensor

from facelab.evaluation import metrics
from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.model.records import FaceRecord, Mesh, Reconstruction
from facelab.photos import landmark_mask
from facelab.recognition.networks import SFaceRecogniser, composite
from facelab.rendering import rasterizer
from facelab.rendering.illumination import shading_coefficients
from facelab.rendering.image_formation import render_attributes

FACE_RADIUS_MM = 95.0
"""What counts as the face: this far from the nose tip (GANFIT, Sec. 4.3)."""
UNDIRECTED = 0.1
"""Light whose first-order coefficients are below this share of its constant one comes from nowhere."""
Known = Any
"""A record or a reconstruction whose fields that a measure needs are not None."""


@dataclass(frozen=True)
class Metric:
    """One column. Called with a record and a reconstruction; None where either does not say enough."""

    name: str
    unit: str
    meaning: str
    needs: str
    """what must be known of the record; "vertices" where those of both meshes must correspond"""
    says: str
    """what the method must have estimated, of all that it may leave out"""
    measure: Callable[[Known, Known], Tensor | None] = field(repr=False)
    higher_is_better: bool = False

    def __call__(self, record: FaceRecord, said: Reconstruction) -> float | None:
        needs = self.needs.split()
        if any(getattr(record, name) is None for name in needs if name != "vertices"):
            return None
        if any(getattr(said, name) is None for name in self.says.split()):
            return None
        if "vertices" in needs and not (record.mesh and correspond(record.mesh, said.mesh)):
            return None
        value = self.measure(record, said)
        return None if value is None else float(value)


def correspond(a: Mesh, b: Mesh) -> bool:
    """Whether vertex i is the same point of the face in both meshes."""
    return a.topology is not None and a.topology == b.topology and a.vertices.shape == b.vertices.shape


@lru_cache(maxsize=8)  # the same meshes are asked for by several measures
def surface(mesh: Mesh) -> tuple[Tensor, Tensor]:
    """(vertices, triangles) of what can be seen from in front, the sides, above or below.

    Meshes have insides, too, of mouth and sockets (half the triangles of ICT-FaceKit's), that no scan has.
    """
    size, views = 320, [[0.0, yaw, 0.0] for yaw in (-1, -0.5, 0, 0.5, 1)] + [[-0.5, 0, 0], [0.5, 0, 0]]
    tip = mesh.vertices.mean(0) if mesh.landmarks is None else mesh.landmarks[30]
    camera = WeakPerspectiveCamera.frontal(size / 230, size, size).look(torch.tensor(views))
    centred = mesh.vertices.cpu().float() - tip.cpu() + torch.tensor([0.0, 0.0, 50.0])
    seen = rasterizer.rasterize(camera.project(centred), mesh.triangles.cpu(), size, size)
    return mesh.vertices, mesh.triangles[seen[seen >= 0].unique()]


@lru_cache(maxsize=8)
def face_vertices(mesh: Mesh) -> Tensor:
    """Which vertices (V,) bool count as the face: those of the visible surface around the nose tip."""
    vertices, triangles = surface(mesh)
    chosen = torch.zeros(len(vertices), dtype=torch.bool)
    chosen[triangles] = True
    if mesh.landmarks is not None:
        chosen &= (vertices - mesh.landmarks[30]).norm(dim=1) < FACE_RADIUS_MM
    return chosen


def picture_mask(record: FaceRecord) -> Tensor | None:
    """The pixels (1, H, W) whose colours are compared: the landmarks' hull without the mouth, where seen.

    InverseFaceNet's input mask (Kim et al. 2018, Sec. 6.1); without landmarks, the record's whole mask.
    """
    if record.landmarks is None:
        return record.mask
    height, width = record.image.shape[-2:]
    hull = landmark_mask(record.landmarks, height, width, mouth_hole=True)
    return hull if record.mask is None else hull & record.mask


def _geometry(record: Known, said: Known, align: Any) -> Tensor:
    face = face_vertices(record.mesh)
    return metrics.geometry_rmse_mm(said.mesh.vertices, record.mesh.vertices, align, face)


def _posed(record: Known, said: Known) -> Tensor:
    estimate, truth = (side.mesh.vertices @ side.camera.rotation.mT for side in (said, record))
    return metrics.posed_distance_mm(estimate, truth, face_vertices(record.mesh))


def _icp(record: Known, said: Known) -> Tensor | None:
    a, b = said.mesh.landmarks, record.mesh.landmarks
    if a is None or b is None:
        return None
    return metrics.icp_distance_mm(surface(said.mesh), surface(record.mesh), (a[17:], b[17:]), b[30])


def _depth(record: Known, said: Known, which: int) -> Tensor:
    estimate, mask = said.mesh, torch.isfinite(record.depth) & (record.depth > 0)
    depth = said.camera.project(estimate.vertices)[:, 2:]
    size = record.image.shape[-2:]
    drawn, covered = render_attributes(estimate.vertices, estimate.triangles, said.camera, depth, *size)
    mask = mask & covered if record.mask is None else mask & covered & record.mask
    return metrics.depth_errors_mm(drawn, record.depth, mask)[which]


def _pose(record: Known, said: Known) -> Tensor | None:
    """Models of other people have another idea of a head that looks straight on: landmarks undo it."""
    estimate = said.camera.rotation
    if not correspond(record.mesh, said.mesh):
        a, b = said.mesh.landmarks, record.mesh.landmarks
        if a is None or b is None:
            return None
        estimate = estimate @ roma.rigid_points_registration(a[17:], b[17:])[0].mT
    return metrics.pose_error_degrees(estimate, record.camera.rotation)


def _inner_mouth(record: Known, said: Known) -> Tensor | None:
    a, b = said.mesh.landmarks, record.mesh.landmarks
    return None if a is None or b is None else metrics.inner_mouth_error_mm(a, b)


def _nme(record: Known, said: Known, points: slice) -> Tensor:
    return 100 * metrics.nme(said.landmarks, record.landmarks, points=points)


def _colours(record: Known, said: Known, distance: Callable[..., Tensor]) -> Tensor | None:
    mask = picture_mask(record)
    return None if mask is None else distance(said.image, record.image, mask)


def _albedo(record: Known, said: Known) -> Tensor:
    face = face_vertices(record.mesh)
    return metrics.scale_free_error(said.diffuse[face], record.diffuse[face])


def _light_degrees(record: Known, said: Known) -> Tensor | None:
    truth = record.light_direction
    if record.light is not None:  # then both directions are found in the same way
        first, constant = metrics.light_direction(record.light), record.light[0].mean()
        if first.norm() < UNDIRECTED * constant.abs():
            return None
        truth = metrics.seen_light_direction(record.light)
    estimate = metrics.seen_light_direction(shading_coefficients(said.light))
    return metrics.direction_error_degrees(estimate, truth)


@cache
def _judge() -> SFaceRecogniser:
    return SFaceRecogniser()


@torch.no_grad()
def _identity(record: Known, said: Known) -> Tensor:
    points = said.landmarks if record.landmarks is None else record.landmarks
    pictures = torch.stack([record.image, composite(said.image, said.mask, record.image)])
    a, b = _judge().embed(pictures, points.expand(2, -1, -1))
    return _judge().similarity(a, b)


_COLUMNS = (
    Metric("geometry_mm", "mm", "RMSE of corresponding vertices, rigidly aligned", "mesh vertices", "",
           lambda record, said: _geometry(record, said, "rigid")),
    Metric("geometry_scaled_mm", "mm", "the same, size forgiven too", "mesh vertices", "",
           lambda record, said: _geometry(record, said, "similarity")),
    Metric("geometry_posed_mm", "mm", "MoFA: mean distance, pose counts; place and size forgiven",
           "mesh vertices camera", "", _posed),
    Metric("icp_mm", "mm", "GANFIT: symmetric point-to-plane after ICP with scale; flatters", "mesh", "",
           _icp),
    Metric("depth_mm", "mm", "CoarseNet: mean depth error, distance forgiven", "depth", "",
           lambda record, said: _depth(record, said, 0)),
    Metric("depth_p90_mm", "mm", "CoarseNet: its 90th percentile", "depth", "",
           lambda record, said: _depth(record, said, 1)),
    Metric("inner_mouth_mm", "mm", "Deng et al.: inner mouth landmarks in 3D", "mesh", "", _inner_mouth),
    Metric("pose_degrees", "°", "angle between the rotations of the head", "mesh camera", "", _pose),
    Metric("landmarks_px", "px", "MoFA: mean distance of the 68 projected landmarks", "landmarks", "",
           lambda record, said: metrics.landmark_error_px(said.landmarks, record.landmarks)),
    Metric("nme_percent", "%", "the same over the diagonal of their box", "landmarks", "",
           lambda record, said: _nme(record, said, slice(None))),
    Metric("nme_inner_percent", "%", "without the jaw", "landmarks", "",
           lambda record, said: _nme(record, said, metrics.INNER_LANDMARKS)),
    Metric("nme_mouth_percent", "%", "the inner mouth only", "landmarks", "",
           lambda record, said: _nme(record, said, metrics.INNER_MOUTH)),
    Metric("mask_iou_percent", "%", "InverseFaceNet: overlap of the masks", "mask", "mask",
           lambda record, said: 100 * metrics.mask_iou(said.mask, record.mask), higher_is_better=True),
    Metric("photometric_rmse", "of 255", "InverseFaceNet: RMSE of colours", "", "image",
           lambda record, said: _colours(record, said, metrics.photometric_rmse)),
    Metric("colour_distance", "of √3", "MoFA: mean distance of colours", "", "image",
           lambda record, said: _colours(record, said, metrics.colour_distance)),
    Metric("albedo", "relative", "skin up to a common scale per channel", "mesh vertices diffuse", "diffuse",
           _albedo),
    Metric("light", "relative", "light up to a common scale per channel", "light", "light",
           lambda record, said: metrics.scale_free_error(shading_coefficients(said.light), record.light)),
    Metric("light_degrees", "°", "direction that most light comes from", "light_direction", "light",
           _light_degrees),
    Metric("identity", "cosine", "same person? SFace, over the photo", "", "image mask", _identity,
           higher_is_better=True),
)  # fmt: skip
METRICS = {metric.name: metric for metric in _COLUMNS}
