"""docs/commands.md below its marker: what every command says of itself. `python -m tests.reference` writes it."""

from __future__ import annotations

import click

from pipeline import commands
from pipeline.cli.main import cli
from tests.support import ROOT

FILE = ROOT / "docs/commands.md"
MARKER = "<!-- from here on written by `python -m tests.reference` -->\n"


def page() -> str:
    """The page as it should be: its hand-written head, then each command's help, 100 columns wide."""
    head, _, _ = FILE.read_text().partition(MARKER)
    sections = [f"## {name}\n\n```text\n{_help(name)}```\n" for name in commands.EXAMPLES]
    return head + MARKER + "\n" + "\n".join(sections)


def _help(name: str) -> str:
    asked = cli.get_command(click.Context(cli), name)
    above = click.Context(cli, info_name="pipeline")
    context = click.Context(asked, info_name=name, parent=above, terminal_width=100, **asked.context_settings)
    return asked.get_help(context) + "\n"


if __name__ == "__main__":
    FILE.write_text(page())
