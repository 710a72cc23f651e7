"""A record's facts in, the first of them that isn't as it must be out. Standard library only.

A record's digest shows alteration, not sense: whoever writes a record gives it a digest that fits. So what readers rely
on, names that become paths among it, is checked here, once, before anything uses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

Check = Callable[[Any], bool]


def _text(pattern: str, most: int = 200) -> Check:
    return lambda value: isinstance(value, str) and len(value) <= most and re.fullmatch(pattern, value) is not None


def _whole(least: int, most: float = 1e15) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _real(least: float = -1e300, most: float = 1e300) -> Check:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _list(check: Any, least: int = 0, most: int = 1_000_000) -> Check:
    def holds(value: Any) -> bool:
        return (
            isinstance(value, list) and least <= len(value) <= most and not any(_wrong(check, each) for each in value)
        )

    return holds


def _map(key: Check, check: Any) -> Check:
    return lambda value: isinstance(value, dict) and all(key(k) and not _wrong(check, v) for k, v in value.items())


def _maybe(check: Any) -> Check:
    return lambda value: value is None or not _wrong(check, value)


NAME = _text(r"[A-Za-z0-9][A-Za-z0-9_.-]*", 100)  # becomes part of paths: no separator, no leading dot
# What is printed as it is has nothing that moves a cursor, hides or turns round what follows, or is half a character.
_UNPRINTED = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
WORDS = _text(rf"[^{_UNPRINTED}]*", 1000)
SHA256 = _text(r"[0-9a-f]{64}")
SHARE = _real(0, 1)
TRUTH: Check = lambda value: isinstance(value, bool)  # noqa: E731
DIGESTS = _map(NAME, SHA256)

MODEL = {
    "name": _text(r"[A-Za-z0-9][A-Za-z0-9_]*", 100),
    "title": WORDS,
    "version": NAME,
    "licence": WORDS,
    "dataset": NAME,
    "input": _list(_whole(1, 4096), 3, 3),
    "input_meaning": WORDS,
    "classes": _list(_text(rf"[^{_UNPRINTED},]+", 100), 2, 10_000),
    "mean": _real(-1e6, 1e6),
    "std": _real(1e-12, 1e6),
    "gate": SHARE,
}
REFERENCE = {
    "name": WORDS,
    "sha256": DIGESTS,
    "n": _whole(1),
    "correct": _whole(0),
    "wrong": _map(_text(r"\d{1,12}"), _whole(0, 10_000)),
}
FORM = {"model": MODEL, "reference": REFERENCE}


def _layer(value: Any) -> bool:
    """A described layer. Its numbers become PyTorch's arguments: one that is too large costs memory, not an error."""
    if not isinstance(value, dict) or not NAME(value.get("layer")):
        return False
    small, several = _whole(0, 4096), _list(_whole(0, 4096), 1, 4)
    kinds = (small, _real(0, 1), TRUTH, NAME, several, lambda each: each is None)
    return all(NAME(name) and any(kind(each) for kind in kinds) for name, each in value.items())


def _percentiles(value: Any) -> bool:
    """Times by percentile. There are always enough requests for the median."""
    return _map(_text(r"p\d+(\.\d+)?"), _real(1e-12))(value) and "p50" in value


LAYERS = _list(_layer, 1, 1000)
ROW = {"form": NAME, "kind": NAME, "sha256": SHA256, "runtime": WORDS, "arithmetic": WORDS}
PROVEN = ROW | {
    "bytes": _whole(0),
    "correct": _whole(0),
    "accuracy": SHARE,
    "interval": _list(SHARE, 2, 2),
    "differ": _whole(0),
    "mcnemar_p": SHARE,
    "wrong": REFERENCE["wrong"],
}
TIMED = ROW | {
    "batch": _whole(1),
    "microseconds": _percentiles,
    "images_per_second": _real(0),
}
MACHINE = {"processor": WORDS, "system": WORDS, "load": _maybe(_real(0))}

FACTS: dict[str, dict[str, Any]] = {
    "checkpoint": FORM | {"layers": LAYERS, "parameters": _whole(1)},
    "folded": FORM | {"layers": LAYERS},
    "onnx": FORM,
    "fp16": FORM,
    "engine": FORM | {"gpu": lambda value: value is None or isinstance(value, dict), "element": NAME},
    "verification": {
        "model": NAME,
        "data": {"name": WORDS, "images": _whole(1), "sha256": DIGESTS},
        "gate": SHARE,
        "compared_with": WORDS,
        "passed": TRUTH,
        "failures": _list(WORDS, 0, 1000),
        "rows": _list(PROVEN, 1, 1000),
    },
    "latency": {
        "machine": MACHINE,
        "threads": _whole(1),
        "unstable": _list(WORDS),
        "rows": _list(TIMED, 1, 10_000),
    },
}


OPTIONS = {
    "engine": {
        "runtime": _text("tensorrt|tensorrt-rtx"),
        "version": _text(r"\d+\.\d+[\w.+]*"),
        "version_compatible": TRUTH,
        "hardware_compatible": TRUTH,
        "targets": _maybe(_list(NAME, 0, 100)),
        "max_batch": _whole(1, 2**31 - 1),
    }
}


RELEASE = {  # release.json
    "model": MODEL["name"],
    "version": NAME,
    "format": _text("folder|triton"),
    "verified": TRUTH,
    "against": _list(_text(rf"[^{_UNPRINTED}]+", 100_000), 0, 1000),
}


def wrong(record: dict[str, Any]) -> str | None:
    """The first part of a record that isn't as its kind must have it, by its path; None if all are."""
    if not DIGESTS(record["parents"]):
        return "parents"
    facts = first_wrong(FACTS.get(record["kind"], {}), record["facts"], "facts")
    return facts or first_wrong(OPTIONS.get(record["kind"], {}), record["options"], "options")


def first_wrong(check: Any, value: Any, path: str = "") -> str | None:
    """The first part of a JSON value that isn't as `check`, one of those above, has it; None if all are."""
    return next(_wrongs(check, value, path), None)


def _wrong(check: Any, value: Any) -> bool:
    return first_wrong(check, value) is not None


def _wrongs(check: Any, value: Any, path: str = "") -> Iterator[str]:
    if not isinstance(check, dict):
        if not check(value):
            yield path
        return
    if not isinstance(value, dict):
        yield path
        return
    for name, each in check.items():
        here = f"{path}.{name}" if path else name
        if name not in value:
            yield here
        else:
            yield from _wrongs(each, value[name], here)
