"""FaceWarehouse: 150 people in 20 expressions each, a Kinect's picture (640×480) and a fitted mesh.

Where:  http://kunzhou.net/zjugaps/facewarehouse/ (by a signed agreement sent by e-mail).
Terms:  non-commercial research, no passing on. Paper: Cao et al., FaceWarehouse: A 3D Facial Expression
        Database for Visual Computing, TVCG 2014.
Folder: Tester_1/TrainingPose/pose_0.png and pose_0.obj (11,510 vertices, quads; taken as neutral) to pose_19,
        up to Tester_150. Not read: pose_0.land (74 points that are not iBUG's) and Blendshape/shape.bs.
Truth:  mesh (all in correspondence) with its expression, who it is. No camera is given with it, and no
        landmarks: the nose tip of the mesh is not known either.
Checked: layout and OBJ format against public readers; not against the set itself. The unit is not documented:
        it is taken as the power of ten that makes a head 90 to 900 mm high, and that x, y, z are the image's
        right, up, and out of the face is assumed.
"""

from pathlib import Path

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord
from facelab.photos import load_photo

from .common import by_number, place, records, require, scan_mesh

PAGE = "http://kunzhou.net/zjugaps/facewarehouse/"


def read(folder: str | Path) -> Records:
    """Every expression of every person. Raises DatasetError."""
    root = place(folder, ("Tester_*/TrainingPose", "*/Tester_*/TrainingPose"), PAGE).parents[1]
    pictures = by_number(list(root.glob("Tester_*/TrainingPose/pose_*.png")))
    for path in pictures:
        require(path.with_suffix(".obj").is_file(), f"There is no mesh beside '{path}': unpack it again.")

    def make(path: Path) -> FaceRecord:
        person = path.parents[1].name
        mesh = scan_mesh(path.with_suffix(".obj"), {}, topology="facewarehouse")
        groups = {"expression": "neutral" if path.stem == "pose_0" else path.stem}
        return FaceRecord(f"{person}/{path.stem}", load_photo(path), mesh=mesh, person=person, groups=groups)

    return records(pictures, make, root, "Tester_*/TrainingPose/pose_*.png")
