"""The scoreboard: worse is worse in every column, failures are counted, and a stopped run goes on."""

import csv
import inspect
import json
import multiprocessing
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from skimage.data import astronaut
from torch import Tensor

from facelab.evaluation.measures import METRICS, face_vertices
from facelab.evaluation.scoreboard import (
    Outcome,
    Row,
    evaluate,
    load_rows,
    markdown,
    ranking,
    save_row,
    table,
)
from facelab.geometry.camera import PerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.methods.base import METHODS, make_method
from facelab.methods.baselines import AverageFace, FullFitting, LandmarkFitting
from facelab.methods.energy import Settings
from facelab.model.face import Face
from facelab.model.morphable_model import MorphableModel
from facelab.model.records import FaceRecord, Mesh, Reconstruction
from facelab.photos import find_face
from facelab.rendering.illumination import (
    SphericalHarmonicsLight,
    ambient_to_sh,
    directional_to_sh,
    shading_coefficients,
)
from facelab.rendering.image_formation import render_attributes
from facelab.support.errors import ModelFileError, NoFaceError, ParameterError

SIZE = 120
DOCS = Path(__file__).parents[1] / "docs" / "adding_a_method.md"
WITHOUT_JUDGE = {name: metric for name, metric in METRICS.items() if name != "identity"}


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(subdivisions=0)


def a_face(model: MorphableModel, seed: int, noise: float = 0.0) -> Reconstruction:
    """A random face; `noise` disturbs every factor of it, always in the same directions."""
    generator = torch.Generator().manual_seed(seed)
    person = {kind: value[0] for kind, value in model.sample(1, generator).items()}
    angles = 0.6 * (torch.rand(3, generator=generator) - 0.5)
    towards = torch.tensor([1.0, 0.5, 0.7]) * (torch.rand(3, generator=generator) - 0.2)
    light = ambient_to_sh(torch.full((3,), 0.4)) + directional_to_sh(towards, torch.full((3,), 0.5))
    position = torch.tensor([0.0, 0.0, -600.0])
    person = {k: v + noise * torch.randn(v.shape, generator=generator) for k, v in person.items()}
    angles = angles + noise * torch.tensor([0.2, -0.15, 0.1])
    light = light + noise * 0.4 * torch.randn(9, 1, generator=generator)
    position = position + noise * torch.tensor([10.0, -8.0, 20.0])
    camera = replace(PerspectiveCamera.from_fov(24.0, SIZE, SIZE).look(angles), translation=position)
    face = Face(**person, camera=camera, light=SphericalHarmonicsLight(light))
    return Reconstruction.of(face, model, SIZE, SIZE)


def known(truth: Reconstruction, name: str, **groups: str) -> FaceRecord:
    """The record whose answer is `truth`."""
    depth = truth.camera.project(truth.mesh.vertices)[:, 2:]
    drawn, _ = render_attributes(truth.mesh.vertices, truth.mesh.triangles, truth.camera, depth, SIZE, SIZE)
    light = shading_coefficients(truth.light)
    y, z, x = light[1:4].mean(-1)
    return FaceRecord(
        name, truth.image, truth.landmarks, truth.mask, truth.mesh, truth.camera, truth.diffuse, light,
        torch.stack([x, y, z]), drawn, groups=groups,
    )  # fmt: skip


@pytest.fixture(scope="module")
def records(model: MorphableModel) -> list[FaceRecord]:
    return [known(a_face(model, i), f"face {i}", parity="even" if i % 2 == 0 else "odd") for i in range(4)]


class Disturbed:
    """Knows the answers and says them with noise: 0 is perfect."""

    def __init__(self, model: MorphableModel, records: list[FaceRecord], noise: float) -> None:
        self.name = f"noise {noise}"
        self.answers = {r.image.data_ptr(): a_face(model, i, noise) for i, r in enumerate(records)}
        self.calls = 0

    def reconstruct(self, image: Tensor) -> Reconstruction:
        self.calls += 1
        return self.answers[image.data_ptr()]


