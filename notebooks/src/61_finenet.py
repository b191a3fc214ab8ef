# %% [markdown]
# # 61 · FineNet: wrinkles from shading
#
# No face model spans the wrinkles of one person. FineNet (Richardson et al., CVPR 2017, Section 4) leaves the
# model and works on a depth map: a coarse one and the picture go in, a fine one comes out, and *nobody ever
# shows it a true one*. What trains it is a question that shape from shading has asked since the 1970s: if the
# surface were this, would it look like the picture? You will build that criterion term by term (equations 8
# to 14), optimise it for single pictures as it was done before networks, train a miniature that learns to say
# the result at once, put the detail on a mesh that opens in Blender, and see what no criterion of this kind
# can tell apart.
#
# **What you will learn**
#
# - to write a loss that asks whether a surface would look like the picture, and needs no truth
# - to get light and albedo out of one picture by least squares, with a face model's help
# - to read printed weights together with the unit of what they weigh
# - to say what shading leaves open: bas-relief, and what is painted
#
# **Time:** 75 minutes, with exercises 105. **Before this:** notebooks 21 (image formation), 60 (CoarseNet,
# and the layer that draws its depth map). Sections, equations and figures named here are those of the paper.

# %%
import json
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from skimage.data import astronaut
from torch import Tensor

from facelab.course import checks
from facelab.course.notebook import begin
from facelab.course.viewer import fit_camera, geometry_image, image_grid
from facelab.export import export_glb, relief_normals, textured_mesh, with_relief
from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.methods.coarse_to_fine import CoarseToFine, EndToEnd
from facelab.methods.coarsenet import CoarseNet, layout
from facelab.methods.finenet import WEIGHTS, FineNet, View, observe, optimise, skin_maps
from facelab.methods.relief import displaced
from facelab.methods.shading_criterion import first_order, interior, laplacian
from facelab.methods.wrinkles import relief_errors, wrinkled_faces
from facelab.model.morphable_model import MorphableModel
from facelab.networks import encoder
from facelab.rendering.gbuffer import depth_normals

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 120, "axes.titlesize": 10})

# %% tags=["parameters"]
PRESET = "quick"
DEVICE = "cpu"
SEED = 0
OUT_DIR = ""  # folder for the results; "": runs/61_finenet of the repository

# %%
PRESETS = {
    "tiny": {"side": 128, "large": 0, "faces": 2, "steps": 40, "width": 4, "batches": 4, "training": 40,
             "photo": 128},
    "quick": {"side": 144, "large": 288, "faces": 2, "steps": 50, "width": 6, "batches": 4, "training": 50,
              "photo": 200},
    "full": {"side": 200, "large": 400, "faces": 8, "steps": 300, "width": 64, "batches": 1000,
             "training": 50_000, "photo": 400},
}  # fmt: skip
P, out = begin("61_finenet", globals(), PRESETS)
numbers: dict[str, float] = {}  # what this notebook measures; written to OUT_DIR/numbers.json at the end

model = MorphableModel.load()
WRINKLED = 1.5  # how deep the folds of our faces are, beside people's


def normal_picture(depth: Tensor, mask: Tensor, camera: WeakPerspectiveCamera) -> Tensor:
    """The normals of depth maps (B, 1, S, S) as colours."""
    return (0.5 + 0.5 * depth_normals(depth, camera)) * mask


# %% [markdown]
# `side`: px of the pictures, 200 in the paper; `steps` of each optimisation; `width` 64 is the paper's
# network. For a network to use, run `data_scripts/train_finenet.py`, with a folder of photographs or without.
#
# ## 1 · Faces with folds, and their coarse depth
#
# A truth to measure against: faces of our model into which furrows of random place, length, width and depth
# are cut, drawn with nine spherical harmonics of light. The coarse depth map comes from CoarseNet and the
# rendering layer of notebook 60; here it is the face without its folds, so that *only* they are missing:

# %%
faces = wrinkled_faces(model, P["faces"], P["side"], torch.Generator().manual_seed(SEED + 5), WRINKLED)
view = observe(model, faces.r, faces.images)
shown = [*faces.images]
shown += [*normal_picture(view.coarse, faces.skin, view.camera)]
shown += [*normal_picture(faces.depth, faces.skin, view.camera)]
print({k: round(v, 2) for k, v in relief_errors(view.coarse, faces).items()}, "of the coarse depth")
image_grid(
    shown, ["picture"] * P["faces"] + ["coarse"] * P["faces"] + ["truth"] * P["faces"], P["faces"], 1.7
)

# %% [markdown]
# ## 2 · Normals of a depth map (Eq. 9)
#
# Light meets normals, so the depth must become normals first:
#
# $$Y(\hat z) = (1, n_x(\hat z), n_y(\hat z), n_z(\hat z)).\tag{9}$$
#
# A pixel is $1/s$ mm wide under weak perspective with $s$ px per mm, so the surface through a pixel rises by
# $s\,\partial z/\partial x$ mm per mm. **Exercise 1** (★★★, 15 minutes): the normals. Our depth grows *away*
# from us, the picture's y runs down, the normal's up.


