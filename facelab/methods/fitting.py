"""Fitting by optimisation: the baseline that all five papers compare with (Garrido 2013, Thies 2016).

Pose, shape and expression from 68 landmarks first; then, coarse to fine, colours of visible vertices,
landmarks and the model's prior together, by Levenberg-Marquardt with the Jacobians of `residuals.py`:

    E = (N / σ_c²) Σ_v ω_v ρ(|c_v - I(u_v)|) + Σ_k w_k |u_k - l_k|² / σ_l² + |α|² + |β|² + |δ|² + |A γ - b|²

It is a maximum a posteriori estimate: coefficients are in standard deviations, σ_c and σ_l are what we
expect of colours (sRGB) and of a landmark detector (pixels at 240 px), and N says how many independent
observations a face's pixels are worth. `fit_adam` is the teacher's version of the same energy.
"""

from __future__ import annotations

import math
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
from facelab.methods.residuals import (
    SHARED,
    Estimate,
    VertexBases,
    robust_weights,
    shrink,
    unknowns,
    visible_vertices,
)
from facelab.morphable_model import MorphableModel
from facelab.photos import Crop, LandmarkDetector, crop_face, find_face

JAW = slice(0, 17)
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """Weights and schedule. Pixels and sizes are those of the square crop."""

    size: int = 240
    focal: float = 3.5  # in crop widths: a head crop taken from about 0.9 m
    identity: int = 128
    expression: int = 64
    albedo: int = 80
    landmark_sigma: tuple[float, float] = (1.5, 6.0)  # px at 240: least and most; estimated in between
    doubted_sigma: tuple[float, float] = (6.0, 20.0)  # the same in the second start, which doubts them
    doubt: float = 0.84  # the second start wins if its colours are off by less than this share of the first's
    jaw_factor: float = 2.0  # jaw points are less certain: detectors guess them along the jaw's line
    landmark_outlier: float = 5.0  # in sigmas: beyond, a landmark is more and more ignored
    colour_sigma: tuple[float, float] = (0.008, 0.12)  # sRGB: least and most; estimated in between
    colour_outlier: float = 3.0  # in sigmas: hair, glasses and cast shadows are further off
    observations: tuple[float, float] = (150.0, 5000.0)  # N where colour_sigma is 0.06, and at most
    exposure: tuple[float, float] = (0.9, 0.3)  # shading of a surface that faces the camera, and its sigma
    light_chroma_sigma: float = 0.15  # coloured light is rare, coloured skin is not
    landmark_iterations: int = 12
    levels: tuple[tuple[int, int, int], ...] = ((60, 0, 12), (60, 0, 6), (120, 1, 8), (240, 1, 8))
    """(size in pixels, subdivisions of the mesh, iterations), coarse to fine."""


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


# ------------------------------------------------------------------------------------------------ solver


@dataclass(frozen=True)
class View:
    """One photograph of the person, cropped."""

    landmarks: Tensor  # (68, 2) px of the crop
    image: Tensor | None = None  # (3, S, S) sRGB at the size that is compared; None: landmarks only
    landmark_sigma: float = 1.2  # px at 240
    colour_sigma: float = 0.1  # what the model is expected not to explain, sRGB


def observe(
    bases: VertexBases, estimate: Estimate, landmarks: Tensor, image: Tensor, settings: Settings
) -> View:
    """A photograph with the noise of its landmarks and colours, estimated around the present estimate.

    A photograph with hair, glasses and cast shadows is explained less well than a rendered face, and its
    colours deserve less trust against its landmarks; of a picture that the model explains well, they deserve
    more than a detector does. Medians of the residuals' lengths, as standard deviations of normal vectors.
    """
    size, level = settings.size, image.shape[-1]
    points, _ = bases.landmark_residuals(estimate, estimate.camera(settings.focal * size, size), landmarks)
    colours, _, _ = bases.photometric_residuals(
        estimate, estimate.camera(settings.focal * level, level), image, jacobian=False
    )
    low, high = settings.landmark_sigma
    pixels = float(points[17:].norm(dim=-1).median()) * 240 / size / 1.177
    dark, light = settings.colour_sigma
    spread = float(colours.norm(dim=-1).median()) / 1.538
    return View(landmarks, image, min(max(pixels, low), high), min(max(spread, dark), light))


