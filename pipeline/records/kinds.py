"""The facts of every kind of artifact, as types that also validate what is read from disk.

A record's digest shows alteration, not sense: whoever writes a record gives it a digest that fits. So what readers rely
on, names that become paths among it, is checked here, once, before anything uses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

# What is printed as it is has nothing that moves a cursor, hides or turns round what follows, or is half a character.
_UNPRINTED = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=100)]  # becomes part of paths
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*\Z", max_length=100)]
FileName = Annotated[str, Meta(pattern=rf"^[^/\\.{_UNPRINTED}][^/\\{_UNPRINTED}]*\Z", max_length=200)]
Words = Annotated[str, Meta(pattern=rf"^[^{_UNPRINTED}]*\Z", max_length=1000)]
Reason = Annotated[str, Meta(pattern=rf"^[^{_UNPRINTED}]+\Z", max_length=100_000)]
ClassName = Annotated[str, Meta(pattern=rf"^[^{_UNPRINTED},]+\Z", max_length=100)]
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


class Facts(Part):
    """What is known of an artifact, by kind. `failures` say which checks it did not pass."""

    failures: ClassVar[Sequence[str]] = ()


class ModelCard(Part):
    """What every form of a model has to know of it."""

    name: ModelName
    title: Words
    version: Name
    licence: Words
    data: Words  # the image set that it is trained on
    input: Annotated[list[Size], Meta(min_length=3, max_length=3)]  # channels, height, width
    input_meaning: Words
    classes: Annotated[list[ClassName], Meta(min_length=2, max_length=10_000)]
    mean: Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=1, max_length=4096)]
    std: Annotated[list[Annotated[float, Meta(ge=1e-12, le=1e6)]], Meta(min_length=1, max_length=4096)]
    gate: Share
    prepare: Annotated[str, Meta(pattern=r"^(digit|resize)\Z")] = "resize"

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.input[0]:
            raise ValueError(f"expected one mean and std per channel, {self.input[0]}")


class Reference(Part):
    """The answers that every later form is held against: with the labels, the wrong ones tell all of them."""

    name: Words
    digests: Digests
    n: Positive
    correct: Count
    wrong: Wrong


class Form(Facts):
    """What every form of a model carries down the chain."""

    model: ModelCard
    reference: Reference


class Layer(Part):
    """A layer of a network as PyTorch has it: its type, its output's shape with -1 for the batch, its parameters."""

    layer: Name
    output: Annotated[list[Annotated[int, Meta(ge=-1, le=2**31)]], Meta(max_length=8)]
    parameters: Count


class Checkpoint(Form):
    """A trained network."""

    layers: Annotated[list[Layer], Meta(min_length=1, max_length=10_000)]
    parameters: Positive
    batch_norms: Count
    train_accuracy: Share
    test_accuracy: Share


class Check(Facts):
    """What a model file holds."""

    model: ModelCard
    layers: list[Layer]
    parameters: Positive
    batch_norms: Count
    operators: dict[Name, Positive]


class Graph(Form):
    """An ONNX file. `difference` is the largest to the form before it over the test set, by the largest logit."""

    opset: Positive
    ir_version: Positive
    operators: dict[Name, Positive]
    difference: Amount


class Unfolded(Graph):
    """A network as exported or adopted: BatchNorm and normalisation still in it. `adopted` names a file's own opset."""

    batch_norms: Count
    adopted: Positive | None = None


class Folded(Graph):
    """An ONNX file in float32 without BatchNorm: so many were folded, so many are left as Mul and Add."""

    batch_norms: Count
    batch_norms_left: Count


class Margins(Part):
    """How far weights and activations stay from float16's limits."""

    largest_activation: Amount
    overflow_margin: Amount
    weights: Count
    weights_to_zero: Count
    weights_below_smallest_normal: Count
    images: Count
    activations: Count
    activations_to_zero: Count


class Half(Graph):
    """An ONNX file with float16 weights and arithmetic."""

    margins: Margins


class Gpu(Part):
    """A GPU: name, compute capability such as "8.7", CUDA version of its driver."""

    name: Words
    capability: Annotated[str, Meta(pattern=r"^\d+\.\d+\Z")]
    driver: Words


class EngineLayer(Part):
    """A layer as TensorRT tells it: element types or data formats of its inputs and outputs."""

    name: Words
    type: Words
    inputs: list[Words]
    outputs: list[Words]


