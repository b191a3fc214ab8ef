"""Named distributions of faces: parameter vectors to draw, and what the vectors mean.

theta = DISTRIBUTIONS["portrait"].sample(model, 8, generator)       # (8, layout.size)
faces = DISTRIBUTIONS["portrait"].decode(model, theta, 240)         # a batch, as one `Face`
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.model.face import Face
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.illumination import (
    SH_CONSTANTS,
    SphericalHarmonicsLight,
    ambient_to_sh,
    directional_to_sh,
)
from facelab.support.tensors import constant, send
from facelab.synthetic.augmentation import uniform

LIMITS_DEGREES = (40.0, 40.0, 15.0)  # InverseFaceNet: pitch, yaw, roll
LIGHT_UNIT = 1 / SH_CONSTANTS[0]
EXPRESSION_UNIT = 1 / 12


class Distribution(ABC):
    """A named distribution of parameter vectors and what the vectors mean. Add your own to DISTRIBUTIONS."""

    masked = False
    """Whether the network's input is cut out: black outside the landmarks' hull and inside the mouth."""

    @abstractmethod
    def layout(self, model: MorphableModel) -> ParameterLayout:
        """The parts of a vector."""

    @abstractmethod
    def sample(self, model: MorphableModel, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, layout.size) parameters, on the model's device."""

    @abstractmethod
    def decode(self, model: MorphableModel, theta: Tensor, size: int) -> Face:
        """The faces that parameters (..., layout.size) mean, in pictures of size×size."""


class InverseFaceNetDistribution(Distribution):
    """Kim et al. 2018, Sec. 5, in the paper's units; as many components as the model has.

    A vector is what the paper prints; `decode` brings it to our model's units, because printed ranges only
    mean something for a given basis. Expressions U(-12, 12): 12 is taken as one standard deviation of ours,
    the largest at which most random mixtures still are faces, and the first component has the sign with which
    the bias of 4.8 opens the mouth. Light: the printed numbers are the shading's, with H_1 = 1 ("to account
    for the average image brightness"), so they are divided by our constant H_1; with an orthonormal basis
    every picture would be nearly black. The paper's image is albedo times shading; ours is that in sRGB.
    The vector has no translation: the landmarks' box fills the picture (Sec. 6.1), seen from 900 mm.
    """

    masked = True

    def layout(self, model: MorphableModel) -> ParameterLayout:
        """(R, shape, expression, reflectance, illumination): Eq. 1."""
        return ParameterLayout(
            rotation=3,
            shape=len(model.identity_basis),
            expression=len(model.expression_basis),
            reflectance=len(model.albedo_basis),
            light=27,
        )

    def sample(self, model: MorphableModel, count: int, generator: torch.Generator) -> Tensor:
        """Each part independently (Eq. 5)."""
        layout = self.layout(model)
        sizes = layout.sizes
        expression = uniform(-12, 12, count, sizes["expression"], generator=generator)
        expression[:, 0] += 4.8
        light = uniform(-0.2, 0.2, count, 9, generator=generator)
        light[:, 0] = uniform(0.6, 1.2, count, generator=generator)
        parts = {
            "rotation": uniform(-1, 1, count, 3, generator=generator)
            * torch.tensor(LIMITS_DEGREES).deg2rad(),
            "shape": torch.randn(count, sizes["shape"], generator=generator),
            "expression": expression,
            "reflectance": torch.randn(count, sizes["reflectance"], generator=generator),
            "light": light[:, :, None].expand(-1, -1, 3).flatten(1),  # monochrome
        }
        return send(layout.join(parts), model.mean.device)

    def decode(self, model: MorphableModel, theta: Tensor, size: int) -> Face:
        """See the class."""
        parts = self.coefficients(model, theta)
        vertices = model.vertices(parts["identity"], parts["expression"])
        rotation = euler_to_matrix(parts["rotation"])
        points = model.landmarks(vertices, rotation)
        zero = theta.new_zeros(2)
        camera = PerspectiveCamera(rotation, constant(theta, 0.0, 0.0, -900.0), theta.new_ones(()), zero)
        seen = camera.project(points)[..., :2]
        low, high = seen.amin(-2), seen.amax(-2)
        focal = size / (high - low).amax(-1)
        camera = camera.rescaled(focal, size / 2 - focal[..., None] * (low + high) / 2)
        light = SphericalHarmonicsLight(parts["light"])
        return Face(parts["identity"], parts["expression"], parts["albedo"], camera, light)

    def coefficients(self, model: MorphableModel, theta: Tensor) -> dict[str, Tensor]:
        """Angles "rotation" (..., 3), coefficients in our model's units, "light" (..., 9, 3)."""
        parts = self.layout(model).split(theta)
        lips = model.landmarks(model.expression_basis[0])[..., 1]  # how they move up; landmarks are linear
        unit = torch.full_like(parts["expression"], EXPRESSION_UNIT)
        unit[..., 0] *= torch.where(lips[66] < lips[62], 1.0, -1.0)
        return {
            "rotation": parts["rotation"],
            "identity": parts["shape"],
            "expression": unit * parts["expression"],
            "albedo": parts["reflectance"],
            "light": LIGHT_UNIT * parts["light"].unflatten(-1, (9, 3)),
        }


