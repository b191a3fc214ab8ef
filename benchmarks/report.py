"""What every result file states about the run that made it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from typing import Any

import torch


def describe_run(seed: int) -> dict[str, Any]:
    """Hardware, versions, seed, commit and date of this run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    processor = platform.machine()
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"CPU {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    return {
        "hardware": hardware,
        "torch": torch.__version__,
        "seed": seed,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }
