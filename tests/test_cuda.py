"""On a GPU: the backends agree bit by bit, and one step of every method runs. `make gpu` runs these.

FACELAB_DEVICE=cpu runs the same on a CPU, to try the tests themselves.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from facelab.geometry.rotations import euler_to_matrix
from facelab.methods import inversefacenet, mofa
from facelab.methods.breeding import synthesise
from facelab.methods.fitting import fit_landmarks
from facelab.model.morphable_model import MorphableModel
from facelab.recognition.networks import DlibRecogniser
from facelab.rendering.rasterizer import antialias, interpolate, rasterize
from facelab.synthetic.corpora import CorpusSpec, Renderer
from facelab.training import Run

DEVICE = os.environ.get("FACELAB_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device; FACELAB_DEVICE=cpu tries"
    ),
]
INSTALLED = {"torch": True, "triton": DEVICE == "cuda", "numba": DEVICE == "cpu", "pytorch3d": True}
BACKENDS = [name for name, here in INSTALLED.items() if here and importlib.util.find_spec(name)]
DETAIL = 1 if DEVICE == "cuda" else 0


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(None, DETAIL)


def heads(model: MorphableModel, size: int, count: int = 4) -> Tensor:
    """Screen positions (count, V, 3) of different people in different poses."""
    generator = torch.Generator().manual_seed(0)
    people = model.vertices(torch.randn(count, len(model.identity_basis), generator=generator))
    people = people - people.mean((1, 2), keepdim=True).mean(0)
    angles = 0.5 * torch.randn(count, 3, generator=generator)
    x, y, z = (people @ euler_to_matrix(angles).mT).unbind(-1)
    depth = 700 - z
    return torch.stack([size / 2 + 3 * size * x / depth, size / 2 - 3 * size * y / depth, depth], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_are_those_of_the_cpu_bit_by_bit(
    model: MorphableModel, backend: str, cull: bool, dtype: torch.dtype
) -> None:
    for size in (33, 240):
        screen = heads(model, size).to(dtype)
        expected = rasterize(screen, model.triangles, size, size, cull=cull, backend="torch")
        on_device = screen.to(DEVICE), model.triangles.to(DEVICE)
        found = [rasterize(*on_device, size, size, cull=cull, backend=backend).cpu() for _ in range(2)]
        assert torch.equal(*found)
        assert 0.2 < (expected >= 0).float().mean() < 0.9
        differ = float((found[0] != expected).float().mean())
        # PyTorch3D computes in float32 in another order, and drops pixel centres on edges
        assert differ < 1e-3 if backend == "pytorch3d" else differ == 0


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "pytorch3d"])
def test_values_and_gradients_are_those_of_the_cpu_in_double_precision(
    model: MorphableModel, backend: str
) -> None:
    screen = heads(model, 120)
    colour = torch.rand(4, screen.shape[1], 7, generator=torch.Generator().manual_seed(1))
    faces = rasterize(screen, model.triangles, 120, 120)

    def results(device: str, dtype: torch.dtype, backend: str) -> list[Tensor]:
        points, values = (part.to(device, dtype).requires_grad_() for part in (screen, colour))
        seen, triangles = faces.to(device), model.triangles.to(device)
        picture, depth = interpolate(points, triangles, seen, values, backend=backend)
        soft = antialias(picture, depth, seen, points, triangles)
        loss = soft.square().sum() + (depth / 100).sin().sum()
        gradients = torch.autograd.grad(loss, (points, values))
        return [part.detach().cpu().double() for part in (picture, depth, soft, *gradients)]

    exact = results("cpu", torch.float64, "torch")
    for dtype, limit in ((torch.float64, 1e-9), (torch.float32, None)):
        control = results("cpu", dtype, "torch")
        for truth, reference, found in zip(exact, control, results(DEVICE, dtype, backend)):
            error, of_control = ((part - truth).norm() / truth.norm() for part in (found, reference))
            assert error <= (limit or 10 * of_control + 1e-7)


def test_deterministic_gradients_are_equal_each_time(model: MorphableModel) -> None:
    screen, triangles = heads(model, 120).to(DEVICE), model.triangles.to(DEVICE)
    faces = rasterize(screen, triangles, 120, 120)

    def gradient() -> Tensor:
        points = screen.clone().requires_grad_()
        values, _ = interpolate(points, triangles, faces, points)
        return torch.autograd.grad(values.square().sum(), points)[0]

    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gradient(), gradient())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(DEVICE != "cuda", reason="a CPU waits for nobody")
def test_the_rasterizer_does_not_wait_for_the_gpu(model: MorphableModel) -> None:
    screen, triangles = heads(model, 120).to(DEVICE), model.triangles.to(DEVICE)

    def work() -> None:
        points = screen.clone().requires_grad_()
        values, depth = interpolate(points, triangles, rasterize(points, triangles, 120, 120), points)
        (values.square().sum() + depth.sum()).backward()

    work()  # compiles, looks at the triangles once
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_corpora_are_those_of_the_cpu() -> None:
    spec = CorpusSpec("portrait", seed=3, size=120, subdivisions=DETAIL, batch=4)
    here, there = (Renderer(spec, device).batch(2) for device in ("cpu", DEVICE))
    assert there["image"].device.type == DEVICE
    torch.testing.assert_close(here["landmarks"], there["landmarks"].cpu(), rtol=0, atol=0.01)
    differ = (here["image"] - there["image"].cpu()).abs().amax(1) > 2 / 255
    assert differ.float().mean() < 0.01  # an outline that falls on the other side of a pixel centre


def losses(
    run: Run, network: torch.nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor
) -> list[float]:
    """Of ten steps on one batch, as the training scripts make them."""
    network, optimizer = run.setup(network, torch.optim.Adam(network.parameters(), 1e-3, fused=True))
    seen = []
    for _ in run.steps({"network": network, "optimizer": optimizer}, 10):
        value = loss(network(images).float()).mean()
        run.backward(value)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(value.detach())
    return torch.stack(seen).tolist()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_inversefacenet_learns_a_batch(tmp_path, precision: str) -> None:
    if precision == "16-mixed" and DEVICE == "cpu":
        pytest.skip("float16 is for GPUs")
    run = Run(tmp_path, DEVICE, precision, progress=False)
    model = MorphableModel.load(None, DETAIL, str(run.device))
    generator = torch.Generator().manual_seed(0)
    theta = inversefacenet.DISTRIBUTION.sample(model, 4, generator).to(run.device)
    images, truth = synthesise(model, theta, generator, 120)
    assert images.device.type == DEVICE
    weights = inversefacenet.model_space_weights(model).to(run.device)
    network = inversefacenet.make_network("small", model)
    made = losses(
        run, network, lambda p: inversefacenet.parameter_loss(p, truth, weights), images.float() / 255
    )
    assert made[-1] < made[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_mofa_learns_a_batch(tmp_path, precision: str) -> None:
    run = Run(tmp_path, DEVICE, precision, progress=False)
    decoder = mofa.Decoder().to(run.device)
    batch = Renderer(CorpusSpec("portrait", size=120, subdivisions=DETAIL, batch=4), str(run.device)).batch(0)
    images, landmarks = batch["image"], batch["landmarks"]
    made = losses(
        run,
        mofa.Encoder(mofa.make_network("small")),
        lambda code: mofa.loss_terms(decoder, code, images, landmarks)["total"],
        images,
    )
    assert made[-1] < made[0]


def test_who_it_is_does_not_depend_on_the_device() -> None:
    """With the weights of the kit (gpu_kit.py) where dlib's own are not."""
    path = os.environ.get("FACELAB_RECOGNITION")
    if path is None and importlib.util.find_spec("face_recognition_models") is None:
        pytest.skip("no weights of a recognition network")
    network = DlibRecogniser(path)
    batch = Renderer(CorpusSpec("portrait", size=240, subdivisions=0, batch=2)).batch(0)
    here = network.embed(batch["image"], batch["landmarks"])
    there = network.to(DEVICE).embed(batch["image"].to(DEVICE), batch["landmarks"].to(DEVICE)).cpu()
    assert (here - there).norm(dim=-1).max() < 0.02 * (here[0] - here[1]).norm()  # TF32 convolutions


def test_landmarks_are_fitted() -> None:
    model = MorphableModel.load(None, 0, DEVICE)
    batch = Renderer(CorpusSpec("portrait", size=240, subdivisions=0, batch=1), DEVICE).batch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (fit,) = fit_landmarks(model, [batch["landmarks"][0]])
    assert fit.energies[-1] < fit.energies[0] and fit.estimate.translation.device.type == DEVICE
