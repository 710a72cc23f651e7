"""Show what this machine can do: its GPU and libraries, and what is missing for which stage and form."""

from __future__ import annotations

import platform
from importlib import import_module
from types import ModuleType
from typing import Any

import msgspec

from pipeline import commands, console, runtimes
from pipeline.errors import UsageError
from pipeline.machine import extras as installs
from pipeline.machine import host as machine
from pipeline.machine import jetson
from pipeline.records import manifest
from pipeline.records.devices import Ability, Doctor, Here, OnnxRuntime
from pipeline.records.manifest import Artifact
from pipeline.tensorrt import bindings as tensorrt
from pipeline.tensorrt import cuda

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", *tensorrt.MODULES, *cuda.PACKAGES)


def run() -> Artifact:
    """Tell what this machine can do, what is missing for which stage, and the line that installs it.

    It only looks, and writes nothing.
    """
    facts = Doctor(**about(), able=[*_commands(), *_compilers(), *_forms()])
    return manifest.write(None, None, facts=facts, versions=manifest.versions(*PACKAGES))


def about() -> dict[str, Any]:
    """The fields of `Here`: processor, system, Python, a Jetson's state, the GPU, TensorRT and ONNX Runtime."""
    gpu, no_gpu = _try(cuda.gpu)
    return {
        "machine": msgspec.structs.replace(machine.describe(), python=platform.python_version()),
        "jetson": jetson.state(),
        "gpu": gpu.facts() if gpu else None,
        "no_gpu": no_gpu,
        "tensorrt": {name: _tensorrt(name) for name in tensorrt.MODULES},
        "onnxruntime": _onnxruntime(),
    }


def _tensorrt(name: str) -> str:
    """Its version; or why it can't be used."""
    version, problem = _try(lambda: str(tensorrt.load(name).__version__))
    return version or problem


def _onnxruntime() -> OnnxRuntime | None:
    if installs.missing(["onnxruntime"]):
        return None
    found = import_module("onnxruntime")
    return OnnxRuntime(version=found.__version__, providers=found.get_available_providers())


def _commands() -> list[Ability]:
    """Stages, what hands a model over, experiments. What takes any form needs what the form does: see there."""
    groups = (group for title, group in commands.GROUPS.items() if title != "On the device")
    return [_able(f"pipeline {command.name}", command.load()) for group in groups for command in group]


def _compilers() -> list[Ability]:
    """TensorRT by either name, in the words that `pipeline build` would use."""
    found = [
        (f"pipeline build --runtime {name}", _try(lambda name=name: tensorrt.load(name))[1])
        for name in tensorrt.MODULES
    ]
    return [Ability(what=what, ready=not problem, missing=[], remedy=problem) for what, problem in found]


def _forms() -> list[Ability]:
    return [_able(f"run {', '.join(each.READS)} in {runtimes.title(each)}", each) for each in runtimes.every()]


def _able(what: str, module: ModuleType) -> Ability:
    """By the modules that a file NEEDS, and by its own `missing` where modules aren't all."""
    absent = installs.missing(module.NEEDS)
    remedy = installs.line(absent) if absent else module.missing()
    return Ability(what=what, ready=remedy is None, missing=absent, remedy=remedy)


def _try(look: Any) -> tuple[Any, str | None]:
    try:
        return look(), None
    except UsageError as error:
        return None, str(error)


def show(made: Artifact) -> None:
    """What there is, what can be done, and a line for each thing that is missing."""
    facts = made.facts
    console.table(["", "here"], [[name, value] for name, value in summary(facts).items()], title="this machine")
    rows = [[row.what, _state(row)] for row in facts.able]
    console.table(["to", "state"], rows, title="what it can do")
    for remedy in dict.fromkeys(row.remedy for row in facts.able if row.remedy):
        about = ", ".join(row.what for row in facts.able if row.remedy == remedy)
        console.result(f"{about}: {remedy}")
    if facts.jetson:
        for warning in jetson.warnings([facts.jetson]):
            console.result(f"not in a state worth measuring: {warning}")


def _state(row: Ability) -> str:
    if row.ready:
        return "ready"
    return f"missing: {', '.join(row.missing)}" if row.missing else "not here: see below"


def summary(facts: Here) -> dict[str, str]:
    """What `about` found, as a person reads it."""
    about, board, gpu, ort = facts.machine, facts.jetson, facts.gpu, facts.onnxruntime
    return {
        "processor": f"{about.processor}, {about.cores} cores, {about.architecture}, {about.system}",
        "Python": about.python,
        "Jetson": f"{board.model}, JetPack {board.jetpack or '?'}, {board.release}" if board else "no",
        "GPU": f"{gpu.name}, compute capability {gpu.capability}, CUDA {gpu.driver}" if gpu else "none",
        **{name: found.partition(":")[0] if found[0].isdigit() else "no" for name, found in facts.tensorrt.items()},
        "ONNX Runtime": f"{ort.version}, {', '.join(ort.providers)}" if ort else "no",
    }
