"""Light for the test sets, richer than nine coefficients: sized lamps, surroundings, shadows, highlights.

A rig is shaded here by many point lights with one shadow map each; path_tracer.py takes the same rig. All is
in camera space (mm) and linear RGB; a colour is the shading of a white matt surface that faces the light at
the head, as in facelab.rendering.illumination.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import dot, normalise
from facelab.rendering import rasterizer
from facelab.rendering.illumination import blinn_phong_lobe, directional_to_sh, schlick_fresnel

Floats = NDArray[np.floating]

SURROUNDINGS = 48  # directions that stand for them
LAMP_POINTS = 16  # that stand for one lamp
REACH = 210.0  # mm: a sphere about the head that holds all that can cast a shadow on it
STYLES = ("window", "sun", "studio", "bulb", "flash", "overcast")


@dataclass(frozen=True)
class Lamp:
    """A sphere that shines."""

    centre: Floats  # (3,) mm
    radius: float  # mm
    colour: Floats  # (3,)


@dataclass(frozen=True)
class Rig:
    """What lights a head at `head` (3,) mm: radiance from around, L(d) = `around` (1 + tilt·d), and lamps."""

    head: Floats
    around: Floats  # (3,)
    tilt: Floats  # (3,) of length below 1
    lamps: tuple[Lamp, ...]

    def scaled(self, factor: float) -> "Rig":
        """The same light, brighter by `factor`."""
        lamps = tuple(replace(lamp, colour=factor * lamp.colour) for lamp in self.lamps)
        return replace(self, around=factor * self.around, lamps=lamps)

    def points(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Point lights that stand for the rig: positions (N, 3), colours (N, 3), which ones are of lamps."""
        k = np.arange(SURROUNDINGS) + 0.5  # a Fibonacci sphere
        z, angle = 1 - 2 * k / SURROUNDINGS, np.pi * (1 + 5**0.5) * k
        level = np.sqrt(1 - z * z)
        directions = np.stack([level * np.cos(angle), level * np.sin(angle), z], 1)
        # A sphere of equal lights shades with a quarter of their sum.
        colours = 4 / SURROUNDINGS * self.around * (1 + directions @ self.tilt)[:, None]
        positions = [self.head + 1e5 * directions]
        k = np.arange(LAMP_POINTS) + 0.5
        disc = np.sqrt(k / LAMP_POINTS)[:, None] * np.stack([np.cos(2.4 * k), np.sin(2.4 * k)], 1)
        for lamp in self.lamps:
            ahead = (self.head - lamp.centre) / np.linalg.norm(self.head - lamp.centre)
            right = np.cross(ahead, [0.0, 1.0, 0.1])
            right /= np.linalg.norm(right)
            positions.append(lamp.centre + lamp.radius * disc @ np.stack([right, np.cross(right, ahead)]))
            colours = np.concatenate([colours, np.tile(lamp.colour / LAMP_POINTS, (LAMP_POINTS, 1))])
        of_lamp = np.arange(len(colours)) >= SURROUNDINGS
        return np.concatenate(positions), colours, of_lamp

    def coefficients(self) -> Tensor:
        """(9, 3): what spherical harmonics of the second order keep of it, at the head, without shadows."""
        positions, colours, _ = self.points()
        directions = torch.from_numpy(positions - self.head)
        return directional_to_sh(directions, torch.from_numpy(colours)).sum(0).float()

    def direction(self) -> Tensor:
        """(3,) unit vector towards the brightest lamp."""
        lamp = max(self.lamps, key=lambda lamp: lamp.colour.sum())
        return normalise(torch.from_numpy(lamp.centre - self.head)).float()


