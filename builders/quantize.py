"""Block weight-only quantization: signed integers with one scale per block of input features."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from builders.precision import BLOCK_SIZE


def block_quantize(
    weight: np.ndarray, bits: int, *, has_signed_scales: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize each run of `BLOCK_SIZE` values along the last axis.

    The value of largest magnitude maps to the most negative integer exactly, so that all 2**bits
    levels are used; its sign goes into the scale. With scales that must be positive it maps to the largest
    integer or to its negative, and one level is unused.

    Args:
        weight: [rows, features], any float dtype.
        bits: 4 or 8.
        has_signed_scales: whether scales may be negative; if not, that of a block of zeros is 1.

    Returns:
        Integers int4 or int8 [rows, features] and scales float32 [rows, ceil(features /
        BLOCK_SIZE)]; `integers * scales` approximates `weight`.

    Source: the rounding of `quantize_row_q4_0_ref` in ggml-quants.c, with `bits` for its 4.
    """
    num_rows, num_features = weight.shape
    num_blocks = -(-num_features // BLOCK_SIZE)
    lowest = -(2 ** (bits - 1))
    blocks = np.zeros((num_rows, num_blocks * BLOCK_SIZE), np.float32)
    blocks[:, :num_features] = weight
    blocks = blocks.reshape(num_rows, num_blocks, BLOCK_SIZE)
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
