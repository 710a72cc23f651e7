from __future__ import annotations

import sys
import time

import pytest

from pipeline.machine import power, system

# As JetPack 6 prints it: of an Orin Nano, and of an AGX Orin.
LINES = {
    "RAM 2448/7620MB SWAP 0/3810MB (cached 0MB) CPU [2%@729,0%@729,off,off] EMC_FREQ 0% "
    "GR3D_FREQ 0%@[305] cpu@48.5C tj@48.5C VDD_IN 4840mW/4812mW VDD_CPU_GPU_CV 1032mW/1032mW VDD_SOC 1434mW/1434mW": {
        "VDD_IN": 4.84,
        "VDD_CPU_GPU_CV": 1.032,
        "VDD_SOC": 1.434,
    },
    "RAM 3300/30536MB CPU [0%@1190] GPU@41C VDD_GPU_SOC 2000mW/2000mW NC 0mW/0mW VIN_SYS_5V0 3022mW/3022mW": {
        "VDD_GPU_SOC": 2.0,
        "VIN_SYS_5V0": 3.022,
    },
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def write(path: str, text: object) -> None:
        there = tmp_path / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(f"{text}\n")

    return write


def tegrastats(root, line: str) -> None:
    """A program that prints a line as often as it is asked to, and goes on until it is ended."""
    program = f"import sys, time\nassert sys.argv[1] == '--interval'\nwhile True:\n    print({line!r}, flush=True)\n"
    root("bin/tegrastats", f"#!{sys.executable}\n{program}    time.sleep(int(sys.argv[2]) / 1000)")
    (system.ROOT / "bin/tegrastats").chmod(0o755)


def test_the_rails_are_read_from_the_kernels_files(root):
    """Of both sensors of an AGX Orin; a channel not connected is none, and what another feeds isn't counted twice."""
    sensors = {"1-0040": ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], "1-0041": ["NC", "VDDQ_VDD2_1V8AO"]}
    for address, names in sensors.items():
        for number, name in enumerate(names, 1):
            folder = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon3"
            root(f"{folder}/in{number}_label", name)
            root(f"{folder}/in{number}_input", 12_000)
            root(f"{folder}/curr{number}_input", 100 * number)
    rails = power.rails()
    assert rails == pytest.approx({"VDD_GPU_SOC": 1.2, "VDD_CPU_CV": 2.4, "VIN_SYS_5V0": 3.6, "VDDQ_VDD2_1V8AO": 2.4})
    assert power.total(rails) == pytest.approx(7.2) and power.total({**rails, "VDD_IN": 11.0}) == 11.0


@pytest.mark.parametrize("line", LINES)
def test_without_such_files_tegrastats_is_read(root, line):
    assert power.rails() == {}
    tegrastats(root, line)
    with power.sampled() as samples:
        waited = time.perf_counter()
        while len(samples) < 3 and time.perf_counter() - waited < 20:
            time.sleep(0.01)
    assert len(samples) >= 3 and power.mean(samples) == pytest.approx(LINES[line])
    assert len(samples) == (ended := len(samples)) and not time.sleep(0.2) and len(samples) == ended


def test_a_sensor_is_sampled_for_as_long_as_the_context_lasts(root):
    folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    for name, value in {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1000}.items():
        root(f"{folder}/{name}", value)
    with power.sampled() as samples:
        time.sleep(5 * power.INTERVAL)
        root(f"{folder}/curr1_input", 3000)
        time.sleep(5 * power.INTERVAL)
    assert {sample["VDD_IN"] for sample in samples} >= {5.0, 15.0} and 5 < power.mean(samples)["VDD_IN"] < 15
    taken = len(samples)
    time.sleep(3 * power.INTERVAL)
    assert len(samples) == taken


def test_without_any_sensor_there_is_no_power(root):
    with power.sampled() as samples:
        time.sleep(2 * power.INTERVAL)
    assert samples == [] and power.mean(samples) == {} and power.total({}) is None
