# %% [markdown]
# # 91 · Relight and edit
#
# A reconstruction that has taken a photograph apart can put it together in another way: under another sky,
# with somebody else's expression, with another skin, half-way to another person. Each of these is a few
# lines, because each is a change of *one* factor. That is the test of the taking apart, too: where a factor
# had swallowed a part of another, the edit shows it.
#
# **What you will learn**
#
# - to turn a panorama into nine coefficients of light
# - to carry an expression over, to find the direction of a trait, to morph
# - to put an edited face back into its photograph, in linear light
# - what must not be done with it
#
# **Time:** 40 minutes, with exercises 70. **Before this:** notebooks 00, 10 (the model) and 21 (light).

# %%
import json
import math

import matplotlib.pyplot as plt
import roma
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage.color import rgb2lab
from skimage.data import astronaut
from torch import Tensor

from facelab.course import checks
from facelab.course.notebook import begin
from facelab.course.viewer import image_grid, to_array
from facelab.evaluation.test_sets import load_test_set
from facelab.geometry.mesh import normalise
from facelab.methods.energy import Settings
from facelab.methods.fitting import Fit, fit_photos
from facelab.methods.residuals import Estimate
from facelab.model.morphable_model import MorphableModel
from facelab.photos import crop_face, find_face
from facelab.rendering.colour import linear_to_srgb, srgb_to_linear
from facelab.rendering.illumination import (
    SphericalHarmonicsLight,
    directional_to_sh,
    sh_basis,
    sh_irradiance,
)
from facelab.rendering.image_formation import render

plt.rcParams.update({"figure.dpi": 120, "axes.titlesize": 10})

# %% tags=["parameters"]
PRESET = "quick"
DEVICE = "cpu"
SEED = 0
OUT_DIR = ""  # folder for the results; "": runs/91_relight_and_edit of the repository

# %%
PRESETS = {
    "tiny": {"levels": ((60, 0, 4),), "detail": 0, "sky": 16, "people": 300, "strangers": 4},
    "quick": {"levels": ((60, 0, 12), (120, 1, 8)), "detail": 1, "sky": 64, "people": 1600, "strangers": 12},
    "full": {"levels": Settings().levels, "detail": 2, "sky": 256, "people": 1600, "strangers": 30},
}
P, out = begin("91_relight_and_edit", globals(), PRESETS)
numbers: dict[str, float] = {}  # what this notebook measures; written to OUT_DIR/numbers.json at the end
print(f"{'':10}" + "".join(f"{name:>28}" for name in PRESETS))
for key in P:
    print(f"{key:10}" + "".join(f"{p[key]!s:>28}" for p in PRESETS.values()))

# %% [markdown]
# `levels` of the fits (notebook 30), `detail` of the mesh that is drawn, `sky`: rows of a panorama, `people`
# from whom traits are learned, `strangers` among whom we choose. `DEVICE` is not used: the fits are small.
#
# ## 1 · Two faces, taken apart
#
# The astronaut, and a stranger who does not exist: the face with the most closed mouth among some of the
# path-traced test set. Both are fitted as in notebook 00.

# %%
settings = Settings(levels=P["levels"])
size = settings.size
model = MorphableModel.load(subdivisions=P["detail"])
photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
crop = crop_face(photo, find_face(photo).landmarks, size=size)


def lips_apart(points: Tensor) -> float:
    """Gap between the inner lips over the distance of the eyes, of landmarks (68, 2 or 3)."""
    return float((points[62] - points[66]).norm() / (points[36] - points[45]).norm())


strangers = list(load_test_set("path_traced", limit=P["strangers"]))
stranger = min(strangers, key=lambda record: lips_apart(record.landmarks))
other_crop = crop_face(stranger.image, stranger.landmarks, size=size)
own, donor = (
    fit_photos([c.image], [c.landmarks], settings=settings, inside=[c.inside])[0] for c in (crop, other_crop)
)
image_grid(
    [crop.image, own.render(size, model).image, other_crop.image, donor.render(size, model).image],
    ["the astronaut", "her fit", "a stranger", "the fit"],
)

# %% [markdown]
# From here on a face is an `Estimate`: identity, expression, albedo, pose, light. One function draws it,
# and an edit is `replace` with another part.


