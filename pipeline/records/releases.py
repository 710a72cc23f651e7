"""The facts of a release, of its archive and of its use on a device."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from pipeline.records.devices import Here
from pipeline.records.facts import (
    Amount,
    Facts,
    FileName,
    ModelName,
    Name,
    Part,
    Positive,
    Reasons,
    Sha256,
    Share,
    Words,
)
from pipeline.records.forms import SecondBuild
from pipeline.records.reports import LabelledImages, Proven, Timed


class About(Part, frozen=True):
    """release.json: what a release says of itself."""

    kind: Annotated[str, Meta(pattern=r"^release\Z")]
    model: ModelName
    version: Name
    format: Annotated[str, Meta(pattern=r"^(folder|triton)\Z")]
    verified: bool
    against: Reasons
    made_by: Words

    def __post_init__(self) -> None:
        if self.verified is not (not self.against):
            raise ValueError("expected it to be verified, or a reason against it")


class Release(Facts, frozen=True):
    """The archive of a release."""

    about: About
    folder: Words
    files: Positive


class ReleaseCheck(Facts, frozen=True):
    """What holds about a release."""

    model: ModelName
    version: Name
    format: Words
    verified: bool
    against: Reasons
    files: Positive
    not_looked_at: list[Words]
    sums_sha256: Sha256
    signature: Words


class Deployed(Proven, frozen=True):
    """A form as it was verified and timed on a device."""

    latency: list[Timed]

    @property
    def smallest(self) -> Timed | None:
        """Its latency at the smallest batch size, if it was timed."""
        return min(self.latency, key=lambda timed: timed.batch, default=None)


class DeviceReport(Here, frozen=True):
    """A release in use on a device."""

    release: ReleaseCheck | None
    model: ModelName
    passed: bool
    failures: Reasons
    no_engine: Words | None
    build_seconds: dict[FileName, Amount]
    data: LabelledImages
    gate: Share
    warnings: Reasons
    rows: Annotated[list[Deployed], Meta(min_length=1)]
    second_builds: dict[FileName, SecondBuild] | None = None

    def passes(self, row: Deployed) -> bool:
        """Whether no failure is about this row, in its mode or in all, or about the whole test set."""
        own = f"{row.form} ({row.runtime}: {row.arithmetic})", f"{row.form} ({row.runtime}):"
        forms = tuple(f"{each.form} (" for each in self.rows)
        return not any(why.startswith(own) or not why.startswith(forms) for why in self.failures)


class Boards(Facts, frozen=True):
    """A release in use on several boards: their reports by host, and what failed or kept one from having a report."""

    boards: dict[Words, DeviceReport]
    failures: Reasons
