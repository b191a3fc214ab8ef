"""Every reader of a real data set on a tiny folder of the same structure that the test writes."""

import gzip
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))

import read_dataset  # noqa: E402
from datasets import READERS, common, facescape, w300lp  # noqa: E402

from facelab.evaluation.test_sets import load_test_set  # noqa: E402
from facelab.geometry.camera import PerspectiveCamera, WeakPerspectiveCamera  # noqa: E402
from facelab.support.errors import DatasetError, FacelabError, TruncatedImageError  # noqa: E402

torch.set_num_threads(1)
WIDTH, HEIGHT = 48, 40
ROW, COLUMN = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([5 * ROW, 5 * COLUMN, 250 - 2 * ROW - 3 * COLUMN], -1).astype(np.uint8)
ANGLE = np.linspace(0, 2 * np.pi, 68, endpoint=False)
POINTS = np.c_[20 + 12 * np.cos(ANGLE), 20 + 12 * np.sin(ANGLE)]  # as a file has them
BOX = np.array([[x, y, z] for x in (-7.5, 7.5) for y in (-11.0, 11.0) for z in (-5.0, 4.0)])  # 8 vertices, cm


def write(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)
    return path


def obj(path: Path, vertices: np.ndarray, quads: bool = True) -> Path:
    """A box with texture coordinates, as quads or triangles, and another order of corners per face."""
    faces = [[1, 2, 4, 3], [5, 7, 8, 6], [1, 5, 6, 2], [3, 4, 8, 7], [1, 3, 7, 5], [2, 6, 8, 4]]
    if not quads:
        faces = [part for a, b, c, d in faces for part in ([a, b, c], [a, c, d])]
    rows = ["mtllib x.mtl", *(f"v {x} {y} {z}" for x, y, z in vertices), "vt 0 0"]
    rows += ["f " + " ".join(f"{corner}/1/1" for corner in face) for face in faces]
    return write(path, "\n".join(rows))


def pts(points: np.ndarray) -> str:
    return (
        f"version: 1\nn_points: {len(points)}\n{{\n"
        + "".join(f"{x:.3f} {y:.3f}\n" for x, y in points)
        + "}\n"
    )


# --- the sets, written as they are laid out -----------------------------------------------------------------


def celeba(root: Path) -> None:
    names = ["5_o_Clock_Shadow", "Eyeglasses", "Male", "Young"]
    rows = ["000001.jpg -1 -1  1 -1", "000002.jpg -1  1 -1  1"]
    write(root / "Anno/list_attr_celeba.txt", "\n".join(["2", " ".join(names), *rows]))
    write(root / "Anno/identity_CelebA.txt", "000001.jpg 2880\n000002.jpg 17\n")
    write(root / "Eval/list_eval_partition.txt", "000001.jpg 0\n000002.jpg 2\n")
    for name in ("000001.jpg", "000002.jpg"):
        picture(root / "Img/img_align_celeba" / name)


def lfw(root: Path) -> None:
    for name in ("Ada_Lovelace_0001", "Ada_Lovelace_0002", "Alan_Turing_0001"):
        picture(root / "lfw_funneled" / name[:-5] / f"{name}.jpg")


POSE = np.array([[0.1, -0.7, 0.2, 21.0, 18.0, -3.0, 1.2e-4]])


def w300lp_set(root: Path) -> None:
    for name in ("AFW/AFW_1_1_0", "AFW/AFW_1_1_1", "LFPW/LFPW_image_test_0001_0", "AFW_Flip/AFW_1_1_0"):
        path = picture(root / "300W_LP" / f"{name}.jpg")
        scipy.io.savemat(path.with_suffix(".mat"), {"Pose_Para": POSE, "Shape_Para": np.zeros((199, 1))})
        points = root / "300W_LP/landmarks" / f"{name}_pts.mat"
        points.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(points, {"pts_2d": POINTS, "pts_3d": POINTS + 5})


def aflw2000(root: Path) -> None:
    for number in (10, 2):
        path = picture(root / "AFLW2000" / f"image{number:05d}.jpg")
        truth = {"Pose_Para": POSE, "pt3d_68": np.c_[POINTS, np.zeros(68)].T, "pt2d": np.zeros((2, 21))}
        scipy.io.savemat(path.with_suffix(".mat"), truth)


