"""The commands in docs/, run as they stand there, and what docs/jetson.md says that they print."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from pipeline.device import deploy
from pipeline.machine import jetson, system
from pipeline.records import manifest
from pipeline.records.devices import Board
from pipeline.release import ship
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import builder
from tests.support import ROOT, command
from tests.support.elsewhere import classifier, pictures
from tests.support.sshd import Server

TEXT = (ROOT / "docs/your-own-model.md").read_text()
JETSON = (ROOT / "docs/jetson.md").read_text()
DEPLOYMENTS = re.findall(r"^pipeline deploy .*--on .*", JETSON, re.MULTILINE)
ORIN = Board(
    model="NVIDIA Jetson Orin Nano Developer Kit",
    release="R36 (release), REVISION: 4.4",
    jetpack="6.2.1+b38",
    power_mode="MAXN_SUPER",
    gpu_mhz={"now": 1020.0, "min": 1020.0, "max": 1020.0},
    pinned=True,
    temperatures={"gpu-thermal": 47.0},
    throttling=[],
    watts=None,
)
# One thread: two that wait for each other beside the other worker's tests take five times as long.
QUICK = ["--quick", "--batch", "1", "--train-threads", "1"]
FASHION = Path("/usr/share/datasets/fashion-mnist")


def section(title: str) -> tuple[list[str], list[str]]:
    """The Python blocks and the commands of a section."""
    text = re.search(rf"## {title}\n(.*?)(?=\n## |\Z)", TEXT, re.DOTALL)[1]
    python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    bash = re.findall(r"```bash\n(.*?)```", text.replace("\\\n   ", ""), re.DOTALL)
    lines = [line for block in bash for line in block.splitlines() if line]
    return python, lines


def walk(folder: Path, lines: list[str], *more: str) -> None:
    for line in lines:
        program, *words = line.split()
        result = command(*words, *([*QUICK, *more] if words[0] == "run" else []), cwd=folder)
        assert program == "pipeline" and result.returncode == 0, (line, result.stderr[-1000:])


def written(folder: Path, name: str, python: str) -> None:
    (folder / "models").mkdir(exist_ok=True)
    (folder / f"models/{name}.py").write_text(python)


@pytest.mark.exhaustive
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_given_network_on_fashion_mnist(tmp_path):
    (python,), lines = section("The given network on another data set")
    written(tmp_path, "fashion", python)
    walk(tmp_path, lines)
    rows = manifest.read(tmp_path / "out/verification.json").facts.rows
    assert all(row.accuracy >= 0.90 and row.differ <= 20 for row in rows)
    release = tmp_path / "release/fashion-1.0.0"
    text = (release / "MODEL_CARD.md").read_text() + (release / "report.html").read_text()
    assert "igit" not in text and "Ankle boot" in text


@pytest.mark.exhaustive
def test_a_network_on_class_folders_and_an_onnx_from_elsewhere(tmp_path):
    pictures(tmp_path / "colours", 12, 6)
    (python,), lines = section("A network and pictures of your own")
    written(tmp_path, "colours", python)
    walk(tmp_path, lines, "--epochs", "2", "--gate", "0")
    shutil.copy(classifier(tmp_path), tmp_path / "kept.onnx")
    _, lines = section("An .onnx from elsewhere")
    walk(tmp_path, lines)


@pytest.mark.exhaustive
def test_the_deployments_run_as_they_stand(release, few, digits, tmp_path):
    """On a server that answers to every name in them; without TensorRT, and for a quick look."""
    key = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"]
    subprocess.run(key, cwd=tmp_path, check=True)
    subprocess.run(["openssl", "ec", "-in", "key.pem", "-pubout", "-out", "pub.pem"], cwd=tmp_path, check=True)
    ship.run(release, out=tmp_path / "release", sign_key=tmp_path / "key.pem")
    shutil.copytree(release, tmp_path / "artifacts")
    shutil.copy(few, tmp_path)
    server = Server(tmp_path / "board", borrow=True)
    try:
        shutil.copy(server.config, tmp_path / "lab_ssh_config")
        for line in DEPLOYMENTS:
            words = line.replace("nvidia@", "").split()[1:]  # the server's user is the one who tests
            more = [] if "--ssh-config" in words else ["--ssh-config", "lab_ssh_config"]
            more += ["--runtime", "none", "--quick", "--batch", "1", "--gate", "0.9"]
            done = command(*words, *more, cwd=tmp_path)
            assert done.returncode == 0, (line, done.stderr)
            assert (server.home / ".cache/edge-pipeline").exists() != ("--clean" in words)
        for host in ("192.168.55.1", "orin-nano", "agx-orin"):
            assert manifest.read(tmp_path / "device" / host / "device-report.json").facts.passed
    finally:
        server.stop()


def blocks(title: str) -> list[str]:
    """The lines of what a section says is printed."""
    text = re.search(rf"## {title}\n(.*?)(?=\n## |\Z)", JETSON, re.DOTALL)[1]
    return [line for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def printed(line: str, text: str) -> bool:
    """Whether a line of the page is printed: any figure may stand for …, and any space between columns."""
    pattern = r"\s+".join(re.escape(word).replace("…", r"\S+") for word in line.split())
    return re.search(pattern, text) is not None


def test_a_good_and_a_bad_report_look_as_the_page_says(device, chain, few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builder, "build", lambda source, content, *_: (content[:99], []))
    monkeypatch.setattr(builder, "inspect", lambda *_: None)
    monkeypatch.setattr(library, "installed", lambda: ["tensorrt"])
    monkeypatch.setattr(jetson, "state", lambda: ORIN)
    half = chain / "mnist_cnn.fp16.onnx"
    for gate, title in ((0.8, "A good report"), (1.0, "A bad one")):
        deploy.show(deploy.run(half, out=tmp_path, data=str(few), gate=gate, quick=True, batch=(1,)))
        said = capsys.readouterr()
        lines = [line for line in blocks(title) if not line.startswith("unreliable")]
        assert lines and [line for line in lines if not printed(line, said.out)] == []
        assert "unreliable" not in said.err


def test_a_bad_measurement_is_told_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "ROOT", tmp_path)
    (tmp_path / "etc").mkdir()
    modes = ("15W", "25W", "MAXN_SUPER", "7W")  # of an Orin Nano with JetPack 6.2
    conf = "\n".join(f"< POWER_MODEL ID={number} NAME={name} >" for number, name in enumerate(modes))
    (tmp_path / "etc/nvpmodel.conf").write_text(conf)
    bad = {"power_mode": "15W", "gpu_mhz": {"now": 1020.0, "min": 306.0, "max": 1020.0}, "pinned": False}
    bad |= {"temperatures": {"gpu-thermal": 88.0}}
    states = [msgspec.structs.replace(ORIN, **bad, throttling=["gpu-throttle-alert"] * (n < 3)) for n in range(21)]
    told = jetson.warnings(states)
    lines = [line for line in blocks("A bad one") if line.startswith("unreliable")]
    assert lines == [f"unreliable measurement: {each}" for each in told]


def test_what_keeps_a_board_from_a_report_is_said_in_the_pages_words():
    """That each is one line, in its case: tests/device/test_remote.py."""
    source = "".join((ROOT / f"pipeline/device/{name}.py").read_text() for name in ("ssh", "board"))
    said = re.findall(r"^\| `(.*?)` \|", JETSON.partition("## On the board itself")[0], re.MULTILINE)
    assert len(said) == 11 and all(each in source for each in said)
