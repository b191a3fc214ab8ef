"""The morphable model: tensors, evaluation, landmarks, sampling and files; and Catmull-Clark subdivision."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch.autograd import gradcheck

from facelab.geometry.rotations import euler_to_matrix
from facelab.geometry.subdivision import catmull_clark, triangulate
from facelab.model.morphable_model import DEFAULT_MODEL, MorphableModel
from facelab.model.people import sample_actions
from facelab.support.errors import ModelFileError, ParameterError

LANDMARKS = Path(__file__).parents[1] / "data_scripts" / "landmarks68.json"
FLIP = torch.tensor([-1.0, 1.0, 1.0])
TWIN = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46]
TWIN += [
    39,
    38,
    37,
    36,
    41,
    40,
    54,
    53,
    52,
    51,
    50,
    49,
    48,
    59,
    58,
    57,
    56,
    55,
    64,
    63,
    62,
    61,
    60,
    67,
    66,
    65,
]


@pytest.fixture(scope="module")
def levels() -> list[MorphableModel]:
    return [MorphableModel.load(subdivisions=n) for n in range(3)]


@pytest.fixture(scope="module")
def cage(levels: list[MorphableModel]) -> MorphableModel:
    return levels[0]


@pytest.fixture
def tiny() -> MorphableModel:
    """A converted model with random parts: two triangles, no specular, nothing optional."""
    g = torch.Generator().manual_seed(0)
    return MorphableModel(
        mean=torch.randn(4, 3, generator=g, dtype=torch.float64),
        triangles=torch.tensor([[0, 1, 2], [0, 2, 3]]),
        identity_basis=torch.randn(3, 4, 3, generator=g, dtype=torch.float64),
        expression_basis=torch.randn(2, 4, 3, generator=g, dtype=torch.float64),
        albedo_mean=torch.full((4, 3), 0.5, dtype=torch.float64),
        albedo_basis=0.05 * torch.randn(2, 4, 3, generator=g, dtype=torch.float64),
        name="tiny",
    )


# --- the shipped model --------------------------------------------------------------------------------------


def test_sizes_and_units(levels: list[MorphableModel]) -> None:
    assert [len(m.mean) for m in levels] == [2572, 10098, 40018]
    for m in levels:
        assert (len(m.identity_basis), len(m.expression_basis)) == (128, 64) and len(m.albedo_basis) >= 80
        eyes = m.landmarks(m.mean)[[36, 39, 42, 45]]
        pupils = (eyes[0] + eyes[1]) / 2 - (eyes[2] + eyes[3]) / 2
        assert 58 < pupils.norm() < 67  # adults: 63 mm
        assert m.albedo_mean.min() >= 0.003 and m.albedo_mean.max() < 1
        assert set(m.triangle_region.tolist()) == set(range(len(m.regions)))
        assert m.uv.min() >= 0 and m.uv.max() <= 1
    assert DEFAULT_MODEL.stat().st_size <= 25e6


def test_levels_nest(levels: list[MorphableModel]) -> None:
    for coarse, fine in pairwise(levels):
        v = len(coarse.mean)
        assert (fine.mean[:v] - coarse.mean).norm(dim=1).median() < 1.0
        assert torch.equal(fine.albedo_mean[:v], coarse.albedo_mean)
        assert torch.equal(fine.albedo_basis[:, :v], coarse.albedo_basis)
        assert torch.equal(fine.mirror[:v], coarse.mirror)
        assert torch.equal(fine.triangle_region[::8], coarse.triangle_region[::2])


def test_exact_mirror_symmetry(levels: list[MorphableModel]) -> None:
    for level, m in enumerate(levels):
        assert torch.equal(m.mirror[m.mirror], torch.arange(len(m.mean)))
        tolerance = 0 if level == 0 else 1e-5  # mm; the cage is exact
        assert (m.mean[m.mirror] * FLIP - m.mean).abs().max() <= tolerance
        for basis in (m.identity_basis, m.expression_basis):
            mirrored = basis[:, m.mirror] * FLIP
            even, odd = ((mirrored - s * basis).abs().amax((1, 2)) <= tolerance for s in (1, -1))
            assert bool((even | odd).all()) and even.any() and odd.any()
        mirrored_faces = {frozenset(t) for t in m.mirror[m.triangles].tolist()}
        assert mirrored_faces == {frozenset(t) for t in m.triangles.tolist()}


def test_triangles_face_outwards(levels: list[MorphableModel]) -> None:
    for m in levels:
        a, b, c = m.mean[m.triangles].unbind(1)
        frontal = torch.linalg.cross(b - a, c - a)[m.triangle_region == m.regions.index("eyes")]
        assert (frontal[:, 2] > 0).float().mean() > 0.95
        uv = m.uv[m.uv_triangles]
        (x1, y1), (x2, y2) = (uv[:, 1] - uv[:, 0]).unbind(-1), (uv[:, 2] - uv[:, 0]).unbind(-1)
        skin = m.triangle_region == m.regions.index("skin")
        assert ((x1 * y2 - x2 * y1)[skin] > 0).float().mean() > 0.999  # the layout does not fold


def test_sigma_is_the_size_of_a_component(cage: MorphableModel) -> None:
    """Largest first, and of the size of the displacement that the basis makes."""
    for sigma, basis in (
        (cage.identity_sigma, cage.identity_basis),
        (cage.expression_sigma, cage.expression_basis),
    ):
        assert (sigma[:-1] >= sigma[1:]).all()
        rms = basis[:10].square().sum(-1).mean(-1).sqrt()
        assert ((rms / sigma[:10]).log().abs() < 1.0).all()


def test_people_have_unit_variance(cage: MorphableModel) -> None:
    for people in (cage.people_identity, cage.people_albedo):
        assert (people.mean(0).abs() < 0.15).all()
        assert (people.std(0) - 1).abs().max() < 0.2


def test_mouth_cap_closes_the_mouth(levels: list[MorphableModel]) -> None:
    for m in levels:
        jaw = m.actions[m.action_names.index("jawOpen")] * 0.6
        area = []
        for vertices in (m.mean, m.vertices(expression=jaw)):
            a, b, c = vertices[m.mouth_cap].unbind(1)
            normals = torch.linalg.cross(b - a, c - a)
            area.append(normals.norm(dim=1).sum() / 2)
        assert (normals[:, 2] > 0).float().mean() > 0.95  # looks out of the mouth
        assert 100 < area[0] < 400 < 600 < area[1] < 1500  # mm²
        lips = m.region_vertices("lips") | m.region_vertices("interior")
        assert lips[m.mouth_cap].all()


# --- evaluation ---------------------------------------------------------------------------------------------


def test_vertices_is_the_linear_model(cage: MorphableModel) -> None:
    c = cage.sample(3, torch.Generator().manual_seed(1))
    found = cage.vertices(c["identity"], c["expression"])
    for i in range(3):
        expected = cage.mean.clone()
        for k in range(128):
            expected += c["identity"][i, k] * cage.identity_basis[k]
        for k in range(64):
            expected += c["expression"][i, k] * cage.expression_basis[k]
        assert torch.allclose(found[i], expected, atol=2e-4)
    assert torch.equal(cage.vertices(), cage.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_broadcast(tiny: MorphableModel, dtype: torch.dtype) -> None:
    m = tiny.to(dtype=dtype)
    identity, expression = torch.randn(5, 1, 3, dtype=dtype), torch.randn(2, 2, dtype=dtype)
    vertices = m.vertices(identity, expression)
    assert vertices.shape == (5, 2, 4, 3) and vertices.dtype == dtype
    assert torch.allclose(vertices[3, 1], m.vertices(identity[3, 0], expression[1]), atol=1e-5)
    diffuse, specular = m.albedo(torch.zeros(5, 2, 2, dtype=dtype))
    assert diffuse.shape == (5, 2, 4, 3) and specular.shape == (5, 2, 4)
    assert m.triangles.dtype == torch.int64


def test_gradients(tiny: MorphableModel) -> None:
    identity = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    expression = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    albedo = 0.1 * torch.randn(2, 2, dtype=torch.float64)
    assert gradcheck(tiny.vertices, (identity, expression))
    assert gradcheck(tiny.albedo, (albedo.requires_grad_(),))
    jacobian = torch.func.jacfwd(tiny.vertices)(identity[0].detach())  # the finiteness check steps aside
    assert torch.allclose(jacobian, tiny.identity_basis.permute(1, 2, 0))


def test_truncate(cage: MorphableModel) -> None:
    small = cage.truncate(identity=10, expression=5, albedo=7)
    c = cage.sample(2, torch.Generator().manual_seed(0))
    for name, count in (("identity", 10), ("expression", 5), ("albedo", 7)):
        c[name][:, count:] = 0
    expected = cage.vertices(c["identity"], c["expression"])
    assert torch.allclose(small.vertices(c["identity"][:, :10], c["expression"][:, :5]), expected, atol=1e-4)
    assert torch.allclose(small.albedo(c["albedo"][:, :7])[0], cage.albedo(c["albedo"])[0], atol=1e-6)
    assert {k: v.shape[1] for k, v in small.sample(4, torch.Generator()).items()} == {
        "identity": 10,
        "expression": 5,
        "albedo": 7,
    }
    assert len(cage.identity_basis) == 128  # the original is as it was
    with pytest.raises(ParameterError, match="129"):
        cage.truncate(identity=129)


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(2, 2), torch.tensor([0.0, float("nan"), 0.0])])
def test_bad_coefficients(tiny: MorphableModel, bad: torch.Tensor) -> None:
    with pytest.raises(ParameterError, match="identity"):
        tiny.vertices(bad.double())


def test_albedo_is_clamped_and_details_multiply(cage: MorphableModel) -> None:
    diffuse, specular = cage.albedo(torch.full((len(cage.albedo_basis),), -30.0))
    assert diffuse.min() == pytest.approx(0.004) and diffuse.max() <= 1 and specular.min() >= 0
    plain, detailed = cage.albedo()[0], cage.albedo(detail=torch.tensor([0, 3]))[0]
    assert detailed.shape == (2, *plain.shape)
    expected = (plain * (1 + cage.details[3, :, :3])).clamp(0.004, 1)
    assert torch.allclose(detailed[1], expected)
    with pytest.raises(ParameterError, match="details"):
        cage.albedo(detail=len(cage.details))


def test_regions(cage: MorphableModel) -> None:
    tip = cage.landmarks(cage.mean)[30]
    nose = int((cage.mean - tip).norm(dim=1).argmin())
    assert cage.region_vertices("skin")[nose] and not cage.region_vertices("eyes")[nose]
    with pytest.raises(ParameterError, match="skin"):
        cage.region_vertices("ears")


# --- landmarks ----------------------------------------------------------------------------------------------


def test_landmarks_lie_where_they_were_placed(levels: list[MorphableModel]) -> None:
    """They were placed on a reference face, which has other proportions than the mean of the people: a longer
    nose, above all, so its tip is looked for on the mesh."""
    expected = torch.tensor(json.loads(LANDMARKS.read_text())["positions_mm"])
    expected = expected - expected.mean(0)
    finest = levels[-1].landmarks(levels[-1].mean)
    for m in levels:
        found = m.landmarks(m.mean)
        apart = (found - found.mean(0) - expected).norm(dim=1)
        assert apart[[*range(28), *range(31, 68)]].max() < 7 and apart[28:30].max() < 8  # mm
        skin = m.mean[m.region_vertices("skin")]
        assert (found[30] - skin[skin[:, 2].argmax()]).norm() < 4
        assert (found - finest).norm(dim=1).max() < 1.5
        assert torch.allclose(found[TWIN] * FLIP, found, atol=1e-4)
        assert torch.allclose(m.landmark_weights.sum(1), torch.ones(68), atol=1e-6)
        on_skin = m.triangle_region[m.landmark_triangles]
        assert set(on_skin.tolist()) <= {m.regions.index("skin"), m.regions.index("lips")}


def test_jaw_slides_to_the_contour_of_a_turned_head(levels: list[MorphableModel]) -> None:
    for m in levels:
        fixed = m.landmarks(m.mean)
        angles = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, -0.6, 0.0]])
        rotation = euler_to_matrix(angles)
        turned = m.landmarks(m.mean, rotation)
        assert turned.shape == (3, 68, 3)
        assert torch.equal(turned[:, 17:], fixed[17:].expand(3, -1, -1))
        assert torch.equal(turned[:, 7:10], fixed[7:10].expand(3, -1, -1))
        # Positive yaw turns the face to the image's right: the contour on that side moves over the cheek.
        moved = (turned - fixed).norm(dim=-1)
        assert moved[1, 11:17].min() > 2 and moved[1, 12:17].min() > 20 and moved[1, :7].max() < 5
        assert torch.allclose(moved[2], moved[1][TWIN], atol=0.1)
        assert moved[0].max() < 8
        # Nothing of a jaw row lies further out in the picture than the chosen point.
        rows = m.contour_rows[10:17]
        x = (m.mean @ rotation[1].T)[:, 0][rows.clamp(min=0)].masked_fill(rows < 0, -1e9)
        assert (x.amax(1) <= (turned[1, 10:17] @ rotation[1].T)[:, 0] + 1e-4).all()


def test_landmark_gradients(cage: MorphableModel) -> None:
    m = cage.to(dtype=torch.float64)
    rotation = euler_to_matrix(torch.tensor([0.1, 0.5, 0.0], dtype=torch.float64))
    coefficients = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    small = m.truncate(identity=4)
    assert gradcheck(lambda c: small.landmarks(small.vertices(c), rotation), (coefficients,))


# --- sampling -----------------------------------------------------------------------------------------------


def test_samples_follow_the_prior(cage: MorphableModel) -> None:
    c = cage.sample(4000, torch.Generator().manual_seed(0))
    for name in ("identity", "albedo"):
        assert c[name].mean(0).abs().max() < 0.15
        assert (c[name].std(0) - 1).abs().max() < 0.2
    # Shape and skin belong together: the population's correlations survive.
    joint = torch.cat([c["identity"][:, :20], c["albedo"][:, :20]], 1)
    people = torch.cat([cage.people_identity[:, :20], cage.people_albedo[:, :20]], 1)
    cross, original = torch.corrcoef(joint.T)[:20, 20:], torch.corrcoef(people.T)[:20, 20:]
    assert original.abs().max() > 0.3
    assert (cross - 0.91 * original).abs().max() < 0.08
    again = cage.sample(4000, torch.Generator().manual_seed(0))
    assert all(torch.equal(again[name], c[name]) for name in c)
    half = cage.sample(4000, torch.Generator().manual_seed(0), identity_scale=0.5)
    assert torch.allclose(half["identity"], 0.5 * c["identity"])


def test_models_without_people_sample_normal_numbers(tiny: MorphableModel) -> None:
    c = tiny.sample(5000, torch.Generator().manual_seed(0), expression_scale=2.0)
    assert c["identity"].dtype == torch.float64
    assert torch.allclose(c["identity"].std(0), torch.ones(3, dtype=torch.float64), atol=0.05)
    assert torch.allclose(c["expression"].std(0), 2 * torch.ones(2, dtype=torch.float64), atol=0.1)


def test_actions(cage: MorphableModel) -> None:
    names = cage.action_names
    strengths = sample_actions(names, 3000, torch.Generator().manual_seed(0))
    assert strengths.min() == 0 and 0.85 < strengths.max() <= 0.9
    active = (strengths > 0).sum(1)
    assert active.min() >= 1 and active.max() <= 8
    assert (strengths > 0).any(0).all()  # every action occurs
    left, right = (strengths[:, names.index(f"mouthSmile{side}")] for side in ("Left", "Right"))
    both = ((left > 0) & (right > 0)).sum() / ((left > 0) | (right > 0)).sum()
    assert 0.7 < both < 0.9
    assert not (
        (strengths[:, names.index("jawLeft")] > 0) & (strengths[:, names.index("jawRight")] > 0)
    ).any()
    # A named action does what its name says: the jaw opens, the eyes close.
    jaw = cage.landmarks(cage.vertices(expression=cage.actions[names.index("jawOpen")]))
    rest = cage.landmarks(cage.mean)
    assert (rest - jaw)[8, 1] > 8 and (rest - jaw)[27:36, 1].abs().max() < 3
    blink = cage.actions[names.index("eyeBlinkLeft")] + cage.actions[names.index("eyeBlinkRight")]
    shut = cage.landmarks(cage.vertices(expression=blink))
    assert (shut[37, 1] - shut[41, 1]) < 0.4 * (rest[37, 1] - rest[41, 1])


# --- files --------------------------------------------------------------------------------------------------


def test_save_and_load(cage: MorphableModel, tiny: MorphableModel, tmp_path: Path) -> None:
    for model in (cage.truncate(12, 6, 5), tiny):
        path = tmp_path / "model.safetensors"
        model.save(path)
        back = MorphableModel.load(path, subdivisions=2, dtype=model.mean.dtype)  # taken as it is
        for name, tensor in model._tensors().items():
            if tensor.numel() == 0:
                continue
            assert torch.allclose(getattr(back, name), tensor, atol=1e-6), name
        assert (back.name, back.regions, back.action_names) == (model.name, model.regions, model.action_names)
        back.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_skins_live_on_the_middle_level(levels: list[MorphableModel], tmp_path: Path) -> None:
    data = DEFAULT_MODEL.read_bytes()
    tensors = load(data)
    rows = len(levels[1].mean)
    for name in ("albedo_mean", "albedo_basis", "details"):
        axis = 0 if name == "albedo_mean" else 1
        tensors[name] = tensors[name].narrow(axis, 0, rows).clone()
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    (tmp_path / "small.safetensors").write_bytes(save(tensors, about))
    for level, usual in enumerate(levels):
        small = MorphableModel.load(tmp_path / "small.safetensors", level)
        for name in ("albedo_mean", "albedo_basis", "details"):
            values, known = getattr(small, name), getattr(usual, name)
            assert values.shape == known.shape
            assert torch.equal(values[..., :rows, :], known[..., :rows, :])
            flip = values[..., small.mirror, :]
            if name == "albedo_mean":
                assert torch.equal(flip, values), "mirror-symmetric to the last bit"
    quads = catmull_clark(load(data)["quads"].numpy(), len(levels[0].mean)).quads
    fine = catmull_clark(quads, rows)
    middle, finest = levels[1].albedo_mean, MorphableModel.load(tmp_path / "small.safetensors", 2).albedo_mean
    edges = middle[torch.from_numpy(fine.edges)].mean(1)
    faces = middle[torch.from_numpy(quads)].mean(1)
    torch.testing.assert_close(finest, torch.cat([middle, edges, faces]))


def test_damaged_files(tmp_path: Path) -> None:
    path, digest = tmp_path / "face.safetensors", tmp_path / "face.safetensors.sha256"
    with pytest.raises(ModelFileError, match="no face model"):
        MorphableModel.load(path)
    data = bytearray(DEFAULT_MODEL.read_bytes())
    digest.write_text(DEFAULT_MODEL.with_name(DEFAULT_MODEL.name + ".sha256").read_text())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        MorphableModel.load(path)
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="damaged"):
        MorphableModel.load(path)
    digest.unlink()
    for content in (b"", b"no model", bytes(data[: len(data) // 2])):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match="complete"):
            MorphableModel.load(path)


def test_wrong_structure(tiny: MorphableModel, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "face.safetensors"
    save_file({"mean": torch.zeros(4, 3)}, path)
    with pytest.raises(ModelFileError, match="triangles"):
        MorphableModel.load(path)
    save_file({"mean": torch.zeros(4, 3), "quads": torch.zeros(1, 4, dtype=torch.int16)}, path)
    with pytest.raises(ModelFileError, match="lacks"):
        MorphableModel.load(path)
    with pytest.raises(ModelFileError, match="identity_basis"):
        MorphableModel(tiny.mean, tiny.triangles, identity_basis=torch.zeros(3, 5, 3))
    with pytest.raises(ModelFileError, match="outside"):
        MorphableModel(tiny.mean, tiny.triangles + 2)
    with pytest.raises(ParameterError, match="subdivisions"):
        MorphableModel.load(subdivisions=3)


def test_parts_that_are_missing(tiny: MorphableModel) -> None:
    bare = MorphableModel(tiny.mean, tiny.triangles)
    assert bare.vertices(torch.zeros(7, 0).double(), torch.zeros(0).double()).shape == (7, 4, 3)
    diffuse, specular = tiny.albedo()
    assert torch.equal(specular, torch.full((4,), 0.028, dtype=torch.float64)) and diffuse.shape == (4, 3)
    assert bare.albedo(torch.zeros(0).double())[0].shape == (4, 3)
    with_landmarks = MorphableModel(
        tiny.mean,
        tiny.triangles,
        landmark_triangles=torch.zeros(68, dtype=torch.int64),
        landmark_weights=torch.full((68, 3), 1 / 3, dtype=torch.float64),
    )
    turned = with_landmarks.landmarks(tiny.mean, torch.eye(3).double())  # no rows: fixed
    assert torch.allclose(turned, tiny.mean[:3].mean(0).expand(68, 3))


# --- subdivision --------------------------------------------------------------------------------------------


def naive_catmull_clark(points: np.ndarray, quads: np.ndarray) -> tuple[dict, dict, list]:
    """Catmull and Clark's rules, vertex by vertex: new vertex points, edge points by ends, face points."""
    faces = [points[q].mean(0) for q in quads]
    edge_faces: dict = {}
    for f, quad in enumerate(quads):
        for a, b in zip(quad, np.roll(quad, -1)):
            edge_faces.setdefault(frozenset((int(a), int(b))), []).append(f)
    edges = {}
    for edge, around in edge_faces.items():
        ends = [points[v] for v in edge]
        edges[edge] = np.mean(ends if len(around) == 1 else ends + [faces[f] for f in around], axis=0)
    vertices = {}
    for v in range(len(points)):
        mine = [edge for edge in edge_faces if v in edge]
        borders = [edge for edge in mine if len(edge_faces[edge]) == 1]
        others = [next(iter(edge - {v})) for edge in borders]
        if len(borders) == 2:
            vertices[v] = 0.75 * points[v] + 0.125 * sum(points[o] for o in others)
        elif not borders:
            k = len(mine)
            f = np.mean([faces[i] for i, quad in enumerate(quads) if v in quad], axis=0)
            r = np.mean([points[list(edge)].mean(0) for edge in mine], axis=0)
            vertices[v] = (f + 2 * r + (k - 3) * points[v]) / k
        else:
            vertices[v] = points[v]
    return vertices, edges, faces


