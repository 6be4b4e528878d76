"""CuPy without a GPU: arrays that refuse to become NumPy's in passing, streams that run late, CUDA graphs.

What is put on a stream is only run when somebody waits for it, so code that forgets to wait reads what was
there before. The legacy stream, on which arrays compute, runs at once.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from python_backend import draw_kernels, logit_kernels
from python_backend.kernels import CHANGED, NO_MAXIMUM, NO_TOKEN
from python_backend.sampler import Sampler, _draw_from_blocks, with_logprobs
from python_backend.structured_output import unpack_tokens

ALIGNMENT = 256
"""Bytes."""


class CUDARuntimeError(RuntimeError):
    """As CuPy raises when CUDA refuses."""


class Transfers:
    """Bytes that were copied between host and device, call by call."""

    def __init__(self) -> None:
        self.to_host: list[int] = []
        self.to_device: list[int] = []


TRANSFERS = Transfers()
"""Of the newest fake."""


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        self.stream: Stream | None = None
        self.position = 0

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.run_until(self.position)


class Graph:
    """What was put on a stream while it was captured."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work
        for part in work:
            getattr(part, "graphs", set()).add(self)

    def launch(self, stream: Stream) -> None:
        for part in self.work:
            stream.put(part)


class Stream:
    """Runs its work when somebody waits for it.

    Attributes:
        refuses_capture: set by a test.
    """

    by_ptr: dict[int, Stream] = {}  # noqa: RUF012
    refuses_capture = False

    def __init__(self, non_blocking: bool = False) -> None:
        # Capture on a stream that the legacy stream waits for fails if anyone uses that one meanwhile.
        self.is_capturable = non_blocking
        self.ptr = len(Stream.by_ptr) + 16
        Stream.by_ptr[self.ptr] = self
        self._waiting: deque[Callable[[], None]] = deque()
        self._num_put = self._num_run = 0
        self._captured: list[Callable[[], None]] | None = None

    @property
    def is_capturing(self) -> bool:
        return self._captured is not None

    def put(self, work: Callable[[], None]) -> None:
        if self._captured is not None:
            self._captured.append(work)
            return
        self._waiting.append(work)
        self._num_put += 1

    def run_until(self, position: int) -> None:
        assert not self.is_capturing
        while self._num_run < position:
            self._num_run += 1
            self._waiting.popleft()()

    def synchronize(self) -> None:
        self.run_until(self._num_put)

    def record(self, event: Event) -> Event:
        event.stream, event.position = self, self._num_put
        return event

    def wait_event(self, event: Event) -> None:
        self.put(event.synchronize)

    def begin_capture(self) -> None:
        assert self.is_capturable
        assert not self.is_capturing
        self._captured = []

    def end_capture(self) -> Graph:
        assert self._captured is not None
        work, self._captured = self._captured, None
        if Stream.refuses_capture:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        return Graph(work)


class LegacyStream(Stream):
    """Runs its work at once."""

    def put(self, work: Callable[[], None]) -> None:
        work()


