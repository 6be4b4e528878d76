"""One optimization profile of a TensorRT engine: its memory, its contexts and its CUDA graphs.

TensorRT's documentation advises one execution context per CUDA graph, which is not touched again, and scratch
memory that the contexts share. So a context is bound, run once, captured and kept with its graph; the next
shapes get another context.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from python_backend.arrays import Array
from python_backend.errors import EngineError
from python_backend.kv_cache import CacheView
from python_backend.spec import GraphSpec

_LOG = logging.getLogger(__name__)
_ALIGNMENT = 256
"""Bytes; TensorRT asks it of every address that it is given."""


@dataclass(frozen=True, slots=True)
class Device:
    """What the profiles of an engine share.

    Attributes:
        trt: the module of TensorRT or TensorRT-RTX.
        is_rtx: which of them.
        cupy: the module.
        cupyx: the module.
        stream: that the engine computes on.
        scratch: uint8 memory for what an execution context computes in between; they run one after another.
        log: TensorRT's warnings and errors, in `lines`.
    """

    trt: ModuleType
    is_rtx: bool
    cupy: Any
    cupyx: Any
    stream: Any
    scratch: Array
    log: Any

    def last_error(self) -> str:
        """What TensorRT said last."""
        return self.log.lines[-1] if self.log.lines else "it gives no reason"


class Staging:
    """Host arrays on their way to the device: one copy for all, and always to the same place.

    Args:
        device: where to.
        num_bytes: that it holds from the beginning; more moves it.
    """

    def __init__(self, device: Device, num_bytes: int = _ALIGNMENT) -> None:
        self._device = device
        self._copied = device.cupy.cuda.Event(disable_timing=True)
        self._resize(num_bytes)

    def _resize(self, num_bytes: int) -> None:
        self._pinned = self._device.cupyx.empty_pinned(num_bytes, np.uint8)
        self._memory = self._device.cupy.empty(num_bytes, np.uint8)

    def place(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The same on the device, what is there already as it is; valid until the next call."""
        offsets, size = {}, 0
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                offsets[name] = size
                size += _aligned(array.nbytes)
        self._copied.synchronize()  # the copy before this one reads the pinned memory
        if size > len(self._pinned):
            self._resize(size)
        for name, offset in offsets.items():
            _part(self._pinned, offset, arrays[name])[...] = arrays[name]
        self._memory[:size].set(self._pinned[:size], stream=self._device.stream)
        self._device.stream.record(self._copied)
        return {
            name: _part(self._memory, offsets[name], array) if name in offsets else array
            for name, array in arrays.items()
        }


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _part(memory: Array, offset: int, like: np.ndarray) -> Array:
    return memory[offset : offset + like.nbytes].view(like.dtype).reshape(like.shape)


@dataclass(frozen=True, slots=True)
class _Captured:
    """A bound context, the graph of its launch, and where that puts its outputs."""

    context: Any
    graph: Any
    outputs: dict[str, Array]


