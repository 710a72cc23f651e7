"""Train a recipe with many seeds: what the recipe gives, and what is the luck of the seed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipeline import chain, console, stages
from pipeline.data import imagesets
from pipeline.errors import PipelineError, UsageError
from pipeline.machine import host as machine
from pipeline.measure import statistics
from pipeline.records import code, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Study
from pipeline.stages import Data, Out, check, train
from pipeline.training import models
from pipeline.training import recipe as recipes

KIND, FILE = "study", "study-{recipe}.json"
NEEDS = ("torch", "safetensors")
SEEDS = recipes.LIMITS["seed"][1] + 1  # so many there are
MEASURED = ("Test set:", "Held-out set:")  # what a training says after every epoch


def run(
    model: str,
    *,
    out: Out,
    data: Data = None,
    recipe: Annotated[str, "Which of the model's recipes."] = "default",
    seeds: Annotated[int, "Train with the seeds 0, 1... up to so many."] = 10,
    workers: Annotated[int | None, "Trainings at once, one processor thread each; by default as many as cores."] = None,
    hold_out: Annotated[int, "Hold so many training images out and measure on them: to choose a recipe."] = 0,
    limit: Annotated[int | None, "Train on the first so many images only: for a try, not for a result."] = None,
    change: Annotated[tuple[str, ...], "A number of the recipe to change, as NAME=VALUE; may be given again."] = (),
) -> Artifact:
    """Train a recipe with many seeds and sum up the last epochs' accuracies: mean, deviation, least, interval.

    Every seed's checkpoint is kept in a folder of its own, so that a study that was killed goes on where it was, and
    more seeds may be added later. To choose between recipes, use --hold-out: the test set is for the final number.
    """
    checked = check.model(model)
    source = data or checked.data
    pixels = imagesets.split(source, checked.input, checked.classes, hold_out, limit)[0].digests
    asked = _asked(model, recipe, hold_out, limit, change)
    workers = machine.cores() if workers is None else workers
    if not 1 <= seeds <= SEEDS:
        raise UsageError(f"--seeds: expected 1 to {SEEDS}, received {seeds}: a seed goes from 0 to {SEEDS - 1}")
    if workers < 1:
        raise UsageError(f"--workers: expected 1 or more, received {workers}")
    folder = out / FILE.format(recipe=recipe).removesuffix(".json")
    made = dict(_trained(folder, asked, source, pixels, seeds, workers))
    runs = [made[seed] for seed in range(seeds)]
    return _write(out / FILE.format(recipe=recipe), model, recipe, runs)


def _asked(model: str, recipe: str, hold_out: int, limit: int | None, change: tuple[str, ...]) -> dict[str, Any]:
    """The options of `train` that every seed shares, checked before the first one begins."""
    known = dataclasses.asdict(models.recipe(model, recipe))
    numbers = dict(_number(each, known) for each in change)
    asked = {"model": model, "recipe": recipe, "hold_out": hold_out, "limit": limit, "train_threads": 1}
    asked = {**asked, "device": "auto", "precision": "auto", **numbers}
    recipes.options(**asked, seed=0)
    return asked


def _number(text: str, known: dict[str, Any]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name = name.replace("-", "_")
    if not equals or name not in known:
        raise UsageError(f"--change {text}: expected NAME=VALUE, with one of {', '.join(known)}")
    try:
        return name, type(known[name])(value)
    except ValueError:
        raise UsageError(f"--change {text}: expected {type(known[name]).__name__}, received {value!r}") from None


def _trained(
    folder: Path, asked: dict[str, Any], data: str, pixels: dict[str, str], seeds: int, workers: int
) -> Iterator[tuple[int, Artifact]]:
    """Each seed with its checkpoint: those on record at once, the others as they are done."""
    epochs = recipes.options(**asked, seed=0)["epochs"]
    missing = []
    with console.progress(seeds * epochs, "epoch", "study") as bar:
        for seed in range(seeds):
            if found := _on_record(folder / str(seed), asked, seed, pixels):
                bar.update(epochs)
                yield seed, found
            else:
                missing.append(seed)
        if len(missing) < seeds:
            console.say(f"{folder}: {seeds - len(missing)} of {seeds} seeds are on record")
        running, over = [], threading.Event()
        with ThreadPoolExecutor(workers) as pool:
            jobs = {
                pool.submit(_train, folder / str(seed), asked, seed, data, bar, running, over): seed for seed in missing
            }
            try:
                for job in as_completed(jobs):
                    made = job.result()
                    console.say(f"seed {jobs[job]}: {made.facts.test_accuracy:.2%}")
                    yield jobs[job], made
            except BaseException:  # a failure, or Ctrl-C: what is finished stays, what runs has its snapshot
                over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for process in running:
                    process.terminate()
                raise


def _on_record(folder: Path, asked: dict[str, Any], seed: int, pixels: dict[str, str]) -> Artifact | None:
    """The checkpoint of an earlier run, if it is unaltered and fresh and has the same options and images."""
    path = folder / train.FILE.format(model=asked["model"])
    try:
        found = manifest.read(path)
    except PipelineError as error:
        if path.exists():
            console.say(f"seed {seed} is trained again: {error}")
        return None
    wanted = json.loads(json.dumps(recipes.options(**asked, seed=seed)))
    for name in wanted:
        if found.options.get(name) != wanted[name]:
            raise UsageError(
                f"{found.path}: belongs to a study with {name} {found.options.get(name)}: expected {wanted[name]}; "
                "give this study another --out, or delete that one"
            )
    if why := chain.outdated(stages.get("train"), found, asked["model"], []):
        console.say(f"seed {seed} is trained again: {why}")
        return None
    return found if pixels.items() <= found.parents.items() else None


def _train(
    folder: Path, asked: dict[str, Any], seed: int, data: str, bar: Any, running: list, over: threading.Event
) -> Artifact:
    """One training in a process of its own, which ends with this one: its stderr is a pipe to here."""
    words = [asked["model"], "--seed", seed, "--out", folder, "--data", data]
    for name, value in asked.items():
        if name != "model" and value is not None:
            words += [f"--{name.replace('_', '-')}", value]
    line = [sys.executable, "-m", "pipeline", "train", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)
        running.append(process)
        if over.is_set():
            process.terminate()
        last, epochs = "", 0
        for text in process.stderr:
            last = text.strip() or last
            bar.update(text.startswith(MEASURED))
            epochs += text.startswith(MEASURED)
        if process.wait():
            raise PipelineError(f"seed {seed}: its training ended with exit code {process.returncode}: {last}")
    made = manifest.read(folder / train.FILE.format(model=asked["model"]))
    bar.update(made.options["epochs"] - epochs)  # those that an earlier run had done
    return made


def _write(path: Path, model: str, recipe: str, runs: list[Artifact]) -> Artifact:
    """The study: every seed's accuracy, what they sum up to, and what the checkpoints say of how they were made."""
    options = {name: value for name, value in runs[0].options.items() if name not in ("seed", "images")}
    gate, n = models.get(model).gate, runs[0].facts.reference.n
    shares = [each.facts.test_accuracy for each in runs]
    return manifest.write(
        path,
        None,
        facts=Study(
            recipe=recipe,
            numbers=options,
            measured_on=runs[0].facts.reference.name,
            n=n,
            gate=gate,
            accuracies=[round(100 * share, 4) for share in shares],
            **statistics.summary([100 * share for share in shares]),
            share_over_gate=sum(share >= gate for share in shares) / len(shares),
            wilson=[100 * bound for bound in statistics.wilson(round(sum(shares) / len(shares) * n), n)],
            checkpoints=[each.sha256 for each in runs],
            versions=runs[0].versions,
            machine=msgspec.structs.replace(machine.describe(), load=None),
        ),
        parents=runs[0].parents,
        options=options,
        versions=runs[0].versions,
        code=code.digest(__name__),
    )


def show(study: Artifact) -> None:
    """The seeds and what they sum up to."""
    facts = study.facts
    rows = [[str(seed), f"{accuracy:.2f} %"] for seed, accuracy in enumerate(facts.accuracies)]
    console.table(["seed", "accuracy"], rows, title=f"recipe {facts.recipe}, last epoch, {facts.measured_on}")
    low, high = (min(max(bound, 0), 100) for bound in facts.mean_interval)  # of two seeds, it would go beyond
    interval = "unknown" if facts.deviation is None else f"{low:.3f} – {high:.3f} %"
    console.result(f"mean {facts.mean:.3f} %, 95 % interval over seeds {interval}")
    deviation = "unknown" if facts.deviation is None else f"{facts.deviation:.3f}"
    console.result(f"standard deviation {deviation}, least {facts.least:.2f}, most {facts.most:.2f} %")
    console.result(f"{facts.share_over_gate:.0%} of the runs reach {facts.gate:.2%}")
    low, high = facts.wilson
    console.result(f"what {facts.n:,} images can tell of such a network: {low:.2f} – {high:.2f} % (Wilson, 95 %)")
