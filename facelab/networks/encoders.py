"""Encoders: a picture in, a vector out. AlexNet, ResNet, VGG, and a small one for CPUs.

    network = encoder("alexnet", outputs=350)                        # random weights
    network = encoder("resnet101", 350, pretrained="imagenet")       # through torchvision, where it is

The names in `state_dict()` are torchvision's, so its ImageNet weights load. All take (B, 3, H, W) sRGB in
[0, 1] and subtract 0.5, as InverseFaceNet does (Kim et al. 2018, Sec. 6.1), and give (B, outputs).
"""

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from facelab.support.errors import ModelFileError, ParameterError

SMALL_SIDE = 120  # px: the small network averages larger pictures down to less than twice this
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pooling


class Encoder(nn.Module):
    """Features, pooling, classifier: the form of AlexNet and VGG."""

    def __init__(self, features: nn.Sequential, pool: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier
        self.avgpool = nn.AdaptiveAvgPool2d(pool)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, outputs)."""
        return self.classifier(self.avgpool(self.features(image - 0.5)).flatten(1))


def alexnet(outputs: int, channels: int = 3) -> nn.Module:
    """Krizhevsky 2014's one-column AlexNet, as torchvision has it: 61 million parameters."""

    def convolution(i: int, o: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        padding = 2 if kernel > 3 else 1
        return [nn.Conv2d(i, o, kernel, stride, padding), nn.ReLU(inplace=True)]

    features = nn.Sequential(
        *convolution(channels, 64, 11, 4), nn.MaxPool2d(3, 2),
        *convolution(64, 192, 5), nn.MaxPool2d(3, 2),
        *convolution(192, 384, 3), *convolution(384, 256, 3), *convolution(256, 256, 3), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(256 * 36, 4096), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Linear(4096, outputs),
    )  # fmt: skip
    return Encoder(features, 6, classifier)


def vgg(outputs: int, channels: int = 3) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2015), the form of VGG-Face: 135 million parameters.

    Random convolutions are He et al.'s (2015), as torchvision's: after 13 layers of PyTorch's own, which
    halve what differs at every layer, two pictures differ by a ten-thousandth, and nothing is learned.
    """
    layers: list[nn.Module] = []
    width = channels
    for wide in VGG16:
        layers += [nn.Conv2d(width, wide, 3, 1, 1), nn.ReLU(inplace=True)] if wide else [nn.MaxPool2d(2, 2)]
        width = wide or width
    classifier = nn.Sequential(
        nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, outputs),
    )  # fmt: skip
    for layer in (layer for layer in layers if isinstance(layer, nn.Conv2d)):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return Encoder(nn.Sequential(*layers), 7, classifier)


class Block(nn.Module):
    """Residual block of ResNet-18 (two 3×3) or, as a bottleneck, of ResNet-50 and 101 (1×1, 3×3, 1×1)."""

    def __init__(self, i: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        o = 4 * width if bottleneck else width
        sizes = [(i, width, 1, 1), (width, width, 3, stride), (width, o, 1, 1)]
        sizes = sizes if bottleneck else [(i, width, 3, stride), (width, o, 3, 1)]
        self.count = len(sizes)
        for k, (before, after, kernel, step) in enumerate(sizes, 1):
            convolution = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{k}", convolution)
            self.add_module(f"bn{k}", nn.BatchNorm2d(after))
        self.downsample: nn.Module | None = None
        if stride > 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k in range(1, self.count + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = y.relu() if k < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """He et al. 2016."""

    def __init__(self, blocks: tuple[int, ...], bottleneck: bool, outputs: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        i = 64
        for k, count in enumerate(blocks):
            layer = []
            for block in range(count):
                layer.append(Block(i, 64 * 2**k, 2 if k and not block else 1, bottleneck))
                i = 64 * 2**k * (4 if bottleneck else 1)
            self.add_module(f"layer{k + 1}", nn.Sequential(*layer))
        self.layers = len(blocks)
        self.fc = nn.Linear(i, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, outputs)."""
        x = self.pool(self.bn1(self.conv1(image - 0.5)).relu())
        for k in range(1, self.layers + 1):
            x = getattr(self, f"layer{k}")(x)
        return self.fc(x.mean((-2, -1)))