def test_the_truth_has_no_error(model: MorphableModel, records: list[FaceRecord]) -> None:
    row = evaluate(Disturbed(model, records, 0.0), records, "four")
    assert not row.failures
    best = {"mask_iou_percent": 100.0, "identity": 1.0}
    for name, cell in row.summary().items():
        assert cell["count"] == 4, name
        assert cell["mean"] == pytest.approx(best.get(name, 0.0), abs=0.05 if "degrees" in name else 2e-3), (
            name
        )
    assert set(row.summary()) == set(METRICS)


def test_a_worse_method_is_worse_in_every_column(model: MorphableModel, records: list[FaceRecord]) -> None:
    good, bad = (evaluate(Disturbed(model, records, noise), records, "four") for noise in (0.1, 0.5))
    for name, metric in METRICS.items():
        better, worse = (row.summary()[name]["mean"] for row in (good, bad))
        if metric.higher_is_better:
            better, worse = worse, better
        assert better < worse, name
    order = ranking([bad, good], METRICS)
    assert [line["method"] for line in order] == ["noise 0.1", "noise 0.5"]
    assert [line["mean_rank"] for line in order] == [1.0, 2.0]


def test_nothing_is_measured_without_truth_or_answer(
    model: MorphableModel, records: list[FaceRecord]
) -> None:
    truth, said = records[0], a_face(model, 0, 0.2)
    photo = FaceRecord("photo", truth.image, truth.landmarks)
    assert {k for k, m in METRICS.items() if m(photo, said) is not None} == {
        "landmarks_px", "nme_percent", "nme_inner_percent", "nme_mouth_percent", "photometric_rmse",
        "colour_distance", "identity",
    }  # fmt: skip
    silent = Reconstruction(said.mesh, said.camera, said.landmarks)
    not_said = {"albedo", "light", "light_degrees", "photometric_rmse", "colour_distance", "identity"}
    not_said |= {"mask_iou_percent"}
    assert {k for k, m in METRICS.items() if m(truth, silent) is None} == not_said
    ambient = replace(truth, light=ambient_to_sh(torch.ones(3)))
    assert METRICS["light_degrees"](ambient, said) is None, "light from everywhere has no direction"


def test_another_topology(model: MorphableModel, records: list[FaceRecord]) -> None:
    """Vertices in another order and frame: no vertex-wise error, but the same ICP, pose, depth."""
    said, truth = a_face(model, 0, 0.3), records[0]
    order = torch.randperm(len(model.mean), generator=torch.Generator().manual_seed(0))
    turn, shift = euler_to_matrix(torch.tensor([0.1, 0.2, -0.1])), torch.tensor([3.0, 50.0, -9.0])
    mesh = Mesh(
        said.mesh.vertices[order] @ turn.T + shift,
        order.argsort()[said.mesh.triangles],
        said.mesh.landmarks @ turn.T + shift,
        "scan",
    )
    rotation = said.camera.rotation @ turn.T
    camera = replace(said.camera, rotation=rotation, translation=said.camera.translation - rotation @ shift)
    scan = replace(said, mesh=mesh, camera=camera)
    for name in ("icp_mm", "depth_mm", "depth_p90_mm", "inner_mouth_mm"):
        assert METRICS[name](truth, scan) == pytest.approx(METRICS[name](truth, said), rel=0.08), name
    assert METRICS["geometry_mm"](truth, scan) is None and METRICS["albedo"](truth, scan) is None
    # Where vertices correspond, model spaces do, and the pose is compared as it is; else landmarks are asked.
    pose = METRICS["pose_degrees"](truth, scan)
    assert pose == pytest.approx(METRICS["pose_degrees"](truth, said), abs=2.0)
    same = replace(scan, mesh=replace(mesh, topology=model.name))
    assert abs(METRICS["pose_degrees"](truth, same) - pose) > 5


def test_the_face_is_what_can_be_seen_around_the_nose(model: MorphableModel) -> None:
    face = face_vertices(Mesh(model.mean, model.triangles, model.landmarks(model.mean)))
    tip = model.landmarks(model.mean)[30]
    assert (model.mean[face] - tip).norm(dim=1).max() < 95
    assert face[model.region_vertices("skin")].float().mean() > 0.8
    hidden = model.region_vertices("interior") & ~model.region_vertices("lips")
    assert face[hidden].float().mean() < 0.1


class Unreliable(Disturbed):
    """Finds no face in the second picture, says NaN of the third, and looks elsewhere in the fourth."""

    def reconstruct(self, image: Tensor) -> Reconstruction:
        said = super().reconstruct(image)
        if self.calls == 2:
            raise NoFaceError("No face.")
        if self.calls == 3:
            broken = torch.full_like(said.mesh.vertices, torch.nan)
            return replace(said, mesh=replace(said.mesh, vertices=broken))
        away = said.camera.translation + torch.tensor([5000.0, 0, 0])
        return replace(said, camera=replace(said.camera, translation=away)) if self.calls == 4 else said


def test_failures_are_counted_and_named(model: MorphableModel, records: list[FaceRecord]) -> None:
    row = evaluate(Unreliable(model, records, 0.1), records, "four", measures=WITHOUT_JUDGE)
    assert set(row.failures) == {"face 1", "face 2", "face 3"}
    assert row.failures["face 1"] == "NoFaceError: No face."
    assert row.failures["face 2"] == "NaN or infinity in its vertices"
    assert row.failures["face 3"].startswith("depth_mm, depth_p90_mm cannot be measured")
    assert row.summary()["geometry_mm"]["count"] == 1
    assert table([row])[0]["failures"] == 3


def test_a_bug_in_a_method_is_raised(records: list[FaceRecord]) -> None:
    class Buggy:
        name = "buggy"

        def reconstruct(self, image: Tensor) -> Reconstruction:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(Buggy(), records, "four")


class Stopped(Disturbed):
    def reconstruct(self, image: Tensor) -> Reconstruction:
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().reconstruct(image)


def without_times(row: Row) -> dict:
    return asdict(replace(row, outcomes=[replace(o, milliseconds=0.0) for o in row.outcomes]))


def test_a_stopped_run_goes_on(model: MorphableModel, records: list[FaceRecord], tmp_path: Path) -> None:
    whole = evaluate(Disturbed(model, records, 0.1), records, "four", measures=WITHOUT_JUDGE)
    with pytest.raises(KeyboardInterrupt):
        stopped = Stopped(model, records, 0.1)
        evaluate(stopped, records, "four", measures=WITHOUT_JUDGE, folder=tmp_path)
    (log,) = tmp_path.glob("four__noise_0_1*.jsonl")
    log.write_text(log.read_text() + '{"name": "face 2", "grou')  # killed while writing
    again = Disturbed(model, records, 0.1)
    row = evaluate(again, records, "four", measures=WITHOUT_JUDGE, folder=tmp_path)
    assert again.calls == 2
    assert without_times(row) == without_times(whole)
    assert row.outcomes[:2] == [Outcome(**json.loads(line)) for line in log.read_text().split("\n")[1:3]]
    with pytest.raises(ParameterError, match="other settings"):
        evaluate(again, records, "four", measures=WITHOUT_JUDGE, folder=tmp_path, seed=1)


def test_two_records_of_one_name_are_refused(model: MorphableModel, records: list[FaceRecord]) -> None:
    twice = [records[0], replace(records[1], name=records[0].name)]
    with pytest.raises(ParameterError, match="face 0"):
        evaluate(Disturbed(model, records, 0.1), twice, "two", measures=WITHOUT_JUDGE)


def a_row(method: str, values: dict[str, list[float | None]], test_set: str = "s") -> Row:
    """A row from lists of values; None in all of a picture's lists is a failure."""
    outcomes = []
    for i, one in enumerate(zip(*values.values())):
        numbers = {name: value for name, value in zip(values, one) if value is not None}
        group = {"skin": "dark" if i < 2 else "light"}
        failure = None if numbers else "NoFaceError: none"
        outcomes.append(Outcome(f"p{i}", group, 10.0 * i, numbers, failure))
    return Row(method, test_set, "quick", 0, "a CPU", "2.13.0", "0123", "abc", "2026-01-01", outcomes)


