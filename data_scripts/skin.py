"""The skin of one adult, drawn at random: diffuse and specular albedo maps in the face model's UV window.

`SkinMaps` holds what all people share; `sample_skin` draws one of them: melanin and blood over the face,
turned to colour by `pigment.py` (which names the sources of the physics), with freckles, moles, wrinkles,
brows, beard and lashes, and the mirror-like reflectance F0. The constants of the population are ours, set by
eye against photographs; tests/test_skin.py holds the colours against measured ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pigment import PigmentTable
from scipy.special import expit
from skin_maps import EYE_HEIGHT, Map, SkinMaps

__all__ = ["SkinMaps", "sample_skin"]

SPECULAR_F0 = 0.028  # Fresnel reflectance at normal incidence of skin, index 1.4: (0.4 / 2.4)**2
MINIMUM_DIFFUSE = 0.004
# Median volume fraction and spread of its logarithm: melanosomes (african, asian, european), blood.
MELANIN = ((0.160, 0.40), (0.026, 0.50), (0.0095, 0.55))
MELANIN_RANGE = (0.003, 0.25)  # of a person's tone: ITA near 65 and -60 degrees
BLOOD = (0.0105, 0.25)
DARK_HAIR, BLOND_HAIR, RED_HAIR, GREY_HAIR = (
    np.array(rgb, np.float32)
    for rgb in ([0.012, 0.009, 0.007], [0.16, 0.095, 0.045], [0.11, 0.04, 0.015], [0.22, 0.18, 0.145])
)
BEARD_CUTS = ("shaven", "stubble", "full", "moustache", "goatee")
BEARD_CHANCES = (0.45, 0.25, 0.14, 0.06, 0.10)
MOUTH_LINE = np.array([0.045, 0.015, 0.012], np.float32)
LASHES = np.array([0.020, 0.014, 0.012], np.float32)
TABLE = PigmentTable()


@dataclass(frozen=True)
class Person:
    """Who is drawn: ancestry weights that sum to 1, femininity and age in [0, 1], linear RGB of the hair."""

    african: float
    asian: float
    european: float
    feminine: float
    age: float
    hair: Map

    @property
    def years_show(self) -> float:
        """How far wrinkles have come, 0 to about 1.2."""
        return float(np.clip(1.3 * self.age - 0.12, 0, 1.2))


def sample_skin(
    rng: np.random.Generator, maps: SkinMaps, ancestry: ArrayLike, gender: float, age: float
) -> tuple[Map, Map]:
    """Draw the skin of one adult.

    Args:
        rng: every random choice comes from it.
        maps: the shared fields.
        ancestry: (african, asian, european) weights, not negative; scaled to sum to 1.
        gender: 0 male to 1 female.
        age: 0 (25 years) to 1 (90 years).

    Returns:
        Diffuse albedo (S, S, 3), linear RGB, at least `MINIMUM_DIFFUSE`; specular reflectance F0 (S, S).
    """
    african, asian, european = np.asarray(ancestry, float) / np.sum(ancestry)
    hair = _hair_colour(rng, european, age)
    person = Person(african, asian, european, float(expit(8 * (gender - 0.5))), age, hair)
    wrinkles = _wrinkles(rng, maps, person)
    melanin = _melanin(rng, maps, person) + 0.45 * wrinkles
    blood = _blood(rng, maps, person) + 0.30 * wrinkles
    melanin, blood = _lips(rng, maps, person, melanin, blood)
    diffuse = TABLE.colour(melanin, blood, float(np.clip(rng.normal(0.08 + 0.06 * asian, 0.05), 0, 0.3)))

    # What lies over the skin, innermost first: (coverage, colour, share of the gloss that it takes away).
    mouth_line = 0.4 * np.exp(-maps.mouth_distance / 1.2) * (0.4 + 0.6 * maps.lips)
    nostrils = 0.75 * maps.bump(7.5, -7.0, 4.0, 3.0) * expit(10 * (-0.55 - maps.normal_y))
    layers = [
        (mouth_line, MOUTH_LINE, 0.0),
        (nostrils, np.zeros(3, np.float32), 0.5),
        (_beard(rng, maps, person), person.hair, 0.55),
        (_brows(rng, maps, person), 0.5 * (person.hair + DARK_HAIR) + 0.005, 0.5),
        (_lashes(rng, maps, person), LASHES, 0.4),
    ]
    specular = _specular(rng, maps, wrinkles)
    for coverage, colour, dulls in layers:
        diffuse = diffuse * (1 - coverage[..., None]) + colour * coverage[..., None]
        specular = specular * (1 - dulls * coverage)
    return np.maximum(diffuse, MINIMUM_DIFFUSE).astype(np.float32), specular.astype(np.float32)


def _hair_colour(rng: np.random.Generator, european: float, age: float) -> Map:
    fair = european * rng.random() ** 2.2
    colour = DARK_HAIR + fair * ((RED_HAIR if rng.random() < 0.12 else BLOND_HAIR) - DARK_HAIR)
    grey = np.clip(2.2 * (age - 0.35) + rng.normal(0, 0.2), 0, 0.9) * (rng.random() < 0.8)
    return (colour + grey * (GREY_HAIR - colour)).astype(np.float32)


def _melanin(rng: np.random.Generator, maps: SkinMaps, person: Person) -> Map:
    """Logarithm of the melanin fraction: the person's tone, regions, mottle, freckles, spots and moles."""
    region, noise = maps.region, maps.noise
    ancestry = (person.african, person.asian, person.european)
    tones = [rng.normal(np.log(median), spread) for median, spread in MELANIN]
    tone = np.clip(np.dot(ancestry, tones), *np.log(MELANIN_RANGE))
    melanin = np.full(maps.valid.shape, tone, np.float32)
    for scale, strength in ((20.0, 0.10), (9.0, 0.06), (4.0, 0.045), (1.5, 0.03), (0.6, 0.025)):
        melanin += strength * noise(rng, scale)
    melanin += rng.normal(0.10, 0.08) * region["forehead"] + rng.normal(0.05, 0.05) * region["cheek"]
    melanin += rng.normal(0.02, 0.06) * region["nose"] - rng.normal(0.10, 0.06) * region["jaw"]
    melanin += abs(rng.normal(0.18, 0.12)) * region["under_eye"]
    melanin += abs(rng.normal(0.12, 0.10)) * region["upper_lid"]
    melanin += abs(rng.normal(0.08, 0.12)) * region["perioral"] * (0.4 + 0.9 * person.african)
    freckles = 0.6 * person.european**2 * np.clip(rng.normal(-0.5, 1.0), 0, 2)
    speckle = np.clip(noise(rng, 0.6) + 0.5 * noise(rng, 1.5) - 1.2, 0, 2)
    melanin += freckles * speckle * (0.4 + region["cheek"] + region["nose"] + 0.5 * region["forehead"])
    age_spots = np.clip(noise(rng, 1.5) + 0.8 * noise(rng, 4.0) - 2.0, 0, 1.2)
    melanin += 0.55 * max(person.age - 0.35, 0) * age_spots
    texels = np.argwhere(maps.frontal[2])
    for row, column in texels[rng.integers(len(texels), size=rng.poisson(2.2))]:
        rows, columns = np.ogrid[: maps.size, : maps.size]
        distance = np.hypot(rows - row, columns - column).astype(np.float32) * maps.texel_mm
        melanin += rng.uniform(0.4, 1.6) * np.exp(-((distance / rng.uniform(0.7, 1.6)) ** 4))  # a mole
    return melanin