# %%
def _normals(depth: Tensor, scale: float) -> Tensor:
    camera = WeakPerspectiveCamera.frontal(scale, *depth.shape)
    return depth_normals(depth[None], camera)


def _sheet(g: torch.Generator) -> tuple[Tensor, float]:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 14), torch.linspace(-1, 1, 17), indexing="ij")
    a, b, c, d = torch.randn(4, generator=g)
    return 100 + 5 * (a * x + b * y) + 3 * (c * x * y + d * x**2), float(0.5 + torch.rand(1, generator=g))


# %%
checks.register(
    checks.Exercise(
        name="normals of a depth map",
        task="f(depth (H, W) mm, scale px per mm) -> (3, H, W): unit normals with +x right, +y up, +z to "
        "us. Central differences inside, one-sided at the border, as torch.gradient has them.",
        reference=_normals,
        inputs=_sheet,
        difficulty=3,
        minutes=15,
        mistakes={
            "A step of a pixel is 1 / scale mm: the slope is scale times the difference.": (
                lambda z, s: _normals(z, 1.0)
            ),
            "Depth grows away from us: turn the signs of the slopes.": lambda z, s: _normals(-z, s),
            "The picture's rows run down, +y is up.": (
                lambda z, s: _normals(z, s) * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
            ),
            "A normal has length 1.": lambda z, s: _normals(z, s) / _normals(z, s)[2:],
            "torch.gradient gives the slope down the rows first, the one to the right second.": (
                lambda z, s: _normals(z, s)[[1, 0, 2]] * torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
            ),
            "Multiply by the scale: mm per mm is mm per px times px per mm.": lambda z, s: _normals(z, 1 / s),
        },
        idea="Two tangents of the surface, one to the right and one down, and what is perpendicular to both.",
        hint="down, right = torch.gradient(depth); (scale right, -scale down, 1), made a unit vector.",
        tolerance=1e-3,
    )
)
print(checks.describe("normals of a depth map"))


# %% tags=["solution"]
def normals_of(depth: Tensor, scale: float) -> Tensor:
    """(H, W) mm -> (3, H, W)."""
    # SOLUTION
    down, right = torch.gradient(depth)
    n = torch.stack([scale * right, -scale * down, torch.ones_like(depth)])
    return n / n.norm(dim=0)


# %%
checks.check("normals of a depth map", normals_of)
theirs = depth_normals(view.coarse, view.camera)[0]
mine = normals_of(view.coarse[0, 0], float(view.camera.scale[0]))
numbers["normals_vs_library"] = float((mine - theirs).abs()[:, interior(view.mask)[0, 0]].max())
print(f"largest difference on a face {numbers['normals_vs_library']:.1e}")
assert numbers["normals_vs_library"] < 1e-3

# %% [markdown]
# ## 3 · Light and albedo (Eqs. 10 to 12)
#
# The intensity is albedo times shading, $\rho\,\langle\vec l,\vec Y\rangle$, and both factors are unknown. A
# face lets us tell them apart: with the *mean* albedo $\hat\rho=\mu_T$ and the coarse depth $z_0$ the light
# is a linear least squares problem with four unknowns,
#
# $$\vec l^* = \operatorname*{argmin}_{\vec l}\bigl\lVert\hat\rho\,\langle\vec l,\vec Y(z_0)\rangle -
# I\bigr\rVert_2^2. \tag{11}$$
#
# **Exercise 2** (★★★, 15 minutes).


# %%
def _light(intensity: Tensor, normals: Tensor, albedo: Tensor, mask: Tensor) -> Tensor:
    """Eq. 11, to compare with."""
    rows = (albedo * torch.cat([torch.ones_like(normals[:1]), normals]))[:, mask].T
    return torch.linalg.lstsq(rows, intensity[mask][:, None]).solution[:, 0]