def _unwrap(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value._memory
    if isinstance(value, tuple | list):
        return type(value)(_unwrap(item) for item in value)
    assert not isinstance(value, np.ndarray), "a host array among device arrays"
    return value


def _wrap(value: Any) -> DeviceArray:
    return DeviceArray(np.asarray(value))


def _unwrap_index(index: Any) -> Any:
    """Sizes must not depend on values: no masks."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        assert not (isinstance(part, DeviceArray) and part.dtype == bool)
        if isinstance(part, list):
            TRANSFERS.to_device.append(8 * len(part))
    return _unwrap(index)


class DeviceArray:
    """What of `cupy.ndarray` is used, on memory of the host that only `get` shows."""

    __array_ufunc__ = None

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._memory.ctypes.data)

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self._memory.flags.c_contiguous)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._memory.shape

    @property
    def dtype(self) -> np.dtype:
        return self._memory.dtype

    @property
    def ndim(self) -> int:
        return self._memory.ndim

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def get(self) -> np.ndarray:
        TRANSFERS.to_host.append(self.nbytes)
        return self._memory.copy()

    def set(self, arr: np.ndarray, stream: Stream) -> None:
        assert isinstance(arr, np.ndarray)
        assert (arr.shape, arr.dtype) == (self.shape, self.dtype)
        TRANSFERS.to_device.append(arr.nbytes)
        stream.put(lambda: np.copyto(self._memory, arr))

    def __array__(self, *args: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _FUNCTIONS[func.__name__](*args, **kwargs)

    def __dlpack__(self, *, stream: int | None = None) -> DeviceArray:
        return self

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0  # the first CUDA device

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, index: Any) -> DeviceArray:
        return _wrap(self._memory[_unwrap_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._memory[_unwrap_index(index)] = _unwrap(value)

    # CuPy has these, and each copies to the host and waits for it.
    def _refuse(self, *args: Any) -> Any:
        raise AssertionError("a hidden copy to the host")

    __bool__ = __int__ = __float__ = __index__ = __iter__ = item = tolist = _refuse


def _method(name: str) -> Callable[..., DeviceArray]:
    def method(self: DeviceArray, *args: Any, **kwargs: Any) -> DeviceArray:
        return _wrap(getattr(self._memory, name)(*_unwrap(args), **kwargs))

    return method


METHODS = ("astype", "copy", "view", "reshape")
for _name in METHODS:
    setattr(DeviceArray, _name, _method(_name))
DeviceArray.__module__, DeviceArray.__name__ = "cupy", "ndarray"


def _function(name: str) -> Callable[..., Any]:
    compute = getattr(np, name)

    def function(*args: Any, **kwargs: Any) -> DeviceArray:
        with np.errstate(all="ignore"):
            return _wrap(compute(*_unwrap(args), **kwargs))

    return function


def _allocated(memory: np.ndarray) -> DeviceArray:
    """A copy at an address that CUDA could have given."""
    raw = np.empty(memory.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + memory.nbytes].view(memory.dtype).reshape(memory.shape)
    copy[...] = memory
    return DeviceArray(copy)


def _split(ary: DeviceArray, indices_or_sections: Any) -> list[DeviceArray]:
    return [_wrap(part) for part in np.split(ary._memory, indices_or_sections)]


def _asarray(a: Any) -> DeviceArray:
    if isinstance(a, DeviceArray):
        return a
    a = np.array(a)
    TRANSFERS.to_device.append(a.nbytes)
    return _allocated(a)


def _from_dlpack(array: Any) -> DeviceArray:
    assert array.__dlpack_device__()[0] == 2
    return DeviceArray(array.__dlpack__(stream=1)._memory)


def _memory(address: int, size: int, dtype: Any) -> np.ndarray:
    """An array of what lies at an address."""
    num_bytes = size * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * num_bytes).from_address(address), dtype)


def _is_sound(row: np.ndarray) -> bool:
    return bool(np.isfinite(row.max()))


# What the kernels do, with the host's functions; that they do is for a GPU to show.


def _change_logits(
    logits: np.ndarray, vocab_size: int, changes: np.ndarray, chosen: np.ndarray
) -> None:
    for fields in changes:
        row, bias_ids, bias, num_biases, end_ids, num_ends, allowed = fields[:7].tolist()
        penalties = fields[19:].view(np.float64).astype(np.float32)
        of_row = logits[row]
        seen, output = (_written(*fields[start : start + 6].tolist()) for start in (7, 13))
        chosen[row] = CHANGED if _is_sound(of_row) else NO_MAXIMUM
        if chosen[row] == NO_MAXIMUM:
            continue
        of_row[_memory(bias_ids, num_biases, np.int64)] += _memory(bias, num_biases, np.float32)
        of_row[_memory(end_ids, num_ends, np.int64)] = -np.inf
        if seen is not None:
            before = of_row[seen[0]]
            with np.errstate(over="ignore"):
                after = np.where(before > 0, before / penalties[0], before * penalties[0])
            of_row[seen[0]] = after
        if output is not None:
            of_row[output[0]] -= output[1] * penalties[1] + penalties[2]
        if allowed:
            words = _memory(allowed, -(-vocab_size // 32), np.uint32)
            of_row[~unpack_tokens(words, vocab_size)] = -np.inf


def _written(
    ids: int, counts: int, size: int, position: int, token: int, count: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens and how often they occurred, with the entry that was left to the kernel."""
    if not ids:
        return None
    arrays = _memory(ids, size, np.int64), _memory(counts, size, np.float32)
    if position >= 0:
        arrays[0][position], arrays[1][position] = token, count
    return arrays


def _take_likeliest(logits: np.ndarray, vocab_size: int, chosen: np.ndarray) -> None:
    assert logits.shape == (len(chosen), vocab_size)
    for row, of_row in enumerate(logits):
        if chosen[row] != NO_MAXIMUM:
            none = NO_TOKEN if chosen[row] == CHANGED else NO_MAXIMUM
            chosen[row] = of_row.argmax() if _is_sound(of_row) else none


def _report_logprobs(
    logits: np.ndarray, vocab_size: int, chosen: np.ndarray, num_likely: int, report: np.ndarray
) -> None:
    for of_row, token_id, line in zip(logits, chosen.tolist(), report, strict=True):
        assert 0 <= token_id < vocab_size
        sampled = with_logprobs(of_row, token_id, int(num_likely))
        likely = sampled.top_logprobs or ()
        line[:] = [
            sampled.logprob,
            *(logprob for _, logprob in likely),
            *(token_id for token_id, _ in likely),
        ]


def _draw_from_all(
    logits: np.ndarray, vocab_size: int, settings: np.ndarray, num_drawn: int, chosen: np.ndarray
) -> None:
    sampler = Sampler()
    assert (logits.shape[1], settings.shape[1]) == (vocab_size, num_drawn)
    for row, point, inverse_temperature, *_ in settings.T:
        of_row, likeliest = logits[int(row)], chosen[int(row)]
        if likeliest >= 0:
            with np.errstate(all="ignore"):
                weights = sampler._all_weights(of_row, of_row[likeliest], 1 / inverse_temperature)
            chosen[int(row)] = _draw_from_blocks(weights, point)


def _draw_from_likeliest(
    logits: np.ndarray,
    vocab_size: int,
    settings: np.ndarray,
    num_drawn: int,
    chosen: np.ndarray,
    keys: np.ndarray,
) -> None:
    """The kernel's arithmetic, on sorted tokens."""
    assert (logits.shape[1], settings.shape[1]) == (vocab_size, num_drawn)
    assert keys.shape == (num_drawn, 2, vocab_size)
    for row, point, inverse_temperature, top_p, min_p, top_k in settings.T:
        of_row, likeliest = logits[int(row)], chosen[int(row)]
        if likeliest < 0:
            continue
        order = np.argsort(-of_row, kind="stable")
        with np.errstate(all="ignore"):
            weights = np.exp((of_row[order] - of_row[likeliest]) * np.float32(inverse_temperature))
        masses = (weights * np.float32(draw_kernels.ONE)).astype(np.uint64)
        sums = np.cumsum(masses)
        kept = int(sums[int(top_k) - 1])
        if top_p < 1:
            share = max(int(np.ceil(top_p * kept)), 1)
            kept = min(kept, int(sums[np.searchsorted(sums, share)]))
        if min_p > 0:
            kept = min(kept, int(masses[weights >= min_p].sum()))
        target = min(int(point * kept), kept - 1)
        chosen[int(row)] = order[np.searchsorted(sums, target, side="right")]


_KERNELS: dict[str, Callable[..., None]] = {
    logit_kernels.CHANGE: _change_logits,
    logit_kernels.TAKE: _take_likeliest,
    logit_kernels.REPORT: _report_logprobs,
    draw_kernels.ALL: _draw_from_all,
    draw_kernels.LIKELIEST: _draw_from_likeliest,
}


class Function:
    """A kernel of a compiled module."""

    def __init__(self, name: str) -> None:
        self._compute = _KERNELS[name]

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0
    ) -> None:
        self._compute(*_unwrap(args))


