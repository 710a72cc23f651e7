"""Nothing in, what this machine can do out: its GPU and libraries, and for each stage and form what is missing."""

from __future__ import annotations

import json
import platform
from importlib import import_module
from types import ModuleType
from typing import Any

from pipeline import artifact, console, cuda, delivery, experiments, installs, jetson, machine, runtimes, stages
from pipeline import tensorrt_library as tensorrt
from pipeline.artifact import Artifact
from pipeline.errors import UsageError

KIND = "doctor"
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", *tensorrt.MODULES, *cuda.PACKAGES)


def run() -> Artifact:
    """Tell what this machine can do, what is missing for which stage, and the line that installs it.

    It only looks, and writes nothing.
    """
    facts = {**about(), "able": [*_commands(), *_compilers(), *_forms()]}
    content = (json.dumps(facts, indent=1) + "\n").encode()
    return artifact.write(None, content, kind=KIND, versions=artifact.versions(*PACKAGES), facts=facts)


def about() -> dict[str, Any]:
    """The machine itself: processor and system, Python, a Jetson's state, the GPU, TensorRT and ONNX Runtime."""
    gpu, no_gpu = _try(cuda.gpu)
    return {
        "machine": machine.describe() | {"python": platform.python_version()},
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


def _onnxruntime() -> dict[str, Any] | None:
    if installs.missing(["onnxruntime"]):
        return None
    found = import_module("onnxruntime")
    return {"version": found.__version__, "providers": found.get_available_providers()}


def _commands() -> list[dict[str, Any]]:
    """Stages, what hands a model over, experiments. What takes any form needs what the form does: see there."""
    modules = [package.get(name) for package in (stages, delivery, experiments) for name in package.names()]
    return [_able(f"pipeline {stages.title(module).replace('_', '-')}", module) for module in modules]


def _compilers() -> list[dict[str, Any]]:
    """TensorRT by either name, in the words that `pipeline build` would use."""
    found = [
        (f"pipeline build --runtime {name}", _try(lambda name=name: tensorrt.load(name))[1])
        for name in tensorrt.MODULES
    ]
    return [{"what": what, "ready": problem is None, "missing": [], "remedy": problem} for what, problem in found]


def _forms() -> list[dict[str, Any]]:
    modules = map(runtimes.get, runtimes.names())
    return [_able(f"run {', '.join(module.READS)} in {runtimes.title(module)}", module) for module in modules]


def _able(what: str, module: ModuleType) -> dict[str, Any]:
    """By the modules that a file NEEDS, and by its own `missing` where modules aren't all."""
    absent = installs.missing(getattr(module, "NEEDS", ()))
    remedy = installs.line(absent) if absent else None
    if not absent and hasattr(module, "missing"):
        remedy = module.missing()
    return {"what": what, "ready": remedy is None, "missing": absent, "remedy": remedy}


def _try(look: Any) -> tuple[Any, str | None]:
    try:
        return look(), None
    except UsageError as error:
        return None, str(error)


def show(made: Artifact) -> None:
    """What there is, what can be done, and a line for each thing that is missing."""
    facts = made.facts
    console.table(["", "here"], [[name, value] for name, value in summary(facts).items()], title="this machine")
    rows = [[row["what"], _state(row)] for row in facts["able"]]
    console.table(["to", "state"], rows, title="what it can do")
    for remedy in dict.fromkeys(row["remedy"] for row in facts["able"] if row["remedy"]):
        about = ", ".join(row["what"] for row in facts["able"] if row["remedy"] == remedy)
        console.result(f"{about}: {remedy}")
    if facts["jetson"]:
        for warning in jetson.warnings([facts["jetson"]]):
            console.result(f"not in a state worth measuring: {warning}")


def _state(row: dict[str, Any]) -> str:
    if row["ready"]:
        return "ready"
    return f"missing: {', '.join(row['missing'])}" if row["missing"] else "not here: see below"


def summary(facts: dict[str, Any]) -> dict[str, str]:
    """What `about` found, as a person reads it."""
    about, board, gpu, ort = facts["machine"], facts["jetson"], facts["gpu"], facts["onnxruntime"]
    return {
        "processor": f"{about['processor']}, {about['cores']} cores, {about['architecture']}, {about['system']}",
        "Python": about["python"],
        "Jetson": f"{board['model']}, JetPack {board['jetpack'] or '?'}, {board['release']}" if board else "no",
        "GPU": f"{gpu['name']}, compute capability {gpu['capability']}, CUDA {gpu['driver']}" if gpu else "none",
        **{name: found.partition(":")[0] if found[0].isdigit() else "no" for name, found in facts["tensorrt"].items()},
        "ONNX Runtime": f"{ort['version']}, {', '.join(ort['providers'])}" if ort else "no",
    }
