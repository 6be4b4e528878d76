"""ONNX Runtime on the CPU: the engine that everyone can run."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime

from python_backend.errors import BundleError, EngineError
from python_backend.kv_cache import CacheView
from python_backend.runtimes.base import EngineRuntime
from python_backend.spec import GraphSpec, TensorSpec
from python_backend.turns import Turns

_ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}
_WARNINGS_FROM = 3  # ORT's severity scale: errors and worse


class OrtRuntime(EngineRuntime):
    """A graph in an ONNX Runtime session.

    Args:
        spec: the contract.
        path: the ONNX file.
        num_threads: threads of one operator; None for one per core.
        max_kept_bytes: of inputs. A run that is fed more gives back the memory that it computed in; others
            keep it for the next run, and so do all if this is None.
        turns: taken to compute, and closed in the end; None to compute at any time.
    """

    def __init__(
        self,
        spec: GraphSpec,
        path: Path,
        *,
        num_threads: int | None = None,
        max_kept_bytes: int | None = None,
        turns: Turns | None = None,
    ) -> None:
        super().__init__(spec)
        self._turns = turns
        self._max_kept_bytes = math.inf if max_kept_bytes is None else max_kept_bytes
        self._gives_back = onnxruntime.RunOptions()
        self._gives_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _WARNINGS_FROM
        options.intra_op_num_threads = num_threads or 0
        # Threads that wait spin no longer than it takes from one operator to the next (in us): waking them
        # costs a decode step 5%, and spinning between steps takes the core from the other stages.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        weights = path.with_name(f"{path.name}.data")
        mapped_before = _mappings(weights)  # other sessions'
        try:
            self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BundleError(f"{path} does not load ({error}); rebuild the model") from error
        self._file_pages = _FilePages(_mappings(weights) - mapped_before)
        self._file_pages.give_back()
        _check_tensors(path, spec.inputs, self._session.get_inputs())
        _check_tensors(path, spec.outputs, self._session.get_outputs())
        self._bindings: WeakKeyDictionary[CacheView, onnxruntime.IOBinding] = WeakKeyDictionary()
        self._nothing = {
            spec.name: _value(np.zeros((1,) * len(spec.shape), spec.dtype))
            for spec in spec.fed_inputs
        }

    def _run(
        self, feeds: Mapping[str, np.ndarray], cache: CacheView | None
    ) -> dict[str, np.ndarray]:
        if self._session is None:
            raise EngineError(f"graph {self.spec.name} is closed")
        binding = self._binding(cache)
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, _value(array))
        for output in self.spec.computed_outputs:
            binding.bind_output(output.name)
        keeps = sum(array.nbytes for array in feeds.values()) <= self._max_kept_bytes
        with self._turns or nullcontext():
            self._session.run_with_iobinding(binding, None if keeps else self._gives_back)
        for name in feeds:
            # The binding is kept; the feeds are not, image embeddings of megabytes among them.
            binding.bind_ortvalue_input(name, self._nothing[name])
        self._file_pages.give_back()
        outputs = dict(zip(self._output_names(binding), binding.get_outputs(), strict=True))
        return {output.name: outputs[output.name].numpy() for output in self.spec.computed_outputs}

    def _binding(self, cache: CacheView | None) -> onnxruntime.IOBinding:
        """A binding whose cache tensors are bound already: they are the same at every step."""
        assert self._session is not None
        if cache is None:
            return self._session.io_binding()
        binding = self._bindings.get(cache)
        if binding is None:
            binding = self._session.io_binding()
            for output, name in self.spec.aliases.items():
                # The same memory in and out: the update happens in place, nothing is copied.
                value = _value(cache.tensors[name])
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(output, value)
            for name in self.spec.cross_inputs:
                binding.bind_ortvalue_input(name, _value(cache.tensors[name]))
            self._bindings[cache] = binding
        return binding

    def _output_names(self, binding: onnxruntime.IOBinding) -> list[str]:
        """Names in the order they were first bound: aliased outputs, then computed ones."""
        return [*self.spec.aliases, *(output.name for output in self.spec.computed_outputs)]

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._bindings.clear()
        self._session = None  # and with it the mapped weights
        if self._turns is not None:
            self._turns.close()


def _value(array: np.ndarray) -> onnxruntime.OrtValue:
    """The array's own memory, as ONNX Runtime takes it."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _mappings(path: Path) -> set[tuple[int, int]]:
    """Address and length of every mapping of a file into this process."""
    found = set()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name == str(path.resolve()):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            found.add((start, stop - start))
    return found


class _FilePages:
    """The pages of a weights file that one session has mapped, to be given back.

    Packing reads the whole file once, and every row that is taken from an embedding table maps the large
    page around it: of a 0.5B-shaped decoder, whose table is also the head and so packed as well, 0.54
    of 2.6 GB. What is needed again comes back from the page cache.

    Args:
        mappings: the session's own, and of nobody else: theirs may have ended.
    """

    def __init__(self, mappings: set[tuple[int, int]]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._mappings = mappings

    def give_back(self) -> None:
        """Unmap the pages; the mapping stays."""
        for start, size in self._mappings:
            address, length = ctypes.c_void_p(start), ctypes.c_size_t(size)
            if self._libc.madvise(address, length, mmap.MADV_DONTNEED) != 0:
                raise OSError(ctypes.get_errno(), "madvise of mapped weights")


def _check_tensors(
    path: Path, specs: tuple[TensorSpec, ...], args: list[onnxruntime.NodeArg]
) -> None:
    """The file must hold what the manifest says; symbolic axes match whatever the file calls them."""
    found = {arg.name: arg for arg in args}
    for spec in specs:
        arg = found.pop(spec.name, None)
        if (
            arg is None
            or arg.type != _ORT_TYPES.get(spec.dtype)
            or len(arg.shape) != len(spec.shape)
            or any(
                isinstance(d, int) and d != a for d, a in zip(spec.shape, arg.shape, strict=True)
            )
        ):
            raise BundleError(
                f"{path} does not have the tensor {spec.name} {spec.dtype} {list(spec.shape)} of its "
                "manifest; rebuild the model"
            )
    if found:
        raise BundleError(f"{path} has unknown tensors {sorted(found)}; rebuild the model")
