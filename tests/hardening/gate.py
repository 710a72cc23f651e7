"""Ways to fool the gate, each tried: refused, or reported by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data.imagesets import ImageSet
from pipeline.errors import PipelineError
from pipeline.graph import load as onnx_file
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.release import contents
from pipeline.runtimes import onnxruntime
from pipeline.stages import verify
from tests.hardening import Place, Row


def run(place: Place, scale: float) -> list[Row]:
    """Test sets that aren't one, models that aren't one, a runtime that isn't the one asked for."""
    row = Row("gate", "attempts to fool the gate")
    with tempfile.TemporaryDirectory() as scratch:
        for name, expected, attempt in _attempts(place, Path(scratch)):
            try:
                attempt()
                row.note(f"{name}: passed")
            except PipelineError as error:
                row.note(None if expected in str(error) else f"{name}: expected {expected!r}, said {str(error)[:200]}")
    return [row]


def verified(*forms: Artifact, **options: object) -> Artifact:
    """Verify, and raise what failed."""
    made = verify.run(*forms, **options)
    if made.facts.failures:
        raise PipelineError("; ".join(made.facts.failures))
    return made


def _attempts(place: Place, scratch: Path) -> list[tuple[str, str, Callable[[], object]]]:
    test, train = place.images(), place.images("train")
    form = manifest.read(place.chain / "mnist_cnn.onnx")
    chance = np.random.default_rng(0)
    order = chance.permutation(len(test))

    def on(images: np.ndarray, labels: np.ndarray, gate: float = 0.8) -> Callable[[], object]:
        path = scratch / f"{len(list(scratch.iterdir()))}.npz"
        np.savez(path, images=images, labels=labels)
        return lambda: verified(form, data=str(path), gate=gate)

    second = "expected MNIST test set, 10000 images"
    blind = "the same logits whatever the image"

    def proof(images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
        """A verification made with a set that is fine by itself, but not the model's test set."""

        def attempt() -> None:
            path = scratch / f"{len(list(scratch.iterdir()))}.npz"
            np.savez(path, images=images, labels=labels)
            made = verify.run(form, data=str(path), out=scratch / path.stem, gate=form.facts.model.gate - 0.05)
            if gaps := list(contents.proof_gaps(made, [form])):
                raise PipelineError("; ".join(gaps))

        return attempt

    return [
        ("labels of other images", "is under the gate", on(test.images, test.labels[order])),
        ("images in another order", "is under the gate", on(test.images[order], test.labels)),
        ("labels moved by one", "is under the gate", on(test.images, (test.labels + 1) % 10)),
        ("the set twice", "are in it more than once", on(np.tile(test.images, (2, 1, 1, 1)), np.tile(test.labels, 2))),
        ("training images", "images are also in MNIST training set", on(train.images[:2000], train.labels[:2000])),
        ("one training image", "1 of 501 images", on(*_mixed(test, train))),
        ("the first half as proof", second, proof(test.images[:5000], test.labels[:5000])),
        ("the easy ones as proof", second, proof(*_easy(form, test))),
        ("logits that are no numbers", "not finite numbers", lambda: _altered(form, scratch, place, np.nan)),
        ("a model that ignores its input", blind, lambda: _altered(form, scratch, place, 0)),
        ("over the gate, but worse than when trained", "is worse than", lambda: _forgetful(form, scratch, place)),
        ("one label, and a model that says it", blind, lambda: _one_label(form, scratch, test)),
        ("a GPU where there is none", "CUDAExecutionProvider", lambda: _on_gpu(form, place)),
        ("a provider that falls back in silence", "fell back to", lambda: _falls_back(form)),
    ]  # fmt: skip


def _mixed(test: ImageSet, train: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    images = np.concatenate([test.images[:500], train.images[77:78]])
    return images, np.concatenate([test.labels[:500], train.labels[77:78]])


def _easy(form: Artifact, test: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    wrong = {int(index) for index in form.facts.reference.wrong}
    kept = [index for index in range(len(test)) if index not in wrong]
    return test.images[kept], test.labels[kept]


def _copy(form: Artifact, scratch: Path, value: float, which: slice = slice(None)) -> Artifact:
    """The form with one number for the weights of its last convolution, or of some outputs of it; its record fits."""
    import onnx

    model = onnx_file.load(form)
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    for tensor in model.graph.initializer:
        if tensor.name == last.input[1]:
            weights = onnx.numpy_helper.to_array(tensor).copy()
            weights[which] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    path = scratch / f"{value}-{which.stop}-{form.name}"
    return manifest.write(path, model.SerializeToString(), parents=form.parents, facts=form.facts)


def _altered(form: Artifact, scratch: Path, place: Place, value: float) -> object:
    return verified(_copy(form, scratch, value), data=str(place.data), gate=0.0)


def _forgetful(form: Artifact, scratch: Path, place: Place) -> object:
    """One that never says 0: of every ten images it still gets eight or nine."""
    return verified(_copy(form, scratch, 0, slice(0, 1)), data=str(place.data), gate=0.5)


def _one_label(form: Artifact, scratch: Path, test: ImageSet) -> object:
    path = scratch / "zeros.npz"
    which = test.labels == 0
    np.savez(path, images=test.images[which], labels=test.labels[which])
    return verified(_copy(form, scratch, 0), data=str(path), gate=0.99)


def _on_gpu(form: Artifact, place: Place) -> object:
    return verify.run(form, data=place.data, provider="cuda")


def _falls_back(form: Artifact) -> object:
    """ONNX Runtime says which provider it took: here it is made to take another one than was asked for."""
    import onnxruntime as library

    said = library.InferenceSession.get_providers
    library.InferenceSession.get_providers = lambda self: ["AzureExecutionProvider"]
    try:
        return onnxruntime.load(form)
    finally:
        library.InferenceSession.get_providers = said
