"""A release in, whether it is whole, ours and proven out: digests, signature, chain and proof. Runs nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pipeline import artifact, console
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed, UsageError
from pipeline.release import contents, files, signing

KIND = "release-check"
ABOUT = "release.json"

PublicKey = Annotated[Path | None, "Public key (PEM), had from elsewhere, of whoever should have signed."]


def run(
    release: Path,
    *,
    public_key: PublicKey = None,
    identity: Annotated[str | None, "Who should have signed with Sigstore, such as an e-mail address."] = None,
    issuer: Annotated[str | None, "The OpenID Connect issuer that vouched for --identity."] = None,
    allow_unverified: Annotated[bool, "Accept a release that says of itself that it is unverified."] = False,
) -> Artifact:
    """Check a release, a folder or its archive: every byte, who signed it, and that its proof is about these files.

    Raises CheckFailed, naming each file that was altered, added or taken away, or what isn't proven.
    """
    if bool(identity) != bool(issuer):
        raise UsageError("--identity and --issuer belong together: expected both or none")
    with files.opened(release) as folder:
        facts = inspect(folder, public_key, identity, issuer)
    if not facts["verified"] and not allow_unverified:
        raise CheckFailed(
            f"{release}: is marked as unverified: {'; '.join(facts['against'])}; --allow-unverified accepts it"
        )
    sha, size = (artifact.digest(release), release.stat().st_size) if release.is_file() else (facts["sums_sha256"], 0)
    return Artifact(None, KIND, sha, size, facts=facts)


def inspect(
    folder: Path, public_key: Path | None, identity: str | None = None, issuer: str | None = None
) -> dict[str, Any]:
    """What holds about a release's folder: its files, who signed, what it says of itself, proven again from records."""
    digests = files.check(folder)
    if public_key:
        signing.verify(folder, public_key)
    if identity and issuer:
        signing.verify_keyless(folder, identity, issuer)
    about = _about(folder)
    if about["format"] == "folder":
        against = contents.gather(folder).against
        if against and about["verified"]:
            raise CheckFailed(f"{folder}: says that it is verified, but {'; '.join(against)}")
    return {
        **{name: about[name] for name in ("model", "version", "format", "verified", "against")},
        "files": len(digests),
        "sums_sha256": artifact.digest(folder / files.SUMS),
        "signature": "checked"
        if public_key or identity
        else "not checked"
        if (folder / files.SIGNATURE).is_file()
        else "none",
    }


def _about(folder: Path) -> dict[str, Any]:
    wrong = CheckFailed(f"{folder / ABOUT}: expected what `pipeline ship` says of a release")
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        if not {"model", "version", "format", "verified", "against"} <= about.keys():
            raise wrong
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise wrong from error
    return about


def show(check: Artifact) -> None:
    """The verdict in a line, and what was not looked at."""
    facts = check.facts
    state = "verified" if facts["verified"] else f"UNVERIFIED: {'; '.join(facts['against'])}"
    console.result(f"{facts['model']} {facts['version']}: {facts['files']} files as listed, chain whole; {state}")
    if facts["signature"] == "checked":
        console.result("signature: holds")
    else:
        why = "there is one; --public-key checks it" if facts["signature"] == "not checked" else "there is none"
        console.result(f"signature: not checked, {why}. Without it a digest shows accidents, not authorship")
