# %% [markdown]
# # 40 · InverseFaceNet: learn to invert the renderer
#
# Fitting (notebook 30) solves a new optimisation for every picture, in seconds. InverseFaceNet (Kim et al.,
# CVPR 2018) pays once: it *renders* a large corpus of faces whose parameters are known, trains a network to
# say the parameters from the picture, and then needs one pass per photograph. You will build the corpus,
# train the paper's baseline and its two inventions, the **model-space loss** and **breeding**, measure what
# each of them gains, and see where it fails.
#
# **Time:** 75 minutes, with exercises 105. **Before this:** notebooks 10 (the model), 21 (image formation),
# 30 (fitting). All numbers of the paper are from Kim et al. 2018; sections, equations and tables are theirs.

# %%
import json
import math
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage.data import astronaut
from torch import Tensor

from facelab.course import checks
from facelab.course.notebook import begin, repository
from facelab.course.viewer import geometry_image, image_grid
from facelab.evaluation import metrics
from facelab.evaluation.measures import face_vertices
from facelab.evaluation.scoreboard import load_rows
from facelab.evaluation.test_sets import load_test_set
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods import inversefacenet as ifn
from facelab.methods.breeding import NOISE, breed, detector_noise, synthesise
from facelab.methods.inversefacenet import DISTRIBUTION, FRAME, InverseFaceNet
from facelab.model.morphable_model import MorphableModel
from facelab.networks import last_layer
from facelab.photos import find_face
from facelab.rendering.illumination import SphericalHarmonicsLight
from facelab.rendering.image_formation import render
from facelab.support.errors import FacelabError
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.synthetic.distributions import DISTRIBUTIONS
from facelab.training import Run, batch_indices, load_checkpoint

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 120, "axes.titlesize": 10})

# %% tags=["parameters"]
PRESET = "quick"
DEVICE = "cpu"
SEED = 0
OUT_DIR = ""  # folder for the results; "": runs/40_inversefacenet of the repository

# %%
PRESETS = {
    "tiny": {"network": "small", "side": 60, "corpus": 480, "steps": 90, "first": 45, "breedings": 1,
             "targets": 48, "test": 32, "reconstruct": 3, "looks": 3, "optimizer": "adam", "rate": 1e-3},
    "quick": {"network": "small", "side": 60, "corpus": 1500, "steps": 450, "first": 210, "breedings": 4,
              "targets": 200, "test": 150, "reconstruct": 6, "looks": 30, "optimizer": "adam", "rate": 1e-3},
    "full": {"network": "alexnet", "side": 240, "corpus": 200_000, "steps": 75_000, "first": 15_000,
             "breedings": 8, "targets": 100_000, "test": 1000, "reconstruct": 8, "looks": 200,
             "optimizer": "adadelta", "rate": 0.01},
}  # fmt: skip
P, out = begin("40_inversefacenet", globals(), PRESETS)
numbers: dict[str, float] = {}  # what this notebook measures; written to OUT_DIR/numbers.json at the end

print(f"{'':12}" + "".join(f"{name:>12}" for name in PRESETS))
for key in P:
    print(f"{key:12}" + "".join(f"{p[key]!s:>12}" for p in PRESETS.values()))

# %% [markdown]
# `side`: pixels of the network's input; `corpus`: rendered faces; `steps`: batches of 32; `first`: those
# before breeding. `full` has the paper's numbers and wants a GPU: there, run
# `data_scripts/train_inversefacenet.py --preset full`, which is this notebook's loop with files that survive
# a kill, and runs under `torchrun` on several GPUs. `tiny` and `quick` train miniatures to show the
# mechanism; the network that ships with facelab was made by the same script, and we meet it in section 6.
#
# ## 1 · The space of facial images
#
# One vector describes a picture (Eq. 1): rotation, shape, expression, skin reflectance, light,
#
# $$\theta = (R,\ \theta^{[s]},\ \theta^{[e]},\ \theta^{[r]},\ \theta^{[i]}) \in
# \mathbb{R}^{3+128+64+128+27=350}.$$
#
# The vertices are $\mathbf a^{[s]} + \sum_i \mathbf b^{[s]}_i \sigma^{[s]}_i \theta^{[s]}_i + \sum_i \mathbf
# b^{[e]}_i \sigma^{[e]}_i \theta^{[e]}_i$ (Eq. 2), the skin likewise (Eq. 3), and the colour is skin times
# $\sum_k \theta^{[i]}_k H_k(\mathbf n)$ (Eq. 4). Our face model keeps 80 skin components, so our vector is 48
# shorter. There is no translation and no size: the picture is cut so that the face fills it.
#
# **Units.** The numbers that the paper prints mean something for the authors' bases only, and two of them
# need a translation. Its expressions run to ±12: facelab divides $\theta^{[e]}$ by 12, so 12 is one standard
# deviation of *our* expressions. And its light is around 1: $H_1 = 1$ here, where notebook 21 has the
# orthonormal $H_1 = \sqrt{1/4\pi} = 0.282$ (the other $H_k$ are larger by as much), so a $\theta^{[i]}$ here
# is 0.282 times the $\gamma$ there, or $\gamma$ is 3.545 times $\theta^{[i]}$.

# %%
model = MorphableModel.load(subdivisions=0)
layout = DISTRIBUTION.layout(model)
print(layout, "->", layout.size)


# %% [markdown]
# Section 5 of the paper prescribes the distribution, every part independent of the others (Eq. 5):
#
# $$P(\theta) = P(R)\,P(\theta^{[s]})\,P(\theta^{[e]})\,P(\theta^{[r]})\,P(\theta^{[i]}).$$
#
# It fits in a few lines:


