"""Milliseconds and memory per image of our rasterizer beside PyTorch3D and Mitsuba 3, if installed.

    python benchmarks/render.py [--triangles 5000 30000 60000] [--repeats 15] [--out benchmarks/results]

One job: a head-like mesh with new vertex positions, visibility, then seven interpolated channels and the
depth at 240 x 240 pixels; with the backward pass, also the gradients of a loss in the positions and
attributes. All renderers take turns in one run on one thread; the fastest turn counts. Before the clock
starts, their pictures are compared with each other.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import trimesh
from torch import Tensor

from facelab.rendering.rasterizer import antialias, interpolate, rasterize

from report import describe_run

SIZE = 240
ATTRIBUTES = 7
FOCAL = 1.66 * SIZE  # pixels; with DISTANCE, the head covers about 60 % of the picture
DISTANCE = 4.0
SLOW = 60.0  # seconds that one renderer may take for all its turns at one mesh size


@dataclass
class Head:
    """Camera-space points (V, 3), triangles (T, 3) and attributes (V, ATTRIBUTES)."""

    points: Tensor
    triangles: Tensor
    attributes: Tensor

    @classmethod
    def make(cls, n_triangles: int) -> Head:
        sections = round((n_triangles / 4) ** 0.5)
        sphere = trimesh.creation.uv_sphere(count=[sections, sections])
        x, y, z = sphere.vertices.T[:, :, None]
        radius = 1 + 0.05 * np.sin(5 * x + 1) * np.cos(4 * y) + 0.03 * np.sin(9 * z)
        turned = sphere.vertices * radius @ trimesh.transformations.euler_matrix(0.3, 0.2, 0.1)[:3, :3]
        points = torch.tensor(turned * [0.9, 1.1, 0.9] - [0, 0, DISTANCE], dtype=torch.float32)
        attributes = torch.rand(len(points), ATTRIBUTES, generator=torch.Generator().manual_seed(0))
        return cls(points, torch.tensor(sphere.faces), attributes)

    def screen(self) -> Tensor:
        x, y, z = self.points.unbind(-1)
        return torch.stack([SIZE / 2 - FOCAL * x / z, SIZE / 2 + FOCAL * y / z, -z], -1)


# A renderer is made from a head; called with True it also runs the backward pass. It returns its picture.
Renderer = Callable[[bool], Tensor]


def ours(head: Head, backend: str, soft: bool) -> Renderer:
    screen, triangles, attributes = head.screen(), head.triangles, head.attributes
    tools = "torch" if backend == "torch" else "auto"

    def render(backward: bool) -> Tensor:
        one, two = (tensor.clone().requires_grad_(backward) for tensor in (screen, attributes))
        face_index = rasterize(one, triangles, SIZE, SIZE, backend=backend)
        values, depth = interpolate(one, triangles, face_index, two, backend=tools)
        if soft:
            values = antialias(values, depth, face_index, one, triangles)
        if backward:
            (values.square().mean() + depth.mean()).backward()
        return values.detach()

    return render


def pytorch3d(head: Head) -> Renderer:
    from pytorch3d.ops import interpolate_face_attributes
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    screen = head.screen()
    screen[:, :2] = 1 - 2 * screen[:, :2] / SIZE

    def render(backward: bool) -> Tensor:
        one, two = (tensor.clone().requires_grad_(backward) for tensor in (screen, head.attributes))
        meshes = Meshes(one[None], head.triangles[None])
        face_index, depth, weights, _ = rasterize_meshes(
            meshes, SIZE, 0.0, 1, perspective_correct=True, cull_backfaces=True
        )
        values = interpolate_face_attributes(face_index, weights, two[head.triangles])[0, :, :, 0]
        if backward:
            depth = torch.where(face_index >= 0, depth, 0)
            (values.square().mean() + depth.mean()).backward()
        return values.detach().movedim(-1, 0)

    return render


def mitsuba(head: Head) -> Renderer:
    """Ray casting through the pixel centres; new positions need a new acceleration structure."""
    import drjit as dr
    import mitsuba as mi

    mi.set_variant("llvm_ad_rgb")
    dr.set_thread_count(1)
    dr.flush_malloc_cache()  # so that the next image's memory is seen
    mesh = mi.Mesh("head", len(head.points), len(head.triangles))
    shape = mi.traverse(mesh)
    shape["faces"] = head.triangles.numpy().astype(np.uint32).ravel()
    shape["vertex_positions"] = head.points.numpy().ravel()
    shape.update()
    names = [f"vertex_{i}" for i in range(ATTRIBUTES)]
    for name, channel in zip(names, head.attributes.mT.contiguous().numpy()):
        mesh.add_attribute(name, 1, channel)
    scene = mi.load_dict({"type": "scene", "mesh": mesh})
    parameters = mi.traverse(scene)
    keys = [f"mesh.{name}" for name in ("vertex_positions", *names)]
    place = dr.arange(mi.Float, SIZE * SIZE)
    row = dr.floor((place + 0.5) / SIZE)
    column = place - SIZE * row
    towards = mi.Vector3f((column + 0.5 - SIZE / 2) / FOCAL, (SIZE / 2 - row - 0.5) / FOCAL, -1)

    def render(backward: bool) -> Tensor:
        for key in keys:
            if backward:
                dr.enable_grad(parameters[key])
            parameters.set_dirty(key)
        parameters.update()
        hit = scene.ray_intersect(mi.Ray3f(mi.Point3f(0), dr.normalize(towards)), mi.RayFlags.All, True)
        values = [dr.select(hit.is_valid(), mesh.eval_attribute_1(name, hit), 0) for name in names]
        depth = dr.select(hit.is_valid(), -hit.p.z, 0)
        if backward:
            dr.backward(dr.mean(sum(value * value for value in values)) / ATTRIBUTES + dr.mean(depth))
            dr.eval([dr.grad(parameters[key]) for key in keys])
            for key in keys:
                dr.disable_grad(parameters[key])
        dr.eval(values)
        dr.sync_thread()
        return torch.tensor(np.array([value.numpy() for value in values])).view(ATTRIBUTES, SIZE, SIZE)

    return render


RENDERERS: dict[str, Callable[[Head], Renderer]] = {
    "ours, numba": lambda head: ours(head, "numba", False),
    "ours, torch": lambda head: ours(head, "torch", False),
    "ours, numba, antialiased": lambda head: ours(head, "numba", True),
    "ours, torch, antialiased": lambda head: ours(head, "torch", True),
    "PyTorch3D": pytorch3d,
    "Mitsuba 3": mitsuba,
}


@dataclass
class Row:
    """Milliseconds per image (CPU time of the process, wall clock) and MiB that an image adds."""

    renderer: str
    triangles: int
    forward_cpu_ms: float
    forward_wall_ms: float
    both_cpu_ms: float
    both_wall_ms: float
    peak_mib: float
    turns: int


def peak_mib(render: Renderer) -> tuple[float, Tensor]:
    """How far the resident memory rises, backward pass included (NaN if not on Linux), and the picture."""

    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = resident("VmRSS")
    except OSError:
        return float("nan"), render(True)
    picture = render(True)
    return resident("VmHWM") - before, picture


def measure(n_triangles: int, repeats: int) -> list[Row]:
    head, small = Head.make(n_triangles), Head.make(200)
    renderers: dict[str, Renderer] = {}
    memory: dict[str, float] = {}
    pictures: dict[str, Tensor] = {}
    for name, make in RENDERERS.items():
        try:
            make(small)(True)  # compile and load on a mesh that takes no memory
        except ImportError as error:
            print(f"{name}: not installed ({error})")
            continue
        renderers[name] = make(head)
        memory[name], pictures[name] = peak_mib(renderers[name])
        reference = pictures["ours, numba"]
        if "antialiased" not in name:
            differ = ((pictures[name] - reference).abs().amax(0) > 1e-2).double().mean().item()
            assert differ < 1e-3, f"{name} shows another picture: {differ:.1%} of the pixels differ"

    times: dict[str, list[list[float]]] = {name: [] for name in renderers}
    for _ in range(repeats):
        for name, render in renderers.items():
            if times[name] and sum(turn[1] + turn[3] for turn in times[name]) + times[name][-1][3] > SLOW:
                continue
            turn: list[float] = []
            for backward in (False, True):
                cpu, wall = time.process_time(), time.perf_counter()
                render(backward)
                turn += [time.process_time() - cpu, time.perf_counter() - wall]
            times[name].append(turn)
    rows = []
    for name, turns in times.items():
        forward, forward_wall, both, both_wall = (1e3 * min(column) for column in zip(*turns))
        measured = (forward, forward_wall, both, both_wall, memory[name], len(turns))
        rows.append(Row(name, len(head.triangles), *measured))
    return rows


def table(rows: list[Row]) -> str:
    """Markdown; the ratio is that of forward + backward to our numba backend."""
    lines = [
        "| triangles | renderer | forward ms | forward + backward ms | ratio | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    base = {row.triangles: row.both_cpu_ms for row in rows if row.renderer == "ours, numba"}
    for row in rows:
        lines.append(
            f"| {row.triangles} | {row.renderer} | {row.forward_cpu_ms:,.1f} ({row.forward_wall_ms:,.1f}) "
            f"| {row.both_cpu_ms:,.1f} ({row.both_wall_ms:,.1f}) "
            f"| {row.both_cpu_ms / base[row.triangles]:,.1f} | {row.peak_mib:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triangles", type=int, nargs="+", default=[5000, 30000, 60000])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for render.json and render.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run: dict[str, Any] = describe_run(seed=0)
    for package in ("numba", "easypytorch3d", "pytorch3d", "mitsuba"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            run[package] = metadata.version(package)
    rows = [row for number in arguments.triangles for row in measure(number, arguments.repeats)]
    text = table(rows)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        result = {"run": run, "size": SIZE, "attributes": ATTRIBUTES, "rows": [asdict(row) for row in rows]}
        (arguments.out / "render.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "render.md").write_text(
            f"{SIZE} x {SIZE} pixels, {ATTRIBUTES} attributes and depth: milliseconds of CPU time per image "
            "(wall clock in brackets), the fastest turn of one interleaved run on one thread. Ratio: both "
            "passes to our numba backend. Peak: resident memory added by one image, backward included.\n\n"
            f"{text}\n\n{', '.join(f'{key} {value}' for key, value in run.items())}\n"
        )


if __name__ == "__main__":
    main()
