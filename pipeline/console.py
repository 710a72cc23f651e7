"""What a person sees: progress and remarks on stderr, results on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def say(text: str) -> None:
    """One remark on stderr, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def result(text: str) -> None:
    """One line of the result on stdout."""
    print(text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> None:
    """A table on stdout: as wide as the terminal, or, into a file, as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, header in enumerate(headers):
        numeric = all(row[number][:1].isdigit() or row[number] == "–" for row in rows)
        made.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(made)


def progress(total: int | None, unit: str, description: str) -> Any:
    """A tqdm bar on stderr; into a file it writes a line a minute, since there it can't overwrite itself."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 60
    return tqdm(
        total=total,
        unit=unit,
        desc=description,
        file=sys.stderr,
        mininterval=interval,
        maxinterval=interval,
        unit_scale=unit == "B",
    )
