from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import CheckFailed, UsageError
from pipeline.release import archives, files, ship, signing, verify_release
from tests.support import command, flip, one_line
from tests.support.releases import NAME, resummed


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """`key.pem`, `pub.pem` and another pair, made as the README says."""
    folder = tmp_path_factory.mktemp("keys")
    for private, public in (("key.pem", "pub.pem"), ("other.pem", "other-pub.pem")):
        made = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
        subprocess.run(made, cwd=folder, check=True)
        subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], cwd=folder, check=True, stderr=-3)
    return folder


@pytest.fixture(scope="module")
def signed(release, keys, tmp_path_factory) -> Path:
    """A signed release's folder. Don't write to it."""
    out = tmp_path_factory.mktemp("signed")
    ship.run(release, out=out, data=None, sign_key=keys / "key.pem")
    return out / NAME


@pytest.fixture
def copy(signed, tmp_path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / NAME))


def official(folder: Path, keys: Path) -> int:
    """The exit code of model-signing's own command."""
    line = [sys.executable, "-m", "model_signing", "verify", "key", folder, "--signature", folder / "model.sig"]
    return subprocess.run([*line, "--public_key", keys / "pub.pem"], capture_output=True).returncode


def officially_holds(folder: Path, keys: Path) -> bool:
    """The same without a process a time."""
    import model_signing

    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys / "pub.pem")
    try:
        config.verify(folder, folder / "model.sig")
    except Exception:
        return False
    return True


def test_the_official_tool_accepts_what_is_signed_and_no_changed_byte(signed, copy, keys):
    assert official(signed, keys) == 0
    flip(copy / "mnist_cnn.onnx", 1000)
    assert official(copy, keys) != 0


def test_fifty_changed_bytes_are_noticed_by_the_official_tool_and_named_by_ours(copy, keys):
    chance, names = random.Random(5), files.names(copy)
    sizes = [(copy / name).stat().st_size for name in names]
    assert officially_holds(copy, keys)
    for turn in range(50):
        # Half of them anywhere in the release, by size; else nearly all would fall into the test set.
        (name,) = chance.choices(names, sizes) if turn % 2 else chance.choices(names)
        before = (copy / name).read_bytes()
        at, bit = chance.randrange(len(before)), 1 << chance.randrange(8)
        altered = bytearray(before)
        altered[at] ^= bit
        (copy / name).write_bytes(altered)
        with pytest.raises(CheckFailed) as noticed:
            verify_release.run(copy, public_key=keys / "pub.pem")
        assert name in str(noticed.value), (name, at, bit)
        # Base64 has bits that decoders pass over; there, ours is stricter.
        assert not officially_holds(copy, keys) or name == files.SIGNATURE, (name, at, bit)
        (copy / name).write_bytes(before)
    assert officially_holds(copy, keys) and verify_release.run(copy, public_key=keys / "pub.pem")


def test_every_bit_of_the_signature_counts(copy, keys):
    before = (copy / "model.sig").read_bytes()
    for at in range(0, len(before), 7):
        altered = bytearray(before)
        altered[at] ^= 1 << (at % 8)
        (copy / "model.sig").write_bytes(altered)
        with pytest.raises(CheckFailed, match=r"model\.sig"):
            signing.verify(copy, keys / "pub.pem")


def test_a_signature_is_written_in_one_way(copy, keys):
    before = (copy / "model.sig").read_text()
    for other in (before.replace('"payloadType"', ' "payloadType"'), before + "\n"):
        (copy / "model.sig").write_text(other)
        with pytest.raises(CheckFailed, match=r"model\.sig: altered"):
            signing.verify(copy, keys / "pub.pem")


def test_a_signature_is_kept_while_it_holds(release, keys, signed, tmp_path):
    out = tmp_path / "out"
    first = ship.run(release, out=out, data=None, sign_key=keys / "key.pem")
    again = ship.run(release, out=out, data=None, sign_key=keys / "key.pem")
    assert first.sha256 == again.sha256 and first.options["signed"]
    other = ship.run(release, out=out, data=None, sign_key=keys / "other.pem")
    assert other.sha256 != first.sha256
    signing.verify(out / NAME, keys / "other-pub.pem")


def test_the_command_says_what_holds(signed, keys, shipped):
    result = command("verify-release", signed, "--public-key", keys / "pub.pem")
    assert result.returncode == 0 and "chain whole; verified" in result.stdout and "signature: holds" in result.stdout
    archive = signed.parent / f"{NAME}.tar.gz"
    found = json.loads(command("verify-release", archive, "--public-key", keys / "pub.pem", "--json").stdout)
    assert found["facts"]["verified"] and found["facts"]["signature"] == "checked"
    assert "not checked, there is one" in command("verify-release", signed).stdout
    assert "there is none" in command("verify-release", shipped / NAME).stdout


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


