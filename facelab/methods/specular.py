"""Expressions and specular albedos (Deng et al., ACM MM 2022): skin's colour and its shine, told apart.

    said = Specular.load(path).reconstruct(load_photo("me.jpg"))
    face = decode(model, theta, size)                       # a Face with a Blinn-Phong light
    drawn = draw_parts(face, face.surface(model), size)     # the diffuse picture, and both together
    terms = loss_terms(model, theta, batch, recogniser)     # Eqs. 6 to 13

One network says all of it from one picture, and learns from photographs alone: what it says is drawn, and six
losses look at the drawing. Equation numbers are the paper's; what is read otherwise than printed says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from facelab import losses
from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.base import load_trained
from facelab.methods.mofa import face_square
from facelab.model.face import Face, Surface
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.networks import Regressor, encoder
from facelab.photos import LandmarkDetector, check_image
from facelab.recognition.networks import FaceRecogniser, composite
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.gbuffer import rasterize_surface
from facelab.rendering.illumination import SH_CONSTANTS, BlinnPhongLight
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line

SIDE = 224  # px, of the paper's pictures; lengths and areas of the losses are in pixels of such a picture
BOX_SHARE = 0.6  # of the picture, that the landmarks of the zero vector fill
UP = 0.06  # by how much of the picture their middle lies below the picture's: more forehead than neck
AMBIENT = 0.7  # shading of the zero vector
LAMP = (0.0, 400.0, 900.0)  # mm from the head to the point light of the zero vector
SHININESS = 12.0  # of the zero vector
UNITS = {
    "identity": 1.0, "expression": 1.0, "albedo": 1.0, "rotation": 0.3, "translation": 0.05, "scale": 0.15,
    "light": 0.3, "lamp": 300.0, "shininess": 0.5,
}  # fmt: skip
"""What 1 means: standard deviations, radians, picture sides, the scale's logarithm, shading, mm, and again a
logarithm."""

INNER_LIPS = range(60, 68)
HEAVY = [*range(17, 27), *range(48, 60)]  # Sec. 4.1.3: brows and the outer mouth


@dataclass(frozen=True)
class Weights:
    """The printed weights of Eq. 6, μ of Eq. 10 and η of Eq. 8, whose value is not printed.

    They are printed for lengths and areas in pixels of a 224 px picture, colours in [0, 1] and coefficients
    in standard deviations, and keep their meaning here.
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


def layout(model: MorphableModel) -> ParameterLayout:
    """What the network says: Sec. 3. One albedo vector for both albedos (Eq. 2); the camera's seventh number,
    t_z, moves nothing in weak perspective and is left out."""
    counts = (len(model.identity_basis), len(model.expression_basis), len(model.albedo_basis))
    identity, expression, albedo = counts
    return ParameterLayout(
        identity=identity, expression=expression, albedo=albedo, rotation=3, translation=2, scale=1, light=27,
        lamp=3, shininess=1,
    )  # fmt: skip


def decode(model: MorphableModel, theta: Tensor, size: int = SIDE) -> Face:
    """The faces of vectors (..., layout.size) in pictures of size×size px (Eqs. 1 to 5).

    Zero is the mean face in the middle of the picture, from the front, in white light from everywhere, with a
    lamp above the camera. Raises ParameterError for a wrong length.
    """
    parts = {name: UNITS[name] * part for name, part in layout(model).split(theta).items()}
    points = model.landmarks(model.mean)[:, :2]
    low, high = points.amin(0), points.amax(0)
    scale = BOX_SHARE * size / (high - low).max()
    middle = scale * (low + high) / 2 * points.new_tensor([1.0, -1.0])
    start = points.new_tensor([0.5, 0.5 + UP]) * size - middle
    camera = WeakPerspectiveCamera(
        euler_to_matrix(parts["rotation"]),
        scale * parts["scale"][..., 0].exp(),
        start + size * parts["translation"],
    )
    white = theta.new_zeros(9, 3)
    white[0] = AMBIENT
    light = (parts["light"].unflatten(-1, (9, 3)) + white) / SH_CONSTANTS[0]
    head = theta.new_tensor([0.0, 0.0, -camera.depth])
    shine = BlinnPhongLight(
        light,
        head + theta.new_tensor(LAMP) + parts["lamp"],
        theta.new_ones(*theta.shape[:-1], 3),
        (SHININESS * parts["shininess"].clamp(-2, 3).exp())[..., 0].clamp(min=1.0),
        normalised=False,  # Eq. 5 as printed
    )
    return Face(parts["identity"], parts["expression"], parts["albedo"], camera, shine)


