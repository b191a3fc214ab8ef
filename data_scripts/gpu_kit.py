"""Packs what a GPU machine without package registry lacks into runs/gpu_kit (`make gpu-kit`).

    python data_scripts/gpu_kit.py [--folder runs/gpu_kit]
    FACELAB_PHOTOS=my_pictures python data_scripts/gpu_kit.py

For a machine that has torch, triton, lightning, numba, scikit-image and safetensors, and neither roma nor
dlib: the locked wheel of roma, which is imported as it is; `lightning_fabric`, which is a part of lightning;
the errors of a landmark detector, so that MoFA's training needs none; as far as there is room, dlib's
recognition network as 16-bit floats, and, if FACELAB_PHOTOS names a folder of photographs, their faces as one
file, which nobody else should get. What still needs dlib there (stages `inference`, `rows`) is left out, and
`rows` can be made from the results elsewhere.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from train_mofa import detector_errors

from facelab.photos.crops import SCALE, SIDE, UP
from facelab.photos.packed import pack_photos
from facelab.recognition.networks import DLIB_NETWORK
from facelab.recognition.weights import parse_face_network, save_halves
from facelab.support.errors import ModelFileError
from facelab.support.third_party import dlib_file

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ("roma",)
SHIM = '"""lightning_fabric by another name, as the package lightning has it."""\n\n' + (
    'from lightning.fabric import Fabric\n\n__all__ = ["Fabric"]\n'
)
ALLOWED = 64 << 20  # bytes that such a machine may take, tracked files included
RESERVE = 256 << 10  # of them, for names and the like
RECOGNITION, PHOTOGRAPHS = "recognition.safetensors", "photographs.safetensors"


def lock_entry(package: str) -> str:
    """The lines of requirements.lock that pin a package, its hashes included."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    return next(entry for entry in entries if re.match(rf"{re.escape(package)}==", entry))


def download(package: str, folder: Path) -> Path:
    """The locked wheel of a package of pure Python, its hash checked by pip."""
    with tempfile.TemporaryDirectory() as place:
        pin = Path(place, "pin.lock")
        pin.write_text(lock_entry(package) + "\n")
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-r", str(pin)], check=True)
    (wheel,) = folder.glob(f"{package}-*-none-any.whl")
    return wheel


def pack(folder: Path) -> list[Path]:
    """Fill the folder; what goes on PYTHONPATH."""
    (folder / "lightning_fabric").mkdir(parents=True, exist_ok=True)
    (folder / "lightning_fabric" / "__init__.py").write_text(SHIM)
    errors = folder / "detector_errors.safetensors"
    if not errors.is_file():
        with tempfile.TemporaryDirectory() as place:
            detector_errors(Path(place, "errors.safetensors"))
            measured = load_file(Path(place, "errors.safetensors"))["errors"]
        save_file({"errors": measured.float()}, errors)
    wheels = [download(package, folder) for package in WHEELS]
    return [folder, *wheels]


def add_recognition(folder: Path, room: int) -> str:
    """Pack the recognition network, if it is here and `room` bytes are enough; what was done, in words."""
    path = folder / RECOGNITION
    try:
        save_halves(path, *parse_face_network(Path(dlib_file(DLIB_NETWORK)).read_bytes()))
    except ModelFileError as error:
        return f"no recognition network: {error}"
    size = path.stat().st_size
    if size > room:
        path.unlink()
        return f"no recognition network: {size / 2**20:.1f} MiB, and there is room for {room / 2**20:.1f}"
    return f"a recognition network, {size / 2**20:.1f} MiB"


def add_photographs(folder: Path, room: int) -> str:
    """Pack the photographs of FACELAB_PHOTOS in at most `room` bytes; what was done, in words."""
    source = os.environ.get("FACELAB_PHOTOS")
    if not source:
        return "no photographs: FACELAB_PHOTOS names no folder"
    count = pack_photos(source, folder / PHOTOGRAPHS, SIDE, room, scale=SCALE, up=UP)
    return f"{count} photographs of '{source}'"


def kit_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tracked_bytes() -> int:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    paths = (ROOT / name.decode() for name in listed.split(b"\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpu_kit")
    folder = parser.parse_args().folder.resolve()
    paths = [path.relative_to(ROOT) if path.is_relative_to(ROOT) else path for path in pack(folder)]
    for name, add in ((RECOGNITION, add_recognition), (PHOTOGRAPHS, add_photographs)):
        (folder / name).unlink(missing_ok=True)
        print(add(folder, ALLOWED - RESERVE - kit_bytes(folder) - tracked_bytes()))
    kit = kit_bytes(folder)
    total = kit + tracked_bytes()
    of = f"{total / 2**20:.2f} of {ALLOWED >> 20} MiB"
    print(f"{folder}: {kit / 2**20:.2f} MiB; with the tracked files {of}")
    if total > ALLOWED:
        sys.exit(f"That is {(total - ALLOWED) / 2**20:.2f} MiB too much: leave large tracked files at home.")
    where = ":".join(map(str, paths))
    print("Copy the tracked files and this folder there; then, in the copy, and again to go on:")
    print(f"    PYTHONPATH={where} python3 data_scripts/gpu.py --minutes 9 --out RESULTS")


if __name__ == "__main__":
    main()
