"""What the facts of all kinds are made of: texts, names and numbers within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

# What is printed as it is has nothing that moves a cursor, hides or turns round what follows, or is half a character.
UNPRINTED = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=100)]  # becomes part of paths
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*\Z", max_length=100)]
FileName = Annotated[str, Meta(pattern=rf"^[^/\\.{UNPRINTED}][^/\\{UNPRINTED}]*\Z", max_length=200)]
Words = Annotated[str, Meta(pattern=rf"^[^{UNPRINTED}]*\Z", max_length=1000)]
Reason = Annotated[str, Meta(pattern=rf"^[^{UNPRINTED}]+\Z", max_length=100_000)]
ClassName = Annotated[str, Meta(pattern=rf"^[^{UNPRINTED},]+\Z", max_length=100)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=10**15)]
Positive = Annotated[int, Meta(ge=1, le=10**15)]
Size = Annotated[int, Meta(ge=1, le=4096)]
Real = Annotated[float, Meta(ge=-1e300, le=1e300)]
Amount = Annotated[float, Meta(ge=0, le=1e300)]
Share = Annotated[float, Meta(ge=0, le=1)]
Interval = Annotated[list[Share], Meta(min_length=2, max_length=2)]
Bounds = Annotated[list[Real], Meta(min_length=2, max_length=2)]
Reasons = Annotated[list[Reason], Meta(max_length=1000)]
Digests = dict[FileName, Sha256]
Wrong = dict[Annotated[str, Meta(pattern=r"^\d{1,12}\Z")], Annotated[int, Meta(ge=0, le=10_000)]]
Percentiles = dict[Annotated[str, Meta(pattern=r"^p\d+(\.\d+)?\Z")], Annotated[float, Meta(ge=1e-12, le=1e300)]]
# Plain types: msgspec 0.22 frees memory twice where a union has constrained types at several depths.
Scalar = bool | int | float | str | None
Options = dict[Name, Scalar | list[Scalar] | dict[FileName, Scalar]]
Versions = dict[Name, Words]
Numbers = dict[Name, Scalar]


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of some facts: immutable, with known fields alone."""


class Facts(Part, frozen=True):
    """What is known of an artifact, by kind."""

    @property
    def failed(self) -> Sequence[str]:
        """The checks that it did not pass, one line each."""
        return getattr(self, "failures", ())
