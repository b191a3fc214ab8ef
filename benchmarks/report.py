"""What every result file states about the run that made it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from facelab.model.morphable_model import DEFAULT_MODEL
from facelab.photos.folders import sha256_of


def commit() -> str:
    """The repository's commit, short; "unknown" where there is no repository, or no git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_run(seed: int) -> dict[str, Any]:
    """Hardware, versions, seed, commit and date of this run."""
    processor = platform.machine()
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"CPU {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    return {
        "hardware": hardware,
        "torch": torch.__version__,
        "seed": seed,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def compared_models(model: Path | None, before: Path | None) -> tuple[dict[str, Path], dict[str, str]]:
    """Files of the face models "model" (default: the shipped one) and, where there is one, "before"; and the
    first digits of their SHA-256."""
    files = {"model": model or DEFAULT_MODEL} | ({"before": before} if before else {})
    return files, {name: sha256_of(file)[:12] for name, file in files.items()}
