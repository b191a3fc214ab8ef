"""AFLW2000-3D: the first 2,000 faces of AFLW with a fitted Basel Face Model, 450×450 pixels.

Where:  http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm (AFLW2000-3D).
Terms:  those of AFLW (https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/aflw):
        non-commercial research, no passing on. Paper: Zhu et al., Face Alignment Across Large Poses: A 3D
        Solution, CVPR 2016.
Folder: AFLW2000/image00002.jpg and .mat (pt3d_68 (3, 68), Pose_Para (1, 7), pt2d (2, 21) ...).
Truth:  landmarks are x, y of pt3d_68, projected points of the fitted model: except in frontal views their jaw
        is *not* on the visible contour, and hidden points are guesses; compare points 17 to 67 alone. Some of
        the fits are poor; others have published better landmarks. Pose as in 300W-LP; about 30 faces are
        turned by more than 99 degrees, which papers on pose leave out.
Checked: layout, keys and shapes against public readers; not against the set itself. That pt3d_68 counts
        from 1 is assumed.
"""

from pathlib import Path

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord
from facelab.photos import load_photo

from .common import by_number, landmarks_68, place, read_mat, records
from .w300lp import PAGE, pose_camera, yaw_range


def read(folder: str | Path) -> Records:
    """All pictures. Raises DatasetError."""
    root = place(folder, ("image*.jpg", "AFLW2000/image*.jpg"), PAGE).parent

    def make(path: Path) -> FaceRecord:
        image, file = load_photo(path), path.with_suffix(".mat")
        truth = read_mat(file, pt3d_68=(3, 68), Pose_Para=(1, 7))
        return FaceRecord(
            path.name,
            image,
            landmarks_68(truth["pt3d_68"][:2].T, file),
            camera=pose_camera(truth["Pose_Para"], image.shape[1]),
            groups={"yaw": yaw_range(truth["Pose_Para"])},
        )

    return records(by_number(list(root.glob("image*.jpg"))), make, root, "image*.jpg")
