"""Sliders that MakeHuman lacks: brows that slide over the bone.

MakeHuman raises the ridge under a brow; people's brows also differ in gap, length and height on the same
bone. A slide moves the skin along itself and fades out around the brow, so what is painted there comes along.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

FULL_MM = 10.0  # that a slider of strength one moves the middle of the brow's part


@dataclass(frozen=True)
class Slide:
    """Moves the skin around (x, y) mm from the tip of the nose on one side, the other mirrors it."""

    name: str
    centre: tuple[float, float]
    width: tuple[float, float]  # standard deviations of the bump, mm
    direction: tuple[float, float]
    sigma: float  # of the slider among people


SLIDES = (
    Slide("brow-gap", (12.0, 60.0), (13.0, 11.0), (1.0, 0.0), 0.30),
    Slide("brow-tail", (58.0, 54.0), (15.0, 12.0), (1.0, -0.2), 0.25),
    Slide("brow-lift", (35.0, 62.0), (24.0, 9.0), (0.0, 1.0), 0.25),
)


def slide_offsets(slide: Slide, side: int, points: Floats, normals: Floats) -> Floats:
    """Offsets (K, 3) mm at full strength on one side (-1: x < 0, +1: x > 0) of the face.

    `points` (K, 3) are in mm from the tip of the nose, `normals` (K, 3) unit; zeros keep a point in place.
    """
    across = (side * points[:, 0] - slide.centre[0]) / slide.width[0]
    up = (points[:, 1] - slide.centre[1]) / slide.width[1]
    bump = np.exp(-0.5 * (across**2 + up**2)) * (np.linalg.norm(normals, axis=1) > 0.5)
    way = np.array([side * slide.direction[0], slide.direction[1], 0.0])
    along = way - (normals @ way)[:, None] * normals
    return (FULL_MM * bump[:, None] * along).astype(np.float32)
