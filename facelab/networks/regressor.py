"""A network that says a face: affine outputs over a named layout."""

from collections.abc import Callable

from torch import Tensor, nn

from facelab.model.layout import ParameterLayout
from facelab.networks.encoders import last_layer
from facelab.support.errors import ParameterError


class Regressor(nn.Module):
    """Any network that ends in a linear layer -> the numbers of a layout, `offset + units * output`.

    An optimiser that looks only at the ratio of a gradient to its usual size (AdaDelta, Adam) moves all
    outputs alike, and a step that does nothing to an expression of 12 would shake a light of 0.1; `units`
    make it about as much of everything. They are no weights: the state dict holds the network's alone.

    Args:
        network: with as many outputs as the layout has numbers.
        layout: what they are called.
        units: (layout.size,) what an output of 1 means.
        offset: (layout.size,) what an output of 0 means; None is 0.
        border: the share of the picture on each side that the network does not see, for a face with more
            pixels at the same cost.
        final: makes, from the number of features, what takes the place of the last layer.

    Raises ParameterError for another number of outputs.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: ParameterLayout,
        units: Tensor,
        offset: Tensor | None = None,
        border: float = 0.0,
        final: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layer = last_layer(network)
        if layer.out_features != layout.size:
            raise ParameterError(
                f"The network has {layer.out_features} outputs; make one with {layout.size}: {layout}."
            )
        self.layout, self.border = layout, border
        if final is not None:
            path = next(name for name, module in network.named_modules() if module is layer)
            parent, _, child = path.rpartition(".")
            # before the network: an optimiser's state knows parameters by their order
            self.final = final(layer.in_features)
            setattr(network.get_submodule(parent), child, self.final)
        self.network = network
        self.register_buffer("units", units, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.units: Tensor
        self.offset: Tensor | None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) sRGB in [0, 1] -> (B, layout.size)."""
        if self.border:
            size = images.shape[-1]
            seen = slice(round(self.border * size), size - round(self.border * size))
            images = images[..., seen, seen]
        said = self.units * self.network(images)
        return said if self.offset is None else self.offset + said
