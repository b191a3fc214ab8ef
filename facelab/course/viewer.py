"""Looking at faces: grids, heat maps, turntables, a 3-D view, sliders. All of them leave a static picture.

Pictures are (3, H, W) sRGB in [0, 1]. Functions return a figure and show nothing by themselves: in a notebook
make it the last line of a cell, or pass it to `display`.
"""

import asyncio
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from facelab.geometry.camera import Camera, PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.model.layout import ParameterLayout
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.illumination import Light, SphericalHarmonicsLight, ambient_to_sh, directional_to_sh
from facelab.rendering.image_formation import render, render_attributes
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line
from facelab.support.third_party import needs

with needs("notebooks"):
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure


class Plot(Figure):
    """A matplotlib Figure that a notebook shows as a PNG, whichever backend is in use."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=120)
        return file.getvalue()


def to_array(image: Tensor) -> np.ndarray:
    """A (3, H, W) or (1, H, W) picture or mask as (H, W, 3) uint8, clipped to [0, 1]."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ParameterError(f"A picture is (3, H, W) or (1, H, W), not {tuple(image.shape)}.")
    pixels = image.detach().cpu().float().nan_to_num(0).clamp(0, 1).expand(3, -1, -1)
    return (pixels * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def to_png(image: Tensor) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(to_array(image)).save(file, "PNG")
    return file.getvalue()


def image_grid(
    images: Sequence[Tensor] | Tensor,
    titles: Sequence[str] = (),
    columns: int | None = None,
    inches: float = 2.2,
) -> Plot:
    """Pictures (or masks) side by side: each (3, H, W) or (1, H, W); `columns` None puts all in one row."""
    columns = columns or len(images)
    rows = math.ceil(len(images) / columns)
    shape = images[0].shape[-2] / images[0].shape[-1]
    figure = Plot(figsize=(inches * columns, rows * (inches * shape + 0.3 * bool(titles))), layout="tight")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, image in zip(axes, images):
        axis.imshow(to_array(image))
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=9)
    return figure


# ------------------------------------------------------------------------------------------------ meshes


def fit_camera(vertices: Tensor, height: int, width: int, fov_degrees: float = 15) -> PerspectiveCamera:
    """A camera that looks at the front of a mesh (V, 3) mm and shows all of it, also turned."""
    low, high = vertices.detach().amin(0), vertices.detach().amax(0)
    radius = float((high - low).norm()) / 2
    half = math.radians(fov_degrees) / 2 * min(1.0, width / height)
    camera = PerspectiveCamera.from_fov(fov_degrees, height, width, 0.85 * radius / math.sin(half))
    rotation, middle = camera.rotation.to(vertices), (low + high) / 2
    return replace(
        camera,
        rotation=rotation,
        translation=camera.translation.to(vertices) - middle,
        focal=camera.focal.to(vertices),
        principal=camera.principal.to(vertices),
    )


