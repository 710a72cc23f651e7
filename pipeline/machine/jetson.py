"""The state of a Jetson that latencies measured on it depend on. It is only read, never changed.

It is read from the kernel's files, from nvpmodel's, from `nvpmodel -q` and `dpkg-query`.
"""

from __future__ import annotations

import re
from collections import Counter

from pipeline.machine import power, system
from pipeline.records.devices import Board

HOT = 80.0  # °C from which a board is about to throttle


def state() -> Board | None:
    """Return the board's state, with None for what can't be read; None if this is no Jetson.

    GPU clocks are in MHz, temperatures in °C, power in W.
    """
    release, model = system.text("etc/nv_tegra_release"), system.text("proc/device-tree/model")
    if release is None and "Jetson" not in (model or ""):
        return None
    clocks = _clocks()
    cooling, rails = _zones("cooling_device*", "cur_state", 1), power.rails()
    mode = re.search(r"Power Mode: *(.*\S)", system.command("nvpmodel", "-q") or "")
    return Board(
        model=model,
        release=release.partition(", GCID")[0].lstrip("# ") if release else None,
        jetpack=system.command("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"),
        power_mode=mode[1] if mode else None,
        gpu_mhz=clocks,
        pinned=clocks["min"] == clocks["max"] if clocks else None,
        temperatures=_zones("thermal_zone*", "temp", 1000),
        throttling=[name for name, level in cooling.items() if level and "fan" not in name.lower()],
        watts=power.total(rails),
        rails=rails,
        events=_events(),
    )


def warnings(states: list[Board]) -> list[str]:
    """Return why a board in these states (before, during, after) gives unreliable latencies, each with a remedy."""
    reasons = []
    first = states[0]
    clocks = first.gpu_mhz
    if not clocks:
        reasons.append("GPU clock can't be read, so it may not be locked; run `sudo jetson_clocks`")
    elif not first.pinned:
        speeds = f"{clocks['min']:.0f} to {clocks['max']:.0f} MHz"
        reasons.append(f"GPU clock is not locked ({speeds}); run `sudo jetson_clocks`")
    number, top = _top_mode()
    if first.power_mode and first.power_mode != top and not first.power_mode.upper().startswith("MAXN"):
        reasons.append(
            f"power mode {first.power_mode} limits the clocks; run `sudo nvpmodel -m {number}`, then jetson_clocks"
        )
    cool = "let the board cool, or run `sudo jetson_clocks --fan`"
    hottest = max((value for state in states for value in state.temperatures.values()), default=0)
    if hottest >= HOT:
        reasons.append(f"the board reached {hottest:.0f} °C; {cool}")
    throttling = Counter(name for state in states for name in state.throttling)
    if counts := ", ".join(
        f"{name} in {count} of {len(states)} readings" for name, count in sorted(throttling.items())
    ):
        reasons.append(f"the board throttled ({counts}); {cool}")
    events = {name: count - first.events.get(name, count) for name, count in states[-1].events.items()}
    if counts := ", ".join(f"{count} times {name}" for name, count in sorted(events.items()) if count > 0):
        reasons.append(
            f"over-current throttled the clocks ({counts}); use a stronger power supply or a lower power mode"
        )
    current = sorted({round(state.gpu_mhz["now"]) for state in states if state.gpu_mhz})
    if first.pinned and len(current) > 1:
        reasons.append(f"GPU clock changed although it is locked: {', '.join(f'{speed} MHz' for speed in current)}")
    return reasons


def hottest() -> float | None:
    """Return the highest of the board's temperatures in °C; None where none can be read."""
    return max(_zones("thermal_zone*", "temp", 1000).values(), default=None)


def _clocks() -> dict[str, float] | None:
    """Return the GPU's clocks in MHz. Its devfreq entry is called such as 17000000.gpu or gpu-gpc-0."""
    for folder in sorted((system.ROOT / "sys/class/devfreq").glob("*gpu*")):
        now, least, most = (system.number(folder / f"{name}_freq") for name in ("cur", "min", "max"))
        if now is not None and least is not None and most is not None:
            return {"now": now / 1e6, "min": least / 1e6, "max": most / 1e6}
    return None


def _zones(pattern: str, file: str, unit: int) -> dict[str, float]:
    values = {}
    for folder in sorted((system.ROOT / "sys/class/thermal").glob(pattern)):
        name, value = system.text(folder / "type"), system.number(folder / file)
        if name and value is not None:
            values[name] = value / unit
    return values


def _top_mode() -> tuple[str, str]:
    """Return number and name of the power mode that limits least: MAXN_SUPER, MAXN, or else that of the most watts.

    Its number is not always 0: an Orin Nano with JetPack 6.2 has 15W there, and MAXN_SUPER as 2.
    """
    modes = re.findall(r"POWER_MODEL ID=(\d+) NAME=(\S+)", system.text("etc/nvpmodel.conf") or "")

    def rank(mode: tuple[str, str]) -> tuple[bool, bool, int]:
        watts = re.search(r"(\d+)W", mode[1])
        return mode[1].startswith("MAXN"), mode[1] == "MAXN_SUPER", int(watts[1]) if watts else 0

    return max(modes, key=rank, default=("0", "MAXN"))  # where the file can't be read, what most boards have


def _events() -> dict[str, int]:
    """Return how often each over-current protection has throttled the clocks since the board was started."""
    counts = {}
    for file in sorted((system.ROOT / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        count = system.number(file)
        if count is not None:
            counts[file.name.removesuffix("_event_cnt")] = int(count)
    return counts
