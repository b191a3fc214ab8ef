"""benchmarks/likeness.py: faces seen anew, compared with other photographs of the same people."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from likeness import SIZE, compare, kept, portraits

from facelab.geometry.camera import PerspectiveCamera
from facelab.model.face import Face
from facelab.model.morphable_model import MorphableModel


def test_likeness_is_perfect_for_the_same_and_chance_for_strangers() -> None:
    drawn = torch.Generator().manual_seed(0)
    people = torch.randn(200, 64, generator=drawn)
    tone = torch.rand(200, generator=drawn)
    # what all pictures of one kind share does not count
    same = compare(people + 5, people - 3, tone)
    assert same == {"auc": 1.0, "first": 1.0, "auc_darker": 1.0, "auc_lighter": 1.0}
    strangers = compare(torch.randn(200, 64, generator=drawn), people, tone)
    assert strangers["auc"] == pytest.approx(0.5, abs=0.08) and strangers["first"] < 0.04
    half = people.clone()
    half[tone.argsort()[:100]] = torch.randn(100, 64, generator=drawn)
    mixed = compare(half, people, tone)
    assert mixed["auc_lighter"] > 0.95 and mixed["auc_darker"] == pytest.approx(0.5, abs=0.12)


def test_portraits_have_no_expression_and_show_the_whole_face() -> None:
    model = MorphableModel.load(subdivisions=0)
    drawn = model.sample(1, torch.Generator().manual_seed(1))
    camera = PerspectiveCamera(
        torch.eye(3), torch.tensor([0.0, 0.0, -600.0]), torch.tensor(500.0), torch.full((2,), 100.0)
    )
    face = Face(drawn["identity"][0], drawn["expression"][0], drawn["albedo"][0], camera)
    pictures, points = portraits(face, model)
    assert pictures.shape == (3, 3, SIZE, SIZE) and points.shape == (3, 68, 2)
    assert points.min() > 10 and points.max() < SIZE - 10
    serious, _ = portraits(replace(face, expression=torch.zeros(64)), model)
    assert torch.equal(pictures, serious)
    # turned to either side, the tip of the nose goes to either side of the eyes' middle
    across = points[:, 30, 0] - points[:, 36:48, 0].mean(1)
    assert across[0].sign() == -across[2].sign() and across[1].abs() < across[[0, 2]].abs().min()


def test_rows_of_the_same_people_stay(tmp_path: Path) -> None:
    file, run = tmp_path / "likeness.json", {"people": 40, "seed": 0, "date": "today"}
    assert kept(file, run) == {}
    file.write_text(json.dumps({"run": run | {"date": "yesterday"}, "mofa": {"auc": 0.5}}))
    assert kept(file, run) == {"mofa": {"auc": 0.5}}
    assert kept(file, run | {"people": 39}) == {}
