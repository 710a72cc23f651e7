"""Finding and loading model files: `./models/NAME.py`, or the project's own."""

from __future__ import annotations

import functools
import importlib.util
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError, reason
from pipeline.training.model import Model, Recipe

if TYPE_CHECKING:
    import torch

DEFAULT = "mnist_cnn"
PACKAGE = Path(__file__).parents[1]


def folders() -> list[Path]:
    """Where model files are looked for, in order: the current folder's models/, then the project's own."""
    own = PACKAGE / "models"  # in an installed wheel; in a checkout they lie beside the package
    if not own.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        own = PACKAGE.parent / "models"
    return [Path("models"), own]


def names() -> list[str]:
    """Names of the models there are, sorted."""
    files = [path for folder in folders() if folder.is_dir() for path in folder.glob("*.py")]
    return sorted({path.stem for path in files if not path.stem.startswith("_")})


def file(model: str) -> Path:
    """The file of a model. UsageError if there is none.

    Only names are taken, no paths: a checkpoint's record names its model, and a record from elsewhere must not name
    code to run.
    """
    if model.endswith(".py") or "/" in model:
        raise UsageError(f"{model}: expected a model's name: put its file into ./models and say {Path(model).stem}")
    for folder in folders():
        if (folder / f"{model}.py").is_file():
            return folder / f"{model}.py"
    raise UsageError(f"no model is called {model!r}: expected one of {', '.join(names())}; model files lie in ./models")


def name(model: str) -> str:
    """The name of a model that there is, which files are named by."""
    stem = file(model).stem
    if not re.fullmatch(r"[A-Za-z0-9]\w*", stem, re.ASCII):
        raise UsageError(f"{file(model)}: expected a file name of letters, digits and underscores")
    return stem


def get(model: str) -> Model:
    """Load a model file and return its MODEL (this imports torch).

    Raises UsageError, with file and line, for a file that can't be loaded or has no MODEL.
    """
    path = file(model).resolve()
    return _load(path, path.stat().st_mtime_ns)


@functools.cache
def _load(path: Path, _: int) -> Model:
    spec = importlib.util.spec_from_file_location(f"_model_{path.stem}", path)
    assert spec and spec.loader, "a path to a .py file always has one"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a model file does wrong
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, path)
        raise UsageError(f"{path}:{line}: the model file can't be loaded: {reason(error)}") from error
    model = getattr(module, "MODEL", None)
    if not isinstance(model, Model):
        raise UsageError(f"{path}: expected MODEL = Model(...) in it, received {type(model).__name__}")
    return model


def _line(error: Exception, path: Path) -> int | str:
    """The last line of the file that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return frames[-1].lineno if frames else "?"


def recipe(model: str, which: str) -> Recipe:
    """The recipe of a model that is called `which`. UsageError if there is none."""
    recipes = get(model).recipes
    if which not in recipes:
        raise UsageError(f"--recipe: {model} has none called {which!r}: expected one of {', '.join(recipes)}")
    return recipes[which]


def layers(network: torch.nn.Module, shape: list[int] | tuple[int, ...]) -> list[dict[str, Any]]:
    """A network's layer table: type, output shape (-1: the batch) and parameters of each module without children.

    A module that is used several times counts its parameters once.
    """
    import torch

    rows, seen = [], set()

    def note(module: torch.nn.Module, _: Any, output: Any) -> None:
        own = 0 if module in seen else sum(parameter.numel() for parameter in module.parameters())
        seen.add(module)
        sizes = [-1, *output.shape[1:]] if isinstance(output, torch.Tensor) else []
        rows.append({"layer": type(module).__name__, "output": sizes, "parameters": own})

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(2, *shape, device=next(network.parameters(), torch.zeros(0)).device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return rows
