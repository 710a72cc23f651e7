"""The facts of every kind of artifact, as types that also validate what is read from disk.

A record's digest shows alteration, not sense: whoever writes a record gives it a digest that fits. So what readers rely
on, names that become paths among it, is checked here, once, before anything uses it.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pipeline.records.devices import Doctor
from pipeline.records.experiments import Study, Sweep
from pipeline.records.facts import UNPRINTED, Count, Digests, Facts, FileName, Name, Options, Sha256, Versions
from pipeline.records.forms import Check, Checkpoint, Engine, EngineOptions, Folded, Half, Labels, Quantized, Unfolded
from pipeline.records.releases import Boards, DeviceReport, Release, ReleaseCheck
from pipeline.records.reports import Certificate, History, Latency, Picture, Predictions, Verification

KINDS: dict[str, type[Facts]] = {
    "check": Check,
    "labels": Labels,
    "checkpoint": Checkpoint,
    "unfolded": Unfolded,
    "folded": Folded,
    "half": Half,
    "int8": Quantized,
    "engine": Engine,
    "certificate": Certificate,
    "verification": Verification,
    "latency": Latency,
    "history": History,
    "study": Study,
    "sweep": Sweep,
    "picture": Picture,
    "release": Release,
    "release-check": ReleaseCheck,
    "device-report": DeviceReport,
    "device-reports": Boards,
    "doctor": Doctor,
    "predictions": Predictions,
}
# Their facts are the file. A tuple, not a set: what a damaged record calls its kind need not be hashable.
REPORTS = (
    "certificate",
    "verification",
    "latency",
    "study",
    "sweep",
    "device-report",
    "device-reports",
    "doctor",
    "predictions",
    "check",
)
OPTIONS = {"engine": EngineOptions}  # of the other kinds, nothing relies on an option


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """An artifact's record, apart from its facts. `code` is empty where it isn't known what code made it."""

    kind: Name
    sha256: Sha256
    bytes: Count
    parents: Digests
    options: Options
    versions: Versions
    code: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    facts: dict[str, Any] | None = None  # a report's are in its file

    def __post_init__(self) -> None:
        _refuse_unprinted(self.options)


def _refuse_unprinted(value: Any) -> None:
    """ValueError for text in options that could move a cursor, and for numbers that are not finite."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for each in value:
            _refuse_unprinted(each)
    elif isinstance(value, str) and re.search(rf"[{UNPRINTED}]", value):
        raise ValueError("expected text without control characters in the options")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected finite numbers in the options")


def kind(facts: Facts) -> str:
    """The kind of artifact that has such facts."""
    return next(name for name, each in KINDS.items() if type(facts) is each)


def facts(kind: str, values: Any) -> Facts:
    """The facts of an artifact from plain values. msgspec.ValidationError where they aren't as its kind's."""
    if kind not in KINDS:
        raise msgspec.ValidationError(f"Unknown kind {kind!r}")
    return msgspec.convert(values, KINDS[kind])


def plain(facts: Any) -> Any:
    """Facts as JSON types."""
    return msgspec.to_builtins(facts)


def is_file_name(name: str) -> bool:
    """Whether a name is a plain one, of a file beside its manifest."""
    try:
        msgspec.convert(name, FileName)
    except msgspec.ValidationError:
        return False
    return True
