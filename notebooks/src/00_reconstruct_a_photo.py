# %% [markdown]
# # 00 · From one photograph to a 3D face
#
# One photograph goes in. Out come the pose of the head, its shape and expression, the colour of the skin
# without the light, and the light without the skin: a mesh that you can turn, relight and open in Blender.
# This notebook is the tour. It uses `facelab` as a finished tool; the notebooks that follow take every part
# of it apart: the face model (10), the rasterizer (20), image formation (21), the optimisation that is used
# here (30), and then published methods that do the same job with neural networks (40, 50).
#
# **What you will learn**
#
# - what goes into a reconstruction and what comes out of it: pose, shape, expression, skin, light
# - to turn, relight and export a face
# - what one photograph cannot tell
#
# **Time:** 10 minutes to read, half a minute to run. **Before this:** nothing.
#
# `make run PHOTO=me.jpg` executes this notebook for a picture of your own and leaves everything that it
# makes in `runs/`.

# %%
import json
import math
import time
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage.data import astronaut
from tqdm.auto import tqdm

from facelab.course.notebook import begin
from facelab.course.viewer import (
    MeshView,
    fit_camera,
    geometry_image,
    image_grid,
    mesh_figure,
    save_gif,
    to_array,
)
from facelab.evaluation.metrics import INNER_LANDMARKS, nme, photometric_rmse
from facelab.export import export_glb, export_obj, textured_mesh
from facelab.geometry.mesh import normalise
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.energy import Settings
from facelab.methods.fitting import fit_photos
from facelab.methods.segmentation import visible_part
from facelab.methods.textures import unwrap
from facelab.model.face import draw
from facelab.model.morphable_model import MorphableModel
from facelab.photos import crop_face, find_face, load_photo
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.illumination import (
    BlinnPhongLight,
    ambient_to_sh,
    directional_to_sh,
)

plt.rcParams.update({"figure.dpi": 120})

# %% tags=["parameters"]
PRESET = "quick"
DEVICE = "cpu"
SEED = 0
OUT_DIR = ""  # folder for the results; "": runs/00_reconstruct_a_photo of the repository
PHOTO = ""  # path of a picture; empty: the astronaut Eileen Collins, a public-domain portrait by NASA
FACE = -1  # which face of a picture with several, from the largest; -1: the largest, with a notice

# %% [markdown]
# `SEED` is not used: nothing here is random. The presets differ in how long the optimisation works and in
# the detail of what is drawn and exported:

# %%
PRESETS = {
    "tiny": {"levels": ((60, 0, 4), (120, 0, 4)), "detail": 1, "texture": 128, "views": 3},
    "quick": {"levels": Settings().levels, "detail": 2, "texture": 1024, "views": 5},
    "full": {"levels": (*Settings().levels, (240, 2, 6)), "detail": 2, "texture": 2048, "views": 7},
}
preset, out = begin("00_reconstruct_a_photo", globals(), PRESETS)
for name, values in PRESETS.items():
    print(f"{name:6s}", values, "  <- this run" if name == PRESET else "")


def save(name: str, image: torch.Tensor) -> None:
    """Keep a picture (3, H, W) beside the executed notebook."""
    Image.fromarray(to_array(image)).save(out / name)


# %% [markdown]
# ## 1. Find the face
#
# A picture is a tensor `(3, height, width)` of sRGB values between 0 and 1. `find_face` returns a box and 68
# **landmarks** in the order that everybody uses (iBUG): 17 along the jaw, 10 on the brows, 9 on the nose, 12
# around the eyes, 20 around the lips. `crop_face` cuts out a square around them; everything below happens in
# that square.

# %%
photo = load_photo(PHOTO) if PHOTO else torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
with warnings.catch_warnings(record=True) as notices:
    warnings.simplefilter("always")
    face = find_face(photo, index=None if FACE < 0 else FACE)
for notice in notices:
    print(notice.message)
crop = crop_face(photo, face.landmarks, size=Settings().size)


def dots(image: torch.Tensor, points: torch.Tensor, colour: str, radius: float) -> torch.Tensor:
    """The picture with a dot on every point."""
    drawing = Image.fromarray(to_array(image))
    pen = ImageDraw.Draw(drawing)
    for x, y in points.tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return torch.from_numpy(np.array(drawing)).permute(2, 0, 1) / 255


found = dots(photo, face.landmarks, "#ffd60a", max(1.0, face.size / 110))
save("photo.png", photo)
save("landmarks.png", found)
image_grid(
    [found, dots(crop.image, crop.landmarks, "#ffd60a", 1.6)],
    ["photograph and landmarks", f"the crop, {Settings().size} px"],
)

# %% [markdown]
# ## 2. Fit the model
#
# A **morphable model** is an average face plus weighted directions of change: 128 for who it is, 64 for the
# expression, 80 for the colour of the skin. Together with six numbers for the pose and 27 for the light they
# make a picture. Fitting looks for the weights whose picture is *this* picture: first from the landmarks
# alone, then from the colour of every visible vertex, on a small picture first and then on larger ones. The
# curve shows the energy that is minimised; it jumps where the picture gets larger, because the question
# changes.
#
# Hair, hands and glasses are not in the model. A small segmentation network says where the crop shows the
# face itself; what it leaves out does not count.

