"""CelebA: 202,599 pictures of 10,177 well-known people, 178×218 pixels, aligned by the eyes.

Where:  https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (links there; identities on request).
Terms:  non-commercial research; no copying, publishing or passing on of any part. Paper: Liu et al., Deep
        Learning Face Attributes in the Wild, ICCV 2015.
Folder: img_align_celeba/000001.jpg ... and list_attr_celeba.txt (a count, 40 names, rows of 1 and -1), both
        at the top or in Img/ and Anno/; if there, identity_CelebA.txt and list_eval_partition.txt.
Truth:  who it is (with the identity file); sex, age and glasses as groups. Its five landmarks are the centres
        of the eyes, the nose and the corners of the mouth: not iBUG's points, so they are not read.
Checked: layout and text formats against public readers of the set; not against the set itself.
"""

import os
from pathlib import Path

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord
from facelab.photos import load_photo

from .common import place, records, require, table, text_lines

PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
SPLITS = ("training", "validation", "test")
WORDS = {
    "Male": ("sex", "female", "male"),
    "Young": ("age", "old", "young"),
    "Eyeglasses": ("glasses", "no", "yes"),
}


def read(folder: str | Path) -> Records:
    """The aligned pictures in the order of the attribute file. Raises DatasetError."""
    images = place(folder, ("img_align_celeba", "Img/img_align_celeba"), PAGE)
    attributes = place(folder, ("list_attr_celeba.txt", "Anno/list_attr_celeba.txt"), PAGE)
    count, header, *_ = (*text_lines(attributes)[:2], "", "")
    names = header.split()
    rows = table(attributes, len(names), header=2)
    require(set(WORDS) <= set(names) and count == str(len(rows)), f"'{attributes}' is cut off or changed.")
    there = set(os.listdir(images))
    missing = [name for name in rows if name not in there]
    require(not missing, f"'{images}' lacks {len(missing)} pictures, such as {missing[:1]}: unpack it again.")
    people, splits = (
        table(found[0], 1) if (found := [*Path(folder).glob(name), *Path(folder).glob(f"*/{name}")]) else {}
        for name in ("identity_CelebA.txt", "list_eval_partition.txt")
    )

    def make(name: str) -> FaceRecord:
        said = dict(zip(names, rows[name]))
        groups = {key: yes if said[word] == "1" else no for word, (key, no, yes) in WORDS.items()}
        if name in splits:
            groups["split"] = SPLITS[int(splits[name][0])]
        person = people[name][0] if name in people else None
        return FaceRecord(name, load_photo(images / name), person=person, groups=groups)

    return records(list(rows), make, images, "picture")
