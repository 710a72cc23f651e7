"""Take a trained image classifier to an edge GPU, with proof at every step that it still is the same classifier.

train    a model file, an image set   -> checkpoint     PyTorch, with the model's recipe
export   checkpoint                   -> unfolded       ONNX, uint8 pixels to logits, BatchNorm still in it
adopt    an .onnx from elsewhere      -> unfolded       likewise
fold     unfolded                     -> folded         BatchNorm and normalisation into the convolutions
half     folded                       -> half           float16 weights and arithmetic, in the graph itself
quantize folded                       -> int8           int8 weights and activations, by Q/DQ in the graph
certify  half                         -> certificate    answers that no order of sums can change, proven
build    half                         -> engine         TensorRT, strongly typed: float16 or no engine
verify   every form                   -> verification   the test set through each runtime, against the gate
bench    every form                   -> latency        percentiles of single requests, throughput

`pipeline ship` makes a release of the result; `load` runs it from Python:

    from pipeline import load
    classifier = load("mnist_cnn.onnx")
    classifier(images)  # uint8 [n, 28, 28] to float32 logits [n, 10]

A model file defines `MODEL = Model(...)`, with `Recipe`s; see `models/mnist_cnn.py`. Every artifact has a record in its
folder's `chain.json` (`pipeline.records.manifest`); `pipeline.chain` knows which are still fresh.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.runtimes.classifier import Classifier as Classifier
    from pipeline.runtimes.classifier import load as load
    from pipeline.training.model import Model as Model
    from pipeline.training.model import Recipe as Recipe

__version__ = "0.2.0"
_PUBLIC = {
    "Classifier": "pipeline.runtimes.classifier",
    "load": "pipeline.runtimes.classifier",
    "Model": "pipeline.training.model",
    "Recipe": "pipeline.training.model",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that importing the package costs nothing."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
