"""Every method describes a face by one vector; a ParameterLayout says which part of it means what."""

from collections.abc import Mapping

import torch
from torch import Tensor

from facelab.support.errors import ParameterError


class ParameterLayout:
    """An ordered, named split of one parameter vector.

    >>> layout = ParameterLayout(rotation=3, shape=128, expression=64, reflectance=128, light=27)
    >>> layout.size                                    # InverseFaceNet, Sec. 4
    350
    >>> layout.split(layout.zeros(8))["shape"].shape
    torch.Size([8, 128])
    """

    def __init__(self, **sizes: int) -> None:
        if not sizes or any(not isinstance(size, int) or size < 0 for size in sizes.values()):
            raise ParameterError(f"Every part of a layout needs a whole size of 0 or more, got {sizes}.")
        self.sizes = dict(sizes)

    def __repr__(self) -> str:
        return f"ParameterLayout({', '.join(f'{name}={size}' for name, size in self.sizes.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParameterLayout) and list(self.sizes.items()) == list(other.sizes.items())

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(self.sizes.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The parts, in order."""
        return tuple(self.sizes)

    def slice(self, name: str) -> slice:
        """Where a part is in the vector: `theta[..., layout.slice("shape")]`."""
        if name not in self.sizes:
            raise ParameterError(f"There is no part {name!r}: choose from {', '.join(self.names)}.")
        start = 0
        for other, size in self.sizes.items():
            if other == name:
                break
            start += size
        return slice(start, start + self.sizes[name])

    def check(self, theta: Tensor) -> None:
        """Raise ParameterError unless theta is `(..., size)` and finite."""
        bad = [name for name, part in self.split(theta).items() if not bool(torch.isfinite(part).all())]
        if bad:
            raise ParameterError(
                f"NaN or infinity in {', '.join(bad)}: lower the step size or check what made them."
            )

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """`(..., size)` -> {name: `(..., size of the part)`}; views, so gradients and writes go through.

        Raises ParameterError if the length is wrong. Values are not looked at (see :meth:`check`): on a GPU
        that would wait for the device in every step.
        """
        if theta.ndim == 0 or theta.shape[-1] != self.size:
            raise ParameterError(
                f"Expected a vector of {self.size} parameters, got {tuple(theta.shape)}: {self}."
            )
        return dict(zip(self.names, theta.split(list(self.sizes.values()), dim=-1)))

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """{name: `(..., size of the part)`} -> `(..., size)`; leading dimensions broadcast. Undoes `split`.

        Raises ParameterError if a part is missing, unknown, or of the wrong size.
        """
        if set(parts) != set(self.names):
            raise ParameterError(
                f"Expected the parts {', '.join(self.names)}, got {', '.join(parts) or 'none'}."
            )
        for name, size in self.sizes.items():
            if parts[name].ndim == 0 or parts[name].shape[-1] != size:
                raise ParameterError(f"{name!r} must be (..., {size}), got {tuple(parts[name].shape)}.")
        batch = torch.broadcast_shapes(*(parts[name].shape[:-1] for name in self.names))
        return torch.cat([parts[name].expand(*batch, -1) for name in self.names], -1)

    def zeros(
        self, *batch: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """The zero vector `(*batch, size)`: the average face, for a model in standard deviations."""
        return torch.zeros(*batch, self.size, dtype=dtype, device=device)