def studio_light(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> SphericalHarmonicsLight:
    """Soft white light from above and from the image's left, for looking at shapes."""
    sun = directional_to_sh(torch.tensor([-0.4, 0.6, 0.7]), torch.full((3,), 0.75))
    return SphericalHarmonicsLight((sun + ambient_to_sh(torch.full((3,), 0.25))).to(device, dtype))


def geometry_image(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    height: int,
    width: int,
    colour: Tensor | None = None,
) -> Tensor:
    """The bare shape in grey (or linear colours (V, 3)) under studio light, on white: (3, H, W)."""
    colour = torch.full_like(vertices, 0.6) if colour is None else colour
    white = vertices.new_ones(3, height, width)
    light = studio_light(vertices.dtype, vertices.device)
    picture = render(
        vertices, triangles, camera, light, colour, None, height, width, antialias=True, background=white
    )
    return picture.image.clamp(0, 1)


def heat_map(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    errors: Tensor,
    height: int = 300,
    width: int = 300,
    limit: float | None = None,
    label: str = "error, mm",
) -> Plot:
    """Per-vertex values (V,), such as distances in mm, as colours on the rendered face, with a colour bar.

    Non-negative values run from 0 to `limit` (None: their 99th percentile), signed ones from -limit to limit.
    Raises ParameterError for another number of values or NaN.
    """
    if errors.shape != vertices.shape[:1]:
        raise ParameterError(
            f"There are {len(vertices)} vertices but values {tuple(errors.shape)}; give (V,)."
        )
    top = limit or float(errors.abs().double().quantile(0.99)) or 1.0
    signed = bool((errors < 0).any())
    values, mask = render_attributes(vertices, triangles, camera, errors[:, None], height, width)
    scale = Normalize(-top if signed else 0, top)
    colours = matplotlib.colormaps["coolwarm" if signed else "viridis"](scale(values[0].cpu().numpy()))[
        ..., :3
    ]
    shade = (
        geometry_image(vertices, triangles, camera, height, width, torch.ones_like(vertices)).mean(0).cpu()
    )
    coloured = torch.from_numpy(colours).permute(2, 0, 1) * (0.35 + 0.65 * shade)
    picture = torch.where(mask.cpu(), coloured, 1.0)
    figure = Plot(figsize=(3 * width / height + 0.9, 3), layout="tight")
    axis = figure.subplots()
    axis.imshow(to_array(picture))
    axis.axis("off")
    bar = ScalarMappable(scale, "coolwarm" if signed else "viridis")
    figure.colorbar(bar, ax=axis, label=label, shrink=0.8)
    return figure


def turntable(
    vertices: Tensor,
    triangles: Tensor,
    camera: Camera,
    light: Light,
    diffuse: Tensor,
    specular: Tensor | None,
    height: int,
    width: int,
    yaws_degrees: Sequence[float] = (-60, -40, -20, 0, 20, 40, 60),
) -> list[Tensor]:
    """Pictures (3, H, W) of the face turned to each yaw about its own middle, under a light that stays.

    Other arguments as of `image_formation.render`.
    """
    pictures = []
    middle = (vertices.amin(0) + vertices.amax(0)) / 2
    for yaw in yaws_degrees:
        turn = euler_to_matrix(vertices.new_tensor([0.0, math.radians(yaw), 0.0]))
        turn = camera.rotation.mT @ turn @ camera.rotation  # the yaw is the camera's, not the model's
        turned = (vertices - middle) @ turn.mT + middle
        picture = render(turned, triangles, camera, light, diffuse, specular, height, width, antialias=True)
        pictures.append(picture.image.detach().clamp(0, 1))
    return pictures


def save_gif(images: Sequence[Tensor], path: str | Path, frames_per_second: float = 10) -> Path:
    """Write pictures (3, H, W) as an animation that runs there and back."""
    frames = [Image.fromarray(to_array(image)) for image in [*images, *images[-2:0:-1]]]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 / frames_per_second)
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return path


