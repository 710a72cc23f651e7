"""Float16 ONNX file in, TensorRT engine out: strongly typed, every layer's arithmetic asserted to be the file's."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pipeline import artifact, console, onnx_file
from pipeline.artifact import Artifact
from pipeline.errors import UsageError
from pipeline.runtimes import tensorrt
from pipeline.stages import Out, card, output

ORDER = 50
KIND, FILE = "engine", "{model}.engine"
TARGETS = "sm86,sm89,sm120"  # Ampere, Ada, Blackwell: what TensorRT for RTX builds for unless told


def run(
    fp16: Artifact,
    *,
    out: Out,
    runtime: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx"], "What compiles; auto: tensorrt where installed, else tensorrt-rtx."
    ] = "auto",
    target: Annotated[
        str | None,
        f"tensorrt-rtx: compute capabilities to build for, {TARGETS} by default. tensorrt: the GPU there is.",
    ] = None,
    opt_batch: Annotated[int, "Batch size the engine is tuned for."] = 1,
    max_batch: Annotated[int, "Largest batch size the engine takes."] = 64,
    workspace: Annotated[int | None, "Memory a layer may use while it computes, in MiB; by default all."] = None,
    version_compatible: Annotated[bool, "An engine that later minor versions of TensorRT load, too."] = False,
    hardware_compatible: Annotated[bool, "An engine for every GPU from Ampere on; slower."] = False,
    dla: Annotated[
        int | None, "Which deep-learning accelerator of a Jetson to use, with the GPU to fall back on."
    ] = None,
) -> Artifact:
    """Compile the float16 ONNX file to a TensorRT engine.

    Strongly typed: TensorRT takes the precision that the file has, and doesn't choose one. Before the build every layer
    of the parsed network must be in float16; one that isn't fails the build, by name. An engine belongs to the GPU and
    the version it was made for: build it on the device that is to run it. Without a GPU, tensorrt-rtx builds for
    others.

    Raises CheckFailed where TensorRT doesn't take the file or a layer isn't in float16, UsageError where it is missing.
    """
    asked = options(
        runtime=runtime,
        target=target,
        opt_batch=opt_batch,
        max_batch=max_batch,
        workspace=workspace,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla=dla,
    )
    bindings = tensorrt.library(asked["runtime"])
    content = onnx_file.load(fp16).SerializeToString(deterministic=True)
    plan = tensorrt.Plan(**{name: value for name, value in asked.items() if name not in ("runtime", "version")})
    start = time.perf_counter()
    engine, layers = tensorrt.build(content, source=str(fp16.path), element="HALF", bindings=bindings, plan=plan)
    return artifact.write(
        output(out, FILE, fp16),
        engine,
        kind=KIND,
        parents=[fp16],
        options=asked,
        versions=artifact.versions(asked["runtime"]),
        facts={**card(fp16), "layers": layers, "build_seconds": round(time.perf_counter() - start, 3)},
    )


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
    **__: Any,
) -> dict[str, Any]:
    """What an engine depends on besides the file: the compiler with its version, and the options as they are taken."""
    if not 1 <= opt_batch <= max_batch:
        raise UsageError(f"expected 1 <= --opt-batch <= --max-batch, received {opt_batch} and {max_batch}")
    if workspace is not None and workspace < 1:
        raise UsageError(f"--workspace {workspace}: expected MiB, 1 or more")
    if dla is not None and dla < 0:
        raise UsageError(f"--dla {dla}: expected 0 or more")
    if runtime == "auto":
        runtime = (tensorrt.installed() or ["tensorrt"])[0]
    if target and runtime == "tensorrt":
        raise UsageError(
            f"--target {target}: tensorrt builds for the GPU it is on; --runtime tensorrt-rtx builds for others"
        )
    if runtime == "tensorrt-rtx" and (version_compatible or hardware_compatible):
        raise UsageError(
            "tensorrt-rtx has neither --version-compatible nor --hardware-compatible: name GPUs by --target"
        )
    names = [name.strip().lower() for name in (target or TARGETS).split(",")] if runtime == "tensorrt-rtx" else []
    return {
        "runtime": runtime,
        "version": artifact.versions(runtime).get(runtime),
        "targets": list(dict.fromkeys(names)),
        "opt_batch": opt_batch,
        "max_batch": max_batch,
        "workspace": workspace,
        "version_compatible": version_compatible,
        "hardware_compatible": hardware_compatible,
        "dla": dla,
    }


def absent(*, runtime: str, **_: Any) -> str | None:
    """Why the chain leaves this stage out on this machine, if so. Who asks for a runtime gets its error instead."""
    if runtime == "auto" and not tensorrt.installed():
        return "neither tensorrt nor tensorrt-rtx is installed; `pipeline build` says how to get one"
    return None


def show(engine: Artifact) -> None:
    """Every layer with its types, and what the engine is for."""
    facts, made = engine.facts, engine.options
    rows = [
        [each["type"], each["name"], "/".join(each["inputs"]), "/".join(each["outputs"])] for each in facts["layers"]
    ]
    title = f"{made['runtime']} {made['version']}, batches of 1 to {made['max_batch']}, tuned for {made['opt_batch']}"
    console.table(["layer", "name", "in", "out"], rows, title=title, spare=("name",))
    between = [{*each["inputs"], *each["outputs"]} for each in facts["layers"] if each["type"] != "CAST"]
    half = sum("HALF" in types and not types & {"FLOAT", "BF16"} for types in between)
    console.result(
        f"{half} of {len(between)} layers between the casts compute in HALF; built for "
        f"{', '.join(made['targets']) or 'the GPU here'} in {facts['build_seconds']:.1f} s"
    )
