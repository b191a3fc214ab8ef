"""device_steps.py in a process of its own: PyTorch counts its devices at the first backward pass."""

import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_name("device_steps.py")


def test_no_step_of_a_training_waits_for_its_device() -> None:
    """Every test of `device_steps.py` passes, and there are some."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=FILE.parents[1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]  # 5 if there were none
