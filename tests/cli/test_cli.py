from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import console, stages
from pipeline.records import manifest
from tests.support import ROOT, command, one_line, process, started
from tests.terminal import shown

COMMANDS = [*stages.names(), "run", "status", "models", "show"]
LONG = ["--train-threads", "1", "--limit", "640", "--epochs", "200"]  # and short epochs
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "scipy", "tensorrt", "numpy", "rich"}


def imported_by(*arguments: object) -> set[str]:
    code = "import sys; from pipeline.cli.main import main\ntry: main()\n"
    code += "finally: print(' '.join(sys.modules), file=sys.stderr)"
    line = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert "Usage:" in result.stdout + result.stderr or "version" in result.stdout, result.stderr
    modules = set(result.stderr.splitlines()[-1].split())
    assert "pipeline.cli" in modules
    return modules


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_imports_nothing_heavy(arguments):
    assert not imported_by(*arguments) & HEAVY


@pytest.mark.parametrize("name", stages.names())
def test_help_of_a_stage_imports_no_library_it_will_use(name):
    assert not imported_by(name, "-h") & {"torch", "onnx", "onnxruntime", "scipy"}


def test_help_takes_under_a_quarter_of_a_second_of_processor_time():
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once()  # compiles
    assert min(once() for _ in range(5)) < 0.25


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    for flag in ("-h", "--help"):
        result = command(name, flag)
        assert result.returncode == 0 and result.stdout.startswith(f"Usage: pipeline {name}")
    assert "--json" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_line_and_exit_code_2(name):
    assert "--no-such-option" in one_line(command(name, "--no-such-option"), 2)


def test_an_unknown_command_is_one_line_and_exit_code_2():
    assert "No such command 'deploj'" in one_line(command("deploj"), 2)


def test_no_command_shows_help_and_exits_2():
    result = command()
    assert result.returncode == 2 and "Stages:" in result.stdout + result.stderr


def test_options_with_defaults_show_them():
    assert "[default: 18]" in command("export", "-h").stdout
    assert "[default: out]" in command("train", "-h").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell):
    assert "_PIPELINE_COMPLETE" in process(_PIPELINE_COMPLETE=f"{shell}_source").stdout


def test_completion_knows_stages_and_options():
    words = {"COMP_WORDS": "pipeline ex", "COMP_CWORD": "1", "_PIPELINE_COMPLETE": "bash_complete"}
    assert "export" in process(**words).stdout
    words |= {"COMP_WORDS": "pipeline export --op", "COMP_CWORD": "2"}
    assert "--opset" in process(**words).stdout


def test_a_folder_that_cannot_be_written_to_is_one_line(chain):
    result = command("export", chain / "mnist_cnn.safetensors", "--out", "/proc/nothing")
    assert "/proc/nothing" in one_line(result, 2)  # though root may, says the system


def test_a_folder_in_the_way_is_one_line(chain, tmp_path):
    (tmp_path / "file").write_text("in the way")
    error = one_line(command("export", chain / "mnist_cnn.safetensors", "--out", tmp_path / "file"), 2)
    assert "expected a folder that can be written to" in error
    assert "is a folder" in one_line(command("show", tmp_path), 2)
    assert "holds the records of the files beside it" in one_line(command("show", chain / "chain.json"), 2)
    (tmp_path / "x.onnx").mkdir()
    one_line(command("verify", tmp_path / "x.onnx"), 2)


@pytest.mark.parametrize("line", [["export", "--out", ""], ["predict", ""], ["ship", "--data="]])
def test_an_empty_path_is_not_the_folder_one_is_in(line):
    assert "received nothing" in one_line(command(*line), 2)


