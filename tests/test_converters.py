"""Every converter on a small file of the same structure that the test writes."""

import io
import json
import os
import pickle
import runpy
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from facelab.geometry.mesh import vertex_normals
from facelab.model.morphable_model import REGIONS, SKIN_F0, MorphableModel
from facelab.rendering.colour import srgb_to_linear
from facelab.support.errors import ModelFileError

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))

import convert_albedomm  # noqa: E402
import convert_bfm2009  # noqa: E402
import convert_bfm2017  # noqa: E402
import convert_flame  # noqa: E402
import convert_gnm  # noqa: E402
import convert_ict_facekit  # noqa: E402
import registration  # noqa: E402

torch.set_num_threads(1)
N = 17  # the tiny head is a grid of N x N vertices
V = N * N


def template() -> np.ndarray:
    """(68, 2) where the iBUG points are on a frontal face, roughly, in mm."""
    turn = np.linspace(0, np.pi, 17)
    jaw = np.c_[-65 * np.cos(turn), 25 - 100 * np.sin(turn)]
    brow = np.c_[np.linspace(-55, -15, 5), np.full(5, 55)]
    nose = np.r_[np.c_[np.zeros(4), [35, 20, 8, -5]], np.c_[np.linspace(-14, 14, 5), np.full(5, -15)]]
    eye = np.c_[[-45, -36, -27, -18, -27, -36], [35, 40, 40, 35, 30, 30]]
    mouth = np.c_[[-24, -15, -6, 0, 6, 15, 24, 15, 6, 0, -6, -15], [-45] + [-38] * 5 + [-45] + [-54] * 5]
    inner = np.c_[[-20, -6, 0, 6, 20, 6, 0, -6], [-45, -43, -43, -43, -45, -48, -48, -48]]
    flip = [-1, 1]
    return np.concatenate(
        [jaw, brow, brow[::-1] * flip, nose, eye, eye[[3, 2, 1, 0, 5, 4]] * flip, mouth, inner]
    )


@pytest.fixture(scope="module")
def head() -> dict[str, np.ndarray]:
    return grid_head()


def grid_head() -> dict[str, np.ndarray]:
    """A front of a head as a grid: vertices (V, 3) mm, quads (Q, 4) counter-clockwise, landmarks (68,)."""
    y, x = np.meshgrid(np.linspace(-90, 90, N), np.linspace(-70, 70, N), indexing="ij")
    z = 95 * np.sqrt(1 - 0.6 * (x / 75) ** 2 - 0.35 * (y / 95) ** 2) + 22 * np.exp(
        -(x**2 + (y + 5) ** 2) / 200
    )
    vertices = np.stack([x, y, z], -1).reshape(-1, 3)
    i = np.arange(V).reshape(N, N)
    quads = np.stack([i[:-1, :-1], i[:-1, 1:], i[1:, 1:], i[1:, :-1]], -1).reshape(-1, 4)
    distance = np.linalg.norm(vertices[None, :, :2] - template()[:, None], axis=-1)
    triangles = quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3)
    return {"vertices": vertices, "quads": quads, "triangles": triangles, "landmarks": distance.argmin(1)}


def orthonormal(count: int, seed: int) -> np.ndarray:
    """(3 V, count) orthonormal columns."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((3 * V, count)))[0]


def same_shape(model: MorphableModel, millimetres: np.ndarray) -> bool:
    """Whether the model's mean is the given one up to the choice of the origin."""
    mean = model.mean.numpy()
    return np.allclose(mean - mean[0], millimetres - millimetres[0], atol=1e-3)


def check_model(model: MorphableModel, head: dict[str, np.ndarray], path: Path) -> None:
    """What every converted model is: outward, on its landmarks, near the origin, the same after a file."""
    normals = vertex_normals(model.mean, model.triangles)
    assert (normals[:, 2] > 0).float().mean() > 0.95
    torch.testing.assert_close(model.landmarks(model.mean), model.mean[head["landmarks"]], atol=1e-3, rtol=0)
    assert model.mean.mean(0).abs().max() < 60
    assert torch.equal(model.mirror[model.mirror][:V], torch.arange(V))  # the grid is symmetric
    rows = model.contour_rows
    assert (rows[4] >= 0).any() and (rows[8] < 0).all()
    assert (model.mean[rows[4][rows[4] >= 0], 2] > model.mean[head["landmarks"][4], 2]).all()
    assert "licence" in model.metadata["terms"]
    model.save(path)
    again = MorphableModel.load(path)
    for name, tensor in vars(model).items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(getattr(again, name), tensor)
    assert (again.name, again.action_names) == (model.name, model.action_names)


def truncated(path: Path, keep: float = 0.6) -> Path:
    """A copy that ends early."""
    data = path.read_bytes()
    short = path.with_name("short" + path.name)
    short.write_bytes(data[: int(len(data) * keep)])
    return short


