"""What hands a model over, and what one does with it who got it; one file each: a command as a stage is, in no chain.

A file has one public function `run(...)`, whose signature makes the command, and, where there is something to show,
`show(result)`. None needs torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Names of the commands there are, sorted; none of them is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The command called `name`, imported."""
    return importlib.import_module(f"{__name__}.{name}")
