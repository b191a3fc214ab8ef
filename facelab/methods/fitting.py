"""Fitting by optimisation: the baseline that all five papers compare with (Garrido 2013, Thies 2016).

Pose, shape and expression from 68 landmarks first; then, coarse to fine, colours of visible vertices,
landmarks and the model's prior together, by Levenberg-Marquardt on the energy of `energy.py`. `fit_adam` is
the teacher's version of the same energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import roma
import torch
from torch import Tensor

from facelab.camera import PerspectiveCamera
from facelab.colour import srgb_to_linear
from facelab.errors import ParameterError
from facelab.geometry import vertex_normals
from facelab.illumination import SphericalHarmonicsLight, sh_basis
from facelab.image_formation import Picture, render
from facelab.methods.energy import (
    Problem,
    Settings,
    View,
    independent_observations,
    landmark_sigmas,
    levenberg_marquardt,
    light_prior,
    observe,
)
from facelab.methods.residuals import Estimate, VertexBases, shrink, unknowns, visible_vertices
from facelab.morphable_model import MorphableModel
from facelab.photos import Crop, LandmarkDetector, crop_face, find_face
from facelab.records import Reconstruction

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Fit:
    """A reconstruction: the estimate, and what is needed to draw it."""

    estimate: Estimate
    model: MorphableModel
    settings: Settings
    energies: list[float] = field(default_factory=list)
    crop: Crop | None = None

    def camera(self, size: int | None = None) -> PerspectiveCamera:
        """The camera of the crop, drawn at `size` pixels (default: the size that was fitted)."""
        size = size or self.settings.size
        return self.estimate.camera(self.settings.focal * size, size)

    def vertices(self, model: MorphableModel | None = None) -> Tensor:
        """(V, 3) mm in model space, for any level of detail of the same model."""
        return _fitted_part(model or self.model, self.estimate).vertices(
            self.estimate.identity, self.estimate.expression
        )

    def landmarks(self, size: int | None = None) -> Tensor:
        """(68, 2) pixels: the model's own landmarks, projected."""
        points = self.model.landmarks(self.vertices(), self.estimate.rotation)
        return self.camera(size).project(points)[:, :2]

    def render(self, size: int | None = None, model: MorphableModel | None = None) -> Picture:
        """Draw the estimate, on black."""
        size = size or self.settings.size
        model = _fitted_part(model or self.model, self.estimate)
        diffuse, _ = model.albedo(self.estimate.albedo)
        light = SphericalHarmonicsLight(self.estimate.light)
        return render(
            self.vertices(model), model.triangles, self.camera(size), light, diffuse, None, size, size
        )

    def reconstruction(self, image: Tensor, model: MorphableModel | None = None) -> Reconstruction:
        """The same in the pixels of `image` (3, H, W): what the crop was cut from, or the crop itself."""
        camera = self.camera()
        if self.crop is not None:  # a crop shifts and scales, no more
            camera = replace(
                camera,
                focal=camera.focal / self.crop.matrix[0, 0].to(camera.focal),
                principal=self.crop.to_photo(camera.principal),
            )
        said, model = self.estimate, _fitted_part(model or self.model, self.estimate)
        parts = {"identity": said.identity, "expression": said.expression, "albedo": said.albedo}
        height, width = image.shape[-2:]
        return Reconstruction.from_coefficients(model, camera, height, width, **parts, light=said.light)


def _fitted_part(model: MorphableModel, estimate: Estimate) -> MorphableModel:
    return model.truncate(len(estimate.identity), len(estimate.expression), len(estimate.albedo))


# ------------------------------------------------------------------------------------------- first guesses


def initial_pose(model: MorphableModel, landmarks: Tensor, focal: float, size: int) -> tuple[Tensor, Tensor]:
    """Rotation (3, 3) and translation (3,) of the mean face from (68, 2) landmarks, without iterations.

    A scaled orthographic camera by linear least squares over the 51 inner points (POS, DeMenthon and Davis
    1995), its rows made orthonormal, its scale turned into a distance.
    """
    points = model.landmarks(model.mean)[17:]
    middle = points.mean(0)
    target = landmarks[17:] * landmarks.new_tensor([1.0, -1.0])
    rows = torch.linalg.lstsq(points - middle, target - target.mean(0)).solution.T  # (2, 3)
    rotation = roma.special_procrustes(torch.cat([rows, torch.linalg.cross(rows[:1], rows[1:])], 0))
    depth = focal / (rows.norm(dim=1).mean())
    centre = landmarks[17:].mean(0) - size / 2
    offset = torch.stack([centre[0] * depth / focal, -centre[1] * depth / focal, -depth])
    return rotation, offset - rotation @ middle


