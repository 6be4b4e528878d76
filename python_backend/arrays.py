"""Arrays of the host (NumPy) and of a device (CuPy), told apart without importing CuPy."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy array, or a CuPy array, which has the same interface."""


def array_module(array: Array) -> Any:
    """The module that computes with `array`: NumPy or CuPy."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def to_host(array: Array) -> np.ndarray:
    """`array` in the host's memory; copied, and waited for, only if it is elsewhere."""
    host: np.ndarray = array if isinstance(array, np.ndarray) else array.get()
    return host