def _lit(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normals = torch.nn.functional.normalize(torch.randn(3, 9, 8, generator=g), dim=0)
    albedo, mask = 0.3 + torch.rand(9, 8, generator=g), torch.rand(9, 8, generator=g) > 0.3
    light = torch.randn(4, generator=g)
    drawn = albedo * (light[0] + torch.einsum("k,khw->hw", light[1:], normals))
    return drawn + 0.1 * torch.randn(9, 8, generator=g), normals, albedo, mask


# %%
checks.register(
    checks.Exercise(
        name="light by least squares",
        task="f(intensity (H, W), normals (3, H, W), albedo (H, W), mask (H, W) bool) -> (4,): Eq. 11 over "
        "the mask.",
        reference=_light,
        inputs=_lit,
        difficulty=3,
        minutes=15,
        mistakes={
            "Only the mask's pixels are equations.": lambda i, n, a, m: _light(i, n, a, m | True),
            "Each row is multiplied by its albedo.": lambda i, n, a, m: _light(i, n, a * 0 + 1, m),
            "Intensity over albedo is another problem: an error at a dark pixel would count more.": (
                lambda i, n, a, m: _light(i / a, n, a * 0 + 1, m)
            ),
            "Y begins with the constant 1.": lambda i, n, a, m: _light(i, n, a, m).roll(-1),
            "Four unknowns: the constant is missing.": lambda i, n, a, m: torch.linalg.lstsq(
                (a * n)[:, m].T, i[m][:, None]
            ).solution[:, 0],
        },
        idea="Every pixel of the mask is one linear equation; what stands before the four unknowns?",
        hint="A[:, k] = albedo · Y_k for the mask's pixels; torch.linalg.lstsq(A, b).solution.",
        tolerance=1e-3,
    )
)
print(checks.describe("light by least squares"))


# %% tags=["solution"]
def light_of(intensity: Tensor, normals: Tensor, albedo: Tensor, mask: Tensor) -> Tensor:
    """Eq. 11 -> (4,)."""
    # SOLUTION
    basis = torch.cat([torch.ones_like(normals[:1]), normals])
    rows = (albedo * basis)[:, mask]
    return torch.linalg.solve(rows @ rows.T, rows @ intensity[mask])


# %%
checks.check("light by least squares", light_of)

# %% [markdown]
# With that light the albedo is another one, in the face model's first ten components,
#
# $$\rho\approx T = \mu_T + A_T\alpha_T,\tag{10}$$
# $$\alpha_T^* = \operatorname*{argmin}_{\alpha_T}\bigl\lVert(\mu_T + A_T\alpha_T)\langle\vec l^*,\vec
# Y(z_0)\rangle - I\bigr\rVert_2^2.\tag{12}$$
#
# The paper's intensities have a unit that it does not name. Ours are divided by their mean over the skin:
# then a fold of dark skin weighs as much as one of light skin, which an error in absolute intensities does
# not grant. From scratch:

# %%
camera, skin, albedos = skin_maps(model, faces.r, P["side"])
share = torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]
grey = (albedos * share).sum(-3)  # (B, 1 + 10, S, S): the mean and the components
k, where = 0, skin[0, 0]
intensity, mean = view.intensity[k, 0], grey[k, 0]
light = light_of(intensity, depth_normals(view.coarse, camera)[k], mean, where)
shading = torch.einsum("k,khw->hw", light, first_order(depth_normals(view.coarse, camera)[k]))
rows = (grey[k, 1:] * shading)[:, where].T
alpha = torch.linalg.lstsq(rows.double(), (intensity - mean * shading)[where][:, None].double()).solution[
    :, 0
]
rho = mean + torch.einsum("k,khw->hw", alpha.float(), grey[k, 1:])
numbers["light_vs_library"] = float((light - view.light[k, 0]).abs().max() / light.abs().max())
numbers["albedo_vs_library"] = float((rho - view.albedo[k, 0]).abs()[where].mean() / rho[where].mean())
print("light", [round(v, 2) for v in light.tolist()], {k: f"{v:.1e}" for k, v in numbers.items()})
explained = (rho * shading - intensity)[where].square().mean() / (intensity[where] - 1).square().mean()
numbers["unexplained_share"] = float(explained)
print(f"of the variance of the intensity {1 - numbers['unexplained_share']:.0%} are explained (Figure 6):")
image_grid([part[None] * where for part in (intensity / 2, rho * shading / 2, rho, shading / 4)],
           ["intensity", "explained", "albedo", "shading"], inches=1.7)  # fmt: skip

# %% [markdown]
# ## 4 · The criterion (Eqs. 8, 13, 14)
#
# $$E_{sh} = \bigl\lVert\rho\,\langle\vec l,\vec Y(\hat z)\rangle - I\bigr\rVert_2^2\tag{8}$$
# $$E_f = \lVert\hat z - z_0\rVert_2^2,\qquad E_{sm} = \lVert\Delta\hat z\rVert_1\tag{13}$$
# $$L = \lambda_{sh}E_{sh} + \lambda_f E_f + \lambda_{sm}E_{sm},\qquad
# \lambda = (1,\ 5\cdot10^{-3},\ 1)\tag{14}$$
#
# with light and albedo as constants: they were found with $z_0$, and the gradient is taken with respect to
# $\hat z$.
#
# **Exercise 3** (★★, 10 minutes): the smoothness term. The $\ell_1$ norm is what lets a fold be: squared, one
# sharp bend would cost more than a hundred slight ones.


# %%
def _smoothness(depth: Tensor) -> Tensor:
    return laplacian(depth[None])[0, 1:-1, 1:-1].abs().mean()


