"""Weight-only quantization: how a linear layer's weight is rounded, and how the graph restores it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from builders.blocks import INTEGERS, block_attributes
from builders.precision import INT8_BLOCK_SIZE, Precision

_LARGEST = {ir.DataType.INT8: 127, ir.DataType.FLOAT8E4M3FN: 448}
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Quantization:
    """Of the weights of linear layers.

    Attributes:
        dtype: INT4, INT8 or FLOAT8E4M3FN.
        block_size: input features of an output feature that share a scale; None if all do.
        has_signed_scales: whether scales may be negative.
    """

    dtype: ir.DataType
    block_size: int | None
    has_signed_scales: bool

    @classmethod
    def of(cls, precision: Precision) -> Quantization | None:
        """What a precision asks for; None if weights stay as they are.

        8 bits have no blocks on TensorRT: it restores such weights inside the matrix product if all of an
        output feature's have one scale, but whole matrices, in memory and at every step, if they have blocks.
        """
        if precision.weight_bits is None:
            return None
        block_size = precision.group_size if precision.weight_bits == 4 else INT8_BLOCK_SIZE
        dtype = INTEGERS[precision.weight_bits]
        if precision.is_float8:
            dtype = ir.DataType.FLOAT8E4M3FN
        has_blocks = precision.weight_bits == 4 or not precision.for_tensorrt
        return cls(dtype, block_size if has_blocks else None, not precision.for_tensorrt)

    def quantize(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round a weight [out, in].

        Returns:
            Values [out, in] in NumPy's type of `dtype`, and scales float32 [out, blocks], or [out] without
            blocks.
        """
        if self.block_size is not None:
            bits = 4 if self.dtype == ir.DataType.INT4 else 8
            return block_quantize(
                weight, bits, self.block_size, has_signed_scales=self.has_signed_scales
            )
        return channel_quantize(weight, self.dtype)

    def scale_shape(self, num_in: int, num_out: int) -> list[int]:
        """Shape of the scales in a graph, where weights are [num_in, num_out]."""
        return [num_out] if self.block_size is None else [-(-num_in // self.block_size), num_out]

    @property
    def attributes(self) -> Mapping[str, int]:
        """Of the `DequantizeLinear` that restores weights [in, out]."""
        return {"axis": 1} if self.block_size is None else block_attributes(self.block_size)

    def rounded(self, weight: np.ndarray) -> np.ndarray:
        """What is left of a weight [out, in], float32."""
        values, scales = self.quantize(weight)
        if self.block_size is None:
            scales = scales[:, None]
        else:
            scales = np.repeat(scales, self.block_size, axis=1)[:, : values.shape[1]]
        restored: np.ndarray = values.astype(np.float32) * scales
        return restored


def channel_quantize(weight: np.ndarray, dtype: ir.DataType) -> tuple[np.ndarray, np.ndarray]:
    """Quantize each row; its value of largest magnitude maps to the largest of `dtype`, or its negative.

    Args:
        weight: [rows, features], any float dtype.
        dtype: INT8 or FLOAT8E4M3FN.

    Returns:
        Values [rows, features] and positive scales float32 [rows], 1 for a row of zeros; `values * scales`
        approximates `weight`.
    """
    return _by_rows(functools.partial(_quantize_channels, dtype=dtype), weight)


def _quantize_channels(weight: np.ndarray, dtype: ir.DataType) -> tuple[np.ndarray, np.ndarray]:
    rows, largest = weight.astype(np.float32), np.float32(_LARGEST[dtype])
    scales = np.abs(rows).max(axis=1) / largest
    # A row of denormal numbers is zero: the inverse of its scale would overflow.
    scales[scales < np.finfo(np.float32).tiny] = 1
    values = np.clip(rows / scales[:, None], -largest, largest)
    return (np.rint(values) if dtype == ir.DataType.INT8 else values).astype(dtype.numpy()), scales


def block_quantize(
    weight: np.ndarray, bits: int, block_size: int, *, has_signed_scales: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize each run of `block_size` values along the last axis.

    The value of largest magnitude maps to the most negative integer exactly, so that all 2**bits
    levels are used; its sign goes into the scale. With scales that must be positive it maps to the largest
    integer or to its negative, and one level is unused.

    Args:
        weight: [rows, features], any float dtype.
        bits: 4 or 8.
        block_size: values that share a scale.
        has_signed_scales: whether scales may be negative; if not, that of a block of zeros is 1.

    Returns:
        Integers int4 or int8 [rows, features] and scales float32 [rows, ceil(features /
        block_size)]; `integers * scales` approximates `weight`.

    Source: the rounding of `quantize_row_q4_0_ref` in ggml-quants.c, with `bits` for its 4.
    """
    round_rows = functools.partial(
        _quantize_blocks, bits=bits, block_size=block_size, has_signed_scales=has_signed_scales
    )
    return _by_rows(round_rows, weight)


def _quantize_blocks(
    weight: np.ndarray, bits: int, block_size: int, has_signed_scales: bool
) -> tuple[np.ndarray, np.ndarray]:
    num_rows, num_features = weight.shape
    num_blocks = -(-num_features // block_size)
    lowest = -(2 ** (bits - 1))
    blocks = np.zeros((num_rows, num_blocks * block_size), np.float32)
    blocks[:, :num_features] = weight
    blocks = blocks.reshape(num_rows, num_blocks, block_size)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scales = peaks / lowest if has_signed_scales else np.abs(peaks) / (-lowest - 1)
    # A block of denormal numbers is zero: the inverse of its scale would overflow.
    scales[np.abs(scales) < np.finfo(np.float32).tiny] = 0
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    integers = np.clip(np.rint(blocks * inverse), lowest, -lowest - 1)
    if not has_signed_scales:
        scales[scales == 0] = 1
    integers = integers.reshape(num_rows, -1)[:, :num_features]
    dtype = ml_dtypes.int4 if bits == 4 else np.int8
    return integers.astype(dtype), scales[:, :, 0]


def _by_rows(
    round_rows: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows at a time: what is computed on the way to a whole embedding table's would be gigabytes."""
    step = max(1, _VALUES_AT_ONCE // weight.shape[1])
    parts = [round_rows(weight[start : start + step]) for start in range(0, len(weight), step)]
    values, scales = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(scales)
