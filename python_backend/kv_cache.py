"""The KV cache's memory: one dense array per layer for keys and one for values.

Dimension letters: R rows (slots), K key-value heads, C capacity in tokens, D head size.

    row 0   | prompt and output of one request ......|  free  |
    row 1   | ...                                              running requests are kept in rows
    0..n-1, ...                                                        so a decode step binds one
    prefix view

Which row holds what is told in `prefix_cache`.

Where a decoder attends to images by cross-attention, a row also has arrays of its request's images, which are
filled once and then only read. Of these a step binds the rows up to the last that has images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from python_backend.spec import GraphSpec


@dataclass(frozen=True, eq=False)
class CacheView:
    """Rows `start` to `stop` of every array: contiguous, so that a runtime binds them without a copy.

    Attributes:
        tensors: graph input name to its view [stop - start, K, C, D].
    """

    tensors: Mapping[str, Any]


class KVCache:
    """Arrays laid out from the decoder's contract. Owned by the engine thread.

    Args:
        spec: the decoder graph's.
        num_rows: R.
        zeros: makes an array of a shape and dtype, NumPy's or another library's with its interface.
        min_cross_rows: rows of images that a step binds even if none of them has any.
    """

    def __init__(
        self,
        spec: GraphSpec,
        num_rows: int,
        zeros: Callable[[tuple[int, ...], str], Any] = np.zeros,
        min_cross_rows: int = 0,
    ) -> None:
        self._min_cross_rows = min_cross_rows
        self._arrays = _arrays(spec, spec.aliases.values(), num_rows, zeros)
        self._cross_arrays = _arrays(spec, spec.cross_inputs, num_rows, zeros)
        self._cross_lengths = np.zeros(num_rows, np.int64)
        self._cached_view = cache(self._view)

    @property
    def num_bytes(self) -> int:
        """Size of all arrays when every row is full."""
        arrays = (*self._arrays.values(), *self._cross_arrays.values())
        return sum(int(array.nbytes) for array in arrays)

    def view(self, start: int, stop: int) -> CacheView:
        """The same object for the same rows, so that runtimes can keep what they bind."""
        return self._cached_view(start, stop, start + len(self.cross_lengths(start, stop)))

    def _view(self, start: int, stop: int, cross_stop: int) -> CacheView:
        views = {name: array[start:stop] for name, array in self._arrays.items()}
        views |= {name: array[start:cross_stop] for name, array in self._cross_arrays.items()}
        assert all(view.flags.c_contiguous for view in views.values())
        return CacheView(views)

    def cross_lengths(self, start: int, stop: int) -> np.ndarray:
        """How many positions of images each row has, int64 [X], up to the last row that has any."""
        lengths = self._cross_lengths[start:stop]
        num_rows = max(self._min_cross_rows, len(np.trim_zeros(lengths, "b")))
        return lengths[:num_rows].copy()  # the next step may change the rows

    def set_cross_length(self, row: int, length: int) -> None:
        """Say how many positions of images a new request in `row` has; whoever calls fills them."""
        self._cross_lengths[row] = length

    def copy_row(self, source: int, target: int, num_tokens: int, num_back: int = 0) -> None:
        """Copy the first `num_tokens` positions of a row over another, and all of its images.

        If `num_back` is not 0, so many positions of `target`, and all of its images, go to `source` in
        exchange.
        """
        for array in self._arrays.values():
            _copy(array, source, target, num_tokens, num_back)
        length = int(self._cross_lengths[source])
        back = int(self._cross_lengths[target]) if num_back else 0
        for array in self._cross_arrays.values():
            _copy(array, source, target, length, back)
        self._cross_lengths[target] = length
        if num_back:
            self._cross_lengths[source] = back


def _copy(array: Any, source: int, target: int, num_positions: int, num_back: int) -> None:
    back = array[target, :, :num_back].copy() if num_back else None
    array[target, :, :num_positions] = array[source, :, :num_positions]
    if back is not None:
        array[source, :, :num_back] = back


def _arrays(
    spec: GraphSpec,
    names: Iterable[str],
    num_rows: int,
    zeros: Callable[[tuple[int, ...], str], Any],
) -> dict[str, Any]:
    """An array of `num_rows` rows for each of some inputs.

    Zeroed pages are only committed when they are written: capacity costs no memory.
    """
    arrays = {}
    for name in names:
        tensor = spec.input(name)
        shape = (num_rows, *(dim for dim in tensor.shape if isinstance(dim, int)))
        arrays[name] = zeros(shape, tensor.dtype)
    return arrays
