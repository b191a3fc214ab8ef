"""Makes facelab/data/mean_embedding.json: what dlib's embeddings of all faces have in common.

Mean over the 100 faces of `skimage.data.lfw_subset()` (Labeled Faces in the Wild, Huang et al. 2007; they
come with scikit-image, 25 x 25 grey), enlarged to a chip. Their frame is close to dlib's alignment. Run
`python -m data_scripts.mean_embedding`; it takes seconds.
"""

import json

import torch
from skimage.data import lfw_subset
from skimage.transform import resize
from torch import Tensor

from facelab.recognition.networks import MEAN_EMBEDDING, DlibRecogniser
from facelab.support.files import write_whole


def mean_embedding() -> Tensor:
    """(128,) float32."""
    recogniser = DlibRecogniser(mean_embedding=torch.zeros(128))
    faces = torch.tensor(resize(lfw_subset()[:100], (100, 150, 150))).float()  # the other 100 are no faces
    chips = faces[:, None].expand(-1, 3, -1, -1)
    return torch.cat([recogniser(part)[0] for part in chips.split(10)]).mean(0)


if __name__ == "__main__":
    mean = [round(number, 5) for number in mean_embedding().tolist()]
    source = "python -m data_scripts.mean_embedding: skimage.data.lfw_subset()[:100]"
    write_whole({MEAN_EMBEDDING: json.dumps({"source": source, "mean": mean}) + "\n"})
