"""Faults, hostile input and tampering by the thousand: `python -m tests.hardening` prints what was tried, what failed.

Each part is a module with `run(place, scale) -> list[Row]`; scale is 1 in the form that CI runs, more in the long one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data import imagesets
from pipeline.data.imagesets import ImageSet
from tests import support

# How `pipeline run` makes the chain that is worked on: real MNIST, two epochs, a minute.
SMALL = (*support.SMALL, "--limit", "6000")


@dataclass(frozen=True)
class Place:
    """What the parts work on, none of which they alter: a chain, a signed release (its `pub.pem` beside it), MNIST."""

    chain: Path
    release: Path
    data: str

    def images(self, part: str = "test") -> ImageSet:
        """MNIST's "train" or "test" images."""
        return imagesets.load(self.data, part, (1, 28, 28), tuple("0123456789"))


@dataclass
class Row:
    """One line of the table: what was tried how often, how often it went as promised, and how it failed if it did."""

    part: str
    what: str
    tried: int = 0
    held: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, failure: str | None) -> None:
        """Count a try, and keep how it failed."""
        self.tried += 1
        if failure is None:
            self.held += 1
        else:
            self.failures.append(failure)
