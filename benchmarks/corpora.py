"""Images per second and CPU time per image of rendering synthetic corpora, end to end to disk.

    python benchmarks/corpora.py [--count 2048] [--workers 2] [--device cpu] [--photos FOLDER]

Everything counts: drawing parameters, the model, rendering, backgrounds, occluders, degradations, SHA-256 and
writing the shards, also the start of the workers. CPU time is that of all processes together, so it says what
a machine could do on which nothing else runs: cores * 1000 / (ms of CPU per image).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from facelab.synthetic.augmentation import Degradations
from facelab.synthetic.corpora import CorpusSpec, Renderer, build_corpus

from report import describe_run

RESULTS = Path(__file__).parent / "results"


def cpu_seconds() -> float:
    """CPU time so far of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(spec: CorpusSpec, count: int, workers: int, device: str) -> dict[str, float]:
    """Build a corpus in a temporary folder and throw it away."""
    with tempfile.TemporaryDirectory() as folder:
        others = os.getloadavg()[0]
        wall, cpu = time.perf_counter(), cpu_seconds()
        build_corpus(folder, spec, count, shard=8, workers=workers, device=device)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "images_per_second": round(count / wall, 1),
        "cpu_ms_per_image": round(1000 * cpu / count, 2),
        "kilobytes_per_image": round(size / count / 1000, 1),
        "load_average_before": round(others, 1),  # of one minute, with the row before
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--photos", help="folder of photographs for backgrounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hard = CorpusSpec("portrait", size=arguments.size, occluders=0.3, degradations=Degradations())
    specs = {
        "inversefacenet": CorpusSpec("inversefacenet", size=arguments.size),
        "portrait": CorpusSpec("portrait", size=arguments.size),
        "portrait, occluders and degradations": hard,
    }
    if arguments.photos:
        specs["portrait over photographs"] = CorpusSpec(size=arguments.size, background=arguments.photos)
    Renderer(specs["portrait"], arguments.device).batch(0)  # numba compiles, or loads what it compiled
    rows = {}
    for name, spec in specs.items():
        rows[name] = measure(spec, arguments.count, arguments.workers, arguments.device)
        print(f"{name:40s} {rows[name]}")
    settings = {name: getattr(arguments, name) for name in ("count", "workers", "size", "device")}
    arguments.out.mkdir(exist_ok=True)
    result = describe_run(0) | {"settings": settings, "results": rows}
    name = f"corpora_{torch.device(arguments.device).type}.json"
    (arguments.out / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
