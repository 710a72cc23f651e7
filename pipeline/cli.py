"""The command line: one command a file of SECTIONS, four about the chain; no logic, no heavy import at the top."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import click

import models
from pipeline import (
    __version__,
    artifact,
    chain,
    command,
    console,
    delivery,
    device,
    experiments,
    installs,
    lock,
    lookup,
    stages,
)
from pipeline.artifact import Artifact
from pipeline.errors import PipelineError

# Packages of commands.
SECTIONS = {"Stages": stages, "Release": delivery, "Experiments": experiments, "On the device": device}
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Commands(click.Group):
    """A command for each file of SECTIONS, then those below. `--help` reads the files' first lines, imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*(dashed(name) for package in SECTIONS.values() for name in package.names()), *self.commands]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for package in SECTIONS.values():
            for file in package.names():
                if dashed(file) == name:
                    return module_command(name, package.get(file))
        return self.commands.get(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, package in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(dashed(name), stages.summary(name, package)) for name in package.names()])
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(110)) for name, each in self.commands.items()])


def dashed(file: str) -> str:
    """A command's name from its file's."""
    return file.replace("_", "-")


@click.command(cls=Commands, context_settings=SETTINGS, no_args_is_help=True)
@click.version_option(__version__, prog_name="pipeline")
def cli() -> None:
    """Take a small trained network to an edge GPU without losing accuracy on the way, and prove it.

    train → fold → export → half → build → verify → bench; `pipeline run` does all of it, `pipeline ship` hands it over.
    """


def module_command(name: str, stage: ModuleType) -> click.Command:
    """The command of a stage or an experiment, made from the signature of its `run`."""

    def callback(as_json: bool, **given: Any) -> None:
        inputs, options = lookup.gather(stage, given)
        alone = not stage.__name__.startswith(experiments.__name__)  # many workers may share an experiment's folder
        with lock.held(options.get("out") if alone else None):
            made, failure = _outcome(lambda: stage.run(*inputs, **options))
        if made and as_json:
            console.result(json.dumps({"path": str(made.path) if made.path else None, **made.record()}, indent=1))
        elif made:
            _show(stage, made)
        if failure:
            raise failure

    parameters = [*command.arguments(stage), *command.options([stage]), command.json_option()]
    text = (inspect.getdoc(stage.run) or "").partition("\n\nRaises")[0]  # that is for Python's callers
    return click.Command(name, callback=callback, params=parameters, help=text, context_settings=SETTINGS)


def _outcome(make: Callable[[], Artifact]) -> tuple[Artifact | None, PipelineError | None]:
    """What was made, and how it failed: a failed check may still leave something to look at."""
    try:
        return make(), None
    except PipelineError as error:
        return error.artifact, error


def _show(stage: Any, made: Artifact) -> None:
    if hasattr(stage, "show"):
        stage.show(made)
    if made.path:
        console.result(f"{made.path}: {made.bytes:,} bytes, sha256 {made.sha256}")


class Run(click.Command):
    """`run` has the options of every stage; they are only looked up when it is asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            every = command.options(map(stages.get, stages.names()))
            force = click.Option(["--force"], is_flag=True, help="Do every stage again, whatever is on record.")
            self.params = [command.model(), *every, force, command.json_option()]
        return super().get_params(ctx)


@cli.command(cls=Run, context_settings=SETTINGS)
def run(model: str, force: bool, as_json: bool, **options: Any) -> None:
    """The whole chain: every stage whose inputs or options aren't those on record. Prints the verification last."""
    steps, failure = [], None
    try:
        for step in chain.run(model, force=force, **options):
            console.say(f"{step.stage:<8}{step.state}: {step.path}")
            steps.append(step)
    except PipelineError as error:
        failure = error
    if as_json:
        console.result(json.dumps({step.path.name: step.artifact.record() for step in steps}, indent=1))
    else:
        for step in sorted(steps, key=lambda step: step.artifact.kind == "verification"):
            if hasattr(stages.get(step.stage), "show"):
                stages.get(step.stage).show(step.artifact)
    if failure:
        raise failure
    if all(step.state == chain.FRESH for step in steps):
        console.say("nothing to do: every artifact is as on record (--force makes them again)")


@cli.command(context_settings=SETTINGS)
@click.argument("folder", type=click.Path(path_type=Path), default=stages.DEFAULTS["out"])
@click.option(
    "--model", type=click.Choice(models.names()), default=models.DEFAULT, show_default=True, help="Which model."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def status(folder: Path, model: str, as_json: bool) -> None:
    """Each link of the chain in a folder: fresh, stale, missing or altered. Exits 1 if one is altered."""
    links = chain.status(folder, model)
    rows = [[link.stage, link.path.name, link.state, link.why] for link in links]
    if as_json:
        console.result(
            json.dumps([dict(zip(("stage", "file", "state", "why"), row, strict=True)) for row in rows], indent=1)
        )
    else:
        console.table(["stage", "file", "state", "why"], rows, title=str(folder))
    chain.refuse_altered(links)


@cli.command("models", context_settings=SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def list_models(as_json: bool) -> None:
    """The models there are to train."""
    rows = [[name, models.card(name)["title"], models.card(name)["gate"]] for name in models.names()]
    if as_json:
        console.result(json.dumps([dict(zip(("name", "title", "gate"), row, strict=True)) for row in rows], indent=1))
    else:
        console.table(
            ["model", "what", "gate"], [[name, title, f"{gate:.2%}"] for name, title, gate in rows], title="models"
        )


@cli.command(context_settings=SETTINGS)
@click.argument("what", metavar="MODEL|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def show(what: str, as_json: bool) -> None:
    """A model's layer table, or what is on record about an artifact."""
    if what not in models.names() and Path(what).exists():
        console.result(json.dumps(artifact.read(Path(what)).record(), indent=1, ensure_ascii=False))
        return
    rows = models.layers(what)
    total = sum(parameters for _, _, parameters in rows)
    if as_json:
        layers = [{"layer": layer, "output": shape, "parameters": parameters} for layer, shape, parameters in rows]
        console.result(json.dumps({"card": models.card(what), "layers": layers, "parameters": total}, indent=1))
        return
    table = [[f"{layer}-{number}", str(shape), f"{size:,}"] for number, (layer, shape, size) in enumerate(rows, 1)]
    console.table(["layer (type)", "output shape", "parameters"], table, title=models.card(what)["title"])
    console.result(f"Total params: {total:,}")
    for recipe, numbers in models.recipes(what).items():
        console.result(f"Recipe {recipe}: " + ", ".join(f"{name} {value}" for name, value in numbers.items()))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: every expected error becomes one line on stderr and an exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        code = cli.main(arguments, prog_name="pipeline", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        where = error.ctx.command_path if getattr(error, "ctx", None) else "pipeline"
        _fail(f"{error.format_message()} (see `{where} --help`)", error.exit_code)
    except PipelineError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        _fail(f"this needs {error.name}, which isn't installed: {installs.line([error.name])}", 2)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, click.Abort):
        _fail(f"interrupted; {_after(next(iter(arguments or sys.argv[1:]), ''))}", 130)


def _after(name: str) -> str:
    """What an interrupted command leaves, and how to go on."""
    if name == "train":
        return "finished epochs are kept: the same command goes on with --resume"
    if name in ("run", "study", "sweep"):
        return "what is finished is kept: the same command goes on"
    return "nothing half-done is left"


def _fail(message: str, code: int) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
