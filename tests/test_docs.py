"""Every command of README.md and docs/, run as it stands there, and what docs/jetson.md says that is printed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import msgspec
import numpy as np
import pytest
from PIL import Image

from pipeline import commands
from pipeline.apps import demo
from pipeline.device import deploy
from pipeline.errors import UsageError
from pipeline.machine import jetson, system
from pipeline.records import manifest
from pipeline.records.devices import Board
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import builder, cuda
from tests.support import DATA, ROOT, command, one_line
from tests.support.elsewhere import classifier, pictures
from tests.support.pages import PAGES, blocks, lines, section
from tests.support.sshd import Server

OWN, JETSON = "docs/your-own-model.md", PAGES["docs/jetson.md"]
FASHION = Path("/usr/share/datasets/fashion-mnist")
# The sections of OWN that are walks of their own; all other commands are run on one desk, in the order of the pages.
WALKS = ("The given network on another data set", "A network and pictures of your own", "An .onnx from elsewhere")
TEXTS = {**PAGES, OWN: re.sub("|".join(re.escape(section(OWN, title)) for title in WALKS), "", PAGES[OWN])}
LINES = [line for text in TEXTS.values() for line in lines(text) if line.startswith("pipeline ")]
COMMANDS = dict.fromkeys(
    line.replace("NAME", "mnist_cnn").replace("LARGER", "mnist_teacher")
    for line in [*LINES, *commands.EXAMPLES.values()]
)
DEPLOYMENTS = [line for line in COMMANDS if {"--on", "--board"} & set(line.split())]
# What is added to the lines that match, so that they take seconds; a later option of the same name wins.
QUICK = {
    "^pipeline run": "--quick --batch 1 --train-threads 1",  # two wait for each other beside the other worker's tests
    "^pipeline (train|teach)": "--train-threads 1",
    "^pipeline certify artifacts": "--data few.npz",
    "^pipeline bench": "--quick --batch 1",
    "^pipeline deploy": "--quick --batch 1 --data few.npz",
    "^pipeline demo": "--port 0",
    "^pipeline study": "--seeds 1",
    "^pipeline sweep": "--lr 0.04 --gamma 0.1 --gamma 0.5 --trials 2 --workers 1 --hold-out 500",
    "--hold-out 10000": "--hold-out 500",
}
# What can't be done without a GPU or another machine: the exit code, and what the one line says.
REFUSED = {
    "pipeline build --twice": (2, "--twice: compares two engines' answers on a GPU"),
    "pipeline verify artifacts/mnist_cnn.onnx --provider cuda": (1, "can't load it with CUDAExecutionProvider"),
    "pipeline bench device/mnist_cnn.engine --no-cuda-graph --threads 1": (2, "built for sm86"),
    "pipeline sweep --sampler tpe --trials 30 --name tpe --storage postgresql+psycopg://user@host/sweeps": (
        2,
        "--storage postgresql+psycopg://host/sweeps: cannot",
    ),
}
# What the others print, where the page says it.
SHOWN = {
    "pipeline run": "nothing to do: every artifact is as on record",
    "pipeline run --without quantize --out try": "quantize left out: --without",
    "pipeline status artifacts": " fresh ",
    "pipeline show mnist_cnn": "Total params: 9,596",
    "pipeline check mnist_cnn": "mnist_cnn can be trained and taken through the chain",
    "pipeline certify": "answers that can't change",
    "pipeline build": "15 of 15 layers between the casts compute in HALF",
    "pipeline build artifacts/mnist_cnn.int8.onnx": "7 of 7 products compute in INT8",
    "pipeline verify artifacts/mnist_cnn.onnx --gate 0.993": "passed: gate 99.30%",
    "pipeline bench --compare": "times faster",
    "pipeline ship artifacts --sign-key key.pem --out signed": ", signed; verified",
    "pipeline ship --format triton": "release/mnist_cnn-1.0.0-triton",
    "pipeline predict data/MNIST/raw/t10k-images-idx3-ubyte": "of 10,000 with a label",
    "pipeline demo --open": "answers at http://127.0.0.1:",
    "pipeline teach mnist_cnn": "labelled by mnist_teacher",
    "pipeline study --recipe best --seeds 10": "standard deviation",
    "pipeline sweep": "best: pipeline train mnist_cnn --lr 0.04",
    "pipeline deploy artifacts": "passed",
}
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


def run(line: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a page in a folder, with what QUICK adds to it."""
    program, *words = line.split()
    assert program == "pipeline"
    quick = " ".join(options for pattern, options in QUICK.items() if re.search(pattern, line)).split()
    return command(*words, *quick, *more, cwd=folder)


