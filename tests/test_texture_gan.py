"""The texture GAN's layers against plain twins, its growing, its training, and its data."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from facelab.networks.texture_gan import (
    Components,
    Discriminator,
    Generator,
    Scaled,
    at_level,
    build_generator,
    decode,
    encode,
    minibatch_deviation,
    pixel_norm,
    project,
    stage_of,
)
from facelab.support.errors import ModelFileError, ParameterError
from facelab.training import load_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import build_textures
import train_texture_gan as training


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(latent: int = 6, channels: tuple[int, ...] = (8, 6, 4), seed: int = 0) -> Generator:
    return Generator(latent, channels, torch.Generator().manual_seed(seed))


def test_layers_are_their_plain_twins() -> None:
    layer = Scaled(5, 7, 3)
    layer.weight.data, layer.bias.data = random(7, 5, 3, 3), random(7)
    x = random(2, 5, 6, 6)
    he = math.sqrt(2 / (5 * 9))
    twin = torch.stack(
        [F.conv2d(x[k : k + 1], he * layer.weight, layer.bias, padding=1)[0] for k in range(2)]
    )
    torch.testing.assert_close(layer(x), twin)
    normal = pixel_norm(x)
    for b, i, j in [(0, 0, 0), (1, 5, 3)]:
        mean_square = sum(float(v) ** 2 for v in x[b, :, i, j]) / 5
        torch.testing.assert_close(normal[b, :, i, j], x[b, :, i, j] / math.sqrt(mean_square + 1e-8))
    deviation = minibatch_deviation(x)
    expected = np.sqrt(x.numpy().var(0) + 1e-8).mean()
    assert deviation.shape == (2, 6, 6, 6) and torch.equal(deviation[:, :5], x)
    np.testing.assert_allclose(deviation[:, 5].numpy(), expected, rtol=1e-5)


def test_activations_keep_their_size_whatever_the_width() -> None:
    """What equalised rates are for: outputs of unit variance at the start, for narrow and wide layers."""
    for inputs in (8, 256):
        layer = Scaled(inputs, 64, 3, gain=1.0)
        layer.weight.data = random(64, inputs, 3, 3, seed=1)
        assert 0.7 < float(layer(random(8, inputs, 9, 9)).detach()[..., 2:-2, 2:-2].std()) < 1.3


def test_a_new_stage_is_faded_in_without_a_jump() -> None:
    generator, critic = small(), Discriminator((8, 6, 4), torch.Generator().manual_seed(1))
    latent, pictures = random(3, 6), random(3, 4, 16, 16)
    assert generator(latent).shape == (3, 4, 16, 16) and generator(latent, 0).shape == (3, 4, 4, 4)
    for stage in (1, 2):
        before = F.interpolate(generator(latent, stage - 1), scale_factor=2.0)
        just, after = generator(latent, stage - 1 + 1e-4), generator(latent, stage)
        assert (just - before).abs().max() < 1e-2 * (after - before).abs().max()
        old, new = (
            critic(at_level(pictures, stage - 1, 2), stage - 1),
            critic(at_level(pictures, stage, 2), stage),
        )
        soon = critic(at_level(pictures, stage - 1 + 1e-4, 2), stage - 1 + 1e-4)
        assert (soon - old).abs().max() < 1e-2 * (new - old).abs().max()
    assert stage_of(2.25, 4) == (3, 0.25) and stage_of(3, 4) == (3, 1.0) and stage_of(0, 4) == (0, 1.0)
    assert torch.equal(at_level(pictures, 2, 2), pictures)


def test_textures_are_linear_and_coded_ones_are_bytes() -> None:
    texture = 0.9 * torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texture[:, 3] *= 0.08
    torch.testing.assert_close(decode(encode(texture)), texture, atol=1e-6, rtol=1e-5)
    generator = small()
    generator.mean += 0.5
    one, many = generator.texture(random(6)), generator.texture(random(2, 3, 6))
    assert one.shape == (4, 16, 16) and many.shape == (2, 3, 4, 16, 16)
    torch.testing.assert_close(generator.texture(random(2, 3, 6)[1, 2]), many[1, 2])
    assert float(many.min()) >= 0 and float(many[..., 3, :, :].max()) <= 0.08
    with pytest.raises(ParameterError, match="latents"):
        generator.texture(random(7))


def test_projection_finds_a_texture_that_the_generator_made() -> None:
    """One near its start: without a training, random weights leave many valleys."""
    generator = small()
    for k, layer in enumerate(m for m in generator.modules() if isinstance(m, Scaled)):
        layer.bias.data = random(len(layer.bias), seed=k)  # without, pixel norm has no direction at zero
    generator.mean += 0.5
    generator.spread *= 0.1
    texture = generator.texture(0.3 * random(2, 6, seed=5)).detach()
    start, found = (generator.texture(project(generator, texture, steps)).detach() for steps in (0, 300))
    assert (found - texture).abs().mean() < 0.35 * (start - texture).abs().mean()
    with pytest.raises(ParameterError, match="textures"):
        project(generator, texture[..., :8])


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    textures = random(12, 4, 3, 3)
    components = Components.of(textures, 5)
    latents = components.latents(textures)
    flat = textures.flatten(1)
    left, size, right = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    torch.testing.assert_close(latents.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.T @ latents / 12, torch.eye(5), atol=1e-4, rtol=0)
    twin = flat.mean(0) + (left[:, :5] * size[:5]) @ right[:5]
    torch.testing.assert_close(components.textures(latents), twin.view_as(textures), atol=1e-4, rtol=0)
    weight = torch.tensor([[1.0, 0.5, 2.0]]).T.expand(3, 3)
    weighted, scaled = Components.of(textures, 5, weight), Components.of(textures * weight, 5)
    torch.testing.assert_close(
        weighted.textures(weighted.latents(textures)) * weight,
        scaled.textures(scaled.latents(textures * weight)), atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    with pytest.raises(ParameterError, match="fewer components"):
        Components.of(textures, 12)


def test_what_hangs_on_components_starts_from_them() -> None:
    """Before a training, the generator's pictures are what the components have, at every level."""
    coded = data(60, 16).float() / 255
    generator = small()
    generator.look_at(coded)
    components = generator.hang_on(coded, torch.full((16, 16), 0.5))
    white = generator.whitened(coded[:5])
    latents = components.latents(white)
    said = components.textures(latents)
    assert components.mean.abs().max() < 1e-4, "each texture has its mirror image"
    for level in (0, 1.5, 2):
        torch.testing.assert_close(generator(latents, level), at_level(said, level, 2), atol=1e-4, rtol=1e-4)
    near, far = ((said_ - white).square().mean() for said_ in (said, 0 * white))
    assert near < 0.8 * far


