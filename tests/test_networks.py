"""Encoders: shapes, torchvision's names, last layers, pretrained files."""

import pytest
import torch
from safetensors.torch import save_file

from facelab.methods.mofa import Encoder
from facelab.model.layout import ParameterLayout
from facelab.networks import KINDS, Regressor, encoder, last_layer
from facelab.support.errors import ModelFileError, ParameterError
from facelab.training import save_checkpoint

COUNTS = {"alexnet": 61_100_840, "resnet18": 11_689_512, "resnet50": 25_557_032,
          "resnet101": 44_549_160, "vgg": 138_357_544}  # fmt: skip


@pytest.mark.parametrize("kind", COUNTS)
def test_parameters_are_as_many_as_torchvision_has(kind: str) -> None:
    with torch.device("meta"):
        network = KINDS[kind](1000, 3)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[kind]


def test_names_are_torchvision_s() -> None:
    with torch.device("meta"):
        names = {kind: set(KINDS[kind](350, 3).state_dict()) for kind in COUNTS}
    assert {"features.0.weight", "features.10.bias", "classifier.1.weight", "classifier.6.bias"} <= names[
        "alexnet"
    ]
    assert {"features.28.weight", "classifier.0.weight", "classifier.6.bias"} <= names["vgg"]
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.1.bias",
            "layer4.1.bn2.weight", "fc.bias"} <= names["resnet18"]  # fmt: skip
    assert {"layer3.22.conv3.weight", "layer1.0.downsample.0.weight"} <= names["resnet101"]
    assert len(names["alexnet"]) == 16 and len(names["vgg"]) == 32
    assert {"layer3.5.conv3.weight", "layer4.2.bn3.weight"} <= names["resnet50"]
    assert len(names["resnet50"]) == 320
    assert len(names["resnet18"]) == 122 and len(names["resnet101"]) == 626


@pytest.mark.parametrize("kind", ["small", "resnet18"])
def test_pictures_in_vectors_out(kind: str) -> None:
    network = encoder(kind, 7).eval()
    picture = torch.rand(2, 3, 240, 240, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = network(picture)
        assert said.shape == (2, 7) and torch.isfinite(said).all()
        assert not torch.allclose(said[0], said[1])
        if kind == "small":  # averages 240 px down to 120
            torch.testing.assert_close(network(torch.nn.functional.avg_pool2d(picture, 2)), said)


def test_pictures_can_be_told_apart_through_all_of_vgg_s_layers() -> None:
    torch.manual_seed(0)
    features = KINDS["vgg"](5, 3).features
    assert isinstance(features, torch.nn.Module)
    with torch.no_grad():
        said = features(torch.rand(3, 3, 64, 64) - 0.5)
    assert said.std(0).mean() > 0.02 * said.mean()  # PyTorch's own random weights: 0.0001


def test_last_layers() -> None:
    normal = last_layer(encoder("small", 350))
    assert abs(float(normal.weight.detach().std()) - 0.01) < 2e-4 and normal.bias.abs().max() == 0
    zero = encoder("small", 5, final="zero").eval()
    assert zero(torch.rand(1, 3, 120, 120)).abs().max() == 0
    assert last_layer(encoder("small", 5, final="xavier")).weight.abs().max() > 0.05
    with pytest.raises(ParameterError, match="choose from"):
        encoder("transformer", 5)


def test_same_seed_same_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, two = encoder("small", 5), encoder("small", 5)
    other = encoder("small", 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not torch.equal(last_layer(one).weight, last_layer(other).weight)


def test_weights_from_files(tmp_path) -> None:
    donor = encoder("resnet18", 1000, generator=torch.Generator().manual_seed(5))
    save_file(donor.state_dict(), tmp_path / "weights.safetensors")
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        network = encoder("resnet18", 3, pretrained=tmp_path / name)
        assert torch.equal(network.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)
        assert network.fc.weight.shape == (3, 512)
    trained = Encoder(encoder("small", 257, final="zero", generator=torch.Generator().manual_seed(5)))
    save_checkpoint(tmp_path / "ours.safetensors", trained, {})
    network, random = encoder("small", 3, pretrained=tmp_path / "ours.safetensors"), encoder("small", 3)
    theirs = trained.network.features[0].weight.half().float()
    assert torch.equal(network.features[0].weight, theirs)
    assert not torch.equal(random.features[0].weight, theirs)
    assert torch.equal(last_layer(network).weight, last_layer(random).weight)
    with pytest.raises(ModelFileError, match="not of this network"):
        encoder("small", 3, pretrained=tmp_path / "weights.pth")
    torch.save({"evil": encoder}, tmp_path / "code.pth")  # a function: pickled code
    with pytest.raises(ModelFileError, match="state_dict"):
        encoder("resnet18", 3, pretrained=tmp_path / "code.pth")


def test_without_torchvision_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.warns(UserWarning, match="random"):
        encoder("resnet18", 3, pretrained="imagenet")


# --- the head -----------------------------------------------------------------------------------------------

LAYOUT = ParameterLayout(rotation=3, light=2)
UNITS, OFFSET = torch.tensor([0.1, 0.1, 0.1, 5.0, 5.0]), torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0])


def test_a_head_says_offset_and_units_times_what_the_network_says() -> None:
    network = encoder("small", LAYOUT.size).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    said = network(images)
    torch.testing.assert_close(Regressor(network, LAYOUT, UNITS)(images), UNITS * said)
    torch.testing.assert_close(Regressor(network, LAYOUT, UNITS, OFFSET)(images), OFFSET + UNITS * said)
    inner = Regressor(network, LAYOUT, UNITS, border=0.125)(images)
    torch.testing.assert_close(inner, UNITS * network(images[..., 8:56, 8:56]))


def test_a_head_adds_nothing_to_what_is_saved() -> None:
    """Checkpoints hold the network's own names; what takes the last layer's place comes first, and twice."""
    plain = encoder("small", LAYOUT.size)
    last = next(name for name, module in plain.named_modules() if module is last_layer(plain))
    own = [f"network.{name}" for name in plain.state_dict()]
    assert list(Regressor(plain, LAYOUT, UNITS, OFFSET).state_dict()) == own
    replaced = Regressor(plain, LAYOUT, UNITS, final=lambda n: torch.nn.Linear(n, LAYOUT.size, bias=False))
    assert last_layer(replaced.network) is replaced.final
    kept = [name for name in own if name != f"network.{last}.bias"]
    assert list(replaced.state_dict()) == ["final.weight", *kept]
    assert next(replaced.parameters()) is replaced.final.weight  # the order that an optimiser's state has


def test_a_head_wants_a_network_of_its_size() -> None:
    with pytest.raises(ParameterError, match=r"7 outputs; make one with 5: ParameterLayout\(rotation=3"):
        Regressor(encoder("small", 7), LAYOUT, UNITS)
