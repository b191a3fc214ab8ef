"""The pigment model against known behaviour of skin, and the sampled albedo maps."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "data_scripts"))
import pigment
from skin import MINIMUM_DIFFUSE, SkinMaps, sample_skin

SIZE = 64


def colour_of(melanin: float, blood: float = 0.0105) -> np.ndarray:
    return pigment.linear_rgb_to_lab(
        pigment.reflectance_to_linear_rgb(pigment.skin_reflectance(melanin, blood))
    )


def test_perfect_reflector_is_white() -> None:
    white = pigment.reflectance_to_linear_rgb(np.ones(31))
    np.testing.assert_allclose(white, 1.0, atol=2e-6)
    np.testing.assert_allclose(pigment.linear_rgb_to_lab(np.ones(3)), [100, 0, 0], atol=1e-3)


def test_lab_of_the_srgb_red_primary() -> None:
    np.testing.assert_allclose(pigment.linear_rgb_to_lab([1.0, 0, 0]), [53.24, 80.09, 67.20], atol=0.02)


def test_observer_peaks_where_the_cie_puts_them() -> None:
    x, y, z = pigment.colour_matching_functions().T
    assert [pigment.WAVELENGTHS[c.argmax()] for c in (x, y, z)] == [600, 550, 450]  # CIE: 600, 555, 446
    assert y.max() == pytest.approx(0.995, abs=0.01)


def test_blood_has_the_two_bands_of_oxyhaemoglobin() -> None:
    absorption = pigment.blood_absorption()
    at = dict(zip(pigment.WAVELENGTHS, absorption, strict=True))
    assert at[540] > at[560] < at[580]
    assert at[420] == absorption.max()
    # 0.75 * 53236 + 0.25 * 46592 = 51575 per cm and mol/l, at 150 g/l of 64,500 g/mol
    assert at[540] == pytest.approx(np.log(10) * 51575 * 150 / 64500, rel=1e-3)


def test_melanin_darkens_every_wavelength() -> None:
    spectra = pigment.skin_reflectance(np.geomspace(0.006, 0.4, 20), 0.01)
    assert (np.diff(spectra, axis=0) < 0).all()
    assert (spectra > pigment.HORNY_LAYER_REFLECTANCE).all()
    assert (spectra < 0.75).all()


def test_blood_darkens_every_wavelength_and_reddens() -> None:
    assert (np.diff(pigment.skin_reflectance(0.03, np.geomspace(0.002, 0.1, 20)), axis=0) < 0).all()
    redness = [colour_of(0.025, blood)[1] for blood in (0.003, 0.01, 0.03)]
    assert redness[1] > redness[0] + 2
    assert redness[2] > redness[1] + 3


def test_epidermis_without_dermis_is_beer_lambert() -> None:
    """Twice the melanin squares its transmission, whatever the dermis sends back."""
    bloodless = pigment.skin_reflectance([0.0, 0.1, 0.2], 0.01) - pigment.HORNY_LAYER_REFLECTANCE
    ratio = bloodless / bloodless[0]
    np.testing.assert_allclose(ratio[2], ratio[1] ** 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("melanin", "lowest", "highest"),
    [(0.012, 41, 65), (0.022, 28, 55), (0.038, 10, 41), (0.125, -30, 10), (0.25, -90, -30)],
)
def test_tones_fall_into_their_typology_classes(melanin: float, lowest: float, highest: float) -> None:
    """ITA in degrees: very light > 55 > light > 41 > intermediate > 28 > tan > 10 > brown > -30 > dark."""
    lab = colour_of(melanin)
    assert lowest < pigment.individual_typology_angle_degrees(lab) < highest
    assert 7 < lab[1] < 16
    assert 7 < lab[2] < 27


def test_light_tones_differ_in_yellowness_more_than_in_redness() -> None:
    """As measured by Xiao et al., "Characterising the variations in ethnic skin colours", 2017."""
    lightness, redness, yellowness = np.array([colour_of(m) for m in (0.018, 0.025, 0.036, 0.05)]).T
    assert np.ptp(redness) < 3 < np.ptp(yellowness)
    assert (np.diff(yellowness) > 0).all()
    assert 50 < lightness.min() < lightness.max() < 70


@pytest.mark.parametrize(("tone", "code"), [(6, "a07e56"), (7, "825c43"), (8, "604134"), (9, "3a312a")])
def test_dark_tones_pass_near_the_monk_scale(tone: int, code: str) -> None:
    """Some melanin and blood come within 5.5 CIELAB units of the darker Monk Skin Tones (2019, as sRGB)."""
    srgb = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    wanted = pigment.linear_rgb_to_lab(((srgb + 0.055) / 1.055) ** 2.4)
    melanin, blood = np.geomspace(0.02, 0.45, 60)[:, None], np.geomspace(0.002, 0.03, 20)
    colours = pigment.linear_rgb_to_lab(
        pigment.reflectance_to_linear_rgb(pigment.skin_reflectance(melanin, blood))
    )
    assert np.linalg.norm(colours - wanted, axis=-1).min() < 5.5, tone


@pytest.mark.parametrize("measured", [(61.75, 9.56, 17.08), (26.7, 14.6, 14.7)])
def test_chroma_is_that_of_measured_skin(measured: tuple[float, float, float]) -> None:
    """The mean of 600 Koreans, and the darkest cluster of 120 faces (sources in anthropometry.json)."""
    melanin, blood = np.geomspace(0.005, 0.4, 80)[:, None], np.geomspace(0.003, 0.03, 30)
    colours = pigment.linear_rgb_to_lab(
        pigment.reflectance_to_linear_rgb(pigment.skin_reflectance(melanin, blood))
    )
    assert np.linalg.norm(colours - np.array(measured), axis=-1).min() < 1.8


def test_table_equals_the_spectral_model() -> None:
    rng = np.random.default_rng(0)
    melanin, blood, red = rng.uniform(0.01, 0.4, 200), rng.uniform(0.002, 0.09, 200), 0.17
    exact = np.stack(
        [
            pigment.reflectance_to_linear_rgb(pigment.skin_reflectance(m, b, red))
            for m, b in zip(melanin, blood)
        ]
    )
    table = pigment.PigmentTable().colour(np.log(melanin), np.log(blood), red)
    assert np.abs(table - exact).max() < 2e-3


@pytest.fixture(scope="module")
def toy() -> dict[str, np.ndarray]:
    """A mirror-symmetric egg with holes for eyes and mouth, in place of the mean face."""
    row, column = np.mgrid[:SIZE, :SIZE] + 0.5
    x, y = (column / SIZE - 0.5) * 200, (0.55 - row / SIZE) * 220
    bulge = 1 - (x / 105) ** 2 - ((y - 10) / 135) ** 2
    z = 90 * np.sqrt(np.maximum(bulge, 0)) - 90 + 25 * np.exp(-(x**2 + y**2) / 200)
    normals = np.stack([x / 105**2, (y - 10) / 135**2, (z + 90) / 90**2], -1)
    eyes = ((np.abs(x) - 32) / 12) ** 2 + ((y - 40) / 6) ** 2 < 1
    mouth = (x / 22) ** 2 + ((y + 32) / 5) ** 2 < 1
    return {
        "positions": np.stack([x, y, z], -1),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "valid": (bulge > 0) & ~eyes & ~mouth,
        "lips": ((x / 28) ** 2 + ((y + 32) / 12) ** 2 < 1).astype(float),
        "eyelids": (((np.abs(x) - 32) / 16) ** 2 + ((y - 40) / 10) ** 2 < 1).astype(float),
    }


@pytest.fixture(scope="module")
def maps(toy: dict[str, np.ndarray]) -> SkinMaps:
    return SkinMaps(**toy)


def test_regions_are_mirror_symmetric_and_in_range(maps: SkinMaps) -> None:
    for name, region in {**maps.region, **maps.beard, "eye": maps.eye_distance / 300}.items():
        assert region.shape == (SIZE, SIZE)
        assert region.min() >= 0, name
        assert 0.3 < region.max() <= 1 + 1e-6, name
        difference = np.abs(region - region[:, ::-1])[maps.valid]  # off the skin, ties break the symmetry
        assert difference.max() < 1e-4, name


def test_regions_lie_where_they_belong(maps: SkinMaps) -> None:
    def height(field: np.ndarray) -> float:
        return float((field * maps.y)[maps.valid].sum() / field[maps.valid].sum())

    region = maps.region
    assert height(region["forehead"]) > height(region["upper_lid"]) > height(region["under_eye"])
    assert (
        height(region["under_eye"])
        > height(region["nose"])
        > height(region["perioral"])
        > height(region["chin"])
    )
    assert maps.beard["full"][maps.valid & (maps.y > 30) & (maps.side < 45)].max() < 0.05
    assert (maps.eye_distance[maps.valid] > 0).all()
    assert (maps.eye_distance == 0).any()


def test_strokes_draw_where_they_are_told(maps: SkinMaps) -> None:
    points = np.stack([np.linspace(20, 50, 200), np.full(200, 60.0)], 1)
    weights = np.full(200, 30 / 200 / maps.texel_mm)
    line = maps.strokes(points, weights, 6.0)
    row, column = np.unravel_index(line.argmax(), line.shape)
    assert maps.y[row, column] == pytest.approx(60, abs=3)
    assert column > SIZE / 2  # +x is the image's right
    frontal_texel = 200 / SIZE  # shorter than a texel along the slope of the cheek, which `texel_mm` is
    assert line.max() == pytest.approx(0.95 * frontal_texel / maps.texel_mm, abs=0.1)


def test_samples_are_in_range_and_deterministic(maps: SkinMaps) -> None:
    for seed, (ancestry, gender, age) in enumerate(
        [((1, 0, 0), 0.1, 0.0), ((0, 0, 1), 0.9, 1.0), ((1, 2, 1), 0.5, 0.4)]
    ):
        diffuse, specular = sample_skin(np.random.default_rng(seed), maps, ancestry, gender, age)
        again = sample_skin(np.random.default_rng(seed), maps, ancestry, gender, age)
        assert diffuse.shape == (SIZE, SIZE, 3)
        assert specular.shape == (SIZE, SIZE)
        assert diffuse.dtype == specular.dtype == np.float32
        assert diffuse.min() >= MINIMUM_DIFFUSE
        assert diffuse.max() < 0.8
        assert 0.003 < specular.min() < specular.max() < 0.09
        assert np.array_equal(diffuse, again[0])
        assert np.array_equal(specular, again[1])
        other = sample_skin(np.random.default_rng(seed + 100), maps, ancestry, gender, age)
        assert np.abs(diffuse - other[0]).max() > 0.01


def test_population_spans_dark_to_very_light(maps: SkinMaps) -> None:
    rng = np.random.default_rng(5)
    forehead = (maps.region["forehead"] > 0.5) & maps.valid
    angles, gloss = [], []
    for ancestry in [(1, 0, 0)] * 25 + [(0, 1, 0)] * 25 + [(0, 0, 1)] * 25:
        diffuse, specular = sample_skin(rng, maps, ancestry, rng.random(), 0.3 * rng.random())
        lab = pigment.linear_rgb_to_lab(diffuse[forehead].mean(0))
        angles.append(float(pigment.individual_typology_angle_degrees(lab)))
        gloss.append(specular[maps.valid].mean())
    african, asian, european = np.array(angles).reshape(3, 25)
    # Chardon's classes: dark < -30 < brown < 10 < tan < 28 < intermediate < 41 < light < 55 < very light
    assert np.median(african) < 0 < np.median(asian) < 35 < np.median(european)
    assert min(african) < -48
    assert max(european) > 52
    assert np.mean(gloss) == pytest.approx(0.028, abs=0.002)


def test_anatomy_shows(maps: SkinMaps) -> None:
    """Lips are redder than the skin around them, brows darker, and only men have beards."""
    rng = np.random.default_rng(1)
    lips = (maps.lips > 0.9) & maps.valid & (maps.mouth_distance > 4)
    cheek = (maps.region["cheek"] > 0.6) & maps.valid
    # Brows differ in height: look for the darkest band.
    over_eye = maps.valid & (abs(maps.side - 28) < 8)
    bands = [over_eye & (abs(maps.y - height) < 3) for height in range(54, 71, 2)]
    jaw = maps.valid & (maps.beard["full"] > 0.8)
    shadow = {0.0: [], 1.0: []}
    for gender in [0.0, 1.0] * 10:
        diffuse, _ = sample_skin(rng, maps, (0, 0, 1), gender, 0.2)
        lab = pigment.linear_rgb_to_lab(diffuse)
        assert lab[lips][:, 1].mean() > lab[cheek][:, 1].mean() + 2
        assert min(lab[band][:, 0].mean() for band in bands) < lab[cheek][:, 0].mean() - 10
        shadow[gender].append(lab[jaw][:, 0].mean() - lab[cheek][:, 0].mean())
    assert np.mean(shadow[0.0]) < np.mean(shadow[1.0]) - 3


def test_bad_maps_are_named(toy: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one size"):
        SkinMaps(**{**toy, "lips": toy["lips"][:-1]})
    with pytest.raises(ValueError, match="holes at both eyes"):
        SkinMaps(**{**toy, "valid": np.ones((SIZE, SIZE), bool)})
