"""TensorRT without its library: an engine that ONNX Runtime computes, on memory it is given by address.

It holds a runtime to what the real one demands: shapes inside the profile, an address for every tensor,
scratch memory, the cache's outputs where its inputs are, and contexts left alone once a graph was captured.
Every public name of its classes and their parameters are those of TensorRT-RTX, which a test compares.
With the real CuPy, `toy_kernels` computes in its place, on the device's memory.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import onnxruntime
from fake_cupy import ALIGNMENT, Graph, Stream

from builders.profiles import cross_profile, decoder_profiles, patch_profiles
from builders.repository import write_repository
from python_backend.families import load_family
from python_backend.manifest import FILE_NAME, VERSION_DIR, ModelFolder
from python_backend.spec import GraphSpec

MAX_SEQS = 4
SCRATCH_BYTES = 1000


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


class ExecutionContextAllocationStrategy(Enum):
    USER_MANAGED = auto()


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = auto()
    EAGER = auto()


class Streams(Protocol):
    """Where engines compute."""

    def is_capturing(self, handle: int) -> bool: ...

    def put(self, handle: int, work: Work) -> None:
        """Compute `work` when all that was put on the stream before has run."""


class FakeStreams:
    """Those of the fake of CuPy."""

    def is_capturing(self, handle: int) -> bool:
        return Stream.by_ptr[handle].is_capturing

    def put(self, handle: int, work: Work) -> None:
        Stream.by_ptr[handle].put(work)


def as_built_for_gpu(
    built: ModelFolder, repository: Path, gpu: str = "sm89", max_seqs: int = MAX_SEQS
) -> ModelFolder:
    """A copy of a model whose engines hold what `Runtime` reads: the graph, its contract and its profiles."""
    shutil.copytree(built.folder.parent, repository)
    folder = ModelFolder.open(repository / built.folder.name)
    graphs = {}
    for graph in folder.manifest.graphs:
        path = folder.path(graph).with_suffix(f".{gpu}.engine")
        content = {
            "graph": str(folder.path(graph)),
            "spec": graph.spec.to_json(),
            "profiles": _profiles(graph.spec, folder.manifest.max_model_len, max_seqs),
        }
        path.write_text(json.dumps(content))
        paths = {gpu: str(path.relative_to(repository))}
        graphs[graph.spec.name] = dataclasses.replace(graph, paths=paths)
    manifest = dataclasses.replace(folder.manifest, engine="tensorrt_rtx", **graphs)
    (folder.folder / VERSION_DIR / FILE_NAME).write_text(manifest.to_json())
    family = load_family(manifest.config, folder.processor_dir)
    write_repository(repository, manifest, family.encoder_tensors)
    return ModelFolder.open(folder.folder)


def _profiles(spec: GraphSpec, max_model_len: int, max_seqs: int) -> tuple[Mapping[str, Any], ...]:
    if spec.name == "decoder":
        return decoder_profiles(max_seqs, max_model_len, max_model_len)
    if spec.name == "cross_attention":
        return (cross_profile(spec),)
    if "N" in spec.inputs[0].shape:
        return patch_profiles(4 * max_model_len, 1024)
    return ({"P": (1, 1, 16)},)


class FakeTensorRt(ModuleType):
    """The module, with what the engines did by name of graph and profile.

    Attributes:
        streams: where it computes.
        computed: how often a graph was computed.
        launched: how often kernel by kernel; the others were replays of CUDA graphs.
        captured: how often a CUDA graph was captured.
        contexts: how many execution contexts were created.
        is_capturable: what contexts answer when asked, set by a test.
        max_contexts: that fit the GPU's memory, set by a test.
    """

    ILogger, TensorIOMode, DataType = ILogger, TensorIOMode, DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(self, streams: Streams | None = None) -> None:
        super().__init__("tensorrt_rtx")
        self.streams = streams or FakeStreams()
        self.computed: Counter[tuple[str, int]] = Counter()
        self.launched: Counter[tuple[str, int]] = Counter()
        self.captured: Counter[tuple[str, int]] = Counter()
        self.contexts: Counter[tuple[str, int]] = Counter()
        self.is_capturable, self.max_contexts = True, 1000

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802 - TensorRT's name
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            content = json.loads(serialized_engine)
        except ValueError:
            self._logger.log(ILogger.WARNING, "Serialization assertion failed")
            return None
        return ICudaEngine(self._trt, content)


class IRuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        return True


class ICudaEngine:
    def __init__(self, trt: FakeTensorRt, content: dict[str, Any]) -> None:
        self._trt, self._spec = trt, GraphSpec.from_json(content["spec"])
        self._profiles = content["profiles"]
        self._session = onnxruntime.InferenceSession(content["graph"])
        self._tensors = {t.name: t for t in (*self._spec.inputs, *self._spec.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        is_input = name in [t.name for t in self._spec.inputs]
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> list[int]:
        return [dim if isinstance(dim, int) else -1 for dim in self._tensors[name].shape]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        sizes = self._profiles[profile_index]
        dims = self._tensors[name].shape
        return [[d if isinstance(d, int) else sizes[d][i] for d in dims] for i in range(3)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH_BYTES * (1 + profile_index)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        if self._trt.contexts.total() >= self._trt.max_contexts:
            return None
        is_lazy = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(strategy, IRuntimeConfig):
            kernels = strategy.dynamic_shapes_kernel_specialization_strategy
            is_lazy = kernels is DynamicShapesKernelSpecializationStrategy.LAZY
            strategy = strategy._strategy
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self, is_lazy)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, is_lazy: bool) -> None:
        self._engine, self._is_lazy = engine, is_lazy
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._graphs: WeakSet[Graph] = WeakSet()
        self._scratch_bytes = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        self._key = (self._engine._spec.name, profile_index)
        self._engine._trt.contexts[self._key] += 1
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        self._scratch_bytes = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._check_unused()
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._check_unused()
        self._addresses[name] = memory
        return True

    def _check_unused(self) -> None:
        assert not self._graphs, "a context that a CUDA graph was captured from is modified"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            dim: size
            for tensor in self._engine._spec.inputs
            for dim, size in zip(tensor.shape, self._shapes[tensor.name], strict=True)
        }
        dims = self._engine._tensors[name].shape
        if set(dims) <= {*sizes, *(dim for dim in dims if isinstance(dim, int))}:
            return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims)
        # An axis that only the graph knows how to compute.
        feeds = {
            tensor.name: np.zeros(self._shapes[tensor.name], tensor.dtype)
            for tensor in self._engine._spec.inputs
        }
        return tuple(self._engine._session.run([name], feeds)[0].shape)

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine._trt.is_capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        spec, trt = self._engine._spec, self._engine._trt
        for output, name in spec.aliases.items():
            assert self._addresses[output] == self._addresses[name]
        assert self._scratch_bytes >= SCRATCH_BYTES * (1 + self._profile)
        if trt.streams.is_capturing(stream_handle):
            assert not self._is_lazy, "the graph would keep the kernels for all shapes"
            trt.captured[self._key] += 1
        else:
            trt.launched[self._key] += 1
        trt.streams.put(stream_handle, Work(self))
        return True


@dataclasses.dataclass(frozen=True)
class Memory:
    """Where a tensor lies."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def on_host(self) -> np.ndarray:
        """What is there, if it is the host's."""
        num_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        memory = (ctypes.c_char * num_bytes).from_address(self.address)
        return np.frombuffer(memory, self.dtype).reshape(self.shape)


