"""Label a model's training images by a larger network, for `train` to use besides the labels that they have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pipeline import chain, console, stages
from pipeline.data import imagesets
from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import run as graphs
from pipeline.records import code, disk, manifest
from pipeline.records.forms import Labels, ModelCard
from pipeline.records.manifest import Artifact
from pipeline.runtimes import pytorch
from pipeline.stages import Data, Out, check, train
from pipeline.training import labels, models, trainer
from pipeline.training.augmentation import augment
from pipeline.training.trainer import Trainer

if TYPE_CHECKING:
    import torch

KIND, FILE = "labels", labels.FILE
NEEDS = ("torch", "safetensors")


def run(
    model: str,
    *,
    out: Out,
    to: Annotated[Path | None, "Folder for the labels; by default that of the model file, where `train` looks."] = None,
    teacher: Annotated[
        str | None, "A model's name, or a checkpoint of one; by default the teacher that the model file names."
    ] = None,
    data: Data = None,
    hold_out: Annotated[int, "Leave N training images out, to choose settings by: neither teacher nor labels."] = 0,
    views: Annotated[int, "Views of an image that are averaged: itself, and others augmented as in training."] = 4,
    train_threads: Annotated[int | None, "Threads to train a teacher with; by default as `train` has them."] = None,
) -> Artifact:
    """Train a teacher and write its answers for the training images, for `train` to use besides their own labels.

    The teacher's checkpoint goes to `out`; one that is there and fresh is used again. It may be any model of the same
    input and classes, trained on the same images.
    """
    train.expect(data=data)
    taught = check.model(model)
    if (name := teacher or taught.teacher) is None:
        raise UsageError(f'{models.file(model)}: names no teacher: expected MODEL.teacher = "NAME", or --teacher')
    if not 1 <= views <= 1000:
        raise UsageError(f"--views: expected 1 to 1000, received {views}")
    source, folder = data or taught.data, to or labels.beside(model).parent
    if to is None and (hold_out or source != taught.data):
        what = "--hold-out" if hold_out else "--data"
        raise UsageError(f"{what}: labels of other images than {model}'s: expected --to FOLDER, too, for those")
    disk.check_writable(folder, "--to")
    images, _ = imagesets.split(source, taught.input, taught.classes, hold_out, None)
    checkpoint = _teacher(name, taught.card(model), source, hold_out, train_threads, out)
    if checkpoint.options["images"] != images.digests:
        raise UsageError(
            f"{checkpoint.path}: was trained on other images: expected {images.name}, {len(images)} images"
        )
    logits = _answers(checkpoint, images.images, views)
    if not np.isfinite(logits).all():
        raise CheckFailed(f"{checkpoint.path}: gives logits that are no numbers: expected a trained teacher")
    facts = Labels(
        model=model,
        teacher=checkpoint.facts.model.name,
        teacher_accuracy=checkpoint.facts.test_accuracy,
        images=len(images),
        classes=len(taught.classes),
        agreeing=float((logits.argmax(1) == images.labels).mean()),
    )
    return manifest.write(
        folder / FILE.format(model=model),
        labels.pack(logits),
        facts=facts,
        parents={checkpoint.name: checkpoint.sha256} | images.digests,
        options={"views": views, "teacher": {**checkpoint.options, "images": images.name}},
        versions=manifest.versions("torch", "safetensors", "numpy"),
        code=code.digest(__name__),
    )


def _teacher(name: str, taught: ModelCard, data: str, hold_out: int, train_threads: int | None, out: Path) -> Artifact:
    """Return the checkpoint called so, or that of the model called so, which is trained if need be.

    UsageError if its input or classes aren't those of the model that it is to teach.
    """

    def expect(teacher: ModelCard) -> None:
        if (teacher.input, teacher.classes) != (taught.input, taught.classes):
            theirs, ours = (f"{each.input}, {len(each.classes)} classes" for each in (teacher, taught))
            raise UsageError(f"{name}: a model for {theirs}: expected {ours} of the same names")

    if name.endswith(".safetensors"):
        checkpoint = manifest.read(Path(name))
        if checkpoint.kind != "checkpoint":
            raise UsageError(f"{name}: holds {checkpoint.kind}: expected a checkpoint, as `pipeline train` makes them")
        expect(checkpoint.facts.model)
        return checkpoint
    expect(check.model(name).card(name))
    how: dict[str, Any] = {"data": data, "hold_out": hold_out, "train_threads": train_threads}
    with disk.held(out):
        checkpoint, state = chain.make(stages.get("train"), [name], name, out=out, **how)
    console.say(f"{checkpoint.path}: {state}, {checkpoint.facts.test_accuracy:.2%}")
    return checkpoint


def _answers(checkpoint: Artifact, images: np.ndarray, views: int) -> np.ndarray:
    """Return a teacher's mean logits `[n, classes]`, float32, over views of uint8 images `[n, c, h, w]`.

    Augmented views are as in the last epoch of the teacher's own training.
    """
    import torch

    how = Trainer.of(checkpoint.options)
    torch.set_num_threads(how.threads)
    network, vary = pytorch.network(checkpoint), how.model.augment or augment
    layout = models.memory_format(network, how.model.input)
    network.to(memory_format=layout)
    strength = trainer.augmentation(how.recipe, how.recipe.epochs - 1)
    generator = torch.Generator().manual_seed(how.seed << 16)

    def answers(part: torch.Tensor) -> torch.Tensor:
        logits = []
        for view in range(views):
            pixels = part.float() / 255
            if view and strength > 0:
                pixels = vary(pixels, generator, how.recipe, strength)
            pixels = trainer.normalised(pixels, how.model)
            logits.append(network(pixels.contiguous(memory_format=layout)))
        return torch.stack(logits).mean(0).flatten(1)

    parts = torch.from_numpy(images).split(graphs.batch_size(images))
    with torch.inference_mode(), console.progress(len(parts), "batch", "label") as bar:
        made = []
        for part in parts:
            made.append(answers(part))
            bar.update()
    return torch.cat(made).numpy()


def show(made: Artifact) -> None:
    """Print whose labels they are and how often they are the images' own."""
    facts = made.facts
    console.result(
        f"{facts.images:,} training images of {facts.model} labelled by {facts.teacher} (accuracy "
        f"{facts.teacher_accuracy:.2%}), which agrees with {facts.agreeing:.2%} of their own labels"
    )
