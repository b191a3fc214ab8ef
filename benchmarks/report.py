"""What every result file states about the run that made it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


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
