"""Take an ONNX classifier from elsewhere into the chain."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import numpy as np

from pipeline import console
from pipeline.data import imagesets, sources
from pipeline.errors import UsageError, reason
from pipeline.graph import adopt, load, metadata, passes
from pipeline.graph import run as graphs
from pipeline.measure import statistics
from pipeline.records import code, kinds, manifest
from pipeline.records.forms import ModelCard, Reference, Unfolded
from pipeline.records.manifest import Artifact
from pipeline.stages import Out, export, fold, half

if TYPE_CHECKING:
    from onnx import ModelProto

KIND, FILE = export.KIND, export.FILE
NEEDS = ("onnxruntime",)
CHARACTERS = {"name": "letters, digits and underscores", "version": "letters, digits, points, dashes and underscores"}
MARGIN = 0.005  # how far under the file's own accuracy its gate is, unless one is given


def run(
    file: Path,
    *,
    name: Annotated[str, "Name of the model: letters, digits and underscores; files are named by it."],
    classes: Annotated[str, "Class names in output order, separated by commas, or a text file with one per line."],
    mean: Annotated[str, "Mean of the pixels scaled to 0..1: one number, or one per channel, separated by commas."],
    std: Annotated[str, "Standard deviation of the pixels scaled to 0..1, likewise."],
    data: Annotated[str, "Image set with labelled test images, and training images for `half`; see `train -h`."],
    out: Out,
    gate: Annotated[float | None, "Least test accuracy, 0 to 1; by default the file's own less 0.005."] = None,
    title: Annotated[str | None, "What the model is, in a line; by default its name."] = None,
    version: Annotated[str, "Version of the model."] = "1.0.0",
    licence: Annotated[str, "Licence of the model."] = "unknown",
    prepare: Annotated[Literal["resize", "digit"], "How `predict` prepares pictures; digit: as MNIST's."] = "resize",
) -> Artifact:
    """Adopt an ONNX file: float32 image input, NCHW or NHWC, opset 7 or later, fixed or free batch, Softmax or not.

    The adopted graph takes raw uint8 pixels; its answers are compared with the file's own in ONNX Runtime over the
    whole test set. They are the reference that all later forms are held against, and the file's sha256 is the parent.
    Then `pipeline fold`, `half`, `build`, `verify`, `bench` and `ship` work as for a trained model.

    Raises CheckFailed, naming what stands in the way, for a graph that the chain can't take.
    """
    if not file.is_file():
        raise UsageError(f"{file}: {'a folder' if file.is_dir() else 'no such file'}: expected an ONNX file")
    origin = f"{file.name} as adopted"  # the chain's own file may have its name
    if not kinds.is_file_name(origin):
        raise UsageError(f"{file}: can't be put on record: expected a printable name without a dot in front; rename it")
    for stage in (FILE, fold.FILE, half.FILE):
        if (own := out / stage.format(model=name)).exists() and own.samefile(file):
            raise UsageError(
                f"{file}: later stages write a file of this name to {out}: expected another --out or --name"
            )
    path = out / FILE.format(model=name)
    if manifest.claimed_kind(path) == "unfolded" and not manifest.recall(path).facts.adopted:
        raise UsageError(f"{path}: was exported from a network trained here: expected another --out or --name")
    content = file.read_bytes()
    names = _classes(classes)
    source = adopt.parse(content, str(file))
    (channels, height, width), channels_last, batch = adopt.image_input(source, str(file))
    card = _card(
        file, name=name, title=title or name, version=version, licence=licence, data=str(data),
        classes=names, gate=gate or 0,
        input=[channels, height, width], mean=_numbers("mean", mean, channels), std=_numbers("std", std, channels),
        input_meaning=f"raw uint8 pixels, {channels} × {height} × {width}, no normalisation: that is in the graph",
        prepare=prepare,
    )  # fmt: skip
    activation, original = adopt.last_activation(source), load.parse(content, str(file))
    model = passes.strip(adopt.adopt(source, card.mean, card.std, len(names), str(file)))
    split = imagesets.load(data, "test", card.input, card.classes)
    if sources.has_training_images(data):
        imagesets.remark_shared(split, imagesets.load(data, "train", card.input, card.classes))
    else:
        console.say(f"--data {data}: has no training images, which `half` and `quantize` ask for: give those --data")
    expected = _answers(original, card, channels_last, batch, split.images, str(file))
    right = expected.argmax(1) == split.labels
    if right.mean() <= 1 / len(names):
        console.say(
            f"{file}: {right.mean():.2%} of {split.name} right is no better than chance: expected --classes in the "
            "order of its outputs, and --mean, --std and images as in its training"
        )
    logits = graphs.outputs(model, split.images, str(file))
    alone = np.concatenate([graphs.outputs(model, each[None], str(file)) for each in split.images[:4]])
    graphs.check_same(logits[:4], alone, f"{file}: an answer depends on the batch's other images; alone it differs")
    difference = graphs.check_same(
        expected, _activated(logits, activation), f"{file}: adopted, an answer differs from the file's own"
    )
    if activation:
        console.say(f"{file}: {activation} at its end is left out: the adopted file gives logits")
    if gate is None:
        card = msgspec.structs.replace(card, gate=max(0.0, round(float(right.mean()) - MARGIN, 4)))
    reference = Reference(
        name=split.name, digests=split.digests, n=len(split), correct=int(right.sum()),
        wrong={str(index): int(expected[index].argmax()) for index in np.flatnonzero(~right)},
    )  # fmt: skip
    sha256 = hashlib.sha256(content).hexdigest()
    metadata.describe(model, card, reference, sha256)
    facts = Unfolded(
        model=card,
        reference=reference,
        **metadata.facts(model),
        batch_norms=passes.batch_norms(model),
        difference=difference,
        adopted=metadata.opset(original),
    )
    return manifest.write(
        path,
        model.SerializeToString(deterministic=True),
        facts=facts,
        parents={origin: sha256},
        options={"gate": gate},
        versions=manifest.versions("onnx", "onnxruntime", "onnxruntime-gpu"),
        code=code.digest(__name__),
    )


def _classes(text: str) -> list[str]:
    """Read class names from the option, or from a file with one per line."""
    path = Path(text)
    if "," not in text and path.is_file():
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UsageError(f"--classes {text}: expected a text file in UTF-8: {reason(error)}") from error
    else:
        names = [name.strip() for name in text.split(",")]
    if len(names) < 2 or len(set(names)) < len(names):
        received = "" if "," in text or path.is_file() else "; there is no such file"
        raise UsageError(
            f"--classes {text}: expected two or more different names, or a text file with one per line{received}"
        )
    return names


def _numbers(option: str, text: str, channels: int) -> list[float]:
    try:
        values = [float(each) for each in text.split(",")]
    except ValueError:
        raise UsageError(f"--{option} {text}: expected numbers separated by commas") from None
    if len(values) not in (1, channels):
        raise UsageError(f"--{option} {text}: expected one number, or {channels}, one per channel")
    return values * (channels // len(values))


def _card(file: Path, **values: object) -> ModelCard:
    try:
        return msgspec.convert(values, ModelCard)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        field = re.split(r"\W", place)[0]
        characters = CHARACTERS.get(field, "printable characters")
        what = re.sub("`str` matching regex.*", characters, what).replace("Expected", "expected")
        if field:
            what = re.sub("`(int|float)`", "a number", what)
            place = f"{file}: input" if field == "input" else f"--{field}"
            value = values[field]
            if field in ("mean", "std") and isinstance(value, list):  # one number may stand for every channel
                value = value if len(set(value)) > 1 else value[0]
            what = f"{place}: {what}, received {value!r}"[:300]
        raise UsageError(what) from error


def _answers(
    original: ModelProto, card: ModelCard, channels_last: bool, batch: int, images: np.ndarray, name: str
) -> np.ndarray:
    """The file's own answers `[n, classes]`, float32, in ONNX Runtime, to images normalised by numpy."""
    parts, size = [], batch or graphs.batch_size(images)
    session = graphs.session(original, name)
    image = session.get_inputs()[0].name
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (card.mean, card.std))
    with console.progress(len(images), "image", "the file's own answers") as bar:
        for start in range(0, len(images), size):
            part = images[start : start + size].astype(np.float32)
            part = (part / np.float32(255) - mean) / std
            filled = np.zeros((size, *part.shape[1:]), np.float32) if batch else part
            filled[: len(part)] = part
            pixels = np.ascontiguousarray(filled.transpose(0, 2, 3, 1)) if channels_last else filled
            with graphs.running(name):
                answers = session.run(None, {image: pixels})[0]
            parts.append(answers.reshape(len(filled), -1)[: len(part)])
            bar.update(len(part))
    return np.concatenate(parts)


def _activated(logits: np.ndarray, activation: str | None) -> np.ndarray:
    """Logits as the file gives them: behind its own Softmax or LogSoftmax, if it has one."""
    if activation is None:
        return logits
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log if activation == "LogSoftmax" else np.exp(log)


def show(adopted: Artifact) -> None:
    """What was adopted, how near it is to the file, and its gate."""
    facts = adopted.facts
    accuracy = facts.reference.correct / facts.reference.n
    operators = ", ".join(f"{count} {name}" for name, count in facts.operators.items())
    console.result(f"opset {facts.adopted} → {facts.opset}: {operators}")
    console.result(
        f"accuracy {accuracy:.2%} on {facts.reference.name}, gate {facts.model.gate:.2%}; largest difference to the "
        f"file's own answers: {facts.difference:.2g} of the largest"
    )
    statistics.remark_few(facts.reference.name, facts.reference.n, facts.reference.correct)