class Engine(Form):
    """A TensorRT engine, with its parsed layers and, where a GPU was there, what the engine says of itself."""

    element: Name
    gpu: Gpu | None
    build_seconds: Amount
    layers: list[EngineLayer]
    inspected: list[EngineLayer] | None = None


class EngineOptions(Struct, frozen=True):
    """The options of an engine that decide whether it may be loaded."""

    runtime: Annotated[str, Meta(pattern=r"^tensorrt(-rtx)?\Z")]
    version: Annotated[str, Meta(pattern=r"^\d+\.\d+[\w.+]*\Z")]
    version_compatible: bool
    hardware_compatible: bool
    targets: Annotated[list[Name], Meta(max_length=100)] | None
    max_batch: Annotated[int, Meta(ge=1, lt=2**31)]


class TestSet(Part):
    """The labelled images that forms were measured on."""

    name: Words
    images: Positive
    digests: Digests


class Row(Part):
    """A form in a runtime: what was run, and what it really computes in."""

    form: FileName
    kind: Name
    sha256: Sha256
    runtime: Words
    arithmetic: Words


class Proven(Row):
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


class Verification(Facts):
    """The test set through every form, held against the gate and each other."""

    model: ModelName
    data: TestSet
    gate: Share
    compared_with: Words
    passed: bool
    failures: Reasons
    rows: Annotated[list[Proven], Meta(min_length=1, max_length=1000)]


class Timed(Row, omit_defaults=True):
    """A form's latency and throughput at a batch size. There are always enough requests for the median."""

    mode: Words
    batch: Positive
    requests: Positive
    microseconds: Percentiles
    images_per_second: Amount
    round_medians: list[Amount]
    variation: Amount
    gpu_microseconds: Percentiles | None = None
    watts: Amount | None = None
    millijoules_per_image: Amount | None = None

    def __post_init__(self) -> None:
        if "p50" not in self.microseconds:
            raise ValueError("expected the median, p50")


class Machine(Part, omit_defaults=True):
    """A machine that something was measured on."""

    processor: Words
    cores: Positive
    architecture: Words
    system: Words
    load: Amount | None = None
    load_after: Amount | None = None
    python: Words | None = None


class Board(Part):
    """A Jetson's state; what can't be read is None."""

    model: Words | None
    release: Words | None
    jetpack: Words | None
    power_mode: Words | None
    gpu_mhz: dict[Name, Amount] | None
    pinned: bool | None
    temperatures: dict[Words, Real]
    throttling: list[Words]
    watts: Real | None


class Speedup(Part):
    """How many times faster than the checkpoint: median and quartiles of the rounds' ratios."""

    form: FileName
    runtime: Words
    batch: Positive
    median: Amount
    quartiles: Bounds


class Latency(Facts):
    """Latency and throughput of forms on a machine."""

    machine: Machine
    board: list[Board]
    warnings: list[Words]
    threads: Positive
    quick: bool
    unstable: list[Words]
    rows: Annotated[list[Timed], Meta(min_length=1, max_length=10_000)]
    speedup: list[Speedup] | None


class History(Facts):
    """A training's figures by epoch, as CSV."""


class Picture(Facts):
    """A picture."""


class Study(Facts):
    """The accuracies, in percent, of many seeds of a recipe, and what they sum up to."""

    recipe: Words
    numbers: Numbers
    measured_on: Words
    n: Positive
    gate: Share
    accuracies: Annotated[list[Real], Meta(min_length=1)]
    mean: Real
    mean_interval: Bounds
    deviation: Amount | None
    least: Real
    most: Real
    share_over_gate: Share
    wilson: Bounds
    checkpoints: list[Sha256]
    versions: Versions
    machine: Machine


class Trial(Part):
    """A trial of a sweep."""

    lr: Real
    gamma: Real
    accuracy: Share
    epochs: Positive
    pruned: bool
    worker: Words


class Sweep(Facts):
    """Held-out accuracy by learning rate and gamma."""

    model: ModelName
    seed: Count
    hold_out: Positive
    limit: Positive | None
    epochs: Positive | None
    sampler: Words
    prune: bool
    lr: list[Real]
    gamma: list[Real]
    trials: Positive
    recipe: Numbers
    rows: Annotated[list[Trial], Meta(min_length=1)]
    best: Trial
    command: Words
    measured_on: Words


class About(Part):
    """release.json: what a release says of itself."""

    kind: Annotated[str, Meta(pattern=r"^release\Z")]
    model: ModelName
    version: Name
    format: Annotated[str, Meta(pattern=r"^(folder|triton)\Z")]
    verified: bool
    against: Reasons
    made_by: Words

    def __post_init__(self) -> None:
        if self.verified is not (not self.against):
            raise ValueError("expected it to be verified, or a reason against it")