# %%
checks.register(
    checks.Exercise(
        name="smoothness of a depth map",
        task="f(depth (H, W)) -> (): the mean of |Δz| over the pixels that have four neighbours, with the "
        "five-point Laplacian: the four neighbours minus four times the middle.",
        reference=_smoothness,
        inputs=lambda g: (torch.randn(9, 11, generator=g),),
        difficulty=2,
        minutes=10,
        mistakes={
            "ℓ1: absolute values, not squares.": lambda z: laplacian(z[None])[0, 1:-1, 1:-1].square().mean(),
            "The absolute value comes before the mean.": lambda z: (
                laplacian(z[None])[0, 1:-1, 1:-1].mean().abs()
            ),
            "Leave the border out.": lambda z: laplacian(z[None])[0].abs().mean(),
            "The mean over the pixels, not the sum.": lambda z: laplacian(z[None])[0, 1:-1, 1:-1].abs().sum(),
            "The neighbours' sum minus four times the middle, not their mean minus the middle.": lambda z: (
                _smoothness(z) / 4
            ),
            "Both directions are added before the absolute value.": lambda z: (
                z.diff(n=2, dim=0)[:, 1:-1].abs() + z.diff(n=2, dim=1)[1:-1].abs()
            ).mean(),
            "Those are slopes; the Laplacian has second differences.": lambda z: (
                (z[1:-1, 2:] - z[1:-1, 1:-1]).abs() + (z[2:, 1:-1] - z[1:-1, 1:-1]).abs()
            ).mean(),
        },
        idea="A plane, however steep, costs nothing: it is bending that counts, up or down.",
        hint="Slices: depth[:-2, 1:-1] are the neighbours above.",
    )
)
print(checks.describe("smoothness of a depth map"))


# %% tags=["solution"]
def smoothness_of(depth: Tensor) -> Tensor:
    """(H, W) -> ()."""
    # SOLUTION
    middle = depth[1:-1, 1:-1]
    around = depth[:-2, 1:-1] + depth[2:, 1:-1] + depth[1:-1, :-2] + depth[1:-1, 2:]
    return (around - 4 * middle).abs().mean()


# %%
checks.check("smoothness of a depth map", smoothness_of)


def terms_from_scratch(z: Tensor, k: int) -> dict[str, float]:
    """Eqs. 8 and 13 of picture k, for its depth map z (S, S) mm: means over the skin, depth in px."""
    s, inside = float(view.camera.scale[k]), interior(view.mask)[k, 0]
    drawn = view.albedo[k, 0] * torch.einsum("k,khw->hw", view.light[k, 0], first_order(normals_of(z, s)))
    bent = torch.zeros_like(z)
    bent[1:-1, 1:-1] = z[:-2, 1:-1] + z[2:, 1:-1] + z[1:-1, :-2] + z[1:-1, 2:] - 4 * z[1:-1, 1:-1]
    return {
        "shading": float((drawn - view.intensity[k, 0]).square()[inside].mean()),
        "fidelity": float((s * (z - view.coarse[k, 0])).square()[inside].mean()),
        "smoothness": float((s * bent).abs()[inside].mean()),
    }


truth_like = torch.where(faces.depth > 0, faces.depth, view.coarse)
mine, theirs = terms_from_scratch(truth_like[0, 0], 0), view.loss(truth_like)
numbers["terms_vs_library"] = max(abs(v / float(theirs[name][0]) - 1) for name, v in mine.items())
print(mine, "our weights:", WEIGHTS)
assert numbers["terms_vs_library"] < 2e-2

# %% [markdown]
# **What the printed weights mean.** It depends on the unit of depth. In pixels (ours), with $\lambda_{sm}=1$
# a bend of one pixel costs as much as a wholly wrong intensity: no fold would ever pay. In picture widths of
# 200 px the printed numbers become $5\cdot10^{-3}/200^2 = 1.3\cdot10^{-7}$ and $1/200 = 5\cdot10^{-3}$ in
# pixels. We use what is printed above: more fidelity, because the residual of four numbers of light is a
# *slow* change over the face, and fidelity is what keeps the depth from following it (a slope of wavelength
# $\ell$ gains $\propto 1/\ell$ in shading and pays its height: short folds are cheap, long swells dear).
#
# ## 5 · One picture at a time
#
# Before networks one followed the gradient of Eq. 14 for each picture's own depth map. The control has the
# same steps and no shading term.

# %%
began = time.process_time()
solved = optimise(view, WEIGHTS, P["steps"])
per_picture = (time.process_time() - began) / P["faces"]
blind = optimise(view, replace(WEIGHTS, shading=0.0), P["steps"])
results = {"coarse": view.coarse, "optimised": solved, "without shading": blind}
table = {name: relief_errors(depth, faces) for name, depth in results.items()}
for name, row in table.items():
    print(f"{name:18}" + "".join(f"  {key} {value:6.3f}" for key, value in row.items()))
