"""The ways a command ends badly: each is one line for a person and an exit code."""

from __future__ import annotations

from typing import Any


class PipelineError(Exception):
    """A one-line message for stderr; `exit_code` is what the command ends with.

    `artifact` is what was made nevertheless, such as the verification that tells which form failed.
    """

    exit_code = 1

    def __init__(self, message: str, *, artifact: Any = None) -> None:
        super().__init__(message)
        self.artifact = artifact


class UsageError(PipelineError):
    """Wrong use: a missing or unsuitable file, an option that makes no sense."""

    exit_code = 2


class CheckFailed(PipelineError):
    """A check did not hold: altered bytes, accuracy under the gate, arithmetic out of range."""


def reason(error: Exception) -> str:
    """A library's error in one short line, to end one of ours with."""
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:120] or type(error).__name__
