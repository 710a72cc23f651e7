"""Finding and loading model files: `./models/NAME.py`, or the project's own."""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError, reason
from pipeline.records.forms import Layer
from pipeline.training.model import Model

if TYPE_CHECKING:
    import torch

DEFAULT = "mnist_cnn"
PACKAGE = Path(__file__).parents[1]


def folders() -> list[Path]:
    """Return the folders that are searched, in order: the current folder's models/, then the project's own."""
    own = PACKAGE / "models"  # in an installed wheel; in a checkout they are beside the package
    if not own.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        own = PACKAGE.parent / "models"
    return [Path("models"), own]


def names() -> list[str]:
    """Return the names of all models, sorted."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.py") if path.stem[0] != "_"})


def file(model: str) -> Path:
    """Return the file of a model. Raises UsageError if there is none or its name can't be part of file names.

    Only names are taken, no paths: a checkpoint's record names its model, and a record from elsewhere must not name
    code to run.
    """
    if model.endswith(".py") or "/" in model:
        raise UsageError(f"{model}: expected a model's name: put its file into ./models and say {Path(model).stem}")
    for folder in folders():
        path = folder / f"{model}.py"
        if path.is_file():
            if not re.fullmatch(r"[A-Za-z0-9]\w*", model, re.ASCII):
                raise UsageError(f"{path}: expected a file name of letters, digits and underscores")
            return path
    raise UsageError(f"no model is called {model!r}: expected one of {', '.join(names())}; model files lie in ./models")


def get(model: str) -> Model:
    """Load a model file and return its MODEL; this imports torch.

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
    except (Exception, SystemExit) as error:  # whatever a model file does wrong
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", "?")  # a file with a syntax error has no frame
        raise UsageError(f"{path}:{line}: the model file can't be loaded: {reason(error)}") from error
    model = getattr(module, "MODEL", None)
    if not isinstance(model, Model):
        raise UsageError(f"{path}: expected MODEL = Model(...) in it, received {type(model).__name__}")
    return model


def layers(network: torch.nn.Module, shape: Sequence[int]) -> list[Layer]:
    """Return a network's layer table: a row for each call of a module without children, on an input of this shape.

    A module that is called several times counts its parameters once.
    """
    import torch

    rows: list[Layer] = []
    counted = set()

    def note(module: torch.nn.Module, _: Any, output: Any) -> None:
        own = 0 if module in counted else sum(parameter.numel() for parameter in module.parameters())
        counted.add(module)
        sizes = [-1, *output.shape[1:]] if isinstance(output, torch.Tensor) else []
        rows.append(Layer(layer=type(module).__name__, output=sizes, parameters=own))

    hooks = [module.register_forward_hook(note) for module in network.modules() if not list(module.children())]
    training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(2, *shape, device=next(network.parameters(), torch.zeros(0)).device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return rows


def memory_format(network: torch.nn.Module, shape: Sequence[int]) -> torch.memory_format:
    """Return channels last, in which convolutions take less time, if a network can run so; else contiguous.

    One that calls `view` on a convolution's output can't. A copy of the network is tried, on an input of this shape.
    """
    import torch

    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            copied = copy.deepcopy(network).eval().to("cpu", memory_format=torch.channels_last)
            copied(torch.zeros(2, *shape).contiguous(memory_format=torch.channels_last))
    except (Exception, SystemExit):  # a forward pass may fail with any where its tensors are not contiguous
        return torch.contiguous_format
    return torch.channels_last