numbers["folds_coarse"], numbers["folds_optimised"] = (
    table[name]["folds_degrees"] for name in ("coarse", "optimised")
)
numbers["folds_blind"] = table["without shading"]["folds_degrees"]
image_grid([*normal_picture(view.coarse, faces.skin, camera), *normal_picture(solved, faces.skin, camera),
            *normal_picture(faces.depth, faces.skin, camera)],
           ["coarse", *[""] * (P["faces"] - 1), "optimised", *[""] * (P["faces"] - 1), "truth"],
           P["faces"], 1.7)  # fmt: skip

# %% [markdown]
# Where there are folds the normals get better. On the rest of the skin they get *worse*: the coarse depth
# there was perfect, and brows, lips, and what ten components of albedo cannot say are taken for shape. On
# photographs nobody's coarse depth is perfect; still, this is the price. Two remedies, in `observe(...,
# robust=True)` (not in the paper): pixels whose surroundings look unlike their explanation leave the mask,
# and the albedo is corrected where a whole neighbourhood is off, so that only what is smaller than it is left
# to the depth:

# %%
sturdy = observe(model, faces.r, faces.images, robust=True)
solved_sturdy = optimise(sturdy, WEIGHTS, P["steps"])
row = relief_errors(solved_sturdy, faces)
print(f"{'robust':18}" + "".join(f"  {key} {value:6.3f}" for key, value in row.items()))
numbers["folds_robust"], numbers["skin_robust"] = row["folds_degrees"], row["skin_degrees"]
numbers["skin_optimised"] = table["optimised"]["skin_degrees"]

# %% [markdown]
# ## 6 · The network (Section 4.2)
#
# A *hypercolumn* describes every pixel by what all layers say about it: VGG-16 cut off before its third
# pooling, the coarser maps brought back to full size by learned 2×2 upconvolutions, and 1×1 convolutions on
# the column. Fully convolutional: any size goes.

# %%
with torch.device("meta"):
    paper = FineNet(64)
print("numbers in a column:", paper.network.regressor[0].in_channels, "(the paper: 450);",
      f"{sum(p.numel() for p in paper.parameters()) / 1e6:.1f} million weights")  # fmt: skip