def initial_light(bases: VertexBases, estimate: Estimate, camera: PerspectiveCamera, image: Tensor) -> Tensor:
    """SH light (9, 3) that explains the photograph if the skin is average: ridge regression, linear RGB."""
    model = bases.model
    vertices = model.vertices(estimate.identity, estimate.expression)
    seen = visible_vertices(model, vertices, camera, image.shape[-1])
    if len(seen) < 50:
        raise ParameterError("The face is almost outside the picture; crop the photo around the face.")
    column, row = camera.project(vertices[seen])[:, :2].long().unbind(-1)
    observed = srgb_to_linear(image[:, row, column].T)
    basis = sh_basis(vertex_normals(vertices, model.triangles)[seen] @ estimate.rotation.T)
    diffuse = (model.albedo_mean[seen, :3] + bases.albedo[seen] @ estimate.albedo).clamp(min=0.004)
    light = []
    ridge = basis.new_full((9,), 0.05 * len(seen) * float(diffuse.mean()) ** 2)
    ridge[0] = 0.0
    for channel in range(3):
        design = diffuse[:, channel, None] * basis
        light.append(torch.linalg.solve(design.T @ design + ridge.diag(), design.T @ observed[:, channel]))
    return torch.stack(light, -1)


# -------------------------------------------------------------------------------------------- whole fits


def fit_landmarks(
    model: MorphableModel, landmarks: Sequence[Tensor], settings: Settings | None = None
) -> list[Fit]:
    """Pose, identity and expression of one person from landmarks alone.

    Args:
        model: any level of detail.
        landmarks: (68, 2) pixels in a square crop of `settings.size`, one per photograph.
        settings: weights.

    Returns:
        one fit per photograph, with the average skin under white light.

    Raises:
        ParameterError: landmarks of another shape or not finite.
    """
    settings = settings or Settings()
    model = model.truncate(settings.identity, settings.expression, settings.albedo)
    focal = settings.focal * settings.size
    estimates = []
    for points in landmarks:
        if points.shape != (68, 2) or not bool(torch.isfinite(points).all()):
            raise ParameterError(f"Landmarks must be 68 finite points (68, 2), not {tuple(points.shape)}.")
        zeros = {k: model.mean.new_zeros(v) for k, v in _sizes(model).items()}
        rotation, translation = initial_pose(model, points.to(model.mean), focal, settings.size)
        light = model.mean.new_zeros(9, 3)
        light[0] = 3.0
        estimates.append(Estimate(**zeros, rotation=rotation, translation=translation, light=light))
    views = [View(p.to(model.mean), landmark_sigma=settings.landmark_sigma[0]) for p in landmarks]
    problem = Problem(VertexBases(model), views, settings)
    estimates, energies = levenberg_marquardt(problem, estimates, settings.landmark_iterations)
    return [Fit(e, model, settings, energies) for e in estimates]


def _sizes(model: MorphableModel) -> dict[str, int]:
    return {
        "identity": len(model.identity_basis),
        "albedo": len(model.albedo_basis),
        "expression": len(model.expression_basis),
    }


def fit_photos(
    images: Sequence[Tensor],
    landmarks: Sequence[Tensor],
    model: MorphableModel | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Fit]:
    """Everything, from the crops of one person: landmarks first, then colours, coarse to fine.

    The coarsest level is tried twice, the second time with little trust in the landmarks: a detector that
    was fooled would hold the face where it is not. The second start is kept if it explains the colours far
    better, which a rendered or a well-lit face allows and hair and shadows do not.

    Args:
        images: (3, S, S) sRGB crops with S = `settings.size`.
        landmarks: (68, 2) pixels in each crop.
        model: the shipped model by default. One per level of detail is loaded as `settings.levels` says if
            this is None; a given model is used at every level.
        settings: weights and schedule.
        progress: called with a sentence and the fraction done.

    Returns:
        one fit per crop; identity and albedo are the same in all.
    """
    settings = settings or Settings()
    tell = progress or (lambda text, fraction: None)
    for image in images:
        if image.shape != (3, settings.size, settings.size):
            size = settings.size
            raise ParameterError(f"Crops must be (3, {size}, {size}), not {tuple(image.shape)}.")
    details = {subdivisions for _, subdivisions, _ in settings.levels}
    models = {n: model or MorphableModel.load(subdivisions=n) for n in details}
    tell("landmarks", 0.0)
    fits = fit_landmarks(models[settings.levels[0][1]], landmarks, settings)
    estimates, energies = [fit.estimate for fit in fits], list(fits[0].energies)
    done, total = 0, sum(level[2] for level in settings.levels)
    fine, trust = fits[0].model, settings
    for stage, (size, subdivisions, iterations) in enumerate(settings.levels):
        tell(f"colours at {size} px", done / total)
        fine = models[subdivisions].truncate(settings.identity, settings.expression, settings.albedo)
        bases = VertexBases(fine)
        smaller = [shrink(image.to(fine.mean), size) for image in images]
        points = [p.to(fine.mean) for p in landmarks]
        if stage == 0:
            estimates = [
                replace(e, light=initial_light(bases, e, e.camera(settings.focal * size, size), picture))
                for e, picture in zip(estimates, smaller)
            ]
            doubt = replace(settings, landmark_sigma=settings.doubted_sigma)
            second, second_energies = _descend(bases, estimates, points, smaller, doubt, iterations)
        estimates, more = _descend(bases, estimates, points, smaller, trust, iterations)
        if stage == 0:
            noise, less = (
                sum(observe(bases, e, p, i, settings).colour_sigma for e, p, i in zip(start, points, smaller))
                for start in (estimates, second)
            )
            if less < settings.doubt * noise:
                estimates, more, trust = second, second_energies, doubt
        energies += more
        done += iterations
    tell("done", 1.0)
    return [Fit(e, fine, settings, energies) for e in estimates]