# %%
def drawn(estimate: Estimate, fit: Fit = own) -> Tensor:
    """The face of an estimate, (3, size, size) sRGB on black, with the fit's camera settings."""
    camera = estimate.camera(settings.focal * size, size)
    vertices = model.vertices(estimate.identity, estimate.expression)
    light = SphericalHarmonicsLight(estimate.light)
    picture = render(
        vertices, model.triangles, camera, light, model.albedo(estimate.albedo)[0], None, size, size,
        antialias=True, background=torch.zeros(3, size, size),
    )  # fmt: skip
    return picture.image.clamp(0, 1)


def with_parts(estimate: Estimate, **parts: Tensor) -> Estimate:
    """A copy with other parts."""
    return Estimate(**(vars(estimate) | parts))


# %% [markdown]
# ## 2 · A panorama as a light
#
# A panorama holds the light from every direction: row for the angle from above, column for the way round.
# Here the middle of the picture is what the *face* looks at, the camera and what is behind it. What a matt
# surface with normal $n$ makes of it is an integral (notebook 21),
#
# $$E(n)=\frac1\pi\int L(\omega)\,\max(0,n\cdot\omega)\,\mathrm d\omega\approx
# \sum_{b=1}^9\gamma_bH_b(n),\qquad
# \gamma_b=\frac{A_{l(b)}}{\pi}\int L(\omega)H_b(\omega)\,\mathrm d\omega,$$
#
# with $A_0=\pi$, $A_1=\frac{2\pi}3$, $A_2=\frac\pi4$: nine sums over pixels. A pixel near a pole covers
# less of the sphere than one at the horizon; its **solid angle** is $\mathrm d\omega=\sin\theta\,\mathrm
# d\theta\,\mathrm d\varphi$.


# %%
def sphere(height: int) -> tuple[Tensor, Tensor]:
    """Of a panorama (height, 2 height): directions (H, W, 3), +z to the camera; solid angles (H, W)."""
    theta = (torch.arange(height) + 0.5) * math.pi / height
    phi = ((torch.arange(2 * height) + 0.5) / height - 1) * math.pi
    theta, phi = torch.meshgrid(theta, phi, indexing="ij")
    xyz = torch.stack([theta.sin() * phi.sin(), theta.cos(), theta.sin() * phi.cos()], -1)
    return xyz, theta.sin() * (math.pi / height) ** 2


directions, solid = sphere(P["sky"])
print(f"the pixels' solid angles sum to {float(solid.sum() / math.pi):.4f} π")


def lamp(towards: tuple[float, float, float], width: float, colour: tuple[float, float, float]) -> Tensor:
    """A soft round lamp or window in the panorama (H, W, 3), `width` in radians."""
    near = directions @ normalise(torch.tensor(towards))
    return ((near - 1) / (1 - math.cos(width))).exp()[..., None] * torch.tensor(colour)


up = directions[..., 1:2]
panoramas = {
    "noon": 0.6 * (0.5 + 0.5 * up) * torch.tensor([0.7, 0.85, 1.1]) + lamp((0.3, 1, 0.5), 0.12, (60, 57, 50)),
    "window, left": 0.05 + lamp((-1, 0.2, 0.35), 0.5, (5.5, 5.8, 6.2)),
    "evening": 0.12 * (1 + up) * torch.tensor([0.8, 0.7, 1.2]) + lamp((1, 0.12, 0.4), 0.2, (38, 19, 7)),
    "neon": 0.03 + lamp((-1, 0, 0.6), 0.4, (7, 0.5, 5)) + lamp((1, -0.1, 0.5), 0.4, (0.3, 4, 7)),
}  # fmt: skip
image_grid([linear_to_srgb(p.clamp(0, 1)).permute(2, 0, 1) for p in panoramas.values()], list(panoramas))

# %% [markdown]
# **Exercise 1** (★★, 10 minutes): the nine sums, for the three channels.


# %% tags=["solution"]
def panorama_to_sh(panorama: Tensor, directions: Tensor, solid: Tensor) -> Tensor:
    """Coefficients (9, 3) of the shading under a panorama (H, W, 3), linear; directions, solid: `sphere`."""
    # SOLUTION
    band = torch.tensor([1.0] + 3 * [2 / 3] + 5 * [1 / 4]).to(panorama)
    return band[:, None] * torch.einsum("hwc,hw,hwb->bc", panorama, solid, sh_basis(directions))