# %%
def sample_parameters(count: int, generator: torch.Generator) -> Tensor:
    """Section 5: (count, layout.size)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    rotation = uniform(-1, 1, count, 3) * torch.tensor([40.0, 40.0, 15.0]).deg2rad()  # pitch, yaw, roll
    shape = torch.randn(count, layout.sizes["shape"], generator=generator)  # already divided by sigma
    expression = uniform(-12, 12, count, layout.sizes["expression"])
    expression[:, 0] += 4.8  # "to prevent closing the mouth beyond anatomical limits"
    reflectance = torch.randn(count, layout.sizes["reflectance"], generator=generator)
    light = uniform(-0.2, 0.2, count, 9)
    light[:, 0] = uniform(0.6, 1.2, count)  # the average brightness
    light = light[:, :, None].expand(-1, -1, 3).flatten(1)  # monochrome
    return torch.cat([rotation, shape, expression, reflectance, light], 1)


g = torch.Generator().manual_seed(SEED)
mine, theirs = sample_parameters(4000, g), DISTRIBUTION.sample(model, 4000, g)
for moment in (torch.mean, torch.std):
    difference = (moment(mine, 0) - moment(theirs, 0)) / theirs.std(0)
    numbers[f"sampler_{moment.__name__}_difference"] = float(difference.abs().max())
    print(f"largest difference of the {moment.__name__}s: {difference.abs().max():.3f} standard deviations")
    assert difference.abs().max() < 0.1

# %% [markdown]
# What does each part of the vector do? Each row below changes one part of an average face, in five random
# draws. Expressions drawn like this move all 64 components at once, as no face does. The paper knows: "this
# will be addressed by the breeding step".


# %%
def draw(theta: Tensor, size: int = 120) -> Tensor:
    """Pictures (B, 3, size, size) of parameters, faces only."""
    faces = DISTRIBUTION.decode(model, theta, size)
    zoomed = faces.camera.rescaled(0.75, torch.tensor([0.125 * size, 0.125 * size]))
    picture = replace(faces, camera=zoomed).render(model, size, size)
    return picture.image.clamp(0, 1)


g, neutral = torch.Generator().manual_seed(SEED + 3), layout.zeros(5)
neutral[:, layout.slice("light")][:, :3] = 0.9
rows = []
for part in layout.names:
    changed = neutral.clone()
    changed[:, layout.slice(part)] = sample_parameters(5, g)[:, layout.slice(part)]
    rows.append(draw(changed))
rows.append(draw(sample_parameters(5, g)))
titles = [f"{part} {k + 1}" for part in (*layout.names, "all") for k in range(5)]
image_grid(torch.cat(rows), titles, columns=5, inches=1.1)

# %% [markdown]
# ## 2 · What the network sees
#
# Section 6.1: detect landmarks, fit their bounding box into 240×240 pixels, black out everything outside the
# landmarks' hull and the inside of the mouth, what "cannot readily be explained by our model". The paper's
# tracker has 66 points: the 68 of iBUG without the two inner corners of the mouth.

# %%
renderer = Renderer(CorpusSpec("portrait", seed=SEED + 50, size=240, subdivisions=0))
portraits = renderer.batch(0)
photo, points = portraits["image"][1], portraits["landmarks"][1]
masked, crop = ifn.network_input(photo, points)
mask = ifn.face_mask(crop.landmarks)
figure = image_grid([photo, crop.image, mask, masked],
                    ["a picture", "landmarks' box -> 240 px", "hull without mouth", "the input"])  # fmt: skip
chosen = [i for i in range(68) if i not in (60, 64)]
figure.axes[0].plot(*points[chosen].T, ".", color="cyan", ms=2.5)
figure

# %% [markdown]
# The detector decides what the network gets to see, so its errors belong into the corpus. dlib's detector
# misses rendered jaws and brows by a few pixels, smoothly along the contour. `detector_noise` imitates that.
# It makes a second problem, too: the paper recovers position and size from "the box fills the picture", and
# now the box is a few per cent off. So facelab's network has **three more outputs**, the `frame`: where in
# its input the true box is (centre and logarithm of the size). That is our addition; the paper's tracker was
# better, or its overlap suffered. Everything else follows the paper.

# %%
found = detector_noise(points.expand(3, 68, 2), torch.Generator().manual_seed(SEED))
seen = [ifn.network_input(photo, noisy) for noisy in found]
frames = [ifn.box_of(crop.to_crop(points), 240) for _, crop in seen]
image_grid([masked] + [image for image, _ in seen],
           ["true landmarks"] + [f"frame {f[0]:+.3f} {f[1]:+.3f} {f[2]:+.3f}" for f in frames])  # fmt: skip


# %% [markdown]
# Now the corpus. `synthesise` decodes parameters, renders before a random background, "detects", masks,
# crops:


# %%
def corpus_of(theta: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, side, side) uint8 and truth (N, layout.size + 3) for parameters."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [synthesise(model, part, generator, P["side"]) for part in theta.split(16)]
    return torch.cat([images for images, _ in pairs]), torch.cat([truth for _, truth in pairs])


generator = torch.Generator().manual_seed(SEED + 1)
images, truth = corpus_of(sample_parameters(P["corpus"], generator), SEED + 1)
test_images, test_truth = corpus_of(sample_parameters(P["test"], generator), SEED + 2)
image_grid(images[:16].float() / 255, columns=8, inches=0.9)

# %% [markdown]
# ## 3 · The baseline: plain ℓ₂
#
# A standard network whose last layer gives the parameters, biases 0, weights $\sim N(0, 0.01)$, and the loss
# $\|\mathbf p - \theta\|^2$. (`ifn.make_network` adds what a modern optimiser wants: the outputs are
# in standard deviations of the corpus, around its mean, so that one step of Adam does not mean nothing to an
# expression of 12 and a lot to a light of 0.1.) The loop is all there is to it; `Run` from
# `facelab.training` brings the things that every loop needs (device, precision, several GPUs, a checkpoint to
# resume from, a stop when the loss explodes) and leaves the loop to us. The paper trains with AdaDelta at
# rate 0.01, as the preset `full` does; with a thousand times fewer steps Adam gets further, so `tiny` and
# `quick` use it.


# %% tags=["long"]
Maker = Callable[[torch.nn.Module], tuple[Tensor, Tensor]]  # a corpus: pictures and truth


def train(name: str, weights: Tensor | float, stages: list[tuple[int, Maker]]) -> torch.nn.Module:
    """Train from the same start; each stage is (its last step, what makes its corpus from the network)."""
    with TemporaryDirectory(dir=out) as folder:  # for a checkpoint, which nobody needs afterwards
        run = Run(folder, DEVICE, progress=False, every=10**9, seed=SEED)
        network = ifn.make_network(P["network"], model)
        kind = {"adadelta": torch.optim.Adadelta, "adam": torch.optim.AdamW}[P["optimizer"]]
        optimizer = kind(network.parameters(), P["rate"], weight_decay=0.001)
        network, optimizer = run.setup(network.train(), optimizer)
        state = {"network": network, "optimizer": optimizer}
        for last, make in stages:
            pictures, labels = make(network)
            for step in run.steps(state, last):
                for group in optimizer.param_groups:
                    group["lr"] = P["rate"] * schedule(step)
                rows = batch_indices(step, 32, len(pictures), SEED)
                said = network(pictures[rows].to(run.device).float() / 255)
                loss = ifn.parameter_loss(said, labels[rows].to(run.device), weights).mean()
                run.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    curves[name] = state["losses"]
    return network.module.eval()


def schedule(step: int) -> float:
    """Constant for AdaDelta, as printed; for Adam a warm-up, and down on a line from the middle on."""
    if P["optimizer"] == "adadelta":
        return 1.0
    return min(1.0, (step + 1) / (0.1 * P["steps"]), 2 * (1 - step / P["steps"]) + 0.02)


def synthetic(network: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """The corpus of section 2, whatever the network."""
    return images, truth


curves: dict[str, list[float]] = {}
networks = {"plain ℓ2": train("plain", 1.0, [(P["steps"], synthetic)])}
last = last_layer(networks["plain ℓ2"])
print(f"last layer {tuple(last.weight.shape)}, loss {curves['plain'][0]:.0f} -> {curves['plain'][-1]:.0f}")

# %% [markdown]
# What is this loss made of? Take the answer that needs no picture, the average vector, and split its error
# into the parts of $\theta$:

# %%
mean_answer = truth.mean(0)


def shares(weights: Tensor | float) -> dict[str, float]:
    """How much of the average answer's loss each part causes."""
    squared = (weights * (test_truth - mean_answer)).square()[:, : layout.size].mean(0)
    return {name: float(squared[layout.slice(name)].sum() / squared.sum()) for name in layout.names}


for name, share in shares(1.0).items():
    print(f"{name:12} {100 * share:6.2f} %")
numbers["plain_share_of_expression"] = shares(1.0)["expression"]

# %% [markdown]
# Nearly all of it is expression, because its numbers happen to run to ±12, and each of the 64 components
# counts alike although most move the skin by fractions of a millimetre. A rotation wrong by 30° costs 0.27,
# less than a thousandth. Scaling outputs and rescaling gradients saves the last layer, but the layers before
# it are shared, and they work for whatever causes the loss.
#
# ## 4 · The model-space loss
#
# What we care about is the face. With an orthonormal basis the squared distance between two faces is
#
# $$\Big\| \sum_i \mathbf b_i \sigma_i p_i - \sum_i \mathbf b_i \sigma_i \theta_i \Big\|^2 = \sum_i
# \sigma_i^2 (p_i - \theta_i)^2 ,$$
#
# a Euclidean distance in parameter space with a diagonal weight. That is the model-space loss (Eqs. 6 to 8),
#
# $$\mathcal L(\mathbf p, \theta) = (\mathbf p-\theta)^\top \Sigma^\top\Sigma\,(\mathbf p-\theta),\quad
# \Sigma = \mathrm{diag}(\omega_R \mathbf 1_3, \omega_s \sigma^{[s]}, \omega_e \sigma^{[e]}, \omega_r
# \sigma^{[r]}, \omega_i \mathbf 1_{27}),$$
#
# with $\omega = (400, 50, 50, 100, 20)$. It costs nothing, needs no renderer, and looks at the first
# components more than at the last. Is it really the distance of faces? We compare.

