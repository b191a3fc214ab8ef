"""Skin colour from pigments: melanin over haemoglobin, in two layers, to linear sRGB under D65.

Light crosses the epidermis (absorbed by melanosomes), is scattered back by the dermis (absorbed by blood)
and crosses the epidermis again; a little comes back from the horny layer without meeting any pigment.
Both layers are homogeneous. Absorption is in 1/cm, wavelengths are in nm, pigments are volume fractions.

Sources
    S. L. Jacques, "Skin optics", Oregon Medical Laser Center News, 1998: melanosomes, bloodless tissue,
        scattering; ranges in "Optical properties of biological tissues: a review", Phys. Med. Biol. 58, 2013
    S. Prahl, "Optical absorption of hemoglobin", OMLC, 1999: the two tables below
    S. T. Flock et al., "Monte Carlo modeling of light propagation in highly scattering tissue - I",
        IEEE Trans. Biomed. Eng. 36, 1989: diffuse reflectance of a semi-infinite medium
    C. Donner, H. W. Jensen, "A spectral BSSRDF for shading human skin", EGSR 2006: the two kinds of melanin
    C. Wyman, P.-P. Sloan, P. Shirley, "Simple analytic approximations to the CIE XYZ color matching
        functions", JCGT 2(2), 2013: the standard observer (their multi-lobe fit)
    CIE 15: the D65 spectrum; CIE L*a*b*.  IEC 61966-2-1: sRGB primaries
    A. Chardon et al., "Skin colour typology and suntanning pathways", Int. J. Cosmet. Sci. 13, 1991: ITA
"""

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Array = NDArray[np.float64]

WAVELENGTHS = np.arange(400.0, 701.0, 10.0)

# Molar extinction, 1/cm per mol/l, every 10 nm from 400 to 700 (Prahl).
OXYHAEMOGLOBIN = np.array([
    266232, 466840, 480360, 246072, 102580, 62816, 44480, 33209.2, 26629.2, 23684.4, 20932.8, 20035.2,
    24202.4, 39956.8, 53236, 43016, 32613.2, 44496, 50104, 14400.8, 3200, 1506, 942, 610, 442, 368,
    319.6, 294, 277.6, 276, 290,
])  # fmt: skip
DEOXYHAEMOGLOBIN = np.array([
    223296, 303956, 407560, 528600, 413280, 103292, 23388.8, 16156.4, 14550, 16684, 20862, 25773.6,
    31589.6, 39036.4, 46592, 53412, 53788, 45072, 37020, 28324.4, 14677.2, 9443.6, 6509.6, 5148.8,
    4345.2, 3750.12, 3226.56, 2795.12, 2407.92, 2051.96, 1794.28,
])  # fmt: skip
HAEMOGLOBIN_GRAMS_PER_LITRE = 150.0
HAEMOGLOBIN_MOLAR_MASS = 64500.0
BLOOD_OXYGEN_SATURATION = 0.75

EUMELANIN_AT_500 = 678.0  # Jacques 1998: 6.6e11 * 500**-3.33
EUMELANIN_SLOPE = 2.75  # flatter than Jacques' 3.33, which turns dark skin orange; 2.5 leaves brown skin grey
EPIDERMIS_CM = 0.006
EPIDERMIS_PATH = 2.0  # diffuse light crosses a layer obliquely: twice the thickness on average, each way
INTERNAL_REFLECTION = 3.25  # (1 + r) / (1 - r) with r = 0.53, tissue of index 1.4 against air
HORNY_LAYER_REFLECTANCE = 0.025  # scattered back above the melanin, so the floor of the darkest skin

# CIE D65, relative power, every 10 nm from 400 to 700.
D65 = np.array([
    82.75, 91.49, 93.43, 86.68, 104.86, 117.01, 117.81, 114.86, 115.92, 108.81, 109.35, 107.80, 104.79,
    107.69, 104.41, 104.05, 100.00, 96.33, 95.79, 88.69, 90.01, 89.60, 87.70, 83.29, 83.70, 80.03,
    80.21, 82.28, 78.28, 69.72, 71.61,
])  # fmt: skip
D65_WHITE = np.array([0.95047, 1.0, 1.08883])
XYZ_TO_LINEAR_SRGB = np.array([
    [3.2404542, -1.5371385, -0.4985314],
    [-0.9692660, 1.8760108, 0.0415560],
    [0.0556434, -0.2040259, 1.0572252],
])  # fmt: skip


def colour_matching_functions() -> Array:
    """CIE 1931 standard observer at `WAVELENGTHS`, shape (31, 3) (Wyman 2013, table 1)."""

    def lobe(height: float, centre: float, below: float, above: float) -> Array:
        t = (WAVELENGTHS - centre) * np.where(centre > WAVELENGTHS, below, above)
        return height * np.exp(-0.5 * t**2)

    x = lobe(0.362, 442.0, 0.0624, 0.0374) + lobe(1.056, 599.8, 0.0264, 0.0323)
    x += lobe(-0.065, 501.1, 0.0490, 0.0382)
    y = lobe(0.821, 568.8, 0.0213, 0.0247) + lobe(0.286, 530.9, 0.0613, 0.0322)
    z = lobe(1.217, 437.0, 0.0845, 0.0278) + lobe(0.681, 459.0, 0.0385, 0.0725)
    return np.stack([x, y, z], axis=1)


