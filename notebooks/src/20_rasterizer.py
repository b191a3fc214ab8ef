# %% [markdown]
# # 20 · A rasterizer you can differentiate
#
# A renderer answers one discrete question, *which triangle does this pixel see?*, and one smooth one, *what
# is the value there?* In this notebook you build both from nothing: edge functions, barycentric
# coordinates, perspective, a z-buffer. Then you derive by hand how a pixel's value changes when a vertex
# moves, find out why that gradient knows nothing about outlines, and repair it with antialiasing. At the
# end you can explain every line of `facelab.rendering.rasterizer`, and you recover the pose of a face from
# its silhouette alone.
#
# **What you will learn**
#
# - to write a z-buffer with perspective-correct interpolation, and its rules at edges
# - to derive the gradient of a pixel by hand
# - why outlines have no gradient, and how antialiasing gives them one
#
# **Time:** 75 minutes, with exercises 120. **Before this:** linear algebra, PyTorch tensors and autograd;
# [docs/conventions.md](../docs/conventions.md) for the axes (screen: x right, y **down**, depth positive in
# front of the camera; the centre of pixel (row 0, column 0) is at (0.5, 0.5)).

# %%
import json
from collections.abc import Callable
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from facelab.course import checks
from facelab.course.notebook import begin, repository
from facelab.course.viewer import ParameterSliders
from facelab.evaluation.metrics import pose_error_degrees
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.mesh import vertex_normals
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.rasterizer import antialias, interpolate, rasterize

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 120, "image.interpolation": "nearest", "axes.titlesize": 10})

# %% tags=["parameters"]
PRESET = "quick"
DEVICE = "cpu"
SEED = 0
OUT_DIR = ""  # folder for the results; "": runs/20_rasterizer of the repository

# %%
PRESETS = {
    "tiny": {"size": 96, "sphere": 3, "radii": 9, "pose_steps": 160, "model": 0},
    "quick": {"size": 160, "sphere": 4, "radii": 65, "pose_steps": 200, "model": 1},
    "full": {"size": 240, "sphere": 5, "radii": 129, "pose_steps": 400, "model": 2},
}
P, out = begin("20_rasterizer", globals(), PRESETS)
numbers: dict[str, float] = {}  # what this notebook measures; written to OUT_DIR/numbers.json at the end

print(f"{'preset':8}" + "".join(f"{key:>12}" for key in P))
for name, settings in PRESETS.items():
    mark = "<- this run" if name == PRESET else ""
    print(f"{name:8}" + "".join(f"{value:12}" for value in settings.values()) + f"   {mark}")

# %% [markdown]
# `size`: pixels per side of the face pictures. `sphere`: subdivisions of the test sphere. `radii`: points
# of the silhouette plot. `pose_steps`: steps of the pose recovery. `model`: subdivisions of the face model.
#
# ## 1 · Inside or outside? Edge functions
#
# Take a directed edge from corner $a$ to corner $b$ and a pixel centre $p$. The **edge function**
#
# $$e_{ab}(p) = (a-p)\times(b-p) = (a_x-p_x)(b_y-p_y)-(a_y-p_y)(b_x-p_x)$$
#
# is twice the signed area of the triangle $(p, a, b)$. It is linear in $p$, zero on the line through $a$
# and $b$, and its sign tells the side (Pineda 1988, *A parallel algorithm for polygon rasterization*). A
# point is inside a triangle when all three edge functions have the same sign. Our screen's y points *down*,
# which turns the sign of the formula round, not what we see: for a triangle that **faces us**, whose corners
# follow each other counter-clockwise to the eye, all three are **negative**; one that turns its back has
# three positive ones. That is back-face culling for free.


