"""A release's folder in, what holds about it out: every byte, who signed, and that its proof is about these files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pipeline import artifact, schema
from pipeline.errors import CheckFailed
from pipeline.release import contents, files, signing, triton

ABOUT = "release.json"

PublicKey = Annotated[Path | None, "Public key (PEM), had from elsewhere, of whoever should have signed."]
AllowUnverified = Annotated[bool, "Accept a release that says of itself that it is unverified."]


def inspect(
    folder: Path, public_key: Path | None, identity: str | None = None, issuer: str | None = None
) -> dict[str, Any]:
    """What holds about a release's folder: its files, who signed, what it says of itself, proven again from records."""
    files.expect_release(folder)
    files.names(folder)  # no links: what is checked is what lies here
    if public_key:
        signing.verify(folder, public_key)
    if identity and issuer:
        signing.verify_keyless(folder, identity, issuer)
    digests = files.check(folder)
    about = _about(folder)
    against = _against(folder, about) if about["format"] == "folder" else triton.against(folder, about["model"])
    if against and about["verified"]:
        raise CheckFailed(f"{folder}: says that it is verified, but {'; '.join(against)}")
    return {
        **{name: about[name] for name in ("model", "version", "format", "verified", "against")},
        "files": len(digests),
        "not_looked_at": sorted(path.name for path in folder.iterdir() if path.name in files.IGNORED),
        "sums_sha256": artifact.digest(folder / files.SUMS),
        "signature": "checked"
        if public_key or identity
        else "not checked"
        if (folder / files.SIGNATURE).is_file()
        else "none",
    }


def accept(release: Path, facts: dict[str, Any], allow_unverified: bool) -> None:
    """CheckFailed if a release says of itself that nothing proves it, and that isn't accepted."""
    if not facts["verified"] and not allow_unverified:
        raise CheckFailed(
            f"{release}: is marked as unverified: {'; '.join(facts['against'])}; --allow-unverified accepts it"
        )


def _about(folder: Path) -> dict[str, Any]:
    wrong = f"{folder / ABOUT}: expected what `pipeline ship` says of a release"
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckFailed(wrong) from error
    if (part := schema.first_wrong(schema.RELEASE, about, "release")) is not None:
        raise CheckFailed(f"{wrong}: {part} isn't as in one")
    if about["verified"] is not (not about["against"]):
        raise CheckFailed(f"{wrong}: it is verified or something stands against it")
    return about


def _against(folder: Path, about: dict[str, Any]) -> list[str]:
    """What stands against a release by its records. CheckFailed if it says that it is another model than they say."""
    found = contents.gather(folder)
    for name, received in (("model", found.model["name"]), ("version", found.model["version"])):
        if about[name] != received:
            raise CheckFailed(f"{folder / ABOUT}: says {name} {about[name]}: expected {received}, as on record")
    return found.against
