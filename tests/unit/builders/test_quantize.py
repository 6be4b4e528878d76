import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from builders.precision import BLOCK_SIZE
from builders.quantize import block_quantize

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
    integers, scales = block_quantize(weight, bits)
    assert integers.shape == weight.shape
    assert scales.shape == (len(weight), -(-weight.shape[1] // BLOCK_SIZE))
    assert scales.dtype == np.float32
    assert integers.dtype.name == f"int{bits}"


@settings(max_examples=100, deadline=None)
@given(weights, bits)
def test_error_is_half_a_step_and_a_whole_one_only_opposite_the_peak(weight, bits):
    integers, scales = block_quantize(weight, bits)
    restored, step = _restore(integers, scales)
    error = np.abs(restored - weight)
    is_clipped = integers.astype(int) == 2 ** (bits - 1) - 1
    slack = 1e-6 * np.abs(weight) + DENORMAL
    assert (error <= np.where(is_clipped, 1.0, 0.5) * step * (1 + 1e-5) + slack).all()


@settings(max_examples=60, deadline=None)
@given(weights, bits)
def test_value_of_largest_magnitude_in_a_block_is_exact(weight, bits):
    restored, _ = _restore(*block_quantize(weight, bits))
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
    integers, scales = block_quantize(weight, bits)
    np.testing.assert_array_equal(_restore(integers, scales)[0], weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_and_blocks_do_not_influence_each_other(bits):
    weight = np.random.default_rng(0).normal(0, 1, (3, 2 * BLOCK_SIZE)).astype(np.float32)
    integers, scales = block_quantize(weight, bits)
    alone = block_quantize(weight[1:2, BLOCK_SIZE:], bits)
    np.testing.assert_array_equal(integers[1:2, BLOCK_SIZE:].astype(int), alone[0].astype(int))
    np.testing.assert_array_equal(scales[1:2, 1:], alone[1])
