"""The kinds of files that are fuzzed: how each is damaged and then read, and what it is like undamaged."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline import chain as chains
from pipeline import runtimes
from pipeline.data import idx, imagesets, mnist, pictures
from pipeline.data.imagesets import ImageSet
from pipeline.graph import proof
from pipeline.records import kinds, manifest
from pipeline.records.devices import Gpu
from pipeline.records.forms import Engine, Labels
from pipeline.release import archives, contents, files, signing, verify_release
from pipeline.release.report import pages
from pipeline.stages import adopt, card, certify
from pipeline.training import labels, models, recipe
from tests.hardening import boards, mutate
from tests.support import elsewhere
from tests.support.elsewhere import COLOURS

DIGITS = tuple("0123456789")
CARD = models.get("mnist_cnn").card("mnist_cnn")
SHARES = {  # of the inputs: readers behind which native code lies get more
    "idx": 1.5, "idx.gz": 0.5, "npz": 1, "pickle": 1.5, "checkpoint": 1.5, "record": 2, "onnx": 2, "fp16": 2,
    "engine": 0.5, "report": 1.5, "archive": 1, "release": 1, "picture": 2, "signature": 0.5, "options": 1.5,
    "int8": 2, "adopt": 2, "classes": 1, "certificate": 1, "labels": 1, "board": 1,
}  # fmt: skip
MEASURED = {"confusion": [[1]], "calibration": {"bins": [], "error": 0.0}, "mistakes": []}  # what a report shows


def rewritten(path: Path, chance: random.Random, structure: bool) -> None:
    """Damage a file or its record's facts, and give it a record whose digests fit."""
    records = json.loads((path.parent / manifest.FILE).read_text())
    raw, record = path.read_bytes(), {key: each for key, each in records[path.name].items() if key != "record_sha256"}
    report = path.suffix == ".json"
    if structure and report:
        raw = (json.dumps(mutate.tree(chance, json.loads(raw)), indent=1) + "\n").encode()
    elif structure:
        record = mutate.tree(chance, record)
    else:
        raw = mutate.content(chance, raw)
    if isinstance(record, dict):
        if report or chance.random() < 0.9:
            record |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        record["record_sha256"] = manifest._own(path.name, record)
    records[path.name] = record
    (path.parent / manifest.FILE).write_bytes(manifest._serialised(records))
    path.write_bytes(raw)


def _images(path: Path) -> ImageSet:
    return imagesets.load(str(path), "test", (1, 28, 28), DIGITS)


