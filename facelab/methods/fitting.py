"""Fitting by optimisation: the baseline that all five papers compare with (Garrido 2013, Thies 2016).

Pose, shape and expression from 68 landmarks first; then, coarse to fine, colours of visible vertices,
landmarks and the model's prior together, by Levenberg-Marquardt on the energy of `energy.py`. `fit_adam` is
the teacher's version of the same energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from facelab import losses
from facelab.geometry.camera import PerspectiveCamera
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
from facelab.methods.exposure import normalise_exposure
from facelab.methods.initialisation import initial_light, initial_pose
from facelab.methods.residuals import Estimate, VertexBases, shrink, unknowns
from facelab.methods.segmentation import visible_part
from facelab.model.face import Face
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import Reconstruction
from facelab.photos import Crop, LandmarkDetector, crop_face, find_face, load_photo
from facelab.rendering.illumination import SphericalHarmonicsLight
from facelab.rendering.image_formation import Picture
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line

Progress = Callable[[str, float], None]
LEAST_CONFIDENCE = 0.1  # of a landmark; below, its expected error grows no further


@one_line
@dataclass(frozen=True)
class Fit:
    """A reconstruction: the estimate, and what is needed to draw it."""

    estimate: Estimate
    model: MorphableModel
    settings: Settings
    energies: list[float] = field(default_factory=list)
    crop: Crop | None = None

    def face(self, size: int | None = None) -> Face:
        """The estimate in the crop, drawn at `size` pixels (default: the size that was fitted)."""
        e, camera = self.estimate, self.camera(size)
        return Face(e.identity, e.expression, e.albedo, camera, SphericalHarmonicsLight(e.light))

    def camera(self, size: int | None = None) -> PerspectiveCamera:
        """The camera of the crop, drawn at `size` pixels."""
        size = size or self.settings.size
        return self.estimate.camera(self.settings.focal * size, size)

    def vertices(self, model: MorphableModel | None = None) -> Tensor:
        """(V, 3) mm in model space, for any level of detail of the same model."""
        return self.face().surface(model or self.model).vertices

    def landmarks(self, size: int | None = None) -> Tensor:
        """(68, 2) pixels: the model's own landmarks, projected."""
        return self.face(size).landmarks(self.model)

    def render(self, size: int | None = None, model: MorphableModel | None = None) -> Picture:
        """Draw the estimate, on black."""
        size = size or self.settings.size
        return self.face(size).render(model or self.model, size, size)

    def reconstruction(self, image: Tensor, model: MorphableModel | None = None) -> Reconstruction:
        """The same in the pixels of `image` (3, H, W): what the crop was cut from, or the crop itself."""
        face = self.face() if self.crop is None else self.face().in_photo(self.crop)
        return Reconstruction.of(face, model or self.model, *image.shape[-2:])


# -------------------------------------------------------------------------------------------- whole fits


def fit_landmarks(
    model: MorphableModel,
    landmarks: Sequence[Tensor],
    settings: Settings | None = None,
    spreads: Sequence[Tensor | None] | None = None,
) -> list[Fit]:
    """Pose, identity and expression of one person from landmarks alone.

    Args:
        model: any level of detail.
        landmarks: (68, 2) pixels in a square crop of `settings.size`, one per photograph.
        settings: weights.
        spreads: for each photograph, (68, 1) factors on the landmarks' expected errors, or None.

    Returns:
        one fit per photograph, with the average skin under white light.

    Raises:
        ParameterError: no landmarks, of another shape or not finite; a face model that has none.
    """
    settings = settings or Settings()
    if not len(landmarks):
        raise ParameterError("There is nothing to fit; give at least one photograph or its landmarks.")
    if model.landmark_triangles.numel() == 0:
        raise ParameterError(f"The face model '{model.name}' has no landmarks; convert it again.")
    model, focal, estimates = _used_part(model, settings), settings.focal * settings.size, []
    spreads = spreads or [None] * len(landmarks)
    for points, spread in zip(landmarks, spreads, strict=True):
        if points.shape != (68, 2) or not bool(torch.isfinite(points).all()):
            raise ParameterError(f"Landmarks must be 68 finite points (68, 2), not {tuple(points.shape)}.")
        zeros = {k: model.mean.new_zeros(v) for k, v in _sizes(model).items()}
        rotation, translation = initial_pose(model, points.to(model.mean), focal, settings.size, spread)
        light = model.mean.new_zeros(9, 3)
        light[0] = 3.0
        estimates.append(Estimate(**zeros, rotation=rotation, translation=translation, light=light))
    sigma = settings.landmark_sigma[0]
    views = [View(p.to(model.mean), landmark_sigma=sigma, spread=f) for p, f in zip(landmarks, spreads)]
    problem = Problem(VertexBases(model), views, settings)
    estimates, energies = levenberg_marquardt(problem, estimates, settings.landmark_iterations)
    return [Fit(e, model, settings, energies) for e in estimates]


