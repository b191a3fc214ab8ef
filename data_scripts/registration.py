"""facelab's own model laid onto another model's mean face, to carry over what that model's file lacks."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from trimesh.triangles import closest_point, points_to_barycentric

from facelab.geometry.mesh import vertex_normals
from facelab.model.morphable_model import MorphableModel
from facelab.support.errors import ModelFileError

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def normals_of(vertices: Floats, triangles: Ints) -> Floats:
    """Unit vertex normals (V, 3)."""
    return vertex_normals(torch.from_numpy(vertices), torch.from_numpy(triangles)).numpy()


def border_vertices(triangles: Ints, vertex_count: int) -> NDArray[np.bool_]:
    """(V,) vertices on an edge that only one triangle has."""
    edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    border = np.zeros(vertex_count, dtype=bool)
    border[unique[count == 1]] = True
    return border


def closest_on_surface(points: Floats, vertices: Floats, triangles: Ints) -> list[tuple[int, Floats]]:
    """For each point (N, 3) the closest point of the surface, as triangle and barycentric weights.

    Only triangles around the 12 nearest vertices are looked at: enough for points close to the surface.
    """
    flat = triangles.reshape(-1)
    corner = np.argsort(flat, kind="stable")  # grouped by vertex: those of v start at start[v]
    start = np.searchsorted(flat[corner], np.arange(len(vertices) + 1))
    used = np.flatnonzero(np.diff(start))
    _, near = cKDTree(vertices[used]).query(points, k=min(12, len(used)))
    found = []
    for point, neighbours in zip(points, used[near]):
        around = np.unique(np.concatenate([corner[start[v] : start[v + 1]] // 3 for v in neighbours]))
        corners = vertices[triangles[around]]
        closest = closest_point(corners, np.repeat(point[None], len(around), 0))
        best = int(np.argmin(np.linalg.norm(closest - point, axis=1)))
        weights = points_to_barycentric(corners[best : best + 1], closest[best : best + 1])[0]
        found.append((int(around[best]), weights))
    return found


def rigid_start(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Rotation and translation that take points `ours` (N, 3) to `theirs` (Kabsch)."""
    rotation, _ = Rotation.align_vectors(theirs - theirs.mean(0), ours - ours.mean(0))
    matrix = rotation.as_matrix()
    return matrix, theirs.mean(0) - matrix @ ours.mean(0)


def fit_reference(
    reference: MorphableModel,
    vertices: Floats,
    triangles: Ints,
    landmarks: dict[int, Floats],
    components: int = 60,
    iterations: int = 30,
) -> Floats:
    """Fit `reference` to a mean face (V, 3) mm: its vertices (Vr, 3) after the fit.

    Point-to-plane ICP over pose and identity: each step solves for a small motion and all identity
    coefficients under a ridge (the model's own prior) that is relaxed as the correspondences settle, as in
    Amberg et al., Optimal Step Nonrigid ICP Algorithms, CVPR 2007. Known `landmarks` (iBUG number -> position
    (3,)) pull point to point. Raises ModelFileError if the two faces do not come to lie on each other.
    """
    mean = reference.mean.double().numpy()
    basis = reference.identity_basis[:components].double().numpy()
    faces = reference.triangles.numpy()
    skin = reference.region_vertices("skin").numpy() & ~border_vertices(faces, len(mean))
    ours = reference.landmarks(reference.mean).double().numpy()
    numbers = list(landmarks)
    target = np.array([landmarks[k] for k in numbers]).reshape(-1, 3)
    corners = faces[reference.landmark_triangles.numpy()[numbers]]
    corner_weights = reference.landmark_weights.double().numpy()[numbers][..., None]

    rotation: Floats = np.eye(3)
    shift: Floats = vertices[np.argmax(vertices[:, 2])] - ours[30]  # the nose tip is in front
    if len(numbers) >= 4:
        rotation, shift = rigid_start(ours[numbers], target)
    normals, border = normals_of(vertices, triangles), border_vertices(triangles, len(vertices))
    tree = cKDTree(vertices)
    coefficients = np.zeros(len(basis))
    fitted = mean @ rotation.T + shift
    for step in range(iterations):
        relaxed = step / (iterations - 1)
        distance, nearest = tree.query(fitted)
        facing = (normals_of(fitted, faces) * normals[nearest]).sum(1)
        use = np.flatnonzero(skin & (distance < 30 - 22 * relaxed) & (facing > 0.6) & ~border[nearest])
        if len(use) < 0.2 * skin.sum():
            raise ModelFileError(
                "facelab's own face does not come to lie on this mean face, so its landmarks cannot be "
                "carried over: give the landmarks of this model in a file."
            )
        turned = basis @ rotation.T  # what each coefficient does in the pose of now
        rows = [residual_rows(fitted[use], turned[:, use], normals[nearest[use]][:, None])]
        gaps = [((vertices[nearest[use]] - fitted[use]) * normals[nearest[use]]).sum(1)]
        weights = [np.ones(len(use))]
        if numbers:
            moved = (turned[:, corners] * corner_weights).sum(2)
            at = (fitted[corners] * corner_weights).sum(1)
            rows.append(residual_rows(at, moved, np.broadcast_to(np.eye(3), (len(at), 3, 3))))
            gaps.append((target - at).reshape(-1))
            weights.append(np.full(3 * len(at), 0.2 * len(use) / len(at)))
        matrix, gap, weight = np.concatenate(rows), np.concatenate(gaps), np.concatenate(weights)
        gap = gap + matrix[:, 6:] @ coefficients  # solve for all of them: the prior is on them
        ridge = np.diag([1e-6] * 6 + [10 ** (4 - 2.5 * relaxed)] * len(basis))
        solution = np.linalg.solve((matrix.T * weight) @ matrix + ridge, (matrix.T * weight) @ gap)
        turn = Rotation.from_rotvec(solution[:3]).as_matrix()
        rotation, shift, coefficients = turn @ rotation, turn @ shift + solution[3:6], solution[6:]
        fitted = (mean + np.tensordot(coefficients, basis, 1)) @ rotation.T + shift
    return fitted


