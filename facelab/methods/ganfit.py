"""GANFIT (Gecer et al. 2019): fitting with a texture GAN for the skin and a recognition network for an eye.

    method = GANFIT.load()                              # or of a checkpoint of train_texture_gan.py
    said = method.reconstruct(photo)                    # its face has a texture
    several = method.reconstruct_together(photos)       # of one person: Eq. 13

The face model is aligned with landmarks first (Eq. 11); then Adam moves everything at once so that the
picture drawn (Eq. 6) has the photograph's identity (Eq. 8), features (Eq. 9) and pixels (Eq. 10), and so that
a second picture of the same face, in another pose, expression and light (Eq. 7), is still the same person.
The light hears of pixels only (Sec. 3.3.3): a recognition network asked for one makes faces green.

Where this is not the paper: the alignment minimises Eq. 11 by Levenberg-Marquardt; some quick steps of pixels
alone come between, which look at no network and leave less to the slow ones; the camera's seven numbers
are a turn, a shift and a focal length instead of two points and one; dlib's network takes ArcFace's place;
what it looks at is drawn over the photograph, so that hair and background are the same on both sides;
regularisers are means, not sums, so that the printed weights suit any number of components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import roma
import torch
from torch import Tensor

from facelab import losses
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods import energy
from facelab.methods.base import load_trained
from facelab.methods.fitting import fit_landmarks
from facelab.model.face import Face, draw
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.networks.texture_gan import Generator, build_generator
from facelab.photos import Crop, crop_face, find_face
from facelab.recognition.networks import DlibRecogniser, FaceRecogniser, composite
from facelab.rendering.colour import srgb_to_linear
from facelab.rendering.illumination import Light, PhongLight
from facelab.support.errors import DivergenceError, ParameterError
from facelab.support.tensors import one_line

Progress = Callable[[int, dict[str, Tensor]], None]
SHININESS = 20.0
TURN, SHIFT, ZOOM, LAMP = 0.1, 10.0, 0.1, 300.0  # radians, mm, log and mm: what Adam takes for one
OTHER_YAW, OTHER_PITCH, OTHER_EXPRESSION = 0.3, 0.15, 0.5  # standard deviations of Eq. 7's draws


@dataclass(frozen=True)
class Weights:
    """Of the terms of Eq. 12, as printed (Sec. 4.1). Zero leaves a term out (Figure 5)."""

    identity: float = 2.0
    identity_again: float = 2.0
    content: float = 50.0
    pixel: float = 1.0
    landmark: float = 0.001
    shape: float = 0.05
    light: float = 0.01


@dataclass(frozen=True)
class Settings:
    """Weights and schedule."""

    weights: Weights = field(default_factory=Weights)
    size: int = 128
    """px of the crop that is drawn and compared"""
    first: int = 60
    """steps with pixels, landmarks and priors only, a sixth of the price of a whole one"""
    first_rate: float = 0.03
    steps: int = 100
    rate: float = 0.01
    seed: int = 0


@one_line
@dataclass(frozen=True, eq=False)
class GanFit:
    """N photographs of one person, fitted."""

    faces: Face
    """(N, ...) in the crops"""
    latent: Tensor
    """(N, K) all the same"""
    theta: Tensor
    """(N, P): what `decode` made the faces of, and `terms` gives the energy of"""
    history: list[dict[str, float]]
    """every term of Eq. 12, weighted, at every step"""
    first: list[dict[str, float]]
    """those of the steps before, which have no recognition network in them"""


@one_line
@dataclass(frozen=True, eq=False)
class Target:
    """What is compared with: N crops, what the recogniser says of them, and where the faces were aligned."""

    images: Tensor
    """(N, 3, S, S)"""
    landmarks: Tensor
    """(N, 68, 2)"""
    confidence: Tensor
    """(N, 68)"""
    inside: Tensor
    """(N, 1, S, S)"""
    embedding: Tensor
    features: list[Tensor]
    start: Face
    """after Eq. 11"""


class GANFIT:
    """See the top of the module.

    Args:
        generator: of textures, for the shipped face model.
        recogniser: what the fit descends on; never the network that judges.
        settings: weights and schedule.
    """

    name = "ganfit"

    def __init__(
        self,
        generator: Generator,
        recogniser: FaceRecogniser | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.recogniser = recogniser or DlibRecogniser()
        self.settings = settings or Settings()
        self.coarse, self.model = (MorphableModel.load(subdivisions=n) for n in (0, 1))
        self.coarse = self.coarse.to(generator.mean.device)
        self.layout = ParameterLayout(
            shape=len(self.coarse.identity_basis), expression=len(self.coarse.expression_basis),
            texture=generator.latent, camera=7, light=9,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path = "texture_gan") -> GANFIT:
        """With a generator of train_texture_gan.py. Raises ModelFileError."""
        return cls(load_trained(path, "train_texture_gan.py", build_generator)[0])

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """From one picture (3, H, W). Raises NoFaceError and what else `find_face` may."""
        return self.reconstruct_together([image])[0]

    def reconstruct_together(self, images: Sequence[Tensor]) -> list[Reconstruction]:
        """Several photographs of one person, who has one shape and one texture in all (Eq. 13)."""
        crops = [crop_face(p, find_face(p).landmarks, size=self.settings.size) for p in images]
        faces = self.fit(crops).faces
        said = []
        for n, (crop, image) in enumerate(zip(crops, images)):
            face = nth(faces, n).in_photo(crop)
            said.append(Reconstruction.of(face, self.model, *image.shape[-2:]))
        return said

    def fit(self, crops: Sequence[Crop], progress: Progress | None = None) -> GanFit:
        """Crops of one person to what explains them best.

        Raises ParameterError for no crops or of another size, DivergenceError if the energy is no number.
        """
        target = self.aligned(crops)
        theta, settings = self.start(len(crops)), self.settings
        pixels = replace(settings.weights, identity=0.0, identity_again=0.0, content=0.0)
        theta, first = self.descend(theta, target, settings.first, settings.first_rate, pixels)
        theta, history = self.descend(theta, target, settings.steps, settings.rate, progress=progress)
        with torch.no_grad():
            faces = self.decode(theta, target.start)
        return GanFit(faces, self.layout.split(theta)["texture"], theta, history, first)

    def descend(
        self,
        theta: Tensor,
        target: Target,
        steps: int,
        rate: float,
        weights: Weights | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, list[dict[str, float]]]:
        """Adam from vectors (N, P), with one person in all of them -> the last ones, and every step's terms.

        `weights` None are those of the settings. Raises DivergenceError if the energy is no number."""
        theta = theta.clone().requires_grad_()
        adam, history = torch.optim.Adam([theta], rate), []
        for step in range(steps):
            terms = self.terms(theta, target, step, weights)
            total = torch.stack([*terms.values()]).sum()
            if not bool(torch.isfinite(total)):
                raise DivergenceError("The energy is no longer a number; lower the rate.")
            adam.zero_grad()
            total.backward()
            adam.step()
            average_person(theta, self.layout)
            history.append({name: float(term.detach()) for name, term in terms.items()})
            if progress is not None:
                progress(step, terms)
        return theta.detach(), history

    def start(self, count: int) -> Tensor:
        """(N, P) zeros: the aligned face, with the generator's middle texture."""
        return self.layout.zeros(count, device=self.coarse.mean.device)

    @torch.no_grad()
    def aligned(self, crops: Sequence[Crop]) -> Target:
        """Eq. 11: shape, expression and camera from landmarks; and everything that does not change later."""
        size, device = self.settings.size, self.coarse.mean.device
        if not len(crops) or any(crop.image.shape != (3, size, size) for crop in crops):
            raise ParameterError(
                f"GANFIT needs crops of (3, {size}, {size}), at least one; crop the photographs."
            )
        images = torch.stack([crop.image for crop in crops]).to(device)
        points = torch.stack([crop.landmarks for crop in crops]).to(images)
        inside = torch.stack([crop.inside for crop in crops]).to(device)
        fits = fit_landmarks(self.coarse, list(points), energy.Settings(size=size, levels=((size, 0, 1),)))
        faces = [fit.face() for fit in fits]
        identity, expression = (
            torch.nn.functional.pad(torch.stack([getattr(face, name) for face in faces]), (0, wide))
            for name, wide in (
                ("identity", len(self.coarse.identity_basis) - faces[0].identity.shape[-1]),
                ("expression", len(self.coarse.expression_basis) - faces[0].expression.shape[-1]),
            )
        )
        cameras = [fit.camera() for fit in fits]
        several = zip(*((c.rotation, c.translation, c.focal, c.principal) for c in cameras))
        camera = PerspectiveCamera(*(torch.stack(part) for part in several))
        embedding, features = self.recogniser.embed_with_features(images, points)
        confidence = torch.stack([crop.confidence for crop in crops]).to(images)
        mean = srgb_to_linear(images[:, :, size // 3 : -size // 3, size // 3 : -size // 3]).mean((1, 2, 3))
        lit = (mean / 0.25).clamp(0.2, 2.0)[:, None].expand(-1, 3)
        above = camera.translation + images.new_tensor([0.0, 500.0, 1000.0])
        light = PhongLight(0.5 * lit, above, 0.6 * lit, images.new_tensor(SHININESS))
        start = Face(identity, expression, identity[:, :0], camera, light)
        return Target(images, points, confidence, inside, embedding, features, start)

    def decode(self, theta: Tensor, start: Face) -> Face:
        """Eq. 6's arguments from the vectors (N, P), which are moves away from the aligned faces."""
        parts = self.layout.split(theta)
        turn, shift, zoom = parts["camera"].split([3, 3, 1], -1)
        ambient, place, colour = parts["light"].split(3, -1)
        assert isinstance(start.camera, PerspectiveCamera) and isinstance(start.light, PhongLight)
        camera = replace(
            start.camera,
            rotation=roma.rotvec_to_rotmat(TURN * turn) @ start.camera.rotation,
            translation=start.camera.translation + SHIFT * shift,
            focal=start.camera.focal * (ZOOM * zoom[..., 0]).exp(),
        )
        light = replace(
            start.light,
            ambient=start.light.ambient * ambient.exp(),
            position=start.light.position + LAMP * place,
            colour=start.light.colour * colour.exp(),
        )
        texture = self.generator.texture(parts["texture"])
        shape, expression = start.identity + parts["shape"], start.expression + parts["expression"]
        return Face(shape, expression, start.albedo, camera, light, texture)

    def terms(
        self, theta: Tensor, target: Target, step: int, weights: Weights | None = None
    ) -> dict[str, Tensor]:
        """The terms of Eq. 12, weighted (None: as the settings say), each a mean over the photographs.

        `step` draws the second picture (Eq. 7)."""
        weights, parts = weights or self.settings.weights, self.layout.split(theta)
        face = self.decode(theta, target.start)
        surface, size = face.surface(self.coarse), self.settings.size
        picture = draw(surface, face.camera, face.light, size, size)
        image, seen = picture.image.clamp(0, 1), picture.mask & target.inside
        terms: dict[str, Tensor] = {}
        if weights.identity or weights.content:
            still = draw(surface, face.camera, held(face.light), size, size).image.clamp(0, 1)
            over = composite(still, seen, target.images)
            embedding, features = self.recogniser.embed_with_features(over, target.landmarks)
            mean = self.recogniser.mean_embedding
            terms["identity"] = weights.identity * losses.identity(embedding, target.embedding, mean)
            terms["content"] = weights.content * losses.content(features, target.features)
        if weights.identity_again:
            again, points = self.another_picture(face, step)
            embedding = self.recogniser.embed(again, points)
            mean = self.recogniser.mean_embedding
            terms["identity again"] = weights.identity_again * losses.identity(
                embedding, target.embedding, mean
            )
        colours = (image.flatten(-2).mT, target.images.flatten(-2).mT, seen.flatten(1).to(image))
        terms["pixel"] = weights.pixel * losses.photometric(*colours, "l1")
        projected = face.camera.project(surface.landmarks)[..., :2]
        apart = losses.landmark(projected, target.landmarks, target.confidence, norm="l2,1")
        terms["landmark"] = weights.landmark * apart
        terms["shape"] = weights.shape * (face.identity.square().mean(-1) + face.expression.square().mean(-1))
        terms["light"] = weights.light * losses.prior(parts["light"])
        return {name: term.mean() for name, term in terms.items()}

    def another_picture(self, face: Face, step: int) -> tuple[Tensor, Tensor]:
        """Eq. 7: the same shapes and textures with another expression, camera and light, over grey; and
        where the landmarks are, (N, 68, 2)."""
        count, size = len(face.identity), self.settings.size
        drawn = torch.Generator().manual_seed(1_000_003 * self.settings.seed + step)
        noise = torch.randn(count, 6 + face.expression.shape[-1], generator=drawn).to(face.identity)
        angles = noise[:, :3] * noise.new_tensor([OTHER_PITCH, OTHER_YAW, 0.0])
        camera = PerspectiveCamera.from_fov(24.0, size, size, 700.0, device=noise.device)
        shift = (camera.translation - noise.new_tensor([0.0, 10.0, 0.0])).expand(count, 3)
        camera = replace(camera, rotation=euler_to_matrix(angles), translation=shift)
        lamp = (
            shift
            + noise[:, 3:6] * noise.new_tensor([500.0, 300.0, 0.0])
            + noise.new_tensor([0.0, 300.0, 1000.0])
        )
        level = noise.new_tensor([0.55, 0.55, 0.55]).expand(count, 3)
        light = PhongLight(level, lamp, level, noise.new_tensor(SHININESS))
        other = replace(face, expression=OTHER_EXPRESSION * noise[:, 6:], camera=camera, light=light)
        surface = other.surface(self.coarse)
        grey = noise.new_full((count, 3, size, size), 0.5)
        picture = draw(surface, camera, light, size, size, background=grey)
        return picture.image.clamp(0, 1), camera.project(surface.landmarks)[..., :2]


def average_person(theta: Tensor, layout: ParameterLayout) -> None:
    """Eq. 13, in place: one shape and one texture for all photographs. (As printed, it is a sum.)"""
    with torch.no_grad():
        for name in ("shape", "texture"):
            part = theta[:, layout.slice(name)]
            part.copy_(part.mean(0, keepdim=True).expand_as(part))


def held(light: Light | None) -> PhongLight:
    """The same light, which hears of no gradient."""
    assert isinstance(light, PhongLight)
    ambient, position, colour = (p.detach() for p in (light.ambient, light.position, light.colour))
    return replace(light, ambient=ambient, position=position, colour=colour)


def nth(faces: Face, n: int) -> Face:
    """One of a batch of faces."""
    assert isinstance(faces.camera, PerspectiveCamera) and isinstance(faces.light, PhongLight)
    camera, light = faces.camera, faces.light
    camera = PerspectiveCamera(
        *(p[n] for p in (camera.rotation, camera.translation, camera.focal, camera.principal))
    )
    light = PhongLight(
        light.ambient[n], light.position[n], light.colour[n], light.shininess, light.normalised
    )
    texture = None if faces.texture is None else faces.texture[n]
    return Face(faces.identity[n], faces.expression[n], faces.albedo[n], camera, light, texture)
