from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.machine import jetson, power, system
from pipeline.measure import timing
from pipeline.records import kinds, manifest

NVPMODEL = "NV Power Mode: {}\n0\n"
MODES = "\n".join(f"< POWER_MODEL ID={n} NAME={name} >" for n, name in enumerate(["15W", "25W", "MAXN_SUPER", "7W"]))


@pytest.fixture
def board(tmp_path, monkeypatch):
    """The files of an Orin Nano with JetPack 6, as far as they are read; a function that alters one of them."""
    monkeypatch.setattr(system, "ROOT", tmp_path)
    said = {"nvpmodel": NVPMODEL.format("MAXN_SUPER"), "dpkg-query": "6.2.1+b38"}
    monkeypatch.setattr(system, "command", lambda *line: said.get(line[0]))

    def write(path: str, text: object) -> None:
        there = tmp_path / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(f"{text}\n")

    write("etc/nv_tegra_release", "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64")
    write("etc/nvpmodel.conf", MODES)
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
    sensor = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    rails = {"VDD_IN": (5000, 1450), "VDD_CPU_GPU_CV": (5000, 400), "VDD_SOC": (5000, 280)}
    for number, (name, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        write(f"{sensor}/in{number}_label", name)
        write(f"{sensor}/in{number}_input", millivolts)
        write(f"{sensor}/curr{number}_input", milliamperes)
    write(f"{sensor}/in7_label", "sum of shunt voltages")
    write(f"{sensor}/in7_input", 44)
    for number, count in enumerate((0, 2, 0), 1):
        write(f"sys/class/hwmon/hwmon1/oc{number}_event_cnt", count)
    write.said, write.amperes = said, f"{sensor}/curr1_input"
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
        "rails": {"VDD_IN": 7.25, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.4},
        "events": {"oc1": 0, "oc2": 2, "oc3": 0},
    }
    assert jetson.warnings([jetson.state()]) == []


def test_each_bad_state_is_told_with_the_command_that_mends_it(board):
    board("sys/class/devfreq/17000000.gpu/min_freq", 306_000_000)
    board("sys/class/thermal/thermal_zone1/temp", 88_000)
    board("sys/class/thermal/cooling_device1/cur_state", 1)
    board.said["nvpmodel"] = NVPMODEL.format("15W")
    clock, mode, heat, slowed = jetson.warnings([jetson.state()])
    assert "306 to 1020 MHz" in clock and "sudo jetson_clocks" in clock
    assert "15W" in mode and "sudo nvpmodel -m 2" in mode
    assert "88 °C" in heat and "gpu-throttle-alert in 1 of 1 readings" in slowed


@pytest.mark.parametrize(
    ("modes", "mode", "number"),
    [
        (["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"], "MODE_50W", "0"),
        (["MAXN", "MAXN_SUPER", "40W"], "40W", "1"),
        (["15W", "MAXN_SUPER"], "MAXN_SUPER", None),
        (["7W", "15W"], "15W", None),
        (["7W", "15W"], "7W", "1"),
        ([], "15W", "0"),
    ],
)
def test_the_mode_that_limits_least_is_no_fault_and_otherwise_named(board, modes, mode, number):
    board("etc/nvpmodel.conf", "\n".join(f"< POWER_MODEL ID={n} NAME={name} >" for n, name in enumerate(modes)))
    board.said["nvpmodel"] = NVPMODEL.format(mode)
    told = jetson.warnings([jetson.state()])
    assert [f"sudo nvpmodel -m {number}`" in each for each in told] == [True] * (number is not None)


def test_throttling_events_during_the_measurement_are_counted(board):
    before = jetson.state()
    board("sys/class/hwmon/hwmon1/oc2_event_cnt", 5)
    (told,) = jetson.warnings([before, jetson.state()])
    assert "(3 times oc2)" in told and "power supply" in told


def test_a_clock_that_changes_though_pinned_is_told(board):
    before = jetson.state()
    board("sys/class/devfreq/17000000.gpu/cur_freq", 714_000_000)
    (told,) = jetson.warnings([before, jetson.state()])
    assert "714 MHz, 1020 MHz" in told