def vw300(root: Path) -> None:
    for clip in ("001", "410"):
        write(root / "300VW" / clip / "vid.avi", b"RIFF")
        for frame in (1, 2):
            picture(root / "300VW" / clip / "vid" / f"{frame:06d}.png")
            write(root / "300VW" / clip / "annot" / f"{frame:06d}.pts", pts(POINTS + frame))


def facewarehouse(root: Path) -> None:
    for name in (
        "Tester_10/TrainingPose/pose_0",
        "Tester_2/TrainingPose/pose_10",
        "Tester_2/TrainingPose/pose_9",
    ):
        picture(root / f"{name}.png")
        obj(root / f"{name}.obj", BOX / 10)


def micc(root: Path) -> None:
    for person in ("subject_01", "subject_02"):
        obj(root / person / "Model/frontal1/obj/110920150452.obj", BOX * 10)
        write(root / person / "Video/Indoor-Cooperative.mjpg")
        for frame in (2, 1):
            picture(root / person / f"Video/Indoor-Cooperative/{frame:06d}.png")
    group = {"landmarks": {"points": np.tile(BOX[7] * 10, (68, 1)).tolist()}, "labels": []}
    ljson = json.dumps({"version": 3, "groups": {"LJSON": group}})
    write(root / "MICC_landmarks/subject_01/Model/frontal1/obj/110920150452.ljson", ljson)


NOW_POINTS = np.array(
    [[-45, 30, 20], [-18, 30, 25], [18, 30, 25], [45, 30, 20], [0, -20, 35], [-25, -45, 30], [25, -45, 30]]
)


def now(root: Path) -> None:
    release, person = root / "NoW_Dataset/final_release_version", "FaMoS_180424_03335_TA"
    listed = [f"{person}/multiview_neutral/IMG_0041.jpg", f"{person}/selfie/IMG_0050.jpg"]
    write(root / "imagepathsvalidation.txt", "\n".join(listed) + "\n")
    for line in listed:
        picture(release / "iphone_pictures" / line)
    head = np.concatenate([BOX * 10, [[0.0, -5.0, 55.0]]])  # a nose that belongs to no face
    obj(release / f"scans/{person}/natural_head_rotation.000001.obj", head, quads=False)
    tags = (
        f' <point x="{x}" y="{y}" z="{z}" active="1" name="{k}"/>' for k, (x, y, z) in enumerate(NOW_POINTS)
    )
    text = "<!DOCTYPE PickedPoints>\n<PickedPoints>\n" + "\n".join(tags) + "\n</PickedPoints>\n"
    write(release / f"scans_lmks_onlypp/{person}/natural_head_rotation.000001_picked_points.pp", text)


SFM_SCALE = 120.0
TURN = np.array([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]])
SHIFT = np.array([3.0, -4.0, 5.0])
K = np.array([[60.0, 0.0, 24.0], [0.0, 60.0, 19.0], [0.0, 0.0, 1.0]])
RT = np.c_[np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ TURN, [0.1, -0.2, 4.0]]


def facescape_set(root: Path) -> None:
    shot = root / "fsmview_images/12/2_smile"
    content = {}
    for view, valid in enumerate((True, False, True)):
        picture(shot / f"{view}.jpg")
        content |= {f"{view}_K": K.tolist(), f"{view}_Rt": RT.tolist(), f"{view}_valid": valid}
        content[f"{view}_distortion"] = [0.0] * 5
    write(shot / "params.json", json.dumps(content))
    obj(root / "facescape_trainset_001_100/12/models_reg/2_smile.obj", BOX * 10)
    matrix = np.c_[TURN, SHIFT].tolist()
    write(root / "Rt_scale_dict.json", json.dumps({"12": {"2": [SFM_SCALE, matrix]}}))
    np.savez(root / "landmark_indices.npz", v10=np.arange(68) % 8)


