import asyncio
import io
import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from facelab.course.viewer import (
    ParameterSliders,
    fit_camera,
    geometry_image,
    heat_map,
    image_grid,
    mesh_figure,
    save_gif,
    studio_light,
    to_array,
    to_png,
    turntable,
)
from facelab.model.layout import ParameterLayout
from facelab.support.errors import MeshError, ParameterError


@pytest.fixture(scope="module")
def ball():
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=80)
    return torch.tensor(np.array(sphere.vertices)).float(), torch.tensor(np.array(sphere.faces)).long()


def pixels_of(figure):
    """What a notebook shows, (H, W, 3) in [0, 255]."""
    return np.array(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")).astype(int)


def test_to_array_and_png():
    image = torch.tensor([0.0, 0.5, 2.0])[:, None, None].expand(3, 4, 5)
    assert to_array(image).shape == (4, 5, 3) and to_array(image)[0, 0].tolist() == [0, 128, 255]
    assert to_array(torch.ones(1, 4, 5, dtype=torch.bool)).min() == 255
    assert np.array_equal(np.array(Image.open(io.BytesIO(to_png(image)))), to_array(image))
    with pytest.raises(ParameterError):
        to_array(torch.zeros(4, 5))


def test_image_grid_shows_every_picture():
    red, green = torch.zeros(3, 20, 30), torch.zeros(3, 20, 30)
    red[0], green[1] = 1, 1
    figure = image_grid([red, green, torch.ones(1, 20, 30)], ["a", "b", "c"], columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]
    pixels = pixels_of(figure)
    assert (pixels == [255, 0, 0]).all(-1).sum() > 5000 and (pixels == [0, 255, 0]).all(-1).sum() > 5000
    left, right = (np.argwhere((pixels == c).all(-1))[:, 1].mean() for c in ([255, 0, 0], [0, 255, 0]))
    assert left < pixels.shape[1] / 2 < right


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fit_camera_shows_the_whole_mesh(ball, dtype):
    vertices = ball[0].to(dtype) + torch.tensor([5.0, -7, 20], dtype=dtype)
    for height, width in [(100, 100), (100, 60), (80, 120)]:
        screen = fit_camera(vertices, height, width).project(vertices)
        assert screen.dtype == dtype
        low, high = screen.amin(0), screen.amax(0)
        assert (low[:2] >= 0).all() and high[0] <= width and high[1] <= height
        assert (high - low)[:2].max() > 0.5 * min(height, width)


def test_geometry_image_is_lit_from_above_left_on_white(ball):
    image = geometry_image(*ball, fit_camera(ball[0], 80, 80), 80, 80).mean(0)
    assert image[0].min() > 0.999
    assert image[30, 30] > image[50, 50] + 0.05


def test_heat_map_has_mm_on_its_bar(ball):
    vertices, triangles = ball
    camera = fit_camera(vertices, 100, 100)
    errors = (vertices[:, 0] > 0).float() * 3
    figure = heat_map(vertices, triangles, camera, errors, 100, 100, limit=3)
    picture, bar = figure.axes
    assert bar.get_ylabel() == "error, mm" and bar.get_ylim() == (0, 3)
    shown = picture.images[0].get_array().astype(int)
    right, left = shown[50, 65], shown[50, 35]
    assert right[0] > right[2] and left[2] > left[0]  # viridis: yellow is 3 mm, violet is 0
    assert (shown[0] == 255).all()
    signed = heat_map(vertices, triangles, camera, vertices[:, 0] / 80, 100, 100)
    low, high = signed.axes[1].get_ylim()
    assert low == -high and 0.9 < high <= 1
    with pytest.raises(ParameterError):
        heat_map(vertices, triangles, camera, errors[1:], 100, 100)
    with pytest.raises(ParameterError):
        heat_map(vertices, triangles, camera, errors * math.nan, 100, 100)


def test_turntable_turns_to_the_images_right(ball, tmp_path):
    vertices, triangles = ball
    front = (vertices[:, 2] > 60).float()[:, None] * torch.tensor([0.7, 0, 0]) + 0.05  # a red nose
    camera = fit_camera(vertices, 60, 60)
    images = turntable(vertices, triangles, camera, studio_light(), front, None, 60, 60, (-40, 0, 40))
    columns = []
    for image in images:
        red = (image[0] - image[1]).clamp(min=0)
        columns.append(float((red.sum(0) * (torch.arange(60) + 0.5)).sum() / red.sum()))
    assert columns[0] < 25 and abs(columns[1] - 30) < 1 and columns[2] > 35
    with Image.open(save_gif(images, tmp_path / "new" / "turn.gif")) as gif:
        assert gif.n_frames == 4 and gif.size == (60, 60)  # there and back
        assert np.abs(np.array(gif.convert("RGB")).astype(int) - to_array(images[0])).mean() < 8


def test_mesh_figure_is_plotly_and_a_png(ball, tmp_path):
    vertices, triangles = ball
    colour = torch.tensor([0.5, 0.1, 0.1]).expand_as(vertices)
    view = mesh_figure(vertices, triangles, colour, 90, 100)
    trace = view.figure.data[0]
    assert np.allclose(np.stack([trace.x, trace.y, trace.z], -1), vertices, atol=1e-5)
    assert np.array_equal(np.stack([trace.i, trace.j, trace.k], -1), triangles)
    assert view.image.shape == (3, 90, 100) and view.image[0, 45, 50] > view.image[1, 45, 50] + 0.1
    bundle = view._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/png", "text/plain"}
    png, html = view.save(tmp_path / "face")
    assert np.array_equal(np.array(Image.open(png)), to_array(view.image))
    assert "Plotly.newPlot" in html.read_text()
    with pytest.raises(MeshError):
        mesh_figure(vertices, triangles + 1000)


# ----------------------------------------------------------------------------------------------- sliders

LAYOUT = ParameterLayout(rotation=3, shape=10, light=2)


class Recorder:
    """A callback that remembers what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, theta, quick):
        self.calls.append((theta, quick))
        if theta[LAYOUT.slice("light")][1] > 2:
            raise ParameterError("Too much light.")
        return torch.full((3, 8, 8), float(theta[3]) / 6 + 0.5)


def test_sliders_cover_every_group_and_call_back_once_at_the_start():
    draw = Recorder()
    sliders = ParameterSliders(LAYOUT, draw, count=4)
    assert {name: len(group) for name, group in sliders.sliders.items()} == {
        "rotation": 3, "shape": 4, "light": 2
    }  # fmt: skip
    assert len(draw.calls) == 1 and torch.equal(draw.calls[0][0], torch.zeros(15)) and not draw.calls[0][1]


def test_a_moved_slider_changes_its_own_component():
    draw = Recorder()
    start = torch.linspace(-1, 1, 15)
    sliders = ParameterSliders(LAYOUT, draw, start, ranges={"shape": (-2, 2)})
    sliders.sliders["shape"][0].value = 1.5
    expected = start.clone()
    expected[3] = 1.5
    torch.testing.assert_close(draw.calls[-1][0], expected)
    assert float(sliders.image[0, 0, 0]) == pytest.approx(0.75)
    sliders.sliders["rotation"][1].value = 30.0
    assert float(draw.calls[-1][0][1]) == pytest.approx(math.radians(30))
    assert torch.equal(start, torch.linspace(-1, 1, 15))  # the caller's vector is not written to
    assert sliders.sliders["shape"][0].max == 2


def test_errors_are_errors():
    with pytest.raises(ParameterError, match="Too much"):
        ParameterSliders(LAYOUT, Recorder(), torch.full((15,), 3.0))
    with pytest.raises(ParameterError):
        ParameterSliders(LAYOUT, Recorder(), torch.full((15,), math.nan))
    sliders = ParameterSliders(LAYOUT, Recorder())
    with pytest.raises(ParameterError, match="Too much"):
        sliders.sliders["light"][1].value = 2.5
    assert "Too much light" in sliders.message.value
    sliders.sliders["light"][1].value = 0.5
    assert sliders.message.value == ""


def test_cheap_frames_while_dragging_and_a_good_one_after():
    draw = Recorder()
    sliders = ParameterSliders(LAYOUT, draw, pause=0.05)

    async def drag():
        for value in (0.3, 0.6, 0.9):
            sliders.sliders["shape"][2].value = value
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)

    asyncio.run(drag())
    assert [quick for _, quick in draw.calls] == [False, True, True, True, False]
    assert float(draw.calls[-1][0][5]) == pytest.approx(0.9)


def test_display_leaves_a_picture_that_is_replaced(monkeypatch):
    shown = []

    class Handle:
        def update(self, picture):
            shown[-1] = picture

    def display(thing, display_id=False):
        shown.append(thing)
        return Handle() if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    sliders = ParameterSliders(LAYOUT, Recorder())
    sliders._ipython_display_()
    assert shown[0] is sliders.widget
    before = shown[1].data
    sliders.sliders["shape"][0].value = 3.0
    assert shown[1].data != before and np.array(Image.open(io.BytesIO(shown[1].data))).min() == 255
