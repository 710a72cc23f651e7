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
SUPPLY = ("VDD_IN", "VIN", "POM_5V_IN")  # rails that feed all others


def rails() -> dict[str, float]:
    """Return the watts of every rail by name, from the sensors' files; empty where there are none."""
    found = {}
    sensors = "sys/bus/i2c/drivers/ina3221*/*"
    for label in sorted(system.ROOT.glob(f"{sensors}/hwmon/hwmon*/in*_label")):
        channel = label.name.removeprefix("in").removesuffix("_label")
        millivolts = system.number(label.with_name(f"in{channel}_input"))
        milliamperes = system.number(label.with_name(f"curr{channel}_input"))
        if (name := system.text(label)) and millivolts is not None and milliamperes is not None:
            found[name] = millivolts * milliamperes / 1e6
    for label in sorted(system.ROOT.glob(f"{sensors}/iio:device*/rail_name_*")):  # up to JetPack 4
        milliwatts = system.number(label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input"))
        if (name := system.text(label)) and milliwatts is not None:
            found[name] = milliwatts / 1e3
    return {name: watts for name, watts in found.items() if name != "NC"}  # not connected


def total(rails: dict[str, float]) -> float | None:
    """Return the board's power: the rail's that feeds the others, or the sum; None without rails."""
    if not rails:
        return None
    return next((rails[name] for name in SUPPLY if name in rails), sum(rails.values()))


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
    """Read lines with such as `VDD_IN 4840mW/4812mW`, now and on average; before JetPack 5 without the unit."""
    for line in tegrastats.stdout or ():
        found = re.findall(r"(?<!\S)([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)", line)
        if rails := {name: float(milliwatts) / 1e3 for name, milliwatts in found if name != "NC"}:
            samples.append(rails)
