"""facelab: a small library under a course on inverse face rendering.

    from facelab import load_photo, reconstruct

What is needed most can be taken from here, and is loaded when it is asked for; the rest is in the modules.
Conventions are on one page: docs/conventions.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same as below, for editors and type checkers
    from facelab.camera import PerspectiveCamera
    from facelab.errors import FacelabError
    from facelab.export import export_glb, export_obj
    from facelab.face import Face
    from facelab.illumination import SphericalHarmonicsLight
    from facelab.image_formation import render
    from facelab.methods.fitting import reconstruct
    from facelab.morphable_model import MorphableModel
    from facelab.photos import crop_face, find_face, load_photo
    from facelab.records import FaceRecord, Reconstruction
    from facelab.scoreboard import evaluate
    from facelab.test_sets import load_test_set

_MODULES = {
    "Face": "face",
    "FaceRecord": "records",
    "FacelabError": "errors",
    "MorphableModel": "morphable_model",
    "PerspectiveCamera": "camera",
    "Reconstruction": "records",
    "SphericalHarmonicsLight": "illumination",
    "crop_face": "photos",
    "evaluate": "scoreboard",
    "export_glb": "export",
    "export_obj": "export",
    "find_face": "photos",
    "load_photo": "photos",
    "load_test_set": "test_sets",
    "reconstruct": "methods.fitting",
    "render": "image_formation",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
