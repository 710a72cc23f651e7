"""The facts of machines, Jetsons among them, and of what they can do."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from pipeline.records.facts import Amount, Count, Facts, Name, Part, Positive, Real, Words


class Gpu(Part, omit_defaults=True, frozen=True):
    """A GPU: name, compute capability such as "8.7", its driver's CUDA version, whether it shares the host's memory."""

    name: Words
    capability: Annotated[str, Meta(pattern=r"^\d+\.\d+\Z")]
    driver: Words
    integrated: bool = False

    @property
    def target(self) -> str:
        """The compute capability as compilers name it, such as "sm87"."""
        return f"sm{self.capability.replace('.', '')}"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


class Machine(Part, omit_defaults=True, frozen=True):
    """A machine that something was measured on."""

    processor: Words
    cores: Positive
    architecture: Words
    system: Words
    load: Amount | None = None
    load_after: Amount | None = None
    python: Words | None = None


class Board(Part, omit_defaults=True, frozen=True):
    """A Jetson's state; what can't be read is None. Watts by rail; throttling events since it was started."""

    model: Words | None
    release: Words | None
    jetpack: Words | None
    power_mode: Words | None
    gpu_mhz: dict[Name, Amount] | None
    pinned: bool | None
    temperatures: dict[Words, Real]
    throttling: list[Words]
    watts: Real | None
    rails: dict[Words, Real] = field(default_factory=dict)
    events: dict[Name, Count] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.model or '?'}, JetPack {self.jetpack or '?'}, mode {self.power_mode or '?'}"


class OnnxRuntime(Part, frozen=True):
    """An installed ONNX Runtime."""

    version: Words
    providers: list[Words]


class Here(Facts, frozen=True):
    """What a machine is."""

    machine: Machine
    jetson: Board | None
    gpu: Gpu | None
    no_gpu: Words | None
    tensorrt: dict[Name, Words]
    onnxruntime: OnnxRuntime | None


class Ability(Part, frozen=True):
    """Something this project does, whether this machine can do it, and what to install if not."""

    what: Words
    ready: bool
    missing: list[Words]
    remedy: Words | None


class Doctor(Here, frozen=True):
    """What a machine is and can do."""

    able: list[Ability]
    faults: tuple[Words, ...] = ()  # of the TensorRT that is installed, as others have reported them
