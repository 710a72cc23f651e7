"""What is missing on this machine, and the command that installs it. Nothing is imported to find out."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.errors import PipelineError, UsageError

# The extra of pyproject.toml that brings a module; `host` brings the others.
EXTRAS = {"optuna": "sweep", "tensorrt_rtx": "tensorrt-rtx", "PIL": "demo", "cv2": "demo"}
EXTRAS |= {"model_signing": "sign", "OpenSSL": "sign"}


def missing(modules: Iterable[str]) -> list[str]:
    """Return those modules that aren't installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def require(command: str, modules: Iterable[str]) -> None:
    """Raise UsageError, with the command that installs them, if modules that `command` needs are missing."""
    if absent := missing(modules):
        raise UsageError(f"{command} needs {absent[0]}, which isn't installed: {line(absent)}")


def line(modules: Iterable[str]) -> str:
    """Return the command that installs modules, for the folder that this project was cloned into."""
    board = {"onnxruntime": "jetson"} if platform.machine() == "aarch64" else {}  # a Jetson does without torch
    return install(*sorted({(EXTRAS | board).get(name, "host") for name in modules}))


def install(*extras: str) -> str:
    """Return the command that installs extras of pyproject.toml."""
    return f"pip install -e '.[{','.join(extras)}]' in the project's folder"


def problem(check: Callable[..., object], *arguments: Any) -> str | None:
    """Call `check` and return the message of the error that it raises; None if it raises none."""
    try:
        check(*arguments)
    except PipelineError as error:
        return str(error)
    return None