# %%
def lamp_by_lamp(panorama: Tensor, directions: Tensor, solid: Tensor) -> Tensor:
    """Every pixel a distant lamp, and their coefficients added."""
    lamps = panorama.flatten(0, 1) * (solid.flatten() / math.pi)[:, None]
    return directional_to_sh(directions.flatten(0, 1), lamps).sum(0)


def unblurred(p: Tensor, d: Tensor, s: Tensor) -> Tensor:
    return torch.einsum("hwc,hw,hwb->bc", p, s, sh_basis(d))


checks.register(
    checks.Exercise(
        name="light of a panorama",
        task="f(panorama (H, W, 3), directions (H, W, 3), solid (H, W)) -> (9, 3) of the shading.",
        reference=lamp_by_lamp,
        inputs=lambda g: (torch.rand(8, 16, 3, generator=g), *sphere(8)),
        difficulty=2,
        minutes=10,
        mistakes={
            "Pixels near the poles are smaller: each counts with its solid angle.": (
                lambda p, d, s: lamp_by_lamp(p, d, torch.full_like(s, 4 * math.pi / s.numel()))
            ),
            "That is the light; the surface blurs it, band by band: 1, 2/3, 1/4.": unblurred,
            "The factor 1/π of E is missing.": lambda p, d, s: math.pi * lamp_by_lamp(p, d, s),
            "An integral is a sum over pixels, not their mean.": (
                lambda p, d, s: lamp_by_lamp(p, d, s) / s.numel()
            ),
            "Each channel has coefficients of its own.": (
                lambda p, d, s: lamp_by_lamp(p.mean(-1, keepdim=True).expand_as(p), d, s)
            ),
        },
        idea="Project the panorama onto each basis function, then let the cosine blur it.",
        hint="einsum over rows and columns of panorama, solid angle and sh_basis(directions), times A_l / π.",
    )
)
checks.check("light of a panorama", panorama_to_sh)

# %% [markdown]
# How good are nine numbers for a whole sky? Against the integral itself, at random normals; and against one
# number, the mean brightness:

# %%
normals = normalise(torch.randn(300, 3, generator=torch.Generator().manual_seed(SEED)))
lights = {name: panorama_to_sh(p, directions, solid) for name, p in panoramas.items()}
cosine = (normals @ directions.flatten(0, 1).T).clamp(min=0) * solid.flatten() / math.pi
worst = {"nine": 0.0, "one": 0.0}
for name, panorama in panoramas.items():
    exact = cosine @ panorama.flatten(0, 1)
    nine = sh_irradiance(normals, lights[name])
    one = lights[name][0] * sh_basis(normals)[:, :1]
    gaps = {k: float((v - exact).norm() / exact.norm()) for k, v in (("nine", nine), ("one", one))}
    worst = {k: max(worst[k], gaps[k]) for k in gaps}
    print(f"{name:14} relative error with nine coefficients {gaps['nine']:.3f}, with one {gaps['one']:.3f}")
numbers |= {f"light_error_{k}": v for k, v in worst.items()}

# %% [markdown]
# Now only the light changes. In the second row the head turns under it: the light stays where it is.

# %%
e = own.estimate
turn = roma.rotvec_to_rotmat(torch.tensor([0.0, math.radians(-35), 0.0]))
relit = [drawn(with_parts(e, light=light)) for light in lights.values()]
turned = [drawn(with_parts(e, light=light, rotation=turn @ e.rotation)) for light in lights.values()]
image_grid([crop.image, *relit, drawn(with_parts(e, rotation=turn @ e.rotation)), *turned],
           ["photograph", *lights, "turned", *(5 * [""])[1:]], columns=5)  # fmt: skip

# %% [markdown]
# What is missing: the nose casts no shadow, so a low lamp lights both cheeks; and whatever of the
# photograph's light the fit took for skin stays on the skin, wherever the new lamp stands.
#
# ## 3 · Somebody else's expression
#
# Identity and expression add up in the model, so an expression is carried over by carrying its
# coefficients. It is the *movement* that is carried: where the stranger's mouth is narrow, hers stays as
# wide as it is.