# %%
visible = visible_part(crop)
image_grid([crop.image, torch.where(visible, crop.image, 1.0)], ["the crop", "what counts"])
settings = Settings(levels=preset["levels"])
bar = tqdm(total=100, desc="fitting", bar_format="{desc:20s} {percentage:3.0f}% |{bar}|")


def progress(text: str, fraction: float) -> None:
    bar.set_description_str(text)
    bar.update(round(100 * fraction) - bar.n)


start = time.perf_counter()
fit = fit_photos(
    [crop.image.to(DEVICE)], [crop.landmarks], None, settings, progress, [visible], [crop.confidence]
)[0]
bar.close()
seconds = time.perf_counter() - start
figure, axis = plt.subplots(figsize=(5, 2.2), layout="tight")
axis.semilogy(fit.energies)
axis.set(xlabel="accepted step", ylabel="energy")
plt.show()

# %% [markdown]
# ## 3. Look at it
#
# The estimate drawn over the photograph, and its four ingredients: the **geometry**, the **albedo** (the
# skin under perfectly white, even light), the **shading** (the light on a white face), and their product.

# %%
model = MorphableModel.load(subdivisions=preset["detail"], device=DEVICE).truncate(
    settings.identity, settings.expression, settings.albedo
)
size = 2 * settings.size
picture = fit.render(size, model)
vertices = fit.vertices(model)
diffuse, specular = model.albedo(fit.estimate.albedo)
large = crop_face(photo, face.landmarks, size=size)
overlay = torch.where(picture.mask, picture.image.clamp(0, 1), large.image)
geometry = geometry_image(vertices, model.triangles, fit.camera(size), size, size)
albedo = torch.where(picture.mask, linear_to_srgb(picture.albedo), 1.0)
shading = picture.shading / picture.shading.max()  # a lamp has no natural upper limit, a picture has
shading = torch.where(picture.mask, linear_to_srgb(shading.clamp(min=0)), 1.0)
for name, image in {"overlay": overlay, "geometry": geometry, "albedo": albedo, "shading": shading}.items():
    save(f"{name}.png", image)
save("overlay_on_photo.png", large.paste(photo, picture.image.clamp(0, 1), picture.mask))
image_grid(
    [large.image, overlay, geometry, albedo, shading],
    ["photograph", "estimate over it", "geometry", "albedo", "shading"],
)

# %% [markdown]
# How well does it match? Two numbers that need no ground truth: the distance between the model's own
# landmarks and the detected ones, and the colour difference inside the face. Neither proves that the shape
# is right; for that, notebook 90 uses faces whose true shape is known.

# %%
landmark_error = float(
    nme(fit.landmarks(), crop.landmarks, normaliser="box_diagonal", points=INNER_LANDMARKS)
)
drawn = fit.render(model=model)
colour_error = float(photometric_rmse(drawn.image.clamp(0, 1), crop.image, drawn.mask))
identity = float(fit.estimate.identity.square().mean().sqrt())
print(f"inner landmarks: {100 * landmark_error:.2f} % of the diagonal of the landmark box")
print(f"colour: {colour_error:.1f} of 255 (root mean square over the face, hair and glasses included)")
print(f"identity: {identity:.2f} standard deviations (root mean square; 1 is typical)")

# %% [markdown]
# ## 4. The skin that is in the photograph
#
# 80 weights for the colour of a skin know neither freckles nor the shape of a brow. The photograph does. With
# shape, camera and light known, every visible spot of the face can be looked up in the picture and its light
# divided out: that is **unwrapping**. What one side hides is taken from the other, what hair hides on both
# from the model, in the tone of the visible skin. A highlight that the light does not explain stays in the
# skin, and a smile stays on a face that no longer smiles; notebook 21 has the reason.

# %%
in_photo = fit.face().in_photo(crop)
texture = unwrap(in_photo, photo.to(DEVICE), model, preset["texture"])
person = replace(in_photo, camera=fit.camera(size), texture=texture)
textured = draw(person.surface(model), person.camera, person.light, size, size)
own = torch.where(textured.mask, textured.image.clamp(0, 1), large.image)
save("texture.png", linear_to_srgb(texture[:3]))
save("own_skin.png", own)
image_grid(
    [large.image, overlay, own, linear_to_srgb(texture[:3])],
    ["photograph", "the model's skin", "the photograph's skin", "unwrapped"],
)

# %% [markdown]
# ## 5. Turn it, relight it
#
# Shape, skin and light are separate now, so each can be replaced. Below, the head turns under the light of
# the photograph; then it stays, and the light changes. The highlights come from the model's **specular
# albedo**, which one photograph hardly determines: they are what the model expects of such skin.

