"""A GPU that isn't there: the calls of `cuda.bindings.driver` and of a TensorRT engine, with their rules.

Work put on a stream is done when the stream is waited for, not before; what is captured is done only when the graph is
launched; memory is freed once. To allocate or to wait spoils a capture, which then gives no graph. The time between two
events is known when both were reached. It shows that the session's code
keeps the rules. That the rules are CUDA's, a machine with a GPU must show (tests marked `gpu`).
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from pipeline.records.devices import Gpu

ENGINE = {
    "runtime": "tensorrt",
    "version": "10.3.0",
    "targets": [],
    "max_batch": 64,
    "version_compatible": False,
    "hardware_compatible": False,
}
UNSUPPORTED, INVALIDATED, INVALID, NOT_READY = 900, 901, 400, 600  # as CUresult has them
ERRORS = {1: "CUDA_ERROR_BAD", UNSUPPORTED: "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}
ERRORS |= {INVALIDATED: "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}
ERRORS |= {INVALID: "CUDA_ERROR_INVALID_HANDLE", NOT_READY: "CUDA_ERROR_NOT_READY"}
PENDING = "recorded, not reached"
ORIN = Gpu(name="Orin", capability="8.7", driver="12.6", integrated=True)


class _Handle:
    def __int__(self) -> int:
        return 7


def _gives(*values):
    """A driver's function that succeeds with these values, whatever its arguments."""
    return lambda self, *arguments: (0, *values)


