"""Reads the weights of face-recognition networks: dlib's own file format without dlib, and ONNX.

dlib serialises a network as nested C++ types: every `add_layer` writes a version, then the network
below it, then its own record. Unrolled, the file is (1) a header, (2) one version number per layer, the
outermost (last) layer first, (3) the layers' records, input layer first: forward order. Nothing in the
file is executed, and a file's sha256 is checked before it is parsed (third_party.py).
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from facelab.support.errors import ModelFileError
from facelab.support.files import guarded, read_tensors, write_whole


class Layer(NamedTuple):
    """One layer's record: `kind` is "con", "affine", "fc" or a layer without parameters."""

    kind: str
    weight: np.ndarray = np.empty(0)
    bias: np.ndarray = np.empty(0)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)


class _Reader:
    """dlib's primitive types, read one after the other from a buffer."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if len(piece) < count:
            raise ModelFileError(f"The dlib file ends at byte {len(self.data)}, in the middle of a record.")
        self.position += count
        return piece

    def expect(self, found: object, wanted: object) -> None:
        if found != wanted:
            raise ModelFileError(
                f"Not dlib's face network: found {found!r} before byte {self.position}, expected {wanted!r}."
            )

    def integer(self) -> int:
        control = self.take(1)[0]  # bit 7: sign; low four bits: how many bytes follow
        value = int.from_bytes(self.take(control & 0x0F), "little")
        return -value if control & 0x80 else value

    def integers(self, count: int) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(count))

    def real(self) -> float:
        return math.ldexp(*self.integers(2))  # mantissa, exponent

    def reals(self, count: int) -> tuple[float, ...]:
        return tuple(self.real() for _ in range(count))

    def boolean(self) -> bool:
        return self.take(1) == b"1"

    def text(self) -> str:
        return self.take(self.integer()).decode("latin-1")

    def tensor(self) -> np.ndarray:
        self.expect(self.integer(), 2)
        shape = self.integers(4)  # samples, channels, rows, columns
        data = self.take(4 * math.prod(shape))
        return np.frombuffer(data, "<f4").reshape(shape)

    def alias(self) -> tuple[int, ...]:
        """The shape of a view into a parameter tensor."""
        self.expect(self.integer(), 1)
        return self.integers(4)

    def layer(self) -> Layer:
        kind = self.text()
        if kind == "con_4":
            parameters = self.tensor().ravel()
            filters, _, _, *steps = self.integers(7)  # then stride y, x and padding y, x
            shape, _ = self.alias(), self.alias()
            self.reals(4)  # learning-rate and weight-decay multipliers
            count = math.prod(shape)
            return Layer("con", parameters[:count].reshape(shape), parameters[count : count + filters],
                         (steps[0], steps[1]), (steps[2], steps[3]))  # fmt: skip
        if kind == "affine_":
            parameters = self.tensor().ravel()
            count = math.prod(self.alias())
            self.alias(), self.integer()
            return Layer("affine", parameters[:count], parameters[count:])
        if kind == "fc_2":
            outputs, inputs = self.integers(2)
            parameters = self.tensor()
            self.alias(), self.alias(), self.integer(), self.reals(4)
            return Layer("fc", parameters.reshape(inputs, outputs))
        if kind in ("max_pool_2", "avg_pool_2"):
            self.integers(6)  # window, stride, padding: the same in every version of this network
            return Layer(kind.removesuffix("_2"))
        return Layer(kind.rstrip("_"))  # relu, add_prev: no parameters


def _layer_kinds() -> list[str]:
    """What dlib's `anet_type` is made of, in forward order."""
    convolutions = ["con", "affine", "relu", "con", "affine"]
    plain = ["tag", *convolutions, "add_prev", "relu"]
    down = ["tag", *convolutions, "tag", "skip", "avg_pool", "add_prev", "relu"]
    stages = [kind for repeats in (3, 2, 2, 0) for kind in down + plain * repeats]
    return ["con", "affine", "relu", "max_pool", *plain * 3, *stages, "avg_pool", "fc"]