def abs_file(flip: float = -1.0) -> str:
    flag = np.ones((HEIGHT, WIDTH), dtype=int)
    flag[0] = 0
    z = flip * (1500 + np.arange(HEIGHT)[:, None] + np.zeros(WIDTH))
    z[0] = -999999.0
    rows = [" ".join(map(str, values.ravel())) for values in (flag, z * 0, z * 0, z)]
    return f"{HEIGHT} rows\n{WIDTH} columns\npixels (flag X Y Z):\n" + "\n".join(rows) + "\n"


def frgc(root: Path) -> None:
    folder = root / "nd1/Fall2003range"
    write(folder / "02463d099.abs", abs_file())
    write(folder / "02463d101.abs.gz", gzip.compress(abs_file().encode()))
    for number in (100, 102):
        picture(folder / f"02463d{number}.ppm")


SETS: dict[str, Callable[[Path], None]] = {
    "celeba": celeba, "lfw": lfw, "300w-lp": w300lp_set, "aflw2000": aflw2000, "300-vw": vw300,
    "facewarehouse": facewarehouse, "micc": micc, "now": now, "facescape": facescape_set, "frgc": frgc,
}  # fmt: skip
NAMES = {
    "celeba": ["000001.jpg", "000002.jpg"],
    "lfw": ["Ada_Lovelace_0001.jpg", "Ada_Lovelace_0002.jpg", "Alan_Turing_0001.jpg"],
    "300w-lp": ["AFW_1_1_0.jpg", "AFW_1_1_1.jpg", "LFPW_image_test_0001_0.jpg"],
    "aflw2000": ["image00002.jpg", "image00010.jpg"],
    "300-vw": ["001/000001", "001/000002", "410/000001", "410/000002"],
    "facewarehouse": ["Tester_2/pose_9", "Tester_2/pose_10", "Tester_10/pose_0"],
    "micc": [f"subject_0{s}/Indoor-Cooperative/00000{f}" for s in (1, 2) for f in (1, 2)],
    "now": [f"FaMoS_180424_03335_TA/{n}" for n in ("multiview_neutral/IMG_0041", "selfie/IMG_0050")],
    "facescape": ["12/2_smile/0", "12/2_smile/2"],
    "frgc": ["02463d099", "02463d101"],
}


def made(name: str, root: Path) -> Path:
    SETS[name](root)
    return root


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_every_set_is_read_in_order_with_the_pictures_of_its_files(name: str, tmp_path: Path) -> None:
    records = READERS[name](made(name, tmp_path))
    assert [record.name for record in records] == NAMES[name]
    for record in records:
        assert record.image.shape == (3, HEIGHT, WIDTH) and record.image.dtype == torch.float32
        true = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255
        torch.testing.assert_close(record.image, true, atol=0.1, rtol=0)  # some are JPEG
    assert records[-1].name == NAMES[name][-1] and len(records[1:]) == len(records) - 1


def test_celeba_knows_people_and_groups(tmp_path: Path) -> None:
    first, second = READERS["celeba"](made("celeba", tmp_path))
    assert (first.person, second.person) == ("2880", "17")
    assert first.groups == {"sex": "male", "age": "old", "glasses": "no", "split": "training"}
    assert second.groups == {"sex": "female", "age": "young", "glasses": "yes", "split": "test"}
    assert first.landmarks is None  # five points that are not iBUG's
    (tmp_path / "Anno/identity_CelebA.txt").unlink()
    assert READERS["celeba"](tmp_path)[0].person is None


def test_lfw_knows_people(tmp_path: Path) -> None:
    people = [record.person for record in READERS["lfw"](made("lfw", tmp_path))]
    assert people == ["Ada_Lovelace", "Ada_Lovelace", "Alan_Turing"]


def projected_by_3ddfa(points_um: np.ndarray, height: int) -> np.ndarray:
    """3DDFA's Matlab code, spelled out: pixels counted from 1."""
    (*_, t_x, t_y, t_z, f), s, c = POSE[0], np.sin(POSE[0, :3]), np.cos(POSE[0, :3])
    r_x = np.array([[1, 0, 0], [0, c[0], s[0]], [0, -s[0], c[0]]])
    r_y = np.array([[c[1], 0, -s[1]], [0, 1, 0], [s[1], 0, c[1]]])
    r_z = np.array([[c[2], s[2], 0], [-s[2], c[2], 0], [0, 0, 1]])
    vertex = f * points_um @ (r_x @ r_y @ r_z).T + [t_x, t_y, t_z]
    vertex[:, 1] = height + 1 - vertex[:, 1]
    return vertex[:, :2]


