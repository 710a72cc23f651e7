"""Both training loops in one run, in turns: seconds an epoch, images a second, ratio, share of the machine's limit."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

import models
from benchmarks import seed_loop
from models import mnist_cnn
from pipeline import artifact, console, dataset, machine, mnist, recipe
from pipeline.errors import PipelineError
from pipeline.training import Trainer

EPOCH = 60_000


def ours(data: Path, images: int, threads: int, precision: str) -> Iterator[int]:
    """Our loop without end on the first so many images; yields after every epoch of them."""
    split = dataset.train(data)
    trainer = Trainer(
        mnist_cnn, models.recipe("mnist_cnn", "default"), 0, precision=precision, threads=threads, quiet=True
    )
    while True:
        for _ in trainer.fit(split.images[:images], split.labels[:images]):
            yield images


def flop_per_image() -> int:
    """Floating-point operations of a training step per image: two a multiply-add, three passes (forward, the gradient
    of the weights, the gradient of the activations; the first layer needs no gradient of its input)."""
    total, shape = 0, torch.zeros(1, *mnist_cnn.INPUT)
    network = mnist_cnn.network().eval()
    for layer in network:
        shape = layer(shape)
        if isinstance(layer, nn.Conv2d):
            work = 2 * layer.weight.numel() * shape.shape[2] * shape.shape[3]
            total += work * (2 if layer is network[0] else 3)
    return total


def peak(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of this machine's matrix product in `dtype`, the best of several: the limit of any training here."""
    a, b = torch.randn(1024, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def rate(steps: Iterator[int], seconds: float) -> float:
    """Images a second of a loop over at least so many seconds, its own whole steps only."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += next(steps)
    return done / (time.perf_counter() - start)


def compare(sides: dict[str, Callable[[], Iterator[int]]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images a second of each side in each round; sides take turns, since the machine is not always equally fast."""
    running = {name: side() for name, side in sides.items()}
    for steps in running.values():  # warm-up: workers started, kernels made
        rate(steps, seconds / 4)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, steps in running.items():
            found[name].append(rate(steps, seconds))
            console.say(f"round {number + 1} of {rounds}, {name}: {EPOCH / found[name][-1]:.1f} s an epoch")
    return found


def main() -> None:
    """Print both sides as a table, or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each side in each round")
    parser.add_argument("--images", type=int, default=12_288, help="how many each pass goes over")
    parser.add_argument("--threads", type=int, default=min(2, machine.cores()))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if min(given.rounds, given.threads, given.images) < 1 or given.seconds <= 0:
        parser.error("expected --rounds, --threads, --images of 1 or more and --seconds over 0")
    try:
        mnist.ensure(given.data)
    except PipelineError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(error.exit_code)
    how = {"device": "cpu", "precision": "auto", "train_threads": given.threads, "limit": None, "hold_out": 0}
    precision = recipe.options("mnist_cnn", recipe="default", seed=0, **how)["precision"]
    torch.set_num_threads(given.threads)
    sides = {
        "seed loop": lambda: seed_loop.loop(given.data, given.images, given.threads),
        "pipeline": lambda: ours(given.data, given.images, given.threads, precision),
    }
    rates = compare(sides, given.rounds, given.seconds)
    torch.set_num_threads(given.threads)
    limit = peak(getattr(torch, precision)) / flop_per_image()
    report = {
        "sides": {name: {"images_per_second": statistics.median(each), "rounds": each} for name, each in rates.items()},
        "ratio": statistics.median(b / a for a, b in zip(*rates.values(), strict=True)),
        "precision": precision,
        "threads": given.threads,
        "flop_per_image": flop_per_image(),
        "limit_images_per_second": limit,
        "versions": artifact.versions("torch", "torchvision"),
        "machine": machine.describe(),
    }
    if given.json:
        console.result(json.dumps(report, indent=1))
        return
    rows = [
        [name, f"{EPOCH / side['images_per_second']:.1f}", f"{side['images_per_second']:,.0f}",
         f"{side['images_per_second'] / limit:.1%}"]
        for name, side in report["sides"].items()
    ]  # fmt: skip
    title = f"{given.threads} threads, pipeline in {precision}; PyTorch {torch.__version__}; median of {given.rounds}"
    console.table(["loop", "s an epoch", "images/s", "of the limit"], rows, title=title)
    console.result(f"pipeline / seed loop: {report['ratio']:.2f} times, median of each round's ratio")
    console.result(
        f"limit: {EPOCH / limit:.1f} s an epoch, {flop_per_image() / 1e6:.2f} MFLOP an image at the matrix product's "
        f"{limit * flop_per_image() / 1e9:.0f} GFLOP/s in {precision}"
    )


if __name__ == "__main__":
    main()