# %%
generator = torch.Generator().manual_seed(SEED + 4)
a, b = (sample_parameters(60, generator) for _ in range(2))
sigma_s = model.identity_sigma
by_loss = (sigma_s * (a - b)[:, layout.slice("shape")]).square().sum(-1).sqrt()
va, vb = (model.vertices(x[:, layout.slice("shape")]) for x in (a, b))
by_mesh = (va - vb).square().sum(-1).mean(-1).sqrt()
correlation = float(torch.corrcoef(torch.stack([by_loss, by_mesh]))[0, 1])
numbers["loss_mesh_correlation"] = correlation
plt.figure(figsize=(3.6, 3))
plt.plot(by_mesh, by_loss, ".")
plt.plot([0, 12], [0, 12], "k:", lw=1)
plt.xlabel("distance of the meshes, mm RMS"), plt.ylabel("of the parameters, weighted")
plt.title(f"correlation {correlation:.3f}")
plt.show()

# %% [markdown]
# Very nearly; not exactly, because the bases of a face that is cut out of a head are not quite orthogonal.
#
# **Exercise 1.** Write the loss. The check compares it with the matrix form.


# %%
def loss_by_matrix(predicted: Tensor, theta: Tensor, sigma: Tensor) -> Tensor:
    """Eqs. 6 and 7 as they are printed."""
    matrix = torch.diag(sigma).T @ torch.diag(sigma)
    return torch.einsum("bi,ij,bj->b", predicted - theta, matrix, predicted - theta)


checks.register(
    checks.Exercise(
        name="model-space loss",
        task="f(predicted (B, P), theta (B, P), sigma (P,)) -> (B,): (p - θ)ᵀ ΣᵀΣ (p - θ), Σ = diag(sigma).",
        reference=loss_by_matrix,
        inputs=lambda g: (*checks.uniform(g, 2, 5, 7), checks.uniform(g, 7, low=0.1, high=3.0)),
        difficulty=1,
        minutes=5,
        mistakes={
            "Sigma is squared, too: it stands on both sides of A = ΣᵀΣ.": (
                lambda p, t, s: loss_by_matrix(p, t, s.sqrt())
            ),
            "That is the plain l2 loss; weight the difference with sigma.": (
                lambda p, t, s: loss_by_matrix(p, t, torch.ones_like(s))
            ),
            "Sum over the parameters, do not average.": lambda p, t, s: loss_by_matrix(p, t, s) / len(s),
            "That is its root; the loss is squared.": lambda p, t, s: loss_by_matrix(p, t, s).sqrt(),
        },
        hint="Weight the difference first, then square and sum.",
    )
)
print(checks.describe("model-space loss"))


# %% tags=["solution"]
def model_space_loss(predicted: Tensor, theta: Tensor, sigma: Tensor) -> Tensor:
    """(B, P), (B, P), the diagonal of Sigma (P,) -> the loss (B,)."""
    # SOLUTION
    return (sigma * (predicted - theta)).square().sum(-1)


# %%
checks.check("model-space loss", model_space_loss)

# %% [markdown]
# The units of $\sigma$ are not printed, and they matter: they are part of the weights. Ours are mm for shape
# and expression. Reflectance in per cent would make two thirds of the loss out of the brightness of the skin,
# which light explains just as well; and light with the printed 20 would be a thousandth of it. A network that
# comes from ImageNet has features that show light; one that starts from nothing, as ours do, learns features
# without any trace of it (tried: 98 % of the light's variance unexplained after 58,000 pictures). So
# reflectance and light have units in which each weighs as much as shape. The average answer's loss now has
# these shares:

# %%
weights = ifn.model_space_weights(model)
matrix = torch.diag(weights).T @ torch.diag(weights)
p, t = test_truth[:8] + 0.3, test_truth[:8]
by_matrix = torch.einsum("bi,ij,bj->b", p - t, matrix, p - t)
assert torch.allclose(ifn.parameter_loss(p, t, weights), by_matrix, rtol=1e-4)  # facelab's is the matrix form
assert torch.allclose(model_space_loss(p, t, weights), by_matrix, rtol=1e-4)  # and so is yours
before, after = shares(1.0), shares(weights)
print(f"{'':12}{'plain':>9}{'model space':>13}")
for name in layout.names:
    print(f"{name:12}{100 * before[name]:8.2f}%{100 * after[name]:12.2f}%")
figure, axes = plt.subplots(1, 4, figsize=(9, 2.2), sharey=True)
for axis, name in zip(axes, ("shape", "expression", "reflectance", "light")):
    axis.semilogy(weights[: layout.size][layout.slice(name)])
    axis.set_title(f"weight: {name}"), axis.set_xlabel("component")
plt.tight_layout()

# %% [markdown]
# The same network, the same pictures in the same order, the new loss. (A training of a minute is chaotic:
# processors round differently, and after some hundred steps the weights differ, too. On another machine you
# get other numbers than are printed here, by 2 to 30 %. What should stay is which row is better.)

# %% tags=["long"]
networks["+ model-space loss"] = train("model_space", weights, [(P["steps"], synthetic)])


# %%
def errors(said: Tensor, truth: Tensor) -> dict[str, float]:
    """Means over pictures: angle between rotations, mm between faces after alignment, light, place."""
    a, b = (DISTRIBUTION.coefficients(model, x[:, :-FRAME]) for x in (said, truth))
    va, vb = (model.vertices(x["identity"], x["expression"]) for x in (a, b))
    ra, rb = (euler_to_matrix(x["rotation"]) for x in (a, b))
    skin = [model.albedo(x["albedo"])[0].mean(1) for x in (a, b)]
    return {
        "pose °": float(metrics.pose_error_degrees(ra, rb).mean()),
        "geometry mm": float(metrics.geometry_rmse_mm(va, vb).mean()),
        "skin": float((skin[0] - skin[1]).abs().mean()),
        "light": float((a["light"] - b["light"]).square().mean((1, 2)).sqrt().mean()),
        "place px": 240 * float((said - truth)[:, -FRAME:-1].norm(dim=-1).mean()),
    }


