"""Labeled Faces in the Wild: 13,233 pictures of 5,749 people from the news, 250×250 pixels.

Where:  http://vis-www.cs.umass.edu/lfw/ (all images, funneled, or deep funneled).
Terms:  the page states none beyond citing; pictures are of the press, so for research. Paper: Huang et al.,
        Labeled Faces in the Wild, University of Massachusetts, TR 07-49, 2007.
Folder: lfw/NAME/NAME_0001.jpg, or lfw_funneled/, lfw-deepfunneled/ in its place.
Truth:  who it is. Of several faces in a picture the one at its centre is meant.
Checked: layout against the README of the project page and public readers; not against the set itself.
"""

import re
from pathlib import Path

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord
from facelab.photos import load_photo

from .common import place, records, require

PAGE = "http://vis-www.cs.umass.edu/lfw/"


def read(folder: str | Path) -> Records:
    """All pictures by person. Raises DatasetError."""
    root = place(folder, ("lfw", "lfw_funneled", "lfw-deepfunneled"), PAGE)
    pictures = sorted(root.glob("*/*.jpg"))
    for path in pictures:
        named = re.fullmatch(re.escape(path.parent.name) + r"_\d{4}", path.stem)
        require(named, f"'{path}' is not named NAME/NAME_0001.jpg as in LFW: unpack it again from {PAGE}.")

    def make(path: Path) -> FaceRecord:
        return FaceRecord(path.name, load_photo(path), person=path.parent.name)

    return records(pictures, make, root, "NAME/NAME_0001.jpg")
