"""The state of a Jetson that latencies measured on it depend on. It is only read, never changed.

It is read from the kernel's files, from `nvpmodel -q` and `dpkg-query`, and, for power, from jetson-stats where that is
installed.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from pipeline.records.devices import Board

ROOT = Path("/")
HOT = 80.0  # °C from which a board is about to throttle


def state() -> Board | None:
    """Return the board's state, with None for what can't be read; None if this is no Jetson.

    GPU clocks are in MHz, temperatures in °C, power in W.
    """
    release, model = _text("etc/nv_tegra_release"), _text("proc/device-tree/model")
    if release is None and "Jetson" not in (model or ""):
        return None
    clocks = _clocks()
    cooling = _zones("cooling_device*", "cur_state", 1)
    mode = re.search(r"Power Mode: *(.*\S)", _command("nvpmodel", "-q") or "")
    return Board(
        model=model,
        release=release.partition(", GCID")[0].lstrip("# ") if release else None,
        jetpack=_command("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"),
        power_mode=mode[1] if mode else None,
        gpu_mhz=clocks,
        pinned=clocks["min"] == clocks["max"] if clocks else None,
        temperatures=_zones("thermal_zone*", "temp", 1000),
        throttling=[name for name, level in cooling.items() if level and "fan" not in name.lower()],
        watts=watts(),
    )


def warnings(states: list[Board]) -> list[str]:
    """Return why a board in these states (before, during, after) gives unreliable latencies, each with a remedy."""
    reasons = []
    first = states[0]
    clocks = first.gpu_mhz
    if clocks and not first.pinned:
        speeds = f"{clocks['min']:.0f} to {clocks['max']:.0f} MHz"
        reasons.append(f"GPU clock is not locked ({speeds}); run `sudo jetson_clocks`")
    if first.power_mode and not first.power_mode.upper().startswith("MAXN"):
        reasons.append(f"power mode {first.power_mode} limits the clocks; run `sudo nvpmodel -m 0`, then jetson_clocks")
    cool = "let the board cool, or run `sudo jetson_clocks --fan`"
    hottest = max((value for state in states for value in state.temperatures.values()), default=0)
    if hottest >= HOT:
        reasons.append(f"the board reached {hottest:.0f} °C; {cool}")
    if throttling := sorted({name for state in states for name in state.throttling}):
        reasons.append(f"the board throttled ({', '.join(throttling)}); {cool}")
    current = sorted({round(state.gpu_mhz["now"]) for state in states if state.gpu_mhz})
    if first.pinned and len(current) > 1:
        reasons.append(f"GPU clock changed although it is locked: {', '.join(f'{speed} MHz' for speed in current)}")
    return reasons


def watts() -> float | None:
    """Return the power of all the board's rails together, from jetson-stats; None where that isn't running."""
    try:
        from jtop import jtop

        with jtop() as board:
            return board.power["tot"]["power"] / 1000
    except Exception:  # the errors of a missing library and of its service share no base
        return None


def _text(path: Path | str) -> str | None:
    try:
        return (ROOT / path).read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _command(*line: str) -> str | None:
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _clocks() -> dict[str, float] | None:
    """Return the GPU's clocks in MHz. Its devfreq entry is called such as 17000000.gpu or gpu-gpc-0."""
    for folder in sorted((ROOT / "sys/class/devfreq").glob("*gpu*")):
        now, least, most = (_number(folder / f"{name}_freq") for name in ("cur", "min", "max"))
        if now is not None and least is not None and most is not None:
            return {"now": now / 1e6, "min": least / 1e6, "max": most / 1e6}
    return None


def _zones(pattern: str, file: str, unit: int) -> dict[str, float]:
    values = {}
    for folder in sorted((ROOT / "sys/class/thermal").glob(pattern)):
        name, value = _text(folder / "type"), _number(folder / file)
        if name and value is not None:
            values[name] = value / unit
    return values
