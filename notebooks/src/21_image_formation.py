# %% [markdown]
# # 21 · From parameters to a picture, and back only in part
#
# A picture of a face is made of shape, pose, camera, skin and light. In this notebook you build each step,
# cameras, spherical harmonics, highlights, the curve that turns light into pixel values, and check each
# against an analytic value. Then you go looking for **ambiguities**: different parameters that make the
# *same* picture. You will construct them exactly, measure how well priors resolve them, and see for whom
# they go wrong. Every method in the later notebooks inverts this image formation, and inherits its
# ambiguities.
#
# **What you will learn**
#
# - to go from parameters to a picture: camera, spherical harmonics, highlights, linear light
# - which parameters make the same picture, and to construct such pairs
# - whom a prior over skins treats how
#
# **Time:** 90 minutes, with exercises 120. **Before this:** notebook 20 (rasterizer) or a belief that
# `rasterize` and `interpolate` work; linear algebra; PyTorch. [docs/conventions.md](../docs/conventions.md)
# has the axes: camera space is +x right, +y up, +z towards the viewer, millimetres; the camera looks along
# −z.

# %%
import io
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from PIL import Image
from skimage.color import xyz2lab
from torch import Tensor

from facelab.course import checks
from facelab.course.notebook import begin
from facelab.course.viewer import ParameterSliders
from facelab.evaluation.metrics import geometry_rmse_mm, photometric_rmse
from facelab.geometry.camera import PerspectiveCamera, WeakPerspectiveCamera
from facelab.geometry.mesh import normalise, vertex_normals
from facelab.geometry.rotations import euler_to_matrix
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.illumination import (
    CLAMPED_COSINE,
    BlinnPhongLight,
    PhongLight,
    SphericalHarmonicsLight,
    ambient_to_sh,
    directional_to_sh,
    sh_basis,
)
from facelab.rendering.image_formation import (
    Picture,
    normalised_coordinates,
    render,
    render_attributes,
    shade_vertices,
)

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 120, "image.interpolation": "nearest", "axes.titlesize": 10})

# %% tags=["parameters"]
PRESET = "quick"
DEVICE = "cpu"
SEED = 0
OUT_DIR = ""  # folder for the results; "": runs/21_image_formation of the repository

# %%
PRESETS = {
    "tiny": {"size": 96, "model": 0, "rays": 20_000, "people": 500},
    "quick": {"size": 180, "model": 1, "rays": 200_000, "people": 2_000},
    "full": {"size": 400, "model": 2, "rays": 2_000_000, "people": 5_000},
}
P, out = begin("21_image_formation", globals(), PRESETS)
numbers: dict[str, float] = {}  # what this notebook measures; written to OUT_DIR/numbers.json at the end

print(f"{'preset':8}" + "".join(f"{key:>12}" for key in P))
for name, settings in PRESETS.items():
    mark = "<- this run" if name == PRESET else ""
    print(f"{name:8}" + "".join(f"{value:12}" for value in settings.values()) + f"   {mark}")

# %% [markdown]
# `size`: pixels per side. `model`: subdivisions of the face model. `rays`: samples of Monte Carlo
# integrals. `people`: sampled skins in section 7.
#
# ## 1 · The whole chain once
#
# $$\text{coefficients}\to\text{vertices (mm)}\xrightarrow{R,\,t}\text{camera space}
# \xrightarrow{f}\text{screen}
# \xrightarrow{\text{rasterizer}}\text{normal, albedo per pixel}\xrightarrow{\text{light}}\text{linear RGB}
# \xrightarrow{\text{sRGB}}\text{picture}$$
#
# `render` does all of it and keeps the intermediate maps. `pncc`, the *projected normalised coordinate
# code*, colours each point of the mean face by where it is; CoarseNet (Richardson et al. 2017) takes it as
# its input.

# %%
size = P["size"]
model = MorphableModel.load(subdivisions=P["model"], device=DEVICE)
face, triangles = model.vertices(), model.triangles
albedo, f0 = model.albedo()
camera = PerspectiveCamera.from_fov(21, size, size, distance=600.0, device=DEVICE)


def rgb(*values: float) -> Tensor:
    """A colour (3,) from three numbers, or grey from one."""
    return torch.tensor(values if len(values) == 3 else values * 3, device=DEVICE, dtype=torch.float32)


def direction(azimuth: float, elevation: float) -> Tensor:
    """Unit vector (3,) towards a light, degrees: azimuth to the right, elevation up; (0, 0) is ahead."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return rgb(math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a))


def soft_light(
    azimuth: float = 40, elevation: float = 25, strength: float = 1.2, ambient: float = 0.5
) -> Tensor:
    """Spherical harmonics coefficients (9, 3) of a warm lamp and cool surroundings."""
    lamp = directional_to_sh(direction(azimuth, elevation), strength * rgb(1.05, 1.0, 0.92))
    return lamp + ambient_to_sh(ambient * rgb(0.95, 1.0, 1.08))


def lamp_light(shininess: float = 24.0, strength: float = 1.2, **where: float) -> BlinnPhongLight:
    """The same lamp at 1.5 m, with highlights."""
    towards = direction(where.get("azimuth", 40), where.get("elevation", 25))
    return BlinnPhongLight(
        soft_light(strength=strength, **where),
        position=1500 * towards + rgb(0, 0, -600),
        colour=strength * rgb(1.05, 1.0, 0.92),
        shininess=torch.tensor(shininess, device=DEVICE),
    )


def draw(
    light, view=camera, diffuse: Tensor = albedo, specular: Tensor | None = f0, shape: Tensor = face
) -> Picture:
    """Render the face."""
    return render(shape, triangles, view, light, diffuse, specular, size, size, antialias=True)


def show(
    pictures: dict[str, Tensor] | list[tuple[str, Tensor]],
    columns: int = 4,
    height: float = 3.0,
    colours: int = 256,
) -> None:
    """A grid of pictures (3, H, W) with titles. Few colours keep the notebook small; 0 keeps all."""
    titled = list(pictures.items()) if isinstance(pictures, dict) else pictures
    rows = math.ceil(len(titled) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.75 * columns, height * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, titled):
        axis.imshow(picture.detach().cpu().movedim(0, -1).clamp(0, 1), interpolation="antialiased")
        axis.set_title(title)
    plt.tight_layout()
    plt.close(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=66)
    grid = Image.open(buffer).convert("RGB")
    display(grid.quantize(colours) if colours else grid)


turned = camera.look([0.05, math.radians(25), 0.0])
picture = draw(lamp_light(), turned)
pncc, _ = render_attributes(face, triangles, turned, normalised_coordinates(model.mean), size, size)
near, far = picture.depth[picture.mask].min(), picture.depth[picture.mask].max()
show(
    {
        "picture (sRGB)": picture.image,
        "mask": picture.mask.float().expand(3, -1, -1),
        f"depth, {near:.0f} (white) to {far:.0f} mm": (
            (far - picture.depth) / (far - near) * picture.mask
        ).expand(3, -1, -1),
        "normals": (picture.normals + 1) / 2 * picture.mask,
        "diffuse albedo": linear_to_srgb(picture.albedo),
        "diffuse shading": linear_to_srgb(picture.shading / 2),
        "highlights × 5": linear_to_srgb(5 * picture.specular),
        "pncc": pncc,
    },
    colours=0,
)
hard = render(
    face, triangles, turned, lamp_light(), albedo, f0, size, size
)  # no antialiasing: nothing is blended
numbers["recomposition_error"] = (hard.albedo * hard.shading + hard.specular - hard.linear).abs().max().item()
assert numbers["recomposition_error"] < 1e-5
print(f"linear picture = albedo x shading + highlights, up to {numbers['recomposition_error']:.1e}")

# %% [markdown]
# ## 2 · Cameras
#
# **Full perspective** (InverseFaceNet, MoFA, GANFIT): a point $X = R\,x + t$ in camera space lands at
#
# $$u = c_x + f\,\frac{X_x}{-X_z},\qquad v = c_y - f\,\frac{X_y}{-X_z},\qquad \text{depth}=-X_z,$$
#
# with the focal length $f$ in pixels and the principal point $c$; the minus in $v$ is there because pixels
# count downwards. **Weak perspective** (CoarseNet, the 2022 paper) divides by *one* depth for the whole
# face: $u = o_x + s\,X_x$, $v = o_y - s\,X_y$.
#
# ### Exercise 1 (easy, 5 minutes)


# %% tags=["solution"]
def project(
    points: Tensor, rotation: Tensor, translation: Tensor, focal: Tensor, principal: Tensor
) -> Tensor:
    """Screen positions (N, 3) = (u, v, depth) of model points (N, 3).

    rotation (3, 3) and translation (3,) go from model to camera space; focal () and principal (2,) in pixels.
    """
    # SOLUTION
    x, y, z = (points @ rotation.T + translation).unbind(-1)
    depth = -z
    return torch.stack([principal[0] + focal * x / depth, principal[1] - focal * y / depth, depth], -1)


# %%
def seen_by_camera(
    points: Tensor, rotation: Tensor, translation: Tensor, focal: Tensor, principal: Tensor
) -> Tensor:
    """What the library's camera says."""
    return PerspectiveCamera(rotation, translation, focal, principal).project(points)


