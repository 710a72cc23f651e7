"""Deploying on a board over SSH: against a real server on the loopback, and into an environment without torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest

from pipeline.device import board as boards
from pipeline.device import deploy, remote, ssh, wheels
from pipeline.errors import CheckFailed, UsageError, last_line
from pipeline.records import disk, manifest
from pipeline.records.releases import Boards
from tests import arm64
from tests.support import command, one_line
from tests.support.releases import snapshot
from tests.support.sshd import Server

REPORTS = {"chain.json", "device-report.json", "latency.json", "verification.json"}
LINE = ["--runtime", "none", "--quick", "--batch", "1", "--gate", "0.8"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    made = Server(tmp_path_factory.mktemp("board"), borrow=True)
    yield made
    made.stop()


@pytest.fixture
def board(server: Server):
    """The server, put back as it was after the test."""
    yield server
    server.trust("host")
    server.client()
    for program in server.bin.iterdir():
        if program.name != "python3":
            program.unlink()


@pytest.fixture
def on(board: Server, release: Path, few: Path, tmp_path: Path):
    """Deploy a committed file on it, or all of them, with a few images."""
    line = ["--data", few, "--out", tmp_path / "device", "--ssh-config", board.config]

    def run(*more: object, what: str = "mnist_cnn.onnx", hosts: tuple[str, ...] = ("board",), options=LINE):
        return command(
            "deploy", release / what, *line, *options, *(word for host in hosts for word in ("--on", host)), *more
        )

    return run


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that happens elsewhere."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.exhaustive
def test_a_cut_connection_is_one_line_and_the_same_command_then_ends_as_ever(board, on, tmp_path):
    def cut() -> None:  # verified, and about to be timed
        until(lambda: any((board.home / ssh.ROOT).glob("device-*/verification.json")), 120)
        board.cut()

    shutil.rmtree(board.home / ssh.ROOT, ignore_errors=True)
    cutting = threading.Thread(target=cut)
    cutting.start()
    error = one_line(on(), 1)
    cutting.join()
    assert "board: the connection broke while deploying" in error and "run the same command again" in error
    assert not [path for path in (tmp_path / "device").rglob("*") if path.is_file()]
    done = on()
    assert done.returncode == 0 and "is there from the last time" in done.stderr, done.stderr
    assert "copying" not in done.stderr
    assert {path.name for path in (tmp_path / "device/board").iterdir()} == REPORTS
    assert "left for the next time, in ~/.cache/edge-pipeline/deploy" in done.stderr


def test_what_runs_on_the_board_ends_with_the_connection(board, tmp_path):
    """Else it would disturb the next measurement; with all that it started."""
    numbers = tmp_path / "numbers"
    job = f"sleep 1000 & echo $$ $! >{numbers}.part; mv {numbers}.part {numbers}; wait"
    with ssh.connected("board", board.config) as reached:
        running = threading.Thread(target=lambda: reached.follow(job))
        running.start()
        until(numbers.exists)
        processes = [Path("/proc") / number for number in numbers.read_text().split()]
        assert len(processes) == 2 and all(each.exists() for each in processes)
        board.cut()
        running.join(20)
    assert not running.is_alive()
    until(lambda: not any(each.exists() for each in processes))


def test_what_is_altered_on_the_board_is_named(board, on, tmp_path):
    board.program("cat", 'case "$1" in *latency.json) /bin/cat "$@"; echo;; *) exec /bin/cat "$@";; esac')
    error = one_line(on(), 1)
    assert "board: latency.json: altered: expected sha256 " in error
    assert not list((tmp_path / "device").rglob("*.json"))


def test_a_form_that_fails_there_fails_here_and_its_report_comes_back(on, tmp_path):
    earlier = tmp_path / "device/board"
    done = on("--gate", "1")
    assert "is under the gate of 100.00%" in one_line(done, 1)
    assert not manifest.read(earlier / "device-report.json").facts.passed
    (earlier / "notes.txt").write_text("mine")
    assert "has notes.txt, which a new report would remove" in one_line(on(), 2)
    (earlier / "notes.txt").unlink()
    before, other = snapshot(earlier), Mock()
    other.name = "other.onnx"
    with pytest.raises(UsageError, match=r"has a report of mnist_cnn\..*onnx, which a new one would remove"):
        remote._expect_replaceable(earlier, [other])
    assert snapshot(earlier) == before


def test_an_error_there_is_one_line_here(on, tmp_path):
    (tmp_path / "damaged.npz").write_bytes(b"")
    error = one_line(on("--data", tmp_path / "damaged.npz"), 2)
    assert "board: deploying failed: " in error and "expected an .npz with uint8 `images`" in error


def test_the_wrong_host_key_is_one_line(board, on):
    board.trust("other")
    error = one_line(on(), 2)
    assert "board: wrong host key: expected the one in " in error and "known_hosts:1" in error


def test_an_unknown_host_key_is_one_line(board, on):
    board.trust(None)
    assert f"board: unknown host key: expected one in known_hosts; `ssh -F {board.config} board`, once" in one_line(
        on(), 2
    )


def test_a_key_that_is_not_accepted_is_one_line(board, on):
    board.client(IdentityFile=board.folder / "other")
    error = one_line(on(), 2)
    assert "Permission denied" in error and "no password is asked for" in error


@pytest.mark.exhaustive
def test_an_unreachable_board_is_one_line_and_the_others_are_deployed_on(board, on, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    board.config.write_text(f"Host gone\n  Port {port}\n{board.config.read_text()}")
    assert "gone: can't connect: " in one_line(on(hosts=("gone",)), 2)
    done = on("--gate", "1", hosts=("gone", "board", "second"))
    error = one_line(done, 1)
    assert "gone: can't connect: " in error and "board: mnist_cnn" in error and "second: mnist_cnn" in error
    for host in ("board", "second"):
        assert (tmp_path / "device" / host / "device-report.json").is_file()
        rows = [line.split() for line in done.stdout.splitlines() if line.split()[:2] == [host, "mnist_cnn.onnx"]]
        assert len(rows) == 1 and all(row[-1] == "no" for row in rows), done.stdout


@pytest.mark.parametrize("runtime", ["auto", "tensorrt"])
def test_a_board_without_tensorrt_is_one_line(board, on, runtime):
    error = one_line(on(options=["--runtime", runtime]), 2)
    assert "board: no TensorRT that its python3 can import: expected TensorRT 10 and CUDA 12 or later, as in " in error
    assert "--runtime none deploys without engines" in error
    assert not list((board.home / ssh.ROOT).glob("*.part"))


def about(**other: object) -> boards.About:
    values = {"python": (3, 10, 12), "architecture": "aarch64", "glibc": "2.35", "free": 1 << 40, "present": []}
    values |= {"venv": True, "jetpack": "6.2.1+b38", "tensorrt": "10.3.0", "cuda": 12}
    return boards.About(**{**values, **other})


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"python": (3, 8, 10)}, "Python 3.8: expected 3.10 or later, as in JetPack 6.1"),
        ({"venv": False}, "sudo apt install python3-venv"),
        ({"tensorrt": "8.6.2"}, "TensorRT 8.6.2, without strongly typed networks"),
        ({"cuda": None}, "no CUDA driver"),
        ({"cuda": 11}, "CUDA 11, too old for cuda-bindings: expected TensorRT 10 and CUDA 12 or later"),
        ({"free": 1 << 20}, "disk full: expected "),
    ],
)
def test_a_board_that_lacks_something_is_refused_before_anything_is_copied(other, expected):
    reached = ssh.Board("jetson", ())
    boards.expect_fit(reached, about(), "auto", "venv", [])
    with pytest.raises(UsageError, match=expected):
        boards.expect_fit(reached, about(**other), "auto", "venv", [])


@pytest.mark.parametrize("other", [{"tensorrt": None}, {"cuda": 11}])
def test_tensorrt_rtx_is_not_looked_for_in_jetpack(other):
    with pytest.raises(UsageError, match=r"expected tensorrt-rtx \(x86-64\) and CUDA 12 or later, there") as refused:
        boards.expect_fit(ssh.Board("desk", ()), about(**other), "tensorrt-rtx", "venv", [])
    assert "jetpack" not in str(refused.value).lower()


def test_a_report_comes_back_and_the_board_is_left_clean(board, on, release, tmp_path, capsys):
    done = on("--clean", what=".")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "device/board"
    assert {path.name for path in folder.iterdir()} == REPORTS and f"{folder}/device-report.json" in done.stdout
    report = manifest.read(folder / "device-report.json")
    assert report.facts.passed and report.facts.no_engine == "--runtime none"
    for name in ("verification.json", "latency.json"):
        assert report.parents[name] == manifest.read(folder / name).sha256
    assert report.parents["mnist_cnn.onnx"] == disk.digest(release / "mnist_cnn.onnx")
    assert not (board.home / ".cache/edge-pipeline").exists() and "removed ~/.cache/edge-pipeline/deploy" in done.stderr
    deploy.show(manifest.write(None, None, facts=Boards(boards={"orin": report.facts}, failures=[])))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " mnist_cnn" in line]
    assert {row[1] for row in rows} == {"mnist_cnn.onnx", "mnist_cnn.fp16.onnx", "mnist_cnn.int8.onnx"}
    assert all(row[0] == "orin" and row[-1] == "yes" for row in rows)


def test_a_full_disk_is_one_line_before_anything_is_copied(board, on):
    cache = board.home / ".cache"
    cache.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", cache], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted")
    try:
        assert "board: disk full: expected " in one_line(on(), 2)
        assert not list((board.home / ssh.ROOT).iterdir())
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_disk_that_fills_up_is_one_line_and_nothing_of_it_counts(board, on):
    board.program("tar", "/usr/bin/tar -tz >/dev/null; echo 'tar: write error: No space left on device' >&2; exit 2")
    shutil.rmtree(board.home / ssh.ROOT, ignore_errors=True)
    assert "No space left on device" in one_line(on(), 2)
    assert not [path for path in (board.home / ssh.ROOT).iterdir() if not path.name.endswith(".part")]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--offline"], "expected --on user@board, too"),
        (["--clean"], "expected --on user@board, too"),
        (["--on", "-oProxyCommand=touch x"], "expected user@board"),
        (["--on", "a@board", "--on", "b@board"], "expected boards of different names"),
        (["--on", "board", "--offline", "--data", "mnist"], "--offline: expected a release with its test set"),
        (
            ["--on", "board", "--data", "README.md"],
            "--data README.md: for a board, expected mnist, an .npz or a folder",
        ),
        (["--on", "board", "--data", "torchvision:MNIST"], "--data torchvision:MNIST: for a board, expected mnist"),
        (["--on", "board", "--data", "no-such-set"], "--data no-such-set: for a board, expected mnist"),
    ],
)
def test_wrong_use_is_one_line(release, tmp_path, more, expected):
    assert expected in one_line(command("deploy", release, "--out", tmp_path / "device", *more), 2)


@pytest.mark.parametrize("name", ["nowhere", "tests"])
def test_a_missing_configuration_of_ssh_is_told_before_anything_else(tmp_path, name):
    line = ["deploy", "no-release", "--on", "board", "--ssh-config", name, "--out", tmp_path / "device"]
    assert f"--ssh-config {name}: no such file: expected" in one_line(command(*line), 2)


class Local(ssh.Board):
    """A board whose scripts run here."""

    def _line(self, script: str, words: tuple[str, ...]) -> list[str]:
        return ["sh", "-c", script, "sh", *words]


@pytest.fixture
def connected(monkeypatch):
    """Reach any board at once, and nothing of it."""
    monkeypatch.setattr(ssh, "connected", lambda host, _: contextlib.nullcontext(Local(host, ())))


OPTIONS = {"out": Path("device"), "offline": False, "clean": True, "config": None}


def test_a_report_that_fails_to_arrive_leaves_the_earlier_one(release, few, tmp_path, monkeypatch):
    """Failed or killed, at the latest moment: after the earlier one was put aside."""
    there, target, move = tmp_path / "there", tmp_path / "device/board", os.replace
    made = deploy.run(release / "mnist_cnn.onnx", out=there, data=str(few), runtime="none", gate=0.8, quick=True)
    (there / "timings").mkdir()
    for name in ("tensorrt-10.3.0-Orin-sm87.timings", "notes.txt"):
        (there / "timings" / name).write_text("its own")
    reported = remote.Reported(str(made.path), made.sha256, made.parents)
    forms = deploy.shipped(release / "mnist_cnn.onnx")

    def bring() -> None:
        remote._expect_replaceable(target, forms)
        remote._brought(Local("board", ()), str(there), reported, forms, target)

    def failing(source, destination):
        if Path(destination) == target and Path(source).name == target.name:
            raise OSError(5, "Input/output error")
        move(source, destination)

    bring()
    before = snapshot(target)
    assert {path.relative_to(target).as_posix() for path in before} == {
        *REPORTS,
        "timings/tensorrt-10.3.0-Orin-sm87.timings",
    }
    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output"):
        patched.setattr(os, "replace", failing)
        bring()
    assert snapshot(target) == before and [path.name for path in target.parent.iterdir()] == ["board"]
    (target.parent / ".board.part").mkdir()
    target.rename(target.parent / ".board.part/earlier")
    remote._expect_replaceable(target, forms)
    assert snapshot(target) == before
    bring()
    for altered, expected in ((b"{}\n", "device-report.json: has no record"), (b"{", "chain.json: ")):
        (there / "chain.json").write_bytes(altered)
        with pytest.raises(CheckFailed, match=rf"^board: {expected}(?!.*\.part)"):
            bring()
    (target / "timings/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"has mine\.txt, which a new report would remove"):
        bring()


def test_an_error_of_this_machine_keeps_no_other_board_from_its_turn_and_all_are_left_clean(
    connected, release, monkeypatch
):
    cleaned = []

    def full(board: ssh.Board, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "_deployed", full)
    monkeypatch.setattr(remote, "_clean", lambda board: cleaned.append(board.host))
    made = remote.run(release, [], ["orin", "xavier"], options={"data": None}, **OPTIONS)
    assert made.facts.failures == [f"{host}: [Errno 28] No space left on device" for host in cleaned]
    assert cleaned == ["orin", "xavier"]


def test_the_set_called_mnist_is_meant_even_beside_a_folder_of_that_name(connected, release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    given = []
    monkeypatch.setattr(remote, "_deployed", lambda *words: given.append((len(words[1]), words[-1]["data"])))
    monkeypatch.setattr(remote, "_clean", lambda _: None)
    for data in ("mnist", "./mnist"):
        remote.run(release, [], ["orin"], options={"data": data}, **OPTIONS)
    assert given[0] == (1, "mnist") and given[1][0] == 2 and given[1][1].startswith("data-")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("nvidia@192.168.55.1", "192.168.55.1"),
        ("orin", "orin"),
        ("ssh://me@orin:2222", "orin-2222"),
        ("me@[::1]", None),
    ],
)
def test_a_board_has_a_folder_named_by_its_host(host, name):
    if name:
        assert ssh.folder_name(host) == name
    else:
        with pytest.raises(UsageError):
            ssh.folder_name(host)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b'{"python": "3"}',
        b'{"python": [3, 10, 1], "glibc": "musl"}',
        b'{"architecture": "\xff"}',
        b'{"a": ' + 100_000 * b"[",
    ],
    ids=range(6),
)
def test_a_board_that_answers_something_else_is_refused(monkeypatch, answer):
    monkeypatch.setattr(ssh.Board, "call", lambda *_, **__: answer)
    with pytest.raises(CheckFailed, match="jetson: doesn't tell what it is"):
        boards.ask(ssh.Board("jetson", ()), "tensorrt")


@pytest.mark.parametrize("path", ["..", "device/..", "/", "", "device/.bashrc"])
def test_a_report_has_a_plain_name(path):
    said = {"path": "device/device-report.json", "sha256": "0" * 64, "parents": {}}
    assert msgspec.convert(said, remote.Reported)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**said, "path": path}, remote.Reported)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**said, "parents": {f"a/{path}": "0" * 64}}, remote.Reported)


def test_wheels_are_of_every_glibc_that_the_board_takes():
    names = wheels._platforms("aarch64", "2.35")
    assert names[0] == "manylinux_2_35_aarch64" and "manylinux_2_17_aarch64" in names
    assert "manylinux2014_aarch64" in names and "manylinux_2_36_aarch64" not in names
    assert "manylinux1_x86_64" in wheels._platforms("x86_64", "2.39")


def test_a_programs_last_error_is_told():
    assert last_line("Collecting x\nERROR: no x\n[notice] a new pip\n") == "no x"
    assert last_line("one\ntwo\r\n\n") == "two" and last_line("") == "no reason was given"


@pytest.mark.exhaustive
def test_a_release_into_an_environment_without_torch_or_network(shipped, tmp_path):
    """The wheels come from here; the board's pip may ask no index, and its Python is a bare one."""
    server = Server(tmp_path / "board", borrow=False)
    try:
        line = ["deploy", shipped / "mnist_cnn-1.0.0.tar.gz", "--runtime", "none", "--batch", "1", "--offline"]
        done = command(*line, "--on", "board", "--ssh-config", server.config, "--out", tmp_path / "device")
        assert done.returncode == 0, done.stderr
        report = manifest.read(tmp_path / "device/board/device-report.json")
        assert report.facts.passed and report.facts.release.verified and report.facts.data.images == 10_000
        assert report.versions["onnxruntime"] and "torch" not in report.versions
        python = next((server.home / ssh.ROOT).glob("venv-*/bin/python"))
        assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
        again = command(*line, "--on", "board", "--ssh-config", server.config, "--out", tmp_path / "device", "--clean")
        assert again.returncode == 0 and "copying" not in again.stderr, again.stderr
        assert not (server.home / ".cache/edge-pipeline").exists()
    finally:
        server.stop()


@pytest.mark.emulated
def test_a_release_on_an_emulated_arm64(shipped, few, tmp_path):
    """Where `python -m tests.arm64` can run: wheels for aarch64 are resolved here and installed there."""
    try:
        arm64.prepare(arm64.FOLDER)
    except UsageError as error:
        pytest.skip(str(error))
    root = arm64.FOLDER / "root"
    server = Server(tmp_path / "board", borrow=False, inside=arm64.inside(root))
    try:
        line = ["deploy", shipped / "mnist_cnn-1.0.0.tar.gz", *LINE, "--data", few, "--offline", "--clean"]
        done = command(*line, "--on", "board", "--ssh-config", server.config, "--out", tmp_path / "device")
        assert done.returncode == 0, done.stderr
        report = manifest.read(tmp_path / "device/board/device-report.json").facts
        assert report.machine.architecture == "aarch64" and report.passed and report.release.verified
        assert not (root / "root/.cache/edge-pipeline").exists()
    finally:
        server.stop()
