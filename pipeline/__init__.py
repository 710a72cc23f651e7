"""From a small network to an edge GPU, with proof at every step that it still is the same network.

train    recipe and pixels                -> checkpoint     PyTorch, with the given schedule
fold     checkpoint                       -> folded         BatchNorm and normalisation into the convolutions
export   folded                           -> onnx           raw uint8 pixels in, float32 logits out
half     onnx                             -> fp16           float16 weights and arithmetic, in the graph itself
build    fp16                             -> engine         TensorRT, strongly typed: float16 or no engine
verify   every form                       -> verification   the test set through each runtime, against the gate
bench    every form                       -> latency        percentiles of single requests, throughput

Every file carries its record (`pipeline.artifact`): digest, parents' digests, options, versions, facts.
`pipeline.chain` knows which of them are still fresh; `pipeline.runtimes` runs them.
"""

__version__ = "0.1.0"
