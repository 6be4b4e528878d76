"""TensorRT and TensorRT-RTX on an NVIDIA GPU; both modules have the same Python API.

What the host feeds is copied to the device, the KV cache stays there, and outputs are copied back.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from python_backend.errors import BundleError, EngineError
from python_backend.kv_cache import CacheView
from python_backend.runtimes.base import EngineRuntime
from python_backend.spec import GraphSpec, TensorSpec

_MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_TRT_TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "bool": "BOOL",
}
_STORED_AS = {"bfloat16": "uint16"}
"""NumPy's and CuPy's dtype of the same size, for a dtype that they lack: nobody computes with it here."""


def load_tensorrt(engine: str) -> ModuleType:
    """The module of an engine, `tensorrt` or `tensorrt_rtx`.

    Raises:
        BundleError: it is not installed.
    """
    for name in _MODULES[engine]:
        try:
            return import_module(name)
        except ImportError:
            continue
    extra = engine.replace("_", "-")
    raise BundleError(f"{engine} is not installed: pip install 'triton-vlm[{extra}]'")


def new_log(trt: ModuleType) -> Any:
    """An `ILogger` that keeps warnings and errors, in `lines`."""

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.lines.append(message)

    return Log()


class TensorRtRuntime(EngineRuntime):
    """An engine with one execution context per optimization profile, on one stream.

    Args:
        spec: the contract.
        path: the engine file.
        engine: `tensorrt` or `tensorrt_rtx`, which it was built with.
    """

    def __init__(self, spec: GraphSpec, path: Path, *, engine: str) -> None:
        super().__init__(spec)
        trt = load_tensorrt(engine)
        try:
            self._cupy = import_module("cupy")
        except ImportError as error:
            raise BundleError(
                "TensorRT engines need CuPy: pip install 'triton-vlm[gpu]'"
            ) from error
        self._log = new_log(trt)
        self._engine = trt.Runtime(self._log).deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BundleError(
                f"{path} does not load ({self._last_error()}); it runs only with the version of {engine} "
                "and on the GPU it was built for: build the model again"
            )
        _check_tensors(trt, path, spec, self._engine)
        # Blocking, so that what CuPy does with the cache and what the engine does keep their order.
        self._stream = self._cupy.cuda.Stream()
        self._contexts = [
            self._new_context(trt, profile)
            for profile in range(self._engine.num_optimization_profiles)
        ]
        self._buffers: dict[str, Any] = {}

    def _new_context(self, trt: ModuleType, profile: int) -> Any:
        # Scratch memory for this profile only: the decode steps' does not pay for the longest prompt.
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, self._stream.ptr):
            raise EngineError(f"graph {self.spec.name} does not fit the GPU: {self._last_error()}")
        return context

    @property
    def min_rows(self) -> int:
        """One: TensorRT computes nothing on empty tensors."""
        return 1

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of zeros on the device."""
        return self._cupy.zeros(shape, _STORED_AS.get(dtype, dtype))

    def _run(
        self, feeds: Mapping[str, np.ndarray], cache: CacheView | None
    ) -> dict[str, np.ndarray]:
        if self._engine is None:
            raise EngineError(f"graph {self.spec.name} is closed")
        context = self._contexts[self._profile(feeds)]
        for name, array in feeds.items():
            on_device = self._on_device(name, array.shape, array.dtype)
            on_device.set(array, stream=self._stream)
            self._bind_input(context, name, on_device)
        cached = {} if cache is None else cache.tensors
        for name in self.spec.cross_inputs:
            self._bind_input(context, name, cached[name])
        for output, name in self.spec.aliases.items():
            self._bind_input(context, name, cached[name])
            # The same memory in and out: the update happens in place.
            context.set_tensor_address(output, cached[name].data.ptr)
        outputs = {}
        for spec in self.spec.computed_outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            outputs[spec.name] = self._on_device(spec.name, shape, np.dtype(spec.dtype))
            context.set_tensor_address(spec.name, outputs[spec.name].data.ptr)
        if not context.execute_async_v3(self._stream.ptr):
            raise EngineError(f"graph {self.spec.name} failed: {self._last_error()}")
        results = {name: array.get(stream=self._stream) for name, array in outputs.items()}
        self._stream.synchronize()
        return results

    def _bind_input(self, context: Any, name: str, array: Any) -> None:
        if not context.set_input_shape(name, array.shape):
            raise EngineError(f"graph {self.spec.name} refuses {name}: {self._last_error()}")
        context.set_tensor_address(name, array.data.ptr)

    def _profile(self, feeds: Mapping[str, np.ndarray]) -> int:
        """The first profile whose ranges hold every feed's shape."""
        for profile in range(len(self._contexts)):
            if all(self._holds(profile, name, array.shape) for name, array in feeds.items()):
                return profile
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise EngineError(
            f"the engine {self.spec.name} was not built for inputs of this size ({shapes}): build it with "
            "a larger --max-seqs or --max-model-len, or lower the limits of the server"
        )

    def _holds(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return all(
            low <= size <= high
            for low, size, high in zip(tuple(smallest), shape, tuple(largest), strict=True)
        )

    def _on_device(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Memory of a tensor, the same at every call unless it must grow."""
        size = int(np.prod(shape)) * dtype.itemsize
        if name not in self._buffers or self._buffers[name].nbytes < size:
            self._buffers[name] = self._cupy.empty(size, np.uint8)
        return self._buffers[name][:size].view(dtype).reshape(shape)

    def _last_error(self) -> str:
        return self._log.lines[-1] if self._log.lines else "it gives no reason"

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        self._contexts.clear()
        self._buffers.clear()
        self._engine = None


def _check_tensors(trt: ModuleType, path: Path, spec: GraphSpec, engine: Any) -> None:
    """The engine must have what the manifest says, and nothing else."""
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    wanted = {
        **dict.fromkeys(spec.inputs, trt.TensorIOMode.INPUT),
        **dict.fromkeys(spec.outputs, trt.TensorIOMode.OUTPUT),
    }
    for tensor, mode in wanted.items():
        if tensor.name not in found or not _is_like(trt, engine, tensor, mode):
            raise BundleError(
                f"{path} does not have the tensor {tensor.name} {tensor.dtype} {list(tensor.shape)} of "
                "its manifest; rebuild the model"
            )
    unknown = found - {tensor.name for tensor in wanted}
    if unknown:
        raise BundleError(f"{path} has unknown tensors {sorted(unknown)}; rebuild the model")


def _is_like(trt: ModuleType, engine: Any, tensor: TensorSpec, mode: Any) -> bool:
    shape = tuple(engine.get_tensor_shape(tensor.name))
    return (
        engine.get_tensor_mode(tensor.name) == mode
        and engine.get_tensor_dtype(tensor.name) == getattr(trt.DataType, _TRT_TYPES[tensor.dtype])
        and len(shape) == len(tensor.shape)
        and all(
            size in (-1, dim)
            for size, dim in zip(shape, tensor.shape, strict=True)
            if isinstance(dim, int)
        )
    )