def _idx(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice(("x-images-idx3-ubyte", "x-labels-idx1-ubyte"))
    path.write_bytes(mutate.content(chance, path.read_bytes()))
    _images(folder / "x-images-idx3-ubyte")


def _idx_gz(folder: Path, chance: random.Random) -> None:
    path = folder / "x-images-idx3-ubyte"
    raw = path.read_bytes()
    packed = gzip.compress(mutate.content(chance, raw), 1) if chance.random() < 0.5 else gzip.compress(raw, 1)
    path.write_bytes(mutate.content(chance, packed))
    _images(path)


def _npz(folder: Path, chance: random.Random) -> None:
    path = folder / "few.npz"
    path.write_bytes(mutate.content(chance, path.read_bytes()))
    _images(path)


def _pickle(folder: Path, chance: random.Random) -> None:
    raw = (folder / "arrays.pkl").read_bytes()
    hostile = (b"cos\nsystem\n(S'touch ../escape'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.")
    damaged = mutate.content(chance, raw)
    if chance.random() < 0.2:
        damaged = chance.choice(hostile) + raw
    with contextlib.suppress(Exception):  # in use, the digest has matched before; here it is whether code runs
        mnist._idx_files(mnist._ArraysOnly(io.BytesIO(damaged), encoding="latin1").load())


def _form(name: str, structure: float = 0.3) -> Callable[[Path, random.Random], None]:
    def act(folder: Path, chance: random.Random) -> None:
        rewritten(folder / name, chance, chance.random() < structure)
        read = manifest.read(folder / name)
        for runtime, mode in runtimes.readers(read.kind):
            with runtime.load(read, mode=mode, threads=1) as session:
                session(np.zeros([2, *read.facts.model.input], np.uint8))

    return act


def _record(folder: Path, chance: random.Random) -> None:
    name = chance.choice(sorted(path.name for path in manifest.recorded(folder)))
    path = folder / manifest.FILE
    if chance.random() < 0.5:
        path.write_bytes(mutate.content(chance, path.read_bytes()))
    else:
        rewritten(folder / name, chance, True)
    chains.forms(folder)
    contents.gather(folder)


def _report(folder: Path, chance: random.Random) -> None:
    name = chance.choice(("verification.json", "latency.json", "mnist_cnn.history.csv"))
    rewritten(folder / name, chance, name.endswith(".json") or chance.random() < 0.3)
    found = contents.gather(folder)
    pages.card(found)
    pages.report(found, _few(folder.parent / "few.npz"), MEASURED, {"digest": {}})


@functools.cache
def _few(path: Path) -> ImageSet:
    return _images(path)


def _archive(folder: Path, chance: random.Random) -> None:
    path = folder / "release.tar.gz"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    if chance.random() < 0.3:
        path.write_bytes(mutate.content(chance, path.read_bytes()))
    else:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for member, content in members:
                if chance.random() < 0.1:
                    member.name = chance.choice(
                        ("../escape", "/tmp/escape-of-a-test", "r/../../x", "", "r//x", "r/\x01")
                    )
                if chance.random() < 0.1:
                    member.type = chance.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE))
                    member.linkname = chance.choice(("/etc/passwd", "../..", "mnist_cnn.onnx"))
                tar.addfile(member, io.BytesIO(content))
        raw = plain.getvalue()
        path.write_bytes(gzip.compress(mutate.content(chance, raw) if chance.random() < 0.5 else raw, 1))
    with archives.opened(path) as unpacked:
        verify_release.inspect(unpacked)


