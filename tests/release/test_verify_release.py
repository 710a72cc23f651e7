from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipeline.errors import CheckFailed, UsageError
from pipeline.records import manifest
from pipeline.release import archives, files, ship, signing, verify_release
from tests.support import command, flip, one_line
from tests.support.releases import NAME, resum, rewrite, snapshot


@pytest.fixture
def copy(signed, tmp_path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / NAME))


def officially_holds(folder: Path, keys: Path) -> bool:
    """Whether model-signing itself accepts a signature."""
    import model_signing

    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys / "pub.pem")
    try:
        config.verify(folder, folder / "model.sig")
    except Exception:
        return False
    return True


def test_fifty_changed_bytes_are_noticed_by_the_official_tool_and_named_by_ours(copy, keys):
    chance, names = random.Random(5), files.names(copy)
    sizes = [(copy / name).stat().st_size for name in names]
    assert officially_holds(copy, keys)
    for turn in range(50):
        # Half of them anywhere in the release, by size; else nearly all would fall into the test set.
        (name,) = chance.choices(names, sizes) if turn % 2 else chance.choices(names)
        at = chance.randrange((copy / name).stat().st_size)
        flip(copy / name, at)
        with pytest.raises(CheckFailed) as noticed:
            verify_release.run(copy, public_key=keys / "pub.pem")
        assert name in str(noticed.value), (name, at)
        # Base64 has bits that decoders pass over; there, ours is stricter.
        assert not officially_holds(copy, keys) or name == files.SIGNATURE, (name, at)
        flip(copy / name, at)
    assert officially_holds(copy, keys) and verify_release.run(copy, public_key=keys / "pub.pem")


def test_every_bit_of_the_signature_counts(copy, keys):
    before = (copy / "model.sig").read_bytes()
    others = [before + b"\n", before.replace(b'"payloadType"', b' "payloadType"')]  # which decoders would pass over
    others += [before[:at] + bytes([before[at] ^ 1 << at % 8]) + before[at + 1 :] for at in range(0, len(before), 7)]
    for altered in others:
        (copy / "model.sig").write_bytes(altered)
        with pytest.raises(CheckFailed, match=r"model\.sig"):
            signing.verify(copy, keys / "pub.pem")


@pytest.mark.exhaustive
def test_a_signature_is_kept_while_it_holds(release, keys, signed, tmp_path):
    out = Path(shutil.copytree(signed.parent, tmp_path / "out"))
    first = manifest.read(out / f"{NAME}.tar.gz")
    again = ship.run(release, out=out, sign_key=keys / "key.pem")
    assert first.sha256 == again.sha256 and first.options["signed"]
    assert ship.run(release, out=out, sign_key=keys / "other.pem").sha256 != first.sha256
    signing.verify(out / NAME, keys / "other-pub.pem")


def test_the_command_says_what_holds(signed, copy, keys, shipped):
    result = command("verify-release", signed, "--public-key", keys / "pub.pem")
    assert result.returncode == 0 and "chain intact; verified" in result.stdout and "signature: valid" in result.stdout
    archive = signed.parent / f"{NAME}.tar.gz"
    printed = json.loads(command("verify-release", archive, "--public-key", keys / "pub.pem", "--json").stdout)
    assert printed["facts"]["verified"] and printed["facts"]["signature"] == "checked"
    assert "signature: not checked; --public-key" in command("verify-release", signed).stdout
    assert "signature: none" in command("verify-release", shipped / NAME).stdout


def test_what_hubs_and_desktops_add_is_passed_over_and_said(signed, tmp_path, keys):
    copy = Path(shutil.copytree(signed, tmp_path / NAME))
    for name in (".gitattributes", ".cache/huggingface/download/a.lock", ".DS_Store", "._LICENSE", "Thumbs.db"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("*.onnx filter=lfs")
    result = command("verify-release", copy, "--public-key", keys / "pub.pem")
    assert result.returncode == 0 and "signature: valid" in result.stdout, result.stderr
    assert "not checked: .DS_Store, ._LICENSE, .cache/huggingface, .gitattributes, Thumbs.db:" in result.stdout
    (copy / ".cache/more").write_text("x")
    assert ".cache/more: not" in one_line(command("verify-release", copy), 1)
    (copy / ".cache/more").unlink()
    (copy / "LICENSE").write_text("x")
    error = one_line(command("verify-release", copy, "--public-key", keys / "pub.pem"), 1)
    assert f"{copy}: LICENSE: altered: expected what was signed" in error


def in_a_hubs_cache(release: Path, at: Path) -> Path:
    """A release as a hub's client keeps it: every file a link into `blobs`, named by its digest."""
    (at / "blobs").mkdir(parents=True)
    snapshot = at / "snapshots/0123abc"
    for path in (path for path in sorted(release.rglob("*")) if path.is_file()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, at / "blobs" / digest)
        link = snapshot / path.relative_to(release)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(at / "blobs" / digest, link.parent))
    return snapshot


