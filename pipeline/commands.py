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

    def load(self) -> ModuleType:
        """Import the command's module, a `Module`."""
        return with_defaults(importlib.import_module(self.module), Module)


GROUPS: dict[str, tuple[Command, ...]] = {
    "Stages": (
        Command("check", "pipeline.stages.check", "Check a model file in seconds, before any data is touched."),
        Command("train", "pipeline.stages.train", "Train a model with its recipe."),
        Command("export", "pipeline.stages.export", "Export a checkpoint to ONNX: raw uint8 pixels to float32 logits."),
        Command("adopt", "pipeline.stages.adopt", "Take an ONNX file from elsewhere into the chain."),
        Command("fold", "pipeline.stages.fold", "Fold BatchNorm and the normalisation into the convolutions."),
        Command("half", "pipeline.stages.half", "Convert weights and arithmetic to float16."),
        Command("quantize", "pipeline.stages.quantize", "Quantise to INT8, behind an accuracy gate."),
        Command("certify", "pipeline.stages.certify", "Prove which float16 answers no order of sums can change."),
        Command("build", "pipeline.stages.build", "Compile an ONNX file to a strongly typed TensorRT engine."),
        Command("verify", "pipeline.stages.verify", "Measure the test accuracy of every form against the gate."),
        Command("bench", "pipeline.stages.bench", "Measure latency and throughput of every form."),
    ),
    "Release": (
        Command("ship", "pipeline.release.ship", "Make a release: files, proof, model card, report, one archive."),
        Command("verify-release", "pipeline.release.verify_release", "Check a release's bytes, signature and proof."),
        Command("predict", "pipeline.apps.predict", "Classify pictures."),
        Command("demo", "pipeline.apps.demo", "Serve a local page to draw a digit on and see the answer."),
    ),
    "Experiments": (
        Command("study", "pipeline.experiments.study", "Train one recipe with many seeds; summarise accuracies."),
        Command("sweep", "pipeline.experiments.sweep.command", "Search learning rate and gamma on held-out images."),
    ),
    "On the device": (
        Command("deploy", "pipeline.device.deploy", "Check, build, verify and measure a release on this device."),
        Command("doctor", "pipeline.device.doctor", "Show what this machine can do and what is missing."),
    ),
}
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}
