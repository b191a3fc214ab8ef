"""InverseFaceNet (Kim et al., CVPR 2018): one masked picture in, pose, shape, expression, skin and light out.

    method = InverseFaceNet.load()                     # the shipped network
    said = method.reconstruct(load_photo("me.jpg"))    # a Reconstruction

The parameters are Eq. 1's (R, shape, expression, reflectance, illumination), as many as the face model has:
the paper's 3 + 128 + 64 + 128 + 27 = 350; the shipped model has 80 albedo components, so 302. The sampler of
Sec. 5 is `DISTRIBUTIONS["inversefacenet"]`. One thing is added to the paper: its vector has no translation
because the landmarks' box fills the picture, but dlib's landmarks miss the jaw by some per cent of the face;
so three more outputs, the `frame`, say where in the picture the face's true box is.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.spatial import ConvexHull
from torch import Tensor, nn

from facelab import losses
from facelab.methods.base import load_trained
from facelab.model.face import Face
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.networks import Regressor, encoder
from facelab.photos import Crop, LandmarkDetector, check_image, crop_face, find_face
from facelab.support.errors import ParameterError
from facelab.synthetic.distributions import EXPRESSION_UNIT, LIMITS_DEGREES, InverseFaceNetDistribution

SIDE = 240  # px, of the network's input
FRAME = 3  # outputs after the parameters: centre (x, y) and log of the side of the face's box in the input
DISTRIBUTION = InverseFaceNetDistribution()
OMEGA = {"rotation": 400.0, "shape": 50.0, "expression": 50.0, "reflectance": 100.0, "light": 20.0}  # Eq. 8
OMEGA_FRAME = 2000.0  # 1 % of the picture weighs as much as 3 degrees
INNER_LIPS = (61, 62, 63, 65, 66, 67)  # 66 landmarks: without the inner corners 60 and 64


# --- loss (Sec. 6.2) ----------------------------------------------------------------------------------------


def model_space_weights(model: MorphableModel, balanced: bool = True) -> Tensor:
    """The diagonal of Sigma (layout.size + FRAME,), Eq. 8: standard deviations of the model times omega.

    The paper does not print the units of its sigmas. Here they are mm (RMS over the face) per unit of a
    parameter for shape and expression, and for reflectance one in which it weighs as much as shape in all:
    in per cent it would be two thirds of the loss, nearly all of it brightness, which light can explain.

    `balanced` gives light the weight of shape, too. With the printed 20 it is a thousandth of the loss:
    AlexNet comes from ImageNet with features that show light, but a network that starts from nothing learns
    features without any trace of it.
    """
    layout = DISTRIBUTION.layout(model)
    one = layout.join({name: model.mean.new_ones(size) for name, size in layout.sizes.items()})
    unit = DISTRIBUTION.coefficients(model, one)["expression"].abs()
    sigma = {
        "rotation": one.new_ones(3),
        "shape": model.identity_sigma,
        "expression": unit * model.expression_sigma,
        "reflectance": model.albedo_sigma,
        "light": one.new_ones(27),
    }
    weights = {name: OMEGA[name] * value for name, value in sigma.items()}
    deviation = layout.split(corpus_moments(model)[1])
    for name in ("reflectance", "light") if balanced else ("reflectance",):
        own, shape = (float((weights[n] * deviation[n]).norm()) for n in (name, "shape"))
        weights[name] = weights[name] * (shape / own)
    theta = layout.join(weights)
    return torch.cat([theta, theta.new_full((FRAME,), OMEGA_FRAME)])


def corpus_moments(model: MorphableModel) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (layout.size,) of the sampler of Sec. 5."""
    layout = DISTRIBUTION.layout(model)
    mean, deviation = layout.zeros(1)[0].to(model.mean), model.mean.new_ones(layout.size)
    mean[layout.slice("expression").start] = 4.8
    mean[layout.slice("light")][:3] = 0.9
    deviation[layout.slice("rotation")] = mean.new_tensor(LIMITS_DEGREES).deg2rad() / 3**0.5
    deviation[layout.slice("expression")] = 12 / 3**0.5
    deviation[layout.slice("light")] = 0.2 / 3**0.5
    deviation[layout.slice("light")][:3] = 0.3 / 3**0.5
    return mean, deviation


