"""Train a recipe with many seeds, to tell what the recipe does from the luck of the seed."""

from __future__ import annotations

import asyncio
import os
import sys
import typing
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipeline import chain, console, stages
from pipeline.errors import PipelineError, UsageError
from pipeline.machine import host as machine
from pipeline.measure import statistics
from pipeline.records import code, manifest
from pipeline.records.experiments import Study
from pipeline.records.manifest import Artifact
from pipeline.stages import Data, Out, check, train
from pipeline.stages.train import Labels
from pipeline.training import labels as teaching
from pipeline.training import models
from pipeline.training import recipe as recipes
from pipeline.training.model import Recipe

KIND, FILE = "study", train.STUDY
NEEDS = ("torch", "safetensors")
LAST_SEED = recipes.LIMITS["seed"][1]
MEASURED = (b"Test set:", b"Held-out set:")  # how the line begins that a training prints after every epoch


def run(
    model: str,
    *,
    out: Out,
    data: Data = None,
    recipe: Annotated[str, "Which of the model's recipes."] = "default",
    seeds: Annotated[int, "Number of seeds: 0 to N - 1."] = 10,
    workers: Annotated[int | None, "Trainings at once, one processor thread each; by default as many as cores."] = None,
    hold_out: Annotated[int, "Hold out N training images and measure on them, to choose a recipe."] = 0,
    limit: Annotated[int | None, "Train on only the first N images, for a quick trial."] = None,
    labels: Labels = teaching.AUTO,
    change: Annotated[tuple[str, ...], "A number of the recipe to change, as NAME=VALUE; may be given again."] = (),
) -> Artifact:
    """Train a recipe with many seeds and sum up the last epochs' accuracies: mean, deviation, least, interval.

    Every seed's checkpoint is kept in a folder of its own, so that a study that was killed goes on where it was, and
    more seeds may be added later. To choose between recipes, use --hold-out: the test set is for the final number.
    """
    train.expect(data=data)
    checked = check.model(model)
    source = data or checked.data
    workers = machine.cores() if workers is None else workers
    if not 1 <= seeds <= LAST_SEED + 1:
        raise UsageError(f"--seeds: expected 1 to {LAST_SEED + 1}, received {seeds}: a seed goes from 0 to {LAST_SEED}")
    if workers < 1:
        raise UsageError(f"--workers: expected 1 or more, received {workers}")
    shared: dict[str, Any] = {"recipe": recipe, "hold_out": hold_out, "limit": limit, "labels": labels}
    shared |= {"train_threads": 1} | _numbers(change)
    wanted = train.options(model, data=source, **shared)
    if labels == teaching.AUTO and wanted["labels"] == teaching.HARD and teaching.beside(model).is_file():
        console.say(f"{teaching.beside(model)}: labels of other images: not used")
    path = out / train.study(recipe, labels)
    paths = [path.with_suffix("") / str(seed) / train.FILE.format(model=model) for seed in range(seeds)]
    runs = {}
    for seed, each in enumerate(paths):
        if made := _on_record(each, {**wanted, "seed": seed}):
            runs[seed] = made
    if runs:
        console.say(f"{path.with_suffix('')}: {len(runs)} of {seeds} seeds are on record")
    words = [model, "--data", source]
    for name, value in shared.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    with console.progress(seeds * wanted["epochs"], "epoch", "study") as bar:
        bar.update(len(runs) * wanted["epochs"])
        missing = {seed: each for seed, each in enumerate(paths) if seed not in runs}
        runs |= asyncio.run(_train_all(missing, words, workers, bar))
    return _write(path, model, recipe, [runs[seed] for seed in range(seeds)])


def _numbers(change: tuple[str, ...]) -> dict[str, Any]:
    """Return the changed numbers by name, each of its field's type."""
    types, numbers = typing.get_type_hints(Recipe), {}
    for text in change:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in types:
            raise UsageError(f"--change {text}: expected NAME=VALUE, with one of {', '.join(types)}")
        try:
            numbers[name] = types[name](value)
        except ValueError:
            raise UsageError(f"--change {text}: expected {types[name].__name__}, received {value!r}") from None
    return numbers


