"""Networks that are trained here: encoders by name, the head that gives outputs units, a hypercolumn."""

from facelab.networks.encoders import KINDS, Hypercolumn, Small, encoder, last_layer, load_pretrained
from facelab.networks.regressor import Regressor

__all__ = ["KINDS", "Hypercolumn", "Regressor", "Small", "encoder", "last_layer", "load_pretrained"]