def parse_face_network(data: bytes) -> tuple[np.ndarray, list[Layer]]:
    """Bytes of `dlib_face_recognition_resnet_model_v1.dat` -> (mean RGB (3,) in [0, 255], layers).

    Layers come in forward order, without dlib's tags and skips, which hold no data. Raises ModelFileError
    if the bytes end early or describe another network.
    """
    reader, kinds = _Reader(data), _layer_kinds()
    reader.expect(reader.integer(), 1)
    reader.expect(reader.text(), "loss_metric_2")
    reader.reals(2)  # margin and distance threshold of the training loss
    versions = list(reader.integers(len(kinds)))[::-1]
    reader.expect(versions, [3] + [1 if kind in ("tag", "skip") else 2 for kind in kinds[1:]])
    reader.expect(reader.text(), "input_rgb_image_sized")
    mean = np.array(reader.reals(3), np.float32)
    reader.expect(reader.integers(2), (150, 150))
    layers = []
    for index, kind in enumerate(kinds):
        if kind in ("tag", "skip"):
            continue
        layer = reader.layer()
        reader.expect(layer.kind, kind)
        for _ in range(3):
            reader.boolean()  # set up, gradient is stale, gradient disabled
        for _ in range(3):
            reader.tensor()  # cached output and gradients, empty in a cleaned network
        if index == 0:
            reader.integer()  # sample expansion factor
        layers.append(layer)
    reader.expect(reader.position, len(data))
    return mean, layers


def save_halves(path: str | Path, mean: np.ndarray, layers: list[Layer]) -> None:
    """Keep what `parse_face_network` returns as 16-bit floats: half of the file. Raises ModelFileError if a
    weight is too large for that."""
    tensors = {"mean": torch.tensor(mean)}
    for k, layer in enumerate(layers):
        for name in ("weight", "bias"):
            tensors[f"{k}.{name}"] = torch.tensor(getattr(layer, name)).half()
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ModelFileError("The network has weights that 16-bit floats cannot hold; keep its own file.")
    about = [(layer.kind, layer.stride, layer.padding) for layer in layers]
    write_whole({Path(path): save(tensors, {"layers": json.dumps(about)})})


def load_halves(path: str | Path) -> tuple[np.ndarray, list[Layer]]:
    """What `save_halves` kept, in float32. Raises ModelFileError for a missing, damaged or other file."""
    problem = f"'{path}' is no recognition network of the GPU kit, or is damaged; run `make gpu-kit` again"
    with guarded(problem, ModelFileError):
        tensors = read_tensors(Path(path).read_bytes(), problem)
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["layers"])
        arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        layers = [
            Layer(kind, arrays[f"{k}.weight"], arrays[f"{k}.bias"], tuple(stride), tuple(padding))
            for k, (kind, stride, padding) in enumerate(about)
        ]
        _check_kinds(layers)
    return arrays["mean"], layers


def _check_kinds(layers: list[Layer]) -> None:
    if [layer.kind for layer in layers] != [kind for kind in _layer_kinds() if kind not in ("tag", "skip")]:
        raise ValueError("its layers are others")


def onnx_layers(data: bytes) -> nn.ModuleList:
    """Bytes of an ONNX file -> its chain of convolutions, batch normalisations, PReLUs and one product.

    8-bit weights are made floats again: (code - zero point) * scale, with one scale and zero point per block
    along an axis. Scaling of the input is left to the caller.
    """
    import onnx

    graph = onnx.load_from_string(data).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers: list[nn.Module] = []
    for node in graph.node:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        arrays: list[Any] = [values.get(name) for name in node.input]
        if node.op_type == "DequantizeLinear":
            codes, *blocks = (array.astype(np.float64) for array in arrays)
            axis, size = options["axis"], options["block_size"]
            scale, zero = (np.repeat(b, size, axis).take(range(codes.shape[axis]), axis) for b in blocks)
            values[node.output[0]] = (codes - zero) * scale
        elif node.op_type == "Reshape":
            values[node.output[0]] = arrays[0].reshape(arrays[1])
        elif node.op_type in ("Conv", "BatchNormalization", "PRelu", "Gemm"):
            weight, *others = (torch.tensor(array).float() for array in arrays[1:])
            names = ["weight", "bias", "running_mean", "running_var"]
            layer: nn.Module
            if node.op_type == "Conv":
                channels = weight.shape[1] * options["group"], weight.shape[0]
                layer = nn.Conv2d(*channels, options["kernel_shape"], options["strides"], options["pads"][:2],
                                  groups=options["group"], bias=False)  # fmt: skip
            elif node.op_type == "BatchNormalization":
                flat = any(isinstance(before, nn.Linear) for before in layers)
                layer = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(len(weight), options["epsilon"])
            elif node.op_type == "PRelu":
                weight = weight.flatten()
                layer = nn.PReLU(len(weight))
            else:
                layers.append(nn.Flatten())
                layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict(dict(zip(names, [weight, *others])), strict=False)
            layers.append(layer)
    return nn.ModuleList(layers)