def test_a_measurement_has_the_boards_states_and_energy_above_idle(board):
    """2 W more under load than before it, at a millisecond a request of four images: half a millijoule each."""
    loaded = []

    def step():
        if not loaded:
            loaded.append(board(board.amperes, 1850))
        time.sleep(1e-3)

    subject = timing.Subject({}, 4, step)
    conditions = timing.measure([subject], quick=True)
    assert len(conditions.board) == timing.ROUNDS + 1 and conditions.board[0].watts == 7.25
    assert conditions.idle == {"VDD_CPU_GPU_CV": 2.0, "VDD_IN": 7.25, "VDD_SOC": 1.4} and conditions.warnings == []
    assert subject.power["watts"] == subject.power["rails"]["VDD_IN"] == pytest.approx(9.25)
    assert 0.5 <= subject.power["millijoules_per_image"] < 0.8


def test_a_warm_up_ends_when_the_temperature_stands_still(board, monkeypatch):
    monkeypatch.setattr(timing, "STEADY", 10)
    degrees = iter(range(50, 100, 2))
    hottest = []

    def step():
        time.sleep(1e-4)

    def rising():
        hottest.append(min(next(degrees), 54))
        return float(hottest[-1])

    monkeypatch.setattr(jetson, "hottest", rising)
    monkeypatch.setattr(timing, "WINDOW", 0.01)
    conditions = timing.Conditions()
    timing._soak([timing.Subject({}, 1, step)], conditions)
    assert hottest == [50, 52, 54, 54] and conditions.warm_up >= 3 * timing.SOAK[0] and conditions.warnings == []


def test_a_board_that_never_stands_still_is_told(board, monkeypatch):
    degrees = iter(range(50, 1000, 2))
    monkeypatch.setattr(jetson, "hottest", lambda: float(next(degrees)))
    conditions = timing.Conditions()
    timing._soak([timing.Subject({}, 1, lambda: time.sleep(1e-4))], conditions)
    (told,) = conditions.warnings
    assert "still moved" in told and timing.SOAK[1] <= conditions.warm_up < 4 * timing.SOAK[1]


def test_where_no_temperature_can_be_read_no_warm_up_is_announced(board, monkeypatch, capsys):
    monkeypatch.setattr(jetson, "hottest", lambda: None)
    conditions = timing.measure([timing.Subject({}, 64, lambda: None)])
    assert conditions.warnings == ["temperature can't be read, so the board may not be warm"]
    assert conditions.warm_up is None and "warming up" not in capsys.readouterr().err


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_unreliable_is_a_warning_or_with_strict_a_failure(board, chain, tmp_path, monkeypatch, capsys, strict):
    """The report is written all the same, and says why; unstable windows are not the board's fault."""
    board("sys/class/devfreq/17000000.gpu/min_freq", 306_000_000)
    monkeypatch.setattr(timing, "UNSTABLE", 10)
    line = ["bench", str(chain / "mnist_cnn.onnx"), "--quick", "--batch", "1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main.main([*line, *["--strict"] * strict])
    told = capsys.readouterr().err
    assert ended.value.code == int(strict) and told.count("unreliable measurement: GPU clock is not locked") == 1
    facts = manifest.read(tmp_path / "latency.json").facts
    assert len(facts.warnings) == 1 and len(facts.failures) == int(strict) and facts.idle["VDD_IN"] == 7.25
    assert facts.rows[0].rails["VDD_IN"] == 7.25 and facts.rows[0].millijoules_per_image == 0


def test_what_cannot_be_read_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "ROOT", tmp_path)
    assert jetson.state() is None
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_text("NVIDIA Jetson AGX Thor\0")
    found = jetson.state()
    assert found.model == "NVIDIA Jetson AGX Thor" and found.gpu_mhz is None and found.temperatures == {}
    (told,) = jetson.warnings([found])
    assert "can't be read" in told


def test_nothing_is_ever_set():
    """It may look and run what tells; commands that change a board stand in texts alone."""
    sources = {module.__name__: Path(module.__file__).read_text() for module in (jetson, power, system)}
    assert not any("write" in source for source in sources.values())
    assert [source.count("subprocess.") for source in sources.values()] == [0, 5, 2]  # tegrastats, and what follows
    assert sources[jetson.__name__].count("system.command(") == 2  # nvpmodel -q, dpkg-query