def test_links_into_a_hubs_own_cache_are_followed_and_no_others(signed, tmp_path, keys):
    snapshot = in_a_hubs_cache(signed, tmp_path / "models--me--mnist")
    result = command("verify-release", snapshot, "--public-key", keys / "pub.pem")
    assert result.returncode == 0 and "signature: valid" in result.stdout, result.stderr
    license = snapshot / "LICENSE"
    blob = license.resolve()
    license.unlink()
    (tmp_path / "elsewhere").write_bytes(blob.read_bytes())
    license.symlink_to(tmp_path / "elsewhere")
    assert "LICENSE: is a link" in one_line(command("verify-release", snapshot), 1)
    license.unlink()
    license.symlink_to(blob)
    blob.write_bytes(b"x")
    assert "LICENSE: altered" in one_line(command("verify-release", snapshot), 1)


def test_another_key_no_key_and_no_signature_are_one_line(signed, keys, shipped, tmp_path):
    def refused(folder, key, code=1):
        return one_line(command("verify-release", folder, "--public-key", key), code)

    assert "expected a signature by" in refused(signed, keys / "other-pub.pem")
    assert "No such file" in refused(signed, keys / "none.pem", 2)
    assert "is not signed" in refused(shipped / NAME, keys / "pub.pem")
    assert "has no SHA256SUMS" in refused(tmp_path, keys / "pub.pem", 2)
    assert "openssl ec -in" in refused(signed, keys / "key.pem", 2)
    assert "belong together" in one_line(command("verify-release", signed, "--identity", "me@example.org"), 2)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda at: (at / "more.txt").write_text("x"), "more.txt: not in SHA256SUMS"),
        (lambda at: (at / "latency.json").unlink(), "latency.json: missing"),
        (lambda at: (at / "LICENSE").rename(at / "license"), "LICENSE: missing"),
        (lambda at: ((at / "LICENSE").unlink(), (at / "LICENSE").symlink_to("/etc/hostname")), "is a link"),
        (lambda at: (at / "SHA256SUMS").write_bytes(b"\xff"), "SHA256SUMS: altered"),
        (lambda at: (at / "SHA256SUMS").write_text("0" * 64 + "  ../x\n"), "SHA256SUMS: altered"),
    ],
)
def test_what_is_added_or_taken_away_is_named(copy, spoil, expected):
    spoil(copy)
    with pytest.raises(CheckFailed) as refused:
        verify_release.run(copy)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": "9.9: chain intact; verified\nsignature: \x1b[8m"}, r"release\.json: is not what .*version"),
        ({"model": "\ud800"}, r"release\.json: is not what "),
        ({"model": "resnet"}, r"says resnet 1\.0\.0: expected mnist_cnn 1\.0\.0, as on record"),
        ({"version": "2.0.0"}, r"says mnist_cnn 2\.0\.0: expected mnist_cnn 1\.0\.0"),
        ({"against": ["too low \u202e"], "verified": False}, r"release\.json: is not what "),
        ({"against": ["too low"]}, "expected it to be verified, or a reason against it"),
        ({"format": "wheel"}, r"release\.json: is not what .*format"),
    ],
)
def test_a_release_is_what_its_records_say(copy, changes, expected):
    """Whatever release.json says, with digests that fit, as anybody can write them."""
    about = json.loads((copy / "release.json").read_text()) | changes
    (copy / "release.json").write_text(json.dumps(about))
    resum(copy)
    with pytest.raises(CheckFailed, match=expected) as refused:
        verify_release.run(copy)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("left", [files.SIGNATURE, files.ABOUT])
def test_a_release_without_its_digests_is_still_checked(copy, left):
    """Else an unverified one would be taken by whoever deletes a file of it."""
    for name in {files.SUMS, files.SIGNATURE, files.ABOUT} - {left}:
        (copy / name).unlink()
    assert "has no SHA256SUMS" in one_line(command("deploy", copy, "--runtime", "none"), 2)


def test_digests_rewritten_to_match_are_caught_by_the_chain_and_by_the_signature(copy, keys):
    """One who alters the model, its record and SHA256SUMS alike, and can't sign."""
    rewrite(copy / "mnist_cnn.onnx", b"another")
    resum(copy)
    with pytest.raises(CheckFailed, match=r"mnist_cnn.fp16.onnx: made from another mnist_cnn.onnx"):
        verify_release.run(copy)
    with pytest.raises(CheckFailed, match=r"mnist_cnn.onnx: altered.*signed by"):
        verify_release.run(copy, public_key=keys / "pub.pem")