class ProfileRunner:
    """Runs calls whose shapes fit one profile.

    Where only the number of cache rows varies, which is so in decode steps, every combination of shapes and
    addresses is launched kernel by kernel once and replayed as a CUDA graph from then on.

    Args:
        device: shared by the engine's profiles.
        spec: the contract.
        engine: the `ICudaEngine`.
        index: of the profile.
        max_graphs: graphs to keep, the least recently used goes first; 0 for none.
    """

    def __init__(
        self, device: Device, spec: GraphSpec, engine: Any, index: int, max_graphs: int
    ) -> None:
        self._device, self._spec, self._engine, self._index = device, spec, engine, index
        ranges = {t.name: engine.get_tensor_profile_shape(t.name, index) for t in spec.inputs}
        self._limits = {name: (tuple(low), tuple(high)) for name, (low, _, high) in ranges.items()}
        self._max_graphs = max_graphs if self._only_rows_vary() else 0
        self._config = self._context_config()
        self._context: Any = self._new_context()
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._outputs: dict[str, Array] = {}
        self._staging = Staging(device)
        if self._max_graphs:  # what graphs read and write must not move: room for the largest
            fed = [self._max_bytes(tensor.shape, tensor.dtype) for tensor in spec.fed_inputs]
            self._staging = Staging(device, sum(map(_aligned, fed)))
            for output in spec.computed_outputs:
                self._output_memory(output.name, self._max_bytes(output.shape, output.dtype))

    def _axes(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size of every dynamic axis of the inputs."""
        return {
            dim: (low, high)
            for tensor in self._spec.inputs
            for dim, low, high in zip(tensor.shape, *self._limits[tensor.name], strict=True)
            if isinstance(dim, str)
        }

    def _only_rows_vary(self) -> bool:
        """Whether calls differ in the number of cache rows alone."""
        cached = (*self._spec.aliases.values(), *self._spec.cross_inputs)
        rows = {self._spec.input(name).shape[0] for name in cached}
        fixed = all(low == high or axis in rows for axis, (low, high) in self._axes().items())
        return bool(rows) and fixed

    def _max_bytes(self, shape: tuple[int | str, ...], dtype: str) -> int:
        axes = self._axes()
        sizes = (dim if isinstance(dim, int) else axes[dim][1] for dim in shape)
        return math.prod(sizes) * np.dtype(dtype).itemsize

    def _context_config(self) -> Any:
        """What execution contexts are created with."""
        trt = self._device.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not (self._device.is_rtx and self._max_graphs):
            return strategy
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # TensorRT-RTX compiles on the GPU. By default the kernels for the shapes at hand come later, and a
        # graph would keep the slower ones. Contexts that share a cache do not compile again.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        config.set_runtime_cache(config.create_runtime_cache())
        return config

    def _new_context(self) -> Any:
        device, scratch = self._device, self._device.scratch
        context = self._engine.create_execution_context(self._config)
        if context is None or not context.set_optimization_profile_async(
            self._index, device.stream.ptr
        ):
            raise EngineError(
                f"graph {self._spec.name} does not fit the GPU: {device.last_error()}"
            )
        context.set_device_memory(scratch.data.ptr, scratch.nbytes)
        return context

    def holds(self, feeds: Mapping[str, Array]) -> bool:
        """Whether the shapes of all feeds are inside the profile."""
        return all(
            low <= size <= high
            for name, array in feeds.items()
            for low, size, high in zip(
                self._limits[name][0], array.shape, self._limits[name][1], strict=True
            )
        )

    def run(self, feeds: Mapping[str, Array], cache: CacheView | None) -> dict[str, Array]:
        """Start a call on the device's stream.

        Returns:
            The outputs on the device, valid until the next call.
        """
        stream = self._device.stream
        fed = self._staging.place({t.name: feeds[t.name] for t in self._spec.fed_inputs})
        # The view stands for the addresses of the cache, and keeps them from being given to anyone else.
        key = (cache, *((array.shape, array.data.ptr) for array in fed.values()))
        captured = self._captured.get(key)
        if captured is not None:
            self._captured.move_to_end(key)
            captured.graph.launch(stream)
            return captured.outputs
        context = self._free_context()
        outputs = self._bind(context, fed, cache)
        if not context.execute_async_v3(stream.ptr):
            raise self._failure("failed")
        if self._max_graphs:
            self._capture(context, key, outputs)
        return outputs

    def _free_context(self) -> Any:
        """The context that no graph was captured from."""
        if self._context is None:
            try:
                self._context = self._new_context()
            except EngineError as error:  # there are others, which belong to graphs
                self._stop_capturing(error)
                self._context = self._captured.popitem(last=False)[1].context
        return self._context

    def _bind(
        self, context: Any, fed: Mapping[str, Array], cache: CacheView | None
    ) -> dict[str, Array]:
        """Bind everything; the outputs."""
        cached = {} if cache is None else cache.tensors
        for name, array in fed.items():
            self._bind_input(context, name, array)
        for name in self._spec.cross_inputs:
            self._bind_input(context, name, cached[name])
        for output, name in self._spec.aliases.items():
            self._bind_input(context, name, cached[name])
            # The same memory in and out: the update happens in place.
            self._bind_address(context, output, cached[name])
        outputs = {}
        for spec in self._spec.computed_outputs:
            shape, dtype = tuple(context.get_tensor_shape(spec.name)), np.dtype(spec.dtype)
            num_bytes = math.prod(shape) * dtype.itemsize
            memory = self._output_memory(spec.name, num_bytes)
            outputs[spec.name] = memory[:num_bytes].view(dtype).reshape(shape)
            self._bind_address(context, spec.name, outputs[spec.name])
        return outputs

    def _bind_input(self, context: Any, name: str, array: Array) -> None:
        assert array.flags.c_contiguous
        if not context.set_input_shape(name, array.shape):
            raise self._failure(f"refuses the shape of {name}")
        self._bind_address(context, name, array)

    def _bind_address(self, context: Any, name: str, array: Array) -> None:
        if not context.set_tensor_address(name, array.data.ptr):
            raise self._failure(f"refuses the memory of {name}")

    def _output_memory(self, name: str, num_bytes: int) -> Array:
        """Memory of an output, the same at every call unless it must grow."""
        if name not in self._outputs or self._outputs[name].nbytes < num_bytes:
            self._outputs[name] = self._device.cupy.empty(num_bytes, np.uint8)
        return self._outputs[name]

    def _capture(self, context: Any, key: Any, outputs: dict[str, Array]) -> None:
        """Keep the launch of a context that has just run; it is not run again."""
        try:
            graph = self._graph(context)
        except RuntimeError as error:  # CuPy's CUDA errors are of this kind
            self._stop_capturing(error)
            return
        self._captured[key] = _Captured(context, graph, outputs)
        self._context = None
        if len(self._captured) > self._max_graphs:
            self._context = self._captured.popitem(last=False)[1].context

    def _stop_capturing(self, error: Exception) -> None:
        _LOG.warning(
            "no more CUDA graphs of graph %s, steps without one are launched kernel by kernel: %s",
            self._spec.name,
            error,
        )
        self._max_graphs = 0

    def _graph(self, context: Any) -> Any:
        stream = self._device.stream
        if self._device.is_rtx and not context.is_stream_capturable(stream.ptr):
            raise RuntimeError("TensorRT-RTX says that the engine cannot be captured")
        stream.begin_capture()
        try:
            is_launched = context.execute_async_v3(stream.ptr)
        finally:
            graph = stream.end_capture()
        if not is_launched:
            raise RuntimeError(self._device.last_error())
        return graph

    def _failure(self, what: str) -> EngineError:
        return EngineError(f"graph {self._spec.name} {what}: {self._device.last_error()}")
