"""Sign a release's folder and check its signature: OpenSSF `model-signing`, with a key or with Sigstore."""

from __future__ import annotations

import base64
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import CheckFailed, UsageError
from pipeline.machine import extras as installs
from pipeline.release.files import SIGNATURE

NEEDS = ("model_signing", "OpenSSL")
# By the names that OpenSSL and cryptography have for them; model-signing knows no others.
CURVES = {"secp256r1": "P-256 (prime256v1)", "secp384r1": "P-384", "secp521r1": "P-521"}


def sign(folder: Path, key: Path | None, earlier: Path) -> None:
    """Sign every file of a folder with an elliptic-curve private key (PEM), or with Sigstore if that is None.

    An `earlier` signature by this key is kept while it holds, since each signing gives other bytes. Sigstore gives a
    certificate for one's identity (a browser opens, or it takes CI's token) and adds an entry to its public log.
    """
    import model_signing

    if key and earlier.is_file() and _still_signs(folder, key, earlier):
        return
    # Relative to the folder that is signed, whatever path it has from here.
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[Path(SIGNATURE)], ignore_git_paths=True)
    config = model_signing.signing.Config().set_hashing_config(hashing)
    if key:
        config.use_elliptic_key_signer(private_key=key).sign(folder, folder / SIGNATURE)
        return
    try:
        config.use_sigstore_signer().sign(folder, folder / SIGNATURE)
    except Exception as error:  # whatever network, browser and identity provider raise
        line = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--sigstore: Sigstore can't be reached or gave no identity; --sign-key needs none: {line}"
        ) from error


def _still_signs(folder: Path, key: Path, earlier: Path) -> bool:
    """Copy an earlier signature into a folder, and return whether it holds there, by the public half of a key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = read_key(key, private=True).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    shutil.copy(earlier, folder / SIGNATURE)
    with tempfile.TemporaryDirectory() as scratch:
        pem = Path(scratch) / "pub.pem"
        pem.write_bytes(public)
        try:
            verify(folder, pem)
        except CheckFailed:
            return False
    return True


def verify(folder: Path, signer: Path | tuple[str, str]) -> None:
    """Check the signature of every file of a folder. CheckFailed names what differs.

    `signer` is a public key (PEM) or, for Sigstore, an identity and the OpenID Connect issuer that vouched for it.
    """
    installs.require("a signature", NEEDS)
    import model_signing

    signature = _signature(folder)
    if isinstance(signer, Path):
        read_key(signer, private=False)
    try:
        config = model_signing.verifying.Config()
        if isinstance(signer, Path):
            config.use_elliptic_key_verifier(public_key=signer)
        else:
            config.use_sigstore_verifier(identity=signer[0], oidc_issuer=signer[1])
        config.verify(folder, signature)
    except Exception as error:  # a signature that isn't one fails in the libraries below in many ways
        raise _refused(folder, signer if isinstance(signer, Path) else signer[0], error) from error


def _signature(folder: Path) -> Path:
    """The signature in a folder. CheckFailed for any bytes that model-signing would not write.

    Decoders of JSON and base64 skip stray bytes, so what they read is encoded again and compared.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        raise CheckFailed(f"{folder}: is not signed: expected {SIGNATURE} in it")
    try:
        raw = path.read_bytes()
        bundle = json.loads(raw)
        envelope = bundle["dsseEnvelope"]
        texts = [envelope["payload"], *(each["sig"] for each in envelope["signatures"])]
        intact = json.dumps(bundle, separators=(",", ":"), ensure_ascii=False).encode() == raw
        intact = intact and all(base64.b64encode(base64.b64decode(text)).decode() == text for text in texts)
    except (ValueError, TypeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise CheckFailed(f"{path}: altered: expected a signature as model-signing writes it")
    return path


def _refused(folder: Path, signer: Path | str, error: Exception) -> CheckFailed:
    """In a line: the files that aren't as signed, or why there is no such signature."""
    text = " ".join(str(error).split()).replace("\\'", "'")  # a list of messages, as Python writes one
    altered = [f"{name}: altered" for name in re.findall(r"Hash mismatch for '(.*?)': Expected", text)]
    for begin, what in (("Missing files in", "missing"), ("Extra files found in", "not signed")):
        for names in re.findall(rf"{begin} model '.*?': (.*?)['\"][,\]]", text):
            altered += [f"{name}: {what}" for name in names.split(", ")]
    if altered:
        return CheckFailed(f"{folder}: {'; '.join(altered)}: expected what was signed by {signer}")
    return CheckFailed(f"{folder / SIGNATURE}: expected a signature by {signer}: {text[:200] or type(error).__name__}")


def read_key(path: Path, *, private: bool) -> Any:
    """The elliptic-curve key in a PEM file. UsageError, which says how to make one, if it has none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        pem = path.read_bytes()
        key: Any = serialization.load_pem_private_key(pem, None) if private else serialization.load_pem_public_key(pem)
        received = key.curve.name if hasattr(key, "curve") else type(key).__name__
        if received in CURVES:
            return key
    except OSError as error:
        received = error.strerror
    except TypeError:  # as cryptography says that there is a password
        received = f"an encrypted one (openssl ec -in {path} -out PLAIN.pem)"
    except (ValueError, UnsupportedAlgorithm):
        block = re.search(rb"-----BEGIN ([A-Z ]+)-----", pem)
        received = block[1].decode().lower() if block else "something else"
    option, kind, make = "--public-key", "public", "openssl ec -in PRIVATE.pem -pubout -out NEW.pem"
    if private:
        option, kind, make = "--sign-key", "private", "openssl ecparam -name prime256v1 -genkey -noout -out NEW.pem"
    expected = f"a {kind} key in PEM, on {' or '.join(CURVES.values())}"
    raise UsageError(f"{option} {path}: expected {expected}, received {received}; make one: {make}")
