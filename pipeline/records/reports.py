"""The facts of what was measured of a model: verifications, certificates, latencies and predictions."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from pipeline.records.devices import Board, Machine
from pipeline.records.facts import (
    Amount,
    Bounds,
    Count,
    Digests,
    Facts,
    FileName,
    Interval,
    ModelName,
    Name,
    Part,
    Percentiles,
    Positive,
    Real,
    Reasons,
    Sha256,
    Share,
    Words,
    Wrong,
)


class LabelledImages(Part, frozen=True):
    """The labelled images that forms were measured on."""

    name: Words
    images: Positive
    digests: Digests


class Row(Part, frozen=True):
    """A form in a runtime: what was run, and what it really computes in."""

    form: FileName
    kind: Name
    sha256: Sha256
    runtime: Words
    arithmetic: Words


class Proven(Row, frozen=True):
    """A form's score on a test set, and how its answers differ from the reference's."""

    bytes: Count
    correct: Count
    accuracy: Share
    interval: Interval
    finite: bool
    differ: Count
    worse: Count
    better: Count
    mcnemar_p: Share
    largest_logit_difference: Amount | None
    wrong: Wrong
    parent: FileName | None
    parent_p: Share


class Certified(Part, frozen=True):
    """Of the `images` tried, those whose answer no execution can change; the accuracies are of the whole set."""

    form: FileName
    sha256: Sha256
    execution: Name
    images: Positive
    certified: Count
    right: Count
    at_least: Share
    at_most: Share
    median: Amount  # of the bounds on the lead over the runner-up, in logits
    p99: Amount


class Certificate(Facts, frozen=True):
    """What is proven of a float16 file on a test set; the operators that are not covered; images left undecided."""

    model: ModelName
    data: LabelledImages
    unknown: list[Words]
    rows: Annotated[list[Certified], Meta(max_length=100)]
    undecided: dict[Name, list[Count]]


class Verification(Facts, omit_defaults=True, frozen=True):
    """The test set through every form, held against the gate and each other; and what is proven of the float16 one."""

    model: ModelName
    data: LabelledImages
    gate: Share
    compared_with: Words
    passed: bool
    failures: Reasons
    rows: Annotated[list[Proven], Meta(min_length=1, max_length=1000)]
    certified: list[Certified] = field(default_factory=list)


class Estimate(Part, omit_defaults=True, frozen=True):
    """A percentile of all latencies, estimated from above by MLPerf's early stopping; none of too few requests."""

    percent: Real
    confidence: Share
    needed: Positive
    made: Positive
    discarded: Count | None = None
    microseconds: Amount | None = None


class Timed(Row, omit_defaults=True, frozen=True):
    """A form's latency and throughput at a batch size. There are always enough requests for the median.

    `watts` and `rails` are what the board took meanwhile, `millijoules_per_image` what an image took above idle.
    `images_per_second` is the median of the windows, `spread` the range of the windows by their median.
    """

    mode: Words
    batch: Positive
    requests: Positive
    microseconds: Percentiles
    images_per_second: Amount
    round_medians: list[Amount]
    windows: list[Amount]
    spread: Amount
    estimates: list[Estimate] = field(default_factory=list)
    gpu_microseconds: Percentiles | None = None
    watts: Amount | None = None
    rails: dict[Words, Real] = field(default_factory=dict)
    millijoules_per_image: Amount | None = None

    def __post_init__(self) -> None:
        if "p50" not in self.microseconds:
            raise ValueError("expected the median, p50")


class Speedup(Part, omit_defaults=True, frozen=True):
    """How many times faster than the checkpoint: median and quartiles of the rounds' ratios."""

    form: FileName
    runtime: Words
    batch: Positive
    median: Amount
    quartiles: Bounds
    mode: Words = ""


class Trtexec(Part, frozen=True):
    """The GPU's microseconds for an engine as a CUDA graph, by trtexec and as measured here."""

    form: FileName
    batch: Positive
    flags: list[Words]
    trtexec: Percentiles
    here: Percentiles


class Latency(Facts, omit_defaults=True, frozen=True):
    """Latency and throughput of forms on a machine; of a Jetson, the watts of its rails before, and its warm-up."""

    machine: Machine
    board: list[Board]
    warnings: list[Words]
    threads: Positive
    quick: bool
    unstable: list[Words]
    rows: Annotated[list[Timed], Meta(min_length=1, max_length=10_000)]
    speedup: list[Speedup] | None
    trtexec: list[Trtexec] = field(default_factory=list)
    idle: dict[Words, Real] = field(default_factory=dict)
    warm_up_seconds: Amount | None = None
    failures: Reasons = field(default_factory=list)


class History(Facts, frozen=True):
    """A training's figures by epoch, as CSV."""


class Picture(Facts, frozen=True):
    """A picture."""


class Prediction(Part, frozen=True):
    """A model's answer to a picture."""

    image: str
    label: str | None
    prediction: str | None
    remark: str | None
    probabilities: dict[str, Share]
    box: Annotated[list[int], Meta(min_length=4, max_length=4)] | None = None  # left, top, right, bottom, of a digit


class Predictions(Facts, omit_defaults=True, kw_only=True, frozen=True):
    """A model's answers to pictures; accuracy over those with a label."""

    model: Words
    sha256: Sha256
    images: Count
    labelled: Count | None = None
    correct: Count | None = None
    accuracy: Share | None = None
    interval: Interval | None = None
    failures: list[str] = []  # noqa: RUF012 - msgspec copies it
    rows: list[Prediction]
