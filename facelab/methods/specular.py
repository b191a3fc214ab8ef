"""Expressions and specular albedos (Deng et al., ACM MM 2022): skin's colour and its shine, told apart.

    said = Specular.load(path).reconstruct(load_photo("me.jpg"))
    face = decode(model, theta, size)                       # a Face with a Blinn-Phong light
    drawn = draw_parts(face, face.surface(model), size)     # the diffuse picture, and both together
    terms = loss_terms(model, theta, batch, recogniser)     # Eqs. 6 to 13

One network says all of it from one picture, and learns from photographs alone: what it says is drawn, and six
losses look at the drawing (specular_losses.py). Equation numbers are the paper's; what is read otherwise than
printed says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.base import load_trained
from facelab.methods.mofa import face_square
from facelab.model.face import Face, Surface
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.networks import Regressor, encoder
from facelab.photos import LandmarkDetector, check_image, crop_face
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
LAMP_COLOUR = 3.0  # of every lamp; Eq. 5 has 1, with albedos that are no reflectances: see `decode`
UNITS = {
    "identity": 1.0, "expression": 1.0, "albedo": 1.0, "rotation": 0.3, "translation": 0.05, "scale": 0.15,
    "light": 0.3, "lamp": 300.0, "shininess": 0.5,
}  # fmt: skip
"""What 1 means: standard deviations, radians, picture sides, the scale's logarithm, shading, mm, and again a
logarithm."""


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

    All lamps have one colour, as in Eq. 5, but not 1: our specular albedo is a reflectance, 0.028 on average,
    and Eq. 5 has no factor that grows with the shininess, so that no highlight would be brighter than 0.04.
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
        theta.new_full((*theta.shape[:-1], 3), LAMP_COLOUR),
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


def make_network(
    kind: str, model: MorphableModel, pretrained: str | Path | None = None, border: float = 0.0
) -> Regressor:
    """Untrained: (B, 3, S, S) in [0, 1] -> vectors (B, layout.size), zero at first. See `networks.encoder`
    and, for the border that it does not see, `Regressor`.

    The paper's is "resnet50"; "slim" is MoFA's.
    """
    own = layout(model)
    network = encoder(kind, own.size, "zero", pretrained)
    return Regressor(network, own, torch.ones(own.size), border=border)


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
            path,
            "train_specular.py",
            lambda card: make_network(card["kind"], coarse, border=card.get("border", 0.0)),
        )
        return cls(network, card["side"], framed=framed, **options)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Reconstruction:
        """The face in a (3, H, W) sRGB picture; unless `framed` it is looked at twice, as MoFA's is.

        Raises NoFaceError and what `check_image` raises, and ParameterError for a framed picture that is not
        square.
        """
        check_image(image)
        height, width = image.shape[1:]
        if self.framed and height != width:
            raise ParameterError(f"A framed picture is square, not {width}×{height}; use framed=False.")
        if self.framed:
            return Reconstruction.of(self._look(image), self.model, height, width)
        first = face_square(image, self.detector)
        found = self._look(first.image).in_photo(first).landmarks(self.model)
        again = crop_face(image, found, first.image.shape[-1])
        return Reconstruction.of(self._look(again.image).in_photo(again), self.model, height, width)

    @torch.no_grad()
    def regress(self, images: Tensor) -> Tensor:
        """Vectors (B, layout.size) of framed pictures (B, 3, S, S). Raises ParameterError for NaN."""
        if images.shape[-1] != self.side:
            images = interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        theta = self.network(images)
        layout(self.model).check(theta)
        return theta

    def _look(self, picture: Tensor) -> Face:
        """The face in a framed picture (3, S, S), in its pixels."""
        return decode(self.model, self.regress(picture[None])[0], picture.shape[-1])


class FramedSpecular(Specular):
    """The same for pictures whose face is framed as in training, like the test sets': no face detector."""

    @classmethod
    def load(cls, path: str | Path = "specular", framed: bool = True, **options: Any) -> "Specular":
        """See `Specular.load`."""
        return super().load(path, framed, **options)