# %%
yaws = torch.linspace(-45, 45, preset["views"]).tolist()
front = fit_camera(vertices, settings.size, settings.size)
middle = (vertices.amin(0) + vertices.amax(0)) / 2


def turned(yaw: float) -> torch.Tensor:
    """The face before a camera that went round it by `yaw` degrees."""
    turn = front.rotation @ euler_to_matrix(torch.tensor([0.0, math.radians(yaw), 0.0])).to(vertices)
    camera = replace(front, rotation=turn, translation=front.translation + (front.rotation - turn) @ middle)
    shown = draw(person.surface(model), camera, person.light, settings.size, settings.size, antialias=True)
    return shown.image.clamp(0, 1)


views = [turned(yaw) for yaw in yaws]
for yaw, view in zip(yaws, views):
    save(f"turned_{yaw:+03.0f}.png", view)
save_gif(views, out / "turntable.gif")
image_grid(views, [f"{yaw:+.0f}°" for yaw in yaws])


# %%
def lamp(direction: tuple[float, float, float], colour: tuple[float, float, float], ambient: float):
    """One lamp at 2 m and some light from everywhere."""
    towards = normalise(torch.tensor(direction, dtype=torch.float32))
    matt = directional_to_sh(towards, torch.tensor(colour)) + ambient_to_sh(torch.full((3,), ambient))
    place = 2000 * towards + fit.estimate.translation.cpu()
    shine = (torch.tensor(colour), torch.tensor(24.0))
    return BlinnPhongLight(*(part.to(vertices) for part in (matt, place, *shine)))


lamps = {
    "soft room": lamp((0, 1, 1), (0.3, 0.3, 0.3), 0.55),
    "window, left": lamp((-1, 0.3, 0.5), (1.1, 1.15, 1.25), 0.12),
    "evening sun, right": lamp((1, 0.35, 0.5), (1.6, 1.0, 0.5), 0.12),
    "lamp from below": lamp((0, -1, 0.6), (1.0, 0.9, 0.75), 0.06),
}
relit = []
for name, new_light in lamps.items():
    camera = fit.camera(settings.size)
    shown = draw(person.surface(model), camera, new_light, settings.size, settings.size, antialias=True)
    relit.append(shown.image.clamp(0, 1))
    save(f"relit_{name.replace(',', '').replace(' ', '_')}.png", relit[-1])
row = [large.image, own, geometry, albedo, shading]
row = [torch.nn.functional.interpolate(image[None], (240, 240), mode="area")[0] for image in row]
image_grid(
    [*row, views[0], views[-1], *relit[1:]],
    ["photograph", "estimate over it", "geometry", "albedo", "shading", "turned", "turned", *list(lamps)[1:]],
    columns=5,
).savefig(out / "summary.png", dpi=90)
image_grid(relit, list(lamps))

# %% [markdown]
# ## 6. Take it with you
#
# `face.glb` (glTF, metres) and `face.obj` (millimetres, with `.mtl` and textures) open in Blender and most
# other programs. The texture is the albedo, without the light of the photograph, so the light you set there
# is the only light. The view below can be turned with the mouse in JupyterLab; elsewhere it is a picture.

# %%
mesh = textured_mesh(model, vertices, diffuse, specular, texture=texture)
written = [export_glb(mesh, out / "face.glb"), *export_obj(mesh, out / "face.obj")]
print("\n".join(f"{path.name:20s} {path.stat().st_size / 1e3:8.0f} kB" for path in written))

# %%
# the coarsest mesh is enough to be turned by hand, and keeps this notebook small
coarse = MorphableModel.load(subdivisions=0).truncate(settings.identity, settings.expression, settings.albedo)
view = mesh_figure(fit.vertices(coarse), coarse.triangles, person.surface(coarse).diffuse)
MeshView(view.figure, mesh_figure(vertices, model.triangles, person.surface(model).diffuse).image)

# %% [markdown]
# ## What to keep in mind
#
# - **Nobody measured this face.** The shape is the most plausible one *of this model* that explains one
#   picture. Depth is hardly seen from the front; the prior fills it in.
# - **Dark skin in bright light and light skin in dim light make the same picture.** The albedo is the
#   model's guess about which it was, and it is biased towards the average of the people it was made from.
#   Notebook 21 constructs such pairs; the scoreboard reports errors per group.
# - **No hair, ears or glasses**: they are outside this model and are treated as noise. Beards and teeth are
#   in it (notebook 10), as colour of the skin and a closed row, which is little: a real beard is noise, too.
# - The landmark detector (dlib) was trained on iBUG 300-W, whose terms are non-commercial. The face model is
#   free (CC0 sources): see notebook 10.

# %%
numbers = {
    "inner_landmarks_percent": 100 * landmark_error,
    "photometric_rmse": colour_error,
    "identity_rms_sigma": identity,
    "energy_ratio": fit.energies[-1] / fit.energies[0],
    "files": len(written),
    "seconds_fitting": seconds,
}
(out / "numbers.json").write_text(json.dumps(numbers, indent=1))
print(f"fitted in less than {10 * (int(seconds / 10) + 1)} s")