def independent_observations(colour_sigma: float, settings: Settings) -> float:
    """N: how many independent colours a face is worth.

    Small residuals are pixel noise, independent from pixel to pixel; large ones are hair, shadows and
    highlights, whole regions that err together. So N falls with the square of the residuals' size.
    """
    count, most = settings.observations
    return min(count * (0.06 / colour_sigma) ** 2, most)


def light_prior(settings: Settings) -> tuple[Tensor, Tensor]:
    """What is expected of a photograph's light before it is seen: |A γ - b|², A (28, 27), b (28,).

    Its colour is nearly grey, and it was exposed so that a white surface facing the camera would be nearly
    white in the picture. Without the second, nothing but the average skin would decide between a dark skin in
    bright light and a light skin in dim light.
    """
    chroma = torch.block_diag(*[torch.eye(3) - 1 / 3] * 9) / settings.light_chroma_sigma
    grey = sh_basis(torch.tensor([0.0, 0.0, 1.0])).repeat_interleave(3) / 3
    usual, sigma = settings.exposure
    target = torch.zeros(28)
    target[27] = usual / sigma
    return torch.cat([chroma, grey[None] / sigma]), target


def landmark_sigmas(sigma: float, settings: Settings) -> Tensor:
    """Standard deviation of each landmark in pixels of the crop (68, 1), from that of an inner one at 240."""
    result = torch.full((68, 1), sigma * settings.size / 240)
    result[JAW] *= settings.jaw_factor
    return result


@dataclass(frozen=True)
class NormalEquations:
    """A quadratic model of the energy around an estimate: float64."""

    energy: float
    hessian: Tensor  # J'J, (P, P)
    gradient: Tensor  # J'r, (P,)


class Problem:
    """Energy of one person's photographs; identity and albedo are common, everything else is per photograph.

    The unknowns are the shared ones followed by each photograph's own, in the order of `residuals.unknowns`.
    """

    def __init__(self, bases: VertexBases, views: Sequence[View], settings: Settings) -> None:
        self.bases, self.views, self.settings = bases, list(views), settings
        layout = bases.layout
        self.shared = sum(layout.sizes[name] for name in SHARED)
        self.own = layout.size - self.shared
        self.determined = [0.0] * len(self.views)
        self.start = [1.0] * len(self.views)  # depth in mm when the size correction began

    def correct_size(self, estimates: Sequence[Estimate]) -> None:
        """From here on, do not let the prior prefer small heads.

        A picture fixes a head up to its size: coefficients grow in proportion to the distance that is
        assumed, so the smallest sum of their squares belongs to a head that is too small and too near (by
        5 % here). That is the mode, not the middle, of what is plausible. K coefficients that the picture
        determines leave room that grows with distance^K (the volume element of the change of variables from
        pixels to coefficients), which adds -2 K log(distance) to the energy; K counts by how much the
        picture has narrowed each of them: one minus posterior over prior variance.
        """
        hessian = self.linearise(estimates).hessian
        seen = hessian + 1e-6 * torch.eye(len(hessian), dtype=hessian.dtype)  # light may be in no residual
        variance = torch.linalg.inv(seen).diagonal()
        layout, count = self.bases.layout, len(self.views)
        self.start = [abs(float(e.translation[2])) for e in estimates]
        identity = float((1 - variance[layout.slice("identity")]).sum())
        for i in range(count):
            own = variance[self._columns(i)][layout.slice("expression")]
            self.determined[i] = identity / count + float((1 - own).sum())

    def _columns(self, view: int) -> Tensor:
        """Where the unknowns of one photograph are among all."""
        return torch.cat([torch.arange(self.shared), self.shared + view * self.own + torch.arange(self.own)])

    def linearise(self, estimates: Sequence[Estimate]) -> NormalEquations:
        """Energy, J'J and J'r at the estimates."""
        total = self.shared + self.own * len(self.views)
        hessian = torch.zeros(total, total, dtype=torch.float64)
        gradient = torch.zeros(total, dtype=torch.float64)
        prior = torch.cat([estimates[0].identity, estimates[0].albedo]).double().cpu()
        hessian.diagonal()[: self.shared] += 1
        gradient[: self.shared] += prior
        energy = float(prior.square().sum())
        for i, (view, estimate) in enumerate(zip(self.views, estimates)):
            part = self._one_view(view, estimate)
            columns = self._columns(i)
            depth = float(estimate.translation[2])
            axis = columns[self.bases.layout.slice("translation")][2]
            energy -= 2 * self.determined[i] * math.log(abs(depth) / self.start[i])
            gradient[axis] -= self.determined[i] / depth
            hessian[axis, axis] += self.determined[i] / depth**2
            hessian[columns[:, None], columns] += part.hessian
            gradient[columns] += part.gradient
            energy += part.energy
        return NormalEquations(energy, hessian, gradient)

    def _one_view(self, view: View, estimate: Estimate) -> NormalEquations:
        layout, settings = self.bases.layout, self.settings
        size = settings.size
        camera = estimate.camera(settings.focal * size, size)
        residual, jacobian = self.bases.landmark_residuals(estimate, camera, view.landmarks)
        sigma = landmark_sigmas(view.landmark_sigma, settings).to(residual)
        scaled = residual / sigma
        # while there is nothing but landmarks, all of them are believed
        outlier = float("inf") if view.image is None else settings.landmark_outlier
        robust = robust_weights(scaled, outlier)
        energy = float((scaled.square().sum(-1) * robust.sqrt()).sum())
        root = robust.sqrt()[:, None]
        rows = (jacobian * (root / sigma)[..., None]).flatten(0, 1)
        hessian, gradient = rows.T @ rows, rows.T @ (scaled * root).flatten()
        if view.image is not None:
            level = view.image.shape[-1]
            camera = estimate.camera(settings.focal * level, level)
            residual, colour_jacobian, share = self.bases.photometric_residuals(estimate, camera, view.image)
            assert colour_jacobian is not None
            weight = share * independent_observations(view.colour_sigma, settings) / view.colour_sigma**2
            robust = robust_weights(residual, settings.colour_outlier * view.colour_sigma)
            energy += float((weight * residual.square().sum(-1) * robust.sqrt()).sum())
            root = (weight * robust).sqrt()[:, None]
            rows = (colour_jacobian * root[..., None]).flatten(0, 1)
            hessian = hessian + rows.T @ rows
            gradient = gradient + rows.T @ (residual * root).flatten()
            where, light = layout.slice("light"), estimate.light.flatten()
            rows, target = light_prior(settings)
            residual = rows.to(light) @ light - target.to(light)
            hessian[where, where] += rows.T.to(light) @ rows.to(light)
            gradient[where] += rows.T.to(light) @ residual
            energy += float(residual.square().sum())
        where = layout.slice("expression")
        hessian[where, where] += torch.eye(layout.sizes["expression"]).to(hessian)
        gradient[where] += estimate.expression
        energy += float(estimate.expression.square().sum())
        return NormalEquations(energy, hessian.double().cpu(), gradient.double().cpu())

    def move(self, estimates: Sequence[Estimate], step: Tensor) -> list[Estimate]:
        """Every photograph's estimate after a step."""
        split = self.bases.layout.split
        return [e.moved(split(step[self._columns(i)].to(e.light))) for i, e in enumerate(estimates)]