# %%
closed = with_parts(e, expression=donor.estimate.expression)
smiling = with_parts(donor.estimate, expression=e.expression)


def gap_of(estimate: Estimate) -> float:
    """How far the lips are apart."""
    return lips_apart(model.landmarks(model.vertices(estimate.identity, estimate.expression)))


gaps = {"own": gap_of(e), "carried": gap_of(closed), "donor": gap_of(donor.estimate)}
print({k: round(v, 3) for k, v in gaps.items()}, "lips apart, in distances of the eyes")
numbers["carried_to_donor"] = abs(gaps["carried"] - gaps["donor"])
numbers["own_to_donor"] = abs(gaps["own"] - gaps["donor"])
levels = (0.0, 0.5, 1.0, 1.4)
scaled = [drawn(with_parts(e, expression=k * e.expression)) for k in levels]
image_grid(
    [drawn(e), drawn(closed), drawn(donor.estimate), drawn(smiling), *scaled],
    ["her own", "with the stranger's", "the stranger", "with hers", *(f"her own × {k}" for k in levels)],
    columns=4,
)

# %% [markdown]
# An expression that was estimated from one picture holds a part of the identity (notebook 10: they
# overlap), and that part is carried along. Two photographs of one person, fitted together, would part them.
#
# ## 4 · Traits as directions
#
# Take any number that can be measured on the model's people: how light a skin is, how wide a face. A linear
# regression on the coefficients, $t\approx w\cdot\alpha + c$, says how it depends on them, and the *shortest*
# change of $\alpha$ (in standard deviations: the most plausible one) that raises it by one unit is $w/\lVert
# w\rVert^2$.
#
# **Exercise 2** (★★, 10 minutes): that direction.


# %% tags=["solution"]
def direction_of(coefficients: Tensor, trait: Tensor) -> Tensor:
    """(N, K) coefficients and (N,) a measured trait -> (K,): the shortest step that raises it by 1."""
    # SOLUTION
    x, t = coefficients - coefficients.mean(0), trait - trait.mean()
    w = torch.linalg.solve(x.T @ x, x.T @ t)
    return w / w.square().sum()


# %%
def regression(x: Tensor, t: Tensor, constant: bool = True) -> Tensor:
    """Slopes (K,) by least squares."""
    rows = F.pad(x, (0, 1), value=1.0) if constant else x
    return torch.linalg.lstsq(rows, t[:, None]).solution[: x.shape[1], 0]


def some_people(g: torch.Generator) -> tuple[Tensor, Tensor]:
    mixing = torch.eye(4, dtype=torch.float64) + 0.3 * checks.uniform(g, 4, 4)
    x = checks.uniform(g, 50, 4) @ mixing + 0.7
    return x, x @ checks.uniform(g, 4) + 3 + 0.1 * checks.uniform(g, 50)


checks.register(
    checks.Exercise(
        name="direction of a trait",
        task="f(coefficients (N, K), trait (N,)) -> (K,): the shortest step that raises the trait by 1.",
        reference=lambda x, t: regression(x, t) / regression(x, t).square().sum(),
        inputs=some_people,
        difficulty=2,
        minutes=10,
        mistakes={
            "Those are the slopes; a step of w raises the trait by |w|².": regression,
            "That has length 1; asked for is the step that raises the trait by 1.": (
                lambda x, t: F.normalize(regression(x, t), dim=0)
            ),
            "The regression needs a constant: centre coefficients and trait.": (
                lambda x, t: regression(x, t, False) / regression(x, t, False).square().sum()
            ),
            "Coefficients go together: solve with their covariance, do not only correlate.": (
                lambda x, t: _covariance(x, t) / _covariance(x, t).square().sum()
            ),
        },
        idea="First the slopes by least squares, then the point nearest to 0 on the plane w·x = 1.",
        hint="Centre both; w = solve(x.T x, x.T t); w / (w·w).",
    )
)


def _covariance(x: Tensor, t: Tensor) -> Tensor:
    return (x - x.mean(0)).T @ (t - t.mean()) / len(x)


checks.check("direction of a trait", direction_of)

# %% [markdown]
# Two traits, measured on the model's people: lightness $L^*$ of the skin, and the face's width over its
# height. Then a step, and the same measurement again. (*Age* cannot be had like this: the model's file says
# of nobody how old they are, and notebook 10 says why it has no labels.)