@pytest.mark.parametrize("name", ["300w-lp", "aflw2000"])
def test_3ddfa_sets_have_landmarks_and_a_camera_in_our_pixels(name: str, tmp_path: Path) -> None:
    record = READERS[name](made(name, tmp_path))[0]
    torch.testing.assert_close(record.landmarks, torch.from_numpy(POINTS - 0.5).float())
    points = np.random.default_rng(1).normal(0, 60_000, (20, 3))  # micrometres
    assert isinstance(record.camera, WeakPerspectiveCamera)
    ours = record.camera.project(torch.from_numpy(points / 1000).float())[:, :2]
    true = torch.from_numpy(projected_by_3ddfa(points, HEIGHT) - 0.5).float()
    torch.testing.assert_close(ours, true, atol=1e-4, rtol=1e-5)
    # a head with positive yaw in these files looks towards the picture's left
    assert w300lp.pose_camera(np.array([0, 0.5, 0, 0, 0, 0, 1e-3]), 40).rotation[0, 2] < 0
    assert record.groups["yaw"] == "30-60"


def test_300w_lp_leaves_mirrored_pictures_out_and_knows_one_photograph_is_one_person(tmp_path: Path) -> None:
    records = READERS["300w-lp"](made("300w-lp", tmp_path))
    assert [record.person for record in records] == ["AFW_1_1", "AFW_1_1", "LFPW_image_test_0001"]
    assert [record.groups["set"] for record in records] == ["AFW", "AFW", "LFPW"]


def test_300_vw_pairs_frames_and_landmarks(tmp_path: Path) -> None:
    records = READERS["300-vw"](made("300-vw", tmp_path))
    true = torch.from_numpy(POINTS + 2 - 0.5).float()
    torch.testing.assert_close(records[1].landmarks, true, atol=1e-3, rtol=0)
    assert [record.groups["category"] for record in records] == ["training", "training", "3", "3"]
    assert records[2].person == "clip 410"


def test_facewarehouse_meshes_are_in_millimetres_and_correspond(tmp_path: Path) -> None:
    records = READERS["facewarehouse"](made("facewarehouse", tmp_path))
    mesh = records[2].mesh
    assert mesh is not None and mesh.topology == "facewarehouse" and mesh.landmarks is None
    torch.testing.assert_close(mesh.vertices, torch.from_numpy(BOX * 10).float())  # 2.2 units are 220 mm
    assert mesh.triangles.shape == (12, 3) and mesh.triangles[:2].tolist() == [[0, 1, 3], [0, 3, 2]]
    assert records[2].person == "Tester_10" and records[2].groups == {"expression": "neutral"}


def test_micc_has_the_persons_scan_for_every_frame(tmp_path: Path) -> None:
    records = READERS["micc"](made("micc", tmp_path))
    mesh, other = records[0].mesh, records[2].mesh
    assert mesh is not None and other is not None and mesh.landmarks is not None
    torch.testing.assert_close(mesh.vertices, torch.from_numpy(BOX * 10).float())
    assert (mesh.landmarks == mesh.vertices[7]).all() and other.landmarks is None
    assert records[2].person == "subject_02" and records[2].groups == {"setting": "Indoor-Cooperative"}


def test_now_has_the_neutral_scan_with_seven_landmarks_and_the_nose_tip(tmp_path: Path) -> None:
    neutral, selfie = READERS["now"](made("now", tmp_path))
    assert neutral.mesh is not None and neutral.mesh.landmarks is not None and selfie.mesh is None
    known = neutral.mesh.landmarks.isfinite().all(1).nonzero()[:, 0].tolist()
    assert known == [30, 33, 36, 39, 42, 45, 48, 54]
    assert neutral.mesh.landmarks[45].tolist() == [45, 30, 20]
    assert neutral.mesh.landmarks[30].tolist() == [0, -5, 55]
    assert neutral.groups == {"challenge": "multiview_neutral"} and neutral.person == selfie.person


