"""CUDA kernels that draw tokens, one block of threads for each row of logits.

Written with CuPy's own operations a draw is some forty launches, most of which compute next to nothing, and
cuts need the whole vocabulary sorted. Here the place of a token in the order is found without sorting: four
bits of its logit after the other, by the masses of what is above. Masses are integers, so that a sum does not
depend on the order in which threads come.
"""

# R rows of logits, N of them that are drawn, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np

from python_backend.arrays import Array, array_module
from python_backend.sampler_state import BLOCK, MIN_TEMPERATURE, SamplerState

ALL: Final = "draw_from_all"
LIKELIEST: Final = "draw_from_likeliest"
ONE: Final = 2**40
"""The mass of the likeliest token. Those of a million tokens fit into 64 bits."""
_NUM_THREADS: Final = 1024
"""Of the CUDA block that draws a row; the kernels rely on 32 warps."""

_COMMON: Final = (
    f"#define BLOCK {BLOCK}\n#define ONE {ONE}.0f\n"
    + r"""
struct Row {
    const float* logits;
    int size;
    float peak, inverse_temperature;

    // Of the likeliest token 1.
    __device__ float weight(float logit) const { return expf((logit - peak) * inverse_temperature); }
};

// The row of this block of threads; its settings have a column for each drawn row.
__device__ Row find_row(const float* logits, int vocab_size, const double* settings, int num_drawn) {
    __shared__ float peaks[32];
    const int lane = threadIdx.x % 32;
    logits += (long long)settings[blockIdx.x] * vocab_size;
    float peak = logits[0];
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) peak = fmaxf(peak, logits[i]);
    for (int i = 16; i; i /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, i));
    if (lane == 0) peaks[threadIdx.x / 32] = peak;
    __syncthreads();
    peak = peaks[lane];
    for (int i = 16; i; i /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, i));
    return {logits, vocab_size, peak, (float)settings[2 * num_drawn + blockIdx.x]};
}
"""
)

_FROM_ALL: Final = r"""
extern "C" __global__ __launch_bounds__(1024) void draw_from_all(
    const float* logits, int vocab_size, const double* settings, int num_drawn, long long* chosen
) {
    extern __shared__ float sums[];  // of every BLOCK weights
    __shared__ float weights[BLOCK];
    __shared__ int picked;
    __shared__ double point;
    const Row row = find_row(logits, vocab_size, settings, num_drawn);
    const int num_blocks = (vocab_size + BLOCK - 1) / BLOCK;
    for (int block = threadIdx.x / 32; block < num_blocks; block += blockDim.x / 32) {
        const int end = min((block + 1) * BLOCK, vocab_size);
        float sum = 0;
        for (int i = block * BLOCK + threadIdx.x % 32; i < end; i += 32) sum += row.weight(row.logits[i]);
        for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (threadIdx.x % 32 == 0) sums[block] = sum;
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
        weights[i] = token < vocab_size ? row.weight(row.logits[token]) : 0;
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
        chosen[(long long)settings[blockIdx.x]] = picked * BLOCK + place;
    }
}
"""

