"""The losses of the 2022 network (Deng et al., Sec. 4.1): Eqs. 6 to 13.

    terms = loss_terms(model, theta, batch, recogniser)     # of what a network says of a batch of photographs

What is read otherwise than printed says so; `as_printed=True` is the other reading.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from facelab import losses
from facelab.methods.specular import SIDE, Drawn, decode, draw_parts
from facelab.model.face import Face, Surface
from facelab.model.morphable_model import MorphableModel
from facelab.recognition.networks import FaceRecogniser, composite
from facelab.rendering.illumination import SH_CONSTANTS
from facelab.support.tensors import one_line

INNER_LIPS = range(60, 68)
HEAVY = [*range(17, 27), *range(48, 60)]  # Sec. 4.1.3: brows and the outer mouth


@dataclass(frozen=True)
class Weights:
    """The printed weights of Eq. 6, μ of Eq. 10 and η of Eq. 8, whose value is not printed.

    They are printed for lengths and areas in pixels of a 224 px picture, colours in [0, 1] and coefficients
    in standard deviations, and keep their meaning here. The landmarks' goes with squares of lengths (see
    `landmark_loss`).
    """

    identity: float = 0.2
    photo: float = 1.92
    landmark: float = 1.8e-3
    mouth: float = 1.3e-3
    prior: float = 5e-4
    uniform: float = 5.0
    heavy: float = 20.0
    eta: float = 1.0


@one_line
@dataclass(frozen=True)
class Batch:
    """What is known of B photographs (B, 3, S, S) sRGB before the training: labels, found once."""

    images: Tensor
    landmarks: Tensor
    """(B, 68, 2) px"""
    skin: Tensor
    """(B, 1, S, S) in [0, 1]: C_skin of Eq. 9, 0 where the face is covered or there is none"""
    mouth: Tensor | None = None
    """(B,) px: A of Eq. 11, the area between the lips in a segmentation; None: inside their landmarks"""
    recognised: int | None = None
    """of how many pictures, from the first, the identity loss is found: the others get its mean; None: all"""


def mouth_loss(model: MorphableModel, face: Face, surface: Surface, batch: Batch) -> Tensor:
    """Eq. 11 (B,), in px of the batch's pictures: |A - A^p|.

    The mesh that closes the mouth reaches further in than the landmarks on the lips: where A is inside the
    landmarks, so is A^p.
    """
    if batch.mouth is None:
        said = face.camera.project(surface.landmarks[..., INNER_LIPS, :])[..., :2]
        return (polygon_area(said) - polygon_area(batch.landmarks[..., INNER_LIPS, :])).abs()
    screen = face.camera.project(surface.vertices)[..., :2]
    return (mouth_opening(screen, model.mouth_cap) - batch.mouth).abs()


def mouth_opening(points: Tensor, triangles: Tensor) -> Tensor:
    """A^p of Eq. 11: the area (...) in px of the mesh that closes the mouth, of points (..., V, 2) px.

    The sum of its triangles' areas that face the camera: smooth, where counting pixels is not. y is down, so
    that a triangle that is counter-clockwise from the front is clockwise here.
    """
    a, b, c = (points[..., triangles[:, k], :] for k in range(3))
    ab, ac = b - a, c - a
    return ((ab[..., 1] * ac[..., 0] - ab[..., 0] * ac[..., 1]) / 2).clamp(min=0).sum(-1)


def polygon_area(points: Tensor) -> Tensor:
    """The area (...) in px of a polygon (..., N, 2): A of Eq. 11 from the landmarks of the inner lips."""
    following = points.roll(-1, -2)
    return (points[..., 0] * following[..., 1] - points[..., 1] * following[..., 0]).sum(-1).abs() / 2


def photometric_loss(drawn: Drawn, batch: Batch, eta: float) -> Tensor:
    """Eq. 8 (B,): the diffuse picture where skin is skin, and η times both wherever the face is seen.

    M is where the face is drawn and the photograph shows one (`skin` above 0). A highlight has a low weight
    in the first term and a full one in the second, which only the specular albedo can then explain.
    """
    seen, skin = batch.images.flatten(-2).mT, (batch.skin * drawn.mask).flatten(-3)
    matt = losses.photometric(drawn.diffuse.flatten(-2).mT, seen, skin)
    shiny = losses.photometric(drawn.both.flatten(-2).mT, seen, (skin > 0).to(seen))
    return matt + eta * shiny


def uniform_loss(drawn: Drawn, face: Face, as_printed: bool = False) -> Tensor:
    """Eq. 13 (B,): lit diffuse colours near their mean, and the light's colours near grey.

    As printed both terms are sums of signed differences from a mean, which are zero whatever the face. The
    text wants the "variance" of the colours penalised: here differences are squared.
    """
    colours, mask = drawn.lit.flatten(-2).mT, drawn.mask.flatten(-3)[..., None].to(drawn.lit)
    count = mask.sum(-2, keepdim=True).clamp(min=1)
    away = mask * (colours - (mask * colours).sum(-2, keepdim=True) / count)
    coefficients = SH_CONSTANTS[0] * face.light.coefficients  # type: ignore[union-attr]
    tint = coefficients - coefficients.mean(-1, keepdim=True)
    if as_printed:
        return away.sum((-2, -1)) / count[..., 0, 0] + tint.sum((-2, -1))
    return losses.lengths(away, "l2").sum(-1) / count[..., 0, 0] + losses.lengths(tint, "l2").sum(-1)


def landmark_loss(points: Tensor, batch: Batch, weights: Weights, as_printed: bool = False) -> Tensor:
    """Eq. 10 (B,), of projected landmarks (B, 68, 2) px, with squares of lengths of a `SIDE` px picture.

    Printed are the lengths themselves. But the printed weight, like those of Eqs. 7, 8 and 13, is nearly that
    of Deng, Yang et al. 2019 ("[7]": 1.6e-3), whose loss is a mean of squares; with lengths,
    all landmarks a pixel off weigh no more than colours that are off by 0.003, however far the face is away.
    """
    importance = points.new_ones(68)
    importance[HEAVY] = weights.heavy
    unit, norm = batch.images.shape[-1] / SIDE, "l2,1" if as_printed else "l2"
    return losses.landmark(points, batch.landmarks, importance, unit, norm) / 68  # type: ignore[arg-type]


def identity_loss(drawn: Drawn, batch: Batch, recogniser: FaceRecogniser) -> Tensor:
    """Eq. 7 (B,), of the photograph and of the drawing over it, so that the background says nothing.

    Both are cut out by the photograph's landmarks: the network cannot gain by moving the cut.
    """
    some = slice(batch.recognised)
    images, landmarks = batch.images[some], batch.landmarks[some]
    drawings = composite(drawn.both[some].clamp(0, 1), drawn.mask[some], images)
    with torch.no_grad():
        wanted = recogniser.embed(images, landmarks)
    found = losses.identity(recogniser.embed(drawings, landmarks), wanted, recogniser.mean_embedding)
    return torch.cat([found, found.mean().expand(len(batch.images) - len(found))])


def loss_terms(
    model: MorphableModel,
    theta: Tensor,
    batch: Batch,
    recogniser: FaceRecogniser | None = None,
    weights: Weights | None = None,
    mouth: bool = True,
) -> dict[str, Tensor]:
    """Eq. 6 per picture: {"identity", "photo", "landmark", "mouth", "prior", "uniform", "total"}, each (B,).

    Args:
        theta: (B, layout.size). batch: photographs of any size, with their labels.
        recogniser: None leaves out the identity loss.
        mouth: the paper adds this loss after 50,000 steps, when the rest is stable.

    A weight of 0 leaves a loss out of the total. Raises ParameterError for a theta of a wrong length, with
    NaN or infinity.
    """
    weights, size = weights or Weights(), batch.images.shape[-1]
    face = decode(model, theta, size)
    surface = face.surface(model)
    drawn, unit = draw_parts(face, surface, size), size / SIDE
    points = face.camera.project(surface.landmarks)[..., :2]
    terms = {
        "photo": photometric_loss(drawn, batch, weights.eta),
        "landmark": landmark_loss(points, batch, weights),
        "mouth": mouth_loss(model, face, surface, batch) / unit**2,
        "prior": losses.prior(torch.cat([face.identity, face.albedo, face.expression], -1)),
        "uniform": uniform_loss(drawn, face),
    }
    if recogniser is not None:
        terms["identity"] = identity_loss(drawn, batch, recogniser)
    used = {name: getattr(weights, name) for name in terms} | ({} if mouth else {"mouth": 0.0})
    parts = [weight * terms[name] for name, weight in used.items() if weight]
    total = torch.stack(parts).sum(0) if parts else theta.new_zeros(len(theta))
    return terms | {"total": total}
