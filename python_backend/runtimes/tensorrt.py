"""TensorRT and TensorRT-RTX on an NVIDIA GPU; both modules have the same Python API.

What the host feeds is copied to the device once per call, the KV cache and the outputs stay there, and steps
that come again and again are replayed as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from python_backend.arrays import Array
from python_backend.errors import BundleError, EngineError
from python_backend.kv_cache import CacheView
from python_backend.runtimes.base import EngineRuntime
from python_backend.runtimes.tensorrt_profile import Device, ProfileRunner
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
    """An engine and a stream that it computes on.

    CuPy works on the caller's stream. Each call waits for what was put there before, and what is put there
    later waits for the call, so nobody else has to order anything.

    Args:
        spec: the contract.
        path: the engine file.
        engine: `tensorrt` or `tensorrt_rtx`, which it was built with.
        max_graphs: CUDA graphs of decode steps to keep; 0 launches every step kernel by kernel.
    """

    def __init__(self, spec: GraphSpec, path: Path, *, engine: str, max_graphs: int = 0) -> None:
        super().__init__(spec)
        trt = load_tensorrt(engine)
        try:
            self._cupy = import_module("cupy")
        except ImportError as error:
            raise BundleError(
                "TensorRT engines need CuPy: pip install 'triton-vlm[gpu]'"
            ) from error
        log = new_log(trt)
        loaded = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
        if loaded is None:
            reason = log.lines[-1] if log.lines else "it gives no reason"
            raise BundleError(
                f"{path} does not load ({reason}); it runs only with the version of {engine} "
                "and on the GPU it was built for: build the model again"
            )
        _check_tensors(trt, path, spec, loaded)
        cuda = self._cupy.cuda
        # One that the legacy stream does not wait for: what another thread starts there, such as the copy of
        # a new request's embeddings, would end the capture of a graph.
        self._stream = cuda.Stream(non_blocking=True)
        self._before, self._after = (cuda.Event(disable_timing=True) for _ in range(2))
        profiles = range(loaded.num_optimization_profiles)
        scratch_sizes = [loaded.get_device_memory_size_for_profile_v2(i) for i in profiles]
        device = Device(
            trt=trt,
            is_rtx=engine == "tensorrt_rtx",
            cupy=self._cupy,
            cupyx=import_module("cupyx"),
            stream=self._stream,
            scratch=self._cupy.empty(max(scratch_sizes), np.uint8),
            log=log,
        )
        self._profiles = [ProfileRunner(device, spec, loaded, i, max_graphs) for i in profiles]

    @property
    def min_rows(self) -> int:
        """One: TensorRT computes nothing on empty tensors."""
        return 1

    @property
    def gives_many_logits(self) -> bool:
        """No: the profiles of `builders.profiles` have one position per row."""
        return False

    @property
    def is_asynchronous(self) -> bool:
        """Yes: it only puts work on a stream."""
        return True

    @property
    def array_module(self) -> Any:
        """CuPy."""
        return self._cupy

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array of zeros on the device."""
        return self._cupy.zeros(shape, _STORED_AS.get(dtype, dtype))

    def _run(self, feeds: Mapping[str, Array], cache: CacheView | None) -> dict[str, Array]:
        if not self._profiles:
            raise EngineError(f"graph {self.spec.name} is closed")
        profile = self._profile(feeds)
        callers = self._cupy.cuda.get_current_stream()
        callers.record(self._before)
        self._stream.wait_event(self._before)
        outputs = profile.run(feeds, cache)
        self._stream.record(self._after)
        callers.wait_event(self._after)
        return outputs

    def _profile(self, feeds: Mapping[str, Array]) -> ProfileRunner:
        """The first profile whose ranges hold every feed's shape."""
        for profile in self._profiles:
            if profile.holds(feeds):
                return profile
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise EngineError(
            f"the engine {self.spec.name} was not built for inputs of this size ({shapes}): build it with "
            "a larger --max-seqs or --max-model-len, or lower the limits of the server"
        )

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        self._stream.synchronize()
        self._profiles.clear()


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
