from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.machine import jetson
from pipeline.measure import timing
from pipeline.records import kinds

NVPMODEL = "NV Power Mode: {}\n0\n"


@pytest.fixture
def board(tmp_path, monkeypatch):
    """The files of an Orin Nano with JetPack 6, as far as they are read; a function that alters one of them."""
    monkeypatch.setattr(jetson, "ROOT", tmp_path)
    said = {"nvpmodel": NVPMODEL.format("MAXN_SUPER"), "dpkg-query": "6.2.1+b38"}
    monkeypatch.setattr(jetson, "_command", lambda *line: said.get(line[0]))
    monkeypatch.setattr(jetson, "watts", lambda: 7.25)

    def write(path: str, text: object) -> None:
        there = tmp_path / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(f"{text}\n")

    write("etc/nv_tegra_release", "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64")
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    for name in ("cur", "min", "max"):
        write(f"sys/class/devfreq/17000000.gpu/{name}_freq", 1_020_000_000)
    for number, (kind, value) in enumerate({"cpu-thermal": 48_500, "gpu-thermal": 47_000}.items()):
        write(f"sys/class/thermal/thermal_zone{number}/type", kind)
        write(f"sys/class/thermal/thermal_zone{number}/temp", value)
    for number, kind in enumerate(("pwm-fan", "gpu-throttle-alert")):
        write(f"sys/class/thermal/cooling_device{number}/type", kind)
        write(f"sys/class/thermal/cooling_device{number}/cur_state", int(kind == "pwm-fan"))
    write.said = said
    return write


def test_a_board_tells_its_state(board):
    assert kinds.plain(jetson.state()) == {
        "model": "NVIDIA Jetson Orin Nano Developer Kit",
        "release": "R36 (release), REVISION: 4.4",
        "jetpack": "6.2.1+b38",
        "power_mode": "MAXN_SUPER",
        "gpu_mhz": {"now": 1020.0, "min": 1020.0, "max": 1020.0},
        "pinned": True,
        "temperatures": {"cpu-thermal": 48.5, "gpu-thermal": 47.0},
        "throttling": [],
        "watts": 7.25,
    }
    assert jetson.warnings([jetson.state()]) == []


def test_each_bad_state_is_told_with_the_command_that_mends_it(board):
    board("sys/class/devfreq/17000000.gpu/min_freq", 306_000_000)
    board("sys/class/thermal/thermal_zone1/temp", 88_000)
    board("sys/class/thermal/cooling_device1/cur_state", 1)
    board.said["nvpmodel"] = NVPMODEL.format("15W")
    clock, mode, heat, slowed = jetson.warnings([jetson.state()])
    assert "306 to 1020 MHz" in clock and "sudo jetson_clocks" in clock
    assert "15W" in mode and "sudo nvpmodel -m 0" in mode
    assert "88 °C" in heat and "gpu-throttle-alert" in slowed


def test_a_clock_that_changes_though_pinned_is_told(board):
    before = jetson.state()
    board("sys/class/devfreq/17000000.gpu/cur_freq", 714_000_000)
    (told,) = jetson.warnings([before, jetson.state()])
    assert "714 MHz, 1020 MHz" in told


def test_a_measurement_has_the_boards_states_and_power(board):
    subject = timing.Subject({}, 1, lambda: time.sleep(1e-4))
    states = timing.measure([subject], quick=True)
    assert states == [jetson.state()] * (timing.ROUNDS + 1) and subject.watts == [7.25] * timing.ROUNDS


def test_what_cannot_be_read_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(jetson, "ROOT", tmp_path)
    assert jetson.state() is None
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_text("NVIDIA Jetson AGX Thor\0")
    found = jetson.state()
    assert found.model == "NVIDIA Jetson AGX Thor" and found.gpu_mhz is None and found.temperatures == {}
    assert jetson.warnings([found]) == []


def test_nothing_is_ever_set():
    """It may look and run what tells; commands that change a board stand in texts alone."""
    source = Path(jetson.__file__).read_text()
    assert "write" not in source and source.count("subprocess.run") == 1
    assert source.count("_command(") == 3  # its definition, nvpmodel -q, dpkg-query
