"""README and docs/: commands that there are, figures of the artifacts, links that lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import commands
from pipeline.records import kinds, manifest
from pipeline.training.model import Model
from tests import reference
from tests.support import ROOT, command, flip
from tests.support.pages import PAGES, blocks, lines, section

README, ACCURACY, GUARANTEES = (
    " ".join(PAGES[name].split()) for name in ("README.md", "docs/accuracy.md", "docs/guarantees.md")
)
# Those in the text, too; that those in blocks run: tests/test_docs.py.
COMMANDS = [line for text in PAGES.values() for line in lines(text) + re.findall(r"`(pipeline [^`]+)`", text)]


@pytest.mark.parametrize("line", dict.fromkeys(line for line in COMMANDS if line.startswith("pipeline ")))
def test_every_command_and_option_is_one_that_there_is(line):
    _, name, *words = line.split()
    result = command(name, "-h")
    assert result.returncode == 0
    assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in result.stdout] == []


def test_every_command_is_shown():
    for name in commands.EXAMPLES:
        assert f"\npipeline {name}" in PAGES["docs/commands.md"], name


def test_the_reference_is_what_the_commands_say():
    assert PAGES["docs/commands.md"] == reference.page(), "`python -m tests.reference` writes it"


@pytest.mark.parametrize("name", commands.EXAMPLES)
def test_help_opens_with_an_example_whose_options_there_are(name):
    shown, example = command(name, "-h").stdout, commands.EXAMPLES[name]
    assert shown.splitlines()[2] == f"  $ {example}" and example.split()[:2] == ["pipeline", name]
    assert all(option in shown for option in re.findall(r"--[\w-]+", example))


def test_help_fits_a_screen():
    shown = command("--help", COLUMNS="80").stdout.splitlines()
    assert len(shown) <= 50 and max(map(len, shown)) <= 80
    assert all(f"  {name} " in "\n".join(shown) for name in commands.EXAMPLES)


def test_the_first_page_is_short_and_its_second_command_is_what_ci_runs():
    assert len(README.split()) < 800
    first, second = [line for line in lines(PAGES["README.md"]) if line.startswith("python3 -m venv")]
    assert first.endswith("pipeline run") and "[host,test]" in second and "pytest" in second
    assert second in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_no_command_runs_out_of_a_rendered_page(page):
    for block in blocks(PAGES[page], "bash") + blocks(PAGES[page], "python"):
        assert [line for line in block.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", PAGES[page]):
        path, _, anchor = "".join(target).partition("#")
        if path.startswith("http"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {path}"
        if anchor:
            headings = [
                re.sub(r"[^\w -]", "", line.lstrip("# ")) for line in file.read_text().splitlines() if line[:1] == "#"
            ]
            assert anchor in [heading.strip().lower().replace(" ", "-") for heading in headings], f"{page}: #{anchor}"


def test_every_field_of_a_model_is_told():
    told = section("docs/your-own-model.md", "A network and pictures of your own")
    assert [name for name in Model.__dataclass_fields__ if f"`{name}`" not in told] == []
    defaults = {name: field.default for name, field in Model.__dataclass_fields__.items()}
    for name in ("prepare", "version", "licence", "teacher"):
        assert f"| `{name}` | `{json.dumps(defaults[name])}` |".replace("null", "None") in told


def test_every_room_and_file_that_the_pages_name_is_there():
    for page, text in PAGES.items():
        for name in re.findall(r"(?<![\w./-])(?:pipeline|tests|benchmarks)/[\w/.-]*\w", text):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_every_module_that_the_pages_run_is_one():
    for module in set(re.findall(r"python -m ((?:tests|benchmarks)\.\w+)", "".join(PAGES.values()))):
        folder = ROOT / module.replace(".", "/")
        importlib.import_module(f"{module}.__main__" if folder.is_dir() else module)


@pytest.mark.parametrize("words", sorted(set(re.findall(r"\bpytest ([^`\n#]*[^`\n# ])", "\n".join(PAGES.values())))))
def test_what_the_pages_have_pytest_run_is_there(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", default="")
    parser.add_argument("-k", default="")
    parser.add_argument("paths", nargs="*", default=["tests"])
    given = parser.parse_args(shlex.split(words))
    paths = [ROOT / path for path in given.paths]
    files = [file for path in paths for file in ([path] if path.suffix else path.rglob("test_*.py"))]
    named = rf'def test_\w*{given.k}|id="{given.k}"'
    found = [file.read_text() for file in files if given.k in file.name or re.search(named, file.read_text())]
    assert [text for text in found if not given.m or f"mark.{given.m}" in text], words


def test_every_block_of_commands_is_one_that_a_shell_reads():
    for page, text in PAGES.items():
        assert set(re.findall(r"^```(\w+)", text, re.MULTILINE)) <= {"bash", "python", "text", "mermaid"}, page
        for block in blocks(text, "bash"):
            read = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
            assert read.returncode == 0 and not read.stderr, (page, read.stderr)


def test_the_margins_are_the_releases(release):
    margins = manifest.read(release / "mnist_cnn.fp16.onnx").facts.margins
    assert f"the largest stays {margins.overflow_margin:.0f} times under overflow" in ACCURACY
    assert f"{margins.activations / 1e9:.1f} billion activations" in ACCURACY


@pytest.mark.parametrize("name", ["default", "best", "default-hard", "best-hard"])
def test_the_studies_are_the_committed_ones(release, name):
    facts = kinds.plain(manifest.read(release / f"study-{name}.json").facts)
    over = sum(accuracy >= 99.4 for accuracy in facts["accuracies"])
    low, high = facts["mean_interval"]
    recipe, _, hard = name.partition("-")
    cells = [
        f"`{recipe}`",
        "original" if hard else "original and a teacher's",
        f"{facts['mean']:.3f}",
        f"{low:.2f} – {high:.2f}",
        f"{facts['deviation']:.3f}",
    ]
    cells += [f"{facts['least']:.2f}", f"{facts['most']:.2f}", f"{over} of {len(facts['accuracies'])}"]
    assert f"| {' | '.join(cells)} |" in ACCURACY
    if name != "best-hard":
        assert f"{facts['mean']:.3f} % and {facts['least']:.2f} %" in README


def test_the_tables_are_the_releases_verification(release):
    rows = manifest.read(release / "latency.json").facts.rows
    timed = {(row.form, row.runtime): f"{row.microseconds['p50']:.0f} µs" for row in rows if row.batch == 1}
    proven = {row.form: row.at_least for row in manifest.read(release / "mnist_cnn.certificate.json").facts.rows[:1]}
    for row in manifest.read(release / "verification.json").facts.rows:
        name, size, accuracy = f"`{row.form}`", f"{row.bytes / 1000:.1f} KB", f"{row.accuracy:.2%}"
        p50 = timed.get((row.form, row.runtime), "–")
        interval = f"{row.interval[0]:.2%} – {row.interval[1]:.2%}"
        cells = [name, size, f"{row.runtime}: {row.arithmetic}", accuracy, interval, str(row.differ), p50]
        assert f"| {' | '.join(cells)} |" in ACCURACY
        if p50 != "–":
            least = f"{proven[row.form]:.2%}" if row.form in proven else "–"
            assert f"| {' | '.join([name, size, accuracy, least, p50])} |" in README


def test_the_certificates_figures_are_the_committed_ones(release):
    made = manifest.read(release / "mnist_cnn.certificate.json")
    assert made.parents["mnist_cnn.fp16.onnx"] == manifest.read(release / "mnist_cnn.fp16.onnx").sha256
    for row in made.facts.rows:
        cells = [row.execution, f"{row.certified:,} of {row.images:,}", f"{row.right:,}", f"{row.at_least:.2%}"]
        cells += [f"{row.at_most:.2%}", f"{row.median:.2f}", f"{row.p99:.2f}"]
        assert f"| {' | '.join(cells)} |" in GUARANTEES
    first = made.facts.rows[0]
    assert first.execution == "A1" and first.certified >= 9980 and first.at_least >= 0.994
    told = f"under {first.at_least:.2%}".replace("%", " %"), f"{first.certified:,}", f"{first.right:,} of them right"
    assert all(each in README for each in told)


def test_the_record_formats_checker_holds_and_notices_a_byte(release, tmp_path):
    (script,) = blocks(PAGES["docs/record-format.md"], "python")
    folder = Path(shutil.copytree(release, tmp_path / "artifacts"))

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True)

    assert checked().stdout == f"{len(manifest.names(folder))} records hold\n"
    for name in ("chain.json", "mnist_cnn.onnx"):
        flip(folder / name, 300)
        assert (checked().returncode == 1 and "altered" in checked().stderr) or "JSON" in checked().stderr
        flip(folder / name, 300)
    assert checked().returncode == 0


def test_the_python_of_the_pages_runs(release, digits, tmp_path, monkeypatch):
    """The README's and docs/release.md's examples, on the committed files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").symlink_to(release)
    for page in ("README.md", "docs/release.md"):
        for block in blocks(PAGES[page], "python"):
            names = {"images": digits.images[:10, 0]}
            exec(compile(block, page, "exec"), names)
            if "logits" in names:
                assert names["logits"].shape == (1, 10)
            else:
                assert (names["classifier"](names["images"]).argmax(1) == digits.labels[:10]).mean() >= 0.9
