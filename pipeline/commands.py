"""Every command there is, in the order that the help shows them; none of their modules is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol


class Module(Protocol):
    """What a command's file defines: `run`, and more, which may be left out where it has a default here."""

    NEEDS: tuple[str, ...] = ()  # modules that it imports besides those of the base install

    ALSO: Mapping[str, str] = {}  # kinds it takes besides the one its argument is named by; the file made of each

    @staticmethod
    def show(made: Any) -> None:
        """Print the result for people."""

    @staticmethod
    def missing() -> str | None:
        """What this machine lacks besides modules, and how to get it."""
        return None


def with_defaults(module: ModuleType, protocol: type) -> ModuleType:
    """A module, and for what it leaves out the defaults of its protocol."""
    for each in protocol.__mro__:
        for name in vars(each):
            if not name.startswith("_"):
                vars(module).setdefault(name, getattr(each, name))
    return module


@dataclass(frozen=True)
class Command:
    """A command of the command line: its `run` function is in `module`."""

    name: str
    module: str
    summary: str
    example: str

    def load(self) -> ModuleType:
        """Import the command's module, a `Module`."""
        return with_defaults(importlib.import_module(self.module), Module)


GROUPS: dict[str, tuple[Command, ...]] = {
    "Stages": (
        Command("check", "pipeline.stages.check", "Check a model file in seconds, before any data is touched.",
                "pipeline check mnist_cnn"),
        Command("train", "pipeline.stages.train", "Train a model with its recipe.",
                "pipeline train mnist_cnn --seed 1 --out try"),
        Command("export", "pipeline.stages.export", "Export a checkpoint to ONNX: uint8 pixels to float32 logits.",
                "pipeline export out/mnist_cnn.safetensors"),
        Command("adopt", "pipeline.stages.adopt", "Take an ONNX file from elsewhere into the chain.",
                "pipeline adopt theirs.onnx --name theirs --classes names.txt --mean .48 --std .23 --data theirs.npz"),
        Command("fold", "pipeline.stages.fold", "Fold BatchNorm and the normalisation into the convolutions.",
                "pipeline fold out/mnist_cnn.unfolded.onnx"),
        Command("half", "pipeline.stages.half", "Convert weights and arithmetic to float16.",
                "pipeline half out/mnist_cnn.onnx"),
        Command("quantize", "pipeline.stages.quantize", "Quantise to INT8, behind an accuracy gate.",
                "pipeline quantize out/mnist_cnn.onnx"),
        Command("certify", "pipeline.stages.certify", "Prove which float16 answers no order of sums can change.",
                "pipeline certify artifacts/mnist_cnn.fp16.onnx"),
        Command("build", "pipeline.stages.build", "Compile an ONNX file to a strongly typed TensorRT engine.",
                "pipeline build artifacts/mnist_cnn.fp16.onnx --runtime tensorrt-rtx --target sm86,sm89"),
        Command("verify", "pipeline.stages.verify", "Measure the test accuracy of every form against the gate.",
                "pipeline verify artifacts/mnist_cnn.onnx artifacts/mnist_cnn.fp16.onnx"),
        Command("bench", "pipeline.stages.bench", "Measure latency and throughput of every form.",
                "pipeline bench artifacts/mnist_cnn.onnx --batch 1"),
    ),
    "Release": (
        Command("ship", "pipeline.release.ship", "Make a release: files, proof, card, report, one archive.",
                "pipeline ship artifacts --sign-key key.pem"),
        Command("verify-release", "pipeline.release.verify_release", "Check a release's bytes, signature and proof.",
                "pipeline verify-release release/mnist_cnn-1.0.0 --public-key pub.pem"),
        Command("predict", "pipeline.apps.predict", "Classify pictures.",
                "pipeline predict photo.jpg scans/ --model artifacts/mnist_cnn.fp16.onnx"),
        Command("demo", "pipeline.apps.demo", "Serve a local page to draw a digit on and see the answer.",
                "pipeline demo --open"),
    ),
    "On the device": (
        Command("deploy", "pipeline.device.deploy", "Check, build, verify and measure a release, here or over SSH.",
                "pipeline deploy release/mnist_cnn-1.0.0 --public-key pub.pem"),
        Command("doctor", "pipeline.device.doctor", "Show what this machine can do and what is missing.",
                "pipeline doctor"),
    ),
    "Experiments": (
        Command("teach", "pipeline.experiments.teach", "Train a model's teacher and have it label the training images.",
                "pipeline teach mnist_cnn"),
        Command("study", "pipeline.experiments.study", "Train one recipe with many seeds; summarise accuracies.",
                "pipeline study --recipe best --seeds 10"),
        Command("sweep", "pipeline.experiments.sweep.command", "Search learning rate and gamma on held-out images.",
                "pipeline sweep --sampler tpe --trials 30 --name tpe"),
    ),
}  # fmt: skip
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}
CHAIN = {  # the examples of the commands about the whole chain, which the command line itself has
    "run": "pipeline run mnist_cnn",
    "status": "pipeline status artifacts",
    "models": "pipeline models",
    "show": "pipeline show artifacts/mnist_cnn.onnx",
}
EXAMPLES = {name: command.example for name, command in COMMANDS.items()} | CHAIN
