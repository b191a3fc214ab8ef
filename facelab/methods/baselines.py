"""Fitting as methods of the scoreboard: in full, from landmarks alone, and the average face.

What every other method is compared with.
"""

from dataclasses import replace

import torch
from torch import Tensor

from facelab.methods.energy import Settings
from facelab.methods.fitting import fit_landmarks, reconstruct
from facelab.methods.textures import unwrap
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.photos import crop_face, find_face
from facelab.support.errors import ParameterError


class LandmarkFitting:
    """Pose, shape and expression from detected landmarks; the average skin under white light."""

    name = "landmark fitting"
    settings = Settings()

    def __init__(self) -> None:
        self.coarse, self.model = (MorphableModel.load(subdivisions=n) for n in (0, 1))

    def reconstruct(self, image: Tensor) -> Reconstruction:
        crop = crop_face(image, find_face(image).landmarks, size=self.settings.size)
        fit = fit_landmarks(self.coarse, [crop.landmarks], self.settings)[0]
        return replace(fit, crop=crop).reconstruction(image, self.model)


class AverageFace(LandmarkFitting):
    """The average face and skin, turned and moved to the detected landmarks: what nothing should lose to."""

    name = "average face"
    settings = Settings(identity=1, expression=1, albedo=1)

    def __init__(self) -> None:
        super().__init__()
        rigid = self.coarse.truncate(1, 1, 1)
        still = torch.zeros_like(rigid.identity_basis)
        self.coarse = replace(rigid, identity_basis=still, expression_basis=still)


class FullFitting(LandmarkFitting):
    """Fitting by optimisation: landmarks, then colours, coarse to fine (`methods.fitting`)."""

    name = "full fitting"

    def reconstruct(self, image: Tensor) -> Reconstruction:
        return reconstruct(image, settings=self.settings)[0].reconstruction(image, self.model)


class FittingOwnSkin(FullFitting):
    """Fitting by optimisation, then the skin that the photograph shows in place of the model's."""

    name = "own skin"

    def reconstruct(self, image: Tensor) -> Reconstruction:
        return self.dressed(super().reconstruct(image), image)

    def dressed(self, said: Reconstruction, image: Tensor) -> Reconstruction:
        """A fit of the picture, with the picture's skin. Raises ParameterError for one without a face."""
        face = said.face
        if face is None:
            raise ParameterError("This reconstruction has no coefficients, so no skin can be laid on it.")
        counts = (part.shape[-1] for part in (face.identity, face.expression, face.albedo))
        model = self.model.truncate(*counts)
        return Reconstruction.of(replace(face, texture=unwrap(face, image, model)), model, *image.shape[-2:])
