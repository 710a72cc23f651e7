"""A board without a connection: the real code of `deploy --on` asks it, and it answers from a folder here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from pipeline.device import deploy, remote, ssh
from pipeline.device.board import CHECK, Parcel
from pipeline.records import disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.release import files

ABOUT = {
    "python": [3, 10, 12], "architecture": "aarch64", "glibc": "2.35", "free": 10**12, "present": [], "venv": True,
    "jetpack": "6.1", "tensorrt": "10.3.0", "cuda": 12,
}  # fmt: skip
REPORT, FORM, PROOF = "device-report.json", "mnist_cnn.onnx", ("verification.json", "latency.json")
ANSWERS = ("about", "report", "errors", "timings", manifest.FILE, REPORT, *PROOF)
Damage = Callable[[str, bytes], bytes]  # of an answer: what was asked for, and the undamaged bytes


class Answering(ssh.Board):
    """A board that answers from the folder of a report that was made here, each answer through `damage`.

    The digests that it reports are of the files that it has, whatever they are.
    """

    def __init__(self, board_folder: Path, forms: list[Artifact], damage: Damage) -> None:
        super().__init__("board", ())
        vars(self).update(board_folder=board_folder, forms={form.name: form.sha256 for form in forms}, damage=damage)

    def call(self, doing: str, script: str, *words: str, given: bytes = b"") -> bytes:
        if CHECK in words:
            return self.damage("about", json.dumps(ABOUT).encode())
        if script == remote.CAT:
            path = self.board_folder / words[0].partition("/")[2]  # after the name of its folder on the board
            return self.damage(path.name, path.read_bytes() if path.is_file() else b"")
        return self.damage("timings", b"tensorrt-10.3.0-Orin-sm87.timings\n") if "looking" in doing else b""

    def follow(self, script: str, *words: str) -> tuple[int, bytes, str]:
        parents = {path.name: disk.digest(path) for path in self.board_folder.glob("*.json") if path.name in PROOF}
        said = {
            "path": f"out/{REPORT}",
            "sha256": disk.digest(self.board_folder / REPORT),
            "parents": parents | self.forms,
        }
        errors = self.damage("errors", b"warning: no fan\n").decode(errors="replace")
        return 0, self.damage("report", json.dumps(said).encode()), errors


def report(release: Path, board_folder: Path, data: Path) -> None:
    """Deploy a file of a release here, as a board would."""
    deploy.run(release / FORM, out=board_folder, data=str(data), runtime="none", gate=0.1, quick=True, batch=(1,))
    (board_folder / files.TIMINGS).mkdir()
    (board_folder / files.TIMINGS / "tensorrt-10.3.0-Orin-sm87.timings").write_bytes(b"its own")


def bring(release: Path, board_folder: Path, target: Path, damage: Damage) -> None:
    """Deploy on that board. Its report arrives in `target`, every file as its record says, or nothing is touched.

    Raises AssertionError where that isn't so, and what `deploy --on` raises.
    """
    before = _content(target)
    forms = deploy.shipped(release / FORM)
    options = {"runtime": "none", "data": None}
    sent = [Parcel("release-0", "release-0/r", b"")]
    try:
        remote._expect_replaceable(target, forms)
        with mock.patch.object(remote, "install"):  # which would start pip
            remote._deployed(Answering(board_folder, forms, damage), sent, forms, target, False, options)
    except BaseException:
        assert _content(target) == before, "an earlier report was altered"
        raise
    for path in manifest.recorded(target):
        manifest.read(path)
    assert (target / REPORT).is_file(), "arrived without the report"


def _content(target: Path) -> dict[Path, bytes]:
    """What is in a folder, and beside it."""
    return {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
