"""Make click parameters from a stage's `run`: its signature is the one place for options, defaults and help."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline import stages
from pipeline.errors import UsageError
from pipeline.training import models


class _Path(click.Path):
    """A path; an empty one, as of a variable that isn't set, would be the folder one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected a path, received nothing", param, ctx)
        return super().convert(value, param, ctx)


class _Text(click.types.StringParamType):
    """Text; an empty one, as of a variable that isn't set, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected a value, received nothing", param, ctx)
        return super().convert(value, param, ctx)


_PATH = _Path(path_type=Path)


def arguments(stage: ModuleType) -> list[click.Parameter]:
    """What a stage takes: its model, a path, or artifacts, which default to those in the folder that is written to."""
    found: list[click.Parameter] = []
    for parameter in inspect.signature(stage.run).parameters.values():
        many = parameter.kind is parameter.VAR_POSITIONAL
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        if parameter.name == "model":
            found.append(model())
        elif parameter.annotation == "Path":
            found.append(_path(parameter, many))
        else:
            metavar = "[FILE|FOLDER]..." if many else f"[{parameter.name.upper()}]"
            nargs = -1 if many else 1
            found.append(click.Argument([parameter.name], nargs=nargs, required=False, type=_PATH, metavar=metavar))
    return found


def _path(parameter: inspect.Parameter, many: bool) -> click.Argument:
    needed = parameter.default is parameter.empty
    default = {} if needed else {"default": parameter.default}
    metavar = ("FILE" if parameter.name == "file" else "FILE|FOLDER") if needed else "[FOLDER]"
    metavar += "..." * many
    return click.Argument(
        [parameter.name], nargs=-1 if many else 1, required=needed, type=_PATH, metavar=metavar, **default
    )


class _Model(click.ParamType):
    """A model's name: a file NAME.py in ./models, or one of the project's own."""

    name = "model"

    def __init__(self, adopted: bool) -> None:
        self._adopted = adopted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self._adopted and re.fullmatch(r"[A-Za-z0-9]\w*", value, re.ASCII):
            return value  # may be one that was adopted: the chain looks into its folder
        try:
            models.file(value)
            return value
        except UsageError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in models.names() if name.startswith(incomplete)]


def model(adopted: bool = False) -> click.Argument:
    """Which model to work on: one that has a model file, or, with `adopted`, the name of an adopted one."""
    return click.Argument(["model"], default=models.DEFAULT, type=_Model(adopted), metavar="[MODEL]")


def options(some: Iterable[ModuleType]) -> list[click.Option]:
    """The options of stages; a name that several of them have is one option and means the same in each."""
    found: dict[str, click.Option] = {}
    for stage in some:
        hints = typing.get_type_hints(stage.run, include_extras=True)
        for name, default in stages.options(stage).items():
            if name not in found:
                found[name] = _option(name, hints[name], default)
    return list(found.values())


def json_option() -> click.Option:
    """`--json`, which every command has."""
    return click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON.")


def _option(name: str, hint: Any, default: Any) -> click.Option:
    """From `Annotated[TYPE, help]`; TYPE may be `T | None`, `tuple[T, ...]` (given several times) or a Literal."""
    kind, text = typing.get_args(hint)
    flag = f"--{name.replace('_', '-')}"
    optional = types.NoneType in typing.get_args(kind)
    if optional:
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    if kind is bool:
        declared = f"{flag}/--no-{flag[2:]}" if optional else flag
        return click.Option([declared, name], is_flag=True, default=default, help=text)
    many = typing.get_origin(kind) is tuple
    if many:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        kind = click.Choice(typing.get_args(kind))
    elif kind is Path:
        kind = _PATH
    elif kind is str:
        kind = _Text()
    needed = default is stages.REQUIRED
    chosen = {"required": True} if needed else {"default": default, "show_default": default is not None}
    return click.Option([flag, name], type=kind, multiple=many, help=text, **chosen)