def _descend(
    bases: VertexBases,
    estimates: Sequence[Estimate],
    landmarks: Sequence[Tensor],
    images: Sequence[Tensor],
    settings: Settings,
    iterations: int,
) -> tuple[list[Estimate], list[float]]:
    """One level of `fit_photos`: estimate the noise, then minimise."""
    views = [observe(bases, e, p, i, settings) for e, p, i in zip(estimates, landmarks, images)]
    problem = Problem(bases, views, settings)
    problem.correct_size(estimates)
    return levenberg_marquardt(problem, estimates, iterations)


def fit_adam(image: Tensor, landmarks: Tensor, start: Fit, steps: int = 150, rate: float = 0.03) -> Fit:
    """The teacher's version: the same kind of energy, per pixel, by automatic differentiation and Adam.

    Args:
        image: (3, S, S) sRGB crop with S = `start.settings.size`.
        landmarks: (68, 2) pixels in the crop.
        start: where to begin, from `fit_landmarks`.
        steps: of Adam.
        rate: step in standard deviations (and in radians / 3, in 30 mm, in units of light).

    Returns:
        the fit, with the energy at every step.
    """
    model, settings = start.model, start.settings
    layout = unknowns(model)
    step = torch.zeros(layout.size, dtype=model.mean.dtype, device=model.mean.device, requires_grad=True)
    units = {"rotation": 1 / 3, "translation": 30.0}
    unit = layout.join(
        {name: step.new_full((width,), units.get(name, 1.0)) for name, width in layout.sizes.items()}
    )
    sigma = landmark_sigmas(settings.landmark_sigma[0], settings).to(step)
    rows, target = light_prior(settings)
    sigma_c = 0.03  # sRGB; kept, so that the energy is one function from start to end
    adam = torch.optim.Adam([step], lr=rate)
    energies = []
    for _ in range(steps):
        estimate = start.estimate.moved(layout.split(step * unit))
        fit = replace(start, estimate=estimate)
        picture = fit.render()
        distance = (picture.image - image).square().sum(0)[picture.mask[0] > 0.5]
        colours = (distance / (1 + distance / (settings.colour_outlier * sigma_c) ** 2)).mean()
        energy = (
            independent_observations(sigma_c, settings) / sigma_c**2 * colours
            + ((fit.landmarks() - landmarks) / sigma).square().sum()
            + (rows.to(step) @ estimate.light.flatten() - target.to(step)).square().sum()
            + estimate.identity.square().sum()
            + estimate.albedo.square().sum()
            + estimate.expression.square().sum()
        )
        adam.zero_grad()
        energy.backward()
        adam.step()
        energies.append(float(energy.detach()))
    estimate = start.estimate.moved(layout.split((step * unit).detach()))
    return replace(start, estimate=estimate, energies=energies)


def reconstruct(
    photo: Tensor | Sequence[Tensor],
    model: MorphableModel | None = None,
    settings: Settings | None = None,
    detector: LandmarkDetector | None = None,
    face: int | None = None,
    progress: Progress | None = None,
) -> list[Fit]:
    """From photographs (3, H, W) of one person to fits: find the face, crop, fit.

    Args:
        photo: a picture or several of the same person.
        model, settings, progress: see `fit_photos`.
        detector: finds faces and landmarks; dlib by default.
        face: which face of a picture with several; the largest by default.

    Raises:
        NoFaceError, FaceIndexError, ImageTooSmallError: see `photos.find_face`.
    """
    settings = settings or Settings()
    pictures = [photo] if isinstance(photo, Tensor) else list(photo)
    crops = []
    for picture in pictures:
        found = find_face(picture, detector=detector, index=face)
        crops.append(crop_face(picture, found.landmarks, size=settings.size))
    fits = fit_photos([c.image for c in crops], [c.landmarks for c in crops], model, settings, progress)
    return [replace(fit, crop=crop) for fit, crop in zip(fits, crops)]
