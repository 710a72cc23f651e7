"""May an engine be run on this machine? Told by its record alone: nothing of the engine is opened."""

from __future__ import annotations

from pipeline.errors import CheckFailed, PipelineError, UsageError
from pipeline.records.manifest import Artifact
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import cuda


def unable(artifact: Artifact) -> str | None:
    """Why this machine can't run an engine, if it can't; the engine itself isn't opened."""
    try:
        refuse(artifact)
    except PipelineError as error:
        return str(error)
    return None


def missing() -> str | None:
    """Why this machine can run no engine at all, if so, with what to install."""
    if not library.installed():
        return f"neither tensorrt nor tensorrt-rtx is installed: {library.INSTALL['tensorrt']}"
    try:
        cuda.gpu()
    except UsageError as error:
        return str(error)
    return None


def refuse(artifact: Artifact) -> None:
    """Raises CheckFailed if an engine's record names another version or GPU, UsageError if there is none here."""
    made, again = artifact.options, "`pipeline build` on this device makes one for it"
    here = library.version(made["runtime"])
    if here is None:
        raise UsageError(f"{artifact.path}: needs {made['runtime']}, not installed: {library.INSTALL[made['runtime']]}")
    if here != made["version"] and not (made["version_compatible"] and _later_minor(here, made["version"])):
        raise CheckFailed(
            f"{artifact.path}: built by {made['runtime']} {made['version']}, this machine has {here}; {again}"
        )
    try:
        gpu = cuda.gpu()
    except UsageError as error:
        raise UsageError(f"{artifact.path}: built for {_wanted(artifact)}; {error}") from error
    if not _fits(artifact, gpu):
        raise CheckFailed(f"{artifact.path}: built for {_wanted(artifact)}, this machine has {gpu}; {again}")


def _later_minor(here: str, made: str) -> bool:
    """Whether a version-compatible engine runs: same major version, not an older one."""
    numbers = [[int(part) for part in version.split(".")[:2]] for version in (here, made)]
    return numbers[0][0] == numbers[1][0] and numbers[0] >= numbers[1]


def _wanted(artifact: Artifact) -> str:
    gpu = artifact.facts.gpu
    return f"{gpu.name} (compute capability {gpu.capability})" if gpu else ", ".join(artifact.options["targets"])


def _fits(artifact: Artifact, gpu: cuda.Gpu) -> bool:
    made = artifact.options
    if made["targets"]:
        return gpu.target in made["targets"]
    if made["hardware_compatible"]:
        return int(gpu.capability.partition(".")[0]) >= 8  # Ampere
    built = artifact.facts.gpu
    return (built.name, built.capability) == (gpu.name, gpu.capability)
