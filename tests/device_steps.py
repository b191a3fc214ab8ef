"""A training step on a device that is not the CPU: nothing waits for it, nothing is left on the CPU.

The device is second_device.py's, whose tensors hold real numbers, so what is computed there is compared, too.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from second_device import DEVICE, NAME, DeviceTensor, Watch, on_device, watched
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))

import train_coarsenet
import train_inversefacenet
import train_mofa

from facelab.methods import coarsenet, inversefacenet, mofa
from facelab.methods.breeding import breed, mirror_signs, synthesise
from facelab.model.morphable_model import MorphableModel
from facelab.networks import encoder
from facelab.rendering.rasterizer import backends, numba_backend
from facelab.support.tensors import constant
from facelab.synthetic.augmentation import Degradations
from facelab.synthetic.distributions import DISTRIBUTIONS
from facelab.synthetic.renderer import CorpusSpec, Renderer
from facelab.training import ahead

SIDE = 60
FLAWED = Degradations(probability=1.0)
AUTOCAST = [None, torch.bfloat16, torch.float16]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A watch; the rasterizer's kernels are numba's, started unseen as a GPU's are."""

    def started(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def start(*inputs: Any) -> Any:
            found = kernel(*(value.inner if isinstance(value, DeviceTensor) else value for value in inputs))
            return tuple(map(DeviceTensor, found)) if isinstance(found, tuple) else DeviceTensor(found)

        return start

    names = ("rasterize", "interpolate", "interpolate_backward")
    kernels = SimpleNamespace(**{name: started(getattr(numba_backend, name)) for name in names})
    choose = backends.choose
    for module in ("facelab.rendering.rasterizer", "facelab.rendering.rasterizer.interpolation"):
        monkeypatch.setattr(
            f"{module}.choose",
            lambda name, at, *known: kernels if at.type == NAME else choose(name, at, *known),
        )
    with watched() as watching:
        yield watching


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(None, 0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(there: Any, here: Any) -> bool:
    if isinstance(there, dict):
        return all(same(there[name], here[name]) for name in here)
    if isinstance(there, list | tuple):
        return all(map(same, there, here))
    return isinstance(there, DeviceTensor) and torch.equal(there.inner, here)


# --- the device itself --------------------------------------------------------------------------------------

WAITING = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: 1 if (x > 0).any() else 2,
    "float": lambda x: float(x[0, 0]),
    "nonzero": lambda x: (x > 0).nonzero(),
    "a mask": lambda x: x[x > 0.5],
    "to a mask": lambda x: x.clone().index_put_((x > 0.5,), x.new_ones(())),
    "repeat": lambda x: torch.repeat_interleave((4 * x[0]).long()),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "to the CPU": lambda x: x.cpu(),
    "copied to the CPU": lambda x: torch.zeros(4, 3).copy_(x),
    "to the device": lambda x: torch.zeros(4, 3).to(x),
    "copied to the device": lambda x: x.clone().copy_(torch.zeros(4, 3)),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "torch.tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "a list as index": lambda x: x[[0, 2]],
    "a list as second index": lambda x: x[..., [0, 2]],
    "an index of the CPU": lambda x: x[torch.tensor([0, 2])],
    "assigned by an index of the CPU": lambda x: x.clone().__setitem__(torch.tensor([0, 2]), 1.0),
}
FREE = {
    "arithmetic": lambda x: (2 * x + x.exp()).where(x > 0, 0.0) @ x.mT,
    "slices": lambda x: x[1:, None, ::2],
    "assigned": lambda x: x.clone().__setitem__(0, 0.5),
    "an index of its own": lambda x: x[x[:, 0].argsort()],
    "a number of the CPU": lambda x: x * torch.tensor(2.0),
    "sent": lambda x: torch.rand(4, 3).to(x, non_blocking=True),
    "filled": lambda x: x.new_full((2,), 3.0) + torch.zeros(2, device=x.device),
    "a constant": lambda x: constant(x, 1.0, 2.0, 3.0) * x,
}


@pytest.mark.parametrize("name", WAITING)
def test_what_would_wait_is_seen(watch: Watch, name: str) -> None:
    WAITING[name](DeviceTensor(torch.rand(4, 3)))
    assert len(watch.waits) == 1 and watch.waits[0][1].startswith("device_steps.py"), watch.waits


@pytest.mark.parametrize("name", FREE)
def test_what_would_not_wait_is_not(watch: Watch, name: str) -> None:
    x = DeviceTensor(torch.rand(4, 3))
    FREE[name](x)
    watch.waits.clear()
    FREE[name](x)
    assert not watch.waits


@pytest.mark.parametrize(
    "operation", [torch.add, torch.matmul, lambda x, y: torch.cat([x, y]), lambda x, y: x.where(y > 0, x)]
)
def test_tensors_of_two_devices_are_an_error(watch: Watch, operation: Callable[..., Tensor]) -> None:
    x, y = DeviceTensor(torch.rand(3, 3)), torch.rand(3, 3)
    for pair in ((x, y), (y, x)):
        with pytest.raises(RuntimeError, match="two devices"):
            operation(*pair)


def test_values_and_gradients_are_those_of_the_cpu(watch: Watch) -> None:
    x, weight = torch.rand(4, 3, generator=seeded()), torch.rand(3, 2, generator=seeded(1))
    results = []
    for moved in (lambda part: part.clone(), lambda part: DeviceTensor(part.clone())):
        leaf = moved(weight).requires_grad_()
        loss = ((moved(x) @ leaf).tanh()[1:] ** 2).sum()
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert same(results[1], results[0]) and not watch.waits


# --- a step of every method ---------------------------------------------------------------------------------


def learn(network: torch.nn.Module, step: Callable[[], Tensor], half: torch.dtype | None) -> list[float]:
    """Losses of some steps as the scripts make them, the first one unwatched (it may set things up)."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)  # too small to overshoot
    scaler = torch.amp.GradScaler(NAME, init_scale=1e-3, enabled=half == torch.float16)
    losses = []
    with watched() as watch:
        for number in range(4):
            if number == 1:
                watch.waits.clear()
            with torch.autocast(NAME, half or torch.float16, enabled=half is not None):
                loss = step()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.detach())
        assert not watch.waits
    return [float(loss.inner) for loss in losses]


@pytest.mark.parametrize("half", AUTOCAST)
def test_a_step_of_inversefacenet(watch: Watch, model: MorphableModel, half: torch.dtype | None) -> None:
    there = model.to(DEVICE)
    weights = inversefacenet.model_space_weights(model).to(DEVICE)
    theta = inversefacenet.DISTRIBUTION.sample(model, 8, seeded())
    images, truth = synthesise(model, theta, seeded(), SIDE)
    network = on_device(inversefacenet.make_network("small", model))
    corpus = train_inversefacenet.Pictures([{"images": images, "truth": truth}])
    run = SimpleNamespace(device=torch.device(DEVICE), fabric=SimpleNamespace(global_rank=0, world_size=1))
    shown = train_inversefacenet.presented(
        corpus,
        train_inversefacenet.PRESETS["tiny"],
        0,
        run,
        mirror_signs(there),  # type: ignore[arg-type]
    )

    def step() -> Tensor:
        pictures, wanted = shown(0)
        return inversefacenet.parameter_loss(network(pictures).float(), wanted, weights).mean()

    losses = learn(network, step, half)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("half", AUTOCAST)
def test_a_step_of_mofa(watch: Watch, half: torch.dtype | None) -> None:
    batch = Renderer(CorpusSpec("portrait", size=SIDE, subdivisions=0, batch=4)).batch(0)
    decoder = mofa.Decoder().to(DEVICE)
    network = on_device(mofa.Encoder(mofa.make_network("small"), border=1 / 8))
    trust = torch.ones(68).to(DEVICE)
    loader = iter([[batch["image"], batch["landmarks"]]] * 4)

    def step() -> Tensor:
        images, landmarks = train_mofa.shown(loader, torch.device(DEVICE), 0)
        code = network(images).float()
        return mofa.loss_terms(decoder, code, images, landmarks, trust)["total"].mean()

    losses = learn(network, step, half)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("half", AUTOCAST)
def test_a_step_of_coarsenet(watch: Watch, half: torch.dtype | None) -> None:
    """Its batch is made ahead; what the step itself does is watched."""
    settings = train_coarsenet.Settings("small", SIDE, 4)
    faces = train_coarsenet.Faces(settings, 0, settings.batch, DEVICE)
    images, truth, estimate = train_coarsenet.examples(faces, settings, 0, False)
    seen = coarsenet.network_input(faces.model, estimate, images)
    geometry = coarsenet.GeometryLoss(faces.model)
    network = on_device(encoder("small", truth.shape[1], channels=7))

    def step() -> Tensor:
        said = network(seen).float()
        return (geometry(said, truth) + coarsenet.pose_loss(said, truth)).mean()

    losses = learn(network, step, half)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]


def test_drawing_feedback_waits_for_nothing(watch: Watch, model: MorphableModel) -> None:
    there, images = model.to(DEVICE), torch.rand(2, 3, SIDE, SIDE)
    r = 0.5 * torch.randn(2, coarsenet.layout(model).size, generator=seeded())
    moved = r.to(DEVICE), images.to(DEVICE)
    coarsenet.network_input(there, *moved)
    watch.waits.clear()
    found = coarsenet.network_input(there, *moved)
    assert not watch.waits and same(found, coarsenet.network_input(model, r, images))


# --- batches that render on the device ----------------------------------------------------------------------


def waiting_files(watch: Watch) -> set[str]:
    return {place.split(":")[0] for _, place in watch.waits}


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (CorpusSpec("portrait", size=SIDE, subdivisions=0, batch=3), {"antialiasing.py", "torch_backend.py"}),
        (
            CorpusSpec("portrait", 1, SIDE, 0, "black", 1.0, FLAWED, batch=3),
            {"antialiasing.py", "torch_backend.py", "augmentation.py"},  # JPEG
        ),
        (CorpusSpec("inversefacenet", size=SIDE, subdivisions=0, batch=3), {"renderer.py"}),  # the mask
    ],
)
def test_a_corpus_is_that_of_the_cpu_and_waits_where_it_must(
    watch: Watch, spec: CorpusSpec, allowed: set[str]
) -> None:
    here, there = Renderer(spec), Renderer(spec, DEVICE)
    there.batch(0)
    watch.waits.clear()
    assert same(there.batch(1), here.batch(1))
    assert waiting_files(watch) == allowed
    in_augmentation = [wait for wait in watch.waits if wait[1].startswith("augmentation.py")]
    assert len(in_augmentation) == ("augmentation.py" in allowed)  # once a batch


def test_pictures_and_parents_are_those_of_the_cpu(watch: Watch, model: MorphableModel) -> None:
    there = model.to(DEVICE)
    theta = inversefacenet.DISTRIBUTION.sample(model, 3, seeded())
    assert same(inversefacenet.DISTRIBUTION.sample(there, 3, seeded()), theta)
    synthesise(there, theta.to(DEVICE), seeded(1), SIDE, flaws=True)
    watch.waits.clear()
    made = synthesise(there, theta.to(DEVICE, non_blocking=True), seeded(1), SIDE, flaws=True)
    assert same(made, synthesise(model, theta, seeded(1), SIDE, flaws=True))
    assert waiting_files(watch) <= {"breeding.py", "augmentation.py"} and len(watch.waits) <= 2  # mask, JPEG
    errors = torch.rand(5, 27)
    for options in ({}, {"people": True}, {"errors": errors}):
        children = breed(there, theta.to(DEVICE), seeded(2), **options)
        assert same(children, breed(model, theta, seeded(2), **options))


def test_the_corpus_of_a_training_is_that_of_the_cpu(
    watch: Watch, model: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_inversefacenet, "CHUNK", 4)
    preset = train_inversefacenet.replace(train_inversefacenet.PRESETS["tiny"], corpus=4)
    made = [
        train_inversefacenet.synthetic_corpus(tmp_path / name, one, preset, 1, people=True).parts
        for name, one in (("here", model), ("there", model.to(DEVICE)))
    ]
    assert torch.equal(made[0][0]["images"], made[1][0]["images"])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_faces_of_every_distribution_are_drawn_where_the_model_is(watch: Watch, name: str) -> None:
    here, there = (Renderer(CorpusSpec(name, size=SIDE, subdivisions=0), at).model for at in ("cpu", DEVICE))
    DISTRIBUTIONS[name].decode(there, DISTRIBUTIONS[name].sample(there, 2, seeded()), SIDE)
    watch.waits.clear()
    faces = [
        DISTRIBUTIONS[name].decode(model, DISTRIBUTIONS[name].sample(model, 2, seeded()), SIDE)
        for model in (there, here)
    ]
    assert not watch.waits
    for part in ("identity", "expression", "albedo"):
        assert same(getattr(faces[0], part), getattr(faces[1], part))
    assert same(vars(faces[0].camera), vars(faces[1].camera))


def test_constants_are_shared_but_not_those_of_a_transformation() -> None:
    x = torch.rand(3)
    assert constant(x, 1.0, 5.0, 7.0) is constant(x, 1.0, 5.0, 7.0)
    assert constant(x, 1.0, 5.0, 7.0) is not constant(x.double(), 1.0, 5.0, 7.0)
    jacobian = torch.func.jacrev(lambda y: constant(y, 1.5, 2.5, 4.5) * y)(x)
    assert torch.equal(jacobian, torch.tensor([1.5, 2.5, 4.5]).diag())
    with torch.inference_mode():
        first = constant(x, 9.0, 8.0, 7.0)
    weight = torch.ones(3, requires_grad=True)
    (weight * first).sum().backward()  # would fail if it had been made for inference only
    assert torch.equal(weight.grad, first)


# --- batches made ahead -------------------------------------------------------------------------------------


def numbered(number: int) -> dict[str, Tensor]:
    if number == 5:
        raise ValueError("no batch 5")
    return {"number": torch.tensor(float(number), requires_grad=True) * 2}


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_batches_come_in_order_without_gradients_and_errors_in_their_place(device: str, watch: Watch) -> None:
    batches, seen = ahead(numbered, range(2, 9), torch.device(device)), []
    with pytest.raises(ValueError, match="no batch 5"):
        for batch in batches:
            assert not batch["number"].requires_grad
            seen.append(float(batch["number"]))
    assert seen == [4.0, 6.0, 8.0]
    assert [float(b["number"]) for b in ahead(numbered, range(3), torch.device(device))] == [0.0, 2.0, 4.0]
    assert list(ahead(numbered, [], torch.device(device))) == []


@pytest.mark.parametrize(("device", "early"), [("cpu", 0), (DEVICE, 2)])
def test_batches_are_made_ahead_on_a_device_and_not_further(device: str, early: int, watch: Watch) -> None:
    made: list[int] = []

    def make(number: int) -> tuple[Tensor, ...]:
        made.append(number)
        return (torch.tensor(number),)

    batches = ahead(make, range(100), torch.device(device), count=2)
    for number in range(3):
        next(batches)
        assert number < len(made) <= number + 1 + early
    batches.close()  # type: ignore[attr-defined]
    assert made == list(range(len(made))) and len(made) <= 3 + early
