"""The facts of every form of a model, from its checkpoint to its engine."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pipeline.records.devices import Gpu
from pipeline.records.facts import (
    Amount,
    ClassName,
    Count,
    Digests,
    Facts,
    FileName,
    ModelName,
    Name,
    Part,
    Positive,
    Reasons,
    Sha256,
    Share,
    Size,
    Words,
    Wrong,
)


class ModelCard(Part, frozen=True):
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
        if not all(-1 <= each <= 1 for each in self.mean):
            raise ValueError(f"expected means of pixels scaled to 0..1, received {self.mean}; divide by 255")
        if self.prepare == "digit" and self.input != [1, 28, 28]:
            raise ValueError(f'prepare="digit" makes images [1, 28, 28]: received a model for {self.input}')


class Reference(Part, frozen=True):
    """The answers that every later form is held against: with the labels, the wrong ones tell all of them."""

    name: Words
    digests: Digests
    n: Positive
    correct: Count
    wrong: Wrong

    def __post_init__(self) -> None:
        if self.correct != self.n - len(self.wrong) or any(int(index) >= self.n for index in self.wrong):
            raise ValueError(f"expected {self.n} answers: {self.correct} right, the others in `wrong`")


class Form(Facts, frozen=True):
    """What every form of a model carries down the chain."""

    model: ModelCard
    reference: Reference


class Layer(Part, frozen=True):
    """A layer of a network as PyTorch has it: its type, its output's shape with -1 for the batch, its parameters."""

    layer: Words
    output: Annotated[list[Annotated[int, Meta(ge=-1, le=2**31)]], Meta(max_length=8)]
    parameters: Count


Layers = Annotated[list[Layer], Meta(min_length=1, max_length=10_000)]


class Taught(Part, frozen=True):
    """The labels of a teacher that a network was trained with besides the images' own, and how much they counted."""

    file: FileName
    sha256: Sha256
    teacher: ModelName
    teacher_accuracy: Share
    weight: Share
    temperature: Amount


class Checkpoint(Form, frozen=True):
    """A trained network. `taught` is None if the images' own labels were all that it was trained with."""

    layers: Layers
    parameters: Positive
    batch_norms: Count
    train_accuracy: Share
    test_accuracy: Share
    taught: Taught | None = None


class Labels(Facts, frozen=True):
    """A teacher's answers for a model's training images; `agreeing` of them are the images' own labels."""

    model: ModelName
    teacher: ModelName
    teacher_accuracy: Share  # on what it was measured on, the test set unless images were held out
    images: Positive
    classes: Positive
    agreeing: Share


class Check(Facts, frozen=True):
    """What a model file holds."""

    model: ModelCard
    layers: Layers
    parameters: Positive
    batch_norms: Count
    operators: dict[Name, Positive]


class Graph(Form, frozen=True):
    """An ONNX file. `difference` is the largest to the form before it over the test set, by the largest logit."""

    opset: Positive
    ir_version: Positive
    operators: dict[Name, Positive]
    difference: Amount


class Unfolded(Graph, frozen=True):
    """A network as exported or adopted: BatchNorm and normalisation still in it. `adopted` names a file's own opset."""

    batch_norms: Count
    adopted: Positive | None = None


class Folded(Graph, frozen=True):
    """An ONNX file in float32 without BatchNorm: so many were folded, so many are left as Mul and Add."""

    batch_norms: Count
    batch_norms_left: Count


class Margins(Part, frozen=True):
    """How far weights and activations stay from float16's limits."""

    largest_activation: Amount
    overflow_margin: Amount
    weights: Count
    weights_to_zero: Count
    weights_below_smallest_normal: Count
    images: Count
    activations: Count
    activations_to_zero: Count


class Half(Graph, frozen=True):
    """An ONNX file with float16 weights and arithmetic."""

    margins: Margins


class QuantizedLayer(Part, frozen=True):
    """A layer that int8 was tried on, and the logits' mean squared error, relative, when it alone is in int8.

    That is measured only where some layers had to stay in float16.
    """

    name: Words
    int8: bool
    cost: Amount | None


class Quantized(Graph, frozen=True):
    """An ONNX file with int8 weights and activations, and how that was chosen on held-out training images."""

    method: Name
    methods: dict[Name, Count]  # right answers by each method, with every layer in int8
    layers: Annotated[list[QuantizedLayer], Meta(min_length=1, max_length=10_000)]
    scales: Positive
    weights: Positive
    calibrated_on: Positive
    held_out: Positive
    correct_before: Count
    correct: Count
    p: Share
    failures: Reasons


class EngineLayer(Part, omit_defaults=True, frozen=True):
    """A layer as TensorRT tells it: element types or data formats of its inputs and outputs, and its kernel's name."""

    name: Words
    type: Words
    inputs: list[Words]
    outputs: list[Words]
    kernel: Words = ""  # of a built engine
    falls_back: bool = False  # to the GPU, from a deep-learning accelerator that can't compute it


class SecondBuild(Part, frozen=True):
    """How a second build of the same file, with timings of its own, answers the test images compared with the first."""

    images: Positive
    differ: Count  # answers
    difference: Amount | None  # the largest of a logit, by the largest logit; None if one isn't finite
    same_bytes: bool

    def __str__(self) -> str:
        if self.same_bytes:
            return "the same bytes"
        answers = f"{self.differ:,} of {self.images:,} answers differ" if self.differ else "the same answers"
        within = "not finite" if self.difference is None else f"within {self.difference:.2g} of the largest"
        return f"{answers}, logits {within}"


class Engine(Form, frozen=True):
    """A TensorRT engine, with its parsed layers and, where a GPU was there, what the engine says of itself."""

    element: Name
    gpu: Gpu | None
    build_seconds: Amount
    layers: list[EngineLayer]
    inspected: list[EngineLayer] | None = None
    second: SecondBuild | None = None


class EngineOptions(Struct, frozen=True):
    """The options of an engine that decide whether it may be loaded."""

    runtime: Annotated[str, Meta(pattern=r"^tensorrt(-rtx)?\Z")]
    version: Annotated[str, Meta(pattern=r"^\d+\.\d+[\w.+]*\Z")]
    version_compatible: bool
    hardware_compatible: bool
    targets: Annotated[list[Name], Meta(max_length=100)] | None
    max_batch: Annotated[int, Meta(ge=1, lt=2**31)]
    dla: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
