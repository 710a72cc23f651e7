"""Both training loops in one run, in turns: seconds an epoch, images a second, ratio, share of the machine's limit."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks import seed_loop
from pipeline import console
from pipeline.data import imagesets
from pipeline.data.imagesets import ImageSet
from pipeline.errors import PipelineError
from pipeline.machine import host as machine
from pipeline.records import kinds, manifest
from pipeline.training import models, recipe
from pipeline.training.trainer import Trainer

EPOCH = 60_000
MODEL = models.get("mnist_cnn")


def ours(images: ImageSet, threads: int, precision: str) -> Iterator[int]:
    """Our loop without end; yields after every epoch."""
    trainer = Trainer(MODEL, MODEL.recipes["default"], 0, precision=precision, threads=threads, quiet=True)
    while True:
        for _ in trainer.fit(images.images, images.labels):
            yield len(images)


def flop_per_image() -> int:
    """Floating-point operations of a training step per image: two a multiply-add, three passes (forward, the gradient
    of the weights, the gradient of the activations; the first layer needs no gradient of its input)."""
    total, shape = 0, torch.zeros(1, *MODEL.input)
    network = MODEL.network().eval()
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


def main(arguments: list[str] | None = None) -> None:
    """Print both sides as a table, or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--data", default=MODEL.data, help="image set, as `pipeline train` takes it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each side in each round")
    parser.add_argument("--images", type=int, default=12_288, help="how many each pass goes over")
    parser.add_argument("--threads", type=int, default=min(2, machine.cores()))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if min(given.rounds, given.threads, given.images) < 1 or given.seconds <= 0:
        parser.error("expected --rounds, --threads, --images of 1 or more and --seconds over 0")
    try:
        images = imagesets.load(given.data, "train", MODEL.input, MODEL.classes)
    except PipelineError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(error.exit_code)
    first = dataclasses.replace(images, images=images.images[: given.images], labels=images.labels[: given.images])
    how = {"device": "cpu", "precision": "auto", "train_threads": given.threads, "limit": None, "hold_out": 0}
    precision = recipe.options("mnist_cnn", recipe="default", seed=0, **how)["precision"]
    torch.set_num_threads(given.threads)
    sides = {
        "seed loop": lambda: seed_loop.loop(MODEL, first, given.threads),
        "pipeline": lambda: ours(first, given.threads, precision),
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
        "versions": manifest.versions("torch", "torchvision"),
        "machine": kinds.plain(machine.describe()),
    }
    if given.json:
        console.result(json.dumps(report, indent=1))
    else:
        show(report)


def show(report: dict) -> None:
    """Print a report as a table."""
    limit, flop, precision = (report[name] for name in ("limit_images_per_second", "flop_per_image", "precision"))
    rows = [
        [name, f"{EPOCH / side['images_per_second']:.1f}", f"{side['images_per_second']:,.0f}",
         f"{side['images_per_second'] / limit:.1%}"]
        for name, side in report["sides"].items()
    ]  # fmt: skip
    rounds = len(report["sides"]["pipeline"]["rounds"])
    title = f"{report['threads']} threads, pipeline in {precision}; PyTorch {torch.__version__}; median of {rounds}"
    console.table(["loop", "s an epoch", "images/s", "of the limit"], rows, title=title)
    console.result(f"pipeline / seed loop: {report['ratio']:.2f} times, median of each round's ratio")
    console.result(
        f"limit: {EPOCH / limit:.1f} s an epoch, {flop / 1e6:.2f} MFLOP an image at the matrix product's "
        f"{limit * flop / 1e9:.0f} GFLOP/s in {precision}"
    )


if __name__ == "__main__":
    main()