@one_line
@dataclass(frozen=True, eq=False)
class MeshView:
    """A 3-D view that can be turned with the mouse, and a picture of it for places without JavaScript."""

    figure: Any
    """plotly.graph_objects.Figure"""
    image: Tensor
    """(3, H, W), made by facelab's own renderer"""

    def save(self, path: str | Path) -> list[Path]:
        """Write NAME.png and NAME.html (which fetches plotly's script from the net)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [path.with_suffix(".png"), path.with_suffix(".html")]
        files[0].write_bytes(to_png(self.image))
        self.figure.write_html(files[1], include_plotlyjs="cdn")
        return files

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # One output, two forms: JupyterLab takes plotly's, GitHub and the book the PNG.
        return {
            "application/vnd.plotly.v1+json": self.figure.to_plotly_json(),
            "image/png": to_png(self.image),
            "text/plain": "3-D view",
        }


def mesh_figure(
    vertices: Tensor, triangles: Tensor, colour: Tensor | None = None, height: int = 400, width: int = 400
) -> MeshView:
    """A 3-D view of vertices (V, 3) mm with per-vertex linear colours (V, 3), or grey."""
    with needs("notebooks"):
        import plotly.graph_objects as go  # takes a second

    x, y, z = vertices.detach().cpu().float().numpy().T
    i, j, k = triangles.cpu().numpy().astype(np.int32).T
    shown = torch.full_like(vertices, 0.6) if colour is None else colour
    rgb = (linear_to_srgb(shown.detach().clamp(0, 1)) * 255).round().byte().cpu().numpy()
    mesh = go.Mesh3d(x=x, y=y, z=z, i=i, j=j, k=k, vertexcolor=rgb, hoverinfo="skip", flatshading=False)
    mesh.lighting = {"ambient": 0.5, "diffuse": 0.7, "specular": 0.1, "roughness": 0.6}
    mesh.lightposition = {"x": -200, "y": 300, "z": 1000}
    figure = go.Figure(mesh)
    view = {"eye": {"x": 0, "y": 0, "z": 1.8}, "up": {"x": 0, "y": 1, "z": 0}}
    axis = {"visible": False}
    figure.update_layout(
        scene={"aspectmode": "data", "camera": view, "xaxis": axis, "yaxis": axis, "zaxis": axis},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        height=height,
        width=width,
    )
    camera = fit_camera(vertices.detach(), height, width)
    turned = replace(camera, rotation=euler_to_matrix(vertices.new_tensor([0.1, 0.45, 0.0])))
    image = geometry_image(vertices.detach(), triangles, turned, height, width, colour)
    return MeshView(figure, image)


# ----------------------------------------------------------------------------------------------- sliders


class ParameterSliders:
    """Sliders for every part of a parameter vector, and the picture that they make.

    `draw(theta, quick)` gets the vector (size,) and returns a picture (3, H, W). It is called with quick=True
    while a slider is dragged (make that one cheap) and with quick=False when the hand has rested
    for a moment. It is also called once right here, so that its errors are errors of the cell; later ones are
    shown under the sliders.

    Each part gets a tab with its first `count` components, from -3 to 3 (standard deviations) or as `ranges`
    says by name. Parts named in `angles` are in radians in the vector and in degrees on the sliders.
    `start` (size,) is the vector that the sliders change, None for zero.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        draw: Callable[[Tensor, bool], Tensor],
        start: Tensor | None = None,
        count: int = 6,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        angles: Sequence[str] = ("rotation",),
        pause: float = 0.3,
    ) -> None:
        with needs("notebooks"):
            import ipywidgets as widgets

        self.theta = layout.zeros() if start is None else start.detach().clone()
        layout.check(self.theta)
        self._draw, self._pause = draw, pause
        self._timer: asyncio.TimerHandle | None = None
        self._handle: Any = None
        self.sliders: dict[str, list[Any]] = {}
        for name in layout.names:
            unit = math.radians(1) if name in angles else 1.0
            low, high = (ranges or {}).get(name, (-60.0, 60.0) if name in angles else (-3.0, 3.0))
            first = layout.slice(name).start
            self.sliders[name] = []
            for i in range(min(count, layout.sizes[name])):
                value = float(self.theta[first + i]) / unit
                slider = widgets.FloatSlider(
                    value, min=min(low, value), max=max(high, value), step=(high - low) / 200,
                    description=f"{name} {i + 1}" + ("°" if name in angles else ""),
                )  # fmt: skip
                slider.observe(self._mover(first + i, unit), "value")
                self.sliders[name].append(slider)
        boxes = [widgets.VBox(sliders) for sliders in self.sliders.values()]
        self.message = widgets.HTML()
        self.widget = widgets.VBox([widgets.Tab(boxes, titles=layout.names), self.message])
        self.image = draw(self.theta.clone(), False)

    def refresh(self, quick: bool = False) -> None:
        """Draw the present vector; an error is shown under the sliders, and raised."""
        try:
            self.image = self._draw(self.theta.clone(), quick)
        except Exception as error:
            self.message.value = f"<b>{type(error).__name__}</b>: {error}"
            raise
        self.message.value = ""
        if self._handle is not None:
            self._handle.update(self._shown())

    def _mover(self, position: int, unit: float) -> Callable[[dict[str, Any]], None]:
        def move(change: dict[str, Any]) -> None:
            self.theta[position] = change["new"] * unit
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # no notebook, nobody drags
                self.refresh(quick=False)
                return
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(self._pause, self.refresh)
            self.refresh(quick=True)

        return move

    def _shown(self) -> Any:
        with needs("notebooks"):
            from IPython.display import Image as Shown

        return Shown(to_png(self.image))

    def _ipython_display_(self) -> None:
        # The picture is an ordinary output that gets replaced, no widget: so it stays in the saved notebook.
        from IPython.display import display

        display(self.widget)
        self._handle = display(self._shown(), display_id=True)
