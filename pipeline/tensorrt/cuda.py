"""The NVIDIA GPU through `cuda.bindings`, without torch: its description, memory, one stream, graphs, times.

This is CUDA's driver API, which belongs to the machine: bindings of another minor version than JetPack's CUDA work.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import CheckFailed, UsageError
from pipeline.machine import extras
from pipeline.records.devices import Gpu

INSTALL = f"{extras.install('cuda12')} with JetPack 6 (CUDA 12), {extras.install('cuda13')} with JetPack 7 (CUDA 13)"
PACKAGES = ("cuda-bindings",)


def gpu() -> Gpu:
    """Describe the first GPU. UsageError, with the reason, if there is none or `cuda.bindings` isn't installed."""
    cuda = _library()
    call = functools.partial(_call, cuda)
    try:
        call("cuInit", 0)
        device = call("cuDeviceGet", 0)
    except (CheckFailed, RuntimeError) as error:  # the latter is the bindings', where libcuda isn't found
        reason = str(error) if isinstance(error, CheckFailed) else "no driver is installed"
        raise UsageError(f"no NVIDIA GPU here that CUDA can use: {reason}") from error
    every = cuda.CUdevice_attribute
    attributes = (
        every.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        every.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        every.CU_DEVICE_ATTRIBUTE_INTEGRATED,
        every.CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY,
    )
    major, minor, integrated, maps = (call("cuDeviceGetAttribute", each, device) for each in attributes)
    driver = call("cuDriverGetVersion")  # 12060 is CUDA 12.6
    return Gpu(
        name=call("cuDeviceGetName", 256, device).decode().rstrip("\0"),
        capability=f"{major}.{minor}",
        driver=f"{driver // 1000}.{driver % 1000 // 10}",
        integrated=bool(integrated and maps),
    )


class Stream(contextlib.ExitStack):
    """One CUDA stream and what was allocated for it; leaving the context frees it all, the latest first.

    It is on the first GPU, in the context that TensorRT uses, too, and belongs to the thread that created it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cuda = _library()
        self._call = functools.partial(_call, self._cuda)
        self._call("cuInit", 0)
        # Never given back: TensorRT's objects live in the same context, and may outlive this one.
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", 0)))
        self._handle = self._call("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.handle = int(self._handle)  # as TensorRT takes it
        self.callback(self._cuda.cuStreamDestroy, self._handle)
        self._events = [self._call("cuEventCreate", int(self._cuda.CUevent_flags.CU_EVENT_DEFAULT)) for _ in range(2)]
        for event in self._events:
            self.callback(self._cuda.cuEventDestroy, event)

    def __exit__(self, *failure: Any) -> bool | None:
        self._cuda.cuStreamSynchronize(self._handle)  # nothing is freed while work is under way
        return super().__exit__(*failure)

    def pinned(self, shape: tuple[int, ...], dtype: type, flags: int = 0) -> np.ndarray:
        """Allocate a zeroed array in page-locked host memory, which the GPU copies from and to by itself."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._call("cuMemHostAlloc", size, flags)
        self.callback(self._cuda.cuMemFreeHost, address)
        memory = (ctypes.c_ubyte * size).from_address(int(address))
        array: np.ndarray = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        array[...] = 0
        return array

    def mapped(self, shape: tuple[int, ...], dtype: type) -> tuple[np.ndarray, int]:
        """Allocate a pinned array that the GPU reads and writes in place, and return it with its address there."""
        array = self.pinned(shape, dtype, self._cuda.CU_MEMHOSTALLOC_DEVICEMAP)
        return array, int(self._call("cuMemHostGetDevicePointer", array.ctypes.data, 0))

    def device(self, size: int) -> int:
        """Allocate `size` uninitialised bytes on the GPU and return their address."""
        address = self._call("cuMemAlloc", size)
        self.callback(self._cuda.cuMemFree, address)
        return int(address)

    def upload(self, device: int, host: np.ndarray) -> None:
        """Enqueue a copy from a pinned array to the GPU."""
        self._call("cuMemcpyHtoDAsync", device, host.ctypes.data, host.nbytes, self._handle)

    def download(self, host: np.ndarray, device: int) -> None:
        """Enqueue a copy from the GPU into a pinned array."""
        self._call("cuMemcpyDtoHAsync", host.ctypes.data, device, host.nbytes, self._handle)

    def captured(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Capture what `enqueue` puts on the stream as a CUDA graph; return a function that puts it there in one call.

        `enqueue` must have run before: the first time, a library may allocate, which no graph can hold.
        """
        cuda, mode = self._cuda, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._handle, mode)
        try:
            enqueue()
        finally:  # a capture is always ended; an error of `enqueue` comes before one of the capture
            ended = cuda.cuStreamEndCapture(self._handle)
        graph = _value(cuda, ended)
        launchable = self._call("cuGraphInstantiate", graph, 0)
        self.callback(cuda.cuGraphExecDestroy, launchable)
        self._call("cuGraphDestroy", graph)
        return functools.partial(self._call, "cuGraphLaunch", launchable, self._handle)

    def synchronize(self) -> None:
        """Wait until all that was put on the stream is done."""
        self._call("cuStreamSynchronize", self._handle)

    def seconds(self, enqueue: Callable[[], None]) -> float:
        """Return the time the GPU takes for what `enqueue` puts on the stream, to about half a microsecond."""
        before, after = self._events
        self._call("cuEventRecord", before, self._handle)
        enqueue()
        self._call("cuEventRecord", after, self._handle)
        self.synchronize()
        return self._call("cuEventElapsedTime", before, after) / 1000


def _library() -> Any:
    try:
        from cuda.bindings import driver
    except (ImportError, OSError) as error:  # the latter where a library of CUDA isn't found
        raise UsageError(
            f"the GPU is used through cuda.bindings, which isn't installed ({error}): {INSTALL}"
        ) from error
    return driver


def _call(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the driver and return its value, if it has one. CheckFailed with CUDA's words if it failed."""
    return _value(cuda, getattr(cuda, name)(*arguments))


def _value(cuda: Any, result: tuple) -> Any:
    error, *values = result
    if error != cuda.CUresult.CUDA_SUCCESS:
        name, text = (get(error)[1].decode() for get in (cuda.cuGetErrorName, cuda.cuGetErrorString))
        raise CheckFailed(f"CUDA: {name}: {text}")
    return values[0] if values else None
