"""Light: spherical harmonics, Phong and Blinn-Phong, as functions and as `Light` objects.

Everything is in camera space and linear RGB. A light's colour is the colour of a white matt surface that
faces it: diffuse colour = albedo * colour * max(0, n.l). (That is an irradiance divided by π.) A light's
position is relative to the camera; for one relative to the head, add the head's own, `camera.to_camera(0)`.

Spherical harmonics coefficients are those of the *shading*, not of the light that falls in: the cosine kernel
and the 1/π of a Lambertian surface are already in them, so that

    colour = albedo * sum_b coefficients_b H_b(n)

as in InverseFaceNet (Eq. 4), MoFA (Eq. 4) and Deng et al. 2022 (Eq. 4). `directional_to_sh` and
`ambient_to_sh` give the coefficients of simple lights; lights are mixed by adding their coefficients.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from facelab.geometry.mesh import dot, normalise
from facelab.support.errors import ParameterError
from facelab.support.tensors import constant, one_line

SH_CONSTANTS = (
    math.sqrt(1 / (4 * math.pi)),  # 1
    math.sqrt(3 / (4 * math.pi)),  # y, z, x
    math.sqrt(15 / (4 * math.pi)),  # xy, yz, xz
    math.sqrt(5 / (16 * math.pi)),  # 3z² - 1
    math.sqrt(15 / (16 * math.pi)),  # x² - y²
)
"""Factors that make the nine real basis functions orthonormal over the sphere."""

CLAMPED_COSINE = (math.pi, 2 * math.pi / 3, math.pi / 4)
"""A_l for l = 0, 1, 2: what the kernel max(0, cos) does to a band (Ramamoorthi and Hanrahan 2001, Eq. 8)."""


def sh_basis(normals: Tensor) -> Tensor:
    """The nine basis functions H(n) at unit vectors: `(..., 3)` -> `(..., 9)`.

    Order 1, y, z, x, xy, yz, 3z²-1, xz, x²-y²; real, no Condon-Shortley signs.
    """
    x, y, z = normals.unbind(-1)
    c0, c1, c2, c3, c4 = SH_CONSTANTS
    return torch.stack(
        [
            torch.full_like(x, c0),
            c1 * y,
            c1 * z,
            c1 * x,
            c2 * x * y,
            c2 * y * z,
            c3 * (3 * z * z - 1),
            c2 * x * z,
            c4 * (x * x - y * y),
        ],
        -1,
    )


def sh_irradiance(normals: Tensor, coefficients: Tensor) -> Tensor:
    """Shading of unit normals `(..., N, 3)` by coefficients `(..., 9, 3)` -> `(..., N, 3)`.

    InverseFaceNet Eq. 4; MoFA Eq. 4 and Deng et al. 2022 Eq. 4 without the albedo. Nothing is clipped:
    coefficients that describe no physical light can give negative shading.
    """
    return sh_basis(normals) @ coefficients


def directional_to_sh(direction: Tensor, colour: Tensor) -> Tensor:
    """Coefficients `(..., 9, 3)` of a distant light: `direction` `(..., 3)` towards it, `colour` `(..., 3)`.

    The best approximation of colour * max(0, n.l) by nine coefficients, A_l H(l) colour (Ramamoorthi and
    Hanrahan 2001). With c = n.l it is 3/32 + c/2 + 15/32 c²: at most 0.094 off, and -0.04 at its lowest.
    """
    kernel = [CLAMPED_COSINE[band] for band in (0, 1, 1, 1, 2, 2, 2, 2, 2)]
    weights = sh_basis(normalise(direction)) * constant(direction, *kernel)
    return weights[..., :, None] * colour[..., None, :]


def ambient_to_sh(colour: Tensor) -> Tensor:
    """Coefficients `(..., 9, 3)` of equal light from everywhere with the shading `colour` `(..., 3)`."""
    rest = torch.zeros_like(colour)[..., None, :].expand(*colour.shape[:-1], 8, 3)
    return torch.cat([colour[..., None, :] / SH_CONSTANTS[0], rest], -2)


def shading_coefficients(light: "Light | None") -> Tensor:
    """The nine coefficients (..., 9, 3) of the diffuse shading of any light at the origin of the head.

    Those of a light that has them are its own; of another, the least squares over a sphere of normals.
    Raises ParameterError for None.
    """
    if light is None:
        raise ParameterError("There is no light, so it has no shading; give the face one.")
    own = getattr(light, "coefficients", None)
    if own is not None:
        return own
    tensors = [value for value in vars(light).values() if isinstance(value, Tensor)]
    index = torch.arange(400, dtype=tensors[0].dtype, device=tensors[0].device)
    z, turn = 1 - (2 * index + 1) / 400, index * torch.pi * (3 - 5**0.5)  # a Fibonacci sphere
    normals = torch.stack([(1 - z * z).sqrt() * turn.cos(), (1 - z * z).sqrt() * turn.sin(), z], -1)
    head = torch.zeros_like(normals)
    head[:, 2] = -600.0  # where a head is, mm before the camera
    shaded = light.shade(normals, head, normalise(-head), torch.ones_like(normals), None).diffuse_shading
    return torch.linalg.pinv(sh_basis(normals)) @ shaded


def phong_lobe(normals: Tensor, to_light: Tensor, to_eye: Tensor, shininess: Tensor) -> Tensor:
    """Phong's max(0, r.v)^shininess with r the mirrored light direction -> `(...)`, at most 1 (Phong 1975).

    Vectors are unit, `(..., 3)`; shininess `(...)` at least 1. Zero where the light is behind the surface.
    """
    cosine = dot(normals, to_light)
    mirrored = 2 * cosine[..., None] * normals - to_light
    lobe = dot(mirrored, to_eye).clamp(min=0) ** shininess
    return torch.where(cosine > 0, lobe, 0.0)


def blinn_phong_lobe(normals: Tensor, half: Tensor, shininess: Tensor) -> Tensor:
    """Blinn's max(0, n.h)^shininess -> `(...)`, at most 1 (Blinn 1977; Deng et al. 2022, Eq. 5).

    `half` is normalise(to_light + to_eye). Vectors are unit, `(..., 3)`; shininess `(...)` at least 1.
    """
    return dot(normals, half).clamp(min=0) ** shininess


def schlick_fresnel(f0: Tensor, cosine: Tensor) -> Tensor:
    """Reflectance at an angle from the one at normal incidence: F0 + (1 - F0)(1 - cos)^5 (Schlick 1994)."""
    return f0 + (1 - f0) * (1 - cosine).clamp(0, 1) ** 5


@one_line
@dataclass(frozen=True, eq=False)
class Shading:
    """What a light does to a list of surface points; all `(..., N, 3)`, linear RGB."""

    colour: Tensor
    """albedo * diffuse_shading + specular_radiance"""
    diffuse_shading: Tensor
    specular_radiance: Tensor


class Light(Protocol):
    """Anything that can shade surface points."""

    def shade(
        self, normals: Tensor, positions: Tensor, to_eye: Tensor, diffuse: Tensor, specular: Tensor | None
    ) -> Shading:
        """Shade N points; leading dimensions broadcast with those of the light.

        normals, to_eye: `(..., N, 3)` unit, camera space. positions: `(..., N, 3)` mm, camera space.
        diffuse: `(..., N, 3)` albedo. specular: `(..., N)` reflectance at normal incidence, None for matt.
        """
        ...


@one_line
@dataclass(frozen=True, eq=False)
class SphericalHarmonicsLight:
    """Distant, smooth light on a matt surface (InverseFaceNet, MoFA). Specular reflectance is ignored."""

    coefficients: Tensor
    """`(..., 9, 3)`"""

    def shade(
        self, normals: Tensor, positions: Tensor, to_eye: Tensor, diffuse: Tensor, specular: Tensor | None
    ) -> Shading:
        """See :meth:`Light.shade`."""
        shading = sh_irradiance(normals, self.coefficients)
        return Shading(diffuse * shading, shading, torch.zeros_like(shading))


@one_line
@dataclass(frozen=True, eq=False)
class PhongLight:
    """One point light and ambient light (GANFIT, Eq. 6: p_l is position, colour and ambient colour).

    The light does not fall off with distance. `normalised` makes the specular lobe reflect the fraction F0 of
    the light at any shininess, F0 (s+2)/2 (r.v)^s (n.l); without it the lobe is Phong's own F0 (r.v)^s.
    """

    ambient: Tensor
    """`(..., 3)`"""
    position: Tensor
    """`(..., 3)` mm, camera space"""
    colour: Tensor
    """`(..., 3)`"""
    shininess: Tensor
    """`(...)`, at least 1"""
    normalised: bool = True

    def shade(
        self, normals: Tensor, positions: Tensor, to_eye: Tensor, diffuse: Tensor, specular: Tensor | None
    ) -> Shading:
        """See :meth:`Light.shade`."""
        to_light = normalise(self.position[..., None, :] - positions)
        cosine = dot(normals, to_light).clamp(min=0)
        colour = self.colour[..., None, :]
        shading = self.ambient[..., None, :] + colour * cosine[..., None]
        if specular is None:
            return Shading(diffuse * shading, shading, torch.zeros_like(shading))
        shininess = self.shininess[..., None]
        strength = specular * phong_lobe(normals, to_light, to_eye, shininess)
        if self.normalised:
            strength = strength * (shininess + 2) / 2 * cosine
        radiance = strength[..., None] * colour
        return Shading(diffuse * shading + radiance, shading, radiance)


@one_line
@dataclass(frozen=True, eq=False)
class BlinnPhongLight:
    """Spherical harmonics for the matt part, one point light for the shine (Deng et al. 2022, Eqs. 4 and 5).

    `normalised` (the default) nearly keeps energy: F (s+8)/8 (n.h)^s (n.l), with Schlick's Fresnel term F.
    Without it the highlight is the paper's own Eq. 5, F0 (n.h)^s, times the light's colour (1 in the paper).
    The point light adds no diffuse light: put it into the coefficients (`directional_to_sh`) if it should.
    """

    coefficients: Tensor
    """`(..., 9, 3)`"""
    position: Tensor
    """`(..., 3)` mm, camera space"""
    colour: Tensor
    """`(..., 3)`"""
    shininess: Tensor
    """`(...)`, at least 1"""
    normalised: bool = True

    def shade(
        self, normals: Tensor, positions: Tensor, to_eye: Tensor, diffuse: Tensor, specular: Tensor | None
    ) -> Shading:
        """See :meth:`Light.shade`."""
        shading = sh_irradiance(normals, self.coefficients)
        if specular is None:
            return Shading(diffuse * shading, shading, torch.zeros_like(shading))
        to_light = normalise(self.position[..., None, :] - positions)
        shininess = self.shininess[..., None]
        half = normalise(to_light + to_eye)
        strength = blinn_phong_lobe(normals, half, shininess)
        if self.normalised:
            facing = dot(normals, to_light).clamp(min=0)
            fresnel = schlick_fresnel(specular, dot(half, to_eye))
            strength = strength * fresnel * facing * (shininess + 8) / 8
        else:
            strength = strength * specular
        radiance = strength[..., None] * self.colour[..., None, :]
        return Shading(diffuse * shading + radiance, shading, radiance)