def _release(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice(files.names(folder))
    path.write_bytes(mutate.content(chance, path.read_bytes()))
    if path.name != files.SUMS and chance.random() < 0.7:  # as one would who fits the digests to it
        (folder / files.SUMS).write_bytes(files.sums(files.digests(folder)))
    verify_release.inspect(folder)


def _signature(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice((files.SIGNATURE, "../pub.pem"))
    before = path.read_bytes()
    try:
        path.write_bytes(mutate.content(chance, before))
        signing.verify(folder, folder / "../pub.pem")
    finally:
        path.write_bytes(before)


def _picture(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice(sorted(each.name for each in folder.iterdir()))
    path.write_bytes(mutate.content(chance, path.read_bytes()))
    for picture in pictures.find((path,), CARD, False, []):
        assert picture.pixels.shape == (1, 28, 28) and picture.pixels.dtype == np.uint8


def _adopt(folder: Path, chance: random.Random) -> None:
    path = folder / "theirs.onnx"
    path.write_bytes(mutate.content(chance, path.read_bytes()))
    words = {"name": "theirs", "classes": ",".join(COLOURS), "mean": ".5", "std": ".2"}
    adopt.run(path, **words, data=str(folder / "few.npz"), out=folder / "out")


def _classes(folder: Path, chance: random.Random) -> None:
    """Class folders: a picture damaged, or a file where a folder is due, or the other way round."""
    path = folder / chance.choice([str(each.relative_to(folder)) for each in sorted(folder.rglob("*.png"))])
    damage = chance.randrange(4)
    if damage == 0:
        path.unlink()
        path.mkdir()
    elif damage == 1:
        shutil.move(path, folder / chance.choice(("test", "test/red/deeper.png", "test/colour.png", "notes")))
    else:
        path.write_bytes(mutate.content(chance, path.read_bytes()))
    imagesets.load(str(folder), "test", (3, 16, 16), COLOURS)


def _certificate(folder: Path, chance: random.Random) -> None:
    """What an interrupted certification leaves, damaged: replaced, or exactly what an undisturbed one had."""
    half, partial = manifest.read(folder / "mnist_cnn.fp16.onnx"), folder / ".mnist_cnn.certificate.json.partial"
    partial.write_bytes(mutate.content(chance, partial.read_bytes()))
    expected = json.loads((folder / "expected.json").read_text())
    made = certify.run(half, out=folder, data=str(folder / "few.npz"), executions="A1")
    assert kinds.plain(made.facts) == expected, "other bounds than undisturbed"


def _labels(folder: Path, chance: random.Random) -> None:
    path = folder / "mnist_cnn.labels.safetensors"
    rewritten(path, chance, chance.random() < 0.3)
    found, _ = labels.find("mnist_cnn", str(path), _images(folder / "few.npz"))
    assert labels.unpack(found).shape == (20, 10), "labels of another shape"


def _board(folder: Path, chance: random.Random) -> None:
    """What comes back from a board: files that fit their digests, yet damaged, or one answer damaged on its way."""
    board_folder, target, broken = folder / "board", folder / "device/board", None
    if chance.random() < 0.5:
        rewritten(board_folder / chance.choice((boards.REPORT, *boards.PROOF)), chance, chance.random() < 0.8)
    else:
        broken = chance.choice(boards.ANSWERS)

    def damage(what: str, answer: bytes) -> bytes:
        if what != broken:
            return answer
        if what in ("about", "report") and chance.random() < 0.7:
            return json.dumps(mutate.tree(chance, json.loads(answer))).encode()
        return mutate.content(chance, answer)

    boards.bring(folder / "release", board_folder, target, damage)


def _options(folder: Path, chance: random.Random) -> None:
    numbers = (0, 1, -1, 0.5, 2, 64, 1e9, 2**16, 2**31, 2**63, 10**30, 1e308, -1e308, float("nan"), float("inf"), None)
    names = ("epochs", "batch_size", "lr", "momentum", "step_size", "gamma", "dropout", "rotation", "elastic", "ease")
    given = {name: chance.choice(numbers) for name in chance.sample(names, 3)}
    given["schedule"] = chance.choice((None, "step", "linear", "", "x"))
    recipe.options(
        "mnist_cnn",
        recipe=chance.choice(("default", "best", "none", "", "__class__")),
        seed=chance.choice((0, 1, -1, 2**16, 2**63)),
        device=chance.choice(("cpu", "auto", "cuda")),
        precision="float32",
        train_threads=chance.choice((None, 1, 0, -1, 10**9)),
        limit=chance.choice((None, 0, 1, 2, -5, 10**12)),
        hold_out=chance.choice((0, 1, -1, 50_000, 60_000)),
        **given,
    )


ACTS: dict[str, Callable[[Path, random.Random], None]] = {
    "idx": _idx, "idx.gz": _idx_gz, "npz": _npz, "pickle": _pickle, "checkpoint": _form("mnist_cnn.safetensors"),
    "record": _record, "onnx": _form("mnist_cnn.onnx", 0.1), "fp16": _form("mnist_cnn.fp16.onnx", 0.1),
    "engine": _form("mnist_cnn.engine", 0.7), "report": _report, "archive": _archive, "release": _release,
    "picture": _picture, "signature": _signature, "options": _options,
    "int8": _form("mnist_cnn.int8.onnx", 0.1), "adopt": _adopt, "classes": _classes, "certificate": _certificate,
    "labels": _labels, "board": _board,
}  # fmt: skip


def _interrupted(folder: Path) -> None:
    """Certify the first images, stop there, and keep beside it what the whole certification gives."""
    half, done = manifest.read(folder / "mnist_cnn.fp16.onnx"), proof.Proof._save
    partial = folder / ".mnist_cnn.certificate.json.partial"

    def stopped(itself: proof.Proof, parts: dict) -> None:
        done(itself, parts)
        (folder / "kept").write_bytes(partial.read_bytes())

    proof.Proof._save = stopped
    try:
        made = certify.run(half, out=folder, data=str(folder / "few.npz"), executions="A1")
    finally:
        proof.Proof._save = done
    (folder / "expected.json").write_text(json.dumps(kinds.plain(made.facts)))
    (folder / "kept").rename(partial)
    made.path.unlink()


def seeds(target: str, chain: Path, release: Path, data: str, folder: Path) -> None:
    """The undamaged files of a target."""
    folder.mkdir()
    few = imagesets.load(data, "test", (1, 28, 28), DIGITS)
    some, classes = few.images[:20], few.labels[:20]
    if target.startswith("idx"):
        (folder / "x-images-idx3-ubyte").write_bytes(idx.file(some[:, 0]))
        (folder / "x-labels-idx1-ubyte").write_bytes(idx.file(classes.astype(np.uint8)))
    elif target == "npz":
        np.savez_compressed(folder / "few.npz", images=some, labels=classes)
    elif target == "pickle":
        parts = [(some[:, 0].reshape(20, 784).astype(np.float32) / 256, classes)] * 3
        (folder / "arrays.pkl").write_bytes(pickle.dumps(parts, 2))
    elif target in ("archive", "release", "signature"):
        shutil.copytree(release, folder, dirs_exist_ok=True)
        if target == "archive":
            raw = archives.pack(folder)
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "release.tar.gz").write_bytes(raw)
    elif target == "picture":
        from PIL import Image

        large = Image.fromarray(np.pad(np.kron(some[0, 0], np.ones((3, 3), np.uint8)), 9))
        for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "pgm"):
            large.save(folder / f"7.{suffix}")
        (folder / "x-images-idx3-ubyte").write_bytes(idx.file(some[:, 0]))
        two = Image.fromarray(255 - np.pad(np.kron(np.hstack(some[:2, 0]), np.ones((4, 4), np.uint8)), 60))
        two.convert("RGBA").save(folder / "pages.tiff", save_all=True, append_images=[large.convert("L"), two])
    elif target == "adopt":
        elsewhere.classifier(folder)
        pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), np.uint8)
        np.savez(folder / "few.npz", images=pixels, labels=np.arange(6) % 3)
    elif target == "board":
        np.savez(folder / "few.npz", images=some, labels=classes)
        shutil.copytree(release, folder / "release")
        boards.report(release, folder / "board", folder / "few.npz")
        boards.bring(release, folder / "board", folder / "device/board", lambda _, answer: answer)
    elif target == "labels":
        np.savez(folder / "few.npz", images=some, labels=classes)
        answers = np.random.default_rng(0).normal(0, 5, (20, 10)).astype(np.float32)
        about = {"model": "mnist_cnn", "teacher": "mnist_teacher", "teacher_accuracy": 1.0, "agreeing": 0.5}
        facts = Labels(**about, images=20, classes=10)
        pixels = _images(folder / "few.npz").digests
        manifest.write(folder / "mnist_cnn.labels.safetensors", labels.pack(answers), facts=facts, parents=pixels)
    elif target == "classes":
        elsewhere.pictures(folder, 1, 2)
    elif target != "options":
        for path in chain.iterdir():
            if path.name.startswith(("mnist_cnn", "verification", "latency")) and ".training" not in path.name:
                shutil.copy(path, folder)
        if (chain / manifest.FILE).is_file():
            shutil.copy(chain / manifest.FILE, folder)
        form = manifest.read(chain / "mnist_cnn.fp16.onnx")
        options = {"runtime": "tensorrt", "version": "10.3", "version_compatible": False, "hardware_compatible": False}
        options |= {"targets": ["sm87"], "max_batch": 64, "opt_batch": 1, "dla": None}
        gpu = Gpu(name="Orin", capability="8.7", driver="12.6")
        facts = Engine(**card(form), gpu=gpu, element="HALF", build_seconds=1.0, layers=[])
        manifest.write(folder / "mnist_cnn.engine", b"engine" * 50, parents=[form], options=options, facts=facts)
    if target == "certificate":
        np.savez(folder / "few.npz", images=some, labels=classes)
        _interrupted(folder)