def test_json_is_all_there_is_on_stdout(chain, few):
    for line in (["verify", chain / "mnist_cnn.onnx", "--data", few, "--gate", "0"], ["status", chain], ["models"]):
        json.loads(command(*line, "--json").stdout)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mnist_cnn.safetensors", ["9,596 parameters; last epoch", "option dropout", "0.0", "option limit", "–"]),
        ("mnist_cnn.onnx", ["BatchNorm: 5 of 5 folded", "parent mnist_cnn.unfolded.onnx", "version onnxscript"]),
        ("mnist_cnn.int8.onnx", ["layers in int8", "parent mnist_cnn.onnx"]),
        ("verification.json", ["McNemar", "passed: gate 80.00%", "option certificates"]),
        ("mnist_cnn.history.csv", ["history", "option epochs"]),
    ],
)
def test_show_is_for_people_and_json_for_programs(chain, name, told):
    """As the command shows it that made it, then its record."""
    shown, record = command("show", chain / name).stdout, manifest.read(chain / name).record()
    assert [
        each for each in [*told, record["kind"], record["sha256"], f"{record['bytes']:,}"] if each not in shown
    ] == []
    assert json.loads(command("show", chain / name, "--json").stdout) == record


def test_a_table_has_names_as_they_are(capsys):
    console.table(["image"], [["[/b] [red]:smile:.png"]], title="[/b]")
    printed = capsys.readouterr().out
    assert "[/b] [red]:smile:.png" in printed and printed.startswith("[/b]")


def test_progress_is_bars_on_a_terminal_and_lines_in_a_file(chain, few, monkeypatch, capsys):
    line = ["verify", chain / "mnist_cnn.onnx", "--data", few, "--gate", "0.8"]
    assert any(each.startswith("mnist_cnn.onnx, cpu: 100%|") for each in shown(line, ROOT))
    assert process(*line).stderr == ""
    log = (chain / "run.log").read_text()
    bars = [each for each in log.splitlines() if "%|" in each]
    assert not re.search(r"[\r\x1b]", log) and len(bars) == 2 and all(each.startswith("Loss=") for each in bars)
    monkeypatch.setattr(console, "EVERY", 0)
    with console.progress(4, "image", "calibration") as bar:
        assert bar.update(3) and bar.n == 3
    assert re.fullmatch(r"calibration:  75%\|.*\| 3/4 \[.*image/s\]\n", capsys.readouterr().err)


def test_a_missing_picture_is_told_before_any_bar(tmp_path):
    with pytest.raises(SystemExit, match=r"\Aerror: none.png: no such file or folder\s*\Z"):
        shown(["predict", "none.png", "--model", ROOT / "artifacts/mnist_cnn.onnx"], tmp_path)


@pytest.mark.parametrize(
    "inherited",
    [
        pytest.param(signal.default_int_handler, id="a terminal's"),
        pytest.param(signal.SIG_IGN, id="nohup's", marks=pytest.mark.exhaustive),
    ],
)
def test_ctrl_c_is_one_line(few, tmp_path, inherited):
    """Also where the tests run with SIGINT ignored, which child processes inherit."""
    before = signal.signal(signal.SIGINT, inherited)
    try:
        running = started("train", "--data", few, "--out", tmp_path, *LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert _interrupted(running, signal.SIGINT, tmp_path) == (
        130,
        "error: interrupted; completed epochs are saved; run the same command again to continue",
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "left"), [("train", "completed epochs are saved"), ("run", "completed work is saved")]
)
def test_sigterm_is_one_line_too(few, tmp_path, name, left):
    running = started(name, "--data", few, "--out", tmp_path, *LONG)
    last = f"error: interrupted; {left}; run the same command again to continue"
    assert _interrupted(running, signal.SIGTERM, tmp_path) == (143, last)


def test_a_caller_keeps_its_own_way_with_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    one_line(command("run", "--no-such-option"), 2)
    assert before is signal.SIG_DFL and signal.getsignal(signal.SIGTERM) is before


def _interrupted(running: subprocess.Popen, number: int, folder: Path) -> tuple[int, str]:
    """The exit code and last line of a training that gets a signal after an epoch."""
    while not (folder / "mnist_cnn.training.safetensors").is_file():
        assert running.poll() is None, "ended before it was interrupted"
        time.sleep(0.1)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert b"Traceback" not in errors
    return running.returncode, errors.decode().splitlines()[-1]
