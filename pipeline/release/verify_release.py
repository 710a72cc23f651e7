"""Check a release: digests, signature, chain and proof. Runs nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pipeline import console
from pipeline.errors import UsageError
from pipeline.records import disk, kinds
from pipeline.records.manifest import Artifact
from pipeline.release import archives, inspection
from pipeline.release.inspection import AllowUnverified, PublicKey


def run(
    release: Path,
    *,
    public_key: PublicKey = None,
    identity: Annotated[str | None, "Who should have signed with Sigstore, such as an e-mail address."] = None,
    issuer: Annotated[str | None, "The OpenID Connect issuer that vouched for --identity."] = None,
    allow_unverified: AllowUnverified = False,
) -> Artifact:
    """Check a release, a folder or its archive: every byte, who signed it, and that its proof is about these files.

    Raises CheckFailed, naming each file that was altered, added or taken away, or what isn't proven.
    """
    if bool(identity) != bool(issuer):
        raise UsageError("--identity and --issuer belong together: expected both or none")
    with archives.opened(release) as folder:
        facts = inspection.inspect(folder, public_key, identity, issuer)
    inspection.accept(release, facts, allow_unverified)
    sha, size = (disk.digest(release), release.stat().st_size) if release.is_file() else (facts.sums_sha256, 0)
    return Artifact(None, kinds.kind(facts), sha, size, facts=facts)


def show(check: Artifact) -> None:
    """The verdict in a line, and what was not looked at."""
    facts = check.facts
    state = "verified" if facts.verified else f"UNVERIFIED: {'; '.join(facts.against)}"
    console.result(f"{facts.model} {facts.version}: {facts.files} files as listed, chain whole; {state}")
    if facts.not_looked_at:
        console.result(f"not looked at: {', '.join(facts.not_looked_at)}, which a model hub's clone has")
    if facts.signature == "checked":
        console.result("signature: holds")
    else:
        why = "there is one; --public-key checks it" if facts.signature == "not checked" else "there is none"
        console.result(f"signature: not checked, {why}. Without it a digest shows accidents, not authorship")
