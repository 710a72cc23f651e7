"""The NVIDIA GPU through `cuda.bindings`, without torch: what it is, memory, one stream, graphs, times in seconds.

CUDA's driver API, which is the machine's own: bindings of another minor version than JetPack's CUDA do, too.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.errors import CheckFailed, UsageError

INSTALL = "pip install -e '.[cuda12]' with JetPack 6 (CUDA 12), '.[cuda13]' with JetPack 7 (CUDA 13)"
PACKAGES = ("cuda-bindings",)


@dataclass(frozen=True)
class Gpu:
    """A GPU's name, its compute capability such as "8.7", and the CUDA version of its driver."""

    name: str
    capability: str
    driver: str

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
    try:
        _ok(cuda, cuda.cuInit(0))
        count = _ok(cuda, cuda.cuDeviceGetCount())
    except (CheckFailed, RuntimeError) as error:  # the latter is the bindings', where libcuda isn't found
        reason = str(error) if isinstance(error, CheckFailed) else "no driver is installed"
        raise UsageError(f"no NVIDIA GPU here that CUDA can use: {reason}") from error
    if not count:
        raise UsageError("no NVIDIA GPU here that CUDA can use: the driver counts none")
    device = _ok(cuda, cuda.cuDeviceGet(0))
    name = _ok(cuda, cuda.cuDeviceGetName(256, device)).decode().rstrip("\0")
    asked = cuda.CUdevice_attribute
    major, minor = (
        _ok(cuda, cuda.cuDeviceGetAttribute(each, device))
        for each in (
            asked.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            asked.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return Gpu(name, f"{major}.{minor}", _dotted(_ok(cuda, cuda.cuDriverGetVersion())))


class Stream(contextlib.ExitStack):
    """One CUDA stream and what was allocated for it; leaving the context frees it all, the latest first.

    On the first GPU, in the context that TensorRT uses, too. For the thread that made it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cuda = _library()
        self._do("cuInit", 0)
        # Never given back: TensorRT's objects live in the same context, and may outlive this one.
        self._do("cuCtxSetCurrent", self._do("cuDevicePrimaryCtxRetain", self._do("cuDeviceGet", 0)))
        self._handle = self._do("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.handle = int(self._handle)  # as TensorRT takes it
        self.callback(self._cuda.cuStreamDestroy, self._handle)
        self._events = [self._do("cuEventCreate", int(self._cuda.CUevent_flags.CU_EVENT_DEFAULT)) for _ in range(2)]
        for event in self._events:
            self.callback(self._cuda.cuEventDestroy, event)

    def __exit__(self, *failure: Any) -> bool | None:
        self._cuda.cuStreamSynchronize(self._handle)  # nothing is freed while work is under way
        return super().__exit__(*failure)

    def pinned(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """A zeroed array in page-locked host memory, which the GPU copies from and to by itself."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._do("cuMemHostAlloc", size, 0)
        self.callback(self._cuda.cuMemFreeHost, address)
        array = np.frombuffer((ctypes.c_ubyte * size).from_address(int(address)), dtype).reshape(shape)
        array[...] = 0
        return array

    def device(self, size: int) -> int:
        """The address of `size` bytes on the GPU, uninitialised."""
        address = self._do("cuMemAlloc", size)
        self.callback(self._cuda.cuMemFree, address)
        return int(address)

    def upload(self, device: int, host: np.ndarray) -> None:
        """Enqueue a copy from a pinned array to the GPU."""
        self._do("cuMemcpyHtoDAsync", device, host.ctypes.data, host.nbytes, self._handle)

    def download(self, host: np.ndarray, device: int) -> None:
        """Enqueue a copy from the GPU into a pinned array."""
        self._do("cuMemcpyDtoHAsync", host.ctypes.data, device, host.nbytes, self._handle)

    def captured(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts on the stream, as a CUDA graph: a function that puts it there with one call.

        `enqueue` must have run before: the first time, a library may allocate, which no graph can hold.
        """
        cuda, mode = self._cuda, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._do("cuStreamBeginCapture", self._handle, mode)
        try:
            enqueue()
        finally:
            ended = cuda.cuStreamEndCapture(self._handle)
        graph = _ok(cuda, ended)
        launchable = self._do("cuGraphInstantiate", graph, 0)
        self.callback(cuda.cuGraphExecDestroy, launchable)
        self._do("cuGraphDestroy", graph)
        launch, handle, success = cuda.cuGraphLaunch, self._handle, cuda.CUresult.CUDA_SUCCESS

        def replay() -> None:
            (error,) = launch(launchable, handle)
            if error != success:
                _ok(cuda, (error,))

        return replay

    def synchronize(self) -> None:
        """Wait until all that was put on the stream is done."""
        self._do("cuStreamSynchronize", self._handle)

    def seconds(self, enqueue: Callable[[], None]) -> float:
        """How long the GPU takes for what `enqueue` puts on the stream, by events; to about half a microsecond."""
        before, after = self._events
        self._do("cuEventRecord", before, self._handle)
        enqueue()
        self._do("cuEventRecord", after, self._handle)
        self.synchronize()
        return self._do("cuEventElapsedTime", before, after) / 1000

    def _do(self, name: str, *arguments: Any) -> Any:
        return _ok(self._cuda, getattr(self._cuda, name)(*arguments))


def _library() -> Any:
    try:
        from cuda.bindings import driver
    except (ImportError, OSError) as error:  # the latter where a library of CUDA isn't found
        raise UsageError(
            f"the GPU is used through cuda.bindings, which isn't installed ({error}): {INSTALL}"
        ) from error
    return driver


def _ok(cuda: Any, result: tuple) -> Any:
    """The value of a CUDA call, if it gives one. CheckFailed with CUDA's own words if it failed."""
    error, *values = result
    if error != cuda.CUresult.CUDA_SUCCESS:
        name, text = (get(error)[1].decode() for get in (cuda.cuGetErrorName, cuda.cuGetErrorString))
        raise CheckFailed(f"CUDA: {name}: {text}")
    return values[0] if values else None


def _dotted(version: int) -> str:
    """CUDA counts 12.6 as 12060."""
    return f"{version // 1000}.{version % 1000 // 10}"
