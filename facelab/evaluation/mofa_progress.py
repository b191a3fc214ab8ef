"""How a training of MoFA is watched: Figure 10's errors on held-out truth, and signs that it goes wrong."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from facelab.evaluation import metrics
from facelab.methods.mofa import LANDMARKS, LAYOUT, Decoder, Z, loss_terms
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.illumination import shading_coefficients
from facelab.support.tensors import constant
from facelab.synthetic.distributions import DISTRIBUTIONS

MIRROR = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), *range(45, 41, -1), 
          47, 46, *range(39, 35, -1), 41, 40, *range(54, 47, -1), *range(59, 54, -1),
          *range(64, 59, -1), 67, 66, 65]  # fmt: skip
"""Which landmark is where each of the 68 was, in a mirror."""


def mirrored(images: Tensor, landmarks: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S) and landmarks (B, 68, 2) px, those of `which` (B,) bool seen in a mirror."""
    other = landmarks.index_select(1, constant(landmarks, *MIRROR, dtype=torch.int64))
    other = other * constant(landmarks, -1.0, 1.0) + constant(landmarks, float(images.shape[-1]), 0.0)
    flipped = torch.where(which[:, None, None, None], images.flip(-1), images)
    return flipped, torch.where(which[:, None, None], other, landmarks)


def beginners_code(progress: float) -> Tensor:
    """(257,) of 0 and 1: which parameters are free at `progress` in [0, 1] of a training without landmarks.

    From the average face, colours alone find the pose only while nothing else can explain them: in the
    first half shape, expression and distance stay average, three components of reflectance and light of
    first order do the rest. Not in the paper, whose encoders knew faces before they started.
    """
    free = torch.ones(LAYOUT.size)
    if progress < 0.5:
        free[LAYOUT.slice("shape")] = free[LAYOUT.slice("expression")] = 0
        free[Z] = 0
        free[LAYOUT.slice("reflectance")][3:] = free[LAYOUT.slice("light")][12:] = 0
    return free


@torch.no_grad()
def evaluate(
    decoder: Decoder, encoder: nn.Module, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Figure 10's errors on batches of a "portrait" corpus, whose truth the training never sees.

    "geometry_mm": see `metrics.posed_distance_mm`. "photometric": mean distance in sRGB, channels in [0, 1],
    over the visible vertices. "landmarks_px": mean distance of the 46 landmarks, at 240 px. And
    "pose_degrees".
    """
    full = MorphableModel.load(subdivisions=0, device=decoder.start.device)
    sums: dict[str, list[Tensor]] = {}
    for batch in batches:
        images, size = batch["image"].to(decoder.start), batch["image"].shape[-1]
        code = encoder(images)
        known = DISTRIBUTIONS["portrait"].decode(full, batch["parameters"].to(images), size)
        said = decoder.face(code, size)
        rotation, truth = said.camera.rotation, known.camera.rotation
        vertices, true_vertices = said.surface(decoder.model).vertices, known.surface(full).vertices
        marks = decoder.landmarks(code, size) - known.landmarks(full)[:, list(LANDMARKS)]
        values = {
            "geometry_mm": metrics.posed_distance_mm(vertices @ rotation.mT, true_vertices @ truth.mT),
            "photometric": loss_terms(decoder, code, images)["photo"],
            "landmarks_px": marks.norm(dim=-1).mean(-1) * 240 / size,
            "pose_degrees": metrics.pose_error_degrees(rotation, truth),
        }
        for name, value in values.items():
            sums.setdefault(name, []).append(value)
    return {name: float(torch.cat(value).mean()) for name, value in sums.items()}


@torch.no_grad()
def warning_signs(decoder: Decoder, code: Tensor) -> dict[str, float]:
    """Numbers that show how training goes wrong, from the codes (B, 257) of B >= 2 different pictures.

    - `shape_spread`, `expression_spread`: standard deviation between pictures, root mean square over the
      first ten components, in the model's: towards 0 everybody gets one face (collapse to the mean).
    - `outside`: share of visible vertices beyond the picture's border (the face is leaving).
    - `size`: of the faces in the picture over that of the zero code, on average (towards 0 they shrink
      into the skin, where every colour fits).
    - `turned`: share of faces that look away by more than 60 degrees (a cheek fits anything);
      `drift_degrees`: how far they look away on average, all to the same side.
    - `skin_spread`: spread of log mean albedo over that of the model's people: towards 0 the light explains
      who has dark skin. `light_spread`: the same of log mean shading, absolute.
    """
    face, picture = decoder.face(code, 1), decoder(code, 1)
    visible = picture.visible & decoder.used
    beyond = ((picture.screen[..., :2] - 0.5).abs() > 0.5).any(-1)
    facing = face.camera.rotation[:, :, 2]  # (B, 3) where the faces look, camera space
    marks = decoder.landmarks(torch.cat([torch.zeros_like(code[:1]), code]), 1)
    extent = (marks - marks.mean(1, keepdim=True)).norm(dim=-1).mean(1)

    def log_skin(reflectance: Tensor) -> Tensor:
        diffuse, _ = decoder.model.albedo(reflectance)
        return diffuse[:, decoder.used].mean((1, 2)).log()

    people = decoder.model.sample(256, torch.Generator().manual_seed(0))["albedo"]
    ambient = shading_coefficients(face.light)[:, 0].mean(-1).clamp(min=1e-3).log()
    return {
        "shape_spread": float(face.identity[:, :10].std(0).square().mean().sqrt()),
        "expression_spread": float(face.expression[:, :10].std(0).square().mean().sqrt()),
        "outside": float((visible & beyond).sum() / visible.sum().clamp(min=1)),
        "size": float(extent[1:].mean() / extent[0]),
        "turned": float((facing[:, 2] < 0.5).float().mean()),
        "drift_degrees": float(torch.atan2(facing.mean(0)[:2].norm(), facing.mean(0)[2]).rad2deg()),
        "skin_spread": float(log_skin(face.albedo).std() / log_skin(people).std()),
        "light_spread": float(ambient.std()),
    }


LIMITS: Mapping[str, tuple[float, float, str]] = {
    "shape_spread": (0.05, 9, "all faces get one shape: lower w_reg, train longer or faster"),
    "expression_spread": (0.05, 9, "all faces get one expression: lower w_reg, train longer or faster"),
    "outside": (-1, 0.2, "faces leave the picture: lower the translation's learning rate, use landmarks"),
    "size": (0.8, 1.25, "faces shrink (or grow): lower the learning rate of z, use landmarks"),
    "turned": (-1, 0.1, "faces turn away: lower the rotation's learning rate, use landmarks"),
    "drift_degrees": (-1, 15, "faces turn away together: lower the rotation's learning rate, use landmarks"),
    "skin_spread": (0.25, 4, "light explains the skin (or skin the light): lower w_beta (or raise it)"),
}
"""Lowest and highest credible value of a warning sign, and what lies beyond."""


def complaints(signs: Mapping[str, float]) -> list[str]:
    """A sentence for each of `warning_signs` that is not credible."""
    return [
        f"{name} is {signs[name]:.2f}: {advice}."
        for name, (low, high, advice) in LIMITS.items()
        if not low <= signs[name] <= high
    ]