@one_line
@dataclass(frozen=True)
class Drawn:
    """The two pictures of Sec. 4.1.2, sRGB (..., 3, S, S), black where there is no face."""

    diffuse: Tensor
    """I_r_diffuse"""
    both: Tensor
    """I_r_diffuse + I_r_specular; they are added as light, before the encoding"""
    mask: Tensor
    """(..., 1, S, S) bool"""
    lit: Tensor
    """(..., 3, S, S) linear: the lit diffuse albedo, T of Eq. 13"""


def draw_parts(face: Face, surface: Surface, size: int = SIDE) -> Drawn:
    """Both pictures of faces with a Blinn-Phong light: Eqs. 4 and 5 at every pixel.

    Eq. 2 takes the power 1/2.2 of the sum of the albedos, to which light is then applied; here light falls on
    linear albedos, and the sum is encoded as sRGB, whose curve that power approximates.
    """
    attributes = torch.cat([surface.diffuse, surface.specular[..., None]], -1)
    maps = rasterize_surface(surface.vertices, surface.triangles, face.camera, attributes, size, size)
    normals, points, albedo = (
        part.flatten(-2).mT for part in (maps.normals, maps.positions, maps.attributes)
    )
    diffuse, f0 = albedo[..., :3], albedo[..., 3]
    assert face.light is not None
    shading = face.light.shade(normals, points, face.camera.view_directions(points), diffuse, f0)
    lit, shine = (
        torch.where(maps.mask, part.mT.unflatten(-1, (size, size)), 0.0)
        for part in (diffuse * shading.diffuse_shading, shading.specular_radiance)
    )
    return Drawn(linear_to_srgb(lit), linear_to_srgb(lit + shine), maps.mask, lit)


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


def identity_loss(drawn: Drawn, batch: Batch, recogniser: FaceRecogniser) -> Tensor:
    """Eq. 7 (B,), of the photograph and of the drawing over it, so that the background says nothing.

    Both are cut out by the photograph's landmarks: the network cannot gain by moving the cut.
    """
    image = composite(drawn.both.clamp(0, 1), drawn.mask, batch.images)
    with torch.no_grad():
        wanted = recogniser.embed(batch.images, batch.landmarks)
    return losses.identity(recogniser.embed(image, batch.landmarks), wanted, recogniser.mean_embedding)


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
    importance = theta.new_ones(68)
    importance[HEAVY] = weights.heavy
    terms = {
        "photo": photometric_loss(drawn, batch, weights.eta),
        "landmark": losses.landmark(points, batch.landmarks, importance, unit, "l2,1") / 68,
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


def make_network(kind: str, model: MorphableModel, pretrained: str | Path | None = None) -> Regressor:
    """Untrained: (B, 3, S, S) in [0, 1] -> vectors (B, layout.size), zero at first. See `networks.encoder`.

    The paper's is "resnet50".
    """
    own = layout(model)
    return Regressor(encoder(kind, own.size, "zero", pretrained), own, torch.ones(own.size))


class Specular:
    """A trained network as a method: picture in, `Reconstruction` with both albedos out.

    `framed`: pictures are squares with the face framed as in training, and no detector is asked.
    """

    name = "specular"

    def __init__(
        self,
        network: nn.Module,
        side: int,
        model: MorphableModel | None = None,
        framed: bool = False,
        detector: LandmarkDetector | None = None,
    ) -> None:
        self.network, self.side, self.framed, self.detector = network.eval(), side, framed, detector
        self.model = model or MorphableModel.load()

    @classmethod
    def load(cls, path: str | Path = "specular", framed: bool = False, **options: Any) -> "Specular":
        """From a checkpoint. Raises ModelFileError if it is not what it says."""
        coarse = MorphableModel.load(subdivisions=0)
        network, card = load_trained(
            path, "train_specular.py", lambda card: make_network(card["kind"], coarse)
        )
        return cls(network, card["side"], framed=framed, **options)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Reconstruction:
        """The face in a (3, H, W) sRGB picture. Raises NoFaceError and what `check_image` raises, and
        ParameterError for a framed picture that is not square."""
        check_image(image)
        height, width = image.shape[1:]
        if self.framed and height != width:
            raise ParameterError(f"A framed picture is square, not {width}×{height}; use framed=False.")
        crop = None if self.framed else face_square(image, self.detector)
        picture = (image if crop is None else crop.image)[None]
        small = interpolate(picture, (self.side, self.side), mode="bilinear", antialias=True)
        theta = self.network(small)
        layout(self.model).check(theta)
        face = decode(self.model, theta[0], picture.shape[-1])
        return Reconstruction.of(face if crop is None else face.in_photo(crop), self.model, height, width)
