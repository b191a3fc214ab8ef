"""The quad mesh of the face model: cropped from MakeHuman's body, with regions, mirror map and UV."""

from dataclasses import dataclass

import numpy as np
from makehuman import NOSE_TIP, BaseMesh, read_mask
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from uv_maps import wheel_to_window

from facelab.model.morphable_model import REGIONS

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

TEETH_DOWN, TEETH_HEIGHT = 2.1, 1.25  # mm, and a factor
BORDER_ROUNDS = 5


@dataclass
class Cage:
    """The cropped quad mesh on which means and bases are stored."""

    base_vertices: Ints  # (V,) into the wheel's mesh
    quads: Ints  # (Q, 4)
    region: NDArray[np.uint8]  # (Q,) into REGIONS
    mirror: Ints  # (V,)
    uv: Floats  # (U, 2) in the window
    uv_quads: Ints  # (Q, 4)
    nose_tip: int
    smoothing: csr_array  # (V, V): smooths the face's border, leaves every other vertex where it is

    def shapes(self, shapes: Floats) -> Floats:
        """Heads (N, V, 3) in mm, taken from the wheel's vertices, as the model has them: the border of the
        crop smooth, the teeth as far down as people's are. The wheel's are hidden behind the upper lip."""
        return self.lower_teeth(self.offsets(shapes))

    def lower_teeth(self, shapes: Floats) -> Floats:
        """The teeth's part of `shapes`; changes its argument and returns it."""
        teeth = np.unique(self.quads[self.region == REGIONS.index("teeth")])
        height = shapes[:, teeth, 1]
        middle = height.mean(1, keepdims=True)
        shapes[:, teeth, 1] = middle + TEETH_HEIGHT * (height - middle) - TEETH_DOWN
        return shapes

    def offsets(self, offsets: Floats) -> Floats:
        """The same for displacements (N, V, 3) of the wheel's vertices."""
        return np.stack([self.smoothing @ one for one in offsets]).astype(offsets.dtype)


def first_rings(quads: Ints, start: Ints, count: int) -> Ints:
    """Indices of the first `count` rings of `quads` around the vertices `start`."""
    reached, left, kept = set(start.tolist()), set(range(len(quads))), []
    for _ in range(count):
        ring = [q for q in left if reached & set(quads[q].tolist())]
        kept += ring
        left -= set(ring)
        reached |= set(quads[ring].ravel().tolist())
    return np.array(sorted(kept))


def border_loop(quads: Ints, avoid: Ints) -> Ints:
    """The longest closed loop of border vertices of `quads` that does not touch `avoid`, in order."""
    following = {}
    sides = {(int(a), int(b)) for q in quads for a, b in zip(q, np.roll(q, -1))}
    for a, b in sides:
        if (b, a) not in sides and a not in avoid and b not in avoid:
            following[a] = b
    loops: list[list[int]] = []
    while following:
        loop = [min(following)]
        while loop[-1] in following:
            loop.append(following.pop(loop[-1]))
        loops.append(loop[:-1])
    return np.array(max(loops, key=len))


def smooth_along(loop: Ints, count: int) -> csr_array:
    """The matrix (count, count) that takes the steps out of a closed loop of vertices: [1 2 1] / 4, again and
    again. The wheel's quads are large, so a border that follows them looks torn."""
    n = len(loop)
    kernel = (2 * np.eye(n) + np.roll(np.eye(n), 1, 1) + np.roll(np.eye(n), -1, 1)) / 4
    kernel = np.linalg.matrix_power(kernel, BORDER_ROUNDS)
    kernel[kernel < 1e-6] = 0
    kernel /= kernel.sum(1, keepdims=True)
    others = np.setdiff1d(np.arange(count), loop)
    row, column = np.nonzero(kernel)
    values = np.r_[kernel[row, column], np.ones(len(others))]
    places = (np.r_[loop[row], others], np.r_[loop[column], others])
    return csr_array((values, places), (count, count))


