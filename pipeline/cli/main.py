"""The command line: each entry of `pipeline.commands`, and four commands about the chain. No heavy imports."""

from __future__ import annotations

import difflib
import inspect
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import click

from pipeline import __version__, chain, commands, console, stages
from pipeline.cli import inputs, parameters, shown
from pipeline.errors import CheckFailed, PipelineError, UsageError
from pipeline.machine import extras as installs
from pipeline.records import disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.training import models

SAVED = "completed work is saved; run the same command again to continue"
# What an interrupted command leaves that it goes on from.
LEFT = {"run": SAVED, "certify": SAVED, "study": SAVED, "sweep": SAVED}
LEFT["train"] = LEFT["teach"] = "completed epochs are saved; run the same command again to continue"
SHOWN = 5  # failures named in the error line; the report has all
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Commands(click.Group):
    """The commands of `pipeline.commands`, then those below. `--help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *commands.COMMANDS]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name, names = args[0], self.list_commands(ctx)
        if name not in names and (near := difflib.get_close_matches(name, names, 1)):
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in commands.COMMANDS:
            return module_command(name, commands.COMMANDS[name].load())
        return self.commands.get(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups = {"The whole chain": [(name, each.get_short_help_str(110)) for name, each in self.commands.items()]}
        for title, group in commands.GROUPS.items():
            groups[title] = [(command.name, command.summary) for command in group]
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class Command(click.Command):
    """A command whose help opens with an example."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n  $ {commands.EXAMPLES[str(self.name)]}\n")
        super().format_help_text(ctx, formatter)


@click.command(cls=Commands, context_settings=SETTINGS, no_args_is_help=True)
@click.version_option(__version__, prog_name="pipeline")
def cli() -> None:
    """Take a trained image classifier to an edge GPU without losing accuracy on the way, and prove it.

    train → export → fold → half, quantize → build → verify → bench: `pipeline run` does all of it; `pipeline ship`
    makes a release. An .onnx from elsewhere enters by `pipeline adopt`.
    """


def module_command(name: str, stage: ModuleType) -> click.Command:
    """The command of a stage or an experiment, made from the signature of its `run`."""

    def callback(as_json: bool, **given: Any) -> None:
        positional, options = inputs.gather(stage, given)
        alone = not stage.__name__.startswith("pipeline.experiments")  # many workers may share an experiment's folder
        with disk.held(options.get("out") if alone else None):
            made = stage.run(*positional, **options)
        if made and as_json:
            console.json({"path": str(made.path) if made.path else None, **made.record()})
        elif made:
            stage.show(made)
            if made.path:
                console.result(f"{made.path}: {made.bytes:,} bytes, sha256 {made.sha256}")
        if made:
            _raise(made.facts.failed)

    taken = [*parameters.arguments(stage), *parameters.options([stage]), parameters.json_option()]
    text = (inspect.getdoc(stage.run) or "").partition("\n\nRaises")[0]  # that is for Python's callers
    return Command(name, callback=callback, params=taken, help=text, context_settings=SETTINGS)


def _raise(failures: Sequence[str]) -> None:
    """CheckFailed, in a line, if there are failures."""
    if failures:
        more = f"; and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
        raise CheckFailed("; ".join(failures[:SHOWN]) + more)