def _used_part(model: MorphableModel, settings: Settings) -> MorphableModel:
    """As many components as the settings ask for, or all that the model has."""
    sizes = _sizes(model)
    return model.truncate(**{name: min(count, getattr(settings, name)) for name, count in sizes.items()})


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
    inside: Sequence[Tensor] | None = None,
    confidences: Sequence[Tensor] | None = None,
) -> list[Fit]:
    """Everything, from the crops of one person: landmarks first, then colours, coarse to fine.

    The coarsest level is tried twice, the second time with little trust in the landmarks: a detector that
    was fooled would hold the face where it is not. The second start is kept if it explains the colours far
    better, which a rendered or a well-lit face allows and hair and shadows do not.

    Repeats to about 1e-5 standard deviations on one machine (sums in parallel have no fixed order).

    Args:
        images: (3, S, S) sRGB crops in [0, 1] with S = `settings.size`; everything is computed where the
            model is, or, without one, where the first crop is.
        landmarks: (68, 2) pixels in each crop.
        model: the shipped model by default. One per level of detail is loaded as `settings.levels` says if
            this is None; a given model is used at every level, with as many components as it has.
        settings: weights and schedule.
        progress: called with a sentence and the fraction done.
        inside: (1, S, S) bool for each crop, `Crop.inside`: where it lies on the photograph. What is outside
            does not count. Default: everywhere.
        confidences: (68,) in [0, 1] for each crop, `Crop.confidence`. Default: 1.

    Returns:
        one fit per crop; identity and albedo are the same in all.

    Raises:
        ParameterError: crops, landmarks or masks that are no such tensors or not equally many; a face outside
            its crop.
    """
    settings = settings or Settings()
    tell = progress or (lambda text, fraction: None)
    inside = inside or [torch.ones(1, settings.size, settings.size, dtype=torch.bool)] * len(images)
    confidences = confidences or [torch.ones(68)] * len(images)
    _check_crops(images, landmarks, inside, confidences, settings.size)
    details = {subdivisions for _, subdivisions, _ in settings.levels}
    models = {n: model or MorphableModel.load(subdivisions=n, device=images[0].device) for n in details}
    tell("landmarks", 0.0)
    coarse = models[settings.levels[0][1]]
    where = [mask.to(coarse.mean.device) for mask in inside]
    points = [p.to(coarse.mean) for p in landmarks]
    spreads = [c.to(p)[:, None].clamp(min=LEAST_CONFIDENCE) ** -1 for c, p in zip(confidences, points)]
    fits = fit_landmarks(coarse, points, settings, spreads)
    views = []
    for image, p, mask, spread in zip(images, points, where, spreads):
        normalised, exposure = normalise_exposure(image.to(coarse.mean), p, mask)
        views.append(View(p, normalised, inside=mask, spread=spread, exposure=exposure))
    estimates, energies = [fit.estimate for fit in fits], list(fits[0].energies)
    done, total = 0, sum(level[2] for level in settings.levels)
    fine, trust = fits[0].model, settings
    for stage, (size, subdivisions, iterations) in enumerate(settings.levels):
        tell(f"colours at {size} px", done / max(total, 1))
        fine = _used_part(models[subdivisions], settings)
        bases, smaller = VertexBases(fine), [_shrunk(view, size) for view in views]
        if stage == 0:
            estimates = [_lit(bases, e, view, settings) for e, view in zip(estimates, smaller)]
            doubt = replace(settings, landmark_sigma=settings.doubted_sigma)
            second, second_energies = _descend(bases, estimates, smaller, doubt, iterations)
        estimates, more = _descend(bases, estimates, smaller, trust, iterations)
        if stage == 0:
            noise, less = (
                sum(observe(bases, e, view, settings).colour_sigma for e, view in zip(start, smaller))
                for start in (estimates, second)
            )
            if less < settings.doubt * noise:
                estimates, more, trust = second, second_energies, doubt
        energies += more
        done += iterations
    tell("done", 1.0)
    lit = [replace(e, light=e.light / view.exposure.gain) for e, view in zip(estimates, views)]
    return [Fit(e, fine, settings, energies) for e in lit]


