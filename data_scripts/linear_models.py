"""Linear models of shapes and colours: PCA that keeps the mirror symmetry, alignment, projection."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

FLIP = np.array([-1, 1, 1], np.float32)  # a mirrored point


def symmetric_pca(
    rows: Floats, weights: Floats, mirror: Ints, flip: Floats, count: int
) -> tuple[Floats, Floats]:
    """PCA of deviations and their mirror images: bases are exactly symmetric or antisymmetric.

    `rows` (N, V, C) are scaled so that the covariance is rowsᵀ rows; `weights` (V, C) sum to one over the
    vertices; `flip` (C,) is the sign of a channel under mirroring. Adding the mirror images makes the
    covariance block-diagonal, so the two parts are decomposed apart.
    Returns the basis (count, V, C) per standard deviation and the standard deviations (count,) by weight.
    """
    parts = []
    for sign in (1, -1):
        part = 0.5 * (rows + sign * flip * rows[:, mirror])
        scaled = (part * np.sqrt(weights)).reshape(len(rows), -1)
        variances, vectors = np.linalg.eigh((scaled @ scaled.T).astype(np.float64))
        top = np.argsort(-variances)[:count]
        basis = np.tensordot(vectors[:, top].T.astype(np.float32), part, 1)
        basis = 0.5 * (basis + sign * flip * basis[:, mirror])
        parts.append((variances[top].clip(0), basis))
    variances = np.concatenate([parts[0][0], parts[1][0]])
    order = np.argsort(-variances, kind="stable")[:count]
    basis = np.concatenate([parts[0][1], parts[1][1]])[order]
    flat = basis.reshape(len(basis), -1)
    strongest = flat[np.arange(len(flat)), np.abs(flat).argmax(1)]
    sign_of = np.where(strongest < 0, -1, 1).astype(np.float32)  # eigenvectors have no sign of their own
    return basis * sign_of[:, None, None], np.sqrt(variances[order]).astype(np.float32)


def project(rows: Floats, basis: Floats, sigma: Floats, weights: Floats) -> Floats:
    """Coefficients (N, K), in standard deviations, of deviations (N, V, C) in a `symmetric_pca` basis."""
    scaled = (basis * weights).reshape(len(basis), -1)
    return rows.reshape(len(rows), -1) @ scaled.T / sigma**2


def mirror_half(coefficients: Floats, basis: Floats, mirror: Ints, flip: Floats) -> Floats:
    """The coefficients (N, K) with every second person mirrored, as if half of them faced a mirror.

    What is one-sided in the sources (painted masks, target files) then has no favourite side.
    """
    parity = np.sign((basis * flip * basis[:, mirror]).sum((1, 2)))
    mirrored = coefficients.copy()
    mirrored[1::2] *= parity
    return mirrored


def align(shapes: Floats, chosen: Ints, mirror: Ints) -> tuple[Floats, Floats]:
    """Rigidly align shapes (N, V, 3) on the vertices `chosen` (generalised Procrustes, two rounds).

    Returns the aligned shapes and their exactly symmetric mean (V, 3); its origin is the centre of `chosen`.
    """
    mean = shapes.mean(0)
    for _ in range(2):
        shapes = shapes - shapes[:, chosen].mean(1, keepdims=True)
        target = mean[chosen] - mean[chosen].mean(0)
        u, _, vt = np.linalg.svd(np.einsum("nki,kj->nij", shapes[:, chosen], target))
        u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
        shapes = np.einsum("nki,nij->nkj", shapes, u @ vt)
        mean = shapes.mean(0)
        mean = 0.5 * (mean + mean[mirror] * FLIP)
    return shapes.astype(np.float32), mean.astype(np.float32)


def vertex_areas(vertices: Floats, quads: Ints, factor: Floats) -> Floats:
    """Area around each vertex (V,), each quad's share multiplied by `factor` (Q,)."""
    p = vertices[quads]
    area = 0.5 * np.linalg.norm(np.cross(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1]), axis=1) * factor
    total = np.zeros(len(vertices))
    np.add.at(total, quads, np.repeat(area[:, None] / 4, 4, 1))
    return total.astype(np.float32)


def quantise(basis: Floats) -> tuple[NDArray[np.int8], Floats]:
    """8-bit numbers (K, V, C) and the scale (K, C) that turns them back."""
    scale = np.maximum(np.abs(basis).max(1), 1e-12) / 127
    return np.rint(basis / scale[:, None]).astype(np.int8), scale.astype(np.float32)
