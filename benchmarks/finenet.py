"""How fast are CoarseNet and FineNet beside optimising each picture under the same criterion?

    python benchmarks/finenet.py runs/finenet/finenet.safetensors [--pictures 3] [--steps 150]

Milliseconds of a thread's computing per picture at 200² and 400² px: CoarseNet's four looks, the rendering
layer, FineNet (which looks at the mirrored picture, too), and `optimise`, the shape from shading that FineNet
is trained to replace, with the light and albedo that it needs. On rendered faces with folds; errors beside.
Results go to benchmarks/results/finenet_cpu.json, or to --out.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from inference import milliseconds

from facelab.methods.coarsenet import CoarseNet, depth_map, iterate, shrunk
from facelab.methods.finenet import WEIGHTS, FineNet, observe, optimise
from facelab.methods.wrinkles import relief_errors, wrinkled_faces
from facelab.model.morphable_model import MorphableModel

from report import describe_run

RESULTS = Path(__file__).parent / "results"
SIDES = (200, 400)


@torch.no_grad()
def measured(
    coarse: CoarseNet, fine: FineNet, side: int, pictures: int, steps: int
) -> dict[str, dict[str, float]]:
    """{"milliseconds": {stage: per picture}, "errors": {"coarse degrees": ...}} at side×side px."""
    model = MorphableModel.load()
    faces = wrinkled_faces(model, pictures, side, torch.Generator().manual_seed(62))
    view = observe(model, faces.r, faces.images, robust=True)
    maps = (faces.images, view.coarse, view.mask, view.camera.scale)
    small = shrunk(faces.images, coarse.side)
    stages = {
        "CoarseNet, four looks": partial(iterate, coarse.network, coarse.model, small, 4, coarse.channels),
        "rendering layer": partial(depth_map, model, faces.r, side),
        "FineNet": partial(fine, *maps),
        "light and albedo": partial(observe, model, faces.r, faces.images, robust=True),
    }
    times = {name: milliseconds(call, pictures, "cpu") for name, call in stages.items()}
    with torch.enable_grad():
        solved = optimise(view, WEIGHTS, steps)
        times["optimisation"] = milliseconds(partial(optimise, view, WEIGHTS, steps), pictures, "cpu", 1, 0)
    times["optimisation over FineNet"] = times["optimisation"] / times["FineNet"]
    depths = {"coarse": view.coarse, "FineNet": fine(*maps), "optimised": solved}
    errors = {f"{name} {key}": v for name, d in depths.items() for key, v in relief_errors(d, faces).items()}
    losses = {f"{name} loss": float(view.loss(depth)["total"].mean()) for name, depth in depths.items()}
    return {"milliseconds": times, "errors": errors | losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of train_finenet.py")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="of the optimisation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    coarse, fine = CoarseNet.load(), FineNet.load(args.checkpoint)
    sides = {str(side): measured(coarse, fine, side, args.pictures, args.steps) for side in SIDES}
    report = {"run": describe_run(62), "pictures": args.pictures, "steps": args.steps, "sides": sides}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "finenet_cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    for side, found in sides.items():
        for name, value in (found["milliseconds"] | found["errors"]).items():
            print(f"{side:4} {name:32} {value:10.3f}")


if __name__ == "__main__":
    main()