class Cuda:
    """Stands in for the module `cuda.bindings.driver`."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DEFAULT=0)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
        CU_DEVICE_ATTRIBUTE_INTEGRATED=2,
        CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY=3,
    )
    CU_MEMHOSTALLOC_DEVICEMAP = 2

    cuInit = cuCtxSetCurrent = _gives()
    cuDeviceGet = _gives("device")
    cuDeviceGetName = _gives(b"Orin".ljust(256, b"\0"))
    cuDriverGetVersion = _gives(12060)
    cuDevicePrimaryCtxRetain = _gives("context")
    cuGetErrorString = _gives(b"something bad")

    def __init__(self) -> None:
        self.memory, self.live, self.allocations, self.launches, self.copies = {}, set(), 0, 0, 0
        self.stream: list = []
        self.capturing: list | None = None
        self.spoilt, self.done = False, 0
        self.fail: set[str] = set()
        self.integrated = True
        self.host: dict[int, bool] = {}  # page-locked memory, and whether it was allocated to be mapped
        self.seen: set[int] = set()  # addresses that the GPU can reach

    def cuGetErrorName(self, error):
        return 0, ERRORS[error].encode()

    def _refused(self) -> bool:
        """Whether a graph is being captured, which a call that may not be in one spoils."""
        self.spoilt = self.spoilt or self.capturing is not None
        return self.capturing is not None

    def put(self, work) -> None:
        (self.stream if self.capturing is None else self.capturing).append(work)

    def _made(self, thing):
        self.live.add(id(thing))
        self.memory[id(thing)] = thing  # kept, so that no id is given twice
        return 0, thing

    def _gone(self, thing):
        self.live.remove(id(thing))  # KeyError if freed twice
        return (0,)

    def cuDeviceGetAttribute(self, which, device):
        return 0, (8, 7, int(self.integrated), 1)[which]

    def _allocate(self, size):
        if self._refused():
            return UNSUPPORTED, None
        if "memory" in self.fail:
            return 1, None
        block = (ctypes.c_ubyte * size)(*([0xAB] * size))
        address = ctypes.addressof(block)
        self.memory[address] = block
        self.live.add(address)
        self.allocations += 1
        return 0, address

    def cuMemAlloc(self, size):
        error, address = self._allocate(size)
        self.seen.add(address)
        return error, address

    def cuMemHostAlloc(self, size, flags):
        assert flags in (0, self.CU_MEMHOSTALLOC_DEVICEMAP)
        error, address = self._allocate(size)
        self.host[address] = bool(flags)
        return error, address

    def cuMemHostGetDevicePointer(self, host, flags):
        assert flags == 0, "must be 0"
        if not self.host.get(host):
            return 1, None
        self.seen.add(host)
        return 0, host

    def cuMemFree(self, address):
        assert address not in self.host, "not allocated by cuMemAlloc"
        self.live.remove(address)
        self.seen.discard(address)
        return (0,)

    def cuMemFreeHost(self, address):
        del self.host[address]  # KeyError for the GPU's own
        return self.cuMemFree(address)

    def cuMemcpyHtoDAsync(self, to, source, size, stream):
        assert to in self.seen and source in self.host, "copied between other memories"
        return self._copy(to, source, size)

    def cuMemcpyDtoHAsync(self, to, source, size, stream):
        assert to in self.host and source in self.seen, "copied between other memories"
        return self._copy(to, source, size)

    def _copy(self, to, source, size):
        self.copies += 1
        self.put(lambda: ctypes.memmove(to, source, size))
        return (0,)

    def cuStreamCreate(self, flags):
        return self._made(_Handle())

    cuStreamDestroy = cuEventDestroy = cuGraphDestroy = cuGraphExecDestroy = _gone

    def cuEventCreate(self, flags):
        return self._made(SimpleNamespace(at=None))

    def cuEventRecord(self, event, stream):
        event.at = None

        def record():
            event.at = self.done

        event.at = PENDING
        self.put(record)
        return (0,)

    def cuEventElapsedTime(self, before, after):
        if None in (before.at, after.at):
            return INVALID, None
        if PENDING in (before.at, after.at):
            return NOT_READY, None
        return 0, float(after.at - before.at)  # "milliseconds": pieces of work between, less than none if turned round

    def cuStreamSynchronize(self, stream):
        if self._refused():
            return (UNSUPPORTED,)
        work, self.stream = self.stream, []
        for each in work:
            each()
            self.done += 1
        return (0,)

    def cuStreamBeginCapture(self, stream, mode):
        if self.capturing is not None:
            return (1,)  # one capture at a time
        self.capturing, self.spoilt = [], False
        return (0,)

    def cuStreamEndCapture(self, stream):
        if self.spoilt:
            self.capturing, self.spoilt = None, False
            return INVALIDATED, None
        graph, self.capturing = SimpleNamespace(work=self.capturing), None
        return self._made(graph)

    def cuGraphInstantiate(self, graph, flags):
        return self._made(SimpleNamespace(work=[*graph.work]))

    def cuGraphLaunch(self, graph, stream):
        self.launches += 1
        for work in graph.work:
            self.put(work)
        return (0,)


class Bindings:
    """Stands in for the module `tensorrt`, to run engines: they answer as `answer` (images to logits) does."""

    __version__ = "10.3.0"
    TensorIOMode = SimpleNamespace(INPUT=SimpleNamespace(name="INPUT"), OUTPUT=SimpleNamespace(name="OUTPUT"))

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def __init__(self, cuda: Cuda, answer, largest: int) -> None:
        self.cuda, self.answer, self.least, self.largest, self.deserialised = cuda, answer, 1, largest, 0
        self.others: dict[bytes, object] = {}  # answers of engines with these bytes

    def Runtime(self, log):
        def deserialize(content: bytes):
            self.deserialised += 1
            if content.startswith(b"broken"):
                return log.log(1, "magic tag does not match")
            return _Engine(self, self.others.get(content, self.answer))

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class _Engine:
    num_io_tensors = 2

    def __init__(self, bindings: Bindings, answer) -> None:
        self.bindings, self.answer = bindings, answer

    def get_tensor_name(self, index):
        return ("logits", "images")[index]  # TensorRT promises no order

    def get_tensor_mode(self, name):
        return {"images": self.bindings.TensorIOMode.INPUT, "logits": self.bindings.TensorIOMode.OUTPUT}[name]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name={"images": "UINT8", "logits": "FLOAT"}[name])

    def get_tensor_shape(self, name):
        return {"images": (-1, 1, 28, 28), "logits": (-1, 10)}[name]

    def create_execution_context(self):
        return _Context(self.bindings, self.answer)


class _Context:
    def __init__(self, bindings: Bindings, answer) -> None:
        self.bindings, self.answer, self.shape, self.addresses = bindings, answer, None, {}

    def set_input_shape(self, name, shape):
        self.shape = tuple(shape)
        return name == "images" and self.bindings.least <= shape[0] <= self.bindings.largest

    def set_tensor_address(self, name, address):
        assert address in self.bindings.cuda.seen, "the GPU can't reach it"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        shape, addresses, cuda = self.shape, dict(self.addresses), self.bindings.cuda

        def work():
            size = int(np.prod(shape))
            images = np.frombuffer(ctypes.string_at(addresses["images"], size), np.uint8).reshape(shape)
            logits = np.ascontiguousarray(self.answer(images), np.float32)
            ctypes.memmove(addresses["logits"], logits.ctypes.data, logits.nbytes)

        cuda.put(work)
        return True
