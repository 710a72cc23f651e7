"""Compile an ONNX file to a strongly typed TensorRT engine, and assert that every layer computes as the file says."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from pipeline import console
from pipeline.errors import UsageError
from pipeline.graph import load as onnx_file
from pipeline.machine import extras
from pipeline.records import code, manifest
from pipeline.records.devices import Gpu
from pipeline.records.forms import Engine
from pipeline.records.manifest import Artifact
from pipeline.runtimes import tensorrt
from pipeline.stages import Data, Out, card, images, output
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import builder, cuda, known_faults, precision

KIND, FILE = "engine", "{model}.engine"
ALSO = {
    "folded": "{model}.fp32.engine",
    "int8": "{model}.int8.engine",
}  # kinds taken besides the chain's, and the file made of each
ELEMENTS = {"half": "HALF", "folded": "FLOAT", "int8": "INT8"}
TARGETS = "sm86,sm89,sm120"  # Ampere, Ada, Blackwell: what tensorrt-rtx builds for by default


def run(
    half: Artifact,
    *,
    out: Out,
    runtime: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx"], "What compiles; auto: tensorrt where installed, else tensorrt-rtx."
    ] = "auto",
    target: Annotated[
        str | None,
        f"tensorrt-rtx: compute capabilities to build for, {TARGETS} by default. tensorrt: this machine's GPU.",
    ] = None,
    opt_batch: Annotated[int, "Batch size the engine is tuned for."] = 1,
    max_batch: Annotated[int, "Largest batch size the engine takes."] = 64,
    workspace: Annotated[int | None, "Memory a layer may use while it computes, in MiB; by default all."] = None,
    version_compatible: Annotated[bool, "Build an engine that later minor versions of TensorRT can load, too."] = False,
    hardware_compatible: Annotated[bool, "An engine for every GPU from Ampere on; slower."] = False,
    dla: Annotated[
        int | None,
        "Which deep-learning accelerator of a Jetson to use, with the GPU to fall back on; it takes one batch size.",
    ] = None,
    timing_cache: Annotated[
        Path | None, "tensorrt: folder of kernels' timings, which make the next build faster; by default the user's."
    ] = None,
    twice: Annotated[bool, "Build a second engine, and record how many answers to the test images differ."] = False,
    data: Data = None,
) -> Artifact:
    """Compile the float16 ONNX file to a TensorRT engine; or, if it is named, the int8 one or the float32 one.

    Strongly typed: TensorRT takes the precision that the file has, and doesn't choose one. Before the build every
    layer of the parsed network is checked; one in another precision fails the build and is named. An engine belongs to
    the GPU and the version it was made for: build it on the device that is to run it. tensorrt-rtx needs no GPU to
    build for one. Builds are not deterministic: with --twice, a second engine is compared with the one that is kept.

    Raises CheckFailed where TensorRT doesn't take the file or a layer is in another type, UsageError where TensorRT or
    the GPU that it builds on is missing.
    """
    chosen = options(
        runtime=runtime,
        target=target,
        opt_batch=opt_batch,
        max_batch=max_batch,
        workspace=workspace,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla=dla,
    )
    bindings, gpu = library.load(chosen["runtime"]), _gpu(chosen, twice)
    cache = _timings(timing_cache, chosen["version"], gpu) if gpu and chosen["runtime"] == "tensorrt" else None
    split = images(half, data) if twice else None
    model = onnx_file.load(half)
    for fault in known_faults.fitting(chosen["runtime"], chosen["version"], ELEMENTS[half.kind], model):
        console.say(f"{half.path}: known fault: {fault}")
    compiled = functools.partial(_compiled, half, model.SerializeToString(deterministic=True), bindings, chosen, gpu)
    engine = compiled(out, cache)
    if split is None:
        return engine
    with tempfile.TemporaryDirectory() as folder:
        second = tensorrt.compare(engine, compiled(Path(folder), None), split.images)
    about = {name: getattr(engine, name) for name in ("parents", "versions", "code")}
    about["options"] = {**engine.options, "twice": True}
    return manifest.write(
        engine.path, manifest.content(engine), facts=msgspec.structs.replace(engine.facts, second=second), **about
    )


def _compiled(
    half: Artifact,
    content: bytes,
    bindings: Any,
    chosen: dict[str, Any],
    gpu: Gpu | None,
    out: Path,
    cache: Path | None,
) -> Artifact:
    """Build an engine of a file's content and write it; where its GPU is, ask it what its layers compute in."""
    source, element = str(half.path), ELEMENTS[half.kind]
    integers = sum(each.int8 for each in half.facts.layers) if element == "INT8" else 0
    plan = {name: value for name, value in chosen.items() if name not in ("runtime", "version")}
    compiling, start = builder.Plan(**plan, timing_cache=cache), time.perf_counter()
    engine, layers = builder.build(source, content, element, bindings, compiling, integers)
    seconds = round(time.perf_counter() - start, 3)
    inspected = builder.inspect(source, engine, element, bindings, chosen) if gpu else None
    return manifest.write(
        output(out, ALSO.get(half.kind, FILE), half),
        engine,
        facts=Engine(**card(half), element=element, gpu=gpu, build_seconds=seconds, layers=layers, inspected=inspected),
        parents=[half],
        options=chosen,
        versions=manifest.versions(chosen["runtime"], *cuda.PACKAGES),
        code=code.digest(__name__),
    )


