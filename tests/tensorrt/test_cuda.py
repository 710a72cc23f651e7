from __future__ import annotations

import contextlib

import numpy as np
import pytest

from pipeline.errors import CheckFailed
from pipeline.tensorrt import cuda
from tests.support import fake_gpu


@pytest.fixture
def driver(monkeypatch) -> fake_gpu.Cuda:
    driver = fake_gpu.Cuda()
    monkeypatch.setattr(cuda, "_library", lambda: driver)
    return driver


def test_the_stand_ins_errors_are_cudas():
    from cuda.bindings import driver

    named = {int(member): name for name, member in driver.CUresult.__members__.items()}
    assert {code: name for code, name in fake_gpu.ERRORS.items() if code != 1}.items() <= named.items()


@pytest.mark.parametrize("call", ["synchronize", "device", "pinned"])
def test_what_may_not_be_in_a_graph_ends_the_capture_with_its_own_error(driver, call):
    arguments = {"device": (64,), "pinned": ((2,), np.uint8)}.get(call, ())
    with cuda.Stream() as stream:
        with pytest.raises(CheckFailed, match="STREAM_CAPTURE_UNSUPPORTED"):
            stream.captured(lambda: getattr(stream, call)(*arguments))
        stream.synchronize()  # the stream can be used again
        stream.captured(lambda: None)()
    assert not driver.live


def test_a_spoilt_capture_gives_no_graph_even_if_the_error_was_passed_over(driver):
    def enqueue() -> None:
        with contextlib.suppress(CheckFailed):
            stream.synchronize()

    with cuda.Stream() as stream, pytest.raises(CheckFailed, match="STREAM_CAPTURE_INVALIDATED"):
        stream.captured(enqueue)
    assert not driver.live


def test_the_error_of_what_is_captured_comes_before_the_captures(driver):
    def enqueue() -> None:
        with contextlib.suppress(CheckFailed):
            stream.synchronize()
        raise CheckFailed("TensorRT failed")

    with cuda.Stream() as stream, pytest.raises(CheckFailed, match="TensorRT failed"):
        stream.captured(enqueue)


def test_seconds_waits_for_both_events_and_has_them_in_order(driver):
    with cuda.Stream() as stream:
        first, last = stream._events
        with pytest.raises(CheckFailed, match="INVALID_HANDLE"):
            stream._call("cuEventElapsedTime", first, last)
        stream._call("cuEventRecord", first, stream._handle)
        stream._call("cuEventRecord", last, stream._handle)
        with pytest.raises(CheckFailed, match="NOT_READY"):
            stream._call("cuEventElapsedTime", first, last)
        stream.synchronize()
        for work in (1, 5):
            assert stream.seconds(lambda: [driver.put(int) for _ in range(work)]) == pytest.approx((work + 1) / 1000)  # noqa: B023
