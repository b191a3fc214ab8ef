"""What a method is, which there are, and how a trained network comes back.

method = make_method("mofa")                                     # one of METHODS, as shipped
method = make_method("mofa", "runs/mofa/mofa.safetensors")       # with weights of your own
method = make_method("my_module:MyMethod")
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from facelab.model.morphable_model import DEFAULT_MODEL
from facelab.model.records import Reconstruction
from facelab.support.errors import ModelFileError, ParameterError
from facelab.support.files import sha256_of
from facelab.training import load_checkpoint

Network = TypeVar("Network", bound=nn.Module)


class Method(Protocol):
    """What everything that compares methods asks of one."""

    name: str

    def reconstruct(self, image: Tensor) -> Reconstruction:
        """From one picture (3, H, W), and nothing else. Raises a FacelabError where it cannot."""


METHODS: Mapping[str, str] = {
    "average face": "facelab.methods.baselines:AverageFace",
    "landmark fitting": "facelab.methods.baselines:LandmarkFitting",
    "full fitting": "facelab.methods.baselines:FullFitting",
    "own skin": "facelab.methods.baselines:FittingOwnSkin",
    "inversefacenet": "facelab.methods.inversefacenet:InverseFaceNet",
    "mofa": "facelab.methods.mofa:MoFA",
    "coarsenet": "facelab.methods.coarsenet:CoarseNet",
    "ganfit": "facelab.methods.ganfit:GANFIT",
    "specular": "facelab.methods.specular:Specular",
}
"""Every method that works without more than the package brings: its name, and "module:Class"."""


def make_method(name: str, checkpoint: str | Path | None = None) -> Method:
    """One of `METHODS`, or any "module:Class" that Python finds.

    What has a `load` is loaded, from `checkpoint` or, without one, from where it is shipped. Raises
    ParameterError if there is no such method, or if it has no checkpoints, ModelFileError for a bad one.
    """
    module, _, kind = METHODS.get(name, name).rpartition(":")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ParameterError(
            f"There is no method {name!r} ({error}): choose from {', '.join(METHODS)}, or give "
            "'module:Class'."
        ) from error
    load = getattr(found, "load", None)
    if checkpoint is not None and load is None:
        raise ParameterError(f"{name!r} is not trained; leave out the checkpoint '{checkpoint}'.")
    if load is None:
        return found()
    return load() if checkpoint is None else load(checkpoint)


def load_trained(
    path: str | Path, script: str, build: Callable[[dict[str, Any]], Network]
) -> tuple[Network, dict[str, Any]]:
    """A network with the weights of a checkpoint, and its card, from which `build` makes it.

    Raises ModelFileError, which says to train again with data_scripts/`script`, if it was trained for another
    face model or its weights are of another network.
    """
    weights, card = load_checkpoint(path)
    if card.get("face_model") != sha256_of(DEFAULT_MODEL):
        raise ModelFileError(
            f"The checkpoint '{path}' was trained for another face model, where its numbers mean other "
            f"faces; train again with data_scripts/{script}."
        )
    try:
        network = build(card)
        network.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, ParameterError) as error:
        raise ModelFileError(
            f"The checkpoint '{path}' is not of the network that its card names; train again with "
            f"data_scripts/{script}."
        ) from error
    return network, card
