# %% [markdown]
# # 10 · Build a morphable model
#
# A 3D morphable model (Blanz and Vetter 1999) is a space of faces that you can do linear algebra in: a mean
# face, a few dozen directions, and a bell curve over them. Every reconstruction method in this course looks
# for a point in such a space. Here you build one from a population of meshes: align them, decompose them,
# measure how good the result is, and find out what it cannot know. Then you take apart the model that ships
# with facelab, expressions, skin, landmarks and all, and look at who is in it and who is not.
#
# **What you will learn**
#
# - to build a face model from a population of meshes: alignment, PCA, a prior
# - to measure what a model can and cannot represent
# - to ask who is in a model, and what it costs those who are not
#
# **Time:** 75 minutes, with exercises 120. **Before this:** linear algebra (singular value decomposition),
# PyTorch tensors. [docs/conventions.md](../docs/conventions.md) has the axes: millimetres, +x to the image's
# right, +y up, +z out of the face.

# %%
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage.color import rgb2lab
from sklearn.decomposition import PCA
from torch import Tensor

from facelab.course import checks
from facelab.course.notebook import begin
from facelab.course.viewer import ParameterSliders, fit_camera, geometry_image, heat_map, image_grid
from facelab.evaluation.metrics import geometry_rmse_mm, rigid_align
from facelab.geometry.rotations import euler_to_matrix
from facelab.geometry.subdivision import catmull_clark, triangulate
from facelab.model.layout import ParameterLayout
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.illumination import BlinnPhongLight, ambient_to_sh, directional_to_sh
from facelab.rendering.image_formation import render, render_attributes

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 120, "axes.titlesize": 10})

# %% tags=["parameters"]
PRESET = "quick"
DEVICE = "cpu"
SEED = 0
OUT_DIR = ""  # folder for the results; "": runs/10_morphable_model of the repository

# %%
PRESETS = {
    "tiny": {"people": 240, "held_out": 60, "mesh": 0, "shown": 0, "size": 64, "group": 60},
    "quick": {"people": 1000, "held_out": 200, "mesh": 0, "shown": 1, "size": 128, "group": 300},
    "full": {"people": 1300, "held_out": 300, "mesh": 1, "shown": 2, "size": 160, "group": 400},
}
P, out = begin("10_morphable_model", globals(), PRESETS)
numbers: dict[str, float] = {}  # what this notebook measures; written to OUT_DIR/numbers.json at the end

print(f"{'preset':8}" + "".join(f"{key:>10}" for key in P))
for name, settings in PRESETS.items():
    mark = "<- this run" if name == PRESET else ""
    print(f"{name:8}" + "".join(f"{value:10}" for value in settings.values()) + f"   {mark}")

# %% [markdown]
# `people`: how many we learn from. `held_out`: how many we test on. `mesh`: subdivisions of the mesh that we
# learn on, `shown`: of the one that we look at. `size`: pixels per side of a picture. `group`: people per
# group in section 10. All numbers in this notebook come from the preset `quick`, seed 0, on a CPU, November
# 2026.
#
# ## 1 · Faces you can add
#
# Write a face as one long vector $s = (x_1, y_1, z_1, \dots, x_V, y_V, z_V)^\top$. Blanz and Vetter's idea
# needs one condition: **dense correspondence**. Vertex 17 must be the same place on everybody, say the tip
# of the nose. Then a weighted average of faces is a face again. Without correspondence it is not.

# %%
precise = {"dtype": torch.float64, "device": DEVICE}
shipped = MorphableModel.load(subdivisions=P["mesh"]).to(**precise)
triangles = shipped.triangles
count = len(shipped.mean)


def close_camera(size: int, zoom: float = 1.2):
    """For a picture of size² pixels; `fit_camera` leaves room for a head that turns, `zoom` takes it away."""
    view = fit_camera(shipped.mean.float().cpu(), size, size)
    return replace(view, focal=zoom * view.focal)


def picture(vertices: Tensor, zoom: float = 1.2) -> Tensor:
    """(3, H, W): a mesh (V, 3) in grey, from the same place each time."""
    size = P["size"]
    return geometry_image(vertices.float().cpu(), triangles.cpu(), close_camera(size, zoom), size, size)


generator = torch.Generator(DEVICE).manual_seed(SEED)
who = torch.randperm(len(shipped.people_identity), generator=generator, device=DEVICE)
everybody = shipped.vertices(shipped.people_identity[who])  # (N, V, 3) mm
first, second = everybody[0], everybody[5]
shuffled = second[torch.randperm(count, generator=generator, device=DEVICE)]
steps = (0.0, 0.5, 1.0, 1.7)
blends = [picture((1 - t) * first + t * second) for t in steps] + [picture((first + shuffled) / 2)]
titles = ["A", "(A + B) / 2", "B", "A + 1.7 (B − A)", "vertices shuffled"]
image_grid(blends, titles, inches=1.3)

# %% [markdown]
# The fourth goes beyond B: what tells B from A is exaggerated, a caricature. The last is the average of the
# same two people as the second, but B's vertices were numbered in another order.
#
# ## 2 · A population
#
# A model is learned from people, usually from 3D scans brought into correspondence by non-rigid registration
# (Amberg et al. 2007). Scans of real people cannot be shipped with a course. **Our people are made up:** they
# are picked from the 1,600 whose coefficients facelab's model file holds, drawn from MakeHuman's shape
# sliders (section 10 says what follows from that). We take each person once and keep some of them apart for
# testing; `shipped.sample` would mix people with noise, and could then show us a test person in training.
#
# Two things make the exercise honest. Nobody sits still in front of a scanner, and units get lost; so we
# turn, shift and scale each face at random. And scanners are noisy; so each coordinate gets Gaussian noise of
# 0.2 mm. Correspondence we have for free, and we keep it: without it nothing below would work.

# %%
NOISE = 0.2  # mm per coordinate


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, **precise)