# %%
def edge_function(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Twice the signed area of (p, a, b); all (..., 2), broadcasting -> (...)."""
    a, b = a - p, b - p
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def pixel_centres(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(H, W, 2): the point (x, y) in the middle of each pixel."""
    x, y = torch.arange(width, dtype=dtype) + 0.5, torch.arange(height, dtype=dtype) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


corners = torch.tensor(
    [[3.0, 16.0], [20.0, 12.0], [9.0, 2.0]], dtype=torch.float64
)  # counter-clockwise to the eye
p = pixel_centres(20, 24)
edges = [edge_function(p, corners[(k + 1) % 3], corners[(k + 2) % 3]) for k in range(3)]
inside = (edges[0] <= 0) & (edges[1] <= 0) & (edges[2] <= 0)

figure, axes = plt.subplots(1, 4, figsize=(11, 2.5))
outline = corners[[0, 1, 2, 0]]
for k, axis in enumerate(axes[:3]):
    axis.imshow(edges[k], cmap="RdBu", vmin=-300, vmax=300, extent=(0, 24, 20, 0))
    axis.set_title(f"$e_{k}$, the edge opposite corner {k}")
axes[3].imshow(inside, cmap="Greys", vmax=2, extent=(0, 24, 20, 0))
axes[3].set_title(f"all three ≤ 0: {int(inside.sum())} pixels")
for axis in axes:
    axis.plot(*outline.T, "k-", lw=1)
    for k in range(3):
        axis.annotate(str(k), corners[k].tolist(), color="k", ha="center")
plt.tight_layout()

# %% [markdown]
# ## 2 · Where inside? Barycentric coordinates
#
# Divide by the whole area and the three edge functions become weights: with
# $e_0 = e_{12}, e_1 = e_{20}, e_2 = e_{01}$ (each opposite the corner of its number),
#
# $$\lambda_k(p) = \frac{e_k(p)}{e_0(p)+e_1(p)+e_2(p)},\qquad \sum_k\lambda_k = 1,\qquad
# p = \lambda_0 c_0+\lambda_1 c_1+\lambda_2 c_2 .$$
#
# The denominator is twice the signed area of the triangle, the same for every $p$.
#
# ### Exercise 1 (easy, 5 minutes)
#
# Write the function. It must work for any batch shape, so index the last axis only.


# %% tags=["solution"]
def barycentric(point: Tensor, triangle: Tensor) -> Tensor:
    """Barycentric coordinates (..., 3) of `point` (..., 2) in `triangle` (..., 3, 2)."""
    # SOLUTION
    c0, c1, c2 = triangle.unbind(-2)
    e = torch.stack(
        [edge_function(point, c1, c2), edge_function(point, c2, c0), edge_function(point, c0, c1)], -1
    )
    return e / e.sum(-1, keepdim=True)


# %%
def weights_by_solving(points: Tensor, triangle: Tensor) -> Tensor:
    """Two equations for the point and one for the sum, solved."""
    corners = torch.cat([triangle.mT, torch.ones_like(triangle[..., :1, :1]).expand(1, 3)], -2)
    return torch.linalg.solve(corners, F.pad(points, (0, 1), value=1.0).mT).mT


def points_and_triangle(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """30 points and a triangle in a picture of 100×100."""
    triangle = torch.tensor([[10.0, 80], [20, 15], [90, 40]])
    triangle = triangle + checks.uniform(generator, 3, 2, low=-9, high=9)
    return checks.uniform(generator, 30, 2, low=0, high=100), triangle


def both_ways_round() -> tuple[tuple[Tensor, Tensor], ...]:
    """A triangle that faces us and the same from behind, with points on a corner, an edge and outside."""
    triangle = torch.tensor([[10.0, 80], [20, 15], [90, 40]], dtype=torch.float64)
    p = torch.stack([triangle[0], (triangle[1] + triangle[2]) / 2, triangle.mean(0), torch.zeros(2).double()])
    return (p, triangle), (p, triangle.flip(0))


def twice_area(triangle: Tensor) -> Tensor:
    """Signed, of one triangle (3, 2)."""
    return edge_function(*triangle)


checks.register(
    checks.Exercise(
        name="barycentric coordinates",
        task="f(points (..., 2), triangle (3, 2)) -> (..., 3): weights w of sum 1 with w @ triangle = point.",
        reference=weights_by_solving,
        inputs=points_and_triangle,
        difficulty=1,
        minutes=5,
        mistakes={
            "The weights belong to other corners: w_0 is 1 at corner 0.": (
                lambda p, t: weights_by_solving(p, t.roll(1, 0))
            ),
            "The weights belong to other corners; w_0 is 1 at corner 0.": (
                lambda p, t: weights_by_solving(p, t.roll(-1, 0))
            ),
            "Do not clip: outside the triangle a weight is negative.": (
                lambda p, t: weights_by_solving(p, t).clamp(min=0)
            ),
            "Divide by the whole area: the weights sum to 1.": (
                lambda p, t: weights_by_solving(p, t) * twice_area(t)
            ),
            "Divide by the signed area: seen from behind, areas and whole are both negative.": (
                lambda p, t: weights_by_solving(p, t) * twice_area(t).sign()
            ),
            "An area has a sign; without it, points outside look as if they were inside.": (
                lambda p, t: weights_by_solving(p, t).abs()
            ),
        },
        idea="A weight is the share of the area that the point and the opposite edge cut off.",
        hint="w_0 is the signed area of (point, corner 1, corner 2) over that of the triangle.",
        edges=both_ways_round(),
    )
)
checks.check("barycentric coordinates", barycentric)

# %% [markdown]
# ## 3 · Perspective
#
# $\lambda$ weighs positions *on the screen*. But a texture lives on the triangle *in space*, and a pinhole
# camera squeezes what is far. What stays linear on the screen under perspective is not an attribute $A$ but
# $A/z$, and $1/z$ itself. So interpolate those two linearly and divide:
#
# $$q_k = \frac{e_k}{z_k},\qquad S=q_0+q_1+q_2,\qquad b_k=\frac{q_k}{S},\qquad
# A(p)=\sum_k b_kA_k,\qquad z(p)=\frac{e_0+e_1+e_2}{S}.$$
#
# *Why:* a plane that does not pass through the eye satisfies $n\cdot X = d$ with
# $X = z\,(\hat x,\hat y,1)$, so $1/z = n\cdot(\hat x,\hat y,1)/d$ is linear in the screen position
# $(\hat x,\hat y)$; and $A$ is linear in $X$, so $A/z$ is linear in $(\hat x,\hat y,1)$ and $1/z$.
#
# The floor below shows what happens without the division (this is how the first PlayStation drew it).

# %%
floor_screen = torch.tensor(
    [[16.0, 90.0, 100.0], [112.0, 90.0, 100.0], [80.0, 20.0, 400.0], [48.0, 20.0, 400.0]], dtype=torch.float64
)
floor_triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
floor_uv = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)


def draw_floor(perspective: bool) -> Tensor:
    """(96, 128, 2) uv of the floor; NaN where there is none."""
    p = pixel_centres(96, 128)
    uv = torch.full((96, 128, 2), torch.nan, dtype=torch.float64)
    for triangle in floor_triangles:
        xy, z = floor_screen[triangle, :2], floor_screen[triangle, 2]
        weight = barycentric(p, xy.expand(96, 128, 3, 2))
        inside = (weight >= 0).all(-1)
        if perspective:
            weight = weight / z
            weight = weight / weight.sum(-1, keepdim=True)
        uv[inside] = (weight @ floor_uv[triangle])[inside]
    return uv


figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for axis, perspective in zip(axes, (False, True)):
    uv = draw_floor(perspective)
    axis.imshow(((uv * 8).floor().sum(-1) % 2), cmap="gray", vmin=-0.5, vmax=1.3)
    axis.set_title("perspective-correct" if perspective else "linear on the screen")
    axis.axis("off")
plt.tight_layout()
worst = (draw_floor(True) - draw_floor(False)).nan_to_num(0).norm(dim=-1).max().item()
print(f"largest error of the texture coordinate: {worst:.2f} of the floor's side")

# %% [markdown]
# On a face the effect is small because its triangles are small: over one triangle the depth hardly changes.
# It is still there, costs nothing, and without it the gradient with respect to depth would be missing.
#
# ## 4 · Who wins? The z-buffer
#
# Keep for each pixel the smallest depth so far and the number of the triangle that it belongs to. The
# result is the **face index**, one integer per pixel, and −1 where nothing was hit.
#
# ### Exercise 2 (medium, 15 minutes)
#
# Write the loop over triangles. Looping over the pixels as well would be faithful and slow; test all pixels
# of a triangle's bounding box at once. Follow the rules: drop a triangle that turns its back or has no area
# (signed area ≥ 0 on our screen) or has a corner at or behind the camera; an edge belongs to the triangle;
# at equal depth the lower number wins.


# %% tags=["solution"]
def zbuffer(screen: Tensor, triangles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Face index (H, W) int64, -1 is background, and depth (H, W), infinite there.

    screen: (V, 3) x, y in pixels and depth. triangles: (T, 3) int64.
    """
    # SOLUTION
    p = pixel_centres(height, width, screen.dtype)
    face_index = torch.full((height, width), -1)
    nearest = torch.full((height, width), torch.inf, dtype=screen.dtype)
    for t, triangle in enumerate(triangles):
        c, z = screen[triangle, :2], screen[triangle, 2]
        if edge_function(c[0], c[1], c[2]) >= 0 or z.min() <= 0:
            continue
        # Pixel centres column + 0.5 between the smallest and the largest x, and the same for rows
        left, top = (c.amin(0) - 0.5).ceil().clamp(min=0).long().tolist()
        right, bottom = (c.amax(0) - 0.5).floor().long().tolist()
        box = (slice(top, max(top, bottom + 1)), slice(left, max(left, right + 1)))
        e = torch.stack([edge_function(p[box], c[(k + 1) % 3], c[(k + 2) % 3]) for k in range(3)], -1)
        depth = e.sum(-1) / (e / z).sum(-1)
        wins = (e <= 0).all(-1) & (depth < nearest[box])
        nearest[box] = torch.where(wins, depth, nearest[box])
        face_index[box] = torch.where(wins, t, face_index[box])
    return face_index, nearest


# %%
def drawn_by_facelab(screen: Tensor, triangles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What the library's rasterizer says."""
    face_index = rasterize(screen, triangles, height, width, backend="torch")
    _, depth = interpolate(screen, triangles, face_index, screen[:, :1])
    return face_index, torch.where(face_index < 0, torch.inf, depth[0])


def one_before_the_other(generator: torch.Generator) -> tuple[Tensor, Tensor, int, int]:
    """Two overlapping triangles that face the camera, one wholly before the other."""
    xy = torch.tensor([[5.0, 35], [36, 30], [14, 4], [4, 8], [20, 36], [34, 6]])
    near, far = (checks.uniform(generator, 3, 1, low=z, high=z + 40) for z in (500, 560))
    swap = torch.rand((), generator=generator) < 0.5
    depth = torch.cat([far, near] if swap else [near, far])
    moved = torch.cat([xy + checks.uniform(generator, 6, 2, low=-3, high=3), depth], -1)
    return moved, torch.tensor([[0, 1, 2], [3, 4, 5]]), 40, 44


def by_rules(
    screen: Tensor, triangles: Tensor, height: int, width: int, strict: bool = False, last: bool = False,
    behind: bool = False, back: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every triangle at every pixel; each flag breaks one rule."""
    p = pixel_centres(height, width)
    face_index, nearest = torch.full((height, width), -1), torch.full((height, width), torch.inf).to(screen)
    for t, corners in enumerate(screen[triangles]):
        area, z = twice_area(corners[:, :2]), corners[:, 2]
        if area == 0 or (area > 0 and not back) or (z.min() <= 0 and not behind):
            continue
        e = torch.stack([edge_function(p, corners[k - 2, :2], corners[k - 1, :2]) for k in range(3)], -1)
        e = e * -area.sign()
        depth = e.sum(-1) / (e / z).sum(-1)
        hit = (e < 0).all(-1) if strict else (e <= 0).all(-1)
        hit = hit & (depth <= nearest if last else depth < nearest)
        nearest, face_index = torch.where(hit, depth, nearest), torch.where(hit, t, face_index)
    return face_index, nearest


def at_the_edge() -> tuple[tuple[Tensor, Tensor, int, int], ...]:
    """Pixel centres on edges, equal depths, a corner behind the camera, a triangle from behind."""
    xy = torch.tensor([[1.5, 8.5], [8.5, 8.5], [8.5, 1.5], [1.5, 1.5]])
    square = torch.cat([xy, torch.full((4, 1), 500.0)], -1).double()
    halves = torch.tensor([[0, 1, 2], [0, 2, 3]])
    near = square.clone()
    near[:, 2] = 400
    pierced = near.clone()
    pierced[2, 2] = -1
    both = torch.cat([square, near])
    return (
        (square, halves, 10, 11),
        (square, torch.cat([halves, halves]), 10, 11),
        (torch.cat([square, pierced]), torch.tensor([[0, 1, 2], [4, 5, 6]]), 10, 11),
        (both, torch.tensor([[0, 1, 2], [6, 5, 4]]), 10, 11),
    )


def with_depth(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The z-buffer of a mesh whose depths decide differently."""
    return lambda s, *rest: drawn_by_facelab(torch.cat([s[:, :2], change(s[:, 2:])], -1), *rest)


checks.register(
    checks.Exercise(
        name="z-buffer of two triangles",
        task="f(screen (V, 3), triangles (T, 3), height, width) -> face index (H, W) int64, the number of "
        "the nearest triangle at the pixel's centre, -1 for none; and its depth (H, W), infinite for none.",
        reference=drawn_by_facelab,
        inputs=one_before_the_other,
        difficulty=3,
        minutes=15,
        mistakes={
            "The farthest triangle is kept: depth grows away from the camera.": with_depth(
                lambda z: 2000 - z
            ),
            "The triangle drawn last wins: compare depths before you overwrite.": with_depth(
                lambda z: torch.linspace(900, 500, len(z)).to(z)[:, None]
            ),
            "The triangle drawn first wins: compare depths.": with_depth(
                lambda z: torch.linspace(500, 900, len(z)).to(z)[:, None]
            ),
            "Pixel (0, 0) has its centre at (0.5, 0.5), not at (0, 0).": (
                lambda s, *rest: drawn_by_facelab(s + s.new_tensor([0.5, 0.5, 0]), *rest)
            ),
            "The background is -1.": (
                lambda *a: (drawn_by_facelab(*a)[0].clamp(min=0), drawn_by_facelab(*a)[1])
            ),
            "An edge belongs to its triangle: a pixel centre on it counts (<=, not <).": (
                lambda *a: by_rules(*a, strict=True)
            ),
            "At equal depth the lower number wins: overwrite only what is nearer.": (
                lambda *a: by_rules(*a, last=True)
            ),
            "Leave out a triangle with a corner at or behind the camera.": lambda *a: by_rules(
                *a, behind=True
            ),
            "A triangle that turns its back is not drawn.": lambda *a: by_rules(*a, back=True),
        },
        idea="Go through the triangles; one takes the pixels that it covers and where it is nearer.",
        hint="A pixel is inside where all edge functions are <= 0; the reciprocal of depth is linear.",
        rounds=4,
        edges=at_the_edge(),
    )
)
checks.check("z-buffer of two triangles", zbuffer)

# %% [markdown]
# Two triangles that pierce each other, no sorting needed; the line where they meet falls out of the depths.

# %%
crossing = torch.tensor(
    [[6, 52, 300], [58, 40, 300], [20, 6, 120], [58, 52, 300], [40, 4, 110], [6, 28, 300]],
    dtype=torch.float64,
)
face_index, depth = zbuffer(crossing, torch.tensor([[0, 1, 2], [3, 4, 5]]), 60, 64)
figure, axes = plt.subplots(1, 2, figsize=(7, 3))
axes[0].imshow(face_index, cmap="viridis")
axes[0].set_title("face index: −1, 0, 1")
image = axes[1].imshow(depth.where(depth.isfinite(), torch.nan), cmap="magma_r")
axes[1].set_title("depth (mm)")
figure.colorbar(image, ax=axes[1])
plt.tight_layout()

# %% [markdown]
# ### All triangles at once
#
# A Python loop over 15,000 triangles takes seconds. The vectorised version lists every *candidate*, a pair
# of a triangle and a pixel centre in its bounding box, tests all of them together, and lets
# `scatter_reduce(..., "amin")` do the depth test: once for the depth, once more for the smallest triangle
# number among those at that depth. A minimum does not depend on the order, so the result is deterministic,
# on a GPU too.


# %%
def zbuffer_vectorised(screen: Tensor, triangles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """As `zbuffer`, without a loop."""
    x, y, z = screen[triangles].permute(2, 1, 0)  # each (3 corners, T)
    left, top = ((c.amin(0) - 0.5).ceil().clamp(min=0).long() for c in (x, y))
    columns = ((x.amax(0) - 0.5).floor().clamp(max=width - 1).long() - left + 1).clamp(min=0)
    rows = ((y.amax(0) - 0.5).floor().clamp(max=height - 1).long() - top + 1).clamp(min=0)
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    count = torch.where((area < 0) & (z.amin(0) > 0), columns * rows, 0)  # candidates per triangle

    t = torch.repeat_interleave(torch.arange(len(triangles)), count)  # the triangle of each candidate
    n = torch.arange(len(t)) - (count.cumsum(0) - count)[t]  # its number within the bounding box
    column, row = left[t] + n % columns[t], top[t] + n // columns[t]
    dx, dy = x[:, t] - (column + 0.5), y[:, t] - (row + 0.5)
    e = dx.roll(-1, 0) * dy.roll(-2, 0) - dx.roll(-2, 0) * dy.roll(-1, 0)  # (3, candidates)
    hit = (e <= 0).all(0)

    e, t, pixel = e[:, hit], t[hit], (row * width + column)[hit]
    depth = e.sum(0) / (e / z[:, t]).sum(0)
    nearest = torch.full((height * width,), torch.inf, dtype=screen.dtype)
    nearest.scatter_reduce_(0, pixel, depth, "amin")
    visible = depth == nearest[pixel]
    face_index = torch.full((height * width,), len(triangles))
    face_index.scatter_reduce_(0, pixel[visible], t[visible], "amin")
    face_index[face_index == len(triangles)] = -1
    return face_index.view(height, width), nearest.view(height, width)


def sphere(subdivisions: int) -> tuple[Tensor, Tensor]:
    """A unit icosphere: vertices (V, 3) float64, triangles (T, 3) counter-clockwise from outside."""
    mesh = trimesh.creation.icosphere(subdivisions)
    return torch.tensor(mesh.vertices, dtype=torch.float64), torch.tensor(mesh.faces, dtype=torch.int64)


size = P["size"]
ball, ball_triangles = sphere(P["sphere"])
# A cheap stand-in for a head: a bumpy ellipsoid in mm, tilted, seen by a pinhole camera
bumps = 1 + 0.06 * torch.sin(5 * ball[:, :1] + 1) * torch.cos(4 * ball[:, 1:2])
head = ball * bumps * torch.tensor([70.0, 95.0, 80.0], dtype=torch.float64)
camera = PerspectiveCamera.from_fov(24, size, size, distance=600.0, dtype=torch.float64).look([0.2, 0.4, 0.1])
screen = camera.project(head)

by_loop = zbuffer(screen, ball_triangles, size, size)
by_vectors = zbuffer_vectorised(screen, ball_triangles, size, size)
by_facelab = rasterize(screen, ball_triangles, size, size)
assert torch.equal(by_loop[0], by_vectors[0])
assert torch.allclose(by_loop[1], by_vectors[1], rtol=1e-14)
numbers["face_index_mismatches"] = int((by_loop[0] != by_facelab).sum())
assert numbers["face_index_mismatches"] == 0
print(f"{len(ball_triangles)} triangles, {size}² pixels, {int((by_facelab >= 0).sum())} of them covered")
print("loop = vectorised = facelab, in every pixel")

# %% [markdown]
# ## 5 · To whom does an edge belong?
#
# Neighbouring triangles share an edge, and a pixel centre may lie *exactly* on it: coordinates are floats
# with 24 bits, and symmetric meshes, landmarks on whole pixels or rounded input make exact hits common.
# Three rules:
#
# * **strict** ($e<0$, PyTorch3D's rule): the pixel belongs to neither side. Holes, through which the
#   background shows.
# * **inclusive** ($e\le 0$, ours): it belongs to both; the depth test and then the lower number decide. No
#   holes.
# * **top-left** (GPUs): exactly one of the two, needed when triangles are blended; ours are not.
#
# The sheet below is one connected surface whose vertices were rounded to quarters of a pixel. Every pixel
# inside its border must be covered.


# %%
def sheet(cells: int, side: int, grid: float, seed: int) -> tuple[Tensor, Tensor]:
    """A wrinkled sheet of 2 cells² triangles facing us, float32, rounded to multiples of `grid`."""
    line = torch.linspace(1, side - 1, cells + 1)
    xy = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    noise = torch.rand(cells - 1, cells - 1, 2, generator=torch.Generator().manual_seed(seed)) - 0.5
    xy[1:-1, 1:-1] += 0.4 * (side - 2) / cells * noise
    xy = (xy / grid).round() * grid
    corner = (torch.arange(cells)[:, None] * (cells + 1) + torch.arange(cells)).reshape(-1)
    below = corner + cells + 1
    triangles = torch.cat(
        [torch.stack([corner, below, corner + 1], -1), torch.stack([corner + 1, below, below + 1], -1)]
    )
    return torch.cat([xy.reshape(-1, 2), torch.full(((cells + 1) ** 2, 1), 100.0)], -1), triangles


def hits(screen: Tensor, triangles: Tensor, side: int, strict: bool) -> Tensor:
    """(side, side): how many triangles claim each pixel."""
    c = screen[triangles][:, :, None, None, :2]  # (T, 3, 1, 1, 2)
    p = pixel_centres(side, side, screen.dtype)
    e = torch.stack([edge_function(p, c[:, (k + 1) % 3], c[:, (k + 2) % 3]) for k in range(3)])
    return ((e < 0) if strict else (e <= 0)).all(0).sum(0)


side = 64
sheet_screen, sheet_triangles = sheet(16, side, 0.25, SEED)
interior = (slice(2, -2), slice(2, -2))
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8))
for axis, strict in zip(axes, (True, False)):
    count = hits(sheet_screen, sheet_triangles, side, strict)
    holes, shared = int((count[interior] == 0).sum()), int((count[interior] > 1).sum())
    numbers["holes_strict" if strict else "holes_inclusive"] = holes
    axis.imshow(count.clamp(max=2), cmap="inferno", vmin=0, vmax=2)
    axis.set_title(f"{'strict' if strict else 'inclusive'}: {holes} holes, {shared} claimed more than once")
    axis.axis("off")
plt.tight_layout()
assert numbers["holes_strict"] > 0 and numbers["holes_inclusive"] == 0
assert (rasterize(sheet_screen, sheet_triangles, side, side)[interior] >= 0).all()

# %% [markdown]
# The inclusive rule alone is not enough: in floating point, the two triangles must also *agree* on which
# side of the shared edge a pixel lies. One walks the edge from $a$ to $b$, the other from $b$ to $a$. Our
# form, with both corners relative to the pixel, is a difference of two products that merely swap places, so
# $e_{ab}(p) = -e_{ba}(p)$ **bit by bit**. The textbook form $(b-a)\times(p-a)$ starts from another corner
# each time and rounds differently: then a pixel can be outside both. (So can a fused multiply-add, which
# rounds only one of the two products; that is why facelab's numba code is compiled without `fastmath`.)


# %%
def textbook_edge(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same area, computed from corner a: (a-b) x (p-b) rounds differently from -(b-a) x (p-a)."""
    return (b - a)[..., 1] * (p - a)[..., 0] - (b - a)[..., 0] * (p - a)[..., 1]


generator = torch.Generator().manual_seed(SEED)
trials = 1_000_000
a = torch.rand(trials, 2, generator=generator) * size
pixel = (torch.rand(trials, 2, generator=generator) * size).floor() + 0.5
b = pixel + (pixel - a) * (
    0.2 + torch.rand(trials, 1, generator=generator)
)  # the edge passes through the pixel
cracks = {}
for name, function in (("relative to the pixel", edge_function), ("textbook", textbook_edge)):
    one, other = function(pixel, a, b), function(pixel, b, a)
    cracks[name] = int(((one > 0) & (other > 0)).sum())  # outside both triangles
    print(f"{name:22}: {cracks[name]:7} of {trials} pixels on an edge fall between the two triangles")
assert cracks["relative to the pixel"] == 0 and cracks["textbook"] > 0
numbers["cracks_textbook_percent"] = 100 * cracks["textbook"] / trials

# %% [markdown]
# ## 6 · What has a gradient, and what has not
#
# Slide a mesh to the right, slowly, and watch one pixel: its **face index** is an integer; it stays the
# same and then jumps. Its derivative is 0 almost everywhere and does not exist where it jumps; no autograd
# can use it. But *while* the face index stays the same, the **barycentric weights** slide smoothly, and
# with them every interpolated value. On a continuous surface the value does not even jump when the triangle
# changes, since both triangles give the same value on their shared edge; it only has a kink.

# %%
middle = sphere(1)
small = torch.cat([middle[0][:, :1], -middle[0][:, 1:2], -middle[0][:, 2:]], -1) * 14 + torch.tensor(
    [16.0, 16.0, 100.0], dtype=torch.float64
)
values = torch.sin(4 * middle[0][:, :1]) + middle[0][:, 1:2]  # some smooth attribute
shift = torch.linspace(-12, 12, 481, dtype=torch.float64)
moved = small + torch.stack([shift, 0 * shift, 0 * shift], -1)[:, None]  # (481, V, 3): the mesh slides
indices = rasterize(moved, middle[1], 32, 32)
interpolated, _ = interpolate(moved, middle[1], indices, values)

figure, axes = plt.subplots(2, 1, figsize=(7, 3.6), sharex=True)
axes[0].plot(shift, indices[:, 16, 16], ".", ms=3)
axes[0].set_ylabel("face index")
axes[1].plot(shift, interpolated[:, 0, 16, 16])
axes[1].set_ylabel("value")
axes[1].set_xlabel("shift of the mesh (px); pixel (16, 16)")
plt.tight_layout()
jump = interpolated[:, 0, 16, 16].diff().abs().max().item()
print(
    f"the face index takes {len(indices[:, 16, 16].unique())} values; largest step of the value: {jump:.3f}"
)

# %% [markdown]
# So the plan of `facelab.rendering.rasterizer`, and of most differentiable rasterizers: find the face index
# **without** gradient, by any fast means, then recompute the weights from the screen positions **with**
# gradient.
#
# ### The gradient by hand
#
# Let $v=\sum_k b_kA_k$ at one pixel, and $\mathrm{d}x_k,\mathrm{d}y_k$ corner $k$ relative to the pixel
# centre. Going backwards through section 3:
#
# $$\frac{\partial v}{\partial A_k}=b_k,\qquad
# \frac{\partial v}{\partial q_k}=\frac{A_k-v}{S},\qquad
# \frac{\partial v}{\partial e_k}=\frac1{z_k}\frac{\partial v}{\partial q_k}=:w_k,\qquad
# \frac{\partial v}{\partial z_k}=-\frac{q_k}{z_k}\frac{\partial v}{\partial q_k},$$
#
# and since $e_0=\mathrm{d}x_1\mathrm{d}y_2-\mathrm{d}x_2\mathrm{d}y_1$ (and cyclically), corner $k$ appears
# in $e_{k+1}$ and $e_{k+2}$:
#
# $$\frac{\partial v}{\partial x_k}=w_{k+2}\,\mathrm{d}y_{k+1}-w_{k+1}\,\mathrm{d}y_{k+2},\qquad
# \frac{\partial v}{\partial y_k}=w_{k+1}\,\mathrm{d}x_{k+2}-w_{k+2}\,\mathrm{d}x_{k+1}.$$
#
# Read the second formula again: a corner pulls on a pixel in proportion to $A_k - v$, how much it
# *differs*. Where a surface has one colour, moving it changes nothing. Keep that in mind for section 7.
#
# ### Exercise 3 (medium, 15 minutes)
#
# Turn the formulas into code: for $N$ pixels at once, the gradient of a scalar value at each pixel with
# respect to the screen positions of its three corners.


# %% tags=["solution"]
def screen_gradient(pixel: Tensor, corners: Tensor, values: Tensor) -> Tensor:
    """d value / d (x, y, z) of each corner, (N, 3, 3).

    pixel: (N, 2) centres. corners: (N, 3, 3) the corners' x, y, depth. values: (N, 3), A at the corners.
    """
    # SOLUTION
    dx, dy = corners[..., 0] - pixel[:, None, 0], corners[..., 1] - pixel[:, None, 1]
    z = corners[..., 2]
    after, before = [1, 2, 0], [2, 0, 1]  # corner k+1, corner k+2
    e = dx[:, after] * dy[:, before] - dx[:, before] * dy[:, after]
    q = e / z
    total = q.sum(-1, keepdim=True)
    value = (q * values).sum(-1, keepdim=True) / total
    q_gradient = (values - value) / total
    w = q_gradient / z
    x_gradient = w[:, before] * dy[:, after] - w[:, after] * dy[:, before]
    y_gradient = w[:, after] * dx[:, before] - w[:, before] * dx[:, after]
    return torch.stack([x_gradient, y_gradient, -q_gradient * q / z], -1)


# %% [markdown]
# The first check compares with automatic differentiation and knows the usual slips. The second is a finite
# difference: shift each coordinate by ±h, in float64. And because a hand-derived gradient should never be
# trusted with two tests, it becomes an `autograd.Function` and meets `torch.autograd.gradcheck`.


# %%
def value_at(pixel: Tensor, corners: Tensor, values: Tensor) -> Tensor:
    """Perspective-correct value (N,) at pixels (N, 2), from corners (N, 3, 3) and values (N, 3)."""
    q = barycentric(pixel, corners[..., :2]) / corners[..., 2]
    return (q * values).sum(-1) / q.sum(-1)


def by_autograd(pixel: Tensor, corners: Tensor, values: Tensor) -> Tensor:
    """The same value and its gradient, with the weights from three equations."""
    corners = corners.clone().requires_grad_()
    weights = torch.cat([weights_by_solving(one[None], c[:, :2]) for one, c in zip(pixel, corners)])
    q = weights / corners[..., 2]
    return torch.autograd.grad(((q * values).sum(-1) / q.sum(-1)).sum(), corners)[0].detach()


def three_corners(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Six pixels, each with a triangle around (40, 40) and a value at each corner."""
    middle = torch.tensor([[5.0, 70, 30], [75, 60, 50], [30, 5, 90]], dtype=torch.float64)
    corners = middle + checks.uniform(generator, 6, 3, 3, low=-4, high=4)
    return 40 + checks.uniform(generator, 6, 2), corners, checks.uniform(generator, 6, 3)


checks.register(
    checks.Exercise(
        name="gradient of an interpolated value",
        task="f(pixel (N, 2), corners (N, 3, 3), values (N, 3)) -> (N, 3, 3): d value / d corners.",
        reference=by_autograd,
        inputs=three_corners,
        difficulty=4,
        minutes=15,
        mistakes={
            "The signs of x and y are swapped: check which of k+1 and k+2 stands first.": (
                lambda p, c, v: by_autograd(p, c, v) * c.new_tensor([-1, -1, 1])
            ),
            "The gradient in depth has the other sign: q = e / z falls as z grows.": (
                lambda p, c, v: by_autograd(p, c, v) * c.new_tensor([1, 1, -1])
            ),
            "The gradient in depth is missing.": lambda p, c, v: (
                by_autograd(p, c, v) * c.new_tensor([1, 1, 0])
            ),
            "x and y are exchanged.": lambda p, c, v: by_autograd(p, c, v)[..., [1, 0, 2]],
            "The corners are out of order by one.": lambda p, c, v: by_autograd(p, c, v).roll(1, 1),
            "The corners are out of order; count the other way.": (
                lambda p, c, v: by_autograd(p, c, v).roll(-1, 1)
            ),
        },
        idea="Go backwards through section 3, one formula a line; mind the order of the corners.",
        hint="after, before = [1, 2, 0], [2, 0, 1]; w = (A - v) / (S z); d/dx = w[before] dy[after] - ...",
        tolerance=1e-6,
    )
)
checks.check("gradient of an interpolated value", screen_gradient)


class ByHand(torch.autograd.Function):
    """`value_at` with our own gradient."""

    @staticmethod
    def forward(ctx, pixel, corners, values):
        ctx.save_for_backward(pixel, corners, values)
        return value_at(pixel, corners, values)

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient[:, None, None] * screen_gradient(*ctx.saved_tensors), None


generator = torch.Generator().manual_seed(SEED)
test_corners = torch.rand(8, 3, 3, generator=generator, dtype=torch.float64) * 20 + 5
weights = torch.rand(8, 3, 1, generator=generator, dtype=torch.float64) + 0.1
test_pixel = ((weights / weights.sum(1, keepdim=True)) * test_corners[..., :2]).sum(1)  # inside each triangle
test_values = torch.rand(8, 3, generator=generator, dtype=torch.float64)

h, by_difference = 1e-6, torch.zeros(8, 3, 3, dtype=torch.float64)
for k in range(3):
    for axis in range(3):
        step = torch.zeros(3, 3, dtype=torch.float64)
        step[k, axis] = h
        ahead, back = (value_at(test_pixel, test_corners + s * step, test_values) for s in (1, -1))
        by_difference[:, k, axis] = (ahead - back) / (2 * h)
ours = screen_gradient(test_pixel, test_corners, test_values)
numbers["gradient_error"] = ((ours - by_difference).abs().max() / by_difference.abs().max()).item()
print(f"largest difference to finite differences, relative: {numbers['gradient_error']:.1e}")
assert numbers["gradient_error"] < 1e-6
assert torch.autograd.gradcheck(
    lambda corners: ByHand.apply(test_pixel, corners, test_values), test_corners.requires_grad_()
)
print("gradcheck: passed")

# %% [markdown]
# And the whole picture: `facelab.interpolate` has the same formulas, summed over all pixels of a vertex.
# Compare its gradient with ours on the bumpy head, for the loss $\sum_p \sin(\text{column}_p)\,v_p$.

# %%
attribute = torch.sin(4 * ball[:, :1]) * ball[:, 1:2]
loss_weights = torch.sin(pixel_centres(size, size)[..., 0])
face_index = rasterize(screen, ball_triangles, size, size)

leaf = screen.clone().requires_grad_()
picture, _ = interpolate(leaf, ball_triangles, face_index, attribute)
(picture[0] * loss_weights).sum().backward()

covered = face_index >= 0
vertex = ball_triangles[face_index[covered]]  # (N, 3)
ours = screen_gradient(pixel_centres(size, size)[covered], screen[vertex], attribute[vertex][..., 0])
ours = ours * loss_weights[covered][:, None, None]
collected = torch.zeros_like(screen).index_add(0, vertex.reshape(-1), ours.reshape(-1, 3))
difference = ((collected - leaf.grad).abs().max() / leaf.grad.abs().max()).item()
print(f"facelab's gradient and ours: largest relative difference {difference:.1e}")
assert difference < 1e-9

# %% [markdown]
# ## 7 · Silhouettes: the gradient that is missing
#
# Paint a sphere white on black. Its image is 1 inside the disc of radius $R$ and 0 outside, so the sum over
# all pixels is the area of the disc and must have the derivative
#
# $$\frac{\mathrm d}{\mathrm dR}\,\pi R^2 = 2\pi R .$$
#
# What does our rasterizer say? Every pixel has the value $\sum_k b_k\cdot 1 = 1$ or the background's 0,
# whatever $R$ is: the derivative is exactly **zero**. The area does grow, but in jumps, whenever the disc
# swallows the next pixel centre, and the jumps belong to the face index.

# %% [markdown]
# **Antialiasing** makes the picture itself continuous. Let an edge of the silhouette cross the line from an
# inside pixel centre to the outside pixel centre next to it, at the distance $d\in[0,1]$ from the inside
# one. Each centre stands for a stretch of half a pixel to both sides, so the surface ought to cover
# $d-\tfrac12$ more than the hard picture says:
#
# $$\alpha = d-\tfrac12,\qquad
# \begin{cases} I_\text{out} \leftarrow I_\text{out}+\alpha\,(I_\text{in}-I_\text{out}) & \alpha>0\\
# I_\text{in} \leftarrow I_\text{in}+\alpha\,(I_\text{in}-I_\text{out}) & \alpha<0\end{cases}$$
#
# and $\alpha$ is a smooth function of the edge's two end points, so vertices get a gradient: of a loss $L$,
# $\partial L/\partial\alpha=\partial L/\partial I\cdot(I_\text{in}-I_\text{out})$, with $I$ the pixel that
# changes. It is the difference of the two colours that pulls. Nearly vertical edges blend pixels
# left and right of them, nearly horizontal ones pixels above and below. The idea is nvdiffrast's (Laine et
# al. 2020, *Modular primitives for high-performance differentiable rendering*); we walk along silhouette
# *edges* instead of asking each pixel's triangle, since near the silhouette of a fine mesh triangles are
# slivers thinner than a pixel that no pixel centre sees.
#
# Which edges form the silhouette? Those that belong to exactly **one** triangle that faces us.


# %%
def silhouette_edges(screen: Tensor, triangles: Tensor) -> Tensor:
    """(E, 2) vertex pairs (a, b): edges of exactly one front-facing triangle, in its direction."""
    x, y = screen.detach()[triangles][..., :2].unbind(-1)
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    front = triangles[area < 0]
    directed = torch.cat([front[:, [0, 1]], front[:, [1, 2]], front[:, [2, 0]]])
    _, number, count = directed.sort(1).values.unique(dim=0, return_inverse=True, return_counts=True)
    return directed[count[number] == 1]


def soft_mask(screen: Tensor, triangles: Tensor, height: int, width: int) -> Tensor:
    """Antialiased mask (H, W) of an object before an empty background, differentiable in `screen`."""
    mask = (rasterize(screen, triangles, height, width) >= 0).to(screen)
    edges = silhouette_edges(screen, triangles)
    size, centre = (height, width), mask.reshape(-1)
    changed, change = [], []
    for axis in (0, 1):  # 0: steep edges, pixel pairs along x in one row; 1: flat edges, pairs along y
        a, b = screen[edges[:, 0], :2], screen[edges[:, 1], :2]
        if axis == 1:  # swap x and y: a flat edge becomes a steep one
            a, b = a.flip(-1), b.flip(-1)
        slope = (b - a).detach()
        steep = (
            (slope[:, 1].abs() >= slope[:, 0].abs()) if axis == 0 else (slope[:, 1].abs() > slope[:, 0].abs())
        )
        a, b, slope = a[steep], b[steep], slope[steep]
        # The rows (columns) whose centre line the edge crosses; half open, so that a shared end counts once
        first = (torch.minimum(a[:, 1], b[:, 1]).detach() - 0.5).ceil().clamp(0, size[axis])
        last = (torch.maximum(a[:, 1], b[:, 1]).detach() - 0.5).ceil().clamp(0, size[axis])
        count = (last - first).long()
        n = torch.repeat_interleave(torch.arange(len(count)), count)
        line = first[n].long() + torch.arange(len(n)) - (count.cumsum(0) - count)[n]
        along = a[n, 0] + (line + 0.5 - a[n, 1]) / (b[n, 1] - a[n, 1]) * (b[n, 0] - a[n, 0])  # the crossing
        # Its triangle lies to the right of an edge that runs down the screen (left, with x and y swapped)
        to_right = (slope[n, 1] > 0) == (axis == 0)
        left = (along.detach() - 0.5).floor().long()  # the pixel before the crossing
        within = (left >= 0) & (left + 1 < size[1 - axis])
        line, left, along, to_right = line[within], left[within], along[within], to_right[within]
        before, after = ((line * width + i) if axis == 0 else (i * width + line) for i in (left, left + 1))
        inner, outer = torch.where(to_right, after, before), torch.where(to_right, before, after)
        inner_centre = torch.where(to_right, left + 1, left) + 0.5
        alpha = torch.where(to_right, inner_centre - along, along - inner_centre) - 0.5
        seen = (centre[inner] == 1) & (centre[outer] == 0)
        changed.append(torch.where(alpha > 0, outer, inner)[seen])
        change.append(alpha[seen])
    return centre.index_add(0, torch.cat(changed), torch.cat(change)).view(height, width)


def ball_on_screen(radius: Tensor) -> Tensor:
    """The unit sphere as a disc of `radius` px, seen from far away: (V, 3) on an 80 x 80 screen."""
    x, y, z = ball.unbind(-1)
    return torch.stack([40.3 + radius * x, 39.6 - radius * y, 1000 - z], -1)


def facelab_mask(screen: Tensor, triangles: Tensor, height: int, width: int) -> Tensor:
    """The same with facelab: interpolate white, then `antialias`."""
    face_index = rasterize(screen, triangles, height, width)
    white, depth = interpolate(screen, triangles, face_index, torch.ones_like(screen[:, :1]))
    return antialias(white, depth, face_index, screen, triangles)[0]


radius = torch.tensor(30.3, dtype=torch.float64)
hard = (rasterize(ball_on_screen(radius), ball_triangles, 80, 80) >= 0).double()
soft = soft_mask(ball_on_screen(radius), ball_triangles, 80, 80)
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
for axis, image, title in zip(axes, (hard, soft, soft - hard), ("hard", "antialiased", "difference")):
    shown = axis.imshow(
        image[5:29, 44:76], cmap="gray" if title != "difference" else "RdBu_r", extent=(44, 76, 29, 5)
    )
    axis.set_title(title)
plt.colorbar(shown, ax=axes)
agreement = (soft - facelab_mask(ball_on_screen(radius), ball_triangles, 80, 80)).abs()
print(
    f"our mask and facelab's: mean difference {agreement.mean().item():.1e}, "
    f"{int((agreement > 1e-9).sum())} pixels differ"
)

# %% [markdown]
# Now the area and its derivative over a range of radii, against $\pi R^2$ and $2\pi R$.


# %%
def area_and_slope(mask_function, radius: float) -> tuple[float, float]:
    """Sum of the mask and its derivative by autograd."""
    r = torch.tensor(radius, dtype=torch.float64, requires_grad=True)
    area = mask_function(ball_on_screen(r), ball_triangles, 80, 80).sum()
    slope = torch.autograd.grad(area, r)[0].item() if area.requires_grad else 0.0
    return area.item(), slope


def hard_mask(screen: Tensor, triangles: Tensor, height: int, width: int) -> Tensor:
    """What interpolation alone gives: white where there is a triangle."""
    face_index = rasterize(screen, triangles, height, width)
    return interpolate(screen, triangles, face_index, torch.ones_like(screen[:, :1]))[0][0]


radii = torch.linspace(24, 25, P["radii"]).tolist()
methods = {"hard": hard_mask, "antialiased, from scratch": soft_mask, "antialiased, facelab": facelab_mask}
curves = {name: np.array([area_and_slope(f, r) for r in radii]) for name, f in methods.items()}

figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
for (name, curve), style in zip(curves.items(), ("o-", "s", "x")):
    axes[0].plot(radii, curve[:, 0] - np.pi * np.square(radii), style, ms=4, lw=0.8, label=name)
    axes[1].plot(radii, curve[:, 1], style, ms=4, lw=0.8, label=name)
exact_slope = 2 * np.pi * np.array(radii)
axes[0].axhline(0, color="k", lw=1)
axes[1].plot(radii, exact_slope, "k-", lw=1, label=r"$2\pi R$")
axes[0].set(xlabel="R (px)", ylabel="sum of the mask minus $\\pi R^2$ (px²)")
axes[1].set(xlabel="R (px)", ylabel="derivative by autograd (px)", ylim=(-10, 180))
axes[0].legend()
axes[1].legend(loc="center right")
plt.tight_layout()

for name, curve in curves.items():
    print(f"{name:27}: derivative / 2πR = {np.mean(curve[:, 1] / exact_slope):.4f} on average")
numbers["slope_ratio_hard"] = float(np.mean(curves["hard"][:, 1] / exact_slope))
numbers["slope_ratio_ours"] = float(np.mean(curves["antialiased, from scratch"][:, 1] / exact_slope))
numbers["slope_ratio_facelab"] = float(np.mean(curves["antialiased, facelab"][:, 1] / exact_slope))
assert abs(numbers["slope_ratio_hard"]) < 1e-12
assert abs(numbers["slope_ratio_ours"] - 1) < 0.03 and abs(numbers["slope_ratio_facelab"] - 1) < 0.03

# %% [markdown]
# The hard picture's area climbs in steps, so its difference to $\pi R^2$ is a saw tooth, and its derivative
# is zero on every tooth. The antialiased area keeps an almost constant distance (the sphere is a
# polyhedron, a little smaller than the ball), and its derivative is right: what remains is the choice
# between steep and flat where the outline runs diagonally.
#
# `facelab.antialias` does the same for objects in front of *other surfaces* (a nose before a cheek): it
# compares depths and blends whatever colours the two pixels have.
#
# ## 8 · Three backends, one answer
#
# `rasterize` has three backends: `torch` (like ours above, on any device), `numba` (compiled loops, one
# image at a time: the fast one on a CPU) and `pytorch3d` (the fast one on a GPU). Only visibility differs
# between them; the gradient always comes from `interpolate`, so a fit does not depend on the backend. They
# must agree in every pixel.

# %%
poses = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.6, 0.2], [-0.4, 1.0, 0.0]], dtype=torch.float64)
batch = (
    PerspectiveCamera.from_fov(24, size, size, distance=600.0, dtype=torch.float64).look(poses).project(head)
)
reference = torch.stack([zbuffer_vectorised(item, ball_triangles, size, size)[0] for item in batch])
backends = ["torch", "numba"] + (["pytorch3d"] if find_spec("pytorch3d") else [])
for backend in backends:
    # PyTorch3D computes in float32 and by the strict rule: it may differ at edges
    precision = torch.float32 if backend == "pytorch3d" else torch.float64
    found = rasterize(batch.to(precision), ball_triangles, size, size, backend=backend)
    mismatches = int((found != reference).sum())
    print(f"{backend:10}: {mismatches} of {reference.numel()} pixels differ from ours")
    if backend != "pytorch3d":
        assert mismatches == 0
        numbers[f"mismatches_{backend}"] = mismatches