def _blood(rng: np.random.Generator, maps: SkinMaps, person: Person) -> Map:
    """Logarithm of the blood fraction: flushed cheeks, nose and chin, blotches, acne."""
    region, noise = maps.region, maps.noise
    tone = rng.normal(np.log(BLOOD[0]), BLOOD[1]) - 0.25 * person.african
    blood = np.full(maps.valid.shape, tone, np.float32)
    for scale, strength in ((9.0, 0.10), (4.0, 0.09), (1.5, 0.08), (0.6, 0.06), (0.25, 0.05)):
        blood += strength * noise(rng, scale)
    blood += abs(rng.normal(0.45, 0.25)) * region["cheek"] * (1 + 0.3 * noise(rng, 4.0))
    blood += abs(rng.normal(0.50, 0.25)) * region["nose"] + abs(rng.normal(0.35, 0.2)) * region["nose_wing"]
    blood += rng.normal(0.25, 0.15) * region["chin"] + abs(rng.normal(0.25, 0.18)) * region["under_eye"]
    blood += rng.normal(0.12, 0.10) * region["upper_lid"] - rng.normal(0.10, 0.10) * region["forehead"]
    acne = max(rng.normal(-0.3, 0.6), 0) * (person.age < 0.25)
    spots = 1.2 * np.clip(noise(rng, 1.5) - 1.5, 0, 1)
    return blood + acne * spots * (region["cheek"] + region["forehead"] + region["chin"])