def disturb(shapes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shapes (N, V, 3) after a random motion and scaling each: without and with noise."""
    n = len(shapes)
    rotation = euler_to_matrix(np.radians(8) * normal(generator, n, 3))
    scale = torch.exp(0.05 * normal(generator, n, 1, 1))
    moved = scale * (shapes @ rotation.mT) + 12 * normal(generator, n, 1, 3)
    return moved, moved + NOISE * normal(generator, *moved.shape)


S = P["people"]
original, original_test = everybody[:S], everybody[S : S + P["held_out"]]
generator = torch.Generator(DEVICE).manual_seed(SEED + 5)
_, scans = disturb(original, generator)
clean_test, scans_test = disturb(original_test, generator)
print(f"{S} people to learn from, {len(scans_test)} to test on, {count} vertices each: {3 * count} numbers")
image_grid([picture(scan, zoom=1.0) for scan in scans[:6]], inches=1.3)

# %% [markdown]
# ## 3 · Procrustes: take out what is not shape
#
# Where somebody sits says nothing about who they are. To lay a shape $x_1 \dots x_V$ onto $y_1 \dots y_V$,
# minimise $\sum_i \lVert s R x_i + t - y_i\rVert^2$ over rotation, scale and shift. The shift aligns the
# centroids $\bar x, \bar y$. For the rest, decompose the $3\times3$ covariance
#
# $$\sum_i (x_i - \bar x)(y_i - \bar y)^\top = U \,\mathrm{diag}(\sigma)\, V^\top ,\qquad
# D = \mathrm{diag}(1, 1, \det(V U^\top)),$$
# $$R = V D\, U^\top,\qquad
# s = \frac{\mathrm{tr}(\mathrm{diag}(\sigma) D)}{\sum_i \lVert x_i - \bar x\rVert^2},\qquad
# t = \bar y - s R \bar x$$
#
# (Kabsch 1976, Umeyama 1991). $D$ forbids a mirror image, which would fit a face rather well.
#
# ### Exercise 1 (medium, 15 minutes)
#
# Write it for any batch shape. Points are rows here, so $R x$ becomes `x @ R.mT`.


# %% tags=["solution"]
def procrustes(source: Tensor, target: Tensor, scale: bool = True) -> Tensor:
    """`source` (..., V, 3) moved onto `target` (..., V, 3) by rotation, shift and, if asked, size."""
    # SOLUTION
    x_mean, y_mean = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    x, y = source - x_mean, target - y_mean
    u, sigma, vt = torch.linalg.svd(x.mT @ y)
    d = torch.ones_like(sigma)
    d[..., 2] = torch.linalg.det(u @ vt).sign()
    rotation = vt.mT @ (d[..., None] * u.mT)
    size = (sigma * d).sum(-1) / x.square().sum((-2, -1)) if scale else x.new_ones(())
    return size[..., None, None] * (x @ rotation.mT) + y_mean


# %% [markdown]
# The check compares with `facelab.evaluation.metrics.rigid_align`, which calls the library
# [roma](https://github.com/naver/roma). One of its inputs is a mirror image.


# %%
def two_shapes(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A shape, and the same turned, mirrored, stretched, moved and noisy."""
    source = torch.randn(4, 30, 3, generator=generator)
    turned = 1.7 * source @ euler_to_matrix(torch.randn(4, 3, generator=generator)).mT + 5
    turned[0, :, 0] *= -1
    return source, turned + 0.1 * torch.randn(4, 30, 3, generator=generator)


def with_reflections(x: Tensor, y: Tensor, over: str = "source", turned_back: bool = False) -> Tensor:
    """What you get if reflections are allowed, the size is that over the target, or the rotation is R.T."""
    a, b = x - x.mean(-2, keepdim=True), y - y.mean(-2, keepdim=True)
    u, sigma, vt = torch.linalg.svd(a.mT @ b)
    if over == "target" or turned_back:
        sign = torch.linalg.det(u @ vt).sign()
        sigma, u = sigma * torch.stack([sign**0, sign**0, sign], -1), u.clone()
        u[..., 2] = u[..., 2] * sign[..., None]
    size = sigma.sum(-1) / (a if over == "source" else b).square().sum((-2, -1))
    turn = (u @ vt).mT if turned_back else u @ vt
    return size[..., None, None] * (a @ turn) + y.mean(-2, keepdim=True)


checks.register(
    checks.Exercise(
        name="lay one shape onto another",
        task="f(source (..., V, 3), target (..., V, 3)) -> source after the best similarity transform",
        reference=lambda x, y: rigid_align(x, y, scale=True),
        inputs=two_shapes,
        difficulty=2,
        minutes=15,
        mistakes={
            "The size is not fitted.": rigid_align,
            "A mirror image is no rotation: see the matrix D.": with_reflections,
            "The rotation is the wrong way round: R x is `x @ R.mT` where points are rows.": (
                lambda x, y: with_reflections(x, y, turned_back=True)
            ),
            "The size is divided by |x|², the source's: that is what is stretched.": (
                lambda x, y: with_reflections(x, y, over="target")
            ),
            "Move it to the target's centroid at the end.": (
                lambda x, y: rigid_align(x, y, scale=True) - y.mean(-2, keepdim=True)
            ),
        },
        idea="Centre both; one decomposition of a 3×3 matrix has the rotation and the size.",
        hint="u, s, vt = svd(x.mT @ y); turn round the last column where det(u @ vt) is -1; R = V D U.mT.",
    )
)
checks.check("lay one shape onto another", procrustes)

# %% [markdown]
# A population has no given target. **Generalised Procrustes** (Gower 1975) takes anybody, aligns all to them,
# takes the mean as the new target, and repeats. With a free scale everything would shrink a little in each
# round (noisy shapes fit better when small), so the mean is kept at the population's average size. In which
# direction the mean looks is arbitrary; at the end we turn all of them together to face the camera.


# %%
def generalised_procrustes(
    shapes: Tensor, scale: bool, rounds: int = 6
) -> tuple[Tensor, Tensor, list[float]]:
    """Aligned shapes (N, V, 3), their mean (V, 3), and how far the mean moved in each round (RMS, mm)."""
    size = (shapes - shapes.mean(1, keepdim=True)).square().sum((1, 2)).sqrt().mean()
    mean, moved = shapes[0] - shapes[0].mean(0), []
    for _ in range(rounds):
        new = procrustes(shapes, mean, scale).mean(0)
        new = new * (size / new.norm()) if scale else new
        moved.append(geometry_rmse_mm(new, mean, align="none").item())
        mean = new
    mean = procrustes(mean, shipped.mean, scale=False)  # look at the camera
    return procrustes(shapes, mean, scale), mean, moved


aligned, mean_shape, moved = generalised_procrustes(scans, scale=True)
print("the mean moves by", ", ".join(f"{m:.1e}" for m in moved), "mm per round")
numbers["procrustes_moved_mm"] = moved[-1]
difference = (aligned - rigid_align(scans, mean_shape, scale=True)).abs().max().item()
numbers["procrustes_vs_roma_mm"] = difference
print(f"ours and metrics.rigid_align differ by at most {difference:.1e} mm")
assert difference < 1e-9

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharex=True, sharey=True)
profile = shipped.triangles[shipped.landmark_triangles[[27, 30, 8, 36, 45, 48, 54]], 0]
for axis, shapes, title in ((axes[0], scans, "as scanned"), (axes[1], aligned, "aligned")):
    for k, vertex in enumerate(profile):
        axis.plot(*shapes[:200, vertex, :2].T.cpu(), ".", ms=2, color=f"C{k}")
    axis.set(title=f"200 people, {title}", xlabel="x, mm", aspect="equal")
axes[0].set_ylabel("y, mm")
plt.tight_layout()

# %% [markdown]
# ## 4 · PCA
#
# Stack the aligned shapes as rows of $X \in \mathbb R^{S \times 3V}$, subtract the mean $\bar s$, decompose:
#
# $$X - \mathbf 1\bar s^\top = U\,\Sigma\,W^\top,\qquad \sigma_i = \frac{\Sigma_{ii}}{\sqrt{S-1}},\qquad
# s(\alpha) = \bar s + \sum_i \alpha_i\,\underbrace{\sigma_i w_i}_{S_i} .$$
#
# The rows $w_i$ of $W^\top$ are orthonormal directions of decreasing variance $\sigma_i^2$. We store
# $S_i=\sigma_i w_i$, **millimetres per standard deviation**: then $\alpha_i$ has variance 1, whatever the
# mode. (The covariance matrix itself has $(3V)^2$ entries and is never needed; its rank is at most $S-1$.)
#
# ### Exercise 2 (medium, 10 minutes)


# %% tags=["solution"]
def pca(population: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), orthonormal rows (components, D) and sigma (components,) of `population` (S, D)."""
    # SOLUTION
    mean = population.mean(0)
    _, singular, rows = torch.linalg.svd(population - mean, full_matrices=False)
    return mean, rows[:components], singular[:components] / (len(population) - 1) ** 0.5


# %%
def pca_by_covariance(x: Tensor, count: int, centre: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The same from the covariance matrix, which is small for 18 numbers a person."""
    mean = x.mean(0)
    values, columns = torch.linalg.eigh((x - centre * mean).T @ (x - centre * mean) / (len(x) - 1))
    return mean, columns.T.flip(0)[:count], values.flip(0)[:count].sqrt()


