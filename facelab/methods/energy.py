"""The energy of fitting, and how it is minimised: noise, priors, normal equations, Levenberg-Marquardt.

    E = (N / σ_c²) Σ_v ω_v ρ(|c_v - I(u_v)|) + Σ_k w_k |u_k - l_k|² / σ_l² + |α|² + |β|² + |δ|² + |A γ - b|²

It is a maximum a posteriori estimate: coefficients are in standard deviations, σ_c and σ_l are what we
expect of colours (sRGB) and of a landmark detector (pixels at 240 px), and N says how many independent
observations a face's pixels are worth. Residuals and Jacobians are in `residuals.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from facelab import losses
from facelab.methods.exposure import Exposure
from facelab.methods.residuals import SHARED, Estimate, VertexBases, robust_weights
from facelab.rendering.illumination import sh_basis
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line

JAW = slice(0, 17)


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

    def __post_init__(self) -> None:
        counts = ("identity", "expression", "albedo", "landmark_iterations")
        for name in (f.name for f in fields(self) if f.name not in ("levels", *counts)):
            values = np.atleast_1d(np.asarray(value := getattr(self, name), dtype=float))
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise ParameterError(f"The setting {name} must be finite and above 0, not {value}.")
        for name in ("landmark_sigma", "doubted_sigma", "colour_sigma"):
            if not operator.le(*getattr(self, name)):
                raise ParameterError(f"The setting {name} is (least, most), not {getattr(self, name)}.")
        if min(getattr(self, name) for name in counts) < 0:
            raise ParameterError("Numbers of components and of iterations cannot be negative.")
        if not self.levels or any(
            not (8 <= size <= self.size and 0 <= subdivisions <= 2 and iterations >= 0)
            for size, subdivisions, iterations in self.levels
        ):
            raise ParameterError(
                f"A level is (8 to {self.size} px, 0 to 2 subdivisions, iterations), and there is at least "
                f"one; got {self.levels}."
            )


@one_line
@dataclass(frozen=True)
class View:
    """One photograph of the person, cropped."""

    landmarks: Tensor  # (68, 2) px of the crop
    image: Tensor | None = None  # (3, S, S) sRGB at the size that is compared; None: landmarks only
    landmark_sigma: float = 1.2  # px at 240
    colour_sigma: float = 0.1  # what the model is expected not to explain, sRGB
    inside: Tensor | None = None  # (1, S, S) bool: where the photograph is, at the size of the image
    spread: Tensor | None = None  # (68, 1) factor on each landmark's sigma
    exposure: Exposure = field(default_factory=Exposure)


def observe(bases: VertexBases, estimate: Estimate, view: View, settings: Settings) -> View:
    """The view with the noise of its landmarks and colours, estimated around the present estimate.

    A photograph with hair, glasses and cast shadows is explained less well than a rendered face, and its
    colours deserve less trust against its landmarks; of a picture that the model explains well, they deserve
    more than a detector does. Medians of the residuals' lengths, as standard deviations of normal vectors.
    """
    assert view.image is not None
    size, level = settings.size, view.image.shape[-1]
    points, _ = bases.landmark_residuals(
        estimate, estimate.camera(settings.focal * size, size), view.landmarks
    )
    colours, _, _ = bases.photometric_residuals(
        estimate, estimate.camera(settings.focal * level, level), view.image, False, view.inside,
        view.exposure.ceiling,
    )  # fmt: skip
    if len(colours) < 50:
        raise ParameterError("The face is almost outside the picture; crop the photo around the face.")
    if view.spread is not None:
        points = points / view.spread
    low, high = settings.landmark_sigma
    pixels = float(points[17:].norm(dim=-1).median()) * 240 / size / 1.177
    dark, light = settings.colour_sigma
    off = colours.norm(dim=-1)
    told = off[off > 0]  # a clipped colour that is predicted brighter says nothing of the noise
    noise = float(told.median()) / 1.538 if len(told) else light
    return replace(
        view, landmark_sigma=min(max(pixels, low), high), colour_sigma=min(max(noise, dark), light)
    )


def independent_observations(colour_sigma: float, settings: Settings) -> float:
    """N: how many independent colours a face is worth.

    Small residuals are pixel noise, independent from pixel to pixel; large ones are hair, shadows and
    highlights, whole regions that err together. So N falls with the square of the residuals' size.
    """
    count, most = settings.observations
    return min(count * (0.06 / colour_sigma) ** 2, most)


def light_prior(settings: Settings, exposure: Exposure | None = None) -> tuple[Tensor, Tensor]:
    """What is expected of a photograph's light before it is seen: |A γ - b|², A (28, 27), b (28,).

    Its colour is nearly grey, and it was exposed so that a white surface facing the camera would be nearly
    white in the picture. Without the second, nothing but the average skin would decide between a dark skin in
    bright light and a light skin in dim light.
    """
    chroma = torch.block_diag(*[torch.eye(3) - 1 / 3] * 9) / settings.light_chroma_sigma
    grey = sh_basis(torch.tensor([0.0, 0.0, 1.0])).repeat_interleave(3) / 3
    exposure = exposure or Exposure()
    usual = settings.exposure[0] * exposure.white
    sigma = settings.exposure[1] * exposure.white * exposure.doubt
    target = torch.zeros(28)
    target[27] = usual / sigma
    return torch.cat([chroma, grey[None] / sigma]), target


def landmark_sigmas(sigma: float, settings: Settings) -> Tensor:
    """Standard deviation of each landmark in pixels of the crop (68, 1), from that of an inner one at 240."""
    result = torch.full((68, 1), sigma * settings.size / 240)
    result[JAW] *= settings.jaw_factor
    return result


@one_line
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
        picture has narrowed each of them: one minus posterior over prior variance. For coefficients that are
        smaller than the prior expects (most people do not laugh) that is too much: the sum of their squares
        grows with distance², so K is at most this sum, with which the two cancel.
        """
        hessian = self.linearise(estimates).hessian
        seen = hessian + 1e-6 * torch.eye(len(hessian), dtype=hessian.dtype)  # light may be in no residual
        narrowed = 1 - torch.linalg.inv(seen).diagonal()
        layout, count = self.bases.layout, len(self.views)
        self.start = [abs(float(e.translation[2])) for e in estimates]

        def determined(counts: Tensor, coefficients: Tensor) -> float:
            return min(float(counts.sum()), float(coefficients.square().sum()))

        identity = determined(narrowed[layout.slice("identity")], estimates[0].identity)
        for i, estimate in enumerate(estimates):
            own = narrowed[self._columns(i)][layout.slice("expression")]
            self.determined[i] = identity / count + determined(own, estimate.expression)

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
        energy = float(losses.prior(prior))
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
        if view.spread is not None:
            sigma = sigma * view.spread
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
            residual, colour_jacobian, share = self.bases.photometric_residuals(
                estimate, camera, view.image, True, view.inside, view.exposure.ceiling
            )
            assert colour_jacobian is not None
            weight = share * independent_observations(view.colour_sigma, settings) / view.colour_sigma**2
            robust = robust_weights(residual, settings.colour_outlier * view.colour_sigma)
            energy += float((weight * residual.square().sum(-1) * robust.sqrt()).sum())
            root = (weight * robust).sqrt()[:, None]
            rows = (colour_jacobian * root[..., None]).flatten(0, 1)
            hessian = hessian + rows.T @ rows
            gradient = gradient + rows.T @ (residual * root).flatten()
            where, light = layout.slice("light"), estimate.light.flatten()
            rows, target = light_prior(settings, view.exposure)
            residual = rows.to(light) @ light - target.to(light)
            hessian[where, where] += rows.T.to(light) @ rows.to(light)
            gradient[where] += rows.T.to(light) @ residual
            energy += float(residual.square().sum())
        where = layout.slice("expression")
        hessian[where, where] += torch.eye(layout.sizes["expression"]).to(hessian)
        gradient[where] += estimate.expression
        energy += float(losses.prior(estimate.expression))
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
