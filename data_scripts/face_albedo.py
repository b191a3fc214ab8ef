"""The albedo of the face model: skins of many people painted on the mesh, decomposed, with details apart."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from face_landmarks import Level
from face_painter import Painter
from linear_models import mirror_half, project, symmetric_pca, vertex_areas
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array
from tqdm import tqdm

from facelab.model.morphable_model import REGIONS

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

ALBEDO, DETAILS = 80, 24
DETAIL_ROUNDS = 8  # of averaging over neighbours: about 3 mm


_painter: Painter


def _start_worker(painter: Painter) -> None:
    global _painter
    _painter = painter


def _paint(i: int) -> NDArray[np.float16]:
    return _painter.paint(i).astype(np.float16)


def paint_people(painter: Painter, count: int, workers: int) -> NDArray[np.float16]:
    """The albedos of the first `count` people, (count, V, 4)."""
    out = np.empty((count, painter.count, 4), np.float16)
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(painter,)) as pool:
        drawn = pool.map(_paint, range(count), chunksize=8)
        for i, colours in enumerate(tqdm(drawn, total=count, unit="skin", mininterval=1)):
            out[i] = colours
    return out


@dataclass
class Albedo:
    """Joint diffuse and specular albedo on the finest level's vertices."""

    mean: Floats  # (V, 4)
    basis: Floats  # (Ka, V, 4)
    details: Floats  # (D, V, 4)
    coefficients: Floats  # (N, Ka) of the people


def build_albedo(fine: Level, colours: NDArray[np.float16], components: int = ALBEDO) -> Albedo:
    """PCA of albedos (N, V, 4) on the finest level; what it misses of some of them are the details."""
    count = len(colours)
    mean = colours.mean(0, dtype=np.float32)
    mean = 0.5 * (mean + mean[fine.mirror])
    deviations = colours.astype(np.float32) - mean
    importance = {"skin": 1, "lips": 1, "lids": 1, "eyes": 8, "interior": 0.1, "teeth": 0.1}
    factor = np.array([importance[name] for name in REGIONS], np.float32)
    area = vertex_areas(fine.vertices, fine.quads, factor[fine.region])
    area /= area.sum()
    spread = np.sqrt(((deviations**2).mean(0) * area[:, None]).sum(0))
    # The specular channel, a tenth of the diffuse in size, counts as much as half a diffuse channel.
    channel = np.array([1, 1, 1, (0.5 * spread[:3].mean() / spread[3]) ** 2], np.float32)
    weights = area[:, None] * channel
    flip = np.ones(4, np.float32)
    rows = deviations / np.float32(np.sqrt(count))
    basis, sigma = symmetric_pca(rows, weights, fine.mirror, flip, components)
    kept = (sigma**2).sum() / ((deviations**2).mean(0) * weights).sum()
    print(f"  albedo: {components} components keep {kept:.1%} of the variance")
    chosen = np.linspace(0, count - 1, DETAILS).astype(int)
    coefficients = project(deviations, basis, sigma, weights)
    smooth = mean + np.tensordot(coefficients[chosen], basis, 1)
    missed = mean + deviations[chosen] - smooth
    return Albedo(
        mean, basis, share_of(smooth, missed, fine.quads), mirror_half(coefficients, basis, fine.mirror, flip)
    )


def share_of(smooth: Floats, missed: Floats, quads: Ints) -> Floats:
    """Details (D, V, 4) that suit anybody: what was missed (D, V, 4) as a share of the smooth albedo.

    Only what is finer than a brow or a beard, whose places and colours are their owner's, and grey.
    """
    # A share of almost nothing (dark skin, hair) would be large on other skins: not of less than the floor.
    colours = missed[..., :3].sum(-1) / np.maximum(smooth[..., :3].sum(-1), 0.18)
    gloss = missed[..., 3] / np.maximum(smooth[..., 3], 0.015)
    share = np.stack([colours, gloss]).clip(-0.9, 0.9)
    average = neighbour_average(quads, smooth.shape[1])
    coarse = share.reshape(-1, share.shape[-1]).T
    for _ in range(DETAIL_ROUNDS):
        coarse = average @ coarse
    share = (share - coarse.T.reshape(share.shape)).clip(-0.6, 0.25)
    return np.stack([share[0]] * 3 + [share[1]], -1).astype(np.float32)


def neighbour_average(quads: Ints, count: int) -> csr_array:
    """The matrix (V, V) that takes the mean of each vertex and its neighbours along the edges."""
    ends = quads.ravel(), np.roll(quads, -1, 1).ravel()
    links = csr_array((np.ones(quads.size), ends), (count, count))
    links = links + links.T
    links.data[:] = 1
    links = links + eye_array(count, format="csr")
    return (links.multiply(1 / links.sum(1)[:, None])).tocsr()
