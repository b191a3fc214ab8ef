"""Look into a downloaded set of faces, and write it as the folder of pictures that facelab measures on.

    python data_scripts/read_dataset.py aflw2000 downloads/AFLW2000-3D
    python data_scripts/read_dataset.py aflw2000 downloads/AFLW2000-3D --limit 200 --export aflw2000_200
    FACELAB_PHOTOS=aflw2000_200 ...        # or load_test_set("photos", folder="aflw2000_200")

Says where the set is from and under which terms, how many records it has and which truth the first ones have.
--export writes their pictures as PNG and, where there are landmarks, landmarks68.npz. The pictures stay under
the terms of the set. Nothing is downloaded.
"""

import argparse
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
from datasets import READERS
from PIL import Image
from tqdm import tqdm

from facelab.evaluation.photo_truth import LANDMARK_FILE
from facelab.model.records import FaceRecord
from facelab.support.errors import FacelabError
from facelab.support.files import replacing

SAMPLE = 20  # records that are looked at unless --limit or --export says otherwise


def export(record: FaceRecord, folder: Path) -> str:
    """Write the picture; returns its file name."""
    name = record.name.replace("/", "_").rsplit(".", 1)[0] + ".png"
    pixels = (record.image.permute(1, 2, 0) * 255).round().byte().numpy()
    with replacing(folder / name) as (new,):
        Image.fromarray(pixels).save(new, "PNG")
    return name


def summarise(name: str, folder: str, limit: int | None, target: Path | None) -> int:
    """Print what there is, export if asked to; returns how many records could not be read."""
    records = READERS[name](folder)
    print(sys.modules[READERS[name].__module__].__doc__)
    chosen = records[: limit or (len(records) if target else SAMPLE)]
    truth: Counter[str] = Counter()
    failures, known = [], {}
    if target:
        target.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(len(chosen)), desc=name, disable=None):
        try:
            record = chosen[index]
        except FacelabError as error:
            failures.append(f"{type(error).__name__}: {error}")
            continue
        truth.update(f.name for f in fields(record) if getattr(record, f.name) is not None)
        truth.update(f"group {key} = {value}" for key, value in record.groups.items())
        if target:
            file = export(record, target)
            if record.landmarks is not None:
                known[file] = record.landmarks.numpy()
    if target and known:
        names, points = np.array(list(known)), np.stack(list(known.values()))
        with replacing(target / LANDMARK_FILE) as (new,), new.open("wb") as stream:
            np.savez(stream, names=names, landmarks=points)
    print(f"{len(records)} records. Of {len(chosen)} looked at, {len(failures)} cannot be read; there are:")
    print("\n".join(f"{count:8d}  {what}" for what, count in truth.items() if what not in ("name", "groups")))
    print("\n".join(failures[:SAMPLE]))
    return len(failures)


def main() -> None:
    """The command line; the exit status is 1 if anything could not be read."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("name", choices=READERS)
    parser.add_argument("folder", help="the folder into which the set was unpacked")
    parser.add_argument("--limit", type=int, help="look at this many records")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write pictures and landmarks there")
    arguments = parser.parse_args()
    try:
        failed = summarise(arguments.name, arguments.folder, arguments.limit, arguments.export)
    except FacelabError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
