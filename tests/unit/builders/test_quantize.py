import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from builders import quantize
from builders.quantize import block_quantize, channel_quantize

BLOCK_SIZE = 32
weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 3 * BLOCK_SIZE + 5)),
    elements=st.floats(-(2.0**99), 2.0**99, width=32),
)
bits = st.sampled_from([4, 8])
DENORMAL = 2e-36  # a block whose values are all below becomes zeros


def _restore(integers, scales):
    spread = np.repeat(scales, BLOCK_SIZE, axis=1)[:, : integers.shape[1]]
    return integers.astype(np.float64) * spread, np.abs(spread)


@settings(max_examples=60, deadline=None)
@given(weights, bits)
def test_integers_and_scales_have_the_shapes_of_the_graph(weight, bits):
    integers, scales = block_quantize(weight, bits, BLOCK_SIZE)
    assert integers.shape == weight.shape
    assert scales.shape == (len(weight), -(-weight.shape[1] // BLOCK_SIZE))
    assert scales.dtype == np.float32
    assert integers.dtype.name == f"int{bits}"


@settings(max_examples=100, deadline=None)
@given(weights, bits)
def test_error_is_half_a_step_and_a_whole_one_only_opposite_the_peak(weight, bits):
    integers, scales = block_quantize(weight, bits, BLOCK_SIZE)
    restored, step = _restore(integers, scales)
    error = np.abs(restored - weight)
    is_clipped = integers.astype(int) == 2 ** (bits - 1) - 1
    slack = 1e-6 * np.abs(weight) + DENORMAL
    assert (error <= np.where(is_clipped, 1.0, 0.5) * step * (1 + 1e-5) + slack).all()


@settings(max_examples=60, deadline=None)
@given(weights, bits)
def test_value_of_largest_magnitude_in_a_block_is_exact(weight, bits):
    restored, _ = _restore(*block_quantize(weight, bits, BLOCK_SIZE))
    for start in range(0, weight.shape[1], BLOCK_SIZE):
        block = weight[:, start : start + BLOCK_SIZE]
        peak = np.abs(block).argmax(axis=1)[:, None]
        expected = np.take_along_axis(block, peak, axis=1)
        found = np.take_along_axis(restored[:, start : start + BLOCK_SIZE], peak, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=DENORMAL)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros_beside_other_blocks(bits):
    weight = np.zeros((2, BLOCK_SIZE + 3), np.float32)
    weight[1, BLOCK_SIZE] = 7
    integers, scales = block_quantize(weight, bits, BLOCK_SIZE)
    np.testing.assert_array_equal(_restore(integers, scales)[0], weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_and_blocks_do_not_influence_each_other(bits):
    weight = np.random.default_rng(0).normal(0, 1, (3, 2 * BLOCK_SIZE)).astype(np.float32)
    integers, scales = block_quantize(weight, bits, BLOCK_SIZE)
    alone = block_quantize(weight[1:2, BLOCK_SIZE:], bits, BLOCK_SIZE)
    np.testing.assert_array_equal(integers[1:2, BLOCK_SIZE:].astype(int), alone[0].astype(int))
    np.testing.assert_array_equal(scales[1:2, 1:], alone[1])


channel_dtypes = st.sampled_from([ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN])


@settings(max_examples=100, deadline=None)
@given(weights, channel_dtypes)
def test_rows_have_one_positive_scale_and_are_off_by_half_a_step(weight, dtype):
    values, scales = channel_quantize(weight, dtype)
    assert (values.shape, scales.shape) == (weight.shape, weight.shape[:1])
    assert values.dtype == dtype.numpy()
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    error = np.abs(values.astype(np.float64) * scales[:, None] - weight)
    # E4M3 has 3 bits after the first one, and a step of 2^-9 below 2^-6.
    step = 1.0 if dtype == ir.DataType.INT8 else np.maximum(np.abs(values.astype(float)) / 8, 2**-9)
    assert (error <= 0.5 * step * scales[:, None] * (1 + 1e-5) + DENORMAL).all()


@pytest.mark.parametrize(
    ("dtype", "largest"), [(ir.DataType.INT8, 127), (ir.DataType.FLOAT8E4M3FN, 448)]
)
def test_largest_value_of_a_row_is_exact_and_a_row_of_zeros_stays_one(dtype, largest):
    weight = np.array([[0.1, -3.0, 0.2], [0.0, 0.0, 0.0], [5.0, 5.0, -1.0]], np.float32)
    values, scales = channel_quantize(weight, dtype)
    assert values[0, 1] == -largest
    assert values[2].tolist()[:2] == [largest, largest]
    assert values[1].tolist() == [0, 0, 0]
    np.testing.assert_allclose(scales, [3 / largest, 1, 5 / largest], rtol=1e-6)


def test_a_large_weight_is_rounded_some_rows_at_a_time_with_the_same_result(monkeypatch):
    weight = np.random.default_rng(0).normal(0, 1, (7, 2 * BLOCK_SIZE)).astype(np.float32)
    whole = [block_quantize(weight, 4, BLOCK_SIZE), channel_quantize(weight, ir.DataType.INT8)]
    monkeypatch.setattr(quantize, "_VALUES_AT_ONCE", 3 * weight.shape[1])
    parts = [block_quantize(weight, 4, BLOCK_SIZE), channel_quantize(weight, ir.DataType.INT8)]
    for (values, scales), (part_values, part_scales) in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(part_values.astype(int), values.astype(int))
        np.testing.assert_array_equal(part_scales, scales)