def new_network() -> FineNet:
    """FineNet before its training, the same each time; its last layer is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return FineNet(P["width"]).to(DEVICE)


untrained = new_network().eval()
with torch.no_grad():
    for size in (64, 101, 200):
        z = torch.rand(1, 1, size, size)
        whole = torch.ones(1, 1, size, size, dtype=torch.bool)
        assert torch.equal(untrained(torch.rand(1, 3, size, size), z, whole, torch.ones(1)), z)
print("before its training it says the coarse depth, at any size")

# %% [markdown]
# The paper starts from VGG-Face, which nobody can hand out; ours starts from random weights. Training:
# pictures, their coarse depth, and Eq. 14 as the loss. No truth, no labels:

# %% tags=["long"]
train_views: list[tuple[Tensor, View]] = []
for index in range(min(P["batches"], 40)):
    drawn = wrinkled_faces(model, 2, P["side"], torch.Generator().manual_seed(1000 + SEED + index), WRINKLED)
    train_views.append((drawn.images, observe(model, drawn.r, drawn.images, robust=True)))
network = new_network().train()
optimizer = torch.optim.Adam(network.parameters(), 1e-2 if P["width"] < 16 else 1e-4)
losses = []
for step in range(P["training"]):
    images, seen = train_views[step % len(train_views)]
    fine = network(images.to(DEVICE), seen.coarse, seen.mask, seen.camera.scale)
    loss = seen.loss(fine)["total"].mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    for group in optimizer.param_groups:
        group["lr"] = (1e-2 if P["width"] < 16 else 1e-4) * min(1.0, 2 * (1 - step / P["training"]))
    optimizer.step()
    losses.append(float(loss.detach()))
network.eval()
print(f"loss {sum(losses[:4]) / 4:.4f} -> {sum(losses[-4:]) / 4:.4f}")

# %% [markdown]
# On the faces of section 5, which it has not seen, beside the optimisation of the same criterion:

# %%
with torch.no_grad():
    network(faces.images, sturdy.coarse, sturdy.mask, sturdy.camera.scale)  # first calls are slower
    began = time.process_time()
    said = network(faces.images, sturdy.coarse, sturdy.mask, sturdy.camera.scale)
    network_time = (time.process_time() - began) / P["faces"]
for name, depth in (("coarse", sturdy.coarse), ("network", said), ("optimised", solved_sturdy)):
    total, row = float(sturdy.loss(depth)["total"].mean()), relief_errors(depth, faces)
    print(f"{name:10} loss {total:.4f}" + "".join(f"  {key} {value:6.3f}" for key, value in row.items()))
    numbers[f"loss_{name}"] = total
milliseconds = [1000 * seconds for seconds in (per_picture, network_time)]
print("a picture takes {:.0f} ms of a processor by optimisation, {:.0f} by the network".format(*milliseconds))
image_grid([*normal_picture(said, faces.skin, camera), *normal_picture(solved_sturdy, faces.skin, camera)],
           ["network"] * P["faces"] + ["optimised"] * P["faces"], P["faces"], 1.7)  # fmt: skip

# %% [markdown]
# "The fact that the albedo and lighting coefficients are calculated only as part of the loss function means
# that at test time the network can produce accurate results directly": the network sees no light and no
# albedo. It takes a small part of the optimisation's time. A miniature of this size and length has learned
# next to nothing of what that finds, as the table shows; `train_finenet.py` is for hours.
#
# **200 against 400 px** (Figure 11). The network was trained on small pictures and takes larger ones; in
# those a fold covers more pixels, and the criterion can see it (presets above `tiny`; `quick` has smaller
# pictures than the paper):

# %%
if P["large"]:
    again = [
        wrinkled_faces(model, 1, size, torch.Generator().manual_seed(SEED + 5), WRINKLED)
        for size in (P["side"], P["large"])
    ]
    pictures = []
    for one in again:
        seen = observe(model, one.r, one.images, robust=True)
        with torch.no_grad():
            answer = network(one.images, seen.coarse, seen.mask, seen.camera.scale)
        fit = optimise(seen, WEIGHTS, P["steps"])
        rows = {n: relief_errors(d, one)["folds_degrees"] for n, d in
                (("coarse", seen.coarse), ("network", answer), ("optimised", fit))}  # fmt: skip
        print(one.images.shape[-1], "px, folds off by degrees:", {n: round(v, 2) for n, v in rows.items()})
        pictures += [normal_picture(part, one.skin, seen.camera)[0] for part in (answer, fit)]
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.8))
    for axis, part, title in zip(axes, pictures, ("network, small", "optimised, small", "network, large",
                                                  "optimised, large")):  # fmt: skip
        axis.imshow(part.permute(1, 2, 0))
        axis.set(title=title, xticks=[], yticks=[])
    figure.tight_layout()

# %% [markdown]
# ## 7 · A photograph, and the detail on its mesh (Section 4.4)
#
# The shipped CoarseNet (notebook 60) with our miniature FineNet on the astronaut (NASA, public domain), and
# beside it the criterion's own answer. `LandmarkFace`, which fits detected landmarks, can take CoarseNet's
# place.

# %%
photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
coarse = CoarseNet.load()
method = CoarseToFine(coarse, network, P["photo"])
look = method.look(photo)
real = observe(coarse.fine, look.r[None], look.crop.image[None], robust=True)
folds = optimise(real, WEIGHTS, P["steps"])
detail = replace(look.detail, fine=folds[0])
image_grid([look.crop.image, real.drawn[0].expand(3, -1, -1) * real.mask[0] / 2,
            normal_picture(real.coarse, real.coarse > 0, real.camera)[0],
            normal_picture(look.detail.fine[None], real.coarse > 0, real.camera)[0],
            normal_picture(folds, real.coarse > 0, real.camera)[0]],
           ["photograph", "explained", "coarse", "miniature network", "optimised"], inches=2.1)  # fmt: skip

# %% [markdown]
# A depth map is seen from one side only. `displaced` moves the vertices of the face model's finest level
# along the line of sight, and a *normal map* in UV carries what is finer than the mesh: exported as glTF's
# `normalTexture`, it is there in Blender and from every side.

# %%
finest = method.finest
surface = look.face.surface(finest)
vertices = displaced(surface, detail)
normals = relief_normals(finest, surface, detail, 512)
mesh = with_relief(textured_mesh(finest, vertices, surface.diffuse, size=512), normals)
file = export_glb(mesh, out / "astronaut.glb")
rms = float((vertices - surface.vertices).norm(dim=1).square().mean().sqrt())
print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB, vertices moved by {rms:.2f} mm (RMS)")
numbers["moved_mm"] = rms
turned = fit_camera(surface.vertices, 260, 220).look([0.0, 0.5, 0.0])
image_grid([geometry_image(v, finest.triangles, turned, 260, 220) for v in (surface.vertices, vertices)]
           + [(0.5 + 0.5 * mesh.relief)], ["coarse", "with detail", "normal map"], inches=2.4)  # fmt: skip

# %% [markdown]
# **End to end** (Figure 7). With a trained CoarseNet both networks learn together: the criterion's gradient
# goes through FineNet and the depth map to CoarseNet, and a second fidelity term holds CoarseNet near what it
# said before. Here with random networks, to see the gradient arrive; `train_finenet.py --coarse FILE
# --end-to-end` is the real thing.

# %%
small_model = MorphableModel.load(subdivisions=0)
first = encoder("small", layout(small_model).size, "normal", None, 7, torch.Generator().manual_seed(SEED))
both = EndToEnd(small_model, first, new_network().train(), 64, iterations=2)
torch.nn.init.normal_(both.fine.network.regressor[-1].weight, 0.0, 0.1, torch.Generator().manual_seed(SEED))
terms = both(wrinkled_faces(small_model, 2, 64, torch.Generator().manual_seed(SEED)).images)
terms["total"].mean().backward()
flow = {
    name: float(torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm())
    for name, part in (("CoarseNet", both.coarse), ("FineNet", both.fine))
}
print({k: round(float(v.detach().mean()), 4) for k, v in terms.items()}, "gradients:", flow)
numbers["coarse_gradient"] = flow["CoarseNet"]

# %% [markdown]
# ## 8 · What shading cannot tell
#
# **The bas-relief ambiguity.** Under one distant light a surface may be flattened if light and albedo change
# with it: with $z' = \mu z$ every $\rho\,\vec n$ becomes $\rho'\vec n' \propto (n_x, n_y, n_z/\mu)$, and a
# light $(l_x, l_y, \mu\,l_z)$ makes the same picture (Belhumeur et al. 1999). **Exercise 4** (★★★★, 20
# minutes).


# %%
def _bas_relief(normals: Tensor, albedo: Tensor, light: Tensor, flat: float) -> tuple[Tensor, Tensor, Tensor]:
    b = albedo * normals * torch.tensor([1.0, 1.0, 1 / flat])[:, None, None]
    length = b.norm(dim=0)
    return b / length, length, light * torch.tensor([1.0, 1.0, flat])


def _relief_inputs(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    normals = _normals(torch.randn(6, 7, generator=g), 1.0)
    albedo, light = 0.2 + torch.rand(6, 7, generator=g), torch.randn(3, generator=g)
    return normals, albedo, light, float(0.3 + torch.rand(1, generator=g))


def _unnormalised(
    normals: Tensor, albedo: Tensor, light: Tensor, flat: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.cat([normals[:2], normals[2:] / flat]), albedo, _bas_relief(normals, albedo, light, flat)[2]


def _dimmed(normals: Tensor, albedo: Tensor, light: Tensor, flat: float) -> tuple[Tensor, Tensor, Tensor]:
    turned, other, moved = _bas_relief(normals, albedo, light, flat)
    return turned, flat * other, moved


# %%
checks.register(
    checks.Exercise(
        name="bas-relief",
        task="f(normals (3, H, W), albedo (H, W), light (3,), flat) -> (normals, albedo, light) of the "
        "surface with flat times the depth that makes the same picture albedo · <light, normal>.",
        reference=_bas_relief,
        inputs=_relief_inputs,
        difficulty=4,
        minutes=20,
        mistakes={
            "The light changes, too.": lambda n, a, s, f: (*_bas_relief(n, a, s, f)[:2], s),
            "n_z was divided, so l_z has to be multiplied.": lambda n, a, s, f: (
                *_bas_relief(n, a, s, f)[:2],
                _bas_relief(n, a, s, 1 / f)[2],
            ),
            "The albedo changes, too: it is the length of the changed ρ n.": lambda n, a, s, f: (
                _bas_relief(n, a, s, f)[0],
                a,
                _bas_relief(n, a, s, f)[2],
            ),
            "(f n_x, f n_y, n_z) has the right direction, but its picture is f times as bright.": _dimmed,
            "Normals have length one: what is left over goes into the albedo.": _unnormalised,
            "A flatter surface has normals that point more towards us.": lambda n, a, s, f: _bas_relief(
                n, a, s, 1 / f
            ),
        },
        idea="The picture has only <l, ρ n> in it: what is done to one factor is undone in the other.",
        hint="Work with b = ρ n: the picture is <l, b>. Transform b, then split off its length.",
        tolerance=1e-3,
    )
)
print(checks.describe("bas-relief"))


# %% tags=["solution"]
def flattened(normals: Tensor, albedo: Tensor, light: Tensor, flat: float) -> tuple[Tensor, Tensor, Tensor]:
    """(3, H, W), (H, W), (3,) -> the same of a surface with `flat` times the depth."""
    # SOLUTION
    b = torch.cat([normals[:2], normals[2:] / flat]) * albedo
    length = (b * b).sum(0).sqrt()
    return b / length, length, torch.cat([light[:2], flat * light[2:]])


# %%
checks.check("bas-relief", flattened)
lamp = torch.tensor([0.4, 0.3, 0.8])
deep = torch.where(where, faces.depth[0, 0], faces.depth[0, 0][where].mean())
deep = deep - deep[where].mean()  # ten metres away, 32-bit numbers are coarse
n_one = normals_of(deep, float(camera.scale[0]))
skin_rho = rho.clamp(min=0.05)  # least squares may give a pixel less than no albedo
n_flat, rho_flat, lamp_flat = flattened(n_one, skin_rho, lamp, 0.5)
n_half = normals_of(0.5 * deep, float(camera.scale[0]))
numbers["flat_normals_difference"] = float((n_flat - n_half).abs()[:, where].max())
one = skin_rho * torch.einsum("k,khw->hw", lamp, n_one)
other = rho_flat * torch.einsum("k,khw->hw", lamp_flat, n_half)
numbers["same_picture_difference"] = float((one - other).abs()[where].max() / one[where].max())
print(f"half the depth, the same picture: largest difference {numbers['same_picture_difference']:.1e}")
image_grid([one[None].clamp(0, 1) * where, other[None].clamp(0, 1) * where, (0.5 + 0.5 * n_one) * where,
            (0.5 + 0.5 * n_half) * where],
           ["a face", "half as deep, another light", "its normals", "its normals"], inches=1.7)  # fmt: skip

# %% [markdown]
# What breaks the tie here is everything that comes from the face model: the mean albedo, ten components, and
# the coarse depth with its fidelity. Which is also why an error in the *coarse* depth stays.
#
# **Painted or carved?** A dark line may be a fold or ink. We paint stripes on a smooth face and ask for its
# depth:

# %%
smooth = wrinkled_faces(model, 1, P["side"], torch.Generator().manual_seed(SEED + 6), 0.0)
rows_y = torch.arange(P["side"])[:, None].expand(-1, P["side"])
stripes = (rows_y % 10 < 3)[None] & smooth.skin[0] & (rows_y < P["side"] // 2)[None]
painted = torch.where(stripes, 0.85 * smooth.images[0], smooth.images[0])[None]
inventions = {}
for name, images in (("plain", smooth.images), ("painted", painted)):
    seen = observe(model, smooth.r, images, robust=True)
    answer = optimise(seen, WEIGHTS, P["steps"])
    inventions[name] = (images[0], normal_picture(answer, smooth.skin, seen.camera)[0])
    numbers[f"skin_degrees_{name}"] = relief_errors(answer, smooth)["skin_degrees"]
    print(f"{name:8} normals off by {numbers[f'skin_degrees_{name}']:.2f}°")
shown = [part for pair in inventions.values() for part in pair]
image_grid(shown, ["plain", "its depth", "painted", "its depth"],
           inches=1.7)  # fmt: skip

# %% [markdown]
# Make-up, freckles, tattoos and stubble are carved. Nothing in Eq. 14 knows better.
#
# ## 9 · Why it fails when it fails
#
# **Hair and glasses** are no skin. A dark fringe over the forehead, with the paper's criterion and with the
# robust one:

# %%
top = int(torch.nonzero(smooth.skin[0, 0].any(1))[0, 0])
fringe = torch.zeros_like(smooth.skin[0])
fringe[:, top : top + P["side"] // 10] = True
fringe &= smooth.skin[0]
covered = torch.where(fringe, 0.06, smooth.images[0])[None]
hairy = {}
for name, robust in (("paper", False), ("robust", True)):
    seen = observe(model, smooth.r, covered, robust=robust)
    answer = optimise(seen, WEIGHTS, P["steps"])
    hairy[name] = normal_picture(answer, smooth.skin, seen.camera)[0]
    numbers[f"hair_degrees_{name}"] = relief_errors(answer, smooth)["skin_degrees"]
    numbers[f"hair_kept_{name}"] = float((seen.mask[0] & fringe).sum() / fringe.sum())
    off, kept = numbers[f"hair_degrees_{name}"], numbers[f"hair_kept_{name}"]
    print(f"{name:7} normals off by {off:.2f}°, {kept:.0%} "
          "of the hair taken for skin")  # fmt: skip
image_grid([covered[0], *hairy.values()], ["a fringe", *hairy], inches=1.9)

# %% [markdown]
# - **Highlights and cast shadows** are neither albedo nor Eq. 8's shading: a shiny forehead gets a bump.
# - **Light from the camera** (a flash): $\partial I/\partial z$ vanishes for a frontal surface; folds are not
# seen.
# - **A coarse face that lies beside the real one** lends its nose's normals to a cheek.
# - **Noise and JPEG** are small bends; smoothness has to outweigh them, and with them the finest folds.
#
# **What you have now.** A criterion of three terms, its optimum and a network that guesses it, folds on a
# mesh, and two faces, a flat one and a painted one, that no such criterion can tell from what they look like.
#
# ## More exercises
#
# **5.** (★★, 15 minutes) `observe(..., colour=True)` compares RGB, with a light for each channel. Skin's
# redness is albedo, never shade: does colour help with brows and lips? Measure with `relief_errors`.
#
# **6.** (★★★, 30 minutes) Draw the loss and the angle of section 5 against $\lambda_{sm}$ over three decades.
# Do they agree on the best one? What would you go by on photographs, where there is no angle?
#
# **7.** (★★★★, 60 minutes) Train the miniature on your own photographs (`train_finenet.py --photos FOLDER`,
# preset `cpu`) and look at twenty of them coarse and fine. Would a stranger call it wrinkles, or noise?

# %%
(out / "numbers.json").write_text(json.dumps({k: float(v) for k, v in numbers.items()}, indent=1))
print(len(numbers), "numbers")
