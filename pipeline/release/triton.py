"""A model repository of Triton Inference Server: a model for each form, version 1.

The format: https://docs.nvidia.com/deeplearning/triton-inference-server/ (model repository, model configuration).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from pipeline.records import disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Verification
from pipeline.stages import verify

LARGEST = 64  # images that the server may put into one request

# `max_batch_size` stands for the batch dimension; after the delay a request waits no longer for others to join it.
CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {largest}
input [ {{ name: "images", data_type: TYPE_UINT8, dims: {shape} }} ]
output [ {{ name: "logits", data_type: TYPE_FP32, dims: [{classes}], label_filename: "labels.txt" }} ]
dynamic_batching {{ preferred_batch_size: [ 8, {largest} ], max_queue_delay_microseconds: 100 }}
model_warmup [ {{
  name: "{largest} images", batch_size: {largest}
  inputs {{ key: "images", value: {{ data_type: TYPE_UINT8, dims: {shape}, zero_data: true }} }}
}} ]
"""


def files(forms: Iterable[Artifact]) -> dict[str, bytes]:
    """The repository's files by name: `MODEL/config.pbtxt`, `MODEL/labels.txt`, `MODEL/1/model.onnx`."""
    repository = {}
    for form in forms:
        name, card = form.name.removesuffix(".onnx").replace(".", "_"), form.facts.model
        config = CONFIG.format(name=name, largest=LARGEST, shape=card.input, classes=len(card.classes))
        repository[f"{name}/config.pbtxt"] = config.encode()
        repository[f"{name}/labels.txt"] = ("\n".join(card.classes) + "\n").encode()
        repository[f"{name}/1/model.onnx"] = manifest.content(form)
    return repository


def against(folder: Path, model: str) -> list[str]:
    """The reasons against a repository of a model: no verification, a failed one, or one of something else."""
    try:
        proof = msgspec.json.decode((folder / verify.FILE).read_bytes(), type=Verification)
    except (OSError, ValueError, RecursionError):
        return [f"{verify.FILE}: missing or not a verification: expected the proof of these files"]
    passed = proof.passed and not proof.failures and proof.model == model
    reasons = [] if passed else [f"{verify.FILE}: failed, or is about another model than {model}"]
    models = sorted(folder.glob("*/*/model.onnx"))
    for path in models:
        if (sha := disk.digest(path)) not in {row.sha256 for row in proof.rows}:
            reasons.append(f"{path.relative_to(folder)}: was not verified: received sha256 {sha}")
    return reasons if models else ["expected models, received none"]