def melanosome_absorption(pheomelanin: float) -> Array:
    """Absorption of pure melanosomes, (31,); `pheomelanin` is the share of the red kind (0 to 1)."""
    eumelanin = EUMELANIN_AT_500 * (WAVELENGTHS / 500.0) ** -EUMELANIN_SLOPE
    return (1 - pheomelanin) * eumelanin + pheomelanin * 2.9e15 * WAVELENGTHS**-4.75


def blood_absorption() -> Array:
    """Absorption of whole blood, (31,)."""
    extinction = BLOOD_OXYGEN_SATURATION * OXYHAEMOGLOBIN + (1 - BLOOD_OXYGEN_SATURATION) * DEOXYHAEMOGLOBIN
    return np.log(10.0) * extinction * HAEMOGLOBIN_GRAMS_PER_LITRE / HAEMOGLOBIN_MOLAR_MASS


def skin_reflectance(melanin: ArrayLike, blood: ArrayLike, pheomelanin: float = 0.1) -> Array:
    """Diffuse spectral reflectance of skin, without the mirror-like reflection at its surface.

    Args:
        melanin: volume fraction of melanosomes in the epidermis, any shape; about 0.01 (very light) to 0.4.
        blood: volume fraction of blood in the dermis, broadcasts with melanin; about 0.002 to 0.1.
        pheomelanin: share of pheomelanin in the melanin.

    Returns:
        (..., 31) in (0, 1) at `WAVELENGTHS`.
    """
    melanin, blood = np.asarray(melanin, float)[..., None], np.asarray(blood, float)[..., None]
    bloodless = 0.244 + 85.3 * np.exp(-(WAVELENGTHS - 154.0) / 66.2)
    epidermis = melanin * melanosome_absorption(pheomelanin) + (1 - melanin) * bloodless
    dermis = blood * blood_absorption() + (1 - blood) * bloodless
    scattering = 2e5 * WAVELENGTHS**-1.5 + 2e12 * WAVELENGTHS**-4  # reduced: Mie and Rayleigh
    albedo = scattering / (scattering + dermis)
    k = INTERNAL_REFLECTION
    diffuse = albedo / (1 + 2 * k * (1 - albedo) + (1 + 2 * k / 3) * np.sqrt(3 * (1 - albedo)))
    there_and_back = np.exp(-2 * EPIDERMIS_PATH * EPIDERMIS_CM * epidermis)
    return HORNY_LAYER_REFLECTANCE + (1 - HORNY_LAYER_REFLECTANCE) * diffuse * there_and_back


def reflectance_to_linear_rgb(reflectance: ArrayLike) -> Array:
    """Spectra (..., 31) seen under D65, to linear sRGB (..., 3); a perfect reflector gives (1, 1, 1)."""
    weights = colour_matching_functions() * D65[:, None]
    # Normalised per coordinate, so that the fitted observer and the 10 nm grid do not tint white.
    xyz = np.asarray(reflectance, float) @ (weights / weights.sum(0)) * D65_WHITE
    return xyz @ XYZ_TO_LINEAR_SRGB.T


def linear_rgb_to_lab(rgb: ArrayLike) -> Array:
    """Linear sRGB (..., 3) to CIE L*a*b* under D65."""
    xyz = np.asarray(rgb, float) @ np.linalg.inv(XYZ_TO_LINEAR_SRGB).T / D65_WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    fx, fy, fz = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


def individual_typology_angle_degrees(lab: ArrayLike) -> Array:
    """ITA = atan((L* - 50) / b*) in degrees (Chardon 1991): above 55 very light, below -30 dark."""
    lab = np.asarray(lab, float)
    return np.degrees(np.arctan2(lab[..., 0] - 50.0, lab[..., 2]))


class PigmentTable:
    """`skin_reflectance` as linear sRGB, tabulated over log pigment fractions for whole maps at a time."""

    LOG_MELANIN = np.linspace(np.log(0.003), np.log(0.45), 48)
    LOG_BLOOD = np.linspace(np.log(0.0015), np.log(0.20), 48)
    PHEOMELANIN = np.linspace(0.0, 0.3, 4)

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        melanin, blood = np.exp(self.LOG_MELANIN)[:, None], np.exp(self.LOG_BLOOD)
        spectra = np.stack([skin_reflectance(melanin, blood, share) for share in self.PHEOMELANIN])
        return reflectance_to_linear_rgb(spectra).astype(np.float32)  # (pheomelanin, melanin, blood, 3)

    def colour(self, log_melanin: ArrayLike, log_blood: ArrayLike, pheomelanin: float) -> NDArray[np.float32]:
        """Natural logarithms of the fractions (...), to linear sRGB (..., 3); clamps at the table's ends."""
        share = float(np.interp(pheomelanin, self.PHEOMELANIN, np.arange(len(self.PHEOMELANIN))))
        low = min(int(share), len(self.PHEOMELANIN) - 2)
        plane = self._table[low] + np.float32(share - low) * (self._table[low + 1] - self._table[low])
        where = np.stack([
            (np.asarray(log_melanin, np.float32) - self.LOG_MELANIN[0]) / np.ptp(self.LOG_MELANIN),
            (np.asarray(log_blood, np.float32) - self.LOG_BLOOD[0]) / np.ptp(self.LOG_BLOOD),
        ]) * (len(self.LOG_MELANIN) - 1)  # fmt: skip
        channels = [ndimage.map_coordinates(plane[..., c], where, order=1, mode="nearest") for c in range(3)]
        return np.stack(channels, axis=-1)
