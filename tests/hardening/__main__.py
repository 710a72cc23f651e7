"""Run every part and print the table: what was tried, how often it held, and 0 in the column of failures, or exit 1."""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from pipeline import console
from pipeline.release import ship
from tests.hardening import SMALL, Place, Row

ROOT = Path(__file__).parents[2]
PARTS = ("fuzz", "tamper", "gate", "mutants", "endurance", "disk", "kills")
LONG = {"fuzz": 20, "tamper": 20, "gate": 1, "mutants": 2, "endurance": 17, "disk": 1, "kills": 100}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="A part; may be given several times.")
@click.option("--long", is_flag=True, help="20,000 inputs, 100 kills, 1,000 sessions: 75 minutes on two cores.")
@click.option("--chain", type=click.Path(path_type=Path), help="A chain made before, in place of a new one.")
@click.option("--data", default="mnist", show_default=True, help="MNIST: the name, or a folder.")
def main(only: tuple[str, ...], long: bool, chain: Path | None, data: str) -> None:
    """Faults, hostile input and tampering by the thousand, on the committed files and a release made of them."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = prepared(Path(scratch), chain, str(Path(data).resolve()) if Path(data).exists() else data)
        for name in only or PARTS:
            part, begun = importlib.import_module(f"tests.hardening.{name}"), time.monotonic()
            console.say(f"{name} ...")
            with contextlib.redirect_stderr(io.StringIO()):  # bars and remarks of what is tried
                found = part.run(place, LONG[name] if long else 1)
            rows += found
            console.say(f"{name}: {sum(row.tried for row in found):,} tried, {time.monotonic() - begun:.0f} s")
    table = [[row.part, row.what, f"{row.tried:,}", f"{row.held:,}", str(len(row.failures))] for row in rows]
    console.table(["part", "what", "tried", "held", "failures"], table, title="hardening")
    for failure in [failure for row in rows for failure in row.failures][:40]:
        console.result(f"FAILED: {failure}")
    sys.exit(any(row.failures for row in rows))


def prepared(scratch: Path, chain: Path | None, data: str) -> Place:
    """The committed files, a checkpoint and what is made of it, and a signed release with its public key."""
    if chain is None:
        chain = scratch / "chain"
        line = [sys.executable, "-m", "pipeline", "run", "--data", data, "--out", str(chain), *SMALL]
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    key = scratch / "key.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    made = ship.run(ROOT / "artifacts", out=scratch / "release", data=data, sign_key=key)
    public = scratch / "release" / "pub.pem"
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    return Place(chain, Path(made.facts.folder), data)


if __name__ == "__main__":
    main()
