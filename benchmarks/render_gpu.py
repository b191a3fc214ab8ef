"""Pictures per second of the rasterizer's backends on a GPU, in batches, beside PyTorch3D if it is installed.

    python benchmarks/render_gpu.py [--device cuda] [--triangles 30000] [--batch 32] [--out FOLDER]

The job of render.py for a batch: new positions, visibility, seven channels and depth at 240 x 240 pixels;
then the gradients in positions and attributes; then both with antialiased outlines. Backends take turns.
For each: the median time, the bytes that cannot be avoided (inputs read once, outputs written once) as a
share of what copying a large tensor on this device reaches in the same run, the highest memory, and how often
Python had to wait for the GPU. For Triton's kernels: registers, spills, and how many of a multiprocessor's
threads they can keep busy. Last, whole training pictures of InverseFaceNet and of a corpus.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelab.methods.breeding import synthesise
from facelab.methods.inversefacenet import DISTRIBUTION
from facelab.model.morphable_model import MorphableModel
from facelab.rendering.rasterizer import antialias, backends, interpolate, rasterize
from facelab.support.errors import FacelabError
from facelab.synthetic.corpora import CorpusSpec, Renderer

from report import describe_run

SIZE, ATTRIBUTES = 240, 7
BACKENDS = ("triton", "torch", "numba", "pytorch3d")
PASSES = ("forward", "forward + backward", "antialiased, forward + backward")


class Batch:
    """Bumpy heads in `count` places of the picture: screen (B, V, 3), triangles, attributes (B, V, 7)."""

    def __init__(self, n_triangles: int, count: int, device: str) -> None:
        rows = round((n_triangles / 4) ** 0.5)
        number = torch.arange((rows + 1) * 2 * rows).view(rows + 1, 2 * rows)  # of the vertex, from the top
        a, b, c, d = number[:-1], number[:-1].roll(-1, 1), number[1:], number[1:].roll(-1, 1)
        triangles = torch.stack([torch.stack([a, c, b], -1), torch.stack([b, c, d], -1)], 2).view(-1, 3)
        down = torch.linspace(0, torch.pi, rows + 1)[:, None]
        around = torch.linspace(0, 2 * torch.pi, 2 * rows + 1)[:-1]
        radius = 1 + 0.05 * torch.sin(7 * down) * torch.cos(5 * around)
        level = radius * down.sin()
        x, y, z = level * around.sin(), radius * down.cos(), level * around.cos()
        depth = 4 - z.flatten()  # at this distance the head covers 70 % of the picture
        u, v = (SIZE * 1.66 * part.expand_as(z).flatten() / depth for part in (x, -1.2 * y))
        shift = torch.linspace(-8, 8, count)[:, None, None] * torch.tensor([1.0, 0.3, 0])
        self.screen = (torch.stack([SIZE / 2 + u, SIZE / 2 + v, depth], -1) + shift).to(device)
        self.triangles = triangles.to(device)
        generator = torch.Generator().manual_seed(0)
        self.attributes = torch.rand(count, len(depth), ATTRIBUTES, generator=generator).to(device)

    def bytes_at_least(self, backward: bool) -> int:
        """Positions, triangles and attributes read; face index, values and depth written. Backward: all of
        these and the gradients of values and depth read, those of positions and attributes written."""
        vertices = 4 * (self.screen.numel() + self.attributes.numel())
        pixels = len(self.screen) * SIZE * SIZE
        forward = vertices + 8 * self.triangles.numel() + pixels * (8 + 4 * (ATTRIBUTES + 1))
        return forward + (2 * vertices + pixels * (8 + 4 * (ATTRIBUTES + 1)) if backward else 0)


def job(batch: Batch, backend: str, which: str) -> Callable[[], Tensor]:
    """One pass over the batch with a backend; it returns the picture."""
    backward, soft = "backward" in which, "antialiased" in which
    formulas = backend if backend in backends.FORMULAS else "auto"

    def run() -> Tensor:
        points, values = (part.detach().requires_grad_(backward) for part in (batch.screen, batch.attributes))
        faces = rasterize(points, batch.triangles, SIZE, SIZE, backend=backend)
        picture, depth = interpolate(points, batch.triangles, faces, values, backend=formulas)
        if soft:
            picture = antialias(picture, depth, faces, points, batch.triangles)
        if backward:
            (picture.square().mean() + depth.mean()).backward()
        return picture.detach()

    return run


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: str, inner: int) -> float:
    """Of one call, over `inner` calls after each other (CPU: time computed by the process)."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    wait(device)
    start = clock()
    for _ in range(inner):
        call()
    wait(device)
    return (clock() - start) / inner