def points_and_camera(generator: torch.Generator) -> tuple[Tensor, ...]:
    """20 points and a camera some 600 mm away."""
    rotation = euler_to_matrix(checks.uniform(generator, 3))
    translation = torch.tensor([0.0, 0, -600]) + checks.uniform(generator, 3, low=-50, high=50)
    focal = checks.uniform(generator, low=300, high=900)
    principal = checks.uniform(generator, 2, low=100, high=140)
    return checks.uniform(generator, 20, 3, low=-100, high=100), rotation, translation, focal, principal


checks.register(
    checks.Exercise(
        name="project points with a perspective camera",
        task="f(points (N, 3), rotation (3, 3), translation (3,), focal (), principal (2,)) -> (N, 3): "
        "x and y in pixels and depth in mm; the camera looks along -z.",
        reference=seen_by_camera,
        inputs=points_and_camera,
        difficulty=1,
        minutes=5,
        mistakes={
            "The rotation is the wrong way round: x_camera = R x, so rows of points need `points @ R.T`.": (
                lambda x, r, *rest: seen_by_camera(x, r.T, *rest)
            ),
            "y runs down on the screen but up in camera space: y = c_y - f Y / depth.": (
                lambda *a: seen_by_camera(*a) * torch.tensor([1, -1, 1]) + 2 * F.pad(a[4][1:], (1, 1))
            ),
            "Depth is -Z, positive in front of the camera.": (
                lambda x, r, t, f, c: 2 * F.pad(c, (0, 1)) - seen_by_camera(x, r, t, f, c)
            ),
            "Add the principal point: the optical axis does not meet the picture at (0, 0).": (
                lambda x, r, t, f, c: seen_by_camera(x, r, t, f, 0 * c)
            ),
        },
        idea="First into camera space, then similar triangles; docs/conventions.md has the axes.",
        hint="x_camera = R x + t; depth = -Z; x = c_x + f X / depth, y = c_y - f Y / depth.",
    )
)
checks.check("project points with a perspective camera", project)
ours = project(face, turned.rotation, turned.translation, turned.focal, turned.principal)
assert torch.allclose(ours, turned.project(face), atol=1e-3)

# %% [markdown]
# How wrong is weak perspective? Give it the scale $s=f/d$ of the middle of the head, and compare landmarks
# of a turned head in a 240 px picture. The error is the relief of the face over its distance, times its
# radius in pixels.

# %%
print("distance (mm)   landmarks: rms, largest difference (px)")
for distance in (300.0, 600.0, 1200.0, 2400.0):
    focal = 240 / 2 / math.tan(math.radians(11)) * torch.tensor(distance / 600, device=DEVICE)
    full = PerspectiveCamera(turned.rotation, rgb(0, 0, -distance), focal, rgb(120, 120, 0)[:2])
    weak = WeakPerspectiveCamera(full.rotation, full.focal / distance, full.principal)
    points = model.landmarks(face)
    error = (full.project(points) - weak.project(points))[:, :2].norm(dim=-1)
    rms = error.square().mean().sqrt().item()
    numbers[f"weak_perspective_rms_px_{distance:.0f}"] = rms
    print(f"{distance:13.0f} {rms:18.2f} {error.max():10.2f}")

# %% [markdown]
# ### Focal length against distance
#
# The size of the face on the screen is $f/d$ (times its millimetres). Double both and the size stays; what
# changes is only the *relief*: how much nearer, and so larger, the nose is than the ears. At arm's length
# that is a lot, and at two metres almost nothing.

# %%
distances = (250.0, 400.0, 800.0, 3000.0)
views = {}
for distance in distances:
    focal = camera.focal * distance / 600
    view = PerspectiveCamera(camera.rotation, rgb(0, 0, -distance), focal, camera.principal)
    views[f"f = {focal:.0f} px, d = {distance:.0f} mm"] = draw(lamp_light(), view).image
show(views)

# %% [markdown]
# Now with numbers. Take the landmarks of a face at distance $d$ as the truth, and explain them with a
# camera that is *twice* as far away and has about twice the focal length. How well can it do, with the best
# pose? And if the **shape** may adapt too, 20 identity coefficients under their prior $N(0,1)$, with
# landmarks trusted to one pixel? That is least squares,
# $\min_{\theta,\alpha}\sum_i\lVert u_i(\theta,\alpha)-\hat u_i\rVert^2/\text{px}^2+\lVert\alpha\rVert^2$,
# by Gauss–Newton:

# %%
screen_size = 240  # pixels in this experiment, at every preset
landmark_mean = model.landmarks(face).double().cpu()
landmark_basis = model.landmarks(model.identity_basis[:20]).double().cpu()  # linear in the vertices


def landmark_screen(theta: Tensor, focal: Tensor) -> Tensor:
    """(68, 2) pixels. theta: 3 angles, translation / 100 mm, then identity coefficients."""
    points = landmark_mean + torch.tensordot(theta[6:], landmark_basis[: len(theta) - 6], 1)
    view = PerspectiveCamera(
        torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), focal, centre
    )
    return view.look(theta[:3], 100 * theta[3:6]).project(points)[:, :2]


def gauss_newton(target: Tensor, focal: Tensor, distance: float, components: int) -> Tensor:
    """Pose and identity that explain landmarks (68, 2) with a given focal length."""
    theta = torch.zeros(6 + components, dtype=torch.float64)
    theta[5] = -distance / 100

    def residual(theta: Tensor) -> Tensor:
        return torch.cat([(landmark_screen(theta, focal) - target).reshape(-1), theta[6:]])

    for _ in range(8):
        jacobian = torch.func.jacrev(residual)(theta)
        theta = theta - torch.linalg.lstsq(jacobian, residual(theta)[:, None]).solution[:, 0]
    return theta


centre = torch.tensor([screen_size / 2, screen_size / 2], dtype=torch.float64)
base_focal = torch.tensor(screen_size / 2 / math.tan(math.radians(11)), dtype=torch.float64)  # at 600 mm
print(
    "landmarks of the mean face at d, seen by a camera at 2d; 240 px picture, the face is about 160 px wide\n"
)
box = landmark_screen(torch.tensor([0.05, 0.3, 0, 0, 0, -6], dtype=torch.float64), base_focal)
diagonal = (box.amax(0) - box.amin(0)).norm().item()
print(f"for scale: 1 % of the diagonal of the landmarks' box is {diagonal / 100:.1f} px\n")
print("   d (mm)    best pose: rms, largest (px)    with shape: rms, largest (px)   shape error (mm)")
for distance in (300.0, 600.0, 1200.0, 2400.0):
    theta = torch.tensor([0.05, 0.3, 0.0, 0.0, 0.0, -distance / 100], dtype=torch.float64)
    target = landmark_screen(theta, base_focal * distance / 600)
    row = []
    for components in (0, 20):
        found = gauss_newton(target, 2 * base_focal * distance / 600, 2 * distance, components)
        error = (landmark_screen(found, 2 * base_focal * distance / 600) - target).norm(dim=-1)
        row += [error.square().mean().sqrt().item(), error.max().item()]
    identity = torch.zeros(len(model.identity_basis), device=DEVICE)
    identity[:20] = found[6:].float()
    wrong = geometry_rmse_mm(model.vertices(identity), face).item()
    numbers[f"focal_rms_px_{distance:.0f}"], numbers[f"focal_max_px_{distance:.0f}"] = row[0], row[1]
    numbers[f"focal_shape_rms_px_{distance:.0f}"], numbers[f"focal_shape_mm_{distance:.0f}"] = row[2], wrong
    print(f"{distance:8.0f} {row[0]:18.2f} {row[1]:8.2f} {row[2]:22.2f} {row[3]:8.2f} {wrong:20.2f}")
assert numbers["focal_rms_px_1200"] < 0.5 * numbers["focal_rms_px_300"]

# %% [markdown]
# A good landmark detector errs by about one percent of the box. So from one metre on the two cameras cannot
# be told apart by landmarks, and nearer than that a slightly different *face* (last column) hides most of
# the difference. Consequence: a method may fix the focal length to something sensible, and must not be
# proud of its absolute depth. When you know the focal length (EXIF), use it.
#
# ## 3 · Light as spherical harmonics
#
# A matt surface of albedo $a$ with normal $n$, under light $L(\omega)$ from all directions, shows
#
# $$I(n)=a\,E(n),\qquad E(n)=\frac1\pi\int_{S^2} L(\omega)\,\max(0,n\cdot\omega)\,\mathrm d\omega .$$
#
# Blurring the surroundings with so wide a kernel leaves only low frequencies. On the sphere the frequencies
# are the **spherical harmonics** $H_b$, and nine of them are enough (Ramamoorthi and Hanrahan 2001; Basri
# and Jacobs 2003): $E(n)\approx\sum_{b=1}^{9}\gamma_bH_b(n)$, with the polynomials
#
# $$H=\Big(c_0,\;c_1y,\;c_1z,\;c_1x,\;c_2xy,\;c_2yz,\;c_3(3z^2-1),\;c_2xz,\;c_4(x^2-y^2)\Big)(n),$$
# $$c_0=\sqrt{\tfrac1{4\pi}},\; c_1=\sqrt{\tfrac3{4\pi}},\;
# c_2=\sqrt{\tfrac{15}{4\pi}},\; c_3=\sqrt{\tfrac5{16\pi}},\; c_4=\sqrt{\tfrac{15}{16\pi}} .$$
#
# ### Exercise 2 (easy, 5 minutes)


# %% tags=["solution"]
def harmonics(normals: Tensor) -> Tensor:
    """The nine basis functions (..., 9) at unit vectors (..., 3), in the order above."""
    # SOLUTION
    x, y, z = normals.unbind(-1)
    c0, c1, c2 = math.sqrt(1 / (4 * math.pi)), math.sqrt(3 / (4 * math.pi)), math.sqrt(15 / (4 * math.pi))
    c3, c4 = math.sqrt(5 / (16 * math.pi)), math.sqrt(15 / (16 * math.pi))
    band0, band1 = [c0 + 0 * x], [c1 * y, c1 * z, c1 * x]
    band2 = [c2 * x * y, c2 * y * z, c3 * (3 * z * z - 1), c2 * x * z, c4 * (x * x - y * y)]
    return torch.stack(band0 + band1 + band2, -1)


# %%
SH_NORMS = [math.sqrt(k / (16 * math.pi)) for k in (4, 12, 12, 12, 60, 60, 5, 60, 15)]
checks.register(
    checks.Exercise(
        name="SH basis",
        task="f(normals (N, 3)) -> (N, 9): real spherical harmonics of unit normals, in the order "
        "1, y, z, x, xy, yz, 3z²-1, xz, x²-y².",
        reference=sh_basis,
        inputs=lambda generator: (normalise(checks.uniform(generator, 40, 3)),),
        difficulty=1,
        minutes=5,
        mistakes={
            "The constants are missing.": lambda n: sh_basis(n) / n.new_tensor(SH_NORMS),
            "The first order is y, z, x, not x, y, z.": lambda n: sh_basis(n)[:, [0, 3, 1, 2, 4, 5, 6, 7, 8]],
            "The seventh is 3z² - 1, not z² - 1.": lambda n: torch.cat(
                [sh_basis(n)[:, :6], SH_NORMS[6] * (n[:, 2:] ** 2 - 1), sh_basis(n)[:, 7:]], -1
            ),
            "x² - y² has a constant of its own, half that of xy.": (
                lambda n: sh_basis(n) * n.new_tensor([1, 1, 1, 1, 1, 1, 1, 1, 2])
            ),
            "Those have no 1/π: every constant is too large by sqrt(π).": (
                lambda n: sh_basis(n) * math.sqrt(math.pi)
            ),
        },
        idea="Nine columns, each a constant times a product of coordinates; the first is constant.",
        hint="The constants are sqrt(1/4π), sqrt(3/4π), sqrt(15/4π), sqrt(5/16π) and sqrt(15/16π).",
    )
)
checks.check("SH basis", harmonics)


