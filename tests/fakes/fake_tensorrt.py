"""TensorRT and CuPy without a GPU: an engine that ONNX Runtime computes, on memory it is given by address.

It holds a runtime to what the real ones demand: shapes inside the profile, an address for every tensor, the
cache's outputs where its inputs are.
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from python_backend.spec import GraphSpec


class DeviceArray(np.ndarray):
    """Has CuPy's way in, way out and address."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)

    def set(self, array: np.ndarray, stream: Any) -> None:
        assert (array.shape, array.dtype) == (self.shape, self.dtype)
        assert array.flags.c_contiguous
        self[...] = array

    def get(self, stream: Any) -> np.ndarray:
        return np.array(self)


def fake_cupy() -> ModuleType:
    module = ModuleType("cupy")
    stream = SimpleNamespace(ptr=1, synchronize=lambda: None)
    module.cuda = SimpleNamespace(Stream=lambda: stream)  # type: ignore[attr-defined]
    module.zeros = lambda *args: np.zeros(*args).view(DeviceArray)  # type: ignore[attr-defined]
    module.empty = lambda *args: np.empty(*args).view(DeviceArray)  # type: ignore[attr-defined]
    return module


class ILogger:
    WARNING = 2


class TensorIOMode(Enum):
    INPUT = auto()
    OUTPUT = auto()


class DataType(Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT64 = "int64"
    INT32 = "int32"
    BOOL = "bool"


def engine_file(
    path: Path, graph: Path, spec: GraphSpec, profiles: list[Mapping[str, Any]]
) -> None:
    """Write what `Runtime` reads: the ONNX graph to compute, its contract and its profiles."""
    content = {"graph": str(graph), "spec": spec.to_json(), "profiles": profiles}
    path.write_text(json.dumps(content))


class FakeTensorRt(ModuleType):
    """The module; counts the calls of each graph's profiles."""

    ILogger, TensorIOMode, DataType = ILogger, TensorIOMode, DataType
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE=1)

    def __init__(self) -> None:
        super().__init__("tensorrt_rtx")
        self.calls: Counter[tuple[str, int]] = Counter()

    def Runtime(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self._engine(log, data))

    def _engine(self, log: Any, data: bytes) -> Any:
        try:
            content = json.loads(data)
        except ValueError:
            log.log(ILogger.WARNING, "Serialization assertion failed")
            return None
        return _Engine(self, content)


class _Engine:
    def __init__(self, trt: FakeTensorRt, content: dict[str, Any]) -> None:
        self.trt, self.spec = trt, GraphSpec.from_json(content["spec"])
        self.profiles = content["profiles"]
        self.session = onnxruntime.InferenceSession(content["graph"])
        self.tensors = {t.name: t for t in (*self.spec.inputs, *self.spec.outputs)}
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        is_input = name in [t.name for t in self.spec.inputs]
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> list[int]:
        return [dim if isinstance(dim, int) else -1 for dim in self.tensors[name].shape]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        sizes = self.profiles[profile]
        dims = self.tensors[name].shape
        return [[d if isinstance(d, int) else sizes[d][i] for d in dims] for i in range(3)]

    def create_execution_context(self, strategy: int) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            dim: size
            for tensor in self.engine.spec.inputs
            for dim, size in zip(tensor.shape, self.shapes[tensor.name], strict=True)
        }
        dims = self.engine.tensors[name].shape
        if set(dims) <= {*sizes, *(dim for dim in dims if isinstance(dim, int))}:
            return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims)
        # An axis that only the graph knows how to compute.
        return tuple(self.engine.session.run([name], self._feeds())[0].shape)

    def execute_async_v3(self, stream: int) -> bool:
        engine, spec = self.engine, self.engine.spec
        for output, name in spec.aliases.items():
            assert self.addresses[output] == self.addresses[name]
        names = [tensor.name for tensor in spec.outputs]
        for name, value in zip(names, engine.session.run(names, self._feeds()), strict=True):
            self._memory(name, self.get_tensor_shape(name))[...] = value
        engine.trt.calls[spec.name, self.profile] += 1
        return True

    def _feeds(self) -> dict[str, np.ndarray]:
        return {t.name: self._memory(t.name, self.shapes[t.name]) for t in self.engine.spec.inputs}

    def _memory(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self.engine.tensors[name].dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)