class Release(Facts):
    """The archive of a release."""

    about: About
    folder: Words
    files: Positive


class ReleaseCheck(Facts):
    """What holds about a release."""

    model: ModelName
    version: Name
    format: Words
    verified: bool
    against: Reasons
    files: Positive
    not_looked_at: list[Words]
    sums_sha256: Sha256
    signature: Words


class OnnxRuntime(Part):
    """An installed ONNX Runtime."""

    version: Words
    providers: list[Words]


class Here(Facts):
    """What a machine is."""

    machine: Machine
    jetson: Board | None
    gpu: Gpu | None
    no_gpu: Words | None
    tensorrt: dict[Name, Words]
    onnxruntime: OnnxRuntime | None


class Ability(Part):
    """Something this project does, whether this machine can do it, and what to install if not."""

    what: Words
    ready: bool
    missing: list[Words]
    remedy: Words | None


class Doctor(Here):
    """What a machine is and can do."""

    able: list[Ability]


class Deployed(Proven):
    """A form as it was verified and timed on a device."""

    latency: list[Timed]


class DeviceReport(Here):
    """A release in use on a device."""

    release: ReleaseCheck | None
    model: ModelName
    passed: bool
    failures: Reasons
    no_engine: Words | None
    build_seconds: dict[FileName, Amount]
    data: TestSet
    gate: Share
    warnings: list[Words]
    rows: Annotated[list[Deployed], Meta(min_length=1)]


class Prediction(Part):
    """A model's answer to a picture."""

    image: str
    label: str | None
    prediction: str | None
    remark: str | None
    probabilities: dict[str, Share]


class Predictions(Facts, omit_defaults=True, kw_only=True):
    """A model's answers to pictures; accuracy over those with a label."""

    model: Words
    sha256: Sha256
    images: Count
    labelled: Count | None = None
    correct: Count | None = None
    accuracy: Share | None = None
    interval: Interval | None = None
    failures: list[str] = []
    rows: list[Prediction]


KINDS: dict[str, type[Facts]] = {
    "check": Check,
    "checkpoint": Checkpoint,
    "unfolded": Unfolded,
    "folded": Folded,
    "half": Half,
    "engine": Engine,
    "verification": Verification,
    "latency": Latency,
    "history": History,
    "study": Study,
    "sweep": Sweep,
    "picture": Picture,
    "release": Release,
    "release-check": ReleaseCheck,
    "device-report": DeviceReport,
    "doctor": Doctor,
    "predictions": Predictions,
}
REPORTS = {
    "verification",
    "latency",
    "study",
    "sweep",
    "device-report",
    "doctor",
    "predictions",
    "check",
}  # facts are the file
OPTIONS = {"engine": EngineOptions}  # of the other kinds, nothing relies on an option


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """An artifact's record, apart from its facts. `code` is empty where it isn't known what code made it."""

    kind: Name
    sha256: Sha256
    bytes: Count
    parents: Digests
    options: Options
    versions: Versions
    code: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    facts: dict[str, Any] | None = None  # a report's are in its file

    def __post_init__(self) -> None:
        _refuse_unprinted(self.options)


def _refuse_unprinted(value: Any) -> None:
    """ValueError for text in options that could move a cursor, and for numbers that are not finite."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for each in value:
            _refuse_unprinted(each)
    elif isinstance(value, str) and re.search(rf"[{_UNPRINTED}]", value):
        raise ValueError("expected text without control characters in the options")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected finite numbers in the options")


def kind(facts: Facts) -> str:
    """The kind of artifact that has such facts."""
    return next(name for name, each in KINDS.items() if type(facts) is each)


def facts(kind: str, values: Any) -> Facts:
    """The facts of an artifact from plain values. msgspec.ValidationError where they aren't as its kind's."""
    if kind not in KINDS:
        raise msgspec.ValidationError(f"Unknown kind {kind!r}")
    return msgspec.convert(values, KINDS[kind])


def plain(facts: Any) -> Any:
    """Facts as JSON types."""
    return msgspec.to_builtins(facts)


def is_file_name(name: str) -> bool:
    """Whether a name is a plain one, of a file beside its manifest."""
    try:
        msgspec.convert(name, FileName)
    except msgspec.ValidationError:
        return False
    return True
