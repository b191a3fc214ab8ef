"""Rendered faces with their truth: a spec decides on every pixel.

renderer = Renderer(CorpusSpec("inversefacenet", seed=1))
batch = renderer.batch(0)        # a function of (spec, number) alone, on one kind of processor
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelab.model.face import draw
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.photos import landmark_mask
from facelab.photos.folders import list_pictures, random_piece
from facelab.support.errors import ParameterError
from facelab.support.files import sha256_of
from facelab.support.tensors import send
from facelab.synthetic.augmentation import Degradations, degrade, occlude, procedural_backgrounds
from facelab.synthetic.distributions import DISTRIBUTIONS


@dataclass(frozen=True)
class CorpusSpec:
    """Everything that decides what a corpus looks like. Raises ParameterError for what cannot be."""

    distribution: str = "portrait"
    seed: int = 0
    size: int = 240
    """pixels"""
    subdivisions: int = 1
    """of the face model"""
    background: str = "procedural"
    """"black", "procedural", or a folder of photographs (best without faces)"""
    occluders: float = 0.0
    """probability of hair, of glasses, of a hand"""
    degradations: Degradations | None = None
    batch: int = 16  # larger ones are slower on a CPU: memory comes fresh from the system each time
    model: str | None = None
    """file of another face model"""

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            names = ", ".join(DISTRIBUTIONS)
            raise ParameterError(f"There is no distribution {self.distribution!r}: choose from {names}.")
        if min(self.size, self.batch) < 1 or not 0 <= self.occluders <= 1 or not 0 <= self.seed < 2**63:
            raise ParameterError(
                f"A corpus needs a positive size and batch, 0 <= occluders <= 1, seed >= 0: {self}."
            )


class Renderer:
    """A spec with its model and backgrounds loaded: makes batches."""

    def __init__(self, spec: CorpusSpec, device: str = "cpu") -> None:
        self.spec, self.device = spec, device
        self.distribution = DISTRIBUTIONS[spec.distribution]
        self.model = MorphableModel.load(spec.model, spec.subdivisions, device)
        self.photos = [] if spec.background in ("black", "procedural") else list_pictures(spec.background)

    def describe(self) -> dict[str, Any]:
        """All that decides on the pictures, for the manifest."""
        background = self.spec.background
        if self.photos:
            files = "".join(f"{path.name} {path.stat().st_size}\n" for path in self.photos)
            background = "photographs " + hashlib.sha256(files.encode()).hexdigest()
        model = sha256_of(Path(self.spec.model or DEFAULT_MODEL))
        spec = asdict(self.spec) | {"background": background, "model": model}
        return {"spec": spec, "layout": self.distribution.layout(self.model).sizes}

    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch number `index`: image (B, 3, S, S) in [0, 1], mask (B, 1, S, S) bool of the visible face,
        landmarks (B, 68, 2) px, parameters (B, layout.size), on the renderer's device."""
        state = np.random.SeedSequence([self.spec.seed, index]).generate_state(1, np.uint64)
        generator = torch.Generator("cpu").manual_seed(int(state[0] >> np.uint64(1)))
        theta = self.distribution.sample(self.model, self.spec.batch, generator)
        return self.picture(theta, generator)

    @torch.no_grad()
    def picture(self, theta: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The same for given parameters (B, layout.size); the generator decides on what is not in them."""
        spec, size = self.spec, self.spec.size
        theta = send(theta, self.device)
        faces = self.distribution.decode(self.model, theta, size)
        surface, masked = faces.surface(self.model), self.distribution.masked
        landmarks = faces.camera.project(surface.landmarks)[..., :2]
        background = None if masked else self._backgrounds(len(theta), generator)
        picture = draw(
            surface, faces.camera, faces.light, size, size, background=background, antialias=not masked
        )
        image, mask = picture.image.clamp(0, 1), picture.mask
        if masked:
            hulls = [landmark_mask(points, size, size, True) for points in landmarks.cpu()]  # waits for a GPU
            mask = mask & send(torch.stack(hulls), mask)
            image = image * mask
        elif spec.occluders > 0:
            image, mask = occlude(image, mask, landmarks, spec.occluders, generator)
        if spec.degradations:
            image = degrade(image, spec.degradations, generator)
            image = image * mask if masked else image
        return {"image": image, "mask": mask, "landmarks": landmarks, "parameters": theta}

    def _backgrounds(self, count: int, generator: torch.Generator) -> Tensor | None:
        size = self.spec.size
        if self.spec.background == "black":
            return None
        if self.photos:
            pieces = torch.stack([random_piece(self.photos, size, generator) for _ in range(count)])
            return send(pieces, self.device).float() / 255
        return procedural_backgrounds(count, size, size, generator, self.device)
