"""What a person sees: progress and remarks on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from json import dumps
from typing import Any

EVERY = 60  # seconds between a file's lines of progress


def say(text: str) -> None:
    """One remark on stderr, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def result(text: str) -> None:
    """One line of the result on stdout."""
    print(text, flush=True)


def json(value: Any) -> None:
    """A result on stdout as JSON."""
    result(dumps(value, indent=1, ensure_ascii=False))


def size(n: int) -> str:
    """A number of bytes in kilobytes or, from a thousand of them, megabytes."""
    return f"{n / 1e6:.1f} MB" if n >= 999_950 else f"{n / 1e3:.1f} KB"


def count(n: int, unit: str) -> str:
    """A number of something in words: "1 core", "2 cores"."""
    return f"{n:,} {unit}" + "s" * (n != 1)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, spare: Sequence[str] = ()) -> None:
    """A table on stdout, into a file as wide as it needs to be; a narrow terminal goes without `spare` columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    width = None if sys.stdout.isatty() else 160  # and no markup, no emoji: a name may have [ or :
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    widths = {h: max(len(h), *(len(row[i]) for row in rows)) + 2 for i, h in enumerate(headers)} if rows else {}
    for header in spare:
        if sum(widths.values()) + 2 > console.width:
            widths.pop(header, None)
    for number, header in enumerate(headers):
        if rows and header not in widths:
            continue
        numeric = all(row[number][:1].isdigit() or row[number] == "–" for row in rows)
        made.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell for header, cell in zip(headers, row, strict=True) if header in widths))
    console.print(made)


def progress(total: int | None, unit: str, description: str, *, quiet: bool = False) -> Any:
    """A tqdm bar on a terminal's stderr; into a file, lines: see `_Lines`."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __exit__(self, kind: Any, *more: Any) -> None:
            self.leave = kind is None  # an error is the last line
            super().__exit__(kind, *more)

    if not quiet and not sys.stderr.isatty():
        return _Lines(total, unit, description)
    return Bar(
        total=total,
        unit=unit,
        desc=description,
        file=sys.stderr,
        disable=quiet,
        unit_scale=unit == "B",
        dynamic_ncols=True,
    )


class _Lines:
    """Progress where a bar can't overwrite itself: a line a minute, and a last one if it was given words to say."""

    def __init__(self, total: int | None, unit: str, description: str) -> None:
        self.n, self._total, self._unit, self._description = 0, total, unit, description
        self._begun = self._said = time.monotonic()
        self._given = False

    def update(self, n: int = 1) -> bool:
        """Count on; return whether that was worth a line, as tqdm does."""
        self.n += n
        if due := time.monotonic() - self._said >= EVERY:
            self._say()
        return due

    def set_description(self, text: str, refresh: bool = True) -> None:
        self._description, self._given = text, True

    def _say(self) -> None:
        from tqdm import tqdm

        self._said = time.monotonic()
        elapsed = self._said - self._begun
        how = {"prefix": self._description, "unit": self._unit, "unit_scale": self._unit == "B"}
        say(tqdm.format_meter(self.n, self._total, elapsed, **how))

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._given and kind is None:
            self._say()
