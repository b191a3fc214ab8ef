"""MoFA: a face autoencoder whose decoder is a face model, trained without truth (Tewari et al. 2017).

    method = MoFA.load()
    said = method.reconstruct(load_photo("me.jpg"))          # needs a face detector's box, no landmarks

The encoder is a network that ends in 257 numbers; the decoder is `Decoder`, which has nothing to learn: it
turns the numbers into screen positions and colours of the face model's vertices. The loss compares these
colours with the picture that went in. Equation and section numbers are the paper's.

Colours: the paper's albedo, light and picture are RGB values of a camera. Our albedo and light are linear, so
the decoder's colours are encoded as sRGB before they are compared; errors are distances in sRGB, as theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, linear

from facelab import losses
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import vertex_normals
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.base import load_trained
from facelab.model.face import Face
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.model.records import Reconstruction
from facelab.networks import Regressor, Small, encoder, load_pretrained
from facelab.photos import Crop, LandmarkDetector, check_image, crop_face, find_face
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.illumination import SphericalHarmonicsLight
from facelab.rendering.image_formation import VertexPicture
from facelab.support.errors import ParameterError
from facelab.support.files import sha256_of
from facelab.support.tensors import constant
from facelab.synthetic.distributions import LIGHT_UNIT

LAYOUT = ParameterLayout(shape=80, expression=64, reflectance=80, rotation=3, translation=3, light=27)
"""x = (alpha, delta, beta, T, t, gamma), 257 numbers: Eq. 1. Face: standard deviations. Rotation: Euler
angles in radians. Translation: mm from the start. Light: with H_1 = 1, so that 1 is a shading of 1."""

UNITS = {"shape": 1.0, "expression": 1.0, "reflectance": 1.0,
         "rotation": 0.25, "translation": 20.0, "light": 0.3}  # fmt: skip
"""What an output of 1 of the network means: about one standard deviation."""

Z = LAYOUT.slice("translation").stop - 1  # the z-translation, which has a learning rate of its own
AMBIENT_OFFSET = 0.7
FILLED = 0.61  # of the picture, by the landmarks; "portrait" has 0.52 to 0.7
LOWER = 0.06  # picture widths, of their middle below the picture's
FOCAL = 3.5  # in picture widths, fixed: a head crop taken from about 0.9 m
FRONTAL = 0.3  # least z of the average face's normals: with the sides of the head, faces learn to look away
HIDDEN = ("interior", "teeth")  # face the camera but lie behind the lips

# 46 of the tracker's 66 landmarks, which are iBUG's 68 without the inner corners of the mouth (60 and 64).
# The paper does not list them. Left out: the jaw, which is no fixed point of the skin, and the upper three
# points of the nose's bridge, which a detector places only across it.
LANDMARKS = tuple(i for i in range(17, 68) if i not in (27, 28, 29, 60, 64))


def _framed(points: Tensor, focal: float) -> Tensor:
    """The translation (3,) mm with which landmarks (68, 3) fill `FILLED` of a picture, a little below its
    middle: as in the "portrait" distribution, with more forehead than neck."""
    low, high = points.amin(0), points.amax(0)
    place = -(low + high) / 2
    place[2] = -focal * (high - low)[:2].max() / FILLED
    for _ in range(20):  # a face is deep: what its box is in the picture depends on where the box's ends lie
        moved = points + place
        seen = focal * moved[:, :2] / -moved[:, 2:]
        low, high = seen.amin(0), seen.amax(0)
        centre = seen.new_tensor([0.0, -LOWER])
        place[:2] += ((centre - (low + high) / 2) * -place[2] / focal)[:2]
        place[2] *= (high - low).max() / FILLED
    return place


class Decoder:
    """Sections 4 and 5: a code (B, 257) -> per vertex a screen position and a colour. Nothing is learned.

    The zero code is the average face in the middle of the picture, in ambient light of 0.7. `model` None is
    the shipped one on its coarse mesh (2,572 vertices); its first 80, 64 and 80 components are used.
    Raises ParameterError for a model that has fewer.
    """

    def __init__(self, model: MorphableModel | None = None, focal: float = FOCAL) -> None:
        model = model or MorphableModel.load(subdivisions=0)
        sizes = LAYOUT.sizes
        self.model = model.truncate(sizes["shape"], sizes["expression"], sizes["reflectance"])
        self.focal = focal
        hidden = [self.model.region_vertices(name) for name in HIDDEN if name in self.model.regions]
        facing = vertex_normals(self.model.mean, self.model.triangles)[:, 2] > FRONTAL
        self.used = facing & ~torch.stack(hidden).any(0)
        """(V,) bool: vertices that are compared with the picture, its frontal part (Fig. 5)"""
        self.start = _framed(self.model.landmarks(self.model.mean), focal)
        """(3,) mm: translation of the zero code"""

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Decoder:
        """Move to a device or to another precision, in place as networks do."""
        self.model, self.used = self.model.to(device, dtype), self.used.to(device)
        self.start = self.start.to(device, dtype)
        return self

    def face(self, code: Tensor, size: int = 240) -> Face:
        """The faces that codes (..., 257) mean, with Section 7's offsets, in pictures of size×size.

        Raises ParameterError for a wrong length.
        """
        parts = LAYOUT.split(code)
        offset = code.new_zeros(9, 3)
        offset[0] = AMBIENT_OFFSET
        light = LIGHT_UNIT * (parts["light"].unflatten(-1, (9, 3)) + offset)
        camera = PerspectiveCamera(
            euler_to_matrix(parts["rotation"]),
            self.start.to(code) + parts["translation"],
            code.new_full((), self.focal * size),
            code.new_full((2,), size / 2),
        )
        shade = SphericalHarmonicsLight(light)
        return Face(parts["shape"], parts["expression"], parts["reflectance"], camera, shade)

    def __call__(self, code: Tensor, size: int = 240) -> VertexPicture:
        """F(x) of Eq. 5 for every vertex; screen in pixels of a size×size picture, colours linear."""
        face = self.face(code, size)
        return face.shade(face.surface(self.model))

    def landmarks(self, code: Tensor, size: int = 240) -> Tensor:
        """u_k of the 46 landmarks of the surrogate loss, (B, 46, 2) px."""
        return self.face(code, size).landmarks(self.model)[..., list(LANDMARKS), :]


# ------------------------------------------------------------------------------------------------- the loss


@dataclass(frozen=True)
class Weights:
    """The printed weights of Eqs. 7 and 10.

    Landmarks are measured in picture widths: in pixels the printed balance would leave the photometric term
    without any say (the sum of 46 squared distances of 3 px is 400, the other term is about 0.1). Statistical
    regularisation is in standard deviations, as here, so the printed weights keep their meaning: as a
    posterior, w_photo / (2 w_reg) = 33,000 says that colours that are off by b on average weigh like
    33,000 b, some 1,700 for b = 0.05, independent points; and reflectance is almost free.
    """

    photo: float = 1.92
    land: float = 1.0
    reg: float = 2.9e-5
    reflectance: float = 1.7e-3
    expression: float = 0.8


def colours_at(images: Tensor, screen: Tensor, size: int) -> Tensor:
    """I(u_i) of Eq. 8: colours (B, V, 3) of images (B, 3, H, W) at positions (B, V, 2 or 3).

    Positions are in pixels of a size×size picture; `images` may be smaller. Beyond its border the picture
    goes on as at the border: a vertex that leaves it still counts, or the whole face would leave.
    """
    grid = 2 * screen[..., :2] / size - 1
    return grid_sample(images, grid[:, :, None], padding_mode="border", align_corners=False)[..., 0].mT


def loss_terms(
    decoder: Decoder,
    code: Tensor,
    images: Tensor,
    landmarks: Tensor | None = None,
    confidences: Tensor | None = None,
    weights: Weights | None = None,
) -> dict[str, Tensor]:
    """E_loss of Eq. 7 per picture: {"photo", "reg", "land" if landmarks, "total"}, each (B,).

    Args:
        code: (B, 257). images: (B, 3, S, S) sRGB.
        landmarks: (B, 68, 2) detected, in pixels of the images; None trains without the surrogate.
        confidences: (68,) or (B, 68) in [0, 1]; None is 1.

    The photometric term is the mean over the visible vertices. Raises ParameterError for a code with NaN.
    """
    weights, size = weights or Weights(), images.shape[-1]
    face = decoder.face(code, size)
    surface = face.surface(decoder.model)
    picture = face.shade(surface)
    drawn, seen = linear_to_srgb(picture.colour), colours_at(images, picture.screen, size)
    terms = {
        "photo": losses.photometric(drawn, seen, picture.visible & decoder.used),  # Eq. 8
        "reg": losses.prior(face.identity)  # Eq. 10
        + weights.reflectance * losses.prior(face.albedo)
        + weights.expression * losses.prior(face.expression),
    }
    total = weights.photo * terms["photo"] + weights.reg * terms["reg"]
    if landmarks is not None:
        used = constant(code, *LANDMARKS, dtype=torch.int64)
        points = face.camera.project(surface.landmarks.index_select(-2, used))[..., :2]
        trust = None if confidences is None else confidences.to(points).index_select(-1, used)
        found = landmarks.index_select(-2, used)
        terms["land"] = losses.landmark(points, found, trust, size)  # Eq. 9
        total = total + weights.land * terms["land"]
    return terms | {"total": total}


# ----------------------------------------------------------------------------------------------- the encoder


class _FinalLayer(nn.Module):
    """A zero linear layer whose row `Z` is a parameter of its own, so that it can have its own rate."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(256, features)), nn.Parameter(torch.zeros(256))
        self.z_weight, self.z_bias = nn.Parameter(torch.zeros(1, features)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y, z = linear(x, self.weight, self.bias), linear(x, self.z_weight, self.z_bias)
        return torch.cat([y[:, :Z], z, y[:, Z:]], 1)


def make_network(kind: str, pretrained: str | Path | None = None) -> nn.Module:
    """ "alexnet" or "vgg" (the paper's), another of `networks.encoder`, or "small", half as wide as there."""
    if kind == "small":
        network = Small(LAYOUT.size, widths=(16, 32, 64, 128))
        if pretrained is not None:
            load_pretrained(network, kind, pretrained)
        return network
    return encoder(kind, LAYOUT.size, final="zero", pretrained=pretrained)


class Encoder(Regressor):
    """Any network that ends in a linear layer with 257 outputs -> codes (B, 257), zero before training.

    The last layer is replaced by one of zeros, "which guarantees that the initial prediction is the average
    face placed in the middle of the screen and lit by ambient light" (Section 7). The loss looks at the whole
    picture, also at the `border` that the network does not see.
    """

    final: _FinalLayer

    def __init__(self, network: nn.Module, units: Mapping[str, float] = UNITS, border: float = 0.0) -> None:
        scale = torch.cat([torch.full((n,), units[name]) for name, n in LAYOUT.sizes.items()])
        super().__init__(network, LAYOUT, scale, border=border, final=_FinalLayer)

    def parameter_groups(self, rate: float, z_rate: float) -> list[dict[str, object]]:
        """For an optimiser: everything at `rate`, the z-translation's at `z_rate` (paper: 0.1, 0.0005)."""
        z = [self.final.z_weight, self.final.z_bias]
        rest = [p for p in self.parameters() if all(p is not q for q in z)]
        return [{"params": rest, "lr": rate}, {"params": z, "lr": z_rate}]


# -------------------------------------------------------------------------------------------- using a network

# Where dlib's detector sees the face in a picture of the "portrait" distribution (medians of 132 renders).
BOX_SHARE = 0.625  # the box's side in picture widths; its middle is the picture's


def face_square(image: Tensor, detector: LandmarkDetector | None = None, size: int = 240) -> Crop:
    """The square around the face that a detector's box suggests, framed as in training, at `size` px.

    The paper crops to a face detector's box in training and at test time. Landmarks are not used. Raises
    NoFaceError and what `find_face` raises.
    """
    left, top, right, bottom = find_face(image, detector).box.unbind(-1)
    corners = torch.stack([torch.stack([left, top]), torch.stack([right, bottom])])
    return crop_face(image, corners.repeat(34, 1), size, 1 / BOX_SHARE, up=0.0)  # only their extent counts


def card_of(kind: str, side: int, units: Mapping[str, float] = UNITS, border: float = 0.0) -> dict[str, Any]:
    """What a checkpoint's card must say for `MoFA.load`."""
    settings = {"kind": kind, "side": side, "units": dict(units), "border": border}
    return {"method": "MoFA", **settings, "face_model": sha256_of(DEFAULT_MODEL)}


class MoFA:
    """A trained encoder as a method: picture in, `Reconstruction` out.

    Args:
        encoder: an `Encoder`, trained.
        side: px of the pictures that it takes.
        framed: the picture is a square with the face framed as in training (as `crop_face` makes it), and is
            taken as it is. Otherwise a face detector looks for the face first.
        model: the mesh of the reconstruction; None: the shipped model, 10,098 vertices.
    """

    def __init__(
        self,
        encoder: Encoder,
        side: int = 120,
        framed: bool = False,
        detector: LandmarkDetector | None = None,
        model: MorphableModel | None = None,
        name: str = "mofa",
    ) -> None:
        self.encoder, self.side, self.framed, self.detector = encoder.eval(), side, framed, detector
        self.decoder = Decoder()
        self.fine = Decoder(model or MorphableModel.load()).model
        self.name = name

    @classmethod
    def load(cls, path: str | Path = "mofa", framed: bool = False, **options: Any) -> MoFA:
        """From a checkpoint, by default the shipped one. Raises ModelFileError if it is not what it says."""
        encoder, card = load_trained(
            path,
            "train_mofa.py",
            lambda card: Encoder(make_network(card["kind"]), card["units"], card.get("border", 0.0)),
        )
        return cls(encoder, card["side"], framed, **options)

    @torch.no_grad()
    def regress(self, images: Tensor) -> Tensor:
        """Codes (B, 257) of framed pictures (B, 3, S, S), in one pass. Raises ParameterError for NaN."""
        if images.shape[-1] != self.side:
            images = interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        code = self.encoder(images)
        LAYOUT.check(code)
        return code

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Reconstruction:
        """Pose, shape, expression, reflectance and light of the face in a (3, H, W) sRGB picture.

        Unless `framed` it is looked at twice: a detector's box frames a face less well than the landmarks of
        the first answer do. Raises NoFaceError (unless `framed`), ParameterError for a framed picture that is
        not square, and what `check_image` raises.
        """
        check_image(image)
        height, width = image.shape[1:]
        if self.framed and height != width:
            raise ParameterError(f"A framed picture is square, not {width}×{height}; use framed=False.")
        if self.framed:
            return Reconstruction.of(self._look(image), self.fine, height, width)
        first = face_square(image, self.detector)
        found = self._look(first.image).in_photo(first).landmarks(self.decoder.model)
        again = crop_face(image, found, first.image.shape[-1])
        return Reconstruction.of(self._look(again.image).in_photo(again), self.fine, height, width)

    def _look(self, picture: Tensor) -> Face:
        """The face in a framed picture (3, S, S), in its pixels."""
        return self.decoder.face(self.regress(picture[None])[0], picture.shape[-1])


class FramedMoFA(MoFA):
    """The same for pictures whose face is framed as in training, like the test sets': no face detector."""

    @classmethod
    def load(cls, path: str | Path = "mofa", framed: bool = True, **options: Any) -> MoFA:
        """See `MoFA.load`."""
        return super().load(path, framed, **options)
