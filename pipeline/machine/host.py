"""What this machine is, the figures without which a latency means nothing, and how it is to treat freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from pipeline.records.devices import Machine


def describe() -> Machine:
    """Processor, its usable cores, architecture, system, and how busy it was (load average over a minute)."""
    return Machine(
        processor=_processor(),
        cores=cores(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Have glibc keep what is freed instead of giving it back to the system.

    A training step frees and asks again for some megabytes; each page that comes back from the system is first zeroed
    by it, up to a quarter of a step's time. Numbers from glibc's malloc.h; nothing happens with another C library.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    # A refused threshold (older glibc takes 32 MiB at most) must leave the others alone: it would stay at its least.
    if mallopt and (mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20)):
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or "unknown"
