"""Milliseconds of the recognition networks, alignment included, forward and with the backward pass.

python -m benchmarks.recognition [--device cuda] [--threads 1]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from facelab.recognition.networks import DlibRecogniser, FaceRecogniser, SFaceRecogniser


def milliseconds(job: Callable[[], object], device: str, repeats: int = 5) -> float:
    """The fastest of `repeats` runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


def embed(network: FaceRecogniser, image: Tensor, landmarks: Tensor, backward: bool = False) -> None:
    embedding = network.embed(image, landmarks)
    if backward:
        embedding.sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    print(f"{options.device}, {options.threads} thread(s); milliseconds per batch of 240 x 240 pictures")
    print(f"{'network':18}{'batch':>6}{'forward':>10}{'+ backward':>12}")
    networks: list[FaceRecogniser] = [DlibRecogniser(), SFaceRecogniser()]
    for network in networks:
        network.to(options.device)
        for batch in (1, 8, 32):
            image = torch.rand(batch, 3, 240, 240, generator=generator).to(options.device).requires_grad_()
            landmarks = (70 + 100 * torch.rand(68, 2, generator=generator)).to(options.device)
            arguments = (network, image, landmarks)
            with torch.no_grad():
                forward_ms = milliseconds(partial(embed, *arguments), options.device)
            backward_ms = milliseconds(partial(embed, *arguments, backward=True), options.device)
            print(f"{type(network).__name__:18}{batch:6}{forward_ms:10.1f}{backward_ms:12.1f}")


if __name__ == "__main__":
    main()
