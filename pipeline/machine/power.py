"""The power of a Jetson's rails, from the files of its INA3221 sensors, else from `tegrastats`."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator
from statistics import fmean

from pipeline.machine import system

INTERVAL = 0.05  # seconds between samples
SUPPLY = ("VDD_IN", "VIN")  # rails that feed all others
WITHIN = {"VDDQ_VDD2_1V8AO"}  # of an AGX Orin: by NVIDIA's table of its rails "also included in VIN_SYS_5V0 power"


def rails() -> dict[str, float]:
    """Return the watts of every rail by name, from the sensors' files; empty where there are none."""
    watts = {}
    for label in sorted(system.ROOT.glob("sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/in*_label")):
        channel = label.name.removeprefix("in").removesuffix("_label")
        millivolts = system.number(label.with_name(f"in{channel}_input"))
        milliamperes = system.number(label.with_name(f"curr{channel}_input"))
        if (name := system.text(label)) and millivolts is not None and milliamperes is not None:
            watts[name] = millivolts * milliamperes / 1e6
    return {name: value for name, value in watts.items() if name != "NC"}  # not connected


def total(rails: dict[str, float]) -> float | None:
    """Return the board's power: the rail's that feeds the others, or the sum; None without rails."""
    if not rails:
        return None
    apart = sum(watts for name, watts in rails.items() if name not in WITHIN)
    return next((rails[name] for name in SUPPLY if name in rails), apart)


def mean(samples: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each rail, over the samples that have it."""
    names = sorted({name for sample in samples for name in sample})
    return {name: fmean(sample[name] for sample in samples if name in sample) for name in names}


@contextlib.contextmanager
def sampled() -> Iterator[list[dict[str, float]]]:
    """Collect samples of the rails in a list in the background, until the context is left; none if there is no sensor.

    On a thread of its own: what is measured goes on without a pause.
    """
    samples: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        if rails():
            left = threading.Event()
            reader = threading.Thread(target=_poll, args=(samples, left))
            stack.callback(reader.join)
            stack.callback(left.set)  # the latest first
            reader.start()
        elif tegrastats := _tegrastats():
            reader = threading.Thread(target=_parse, args=(samples, tegrastats))
            stack.enter_context(tegrastats)
            stack.callback(reader.join)
            stack.callback(tegrastats.terminate)
            reader.start()
        yield samples


def _poll(samples: list[dict[str, float]], left: threading.Event) -> None:
    while not left.wait(INTERVAL):
        samples.append(rails())


def _tegrastats() -> subprocess.Popen[str] | None:
    line = ["tegrastats", "--interval", f"{INTERVAL * 1000:.0f}"]
    try:
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def _parse(samples: list[dict[str, float]], tegrastats: subprocess.Popen[str]) -> None:
    """Read lines with such as `VDD_IN 4840mW/4812mW`, now and on average."""
    for line in tegrastats.stdout or ():
        pairs = re.findall(r"(?<!\S)([A-Z]\w*) (\d+)mW/\d+mW(?!\S)", line)
        if rails := {name: float(milliwatts) / 1e3 for name, milliwatts in pairs if name != "NC"}:
            samples.append(rails)
