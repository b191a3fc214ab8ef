"""AlbedoMM (diffuse and specular albedo on the Basel Face Model 2017) as a facelab face model.

Where:  https://github.com/waps101/AlbedoMM/releases: albedoModel2020_face12_albedoPart.h5 or ..._bfm_...,
        and https://faces.dmi.unibas.ch/bfm/bfm2017.html: model2017-1_face12_nomouth.h5 or ..._bfm_...
Terms:  albedo: academic research only; shape: University of Basel licence; do not publish the converted file.
        Paper: Smith et al., A Morphable Face Albedo Model, CVPR 2020.
File:   diffuseAlbedo and specularAlbedo with model/mean, pcaBasis, pcaVariance. The shape in an albedoPart
        file is a random placeholder, so --shape is needed; a file joined by their AlbedoModelBuilder has one.
Units:  millimetres. Albedo is linear already. Specular albedo has three channels; their mean is taken as F0
        (assumed: the paper measures it on the scale of the diffuse albedo).
Kept:   all components. Diffuse and specular share one coefficient vector, as in the authors' renderer.

    python data_scripts/convert_albedomm.py albedoModel2020_face12_albedoPart.h5 albedomm.safetensors \\
        --shape model2017-1_face12_nomouth.h5
"""

from pathlib import Path

import numpy as np
from conversion import command_line, converter, finish, require
from convert_bfm2017 import open_h5, read_pca, read_shape

from facelab.model.morphable_model import MorphableModel


@converter
def convert(
    source: str | Path, shape: str | Path | None = None, landmarks: str | Path | None = None
) -> MorphableModel:
    """AlbedoMM, with the shape of BFM 2017, as a `MorphableModel`; errors: `ModelFileError`."""
    with open_h5(source) as file:
        diffuse, diffuse_basis = read_pca(file, "diffuseAlbedo")
        specular, specular_basis = read_pca(file, "specularAlbedo")
        require(
            shape is not None or "expression" in file,
            f"{source} holds only albedo: give the Basel Face Model 2017 file of the same mesh with --shape.",
        )
    with open_h5(shape if shape is not None else source) as file:
        parts = read_shape(file, landmarks)
    require(
        diffuse.shape == specular.shape == parts.mean.shape and len(diffuse_basis) == len(specular_basis),
        f"{source} has albedo for {len(diffuse)} and {len(specular)} vertices, the shape {len(parts.mean)}: "
        "take face12 with face12, or bfm with bfm.",
    )
    for what, values in (("diffuse", diffuse), ("specular", specular)):
        require(
            values.min() > -0.05 and values.max() < 1.2,
            f"{source} has {what} albedo from {values.min():.3g} to {values.max():.3g}, not in [0, 1].",
        )
    parts.name = Path(source).stem
    parts.terms = f"github.com/waps101/AlbedoMM, academic research only; shape: {parts.terms}"
    parts.albedo_mean = np.concatenate([diffuse, specular.mean(-1, keepdims=True)], -1)
    parts.albedo = np.concatenate([diffuse_basis, specular_basis.mean(-1, keepdims=True)], -1)
    return finish(parts)


if __name__ == "__main__":
    command_line(
        convert,
        __doc__,
        {
            "shape": "the Basel Face Model 2017 .h5 on the same mesh",
            "landmarks": "file of 68 vertex indices in iBUG order",
        },
    )