class Run(Command):
    """`run` has the options of every stage; they are only looked up when it is asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            every = parameters.options(map(stages.get, stages.names()))
            force = click.Option(["--force"], is_flag=True, help="Do every stage again, whatever is on record.")
            left = click.Choice(chain.optional())
            without = click.Option(["--without"], type=left, multiple=True, help="Leave a stage out; several times.")
            self.params = [parameters.model(adopted=True), *every, force, without, parameters.json_option()]
        return super().get_params(ctx)


@cli.command(cls=Run, context_settings=SETTINGS)
def run(model: str, force: bool, without: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run every stage whose inputs or options aren't those on record.

    Prints what each stage made as soon as it is made, and whether all forms pass last; `pipeline show FILE` prints any
    of it again.
    """
    states: list[str] = []
    artifacts: list[Artifact] = []
    try:
        for artifact, state in chain.run(model, force=force, without=without, **options):
            console.say(f"{chain.maker(artifact):<9}{state}: {artifact.path}")
            if state == chain.MADE and not as_json:
                stages.get(chain.maker(artifact)).show(artifact)
            states.append(state)
            artifacts.append(artifact)
    finally:  # what was made is shown, also if a later stage fails
        if as_json:
            console.json({artifact.name: artifact.record() for artifact in artifacts})
    if set(states) == {chain.FRESH}:
        console.say("nothing to do: every artifact is as on record (--force makes them again)")
    for proof in (artifact.facts for artifact in artifacts if artifact.kind == "verification" and not as_json):
        least = min(row.accuracy for row in proof.rows)
        console.result(f"{'passed' if proof.passed else 'FAILED'}: gate {proof.gate:.2%}, least accuracy {least:.2%}")
    _raise([problem for artifact in artifacts for problem in artifact.facts.failed])


@cli.command(cls=Command, context_settings=SETTINGS, params=[parameters.json_option()])
@click.argument("folder", type=click.Path(path_type=Path), default=stages.DEFAULTS["out"])
@click.option("--model", help="Which model, if the folder has several.")
def status(folder: Path, model: str | None, as_json: bool) -> None:
    """Tell which artifacts are fresh, stale, missing or altered.

    Exits 1 if one is altered. A file that no stage makes by itself is "recorded": unaltered, as its record has it.
    """
    if not manifest.is_intact(folder) and not manifest.names(folder):
        raise CheckFailed(f"{folder / manifest.FILE}: altered; {manifest.AGAIN}")
    links = chain.status(folder, model)
    there = [link for link in links if link.state != chain.MISSING]
    if not there and not (folder / manifest.FILE).exists():
        raise UsageError(f"{folder}: no chain: expected a folder with what `pipeline run` made")
    if model and not any(link.path.name.startswith(f"{model}.") for link in there):
        raise UsageError(f"--model {model}: expected one whose files are in {folder}")
    rows = [{"stage": link.stage, "file": link.path.name, "state": link.state, "why": link.why} for link in links]
    shown.rows(rows, str(folder), as_json)
    if altered := [link.why for link in links if link.state == chain.ALTERED]:
        raise CheckFailed("; ".join(altered))


@cli.command("models", cls=Command, context_settings=SETTINGS, params=[parameters.json_option()])
def list_models(as_json: bool) -> None:
    """List the models: files in ./models, and the project's own."""
    cards = []
    for name in models.names():
        try:
            cards.append(models.get(name).card(name))
        except PipelineError as error:
            console.say(f"left out: {error}")
    shown.rows([{"name": card.name, "title": card.title, "gate": card.gate} for card in cards], "models", as_json)


@cli.command(cls=Command, context_settings=SETTINGS, params=[parameters.json_option()])
@click.argument("what", metavar="MODEL|FILE")
def show(what: str, as_json: bool) -> None:
    """Show a model's layers and recipes, or an artifact and its record."""
    if what not in models.names() and Path(what).exists():
        shown.artifact(manifest.read(Path(what)), as_json)
    else:
        shown.model(what, as_json)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: every expected error becomes one line on stderr and an exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    name = next(iter(arguments or sys.argv[1:]), "")
    if told := name in LEFT and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(arguments, prog_name="pipeline", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "pipeline"
        _fail(f"{error.format_message()} (see `{where} --help`)", error.exit_code)
    except PipelineError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        module = error.name or str(error)
        _fail(f"this needs {module}, which isn't installed: {installs.line([module])}", 2)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, click.Abort, _Terminated) as error:
        _fail(f"interrupted; {LEFT.get(name, 'no partial files are left')}", getattr(error, "code", 130))
    finally:
        if told:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Terminated(SystemExit):
    """SIGTERM, as `kill` and a system that shuts down send it; a SystemExit ends asyncio's loop, too."""


def _terminate(number: int, _: object) -> NoReturn:
    raise _Terminated(128 + number)


def _fail(message: str, code: int) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
