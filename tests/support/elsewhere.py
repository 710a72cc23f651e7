"""Images and an ONNX file as users bring their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

COLOURS = ("red", "green", "blue")


def pictures(folder: Path, train: int, test: int) -> Path:
    """Class folders of pictures in which one colour is strongest, each of a size of its own."""
    chance = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(COLOURS):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                size = (*chance.integers(50, 90, 2), 3)
                pixels = chance.integers(0, 140, size)
                pixels[..., label] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


def classifier(
    tmp_path: Path,
    *,
    last: str = "Softmax",
    layout: str = "NCHW",
    batch: int = 1,
    opset: int = 9,
    target: str = "initializer",
) -> Path:
    """A small ONNX file as another tool might have written it: fixed batch, Softmax, weights among the inputs."""
    chance = np.random.default_rng(0)
    weights = {"w": chance.normal(0, 0.2, (6, 3, 3, 3)), "v": chance.normal(0, 0.5, (6, 3)), "b": np.zeros(3)}
    shape = [batch, 3, 16, 16] if layout == "NCHW" else [batch, 16, 16, 3]
    nodes = [helper.make_node("Transpose", ["images"], ["x"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    nodes += [helper.make_node("Conv", ["x" if nodes else "images", "w"], ["c"], pads=[1, 1, 1, 1]),
              helper.make_node("Relu", ["c"], ["r"]), helper.make_node("GlobalAveragePool", ["r"], ["p"]),
              helper.make_node("Reshape", ["p", "s"], ["f"]),
              helper.make_node("Gemm", ["f", "v", "b"], ["scores" if last else "logits"])]  # fmt: skip
    if opset >= 14:  # as PyTorch's exporter writes it
        nodes[-2].attribute.append(helper.make_attribute("allowzero", 1))
    if last:
        nodes.append(helper.make_node(last, ["scores"], ["logits"], axis=1))
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    reshape = numpy_helper.from_array(np.array([batch, 6]), "s")
    if target == "Constant":
        nodes.insert(0, helper.make_node("Constant", [], ["s"], value=reshape))
    else:
        tensors.append(reshape)
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in tensors]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors),
                              opset_imports=[helper.make_opsetid("", opset)], ir_version=3)  # fmt: skip
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "theirs.onnx")
    return tmp_path / "theirs.onnx"
