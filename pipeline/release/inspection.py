"""What holds about a release: every byte, who signed it, and that its proof is about these files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from pipeline.errors import CheckFailed, reason
from pipeline.records import disk
from pipeline.records.releases import About, ReleaseCheck
from pipeline.release import contents, files, signing, triton

ABOUT = "release.json"

PublicKey = Annotated[Path | None, "PEM public key of the expected signer, obtained out of band."]
AllowUnverified = Annotated[bool, "Accept a release that is marked as unverified."]


def inspect(
    folder: Path, public_key: Path | None, identity: str | None = None, issuer: str | None = None
) -> ReleaseCheck:
    """Check a release's folder: its files, its signature, what it says of itself, and its proof, from the records."""
    files.expect_release(folder)
    files.names(folder)  # no links: what is checked is what lies here
    if public_key:
        signing.verify(folder, public_key)
    if identity and issuer:
        signing.verify_keyless(folder, identity, issuer)
    digests = files.check(folder)
    about = _about(folder)
    against = _against(folder, about) if about.format == "folder" else triton.against(folder, about.model)
    if against and about.verified:
        raise CheckFailed(f"{folder}: says that it is verified, but {'; '.join(against)}")
    signature = "not checked" if (folder / files.SIGNATURE).is_file() else "none"
    return ReleaseCheck(
        model=about.model,
        version=about.version,
        format=about.format,
        verified=about.verified,
        against=about.against,
        files=len(digests),
        not_looked_at=sorted(path.name for path in folder.iterdir() if path.name in files.IGNORED),
        sums_sha256=disk.digest(folder / files.SUMS),
        signature="checked" if public_key or identity else signature,
    )


def accept(release: Path, facts: ReleaseCheck, allow_unverified: bool) -> None:
    """CheckFailed if a release says of itself that nothing proves it, and that isn't accepted."""
    if not facts.verified and not allow_unverified:
        raise CheckFailed(
            f"{release}: is marked as unverified: {'; '.join(facts.against)}; --allow-unverified accepts it"
        )


def _about(folder: Path) -> About:
    try:
        return msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CheckFailed(f"{folder / ABOUT}: is not what `pipeline ship` writes: {reason(error)}") from error


def _against(folder: Path, about: About) -> list[str]:
    """What stands against a release by its records. CheckFailed if it says that it is another model than they say."""
    found = contents.gather(folder)
    for name, said, received in (
        ("model", about.model, found.model.name),
        ("version", about.version, found.model.version),
    ):
        if said != received:
            raise CheckFailed(f"{folder / ABOUT}: says {name} {said}: expected {received}, as on record")
    return found.against
