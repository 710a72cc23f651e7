"""Networks of the `onnx` package (Caffe2's, operator set 9), with weights filled in: real files from elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
NAMES = sorted(path.stem for path in FOLDER.glob("*.onnx"))


def filled(name: str, seed: int = 0) -> onnx.ModelProto:
    """A light model with seeded random weights in place of its ConstantOfShape nodes, of a size that keeps the signal.

    Weights have deviation sqrt(2 / fan-in) (He et al., 2015). BatchNorm's variances lie about 1, its scales, too, but
    below it where residual sums would let the signal grow from block to block.
    """
    model = onnx.load(FOLDER / f"{name}.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    uses = {}
    for node in model.graph.node:
        for index, each in enumerate(node.input):
            uses.setdefault(each, (node.op_type, index))
    chance, kept, weights = np.random.default_rng(seed), [], []
    scales = (0.5, 0.9) if any(node.op_type == "Sum" for node in model.graph.node) else (0.8, 1.2)
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape, use = constants[node.input[0]], uses.get(node.output[0], ("", 0))
        weights.append(numpy_helper.from_array(_weight(chance, shape, scales, *use), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(weights)
    for each in weights:  # up to IR version 3, every initialiser is an input, too
        model.graph.input.append(onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    return model


def _weight(
    chance: np.random.Generator, shape: np.ndarray, scales: tuple[float, float], operator: str, index: int
) -> np.ndarray:
    shape = tuple(int(edge) for edge in shape)
    if operator == "BatchNormalization" and index in (1, 4):
        return chance.uniform(*(scales if index == 1 else (0.8, 1.2)), shape).astype(np.float32)
    if len(shape) < 2:
        scale = operator in ("Mul", "Unsqueeze")
        return (chance.uniform(0.8, 1.2, shape) if scale else chance.normal(0, 0.1, shape)).astype(np.float32)
    fan_in = shape[-1] if operator == "Gemm" else int(np.prod(shape[1:]))
    return chance.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