# --- ICT-FaceKit --------------------------------------------------------------------------------------------

# The three upper rows of the grid play mouth socket and eye sockets; two scleras of four vertices follow, and
# four vertices more, which are not kept.
SOCKETS, SCLERAS = ((V - 2 * N, V - N), (V - N, V)), ((V, V + 4), (V + 4, V + 8))
ICT = convert_ict_facekit.Layout(V - 3 * N, V - 2 * N, SOCKETS, SCLERAS)
ICT_NAMES = ["jawOpen", "mouthClose", "mouthSmile_L"]


@pytest.fixture
def ict(head: dict[str, np.ndarray], tmp_path: Path) -> dict[str, np.ndarray]:
    """A tiny ICT file in centimetres, and its arrays."""
    rng = np.random.default_rng(3)
    neutral = np.concatenate([head["vertices"], head["vertices"][:12] - 5]) / 10
    quads = np.concatenate([head["quads"], np.arange(V, V + 12).reshape(3, 4)])
    uv = rng.uniform(0, 2, (V + 13, 2))
    data = {
        "neutral": neutral, "quads": quads, "quads_uv": quads + 1, "uv": uv,
        "identity": rng.normal(0, 0.1, (2, V, 3)), "expression": rng.normal(0, 0.1, (4, V, 3)),
        "expression_names": np.array(["cheekRaiser_L", *ICT_NAMES]),
    }  # fmt: skip
    np.savez(tmp_path / "light.npz", **data)
    config = {"expressions": ICT_NAMES, "idx_to_landmark_verts": head["landmarks"].tolist()}
    (tmp_path / "vertex_indices.json").write_text(json.dumps(config))
    return data


def write_obj_folder(folder: Path, data: dict[str, np.ndarray], config: Path) -> None:
    """The same model as the OBJ files of the repository."""
    folder.mkdir()
    (folder / "vertex_indices.json").write_text(config.read_text())
    faces = [" ".join(f"{v + 1}/{t + 1}/1" for v, t in zip(*q)) for q in zip(data["quads"], data["quads_uv"])]
    tail = [f"vt {u} {v}" for u, v in data["uv"]] + ["vn 0 0 1"] + [f"f {face}" for face in faces]
    shapes = {
        "generic_neutral_mesh": None,
        "identity000": data["identity"][0],
        "identity001": data["identity"][1],
    }
    shapes |= dict(zip(data["expression_names"].tolist(), data["expression"]))
    for name, offset in shapes.items():
        vertices = data["neutral"].copy()
        if offset is not None:
            vertices[:V] += offset
        lines = ["# written by a test"] + [f"v {x} {y} {z}" for x, y, z in vertices] + tail
        (folder / f"{name}.obj").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("layout", ["npz", "folder"])
