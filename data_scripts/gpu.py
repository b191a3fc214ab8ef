"""What `make gpu` runs on an NVIDIA card: it checks, measures and trains, in stages, in order of worth.

    python data_scripts/gpu.py --minutes 12                       all stages that are not done yet
    python data_scripts/gpu.py --stage tests render               these
    python data_scripts/gpu.py --device cpu --minutes 2           all of them in miniature
    python data_scripts/gpu.py --stage rows                       with weights that came from elsewhere

What is worth keeping goes into --out (runs/gpu), in files under 16 MB; weights are cut for that, and put
together again by the stage that needs them. Pictures and states of trainings stay in --work. A stage that is
done is not run again; one that was stopped goes on. Trainings are as long as the minutes allow: their steps
are set when they begin, from the measured pace. A stage that needs a package that is not here is left out and
says so; docs/gpu.md tells how to bring along what a machine lacks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT / "runs" / "gpu_kit"
RECOGNITION = KIT / "recognition.safetensors"
PIECE = 15 << 20  # bytes of a piece of a file
MINIATURE = 60.0  # minutes before a miniature, which takes two or three, is cut short on a slow machine
CHECKPOINTS = {
    "inversefacenet": "unbred",
    "mofa": "mofa",
    "mofa_photos": "mofa",
}  # name of the weights: of the script's file


@dataclass(frozen=True)
class Training:
    """What `benchmarks/training.py` measures the pace of, and when a training is long enough."""

    method: str
    network: str
    side: int
    batch: int
    most: int
    """steps"""


@dataclass(frozen=True)
class Stage:
    """Commands of this Python, on a GPU and in miniature on a CPU.

    {device}, {out}, {work}, {steps} are filled in.
    """

    name: str
    command: str
    small: str
    needs: tuple[str, ...] = ()
    training: Training | None = None
    small_training: Training | None = None
    everywhere: bool = False
    """as many processes as processors, which share the work"""
    weights: tuple[str, ...] = ()
    """the checkpoints that it reads from {work}/weights"""
    brought: str = ""
    """a file in {work} that makes `needs` unnecessary, or is itself needed if there are none; taken from the
    kit (gpu_kit.py) if it is there"""


IFN = "data_scripts/train_inversefacenet.py --row unbred --pictures {work}/ifn_pictures --preset "
MOFA = "data_scripts/train_mofa.py {work}/mofa_corpus {work}/mofa --device {device} --steps {steps} --preset "
PHOTOS = (
    "data_scripts/train_mofa.py {work}/mofa_corpus {work}/mofa_photos --rate 2e-4 "
    "--photos {work}/photographs.safetensors --start {work}/weights/mofa.safetensors "
    "--device {device} --steps {steps} --preset "
)
ROWS = "benchmarks/scoreboard.py --write --results {out}/rows --runs {work}/rows --preset gpu --method "
NETWORKS = (
    "'facelab.methods.inversefacenet:InverseFaceNet@{work}/weights/inversefacenet.safetensors"
    "=InverseFaceNet (GPU)' 'facelab.methods.mofa:FramedMoFA@{work}/weights/mofa.safetensors=MoFA (GPU)' "
)
ON_PHOTOS = (
    "'facelab.methods.mofa:FramedMoFA@{work}/weights/mofa_photos.safetensors=MoFA (GPU, photographs)' "
)
STAGES = (
    Stage("tests", "-m pytest -p no:cacheprovider -m cuda tests/test_cuda.py",
          "-m pytest -p no:cacheprovider -m cuda tests/test_cuda.py -k 'corpora or deterministic'"),
    Stage("render", "benchmarks/render_gpu.py --device {device} --out {out}",
          "benchmarks/render_gpu.py --device {device} --out {out} --triangles 500 --batch 1 --repeats 1"),
    Stage("inference", "benchmarks/inference.py --device {device} --out {out}",
          "benchmarks/inference.py --device {device} --out {out} --pictures 1 --fits 0", ("dlib",)),
    Stage("pictures", IFN + "gpu --only corpus", IFN + "tiny --only corpus", everywhere=True),
    Stage("inversefacenet", IFN + "gpu --folder {work}/inversefacenet --device {device} --steps {steps}",
          IFN + "tiny --folder {work}/inversefacenet --device {device} --steps {steps}",
          training=Training("InverseFaceNet", "resnet50", 240, 64, 40_000),
          small_training=Training("InverseFaceNet", "small", 60, 8, 4)),
    Stage("mofa", MOFA + "shipped --kind medium --workers 16", MOFA + "tiny --pictures 64", ("dlib",),
          training=Training("MoFA", "medium", 160, 32, 40_000),
          small_training=Training("MoFA", "small", 120, 16, 4),
          brought="mofa_corpus/detector_errors.safetensors"),
    Stage("mofa_photos", PHOTOS + "shipped --kind medium --workers 16", PHOTOS + "tiny",
          training=Training("MoFA", "medium", 160, 32, 4_000),
          small_training=Training("MoFA", "small", 120, 16, 2),
          weights=("mofa",), brought="photographs.safetensors"),
    Stage("rows", ROWS + NETWORKS, ROWS + NETWORKS + "--limit 1", ("dlib",),
          weights=("inversefacenet", "mofa")),
    Stage("rows_photos", ROWS + ON_PHOTOS, ROWS + ON_PHOTOS + "--limit 1", ("dlib",),
          weights=("mofa_photos",)),
)  # fmt: skip


class Book:
    """OUT/stages.json: what was run, how, and how it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def write(self, name: str, **entry: Any) -> None:
        self.entries[name] = self.entries.get(name, {}) | entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.with_suffix(".tmp").write_text(json.dumps(self.entries, indent=1) + "\n")
        self.path.with_suffix(".tmp").replace(self.path)