def parameter_loss(predicted: Tensor, truth: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """|Sigma (p - theta)|² (..., P) -> (...): Eq. 6 with A = Sigma^T Sigma, Sigma = diag(`weights`).

    With weights 1 it is the plain l2 loss of the paper's baseline.
    """
    return losses.prior(weights * (predicted - truth))


# --- what the network sees (Sec. 6.1) -----------------------------------------------------------------------


def face_mask(landmarks: Tensor, side: int = SIDE) -> Tensor:
    """(1, side, side) bool: the hull of 66 of the 68 landmarks (68, 2) px, the mouth's inside taken out.

    The 66 of the paper's tracker are iBUG's without the inner mouth corners.
    """
    points = landmarks.detach().cpu().double().numpy() - 0.5  # Pillow's pixel centres are whole numbers
    mask = Image.new("1", (side, side))
    draw = ImageDraw.Draw(mask)
    for corners, value in ((points[ConvexHull(points).vertices], 1), (points[list(INNER_LIPS)], 0)):
        draw.polygon(corners.flatten().tolist(), fill=value)
    return torch.from_numpy(np.array(mask))[None].to(landmarks.device)


def network_input(image: Tensor, landmarks: Tensor, side: int = SIDE) -> tuple[Tensor, Crop]:
    """The masked input (3, side, side) of a picture (3, H, W) in [0, 1]: the landmarks' box fills it."""
    crop = crop_face(image, landmarks, side, scale=1.0, up=0.0)
    return crop.image * (face_mask(crop.landmarks, side) & crop.inside), crop


def box_of(landmarks: Tensor, side: int) -> Tensor:
    """The frame (..., 3) of landmarks (..., 68, 2) in a picture of side×side px; zero when they fill it."""
    low, high = landmarks.amin(-2), landmarks.amax(-2)
    length = (high - low).amax(-1, keepdim=True) / side
    return torch.cat([(low + high) / (2 * side) - 0.5, length.log()], -1)


def clamp_parameters(model: MorphableModel, theta: Tensor) -> Tensor:
    """Parameters (..., layout.size) brought to where faces still are faces.

    Half as much again as the sampler's rotations, four standard deviations of shape and reflectance, six of
    expression (of which the model's own sampler draws few, but large ones), light between darkness and thrice
    the sampler's.
    """
    parts = dict(DISTRIBUTION.layout(model).split(theta))
    limit = 1.5 * theta.new_tensor(LIMITS_DEGREES).deg2rad()
    parts["rotation"] = parts["rotation"].clamp(-limit, limit)
    parts["shape"], parts["reflectance"] = parts["shape"].clamp(-4, 4), parts["reflectance"].clamp(-4, 4)
    parts["expression"] = parts["expression"].clamp(-6 / EXPRESSION_UNIT, 6 / EXPRESSION_UNIT)
    light = parts["light"].unflatten(-1, (9, 3))
    constant, rest = light[..., :1, :].clamp(0.05, 3.6), light[..., 1:, :].clamp(-2, 2)
    parts["light"] = torch.cat([constant, rest], -2).flatten(-2)
    return DISTRIBUTION.layout(model).join(parts)


# --- the method ---------------------------------------------------------------------------------------------


def make_network(
    kind: str,
    model: MorphableModel,
    pretrained: str | Path | None = None,
    generator: torch.Generator | None = None,
) -> Regressor:
    """Untrained: (B, 3, S, S) in [0, 1] -> parameters and frame (B, layout.size + FRAME).

    The network speaks in standard deviations of what its corpus starts from, around its mean. Its last layer
    is as the paper has it, weights N(0, 0.01) and no bias. See `networks.encoder`; raises what that raises.
    """
    layout = ParameterLayout(**DISTRIBUTION.layout(model).sizes, frame=FRAME)
    mean, scale = corpus_moments(model)
    offset = torch.cat([mean, mean.new_zeros(FRAME)])
    units = torch.cat([scale, scale.new_full((FRAME,), 0.03)])
    network = encoder(kind, layout.size, "normal", pretrained, generator=generator)
    return Regressor(network, layout, units, offset)


def _load_network(path: str | Path, model: MorphableModel) -> nn.Module:
    network, _ = load_trained(
        path, "train_inversefacenet.py", lambda card: make_network(card["network"], model)
    )
    return network


class InverseFaceNet:
    """A trained network (None: the shipped one) with its face model: a Method."""

    name = "inversefacenet"

    def __init__(
        self,
        network: nn.Module | None = None,
        model: MorphableModel | None = None,
        detector: LandmarkDetector | None = None,
    ) -> None:
        self.model = model or MorphableModel.load(None, 1)
        self.network = (network or _load_network("inversefacenet", self.model)).eval()
        self.detector = detector

    @classmethod
    def load(
        cls, path: str | Path = "inversefacenet", subdivisions: int = 1, device: str = "cpu"
    ) -> "InverseFaceNet":
        """A checkpoint with its card; by default the shipped one. Raises ModelFileError."""
        model = MorphableModel.load(None, subdivisions, device)
        return cls(_load_network(path, model).to(device), model)

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Masked inputs (B, 3, S, S) in [0, 1] -> parameters (B, layout.size), clamped, and frames (B, 3)."""
        theta, frame = self.network(inputs).float().tensor_split([-FRAME], -1)
        return clamp_parameters(self.model, theta), frame.clamp(-0.3, 0.3)

    def face(self, theta: Tensor, frame: Tensor) -> Face:
        """The face of parameters (..., P), where its frame (..., 3) says, in pixels of the input."""
        face = DISTRIBUTION.decode(self.model, theta, SIDE)
        zoom = frame[..., 2].exp()
        shift = SIDE * (0.5 + frame[..., :2] - 0.5 * zoom[..., None])
        return replace(face, camera=face.camera.rescaled(zoom, shift))

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """The face in a picture (3, H, W) sRGB in [0, 1]. Raises PhotoErrors: no face, not a picture, ..."""
        check_image(image)
        return self.reconstruct_at(image, find_face(image, self.detector).landmarks)

    @torch.no_grad()
    def reconstruct_at(self, image: Tensor, landmarks: Tensor) -> Reconstruction:
        """The same with landmarks (68, 2) px from elsewhere."""
        image = image.to(self.model.mean)
        masked, crop = network_input(image, landmarks.to(image))
        theta, frame = (value[0] for value in self.predict(masked[None]))
        if not bool(torch.isfinite(theta).all()):
            raise ParameterError("The network's answer is not finite; load its checkpoint again.")
        return Reconstruction.of(self.face(theta, frame).in_photo(crop), self.model, *image.shape[-2:])