class Small(nn.Module):
    """For CPUs: pictures averaged down to about 120 px, eleven 3×3 convolutions, no global pooling, because
    where something is says as much about a face as that it is there. 0.3 billion multiplications a picture.
    """

    def __init__(self, outputs: int, channels: int = 3, widths: tuple[int, ...] = (24, 48, 96, 192)) -> None:
        super().__init__()
        first, *rest = widths
        layers = [nn.Conv2d(channels, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU(True)]
        for i, o in zip(widths, rest):
            layers += [nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)]
            layers += [Block(o, o, 1, bottleneck=False)]
        layers += [nn.Conv2d(widths[-1], 64, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(8), nn.Flatten()]
        self.features = nn.Sequential(*layers, nn.Linear(64 * 64, 512), nn.ReLU(True))
        self.classifier = nn.Linear(512, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, outputs)."""
        factor = max(1, min(image.shape[-2:]) // SMALL_SIDE)
        image = avg_pool2d(image, factor) if factor > 1 else image
        return self.classifier(self.features(image - 0.5))


class Hypercolumn(nn.Module):
    """FineNet's network (Richardson et al. 2017, Section 4.2): VGG-16 before its third pooling, every pixel
    described by the outputs of its three blocks, and a regressor on that.

    Coarser maps are brought to the picture's size by 2×2 convolutions of stride 2, transposed, one a level;
    with the input's two channels and a `width` of 64 a column has 2 + 64 + 128 + 256 = 450 numbers. The last
    layer starts at zero. Any size of picture: (B, inputs, H, W) -> (B, outputs, H, W).
    """

    def __init__(self, inputs: int = 2, outputs: int = 1, width: int = 64) -> None:
        super().__init__()

        def convolutions(i: int, o: int, count: int) -> nn.Sequential:
            layers = [nn.Conv2d(a, b, 3, 1, 1) for a, b in pairwise([i] + [o] * count)]
            return nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))

        def up(channels: int, levels: int) -> nn.Sequential:
            steps = (nn.ConvTranspose2d(channels, channels, 2, 2) for _ in range(levels))
            return nn.Sequential(*(m for step in steps for m in (step, nn.ReLU())))

        widths = (width, 2 * width, 4 * width)
        self.blocks = nn.ModuleList(
            convolutions(i, o, count) for i, o, count in zip((inputs, *widths), widths, (2, 2, 3))
        )
        self.ups = nn.ModuleList(up(channels, level) for level, channels in enumerate(widths))
        column = inputs + sum(widths)
        self.regressor = nn.Sequential(nn.Conv2d(column, width, 1), nn.ReLU(), nn.Conv2d(width, outputs, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for parameter in self.regressor[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        height, width = maps.shape[-2:]
        padded = pad(maps, (0, -width % 4, 0, -height % 4), mode="replicate")
        columns, level = [padded], padded
        for k, (block, up) in enumerate(zip(self.blocks, self.ups)):
            level = block(max_pool2d(level, 2) if k else level)
            columns.append(up(level))
        return self.regressor(torch.cat(columns, 1))[..., :height, :width]


def _resnet(blocks: tuple[int, ...], bottleneck: bool) -> Callable[[int, int], nn.Module]:
    return lambda outputs, channels: ResNet(blocks, bottleneck, outputs, channels)


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "small": Small,
    "slim": lambda outputs, channels: Small(outputs, channels, (16, 32, 64, 128)),
    "medium": lambda outputs, channels: Small(outputs, channels, (32, 64, 128, 256)),
    "alexnet": alexnet,
    "vgg": vgg,
    "resnet18": _resnet((2, 2, 2, 2), False),
    "resnet50": _resnet((3, 4, 6, 3), True),
    "resnet101": _resnet((3, 4, 23, 3), True),
}
TORCHVISION = {name: name for name in ("alexnet", "resnet18", "resnet50", "resnet101")} | {"vgg": "vgg16"}


def last_layer(network: nn.Module) -> nn.Linear:
    """The linear layer that gives the outputs."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def encoder(
    kind: str,
    outputs: int,
    final: str = "normal",
    pretrained: str | Path | None = None,
    channels: int = 3,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A network (B, channels, H, W) in [0, 1] -> (B, outputs).

    Args:
        kind: "slim", "small" or "medium" (CPU), "alexnet", "vgg" (16 layers), "resnet18", "resnet50" or
            "resnet101".
        final: weights of the last layer: "normal" N(0, 0.01) (InverseFaceNet), "zero" (MoFA) or "xavier"; its
            biases are zero.
        pretrained: "imagenet": torchvision's weights, with a warning where torchvision or the weights cannot
            be had; or a file of such weights (.safetensors, also a checkpoint of ours, or .pth read without
            pickled code). The last layer is not loaded.
        generator: decides on the random weights; None: seed 0.

    Raises ParameterError for a name that does not exist, ModelFileError for a file that does not fit.
    """
    if kind not in KINDS or final not in ("normal", "zero", "xavier"):
        raise ParameterError(
            f"There is no encoder {kind!r} ending {final!r}: choose from {', '.join(KINDS)} and "
            "normal, zero, xavier."
        )
    seed = int(torch.randint(2**62, (1,), generator=generator or torch.Generator().manual_seed(0)))
    with torch.random.fork_rng(devices=[]):  # torch initialises layers from its global generator
        torch.manual_seed(seed)
        network = KINDS[kind](outputs, channels)
        last = last_layer(network)
        if final == "xavier":
            nn.init.xavier_uniform_(last.weight)
        else:
            nn.init.normal_(last.weight, 0.0, 0.01 if final == "normal" else 0.0)
    nn.init.zeros_(last.bias)
    if pretrained is not None:
        load_pretrained(network, kind, pretrained)
    return network


def load_pretrained(network: nn.Module, kind: str, pretrained: str | Path) -> None:
    """All weights but those of the last layer: see `encoder`."""
    weights = _imagenet(kind) if pretrained == "imagenet" else _read(Path(pretrained))
    if weights is not None:
        _load_all_but_last(network, weights, str(pretrained))


def _imagenet(kind: str) -> dict[str, Tensor] | None:
    try:
        from torchvision import models

        return models.get_model(TORCHVISION[kind], weights="DEFAULT").state_dict()
    except (ImportError, RuntimeError, OSError, KeyError) as error:
        warnings.warn(
            f"No ImageNet weights for {kind!r} ({type(error).__name__}: {error}); starting from random ones.",
            stacklevel=4,
        )
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return {name.removeprefix("network."): value for name, value in load_file(path).items()}
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, ValueError, EOFError) as error:
        raise ModelFileError(f"Weights cannot be read from '{path}': {error}") from error
    except Exception as error:  # torch raises pickle's own error for code in the file
        raise ModelFileError(f"'{path}' holds more than weights; save its state_dict alone.") from error


def _load_all_but_last(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    own = network.state_dict()
    name = next(n for n, module in network.named_modules() if module is last_layer(network))
    keys = [key for key in own if not key.startswith(f"{name}.")]
    wrong = [key for key in keys if key not in weights or weights[key].shape != own[key].shape]
    if wrong:
        raise ModelFileError(
            f"The weights in {source!r} are not of this network: {wrong[0]} is missing or has another shape."
        )
    network.load_state_dict({key: weights[key] for key in keys}, strict=False)
