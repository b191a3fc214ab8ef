"""Basel Face Model 2009 (01_MorphableModel.mat) as a facelab face model.

Where:  https://faces.dmi.unibas.ch/bfm/ (Basel Face Model 2009), by a form and a signed licence.
Terms:  University of Basel licence: non-commercial research, no passing on; never publish the result.
        Paper: Paysan et al., A 3D Face Model for Pose and Illumination Invariant Face Recognition, AVSS 2009.
File:   01_MorphableModel.mat with shapeMU, shapePC, shapeEV, texMU, texPC, texEV, tl.
Units:  micrometres, +x the subject's left, +y up, +z out of the face; triangles count from 1; EV are standard
        deviations. Texture is 0..255 and taken as sRGB (assumed: camera colours under even light).
Kept:   199 shape and 199 texture components; the model has no expressions. The file holds no landmarks: they
        are carried over from facelab's own model, or read from --landmarks (68 vertex indices from 0 in iBUG
        order, -1 where unknown).

    python data_scripts/convert_bfm2009.py 01_MorphableModel.mat bfm2009.safetensors
"""

from pathlib import Path

import numpy as np
from conversion import (
    Array,
    Parts,
    command_line,
    converter,
    existing_file,
    finish,
    linear_albedo,
    on_vertices,
    per_sigma,
    read_landmark_indices,
    require,
)
from matlab import read_matlab

from facelab.model.morphable_model import MorphableModel
from facelab.support.errors import ModelFileError

MM = 1e-3
NAMES = ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl")


def read_mat(path: str | Path) -> dict[str, Array]:
    """The named matrices of the .mat file (version 5, as distributed)."""
    problem = "it is not a complete MATLAB 5 file, download it again"
    data = read_matlab(existing_file(path), NAMES, problem, ModelFileError)
    missing = [name for name in NAMES if name not in data]
    require(not missing, f"{path} lacks {', '.join(missing)}: it is not 01_MorphableModel.mat.")
    return {name: data[name] for name in NAMES}


@converter
def convert(source: str | Path, landmarks: str | Path | None = None) -> MorphableModel:
    """Basel Face Model 2009 as a `MorphableModel`; errors: `ModelFileError`."""
    data = read_mat(source)
    size = data["shapeMU"].size
    for name in ("shapePC", "texPC"):
        require(
            size % 3 == 0 and data[name].shape[:1] == (size,) and data["texMU"].size == size,
            f"{source}: {name} of shape {data[name].shape} does not fit the means of {size} values.",
        )
    triangles = data["tl"].astype(np.int64) - 1
    require(
        triangles.shape[1:] == (3,),
        f"{source}: the triangle list tl has shape {triangles.shape}, not (T, 3).",
    )
    colour = data["texMU"].reshape(-1, 3) / 255.0
    low, high = 255 * colour.min(), 255 * colour.max()
    require(
        low >= 0 and 25 < high < 270, f"{source} has texture from {low:.3g} to {high:.3g}, not in 0..255."
    )
    albedo_mean, albedo = linear_albedo(colour, per_sigma(data["texPC"], data["texEV"] / 255.0, "texture"))
    mean = data["shapeMU"].reshape(-1, 3).astype(np.float64) * MM
    parts = Parts(
        name="Basel Face Model 2009",
        terms="faces.dmi.unibas.ch/bfm, University of Basel licence: non-commercial research, no passing on",
        mean=mean,
        triangles=triangles,
        identity=per_sigma(data["shapePC"], data["shapeEV"] * MM, "shape"),
        expression=np.zeros((0, *mean.shape), dtype=np.float32),
        albedo_mean=albedo_mean,
        albedo=albedo,
        landmarks=on_vertices(read_landmark_indices(landmarks) if landmarks else {}, triangles, len(mean)),
    )
    return finish(parts)


if __name__ == "__main__":
    command_line(convert, __doc__, {"landmarks": "file of 68 vertex indices in iBUG order"})