def ladder(loop: Ints, position: Floats) -> tuple[Ints, Ints]:
    """Split an even loop, symmetric about x = 0, into an upper and a lower arc of equal length, both from -x
    to +x. Where the loop has a vertex at each corner, both arcs contain it."""
    middle = np.argsort(np.abs(position[loop, 0]))[:2]
    loop = np.roll(loop, -int(middle[np.argmax(position[loop[middle], 1])]))  # from the top, once around
    half = len(loop) // 2
    reach = half // 2
    upper = np.r_[loop[len(loop) - reach :], loop[: reach + 1]]
    lower = loop[half - reach : half + reach + 1][::-1]
    if position[upper[0], 0] > 0:
        upper, lower = upper[::-1], lower[::-1]
    return upper, lower


def mirror_quads(quads: Ints, mirror: Ints) -> Ints:
    """The quad on the other side of the body, for each quad (itself where there is none)."""
    index = {frozenset(quad): i for i, quad in enumerate(quads.tolist())}
    return np.array([index.get(frozenset(quad), i) for i, quad in enumerate(mirror[quads].tolist())])


def smooth_border(quads: Ints, chosen: NDArray[np.bool_], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the steps of a crop's border with usable quads, then cut off single quads that stick out."""
    sides = np.sort(np.stack([quads, np.roll(quads, -1, 1)], 2).reshape(-1, 2), 1)
    _, edge = np.unique(sides, axis=0, return_inverse=True)
    edge = edge.reshape(-1, 4)

    def neighbours(of: NDArray[np.bool_]) -> Ints:
        count = np.bincount(edge[of].ravel(), minlength=edge.max() + 1)
        return (count[edge] - of[:, None]).sum(1)

    for _ in range(2):
        chosen = chosen | (usable & (neighbours(chosen) >= 2))
        chosen = chosen & (neighbours(chosen) >= 2)
    return chosen


def crop_face(base: BaseMesh, mean: Floats, lips: Floats) -> Cage:
    """Keep the face in front of the ears, two rings inside the lids, the front of the eyes, a closed pocket
    of the mouth and the upper front teeth. `mean` (VERTICES, 3) is a symmetric mean head in mm, `lips` the
    wheel's lip mask."""
    x = mean - mean[NOSE_TIP]
    quads, centre = base.quads, x[base.quads].mean(1)
    uv_centre = base.uv[base.uv_quads].mean(1)

    def painted(mask: Floats) -> NDArray[np.bool_]:
        size = len(mask)
        row, column = ((1 - uv_centre[:, 1]) * size).astype(int), (uv_centre[:, 0] * size).astype(int)
        return mask[np.clip(row, 0, size - 1), np.clip(column, 0, size - 1)] > 0.5

    # Within reach of the nose, plus the side of the face up to the ear (for the jaw's landmarks) and the
    # underside of the chin. Outside these lie the ear's small islands in the UV layout.
    near = (np.linalg.norm(x[quads], axis=2) < 112).all(1)
    height, depth = centre[:, 1], centre[:, 2]
    side = (depth > -112) & (height > -66) & (height < np.interp(depth, [-112, -95, -60], [50, 55, 85]))
    side |= (depth > -84) & (height < 0) & (height > -100)
    usable = (base.part == "head") & (depth > -114) & ~painted(read_mask("ears"))
    usable &= (base.uv[base.uv_quads][..., 0] > 0.6).all(1)
    twin = mirror_quads(quads, base.mirror)  # the painted masks are not quite symmetric
    usable &= usable[twin]
    skin = np.flatnonzero(smooth_border(quads, usable & (near | side), usable))
    skin_vertices = np.unique(quads[skin])

    lids = np.flatnonzero(base.part == "eye_cavity")
    lids = lids[first_rings(quads[lids], skin_vertices, 2)]
    mouth = np.flatnonzero(base.part == "mouth_cavity")
    mouth = mouth[first_rings(quads[mouth], skin_vertices, 6)]
    eyes = np.flatnonzero(base.part == "eye")
    for sign in (-1, 1):
        one = eyes[np.sign(centre[eyes, 0]) == sign]
        eyes = np.setdiff1d(eyes, one[centre[one, 2] < centre[one, 2].mean() - 1])
    teeth = np.flatnonzero(base.part == "upper-teeth")
    teeth = teeth[centre[teeth, 2] > -45]

    # Close the pocket behind the mouth with a ladder of quads between its upper and lower border.
    upper, lower = ladder(border_loop(quads[mouth], skin_vertices), x)
    wall = np.stack([upper[:-1], upper[1:], lower[1:], lower[:-1]], 1)
    inward = np.cross(x[wall[:, 1]] - x[wall[:, 0]], x[wall[:, 3]] - x[wall[:, 0]])[:, 2].sum()
    wall = wall if inward > 0 else wall[:, ::-1]
    uv_of = dict(zip(quads[mouth].ravel().tolist(), base.uv_quads[mouth].ravel().tolist()))
    uv_wall = np.vectorize(uv_of.__getitem__)(wall)

    parts = {"skin": skin, "lids": lids, "interior": mouth, "eyes": eyes, "teeth": teeth}
    chosen = np.concatenate(list(parts.values()))
    region = np.concatenate([np.full(len(ids), REGIONS.index(name)) for name, ids in parts.items()])
    red = painted(lips)
    region[: len(skin)][(red | red[twin])[skin]] = REGIONS.index("lips")
    all_quads = np.concatenate([quads[chosen], wall])
    all_uv_quads = np.concatenate([base.uv_quads[chosen], uv_wall])
    region = np.r_[region, np.full(len(wall), REGIONS.index("interior"))].astype(np.uint8)

    used, cage_quads = np.unique(all_quads, return_inverse=True)
    cage_quads = cage_quads.reshape(-1, 4)
    position = np.full(len(x), -1)
    position[used] = np.arange(len(used))
    mirror = position[base.mirror[used]]
    assert (mirror >= 0).all(), "the crop is not symmetric"
    uv, uv_quads = window_layout(base.uv, all_uv_quads, region)
    # Start every quad so that the shorter diagonal (a symmetric choice) splits it into triangles.
    p = x[used][cage_quads]
    turn = np.linalg.norm(p[:, 0] - p[:, 2], axis=1) > np.linalg.norm(p[:, 1] - p[:, 3], axis=1) + 1e-3
    cage_quads[turn] = np.roll(cage_quads[turn], 1, axis=1)
    uv_quads[turn] = np.roll(uv_quads[turn], 1, axis=1)
    smoothing = smooth_along(border_loop(cage_quads[: len(skin)], np.array([], int)), len(used))
    return Cage(used, cage_quads, region, mirror, uv, uv_quads, int(position[NOSE_TIP]), smoothing)


def window_layout(base_uv: Floats, uv_quads: Ints, region: NDArray[np.uint8]) -> tuple[Floats, Ints]:
    """UV (U, 2) of the window: skin where it is, every other island in its own cell of the strip below."""
    used, quads = np.unique(uv_quads, return_inverse=True)
    quads = quads.reshape(-1, 4)
    uv = wheel_to_window(base_uv[used])
    ends = (quads.ravel(), np.roll(quads, -1, 1).ravel())
    links = csr_array((np.ones(quads.size), ends), (len(uv), len(uv)))
    count, island = connected_components(links, directed=False)
    skin = island[quads[np.flatnonzero(region == REGIONS.index("skin"))[0], 0]]
    cell = 1 / (count - 1)
    for place, label in enumerate(k for k in range(count) if k != skin):
        ids = island == label
        extent = np.ptp(uv[ids], axis=0).max()
        centred = (uv[ids] - (uv[ids].max(0) + uv[ids].min(0)) / 2) / extent
        uv[ids] = centred * 0.9 * cell + [(place + 0.5) * cell, 0.12]
    return uv, quads
