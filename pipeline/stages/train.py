"""Train a model with its recipe and keep the last epoch's weights."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from pipeline import console
from pipeline.data import imagesets
from pipeline.data import sources as image_sources
from pipeline.data.imagesets import ImageSet
from pipeline.errors import CheckFailed, PipelineError
from pipeline.records import code, manifest
from pipeline.records.forms import Checkpoint, Reference, Taught
from pipeline.records.manifest import Artifact
from pipeline.records.reports import History
from pipeline.stages import Data, Out, check, recorded
from pipeline.training import labels as teaching
from pipeline.training import models
from pipeline.training import recipe as recipes
from pipeline.training import resume as snapshot
from pipeline.training.trainer import Trainer, copied

if TYPE_CHECKING:
    import torch

KIND, FILE = "checkpoint", "{model}.safetensors"
NEEDS = ("torch", "safetensors")
SNAPSHOT, HISTORY = "{model}.training.safetensors", "{model}.history.csv"
STUDY = "study-{name}.json"  # of many seeds; those of the project's own models lie in its artifacts/
ARITHMETIC = ("device", "precision", "train_threads")  # another one is another draw of the same recipe

Labels = Annotated[
    str,
    "auto: besides the images' own, a teacher's, if they lie beside the model file and are for these images; hard: the "
    "images' own alone; or a file that `pipeline teach` made.",
]


def run(
    model: str,
    *,
    out: Out,
    data: Data = None,
    recipe: Annotated[str, "Which of the model's recipes: `pipeline show MODEL` lists them."] = "default",
    seed: Annotated[int, "Seed of everything that is random."] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], "Where to train."] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], "Arithmetic of the training; auto: bfloat16 where the device has it."
    ] = "auto",
    train_threads: Annotated[
        int | None, "Processor threads to train with; by default two, or one if there is one."
    ] = None,
    labels: Labels = teaching.AUTO,
    resume: Annotated[
        bool | None, "Continue an interrupted training; by default if there is one with the same options."
    ] = None,
    limit: Annotated[int | None, "Train on only the first N images, for a quick trial."] = None,
    hold_out: Annotated[int, "Hold out N training images and measure on them instead of the test set."] = 0,
    epochs: Annotated[
        int | None, "Passes over the training images. This and the numbers below: by default the recipe's."
    ] = None,
    batch_size: Annotated[int | None, "Images a step."] = None,
    lr: Annotated[float | None, "Highest learning rate of SGD."] = None,
    momentum: Annotated[float | None, "Momentum of SGD."] = None,
    schedule: Annotated[
        Literal["step", "linear"] | None, "Learning rate: StepLR, or up from 0 and down to 0 linearly."
    ] = None,
    step_size: Annotated[int | None, "Epochs between learning-rate steps (StepLR)."] = None,
    gamma: Annotated[float | None, "Factor of a learning-rate step (StepLR)."] = None,
    warmup: Annotated[float | None, "Share of a linear schedule that goes up."] = None,
    dropout: Annotated[float | None, "Share of activations dropped."] = None,
    label_smoothing: Annotated[float | None, "Share of the target spread over all classes."] = None,
    teacher_weight: Annotated[float | None, "Weight of a teacher's labels in the loss."] = None,
    temperature: Annotated[float | None, "Temperature of the distillation from a teacher's labels."] = None,
    rotation: Annotated[float | None, "Augmentation: degrees, either way."] = None,
    shift: Annotated[float | None, "Augmentation: pixels, either way."] = None,
    scale: Annotated[float | None, "Augmentation: relative, either way."] = None,
    shear: Annotated[float | None, "Augmentation: degrees, either way."] = None,
    elastic: Annotated[float | None, "Augmentation: pixels, standard deviation of a smooth field."] = None,
    ease: Annotated[float | None, "Augmentation: how much of it a learning-rate step leaves, or the end."] = None,
) -> Artifact:
    """Train a model with its recipe; the last epoch's weights are the result.

    After every epoch the test set is measured for the log; nothing is chosen by it. To choose a number, measure on
    held-out training images instead (--hold-out). An interrupted training continues after its last whole epoch and
    ends with the same weights as an undisturbed one.
    """
    chosen = recipes.options(**locals())
    expect(data=data)
    trained = check.model(model)
    train, measured = imagesets.split(data or trained.data, trained.input, trained.classes, hold_out, limit)
    imagesets.remark_shared(measured, train)
    if missing := len(trained.classes) - len(set(train.labels.tolist())):
        console.say(f"{train.name}: {missing} of {len(trained.classes)} classes have none of the {len(train)} images")
    numbers = {"teacher_weight": teacher_weight, "temperature": temperature}
    taught, unused = teaching.find(model, labels, train, numbers)
    if unused:
        console.say(unused)
    chosen |= _recorded(train, taught)
    source = "mnist" if train.name == imagesets.MNIST["train"] else data or trained.data
    kept = out / SNAPSHOT.format(model=model)
    network, predictions, history = _epochs(Trainer.of(chosen), train, taught, measured, kept, chosen, resume)
    import safetensors.torch

    path, content = out / FILE.format(model=model), safetensors.torch.save(copied(network.state_dict()))
    how: dict[str, Any] = {"options": chosen, "code": code.digest(__name__, *sources(model))}
    # The checkpoint last: with it on record, training is done, and these are its curves.
    parents = {path.name: hashlib.sha256(content).hexdigest()}
    manifest.write(out / HISTORY.format(model=model), _table(history), facts=History(), parents=parents, **how)
    facts = Checkpoint(
        model=msgspec.structs.replace(trained.card(model), data=source),
        reference=_reference(measured, predictions),
        layers=models.layers(network, trained.input),
        batch_norms=sum("BatchNorm" in type(each).__name__ for each in network.modules()),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        train_accuracy=history[-1]["train_accuracy"],
        test_accuracy=history[-1]["test_accuracy"],
        taught=_taught(taught, chosen),
    )
    versions = manifest.versions("torch", "safetensors", "numpy")
    made_from = train.digests | ({taught.name: taught.sha256} if taught else {})
    checkpoint = manifest.write(path, content, facts=facts, parents=made_from, versions=versions, **how)
    kept.unlink(missing_ok=True)
    if not hold_out and limit is None and facts.test_accuracy < trained.gate:
        console.say(_under_the_gate(checkpoint, recipe))
    return checkpoint


def expect(*, data: str | None, **_: Any) -> None:
    """UsageError for images that aren't there, before the network is checked."""
    if data:
        image_sources.expect(data)