# --- files that are copied ----------------------------------------------------------------------------------


def cut(source: Path, target: Path) -> None:
    """Copy a file, in pieces `target`.000, .001, ... if it is larger than PIECE."""
    for old in target.parent.glob(target.name + ".[0-9][0-9][0-9]"):
        old.unlink()
    if source.stat().st_size <= PIECE:
        shutil.copyfile(source, target)
        return
    target.unlink(missing_ok=True)
    with source.open("rb") as file:
        for number, piece in enumerate(iter(lambda: file.read(PIECE), b"")):
            target.with_name(f"{target.name}.{number:03d}").write_bytes(piece)


def whole(source: Path, target: Path) -> bool:
    """Undo `cut`: write `target` from the file `source` or its pieces; False if there are none."""
    pieces = [source] if source.is_file() else sorted(source.parent.glob(source.name + ".[0-9][0-9][0-9]"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if pieces:
        target.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    return bool(pieces)


def keep_weights(name: str, folder: Path, out: Path) -> None:
    """What a training leaves: weights, their card, and curves."""
    stem = CHECKPOINTS[name]
    (out / "weights").mkdir(parents=True, exist_ok=True)
    cut(folder / f"{stem}.safetensors", out / "weights" / f"{name}.safetensors")
    shutil.copyfile(folder / f"{stem}.json", out / "weights" / f"{name}.json")
    for path in [folder / f"{stem}_losses.json", folder / "curves.json"]:
        if path.is_file():
            shutil.copyfile(path, out / "weights" / f"{name}_{path.name}")


def take_weights(names: tuple[str, ...], out: Path, work: Path) -> list[str]:
    """The weights of `names` as one file each in work/weights; those that do not exist."""
    missing = []
    for name in names:
        target = work / "weights" / f"{name}.safetensors"
        if whole(out / "weights" / target.name, target):
            shutil.copyfile(out / "weights" / f"{name}.json", target.with_suffix(".json"))
        else:
            missing.append(name)
    return missing


# --- running ------------------------------------------------------------------------------------------------


def run(commands: list[tuple[list[str], dict[str, str]]], log: Path, seconds: float) -> int | None:
    """Run commands side by side; the first bad exit status, 0, or None if time was up (they are interrupted,
    as by Ctrl-C, so that trainings keep what they saved)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background jobs, and inherited
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("ab") as file:
        processes = [
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=os.environ | extra, stdout=file, stderr=file
            )
            for command, extra in commands
        ]
        try:
            statuses = [process.wait(max(0.0, end - time.monotonic())) for process in processes]
        except subprocess.TimeoutExpired:
            statuses = []
        finally:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    return next((status for status in statuses if status), 0) if statuses else None


def measured_pace(training: Training, device: str, log: Path) -> float:
    """Seconds a step of training takes here, on random pictures."""
    command = f"benchmarks/training.py --device {device} --side {training.side} --batch {training.batch} "
    command += f"--only {training.method} {training.network}"
    words, env = [sys.executable, *shlex.split(command)], environment(device)
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    done.check_returncode()
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def environment(device: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {"FACELAB_RECOGNITION": str(RECOGNITION)} if RECOGNITION.is_file() else {}
    return os.environ | {"PYTHONPATH": path, "FACELAB_DEVICE": device} | found


class Runner:
    """The stages of one call, within its minutes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.book = args, Book(args.out / "stages.json")
        self.end = time.monotonic() + 60 * args.minutes
        self.small = args.device == "cpu"

    def steps(self, stage: Stage, training: Training, trainings_left: int) -> int:
        """Of a training: what was set when it began, or what its share of the minutes allows."""
        entry = self.book.entries.get(stage.name, {})
        if "steps" not in entry:
            log = self.args.out / "logs" / f"{stage.name}_pace.txt"
            pace = measured_pace(training, self.args.device, log)
            # A third more for loading pictures; a fifth of the time for making them and for the start
            seconds = 0.8 * (self.end - time.monotonic()) / trainings_left / (1.33 * pace)
            entry = {"steps": max(2, min(training.most, int(seconds))), "seconds a step": pace}
            self.book.write(stage.name, **entry)
        return int(entry["steps"])

    def bring(self, name: str) -> bool:
        """Whether a file is in --work, perhaps now from the kit."""
        target, source = self.args.work / name, KIT / Path(name).name
        if not target.is_file() and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        return target.is_file()

    def stage(self, stage: Stage, trainings_left: int) -> str:
        """Run one stage; how it ended."""
        args, command = self.args, stage.small if self.small else stage.command
        training = stage.small_training if self.small else stage.training
        lacking = [name for name in stage.needs if importlib.util.find_spec(name) is None]
        if not (stage.brought and self.bring(stage.brought)) and (
            lacking or (stage.brought and not stage.needs)
        ):
            return f"left out: it needs {', '.join(lacking) or f'{Path(stage.brought).name} of the kit'}"
        missing = take_weights(stage.weights, args.out, args.work)
        if missing:
            return f"left out: no weights of {', '.join(missing)} yet"
        places = {"device": args.device, "out": args.out, "work": args.work, "steps": 0}
        if training:
            try:
                places["steps"] = self.steps(stage, training, trainings_left)
            except subprocess.CalledProcessError:
                return f"failed: see {args.out}/logs/{stage.name}_pace.txt"
        words = [word.format(**places) for word in shlex.split(command)]
        entry = self.book.entries.get(stage.name, {})
        if entry.get("state") == "done" and entry.get("command") == words:
            return "done before"
        env, began = environment(args.device), time.monotonic()
        commands = [(words, env)]
        if stage.everywhere and not self.small:
            count = os.cpu_count() or 1
            commands = [(words, env | {"RANK": str(k), "WORLD_SIZE": str(count)}) for k in range(count)]
        status = run(commands, args.out / "logs" / f"{stage.name}.txt", self.end - began)
        state = "stopped: time was up" if status is None else "done" if status == 0 else f"failed ({status})"
        if state == "done" and training:
            keep_weights(stage.name, args.work / stage.name, args.out)
        seconds = round(time.monotonic() - began + entry.get("seconds", 0), 1)
        self.book.write(stage.name, state=state, command=words, seconds=seconds, device=args.device)
        return state

    def all(self, names: list[str]) -> bool:
        """Run the named stages; whether none failed."""
        good = True
        chosen = [stage for stage in STAGES if stage.name in names]
        for number, stage in enumerate(chosen):
            if time.monotonic() > self.end:
                print(f"{stage.name}: not begun, time was up", flush=True)
                continue
            state = self.stage(stage, sum(bool(later.training) for later in chosen[number:]))
            print(f"{stage.name}: {state}", flush=True)
            if state.startswith("failed"):
                good = False
                log = self.args.out / "logs" / f"{stage.name}.txt"
                if log.is_file():
                    print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), flush=True)
        return good


def main() -> None:
    """See the top of the file."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--stage", nargs="+", choices=names, default=names)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a miniature of everything")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--work", type=Path, help="default: beside --out, with _work at its end")
    args = parser.parse_args()
    if args.device == "cpu":
        args.minutes = max(args.minutes, MINIATURE)
    args.out = args.out.resolve()
    args.work = (args.work or args.out.with_name(args.out.name + "_work")).resolve()
    sys.exit(not Runner(args).all(args.stage))


if __name__ == "__main__":
    main()
