"""MICC Florence 2D/3D faces: scans of 53 people and videos of them in three settings.

Where:  https://www.micc.unifi.it/resources/datasets/florence-3d-faces/ (by a signed agreement).
Terms:  non-commercial research, no passing on. Paper: Bagdanov et al., The Florence 2D/3D Hybrid Face
        Dataset, J-HGBU 2011.
Folder: subject_01/Model/frontal1/obj/NUMBER.obj (also frontal2, sidel, sider; vrml) and
        subject_01/Video/Indoor-Cooperative.mjpg, PTZ-Indoor.mjpeg, PTZ-Outdoor.mjpeg (or .mjpg, .mpg). Frames
        are pictures that you write first into folders with the videos' names, Indoor-Cooperative/000001.png
        ... (`ffmpeg -i VIDEO -start_number 1 FOLDER/%06d.png`); a setting without a video is left out.
        If there, landmarks in MICC_landmarks/subject_01/Model/frontal1/obj/*.ljson (68 points, as published
        with GANFIT's benchmark, https://github.com/barisgecer), in the scan's own coordinates.
Truth:  the scan frontal1 as mesh for each frame of its person: a neutral face, whatever the frame's
        expression, as the protocols of GANFIT (Gecer et al. 2019, Sec. 4.3) and Deng et al. 2022 have it.
        Without the landmark files the nose tip is unknown, and so the region that those protocols compare.
        Who it is.
Checked: layout and names against public readers; not against the set itself. The unit is found as
        FaceWarehouse's is; that scans look along +z with y up is assumed.
"""

import json
from pathlib import Path

import numpy as np

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord
from facelab.photos import load_photo
from facelab.support.errors import DatasetError

from .common import frames, place, records, require, scan_mesh

PAGE = "https://www.micc.unifi.it/resources/datasets/florence-3d-faces/"
VIDEOS = ("Indoor-Cooperative", "PTZ-Indoor", "PTZ-Outdoor")


def read_ljson(path: Path) -> np.ndarray:
    """(68, 3) points of menpo's .ljson, versions 2 and 3."""
    try:
        content = json.loads(path.read_text())
        group = next(iter(content["groups"].values())) if "groups" in content else content
        points = np.array(group["landmarks"]["points"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DatasetError(f"'{path}' is not an .ljson file of points: get it again.") from error
    require(points.shape == (68, 3), f"'{path}' holds points of shape {points.shape} instead of (68, 3).")
    return points


def read(folder: str | Path) -> Records:
    """Every frame of every video, with its person's scan. Raises DatasetError."""
    root = place(folder, ("subject_*/Model", "*/subject_*/Model"), PAGE).parents[1]
    keys: list[tuple[str, str, Path, Path]] = []
    for subject in sorted(path.parent for path in root.glob("subject_*/Model")):
        scan = place(subject, ("Model/frontal1/obj/*.obj",), PAGE)
        videos = [path for path in sorted(subject.glob("Video*/*.m*g")) if path.stem in VIDEOS]
        require(videos, f"'{subject}' has no Video/{VIDEOS[0]}.mjpg or other video: unpack it from {PAGE}.")
        for video in videos:
            keys += [(subject.name, video.stem, scan, picture) for picture in frames(video).values()]

    def make(key: tuple[str, str, Path, Path]) -> FaceRecord:
        person, setting, scan, picture = key
        files = sorted((root / "MICC_landmarks" / scan.parent.relative_to(root)).glob("*.ljson"))
        points = dict(enumerate(read_ljson(files[0]))) if files else {}
        name = f"{person}/{setting}/{picture.stem}"
        mesh = scan_mesh(scan, points)
        return FaceRecord(name, load_photo(picture), mesh=mesh, person=person, groups={"setting": setting})

    return records(keys, make, root, "frame")
