"""The KV cache's memory: one dense array per layer for keys and one for values.

Dimension letters: R rows (slots), K key-value heads, C capacity in tokens, D head size.

    row 0   | prompt and output of one request ......|  free  |
    row 1   | ...                                              running requests are kept in rows
    0..n-1, ...                                                        so a decode step binds one
    prefix view
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """

    def __init__(
        self,
        spec: GraphSpec,
        num_rows: int,
        zeros: Callable[[tuple[int, ...], str], Any] = np.zeros,
    ) -> None:
        self._arrays: dict[str, Any] = {}
        for name in spec.aliases.values():
            tensor = spec.input(name)
            shape = (num_rows, *(dim for dim in tensor.shape if isinstance(dim, int)))
            # Zeroed pages are only committed when they are written: capacity costs no memory.
            self._arrays[name] = zeros(shape, tensor.dtype)
        self.view = cache(self._view)

    @property
    def num_bytes(self) -> int:
        """Size of all arrays when every row is full."""
        return sum(int(array.nbytes) for array in self._arrays.values())

    def _view(self, start: int, stop: int) -> CacheView:
        """The same object for the same rows, so that runtimes can keep what they bind."""
        views = {name: array[start:stop] for name, array in self._arrays.items()}
        assert all(view.flags.c_contiguous for view in views.values())
        return CacheView(views)

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of a row over another."""
        for array in self._arrays.values():
            array[target, :, :num_tokens] = array[source, :, :num_tokens]
