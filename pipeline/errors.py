"""The ways a command ends badly: each is one line for a person and an exit code."""

from __future__ import annotations


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