def test_digests_rewritten_to_match_are_caught_by_the_chain_and_by_the_signature(copy, keys):
    """One who alters the model, its record and SHA256SUMS alike, and can't sign."""
    from pipeline.records import manifest

    made = manifest.read(copy / "mnist_cnn.onnx")
    content = bytearray(made.path.read_bytes())
    content[20_000] ^= 1
    kept = {name: getattr(made, name) for name in ("parents", "options", "versions", "facts")}
    manifest.write(made.path, bytes(content), **kept)
    resummed(copy)
    with pytest.raises(CheckFailed, match=r"mnist_cnn.fp16.onnx: made from another mnist_cnn.onnx"):
        verify_release.run(copy)
    with pytest.raises(CheckFailed, match=r"mnist_cnn.onnx: altered.*signed by"):
        verify_release.run(copy, public_key=keys / "pub.pem")


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(file.getvalue())


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


DAMAGED_ARCHIVES = {
    "empty": b"",
    "text": b"no archive",
    "compressed text": gzip.compress(b"no archive" * 100),
    "cut": gzip.compress(bytes(1 << 20))[:-9],
    "too large": gzip.compress(bytes((1 << 28) + 1), 1),
    "parent folder": packed((tarfile.TarInfo("../evil"), b"x")),
    "absolute path": packed((tarfile.TarInfo("/tmp/evil"), b"x")),
    "two folders up": packed((tarfile.TarInfo("r/../../evil"), b"x")),
    "link to a file": packed((link("r/a", "/etc/passwd"), b"")),
    "through a link": packed((link("r/a", "/tmp"), b""), (tarfile.TarInfo("r/a/evil"), b"x")),
    "two folders": packed((tarfile.TarInfo("r/a"), b"x"), (tarfile.TarInfo("s/a"), b"x")),
    "file as a folder": packed((tarfile.TarInfo("r/a"), b"x"), (tarfile.TarInfo("r/a/b"), b"x")),
    "twice the same": packed((tarfile.TarInfo("r/a"), b"x"), (tarfile.TarInfo("r/a"), b"y")),
    "long name": packed((tarfile.TarInfo("r/" + "a" * 300), b"x")),
}


# By name: gzip puts the time into its header, and pytest-xdist's workers must agree on the tests' names.
@pytest.mark.parametrize("content", DAMAGED_ARCHIVES.values(), ids=DAMAGED_ARCHIVES)
def test_an_archive_writes_nothing_outside(tmp_path, content):
    archive, target = tmp_path / "release.tar.gz", tmp_path / "scratch" / "target"
    archive.write_bytes(content)
    target.mkdir(parents=True)
    with pytest.raises(CheckFailed, match=r"release\.tar\.gz"):
        archives.unpack(archive, target)
    assert not Path("/tmp/evil").exists() and {path.name for path in tmp_path.rglob("*")} <= {
        "release.tar.gz", "scratch", "target", "r", "a"
    }  # fmt: skip


def test_a_cut_archive_is_one_line(shipped, tmp_path):
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes((shipped / f"{NAME}.tar.gz").read_bytes()[:-1000])
    for name in ("verify-release", "deploy"):
        assert "cut.tar.gz: is no whole release archive" in one_line(command(name, cut), 1)


def test_a_folder_named_from_here_is_signed_as_well(release, keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ship.run(release, out=Path("out"), data=None, sign_key=keys / "key.pem")
    assert official(tmp_path / "out" / NAME, keys) == 0
    assert verify_release.run(Path("out") / NAME, public_key=keys / "pub.pem").facts.signature == "checked"


def test_a_failed_signature_leaves_the_earlier_release(release, keys, tmp_path, monkeypatch):
    ship.run(release, out=tmp_path, data=None, sign_key=keys / "key.pem")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(signing, "sign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ship.run(release, out=tmp_path, data=None, sign_key=keys / "other.pem")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("curve", ["secp256k1", "secp224r1"])
def test_a_curve_that_cannot_sign_is_refused_at_once(tmp_path, curve):
    key, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, stderr=-3)
    for check in (lambda: signing.private_key(key), lambda: signing._public_key(public)):
        with pytest.raises(UsageError, match=f"P-256 .*received {curve}"):
            check()


def test_names_with_quotes_are_named(copy, keys):
    flip(copy / "LICENSE", 3)
    odd = copy.rename(copy.with_name("it's"))
    with pytest.raises(CheckFailed, match="LICENSE: altered"):
        signing.verify(odd, keys / "pub.pem")


def test_an_archive_packed_by_tar_is_one_too(shipped, tmp_path):
    subprocess.run(["tar", "czf", tmp_path / "mine.tgz", NAME], cwd=shipped, check=True)
    assert verify_release.run(tmp_path / "mine.tgz").facts.verified


def test_what_a_hub_adds_is_said_not_to_be_looked_at(copy):
    (copy / ".gitattributes").write_text("*.onnx filter=lfs")
    assert "not looked at: .gitattributes" in command("verify-release", copy).stdout


def test_an_archive_is_named_not_where_it_was_unpacked(copy, tmp_path):
    flip(copy / "LICENSE", 3)
    (tmp_path / "altered.tar.gz").write_bytes(archives.pack(copy))
    line = one_line(command("deploy", tmp_path / "altered.tar.gz"), 1)
    assert f"{tmp_path}/altered.tar.gz: {NAME}: LICENSE: altered" in line
