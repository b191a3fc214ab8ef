"""300W-LP: 61,225 pictures of 300-W's faces turned to large poses by warping, and as many mirrored, 450×450.

Where:  http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm (300W-LP).
Terms:  those of 300-W (https://ibug.doc.ic.ac.uk/resources/300-W/: non-commercial research) hold for its
        pictures. Paper: Zhu et al., Face Alignment Across Large Poses: A 3D Solution, CVPR 2016.
Folder: 300W_LP/AFW/NAME.jpg and NAME.mat (Pose_Para (1, 7), Shape_Para (199, 1), Exp_Para (29, 1) of the
        Basel Face Model 2009 with FaceWarehouse's expressions ...), HELEN, IBUG, LFPW, the mirrored AFW_Flip
        ... (left out here), and landmarks/AFW/NAME_pts.mat (pts_2d and pts_3d, each (68, 2)).
Truth:  landmarks: pts_2d, whose jaw lies on the visible contour (pts_3d are projected points of the model).
        Pose: 3DDFA's Matlab code projects f R X + t with R = Rx(-pitch) Ry(-yaw) Rz(-roll), y up, and then
        y = height + 1 - y, in pixels counted from 1; X in micrometres of the Basel model's own space. That is
        `camera`: its rotation can be compared with any model's whose mean face looks along +z; scale and
        offset hold for the Basel model only. Shape_Para and Exp_Para stay in the file.
        A name without its last number is one photograph, so one person.
Checked: layout, keys and shapes against public readers, the projection against 3DDFA's; not against the set
        itself. That pts_2d count from 1 as all else there is assumed.
"""

from pathlib import Path

import numpy as np
import torch

from facelab.evaluation.test_sets import Records
from facelab.geometry.camera import WeakPerspectiveCamera
from facelab.geometry.rotations import euler_to_matrix
from facelab.model.records import FaceRecord
from facelab.photos import load_photo

from .common import MATLAB_TO_OURS, landmarks_68, place, read_mat, records

PAGE = "http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm"
SETS = ("AFW", "HELEN", "IBUG", "LFPW")
UM_PER_MM = 1000.0


def pose_camera(pose: np.ndarray, height: int) -> WeakPerspectiveCamera:
    """3DDFA's Pose_Para: pitch, yaw, roll, t_x, t_y, t_z, f, for a picture of this height, as our camera."""
    values = torch.as_tensor(pose, dtype=torch.float32).reshape(7)
    x, y = values[3] + MATLAB_TO_OURS, height + 1 - values[4] + MATLAB_TO_OURS
    return WeakPerspectiveCamera(euler_to_matrix(values[:3]).mT, UM_PER_MM * values[6], torch.stack([x, y]))


def yaw_range(pose: np.ndarray) -> str:
    """The groups in which these sets are reported."""
    yaw = abs(np.degrees(np.asarray(pose).reshape(7)[1]))
    return "0-30" if yaw < 30 else "30-60" if yaw < 60 else "60-90"


def read(folder: str | Path) -> Records:
    """The pictures of the four sets without the mirrored ones. Raises DatasetError."""
    root = place(folder, ("landmarks", "300W_LP/landmarks"), PAGE).parent
    pictures = [path for name in SETS for path in sorted((root / name).glob("*.jpg"))]

    def make(path: Path) -> FaceRecord:
        image, name = load_photo(path), path.parent.name
        pose = read_mat(path.with_suffix(".mat"), Pose_Para=(1, 7))["Pose_Para"]
        points = root / "landmarks" / name / f"{path.stem}_pts.mat"
        return FaceRecord(
            path.name,
            image,
            landmarks_68(read_mat(points, pts_2d=(68, 2))["pts_2d"], points),
            camera=pose_camera(pose, image.shape[1]),
            person=path.stem.rpartition("_")[0],
            groups={"yaw": yaw_range(pose), "set": name},
        )

    return records(pictures, make, root, f"{'/*.jpg or '.join(SETS)}/*.jpg")