def residual_rows(points: Floats, moved: Floats, directions: Floats) -> Floats:
    """Rows of d(direction · point) / d(rotation vector, translation, coefficients).

    `points` (N, 3), `moved` (K, N, 3) per coefficient, `directions` (N, D, 3) -> (N·D, 6 + K).
    """
    turning = np.cross(points[:, None], directions)  # direction · (ω × p) = ω · (p × direction)
    shape = np.einsum("ndi,kni->ndk", directions, moved)
    return np.concatenate([turning, directions, shape], axis=2).reshape(-1, 6 + len(moved))


def borrow_albedo(model: MorphableModel, reference: MorphableModel) -> MorphableModel:
    """`model` with the albedo mean and basis of `reference`, for models of shape alone.

    The reference is fitted to the model's mean face; each vertex takes the albedo of the nearest fitted
    vertex of its region, and skin beyond 5 mm (scalp, neck) fades to the mean over the reference's skin.
    """
    mean, triangles = model.mean.double().numpy(), model.triangles.numpy()
    points = model.landmarks(model.mean).double().numpy()
    fitted = fit_reference(reference, mean, triangles, dict(enumerate(points)))
    skin = reference.region_vertices("skin")
    source = torch.zeros(len(mean), dtype=torch.int64)
    distance = torch.zeros(len(mean), dtype=torch.float64)
    for regions in (("eyes",), ("interior",), ("skin", "lips", "lids")):  # the last wins at seams
        ours = torch.stack([model.region_vertices(name) for name in regions]).any(0)
        theirs = torch.stack([reference.region_vertices(name) for name in regions]).any(0).nonzero()[:, 0]
        away, nearest = cKDTree(fitted[theirs]).query(mean[ours])
        source[ours] = theirs[torch.from_numpy(nearest)]
        distance[ours] = torch.from_numpy(away) if "skin" in regions else 0
    near = torch.exp(-(distance - 5).clamp(min=0) / 15).to(model.mean)[:, None]

    def carried(albedo: torch.Tensor) -> torch.Tensor:
        return near * albedo[..., source, :] + (1 - near) * albedo[..., skin, :].mean(-2, keepdim=True)

    return replace(
        model,
        albedo_mean=carried(reference.albedo_mean),
        albedo_basis=carried(reference.albedo_basis),
        albedo_sigma=torch.empty(0),
        details=torch.empty(0),
    )
