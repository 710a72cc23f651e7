"""The house's rules: who may import what, and a README whose commands are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import commands
from pipeline.records import kinds, manifest
from tests.support import ROOT, command

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("line", ["ruff check .", "ruff format --check .", "mypy", "lint-imports --no-cache"])
def test_static_checks_find_nothing(line):
    """Their rules stand in pyproject.toml: types, layers (imports go down only), and who may import torch."""
    program, *words = line.split()
    result = subprocess.run([Path(sys.executable).with_name(program), *words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_wheel_has_every_package():
    listed = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)[1]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "pipeline").rglob("*.py")}
    assert sorted(re.findall(r'"([\w.]+)"', listed)) == sorted(
        {".".join(folder.parts) for folder in folders} | {"pipeline.models"}
    )


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
    for name in [*commands.COMMANDS, "run", "status"]:
        assert f"pipeline {name}" in README


def test_the_readmes_second_command_is_what_ci_runs():
    second = readme_commands()[1]
    assert second in (ROOT / ".ci/run").read_text()
    assert "pytest" in second and "[host,test]" in second


def test_the_readmes_figures_are_the_releases(release):
    margins = manifest.read(release / "mnist_cnn.fp16.onnx").facts.margins
    assert f"the largest stays {margins.overflow_margin:.0f} times under overflow" in " ".join(README.split())
    assert f"{margins.activations / 1e9:.1f} billion activations" in " ".join(README.split())


@pytest.mark.parametrize("recipe", ["default", "best"])
def test_the_readmes_studies_are_the_committed_ones(release, recipe):
    facts = kinds.plain(manifest.read(release / f"study-{recipe}.json").facts)
    over = sum(accuracy >= 99.4 for accuracy in facts["accuracies"])
    cells = [
        f"`{recipe}`",
        f"{facts['mean']:.3f} %",
        f"{facts['mean_interval'][0]:.2f} – {facts['mean_interval'][1]:.2f}",
    ]
    cells += [f"{facts['deviation']:.3f}", f"{facts['least']:.2f} %", f"{facts['most']:.2f} %"]
    assert f"| {' | '.join(cells)} | {over} of {len(facts['accuracies'])} |" in README


def test_the_readmes_table_is_the_releases_verification(release):
    timed = {
        (row.form, row.runtime): row for row in manifest.read(release / "latency.json").facts.rows if row.batch == 1
    }
    for row in manifest.read(release / "verification.json").facts.rows:
        cells = [f"`{row.form}`", f"{row.bytes / 1000:.1f} KB", f"{row.runtime}: {row.arithmetic}"]
        cells += [f"{row.accuracy:.2%}", f"{row.interval[0]:.2%} – {row.interval[1]:.2%}", str(row.differ)]
        latency = timed.get((row.form, row.runtime))
        cells.append(f"{latency.microseconds['p50']:.0f} µs" if latency else "–")
        assert f"| {' | '.join(cells)} |" in README


def test_the_certificates_figures_are_the_committed_ones(release):
    made = manifest.read(release / "mnist_cnn.certificate.json")
    assert made.parents["mnist_cnn.fp16.onnx"] == manifest.read(release / "mnist_cnn.fp16.onnx").sha256
    text = (ROOT / "docs/guarantees.md").read_text()
    for row in made.facts.rows:
        cells = [row.execution, f"{row.certified:,} of {row.images:,}", f"{row.right:,}", f"{row.at_least:.2%}"]
        assert f"| {' | '.join([*cells, f'{row.at_most:.2%}', f'{row.median:.2f}', f'{row.p99:.2f}'])} |" in text
    first = made.facts.rows[0]
    assert first.execution == "A1" and first.certified >= 9980 and first.at_least >= 0.994
    told = f"At least {first.at_least:.2%}".replace("%", " %"), f"{first.certified:,}", f"{first.right:,} of them right"
    assert all(each in " ".join(README.split()) for each in told)