class PortraitDistribution(Distribution):
    """Faces as photographs show them: people and expressions from the model's own sampler, mostly frontal
    heads (yaw N(0, 20°), pitch N(0, 9°), roll N(0, 6°), cut at 2.5 standard deviations) at 400 to 2,000 mm,
    ambient light and one to three distant lights, framed like `crop_face`'s default.
    """

    def layout(self, model: MorphableModel) -> ParameterLayout:
        """Angles in radians, translation in mm, focal length in picture widths, light (9, 3) flattened."""
        return ParameterLayout(
            rotation=3,
            translation=3,
            focal=1,
            identity=len(model.identity_basis),
            expression=len(model.expression_basis),
            albedo=len(model.albedo_basis),
            light=27,
        )

    def sample(self, model: MorphableModel, count: int, generator: torch.Generator) -> Tensor:
        """Draw poses, people and lights, then the focal length and the shift that frame the head."""
        normal = torch.special.ndtri(uniform(0.0062, 0.9938, count, 3, generator=generator))  # |z| < 2.5
        angles = normal * torch.tensor([9.0, 20.0, 6.0]).deg2rad()
        person = model.sample(count, generator)
        light = self._light(count, generator)
        distance = 400 * 5 ** torch.rand(count, generator=generator)
        box = uniform(0.52, 0.7, count, generator=generator)  # the landmarks' larger side, in picture widths
        middle = uniform(-0.04, 0.04, count, 2, generator=generator) + torch.tensor([0.0, 0.06])

        place = model.mean.device
        angles, light, distance, box, middle = (
            send(part, place) for part in (angles, light.flatten(1), distance, box, middle)
        )
        rotation = euler_to_matrix(angles).to(model.mean.dtype)
        points = model.landmarks(model.vertices(person["identity"], person["expression"]), rotation)
        points = points @ rotation.mT
        depth = distance - points[..., 2].mean(-1)  # of the landmarks' middle
        low, high = points[..., :2].amin(-2), points[..., :2].amax(-2)
        focal = box * depth / (high - low).amax(-1)
        shift = middle * constant(middle, 1.0, -1.0) * (depth / focal)[:, None] - (low + high) / 2
        parts = {
            "rotation": angles,
            "translation": torch.cat([shift, -distance[:, None]], -1),
            "focal": focal[:, None],
            "light": light,
            **person,
        }
        return self.layout(model).join(parts)

    @staticmethod
    def _light(count: int, generator: torch.Generator) -> Tensor:
        """Coefficients (count, 9, 3) of ambient light and one to three distant lights, about 1 in all."""
        total = uniform(0.9, 1.6, count, 1, generator=generator)
        ambient = uniform(0.15, 0.6, count, 1, generator=generator)
        share = uniform(0.2, 1, count, 3, generator=generator)
        share[:, 1:] *= uniform(0, 3, count, 1, generator=generator) > torch.tensor([1.0, 2.0])
        share = (total * (1 - ambient) * share / share.sum(1, keepdim=True))[..., None]
        direction = torch.randn(count, 3, 3, generator=generator) * torch.tensor([1.0, 0.6, 0.4])
        direction = direction + torch.tensor([0.0, 0.3, 1.0])
        tint = 1 + 0.07 * torch.randn(count, 4, 3, generator=generator)
        lights = directional_to_sh(direction, share * tint[:, :3])
        return ambient_to_sh(total * ambient * tint[:, 3]) + lights.sum(1)

    def decode(self, model: MorphableModel, theta: Tensor, size: int) -> Face:
        """See `layout`; the principal point is the middle of the picture."""
        parts = self.layout(model).split(theta)
        camera = PerspectiveCamera(
            euler_to_matrix(parts["rotation"]),
            parts["translation"],
            size * parts["focal"][..., 0],
            theta.new_full((2,), size / 2),
        )
        light = SphericalHarmonicsLight(parts["light"].unflatten(-1, (9, 3)))
        return Face(parts["identity"], parts["expression"], parts["albedo"], camera, light)


DISTRIBUTIONS: dict[str, Distribution] = {
    "inversefacenet": InverseFaceNetDistribution(),
    "portrait": PortraitDistribution(),
}
