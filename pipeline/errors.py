"""The ways a command ends badly: each is one line for a person and an exit code."""

from __future__ import annotations

import re


class PipelineError(Exception):
    """A one-line message for stderr; `exit_code` is what the command ends with."""

    exit_code = 1


class UsageError(PipelineError):
    """Wrong use: a missing or unsuitable file, an option that makes no sense."""

    exit_code = 2


class CheckFailed(PipelineError):
    """A check did not hold: altered bytes, accuracy under the gate, arithmetic out of range."""


def reason(error: BaseException) -> str:
    """A library's error in one short line, to end one of ours with."""
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:120] or type(error).__name__


def last_line(stderr: str) -> str:
    """The error that a program ended with: its last line that says it is one, without saying so; else its last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error: ")]
    return re.sub("^error: ", "", (errors or lines or ["no reason was given"])[-1], flags=re.IGNORECASE)