def walk(folder: Path, text: str, *more: str) -> None:
    for line in lines(text):
        done = run(line, folder, *(more if line.startswith("pipeline run") else ()))
        assert done.returncode == 0, (line, done.stderr[-1000:])


def written(folder: Path, name: str, python: str) -> None:
    (folder / "models").mkdir(exist_ok=True)
    (folder / f"models/{name}.py").write_text(python)


def smaller(python: str) -> str:
    """A model file for `small.npz` whose training takes a second."""
    changes = {r'data="[^"]+"': 'data="small.npz"', r"gate=[\d.]+": "gate=0.5", "WIDTH = 4": "WIDTH = 1"}
    for pattern, other in {**changes, r"Recipe\(": "Recipe(epochs=1, batch_size=16, "}.items():
        python = re.sub(pattern, other, python)
    return python


def shortened(few: Path, folder: Path) -> None:
    """Write `small.npz`, with which everything takes seconds, and a `few.npz` as docs/your-own-model.md makes one."""
    with np.load(few) as every:
        small = {name: values[: 1500 if name.startswith("train") else 40] for name, values in every.items()}
    np.savez(folder / "small.npz", **small)
    np.savez(folder / "few.npz", images=small["test_images"], labels=small["test_labels"])


@pytest.fixture
def desk(few, digits, release, signed, keys, tmp_path) -> Path:
    """A folder with every file that the lines name and none before them makes, and models that train in a second."""
    shortened(few, tmp_path)
    for name in ("mnist_cnn", "mnist_teacher"):
        written(tmp_path, name, smaller((ROOT / f"models/{name}.py").read_text()))
    shutil.copytree(release, tmp_path / "artifacts")
    shutil.copy(signed.with_name(f"{signed.name}.tar.gz"), tmp_path)
    for name in ("key.pem", "pub.pem"):
        shutil.copy(keys / name, tmp_path)
    (tmp_path / "data").symlink_to(DATA)
    (tmp_path / "scans").mkdir()
    for number in range(3):
        picture = Image.eval(Image.fromarray(digits.images[number, 0]), lambda value: 255 - value).resize((280, 280))
        picture.save(tmp_path / f"scans/{number}.png")
    picture.save(tmp_path / "photo.jpg")
    classifier(tmp_path)
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    chance, theirs = np.random.default_rng(0), {}
    for part in ("train", "test"):
        theirs[f"{part}_images"] = chance.integers(0, 256, (120, 3, 16, 16)).astype(np.uint8)
        theirs[f"{part}_labels"] = np.arange(120) % 3
    np.savez(tmp_path / "theirs.npz", **theirs)
    return tmp_path


@pytest.fixture
def visits(monkeypatch):
    """Visits to the page that `demo --open` opens in a browser; Ctrl-C comes after the first."""
    visits = []

    def ended(_: object) -> None:
        if visits and visits[0].done():
            raise KeyboardInterrupt

    with ThreadPoolExecutor() as browser:
        monkeypatch.setattr(webbrowser, "open", lambda url: visits.append(browser.submit(urlopen, url, timeout=10)))
        monkeypatch.setattr(demo._Server, "service_actions", ended)
        yield visits


def gpu() -> bool:
    try:
        return bool(cuda.gpu())
    except UsageError:
        return False


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx has wheels for x86-64 only")
def test_every_command_runs_as_it_stands(desk, visits):
    build = ["build", "artifacts/mnist_cnn.fp16.onnx", "--runtime", "tensorrt-rtx", "--target", "sm86"]
    assert command(*build, "--out", "device", cwd=desk).returncode == 0  # in place of an engine from a board
    for line in COMMANDS:
        if line in DEPLOYMENTS:
            continue
        done = run(line, desk)
        if line in REFUSED and not (done.returncode == 0 and gpu()):
            code, told = REFUSED[line]
            assert told in one_line(done, code)
        else:
            assert done.returncode == 0, (line, done.stderr[-2000:])
            assert SHOWN.get(line, "") in done.stdout + done.stderr, line
    assert REFUSED.keys() | SHOWN.keys() <= COMMANDS.keys()
    assert visits[0].result().status == 200