def _lips(
    rng: np.random.Generator, maps: SkinMaps, person: Person, melanin: Map, blood: Map
) -> tuple[Map, Map]:
    """Lips have a thin epidermis with little melanin and more blood."""
    lips = np.clip(maps.lips + 0.3 * maps.noise(rng, 1.5) * maps.lips * (1 - maps.lips), 0, 1)
    redness = rng.normal(1.4, 0.35) + 0.6 * person.feminine * abs(rng.normal(0, 0.6))
    tone = rng.normal(-0.35 + 0.20 * person.african, 0.18)
    texture = maps.noise(rng, 0.6)
    return melanin + lips * (tone + 0.05 * texture), blood + lips * redness * (1 + 0.04 * texture)


def _wrinkles(rng: np.random.Generator, maps: SkinMaps, person: Person) -> Map:
    """Furrows as a density near 1 in an old face: nasolabial, crow's feet, under the eyes, forehead."""
    depth = np.clip(person.years_show + rng.normal(0, 0.08), 0, 1.2)
    lines: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = []
    k = np.linspace(0, 1, 60)
    for side in (-1, 1):
        lines.append((side * (17 + 12.6 * k + 4 * np.sin(1.2 * k)), 3 - 36 * k, 0.25 + 0.6 * depth))
        lines.append((side * (18 + 24 * k), 27 - 2.2 * np.sin(np.pi * k), 0.15 + 0.5 * depth))
        for fan in (-1, 0, 1):
            lines.append((side * (48 + 9 * k), EYE_HEIGHT + fan * (4 + 5 * k), 0.7 * depth))
    for height in rng.normal([78, 87, 96, 105], 1.5):
        x, phase = 76 * k - 38, rng.uniform(0, 6)
        lines.append((x, height + 1.5 * np.sin(x / 14 + phase), 0.75 * depth * rng.uniform(0.4, 1)))
    points = np.concatenate([np.stack([x, y], 1) for x, y, _ in lines])
    weights = np.concatenate([np.full(60, w) * np.hypot(np.ptp(x), np.ptp(y)) / 60 for x, y, w in lines])
    return np.clip(maps.strokes(points, weights / maps.texel_mm, 0.9), 0, 1.2)


def _beard(rng: np.random.Generator, maps: SkinMaps, person: Person) -> Map:
    """Coverage by beard: shaven, stubble, or one of three cuts over a shadow."""
    growth = (1 - person.feminine) * (1 - 0.35 * person.asian)
    shadow, density = rng.uniform(0.0, 0.18), rng.uniform(0.45, 0.85)
    cut = BEARD_CUTS[rng.choice(len(BEARD_CUTS), p=BEARD_CHANCES)]
    if cut == "stubble":
        beard = 2.5 * shadow * maps.beard["full"]
    else:
        beard = shadow * maps.beard["full"]
        if cut != "shaven":
            beard = np.maximum(beard, density * maps.beard[cut])
    hairs = np.clip(0.6 + 0.20 * maps.noise(rng, 0.25) + 0.08 * maps.noise(rng, 0.6), 0, 1.3)
    patches = np.clip(1 + 0.25 * maps.noise(rng, 9.0), 0.2, 1.5)
    return np.clip(growth * beard * hairs * patches, 0, 0.92)


