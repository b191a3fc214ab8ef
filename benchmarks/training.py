"""What does a training step cost, and what does it cost where freed memory goes back to the system?

    python benchmarks/training.py [--device cuda] [--side 120] [--batch 32]

Seconds per step (forward, loss, backward, Adam) of InverseFaceNet's networks and of MoFA, with weights and
pictures that are random: speed does not depend on them. On a CPU each is measured twice, in processes of its
own: as Linux comes, and with the Makefile's setting of the memory allocator. Results: benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from facelab.methods import inversefacenet, mofa
from facelab.model.morphable_model import MorphableModel

from report import describe_run

RESULTS = Path(__file__).parent / "results"
MAKEFILE = Path(__file__).parents[1] / "Makefile"
NETWORKS = {
    "InverseFaceNet": ("small", "medium", "alexnet", "resnet101"),
    "MoFA": ("small", "medium", "alexnet"),
}  # fmt: skip


def make_step(method: str, kind: str, args: argparse.Namespace) -> Callable[[], None]:
    """One step of training on one batch, again and again."""
    device = args.device
    images = torch.rand(args.batch, 3, args.side, args.side, device=device)
    if method == "MoFA":
        network: torch.nn.Module = mofa.Encoder(mofa.make_network(kind))
        decoder = mofa.Decoder()
        decoder.to(device)
        landmarks = torch.rand(args.batch, 68, 2, device=device) * args.side

        def loss(said: torch.Tensor) -> torch.Tensor:
            return mofa.loss_terms(decoder, said, images, landmarks)["total"].mean()
    else:
        model = MorphableModel.load(None, 1)
        network = inversefacenet.make_network(kind, model)
        weights = inversefacenet.model_space_weights(model, balanced=True).to(device)

        def loss(said: torch.Tensor) -> torch.Tensor:
            return inversefacenet.parameter_loss(said, torch.zeros_like(said), weights).mean()

    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), 1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            said = network(images)
        loss(said.float()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(method: str, kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds per step, as computed (CPU) or passed (GPU), and the highest memory."""
    torch.set_num_threads(args.threads)
    step, cpu, times = make_step(method, kind, args), args.device == "cpu", []
    for _ in range(2 + args.steps):
        start = time.process_time() if cpu else time.perf_counter()
        step()
        if not cpu:
            torch.cuda.synchronize()
        times.append((time.process_time() if cpu else time.perf_counter()) - start)
    if cpu:
        highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        highest = torch.cuda.max_memory_allocated()
    return {"seconds": round(sorted(times[2:])[args.steps // 2], 4), "GB": round(highest / 1e9, 2)}


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs=2, metavar=("METHOD", "KIND"), help="print this one and stop")
    args = parser.parse_args()
    if args.only:
        method, kind = args.only
        print(json.dumps(measure(method, kind, args)))
        return
    setting = re.search(r"GLIBC_TUNABLES \?= (\S+)", MAKEFILE.read_text())
    assert setting
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    settings = {"as it comes": plain}
    if args.device == "cpu":
        settings["memory kept"] = plain | {"GLIBC_TUNABLES": setting[1]}
    steps: dict[str, dict[str, dict[str, float]]] = {}
    for method, kinds in NETWORKS.items():
        for kind in kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", method, kind]
            for name, env in settings.items():
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                steps.setdefault(f"{method}, {kind}", {})[name] = json.loads(done.stdout)
            print(f"{method}, {kind}", steps[f"{method}, {kind}"], flush=True)
    run = describe_run(0) | {
        "device": args.device,
        "side": args.side,
        "batch": args.batch,
        "precision": "bf16",
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training_{args.device.split(':')[0]}.json"
    path.write_text(json.dumps({"run": run, "steps": steps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