def test_rows_survive_saving(tmp_path: Path) -> None:
    row = a_row("Full fitting (ours)", {"geometry_mm": [1.0, 2.0, 4.5, None]})
    path = save_row(row, tmp_path / "results")
    assert path.name == "s.csv"
    assert not list(path.parent.glob("*.tmp")), "nothing unfinished is left behind"
    assert load_rows(path.parent) == [row]
    newer, other = replace(row, seed=1), a_row("another", {"albedo": [0.25, 1 / 3, 1e-7, 123456]})
    save_row(newer, tmp_path / "mine")
    assert load_rows(path.parent, tmp_path / "mine") == [newer]
    save_row(other, path.parent)
    saved = {r.method: r for r in load_rows(path.parent)}
    assert saved[row.method] == row, "the other row is as it was"
    assert saved["another"].values("albedo") == {"p0": 0.25, "p1": 0.3333, "p2": 1e-7, "p3": 123500}
    assert replace(saved["another"], outcomes=[]) == replace(other, outcomes=[])
    save_row(newer, path.parent)
    assert load_rows(path.parent) == [saved["another"], newer]


def test_a_saved_row_is_a_table_for_everyone(tmp_path: Path) -> None:
    path = save_row(a_row("m", {"geometry_mm": [1.0, 2.0, None], "extra": [0.5, None, None]}), tmp_path)
    with path.open(newline="") as file:
        about, *lines = csv.DictReader(file)
    assert json.loads(about["about"])["hardware"] == "a CPU" and json.loads(about["about"])["pictures"] == 3
    assert [line["picture"] for line in lines] == ["p0", "p1", "p2"]
    assert lines[0] == {
        "method": "m", "picture": "p0", "group.skin": "dark", "milliseconds": "0", "geometry_mm": "1",
        "extra": "0.5", "failure": "", "about": "",
    }  # fmt: skip
    assert lines[2]["failure"] == "NoFaceError: none" and lines[2]["geometry_mm"] == ""


def test_a_damaged_file_of_rows_is_named(tmp_path: Path) -> None:
    row = a_row("m", {"geometry_mm": [1.0, 2.0, 4.5, None]})
    path = save_row(row, tmp_path)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    cut = [data[:n] for n in range(len(lines[0]) + 1, len(data) - 2, 7)] + [b"".join(lines[:-1])]
    others = [b"", data + lines[-1], data + b"x,y\r\n", data.replace(b",4.5,", b",inf,"), b"\xff" + data]
    for bad in [*cut, *others]:
        path.write_bytes(bad)
        for use in (lambda: load_rows(tmp_path), lambda: save_row(row, tmp_path)):
            with pytest.raises(ParameterError, match=r"s\.csv.*damaged"):
                use()
        assert path.read_bytes() == bad, "what is there is not overwritten"
    path.unlink()
    for name in ("method", "milliseconds", "failure", "group.skin"):
        with pytest.raises(ParameterError, match="name of another column"):
            save_row(a_row("m", {name: [1.0]}), tmp_path)


def save_some(folder: str, method: str) -> None:
    for seed in range(5):
        save_row(replace(a_row(method, {"geometry_mm": [1.0] * 20}), seed=seed), folder)


def test_two_programs_may_write_to_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=save_some, args=(str(tmp_path), name)) for name in ("one", "two")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [(row.method, row.seed) for row in load_rows(tmp_path)] == [("one", 4), ("two", 4)]


def test_tables() -> None:
    row = a_row("m", {"geometry_mm": [1.0, 2.0, 4.5, None], "identity": [0.5, 0.7, 0.9, None]})
    line = table([row], ["geometry_mm", "albedo"], "median")[0]
    assert line == {
        "set": "s", "method": "m", "pictures": 4, "failures": 1, "ms": 15, "geometry_mm": 2.0, "albedo": None,
    }  # fmt: skip
    assert table([row], ["geometry_mm"], spread=True)[0]["geometry_mm"] == "2.5 ± 1.8 (2)"
    text = markdown(table([row], ["geometry_mm", "identity", "albedo"]))
    assert text.split("\n")[0] == "| set | method | pictures | failures | ms | geometry_mm ↓ | identity ↑ |"
    assert text.split("\n")[2] == "| s | m | 4 | 1 | 15 | 2.5 | 0.7 |"
    by_skin = row.groups("skin")
    assert {group: part.summary()["geometry_mm"]["mean"] for group, part in by_skin.items()} == {
        "dark": 1.5, "light": 4.5,
    }  # fmt: skip
    assert len(by_skin["light"].failures) == 1 and row.groups("age") == {}