_FROM_LIKELIEST: Final = r"""
typedef unsigned long long Mass;

// Greater for greater logits.
__device__ unsigned key_of(float logit) {
    const unsigned bits = __float_as_uint(logit + 0.0f);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

__device__ Mass mass_of(const Row& row, unsigned key) {
    return (Mass)(row.weight(__uint_as_float(key >> 31 ? key & ~(1u << 31) : ~key)) * ONE);
}

__device__ Mass sum_of_threads(Mass value) {
    __shared__ Mass sums[32];
    for (int i = 16; i; i /= 2) value += __shfl_xor_sync(~0u, value, i);
    __syncthreads();  // who reads the last sums is done
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    value = sums[threadIdx.x % 32];
    for (int i = 16; i; i /= 2) value += __shfl_xor_sync(~0u, value, i);
    return value;
}

// Of tokens with at least this key and this weight.
__device__ Mass mass_from(const Row& row, unsigned key, double weight) {
    Mass sum = 0;
    for (int i = threadIdx.x; i < row.size; i += blockDim.x)
        if (key_of(row.logits[i]) >= key && row.weight(row.logits[i]) >= weight)
            sum += mass_of(row, key_of(row.logits[i]));
    return sum_of_threads(sum);
}

struct Place {
    unsigned key;
    Mass above;  // of greater keys
};

// Where, likeliest first, the sum of masses exceeds `target`; or the number of tokens, if they are counted.
__device__ Place find(const Row& row, Mass target, bool are_counted) {
    __shared__ Mass of_warps[32][16], of_all[16];
    Place place = {0, 0};
    for (int shift = 28; shift >= 0; shift -= 4) {
        Mass sums[16] = {};
        for (int i = threadIdx.x; i < row.size; i += blockDim.x) {
            const unsigned key = key_of(row.logits[i]);
            if (shift < 28 && key >> (shift + 4) != place.key >> (shift + 4)) continue;
            const Mass mass = are_counted ? 1 : mass_of(row, key);
            // Unrolled, so that the sums stay in registers.
#pragma unroll
            for (int digit = 0; digit < 16; digit++) sums[digit] += (key >> shift & 15) == digit ? mass : 0;
        }
#pragma unroll
        for (int digit = 0; digit < 16; digit++) {
            for (int i = 16; i; i /= 2) sums[digit] += __shfl_xor_sync(~0u, sums[digit], i);
            if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32][digit] = sums[digit];
        }
        __syncthreads();
        if (threadIdx.x < 16) {
            Mass sum = 0;
            for (int i = 0; i < 32; i++) sum += of_warps[i][threadIdx.x];
            of_all[threadIdx.x] = sum;
        }
        __syncthreads();
        int digit = 15;
        for (; digit > 0 && place.above + of_all[digit] <= target; digit--) place.above += of_all[digit];
        place.key |= (unsigned)digit << shift;
    }
    return place;
}

// The token with this key that has `index` others of it before.
__device__ int token_at(const Row& row, unsigned key, long long index) {
    __shared__ int of_warps[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int start = 0; start < row.size; start += blockDim.x) {
        const int token = start + threadIdx.x;
        const bool has_key = token < row.size && key_of(row.logits[token]) == key;
        const int count = __syncthreads_count(has_key);
        if (index >= count) {
            index -= count;
            continue;
        }
        const unsigned lanes = __ballot_sync(~0u, has_key);
        if (lane == 0) of_warps[warp] = __popc(lanes);
        __syncthreads();
        int before = __popc(lanes & ((1u << lane) - 1));
        for (int i = 0; i < warp; i++) before += of_warps[i];
        __shared__ int found;
        if (has_key && before == index) found = token;
        __syncthreads();
        return found;
    }
    return 0;
}

extern "C" __global__ __launch_bounds__(1024) void draw_from_likeliest(
    const float* logits, int vocab_size, const double* settings, int num_drawn, long long* chosen
) {
    const double* mine = settings + blockIdx.x;
    const double point = mine[num_drawn], top_p = mine[3 * num_drawn], min_p = mine[4 * num_drawn];
    const long long top_k = (long long)mine[5 * num_drawn];
    const Row row = find_row(logits, vocab_size, settings, num_drawn);
    Mass kept;
    if (top_k < vocab_size) {
        const Place place = find(row, top_k - 1, true);
        const Mass above = place.key == ~0u ? 0 : mass_from(row, place.key + 1, 0);
        kept = above + (top_k - place.above) * mass_of(row, place.key);
    } else {
        kept = mass_from(row, 0, 0);
    }
    if (top_p < 1) {
        const Mass share = max((Mass)ceil(top_p * (double)kept), 1ull);
        const Place place = find(row, share - 1, false);
        const Mass each = max(mass_of(row, place.key), 1ull);
        kept = min(kept, place.above + ((share - 1 - place.above) / each + 1) * each);
    }
    if (min_p > 0) kept = min(kept, mass_from(row, 0, min_p));
    if (kept == 0) return;  // the logits are not numbers, which the caller sees
    const Mass target = min((Mass)(point * (double)kept), kept - 1);
    const Place place = find(row, target, false);
    const Mass each = max(mass_of(row, place.key), 1ull);
    const int token = token_at(row, place.key, (target - place.above) / each);
    if (threadIdx.x == 0) chosen[(long long)mine[0]] = token;
}
"""


@cache
def _kernel(xp: Any, name: str) -> Any:
    return xp.RawKernel(_COMMON + (_FROM_ALL if name == ALL else _FROM_LIKELIEST), name)


def draw(logits: Array, states: Sequence[SamplerState], chosen: Array) -> None:
    """Draw a token of each row that is not greedy, by inverse distribution function.

    Args:
        logits: float32 [R, V] on a device.
        states: one per row; a random number is taken of those that are drawn.
        chosen: int64 [R] on the device; gets the tokens of the rows that are drawn.
    """
    vocab_size = logits.shape[1]
    settings: dict[str, list[tuple[float, ...]]] = {ALL: [], LIKELIEST: []}
    for row, state in enumerate(states):
        params = state.params
        if params.is_greedy:
            continue
        top_k = min(params.top_k or vocab_size, vocab_size)
        is_cut = top_k < vocab_size or params.top_p < 1 or params.min_p > 0
        inverse_temperature = 1 / max(params.temperature, MIN_TEMPERATURE)
        settings[LIKELIEST if is_cut else ALL].append(
            (
                *(row, state.generator.random(), inverse_temperature),
                *(params.top_p, params.min_p, top_k),
            )
        )
    for name, drawn in settings.items():
        if drawn:
            _launch(name, logits, np.ascontiguousarray(np.array(drawn).T), chosen)


def _launch(name: str, logits: Array, settings: np.ndarray, chosen: Array) -> None:
    """Run a kernel on some rows.

    Args:
        name: of the kernel.
        logits: float32 [R, V] on a device.
        settings: float64 [6, N]: row, random number, inverse temperature, top-p, min-p, top-k (V for all).
        chosen: int64 [R] on the device.
    """
    xp = array_module(logits)
    assert logits.flags.c_contiguous
    vocab_size, num_drawn = logits.shape[1], settings.shape[1]
    _kernel(xp, name)(
        (num_drawn,),
        (_NUM_THREADS,),
        (logits, np.int32(vocab_size), xp.asarray(settings), np.int32(num_drawn), chosen),
        shared_mem=4 * -(-vocab_size // BLOCK) if name == ALL else 0,
    )