# %% [markdown]
# Is PyTorch3D not installed? The repository holds what the real one (0.7.9) answered for four meshes, with
# its own axes turned into ours (`tests/make_golden_pytorch3d.py`). Two have back faces drawn, `cull=False`.

# %%
numbers["golden_files"] = numbers["golden_mismatches"] = 0
for path in sorted(repository("tests/golden").glob("pytorch3d_*.npz")):
    golden = np.load(path)
    golden_screen, golden_triangles = torch.tensor(golden["screen"]), torch.tensor(golden["triangles"]).long()
    height, width = golden["face_index"].shape
    found = rasterize(golden_screen, golden_triangles, height, width, cull=bool(golden["cull"]))
    _, depth = interpolate(golden_screen, golden_triangles, found, torch.zeros(len(golden_screen), 1))
    mismatches = int((found.numpy() != golden["face_index"]).sum())
    covered = found >= 0
    error = (depth[0] / torch.tensor(golden["depth"]) - 1)[covered].abs().max().item()
    numbers["golden_files"] += 1
    numbers["golden_mismatches"] += mismatches
    print(f"{path.stem:28} {mismatches} of {found.numel()} pixels differ; depth agrees to {error:.0e}")

# %% [markdown]
# ## 9 · A face
#
# Everything so far used spheres. Now the face model: the same function draws it. All that a renderer needs
# later, colours, normals, texture coordinates, positions, goes through the same `interpolate` as attributes
# of the vertices.

