"""The table of people's measures, and the calipers on the mesh."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "data_scripts"))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import anthropometry
from calipers import measure_model, place_calipers

from facelab.geometry.rotations import euler_to_matrix
from facelab.model.morphable_model import MorphableModel


@pytest.fixture(scope="module")
def table() -> dict:
    return anthropometry.read_table()


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def test_every_number_names_its_source(table: dict) -> None:
    used = {row["source"] for row in table["rows"] + table["skin"]}
    assert used <= set(table["sources"])
    for row in table["rows"]:
        assert row["mean"] > 0 and (row["sd"] is None or 0 < row["sd"] < 0.5 * row["mean"]), row
    matrix = np.array(table["correlations"]["matrix"])
    assert np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix)[0] > 0


def test_every_measure_has_a_norm_that_contains_its_groups(table: dict) -> None:
    for measure in anthropometry.MEASURES:
        pooled = anthropometry.pooled_norm(table, measure)
        assert pooled is not None, measure
        groups = [
            anthropometry.group_norm(table, measure, g, s)
            for g in anthropometry.GROUPS
            for s in ("men", "women")
        ]
        means = [norm.mean for norm in groups if norm]
        assert min(means) <= pooled.mean <= max(means)
        assert pooled.sd >= np.mean([n.sd for n in groups if n and np.isfinite(n.sd)]) - 1e-9


def test_calipers_scale_with_the_face_and_ignore_its_place(model: MorphableModel) -> None:
    calipers, shape = place_calipers(model), model.mean.numpy()[None]
    plain = calipers.measure(shape)
    assert set(plain) == set(anthropometry.MEASURES)
    for moved, factor in ((1.1 * shape, 1.1), (shape + np.float32([3, -20, 7]), 1.0)):
        for name, value in calipers.measure(moved).items():
            beyond = anthropometry.BEYOND_CLICKS.get(name, 0.0)  # does not grow with the face
            np.testing.assert_allclose(value - beyond, factor * (plain[name] - beyond), 1e-4, err_msg=name)


def test_calipers_measure_what_they_are_named_after(model: MorphableModel) -> None:
    """Move the corners of the mouth, or all of the nose, and only what is measured there changes."""
    calipers, shape = place_calipers(model), model.mean.numpy()[None]
    plain, wide, long = calipers.measure(shape), shape.copy(), shape.copy()
    corners = calipers.triangles[[48, 54]]
    wide[0, corners[0], 0] -= 2
    wide[0, corners[1], 0] += 2
    after = calipers.measure(wide)
    assert after["mouth_width"] - plain["mouth_width"] == pytest.approx(4, abs=0.05)
    others = set(plain) - {"mouth_width"}
    assert all(after[name] == pytest.approx(plain[name], abs=1e-4) for name in others)
    long[0, calipers.tip, 2] += 3
    assert 1 < calipers.measure(long)["nose_protrusion"] - plain["nose_protrusion"] < 3


def test_measures_of_the_shipped_model_are_those_of_faces(model: MorphableModel, table: dict) -> None:
    drawn = model.sample(60, torch.Generator().manual_seed(1))["identity"]
    measures, marks = measure_model(model, drawn)
    assert marks.shape == (60, 68, 3)
    for name, values in measures.items():
        row = anthropometry.compare(name, values, anthropometry.pooled_norm(table, name))
        assert abs(row.shift) < 3 and 0.3 < row.spread < 2, row


def test_ratios_in_pictures(model: MorphableModel) -> None:
    """A ratio does not depend on size, and a head turned by 25 degrees is not taken for a frontal one."""
    marks = model.landmarks(model.mean).double()
    straight = anthropometry.portrait(marks.numpy()[None])
    turned = anthropometry.portrait(
        (marks @ euler_to_matrix(torch.tensor([0, 0.44, 0.0])).double().T).numpy()[None]
    )
    assert anthropometry.is_frontal(straight)[0] and not anthropometry.is_frontal(turned)[0]
    for name, value in anthropometry.photograph_ratios(straight).items():
        assert value == pytest.approx(anthropometry.photograph_ratios(0.3 * straight)[name])
    elsewhere = anthropometry.portrait(marks.numpy()[None] + [30, 700, -50])
    np.testing.assert_allclose(elsewhere, straight, atol=1e-9)
    near_is_larger = np.float64([[[10.0, 0, 50], [10.0, 0, -50], [-20.0, 0, 0]]])
    near, far, _ = anthropometry.portrait(near_is_larger)[0, :, 0]
    assert near > far + 0.5