class Work:
    """One computation with the shapes and addresses of now.

    Attributes:
        inputs: by name.
        outputs: by name.
        graphs: of its context, to which a graph that holds it adds itself.
    """

    def __init__(self, context: IExecutionContext) -> None:
        self._engine, self._key = context._engine, context._key
        spec = self._engine._spec
        self.inputs = {t.name: self._memory(context, t.name) for t in spec.inputs}
        self.outputs = {t.name: self._memory(context, t.name) for t in spec.outputs}
        self.graphs = context._graphs

    def _memory(self, context: IExecutionContext, name: str) -> Memory:
        shape = context._shapes.get(name) or context.get_tensor_shape(name)
        dtype = np.dtype(self._engine._tensors[name].dtype)
        return Memory(context._addresses[name], shape, dtype)

    def __call__(self) -> None:
        """On the host's memory."""
        feeds, results = (
            {name: memory.on_host() for name, memory in tensors.items()}
            for tensors in (self.inputs, self.outputs)
        )
        self.compute(feeds, results)

    def compute(self, feeds: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray]) -> None:
        """Write `results`."""
        values = self._engine._session.run(list(results), dict(feeds))
        for result, value in zip(results.values(), values, strict=True):
            result[...] = value
        self._engine._trt.computed[self._key] += 1
