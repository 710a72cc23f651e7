"""The house's rules: who may import what, and a README whose commands are true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command

from pipeline import artifact, delivery, device, experiments, stages

README = (ROOT / "README.md").read_text()


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, `from a import b` as both `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_ruff_finds_nothing():
    for arguments in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_data_goes_one_way(path):
    names = imports(path)
    room = path.parent.name
    others = {f"pipeline.stages.{name}" for name in stages.names()} - {f"pipeline.stages.{path.stem}"}
    if path.stem not in ("cli", "__main__"):
        assert "pipeline.cli" not in names
    if room != "device" and path.stem != "cli":
        assert not {n for n in names if n.startswith("pipeline.device")}
    if room != "delivery" and path.stem not in ("cli", "doctor"):
        assert not {n for n in names if n.startswith("pipeline.delivery")}
    if room not in ("delivery", "release", "device"):
        assert not {n for n in names if n.startswith("pipeline.release")}
    if room == "stages":
        assert not names & others, "a stage knows no other stage"
        assert not names & {"pipeline.chain", "pipeline.command"}
    if room not in ("device", "experiments", "pipeline") or path.stem in (
        "training",
        "recipe",
        "onednn",
        "snapshot",
        "heatmap",
    ):
        assert not {n for n in names if n.startswith(("pipeline.experiments", "pipeline.trials"))}
    if room == "runtimes":
        assert not {n for n in names if n.startswith("pipeline.stages")} and "pipeline.chain" not in names
    if path.stem in ("artifact", "errors", "schema"):
        outside = {n.split(".")[0] for n in names} - {"pipeline", "__future__"} - set(sys.stdlib_module_names)
        assert not outside, "standard library only"
    if room == "runtimes":
        assert not {n for n in names if n.split(".")[0] == "models"}
    if path.stem not in ("pytorch", "train", "training", "onednn", "recipe", "snapshot", "fold", "export"):
        assert not {n for n in names if n.split(".")[0] in ("torch", "torchvision")}


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", README, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip() and line[0] != "#"]


@pytest.mark.parametrize("line", [line for line in readme_commands() if line.startswith("pipeline ")])
def test_every_command_in_the_readme_is_one_that_there_is(line):
    """Each option and subcommand is known; those that only look are run."""
    words = line.split("#")[0].split()[1:]
    result = command(words[0], "-h")
    assert result.returncode == 0
    for option in [word.split("=")[0] for word in words if word.startswith("--")]:
        assert option in result.stdout, line
    if words[0] in ("status", "show", "models"):
        assert command(*words).returncode == 0


def test_the_readme_shows_every_stage():
    rooms = (stages, delivery, experiments, device)
    for name in [*(name.replace("_", "-") for room in rooms for name in room.names()), "run", "status"]:
        assert f"pipeline {name}" in README


def test_the_readmes_second_command_is_what_ci_runs():
    second = readme_commands()[1]
    assert second in (ROOT / ".ci/run").read_text()
    assert "pytest" in second and "[host,test]" in second


def test_the_readmes_figures_are_the_releases(release):
    margins = artifact.read(release / "mnist_cnn.fp16.onnx").facts["margins"]
    assert f"the largest stays {margins['overflow_margin']:.0f} times under overflow" in " ".join(README.split())
    assert f"{margins['activations'] / 1e9:.1f} billion activations" in " ".join(README.split())


@pytest.mark.parametrize("recipe", ["default", "best"])
def test_the_readmes_studies_are_the_committed_ones(release, recipe):
    facts = artifact.read(release / f"study-{recipe}.json").facts
    over = sum(accuracy >= 99.4 for accuracy in facts["accuracies"])
    cells = [
        f"`{recipe}`",
        f"{facts['mean']:.3f} %",
        f"{facts['mean_interval'][0]:.2f} – {facts['mean_interval'][1]:.2f}",
    ]
    cells += [f"{facts['deviation']:.3f}", f"{facts['least']:.2f} %", f"{facts['most']:.2f} %"]
    assert f"| {' | '.join(cells)} | {over} of {len(facts['accuracies'])} |" in README


def test_the_readmes_table_is_the_releases_verification(release):
    verification = artifact.read(release / "verification.json")
    latency = {row["form"]: row for row in artifact.read(release / "latency.json").facts["rows"] if row["batch"] == 1}
    for row in verification.facts["rows"]:
        cells = [f"`{row['form']}`", f"{row['bytes'] / 1000:.1f} KB", f"{row['runtime']}: {row['arithmetic']}"]
        cells += [f"{row['accuracy']:.2%}", f"{row['interval'][0]:.2%} – {row['interval'][1]:.2%}", str(row["differ"])]
        timed = row["runtime"] == latency[row["form"]]["runtime"]
        cells.append(f"{latency[row['form']]['microseconds']['p50']:.0f} µs" if timed else "–")
        assert f"| {' | '.join(cells)} |" in README