# %%
cage = MorphableModel.load(subdivisions=0)
skin = cage.region_vertices("skin")


def lightness(beta: Tensor) -> Tensor:
    """L* of the mean skin colour of coefficients (N, Ka)."""
    colour = linear_to_srgb(cage.albedo(beta)[0][:, skin].mean(1)).numpy()
    return torch.from_numpy(rgb2lab(colour)[:, 0])


def width_over_height(alpha: Tensor) -> Tensor:
    """Of identities (N, Ki): the jaw's ends apart, over the height from the nose's root to the chin."""
    points = cage.landmarks(cage.vertices(alpha))
    return (points[:, 0] - points[:, 16]).norm(dim=-1) / (points[:, 27] - points[:, 8]).norm(dim=-1)


people = slice(0, P["people"])
beta, alpha = cage.people_albedo[people].float(), cage.people_identity[people].float()
lighter = direction_of(beta.double(), lightness(beta).double()).float()
wider = direction_of(alpha.double(), width_over_height(alpha).double()).float()
steps = {
    "lightness": (lighter, e.albedo, lightness, 15.0),
    "width": (wider, e.identity, width_over_height, 0.1),
}
for name, (step, at, measure, amount) in steps.items():
    before, after = (float(measure((at + k * step)[None])[0]) for k in (0.0, amount))
    numbers[f"{name}_reached"] = (after - before) / amount
    print(f"{name:10} {before:6.2f} -> {after:6.2f}, asked for {amount:+.2f}; "
          f"{float((amount * step).norm()):.1f} standard deviations")  # fmt: skip

# %%
shifts, shapes = (-30.0, -15.0, 0.0, 15.0), (-0.15, -0.05, 0.05, 0.15)
image_grid(
    [drawn(with_parts(e, albedo=e.albedo + k * lighter)) for k in shifts]
    + [drawn(with_parts(e, identity=e.identity + k * wider)) for k in shapes],
    [f"L* {k:+.0f}" for k in shifts] + [f"width/height {k:+.2f}" for k in shapes],
    columns=4,
)  # fmt: skip

# %% [markdown]
# The width does what it was asked for. Lightness falls short on a light skin: $L^*$ is a curve of the
# albedo, which a line only touches, so a large step needs a second look at where it has led.
#
# A direction is what goes *together* in this population, which we made (notebook 10): if lips change with
# the skin, then because they did in the people it was learned from. It says nothing about causes, and
# nothing about anybody.
#
# ## 5 · A morph
#
# Half-way between two people lie the means of their coefficients; the prior says that it is a plausible face,
# nearer to the average than either. Rotations are interpolated on the shortest way (`roma`), not by entries.

# %%
d = donor.estimate
between = []
for k in (0.0, 0.25, 0.5, 0.75, 1.0):
    way = roma.rotmat_to_rotvec(d.rotation @ e.rotation.mT)
    parts = {key: (1 - k) * vars(e)[key] + k * vars(d)[key]
             for key in ("identity", "expression", "albedo", "translation", "light")}  # fmt: skip
    between.append(Estimate(rotation=roma.rotvec_to_rotmat(k * way) @ e.rotation, **parts))
numbers["middle_sigma"] = float(between[2].identity.square().mean().sqrt())
numbers["ends_sigma"] = float(torch.stack([e.identity, d.identity]).square().mean(1).sqrt().mean())
print(f"identity: {numbers['middle_sigma']:.2f} standard deviations in the middle, "
      f"{numbers['ends_sigma']:.2f} at the ends")  # fmt: skip
image_grid([drawn(estimate) for estimate in between], [f"{k:.0%}" for k in (0, 0.25, 0.5, 0.75, 1)])

# %% [markdown]
# ## 6 · Back into the photograph
#
# The edited face is laid over the photograph with a soft edge. Light adds up, pixel values do not (notebook
# 21).
#
# **Exercise 3** (★, 5 minutes): mix two pictures in linear light.