def draw_rig(rng: np.random.Generator, head: Floats, style: str) -> Rig:
    """A rig of one of `STYLES`, of overall brightness about 1."""

    def lamp(
        azimuth: float, elevation: float, distance: float, radius: float, power: float, warmth: float
    ) -> Lamp:
        a, e = np.radians(azimuth), np.radians(elevation)
        towards = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
        tint = np.array([1 + warmth, 1.0, 1 - warmth]) + rng.normal(0, 0.02, 3)
        return Lamp(head + distance * towards, radius, power * tint)

    side = rng.choice([-1.0, 1.0])
    around, up = rng.uniform(0.15, 0.35), rng.uniform(0, 0.6)
    cool = rng.normal(0, 0.05)
    match style:
        case "window":
            lamps = [lamp(side * rng.uniform(25, 80), rng.uniform(5, 35), 1500, 500, 0.9, -0.04)]
        case "sun":
            away = rng.uniform(10, 65)
            lamps = [lamp(side * away, rng.uniform(20, 55), 5e4, 250, 1.1, 0.06)]
            cool -= 0.08
        case "studio":
            lamps = [lamp(side * rng.uniform(20, 50), rng.uniform(15, 40), 1200, 200, 0.75, 0)]
            lamps += [
                lamp(-side * rng.uniform(20, 60), rng.uniform(0, 20), 1500, 300, rng.uniform(0.15, 0.35), 0)
            ]
            lamps += [lamp(-side * rng.uniform(110, 150), 30, 1200, 100, rng.uniform(0.3, 0.9), 0)]
            around *= 0.6
        case "bulb":
            lamps = [
                lamp(side * rng.uniform(0, 70), rng.uniform(-20, 50), rng.uniform(450, 800), 35, 0.9, 0.15)
            ]
            lamps += [lamp(-side * rng.uniform(30, 90), 10, 2000, 200, 0.2, -0.05)]
        case "flash":
            lamps = [lamp(rng.uniform(-6, 6), rng.uniform(2, 8), float(np.linalg.norm(head)), 20, 0.9, -0.02)]
            around *= 0.7
        case _:
            lamps = [lamp(side * rng.uniform(0, 90), rng.uniform(40, 70), 5000, 3000, 0.5, -0.03)]
            around, up = 1.6 * around, 0.8
    surroundings = around * np.array([1 + cool, 1.0, 1 - cool])
    return Rig(head, surroundings, np.array([rng.normal(0, 0.15), up, rng.normal(0.1, 0.1)]), tuple(lamps))


@dataclass(frozen=True, eq=False)
class Surface:
    """Visible points and what they are made of."""

    points: Tensor  # (N, 3) mm
    normals: Tensor  # (N, 3) unit
    diffuse: Tensor  # (N, 3)
    specular: Tensor  # (N,) F0
    shininess: Tensor  # (N,) Blinn-Phong exponent


def shade(rig: Rig, surface: Surface, casters: Tensor, triangles: Tensor) -> Tensor:
    """Linear colours (N, 3) of the surface; the mesh `casters` (V, 3), `triangles` throws the shadows."""
    to_eye = -normalise(surface.points)
    total = torch.zeros_like(surface.points)
    head = torch.from_numpy(rig.head).float()
    for position, colour, of_lamp in zip(*(torch.from_numpy(part) for part in rig.points())):
        light, tint = position.float(), colour.float()
        offset = light - surface.points
        to_light = normalise(offset)
        facing = dot(surface.normals, to_light).clamp(min=0)
        lit = (facing > 0).nonzero()[:, 0]
        if len(lit) == 0:
            continue
        points = surface.points[lit] + 0.8 * surface.normals[lit]
        size, bias = (640, 1.0) if of_lamp else (320, 2.0)
        seen = unshadowed(light, head, casters, triangles, points, size, bias)
        strength = seen * facing[lit] * ((light - head).square().sum() / offset[lit].square().sum(-1))
        half = normalise(to_light[lit] + to_eye[lit])
        fresnel = schlick_fresnel(surface.specular[lit], dot(half, to_eye[lit]))
        shininess = surface.shininess[lit]
        lobe = blinn_phong_lobe(surface.normals[lit], half, shininess) * (shininess + 8) / 8
        gain = surface.diffuse[lit] + (fresnel * lobe)[:, None]
        total[lit] += gain * strength[:, None] * tint
    return total


def unshadowed(
    light: Tensor, head: Tensor, casters: Tensor, triangles: Tensor, points: Tensor, size: int, bias: float
) -> Tensor:
    """1 for each point (N, 3) that the light (3,) sees, else 0, by a shadow map of size×size.

    `bias` mm keep a surface from shadowing itself.
    """
    back = normalise(light - head)
    helper = torch.tensor([0.0, 1.0, 0.0]) if abs(float(back[1])) < 0.9 else torch.tensor([1.0, 0.0, 0.0])
    right = normalise(torch.linalg.cross(helper, back))
    turn = torch.stack([right, torch.linalg.cross(back, right), back])
    distance = float((light - head).norm())
    eye = PerspectiveCamera(
        turn,
        torch.tensor([0.0, 0.0, -distance]),
        torch.tensor(size / 2 * max(distance - REACH, 0.5 * distance) / REACH),
        torch.tensor([size / 2, size / 2]),
    )
    screen = eye.project(casters - head)  # about the head: far lights keep their precision
    index = rasterizer.rasterize(screen, triangles, size, size, cull=False)
    _, depth = rasterizer.interpolate(screen, triangles, index, screen[:, :1])
    depth = torch.where(index >= 0, depth[0], torch.inf)
    where = eye.project(points - head)
    column, row = where[:, 0].long().clamp(0, size - 1), where[:, 1].long().clamp(0, size - 1)
    return (where[:, 2] < depth[row, column] + bias).float()
