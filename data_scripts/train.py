"""Train one of the networks, from nothing to a checkpoint with its card; run again to go on.

    python data_scripts/train.py                        # which there are
    python data_scripts/train.py mofa --help            # what one can be told
    python data_scripts/train.py coarsenet runs/coarsenet --preset cpu
    torchrun --nproc-per-node 4 data_scripts/train.py coarsenet runs/coarsenet --preset full

Each network's recipe is the script train_NAME.py beside this one; docs/training.md says what they need.
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def networks() -> dict[str, str]:
    """Name of each network, and the first line of its script."""
    scripts = sorted(HERE.glob("train_*.py"))
    return {s.stem.removeprefix("train_"): s.read_text().split('"""')[1].split("\n")[0] for s in scripts}


def main() -> None:
    """See the top of the file."""
    known = networks()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        print("\n".join(f"    {name:<16} {line}" for name, line in known.items()))
        return
    name = sys.argv.pop(1)
    if name not in known:
        raise SystemExit(f"There is no network {name!r} to train: choose from {', '.join(known)}.")
    sys.argv[0] = str(HERE / f"train_{name}.py")
    sys.path.insert(0, str(HERE))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
