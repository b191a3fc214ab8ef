"""The test set of a scanned head: the script finds our own average face's truth, and the reader checks it."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import build_scan_set as script
from light_rig import Rig
from torch import Tensor

from facelab.evaluation.test_sets import load_test_set
from facelab.export import export_glb, textured_mesh
from facelab.geometry.camera import PerspectiveCamera
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.colour import linear_to_srgb
from facelab.rendering.image_formation import render_attributes
from facelab.support.errors import ModelFileError


def flat(scan: script.Scan, camera: PerspectiveCamera, rig: Rig, seed: int, size: int = 240) -> Tensor:
    """Stands for the path tracer: the skin's colours, shaded by where they face."""
    facing = (scan.normals @ camera.rotation.double().numpy().T)[:, 2:].clip(0.2, 1)
    colours = torch.from_numpy(scan.diffuse * facing).float()
    points, triangles = torch.from_numpy(scan.vertices).float(), torch.from_numpy(scan.triangles).long()
    picture, mask = render_attributes(points, triangles, camera, colours, size, size)
    return torch.cat([picture, mask.float()])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(scan, set): our own average face as somebody's scan, in metres and off its place."""
    folder, out = tmp_path_factory.mktemp("scan"), tmp_path_factory.mktemp("set")
    model = MorphableModel.load(subdivisions=1)
    head = textured_mesh(model, model.mean + 40, model.albedo_mean[:, :3], size=512)
    export_glb(head, folder / "head.glb")
    colours = linear_to_srgb(head.diffuse).permute(1, 2, 0).numpy()
    Image.fromarray((255 * colours).round().clip(0, 255).astype(np.uint8)).save(
        folder / "color.jpg", quality=95
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "trace", flat)
        patch.setattr(sys, "argv", ["build", str(folder), str(out), "--pictures", "4"])
        script.main()
    return folder, out


def test_the_head_and_its_landmarks_are_found(made: tuple[Path, Path]) -> None:
    model = MorphableModel.load(subdivisions=1)
    true = model.landmarks(model.mean)
    record = load_test_set("scan", folder=made[1])[0]
    assert record.mesh is not None and record.mesh.landmarks is not None
    found = record.mesh.landmarks
    # A detector's accuracy on a face 12 cm wide in 120 px, some of it along the line of sight.
    assert (found - true)[17:].norm(dim=1).median() < 5
    wide = float((found[45] - found[36]).norm() / (true[45] - true[36]).norm())
    assert abs(wide - 1) < 1e-4  # the size is that of the average face by definition


def test_records_agree_with_themselves(made: tuple[Path, Path]) -> None:
    records = load_test_set("scan", folder=made[1])
    assert len(records) == 4 and len(load_test_set("scan", 2, made[1] / "scan.safetensors")) == 2
    for record in records:
        assert record.mask is not None and record.depth is not None and record.landmarks is not None
        assert record.mask.any() and bool((record.depth[record.mask] > 0).all())
        column, row = record.landmarks[30].long().tolist()
        assert record.mask[0, row, column]  # the nose's tip is the face's
    small = load_test_set("scan", folder=made[1], size=120)[0]
    large = records[0]
    assert small.landmarks is not None and large.landmarks is not None
    assert torch.allclose(2 * small.landmarks, large.landmarks, atol=1e-3)


def test_damaged_sets_and_folders_without_a_scan(made: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"needs a scan .* color\.jpg"):
        script.read_scan(tmp_path)
    with pytest.raises(ModelFileError, match=r"build_scan_set\.py"):
        load_test_set("scan", folder=tmp_path)
    good = load_file(made[1] / "scan.safetensors")
    bad = {
        "nan": good["vertices"].index_fill(0, torch.tensor([3]), float("nan")),
        "beyond": good["triangles"] + len(good["vertices"]),
        "short": good["focal"][:1],
        "flat": good["light"][:, 0],
    }
    places = {"nan": "vertices", "beyond": "triangles", "short": "focal", "flat": "light"}
    for kind, value in bad.items():
        save_file(good | {places[kind]: value.contiguous()}, tmp_path / "scan.safetensors")
        with pytest.raises(ModelFileError, match="missing or damaged"):
            load_test_set("scan", folder=tmp_path)
    for missing in good:
        save_file({k: v for k, v in good.items() if k != missing}, tmp_path / "scan.safetensors")
        with pytest.raises(ModelFileError, match="missing or damaged"):
            load_test_set("scan", folder=tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("mitsuba") is None, reason="Mitsuba is missing")
def test_the_path_tracer_sees_the_same_head(made: tuple[Path, Path]) -> None:
    model = MorphableModel.load(subdivisions=1)
    scan = script.find_landmarks(script.read_scan(made[0]), model)
    points = torch.from_numpy(scan.landmarks).float()
    camera = script.framing(points, script.turned(5, 15, 3), 800.0, 0.6, 120)
    head = camera.to_camera(points.mean(0, keepdim=True))[0].double().numpy()
    rig = script.draw_rig(np.random.default_rng(0), head, "overcast")
    upside_down = replace(scan, colour=scan.colour[::-1].copy())
    drawn = flat(scan, camera, rig, 0, 120)
    inside = drawn[3] > 0

    def alike(other: script.Scan) -> float:
        """How far the path tracer's redness goes with that of the flat drawing."""
        traced = script.trace(other, camera, rig, 0, 120)
        assert ((traced[3] > 0.5) == inside).float().mean() > 0.99
        red = [picture[0][inside] / picture[:3].sum(0)[inside].clamp(min=1e-3) for picture in (traced, drawn)]
        return float(np.corrcoef(*red)[0, 1])

    assert alike(scan) > 0.6 > alike(upside_down) + 0.2
