"""CoarseNet: a face by iterative error feedback (Richardson et al., CVPR 2017, Section 3).

The network sees a grey picture and its own last answer, drawn as two maps, and says a better one:

    r = LAYOUT.zeros(1)                                        # the mean face, centred, from the front
    for _ in range(4):
        r = network(network_input(model, r, grey)[0])

Equation and section numbers are the paper's. Its face model has 200 identity and 84 expression components;
`layout` takes as many as ours has. Pose is in units in which a training's poses have a spread of about one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix, matrix_to_euler
from facelab.methods.base import load_trained
from facelab.methods.energy import Settings
from facelab.methods.fitting import fit_landmarks
from facelab.methods.mofa import face_square
from facelab.model.face import Face
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.networks import encoder
from facelab.photos import Crop, LandmarkDetector, check_image, crop_face, find_face
from facelab.rendering import rasterizer
from facelab.rendering.gbuffer import rasterize_surface
from facelab.rendering.image_formation import normalised_coordinates
from facelab.support.errors import ParameterError
from facelab.support.tensors import constant, send

SIDE = 200  # px, of the network's input
COMPONENTS = {"identity": 200, "expression": 84}
BOX_SHARE = 0.6  # of the picture, that the landmarks of the zero vector fill
UP = 0.06  # by how much of the picture their middle lies below the picture's: more forehead than neck
UNITS = {"rotation": 0.3, "translation": 0.05, "scale": 0.15}  # radians, picture sides, log of the scale
GREY = (0.299, 0.587, 0.114)  # of sRGB values (ITU-R BT.601)
CHANNELS: Mapping[str, tuple[str, ...]] = {
    "both": ("pncc", "normals"), "pncc": ("pncc",), "normals": ("normals",), "none": (),
}  # fmt: skip
"""What a network is fed back, by the name in its card."""


def layout(model: MorphableModel) -> ParameterLayout:
    """r of Section 3.1: shape, expression, and 6 numbers for the pose."""
    sizes = {"identity": len(model.identity_basis), "expression": len(model.expression_basis)}
    counts = {name: min(size, COMPONENTS[name]) for name, size in sizes.items()}
    return ParameterLayout(**counts, rotation=3, translation=2, scale=1)


def decode(model: MorphableModel, r: Tensor, size: int = SIDE) -> Face:
    """The faces of vectors (..., layout.size) in pictures of size×size: Eqs. 1 and 2, without skin and light.

    Zero is the mean face in the middle of the picture, from the front.
    """
    parts = layout(model).split(r)
    points = model.landmarks(model.mean)[:, :2]
    low, high = points.amin(0), points.amax(0)
    scale = BOX_SHARE * size / (high - low).max()
    middle = scale * (low + high) / 2 * constant(points, 1.0, -1.0)
    start = constant(points, 0.5, 0.5 + UP) * size - middle
    camera = WeakPerspectiveCamera(
        euler_to_matrix(UNITS["rotation"] * parts["rotation"]),
        scale * (UNITS["scale"] * parts["scale"][..., 0]).exp(),
        start + size * UNITS["translation"] * parts["translation"],
    )
    return Face(parts["identity"], parts["expression"], r.new_zeros(*r.shape[:-1], 0), camera)


def vectors_of(model: MorphableModel, faces: Face, size: int = SIDE) -> Tensor:
    """The vectors (..., layout.size) that come nearest to faces of the same model, seen by any camera.

    What `decode` undoes. A perspective camera's scale is that at the depth of the model's origin; components
    that the vector has not are left out.
    """
    sizes, camera = layout(model).sizes, faces.camera
    start = decode(model, model.mean.new_zeros(layout(model).size), size).camera
    assert isinstance(start, WeakPerspectiveCamera)
    origin = camera.project(model.mean.new_zeros(1, 3))[..., 0, :]
    scale = camera.scale if isinstance(camera, WeakPerspectiveCamera) else camera.focal / origin[..., 2]
    parts = {
        "identity": faces.identity[..., : sizes["identity"]],
        "expression": faces.expression[..., : sizes["expression"]],
        "rotation": matrix_to_euler(camera.rotation) / UNITS["rotation"],
        "translation": (origin[..., :2] - start.offset) / (size * UNITS["translation"]),
        "scale": (scale / start.scale).log()[..., None] / UNITS["scale"],
    }
    return layout(model).join(parts)


def mixed(truth: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Eq. 3: r_t between the truth and random vectors (B, P), β uniform in [0, 1]: an estimate on its way."""
    beta = send(torch.rand((len(truth), 1), generator=generator), truth)
    return beta * truth + (1 - beta) * other


