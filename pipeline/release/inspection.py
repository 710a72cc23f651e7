"""A release's folder in, what holds about it out: every byte, who signed, and that its proof is about these files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pipeline import artifact
from pipeline.errors import CheckFailed
from pipeline.release import contents, files, signing, triton

ABOUT = "release.json"
FORMATS = ("folder", "triton")

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
    against = contents.gather(folder).against if about["format"] == "folder" else triton.against(folder)
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
    wrong = CheckFailed(f"{folder / ABOUT}: expected what `pipeline ship` says of a release")
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        texts = all(isinstance(about[name], str) for name in ("model", "version"))
        reasons = isinstance(about["against"], list) and all(isinstance(each, str) for each in about["against"])
        if not (texts and reasons and about["format"] in FORMATS and about["verified"] is (not about["against"])):
            raise wrong
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise wrong from error
    return about
