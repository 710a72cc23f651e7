"""A description of this machine, to go with every measurement, and its handling of freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path

from pipeline.records.devices import Machine


def describe() -> Machine:
    """Return the processor, its usable cores, architecture, system, and load average over a minute."""
    return Machine(
        processor=_processor(),
        cores=cores(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of giving it back to the system; do nothing with another C library.

    A training step frees and allocates some megabytes, and the system zeroes each page that it hands out again: up to a
    quarter of a step's time. The parameters' numbers are from glibc's malloc.h.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    # A refused threshold (older glibc takes 32 MiB at most) must leave the others alone: it would stay at its least.
    if mallopt and (mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20)):
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    name = re.search(r"^(?:model name|Model)[ \t]*:[ \t]*(\S.*)", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or "unknown"
