"""data_scripts/train_specular.py from end to end, a few pictures and steps."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from skimage.data import astronaut
from skimage.io import imsave

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import train_specular

from facelab.methods.specular import Specular
from facelab.photos import load_photo
from facelab.support.errors import NoFaceError, ParameterError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    picture = astronaut()[:240, 80:340]
    imsave(folder / "a.png", picture, check_contrast=False)
    imsave(folder / "b.png", picture[:, ::-1].copy(), check_contrast=False)
    return folder


def run(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *map(str, arguments)])
        train_specular.main()


def test_it_learns_and_a_kill_changes_nothing(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "--photos", photographs, "--faces", tmp_path / "faces.safetensors", "--preset", "tiny",
        "--without", "identity", "--device", "cpu",
    )  # fmt: skip
    run(tmp_path / "a", *options)
    steps, terms = iter(range(100)), train_specular.loss_terms

    def killed(*values: object) -> dict[str, torch.Tensor]:
        if next(steps) == 9:
            raise KeyboardInterrupt
        return terms(*values)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_specular, "loss_terms", killed)
        run(tmp_path / "b", *options)
    run(tmp_path / "b", *options)
    one, two = (load_file(tmp_path / name / "specular.safetensors") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    card = json.loads((tmp_path / "a" / "specular.json").read_text())
    assert card["photographs"] == 2 and card["without"] == ["identity"]
    assert len(card["terms"]) == 12  # at every step, as there are so few

    method = Specular.load(tmp_path / "a" / "specular.safetensors")
    said = method.reconstruct(load_photo(photographs / "a.png"))
    assert said.specular is not None and bool(torch.isfinite(said.mesh.vertices).all())
    with pytest.raises(NoFaceError):
        method.reconstruct(torch.full((3, 100, 100), 0.5))
    framed = Specular.load(tmp_path / "a" / "specular.safetensors", framed=True)
    with pytest.raises(ParameterError, match="square"):
        framed.reconstruct(torch.full((3, 100, 120), 0.5))


def test_all_losses_with_the_recognition_network(photographs: Path, tmp_path: Path) -> None:
    run(
        tmp_path, "--photos", photographs, "--preset", "tiny", "--steps", 2, "--device", "cpu",
    )  # fmt: skip
    terms = json.loads((tmp_path / "specular.json").read_text())["terms"][-1]
    assert set(terms) == {"identity", "photo", "landmark", "mouth", "prior", "uniform", "total"}
    assert 0 < terms["identity"] < 2