def test_ranking_is_over_the_pictures_that_all_could_do() -> None:
    careful = a_row("careful", {"geometry_mm": [2.0, 2.0, None], "identity": [0.9, 0.9, None]})
    brave = a_row("brave", {"geometry_mm": [1.0, 1.0, 50.0], "identity": [0.8, 0.8, 0.1]})
    silent = a_row("silent", {"geometry_mm": [3.0, 3.0, 3.0]})
    lines = {line["method"]: line for line in ranking([careful, brave, silent], ["geometry_mm", "identity"])}
    assert [lines[m]["geometry_mm"] for m in ("brave", "careful", "silent")] == [1, 2, 3]
    assert [lines[m]["identity"] for m in ("careful", "brave", "silent")] == [1, 2, 3]
    assert lines["careful"]["pictures"] == 2 and lines["careful"]["failures"] == 1
    assert lines["silent"]["mean_rank"] == 3
    with pytest.raises(ParameterError, match="one test set"):
        ranking([careful, replace(brave, test_set="other")])


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return torch.from_numpy(astronaut()[:300, 60:420]).permute(2, 0, 1).float() / 255


def test_baselines_answer_in_the_pixels_of_the_picture(photo: Tensor) -> None:
    found = find_face(photo).landmarks
    size = (found.amax(0) - found.amin(0)).norm()
    average, landmarks = AverageFace(), LandmarkFitting()
    errors = []
    for method in (average, landmarks):
        said = method.reconstruct(photo)
        assert said.image is not None and said.image.shape == photo.shape
        points = said.camera.project(average.model.landmarks(said.mesh.vertices, said.camera.rotation))[:, :2]
        torch.testing.assert_close(points, said.landmarks, atol=0.05, rtol=0)
        errors.append(float((said.landmarks - found)[17:].norm(dim=1).mean() / size))
    assert errors[1] < errors[0] < 0.04 and errors[1] < 0.015
    torch.testing.assert_close(average.reconstruct(photo).mesh.vertices, average.model.mean)
    blank = FaceRecord("blank", torch.full((3, 100, 100), 0.5))
    assert "NoFaceError" in evaluate(average, [blank], "one").failures["blank"]


def test_full_fitting_explains_the_colours_best(photo: Tensor) -> None:
    record = FaceRecord("astronaut", photo, find_face(photo).landmarks)
    full = FullFitting()
    full.settings = Settings(levels=((60, 0, 10),))  # the coarsest level only, to be quick
    rows = [evaluate(m, [record], "one", measures=WITHOUT_JUDGE) for m in (LandmarkFitting(), full)]
    before, after = (row.summary()["photometric_rmse"]["mean"] for row in rows)
    assert after < 0.8 * before


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_is_made_by_its_name(name: str) -> None:
    method = make_method(name)
    assert method.name == name
    (argument,) = inspect.signature(method.reconstruct).parameters
    assert argument == "image"


@pytest.mark.parametrize(
    "name", ["nobody", "", "facelab.methods.mofa:Nobody", "no_such_module:Method", ":Method", "mofa:"]
)
def test_a_method_that_does_not_exist(name: str) -> None:
    with pytest.raises(ParameterError, match=r"choose from average face, .*, mofa, .*or give 'module:Class'"):
        make_method(name)


def test_checkpoints_are_for_what_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'full fitting' is not trained; leave out .*mine\.safetensors"):
        make_method("full fitting", tmp_path / "mine.safetensors")
    with pytest.raises(ModelFileError, match="mine"):
        make_method("mofa", tmp_path / "mine.safetensors")


def test_the_documented_method_is_short_and_gets_its_row(capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    method = blocks[0][blocks[0].index("class ") :].strip().split("\n")
    assert len(method) < 30
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "adding_a_method.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert re.search(r"\| in_model \| nearest neighbour \| 3 \| \d \|", printed)
    row = scope["rows"][1]
    assert row.method == "nearest neighbour" and len(row.failures) < 3
    assert row.summary()["geometry_mm"]["mean"] < 10 and set(row.summary()) == set(METRICS)
