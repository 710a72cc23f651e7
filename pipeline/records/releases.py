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
    warnings: list[Words]
    rows: Annotated[list[Deployed], Meta(min_length=1)]
    second_builds: dict[FileName, SecondBuild] | None = None

    def failed_form(self, form: str) -> bool:
        """Whether a failure is about this form."""
        return any(why.startswith(f"{form} (") for why in self.failures)


class Boards(Facts, frozen=True):
    """A release in use on several boards: their reports by host, and what failed or kept one from having a report."""

    boards: dict[Words, DeviceReport]
    failures: Reasons
