"""The NVIDIA GPU through `cuda.bindings`, without torch: what it is, memory, one stream, graphs, times in seconds."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.errors import CheckFailed, UsageError

INSTALL = "pip install 'cuda-bindings<13' with JetPack 6 (CUDA 12), 'cuda-bindings>=13' with JetPack 7 (CUDA 13)"
PACKAGES = ("cuda-bindings",)


@dataclass(frozen=True)
class Gpu:
    """A GPU's name, its compute capability such as "8.7", and the CUDA versions of its driver and of the runtime."""

    name: str
    capability: str
    driver: str
    runtime: str

    @property
    def target(self) -> str:
        """The compute capability as compilers name it, such as "sm87"."""
        return f"sm{self.capability.replace('.', '')}"

    def facts(self) -> dict[str, str]:
        """For a record: JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def gpu() -> Gpu:
    """The first GPU. UsageError, with the reason, if there is none or `cuda.bindings` isn't installed."""
    cuda = _library()
    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess or not count:
        driverless = cuda.cudaDriverGetVersion()[1] == 0
        reason = "no driver is loaded" if driverless else cuda.cudaGetErrorString(error)[1].decode()
        raise UsageError(f"no NVIDIA GPU here that CUDA can use: {reason}")
    properties = _ok(cuda, cuda.cudaGetDeviceProperties(0))
    driver, runtime = _ok(cuda, cuda.cudaDriverGetVersion()), _ok(cuda, cuda.cudaRuntimeGetVersion())
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}", _dotted(driver), _dotted(runtime))


class Stream(contextlib.ExitStack):
    """One CUDA stream and what was allocated for it; leaving the context frees it all, the latest first."""

    def __init__(self) -> None:
        super().__init__()
        self._cuda = _library()
        self.handle = self._do("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self.callback(self._cuda.cudaStreamDestroy, self.handle)
        self._events = [self._do("cudaEventCreate") for _ in range(2)]
        for event in self._events:
            self.callback(self._cuda.cudaEventDestroy, event)

    def __exit__(self, *failure: Any) -> bool | None:
        self._cuda.cudaStreamSynchronize(self.handle)  # nothing is freed while work is under way
        return super().__exit__(*failure)

    def pinned(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """A zeroed array in page-locked host memory, which the GPU copies from and to by itself."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._do("cudaMallocHost", size)
        self.callback(self._cuda.cudaFreeHost, address)
        array = np.frombuffer((ctypes.c_ubyte * size).from_address(int(address)), dtype).reshape(shape)
        array[...] = 0
        return array

    def device(self, size: int) -> int:
        """The address of `size` bytes on the GPU, uninitialised."""
        address = self._do("cudaMalloc", size)
        self.callback(self._cuda.cudaFree, address)
        return int(address)

    def upload(self, device: int, host: np.ndarray) -> None:
        """Enqueue a copy from a pinned array to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, kind, self.handle)

    def download(self, host: np.ndarray, device: int) -> None:
        """Enqueue a copy from the GPU into a pinned array."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, kind, self.handle)

    def captured(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts on the stream, as a CUDA graph: a function that puts it there with one call.

        `enqueue` must have run before: the first time, a library may allocate, which no graph can hold.
        """
        cuda = self._cuda
        self._do("cudaStreamBeginCapture", self.handle, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        finally:
            error, graph = cuda.cudaStreamEndCapture(self.handle)
        _ok(cuda, (error,))
        launchable = self._do("cudaGraphInstantiate", graph, 0)
        self._do("cudaGraphDestroy", graph)
        self.callback(cuda.cudaGraphExecDestroy, launchable)
        launch, handle, success = cuda.cudaGraphLaunch, self.handle, cuda.cudaError_t.cudaSuccess

        def replay() -> None:
            (error,) = launch(launchable, handle)
            if error != success:
                _ok(cuda, (error,))

        return replay

    def synchronize(self) -> None:
        """Wait until all that was put on the stream is done."""
        self._do("cudaStreamSynchronize", self.handle)

    def seconds(self, enqueue: Callable[[], None]) -> float:
        """How long the GPU takes for what `enqueue` puts on the stream, by events; to about half a microsecond."""
        before, after = self._events
        self._do("cudaEventRecord", before, self.handle)
        enqueue()
        self._do("cudaEventRecord", after, self.handle)
        self.synchronize()
        return self._do("cudaEventElapsedTime", before, after) / 1000

    def _do(self, name: str, *arguments: Any) -> Any:
        return _ok(self._cuda, getattr(self._cuda, name)(*arguments))


def _library() -> Any:
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError) as error:  # the latter where a library of CUDA isn't found
        raise UsageError(
            f"the GPU is used through cuda.bindings, which isn't installed ({error}): {INSTALL}"
        ) from error
    return runtime


def _ok(cuda: Any, result: tuple) -> Any:
    """The value of a CUDA call, if it gives one. CheckFailed with CUDA's own words if it failed."""
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        name, text = (get(error)[1].decode() for get in (cuda.cudaGetErrorName, cuda.cudaGetErrorString))
        raise CheckFailed(f"CUDA: {name}: {text}")
    return values[0] if values else None


def _dotted(version: int) -> str:
    """CUDA counts 12.6 as 12060."""
    return f"{version // 1000}.{version % 1000 // 10}"