@pytest.mark.exhaustive
def test_the_given_network_on_fashion_mnist(few, tmp_path):
    """On a few digits in its place, where Debian's dataset-fashion-mnist isn't installed."""
    text = section(OWN, WALKS[0])
    (python,) = blocks(text, "python")
    shortened(few, tmp_path)
    written(tmp_path, "fashion", python if FASHION.is_dir() else smaller(python))
    walk(tmp_path, text)
    rows = manifest.read(tmp_path / "out/verification.json").facts.rows
    if FASHION.is_dir():  # INT8 may answer otherwise, as long as it isn't worse
        assert all(row.accuracy >= 0.90 and row.mcnemar_p >= 0.05 for row in rows)
        assert all(row.differ <= (100 if row.kind == "int8" else 5) for row in rows)
    release = tmp_path / "release/fashion-1.0.0"
    card = (release / "MODEL_CARD.md").read_text() + (release / "report.html").read_text()
    assert "igit" not in card and "Ankle boot" in card


@pytest.mark.exhaustive
def test_a_network_on_class_folders_and_an_onnx_from_elsewhere(tmp_path):
    pictures(tmp_path / "colours", 12, 6)
    text = section(OWN, WALKS[1])
    (python,) = blocks(text, "python")
    written(tmp_path, "colours", python)
    walk(tmp_path, text, "--epochs", "2", "--gate", "0")
    shutil.copy(classifier(tmp_path), tmp_path / "kept.onnx")
    walk(tmp_path, section(OWN, WALKS[2]))


def test_the_signatures_official_check_is_as_the_page_says(signed, keys):
    (line,) = re.findall(r"`(model_signing [^`]+)`", PAGES["docs/release.md"])
    words = line.replace("DIR", str(signed)).replace("pub.pem", str(keys / "pub.pem")).split()
    program = shutil.which(words[0], path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("model-signing isn't installed: pip install -e '.[sign]'")
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_the_deployments_run_as_they_stand(release, signed, keys, few, tmp_path):
    """On a server that answers to every name in them, without TensorRT; then the line that shows the boards."""
    shutil.copytree(signed.parent, tmp_path / "release")
    shutil.copytree(release, tmp_path / "artifacts")
    shutil.copy(keys / "pub.pem", tmp_path)
    shutil.copy(few, tmp_path)
    server = Server(tmp_path / "board", borrow=True)
    try:
        shutil.copy(server.config, tmp_path / "lab_ssh_config")
        for line in DEPLOYMENTS:
            words = line.split()
            quick = ["--runtime", "none", "--gate", "0.9", "--quick", "--batch", "1"]
            more = quick if "--on" in words else ["--out", "shown"]
            more += ["--ssh-config", "lab_ssh_config"] if "--on" in words and "--ssh-config" not in words else []
            line = re.sub(r"\w+@", "", line)  # the server's user is the one who tests
            done = run(line, tmp_path, *more)
            assert done.returncode == 0, (line, done.stderr)
            assert "--on" not in words or (server.home / ".cache/edge-pipeline").exists() != ("--clean" in words)
        for host in ("192.168.55.1", "orin-nano", "agx-orin", "jetson"):
            assert manifest.read(tmp_path / "device" / host / "device-report.json").facts.passed
    finally:
        server.stop()


def printed_there(title: str) -> list[str]:
    """The lines of what a section says is printed."""
    return [line for block in blocks(section("docs/jetson.md", title), "text") for line in block.splitlines()]


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
        lines = [line for line in printed_there(title) if not line.startswith("unreliable")]
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
    lines = [line for line in printed_there("A bad one") if line.startswith("unreliable")]
    assert lines == [f"unreliable measurement: {each}" for each in told]


def test_what_keeps_a_board_from_a_report_is_said_in_the_pages_words():
    """That each is one line, in its case: tests/device/test_remote.py."""
    source = "".join((ROOT / f"pipeline/device/{name}.py").read_text() for name in ("ssh", "board"))
    said = re.findall(r"^\| `(.*?)` \|", JETSON.partition("## On the board itself")[0], re.MULTILINE)
    assert len(said) == 11 and all(each in source for each in said)
