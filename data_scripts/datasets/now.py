"""NoW ("Not quite in the Wild"), validation part: 352 iPhone pictures of 20 people, each with a head scan.

Where:  https://now.is.tue.mpg.de (register; pictures, list of validation pictures, their scans, landmarks).
Terms:  Max Planck licence, non-commercial research, no passing on. Paper: Sanyal et al., Learning to Regress
        3D Face Shape and Expression from an Image without 3D Supervision (RingNet), CVPR 2019.
Folder: imagepathsvalidation.txt (rows PERSON/CHALLENGE/IMG_0041.jpg), iphone_pictures/PERSON/CHALLENGE/*.jpg,
        scans/PERSON/*.obj, scans_lmks_onlypp/PERSON/*.pp, at the top or in
        NoW_Dataset/final_release_version/. The boxes in detected_face/ are pickles and are not read. The test
        part's scans are not given out.
Truth:  the scan (mm; x right, y up, z out of the face) of the *neutral* face. NoW compares it with a neutral
        estimate for every picture; here it is the mesh only of the challenges multiview_neutral and
        multiview_occlusions, unless `scan_for` says otherwise, because a record's mesh has the picture's
        expression. Seven landmarks of the scan are annotated: 36, 39, 42, 45, 33, 48, 54 of iBUG's; the nose
        tip, 30, is added as the foremost point of the scan within 40 mm of 33, and the others are NaN.
Checked: layout, units, .pp files and their order against the benchmark's own code and public readers; not
        against the set itself.
"""

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord, Mesh
from facelab.photos import load_photo

from .common import place, read_scan, records, require, scan_mesh, text_lines

PAGE = "https://now.is.tue.mpg.de"
ANNOTATED = (36, 39, 42, 45, 33, 48, 54)  # corners of the eyes, under the nose, corners of the mouth
NOSE_MM = 40.0


def read_picked_points(path: Path) -> np.ndarray:
    """(7, 3) points of MeshLab's .pp."""
    tags = re.findall(r"<point\b[^>]*>", "\n".join(text_lines(path)))
    values = [[re.search(rf'\b{axis}="([^"]+)"', tag) for axis in "xyz"] for tag in tags]
    whole = len(tags) == len(ANNOTATED) and all(all(row) for row in values)
    require(whole, f"'{path}' holds {len(tags)} picked points instead of {len(ANNOTATED)}: unpack it again.")
    return np.array([[float(value[1]) for value in row if value] for row in values])


def scan(root: Path, person: str) -> Mesh:
    """The neutral scan of a person, with its known landmarks."""
    path = place(root / "scans" / person, ("*.obj",), PAGE)
    picked = place(root / "scans_lmks_onlypp" / person, ("*.pp",), PAGE)
    points = dict(zip(ANNOTATED, read_picked_points(picked)))
    vertices = read_scan(path, 1.0)[0].numpy()
    near = vertices[np.linalg.norm(vertices - points[33], axis=1) < NOSE_MM]
    require(len(near), f"The landmarks of '{path}' are not on it: unpack scans and landmarks again.")
    return scan_mesh(path, points | {30: near[near[:, 2].argmax()]}, 1.0)


def read(
    folder: str | Path, scan_for: Collection[str] = ("multiview_neutral", "multiview_occlusions")
) -> Records:
    """The validation pictures. `scan_for`: challenges whose records get the neutral scan. DatasetError."""
    levels = ("", "*/", "*/*/")
    images = place(folder, [f"{level}iphone_pictures" for level in levels], PAGE)
    root = place(folder, [f"{level}scans" for level in levels], PAGE).parent
    listed = text_lines(place(folder, [f"{level}imagepathsvalidation.txt" for level in levels], PAGE))
    pictures = [images.joinpath(*line.split("/")[-3:]) for line in listed]
    missing = [path for path in pictures if not path.is_file()]
    require(not missing, f"{len(missing)} listed pictures are missing, such as {missing[:1]}: unpack again.")

    def make(path: Path) -> FaceRecord:
        person, challenge = path.parts[-3:-1]
        mesh = scan(root, person) if challenge in scan_for else None
        name = f"{person}/{challenge}/{path.stem}"
        return FaceRecord(name, load_photo(path), mesh=mesh, person=person, groups={"challenge": challenge})

    return records(pictures, make, images, "listed picture")