def packed(*members: tuple[str, str]) -> bytes:
    """An archive of files with a content, and of links, whose content begins with an arrow."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content.startswith("->"):
                member.type, member.linkname = tarfile.SYMTYPE, content[2:]
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return gzip.compress(file.getvalue())


DAMAGED_ARCHIVES = {
    "empty": b"",
    "text": b"no archive",
    "compressed text": gzip.compress(b"no archive" * 100),
    "cut": gzip.compress(bytes(1 << 20))[:-9],
    "too large": gzip.compress(bytes((1 << 21) + 1), 1),
    "parent folder": packed(("../evil", "x")),
    "absolute path": packed(("/tmp/evil", "x")),
    "two folders up": packed(("r/../../evil", "x")),
    "link to a file": packed(("r/a", "->/etc/passwd")),
    "through a link": packed(("r/a", "->/tmp"), ("r/a/evil", "x")),
    "two folders": packed(("r/a", "x"), ("s/a", "x")),
    "file as a folder": packed(("r/a", "x"), ("r/a/b", "x")),
    "twice the same": packed(("r/a", "x"), ("r/a", "y")),
    "long name": packed(("r/" + "a" * 300, "x")),
    "too many": packed(*((f"r/{number}", "") for number in range(archives.MOST + 1))),
}


# By name: gzip puts the time into its header, and pytest-xdist's workers must agree on the tests' names.
@pytest.mark.parametrize("content", DAMAGED_ARCHIVES.values(), ids=DAMAGED_ARCHIVES)
def test_an_archive_writes_nothing_outside(tmp_path, content, monkeypatch):
    monkeypatch.setattr(archives, "LIMIT", 1 << 21)
    archive, target = tmp_path / "release.tar.gz", tmp_path / "scratch" / "target"
    archive.write_bytes(content)
    target.mkdir(parents=True)
    with pytest.raises(CheckFailed, match=r"release\.tar\.gz"):
        archives.unpack(archive, target)
    assert not Path("/tmp/evil").exists() and {path.name for path in tmp_path.rglob("*")} <= {
        "release.tar.gz", "scratch", "target", "r", "a"
    }  # fmt: skip


def test_a_release_too_large_to_unpack_is_not_packed(shipped, monkeypatch):
    monkeypatch.setattr(archives, "LIMIT", 1 << 16)
    with pytest.raises(UsageError, match="expected at most 65,536"):
        archives.pack(shipped / NAME)


def test_a_name_too_long_to_be_packed_is_named(tmp_path):
    (tmp_path / ("a" * 150)).write_text("")
    with pytest.raises(UsageError, match=r"/a{150}: can't be packed: name is too long"):
        archives.pack(tmp_path)


def test_an_archive_is_named_not_where_it_was_unpacked(shipped, copy, tmp_path):
    flip(copy / "LICENSE", 3)
    (tmp_path / "altered.tar.gz").write_bytes(archives.pack(copy))
    (tmp_path / "cut.tar.gz").write_bytes((shipped / f"{NAME}.tar.gz").read_bytes()[:-1000])
    for name in ("verify-release", "deploy"):
        altered = one_line(command(name, tmp_path / "altered.tar.gz"), 1)
        assert f"{tmp_path}/altered.tar.gz: {NAME}: LICENSE: altered" in altered
        assert f"{tmp_path}/cut.tar.gz: can't be unpacked" in one_line(command(name, tmp_path / "cut.tar.gz"), 1)


@pytest.mark.exhaustive
def test_a_folder_named_from_here_is_signed_as_well(release, keys, tmp_path, monkeypatch):
    """And model-signing's own command, which the model card shows, accepts it as long as no byte is changed."""
    monkeypatch.chdir(tmp_path)
    ship.run(release, out=Path("out"), sign_key=keys / "key.pem")
    folder = Path("out") / NAME
    assert verify_release.run(folder, public_key=keys / "pub.pem").facts.signature == "checked"
    line = [sys.executable, "-m", "model_signing", "verify", "key", tmp_path / folder]
    line += ["--signature", tmp_path / folder / "model.sig", "--public_key", keys / "pub.pem"]
    assert subprocess.run(line, capture_output=True).returncode == 0
    flip(folder / "mnist_cnn.onnx", 1000)
    assert subprocess.run(line, capture_output=True).returncode != 0


def test_a_failed_signature_leaves_the_earlier_release(release, signed, keys, tmp_path, monkeypatch):
    out = Path(shutil.copytree(signed.parent, tmp_path / "out"))
    before = snapshot(out)
    monkeypatch.setattr(signing, "sign", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ship.run(release, out=out, sign_key=keys / "other.pem")
    assert snapshot(out) == before


@pytest.mark.parametrize("curve", ["secp256k1", "secp224r1"])
def test_a_curve_that_cannot_sign_is_refused_at_once(tmp_path, curve):
    key, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, stderr=-3)
    for path, private in ((key, True), (public, False)):
        with pytest.raises(UsageError, match=f"P-256 .*received {curve}"):
            signing.read_key(path, private=private)


def test_names_with_quotes_are_named(copy, keys):
    flip(copy / "LICENSE", 3)
    odd = copy.rename(copy.with_name("it's"))
    with pytest.raises(CheckFailed, match="LICENSE: altered"):
        signing.verify(odd, keys / "pub.pem")


def test_an_archive_packed_by_tar_is_one_too(shipped, tmp_path):
    subprocess.run(["tar", "czf", tmp_path / "mine.tgz", NAME], cwd=shipped, check=True)
    assert verify_release.run(tmp_path / "mine.tgz").facts.verified