class RawModule:
    def __init__(self, *, code: str) -> None:
        self._code = code

    def get_function(self, name: str) -> Function:
        assert f"void {name}(" in self._code
        return Function(name)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _function(name) for name in ("concatenate", "matmul", "ones", "repeat", "resize")},
    "empty": lambda *args: _allocated(np.empty(*args)),
    "zeros": lambda *args: _allocated(np.zeros(*args)),
    "copyto": lambda dst, src: np.copyto(_unwrap(dst), _unwrap(src)),
    "split": _split,
    "asarray": _asarray,
    "from_dlpack": _from_dlpack,
}


def fake_cupy() -> tuple[ModuleType, ModuleType]:
    """The modules cupy and cupyx, with nothing transferred yet."""
    TRANSFERS.__init__()  # type: ignore[misc]
    Stream.refuses_capture = False
    legacy = LegacyStream()
    cupy, cupyx = ModuleType("cupy"), ModuleType("cupyx")
    cupy.__dict__.update(_FUNCTIONS)
    cupy.ndarray, cupy.RawModule = DeviceArray, RawModule  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Stream=Stream, Event=Event, get_current_stream=lambda: legacy
    )
    cupyx.empty_pinned = np.empty  # type: ignore[attr-defined]
    return cupy, cupyx


def names_used() -> dict[str, list[str]]:
    """What of the real library the fake stands for, so that a machine with CuPy can look for it."""
    refused = ("item", "tolist")
    public = [n for n in vars(DeviceArray) if not n.startswith("_") and n not in refused]
    return {
        "cupy": [*_FUNCTIONS, "ndarray", "RawModule"],
        "cupy.RawModule": ["get_function"],
        "cupy.ndarray": [*public, "__array_function__", "__dlpack__", "__dlpack_device__"],
        "cupy.cuda": ["Stream", "Event", "get_current_stream"],
        "cupy.cuda.Stream": [
            *("ptr", "synchronize", "record", "wait_event", "begin_capture", "end_capture"),
        ],
        "cupy.cuda.Event": ["synchronize"],
        "cupy.cuda.Graph": ["launch"],
        "cupyx": ["empty_pinned"],
    }