def data(count: int = 80, side: int = 16) -> Tensor:
    """Textures of two kinds, light and dark, with spots."""
    g = torch.Generator().manual_seed(0)
    tone = torch.where(torch.rand(count, 1, 1, 1, generator=g) > 0.5, 60.0, 180.0)
    return (tone + 20 * torch.randn(count, 4, side, side, generator=g)).clamp(0, 255).to(torch.uint8)


class Killed(Exception):
    pass


def test_a_training_that_was_killed_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, textures = training.PRESETS["tiny"], data(80, 8)
    card = training.train(tmp_path / "whole", textures, settings, "cpu", progress=False)
    draw, calls = training.batch, []

    def dies(*arguments):
        calls.append(arguments[1])
        if len(calls) == 6:
            raise Killed
        return draw(*arguments)

    monkeypatch.setattr(training, "batch", dies)
    with pytest.raises(Killed):
        training.train(tmp_path / "killed", textures, settings, "cpu", progress=False)
    training.train(tmp_path / "killed", textures, settings, "cpu", progress=False)
    assert calls[6] == 5, "it went on where it was"
    files = [(tmp_path / name / "texture_gan.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    assert card["held_out"]["error_mean"] > 0 and card["side"] == 8


def test_it_learns_what_its_textures_have(tmp_path: Path) -> None:
    """Two tones: all texels of a texture go together, which an untrained network's do less."""
    settings = replace(
        training.PRESETS["tiny"],
        channels=(16, 16),
        steps=(150, 100),
        batches=(16, 16),
        every_r1=4,
        average=0.95,
        rate=1e-2,
        anchor=0.0,
    )
    together = []
    for k, these in enumerate((replace(settings, steps=(1, 1)), settings)):
        training.train(tmp_path / str(k), data(128, 8), these, "cpu", progress=False)
        weights, card = load_checkpoint(tmp_path / str(k) / "texture_gan.safetensors")
        generator = build_generator(card)
        generator.load_state_dict(weights)
        drawn = generator.coloured(generator(random(64, 8, seed=9))).detach()
        together.append(float(drawn.mean((1, 2, 3)).var() / drawn.var(0).mean()))
    assert together[1] > together[0] + 0.15, together


def test_whitened_textures_are_white_and_come_back() -> None:
    coded = data(80, 16).float() / 255
    generator = small()
    generator.look_at(coded)
    both = torch.cat([coded, coded.flip(-1)])
    white = generator.whitened(both)
    torch.testing.assert_close(generator.coloured(white), both, atol=1e-5, rtol=0)
    flat = white.movedim(1, 0).flatten(1)
    covariance = flat @ flat.T / flat.shape[1]
    assert (
        covariance - torch.diag(covariance.diag())
    ).abs().max() < 0.05 and 0.9 < covariance.diag().max() < 1.1


def test_turned_latents_keep_their_spread() -> None:
    people = random(4000, 3)
    mixed = training.turned(people, random(2, 4000, 3, seed=1))
    assert mixed.shape == (2, 4000, 3)
    torch.testing.assert_close(mixed.mean(1), torch.zeros(2, 3), atol=0.08, rtol=0)
    torch.testing.assert_close(mixed.var(1), torch.ones(2, 3), atol=0.12, rtol=0)
    still = training.turned(people, torch.full((2, 4000, 3), -1e9))
    torch.testing.assert_close(still[0], people)


def test_levels_follow_the_schedule() -> None:
    levels = [training.level_of(k, (2, 4, 4)) for k in range(10)]
    assert levels[:2] == [(0, 0.0), (0, 0.0)] and levels[2] == (1, 0.5) and levels[3:6] == [(1, 1.0)] * 3
    assert levels[-1] == (2, 2.0)


def test_people_are_even_over_tone_age_and_sex() -> None:
    ancestry, gender, age = build_textures.even_people(600, 1)
    from skin import MELANIN

    tone = ancestry @ np.log([median for median, _ in MELANIN])
    for values in (tone, gender, age):
        counts = np.histogram(values, 6, (np.min(values), np.max(values)))[0]
        assert counts.min() > 0.7 * counts.mean()
    again = build_textures.even_people(600, 1)
    assert all(np.array_equal(a, b) for a, b in zip((ancestry, gender, age), again))
    assert abs(np.corrcoef(gender, age)[0, 1]) < 0.15


def test_bad_textures_are_named(tmp_path: Path) -> None:
    settings = training.PRESETS["tiny"]
    with pytest.raises(ModelFileError, match=r"build_textures"):
        training.read_textures(tmp_path / "none.safetensors")
    save_file({"textures": torch.zeros(8, 3, 8, 8, dtype=torch.uint8)}, tmp_path / "grey.safetensors")
    with pytest.raises(ModelFileError, match=r"build_textures"):
        training.read_textures(tmp_path / "grey.safetensors")
    with pytest.raises(ParameterError, match="too few"):
        training.train(tmp_path / "few", data(8, 8), settings, "cpu", progress=False)
    with pytest.raises(ParameterError, match="cannot be made"):
        training.train(tmp_path / "small", data(80, 4), settings, "cpu", progress=False)
