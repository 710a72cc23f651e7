"""Check a release: digests, signature, chain and proof. Nothing in it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from pipeline import console
from pipeline.errors import CheckFailed, UsageError, reason
from pipeline.records import disk, kinds
from pipeline.records.manifest import Artifact
from pipeline.records.releases import About, ReleaseCheck
from pipeline.release import archives, contents, files, signing, triton

PublicKey = Annotated[Path | None, "PEM public key of the expected signer, obtained out of band."]
AllowUnverified = Annotated[bool, "Accept a release that is marked as unverified."]


def run(
    release: Path,
    *,
    public_key: PublicKey = None,
    identity: Annotated[str | None, "Identity of the expected signer with Sigstore, such as an e-mail address."] = None,
    issuer: Annotated[str | None, "The OpenID Connect issuer that vouched for --identity."] = None,
    allow_unverified: AllowUnverified = False,
) -> Artifact:
    """Check a release, a folder or its archive: every byte, who signed it, and that its proof is about these files.

    Raises CheckFailed, naming each file that was altered, added or taken away, or what isn't proven.
    """
    if bool(identity) != bool(issuer):
        raise UsageError("--identity and --issuer belong together: expected both or none")
    with archives.opened(release) as folder:
        sigstore = (identity, issuer) if identity and issuer else None
        facts = inspect(folder, public_key, sigstore, allow_unverified=allow_unverified)
    sha, size = (disk.digest(release), release.stat().st_size) if release.is_file() else (facts.sums_sha256, 0)
    return Artifact(None, kinds.kind(facts), sha, size, facts=facts)


def inspect(
    folder: Path,
    public_key: Path | None = None,
    sigstore: tuple[str, str] | None = None,
    *,
    allow_unverified: bool = False,
) -> ReleaseCheck:
    """Check a release's folder: its files, its signature (see `signing.verify`), its release.json, and its proof.

    Raises UsageError if the folder is not a release, CheckFailed if a check fails.
    """
    if not (folder / files.SUMS).is_file():
        hint = files.within(folder)
        raise UsageError(f"{folder}: has no {files.SUMS}: expected a release, as `pipeline ship` makes it{hint}")
    signers = [signer for signer in (public_key, sigstore) if signer]
    for signer in signers:
        with files.alone(folder) as release:  # refuses links, before a signature is checked through one
            signing.verify(release, signer)
    digests = files.check(folder)
    about = _about(folder)
    against = triton.against(folder, about.model) if about.format == "triton" else _against(folder, about)
    if against and about.verified:
        raise CheckFailed(f"{folder}: is marked as verified, but {'; '.join(against)}")
    if not about.verified and not allow_unverified:
        reasons = "; ".join(about.against)
        raise CheckFailed(f"{folder}: is marked as unverified: {reasons}; --allow-unverified accepts it")
    signature = "not checked" if (folder / files.SIGNATURE).is_file() else "none"
    return ReleaseCheck(
        model=about.model,
        version=about.version,
        format=about.format,
        verified=about.verified,
        against=about.against,
        files=len(digests),
        not_looked_at=files.passed_over(folder),
        sums_sha256=disk.digest(folder / files.SUMS),
        signature="checked" if signers else signature,
    )


def _about(folder: Path) -> About:
    try:
        return msgspec.json.decode((folder / files.ABOUT).read_bytes(), type=About)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckFailed(f"{folder / files.ABOUT}: is not what `pipeline ship` writes: {reason(error)}") from error


def _against(folder: Path, about: About) -> list[str]:
    """The reasons against a release on record. CheckFailed if release.json is about another model."""
    release = contents.gather(folder)
    stated, expected = f"{about.model} {about.version}", f"{release.model.name} {release.model.version}"
    if stated != expected:
        raise CheckFailed(f"{folder / files.ABOUT}: says {stated}: expected {expected}, as on record")
    return release.against


def show(check: Artifact) -> None:
    """Print the verdict in a line, and what was not checked."""
    facts = check.facts
    state = "verified" if facts.verified else f"UNVERIFIED: {'; '.join(facts.against)}"
    console.result(f"{facts.model} {facts.version}: {facts.files} files as listed, chain intact; {state}")
    if facts.not_looked_at:
        console.result(
            f"not checked: {', '.join(facts.not_looked_at)}: not of the release, added by a hub or a desktop"
        )
    if facts.signature == "checked":
        console.result("signature: valid")
    else:
        state = "not checked; --public-key checks it" if facts.signature == "not checked" else "none"
        console.result(f"signature: {state}. Digests alone show accidental changes, not who made the release")
