"""The digest of the code that makes an artifact: a module and all of this package that it imports."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
NO_SAY = {"records", "console", "errors", "machine"}  # rooms and modules that have no say in an artifact's bytes


def digest(module: str, *files: Path) -> str:
    """sha256 over the source of a module, of every `pipeline` module that it imports, directly or not, and of `files`.

    Imports are read off the syntax tree, those inside functions as well, so nothing is imported for it. Line endings
    don't count. A package's own file counts where a name is taken from it.
    """
    names, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += _imports(name)
    sha = hashlib.sha256()
    for name, path in [(name, _file(name)) for name in sorted(names)] + [(path.name, path) for path in files]:
        sha.update(f"{name}\n{_source(path)}\n".encode())
    return sha.hexdigest()


@functools.cache
def _imports(module: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_named(ast.parse(_source(_file(module))))))


def _named(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _file(name) else node.module for name in inner]
        for name in names:
            room, _, rest = name.partition(".")
            if room == "pipeline" and rest.split(".")[0] not in NO_SAY and _file(name):
                yield name


def _file(module: str) -> Path | None:
    """The file of a module of this package; of a package, its `__init__.py`."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")  # with any line ending read as \n
