"""What a notebook's numbers may claim: they are measured over seeds, instruction sets and threads.

    python benchmarks/margins.py run --folder runs/margins [--seeds 5] [40 50]    hours; resumable
    python benchmarks/margins.py table --folder runs/margins [--write]            the table, and the margins

A training of some seconds is chaotic: rounding differs between processors, and after a hundred steps the
weights do too. So a test may hold such a number only against a control of the same run. `run` executes every
notebook at PRESET=tiny under PyTorch's instruction sets that this processor has (ATEN_CPU_CAPABILITY), with
one thread and with two. `table` compares the runs with `tests/notebook_claims.json`:

- `less` [a, b, ratio]: a < ratio · b; b may be a number. The ratio is set half-way between the worst run
  and 1; a claim that is not true in every run is refused.
- `within` {name: [low, high]}: closed forms, single renders and counts. Refused where the instruction sets
  differ by more than a fifth of the band's width, or where a run with the default seed lies outside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from facelab.support.files import as_json, write_whole

from report import describe_run

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "tests" / "notebook_claims.json"
RESULTS = ROOT / "benchmarks" / "results"
SETS = {"DEFAULT": ("default",), "AVX2": ("default", "avx2"), "AVX512": ("default", "avx2", "avx512")}
Run = dict[str, float]


def instruction_sets() -> tuple[str, ...]:
    """Those that can be asked for on this processor."""
    return SETS.get(torch.backends.cpu.get_cpu_capability(), ("default",))


def execute(name: str, seed: int, instructions: str, threads: int, folder: Path) -> None:
    """One notebook once; its numbers go to `folder`/NAME__sSEED_SET_tTHREADS.json."""
    target = folder / f"{name}__s{seed}_{instructions}_t{threads}.json"
    if target.is_file():
        return
    out = folder / "out"
    parameters = {"PRESET": "tiny", "OUT_DIR": str(out), "SEED": str(seed)}
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(ROOT / "notebooks")]
    command += [str(ROOT / "notebooks" / f"{name}.ipynb"), str(folder / "executed.ipynb")]
    for key, value in parameters.items():
        command += ["-p", key, value]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": instructions, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, check=True)
    write_whole({target: (out / "numbers.json").read_text()})


def read_runs(folder: Path) -> dict[str, dict[tuple[int, str, int], Run]]:
    """Notebook -> (seed, instruction set, threads) -> its numbers."""
    runs: dict[str, dict[tuple[int, str, int], Run]] = defaultdict(dict)
    for path in sorted(folder.glob("*__s*_*_t*.json")):
        name, settings = path.stem.split("__s")
        seed, instructions, threads = settings.split("_")
        runs[name][int(seed), instructions, int(threads[1:])] = json.loads(path.read_text())
    return runs


def spread(runs: dict[tuple[int, str, int], Run], key: str) -> float:
    """The largest difference that instruction sets and threads make for one seed."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for (seed, _, _), numbers in runs.items():
        by_seed[seed].append(numbers[key])
    return max(max(values) - min(values) for values in by_seed.values())


def value(numbers: Run, term: str | float) -> float:
    return float(numbers[term]) if isinstance(term, str) else float(term)


def judge(
    claims: dict[str, dict[str, Any]], runs: dict[str, dict[tuple[int, str, int], Run]]
) -> Iterator[tuple[str, str, str, str, bool]]:
    """Rows (notebook, claim, its values, spread of one seed, holds); `less` gets its ratio."""
    for name, claim in claims.items():
        if not (had := runs.get(name)):
            yield name, "not run", "", "", False
            continue
        for entry in claim["less"]:
            ratios = [value(numbers, entry[0]) / value(numbers, entry[1]) for numbers in had.values()]
            entry[2] = math.ceil(100 * (1 + max(ratios)) / 2) / 100
            text = f"{entry[0]} < {entry[2]} · {entry[1]}"
            yield name, text, f"{min(ratios):.3f} to {max(ratios):.3f}", "", entry[2] < 1
        for key, (low, high) in claim["within"].items():
            usual, moved = [n[key] for (seed, _, _), n in had.items() if seed == 0], spread(had, key)
            inside = low <= min(usual) and max(usual) <= high
            still = moved <= 0.2 * (high - low) or low == high
            text = f"{low} ≤ {key} ≤ {high}"
            yield name, text, f"{min(usual):.4g} to {max(usual):.4g}", f"{moved:.1g}", inside and still


def written(claims: dict[str, dict[str, Any]]) -> str:
    """The claims as JSON, one a line."""
    parts = []
    for name, claim in claims.items():
        less = ",\n".join(f"   {json.dumps(entry)}" for entry in claim["less"])
        within = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in claim["within"].items())
        parts.append(f' "{name}": {{\n  "less": [\n{less}\n  ],\n  "within": {{\n{within}\n  }}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table(folder: Path, write: bool) -> int:
    """Print, and with `write` keep, what the runs say of the claims; the number of claims that fail."""
    runs, claims = read_runs(folder), json.loads(CLAIMS.read_text())
    rows = list(judge(claims, runs))
    settings = {name: sorted(had) for name, had in runs.items()}
    lines = ["# What the notebooks' numbers may claim", ""]
    lines += ["Made by `benchmarks/margins.py`; what the columns mean is said there.", ""]
    for name, had in settings.items():
        seeds, threads = sorted({key[0] for key in had}), sorted({key[2] for key in had})
        sets = ", ".join(sorted({key[1] for key in had}))
        lines.append(f"- {name}: {len(had)} runs, seeds {seeds}, {sets}, threads {threads}")
    lines += ["", "| notebook | claim | over all runs | spread of one seed |", "|---|---|---|---|"]
    lines += [f"| {name[:2]} | {text} | {values} | {moved} |" for name, text, values, moved, _ in rows]
    failed = [row for row in rows if not row[4]]
    print("\n".join(lines))
    for row in failed:
        print("DOES NOT HOLD:", *row[:4], file=sys.stderr)
    if write and not failed:
        record = describe_run(0) | {"runs": {n: [list(k) for k in s] for n, s in settings.items()}}
        record["rows"] = [list(row[:4]) for row in rows]
        write_whole(
            {
                CLAIMS: written(claims),
                RESULTS / "margins.md": "\n".join(lines) + "\n",
                RESULTS / "margins.json": as_json(record),
            }
        )
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("notebooks", nargs="*", help="numbers; default: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/margins"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "table":
        return min(table(arguments.folder, arguments.write), 1)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = tuple(arguments.notebooks or "0123456789")
    names = [name for name in json.loads(CLAIMS.read_text()) if name.startswith(wanted)]
    for seed in range(arguments.seeds):  # outermost, so that a part of the table is a table
        for name in names:
            for instructions in instruction_sets():
                for threads in arguments.threads:
                    execute(name, seed, instructions, threads, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
