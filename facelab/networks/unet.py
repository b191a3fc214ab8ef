"""A U-Net for CPUs: what is at every pixel of a picture (Ronneberger et al. 2015)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

WIDTHS = (16, 32, 64, 96, 128)
STEP = 32  # px: sides are multiples of it


def _convolutions(i: int, o: int, count: int = 2, stride: int = 1) -> nn.Sequential:
    """3×3 convolutions, normalised over the batch; the first with the stride."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise([i] + [o] * count)):
        convolution = nn.Conv2d(a, b, 3, stride if k == 0 else 1, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(b), nn.ReLU(True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(B, 3, S, S) sRGB in [0, 1] -> (B, outputs, S, S) logits; S a multiple of `STEP`.

    The first convolution halves the picture, and only the last one sees it whole: half of a U-Net's work is
    at full size, where a face's outline needs the least of it. 0.8 million weights.
    """

    def __init__(self, outputs: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        first, *_ = widths
        self.stem = _convolutions(3, first, 2, 2)
        self.down = nn.ModuleList(_convolutions(i, o, 2, 2) for i, o in pairwise(widths))
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(_convolutions(o + i, i, 1) for i, o in pairs)
        self.last = nn.Sequential(_convolutions(first + 3, first, 1), nn.Conv2d(first, outputs, 1))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        images = images - 0.5
        levels = [self.stem(images)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in self.up:
            x = up(torch.cat([_doubled(x), levels.pop()], 1))
        return self.last(torch.cat([_doubled(x), images], 1))


def _doubled(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