def test_facescapes_camera_takes_the_mesh_to_the_picture(tmp_path: Path) -> None:
    record = READERS["facescape"](made("facescape", tmp_path))[1]
    assert isinstance(record.camera, PerspectiveCamera) and record.mesh is not None
    structure = (BOX * 10 - SHIFT) @ TURN / SFM_SCALE  # X = R^T (X_mesh - t) / scale
    pixels = (structure @ RT[:, :3].T + RT[:, 3]) @ K.T
    true = torch.from_numpy(pixels[:, :2] / pixels[:, 2:] + 0.5).float()
    screen = record.camera.project(record.mesh.vertices)
    torch.testing.assert_close(screen[:, :2], true, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(screen[:, 2], torch.from_numpy(pixels[:, 2] * SFM_SCALE).float())
    assert torch.linalg.det(record.camera.rotation) == pytest.approx(1, abs=1e-5)
    assert record.mesh.landmarks is not None and record.mesh.topology == "facescape"
    assert torch.equal(record.mesh.landmarks, record.mesh.vertices[torch.arange(68) % 8])


def test_undistorted_pictures_show_straight_what_the_lens_bent() -> None:
    """A spot, seen where OpenCV's model puts it, comes back to where a pinhole camera sees it."""
    k, (k1, k2, p1, p2, k3) = (
        np.array([[90.0, 0, 59.5], [0, 90.0, 49.5], [0, 0, 1]]),
        (0.15, 0.05, 0.01, 0.02, 0.01),
    )
    x, y = 0.4, -0.3
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = 90 * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + 59.5
    v = 90 * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + 49.5
    rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(120.0), indexing="ij")
    spot = torch.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 8).expand(3, -1, -1)
    straight = facescape.undistort(spot, k, np.array([k1, k2, p1, p2, k3]))[0]
    centre = torch.stack([(grid * straight).sum() / straight.sum() for grid in (columns, rows)])
    assert abs(u - (90 * x + 59.5)) > 2  # the lens did something
    torch.testing.assert_close(centre, torch.tensor([90 * x + 59.5, 90 * y + 49.5]), atol=0.2, rtol=0)


def test_frgc_has_depth_where_the_scanner_saw_something(tmp_path: Path) -> None:
    for record in READERS["frgc"](made("frgc", tmp_path)):
        assert record.depth is not None and record.depth.shape == (1, HEIGHT, WIDTH)
        assert record.depth[0, 0].isnan().all()
        expected = (1500 + torch.arange(1.0, HEIGHT))[:, None].expand(-1, WIDTH)
        torch.testing.assert_close(record.depth[0, 1:], expected)
        assert record.person == "02463" and record.groups == {"session": "Fall2003range"}


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_a_missing_or_empty_folder_says_where_the_set_is_had(name: str, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError, match=r"https?://") as caught:
            READERS[name](place)
        assert str(place) in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_a_cut_off_picture_is_named_when_it_is_asked_for(name: str, tmp_path: Path) -> None:
    made(name, tmp_path)
    kind = next(k for k in (".png", ".ppm", ".jpg") if any(tmp_path.rglob(f"*{k}")))
    for path in tmp_path.rglob(f"*{kind}"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TruncatedImageError, match=re.escape(kind)):
        READERS[name](tmp_path)[0]


def damage(pattern: str, content: str | bytes | None) -> Callable[[Path], None]:
    """Replace (None: remove) the files of a pattern."""

    def act(root: Path) -> None:
        paths = sorted(root.rglob(pattern))
        assert paths
        for path in paths:
            path.unlink() if content is None else path.write_bytes(
                content.encode() if isinstance(content, str) else content
            )

    return act


def matlab(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, arrays)
    return stream.getvalue()


