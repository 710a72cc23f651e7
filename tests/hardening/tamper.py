"""One byte changed at offset after offset of every file: noticed before use, each time."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pipeline import chain as chains
from pipeline.errors import PipelineError
from pipeline.records import manifest
from pipeline.release import files, verify_release
from tests.hardening import Place, Row, boards, targets


def run(place: Place, scale: float) -> list[Row]:
    """Committed files by their records, a release by its list of digests and by its signature, a report on its way."""
    records, released = _records(place, 40 * scale), _release(place, 12 * scale, None)
    return [records, released, _signed(place, 3 * scale), _brought(place, 12 * scale)]


def _offsets(size: int, wanted: float) -> range:
    """About so many offsets over a file, its first and its last byte among them."""
    return range(0, size, max(1, int(size // max(1, wanted - 1)) - 1))


def _altered(path: Path, wanted: float, row: Row, notices) -> None:
    before = path.read_bytes()
    for at in {*_offsets(len(before), wanted), len(before) - 1}:
        made = bytearray(before)
        made[at] ^= 1 << (at % 8)
        path.write_bytes(made)
        try:
            notices()
            row.note(f"{path.name}: byte {at} was not noticed")
        except PipelineError as error:
            row.note(None if path.name in str(error) else f"{path.name}: {at}: not named: {error}")
    path.write_bytes(before)


def _records(place: Place, wanted: float) -> Row:
    """What `verify`, `status` and `deploy` ask first."""
    row = Row("tampering", "artifacts and records, a byte changed")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(place.chain, Path(scratch) / "chain"))
        for path in manifest.recorded(folder):
            _altered(path, wanted, row, lambda path=path: manifest.read(path))
        recorded = manifest.recorded(folder)
        _altered(folder / manifest.FILE, 10 * wanted, row, lambda: [manifest.read(path) for path in recorded])
        chains.forms(folder)  # and whole again, it is fine
    return row


def _release(place: Place, wanted: float, key: Path | None) -> Row:
    row = Row("tampering", "release, a byte changed" + (", signature checked" if key else ""))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(place.release, Path(scratch) / "release"))
        for name in files.names(folder):
            if key or name != files.SIGNATURE:
                _altered(folder / name, wanted, row, lambda: verify_release.inspect(folder, key))
        verify_release.inspect(folder, key)
    return row


def _brought(place: Place, wanted: float) -> Row:
    row = Row("tampering", "a board's report, a byte changed on its way")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        targets.seeds("board", place.chain, place.release, place.data, folder / "seeds")
        board_folder, target = folder / "seeds/board", folder / "seeds/device/board"
        said = {path.name: path.read_bytes() for path in board_folder.glob("*.json")}

        def bring(path: Path) -> None:
            sent = path.read_bytes()
            path.write_bytes(said[path.name])  # the digests that the board reports are of the unaltered file
            boards.bring(
                place.release, board_folder, target, lambda what, answer: sent if what == path.name else answer
            )

        for path in sorted(board_folder.glob("*.json")):
            _altered(path, wanted, row, lambda path=path: bring(path))
        boards.bring(place.release, board_folder, target, lambda _, answer: answer)  # and unaltered, it arrives
    return row


def _signed(place: Place, wanted: float) -> Row:
    return _release(place, wanted, place.release.parent / "pub.pem")