def study(recipe: str, labels: str) -> str:
    """Return the name of the file of a study of a recipe with such labels."""
    return STUDY.format(name=f"{recipe}-hard" if labels == teaching.HARD else recipe)


def _under_the_gate(checkpoint: Artifact, recipe: str) -> str:
    """Return how a training fell short, how many in a study of the same numbers did, and what may help."""
    facts, chosen = checkpoint.facts, checkpoint.options
    model, name = models.get(chosen["model"]), study(recipe, chosen["labels"])
    text = f"seed {chosen['seed']} ends at {facts.test_accuracy:.2%}, under the gate of {model.gate:.2%}"
    with contextlib.suppress(PipelineError):  # of a model without a study, or an installed wheel
        made = manifest.read(models.PACKAGE.parent / "artifacts" / name)
        numbers = made.facts.numbers.items()
        same = all(chosen.get(each) == value for each, value in numbers if each not in ARITHMETIC)
        if same and chosen["images"].items() <= made.parents.items():
            under = sum(accuracy < 100 * made.facts.gate for accuracy in made.facts.accuracies)
            text += f", as {under} of {len(made.facts.accuracies)} seeds did in {name}"
    others = [f"--seed {chosen['seed'] + 1}"] + [f"--recipe {name}" for name in model.recipes if name != recipe]
    return f"{text}: try {' or '.join(others)}"


def _epochs(
    trainer: Trainer,
    train: ImageSet,
    taught: Artifact | None,
    measured: ImageSet,
    kept: Path,
    options: dict[str, Any],
    resume: bool | None,
) -> tuple[torch.nn.Module, np.ndarray, list[dict[str, Any]]]:
    """Train to the end, with a snapshot after each epoch but the last; return the network, its answers, all figures."""
    begun, history = snapshot.resume(kept, options, resume)
    teacher = teaching.unpack(taught) if taught else None
    for network, figures, state in trainer.fit(train.images, train.labels, teacher, begun, len(history)):
        loss, predictions = trainer.measure(network, measured)
        if not math.isfinite(loss + figures["train_loss"]):
            losses = f"{figures['train_loss']:g}, on {measured.name} {loss:g}"
            raise CheckFailed(f"epoch {figures['epoch']} ends with a loss of {losses}: try a smaller --lr")
        correct, n = int((predictions == measured.labels).sum()), len(measured)
        what = "Held-out set" if options["hold_out"] else "Test set"
        console.say(f"{what}: Average loss: {loss:.4f}, Accuracy: {correct}/{n} ({correct / n:.2%})\n")
        history.append({**figures, "test_loss": loss, "test_accuracy": correct / n})
        if len(history) < options["epochs"]:
            snapshot.save(kept, state, options, history)
    return network, predictions, history


def options(model: str, *, data: str | None = None, labels: str = teaching.AUTO, **given: Any) -> dict[str, Any]:
    """Return what a checkpoint depends on: complete options, and the digests of the images and labels they choose."""
    chosen, trained = recipes.options(model, **given), models.get(model)
    how_many = chosen["hold_out"], chosen["limit"]
    train, _ = imagesets.split(data or trained.data, trained.input, trained.classes, *how_many)
    return chosen | _recorded(train, teaching.find(model, labels, train, given)[0])


def _recorded(train: ImageSet, taught: Artifact | None) -> dict[str, Any]:
    return recorded(train, labels=taught.sha256 if taught else teaching.HARD)


def _taught(labels: Artifact | None, options: dict[str, Any]) -> Taught | None:
    if labels is None:
        return None
    return Taught(
        file=labels.name,
        sha256=labels.sha256,
        teacher=labels.facts.teacher,
        teacher_accuracy=labels.facts.teacher_accuracy,
        weight=options["teacher_weight"],
        temperature=options["temperature"],
    )


def sources(model: str) -> tuple[Path, ...]:
    """Return the files besides this module's imports that a checkpoint depends on: the model's own."""
    return (models.file(model),)


def _reference(test: ImageSet, predictions: np.ndarray) -> Reference:
    """Return the answers that every later form is held against: with the labels, the wrong ones tell all of them."""
    wrong = (predictions != test.labels).nonzero()[0]
    return Reference(
        name=test.name,
        digests=test.digests,
        n=len(test),
        correct=len(test) - len(wrong),
        wrong={str(index): int(predictions[index]) for index in wrong},
    )


def _table(rows: list[dict[str, Any]]) -> bytes:
    """Return rows as CSV."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def show(checkpoint: Artifact) -> None:
    """Print the result of a training in a line."""
    facts, what = checkpoint.facts, "held-out" if checkpoint.options["hold_out"] else "test"
    console.result(
        f"{facts.parameters:,} parameters; last epoch: train accuracy {facts.train_accuracy:.2%}, "
        f"{what} accuracy {facts.test_accuracy:.2%}"
    )
