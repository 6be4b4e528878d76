"""`EngineRuntime`: one graph, loaded and ready to run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from python_backend.arrays import Array
from python_backend.kv_cache import CacheView
from python_backend.spec import GraphSpec


class EngineRuntime(ABC):
    """One graph in one engine. Owned by one thread.

    A runtime is its constructor (load the file, compare it with `spec`), `_run` and `close`; names,
    dtypes and shapes are checked here, once for all of them.
    """

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec

    def run(self, feeds: Mapping[str, Array], cache: CacheView | None = None) -> dict[str, Array]:
        """Compute the outputs.

        Args:
            feeds: exactly the spec's `fed_inputs`, each on the host or where the graph computes.
            cache: memory of the aliased inputs and outputs, updated in place; None if the graph has
                none. Its first axis is the feeds' row axis.

        Returns:
            The spec's `computed_outputs`, where the graph computes; valid until the next call.

        Raises:
            EngineError: a feed is missing, unknown, or of the wrong dtype or shape.
        """
        self.spec.check(feeds)
        return self._run(feeds, cache)

    @property
    def min_rows(self) -> int:
        """The fewest rows of an axis that needs none: an engine may have no kernel for an empty tensor."""
        return 0

    @property
    def gives_many_logits(self) -> bool:
        """Whether several positions of each row can be computed, and have logits, in one call."""
        return True

    @property
    def is_asynchronous(self) -> bool:
        """Whether `run` returns before the outputs are computed; who reads them waits."""
        return False

    @property
    def array_module(self) -> Any:
        """The module of the arrays where the graph computes: NumPy, or CuPy."""
        return np

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array of zeros where the graph computes, for its cache."""
        return np.zeros(shape, dtype)

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array], cache: CacheView | None) -> dict[str, Array]: ...

    @abstractmethod
    def close(self) -> None:
        """Free the engine; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
