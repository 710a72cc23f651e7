"""Show what this machine can do: its GPU and libraries, and what is missing for which stage and form."""

from __future__ import annotations

import platform
import re
import textwrap
from importlib import import_module
from types import ModuleType
from typing import Any

import msgspec

from pipeline import commands, console, runtimes
from pipeline.machine import extras, jetson
from pipeline.machine import host as machine
from pipeline.records import manifest
from pipeline.records.devices import Ability, Doctor, Here, OnnxRuntime
from pipeline.records.manifest import Artifact
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import cuda, known_faults

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", *library.MODULES, *cuda.PACKAGES)
WIDTH = 110  # of what is missing, in characters


def run() -> Artifact:
    """Tell what this machine can do, what is missing for which stage, and how to install it. Nothing is written."""
    here = about()
    able = [
        _able(f"pipeline {command.name}", command.load())
        for title, group in commands.GROUPS.items()
        for command in group
        if title != "On the device"
    ]
    for name, version in here["tensorrt"].items():
        problem = None if version[0].isdigit() else version
        able.append(Ability(what=f"pipeline build --runtime {name}", ready=not problem, missing=[], remedy=problem))
    able += [_able(f"run {', '.join(each.READS)} in {runtimes.title(each)}", each) for each in runtimes.every()]
    installed = {name: version for name, version in here["tensorrt"].items() if version[0].isdigit()}
    faults = [str(each) for name, version in installed.items() for each in known_faults.of_version(name, version)]
    facts = Doctor(**here, able=able, faults=tuple(faults))
    return manifest.write(None, None, facts=facts, versions=manifest.versions(*PACKAGES))


def about() -> dict[str, Any]:
    """Return the fields of `Here`; `tensorrt` has versions, and for one that can't be used the reason."""
    no_gpu = extras.problem(cuda.gpu)
    ort = None if extras.missing(["onnxruntime"]) else import_module("onnxruntime")
    return {
        "machine": msgspec.structs.replace(machine.describe(), python=platform.python_version()),
        "jetson": jetson.state(),
        "gpu": None if no_gpu else cuda.gpu(),
        "no_gpu": no_gpu,
        "tensorrt": {
            name: extras.problem(library.load, name) or str(library.version(name)) for name in library.MODULES
        },
        "onnxruntime": OnnxRuntime(version=ort.__version__, providers=ort.get_available_providers()) if ort else None,
    }


def _able(what: str, module: ModuleType) -> Ability:
    """Judge by the modules that a file `NEEDS`, then by its own `missing`."""
    absent = extras.missing(module.NEEDS)
    remedy = extras.line(absent) if absent else module.missing()
    return Ability(what=what, ready=remedy is None, missing=absent, remedy=remedy)


def show(made: Artifact) -> None:
    """Print what there is, what can be done, and a line for each thing that is missing."""
    facts = made.facts
    console.table(["", "here"], [[*each] for each in summary(facts).items()], title="this machine")
    rows = []
    remedies: dict[str, list[str]] = {}
    for each in facts.able:
        lacking = f"missing: {', '.join(each.missing)}" if each.missing else "not here: see below"
        rows.append([each.what, "ready" if each.ready else lacking])
        if each.remedy:
            remedies.setdefault(each.remedy, []).append(each.what)
    console.table(["to", "state"], rows, title="what it can do")
    for remedy, uses in remedies.items():
        _say(f"{', '.join(uses)}: {remedy}")
    for fault in facts.faults:
        _say(f"known fault: {fault}")
    for warning in jetson.warnings([facts.jetson]) if facts.jetson else ():
        _say(f"unreliable measurement: {warning}")


def _say(text: str) -> None:
    """Print what is long in lines of WIDTH, and each of several remedies on lines of its own; no command is broken."""
    wrapper = textwrap.TextWrapper(WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    whole = re.sub("`.*?`", lambda found: found[0].replace(" ", "\xa0"), text)
    for part in whole.replace("; ", ";\n").split("\n"):
        console.result(wrapper.fill(part).replace("\xa0", " "))
        wrapper.initial_indent = "  "


def summary(facts: Here) -> dict[str, str]:
    """Describe a machine in words, by part; "no" or "none" for what it lacks."""
    about, board, gpu, ort = facts.machine, facts.jetson, facts.gpu, facts.onnxruntime
    return {
        "processor": f"{about.processor}, {console.count(about.cores, 'core')}, {about.architecture}, {about.system}",
        "Python": about.python or "?",
        "Jetson": f"{board}, {board.release}" if board else "no",
        "GPU": f"{gpu.name}, compute capability {gpu.capability}, CUDA {gpu.driver}" if gpu else "none",
        **{name: version if version[0].isdigit() else "no" for name, version in facts.tensorrt.items()},
        "ONNX Runtime": f"{ort.version}, {', '.join(ort.providers)}" if ort else "no",
    }
