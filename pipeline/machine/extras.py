"""Which of the modules that something needs are missing, and the line that installs them. Imports none of them."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable

from pipeline.errors import UsageError

# The extra of pyproject.toml that brings a module; `host` brings the others.
EXTRAS = {
    "optuna": "sweep",
    "tensorrt_rtx": "tensorrt-rtx",
    "PIL": "demo",
    "model_signing": "sign",
    "OpenSSL": "sign",
}


def missing(modules: Iterable[str]) -> list[str]:
    """Those that aren't installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def require(command: str, modules: Iterable[str]) -> None:
    """UsageError, with the line that installs them, if something that a command needs is missing."""
    if absent := missing(modules):
        raise UsageError(f"{command} needs {absent[0]}, which isn't installed: {line(absent)}")


def line(modules: Iterable[str]) -> str:
    """The command that installs them, to be given in the folder that this project was cloned into."""
    extras = {_extra(name) for name in modules}
    return f"pip install -e '.[{','.join(sorted(extras))}]' in the project's folder"


def _extra(module: str) -> str:
    if module == "onnxruntime" and platform.machine() == "aarch64":  # a Jetson does without torch
        return "jetson"
    return EXTRAS.get(module, "host")
