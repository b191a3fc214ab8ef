"""300-VW: 114 videos of one face each, 68 landmarks in every frame, in three categories of difficulty.

Where:  https://ibug.doc.ic.ac.uk/resources/300-VW/ (on request).
Terms:  non-commercial research, no passing on (iBUG, Imperial College London). Paper: Shen et al., The First
        Facial Landmark Tracking in-the-Wild Challenge, ICCVW 2015.
Folder: 300VW_Dataset_2015_12_14/001/vid.avi and 001/annot/000001.pts, one per frame, from 1.
        Frames are pictures that you write first, 001/vid/000001.png ...:
        for v in */vid.avi; do mkdir ${v%.avi}; ffmpeg -i $v -start_number 1 ${v%.avi}/%06d.png; done
Truth:  landmarks; each clip counts as one person. Categories 1 to 3 (from well-lit to arbitrary) are those of
        the challenge's test clips; the other clips are for training.
Checked: layout, numbering and categories against public readers; that .pts counts from 1 is iBUG's own
        statement; not against the set itself.
"""

from pathlib import Path

from facelab.evaluation.test_sets import Records
from facelab.model.records import FaceRecord
from facelab.photos import load_photo

from .common import frames, place, read_pts, records, require

PAGE = "https://ibug.doc.ic.ac.uk/resources/300-VW/"
CATEGORIES = {
    "1": "114 124 125 126 150 158 401 402 505 506 507 508 509 510 511 514 515 518 519 520 521 522 524 525 "
    "537 538 540 541 546 547 548",
    "2": "203 208 211 212 213 214 218 224 403 404 405 406 407 408 409 412 550 551 553",
    "3": "410 411 516 517 526 528 529 530 531 533 557 558 559 562",
}
CATEGORY = {clip: name for name, clips in CATEGORIES.items() for clip in clips.split()}


def read(folder: str | Path) -> Records:
    """Every annotated frame of every clip. Raises DatasetError, with a command if frames are missing."""
    root = place(folder, ("*/annot", "*/*/annot"), PAGE).parents[1]
    pairs = []
    for clip in sorted({path.parent for name in ("annot", "vid.avi") for path in root.glob(f"*/{name}")}):
        points = sorted(path for path in (clip / "annot").glob("*.pts") if path.stem.isdigit())
        require(points, f"'{clip}/annot' has no .pts files: unpack the clip again from {PAGE}.")
        pictures = frames(clip / "vid.avi")
        missing = [path for path in points if int(path.stem) not in pictures]
        require(not missing, f"'{clip}/vid' has no frame for {missing[:1]}: write all frames of the video.")
        pairs += [(pictures[int(path.stem)], path) for path in points]

    def make(pair: tuple[Path, Path]) -> FaceRecord:
        picture, points = pair
        clip = points.parents[1].name
        groups = {"category": CATEGORY.get(clip, "training"), "clip": clip}
        name = f"{clip}/{points.stem}"
        return FaceRecord(name, load_photo(picture), read_pts(points), person=f"clip {clip}", groups=groups)

    return records(pairs, make, root, "annotated clip")