def test_catmull_clark_against_the_rules() -> None:
    """A cube without one side and with a flap: valences 3 and 4, a border, a vertex of four borders."""
    quads = np.array([[0, 3, 2, 1], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [6, 8, 9, 10]])
    points = np.random.default_rng(0).normal(size=(11, 3))
    step = catmull_clark(quads, len(points))
    fine = step.matrix @ points
    vertices, edges, faces = naive_catmull_clark(points, quads)
    for v, expected in vertices.items():
        assert np.allclose(fine[v], expected)
    assert len(step.edges) == len(edges)
    for i, edge in enumerate(step.edges):
        assert np.allclose(fine[len(points) + i], edges[frozenset(edge.tolist())])
    assert np.allclose(fine[len(points) + len(edges) :], faces)
    assert np.allclose(step.matrix.sum(1), 1)
    for q, quad in enumerate(
        quads
    ):  # children of a quad: consecutive, each from its corner, same orientation
        children = step.quads[4 * q : 4 * q + 4]
        assert (children[:, 0] == quad).all()
        assert (children[:, 2] == len(points) + len(edges) + q).all()
    assert triangulate(quads).shape == (12, 3) and (triangulate(quads)[1] == quads[0, [0, 2, 3]]).all()


def test_subdivided_plane_stays_flat_and_keeps_its_area() -> None:
    n = 4
    points = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2).astype(float)
    grid = np.arange(n * n).reshape(n, n)
    quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], -1).reshape(-1, 4)
    step = catmull_clark(quads, n * n)
    fine = step.matrix @ points
    p = fine[triangulate(step.quads)]
    (x1, y1), (x2, y2) = (p[:, 1] - p[:, 0]).T, (p[:, 2] - p[:, 0]).T
    area = 0.5 * (x1 * y2 - x2 * y1)
    assert (area > 0).all()
    assert 8.5 < area.sum() < 9  # only the corners are rounded off
