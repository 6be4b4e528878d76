"""Real CUDA streams for the fake of TensorRT: ONNX Runtime computes in a host function, between copies.

So a GPU without TensorRT shows what CUDA and CuPy make of everything around an engine: the order of streams,
captured graphs and their replays, memory in place.
"""

from __future__ import annotations

import ctypes
from typing import Any

import cupy
import cupyx
import numpy as np
from cupy.cuda import runtime
from fake_tensorrt import Memory, Work

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class CudaStreams:
    """Those of CuPy."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._captured: list[Any] = []
        self._running: list[tuple[Any, Any]] = []

    def is_capturing(self, handle: int) -> bool:
        return bool(runtime.streamIsCapturing(handle))

    def put(self, handle: int, work: Work) -> None:
        feeds, results = (
            {name: cupyx.empty_pinned(m.shape, m.dtype) for name, m in tensors.items()}
            for tensors in (work.inputs, work.outputs)
        )
        for name, memory in work.inputs.items():
            _copy(feeds[name], memory, runtime.memcpyDeviceToHost, handle)
        function = _HostFunction(lambda _: work.compute(feeds, results))
        status = self._driver.cuLaunchHostFunc(ctypes.c_void_p(handle), function, None)
        assert status == 0, status
        for name, memory in work.outputs.items():
            _copy(results[name], memory, runtime.memcpyHostToDevice, handle)
        self._keep(handle, (feeds, results, function))

    def _keep(self, handle: int, used: Any) -> None:
        """A graph uses it again and again, a launch until it is done."""
        if self.is_capturing(handle):
            self._captured.append(used)
            return
        self._running = [(event, kept) for event, kept in self._running if not event.done]
        event = cupy.cuda.Event(disable_timing=True)
        event.record(cupy.cuda.ExternalStream(handle))
        self._running.append((event, used))


class IdleStreams:
    """An engine that costs nothing and computes nothing: what is left is the price of a step's other work."""

    def is_capturing(self, handle: int) -> bool:
        return bool(runtime.streamIsCapturing(handle))

    def put(self, handle: int, work: Work) -> None:
        pass


def _copy(on_host: np.ndarray, memory: Memory, kind: int, handle: int) -> None:
    there, here = memory.address, on_host.ctypes.data
    target, source = (here, there) if kind == runtime.memcpyDeviceToHost else (there, here)
    if on_host.nbytes:
        runtime.memcpyAsync(target, source, on_host.nbytes, kind, handle)