# %%
def sphere_normals(side: int) -> tuple[Tensor, Tensor]:
    """Normals (side, side, 3) of a ball that fills a square picture, and its mask."""
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    x, y = torch.meshgrid(line, -line, indexing="xy")
    z = (1 - x * x - y * y).clamp(min=0).sqrt()
    return torch.stack([x, y, z], -1), x * x + y * y < 1


ball, ball_mask = sphere_normals(100)
names = ["1", "y", "z", "x", "xy", "yz", "3z² − 1", "xz", "x² − y²"]
figure, axes = plt.subplots(1, 9, figsize=(11, 1.6))
for axis, name, values in zip(axes, names, harmonics(ball).unbind(-1)):
    axis.imshow(values.where(ball_mask, torch.nan), cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_title(name)
    axis.axis("off")
plt.tight_layout()

# Gauss-Legendre in z, equal steps in the angle: exact over the sphere for polynomials of this degree
nodes, node_weights = np.polynomial.legendre.leggauss(8)
angle = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
z, w = (
    torch.tensor(nodes)[:, None].expand(8, 16),
    torch.tensor(node_weights)[:, None].expand(8, 16) * 2 * math.pi / 16,
)
r = (1 - z * z).sqrt()
points = torch.stack([r * angle.cos(), r * angle.sin(), z], -1).reshape(-1, 3)
gram = (harmonics(points) * w.reshape(-1, 1)).T @ harmonics(points)
print(f"largest deviation of the Gram matrix from the identity: {(gram - torch.eye(9)).abs().max():.1e}")
assert torch.allclose(gram, torch.eye(9, dtype=torch.float64), atol=1e-12)
assert torch.allclose(harmonics(ball), sh_basis(ball), atol=1e-6)

# %% [markdown]
# ### What the cosine does to a band
#
# Convolving with a kernel that depends on the angle only multiplies each band $l$ by one number
# (Funk–Hecke):
#
# $$A_l = 2\pi\int_0^1 P_l(t)\,t\,\mathrm dt:\qquad
# A_0=\pi,\; A_1=\tfrac{2\pi}3,\; A_2=\tfrac\pi4,\; A_3=0,\; A_4=-\tfrac{\pi}{24},\dots$$
#
# So light with coefficients $L_b$ shades with $\gamma_b = A_{l(b)}L_b/\pi$. In facelab (and in the papers)
# the coefficients **are already those of the shading**, kernel and $1/\pi$ included. Is it true? Integrate
# both sides by Monte Carlo, with a light made of several small lamps:


# %%
def random_directions(count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (count, 3), uniform over the sphere."""
    return normalise(torch.randn(count, 3, generator=generator, dtype=torch.float64))


def surroundings(directions: Tensor) -> Tensor:
    """Radiance (N,): a window, a lamp, a weak sky. Sharp enough to have many frequencies."""
    window = torch.exp(12 * (directions @ direction(60, 30).double().cpu() - 1))
    lamp = 2 * torch.exp(40 * (directions @ direction(-50, 10).double().cpu() - 1))
    return window + lamp + 0.1 * (1 + directions[:, 1])


generator = torch.Generator().manual_seed(SEED)
omega = random_directions(P["rays"], generator)
radiance = surroundings(omega)
area = 4 * math.pi / len(omega)  # of the sphere, per sample

light_coefficients = area * (harmonics(omega).T @ radiance)
band = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
kernel = torch.tensor(CLAMPED_COSINE, dtype=torch.float64)[band]
normals = random_directions(200, generator)
by_harmonics = harmonics(normals) @ (kernel * light_coefficients / math.pi)
by_integral = torch.stack([(radiance * (omega @ n).clamp(min=0)).sum() * area / math.pi for n in normals])
error = (by_harmonics - by_integral).square().mean().sqrt() / by_integral.square().mean().sqrt()
numbers["sh_environment_error"] = error.item()
exact = [math.pi, 2 * math.pi / 3, math.pi / 4]
for degree in range(5):
    t = torch.tensor((nodes + 1) / 2)  # the same Gauss nodes on [0, 1]
    legendre = torch.tensor(np.polynomial.legendre.Legendre.basis(degree)(t.numpy()))
    value = 2 * math.pi * (legendre * t * torch.tensor(node_weights) / 2).sum().item()
    print(f"A_{degree} = {value:8.5f}" + (f"   facelab {CLAMPED_COSINE[degree]:8.5f}" if degree < 3 else ""))
print(f"\nnine coefficients against the integral, 200 normals: relative RMS difference {error:.2%}")
assert error < 0.05

# %% [markdown]
# ### The worst case: one distant lamp
#
# Surroundings are kind, a single direction is not: it contains all frequencies equally. Then
# $E = \max(0,\cos\theta)$ exactly, and nine coefficients give
# $\tfrac14+\tfrac12\cos\theta+\tfrac5{32}(3\cos^2\theta-1)$.

# %%
theta = torch.linspace(0, math.pi, 361, dtype=torch.float64)
cosine = theta.cos()
orders = {
    "order 0: 1 coefficient": torch.full_like(cosine, 0.25),
    "order 1: 4": 0.25 + cosine / 2,
    "order 2: 9": 0.25 + cosine / 2 + 5 / 32 * (3 * cosine**2 - 1),
}
plt.figure(figsize=(7, 3))
plt.plot(theta.rad2deg(), cosine.clamp(min=0), "k", lw=2, label="max(0, cos θ)")
for name, curve in orders.items():
    plt.plot(theta.rad2deg(), curve, label=name)
    weight = theta.sin() / theta.sin().sum()  # area of the sphere at this angle
    rms = (weight * (curve - cosine.clamp(min=0)) ** 2).sum().sqrt().item()
    captured = 1 - rms**2 / (weight * cosine.clamp(min=0) ** 2).sum().item()
    largest = (curve - cosine.clamp(min=0)).abs().max().item()
    print(f"{name:24} largest error {largest:.4f}, RMS {rms:.4f}, energy captured {captured:.2%}")
numbers["sh_directional_max_error"], numbers["sh_directional_rms"] = largest, rms
plt.xlabel("angle between normal and light (degrees)")
plt.ylabel("shading")
plt.legend()
plt.tight_layout()

towards = normalise(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64))
ours = orders["order 2: 9"][0]
theirs = sh_basis(towards) @ directional_to_sh(towards, torch.ones(3, dtype=torch.float64))
assert torch.allclose(theirs, ours.expand(3))

# %% [markdown]
# Nine coefficients keep 99 % of the energy. The largest error sits exactly at 90°, the edge of the shadow,
# which harmonics cannot draw sharply: where the light only grazes they still give a tenth of the lamp, and
# further round they even go slightly negative. *Cast* shadows (of the nose, say) are not in the model at
# all.
#
# ## 4 · Highlights
#
# Skin is oily: a few percent of the light does not enter but bounces off. That reflectance at normal
# incidence is the **specular albedo** $F_0$ (skin: about 0.028). **Phong** (1975; GANFIT says "phong shading"
# and prints no formula) compares the mirrored light direction with the eye, **Blinn–Phong** (1977; the 2022
# paper) the half vector
# $h=\frac{l+v}{\lVert l+v\rVert}$ with the normal:
#
# $$\text{Phong: } F_0\,\tfrac{s+2}2\,(r\cdot v)^s\,(n\cdot l),\qquad
# \text{Blinn–Phong: } F\,\tfrac{s+8}8\,(n\cdot h)^s\,(n\cdot l).$$
#
# The **shininess** $s$ is the narrowness of the lobe. The factors $\frac{s+2}2$ and $\frac{s+8}8$ keep the
# reflected *energy* nearly the same for all $s$: a smoother skin has a smaller, brighter highlight.
# (`normalised=False` gives the plain $F_0(r\cdot v)^s$ and $F_0(n\cdot h)^s$ of 1975 and 1977.) $F$ is
# Schlick's approximation of Fresnel: everything mirrors at grazing angles.
#
# Energy check. Light a mirror-like patch from straight ahead and add up what it sends into all directions:
# with Phong it must be exactly $F_0$.

# %%
upper = omega[omega[:, 2] > 0]  # directions towards the eye, over the hemisphere
up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(upper)
one = torch.ones(3, dtype=torch.float64)
reflectance = torch.full((len(upper),), 0.028, dtype=torch.float64)
black = torch.zeros_like(upper)
position = torch.tensor([0.0, 0.0, 1e9], dtype=torch.float64)
print("shininess   reflected / F0:  Phong   Blinn-Phong")
for shininess in (4.0, 16.0, 64.0):
    s = torch.tensor(shininess, dtype=torch.float64)
    phong = PhongLight(0 * one, position, one, s)
    blinn = BlinnPhongLight(torch.zeros(9, 3, dtype=torch.float64), position, one, s)
    # `specular_radiance` is π times the radiance; radiance x cosine, over the hemisphere, is energy
    energy = [
        (light.shade(up, black, upper, black, reflectance).specular_radiance[:, 0] * upper[:, 2]).sum().item()
        * (2 * math.pi / len(upper)) / math.pi / 0.028
        for light in (phong, blinn)
    ]  # fmt: skip
    print(f"{shininess:9.0f} {energy[0]:22.3f} {energy[1]:13.3f}")
    numbers[f"phong_energy_{shininess:.0f}"], numbers[f"blinn_energy_{shininess:.0f}"] = energy
    assert abs(energy[0] - 1) < 0.15

# %%
rendered = {s: draw(lamp_light(s, azimuth=30), turned) for s in (4.0, 12.0, 40.0, 120.0)}
show(
    [(f"shininess {s:.0f}", made.image) for s, made in rendered.items()]
    + [("its highlights × 4", linear_to_srgb(4 * made.specular)) for made in rendered.values()]
)

# %% [markdown]
# ## 5 · Light adds up, pixel values do not
#
# Everything so far was **linear**: twice the light, twice the number. A JPEG stores **sRGB**, roughly the
# power $1/2.2$. Light adds; so take the pictures under the left lamp and under the right lamp, and compare
# with both lamps on.

# %%
left = draw(SphericalHarmonicsLight(soft_light(-60, 10, 1.0, 0.0)))
right = draw(SphericalHarmonicsLight(soft_light(60, 10, 1.0, 0.0)))
both = draw(SphericalHarmonicsLight(soft_light(-60, 10, 1.0, 0.0) + soft_light(60, 10, 1.0, 0.0)))
in_linear = linear_to_srgb(left.linear + right.linear)
in_srgb = left.image + right.image
numbers["sum_in_linear_rmse"] = photometric_rmse(in_linear, both.image, both.mask).item()
numbers["sum_in_srgb_rmse"] = photometric_rmse(in_srgb, both.image, both.mask).item()
show({"left": left.image, "right": right.image, "both": both.image, "left + right, added as sRGB": in_srgb})
print(
    f"added as linear light: off by {numbers['sum_in_linear_rmse']:.4f} of 255; "
    f"as sRGB: {numbers['sum_in_srgb_rmse']:.1f}"
)
assert torch.allclose(srgb_to_linear(linear_to_srgb(both.linear)), both.linear, atol=1e-6)

# %% [markdown]
# InverseFaceNet, MoFA and CoarseNet work in "image RGB": they pretend that the picture is linear. That is a
# different model, in which shading looks flatter than it is and the estimated light is wrong; it is
# self-consistent as long as albedo, light *and* loss live in the same space.
#
# ## 6 · Per pixel or per vertex
#
# `render` interpolates normals and albedo to each pixel and shades *there*. MoFA has no rasterizer at all:
# it shades **vertices** and compares their colours with the photograph at the place where they project, Eq.
# (5): $\mathcal F_i(x) = (u_i(x), c_i(x))$. Cheap, and smooth in every parameter. Two prices. First: what
# turns towards the camera counts as visible, even behind the nose.


# %%
def hidden_share(yaw: float) -> tuple[float, Tensor, Tensor]:
    """Share of the vertices facing the camera that something nearer covers; screen positions; flags."""
    view = camera.look([0.0, math.radians(yaw), 0.0])
    vertices = shade_vertices(face, triangles, view, lamp_light(), albedo, f0)
    picture = draw(lamp_light(), view)
    column, row = (
        vertices.screen[:, 0].long().clamp(0, size - 1),
        vertices.screen[:, 1].long().clamp(0, size - 1),
    )
    # farther than every surface around it, by more than the mesh is steep: 4 mm in a 3 x 3 window
    deepest = torch.nn.functional.max_pool2d(picture.depth, 3, 1, 1)[0]
    hidden = vertices.visible & (vertices.screen[:, 2] > deepest[row, column] + 4)
    return (hidden.sum() / vertices.visible.sum()).item(), vertices.screen, hidden


shares = {yaw: hidden_share(yaw)[0] for yaw in (0.0, 20.0, 40.0, 60.0)}
print(
    "front-facing, but hidden: "
    + ", ".join(f"{share:.1%} at yaw {yaw:.0f}°" for yaw, share in shares.items())
)
numbers["hidden_share_40"] = shares[40.0]

# %% [markdown]
# Some are hidden even on a frontal face: the backs of the mouth and of the eye sockets, and the sides of
# the nostrils.

#
# Second price: between vertices colours are interpolated, and a highlight narrower than a triangle is lost
# or smeared (Gouraud against Phong *shading*). Harmonics are so smooth that nobody would notice.


# %%
def gouraud(light) -> Tensor:
    """The picture from vertex colours, linear RGB (3, H, W)."""
    vertices = shade_vertices(coarse_face, coarse.triangles, turned, light, *coarse_albedo)
    return render_attributes(coarse_face, coarse.triangles, turned, vertices.colour, size, size)[0]


coarse = MorphableModel.load(subdivisions=0, device=DEVICE)
coarse_face, coarse_albedo = coarse.vertices(), coarse.albedo()
views = {}
for name, light in (
    ("harmonics", SphericalHarmonicsLight(soft_light())),
    ("highlight", lamp_light(120.0, azimuth=30)),
):
    exact = render(coarse_face, coarse.triangles, turned, light, *coarse_albedo, size, size)
    approximate = linear_to_srgb(gouraud(light))
    numbers[f"gouraud_rmse_{name}"] = photometric_rmse(approximate, exact.image, exact.mask).item()
    views |= {
        f"{name}: per pixel": exact.image,
        f"per vertex: off by {numbers[f'gouraud_rmse_{name}']:.2f} of 255": approximate,
    }
show(views)
print(f"{len(coarse.triangles)} triangles (subdivision 0)")

# %% [markdown]
# ## 7 · Ambiguity one: albedo and light
#
# $I = a\,E$. Two unknown factors, one known product. For **any** $k>0$ per colour channel
#
# $$a\,E = \Big(\tfrac{1}{k}a\Big)\big(k\,E\big),$$
#
# darker skin in brighter light, or redder skin in bluer light, gives the same picture, exactly and in every
# pixel. No amount of data of this kind, no network and no loss on the picture can tell them apart.
#
# ### Exercise 3 (easy, 5 minutes)
#
# Someone's albedo is `ratio` times another's, per channel. Under which light does the first look like the
# second under `coefficients`?


# %% tags=["solution"]
def compensating_light(coefficients: Tensor, ratio: Tensor) -> Tensor:
    """Coefficients (9, 3) that make the albedo `ratio` (3,) * a look like a under `coefficients` (9, 3)."""
    # SOLUTION
    return coefficients / ratio


# %%
checks.register(
    checks.Exercise(
        name="light that makes up for a skin",
        task="f(coefficients (9, 3), ratio (3,)) -> (9, 3): the light under which ratio * a looks as a did.",
        reference=lambda c, r: torch.stack([c[:, k] / r[k] for k in range(3)], -1),
        inputs=lambda g: (checks.uniform(g, 9, 3), checks.uniform(g, 3, low=0.3, high=0.9)),
        difficulty=1,
        minutes=5,
        mistakes={
            "A darker skin needs brighter light: divide, do not multiply.": lambda c, r: c * r,
            "Each channel has its own ratio.": lambda c, r: c / r.mean(),
            "All nine coefficients change: else the light changes its direction, too.": (
                lambda c, r: torch.cat([c[:1] / r, c[1:]])
            ),
            "Albedo and light are linear here: no gamma.": lambda c, r: c / r ** (1 / 2.2),
        },
        idea="The picture is a product; it has to stay the same.",
        hint="(ratio a) E' = a E, channel by channel, and E is linear in the coefficients.",
    )
)
checks.check("light that makes up for a skin", compensating_light)
light = soft_light()
ratio = rgb(0.42, 0.36, 0.33)
other_albedo, other_light = ratio * albedo, compensating_light(light, ratio)
one = draw(SphericalHarmonicsLight(light), diffuse=albedo)
two = draw(SphericalHarmonicsLight(other_light), diffuse=other_albedo)
numbers["same_picture_difference"] = (one.image - two.image).abs().max().item()
assert numbers["same_picture_difference"] < 1e-5, (
    "the light must undo what the albedo does, channel by channel"
)


def shared_scale(*maps: Tensor) -> list[Tensor]:
    """Linear maps as sRGB pictures, brightest value at 1, one common scale."""
    top = max(float(item.flatten().quantile(0.995)) for item in maps)
    return [linear_to_srgb(item / top) for item in maps]


skins, shades = shared_scale(one.albedo, two.albedo), shared_scale(one.shading, two.shading)
show(
    {
        "albedo A": skins[0], "light A": shades[0], "picture A": one.image,
        "albedo B": skins[1], "light B": shades[1], "picture B": two.image,
    },
    columns=3,
)  # fmt: skip
print(f"largest difference of the two pictures: {numbers['same_picture_difference']:.1e}")

# %% [markdown]
# This is why `metrics.scale_free_error` divides a common factor per channel out before it compares
# albedos or lights.
#
# ### Patterns move too
#
# The scale is only the simplest case. Let the true light have a gradient, $E(n)=\gamma\cdot H(n)$, and let
# somebody assume another light, $E'(n)=\gamma'\cdot H(n)>0$. The albedo
#
# $$a'(v) = a(v)\,\frac{\gamma\cdot H(n_v)}{\gamma'\cdot H(n_v)}$$
#
# makes the same picture again: shading that has been *painted onto the skin*. Any smooth light can go
# there. Is such an albedo believable? That is a question to the prior. Below, the true light has a pattern
# of up to ± 35 % in one harmonic that the assumed light lacks. We ask the face model's albedo basis $A$ (80
# components) how much of the change $a'-a$ it can express, by least squares with its own prior,
# $\min_\beta \lVert A\beta-(a'-a)\rVert^2/\sigma^2+\lVert\beta\rVert^2$ with $\sigma=0.01$ (skin detail
# outside the basis), and what this costs: $\lVert\beta\rVert$ is the distance from the mean face in
# standard deviations.

# %%
skin = model.region_vertices("skin")
facing = skin & (vertex_normals(face, triangles)[:, 2] > 0.2)  # the skin that a frontal picture shows
normals = vertex_normals(face, triangles)[facing]
basis = model.albedo_basis[:, facing, :3].flatten(1).T.double().cpu()  # (3 N, K)
# Neighbouring vertices are not independent observations: count 1000 patches of skin, whatever the mesh
independent = 1000 / int(facing.sum())


def explained_by_prior(change: Tensor, sigma: float = 0.01) -> tuple[float, float]:
    """Share of an albedo change (N, 3) that the model takes over, and its cost ||β|| in sd."""
    wanted = change.flatten().double().cpu()
    weight = independent / sigma**2
    left = weight * basis.T @ basis + torch.eye(basis.shape[1], dtype=torch.float64)
    beta = torch.linalg.solve(left, weight * basis.T @ wanted)
    share = 1 - (basis @ beta - wanted).square().sum() / wanted.square().sum()
    return share.item(), beta.norm().item()


assumed = ambient_to_sh(rgb(0.6)) + directional_to_sh(direction(0, 20), rgb(0.5))
elsewhere = SphericalHarmonicsLight(soft_light(-70, 20, 1.0, 0.3))
everywhere = sh_basis(vertex_normals(face, triangles))
patterns = {"overall, × 0.65": None, "left-right (x)": 3, "up-down (y)": 1, "front-side (z)": 2, "3z² − 1": 6}
honest_row, painted_row, relit_row = [], [], []
print("moved from light to albedo     difference of pictures    model takes    cost (sd)    error when relit")
for name, index in patterns.items():
    true = assumed.clone()
    if index is None:
        true *= 0.65
    else:
        true[index] += 0.35 / sh_basis(normals)[:, index].abs().max()
    painted = albedo * (everywhere @ true) / (everywhere @ assumed).clamp(min=0.05)
    # Compared per vertex, where the painted albedo is defined: a product does not interpolate exactly
    honest, swapped = (
        shade_vertices(face, triangles, camera, SphericalHarmonicsLight(light), skin_colour).colour[facing]
        for light, skin_colour in ((true, albedo), (assumed, painted))
    )
    difference = (honest - swapped).abs().max().item()
    share, cost = explained_by_prior((painted - albedo)[facing])
    first, second = (
        draw(SphericalHarmonicsLight(true)),
        draw(SphericalHarmonicsLight(assumed), diffuse=painted),
    )
    relit = draw(elsewhere, diffuse=painted)
    relit_error = photometric_rmse(relit.image, draw(elsewhere).image, relit.mask).item()
    key = name.split()[0].strip(",").replace("3z²", "z2")
    numbers[f"moved_{key}_share"], numbers[f"moved_{key}_cost"] = share, cost
    print(f"{name:28} {difference:18.1e} {share:22.0%} {cost:12.1f} {relit_error:14.1f} of 255")
    assert difference < 1e-5
    if name.endswith(("(x)", "(y)", "(z)")):
        honest_row.append((f"{name}: it was the light", first.image))
        painted_row.append(("it was painted on", second.image))
        relit_row.append((f"painted, relit: off by {relit_error:.0f}", relit.image))
print(f"for scale: a random person has ||β|| = {math.sqrt(basis.shape[1]):.1f} sd")
show(honest_row + painted_row + relit_row, columns=3, height=2.9)
numbers["relit_error"] = relit_error

# %% [markdown]
# The picture never objects, only the prior does. Compare the costs with the length of a random person's
# coefficients: the prior fights the left-right pattern (skins in the model are nearly symmetric) and the
# up-down one, and lets part of them through where the picture insists. A face that darkens towards its
# sides costs no more than an ordinary person. And the overall scale is the cheapest of all: it is what
# people really differ in, the model's first component.
#
# The first two rows of pictures are the same; what the mistake costs shows in the third, when the lamp
# moves and the paint stays.

# %% [markdown]
# ### Who pays for the prior?
#
# With one picture and unknown exposure, the overall brightness of a skin is decided by the prior, and by
# nothing else. Let us see what that does, in the simplest honest model. Let $y=\log$ mean albedo of a
# person and $g=\log$ strength of the light (times exposure); we see $b=y+g$. With $y\sim N(\mu,\sigma_y^2)$
# over people and $g\sim N(0,\sigma_g^2)$ over pictures, the best estimate (MAP and mean at once) is
#
# $$\hat y=\mu+k\,(b-\mu),\qquad k=\frac{\sigma_y^2}{\sigma_y^2+\sigma_g^2}<1,\qquad
# \mathbb E[\hat y\mid y]-y = -(1-k)\,(y-\mu).$$
#
# The expected error is **not zero for anyone but the average person**; it grows with the distance from the
# mean, and no number of pictures in the training set changes it. Below: skins sampled from our model, light
# known to within $\sigma_g=0.35$ (half a photographic stop), for our model's prior and for one learnt only
# from the lighter half of the same people, as older face models were from mostly European volunteers. The
# error is given as relative albedo and as *individual typology angle* (ITA, from CIELAB: above 41° "light",
# below 10° "brown" or "dark" in dermatology).

# %%
LUMINANCE = rgb(0.2126, 0.7152, 0.0722)
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def ita_degrees(linear: Tensor) -> Tensor:
    """Individual typology angle (N,) of linear colours (N, 3): atan((L* - 50) / b*)."""
    lab = torch.tensor(xyz2lab(linear.double().numpy() @ RGB_TO_XYZ.T))
    return torch.atan2(lab[:, 0] - 50, lab[:, 2]).rad2deg()


people = P["people"]
coefficients = model.sample(people, torch.Generator().manual_seed(SEED))["albedo"]
# the mean colour of the skin is linear in the coefficients, so no need to build every face
mean_colour = model.albedo_mean[facing, :3].mean(0) + coefficients @ model.albedo_basis[:, facing, :3].mean(1)
mean_colour = mean_colour.clamp(min=0.004).cpu()
y = (mean_colour @ LUMINANCE.cpu()).log()
sigma_g = 0.35
ita = ita_degrees(mean_colour)

priors = {"everyone": y, "lighter half only": y[y > y.median()]}
groups = {
    "darkest tenth": y <= y.quantile(0.1),
    "middle fifth": (y > y.quantile(0.4)) & (y <= y.quantile(0.6)),
    "lightest tenth": y >= y.quantile(0.9),
}
g = sigma_g * torch.randn(people, generator=torch.Generator().manual_seed(SEED + 1))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
print(
    f"{people} skins: mean albedo {y.exp().min():.3f} to {y.exp().max():.3f}, "
    f"ITA {ita.min():.0f}° to {ita.max():.0f}°\n"
)
for axis, (name, known) in zip(axes, priors.items()):
    mu, variance = known.mean(), known.var()
    k = variance / (variance + sigma_g**2)
    estimate = mu + k * (y + g - mu)
    assumed_ita = ita_degrees(mean_colour * (estimate - y).exp()[:, None])
    axis.scatter(y.exp()[:500], estimate.exp()[:500], s=3)
    axis.plot([y.exp().min(), y.exp().max()], [y.exp().min(), y.exp().max()], "k-", lw=1, label="right")
    line = torch.linspace(float(y.min()), float(y.max()), 50)
    axis.plot(line.exp(), (mu + k * (line - mu)).exp(), "r-", label="expected estimate")
    axis.set(xlabel="true mean albedo", title=f"prior learnt from: {name} (k = {k:.2f})")
    axis.legend()
    for group, chosen in groups.items():
        bias = ((estimate - y)[chosen].mean().exp() - 1).item()
        shift = (assumed_ita - ita)[chosen].mean().item()
        numbers[f"bias_{name.split()[0]}_{group.split()[0]}"] = bias
        print(f"prior: {name:18} {group:15} albedo off by {bias:+7.1%}, ITA by {shift:+6.1f}°")
axes[0].set_ylabel("estimated mean albedo")
plt.tight_layout()
assert numbers["bias_everyone_darkest"] > 0.05 > numbers["bias_everyone_middle"]
assert numbers["bias_lighter_darkest"] > numbers["bias_everyone_darkest"]

# %% [markdown]
# Dark skins are estimated too light (in light estimated too dim), light skins too dark. A prior learnt from
# the lighter half helps the lightest tenth a little, at everybody else's cost, and most at that of the
# darkest. Feng et al. (2022, *Towards racially unbiased skin tone estimation via scene disambiguation*,
# ECCV) measured this in published face reconstruction methods. So, honestly:
#
# * An albedo recovered from one photograph of a face is **not** a measurement of a person's skin tone. Do
#   not use it as one. Report albedo errors up to a scale *and* say so; report them by skin tone group as
#   well, since a mean hides the bias.
# * A prior must cover the people it is used on. Ours is built from a pigment model with a wide range of
#   melanin, but its *distribution* is a choice we made, not a census.
# * What really helps is information: known exposure, a grey card, the background (a bright room means
#   bright light), the whites of the eyes and teeth, several people in one picture, several pictures of one
#   person, and **highlights**: they have the colour and strength of the lamp, not of the skin.
#
# The last one is the cue that the 2022 paper uses, and it leads to the next ambiguity.

# %% [markdown]
# ## 8 · Ambiguity two: highlight or light skin?
#
# A sharp highlight gives itself away. A broad one (low shininess) is just a smooth bright area, and smooth
# bright areas are what diffuse light makes. Take pictures with highlights of the same energy and different
# shininess, and explain each *without* highlights: the best nine coefficients per channel, by least squares
# over the visible vertices, with the true albedo. What is left over?

# %%
vertices = {
    s: shade_vertices(face, triangles, turned, lamp_light(s, azimuth=10), albedo, f0)
    for s in (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
}
left_over, absorbed = [], []
for shininess, seen in vertices.items():
    matt = shade_vertices(face, triangles, turned, lamp_light(shininess, azimuth=10), albedo, None)
    use = seen.visible
    shine = (seen.colour - matt.colour)[use]
    design = sh_basis(seen.normals[use])
    rest = []
    for channel in range(3):
        rows = albedo[use, channel, None] * design  # colour = albedo * (H . γ)
        fit = torch.linalg.lstsq(rows.double(), seen.colour[use, channel, None].double()).solution
        rest.append(rows.double() @ fit - seen.colour[use, channel, None].double())
    left_over.append((torch.cat(rest, 1).square().mean() / shine.square().mean()).sqrt().item())
    absorbed.append(1 - left_over[-1] ** 2)
    print(f"shininess {shininess:5.0f}: matt light explains {absorbed[-1]:6.1%} of the highlight's energy")
numbers["highlight_absorbed_low"], numbers["highlight_absorbed_high"] = absorbed[0], absorbed[-1]
assert absorbed[0] > 0.9 > absorbed[-1]

plt.figure(figsize=(5.5, 2.8))
plt.semilogx(list(vertices), absorbed, "o-", base=2)
plt.xlabel("shininess")
plt.ylabel("share explained by matt light")
plt.ylim(0, 1.02)
plt.grid(alpha=0.3)
plt.tight_layout()

# %% [markdown]
# At low shininess diffuse light swallows nearly the whole highlight. And if the albedo may change as well,
# the rest can be painted on as a light spot on the forehead and the nose: the albedo of many published
# models, built from photographs, contains exactly those. Three things separate the two: sharpness, motion
# (a highlight moves over the skin when head or lamp turns; paint does not) and **colour** (skin is reddish,
# a highlight has the lamp's colour).
#
# ## 9 · Play with it
#
# Four groups of sliders: where the lamp is (azimuth, elevation), how strong lamp and surroundings are, how
# shiny and how dark the skin is (first albedo coefficient, in standard deviations). From left to right:
# picture, diffuse shading, highlights × 4. Try to find a light that makes dark and light skin look alike,
# and watch the highlights give it away. (Without a running kernel you see the first picture.)

# %%
layout = ParameterLayout(direction=2, strength=2, shininess=1, skin=1)


def relight(theta: Tensor, quick: bool = False) -> Tensor:
    """(3, H, 3 W) from a vector in the order of `layout`; angles in radians."""
    (azimuth, elevation), (lamp, ambient), (shininess,), (skin_sd,) = (
        part.tolist() for part in layout.split(theta).values()
    )
    beta = torch.zeros(len(model.albedo_basis), device=DEVICE)
    beta[0] = skin_sd
    azimuth, elevation = math.degrees(azimuth), math.degrees(elevation)
    light = lamp_light(shininess, lamp, azimuth=azimuth, elevation=elevation, ambient=ambient)
    made = draw(light, turned, *model.albedo(beta))
    highlights = linear_to_srgb(4 * made.specular)
    return torch.cat([made.image, linear_to_srgb(made.shading / 2), highlights], -1)


ParameterSliders(
    layout,
    relight,
    start=torch.tensor([math.radians(-60), math.radians(30), 1.5, 0.3, 40.0, -1.0]),
    ranges={"direction": (-180, 180), "strength": (0, 4), "shininess": (2, 128), "skin": (-2.5, 2.5)},
    angles=("direction",),
)

# %% [markdown]
# **What you have now.** An image formation that you can differentiate in every parameter, and a map of what
# it cannot tell you: focal length and distance, albedo and light, highlight and light skin. Notebook 30
# inverts it.
#
# **Sources.** Ramamoorthi and Hanrahan, *An efficient representation for irradiance environment maps*,
# SIGGRAPH 2001. Basri and Jacobs, *Lambertian reflectance and linear subspaces*, PAMI 2003. Phong,
# *Illumination for computer generated pictures*, CACM 1975. Blinn, *Models of light reflection for computer
# synthesized pictures*, SIGGRAPH 1977. Schlick, *An inexpensive BRDF model*, 1994. Tewari et al., *MoFA*,
# ICCV 2017. Kim et al., *InverseFaceNet*, CVPR 2018. Gecer et al., *GANFIT*, CVPR 2019. Belhumeur, Kriegman
# and Yuille, *The bas-relief ambiguity*, IJCV 1999 (what happens when the shape is unknown too). Feng et
# al., *Towards racially unbiased skin tone estimation via scene disambiguation*, ECCV 2022.

# %%
(out / "numbers.json").write_text(json.dumps(numbers, indent=1))
for key, value in numbers.items():
    print(f"{key:32} {value:.6g}")
