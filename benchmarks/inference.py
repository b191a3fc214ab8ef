"""How fast is a network's answer beside fitting by optimisation, on the same pictures?

    python benchmarks/inference.py [--device cuda] [--pictures 64] [--fits 5]

Milliseconds per picture at batch 1 and 64: of InverseFaceNet's networks (the shipped one; AlexNet and
ResNet-101 with random weights, since speed does not depend on them), of its whole `reconstruct` (landmarks,
masked crop, network, camera, rendered answer), of MoFA's shipped encoder and its `reconstruct` of a framed
picture, and of fitting. On a CPU it is the time computed by a thread.
Results go to benchmarks/results/, or to --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facelab.evaluation.test_sets import load_test_set
from facelab.methods.fitting import reconstruct
from facelab.methods.inversefacenet import DISTRIBUTION, FRAME, SIDE, InverseFaceNet, network_input
from facelab.methods.mofa import MoFA
from facelab.networks import encoder
from facelab.photos import find_face

from report import describe_run

RESULTS = Path(__file__).parent / "results"


def milliseconds(
    call: Callable[[], Any], pictures: int, device: str, repeats: int = 3, first: int = 1
) -> float:
    """Median over `repeats`, per picture, after `first` calls that do not count.

    On a CPU, the time that this process computed: other programs do not change it.
    """
    clock, times = time.process_time if device == "cpu" else time.perf_counter, []
    for _ in range(first + repeats):
        start = clock()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1000 * (clock() - start) / pictures)
    return float(np.median(times[first:]))


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--fits", type=int, default=5, help="0: leave fitting out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    method = InverseFaceNet.load(subdivisions=1)
    records = load_test_set("in_model", limit=args.pictures)
    found = [(r.image, find_face(r.image).landmarks) for r in list(records)[:8]]
    one = torch.stack([network_input(image, points)[0] for image, points in found])
    inputs = one.repeat(-(-args.pictures // len(one)), 1, 1, 1)[: args.pictures].to(args.device)

    lines: dict[str, dict[str, float]] = {}
    outputs = DISTRIBUTION.layout(method.model).size + FRAME
    networks = {"shipped": method.network}
    networks |= {kind: encoder(kind, outputs).eval() for kind in ("alexnet", "resnet101")}
    with torch.inference_mode():
        for name, network in networks.items():
            network = network.to(args.device)
            lines[f"network {name}"] = {
                f"batch {count}": milliseconds(partial(network, inputs[:count]), count, args.device)
                for count in (1, len(inputs))
            }
    method.network.to("cpu")
    image, points = found[0]
    lines["InverseFaceNet with landmarks, camera, rendering"] = {
        "batch 1": milliseconds(lambda: method.reconstruct_at(image, points), 1, "cpu")
    }
    lines["InverseFaceNet from the picture alone"] = {
        "batch 1": milliseconds(lambda: method.reconstruct(image), 1, "cpu")
    }
    autoencoder = MoFA.load(framed=True)
    pictures = torch.stack([record.image for record in records]).to(args.device)
    autoencoder.encoder.to(args.device)
    lines["MoFA's encoder"] = {
        f"batch {count}": milliseconds(partial(autoencoder.regress, pictures[:count]), count, args.device)
        for count in (1, len(pictures))
    }
    autoencoder.encoder.to("cpu")
    lines["MoFA with camera, rendering"] = {
        "batch 1": milliseconds(lambda: autoencoder.reconstruct(image), 1, "cpu")
    }
    slow = float("nan")
    if args.fits:
        reconstruct(image)  # loads models, compiles
        fits = [milliseconds(partial(reconstruct, image), 1, "cpu", 1, 0) for image, _ in found[: args.fits]]
        slow = float(np.median(fits))
        lines["fitting by optimisation"] = {"batch 1": slow}
    report = {
        "run": describe_run(0) | {"device": args.device, "input": SIDE},
        "milliseconds per picture": lines,
        "fitting over network": {
            name: {batch: slow / value for batch, value in values.items()}
            for name, values in lines.items()
            if args.fits and not name.startswith("fitting")
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"inference_{args.device.split(':')[0]}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    for name, values in lines.items():
        print(f"{name:52}", "  ".join(f"{batch}: {value:8.2f} ms" for batch, value in values.items()))


if __name__ == "__main__":
    main()
