"""What the kernel's files and the system's own commands say. Nothing is ever set."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path("/")


def text(path: Path | str) -> str | None:
    """Return a file's text; None if it can't be read or is empty. A relative path begins at the root."""
    try:
        return (ROOT / path).read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def number(path: Path) -> float | None:
    """Return the number in a file; None if there is none."""
    try:
        return float(text(path) or "")
    except ValueError:
        return None


def command(*line: str) -> str | None:
    """Return what a command prints; None if it fails, or prints nothing."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
