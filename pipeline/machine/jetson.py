"""A Jetson's state: what a latency measured on one depends on. Only looks; nothing is ever set.

Read from the files that the board's kernel offers, from `nvpmodel -q` and `dpkg-query`, and, for power, from
jetson-stats where it is installed. Everywhere but on a Jetson, `state` is None.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.records.devices import Board

ROOT = Path("/")
HOT = 80.0  # °C from which a board is near the point where it slows itself down
COMMANDS = {
    "mode": "sudo nvpmodel -m 0",
    "clocks": "sudo jetson_clocks",
    "heat": "let it cool, or sudo jetson_clocks --fan",
}


def state() -> Board | None:
    """Model, releases, power mode, GPU clocks in MHz and whether they are pinned, temperatures in °C, what throttles,
    and the board's power in W; what can't be read is None. No Jetson: None."""
    release = _text("etc/nv_tegra_release")
    model = _text("proc/device-tree/model")
    if release is None and "Jetson" not in (model or ""):
        return None
    clocks = _clocks()
    return Board(
        model=model,
        release=release.partition(", GCID")[0].lstrip("# ") if release else None,
        jetpack=_command("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"),
        power_mode=_power_mode(),
        gpu_mhz=clocks,
        pinned=clocks["min"] == clocks["max"] if clocks else None,
        temperatures=_zones("thermal_zone*", "temp", 1000),
        throttling=[
            name for name, level in _zones("cooling_device*", "cur_state", 1).items() if _slows(name) and level
        ],
        watts=_watts(),
    )


def warnings(states: list[Board]) -> list[str]:
    """Why a board that was in these states (before, during, after) wasn't worth measuring on, and what mends it."""
    found = []
    first = states[0]
    if first.pinned is False:
        clocks = first.gpu_mhz
        found.append(
            f"the GPU's clock isn't pinned ({clocks['min']:.0f} to {clocks['max']:.0f} MHz): `{COMMANDS['clocks']}`"
        )
    if first.power_mode and not first.power_mode.upper().startswith("MAXN"):
        found.append(f"power mode {first.power_mode} limits the clocks: `{COMMANDS['mode']}`, then the above")
    hottest = max((value for state in states for value in state.temperatures.values()), default=0)
    if hottest >= HOT:
        found.append(f"it reached {hottest:.0f} °C: {COMMANDS['heat']}")
    if slowed := sorted({name for state in states for name in state.throttling}):
        found.append(f"it slowed itself down ({', '.join(slowed)}): {COMMANDS['heat']}")
    speeds = {round(state.gpu_mhz["now"]) for state in states if state.gpu_mhz}
    if first.pinned and len(speeds) > 1:
        found.append(f"the GPU's clock changed all the same: {', '.join(f'{speed} MHz' for speed in sorted(speeds))}")
    return found


def _text(path: str) -> str | None:
    try:
        return (ROOT / path).read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _command(*line: str) -> str | None:
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _power_mode() -> str | None:
    """`nvpmodel -q` says `NV Power Mode: MAXN`, then the mode's number."""
    for line in (_command("nvpmodel", "-q") or "").splitlines():
        name, colon, mode = line.partition(":")
        if colon and "Power Mode" in name:
            return mode.strip()
    return None


def _clocks() -> dict[str, float] | None:
    """Of the GPU, in MHz: its devfreq entry is named after it, such as 17000000.gpu or gpu-gpc-0."""
    for folder in sorted((ROOT / "sys/class/devfreq").glob("*gpu*")):
        found = {
            name: _number(folder / f"{file}_freq") for name, file in (("now", "cur"), ("min", "min"), ("max", "max"))
        }
        if None not in found.values():
            return {name: hertz / 1e6 for name, hertz in found.items()}
    return None


def _zones(pattern: str, file: str, unit: int) -> dict[str, float]:
    found = {}
    for folder in sorted((ROOT / "sys/class/thermal").glob(pattern)):
        name, value = _text(str((folder / "type").relative_to(ROOT))), _number(folder / file)
        if name and value is not None:
            found[name] = value / unit
    return found


def _slows(cooling_device: str) -> bool:
    """A fan cools, too, but slows nothing down."""
    return "fan" not in cooling_device.lower()


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _watts() -> float | None:
    """Of all rails together, through jetson-stats: the board, not what the wall gives."""
    try:
        from jtop import jtop

        with jtop() as board:
            return board.power["tot"]["power"] / 1000
    except Exception:  # its service isn't running, or the library isn't there: its errors share no base
        return None