WRONG = np.zeros((67, 2))
DAMAGE = {
    "celeba-no-attributes": ("celeba", damage("list_attr*", None), "list_attr_celeba.txt"),
    "celeba-cut-attributes": ("celeba", damage("list_attr*", "2\na b\n1.jpg 1 1\n2.jpg 1"), "2.jpg"),
    "celeba-one-row": ("celeba", damage("list_attr*", "2\nMale Young Eyeglasses\na 1 1 1"), "cut off"),
    "celeba-no-picture": ("celeba", damage("000002.jpg", None), "1 pictures"),
    "celeba-no-identity": ("celeba", damage("identity*", "000001.jpg\n"), "identity_CelebA"),
    "lfw-name": ("lfw", lambda root: picture(root / "lfw_funneled/Someone/else.jpg"), "else.jpg"),
    "300w-lp-no-points": ("300w-lp", damage("AFW_1_1_0_pts.mat", None), "AFW_1_1_0_pts.mat"),
    "300w-lp-67-points": ("300w-lp", damage("*_pts.mat", matlab(pts_2d=WRONG)), r"\(67, 2\)"),
    "300w-lp-nan": ("300w-lp", damage("*_pts.mat", matlab(pts_2d=np.full((68, 2), np.nan))), "not numbers"),
    "300w-lp-no-key": ("300w-lp", damage("AFW_1_1_0.mat", matlab(pt2d=WRONG)), "Pose_Para"),
    "300w-lp-damaged": ("300w-lp", damage("AFW_1_1_0.mat", b"MATLAB 5.0 MAT-file, cut"), "damaged"),
    "aflw2000-no-mat": ("aflw2000", damage("image00002.mat", None), "image00002.mat"),
    "aflw2000-21-points": (
        "aflw2000", damage("*.mat", matlab(Pose_Para=POSE, pt3d_68=np.zeros((3, 21)))), r"\(3, 21\)"
    ),
    "300-vw-67-points": ("300-vw", damage("*.pts", pts(POINTS[:67])), r"\(67, 2\)"),
    "300-vw-cut-points": ("300-vw", damage("*.pts", pts(POINTS)[:200]), "braces"),
    "300-vw-words": ("300-vw", damage("*.pts", "{\n1 a\n}"), "rows of numbers"),
    "300-vw-no-frames": ("300-vw", damage("*.png", None), "ffmpeg -i"),
    "300-vw-a-frame-less": ("300-vw", damage("410/vid/000002.png", None), "no frame"),
    "300-vw-no-points": ("300-vw", damage("410/annot/*.pts", None), "no .pts files"),
    "facewarehouse-no-mesh": ("facewarehouse", damage("pose_9.obj", None), "pose_9"),
    "facewarehouse-cut-mesh": ("facewarehouse", damage("*.obj", "v 0 0 0\nv 0 1 0\nf 1 2 3\n"), "cut off"),
    "facewarehouse-half-a-line": ("facewarehouse", damage("*.obj", "v 0 0 0\nv 0 1"), "complete OBJ"),
    "micc-no-scan": ("micc", damage("*.obj", None), "frontal1"),
    "micc-no-video": ("micc", damage("*.mjpg", None), "Indoor-Cooperative"),
    "micc-no-frames": ("micc", damage("*.png", None), "ffmpeg -i"),
    "micc-points": ("micc", damage("*.ljson", '{"landmarks": {"points": [[1, 2, 3]]}}'), r"\(1, 3\)"),
    "micc-damaged-points": ("micc", damage("*.ljson", "{"), "ljson"),
    "now-no-list": ("now", damage("imagepaths*", None), "imagepathsvalidation.txt"),
    "now-no-picture": ("now", damage("IMG_0050.jpg", None), "IMG_0050"),
    "now-no-scan": ("now", damage("*.obj", None), "scans"),
    "now-6-points": ("now", damage("*.pp", '<point x="1" y="2" z="3"/>' * 6), "6 picked points"),
    "now-points-elsewhere": ("now", damage("*.pp", '<point x="999" y="2" z="3"/>' * 7), "not on it"),
    "now-metres": ("now", lambda root: obj(next(root.rglob("*.obj")), BOX / 100), "units not expected"),
    "facescape-no-alignment": ("facescape", damage("Rt_scale_dict.json", None), "Rt_scale_dict.json"),
    "facescape-other-person": ("facescape", damage("Rt_scale_dict.json", '{"1": {}}'), "complete camera"),
    "facescape-cut-params": ("facescape", damage("params.json", '{"0_K": [['), "complete JSON"),
    "facescape-no-rt": ("facescape", damage("params.json", json.dumps({"0_K": K.tolist()})), "0_Rt"),
    "facescape-no-model": ("facescape", damage("*.obj", None), "2_smile.obj"),
    "facescape-pickle": ("facescape", damage("landmark_indices.npz", b"\x80\x04N."), "v10"),
    "frgc-no-picture": ("frgc", damage("02463d100.ppm", None), "02463d100.ppm"),
    "frgc-cut": ("frgc", damage("02463d099.abs", abs_file()[:5000]), "cut off"),
    "frgc-cut-gzip": ("frgc", damage("*.abs*", gzip.compress(abs_file().encode())[:99]), "cut off"),
    "frgc-rows": ("frgc", damage("02463d099.abs", abs_file().replace("40 rows", "9 rows")), "values for 9"),
    "frgc-sides": ("frgc", damage("02463d099.abs", abs_file().replace("-1539", "1539")), "both sides"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_a_named_error_that_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    name, act, message = DAMAGE[case]
    made(name, tmp_path)
    act(tmp_path)
    with pytest.raises(DatasetError, match=message):
        list(READERS[name](tmp_path))


def test_frgc_asks_to_unpack_a_packed_picture(tmp_path: Path) -> None:
    for path in made("frgc", tmp_path).rglob("*.ppm"):
        path.rename(path.with_name(f"{path.name}.gz"))
    with pytest.raises(DatasetError, match="gunzip"):
        READERS["frgc"](tmp_path)


def test_scans_are_brought_to_millimetres_by_powers_of_ten(tmp_path: Path) -> None:
    for power in (-3, -2, 0, 2):
        path = obj(tmp_path / f"{power}.obj", BOX * 10.0 ** (power + 1))
        vertices, _, scale = common.read_scan(path)
        assert scale == pytest.approx(10.0**-power)
        torch.testing.assert_close(vertices, torch.from_numpy(BOX * 10).float())


# --- the command line ---------------------------------------------------------------------------------------


def test_an_export_is_a_photos_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("300-vw", tmp_path / "set")
    out = tmp_path / "out"
    assert read_dataset.summarise("300-vw", str(tmp_path / "set"), 3, out) == 0
    said = capsys.readouterr().out
    assert "4 records" in said and "3  landmarks" in said and "Terms:" in said and "2  group category" in said
    records = READERS["300-vw"](tmp_path / "set")
    known = np.load(out / "landmarks68.npz")
    assert known["names"].tolist() == ["001_000001.png", "001_000002.png", "410_000001.png"]
    np.testing.assert_allclose(known["landmarks"][1], records[1].landmarks)
    assert np.array_equal(np.asarray(Image.open(out / "001_000001.png")), PIXELS)
    photos = load_test_set("photos", folder=out, size=32)
    assert len(photos) == 3 and photos[0].landmarks is not None


def test_a_broken_record_is_counted_and_the_others_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("lfw", tmp_path / "set")
    broken = tmp_path / "set/lfw_funneled/Alan_Turing/Alan_Turing_0001.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    assert read_dataset.summarise("lfw", str(tmp_path / "set"), None, tmp_path / "out") == 1
    assert "TruncatedImageError" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 2  # and no landmark file, as there are none


def test_the_command_line_ends_with_the_named_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["read_dataset.py", "micc", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"DatasetError: .*subject_"):
        read_dataset.main()


def test_every_reader_states_its_source_terms_and_what_is_not_verified() -> None:
    readme = (SCRIPTS / "README.md").read_text()
    for reader in READERS.values():
        module = sys.modules[reader.__module__]
        text = module.__doc__ or ""
        assert all(f"\n{word}:" in text for word in ("Where", "Terms", "Folder", "Truth", "Checked"))
        assert module.PAGE in readme and "not against the set itself" in " ".join(text.split())
    assert issubclass(DatasetError, FacelabError)
