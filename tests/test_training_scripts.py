"""The two training scripts from end to end, a few pictures and steps each."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.data import astronaut
from skimage.io import imsave

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import train
import train_inversefacenet
import train_mofa

from facelab.methods.inversefacenet import DISTRIBUTION, InverseFaceNet
from facelab.methods.mofa import MoFA
from facelab.model.morphable_model import MorphableModel
from facelab.photos import load_photo
from facelab.support.errors import ParameterError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one person seen twice, one picture without anybody, and one that is broken."""
    folder = tmp_path_factory.mktemp("photographs")
    picture = astronaut()[:240, 80:340]
    imsave(folder / "a.png", picture, check_contrast=False)
    imsave(folder / "b.png", picture[:, ::-1].copy(), check_contrast=False)
    imsave(folder / "nobody.png", astronaut()[380:500, :200], check_contrast=False)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    return folder


def run(script: object, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *map(str, arguments)])
        script.main()  # type: ignore[attr-defined]


def test_one_entry_for_all_trainings(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = Path(train_mofa.__file__).parent.glob("train_*.py")
    names = {script.stem.removeprefix("train_") for script in scripts}
    run(train)
    listed = capsys.readouterr().out
    assert names == set(train.networks()) and all(f"    {name} " in listed for name in names)
    with pytest.raises(SystemExit) as ended:
        run(train, "mofa", "--help")
    assert ended.value.code == 0 and "--no-surrogate" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no network 'mofo' to train: choose from .*mofa"):
        run(train, "mofo")


@pytest.fixture
def small_inversefacenet(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(
        train_inversefacenet.PRESETS["cpu"], network="small", side=60, corpus=8, steps=10, batch=4,
        breedings=2, bred=4, precision="32-true", subdivisions=0,
    )  # fmt: skip
    monkeypatch.setattr(train_inversefacenet, "CHUNK", 4)
    monkeypatch.setitem(train_inversefacenet.PRESETS, "cpu", tiny)


@pytest.mark.usefixtures("small_inversefacenet")
def test_inversefacenet_is_bred_and_a_kill_changes_nothing(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--row", "breeding", "--targets", photographs, "portrait:16", "--device", "cpu")
    places = {name: ("--folder", tmp_path / name, "--pictures", tmp_path / "pictures") for name in "ab"}
    run(train_inversefacenet, *arguments, *places["a"])

    steps, loss = iter(range(100)), train_inversefacenet.parameter_loss

    def killed(*values: torch.Tensor) -> torch.Tensor:
        if next(steps) == 7:
            raise KeyboardInterrupt
        return loss(*values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_inversefacenet, "parameter_loss", killed)
        run(train_inversefacenet, *arguments, *places["b"])
    assert not (tmp_path / "b" / "breeding.safetensors").exists()
    after = []

    def counted(*values: torch.Tensor) -> torch.Tensor:
        after.append(1)
        return loss(*values)

    with monkeypatch.context() as patch:
        patch.setattr(train_inversefacenet, "parameter_loss", counted)
        run(train_inversefacenet, *arguments, *places["b"])
    assert len(after) == 4  # it went on from step 6, the last that was saved

    one, two = (load_file(tmp_path / name / "breeding.safetensors") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    targets = load_file(tmp_path / "pictures" / "targets.safetensors")["images"]
    assert 2 < len(targets) <= 18  # the photographs with a face; dlib misses some renders
    card = json.loads((tmp_path / "a" / "breeding.json").read_text())
    assert card["presentations"] == 40 and set(card["breeding"]) == {"initial corpus", "step 1", "step 2"}
    assert "non-commercial" in card["landmarks"]
    said = InverseFaceNet.load(tmp_path / "a" / "breeding.safetensors").reconstruct(
        load_photo(photographs / "a.png")
    )
    assert bool(torch.isfinite(said.mesh.vertices).all())


@pytest.mark.usefixtures("small_inversefacenet")
def test_inversefacenet_is_bred_with_people_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[torch.Tensor] = []
    breed = train_inversefacenet.breed

    def watched(*values: Any, **options: Any) -> torch.Tensor:
        assert options["people"]
        errors.append(options["errors"])
        return breed(*values, **options)

    monkeypatch.setattr(train_inversefacenet, "breed", watched)
    places = ("--folder", tmp_path, "--pictures", tmp_path / "pictures", "--device", "cpu")
    run(train_inversefacenet, "--row", "people", "--targets", "portrait:16", *places)
    assert [part.shape for part in errors] == [(4, 27), (4, 27)]  # of a chunk of pictures, twice
    assert not torch.equal(*errors)  # each time of the network and the pictures of then
    card = json.loads((tmp_path / "people.json").read_text())
    assert card["row"] == "people" and set(card["breeding"]) == {"initial corpus", "step 1", "step 2"}
    corpora = {}
    for row in ("plain", "unbred"):  # what it is compared with: the same people, nobody's pose and light
        run(train_inversefacenet, "--row", row, "--only", "corpus", *places)
        folder = tmp_path / "pictures" / ("synthetic" if row == "plain" else row)
        corpora[row] = torch.cat([load_file(path)["truth"] for path in sorted(folder.iterdir())])
    same = (corpora["plain"] == corpora["unbred"]).float().mean(0)
    layout = DISTRIBUTION.layout(MorphableModel.load(subdivisions=0))
    assert same[layout.slice("rotation")].min() == same[layout.slice("light")].min() == 1
    assert same[3 : layout.slice("light").start].max() == 0


@pytest.mark.usefixtures("small_inversefacenet")
def test_pictures_made_for_something_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ("--folder", tmp_path, "--pictures", tmp_path / "pictures", "--device", "cpu")
    targets = ("--row", "people", "--only", "targets", *places, "--targets")
    run(train_inversefacenet, *targets, "portrait:16")
    run(train_inversefacenet, *targets, "portrait:16")  # taken as they are
    with pytest.raises(ParameterError, match=r"targets\.safetensors' was made for .*portrait:16.*--pictures"):
        run(train_inversefacenet, *targets, "portrait:32")
    corpus = ("--row", "plain", "--only", "corpus", *places)
    run(train_inversefacenet, *corpus)
    run(train_inversefacenet, *corpus, "--seed", 2)
    for other in ({"flaws": True}, {"side": 120}):
        changed = replace(train_inversefacenet.PRESETS["cpu"], **other)
        with monkeypatch.context() as patch, pytest.raises(ParameterError, match="this training wants"):
            patch.setitem(train_inversefacenet.PRESETS, "cpu", changed)
            run(train_inversefacenet, *corpus)


@pytest.mark.usefixtures("small_inversefacenet")
def test_inversefacenet_with_another_network_rate_and_optimizer(tmp_path: Path) -> None:
    places = ("--folder", tmp_path, "--pictures", tmp_path / "pictures", "--device", "cpu", "--steps", 5)
    changes = ("--network", "resnet18", "--rate", 1e-4)
    run(train_inversefacenet, "--row", "plain", *changes, *places)
    adam = load_file(tmp_path / "plain.safetensors")
    card = json.loads((tmp_path / "plain.json").read_text())
    assert card["network"] == card["preset"]["network"] == "resnet18" and card["preset"]["rate"] == 1e-4
    said = InverseFaceNet.load(tmp_path / "plain.safetensors", subdivisions=0)
    assert "layer4.1.conv2.weight" in dict(said.network.network.named_parameters())
    with pytest.raises(SystemExit):
        run(train_inversefacenet, "--row", "resnet101", "--network", "small", *places)

    again = ("--folder", tmp_path / "again", *places[2:])  # the same pictures
    run(train_inversefacenet, "--row", "plain", *changes, "--optimizer", "adadelta", *again)
    card = json.loads((tmp_path / "again" / "plain.json").read_text())
    assert card["preset"]["optimizer"] == "adadelta"
    other = load_file(tmp_path / "again" / "plain.safetensors")
    assert not torch.equal(adam["network.fc.weight"], other["network.fc.weight"])


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.usefixtures("small_inversefacenet")
def test_the_paper_s_preset_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`full` on a CPU, with few pictures and a small network: its optimizer, its breeding, its 240 px."""
    full = train_inversefacenet.PRESETS["full"]
    assert (full.corpus, full.steps, full.batch, full.breedings) == (200_000, 75_000, 32, 8)  # as printed
    assert (full.optimizer, full.rate, full.weight_decay) == ("adadelta", 0.01, 0.001)
    assert full.network == "alexnet"
    few = {"corpus": 4, "steps": 10, "batch": 2, "breedings": 2, "bred": 4}
    small = replace(full, network="small", pretrained=None, subdivisions=0, **few)
    monkeypatch.setitem(train_inversefacenet.PRESETS, "full", small)
    made: list[torch.optim.Optimizer] = []
    make = train_inversefacenet.make_optimizer
    monkeypatch.setattr(
        train_inversefacenet, "make_optimizer", lambda *values: made.append(make(*values)) or made[-1]
    )
    run(
        train_inversefacenet, "--row", "breeding", "--preset", "full", "--targets", "portrait:16",
        "--folder", tmp_path, "--pictures", tmp_path / "pictures", "--device", "cpu",
    )  # fmt: skip
    assert isinstance(made[0], torch.optim.Adadelta)
    assert made[0].param_groups[0]["lr"] == 0.01  # constant
    assert made[0].param_groups[0]["weight_decay"] == 0.001
    card = json.loads((tmp_path / "breeding.json").read_text())
    assert card["presentations"] == 20 and card["row"] == "breeding"
    bred = load_file(tmp_path / "breeding" / "stage_2" / "pictures" / "0000.safetensors")
    assert bred["images"].shape == (4, 3, 240, 240)


# After six steps nobody has a face of his own, and the script says so.
collapsed = pytest.mark.filterwarnings("ignore:.*_spread is:UserWarning")


@pytest.fixture
def small_mofa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        train_mofa.PRESETS, "tiny", train_mofa.PRESETS["tiny"] | {"pictures": 32, "batch": 4, "steps": 6}
    )
    monkeypatch.setattr(train_mofa, "HELD_OUT", 1)


@collapsed
@pytest.mark.usefixtures("small_mofa")
def test_mofa_on_renders_and_then_on_photographs(photographs: Path, tmp_path: Path) -> None:
    corpus, surrogate, photos = tmp_path / "corpus", tmp_path / "surrogate", tmp_path / "photos"
    corpus.mkdir()
    errors = 0.01 * torch.randn(8, 68, 2, generator=torch.Generator().manual_seed(0))
    save_file({"errors": errors}, corpus / "detector_errors.safetensors")  # saves the detector a minute
    options = ("--preset", "tiny", "--every", 3, "--device", "cpu")
    run(train_mofa, corpus, surrogate, *options)
    curves = json.loads((surrogate / "curves.json").read_text())
    assert [point["step"] for point in curves] == [0, 3, 6]
    assert curves[-1]["landmarks_px"] < curves[0]["landmarks_px"]

    mixed = ("--photos", photographs, "--start", surrogate / "mofa.safetensors", *options)
    run(train_mofa, corpus, photos, *mixed)
    with pytest.raises(SystemExit):  # what saw whole pictures is not shown their middle
        run(
            train_mofa, corpus, tmp_path / "other", "--start", surrogate / "mofa.safetensors",
            "--preset", "shipped", "--kind", "small", "--device", "cpu",
        )  # fmt: skip
    card = json.loads((photos / "mofa.json").read_text())
    assert card["photographs"] == 2 and card["corpus"] == 32 and card["surrogate"]
    assert list(photographs.glob("*.jsonl")) == []  # a folder may be read-only
    first = json.loads((photos / "curves.json").read_text())[0]
    assert first["geometry_mm"] == pytest.approx(curves[-1]["geometry_mm"], abs=0.05)  # 16-bit weights
    said = MoFA.load(photos / "mofa.safetensors").reconstruct(load_photo(photographs / "a.png"))
    assert bool(torch.isfinite(said.mesh.vertices).all())


@collapsed
@pytest.mark.usefixtures("small_mofa")
def test_a_kill_changes_nothing_of_mofa_on_photographs(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    save_file({"errors": torch.zeros(2, 68, 2)}, corpus / "detector_errors.safetensors")
    options = ("--preset", "tiny", "--photos", photographs, "--faces", tmp_path / "faces.safetensors")
    steps, terms = iter(range(100)), train_mofa.loss_terms

    def killed(*values: Any) -> dict[str, torch.Tensor]:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return terms(*values)

    make = train_mofa.Run
    monkeypatch.setattr(train_mofa, "Run", lambda *values, **more: make(*values, **more | {"every": 2}))
    run(train_mofa, corpus, tmp_path / "a", *options, "--device", "cpu")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_mofa, "loss_terms", killed)
        run(train_mofa, corpus, tmp_path / "b", *options, "--device", "cpu")
    run(train_mofa, corpus, tmp_path / "b", *options, "--device", "cpu")
    one, two = (load_file(tmp_path / name / "mofa.safetensors") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


@collapsed
@pytest.mark.usefixtures("small_mofa")
def test_mofa_without_the_surrogate_from_an_encoder_that_can_see(tmp_path: Path) -> None:
    corpus, donor = tmp_path / "corpus", tmp_path / "seeing.safetensors"
    corpus.mkdir()
    save_file({"errors": torch.zeros(2, 68, 2)}, corpus / "detector_errors.safetensors")
    network = train_mofa.make_network("small")
    torch.nn.init.constant_(network.features[0].weight, 0.125)
    save_file(network.state_dict(), donor)
    options = ("--preset", "tiny", "--no-surrogate", "--device", "cpu", "--pretrained", donor)
    run(train_mofa, corpus, tmp_path / "run", *options)
    card = json.loads((tmp_path / "run" / "mofa.json").read_text())
    assert not card["surrogate"] and card["units"] == train_mofa.UNAIDED_UNITS
    assert card["pretrained"] == "seeing.safetensors"
    learned = load_file(tmp_path / "run" / "mofa.safetensors")["network.features.0.weight"].float()
    assert (learned - 0.125).abs().max() < 0.02 and not bool((learned == 0.125).all())
