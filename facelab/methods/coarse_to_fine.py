"""CoarseNet, the rendering layer and FineNet in one (Richardson et al. 2017, Figure 3): a detailed face.

    method = CoarseToFine.load("runs/finenet/finenet.safetensors", side=400)    # with the shipped CoarseNet
    said = method.reconstruct(photo)            # a mesh with folds, on the face model's finest level
    seen = method.look(photo)                   # depth maps, face and crop

End to end training is `EndToEnd` (Figure 7): the criterion's gradient goes through the depth map to
CoarseNet, whose answer is held near the one it gave before.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.methods.coarsenet import CoarseNet, LandmarkFace, decode, iterate, layout, network_input, shrunk
from facelab.methods.finenet import SMALLEST, WEIGHTS, FineNet, observe
from facelab.methods.relief import Detail, displaced
from facelab.methods.shading_criterion import Weights
from facelab.model.face import Face
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Mesh, Reconstruction
from facelab.photos import Crop
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line

COARSE_FIDELITY = 10.0  # of the mean squared change of CoarseNet's vector, in the sum of Figure 7


@one_line
@dataclass(frozen=True, eq=False)
class Look:
    """What CoarseNet and FineNet say about one photograph, in the pixels of a square crop."""

    crop: Crop
    face: Face
    """the coarse face; its camera takes it to the crop"""
    r: Tensor
    """(P,) CoarseNet's vector"""
    detail: Detail
    """coarse and fine depth (1, S, S) mm"""


class CoarseToFine:
    """Both networks as a method: picture in, `Reconstruction` out, with folds in its mesh.

    Args:
        coarse: a trained CoarseNet; or the face that fits landmarks, where there is none.
        fine: a trained FineNet.
        side: px of FineNet's pictures, at least 64. It was trained on 200 and takes any size: at 400 it sees
            more detail (Figure 11).
        robust: detail is looked for where the face's own light and albedo explain the picture, and not in
            hair or on glasses; see `finenet.observe`.
    """

    name = "coarse to fine"

    def __init__(
        self, coarse: CoarseNet | LandmarkFace, fine: FineNet, side: int = 200, robust: bool = True
    ) -> None:
        if side < SMALLEST:
            raise ParameterError(f"FineNet takes pictures of at least {SMALLEST} px, not {side}.")
        self.coarse, self.fine, self.side, self.robust = coarse, fine.eval(), side, robust
        self.finest = MorphableModel.load(subdivisions=2)

    @classmethod
    def load(cls, path: str | Path, side: int = 200) -> CoarseToFine:
        """The shipped CoarseNet with a FineNet of `data_scripts/train_finenet.py`. Raises ModelFileError."""
        return cls(CoarseNet.load(), FineNet.load(path), side)

    @torch.no_grad()
    def look(self, image: Tensor) -> Look:
        """Depth maps of the face in a (3, H, W) sRGB picture. Raises NoFaceError and what `check_image`
        raises."""
        crop, r = self.coarse.look(image, self.side)
        view = observe(self.coarse.fine, r[None], crop.image[None], robust=self.robust)
        fine = self.fine(crop.image[None], view.coarse, view.mask, view.camera.scale)
        face = decode(self.coarse.model, r, self.side)
        assert isinstance(face.camera, WeakPerspectiveCamera)
        return Look(crop, face, r, Detail(view.coarse[0], fine[0], view.mask[0], face.camera))

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """The face in a (3, H, W) sRGB picture. Raises NoFaceError and what `check_image` raises."""
        seen = self.look(image)
        said = Reconstruction.of(seen.face.in_photo(seen.crop), self.finest, *image.shape[-2:])
        vertices = displaced(seen.face.surface(self.finest), seen.detail)
        mesh = Mesh(vertices, said.mesh.triangles, self.finest.landmarks(vertices), said.mesh.topology)
        return replace(said, mesh=mesh)


class EndToEnd(nn.Module):
    """Figure 7: both networks under the criterion and the two fidelity terms.

    Args:
        model: the face model, on the level of detail that draws feedback and depth.
        coarse: CoarseNet's network. It is trained on; a copy keeps what it says now.
        fine: FineNet.
        side: px of CoarseNet's pictures.
    """

    def __init__(
        self, model: MorphableModel, coarse: nn.Module, fine: FineNet, side: int, iterations: int = 4
    ) -> None:
        super().__init__()
        self.model, self.coarse, self.fine, self.side, self.iterations = model, coarse, fine, side, iterations
        self.original = copy.deepcopy(coarse).requires_grad_(False)

    def forward(
        self, images: Tensor, weights: Weights = WEIGHTS, coarse_fidelity: float = COARSE_FIDELITY
    ) -> dict[str, Tensor]:
        """{"fine", "coarse", "total"}, each (B,), of pictures (B, 3, S, S).

        "fine" is Eq. 14 with its own fidelity term, "coarse" the mean squared difference between what
        CoarseNet says and what it said before this training. The last of its looks has a gradient, and that
        comes through the depth map, too. BatchNorm keeps the averages of CoarseNet's own training.
        """
        self.coarse.eval()
        r = self.answer(self.coarse, images)
        view = observe(self.model, r, images, robust=True)
        fine = self.fine(images, view.coarse, view.mask, view.camera.scale)
        with torch.no_grad():
            before = self.answer(self.original.eval(), images)
        loss, held = view.loss(fine, weights)["total"], (r - before).square().mean(-1)
        return {"fine": loss, "coarse": held, "total": loss + coarse_fidelity * held}

    def answer(self, network: nn.Module, images: Tensor) -> Tensor:
        """The vectors (B, P) after a CoarseNet's last look, with a gradient to its weights from that one."""
        small, r = shrunk(images, self.side), layout(self.model).zeros(len(images)).to(images)
        if self.iterations > 1:
            r = iterate(network, self.model, small, self.iterations - 1)[-1]
        return network(network_input(self.model, r, small))
