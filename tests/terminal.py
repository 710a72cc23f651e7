"""Pictures of terminal sessions: `python -m tests.terminal` runs them for real and renews tests/screens/*.svg.

`run` makes everything from nothing, in minutes. `deploy` deploys the committed files on a board behind an SSH server on
the loopback, which has no GPU and so no engines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from html import escape
from pathlib import Path

import click

from tests.support import ROOT
from tests.support.sshd import Server

COLUMNS, LINE, COLUMN = 160, 17, 7.85  # of the terminal; pixels
NO_BREAK = "\u00a0"  # a space that an SVG keeps
PIPELINE = (sys.executable, "-m", "pipeline")


def shown(words: Sequence[object], cwd: Path) -> list[str]:
    """Run `pipeline WORDS` in a terminal and return the lines that it leaves there. SystemExit if it fails."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    running = subprocess.Popen([*PIPELINE, *map(str, words)], cwd=cwd, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    written = b""
    with contextlib.suppress(OSError):  # as Linux ends a terminal
        while more := os.read(outer, 1 << 16):
            written += more
    if running.wait():
        raise SystemExit(written.decode(errors="replace"))
    return [_overwritten(line) for line in written.decode().replace("\r\n", "\n").rstrip().split("\n")]


def _overwritten(line: str) -> str:
    """What a line shows after its carriage returns."""
    left = ""
    for part in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split("\r"):
        left = part + left[len(part) :]
    return left.rstrip()


def _shortened(lines: list[str]) -> list[str]:
    """A session without the epochs of a training between the first and the last."""
    epochs = [number for number, line in enumerate(lines) if line.startswith("Test set:")]
    return lines if len(epochs) < 3 else [*lines[: epochs[0] + 1], "…", *lines[epochs[-1] - 1 :]]


def picture(command: str, lines: Sequence[str]) -> str:
    """An SVG of a session, with no font or anything else from outside."""
    rows = [f"$ {command}", *lines]
    width, height = round(COLUMNS * COLUMN) + 32, len(rows) * LINE + 32
    texts = [
        f'<text x="16" y="{number * LINE + 28}">{escape(row).replace(" ", NO_BREAK)}</text>'
        for number, row in enumerate(rows)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<title>{escape(command)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>\n'
        '<g font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="13" fill="#e6edf3">\n'
        + "\n".join(texts)
        + "\n</g>\n</svg>\n"
    )


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(["run", "deploy"]))
@click.option("--keep", type=click.Path(path_type=Path), help="A folder for what `run` makes, kept.")
def main(names: Sequence[str], keep: Path | None) -> None:
    """Renew the pictures of these sessions, or of both."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in names or ("run", "deploy"):
            if name == "run":
                out = keep or Path(scratch) / "out"
                command, words = "pipeline run", ["run", "--out", out]
                lines = shown(words, ROOT)
            else:
                server = Server(Path(scratch) / "board", borrow=True)
                command = "pipeline deploy artifacts --on board --runtime none --quick --batch 1"
                words = [*command.split()[1:], "--ssh-config", server.config, "--out", Path(scratch) / "device"]
                try:
                    lines = shown(words, ROOT)
                finally:
                    server.stop()
            lines = _shortened([line for line in lines if " 0%|" not in line])  # bars that went on
            for long, short in ((f"{scratch}/", ""), *([(str(keep), "out")] if keep else [])):
                lines = [line.replace(long, short) for line in lines]
            (ROOT / f"tests/screens/{name}.svg").write_text(picture(command, lines))


if __name__ == "__main__":
    main()