def levenberg_marquardt(
    problem: Problem, estimates: Sequence[Estimate], iterations: int
) -> tuple[list[Estimate], list[float]]:
    """Minimise; a step that raises the energy is taken back and damped (Levenberg 1944, Marquardt 1963).

    Args:
        problem: the photographs of one person.
        estimates: where to start, one per photograph.
        iterations: steps that are tried.

    Returns:
        the estimates, and the energy at the start and after each accepted step.

    Raises:
        ParameterError: the estimates became NaN or infinite.
    """
    # Damping starts at none: the size of a head and its distance, say, are told apart by the prior alone, and
    # along such a flat direction any damping that is relative to the stiff ones stops all progress.
    estimates, damping = list(estimates), 0.0
    system = problem.linearise(estimates)
    energies = [system.energy]
    for _ in range(iterations):
        diagonal = system.hessian.diagonal()  # what no residual sees keeps its value, hence 1e-6
        damped = system.hessian + torch.diag(damping * diagonal + 1e-6)
        step = -torch.linalg.solve(damped, system.gradient)
        if not bool(torch.isfinite(step).all()):
            raise ParameterError("The fit diverged to NaN; check the landmarks and the picture.")
        trial = problem.move(estimates, step)
        moved = problem.linearise(trial)
        allowed = 1e-3 * abs(system.energy)  # other vertices come into sight: allow a little
        if moved.energy <= system.energy + allowed:
            estimates, system, damping = trial, moved, damping / 10 if damping > 1e-5 else 0.0
            energies.append(system.energy)
        else:
            damping = max(10 * damping, 1e-4)
    return estimates, energies


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
