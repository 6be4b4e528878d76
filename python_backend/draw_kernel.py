"""One CUDA kernel that draws tokens from the whole vocabulary.

Written with CuPy's own operations a draw is some forty launches, most of which compute next to nothing.
"""

# R rows of logits, N of them that are drawn, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np

from python_backend.arrays import Array, array_module
from python_backend.sampler_state import BLOCK, MIN_TEMPERATURE, SamplerState

NAME: Final = "draw"
_NUM_THREADS: Final = 1024
"""Of the CUDA block that draws a row; the kernel relies on 32 warps."""

_SOURCE: Final = (
    f"const int BLOCK = {BLOCK};"
    + r"""
__device__ float weight(const float* logits, int token, float peak, float inverse_temperature) {
    return expf((logits[token] - peak) * inverse_temperature);
}

extern "C" __global__ void draw(
    const float* logits, int vocab_size, const double* settings, int num_drawn, long long* chosen
) {
    extern __shared__ float sums[];  // of every BLOCK weights
    __shared__ float peaks[32], weights[BLOCK];
    __shared__ int picked;
    __shared__ double point;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    const long long row = (long long)settings[blockIdx.x];
    const float inverse_temperature = (float)settings[2 * num_drawn + blockIdx.x];
    logits += row * vocab_size;

    float peak = logits[0];
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) peak = fmaxf(peak, logits[i]);
    for (int i = 16; i; i /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, i));
    if (lane == 0) peaks[warp] = peak;
    __syncthreads();
    peak = peaks[lane];
    for (int i = 16; i; i /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, i));

    const int num_blocks = (vocab_size + BLOCK - 1) / BLOCK;
    for (int block = warp; block < num_blocks; block += num_warps) {
        const int end = min((block + 1) * BLOCK, vocab_size);
        float sum = 0;
        for (int i = block * BLOCK + lane; i < end; i += 32)
            sum += weight(logits, i, peak, inverse_temperature);
        for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (lane == 0) sums[block] = sum;
    }
    __syncthreads();

    // First the block that the random number falls into, then the place in it.
    if (threadIdx.x == 0) {
        double total = 0, before = 0;
        int last = 0, block = 0;
        for (int i = 0; i < num_blocks; i++) {
            total += sums[i];
            if (sums[i] > 0) last = i;
        }
        const double target = settings[num_drawn + blockIdx.x] * total;
        while (block < last && before + sums[block] <= target) before += sums[block++];
        picked = block;
        point = (target - before) / sums[block];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BLOCK; i += blockDim.x) {
        const int token = picked * BLOCK + i;
        weights[i] = token < vocab_size ? weight(logits, token, peak, inverse_temperature) : 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        int last = 0, place = 0;
        for (int i = 0; i < BLOCK; i++) {
            total += weights[i];
            if (weights[i] > 0) last = i;
        }
        double sum = weights[0];
        while (place < last && sum <= point * total) sum += weights[++place];
        chosen[row] = picked * BLOCK + place;
    }
}
"""
)


@cache
def _kernel(xp: Any) -> Any:
    return xp.RawKernel(_SOURCE, NAME)


def draw(logits: Array, states: Sequence[SamplerState], rows: Sequence[int], chosen: Array) -> None:
    """Draw a token of each of some rows by inverse distribution function.

    Args:
        logits: float32 [R, V] on a device.
        states: one per row of logits; a random number is taken of those that are drawn.
        rows: which are drawn, N of them.
        chosen: int64 [R] on the device; gets their tokens.
    """
    xp = array_module(logits)
    vocab_size = logits.shape[1]
    settings = np.array(
        [
            (
                row,
                states[row].generator.random(),
                1 / max(states[row].params.temperature, MIN_TEMPERATURE),
            )
            for row in rows
        ]
    )
    assert logits.flags.c_contiguous
    _kernel(xp)(
        (len(rows),),
        (_NUM_THREADS,),
        (
            *(logits, np.int32(vocab_size)),
            *(xp.asarray(np.ascontiguousarray(settings.T)), np.int32(len(rows)), chosen),
        ),
        shared_mem=4 * -(-vocab_size // BLOCK),
    )