# %%
model = MorphableModel.load(subdivisions=P["model"], device=DEVICE)
face = model.vertices()
albedo, _ = model.albedo()
camera = PerspectiveCamera.from_fov(20, size, size, distance=600.0, device=DEVICE)
triangles = model.triangles


def draw_face(pitch: float = 0.0, yaw: float = 25.0, roll: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Face index (H, W), attributes (6, H, W) = albedo and normal, depth (H, W). Angles in degrees."""
    view = camera.look([float(np.deg2rad(angle)) for angle in (pitch, yaw, roll)])
    screen = view.project(face)
    face_index = rasterize(screen, triangles, size, size)
    normals = vertex_normals(view.to_camera(face), triangles)
    attributes, depth = interpolate(screen, triangles, face_index, torch.cat([albedo, normals], -1))
    return face_index, attributes, depth[0]


def zoom_in(pitch: float, yaw: float, roll: float, factor: float = 14.0) -> Tensor:
    """(H, W, 3): the barycentric weights as red, green and blue, magnified around the eye on the right."""
    view = camera.look([float(np.deg2rad(angle)) for angle in (pitch, yaw, roll)])
    screen = view.project(face)
    target = view.project(model.landmarks(face))[42:48, :2].mean(0)
    screen = torch.cat([(screen[:, :2] - target) * factor + size / 2, screen[:, 2:]], -1)
    face_index = rasterize(screen, triangles, size, size)
    corners = screen[triangles[face_index.clamp(min=0)]]
    return (
        barycentric(pixel_centres(size, size, screen.dtype).to(DEVICE), corners[..., :2])
        * (face_index >= 0)[..., None]
    )


def show_face(pitch: float = 0.0, yaw: float = 25.0, roll: float = 0.0) -> plt.Figure:
    """Four maps of the same face."""
    face_index, attributes, depth = (item.cpu() for item in draw_face(pitch, yaw, roll))
    covered = face_index >= 0
    pictures = {
        "barycentric weights, an eye": zoom_in(pitch, yaw, roll).clamp(0, 1).cpu(),
        "depth (mm)": depth.where(covered, torch.nan),
        "normals": ((attributes[3:6].permute(1, 2, 0) + 1) / 2 * covered[..., None]).clamp(0, 1),
        "diffuse albedo, as sRGB": linear_to_srgb(attributes[:3]).permute(1, 2, 0).clamp(0, 1),
    }
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2))
    for axis, (title, picture) in zip(axes, pictures.items()):
        axis.imshow(picture, cmap="magma_r")
        axis.set_title(title)
        axis.axis("off")
    plt.tight_layout()
    return figure


show_face()
print(f"{len(triangles)} triangles, {int((draw_face()[0] >= 0).sum())} covered pixels")

# %% [markdown]
# Turn it: pitch, yaw and roll. (The sliders need a running kernel; without one you see the first picture.)


# %%
def turn(angles: Tensor, quick: bool = False) -> Tensor:
    """Normals beside albedo, (3, H, 2 W), for the head turned by (pitch, yaw, roll) in radians."""
    face_index, attributes, _ = draw_face(*angles.rad2deg().tolist())
    normals = (attributes[3:6] + 1) / 2 * (face_index >= 0)
    return torch.cat([normals, linear_to_srgb(attributes[:3])], -1)


ParameterSliders(
    ParameterLayout(rotation=3),
    turn,
    start=torch.tensor([0.0, 25.0, 0.0]).deg2rad(),
    ranges={"rotation": (-90, 90)},
)

# %% [markdown]
# ## 10 · Recover a pose from a silhouette
#
# A target mask was made with an unknown rotation and translation. Start with a frontal face and follow the
# gradient of $\frac1{N}\sum_p (M_p(\theta)-\hat M_p)^2$. With the hard mask there is no gradient to follow.
# With the soft one the silhouette is pulled from both sides.

# %%
precise = {"dtype": torch.float64, "device": DEVICE}
face64 = face.double()
camera64 = PerspectiveCamera.from_fov(20, size, size, distance=600.0, **precise)
true_angles = torch.tensor([-8.0, 20.0, 10.0], **precise).deg2rad()
true_shift = torch.tensor([12.0, -8.0, -570.0], **precise)


def face_mask(angles: Tensor, shift: Tensor, mask_function) -> Tensor:
    """(H, W) mask of the face in a pose."""
    return mask_function(camera64.look(angles, shift).project(face64), triangles, size, size)


target = face_mask(true_angles, true_shift, facelab_mask)


start_angles = torch.zeros(3, **precise)
start_shift = torch.tensor([0.0, 0.0, -600.0], **precise)


def recover(mask_function) -> tuple[Tensor, Tensor, list[float]]:
    """Adam on three angles (rad) and a translation (mm), with a rate per unit; the loss at each step."""
    angles, shift = start_angles.clone().requires_grad_(), start_shift.clone().requires_grad_()
    optimiser = torch.optim.Adam([{"params": [angles], "lr": 0.05}, {"params": [shift], "lr": 4.0}])
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, P["pose_steps"], 0.0)
    losses = []
    for _ in range(P["pose_steps"]):
        optimiser.zero_grad()
        loss = ((face_mask(angles, shift, mask_function) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(loss.item())
    return angles.detach(), shift.detach(), losses


numbers["pose_error_degrees_start"] = pose_error_degrees(
    camera64.look(start_angles).rotation, camera64.look(true_angles).rotation
).item()
print(f"{'start':12}: rotation off by {numbers['pose_error_degrees_start']:5.2f}°")
history = {}
for name, mask_function in (("hard", hard_mask), ("antialiased", facelab_mask)):
    angles, shift, losses = recover(mask_function)
    error = pose_error_degrees(camera64.look(angles).rotation, camera64.look(true_angles).rotation).item()
    history[name] = losses
    numbers[f"pose_error_degrees_{name}"] = error
    numbers[f"shift_error_mm_{name}"] = (shift - true_shift)[:2].norm().item()
    sideways, away = numbers[f"shift_error_mm_{name}"], (shift - true_shift)[2].abs().item()
    print(
        f"{name:12}: rotation off by {error:5.2f}°, "
        f"position by {sideways:5.2f} mm sideways, {away:5.2f} mm in depth"
    )

start = face_mask(start_angles, start_shift, facelab_mask)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.3))
for axis, mask, title in (
    (axes[0], start, "start (red) and target (cyan)"),
    (axes[1], face_mask(angles, shift, facelab_mask), "recovered and target"),
):
    axis.imshow(torch.stack([mask, target, target], -1).clamp(0, 1).cpu())
    axis.set_title(title)
    axis.axis("off")
for name, losses in history.items():
    axes[2].semilogy(losses, label=name)
axes[2].set(xlabel="step", ylabel="mean squared difference")
axes[2].legend()
plt.tight_layout()

# %% [markdown]
# The hard mask never moves. That is why this experiment is in float64: in float32 its gradient is not 0 but
# the rounding error of 0, and Adam, which divides a gradient by its own size, marches off into some
# direction and even finds a lower loss by accident. Try it, and look at a gradient before you trust an
# optimiser.
#
# A silhouette says nothing about what lies inside it, so a whole picture pins a pose down better (notebook
# 30); but it is remarkable how much an outline knows.
#
# **What you have now.** Visibility without a gradient, interpolation with one, outlines by antialiasing:
# that is `rasterize`, `interpolate` and `antialias`. The next notebook puts light on the face.
#
# **Sources.** Pineda, *A parallel algorithm for polygon rasterization*, SIGGRAPH 1988. Laine, Hellsten,
# Karras, Seo, Lehtinen, Aila, *Modular primitives for high-performance differentiable rendering*, SIGGRAPH
# Asia 2020. Ravi et al., *Accelerating 3D deep learning with PyTorch3D*, 2020. Loper and Black, *OpenDR*,
# ECCV 2014 (the first widely used differentiable renderer).

# %%
(out / "numbers.json").write_text(json.dumps(numbers, indent=1))
for key, value in numbers.items():
    print(f"{key:32} {value:.6g}")
