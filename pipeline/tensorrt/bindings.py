"""TensorRT's Python bindings: which are installed, loading them, and loading an engine with them.

`tensorrt` (10.0 and later, on a Jetson or a PC with an NVIDIA GPU) and `tensorrt_rtx`, which builds for GPUs that
aren't there, have the same API.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckFailed, UsageError
from pipeline.machine import extras
from pipeline.records import manifest

if TYPE_CHECKING:
    import tensorrt as trt

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = 10  # the first TensorRT with strongly typed networks
INSTALL = {
    "tensorrt": "on a Jetson it comes with JetPack: 6.1 or 6.2 (TensorRT 10.3, Python 3.10), 7.1 (10.13, Python 3.12) "
    "or 7.2 (10.16), `sudo apt install nvidia-jetpack`, then a venv made with --system-site-packages; on a PC with an "
    f"NVIDIA GPU: {extras.install('host', 'tensorrt', 'cuda13')}; without a GPU: "
    f"{extras.install('host', 'tensorrt-rtx')}, and --runtime tensorrt-rtx",
    "tensorrt-rtx": f"{extras.install('host', 'tensorrt-rtx')} (x86-64)",
}


def installed() -> list[str]:
    """Return those of `tensorrt` and `tensorrt-rtx` that are installed, in this order, without importing them."""
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module)]


def chosen(runtime: str) -> str:
    """Return the distribution that `--runtime` means: for "auto" the first installed, or `tensorrt` if none is."""
    return (installed() or ["tensorrt"])[0] if runtime == "auto" else runtime


def version(name: str) -> str | None:
    """Return the installed version of a distribution, or None. Only one without metadata is imported for it."""
    if name not in installed():
        return None
    return manifest.versions(name).get(name) or str(load(name).__version__)


def load(name: str) -> ModuleType:
    """Import the bindings of a distribution. UsageError if they are missing, or too old to keep a precision."""
    try:
        bindings = importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:  # the latter where a library of CUDA isn't found
        raise UsageError(f"{name} isn't installed ({error}): {INSTALL[name]}") from error
    if name == "tensorrt" and int(bindings.__version__.partition(".")[0]) < OLDEST:
        raise UsageError(
            f"TensorRT {bindings.__version__} has no strongly typed networks: expected {OLDEST}.0 or later, as "
            "in JetPack 6.1 and later"
        )
    return bindings


def logger(bindings: Any) -> Any:
    """Return a TensorRT logger that keeps errors, with a `reason()` that gives them as one line."""

    class Log(bindings.ILogger):
        def __init__(self) -> None:
            bindings.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (bindings.ILogger.Severity.ERROR, bindings.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(" ".join(message.split()))

        def reason(self) -> str:
            return "; ".join(self.lines) or "TensorRT gave no reason"

    return Log()


def engine(source: object, content: bytes, bindings: Any, log: Any, options: Mapping[str, Any]) -> trt.ICudaEngine:
    """Deserialise an engine, built with these options, on the GPU that it was built for.

    CheckFailed, with TensorRT's reason, if it can't be.
    """
    runtime: trt.Runtime = bindings.Runtime(log)
    runtime.engine_host_code_allowed = options["version_compatible"]  # such an engine brings its own runtime along
    if options.get("dla") is not None:
        runtime.DLA_core = options["dla"]
    loaded = runtime.deserialize_cuda_engine(content)
    if loaded is None:
        raise CheckFailed(f"{source}: the engine can't be loaded: {log.reason()}")
    return loaded