def copied_bytes_a_second(device: str, megabytes: int) -> float:
    source = torch.empty(megabytes << 18, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device, 3) for _ in range(5)]
    return 2 * 4 * source.numel() / min(times)


def waits(call: Callable[[], Any]) -> int:
    """How often one call makes Python wait for the GPU, by PyTorch's own warnings."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def occupancy() -> dict[str, Any]:
    """Of Triton's kernels that have run here; left out where Triton does not tell (no public interface)."""
    backend = backends.choose("triton", torch.device("cuda"))
    card, found = torch.cuda.get_device_properties(0), {}
    for name in ("_visibility", "_forward", "_backward"):
        caches = getattr(getattr(backend, name), "device_caches", {})
        for k, compiled in enumerate(v for cache in caches.values() for v in cache[0].values()):
            registers, threads = getattr(compiled, "n_regs", None), 32 * compiled.metadata.num_warps
            if registers is None:
                continue
            most = getattr(card, "max_threads_per_multi_processor", 2048)
            blocks = min(most // threads, 65536 // max(1, -(-registers // 8) * 8 * threads))
            if compiled.metadata.shared:
                memory = getattr(card, "shared_memory_per_multiprocessor", 100 << 10)
                blocks = min(blocks, memory // (compiled.metadata.shared + 1024))
            found[f"{name} {k}"] = {
                "registers": registers,
                "spills": getattr(compiled, "n_spills", None),
                "shared bytes": compiled.metadata.shared,
                "threads kept busy": round(blocks * threads / most, 2),
            }
    return found


def training_pictures(device: str, count: int, repeats: int) -> list[dict[str, Any]]:
    """Pictures a second from parameters to the finished picture, `count` together; how often Python waits."""
    model, generator = MorphableModel.load(None, 1, device), torch.Generator().manual_seed(0)
    theta = DISTRIBUTION.sample(model, count, generator).to(device)
    renderer = Renderer(CorpusSpec("portrait", size=SIZE, batch=count), device)
    jobs: dict[str, Callable[[], Any]] = {
        "InverseFaceNet's pictures": lambda: synthesise(model, theta, generator),
        "pictures of a corpus": lambda: renderer.batch(0),
    }
    rows = []
    for name, call in jobs.items():
        call()
        median = statistics.median(seconds(call, device, 1) for _ in range(repeats))
        row = {"what": name, "pictures a second": round(count / median, 1)}
        rows.append(row if device == "cpu" else row | {"waits": waits(call)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--triangles", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for render_gpu.json")
    args = parser.parse_args()
    batch, cpu = Batch(args.triangles, args.batch, args.device), args.device == "cpu"
    jobs: dict[tuple[str, str], Callable[[], Tensor]] = {}
    pictures: dict[str, Tensor] = {}
    for backend in BACKENDS:
        try:
            for which in PASSES:
                jobs[backend, which] = job(batch, backend, which)
                pictures.setdefault(backend, jobs[backend, which]())
        except FacelabError as error:
            jobs = {key: value for key, value in jobs.items() if key[0] != backend}
            print(f"{backend}: {error}")
    for backend, picture in pictures.items():
        differ = float(((picture - pictures["torch"]).abs().amax(1) > 1e-2).float().mean())
        assert differ < 1e-3, f"{backend} shows another picture: {differ:.1%} of the pixels differ"

    times: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    for _ in range(args.repeats):
        for key, call in jobs.items():
            times[key].append(seconds(call, args.device, 1 if cpu else 5))
    copying = copied_bytes_a_second(args.device, 64 if cpu else 1024)
    rows = []
    for (backend, which), turns in times.items():
        median = statistics.median(turns)
        row = {"backend": backend, "pass": which, "pictures a second": round(args.batch / median, 1)}
        row["milliseconds a batch"] = round(1000 * median, 3)
        row["share of copying"] = round(batch.bytes_at_least("backward" in which) / median / copying, 4)
        if not cpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            jobs[backend, which]()
            row["peak MiB"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
            row["waits"] = waits(jobs[backend, which])
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    result = {
        "run": describe_run(0) | {"device": args.device},
        "size": SIZE,
        "batch": args.batch,
        "triangles": len(batch.triangles),
        "copying, GB a second": round(copying / 1e9, 1),
        "rows": rows,
        "training pictures": training_pictures(args.device, args.batch, args.repeats),
        "kernels": occupancy() if "triton" in pictures and not cpu else {},
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "render_gpu.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