def _on_record(path: Path, wanted: dict[str, Any]) -> Artifact | None:
    """Return the checkpoint of an earlier run, if it is unaltered and fresh. Raises UsageError for another study's."""
    if not path.exists():
        return None
    try:
        made = manifest.read(path)
    except PipelineError as error:
        console.say(f"seed {wanted['seed']} is trained again: {error}")
        return None
    for name, value in wanted.items():
        if name != "images" and made.options.get(name) != value:
            raise UsageError(
                f"{path}: belongs to a study with {name} {made.options.get(name)}: expected {value}; "
                "give this study another --out, or delete that one"
            )
    if why := chain.outdated(stages.get("train"), made, wanted["model"], [], wanted):
        console.say(f"seed {wanted['seed']} is trained again: {why}")
        return None
    return made


async def _train_all(missing: dict[int, Path], words: list[str], workers: int, bar: Any) -> dict[int, Artifact]:
    """Train each seed. After a failure or Ctrl-C, asyncio cancels the others; their snapshots stay."""
    turn = asyncio.Semaphore(workers)
    made = await asyncio.gather(*(_train(seed, path, words, turn, bar) for seed, path in missing.items()))
    return dict(zip(missing, made, strict=True))


async def _train(seed: int, path: Path, words: list[str], turn: asyncio.Semaphore, bar: Any) -> Artifact:
    """Train in a process of its own, which ends soon after this one does: its stderr is a pipe to here."""
    line = [sys.executable, "-m", "pipeline", "train", *words, "--seed", str(seed), "--out", str(path.parent)]
    nothing, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    async with turn:
        process = await asyncio.create_subprocess_exec(*line, stdout=nothing, stderr=pipe, env=environment)
        assert process.stderr, "it is a pipe"
        last, epochs = "", 0
        try:
            async for text in process.stderr:
                last = text.decode(errors="replace").strip() or last
                bar.update(text.startswith(MEASURED))
                epochs += text.startswith(MEASURED)
            if await process.wait():
                raise PipelineError(f"seed {seed}: its training ended with exit code {process.returncode}: {last}")
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    made = manifest.read(path)
    bar.update(made.options["epochs"] - epochs)  # those that an earlier run had done
    console.say(f"seed {seed}: {made.facts.test_accuracy:.2%}")
    return made


def _write(path: Path, model: str, recipe: str, runs: list[Artifact]) -> Artifact:
    """Write the study: every seed's accuracy, their statistics, and what the checkpoints' records share."""
    options = {name: value for name, value in runs[0].options.items() if name not in ("seed", "images")}
    gate, n = models.get(model).gate, runs[0].facts.reference.n
    shares = [each.facts.test_accuracy for each in runs]
    facts = Study(
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
    )
    how = {"parents": runs[0].parents, "versions": runs[0].versions}
    return manifest.write(path, None, facts=facts, options=options, code=code.digest(__name__), **how)


def show(study: Artifact) -> None:
    """Print the seeds' accuracies and their statistics."""
    facts = study.facts
    rows = [[str(seed), f"{accuracy:.2f} %"] for seed, accuracy in enumerate(facts.accuracies)]
    console.table(["seed", "accuracy"], rows, title=f"recipe {facts.recipe}, last epoch, {facts.measured_on}")
    interval = deviation = "unknown"
    if facts.deviation is not None:
        low, high = (min(max(bound, 0), 100) for bound in facts.mean_interval)  # of two seeds, it would go beyond
        interval, deviation = f"{low:.3f} – {high:.3f} %", f"{facts.deviation:.3f}"
    console.result(f"mean {facts.mean:.3f} %, 95 % interval over seeds {interval}")
    console.result(f"standard deviation {deviation}, least {facts.least:.2f}, most {facts.most:.2f} %")
    console.result(f"{facts.share_over_gate:.0%} of the runs reach {facts.gate:.2%}")
    low, high = facts.wilson
    console.result(f"what {facts.n:,} images can tell of such a network: {low:.2f} – {high:.2f} % (Wilson, 95 %)")