def other_sigma(change: Callable[[Tensor, int], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The decomposition with other standard deviations."""
    return lambda x, count: (*pca_by_covariance(x, count)[:2], change(pca_by_covariance(x, count)[2], len(x)))


def forty_people(generator: torch.Generator) -> tuple[Tensor, int]:
    """A population of 18 numbers with six modes, and how many are asked for."""
    mixing = torch.linalg.qr(checks.uniform(generator, 18, 6))[0]
    spread = torch.tensor([9.0, 6, 4, 2.5, 1.5, 0.3])
    return 30 + checks.uniform(generator, 40, 6) * spread @ mixing.T, 4


def largest_entry_positive(result: Tensor, position: int) -> Tensor:
    """Basis vectors (the second result) may point either way."""
    largest = result.gather(-1, result.abs().argmax(-1, keepdim=True))
    return result * largest.sign() if position == 1 else result


checks.register(
    checks.Exercise(
        name="PCA of a population",
        task="f(population (S, D), count) -> mean (D,), basis (count, D) of orthonormal rows, the largest "
        "variance first, and sigma (count,), the standard deviations along them.",
        reference=pca_by_covariance,
        inputs=forty_people,
        difficulty=2,
        minutes=10,
        mistakes={
            "Subtract the mean before the decomposition.": (
                lambda x, count: pca_by_covariance(x, count, centre=0.0)
            ),
            "Those are variances; sigma is their square root.": other_sigma(lambda s, n: s**2),
            "Divide by S - 1, not by S: the mean comes from the same data.": other_sigma(
                lambda s, n: s * (1 - 1 / n) ** 0.5
            ),
            "Those are singular values; divide them by sqrt(S - 1).": other_sigma(
                lambda s, n: s * (n - 1) ** 0.5
            ),
        },
        canonical=largest_entry_positive,
        idea="The directions of largest variance are those of the centred matrix, people in rows.",
        hint="torch.linalg.svd of the centred population: Vh holds the basis, sigma = S / sqrt(n - 1).",
    )
)
checks.check("PCA of a population", pca)

# %%
K = min(128, S - 1)
mean, rows, sigma = pca(aligned.flatten(1), K)
mean = mean.unflatten(0, (-1, 3))
total = aligned.flatten(1).var(0).sum()  # of all 3V coordinates
explained = sigma.square().cumsum(0) / total

reference = PCA(40, svd_solver="full").fit(aligned.flatten(1).cpu().numpy())
cosine = (torch.from_numpy(reference.components_).to(rows) * rows[:40]).sum(1).abs()
numbers["sklearn_cosine_error"] = (1 - cosine).max().item()
numbers["sklearn_sigma_error"] = float(
    np.abs(np.sqrt(reference.explained_variance_) / sigma[:40].cpu().numpy() - 1).max()
)
print(f"scikit-learn: directions agree to 1 − |cos| ≤ {numbers['sklearn_cosine_error']:.1e}, ", end="")
print(f"standard deviations to {numbers['sklearn_sigma_error']:.1e}")
assert numbers["sklearn_cosine_error"] < 1e-8 and numbers["sklearn_sigma_error"] < 1e-8

rms = (total / count).sqrt().item()  # of the 3D distance from the mean
numbers["population_rms_mm"] = rms
print(f"a person is {rms:.2f} mm (RMS) from the mean face")
for k in (1, 10, 40):
    numbers[f"variance_in_{k}"] = explained[k - 1].item()
    print(f"{k:3} components: {100 * explained[k - 1]:.1f} % of the variance, noise included")

# %% [markdown]
# Where do people differ? The standard deviation of each vertex, over the population:

# %%
deviation = aligned.var(0).sum(-1).sqrt().float()
heat_map(
    mean_shape.float().cpu(), triangles.cpu(), close_camera(200), deviation.cpu(), 200, 200, label="σ, mm"
)

# %% [markdown]
# And along which directions? The first modes at ±2.5σ:


# %%
def modes_figure(
    mean: Tensor, basis: Tensor, chosen: tuple[int, ...], strength: float = 2.5, zoom: float = 1.2
):
    """A picture below and above the mean for each chosen mode of `basis` (K, V, 3) mm per sigma."""
    signs = (-strength, strength)
    images = [picture(mean + sign * basis[k], zoom) for sign in signs for k in chosen]
    return image_grid(images, [f"mode {k + 1}: {s:+.1f}σ" for s in signs for k in chosen], len(chosen), 1.1)


def per_sigma(rows: Tensor, sigma: Tensor) -> Tensor:
    """(K, V, 3): modes in mm per standard deviation."""
    return (sigma[:, None] * rows).unflatten(1, (-1, 3))


basis = per_sigma(rows, sigma)
modes_figure(mean, basis, (0, 1, 2, 3))

# %% [markdown]
# Nobody named these modes. Mode 1 mixes what varies together in *this* population; it is not "sex" or "age"
# or "origin", although it correlates with them. Another population has other modes, and the sign of a mode is
# arbitrary.
#
# ## 5 · Why alignment changes the modes
#
# PCA describes whatever varies. If positions vary, it describes positions. The same people, four ways:

# %%
variants = {
    "as scanned": scans,
    "rigid": generalised_procrustes(scans, scale=False)[0],
    "similarity": aligned,
    "never disturbed": original,
}
fits = {}
print(f"{'':16}{'RMS from mean':>15}{'mode 1':>9}{'modes for 90 %':>16}{'modes for 98 %':>16}")
for name, shapes in variants.items():
    middle, directions, deviations = pca(shapes.flatten(1), K)
    variance = shapes.flatten(1).var(0).sum()
    share = deviations.square().cumsum(0) / variance
    fits[name] = (middle.unflatten(0, (-1, 3)), per_sigma(directions, deviations))
    needed = [int((share < part).sum()) + 1 for part in (0.9, 0.98)]
    print(f"{name:16}{(variance / count).sqrt():12.2f} mm{100 * share[0]:7.1f} %{needed[0]:16}{needed[1]:16}")
    key = name.replace(" ", "_")
    numbers[f"rms_mm_{key}"] = (variance / count).sqrt().item()
    numbers[f"mode_1_{key}"] = share[0].item()
    numbers[f"modes_for_90_{key}"] = needed[0]
face_size = (original - original.mean(1, keepdim=True)).square().sum((1, 2)).sqrt()
undisturbed, modes = fits["never disturbed"]
first_mode = (original - undisturbed).flatten(1) @ modes[0].flatten()
numbers["mode_1_is_size"] = torch.corrcoef(torch.stack([face_size, first_mode]))[0, 1].square().item()
print(f"never disturbed: size explains {100 * numbers['mode_1_is_size']:.0f} % of mode 1's variance")
modes_figure(*fits["as scanned"], (0, 1, 3, 6), zoom=1.0)

# %% [markdown]
# Unaligned, the first modes are motions, and bad ones: a rotation is not linear, so adding ±2.5σ of a
# "rotation mode" also swells the face. Real shape only comes after them, mixed with their second-order
# remains. Note that this basis looks the most *compact* of all, 90 % of the variance in the fewest modes. The
# other 10 % are the faces. A percentage means nothing before you know of what.
#
# **Rigid or similarity?** Rigid alignment leaves the random scale in: its first mode is size. The similarity
# alignment removes it, together with the *real* differences in size, which are gone for good. Whoever knows
# the millimetres aligns rigidly. `data_scripts/build_face_model.py` does, and so facelab's model knows that
# heads differ in size; in the undisturbed population above it is what mode 1 is made of. And alignment is not
# innocent either: it depends on the points that it uses. Aligned on the eyes alone, the eyes stand still
# and the chin takes over their share of the variance.

# %% [markdown]
# ## 6 · How good is the model? Compactness, generalisation, specificity
#
# Three curves over the number of components $k$ (Davies 2002; Styner et al. 2003):
#
# - **Compactness** $C(k)=\sum_{i\le k}\sigma_i^2/\sum_i\sigma_i^2$. High is good.
# - **Generalisation** $G(k)$: the distance in mm of held-out people from the model,
#   $\lVert x-\hat x_k\rVert$ with $\hat x_k = \bar s+\sum_{i\le k} w_i w_i^\top(x-\bar s)$. Low is good.
# - **Specificity** $\mathcal S(k)$: draw $\alpha\sim N(0, I_k)$ and take the distance of $s(\alpha)$ from the
#   nearest person of the population. Low is good: what the model makes up should look like people.
#
# The held-out faces come as scans too, disturbed and noisy, and get aligned to the mean. We measure the
# distance both to the noisy scan and to the truth under the noise, which nobody has outside a simulation.

# %%
test_scans, test_truth = procrustes(scans_test, mean), procrustes(clean_test, mean)
ks = [k for k in (0, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80, 100, 128) if k <= K]


def project(shapes: Tensor, mean: Tensor, rows: Tensor) -> Tensor:
    """The nearest faces of the model to `shapes` (N, V, 3)."""
    return mean + ((shapes - mean).flatten(1) @ rows.T @ rows).unflatten(1, (-1, 3))


def rmse(a: Tensor, b: Tensor) -> float:
    """Distance of corresponding vertices in mm: RMS over the face, mean over the people."""
    return geometry_rmse_mm(a, b, align="none").mean().item()


to_scan = [rmse(project(test_scans, mean, rows[:k]), test_scans) for k in ks]
to_truth = [rmse(project(test_scans, mean, rows[:k]), test_truth) for k in ks]
specificity, generator = [], torch.Generator(DEVICE).manual_seed(SEED + 6)
for k in ks[1:]:
    invented = mean.flatten() + normal(generator, 100, k) @ basis[:k].flatten(1)
    nearest = torch.cdist(invented, aligned.flatten(1)).amin(1)
    specificity.append((nearest / count**0.5).mean().item())
people_apart = (torch.cdist(aligned[:100].flatten(1), aligned.flatten(1)) / count**0.5).topk(2, largest=False)
people_apart = people_apart.values[:, 1].mean().item()

sizes = [n for n in (20, 60, 200, 600) if n < S] + [S]
by_size = {}
for n in sizes:
    m, r, _ = pca(aligned[:n].flatten(1), min(K, n - 1))
    m = m.unflatten(0, (-1, 3))
    by_size[n] = [
        (k, rmse(project(test_scans, m, r[:k]), test_truth)) for k in sorted({*ks, len(r)}) if k <= len(r)
    ]

figure, axes = plt.subplots(1, 3, figsize=(11, 3))
axes[0].plot(range(1, K + 1), 100 * explained.cpu())
axes[0].set(title="compactness", xlabel="components", ylabel="% of the variance", ylim=(0, 101))
for n, points in by_size.items():
    axes[1].plot(*zip(*points), label=f"{n} people")
axes[1].plot(ks, to_scan, "k--", lw=1, label=f"{S}, to the noisy scan")
axes[1].axhline(NOISE * 3**0.5, color="grey", ls=":", lw=1)
axes[1].set(title="generalisation (held-out people)", xlabel="components", ylabel="RMSE, mm", ylim=0)
axes[1].legend(fontsize=8)
axes[2].plot(ks[1:], specificity)
axes[2].axhline(people_apart, color="grey", ls=":", lw=1, label="a person to the next")
axes[2].set(title="specificity", xlabel="components", ylabel="nearest person, mm", ylim=0)
axes[2].legend(fontsize=8)
plt.tight_layout()
for k in (0, 10, 40, ks[-1]):
    numbers[f"held_out_rmse_mm_{k}"] = to_truth[ks.index(k)]
    print(f"{k:3} components: held-out RMSE {to_truth[ks.index(k)]:.2f} mm to the truth, ", end="")
    print(f"{to_scan[ks.index(k)]:.2f} mm to the scan (noise: {NOISE * 3**0.5:.2f} mm)")
numbers["held_out_rmse_mm_20_people"] = by_size[20][-1][1]
numbers["specificity_mm_10"] = specificity[ks.index(10) - 1]
numbers["specificity_mm_last"] = specificity[-1]
print(f"learned from 20 people, with all 19 components: {by_size[20][-1][1]:.2f} mm")
print(f"specificity: {numbers['specificity_mm_10']:.2f} mm with 10, {specificity[-1]:.2f} mm with {ks[-1]}")

# %% [markdown]
# Read the middle picture well; it is the one that matters for reconstruction.
#
# - More *people* help more than more *components*. Twenty people span 19 directions, and others do not lie in
#   them, however many you keep.
# - The distance to the noisy scan cannot fall below the noise (dotted), but the distance to the truth can:
#   the model removes noise that does not look like a face.
# - Specificity rises with $k$: a model that can be anybody can also be nobody. (Here it ends about where a
#   person is from the next one, dotted: with all components the inventions are as far apart as people.) A
#   prior on $\alpha$ (section 8) must hold what the basis no longer does.
#
# These curves flatter us in one way: the people come from a slider program with some hundred knobs, and the
# 128 stored coefficients per person are what PCA kept of them. Real faces do not end after 128 components.
#
# ## 7 · Left and right
#
# Each vertex has a partner on the other side, `mirror[i]`, and the mirror image of a face is
# $(Ms)_i = \mathrm{diag}(-1,1,1)\, s_{\mathrm{mirror}(i)}$. $M$ is a linear map with $M^2=1$, so every face
# falls into a symmetric and an antisymmetric part, $s = \tfrac12(s+Ms)+\tfrac12(s-Ms)$, and the two are
# orthogonal. A finite sample is never quite even-handed, so our modes mix the two a little:

# %%
FLIP = torch.tensor([-1.0, 1.0, 1.0], **precise)


def mirrored(shapes: Tensor) -> Tensor:
    """The mirror images of shapes or displacements (..., V, 3)."""
    return FLIP * shapes[..., shipped.mirror, :]


def asymmetry(modes: Tensor) -> Tensor:
    """Share (K,) of the squared displacement that is antisymmetric."""
    return (0.5 * (modes - mirrored(modes))).square().sum((1, 2)) / modes.square().sum((1, 2))


both = torch.cat([aligned, procrustes(mirrored(aligned), mean)])  # everybody, and everybody in the mirror
symmetric_mean = 0.5 * (mean + mirrored(mean))
both = procrustes(both, symmetric_mean)
_, mirror_rows, mirror_sigma = pca(both.flatten(1), 40)
mirror_modes = per_sigma(mirror_rows, mirror_sigma)
mixed = [torch.minimum(a, 1 - a)[:20].max().item() for a in (asymmetry(basis), asymmetry(mirror_modes))]
numbers["mixed_share_plain"], numbers["mixed_share_mirrored"] = mixed
print(f"of the first 20 modes, the one that mixes most: {100 * mixed[0]:.1f} % of the other kind")
print(f"... when everybody's mirror image is added: {100 * mixed[1]:.1e} %")

exact = torch.minimum(
    (mirrored(shipped.identity_basis) - shipped.identity_basis).abs().amax((1, 2)),
    (mirrored(shipped.identity_basis) + shipped.identity_basis).abs().amax((1, 2)),
)
numbers["symmetry_error_mm"] = max(
    exact.max().item(), (mirrored(shipped.mean) - shipped.mean).abs().max().item()
)
antisymmetric = int((asymmetry(shipped.identity_basis) > 0.5).sum())
numbers["antisymmetric_modes"] = antisymmetric
print(f"facelab's model: {antisymmetric} of 128 modes are antisymmetric, all of them and the mean ", end="")
print(f"exactly (largest deviation {numbers['symmetry_error_mm']} mm)")

# %% [markdown]
# Adding the mirror images doubles the data for free and makes the covariance commute with $M$; then every
# mode (of a simple eigenvalue) is of one kind. facelab's build script does the same by decomposing the two
# parts apart. What it buys: a face that is given from one side only has a well-defined other side.

# %%
parity = torch.where(asymmetry(shipped.identity_basis) > 0.5, -1.0, 1.0)
lopsided = everybody[asymmetry(everybody - shipped.mean).argmax()]
even, odd = 0.5 * (lopsided + mirrored(lopsided)), 0.5 * (lopsided - mirrored(lopsided))
odd_mm = odd.square().sum(-1).mean().sqrt().item()
print(f"the most lopsided person's antisymmetric part: {odd_mm:.2f} mm RMS")
image_grid(
    [picture(x) for x in (lopsided, even, even + 6 * odd, mirrored(even + 6 * odd))],
    ["a person", "symmetric part", "antisymmetric × 6", "... in the mirror"],
    inches=1.3,
)

# %% [markdown]
# ### Exercise 3 (easy, 5 minutes)
#
# Your friend looks at you in a mirror. Which coefficients does she see? No mesh is needed: use `parity`
# (Ki,), which is +1 for symmetric modes and −1 for antisymmetric ones.


# %% tags=["solution"]
def in_the_mirror(identity: Tensor, parity: Tensor) -> Tensor:
    """The identity coefficients (..., Ki) of the mirror image; parity (Ki,) is +1 or -1."""
    # SOLUTION
    return parity * identity


# %%
checks.register(
    checks.Exercise(
        name="coefficients in the mirror",
        task="f(identity (N, K), parity (K,) of ±1) -> (N, K): the coefficients of the mirrored faces.",
        reference=lambda a, p: torch.where(p > 0, a, -a),
        inputs=lambda g: (checks.uniform(g, 4, 9), checks.uniform(g, 9).sign()),
        difficulty=1,
        minutes=5,
        mistakes={
            "A mirror leaves the symmetric modes alone: only the antisymmetric ones change sign.": (
                lambda a, p: -p * a
            ),
            "Not every mode changes sign: a symmetric one looks the same in a mirror.": lambda a, p: -a,
            "The antisymmetric part is still there, with the other sign.": lambda a, p: (p + 1) / 2 * a,
            "The symmetric part is still there, unchanged.": lambda a, p: (p - 1) / 2 * a,
        },
        idea="A symmetric mode is its own mirror image; an antisymmetric one is the negative of it.",
        hint="One multiplication.",
    )
)
checks.check("coefficients in the mirror", in_the_mirror)
someone = shipped.people_identity[:50]
seen, wanted = shipped.vertices(in_the_mirror(someone, parity)), mirrored(shipped.vertices(someone))
gap = (seen - wanted).abs().max().item()
assert gap < 1e-9, f"off by up to {gap:.2f} mm: which modes change when left and right are swapped?"
print(f"✓ the mirror images differ by at most {gap} mm")
numbers["mirror_gap_mm"] = gap

# %% [markdown]
# ## 8 · The prior: a bell curve over faces
#
# With modes scaled by their σ, the population has $\operatorname{cov}(\alpha)=I$, and the model is made a
# probability by *assuming* more: $\alpha\sim N(0,I)$. Is that so? Coefficients of held-out people, which the
# PCA has not seen:

# %%
alpha_test = (test_scans - mean).flatten(1) @ (rows / sigma[:, None]).T
spread = alpha_test.std(0)
figure, axes = plt.subplots(1, 3, figsize=(11, 2.5))
alpha_train = (aligned - mean).flatten(1) @ (rows / sigma[:, None]).T
line = torch.linspace(-3.5, 3.5, 100)
for axis, k in zip(axes, (0, 9)):
    axis.hist(alpha_train[:, k].cpu(), 40, range=(-3.5, 3.5), density=True, color="C0", alpha=0.6)
    axis.plot(line, torch.exp(-(line**2) / 2) / (2 * torch.pi) ** 0.5, "k", lw=1)
    kurtosis = (alpha_train[:, k] ** 4).mean() / (alpha_train[:, k] ** 2).mean() ** 2
    numbers[f"kurtosis_mode_{k + 1}"] = kurtosis.item()
    axis.set(
        title=f"population, mode {k + 1}: kurtosis {kurtosis:.1f} (normal: 3)",
        xlabel=f"$\\alpha_{{{k + 1}}}$",
    )
axes[2].plot(range(1, K + 1), spread.cpu())
axes[2].axhline(1, color="grey", ls=":", lw=1)
axes[2].set(title="standard deviation of held-out coefficients", xlabel="mode", ylim=(0, 2))
plt.tight_layout()
numbers["held_out_spread_first_40"] = spread[:40].mean().item()
print(f"held-out coefficients have a standard deviation of {spread[:40].mean():.2f} on average over 40 modes")

# %% [markdown]
# The variance fits; the shape of the first mode does not: the population has *groups* (sexes, origins), and
# a mixture of groups is flatter than a bell and lopsided where they differ in number. And PCA makes
# coefficients uncorrelated, not independent. Still, the normal prior is what nearly every fitting method
# uses, since $-\log p(\alpha) = \tfrac12\lVert\alpha\rVert^2 + \text{const}$ is the simplest regulariser
# there is. In high dimensions it says something that surprises people: $\lVert\alpha\rVert^2$ is close to
# $K$. The mean face, although the most probable *point*, looks like nobody.

# %%
length = alpha_test.square().sum(1).sqrt()
print(f"‖α‖ of held-out people: {length.mean():.1f} ± {length.std():.1f};  √K = {K**0.5:.1f}")
generator = torch.Generator(DEVICE).manual_seed(SEED + 3)
drawn = mean.flatten() + normal(generator, 5, K) @ basis.flatten(1)
image_grid(
    [picture(mean)] + [picture(face.unflatten(0, (-1, 3))) for face in drawn],
    ["mean face"] + ["α ~ N(0, I)"] * 5,
    inches=1.2,
)

# %% [markdown]
# ### Your model behind facelab's class
#
# `MorphableModel` needs a mean and triangles; whatever else you have makes it richer. Yours borrows the
# mesh's landmarks, and from here on works with everything in the library.

# %%
mine = MorphableModel(
    mean=mean,
    triangles=triangles,
    identity_basis=basis,
    landmark_triangles=shipped.landmark_triangles,
    landmark_weights=shipped.landmark_weights,
    mirror=shipped.mirror,
    name="my first morphable model",
)
agreement = (mine.vertices(alpha_test) - project(test_scans, mean, rows)).abs().max().item()
numbers["class_vs_scratch_mm"] = agreement
print(f"MorphableModel.vertices and the formula above differ by at most {agreement:.1e} mm")
assert agreement < 1e-9
mine.save(out / "my_model.safetensors")
again = MorphableModel.load(out / "my_model.safetensors", dtype=torch.float64)
assert torch.allclose(again.vertices(alpha_test[:3].cpu()), mine.vertices(alpha_test[:3]).cpu())

# %% [markdown]
# ### Exercise 4 (harder, 20 minutes): a whole face from 68 points
#
# Somebody gives you the 68 landmarks $y$ of a face, in 3D and with 1 mm of noise. The landmarks are linear in
# $\alpha$: $y = \bar l + L\alpha + \text{noise}$. With the prior, the most probable face minimises
#
# $$\frac{1}{\tau^2}\lVert \bar l + L\alpha - y\rVert^2 + \lVert\alpha\rVert^2
# \quad\Longrightarrow\quad (L^\top L + \tau^2 I)\,\alpha = L^\top (y-\bar l)$$
#
# with the noise level $\tau$ in mm (Blanz, Mehl, Vetter and Seidel 2004). Without the prior, $\tau\to0$,
# the answer honours the noise.


# %% tags=["solution"]
def complete(model: MorphableModel, landmarks: Tensor, tau: float) -> Tensor:
    """The most probable identity coefficients (N, Ki) for 3D landmarks (N, 68, 3) with noise of `tau` mm."""
    # SOLUTION
    offset = model.landmarks(model.mean)
    design = model.landmarks(model.identity_basis).flatten(1)  # (Ki, 204): landmarks move linearly
    matrix = design @ design.T + tau**2 * torch.eye(len(design)).to(design)
    return torch.linalg.solve(matrix, design @ (landmarks - offset).flatten(1).T).T


# %%
def stacked_least_squares(model: MorphableModel, y: Tensor, tau: float, weight: float = 1.0) -> Tensor:
    """One equation a landmark's coordinate, over tau, and one a coefficient for the prior: |A α - b|²."""
    rows = model.landmarks(model.identity_basis).flatten(1).T / tau
    rows = torch.cat([rows, weight * torch.eye(rows.shape[1]).to(rows)])
    right = (y - model.landmarks(model.mean)).flatten(1) / tau
    right = torch.cat([right, right.new_zeros(len(right), rows.shape[1])], 1)
    return torch.linalg.lstsq(rows, right.T).solution.T


def little_model(generator: torch.Generator) -> tuple[SimpleNamespace, Tensor, float]:
    """A model that is its 68 landmarks, three sets of them, and their noise in mm."""
    mean, basis = checks.uniform(generator, 68, 3, low=-60, high=60), 3 * checks.uniform(generator, 7, 68, 3)
    marks = mean + 4 * checks.uniform(generator, 3, 68, 3)
    return SimpleNamespace(mean=mean, identity_basis=basis, landmarks=lambda x: x), marks, 3.0


checks.register(
    checks.Exercise(
        name="a face from 68 points",
        task="f(model, landmarks (N, 68, 3), tau) -> (N, K): the most probable identity coefficients.",
        reference=stacked_least_squares,
        inputs=little_model,
        difficulty=4,
        minutes=20,
        mistakes={
            "The prior is missing: add tau² to the diagonal.": (
                lambda m, y, tau: stacked_least_squares(m, y, tau, weight=0.0)
            ),
            "tau is squared: the diagonal is a variance.": (
                lambda m, y, tau: stacked_least_squares(m, y, tau**0.5)
            ),
            "Noise makes the prior count more, not less: tau² multiplies the identity.": (
                lambda m, y, tau: stacked_least_squares(m, y, 1 / tau)
            ),
            "Subtract the mean face's landmarks first.": (
                lambda m, y, tau: stacked_least_squares(m, y + m.landmarks(m.mean), tau)
            ),
            "The answer is for a noise of 1 mm whatever tau is.": (
                lambda m, y, tau: stacked_least_squares(m, y, 1.0)
            ),
        },
        idea="Landmarks are linear in α, so both terms are quadratic: set the derivative to zero.",
        hint="Solve (L.T L + tau² I) α = L.T (y - mean): L is the basis' landmarks, flattened.",
    )
)
checks.check("a face from 68 points", complete)

points = mine.landmarks(test_truth)
points = points + normal(torch.Generator(DEVICE).manual_seed(SEED + 4), *points.shape)  # 1 mm
errors = {"mean face": rmse(mine.mean, test_truth)}
for tau in (1e-3, 0.1, 0.3, 1.0, 3.0, 10.0):
    errors[f"τ = {tau:g} mm"] = rmse(mine.vertices(complete(mine, points, tau)), test_truth)
for name, error in errors.items():
    print(f"{name:12} {error:8.2f} mm")


def objective(alpha: Tensor, tau: float = 1.0) -> Tensor:
    """What the most probable coefficients (N, Ki) minimise, (N,)."""
    misses = mine.landmarks(mine.vertices(alpha)) - points
    return misses.square().sum((1, 2)) / tau**2 + alpha.square().sum(1)


found = complete(mine, points, 1.0)
for factor in (0.95, 1.05):
    assert (objective(found) < objective(factor * found)).all(), f"{factor} α is more probable than your α"
best = errors["τ = 1 mm"]
assert best < 0.75 * errors["mean face"], "with the right τ the face should be far better than the mean face"
assert best < errors["τ = 0.001 mm"], "without the prior the answer should be worse"
numbers["completion_mm"], numbers["completion_no_prior_mm"] = best, errors["τ = 0.001 mm"]
guess = mine.vertices(complete(mine, points[:1], 1.0))[0]
wild = mine.vertices(complete(mine, points[:1], 1e-3))[0]
image_grid(
    [picture(test_truth[0]), picture(guess), picture(wild), picture(mine.mean)],
    ["truth", "from 68 points", "without prior", "mean face"],
    inches=1.3,
)

# %% [markdown]
# The prior is what makes reconstruction from a photograph possible at all; notebook 30 is this equation
# with a camera in between. It is also where the model's population decides what you get: everything that
# the data do not say is filled in with the average of the people it was made from.
#
# ## 9 · The model that ships with facelab
#
# The same construction, with more parts, for skin and movement:
#
# $$s = \bar s + \sum_i \alpha_i S_i + \sum_j \delta_j E_j,\qquad a = \bar a + \sum_k \beta_k A_k$$

# %%
model = MorphableModel.load(subdivisions=P["shown"])
for part in (
    "identity_basis",
    "expression_basis",
    "albedo_basis",
    "details",
    "uv",
    "landmark_weights",
    "contour_rows",
):
    print(f"{part:18}{tuple(getattr(model, part).shape)!s:>18}")
print("regions:", ", ".join(f"{name} ({int(model.region_vertices(name).sum())})" for name in model.regions))
print(
    "licence:",
    model.metadata["licence"],
    "· people:",
    model.metadata["people"],
    "· skins:",
    model.metadata["skins"],
)

# %% [markdown]
# ### Levels of detail: one matrix
#
# The file holds shapes on a coarse mesh of quads. Catmull-Clark subdivision (1978) makes it finer: each new
# vertex is a fixed weighted average of old ones. So it is **one sparse matrix** $C$, and because it is linear
# it can be applied to the mean and each mode *once*:
# $C\,(\bar s + S\alpha) = C\bar s + (CS)\,\alpha$. This works for your model too.

# %%
coarse, fine = MorphableModel.load(subdivisions=0), MorphableModel.load(subdivisions=1)
quads = coarse.triangles.view(-1, 6)[:, [0, 1, 2, 5]].numpy()  # two triangles of the file are one quad
step = catmull_clark(quads, len(coarse.mean))
lifted = torch.from_numpy(step.matrix @ coarse.mean.double().numpy())
numbers["subdivision_error_mm"] = (lifted - fine.mean.double()).abs().max().item()
print(
    f"C is {step.matrix.shape}, {100 * step.matrix.nnz / np.prod(step.matrix.shape):.2f} % are not zero, ",
    end="",
)
print(f"its rows sum to 1 (± {abs(step.matrix.sum(1) - 1).max():.0e})")
print(f"C · mean is facelab's finer mean to {numbers['subdivision_error_mm']:.0e} mm")
assert numbers["subdivision_error_mm"] < 1e-3
assert np.array_equal(triangulate(step.quads), fine.triangles.numpy())


def facets(m: MorphableModel, size: int = 200, zoom: float = 4.0) -> Tensor:
    """(3, H, W): the triangles around one eye, each with vertices of its own: one shade of grey."""
    view = close_camera(size)
    eye = view.project(m.landmarks(m.mean)[36:42]).mean(0)[:2]
    view = replace(view, focal=zoom * view.focal, principal=size / 2 - zoom * (eye - view.principal))
    corners = m.mean[m.triangles].flatten(0, 1)
    return geometry_image(corners, torch.arange(len(corners)).view(-1, 3), view, size, size)


levels = [MorphableModel.load(subdivisions=level) for level in range(3)]
titles = [f"{level} steps: {len(m.mean)} vertices" for level, m in enumerate(levels)]
image_grid([facets(m) for m in levels], titles, inches=1.8)

# %% [markdown]
# ### Expressions: a second, additive basis
#
# What a face *does* is kept apart from what it *is*. Our expression basis is a PCA of facial actions (ARKit's
# 51 and MakeHuman's), about the *neutral* face, not the average one: $\delta = 0$ is a face at rest. Named
# actions are stored as coefficients. Adding the same displacement to everybody is an approximation: a
# thin-lipped person smiles otherwise than a full-lipped one. Bilinear models (Vlasic et al. 2005,
# FaceWarehouse 2014) multiply instead of adding.

# %%
action = dict(zip(model.action_names, model.actions))
small = close_camera(P["size"])


def shape_picture(identity: Tensor | None, expression: Tensor | None, colour: Tensor | None = None) -> Tensor:
    vertices = model.vertices(identity, expression)
    return geometry_image(vertices, model.triangles, small, P["size"], P["size"], colour)


smile = action["mouthSmileLeft"] + action["mouthSmileRight"]
shown = {
    "jawOpen": action["jawOpen"],
    "mouthSmile": smile,
    "jawOpen + smile": action["jawOpen"] + smile,
    "mouthPucker": action["mouthPucker"],
    "eyeBlinkLeft": action["eyeBlinkLeft"],
    "browInnerUp": action["browInnerUp"],
}
image_grid([shape_picture(None, d) for d in shown.values()], list(shown), inches=1.15)

# %% [markdown]
# Identity and expression bases overlap: a wide mouth looks a little like a smile. How much of the
# expressions can identity imitate? For each basis vector $E_j$, the share of it that lies in the span of the
# identity basis:

# %%
span = torch.linalg.qr(shipped.identity_basis.flatten(1).T)[0]
unit = torch.nn.functional.normalize(shipped.expression_basis.flatten(1), dim=1)
imitated = (unit @ span).square().sum(1)
numbers["expression_imitated_mean"] = imitated.mean().item()
print(f"on average {100 * imitated.mean():.0f} %, for expression 1 {100 * imitated[0]:.0f} %")

# %% [markdown]
# So one picture of a smiling stranger does not tell how wide the mouth is at rest. Several pictures of one
# person do, if they share $\alpha$ (notebook 30).
#
# ### Skin: diffuse and specular albedo with one coefficient vector
#
# Albedo is a PCA too, over four channels per vertex: linear diffuse red, green, blue, and the specular
# reflectance $F_0$. One vector β drives both (Smith et al. 2020), so the model knows how
# colour and gloss go together. The basis holds what is smooth; hair and pores live in a *detail* layer
# that multiplies, $a\,(1+d)$, and that no method fits.


# %%
def albedo_picture(coefficients: Tensor | None, detail: int | None = None) -> tuple[Tensor, Tensor]:
    """(3, H, W) diffuse albedo and (1, H, W) specular F0 times 15, on white."""
    diffuse, specular = model.albedo(coefficients, detail)
    attributes = torch.cat([diffuse, specular[:, None]], -1)
    values, mask = render_attributes(model.mean, model.triangles, small, attributes, P["size"], P["size"])
    diffuse_map = torch.where(mask, linear_to_srgb(values[:3]), 1.0)
    return diffuse_map, torch.where(mask, 15 * values[3:], 1.0)


beta = torch.zeros(4, 80)
for row, (mode, strength) in enumerate(((0, -2.0), (0, 2.0), (1, 2.0)), 1):
    beta[row, mode] = strength
pairs = [albedo_picture(b) for b in beta] + [albedo_picture(None, 16)]
titles = ["mean", "mode 1: −2σ", "mode 1: +2σ", "mode 2: +2σ", "mean + a detail"]
image_grid([a for a, _ in pairs] + [s for _, s in pairs], titles, columns=5, inches=1.2)

# %% [markdown]
# Above diffuse albedo, below $F_0$ (times 15). Mode 1 is skin tone:

# %%
energy = model.albedo_basis.square().mean((1, 2))
numbers["albedo_mode_1_share"] = (energy[0] / energy.sum()).item()
print(f"it holds {100 * energy[0] / energy.sum():.0f} % of the basis' variance")

# %% [markdown]
# ### Landmarks that slide, and regions
#
# 68 landmarks (iBUG order) are barycentric points on triangles. 51 of them are anatomical. The 17 on the jaw
# are not: in a photograph, annotators click the visible *contour*, and on a turned head that is another line
# on the skin. Each jaw landmark has a row of vertices across the cheek, and slides to the one that lies
# furthest out in the picture.

# %%
yaw = 40.0
rotation = euler_to_matrix(torch.tensor([0.0, np.radians(yaw), 0.0])).float()
turned = model.mean @ rotation.mT
fixed, sliding = model.landmarks(model.mean), model.landmarks(model.mean, rotation)
moved_mm = (fixed - sliding).norm(dim=-1)[:17]
numbers["jaw_slides_mm"] = moved_mm.max().item()
palette = torch.tensor([[0.6, 0.6, 0.6], [0.75, 0.15, 0.2], [0.9, 0.6, 0.1], [0.2, 0.4, 0.8], [0.3, 0.1, 0.1],
                        [0.9, 0.9, 0.85]])  # fmt: skip
colour = palette[0].repeat(len(model.mean), 1)
for name, value in zip(model.regions[1:], palette[1:]):
    colour[model.region_vertices(name)] = value

figure, axes = plt.subplots(1, 4, figsize=(10, 2.6))
jaw_open = model.vertices(expression=action["jawOpen"])
views = (
    (model.mean, None, "regions", colour),
    (jaw_open, None, "regions, jaw open", colour),
    (turned, fixed @ rotation.mT, "turned by 40°: fixed landmarks", None),
    (turned, sliding @ rotation.mT, "sliding jaw landmarks", None),
)
side = 3 * P["size"] // 2
big = close_camera(side, 0.95)
for axis, (vertices, marks, title, tint) in zip(axes, views):
    image = geometry_image(vertices, model.triangles, big, side, side, tint)
    axis.imshow(image.permute(1, 2, 0))
    if marks is not None:
        where = big.project(marks)
        axis.plot(*where[17:, :2].T, ".", ms=3, color="C0")
        axis.plot(*where[:17, :2].T, ".-", ms=5, lw=0.7, color="C3")
    axis.set_title(title)
    axis.axis("off")
plt.tight_layout()
print(f"at a yaw of {yaw:.0f}° the jaw landmarks slide by up to {moved_mm.max():.0f} mm")

# %% [markdown]
# ### Everything on sliders
#
# One function draws a person. It is first called plainly, so that an error is an error of this notebook.

# %%
layout = ParameterLayout(identity=128, expression=64, albedo=80, rotation=3)
draft = MorphableModel.load(subdivisions=0)


def soft_light() -> BlinnPhongLight:
    """A bright room, a large lamp from the upper left, and its soft highlight."""
    colour = torch.tensor([1.0, 0.97, 0.93])
    lamp = torch.tensor([-0.5, 0.6, 0.9])
    harmonics = ambient_to_sh(0.6 * colour) + directional_to_sh(lamp, 0.75 * colour)
    return BlinnPhongLight(harmonics, 2000 * lamp, 0.5 * colour, torch.tensor(14.0))


def draw_person(theta: Tensor, quick: bool = False, detail: int | None = None) -> Tensor:
    """(3, H, W) sRGB; with `quick` on the coarse mesh."""
    part = layout.split(theta)
    m = draft if quick else model
    vertices = m.vertices(part["identity"], part["expression"])
    diffuse, specular = m.albedo(part["albedo"], detail)
    size = 2 * P["size"]
    view = close_camera(size, 1.1)
    turn = euler_to_matrix(part["rotation"])
    white = torch.ones(3, size, size)
    image = render(vertices @ turn.mT, m.triangles, view, soft_light(), diffuse, specular, size, size,
                   antialias=True, background=white).image  # fmt: skip
    return image.clamp(0, 1)


plain = draw_person(layout.zeros(), quick=True)
assert plain.shape == (3, 2 * P["size"], 2 * P["size"]) and plain.std() > 0.05

# %%
start = layout.zeros()
start[layout.slice("identity")][0] = 1.0
start[layout.slice("expression")] = 0.6 * smile
start[layout.slice("rotation")] = torch.tensor([0.0, 0.35, 0.0])
ParameterSliders(layout, draw_person, start=start)

# %% [markdown]
# (The sliders need a running kernel; without one you see the first picture.)
#
# ### Twelve people
#
# `model.sample` draws identity and albedo *together*, as those of one of the 1,600 people mixed with
# normal noise (0.3 of the standard deviation): independent normal numbers would put anybody's skin on
# anybody's bones, and a beard on any chin. Expressions are sparse mixtures of one to four actions. All
# under the same light, from the same camera:

# %%
generator = torch.Generator().manual_seed(SEED + 1)
drawn = model.sample(12, generator, expression_scale=0.4)
detail = torch.randint(len(model.details), (12,), generator=generator).tolist()
sheet = []
for i in range(12):
    theta = layout.join({k: v[i] for k, v in drawn.items()} | {"rotation": torch.zeros(3)})
    sheet.append(draw_person(theta, detail=detail[i]))
image_grid(sheet, columns=6, inches=1.35)

# %% [markdown]
# A face detector finds such faces, and a face recogniser tells them apart;
# `benchmarks/face_model_plausibility.py` measures how often. They do not pass for photographs: no hair, no
# neck, no ears, no pores that were measured, no light that travels under the skin.

# %% [markdown]
# ## 10 · Who is in the model, and who is not
#
# **Source.** Shapes: 2,000 adults drawn from MakeHuman's shape targets. Those were sculpted by artists and
# released under CC0; *they are not scans*, and nobody was measured. Skins: 1,600 drawn by a pigment model
# (melanin and blood in two layers of skin, computed over the visible spectrum) with procedural freckles,
# brows and beards, tuned by eye. The distributions (three "ancestries", two sexes with few people in
# between, ages from young adult to old) are **our choices** in `data_scripts/makehuman.py` and `skin.py`.
# The model is CC0 as well, so anything may be built on it, and so its builders must say what it does not
# know:
#
# - *Origin* is three artists' archetypes, their names MakeHuman's, and mixtures of them. Whole regions of the
#   world (South Asia, the Americas, Oceania, the Middle East) exist only as blends of the three.
# - No children. No facial differences: no cleft lip, no scars, no vitiligo, no make-up, no piercings, no
#   surgery, no craniofacial syndromes, no paralysis. All of these people get reconstructed as somebody else.
# - Age acts as a slider does, smoothly; deep individual wrinkles are not there.
# - How traits go together (beards with male shapes, skin tone with bone structure) follows our sampling,
#   not a census. A model of this kind must never be used to *infer* origin, sex or age from a face.

# %% [markdown]
# The file has no labels, so we group by what can be measured: skin tone as the individual typology angle
# $\mathrm{ITA} = \arctan\frac{L^*-50}{b^*}$ of the mean skin colour (Chardon et al. 1991). Group means:

# %%
skin = shipped.region_vertices("skin")
diffuse, _ = shipped.albedo(shipped.people_albedo)  # (N, V, 3)
lab = rgb2lab(linear_to_srgb(diffuse[:, skin].mean(1)).cpu().numpy())
ita = torch.from_numpy(np.degrees(np.arctan2(lab[:, 0] - 50, lab[:, 2])))
order = ita.argsort().to(DEVICE)
third = len(order) // 3
groups = {
    "darkest third": order[:third],
    "middle third": order[third:-third],
    "lightest third": order[-third:],
}


def group_picture(members: Tensor) -> Tensor:
    theta = layout.zeros()
    theta[layout.slice("identity")] = shipped.people_identity[members].mean(0).float().cpu()
    theta[layout.slice("albedo")] = shipped.people_albedo[members].mean(0).float().cpu()
    return draw_person(theta)


for name, members in groups.items():
    angles = ita[members.cpu()]
    key = name.split()[0]
    numbers[f"ita_{key}"] = angles.mean().item()
    print(f"{name:15}: ITA {angles.min():.0f}° to {angles.max():.0f}°, mean {angles.mean():.0f}°")
image_grid(
    [group_picture(order)] + [group_picture(members) for members in groups.values()],
    ["everybody's mean", *groups],
    inches=1.5,
)

# %% [markdown]
# (ITA above 41° is called light, below −30° dark; the labels are dermatology's.) Skin tone and shape go
# together here because both were drawn given ancestry; the mean face of everybody is nobody's.
#
# **What does it cost to be left out?** Learn two models of the same size: one from all, one from the
# lightest third only. Test both on people that neither has seen.

# %%
generator = torch.Generator(DEVICE).manual_seed(SEED + 2)
n, components = P["group"], 40
mixed_order = torch.randperm(len(order), generator=generator, device=DEVICE)
test_each = 100
held = {name: members[torch.randperm(len(members), generator=generator, device=DEVICE)[:test_each]]
        for name, members in groups.items()}  # fmt: skip
unseen = torch.cat(list(held.values()))
available = mixed_order[~torch.isin(mixed_order, unseen)]
light_only = available[torch.isin(available, groups["lightest third"])][:n]
training = {"everybody": available[: len(light_only)], "lightest third only": light_only}
shape_of = shipped.vertices(shipped.people_identity).flatten(1)  # (N, 3V) mm
skin_of = diffuse[:, skin].flatten(1)


def skin_rmse(estimate: Tensor, truth: Tensor) -> float:
    """In 8-bit sRGB levels."""
    gap = linear_to_srgb(estimate.clamp(0.004, 1)) - linear_to_srgb(truth)
    return 255 * gap.square().mean(1).sqrt().mean().item()


print(f"{len(light_only)} people each, {components} components. Errors: shape (mm), skin (levels of 255)")
print(f"{'learned from':22}" + "".join(f"{name:>22}" for name in held))
for source, members in training.items():
    cells = []
    shape_mean, shape_rows, _ = pca(shape_of[members], components)
    skin_mean, skin_rows, _ = pca(skin_of[members], components)
    for name, tested in held.items():
        x, c = shape_of[tested], skin_of[tested]
        x_hat = shape_mean + (x - shape_mean) @ shape_rows.T @ shape_rows
        c_hat = skin_mean + (c - skin_mean) @ skin_rows.T @ skin_rows
        mm = rmse(x_hat.unflatten(1, (-1, 3)), x.unflatten(1, (-1, 3)))
        levels = skin_rmse(c_hat, c)
        cells.append(f"{mm:12.2f} mm {levels:6.2f}")
        key = f"{'all' if source == 'everybody' else 'light'}_on_{name.split()[0]}"
        numbers[f"group_mm_{key}"], numbers[f"group_skin_{key}"] = mm, levels
    print(f"{source:22}" + "".join(cells))

# %% [markdown]
# The people left out pay, in shape and above all in skin. The average error over a test set like the training
# set would not have shown it. So report errors per group, and ask of every model, this one included, who was
# in it.
#
# ## 11 · Other models behind the same class
#
# What other people have measured can take the place of what we made up. Converters in `data_scripts/` write a
# file that `MorphableModel.load(path)` reads, in millimetres, our axes, and standard deviations; its
# `README.md` says where each file is had.
#
# | model | from | terms | script |
# |---|---|---|---|
# | ICT-FaceKit Light | Light Stage scans | MIT | `convert_ict_facekit.py` |
# | Basel Face Model 2009 | 200 scans | non-commercial, do not pass on | `convert_bfm2009.py` |
# | Basel Face Model 2017, 2019 | scans | research and teaching, do not pass on | `convert_bfm2017.py` |
# | AlbedoMM | Light Stage captures of 73 people | academic research | `convert_albedomm.py` |
# | FLAME | thousands of scans | per version; 2023 Open is CC BY 4.0 | `convert_flame.py` |

# %% [markdown]
# **What you have now.** A face as a point in a linear space, the prior over it, and its limits. Notebook 20
# draws it, 21 lights it, 30 finds the point for a photograph.
#
# **Sources.** Blanz and Vetter, *A morphable model for the synthesis of 3D faces*, SIGGRAPH 1999. Egger et
# al., *3D morphable face models: past, present, and future*, TOG 2020. Gower, *Generalized Procrustes
# analysis*, Psychometrika 1975. Kabsch 1976; Umeyama, TPAMI 1991. Davies, *Learning shape: optimal models for
# analysing natural variability*, 2002; Styner et al., IPMI 2003. Blanz, Mehl, Vetter, Seidel, *A statistical
# method for robust 3D surface reconstruction from sparse data*, 3DPVT 2004. Amberg, Romdhani, Vetter,
# *Optimal step nonrigid ICP*, CVPR 2007. Smith et al., *A morphable face albedo model*, CVPR 2020. Catmull
# and Clark 1978. Vlasic et al., SIGGRAPH 2005; Cao et al., *FaceWarehouse*, TVCG 2014. Chardon, Cretois,
# Hourseau, *Skin colour typology and suntanning pathways*, 1991.

# %%
(out / "numbers.json").write_text(json.dumps(numbers, indent=1))
for key, value in numbers.items():
    print(f"{key:32} {value:.6g}")