def _brows(rng: np.random.Generator, maps: SkinMaps, person: Person) -> Map:
    """Coverage by eyebrows, drawn hair by hair in the frontal view.

    A brow runs from its head near the nose (t = 0) to its tail (t = 1): the centre line rises to the arch and
    falls again, the brow thins, and the hairs turn from upright to lying along it.
    """
    feminine = person.feminine
    count = int(420 * np.clip(rng.normal(0.95 - 0.2 * feminine, 0.3), 0.3, 1.8))
    thickness = np.clip(rng.normal(6.1 - 1.7 * feminine, 1.4), 2.5, 10.0)
    arch = 7 * rng.normal(0.7 + 0.25 * feminine, 0.2)
    # Brows differ by the skin that carries them (brow_slides.py): a linear model of colours cannot move one.
    start, height, length = rng.normal([11.5, 57.0, 43.0], [0.7, 0.7, 1.5])
    hair_length = np.clip(rng.normal(6.5 - 1.0 * feminine, 1.2), 3.5, 10.0)
    points = []
    for side in (-1, 1):
        t = rng.random(count) ** 0.9
        centre = height + arch * np.sin(0.78 * np.pi * t) ** 1.2 - 24 * np.clip(t - 0.72, 0, 1)
        width = thickness * np.interp(t, [0, 0.12, 0.5, 0.8, 1], [0.75, 1, 0.9, 0.55, 0.18])
        offset = width * rng.normal(0, 0.40, count)
        turn = np.interp(t, [0, 0.15, 0.5, 1], [75, 50, 20, -12]) + rng.normal(0, 10, count)
        angle = np.radians(turn + np.where(offset > 0, -14, 10))  # hairs above and below lean to the middle
        along = hair_length * rng.uniform(0.6, 1.15, count) * np.interp(t, [0, 0.2, 1], [0.8, 1, 0.75])
        step_along = along[:, None] * np.linspace(0, 1, 8)
        x = start + t[:, None] * length + step_along * np.cos(angle)[:, None]
        y = (centre + offset)[:, None] + step_along * np.sin(angle)[:, None]
        points.append(np.stack([side * x, y], -1).reshape(-1, 2))
    hairs = maps.strokes(np.concatenate(points), 0.7, 0.4)
    opacity = np.clip(rng.normal(0.88, 0.10), 0.5, 0.97)
    return opacity * (1 - np.exp(-hairs))


def _lashes(rng: np.random.Generator, maps: SkinMaps, person: Person) -> Map:
    """Coverage by the lashes' line along the lid margins, and a little shadow over the upper lid."""
    upper, distance = maps.y > EYE_HEIGHT, maps.eye_distance
    line = np.exp(-((distance / 1.1) ** 2)) * np.where(upper, 1.0, 0.55)
    line += 0.25 * np.exp(-((distance / 2.6) ** 2)) * upper
    return np.clip(line * np.clip(rng.normal(0.75 + 0.12 * person.feminine, 0.1), 0.4, 0.95), 0, 0.95)


def _specular(rng: np.random.Generator, maps: SkinMaps, wrinkles: Map) -> Map:
    """F0: oily skin of the forehead, nose and chin and moist lips above the rest, pores and furrows below."""
    region, oil = maps.region, np.clip(rng.normal(1, 0.22), 0.5, 1.6)
    gloss = 1 + 0.35 * oil * (region["forehead"] + 1.2 * region["nose"] + 0.5 * region["chin"])
    gloss += 0.25 * (oil - 0.6) * region["cheek"] - 0.25 * region["jaw"] + 0.35 * maps.lips - 0.25 * wrinkles
    for scale, strength in ((4.0, 0.08), (0.6, 0.06), (0.25, 0.05)):
        gloss += strength * maps.noise(rng, scale)
    return SPECULAR_F0 * np.clip(gloss * (0.55 + 0.45 * oil), 0.2, 3)
