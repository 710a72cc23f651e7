"""From a small network to an edge GPU, with proof at every step that it still is the same network.

train    recipe and pixels                -> checkpoint     PyTorch, with the given schedule
fold     checkpoint                       -> folded         BatchNorm and normalisation into the convolutions
export   folded                           -> onnx           raw uint8 pixels in, float32 logits out
half     onnx                             -> fp16           float16 weights and arithmetic, in the graph itself
build    fp16                             -> engine         TensorRT, strongly typed: float16 or no engine
verify   every form                       -> verification   the test set through each runtime, against the gate
bench    every form                       -> latency        percentiles of single requests, throughput

`pipeline ship` hands the result over, signed; `load` runs it from Python:

    from pipeline import load
    model = load("mnist_cnn.onnx")
    model(images)  # uint8 [n, 28, 28] to float32 logits [n, 10]

Every file carries its record (`pipeline.artifact`): digest, parents' digests, options, versions, facts.
`pipeline.chain` knows which of them are still fresh; `pipeline.runtimes` runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.model import Model as Model
    from pipeline.model import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load`, imported when it is asked for: importing a package costs nothing heavy."""
    if name == "load":
        from pipeline.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