def _check_crops(
    images: Sequence[Tensor],
    landmarks: Sequence[Tensor],
    inside: Sequence[Tensor],
    confidences: Sequence[Tensor],
    size: int,
) -> None:
    if not len(images):
        raise ParameterError("There is nothing to fit; give at least one photograph.")
    counts = [len(part) for part in (images, landmarks, inside, confidences)]
    if len(set(counts)) > 1:
        raise ParameterError(f"Crops, landmarks, masks and confidences are equally many, not {counts}.")
    for image, mask in zip(images, inside):
        if image.shape != (3, size, size) or mask.shape != (1, size, size):
            shapes = f"{tuple(image.shape)} and {tuple(mask.shape)}"
            raise ParameterError(f"Crops must be (3, {size}, {size}), their masks (1, …), not {shapes}.")
        if not (image.is_floating_point() and bool(((image >= 0) & (image <= 1)).all())):
            raise ParameterError("Crops are floating-point sRGB in [0, 1]; divide 8-bit values by 255.")


def _shrunk(view: View, size: int) -> View:
    assert view.image is not None and view.inside is not None
    inside = shrink(view.inside.to(view.image), size) > 0.99
    return replace(view, image=shrink(view.image, size), inside=inside)


def _lit(bases: VertexBases, estimate: Estimate, view: View, settings: Settings) -> Estimate:
    """The estimate with the light that explains the view if the skin is average."""
    assert view.image is not None
    size = view.image.shape[-1]
    camera = estimate.camera(settings.focal * size, size)
    return replace(estimate, light=initial_light(bases, estimate, camera, view.image, view.inside))


def _descend(
    bases: VertexBases,
    estimates: Sequence[Estimate],
    views: Sequence[View],
    settings: Settings,
    iterations: int,
) -> tuple[list[Estimate], list[float]]:
    """One level of `fit_photos`: estimate the noise, then minimise."""
    problem = Problem(bases, [observe(bases, e, v, settings) for e, v in zip(estimates, views)], settings)
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
            + losses.prior(estimate.identity)
            + losses.prior(estimate.albedo)
            + losses.prior(estimate.expression)
        )
        adam.zero_grad()
        energy.backward()
        adam.step()
        energies.append(float(energy.detach()))
    estimate = start.estimate.moved(layout.split((step * unit).detach()))
    return replace(start, estimate=estimate, energies=energies)


def reconstruct(
    photo: Tensor | str | Path | Sequence[Tensor | str | Path],
    model: MorphableModel | None = None,
    settings: Settings | None = None,
    detector: LandmarkDetector | None = None,
    face: int | None = None,
    progress: Progress | None = None,
    mask: bool = True,
) -> list[Fit]:
    """From photographs of one person to fits: find the face, crop, fit.

    Args:
        photo: a picture (3, H, W) sRGB in [0, 1] or the path of one, or several of the same person.
        model, settings, progress: see `fit_photos`.
        detector: finds faces and landmarks; dlib by default.
        face: which face of a picture with several; the largest by default.
        mask: leave out what covers the face, see `visible_part`.

    Raises:
        NoFaceError, FaceIndexError, ImageTooSmallError: see `photos.find_face`, and `photos.load_photo`.
    """
    settings = settings or Settings()
    crops = []
    for item in [photo] if isinstance(photo, (Tensor, str, Path)) else photo:
        picture = item.float() if isinstance(item, Tensor) else load_photo(item)
        found = find_face(picture, detector=detector, index=face)
        crops.append(crop_face(picture, found.landmarks, size=settings.size))
    images, landmarks = [c.image for c in crops], [c.landmarks for c in crops]
    inside = [visible_part(c) if mask else c.inside for c in crops]
    confidences = [c.confidence for c in crops]
    fits = fit_photos(images, landmarks, model, settings, progress, inside, confidences)
    return [replace(fit, crop=crop) for fit, crop in zip(fits, crops)]
