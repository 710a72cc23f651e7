"""Experiments, one file each: about training as such, not about one artifact. A command as a stage is, in no chain.

A file has one public function `run(model, *, ...)`, whose signature makes the command, and `show(artifact)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Names of the experiments there are, sorted; none of them is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The experiment called `name`, imported."""
    return importlib.import_module(f"{__name__}.{name}")
