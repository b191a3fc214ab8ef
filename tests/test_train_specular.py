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

from facelab.methods.mofa import MoFA
from facelab.methods.segmentation import Segmentation
from facelab.methods.specular import Specular, decode, layout, make_network
from facelab.model.morphable_model import MorphableModel
from facelab.photos import crop_face, find_face, load_photo
from facelab.photos.crops import SIDE, FaceCrops
from facelab.rendering.illumination import shading_coefficients
from facelab.support.errors import CorpusError, ModelFileError, NoFaceError, ParameterError
from facelab.training import CHECKPOINTS


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


def test_the_start_sees_what_mofa_sees() -> None:
    """Light to rounding; landmarks far nearer than the average face's, the rest is perspective."""
    model = MorphableModel.load(subdivisions=0)
    network = make_network("slim", model, border=1 / 8)
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    marks = find_face(photo).landmarks
    images = torch.stack([crop_face(photo, marks + move, 160).image for move in (-15.0, 0.0, 15.0)])
    images = torch.cat([images, images.flip(-1)])
    mofa = MoFA.load(framed=True)
    with torch.no_grad():
        wanted = mofa.decoder.face(mofa.encoder(images), 160)
        train_specular.start_from_mofa(network, model)
        found = decode(model, network.eval()(images), 160)
    coefficients = shading_coefficients(wanted.light)
    torch.testing.assert_close(shading_coefficients(found.light), coefficients, rtol=1e-4, atol=1e-4)
    points = wanted.landmarks(mofa.decoder.model)
    average = decode(model, layout(model).zeros(1), 160).landmarks(model)
    off, control = ((one.landmarks(model) if one is found else average) - points for one in (found, None))
    assert off.norm(dim=-1).mean() < 0.5 * control.norm(dim=-1).mean()


def test_the_rate_falls_at_the_end_where_it_should() -> None:
    preset = train_specular.PRESETS["shipped"]
    shares = [train_specular.rate_share(preset, step) for step in range(preset.steps)]
    assert shares[: preset.steps // 2] == [1.0] * (preset.steps // 2)
    assert shares == sorted(shares, reverse=True) and 0 < shares[-1] < 0.02
    assert train_specular.rate_share(train_specular.PRESETS["full"], 199_999) == 1.0


def test_a_training_goes_on_from_a_checkpoint_and_damage_has_a_name(
    photographs: Path, tmp_path: Path
) -> None:
    options = (
        "--photos", photographs, "--faces", tmp_path / "faces.safetensors", "--preset", "tiny", "--steps", 1,
        "--without", "identity", "--device", "cpu",
    )  # fmt: skip
    run(tmp_path / "a", *options)
    first = tmp_path / "a" / "specular.safetensors"
    run(tmp_path / "b", *options, "--start", first)
    assert json.loads((tmp_path / "b" / "specular.json").read_text())["start"] == first.name
    with pytest.raises(ModelFileError, match="not a checkpoint"):
        run(tmp_path / "c", *options, "--start", CHECKPOINTS / "mofa.safetensors")
    labels = tmp_path / "b" / "skin.safetensors"
    labels.write_bytes(labels.read_bytes()[:-10])
    with pytest.raises(CorpusError, match="damaged"):
        run(tmp_path / "b", *options)


def test_a_segmentation_sees_the_forehead_that_landmarks_leave_out(photographs: Path, tmp_path: Path) -> None:
    faces = FaceCrops.cut([photographs], tmp_path / "faces.safetensors")
    side = train_specular.LABEL_SIDE
    hull, seen = (
        train_specular.skin_labels(faces, tmp_path / f"{network is None}.safetensors", network)
        for network in (None, Segmentation.load())
    )
    for k, marks in enumerate(faces.landmarks * side / SIDE):
        tops = [int(labels[k, 0].amax(1).nonzero()[0, 0]) for labels in (hull, seen)]
        assert 3 < tops[1] < tops[0] - 1  # px: above the brows, and below the hair
        x, y = (round(v) for v in marks[30].tolist())
        assert hull[k, 0, y, x] > 0 and seen[k, 0, y, x] > 0