@torch.no_grad()
def answers(network: torch.nn.Module, pictures: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> parameters and frames (N, layout.size + 3), the parameters clamped."""
    said = torch.cat([network(part.float() / 255) for part in pictures.split(64)])
    return torch.cat([ifn.clamp_parameters(model, said[:, :-FRAME]), said[:, -FRAME:]], -1)


def show(title: str, results: dict[str, dict[str, float]]) -> None:
    print(f"{title:26}" + "".join(f"{key:>13}" for key in next(iter(results.values()))))
    for name, values in results.items():
        print(f"{name:26}" + "".join(f"{value:13.3f}" for value in values.values()))


results = {"the average face": errors(mean_answer.expand_as(test_truth), test_truth)}
results |= {name: errors(answers(network, test_images), test_truth) for name, network in networks.items()}
show(f"{len(test_truth)} held-out pictures", results)
for key, name in (("mean", "the average face"), ("plain", "plain ℓ2"), ("model_space", "+ model-space loss")):
    numbers |= {f"{key}_{measure.split()[0]}": value for measure, value in results[name].items()}

# %% [markdown]
# ## 5 · Breeding
#
# These pictures come from the distribution that somebody wrote down in section 5. Photographs do not. Nobody
# knows their parameters, but the network has an opinion; so (Algorithm 1)
#
# 1. let the present network estimate the parameters of unlabelled target pictures,
# 2. perturb them a little, twice: $U(-5°, 5°)$ on the angles, $N(0, 0.05)$ on shape, $N(0, 0.1)$ on
# expression,    $N(0, 0.2)$ on reflectance, $N(0, 0.02)$ on light,
# 3. render the perturbed parameters: their truth *is* known,
# 4. train on, and begin again.
#
# The estimates need not be right. They only have to be *distributed* more like the targets than the
# corpus was, and each round the network gets better at them. The noise on the three channels of the light
# is independent: coloured light comes into the corpus here.
#
# **Exercise 2** (★★, 10 minutes). Write step 2, without the clamping to sensible ranges.


# %% tags=["solution"]
def perturb(parts: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """{"rotation" (B, 3) rad, "shape", "expression", "reflectance", "light"} -> the same, perturbed."""
    # SOLUTION
    spread = {"shape": 0.05, "expression": 0.1, "reflectance": 0.2, "light": 0.02}
    angles = math.radians(5) * (2 * torch.rand(parts["rotation"].shape, generator=generator) - 1)
    bred = {"rotation": parts["rotation"] + angles}
    for name, s in spread.items():
        bred[name] = parts[name] + s * torch.randn(parts[name].shape, generator=generator)
    return bred


# %%
still = layout.split(layout.zeros(4000))
for name, moved in perturb(still, torch.Generator().manual_seed(SEED)).items():
    printed = NOISE[name] if name != "rotation" else math.radians(NOISE[name]) / math.sqrt(3)
    spread = float(moved.std())
    print(f"{name:12} standard deviation {spread:.4f}, printed {printed:.4f}")
    assert abs(spread / printed - 1) < 0.05, f"{name}: {spread / printed:.2f} times the printed noise"

# %% [markdown]
# Our targets are *portraits*: people whose skin goes with their shape, expressions of a few facial actions,
# heads mostly towards the camera, one to three lamps of slightly different colour. We keep their truth,
# which real photographs would not have, away from the training, and use it only to measure.


# %% tags=["long"]
def target_inputs(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Network inputs (N, 3, side, side) uint8 of portraits as a detector finds them, and their truth."""
    renderer = Renderer(CorpusSpec("portrait", seed=seed, size=240, subdivisions=0))
    noise, inputs, kept, frames = torch.Generator().manual_seed(seed), [], [], []
    for batch in map(renderer.batch, range(-(-count // 16))):
        for image, points in zip(batch["image"], batch["landmarks"]):
            masked, crop = ifn.network_input(image, detector_noise(points[None], noise)[0])
            inputs.append(torch.nn.functional.avg_pool2d(masked, 240 // P["side"]))
            frames.append(ifn.box_of(crop.to_crop(points), 240))
        kept.append(batch["parameters"])
    parts = DISTRIBUTIONS["portrait"].layout(model).split(torch.cat(kept)[:count])
    return (255 * torch.stack(inputs)[:count]).round().byte(), parts | {"frame": torch.stack(frames)[:count]}


def in_our_layout(parts: dict[str, Tensor]) -> Tensor:
    """A portrait's truth as a vector of InverseFaceNet's, without its frame."""
    unit = DISTRIBUTION.coefficients(model, torch.ones(1, layout.size))
    return layout.join({
        "rotation": parts["rotation"], "shape": parts["identity"], "reflectance": parts["albedo"],
        "expression": parts["expression"] / unit["expression"],
        "light": parts["light"] / unit["light"].flatten(1),
    })  # fmt: skip


targets, _ = target_inputs(P["targets"], SEED + 60)
portrait_images, portrait_parts = target_inputs(P["test"], SEED + 61)
portrait_truth = torch.cat([in_our_layout(portrait_parts), portrait_parts["frame"]], 1)
corpora: list[tuple[Tensor, Tensor]] = []  # what each breeding step makes, kept for the figure
breeding_noise = torch.Generator().manual_seed(SEED + 5)


def bred(network: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Steps 1 to 3: estimate, perturb, render."""
    network.eval()
    theta = answers(network, targets)[:, :-FRAME]
    network.train()
    copies = []
    for _ in range(2):  # two perturbed vectors for each
        parts = perturb(layout.split(theta), breeding_noise)
        copies.append(ifn.clamp_parameters(model, layout.join(parts)))
    corpora.append(corpus_of(torch.cat(copies), SEED + 100 + len(corpora)))
    return corpora[-1]


rest = P["steps"] - P["first"]
stages = [(P["first"] + rest * (k + 1) // P["breedings"], bred) for k in range(P["breedings"])]
networks["+ breeding"] = train("breeding", weights, [(P["first"], synthetic), *stages])

# %% [markdown]
# As many steps as before, in all. Did it help, on portraits that were not among the targets?

# %%
results = {"the average face": errors(mean_answer.expand_as(portrait_truth), portrait_truth)}
for name, network in networks.items():
    results[name] = errors(answers(network, portrait_images), portrait_truth)
show(f"{len(portrait_truth)} portraits", results)
for key, name in (("plain", "plain ℓ2"), ("model_space", "+ model-space loss"), ("breeding", "+ breeding")):
    numbers |= {f"portraits_{key}_{measure.split()[0]}": value for measure, value in results[name].items()}

# %% [markdown]
# Pose, skin and light get better from row to row. The *geometry* does not: in a miniature the paper's two
# inventions leave it where plain ℓ₂ had it, hardly nearer than the average face, and which of the three rows
# is first changes from machine to machine. Shape needs the long trainings of section 6.
#
# And the paper's Figure 3: the corpus at the beginning, the corpus that the last breeding step made, and the
# targets.

# %%
grid = torch.cat([images[:8], corpora[-1][0][:8], targets[:8]]).float() / 255
figure = image_grid(grid, columns=8, inches=0.95)
for row, label in enumerate(("initial corpus", "bred corpus", "targets")):
    figure.axes[8 * row].set_title(label, fontsize=9, loc="left")
figure

# %% [markdown]
# In numbers: the distance between two clouds of pictures. We describe each picture by 12×12 pixels, keep the
# eight directions in which the targets vary most, and take the Fréchet distance between Gaussians fitted to
# the two clouds, $d^2 = \|\mu_1-\mu_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})$, the formula behind
# the FID (`metrics.frechet_distance`).


# %%
def describe_pictures(pictures: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 432)."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures.float() / 255, 12).flatten(1).double()


frechet = metrics.frechet_distance
cloud = describe_pictures(targets)
axes_of_targets = torch.linalg.svd(cloud - cloud.mean(0), full_matrices=False).Vh[:8].T
clouds = [describe_pictures(x) @ axes_of_targets for x in (images, *(c for c, _ in corpora))]
goal, other = cloud @ axes_of_targets, describe_pictures(portrait_images) @ axes_of_targets
distances = [frechet(c, goal) for c in clouds]
print(f"distance to the targets: initial {distances[0]:.2f}, other portraits {frechet(other, goal):.2f}")
print("after each breeding step:", ", ".join(f"{d:.2f}" for d in distances[1:]))
numbers |= {"distance_initial": distances[0], "distance_bred": distances[-1]}

figure, axes = plt.subplots(1, 4, figsize=(11, 2.5))
bred_truth = corpora[-1][1]
for axis, (label, column, scale) in zip(axes, (
    ("yaw, degrees", 1, 180 / math.pi),
    ("expression 1 (mouth)", layout.slice("expression").start, 1.0),
    ("brightness", layout.slice("light").start, 1.0),
    ("expression 20", layout.slice("expression").start + 19, 1.0),
)):  # fmt: skip
    for name, values in (("initial", truth), ("bred", bred_truth), ("targets' truth", portrait_truth)):
        axis.hist(scale * values[:, column], 24, density=True, histtype="step", label=name)
    axis.set_title(label), axis.set_yticks([])
axes[0].legend(fontsize=7)
plt.tight_layout()

# %% [markdown]
# Angles, brightness and expressions of the bred corpus move to those of the targets. As a whole the pictures
# of a miniature need not come closer, because its estimates are poor; those of the long runs do (section 6).
# But look at the *spread*. Where a picture does not say much, a network that is unsure answers with the
# mean; its estimates vary less than people do, the corpus bred of them varies less, and the next network is
# trained to vary less still. The printed noise is far too small to make up for it:

# %%
generator = torch.Generator().manual_seed(SEED + 6)
seen = answers(networks["+ model-space loss"], targets)[:, :-FRAME]
clouds_of_shapes = {
    "estimates": seen,
    "bred with the printed noise": breed(model, seen, generator),
    "bred, widened": breed(model, seen, generator, widen=True),
    "the portraits' truth": portrait_truth[:, :-FRAME],
}
for name, theta in clouds_of_shapes.items():
    spread = theta[:, layout.slice("shape")].std(0)
    numbers[f"spread_{name.replace(' ', '_')}"] = float(spread.mean())
    print(f"{name:28} shape components: standard deviation {spread.mean():.2f}, first five",
          " ".join(f"{x:.2f}" for x in spread[:5]))  # fmt: skip

# %% [markdown]
# The paper starts breeding from a network that has seen half a million pictures; it does not look at spreads.
# Ours had seen 48,000 when the breeding of Table 1 began: printed breeding brings pictures and colours closer
# and pulls the shapes to the average face. The repair is simple (`breed(..., widen=True)`, ours): we know
# that shape and reflectance of a population have variance 1, by the definition of the coefficients; so we add
# as noise what the estimates' variance lacks, $\sqrt{1 - \mathrm{Var}(\hat\theta_i)}$, component by
# component. If the network says the mean of what it thinks possible, that is the law of total variance.
#
# There is a second trap. The paper has 100,000 targets; with a few thousand, every child carries the mark of
# its parent. Take a child, look for the one whose *light* is most like its own: how alike are their *shapes*?

# %%
generator = torch.Generator().manual_seed(SEED + 10)
for name, cross in (("one parent", False), ("many parents", True)):
    parts = layout.split(breed(model, seen, generator, cross=cross))
    far = torch.cdist(parts["light"], parts["light"]).fill_diagonal_(math.inf)
    shapes = torch.stack([parts["shape"][:, 0], parts["shape"][far.argmin(1), 0]])
    numbers[f"alike_{name.replace(' ', '_')}"] = alike = float(torch.corrcoef(shapes)[0, 1])
    print(f"{name:14} shape of who stands in the same light: correlation {alike:.2f}")

# %% [markdown]
# (With the few targets and the short training of `tiny` this comparison depends on the machine: on processors
# with AVX-512 it did not come out like that.) A network trained for long on children of one parent
# learns the targets by heart: it knows the light and the pose, and says the shape that its teacher once
# guessed. The cure (`breed(..., cross=True)`, ours) is to *cross*: pose, light and expression come from one
# target each, and every component of shape and reflectance from another. Section 6 shows what that is worth.
#
# The third trap is deeper. Breeding gives back what the network has *said*, and of what it cannot see yet it
# says nothing: estimates of most expressions stay at the mean, so do the children's, and the next network has
# no reason to look. Crossing adds a loss of its own: among people, skin and shape go together (age, sex,
# origin), among children of many parents they do not.


# %%
def told_by_skin(theta: Tensor) -> float:
    """How much of the variance of four shape components eight of the skin's tell, linearly."""
    parts = layout.split(theta)
    skin = torch.cat([parts["reflectance"][:, :8], torch.ones(len(theta), 1)], 1)
    guess = skin @ torch.linalg.lstsq(skin, parts["shape"][:, :4]).solution
    return float(guess.var(0).mean() / parts["shape"][:, :4].var(0).mean())


many, generator = 3000 // len(seen), torch.Generator().manual_seed(SEED + 8)
drawn = DISTRIBUTIONS["portrait"].sample(model, 3000, generator)
kinds = {
    "bred, widened": breed(model, seen, generator, many, widen=True),
    "bred, widened and crossed": breed(model, seen, generator, many, widen=True, cross=True),
    "bred, people": breed(model, seen, generator, many, people=True),
    "people as the targets show": in_our_layout(DISTRIBUTIONS["portrait"].layout(model).split(drawn)),
}
for name, theta in kinds.items():
    spread = float(theta[:, layout.slice("expression")].std(0).mean()) / 12
    skin = told_by_skin(theta)
    print(f"{name:28} expressions: {spread:.2f} standard deviations; skin tells {100 * skin:3.0f} % of shape")
    numbers |= {f"expressions_{name.split()[-1]}": spread, f"skin_tells_{name.split()[-1]}": skin}

# %% [markdown]
# The targets have to teach only what we do not know: where the camera stands and what the light is like. Who
# people are, and how a face moves, a face model knows: ours has a population, and a sampler of facial
# actions. So `breed(..., people=True)` (ours) takes pose and light from a target each, and draws the
# person from the model. The light has a trap of its own: on a face, a lamp from the front and light from
# everywhere look nearly the same, and a network that cannot tell says the same mixture for all. The error
# that it makes on pictures whose truth is known (`errors=`) is added to each light, a random one's instead of
# the printed noise, so that the corpus holds every light that the network takes for the same.
#
# ## 6 · The shipped network, and Table 1
#
# The miniatures above show the mechanism. `InverseFaceNet.load()` reads a network that was trained by
# `data_scripts/train_inversefacenet.py` for longer; its card says how.

# %%
method = InverseFaceNet.load(subdivisions=1)
_, card = load_checkpoint("inversefacenet")
for key in ("row", "network", "presentations", "targets", "minutes", "hardware", "seed", "date"):
    print(f"{key:14} {card[key]}")

# %% [markdown]
# How its training went, beside the second row of Table 1 and all that were bred; and what section 5 measured,
# for the long runs: how far the pictures of each breeding step are from the targets, and how much the shapes
# in them vary.

# %%
trainings = json.loads(repository("results/inversefacenet_training.json").read_text())
figure, axes = plt.subplots(1, 3, figsize=(12, 2.8), layout="constrained")
colours = plt.get_cmap("tab20").colors
for (name, training), colour in zip(trainings.items(), colours):
    if name == "model_space" or training.get("breeding"):
        losses = training["losses"]
        progress = np.linspace(0, 1, len(losses))
        axes[0].semilogy(progress, losses, lw=0.8, color=colour, label=name.replace("_", " "))
    for axis, key in zip(axes[1:], ("distance_to_targets", "shape")):
        if training.get("breeding"):
            axis.plot([step[key] for step in training["breeding"].values()], ".-", color=colour)
axes[0].set_title("loss"), axes[0].set_xlabel("progress")
axes[1].set_title("Fréchet distance of pictures to targets")
axes[2].set_title("standard deviation of shape components")
for axis in axes[1:]:
    axis.set_xlabel("breeding step"), axis.set_ylim(0)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
plt.show()

# %% [markdown]
# The loss of the widened rows falls and falls, and we were pleased with it for too long. Was it learned by
# heart? New pictures, bred from the same targets by the recipe of the row, and by crossing: geometric error
# in mm, from the parameters alone.

# %%
for name, training in trainings.items():
    if "by_heart_mm" in training:
        learned = training["by_heart_mm"]
        print(f"{name:20}" + ", ".join(f"{key}: {value:.2f} mm" for key, value in learned.items()))

# %% [markdown]
# What has it learned? New faces from the first corpus's distribution, and portraits, parameter by parameter:
# the share of the variance that is left when the network has spoken (0: it knows, 1: it might as well say the
# mean; above 1: it says another mean than that of these faces, from which it was bred away).

# %%
generator = torch.Generator().manual_seed(SEED + 9)
drawn = DISTRIBUTIONS["portrait"].sample(method.model, 96, generator)
drawn = in_our_layout(DISTRIBUTIONS["portrait"].layout(method.model).split(drawn))
initial = DISTRIBUTION.sample(method.model, 96, generator)
for kind, theta in (("section 5", initial), ("portraits", drawn)):
    pairs = [synthesise(method.model, part, generator, 120) for part in theta.split(16)]
    fresh_images, fresh_truth = (torch.cat(part) for part in zip(*pairs))
    with torch.no_grad():
        answer = torch.cat([method.network(part.float() / 255) for part in fresh_images.split(32)])
    left = (answer - fresh_truth).square().mean(0) / fresh_truth.var(0)
    for name in layout.names:
        part = left[layout.slice(name)]
        print(f"{kind}, {name:12} first six: " + " ".join(f"{v:5.2f}" for v in part[:6]))
    numbers |= {
        f"left_rotation_{kind.replace(' ', '_')}": float(left[:3].mean()),
        f"left_shape_{kind.replace(' ', '_')}": float(left[layout.slice("shape")][:4].mean()),
        f"left_expression_{kind.replace(' ', '_')}": float(left[layout.slice("expression")][:4].mean()),
    }

# %%
records = load_test_set("in_model", limit=P["reconstruct"])
pictures, titles, measured = [], [], []
for record in records:
    try:
        said = method.reconstruct(record.image)
    except FacelabError as error:
        print(record.name, "-", error)
        continue
    assert said.image is not None and said.mask is not None and record.mask is not None
    geometry = geometry_image(said.mesh.vertices, said.mesh.triangles, said.camera, 240, 240)
    both, either = (record.mask & said.mask).sum(), (record.mask | said.mask).sum()
    measured.append((
        float(metrics.photometric_rmse(said.image, record.image, record.mask & said.mask)),
        float(metrics.geometry_rmse_mm(said.mesh.vertices, record.mesh.vertices)),
        100 * float(both / either),
    ))  # fmt: skip
    pictures += [record.image, torch.where(said.mask, said.image, record.image), geometry]
    titles += ["picture", "{:.0f} levels\n{:.1f} mm, {:.0f} %".format(*measured[-1]), "geometry"]
photometric, geometric, overlap = np.mean(measured, axis=0)
print(f"photometric {photometric:.1f} levels, geometric {geometric:.2f} mm, overlap {overlap:.1f} %")
numbers |= {"shipped_photometric": photometric, "shipped_mm": geometric, "shipped_iou_percent": overlap}
image_grid(pictures[:18], titles[:18], columns=6, inches=1.3)

# %% [markdown]
# And a photograph, Eileen Collins (NASA, public domain), with nothing but the picture given:

# %%
portrait = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
said = method.reconstruct(portrait)
x, y = said.landmarks.mean(0).int().tolist()
window = (slice(max(0, y - 110), y + 90), slice(x - 100, x + 100))
her_input, _ = ifn.network_input(portrait, find_face(portrait).landmarks)
shape = geometry_image(said.mesh.vertices, said.mesh.triangles, said.camera, *portrait.shape[-2:])
overlay = torch.where(said.mask, said.image, portrait)
image_grid([portrait[:, *window], her_input, overlay[:, *window], shape[:, *window]],
           ["photograph", "input", "reconstruction", "geometry"])  # fmt: skip

# %% [markdown]
# **Table 1.** Three rows were trained from the same start, on the same corpus, with 240,000 presentations,
# by the script (`--preset cpu`). Three more go on from the second row with 192,000 presentations each
# (`--preset crossed`): with 100,000 new pictures of the same distribution, with breeding, widened, and with
# breeding, widened and crossed. They differ in nothing else, so what breeding does can be read from them.
# "Crossed again" goes on from the last of these with 288,000, and two rows go on from it, with 576,000
# presentations of 128,000 pictures of the model's people: in the poses and lights of Section 5 ("unbred"),
# and in those of the targets ("bred"). The shipped network is the latter after 288,000 more, of pictures with
# flaws: hair, glasses and hands before faces, bad cameras (`synthesise(..., flaws=True)`); "unbred, flaws" is
# the former after as many. The networks on the way to the shipped one are not rows of this table; their means
# are in [docs/training.md](../docs/training.md), "Measured on the way". The measures are those of the
# scoreboard: photometric error in 8-bit levels inside the face, geometric error in mm after rigid alignment,
# overlap of the masks, each mean ± standard deviation. Every row gets dlib's landmarks.
#
# What was unlabelled: 2,222 pictures in which dlib found a face, of 1,000 drawn like `outside` (250 people
# who are not in the test set, four pictures each) and 1,500 portraits. What was looked at on the way: the
# first 24 test pictures of two sets, to decide that crossed networks go on from the second row instead of
# repeating the third with wider noise. That crossing replaces widening alone was decided on 107 other
# portraits, after the test pictures had been seen, too. That people should be drawn was found on 1,024
# other portraits, of whose first 16 expressions the network knew two; that flaws should be shown, after the
# row "people, bred" had been measured.

# %%
NAMES = {
    "inversefacenet, plain": "plain ℓ2", "inversefacenet, model space": "+ model-space loss",
    "inversefacenet, breeding": "+ breeding", "inversefacenet": "shipped: people, bred, flaws",
    "inversefacenet, second look": "shipped, second look",
    "inversefacenet, AdaDelta": "AdaDelta, as printed", "inversefacenet, AlexNet": "AlexNet + model-space",
    "inversefacenet, ResNet-101": "ResNet-101, a tenth as long", "inversefacenet, as short": "ours, as short",
    "average face": "average face", "full fitting": "fitting (notebook 30)",
}  # fmt: skip
COLUMNS = ("photometric_rmse", "geometry_mm", "geometry_scaled_mm", "mask_iou_percent", "pose_degrees")
PAPER = {
    "plain ℓ2": (46.26, 2.91, 90.44), "+ model-space loss": (39.71, 2.77, 92.51),
    "+ breeding": (34.03, 2.11, 93.96), "ResNet-101 + model-space loss": (41.23, 2.54, 92.07),
}  # fmt: skip
rows = [row for row in load_rows(repository("results")) if row.method in NAMES]
table = {(row.test_set, NAMES[row.method]): row for row in rows}
for test_set in ("in_model", "outside", "path_traced"):
    print(f"\n{test_set:27}{'photometric':>14}{'geometric mm':>14}{'size free mm':>14}{'overlap %':>14}"
          f"{'pose °':>14}{'failed':>7}")  # fmt: skip
    for name in NAMES.values():
        if (test_set, name) in table:
            row = table[test_set, name]
            summary = row.summary()
            cells = [f"{summary[c]['mean']:.2f} ± {summary[c]['std']:.2f}" for c in COLUMNS]
            print(f"{name:27}" + "".join(f"{c:>14}" for c in cells) + f"{len(row.failures):7}")
print(f"\n{'the paper, CelebA':29}{'photometric':>14}{'geometric mm':>14}{'overlap %':>28}")
for name, (colours, shape, overlap) in PAPER.items():
    print(f"{name:29}{colours:14.2f}{shape:14.2f}{overlap:28.2f}")
TRAINED = {
    "plain ℓ2": "plain", "+ model-space loss": "model_space", "+ breeding": "breeding",
    "model-space, longer": "model_space, longer", "as long, widened breeding": "widened",
    "as long, crossed breeding": "crossed", "crossed again": "crossed, again", "people, unbred": "unbred",
    "people, bred": "people", "people, unbred, flaws": "unbred, flaws",
    "shipped: people, bred, flaws": "people, flaws", "AdaDelta, as printed": "AdaDelta",
    "AlexNet + model-space": "AlexNet", "ResNet-101, a tenth as long": "resnet101, short",
    "ours, as short": "model_space, short",
}  # fmt: skip
print(f"\n{'training, a shared CPU core':29}{'pictures shown':>15}{'minutes':>9}, with rendering on the way")
for name, key in TRAINED.items():
    print(f"{name:29}{trainings[key]['presentations']:15,}{trainings[key]['minutes']:9.0f}")
print("the paper, a GTX Titan: 2,400,000 each, 4.1, 4.4 and 29.4 hours; ResNet-101 4,800,000, 41.0 hours")
speed = json.loads(repository("benchmarks/results/inference_cpu.json").read_text())
print("\nmilliseconds a picture,", speed["run"]["hardware"])
for name, values in speed["milliseconds per picture"].items():
    print(f"{name:50}", ", ".join(f"{batch}: {value:.1f}" for batch, value in values.items()))

# %% [markdown]
# **What came out, and why.** The first three rows have seen 240,000 pictures each (32 × 7,500 steps, from a
# corpus of 100,000, every other one mirrored; the paper: 2.4 million from 200,000), the next three 192,000
# more, the shipped network 1.3 million more, in three hours of one core.
#
# - *The model-space loss* does what the paper says, and more: against plain ℓ₂ the photometric error falls
#   on every set, the overlap grows, and the pose is found. On `in_model` and `path_traced` the shape is no
#   longer that of the average face; on `outside` it still is, nearly.
# - *Breeding as printed* brings the pictures closer to the targets, as Figure 3 promises, and lowers the
#   photometric error on `outside` a little. The geometric error does not fall on `outside` and rises on
#   `in_model`, where the paper reports 2.77 -> 2.11 mm. The curves above say why: after one step the shapes
#   of the corpus vary an eighth as much as people do, and a network trained on them says "average".
# - *Widened breeding* brings the pictures as close and keeps the shapes as varied as people are. Against
#   the row that is trained as long on new pictures of the first distribution, the photometric error on
#   `outside` falls from 24.3 to 21.6 levels, by 11 % (our aim was 10 %); the geometric error from 3.75 to
#   3.65 mm, by 3 %, where the aim was 10 % too. On `path_traced`, which nobody had as a target, it is 17 %
#   and 2 %. The longer training alone gains 1 % on `outside`: what limits a network there is which faces it
#   has seen.
# - *By heart.* Its children have one parent, and there were 2,222 parents. Widened twice, the network knew
#   new children of its targets to 1.40 mm and those of many parents to 2.13: it recognised whom it saw. (Of
#   the difference 0.2 mm are no memory: the crossed networks, which never saw such children, have it too.)
#   A third round lowered the loss by another fifth and gained nothing on faces: 2.69 mm on `in_model`,
#   3.70 on `outside`. We first took that for the end of what so small a network can do, and it was not.
#   Printed breeding is worse off: 0.33 against 1.22 mm, in a corpus of one face.
# - *Crossed breeding* lowers both errors on `outside` by 7 %: 24.3 -> 22.6 levels and 3.75 -> 3.48 mm.
#   Crossed once more it gains on `in_model` (2.63 -> 2.48 mm; widened twice had 2.67) and loses on `outside`
#   (3.64 mm, 23.2 levels). Components that are independent in our model are not among people.
# - *People of the model.* We had looked for the missing millimetres in the network's size and resolution.
#   They were in the corpus: no child had an expression that its parents' teacher could not see, and
#   nobody's skin went with his shape. With people drawn from the model `in_model` falls from 2.48 to 2.06
#   mm (our aim was 2.1; the paper's row has 2.11 on photographs, whose truth is a fit), `path_traced` from
#   3.40 to 3.00 mm. Most of that is the people: unbred it is 2.08 and 3.27 mm.
# - *Flaws.* Masks let glasses, hair and hands through, and the crossed networks had never seen any. 288,000
#   presentations with them (three kinds, 15 % each) and with noise, blur and JPEG bring `outside` from 3.50
#   to 3.05 mm and from 22.5 to 20.6 levels, and cost a little where there are none: 2.12 instead of 2.06 mm
#   and 14.1 instead of 12.6 levels on `in_model`. On `outside` the network is now nearer to the shape than
#   fitting (3.63 mm), which explains everything that it sees with a face; in colours fitting is ahead.
# - *Breeding's share.* Our aim was that breeding lowers both errors of the synthetic-only network on
#   `outside` by 10 %. The shipped network is 19 % and 16 % below "+ model-space loss" (3.78 -> 3.05 mm, 24.6
#   -> 20.6 levels), but it is trained longer, on people and with flaws. Two pairs of rows differ in nothing
#   but whose poses and lights the corpus has (and in that bred pictures come step by step, in eight
#   portions). "People, bred" against "people, unbred" on `outside`: 24.8 -> 22.5 levels (-9 %), 3.60 -> 3.50
#   mm (-3 %), 9.8 -> 7.6 degrees (-22 %). Each goes on with flaws: then 22.1 -> 20.6 levels (-7 %), 3.03 ->
#   3.05 mm, 5.7 -> 5.3 degrees; on `path_traced` 19.9 -> 18.9 levels (-5 %), 3.05 -> 2.87 mm (-6 %), 5.1 ->
#   4.3 degrees (-15 %). So breeding alone misses the aim: it brings most of it in colours, and in shape, on
#   `outside`, nothing. The next section looks for the reason.
# - *Millimetres.* Size is part of the shape here, and a picture from an unknown distance hardly shows it;
#   the column "size free" forgives it. Skin and shape of people go together, so some of the size can be
#   told. Fitting, with a median half of its mean, is at 2.19 mm on `in_model` on average.
# - *More is more.* A network with a corpus of 12,000 had learned the faces by heart (error of the first
#   shape component: 0.23 of its variance on them, 0.97 on new ones). With 100,000 new faces profit, and the
#   loss is still falling at the end.
# - *A photograph* like the one above gets its pose, skin and smile, and too wide a face. (Crossed networks
#   lost the smile and saw a bluish light.) On 60 photographs (Helen, AFW) the inner landmarks err by 3.03 %
#   of the face's diagonal (crossed twice: 3.44), colours by 39.2 levels (40.7); where one lamp shines, its
#   direction by 22° (20°). An average face that a detector puts into place has 2.54 %: what a photograph
#   has and a render has not is still missing. *Photographs as targets* helped a little when they were
#   tried: bred with 788 of them (CelebA-HQ, for research only, so neither they nor that network are here)
#   for 96,000 presentations, an earlier network (widened twice) got from 41.0 to 39.0 levels and from 3.50
#   to 3.34 %.
# - *ResNet-101* comes second by geometry in the paper, with twice the iterations and ImageNet's weights.
#   Here a step takes 13 times as long as one of our network (`benchmarks/training.py`), there was no GPU
#   and no ImageNet, so it got 22,400 presentations at 120 px, and next to it the table has our network
#   after as many (23.5 against 2.0 minutes). Both still learn, and the small one is far ahead: 18 levels
#   and 6° on `in_model` against 28 and 21°. From random weights a hundred layers that average over the
#   picture in the end have to find first what the other's layout gives: where something is. It says nothing
#   about the paper's row; that is `--preset full --row resnet101`, on a GPU.
# - *AlexNet*, the paper's network, has had as many pictures as the second row (`--preset cpu --row
#   model_space --network alexnet --rate 2e-4`): 28 levels, 3.5 mm and 15° on `in_model` against 15, 2.8 and
#   5°. From random weights and at 120 px its 61 million weights learn more slowly than our 4; with those of
#   ImageNet, 240 px and ten times the pictures (`--preset full`, not run) that may turn round.
# - *AdaDelta* with a constant rate of 0.01 and a weight decay of 0.001, as printed, learns on the same
#   pictures in as many steps a little less than our AdamW, whose rate falls to zero: 17.0 levels, 3.13 mm and
#   5.7° on `in_model` against 15.5, 2.80 and 4.6; on `outside` nearly as much (24.6 levels both, 3.88 and
#   3.78 mm). `full` uses it.
# - *Time.* One pass of the network is seven hundred times faster than fitting the same picture, in batches
#   of 64 more than a thousand times. Then the landmark detector takes nearly all of the time.
#
# ## 7 · Why it fails when it fails
#
# **Where do the millimetres on `outside` come from?** Its people are not the model's, nor are its skins and
# lights, nor is dlib always right. We take one of these away after the other: true landmarks instead of
# dlib's; the same face, drawn by the renderer that the network was trained with; with a skin of the model's;
# at last with the nearest shape that the model has. `in_model` goes through the same steps, to compare.

# %%
fine = method.model
bases = torch.cat([fine.identity_basis, fine.expression_basis]).flatten(1)
skin = fine.region_vertices("skin")
strangers = torch.Generator().manual_seed(SEED + 7)


def nearest(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of the model's face nearest to (V, 3), with a trace of a prior, and its vertices there."""
    gram = bases @ bases.T + 1e-3 * len(vertices) * torch.eye(len(bases))
    said = torch.linalg.solve(gram, bases @ (metrics.rigid_align(vertices, fine.mean) - fine.mean).flatten())
    return said, metrics.rigid_align(fine.mean + (said @ bases).view(-1, 3), vertices)


for test_set in ("in_model", "outside"):
    steps: dict[str, list[float]] = {}
    coefficients = []
    for record in load_test_set(test_set, limit=2 * P["looks"]):
        if record.groups.get("occluded") == "yes":
            continue
        try:
            points = find_face(record.image).landmarks
        except FacelabError:
            continue
        shape = record.mesh.vertices
        painted = fine.albedo(fine.sample(1, strangers)["albedo"][0])[0]
        painted = painted * (record.diffuse[skin].mean(0) / painted[skin].mean(0))  # as bright as it was
        said, inside = nearest(shape)
        coefficients.append(said)
        for name, vertices, diffuse in (
            ("the picture, dlib's landmarks", shape, None),
            ("the picture, true landmarks", shape, None),
            ("drawn by our renderer", shape, record.diffuse),
            ("… with a skin of the model's", shape, painted),
            ("… with the nearest shape of the model's", inside, painted),
        ):
            image = record.image
            if "dlib" not in name:
                points = record.camera.project(fine.landmarks(vertices, record.camera.rotation))[:, :2]
            if diffuse is not None:
                light = SphericalHarmonicsLight(record.light)
                drawn = render(vertices, fine.triangles, record.camera, light, diffuse, None, 240, 240)
                image = torch.where(drawn.mask, drawn.image.clamp(0, 1), image)
            answer = method.reconstruct_at(image, points).mesh.vertices
            error = metrics.geometry_rmse_mm(answer, vertices, "rigid", face_vertices(record.mesh))
            steps.setdefault(name, []).append(float(error))
    spread = torch.stack(coefficients)[:, : len(fine.identity_basis)].square().mean(0)
    first, later = (float(part.mean().sqrt()) for part in (spread[:20], spread[20:60]))
    print(f"\n{test_set}, {len(coefficients)} faces with nothing before them, geometric error in mm:")
    for name, values in steps.items():
        print(f"    {name:42}{np.mean(values):6.2f} ± {np.std(values) / len(values) ** 0.5:.2f}")
    print(f"    shape components, root mean square: 1 to 20 {first:.2f}, 21 to 60 {later:.2f}")
    for key, name in (("picture", "the picture, true landmarks"), ("drawn", "… with a skin of the model's"),
                      ("inside", "… with the nearest shape of the model's")):  # fmt: skip
        numbers[f"{test_set}_{key}_mm"] = float(np.mean(steps[name]))
    numbers |= {f"{test_set}_components_first": first, f"{test_set}_components_later": later}

# %% [markdown]
# (Preset `quick`, seed 0, 59 and 38 faces.) The gap between the two sets is 0.7 mm, and neither dlib nor the
# renderer has to do with it: it is 0.69, 0.76 and 0.73 mm in the first three rows. A third of it goes when
# everybody gets a stranger's skin. On `in_model` the true skin tells of the true shape (without it 1.94 mm
# become 2.10); on `outside`, where another program paints the skins, it does not (2.67 become 2.61). With
# shapes that the model has, 2.44 and 2.08 mm are left. These people are less likely ones: their components
# are 1.3 to 1.4 times as large as the model's people have them, the later ones above all, which a picture
# hardly shows.
#
# Poses and lights are all that this breeding takes from its targets, and they are not among the reasons.
# That is why it lowers the errors of colours and pose, and not that of shape. Breeding the shapes themselves,
# as printed, brings home what the network says of them, which is too little to widen a population. The paper
# breeds from the corpus of section 5, whose expressions hardly any face makes; where the model draws people,
# targets have less to add.
#
# **Three experiments** on faces whose truth we know: turn the head, darken one side, cover the mouth.

# %%
base, generator = layout.zeros(1), torch.Generator().manual_seed(SEED + 11)
base[:, layout.slice("shape")] = torch.randn(1, layout.sizes["shape"], generator=generator)
base[:, layout.slice("light")][:, :3] = 0.9


def answer_to(theta: Tensor, cover: bool = False) -> tuple[list[Tensor], float, float]:
    """(Input, reconstruction), geometric error in mm, pose error in degrees, landmarks being exact."""
    faces = DISTRIBUTION.decode(fine, theta, 200)
    faces = replace(faces, camera=faces.camera.rescaled(1.0, torch.tensor([20.0, 20.0])))
    picture, surface = faces.render(fine, 240, 240), faces.surface(fine)
    image = picture.image[0].clamp(0, 1)
    if cover:  # a grey card before the mouth
        image[:, 150:240, 60:180] = 0.5
    said = method.reconstruct_at(image, faces.landmarks(fine)[0])
    mm = float(metrics.geometry_rmse_mm(said.mesh.vertices, surface.vertices[0]))
    degrees = float(metrics.pose_error_degrees(said.camera.rotation, faces.camera.rotation[0]))
    assert said.image is not None
    return [image, said.image], mm, degrees


cases: dict[str, tuple[Tensor, bool]] = {}
for yaw in (0, 40, 60, 75):
    theta = base.clone()
    theta[:, 1] = math.radians(yaw)
    cases[f"yaw {yaw}°"] = (theta, False)
for strength in (0.2, 0.6):
    theta = base.clone()
    theta[:, layout.slice("light")][:, 9:12] = strength  # the harmonic x: light from one side
    cases[f"side light {strength}"] = (theta, False)
cases["covered mouth"] = (base, True)
shown, captions = [], []
for name, (theta, cover) in cases.items():
    both, mm, degrees = answer_to(theta, cover)
    shown.append(both), captions.append(f"{name}\n{mm:.1f} mm, {degrees:.0f}°")
    numbers[f"failure_{name.replace(' ', '_').replace('°', '')}_degrees"] = degrees
image_grid([pair[0] for pair in shown] + [pair[1] for pair in shown],
           captions + [""] * len(shown), columns=len(shown), inches=1.2)  # fmt: skip

# %% [markdown]
# - **Unlikely people.** The millimetres above are large because the face is odd: its shape was drawn
#   component by component, without the links that people have, and this network was trained on people.
# - **Beyond the corpus** the answer stays inside it: heads turned further than the 40° of section 5 are
#   answered with heads turned less. The paper: "Profile views of the head are problematic and hard to
#   reconstruct, even if they are part of the training corpus."
# - **What the mask lets through is taken for face**, if the corpus had nothing like it. This network saw
#   hands, hair and glasses, no grey cards: it invents a mouth behind the card, which may be another than the
#   one that is there.
# - **One pass.** The reconstruction is never compared with the picture. Fitting does that, and MoFA
#   (notebook 50) trains with it.
# - **No landmarks, no answer.** Moderately wrong landmarks matter less than one would fear: the corpus had
#   such errors, and the frame says where the face really is:

# %%
noise = torch.Generator().manual_seed(SEED)
spoiled = {}
for strength in (0.0, 1.0, 3.0):
    degrees = []
    for record in records:
        moved = detector_noise(record.landmarks[None], noise)[0]
        points = record.landmarks + strength * (moved - record.landmarks)
        said = method.reconstruct_at(record.image, points)
        degrees.append(float(metrics.landmark_error_px(said.landmarks, record.landmarks)))
    spoiled[strength] = float(np.mean(degrees))
    print(f"landmark noise × {strength}: the reconstruction's landmarks are {spoiled[strength]:.1f} px off")
numbers |= {f"landmarks_px_noise_{k:g}": v for k, v in spoiled.items()}

# %% [markdown]
# **A second look** costs another pass, and is not in the paper. The reconstruction says where the landmarks
# are; cut out and mask the picture with these instead of the detector's, and look again:

# %%
looks: dict[int, list[tuple[float, float, float]]] = {1: [], 2: [], 3: []}
for record in load_test_set("in_model", limit=P["looks"]):
    try:
        points = find_face(record.image).landmarks
    except FacelabError:
        continue
    for values in looks.values():
        said = method.reconstruct_at(record.image, points)
        points = said.landmarks
        assert said.mask is not None and record.mask is not None
        values.append((
            100 * float(metrics.mask_iou(said.mask, record.mask)),
            float(metrics.geometry_rmse_mm(said.mesh.vertices, record.mesh.vertices)),
            float(metrics.landmark_error_px(points, record.landmarks)),
        ))  # fmt: skip
for look, values in looks.items():
    overlap, mm, px = np.mean(values, axis=0)
    print(f"look {look}: overlap {overlap:.1f} %, geometric {mm:.2f} mm, landmarks {px:.1f} px")
    numbers |= {f"look_{look}_iou_percent": overlap, f"look_{look}_mm": mm}

# %% [markdown]
# Where the detector has erred the second look finds the face: in Table 1 the overlap on `in_model` rises from
# 93.2 to 94.5 % (our aim was 94), the geometric error falls from 2.12 to 1.99 mm, the photometric from 14.1
# to 12.9. On `outside` it falls from 3.05 to 2.91 mm, on `path_traced` it stays, and on photographs the inner
# landmarks lose a little (3.03 to 3.18 %): where the first reconstruction thinks the brows are is no better a
# guess than the detector's. So `SecondLook` is a method of its own, and not the default.
#
# ## Exercises
#
# Exercises 1 and 2 are above. Two more without a check:
#
# **3.** (★★★, 20 minutes) Take the `frame` away: drop the last three outputs in `reconstruct`, so that the
# detector's box alone places the face as in the paper. How much overlap does it cost on `in_model`?
#
# **4.** (★★★★, 30 minutes) Breed without noise, and with ten times the noise. Plot the spread of a late
# shape component and of yaw over the breeding steps. Which noise keeps the corpus as wide as the targets?

# %%
(out / "numbers.json").write_text(json.dumps({k: float(v) for k, v in numbers.items()}, indent=1))
print(len(numbers), "numbers")