def _gpu(chosen: dict[str, Any], twice: bool) -> Gpu | None:
    """Return this machine's GPU if the engine is for it. UsageError if it must be, and isn't."""
    if chosen["runtime"] == "tensorrt":
        return cuda.gpu()
    if not extras.problem(cuda.gpu) and cuda.gpu().target in chosen["targets"]:
        return cuda.gpu()  # otherwise tensorrt-rtx builds for others only
    if twice:
        raise UsageError(f"--twice: compares two engines' answers on a GPU: {', '.join(chosen['targets'])} is not here")
    return None


def expect(*, twice: bool, target: str | None, **given: Any) -> None:
    """Raise UsageError for options that don't go together, unknown targets, and --twice without the GPU it needs."""
    chosen = options(twice=twice, target=target, **given)
    if twice:
        _gpu(chosen, twice)
    if target:
        builder.capabilities(library.load(chosen["runtime"]), chosen["targets"])


def _timings(folder: Path | None, version: str, gpu: Gpu) -> Path:
    """Return one file a device and version of tensorrt: timings of another would be worse than none."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"tensorrt-{version}-{gpu.name}-{gpu.target}.timings".replace(" ", "-").replace("/", "-")
    return (folder or caches / "edge-pipeline") / name


def options(
    *_: Artifact,
    runtime: str,
    target: str | None,
    opt_batch: int,
    max_batch: int,
    workspace: int | None,
    dla: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    twice: bool = False,
    **__: Any,
) -> dict[str, Any]:
    """Return what an engine depends on besides the file: the compiler, its version, and the options as it takes them.

    UsageError for options that don't go together.
    """
    if not 1 <= opt_batch <= max_batch:
        raise UsageError(f"expected 1 <= --opt-batch <= --max-batch, received {opt_batch} and {max_batch}")
    if workspace is not None and workspace < 1:
        raise UsageError(f"--workspace {workspace}: expected MiB, 1 or more")
    if dla is not None and dla < 0:
        raise UsageError(f"--dla {dla}: expected 0 or more")
    if dla is not None and opt_batch != max_batch:
        raise UsageError(
            f"--dla {dla}: expected --opt-batch and --max-batch alike, received {opt_batch} and {max_batch}"
        )
    runtime = library.chosen(runtime)
    if target and runtime == "tensorrt":
        raise UsageError(
            f"--target {target}: tensorrt builds for the GPU it is on; --runtime tensorrt-rtx builds for others"
        )
    if runtime == "tensorrt-rtx" and (version_compatible or hardware_compatible):
        raise UsageError(
            "tensorrt-rtx has neither --version-compatible nor --hardware-compatible: name GPUs by --target"
        )
    targets = [name.strip().lower() for name in (target or TARGETS).split(",")] if runtime == "tensorrt-rtx" else []
    return {
        "runtime": runtime,
        "version": library.version(runtime),
        "targets": list(dict.fromkeys(targets)),
        "opt_batch": opt_batch,
        "max_batch": max_batch,
        "workspace": workspace,
        "version_compatible": version_compatible,
        "hardware_compatible": hardware_compatible,
        "dla": dla,
        **({"twice": True} if twice else {}),  # with it, an engine that was compared with none is not fresh
    }


def absent(*, runtime: str, **_: Any) -> str | None:
    """Return why the chain leaves this stage out here. A runtime that was asked for is an error of `run` instead."""
    if runtime == "auto" and not library.installed():
        return "neither tensorrt nor tensorrt-rtx is installed; `pipeline build` says how to get one"
    return None


def missing() -> str | None:
    """Return what this machine lacks to build any engine, and how to get it; None if nothing."""
    return extras.problem(library.load, library.chosen("auto"))


def show(engine: Artifact) -> None:
    """Print every layer with its types, and what the engine is for."""
    facts, made = engine.facts, engine.options
    rows = [[each.type, each.name, "/".join(each.inputs), "/".join(each.outputs)] for each in facts.layers]
    title = f"{made['runtime']} {made['version']}, batches of 1 to {made['max_batch']}, tuned for {made['opt_batch']}"
    console.table(["layer", "name", "in", "out"], rows, title=title, spare=("name",))
    between = [layer for layer in facts.layers if layer.type != "CAST"]
    if facts.element == "INT8":  # of which the others are in float16
        between = [layer for layer in between if layer.type in precision.MULTIPLY]
    right = sum(facts.element in (*layer.inputs, *layer.outputs) for layer in between)
    what = "products" if facts.element == "INT8" else "layers between the casts"
    target = facts.gpu.name if facts.gpu else ", ".join(made["targets"])
    console.result(
        f"{right} of {len(between)} {what} compute in {facts.element}; built for {target} "
        f"in {facts.build_seconds:.1f} s"
    )
    if made["dla"] is not None:
        names = [each.name for each in facts.layers if each.falls_back]
        console.result(
            f"DLA {made['dla']}: {len(names)} of {len(facts.layers)} layers fall back to the GPU: {', '.join(names)}"
        )
    if facts.second:
        console.result(f"second build: {facts.second}")
    for summed_in, names in precision.accumulators(facts.inspected or []).items():
        applies = {
            "float32": "as certificates A1 and A assume",
            "float16": "no certificate applies: `verify` is the proof",
        }
        why = applies.get(summed_in, "the kernels' names say nothing of it")
        console.result(f"accumulators: {summed_in} in {len(names)} layers; {why}")