# %% tags=["solution"]
def mix(below: Tensor, above: Tensor, alpha: Tensor) -> Tensor:
    """sRGB pictures (3, H, W) and the share alpha (1, H, W) of `above` -> sRGB (3, H, W)."""
    # SOLUTION
    return linear_to_srgb(alpha * srgb_to_linear(above) + (1 - alpha) * srgb_to_linear(below))


# %%
def mixed_light(below: Tensor, above: Tensor, alpha: Tensor) -> Tensor:
    """The difference, added in part."""
    start = srgb_to_linear(below)
    return linear_to_srgb(start + alpha * (srgb_to_linear(above) - start))


checks.register(
    checks.Exercise(
        name="mix two pictures",
        task="f(below (3, H, W), above (3, H, W), alpha (1, H, W)) -> (3, H, W), all sRGB: mixed as light.",
        reference=mixed_light,
        inputs=lambda g: (torch.rand(3, 5, 6, generator=g), torch.rand(3, 5, 6, generator=g),
                          torch.rand(1, 5, 6, generator=g)),
        difficulty=1,
        minutes=5,
        mistakes={
            "That mixes the encoded values: decode first, encode at the end.": (
                lambda b, a, k: k * a + (1 - k) * b
            ),
            "alpha is the share of what is above.": lambda b, a, k: mixed_light(a, b, k),
            "That is linear light; a picture is encoded as sRGB.": (
                lambda b, a, k: srgb_to_linear(mixed_light(b, a, k))
            ),
            "What is below counts with 1 - alpha.": lambda b, a, k: linear_to_srgb(
                k * srgb_to_linear(a) + srgb_to_linear(b)
            ),
        },
        idea="Undo the encoding, mix, encode.",
        hint="srgb_to_linear, linear_to_srgb, and alpha * above + (1 - alpha) * below.",
    )
)  # fmt: skip
checks.check("mix two pictures", mix)

# %%
covered = own.render(size, model).mask.float()
soft = F.avg_pool2d(covered[None], 13, 1, 6, count_include_pad=False)[0]
soft = (2 * soft - 1).clamp(0, 1)  # 0 on the outline, so that nothing of the black background comes in
edits = {
    "the fit": e,
    "mouth closed": closed,
    "neutral": with_parts(e, expression=0 * e.expression),
    "L* -15": with_parts(e, albedo=e.albedo - 15 * lighter),
}
pasted = {name: mix(crop.image, drawn(estimate), soft) for name, estimate in edits.items()}
for name, picture in pasted.items():
    label = PngInfo()
    label.add_text("Description", f"EDITED with facelab: {name}. Not a photograph of a real moment.")
    Image.fromarray(to_array(picture)).save(out / f"{name.replace(' ', '_')}.png", pnginfo=label)
marked = [Image.open(path).text for path in sorted(out.glob("*.png"))]
numbers["files_marked"] = sum("EDITED" in text.get("Description", "") for text in marked)
image_grid([crop.image, *pasted.values()], ["photograph", *pasted])

# %% [markdown]
# Where the edited face has moved inwards the old one looks out from under it: a chin twice, a second corner
# of the mouth. Neck, hair and ears keep the old light and the old skin. That is why such pictures convince
# at a glance and not at a second one, and why the networks that come next paint the rest, too.

# %% [markdown]
# ## 7 · What must not be done with it
#
# - **Not without being asked.** A face edited into an expression that its owner never had says something
#   about them. Ask first, and show what you made. The astronaut's portrait is in the public domain; she is
#   a person all the same, which is why nothing above puts words into her mouth.
# - **Not as a record.** Every file written above says in its metadata that it was edited. Whoever passes
#   pictures on keeps that, and says it beside the picture, since metadata get lost.
# - **Not as a finding.** The skin under "L* -15" is not what somebody else would look like, the neutral
#   face not a passport picture, and a morph no relative. Directions are averages over people that we made
#   up.
# - **Never to infer.** A trait's direction can be turned round and read off a stranger: age, origin, sex,
#   health. It would be wrong for the person, since it is a correlation in an invented population, and it
#   would be a harm if it were right.
#
# **What you have now.** A face as five things that can be changed one at a time, and an eye for where they
# were not taken apart cleanly.

# %%
(out / "numbers.json").write_text(json.dumps({k: float(v) for k, v in numbers.items()}, indent=1))
for key, value in numbers.items():
    print(f"{key:24} {value:.4g}")
