"""2,000 damaged files before every reader, each kind in a process of its own: see `fuzz.py`.

`make fuzz COUNT=20000 SEED=1` tries others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARES = {
    "photos": 480, "face_models": 300, "checkpoints": 220, "corpora": 200, "evaluations": 200,
    "test_sets": 120, "folders": 160, "datasets": 240, "face_files": 80,
}  # fmt: skip
COUNT, SEED = int(os.environ.get("COUNT", 2000)), int(os.environ.get("SEED", 0))


@pytest.mark.parametrize("target", SHARES)
def test_damage_has_a_name(target: str, tmp_path: Path) -> None:
    count = -(-SHARES[target] * COUNT // sum(SHARES.values()))
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), target, "--seed", str(SEED)]
    command += ["--count", str(count), "--folder", str(tmp_path / "files")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{ran.stdout[-300:]}\n{ran.stderr[-3000:]}"
    result = json.loads(ran.stdout.splitlines()[-1])
    assert not result["found"], f"{len(result['found'])} findings:\n" + "\n".join(result["found"][:5])
    assert sum(result["counts"].values()) == count
    assert result["counts"]["named"] > count / 10, "damage is seen"