@torch.no_grad()
def feedback(model: MorphableModel, r: Tensor, size: int = SIDE) -> tuple[Tensor, Tensor]:
    """Section 3.2.1: PNCC and normal map (B, 6, S, S) of the faces r (B, P), and where they are seen.

    PNCC: each pixel's place on the mean face, in [0, 1]³. Normals in camera space, from [-1, 1] to [0, 1].
    Both are 0 where there is no face: mask (B, 1, S, S) bool.
    """
    face = decode(model, r, size)
    surface = face.surface(model)
    code = normalised_coordinates(model.mean).expand(*surface.vertices.shape)
    maps = rasterize_surface(surface.vertices, surface.triangles, face.camera, code, size, size)
    normals = torch.where(maps.mask, 0.5 + 0.5 * maps.normals, 0.0)
    return torch.cat([maps.attributes, normals], -3), maps.mask


def network_input(
    model: MorphableModel, r: Tensor, images: Tensor, channels: tuple[str, ...] = ("pncc", "normals")
) -> Tensor:
    """What the network sees (B, 1 + 3 · channels, S, S): grey pictures, masked by the face r, and its maps.

    The grey has mean 0.5 and a standard deviation of 1 over the mask, and is 0.5 elsewhere (encoders
    subtract that): as it comes, a network reads what it said off the maps, which vary more, and is slow to
    look at the picture. The paper does not say how its channels are scaled.

    `images` (B, 3, S, S) sRGB; `r` (B, P), or (1, P) of all; `channels` leaves a map out, for the ablation
    (an empty one: no feedback, no mask). Raises ParameterError for pictures that are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ParameterError(f"CoarseNet's pictures are square, not {width}×{height}; crop the face first.")
    grey = (images * constant(images, *GREY)[:, None, None]).sum(-3, keepdim=True)
    if not channels:
        return standardised(grey, torch.ones_like(grey))
    maps, mask = feedback(model, r, width)
    parts = {"pncc": maps[..., :3, :, :], "normals": maps[..., 3:, :, :]}
    shown = (parts[name].expand(len(images), -1, -1, -1) for name in channels)
    return torch.cat([standardised(grey, mask), *shown], -3)


def standardised(grey: Tensor, mask: Tensor) -> Tensor:
    """Pictures (B, 1, S, S) over a mask, also (1, 1, S, S): mean 0.5, standard deviation 1, outside 0.5."""
    count = mask.sum((-2, -1), keepdim=True).clamp(min=1)
    off = (grey - (grey * mask).sum((-2, -1), keepdim=True) / count) * mask
    return 0.5 + off / (off.square().sum((-2, -1), keepdim=True) / count).sqrt().clamp(min=0.01)


def depth_map(
    model: MorphableModel, r: Tensor, size: int = SIDE, through: Literal["z", "xyz"] = "z"
) -> tuple[Tensor, Tensor]:
    """The rendering layer of Section 4.1: depth (B, 1, S, S) in mm of the faces r (B, P), and its mask.

    A pixel's depth is that of its triangle, by barycentric weights (Eq. 6). Gradients go to the vertices'
    depths, with those weights (Eq. 7); with `through` "xyz" also to their places on the screen, which the
    paper leaves as an alternative. (The weights are perspective-correct; 10 m away that is Eq. 6.)
    """
    face = decode(model, r, size)
    screen = face.camera.project(face.surface(model).vertices)
    if through == "z":
        screen = torch.cat([screen[..., :2].detach(), screen[..., 2:]], -1)
    face_index = rasterizer.rasterize(screen, model.triangles, size, size)
    _, depth = rasterizer.interpolate(screen, model.triangles, face_index, screen[..., :0])
    return depth, (face_index >= 0)[:, None]


class GeometryLoss:
    """Eq. 4: |A â - A a|² over all vertices, as a mean in mm² per vertex, (B,).

    A quadratic form in the coefficients, so no vertex is computed: its Gram matrix (K, K) is, once.
    """

    def __init__(self, model: MorphableModel) -> None:
        sizes = layout(model).sizes
        basis = torch.cat(
            [model.identity_basis[: sizes["identity"]], model.expression_basis[: sizes["expression"]]]
        ).flatten(1)
        self.gram = basis @ basis.T / len(model.mean)
        self.count = len(basis)

    def __call__(self, estimate: Tensor, truth: Tensor) -> Tensor:
        """Of vectors (B, P), their poses left out."""
        difference = (estimate - truth)[..., : self.count]
        return ((difference @ self.gram) * difference).sum(-1)


def pose_loss(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error (B,) of the six pose parameters of vectors (B, P), in their units (Section 3.3)."""
    return (estimate - truth)[..., -6:].square().mean(-1)


@torch.no_grad()
def iterate(
    network: nn.Module,
    model: MorphableModel,
    images: Tensor,
    iterations: int = 4,
    channels: tuple[str, ...] = ("pncc", "normals"),
) -> list[Tensor]:
    """Section 3.4: what the network says (B, P) of square pictures (B, 3, S, S) after each iteration.

    The first one sees the mean face. Raises ParameterError if an answer is not finite.
    """
    r, said = layout(model).zeros(1).to(images), []
    for _ in range(iterations):
        r = network(network_input(model, r, images, channels))
        layout(model).check(r)
        said.append(r)
    return said


def make_network(kind: str, model: MorphableModel, channels: str, seed: int = 0) -> nn.Module:
    """(B, 1 + 3 · channels, S, S) -> (B, layout.size), random: a kind of `networks.encoder`, a name of
    `CHANNELS`. Raises ParameterError for names that do not exist."""
    if channels not in CHANNELS:
        raise ParameterError(f"There is no feedback {channels!r}; choose from {', '.join(CHANNELS)}.")
    inputs, random = 1 + 3 * len(CHANNELS[channels]), torch.Generator().manual_seed(seed)
    return encoder(kind, layout(model).size, "normal", None, inputs, random)


def load_network(path: str | Path, model: MorphableModel) -> tuple[nn.Module, dict[str, Any]]:
    """A network that `data_scripts/train_coarsenet.py` trained, ready for use, and its card. Raises
    ModelFileError."""

    def build(card: dict[str, Any]) -> nn.Module:
        if card["method"] != "CoarseNet":
            raise ParameterError("It is no CoarseNet.")
        return make_network(card["network"], model, card["channels"])

    network, card = load_trained(path, "train_coarsenet.py", build)
    return network.eval(), card


