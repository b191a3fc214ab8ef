"""facelab: a small library under a course on inverse face rendering.

    from facelab import load_photo, reconstruct

What is needed most can be taken from here, and is loaded when it is asked for; the rest is in the modules.
Conventions are on one page: docs/conventions.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same as below, for editors and type checkers
    from facelab.evaluation.scoreboard import evaluate
    from facelab.evaluation.test_sets import load_test_set
    from facelab.export import export_glb, export_obj
    from facelab.geometry.camera import PerspectiveCamera
    from facelab.methods.fitting import reconstruct
    from facelab.model.face import Face
    from facelab.model.morphable_model import MorphableModel
    from facelab.model.records import FaceRecord, Reconstruction
    from facelab.photos import crop_face, find_face, load_photo
    from facelab.rendering.illumination import SphericalHarmonicsLight
    from facelab.rendering.image_formation import render
    from facelab.support.errors import FacelabError

_MODULES = {
    "Face": "model.face",
    "FaceRecord": "model.records",
    "FacelabError": "support.errors",
    "MorphableModel": "model.morphable_model",
    "PerspectiveCamera": "geometry.camera",
    "Reconstruction": "model.records",
    "SphericalHarmonicsLight": "rendering.illumination",
    "crop_face": "photos",
    "evaluate": "evaluation.scoreboard",
    "export_glb": "export",
    "export_obj": "export",
    "find_face": "photos",
    "load_photo": "photos",
    "load_test_set": "evaluation.test_sets",
    "reconstruct": "methods.fitting",
    "render": "rendering.image_formation",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
