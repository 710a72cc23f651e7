"""A Triton Inference Server model repository of the forms: one model a form, version 1.

The format: https://docs.nvidia.com/deeplearning/triton-inference-server/ (model repository, model configuration).
Dimensions and types are read off each file, so that the configuration can't say other than the model.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.graph import load as onnx_file
from pipeline.records import disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Verification
from pipeline.stages import verify

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}
LARGEST = 64  # images that the server may put into one request
DELAY = 100  # microseconds that a request waits for others to join it

CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {largest}
input [ {{ name: "{image[0]}", data_type: {image[1]}, dims: {image[2]} }} ]
output [ {{ name: "{logits[0]}", data_type: {logits[1]}, dims: {logits[2]}, label_filename: "labels.txt" }} ]
dynamic_batching {{ preferred_batch_size: [ 8, {largest} ], max_queue_delay_microseconds: {delay} }}
model_warmup [ {{
  name: "{largest} images", batch_size: {largest}
  inputs {{ key: "{image[0]}", value: {{ data_type: {image[1]}, dims: {image[2]}, zero_data: true }} }}
}} ]
"""


def files(forms: list[Artifact]) -> dict[str, bytes]:
    """The repository's files by name: `MODEL/config.pbtxt`, `MODEL/labels.txt`, `MODEL/1/model.onnx`."""
    found = {}
    for form in forms:
        name = form.name.removesuffix(".onnx").replace(".", "_")
        labels = "\n".join(form.facts.model.classes) + "\n"
        found |= {
            f"{name}/config.pbtxt": config(name, form).encode(),
            f"{name}/labels.txt": labels.encode(),
            f"{name}/1/model.onnx": manifest.content(form),
        }
    return found


def config(name: str, form: Artifact) -> str:
    """A form's `config.pbtxt`. The batch dimension isn't named in it: `max_batch_size` stands for it."""
    graph = onnx_file.load(form).graph
    image, logits = (_tensor(value) for value in (graph.input[0], graph.output[0]))
    return CONFIG.format(name=name, largest=LARGEST, delay=DELAY, image=image, logits=logits)


def _tensor(value: onnx_file.ValueInfoProto) -> tuple[str, str, list[int]]:
    import onnx

    kind = value.type.tensor_type
    element = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return value.name, TYPES[element], [dim.dim_value for dim in kind.shape.dim[1:]]


def against(folder: Path, model: str) -> list[str]:
    """What stands against a repository of a model: a verification that is missing, failed, or about something else."""
    try:
        proof = msgspec.json.decode((folder / verify.FILE).read_bytes(), type=Verification)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return [f"{verify.FILE}: missing or no verification: expected the proof of these files"]
    proven, passed = {row.sha256 for row in proof.rows}, proof.passed and not proof.failures and proof.model == model
    found = [] if passed else [f"{verify.FILE}: failed, or is about another model than {model}"]
    models = sorted(folder.glob("*/*/model.onnx"))
    for path in models:
        if (sha := disk.digest(path)) not in proven:
            found.append(f"{path.relative_to(folder)}: was not verified: received sha256 {sha}")
    return found if models else ["there is no model in it"]
