"""Sign a release's folder and check its signature: OpenSSF `model-signing`, with a key or keyless."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import CheckFailed, UsageError
from pipeline.machine import extras as installs
from pipeline.release.files import SIGNATURE

# By the names that OpenSSL and cryptography have for them; model-signing knows no others.
CURVES = {"secp256r1": "P-256 (prime256v1)", "secp384r1": "P-384", "secp521r1": "P-521"}


def needed() -> None:
    """UsageError, before any work is done, if signatures can't be made or checked here."""
    installs.require("a signature", ["model_signing", "OpenSSL"])


def sign(folder: Path, key: Path) -> Path:
    """Sign every file of a folder with an elliptic-curve private key (PEM). UsageError if that is none."""
    needed()
    import model_signing

    private_key(key)
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)
    return folder / SIGNATURE


def sign_keyless(folder: Path) -> Path:
    """Sign with Sigstore: a certificate for one's identity (a browser opens, or CI's token), in its public log."""
    needed()
    import model_signing

    try:
        config = model_signing.signing.Config().use_sigstore_signer()
        config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)
    except Exception as error:  # whatever network, browser and identity provider come up with
        line = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--sigstore: Sigstore can't be reached or gave no identity; --sign-key needs none: {line}"
        ) from error
    return folder / SIGNATURE


def verify(folder: Path, public_key: Path) -> None:
    """Check the signature of every file of a folder. CheckFailed names what differs; nothing is trusted before that."""
    needed()
    import model_signing

    signature = _signature(folder)
    _public_key(public_key)
    try:
        model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(folder, signature)
    except Exception as error:  # a signature that isn't one fails in the libraries below in many ways
        raise _refused(folder, str(public_key), error) from error


def verify_keyless(folder: Path, identity: str, issuer: str) -> None:
    """Check a Sigstore signature: made by this identity, which this OpenID Connect issuer vouched for."""
    needed()
    import model_signing

    signature = _signature(folder)
    try:
        config = model_signing.verifying.Config().use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
        config.verify(folder, signature)
    except Exception as error:
        raise _refused(folder, identity, error) from error


def _refused(folder: Path, whom: str, error: Exception) -> CheckFailed:
    """In a line: the files that aren't as signed, or why there is no such signature."""
    text = " ".join(str(error).split()).replace("\\'", "'")  # a list of messages, as Python writes one
    altered = [f"{name}: altered" for name in re.findall(r"Hash mismatch for '(.*?)': Expected", text)]
    for begin, what in (("Missing files in", "missing"), ("Extra files found in", "not signed")):
        for names in re.findall(rf"{begin} model '.*?': (.*?)['\"][,\]]", text):
            altered += [f"{name}: {what}" for name in names.split(", ")]
    if altered:
        return CheckFailed(f"{folder}: {'; '.join(altered)}: expected what was signed by {whom}")
    return CheckFailed(f"{folder / SIGNATURE}: expected a signature by {whom}: {text[:200] or type(error).__name__}")


def private_key(path: Path) -> Any:
    """The elliptic-curve key in a PEM file. UsageError, which says how to make one, if there is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    how = "openssl ecparam -name prime256v1 -genkey -noout -out NEW.pem"
    pem = _pem("--sign-key", path, f"; make one: {how}")
    try:
        key = load_pem_private_key(pem, None)
    except TypeError as error:  # as cryptography says that there is a password
        raise UsageError(
            f"--sign-key {path}: is encrypted: expected it without a password: openssl ec -in {path} -out PLAIN.pem"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        received = "received a public key" if b"PUBLIC KEY" in pem else "received something else"
        raise UsageError(
            f"--sign-key {path}: expected a private elliptic-curve key in PEM, {received}; make one: {how}"
        ) from error
    _expect_curve("--sign-key", path, key)
    return key


def _pem(option: str, path: Path, hint: str = "") -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}{hint}") from error


def _expect_curve(option: str, path: Path, key: Any) -> None:
    """UsageError if model-signing has no signature by this kind of key."""
    curve = getattr(key, "curve", None)
    if getattr(curve, "name", None) not in CURVES:
        received = curve.name if curve else type(key).__name__
        raise UsageError(
            f"{option} {path}: expected an elliptic-curve key on {' or '.join(CURVES.values())}, received {received}"
        )


def still_signs(folder: Path, signature: bytes, key: Path) -> bool:
    """Whether an earlier signature by this key holds for a folder: it is kept then, since each signing gives others."""
    import model_signing
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = private_key(key).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with tempfile.TemporaryDirectory() as scratch:
        kept, pem = Path(scratch) / SIGNATURE, Path(scratch) / "pub.pem"
        kept.write_bytes(signature)
        pem.write_bytes(public)
        try:
            _canonical(kept)
            model_signing.verifying.Config().use_elliptic_key_verifier(public_key=pem).verify(folder, kept)
        except Exception:
            return False
    return True


def _hashing() -> Any:
    import model_signing

    # Relative to the folder that is signed, whatever that is called from here.
    return model_signing.hashing.Config().set_ignored_paths(paths=[Path(SIGNATURE)], ignore_git_paths=True)


def _signature(folder: Path) -> Path:
    if not (folder / SIGNATURE).is_file():
        raise CheckFailed(f"{folder}: is not signed: expected {SIGNATURE} in it")
    _canonical(folder / SIGNATURE)
    return folder / SIGNATURE


def _canonical(path: Path) -> None:
    """Decoders of JSON and base64 pass over stray bytes: expected is what model-signing writes, without any."""
    altered = CheckFailed(f"{path}: altered: is not a signature as it was written")
    try:
        raw = path.read_bytes()
        bundle = json.loads(raw)
        if json.dumps(bundle, separators=(",", ":"), ensure_ascii=False).encode() != raw:
            raise altered
        envelope = bundle["dsseEnvelope"]
        for text in (envelope["payload"], *(each["sig"] for each in envelope["signatures"])):
            if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
                raise altered
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise altered from error


def _public_key(path: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = _pem("--public-key", path, ": expected a public key in PEM")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "received something else"
        if b"PRIVATE KEY" in pem:
            hint = f"received a private key; its public half: openssl ec -in {path} -pubout -out pub.pem"
        raise UsageError(f"--public-key {path}: expected a public key in PEM, {hint}") from error
    _expect_curve("--public-key", path, key)