class CoarseNet:
    """A trained network as a method: picture in, `Reconstruction` out, without skin and light.

    Args:
        network: (B, 1 + 3 · channels, S, S) -> (B, layout.size), as `data_scripts/train_coarsenet.py` trains.
        side: px of the pictures that it takes.
        model: the face model that it was trained with, on the level of detail that draws its feedback.
        iterations: how often it looks.
        detector: finds the square around the face, as `methods.mofa.face_square` cuts it.
        channels: what it is fed back.
    """

    name = "coarsenet"

    def __init__(
        self,
        network: nn.Module,
        side: int = SIDE,
        model: MorphableModel | None = None,
        iterations: int = 4,
        detector: LandmarkDetector | None = None,
        channels: tuple[str, ...] = CHANNELS["both"],
    ) -> None:
        self.network, self.side, self.iterations, self.detector = network.eval(), side, iterations, detector
        self.channels = channels
        self.model = model or MorphableModel.load(subdivisions=0)
        self.fine = MorphableModel.load() if model is None else model

    @classmethod
    def load(cls, path: str | Path = "coarsenet", iterations: int = 4) -> "CoarseNet":
        """From a checkpoint, by default the shipped one. Raises ModelFileError if it is not what it says."""
        network, card = load_network(path, MorphableModel.load(subdivisions=0))
        return cls(network, card["side"], iterations=iterations, channels=CHANNELS[card["channels"]])

    def look(self, image: Tensor, side: int | None = None) -> tuple[Crop, Tensor]:
        """The square around the face in a (3, H, W) sRGB picture, at `side` px, and what the network says
        (P,) about it. Raises NoFaceError and what `check_image` raises.

        As for MoFA, what it says of a detector's box frames the face a second time, better; the paper keeps
        the first.
        """
        check_image(image)
        first = face_square(image, self.detector, self.side)
        found = decode(self.model, self._say(first), self.side).in_photo(first).landmarks(self.model)
        crop = crop_face(image, found, side or self.side)
        return crop, self._say(crop)

    def _say(self, crop: Crop) -> Tensor:
        """(P,) after all iterations, of a square around a face."""
        small = shrunk(crop.image[None], self.side)
        return iterate(self.network, self.model, small, self.iterations, self.channels)[-1][0]

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """The face in a (3, H, W) sRGB picture. Raises NoFaceError and what `check_image` raises."""
        crop, r = self.look(image)
        face = decode(self.model, r, self.side).in_photo(crop)
        return Reconstruction.of(face, self.fine, *image.shape[-2:])


class OneLook(CoarseNet):
    """The same network after its first iteration: what feedback is compared with."""

    name = "coarsenet, one look"

    @classmethod
    def load(cls, path: str | Path = "coarsenet", iterations: int = 1) -> "CoarseNet":
        """See `CoarseNet.load`."""
        return super().load(path, iterations)


def shrunk(images: Tensor, side: int) -> Tensor:
    """Square pictures (B, 3, S, S) at side×side px."""
    if images.shape[-1] == side:
        return images
    return interpolate(images, (side, side), mode="bilinear", antialias=images.shape[-1] > side)


class LandmarkFace:
    """What stands in for CoarseNet where none is trained: the face that fits detected landmarks, as a vector
    r.

    Args:
        model: the face model, on any level of detail.
        detector: finds the landmarks.
    """

    def __init__(self, model: MorphableModel | None = None, detector: LandmarkDetector | None = None) -> None:
        self.model, self.detector = model or MorphableModel.load(subdivisions=0), detector
        self.fine = MorphableModel.load() if model is None else model

    def look(self, image: Tensor, side: int = SIDE) -> tuple[Crop, Tensor]:
        """The square around the face in a (3, H, W) sRGB picture, at `side` px, and its vector (P,).
        Raises NoFaceError and what `check_image` raises."""
        check_image(image)
        crop = crop_face(image, find_face(image, self.detector).landmarks, side)
        return crop, self.vector(crop.landmarks, side)

    def vector(self, landmarks: Tensor, side: int) -> Tensor:
        """The vector (P,) of the face that fits landmarks (68, 2) px of a picture of side×side."""
        settings = Settings(identity=layout(self.model).sizes["identity"])
        fit = fit_landmarks(self.model, [landmarks * (settings.size / side)], settings)[0]
        return vectors_of(self.model, fit.face(side), side)