def test_ict(layout: str, ict: dict[str, np.ndarray], head: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = tmp_path / "light.npz"
    if layout == "folder":
        source = tmp_path / "FaceXModel"
        write_obj_folder(source, ict, tmp_path / "vertex_indices.json")
    model = convert_ict_facekit.convert(source, ICT)
    check_model(model, head, tmp_path / "out.safetensors")
    assert same_shape(model, ict["neutral"][: V + 8] * 10)
    np.testing.assert_allclose(model.identity_basis[:, :V], ict["identity"] * 10, atol=1e-4)
    for socket, sclera in zip(ICT.sockets, ICT.scleras):  # eyeballs go with the mean of their sockets
        moved = ict["identity"][:, slice(*socket)].mean(1, keepdims=True).repeat(4, 1)
        np.testing.assert_allclose(model.identity_basis[:, slice(*sclera)], moved * 10, atol=1e-4)
    # Blend shapes: the same covariance as independent weights of RMS 0.25, and reachable by their names.
    shapes = np.pad(ict["expression"][1:], ((0, 0), (0, 8), (0, 0))).reshape(3, -1) * 10
    shapes[1] += shapes[0]  # mouthClose comes with jawOpen
    basis = model.expression_basis.flatten(1).double().numpy()
    np.testing.assert_allclose(basis.T @ basis, shapes.T @ shapes / 16, atol=1e-4)
    np.testing.assert_allclose(model.actions.double().numpy() @ basis, shapes, atol=1e-4)
    assert model.action_names == ("jawOpen", "mouthClose", "mouthSmileLeft")
    assert (model.expression_sigma.diff() <= 0).all()
    used = model.triangles.max(1).values.numpy()
    names = np.array(["skin", "interior", "eyes"])[np.digitize(used, [ICT.skin_end, ICT.mouth_end])]
    expected = [REGIONS.index(name) for name in names]
    assert model.triangle_region.tolist() == expected and len(set(expected)) == 3
    count = len(ict["uv"])
    np.testing.assert_allclose(model.uv[:count], ict["uv"] / [2, 1], atol=1e-6)
    own = torch.from_numpy(used >= V)
    assert torch.equal(model.uv_triangles[~own], model.triangles[~own] + 1)
    assert torch.equal(model.uv_triangles[own], model.triangles[own] - V + count)
    assert model.uv[count:, 0].min() >= 0.9 and model.uv[count:, 0].max() <= 1


def test_ict_errors(ict: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no file"):
        convert_ict_facekit.convert(tmp_path / "nothing.npz", ICT)
    with pytest.raises(ModelFileError, match="complete"):
        convert_ict_facekit.convert(truncated(tmp_path / "light.npz"), ICT)
    np.savez(tmp_path / "other.npz", **{k: v for k, v in ict.items() if k != "quads"})
    with pytest.raises(ModelFileError, match="lacks quads"):
        convert_ict_facekit.convert(tmp_path / "other.npz", ICT)
    np.savez(tmp_path / "mm.npz", **(ict | {"neutral": ict["neutral"] * 10}))
    with pytest.raises(ModelFileError, match="other units"):
        convert_ict_facekit.convert(tmp_path / "mm.npz", ICT)
    np.savez(tmp_path / "mixed.npz", **(ict | {"identity": ict["identity"][:, 1:]}))
    with pytest.raises(ModelFileError, match="mixes two models"):
        convert_ict_facekit.convert(tmp_path / "mixed.npz", ICT)
    np.savez(tmp_path / "objects.npz", **(ict | {"identity": np.array([Evil("ict")], dtype=object)}))
    with pytest.raises(ModelFileError, match="plain arrays"):
        convert_ict_facekit.convert(tmp_path / "objects.npz", ICT)
    folder = tmp_path / "FaceXModel"
    write_obj_folder(folder, ict, tmp_path / "vertex_indices.json")
    mesh = folder / "identity001.obj"
    mesh.write_text(mesh.read_text()[:2000])
    with pytest.raises(ModelFileError, match=r"identity001\.obj"):
        convert_ict_facekit.convert(folder, ICT)


# --- Basel Face Model 2017, 2019, AlbedoMM ------------------------------------------------------------------

NAMED = {
    30: "center.nose.tip",
    36: "right.eye.corner_outer",
    45: "left.eye.corner_outer",
    8: "center.chin.tip",
}


def write_statismo(
    file: h5py.File, group: str, mean: np.ndarray, basis: np.ndarray, sigma: np.ndarray
) -> None:
    file[f"{group}/model/mean"] = mean.reshape(-1).astype(np.float32)
    file[f"{group}/model/pcaBasis"] = basis.astype(np.float32)
    file[f"{group}/model/pcaVariance"] = (sigma**2).astype(np.float32)


def write_bfm2017(
    path: Path, head: dict[str, np.ndarray], scale: float = 1.0, colour: float = 1.0
) -> dict[str, np.ndarray]:
    """A tiny BFM 2017: returns the bases and deviations it was written with."""
    made = {
        "shape": orthonormal(3, 0), "shape_sigma": np.array([40.0, 20.0, 10.0]),
        "expression": orthonormal(2, 1), "expression_sigma": np.array([30.0, 5.0]),
        "expression_mean": np.random.default_rng(4).normal(0, 1, (V, 3)),
        "color": orthonormal(2, 2), "color_sigma": np.array([0.6, 0.3]),
        "colour_mean": np.tile([0.75, 0.5, 0.25], (V, 1)),
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        write_statismo(file, "shape", head["vertices"] * scale, made["shape"], made["shape_sigma"])
        write_statismo(file, "color", made["colour_mean"] * colour, made["color"], made["color_sigma"])
        write_statismo(
            file, "expression", made["expression_mean"], made["expression"], made["expression_sigma"]
        )
        file["shape/representer/cells"] = head["triangles"].T.astype(np.int32)
        reference = head["vertices"] + [
            100,
            0,
            0,
        ]  # the landmarks are on the reference, which is not the mean
        file["shape/representer/points"] = reference.T.astype(np.float32)
        points = [
            {"id": n, "coordinates": reference[head["landmarks"][k]].tolist()} for k, n in NAMED.items()
        ]
        points.append({"id": "left.ear.tragus", "coordinates": [0.0, 0.0, 0.0]})
        file["metadata/landmarks/json"] = np.frombuffer(json.dumps(points).encode() + b"\0", np.uint8)
    return made


@pytest.fixture
def landmark_file(head: dict[str, np.ndarray], tmp_path: Path) -> Path:
    path = tmp_path / "landmarks.txt"
    path.write_text("\n".join(str(v) for v in head["landmarks"]))
    return path


def per_sigma(basis: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return (basis * sigma).T.reshape(len(sigma), V, 3)


def test_bfm2017(head: dict[str, np.ndarray], tmp_path: Path, landmark_file: Path) -> None:
    made = write_bfm2017(tmp_path / "bfm.h5", head)
    model = convert_bfm2017.convert(tmp_path / "bfm.h5", landmark_file)
    check_model(model, head, tmp_path / "out.safetensors")
    assert same_shape(model, head["vertices"])
    np.testing.assert_allclose(model.identity_basis, per_sigma(made["shape"], made["shape_sigma"]), atol=1e-4)
    np.testing.assert_allclose(model.expression_basis[0], made["expression_mean"], atol=1e-4)
    expected = per_sigma(made["expression"], made["expression_sigma"])
    np.testing.assert_allclose(model.expression_basis[1:], expected, atol=1e-4)
    # sRGB 0.5 is linear 0.2140 (IEC 61966-2-1); the basis follows the conversion to first order.
    np.testing.assert_allclose(model.albedo_mean[0], [0.5225, 0.2140, 0.0509, SKIN_F0], atol=1e-4)
    step = torch.from_numpy(per_sigma(made["color"], made["color_sigma"])) * 1e-3
    colour = torch.from_numpy(made["colour_mean"])
    slope = (srgb_to_linear(colour + step) - srgb_to_linear(colour - step)) / 2e-3
    np.testing.assert_allclose(model.albedo_basis[..., :3], slope, atol=1e-4)
    assert (model.albedo_basis[..., 3] == 0).all()


def test_bfm2017_reads_named_landmarks_and_old_statismo(head: dict[str, np.ndarray], tmp_path: Path) -> None:
    made = write_bfm2017(tmp_path / "bfm.h5", head)
    with h5py.File(tmp_path / "bfm.h5", "r+") as file:
        file["shape/model/pcaBasis"][...] = (
            made["shape"] * made["shape_sigma"]
        )  # statismo 0.8 stores U sqrt(lambda)
        parts = convert_bfm2017.read_shape(file)
    found = {k: parts.triangles[t][np.argmax(w)] for k, (t, w) in parts.landmarks.items()}
    assert found == {k: head["landmarks"][k] for k in NAMED}
    np.testing.assert_allclose(parts.identity, per_sigma(made["shape"], made["shape_sigma"]), atol=1e-4)


def test_bfm2017_errors(head: dict[str, np.ndarray], tmp_path: Path, landmark_file: Path) -> None:
    path = tmp_path / "bfm.h5"
    write_bfm2017(path, head)
    with pytest.raises(ModelFileError, match="HDF5"):
        convert_bfm2017.convert(truncated(path), landmark_file)
    (tmp_path / "empty.h5").touch()
    with pytest.raises(ModelFileError, match="empty"):
        convert_bfm2017.convert(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(ModelFileError, match="shape/model/mean"):
        convert_bfm2017.convert(tmp_path / "other.h5")
    write_bfm2017(tmp_path / "metres.h5", head, scale=1e-3)
    with pytest.raises(ModelFileError, match=r"off the surface|other units"):
        convert_bfm2017.convert(tmp_path / "metres.h5", landmark_file)
    write_bfm2017(tmp_path / "bytes.h5", head, colour=255)
    with pytest.raises(ModelFileError, match="not in"):
        convert_bfm2017.convert(tmp_path / "bytes.h5", landmark_file)
    with h5py.File(path, "r+") as file:
        file["shape/model/pcaBasis"][...] *= 3
    with pytest.raises(ModelFileError, match="norm 3"):
        convert_bfm2017.convert(path, landmark_file)
    with pytest.raises(ModelFileError, match="67 numbers"):
        landmark_file.write_text("1 " * 67)
        convert_bfm2017.convert(tmp_path / "bytes.h5", landmark_file)


def test_albedomm(head: dict[str, np.ndarray], tmp_path: Path, landmark_file: Path) -> None:
    write_bfm2017(tmp_path / "bfm.h5", head)
    diffuse, specular = orthonormal(2, 7), orthonormal(2, 8)
    deviations = np.array([1.5, 0.7])
    f0 = np.tile([0.05, 0.04, 0.03], (V, 1))
    with h5py.File(tmp_path / "albedoPart.h5", "w") as file:
        write_statismo(file, "diffuseAlbedo", np.tile([0.6, 0.3, 0.2], (V, 1)), diffuse, deviations)
        write_statismo(file, "specularAlbedo", f0, specular, deviations / 10)
        write_statismo(
            file, "shape", np.random.default_rng(0).normal(size=(V, 3)), orthonormal(1, 9), np.ones(1)
        )
    with pytest.raises(ModelFileError, match="--shape"):
        convert_albedomm.convert(tmp_path / "albedoPart.h5")
    model = convert_albedomm.convert(tmp_path / "albedoPart.h5", tmp_path / "bfm.h5", landmark_file)
    check_model(model, head, tmp_path / "out.safetensors")
    assert same_shape(model, head["vertices"])  # and not the placeholder's
    np.testing.assert_allclose(model.albedo_mean[0], [0.6, 0.3, 0.2, 0.04], atol=1e-6)  # linear already
    np.testing.assert_allclose(model.albedo_basis[..., :3], per_sigma(diffuse, deviations), atol=1e-5)
    np.testing.assert_allclose(
        model.albedo_basis[..., 3], per_sigma(specular, deviations / 10).mean(-1), atol=1e-5
    )


# --- Basel Face Model 2009 ----------------------------------------------------------------------------------


def write_bfm2009(path: Path, head: dict[str, np.ndarray], **changed: np.ndarray) -> dict[str, np.ndarray]:
    data = {
        "shapeMU": head["vertices"].reshape(-1, 1) * 1e3, "shapePC": orthonormal(2, 0),
        "shapeEV": np.array([[9e5], [4e5]]), "texMU": np.tile([200.0, 128.0, 90.0], V)[:, None],
        "texPC": orthonormal(2, 1), "texEV": np.array([[300.0], [100.0]]),
        "tl": head["triangles"][:, [1, 0, 2]] + 1.0, "segbin": np.zeros((V, 4)),
    } | changed  # fmt: skip
    scipy.io.savemat(path, data)
    return data


def test_bfm2009(head: dict[str, np.ndarray], tmp_path: Path, landmark_file: Path) -> None:
    data = write_bfm2009(tmp_path / "bfm.mat", head)  # triangles clockwise: they have to be turned
    model = convert_bfm2009.convert(tmp_path / "bfm.mat", landmark_file)
    check_model(model, head, tmp_path / "out.safetensors")
    assert same_shape(model, head["vertices"])
    np.testing.assert_allclose(
        model.identity_basis, per_sigma(data["shapePC"], np.array([900.0, 400.0])), atol=1e-3
    )
    assert model.expression_basis.shape == (0, V, 3)
    expected = [float(srgb_to_linear(torch.tensor(c / 255, dtype=torch.float64))) for c in (200, 128, 90)]
    np.testing.assert_allclose(model.albedo_mean[0], [*expected, SKIN_F0], atol=1e-5)
    assert model.albedo_basis.shape == (2, V, 4)


def test_bfm2009_errors(head: dict[str, np.ndarray], tmp_path: Path, landmark_file: Path) -> None:
    path = tmp_path / "bfm.mat"
    cases = {
        "other units": {"shapeMU": head["vertices"].reshape(-1, 1)},
        r"not in 0\.\.255": {"texMU": np.full((3 * V, 1), 0.5)},
        "outside": {"tl": head["triangles"] + 2.0},
        "does not fit": {"shapePC": orthonormal(2, 0)[:-3]},
        "NaN": {"shapeMU": np.full((3 * V, 1), np.nan)},
        "y does not point up": {"shapeMU": (head["vertices"] * [1000, -1000, 1000]).reshape(-1, 1)},
        "apart along x": {"shapeMU": (head["vertices"] * [-1000, 1000, 1000]).reshape(-1, 1)},
    }
    for message, changed in cases.items():
        write_bfm2009(path, head, **changed)
        with pytest.raises(ModelFileError, match=message):
            convert_bfm2009.convert(path, landmark_file)
    scipy.io.savemat(path, {"shapeMU": np.zeros(3)})
    with pytest.raises(ModelFileError, match="lacks shapePC"):
        convert_bfm2009.convert(path)
    write_bfm2009(path, head)
    with pytest.raises(ModelFileError, match="MATLAB"):
        convert_bfm2009.convert(truncated(path))


# --- FLAME --------------------------------------------------------------------------------------------------


class Evil:
    """Unpickling it the ordinary way makes a directory named `mark`."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.mark,)


def flame_arrays(head: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    weights = rng.uniform(0.1, 1, (V, 5))
    weights[:, 3:] *= 0.1
    weights[: 2 * N] = [0, 0, 0, 1, 0]  # the two lowest rows are an eyeball
    regressor = np.zeros((5, V))
    regressor[2, :10] = 0.1
    return {
        "v_template": head["vertices"] / 1000, "f": head["triangles"].astype(np.uint32),
        "shapedirs": rng.normal(0, 1e-3, (V, 3, 400)), "weights": weights / weights.sum(1, keepdims=True),
        "posedirs": rng.normal(0, 1e-3, (V, 3, 36)), "J_regressor": regressor,
    }  # fmt: skip


def write_flame_pickle(path: Path, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the authors' files: shapedirs as a chumpy array, the regressor sparse, numpy under its old name."""

    class Ch:
        pass

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    module = types.ModuleType("chumpy.ch")
    module.Ch = Ch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)
    directions = Ch()
    directions.__dict__ |= {"x": data["shapedirs"], "_dirty_vars": {"x"}}
    record = data | {"shapedirs": directions, "J_regressor": scipy.sparse.csc_matrix(data["J_regressor"])}
    raw = pickle.dumps(record | {"bs_type": "lrotmin"}, protocol=2)
    raw = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(raw.replace(b"scipy.sparse._csc", b"scipy.sparse.csc"))


@pytest.fixture
def embedding(head: dict[str, np.ndarray], tmp_path: Path) -> Path:
    return write_embedding(tmp_path / "embedding.npy", head)


def write_embedding(path: Path, head: dict[str, np.ndarray]) -> Path:
    """landmark_embedding.npy: a pickled dictionary inside an .npy file."""
    corner = np.array([np.argwhere(head["triangles"] == v)[0] for v in head["landmarks"]])
    content = {
        "full_lmk_faces_idx": corner[None, :, 0],
        "full_lmk_bary_coords": np.eye(3)[corner[:, 1]][None],
    }
    np.save(path, np.array(content), allow_pickle=True)
    return path


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_flame(
    suffix: str, head: dict[str, np.ndarray], embedding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = flame_arrays(head)
    path = tmp_path / f"flame.{suffix}"
    if suffix == "npz":
        np.savez(path, **data)
    else:
        write_flame_pickle(path, data, monkeypatch)
    model = convert_flame.convert(path, embedding)
    check_model(model, head, tmp_path / "out.safetensors")
    assert same_shape(model, head["vertices"])
    directions = data["shapedirs"].transpose(2, 0, 1) * 1000
    np.testing.assert_allclose(model.identity_basis, directions[:300], atol=1e-4)
    np.testing.assert_allclose(model.expression_basis[1:], directions[300:], atol=1e-4)
    eyes = model.region_vertices("eyes")
    assert eyes[: 2 * N].all() and not eyes[2 * N :].any()
    # The jaw: a finite difference of linear blend skinning with pose correctives (Li et al. 2017, Eq. 1-4).
    joint = data["J_regressor"][2] @ head["vertices"]

    def posed(angle: float) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        corrected = head["vertices"] + 1000 * data["posedirs"][..., 9:18] @ (turn - np.eye(3)).reshape(9)
        weight = data["weights"][:, 2:3]
        return weight * ((corrected - joint) @ turn.T + joint) + (1 - weight) * corrected

    per_radian = (posed(1e-4) - posed(-1e-4)) / 2e-4
    np.testing.assert_allclose(model.expression_basis[0], 0.1 * per_radian, atol=1e-4)


def test_flame_reads_embeddings_of_51_points(head: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "static.pkl"
    content = {"lmk_face_idx": np.arange(51), "lmk_b_coords": np.tile([0.2, 0.3, 0.5], (51, 1))}
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        found = convert_flame.read_embedding(path)
        assert (
            list(found) == list(range(17, 68))
            and found[17][0] == 0
            and found[67][1].tolist() == [0.2, 0.3, 0.5]
        )
    path.write_bytes(pickle.dumps({"lmk_face_idx": np.arange(5), "lmk_b_coords": np.zeros((5, 3))}))
    with pytest.raises(ModelFileError, match="5 landmarks"):
        convert_flame.read_embedding(path)


def test_flame_reads_arrays_of_python_2(tmp_path: Path) -> None:
    """Opcode by opcode, because Python 3 no longer writes byte strings (opcode U) of this kind."""
    dtype = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x01\x86"
    numbers = np.array([[1.5], [-2e300]])
    path = tmp_path / "two.pkl"
    path.write_bytes(b"\x80\x02}U\x01a" + array + dtype + b"\x89U\x10" + numbers.tobytes() + b"tbs.")
    found = convert_flame.read_arrays(path)
    assert list(found) == ["a"] and np.array_equal(found["a"], numbers)


def test_flame_does_not_execute_pickles(head: dict[str, np.ndarray], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    evil = Evil(str(mark))
    hidden = np.array([evil], dtype=object)
    for number, payload in enumerate([evil, {"v_template": evil}, {"f": hidden}, [[(evil,)]]]):
        for protocol in (0, 2, 4):
            path = tmp_path / f"{number}.pkl"
            path.write_bytes(pickle.dumps(payload, protocol=protocol))
            with pytest.raises(ModelFileError, match="was not executed"):
                convert_flame.convert(path)
    by_name = [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n.",
    ]
    by_name += [
        b"ccopyreg\n_reconstructor\n(cbuiltins\nset\ncbuiltins\nobject\nNtR.",
        b"cnumpy\ntesting.os.mkdir\n.",
    ]
    for raw in by_name:
        (tmp_path / "name.pkl").write_bytes(raw)
        with pytest.raises(ModelFileError):
            convert_flame.convert(tmp_path / "name.pkl")
    np.save(tmp_path / "evil.npy", np.array({"lmk_face_idx": evil}), allow_pickle=True)
    with pytest.raises(ModelFileError, match="was not executed"):
        convert_flame.read_embedding(tmp_path / "evil.npy")
    np.savez(tmp_path / "evil.npz", **(flame_arrays(head) | {"f": hidden}))
    with pytest.raises(ModelFileError):
        convert_flame.convert(tmp_path / "evil.npz")
    assert not mark.exists()
    pickle.load(io.BytesIO(pickle.dumps(evil)))
    assert mark.exists()  # so the payload is a real one


def test_flame_errors(head: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = flame_arrays(head)
    path = tmp_path / "flame.pkl"
    write_flame_pickle(path, data, monkeypatch)
    with pytest.raises(ModelFileError, match="cannot be read"):
        convert_flame.convert(truncated(path))
    for message, changed in {
        "other units": {"v_template": data["v_template"] * 1000},
        "shapedirs has shape": {"shapedirs": data["shapedirs"][..., :300]},
        "five joints": {"weights": data["weights"][:, :4]},
        "lacks f": {"f": None},
    }.items():
        write = {key: value for key, value in (data | changed).items() if value is not None}
        np.savez(tmp_path / "flame.npz", **write)
        with pytest.raises(ModelFileError, match=message):
            convert_flame.convert(tmp_path / "flame.npz")


# --- carried over from facelab's own model ------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> MorphableModel:
    return MorphableModel.load(subdivisions=1)


def stranger(own: MorphableModel) -> np.ndarray:
    """(V, 3) another person in another place: a mean face that is not our mean."""
    identity = own.sample(1, torch.Generator().manual_seed(2))["identity"][0]
    turn = registration.Rotation.from_euler("xyz", [4, -3, 2], degrees=True).as_matrix()
    return own.vertices(identity).double().numpy() @ turn.T + [3, -40, 60]


def test_missing_landmarks_are_carried_over(own: MorphableModel, tmp_path: Path) -> None:
    vertices = stranger(own)
    count = len(vertices)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(count)  # so that nothing is known about the vertices
    place = np.argsort(shuffled)
    skin = (own.triangle_region <= REGIONS.index("lips")).numpy()
    data = {
        "shapeMU": vertices[shuffled].reshape(-1, 1) * 1e3, "texMU": np.full((3 * count, 1), 128.0),
        "shapePC": np.full((3 * count, 1), (3 * count) ** -0.5), "shapeEV": np.ones((1, 1)),
        "texPC": np.full((3 * count, 1), (3 * count) ** -0.5), "texEV": np.ones((1, 1)),
        "tl": place[own.triangles.numpy()[skin]] + 1.0,
    }  # fmt: skip
    scipy.io.savemat(tmp_path / "stranger.mat", data)
    model = convert_bfm2009.convert(tmp_path / "stranger.mat")
    truth = own.landmarks(torch.from_numpy(vertices).float())
    shift = vertices[shuffled[0]] - model.mean[0].numpy()
    error = (model.landmarks(model.mean) + torch.from_numpy(shift).float() - truth).norm(dim=-1)
    assert error.median() < 1.0 and error[17:].mean() < 1.2 and error.max() < 8


def test_albedo_is_borrowed(own: MorphableModel) -> None:
    bare = MorphableModel(
        mean=torch.from_numpy(stranger(own)).float(), triangles=own.triangles,
        landmark_triangles=own.landmark_triangles, landmark_weights=own.landmark_weights,
    )  # fmt: skip
    model = registration.borrow_albedo(bare, own)
    assert model.albedo_basis.shape == own.albedo_basis.shape and (model.albedo_sigma > 0).all()
    skin = own.region_vertices("skin")
    assert (model.albedo_mean - own.albedo_mean)[skin].abs().mean() < 0.01
    assert (bare.albedo_mean - own.albedo_mean)[skin].abs().mean() > 0.05


# --- the command line ---------------------------------------------------------------------------------------


def test_command_line(
    head: dict[str, np.ndarray], tmp_path: Path, landmark_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_bfm2009(tmp_path / "bfm.mat", head)
    script, out = str(SCRIPTS / "convert_bfm2009.py"), str(tmp_path / "out.safetensors")
    arguments = [script, str(tmp_path / "bfm.mat"), out, "--landmarks", str(landmark_file)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(script, run_name="__main__")
    assert "'identity': 2" in capsys.readouterr().out
    assert len(MorphableModel.load(out).mean) == V
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "nothing.mat"), out])
    with pytest.raises(SystemExit, match="There is no file"):
        runpy.run_path(script, run_name="__main__")


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("convert_*.py")), ids=lambda path: path.stem)
def test_every_converter_says_where_and_under_which_terms(script: Path) -> None:
    text = sys.modules[script.stem].__doc__ or ""
    assert all(
        word in text for word in ("Where:", "https://", "Terms:", "Units:", "Kept:", f"{script.name} ")
    )
    assert f"convert_{script.stem.removeprefix('convert_')}" in (SCRIPTS / "README.md").read_text()


# --- GNM ----------------------------------------------------------------------------------------------------


def gnm_arrays(head: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The grid head, and behind it, moved by components of its own, a tongue of three vertices."""
    rng = np.random.default_rng(7)
    tongue = np.array([[-10.0, -45, 60], [10, -45, 60], [0, -40, 75]])
    groups = np.zeros((3, V + 3))
    groups[0, V:] = 1
    groups[1, : 2 * N] = 1  # the two lowest rows are an eyeball
    groups[2, -3 - N : -3] = 0.4  # no more than touched
    triangles = np.concatenate([head["triangles"], [[V, V + 1, V + 2]]])
    identity, expression = rng.normal(0, 1e-3, (12, V + 3, 3)), rng.normal(0, 1e-3, (9, V + 3, 3))
    identity[10:, :V], expression[7:, :V] = 0, 0
    vertices = np.concatenate([head["vertices"], tongue])
    corners = vertices[triangles][..., :2] / 200 + 0.5
    return {
        "template_vertex_positions": (vertices / 1000).astype(np.float32), "triangles": triangles,
        "vertex_identity_basis": identity.astype(np.float32), "triangle_uvs": corners.astype(np.float32),
        "expression_basis": expression.astype(np.float32), "vertex_groups": groups,
        "vertex_group_names": np.array(["tongue", "eyeball_exterior", "upper_teeth"]),
    }  # fmt: skip


def gnm_landmarks(path: Path, head: dict[str, np.ndarray]) -> Path:
    """Rows of three vertices and their weights, each landmark on one of them."""
    corner = [np.argwhere(head["triangles"] == v)[0] for v in head["landmarks"]]
    rows = [np.c_[head["triangles"][t], np.eye(3)[k]].ravel() for t, k in corner]
    path.write_text("\n".join(" ".join(f"{value:g}" for value in row) for row in rows))
    return path


@pytest.mark.parametrize("unit", [1000, 10, 1])
def test_gnm(unit: float, head: dict[str, np.ndarray], tmp_path: Path) -> None:
    data = gnm_arrays(head)
    for name in ("template_vertex_positions", "vertex_identity_basis", "expression_basis"):
        data[name] = data[name] * np.float32(1000 / unit)
    np.savez(tmp_path / "gnm_head.npz", **data)
    model = convert_gnm.convert(tmp_path / "gnm_head.npz", gnm_landmarks(tmp_path / "68.txt", head))
    check_model(model, head, tmp_path / "out.safetensors")
    assert same_shape(model, head["vertices"]) and len(model.mean) == V  # the tongue is gone
    for basis, name, count in (
        (model.identity_basis, "vertex_identity_basis", 10), (model.expression_basis, "expression_basis", 7)
    ):  # fmt: skip
        np.testing.assert_allclose(basis, unit * data[name][:count, :V], rtol=1e-4, atol=1e-6)
    eyes = model.region_vertices("eyes")
    assert eyes[: 2 * N].all() and not eyes[2 * N :].any() and not model.region_vertices("teeth").any()
    corners = model.uv[model.uv_triangles].numpy()
    again = (model.mean[model.triangles] - model.mean[0])[..., :2].numpy() / 200
    assert np.allclose(corners - corners[0, 0], again - again[0, 0], atol=1e-5)


def test_gnm_that_is_not_one(head: dict[str, np.ndarray], tmp_path: Path) -> None:
    good, path = gnm_arrays(head), tmp_path / "gnm.npz"
    cases = {
        "lacks triangles": {k: v for k, v in good.items() if k != "triangles"},
        "do not fit": good | {"triangle_uvs": good["triangle_uvs"][1:]},
        "3 vertex groups and 2 names": good | {"vertex_group_names": good["vertex_group_names"][:2]},
        "NaN": good | {"expression_basis": good["expression_basis"] * np.nan},
    }
    for message, data in cases.items():
        np.savez(path, **data)
        with pytest.raises(ModelFileError, match=message):
            convert_gnm.convert(path)
    np.savez(path, **good)
    with pytest.raises(ModelFileError):
        convert_gnm.convert(truncated(path))
    for text, message in (("1 2 3", "68 rows"), ("a b", "no table"), ("9999 1 0 0 0 0\n" * 68, "has not")):
        (tmp_path / "68.txt").write_text(text)
        with pytest.raises(ModelFileError, match=message):
            convert_gnm.convert(path, tmp_path / "68.txt")
