"""CUDA kernels that draw tokens, one block of threads for each row of logits.

Written with CuPy's own operations a draw is some forty launches, most of which compute next to nothing, and
cuts need the whole vocabulary sorted. Here the place of a token in the order is found without sorting: by
the masses in sixteen ranges of likelihood, of which one is divided again, and so on. Masses are integers, so
that a sum does not depend on the order in which threads come.
"""

# R rows of logits, N of them that are drawn, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from python_backend.arrays import Array, array_module
from python_backend.kernels import NUM_THREADS, kernel
from python_backend.sampler_state import BLOCK, MIN_TEMPERATURE, SamplerState

ALL: Final = "draw_from_all"
LIKELIEST: Final = "draw_from_likeliest"
ONE: Final = 2**40
"""The mass of the likeliest token. Those of a million tokens fit into 64 bits."""

_SOURCE: Final = (
    f"#define BLOCK {BLOCK}\n#define ONE {ONE}.0f\n"
    + r"""
struct Row {
    const float* logits;
    int size;
    float peak, inverse_temperature;

    // To the likeliest token. Nothing is fused, so that it is the same wherever it is computed.
    __device__ float distance(float logit) const { return __fmul_rn(peak - logit, inverse_temperature); }
    // Of the likeliest token 1.
    __device__ float weight(float logit) const { return expf(-distance(logit)); }
};

// The row of this block of threads; its settings have a column for each drawn row.
__device__ Row find_row(
    const float* logits, int vocab_size, const double* settings, int num_drawn, const long long* chosen
) {
    const long long row = settings[blockIdx.x];
    logits += row * vocab_size;
    return {logits, vocab_size, logits[chosen[row]], (float)settings[2 * num_drawn + blockIdx.x]};
}

extern "C" __global__ __launch_bounds__(1024) void draw_from_all(
    const float* logits, int vocab_size, const double* settings, int num_drawn, long long* chosen
) {
    extern __shared__ float sums[];  // of every BLOCK weights
    __shared__ float weights[BLOCK];
    __shared__ int picked;
    __shared__ double point;
    if (chosen[(long long)settings[blockIdx.x]] < 0) return;
    const Row row = find_row(logits, vocab_size, settings, num_drawn, chosen);
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

typedef unsigned long long Mass;

__device__ Mass mass_of(const Row& row, unsigned key) { return (Mass)(row.weight(logit_of(key)) * ONE); }

// Of tokens with at least this key and this weight.
__device__ Mass mass_from(const Row& row, unsigned key, double weight) {
    Mass sum = 0;
    for (int i = threadIdx.x; i < row.size; i += blockDim.x)
        if (key_of(row.logits[i]) >= key && row.weight(row.logits[i]) >= weight)
            sum += mass_of(row, key_of(row.logits[i]));
    return over_threads(sum, Sum());
}

// Sixteen ranges of distances, 1 / scale wide; what is nearer belongs to the first, all beyond to the last.
struct Ranges {
    float begin, scale;

    __device__ int of(const Row& row, float logit) const {
        return (int)fminf(fmaxf((row.distance(logit) - begin) * scale, 0.0f), 15.0f);
    }
};

struct Part {
    int place;  // 0 to 15, likeliest first; others are left out
    Mass mass;
};

// What the parts of `size` tokens come to, by place.
template <class PartOf> __device__ void add_up(int size, PartOf part_of, Mass* of_places) {
    __shared__ Mass of_warps[32][16];
    Mass sums[16] = {};
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const Part part = part_of(i);
        // Unrolled, so that the sums stay in registers.
#pragma unroll
        for (int place = 0; place < 16; place++) sums[place] += part.place == place ? part.mass : 0;
    }
#pragma unroll
    for (int place = 0; place < 16; place++) {
        for (int i = 16; i; i /= 2) sums[place] += __shfl_xor_sync(~0u, sums[place], i);
        if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32][place] = sums[place];
    }
    __syncthreads();
    if (threadIdx.x < 16) {
        Mass sum = 0;
        for (int i = 0; i < 32; i++) sum += of_warps[i][threadIdx.x];
        of_places[threadIdx.x] = sum;
    }
    __syncthreads();
}

// The place in which the sum, with what is above, exceeds `target`; `above` becomes what is before it.
__device__ int find_place(const Mass* of_places, Mass target, Mass& above) {
    int place = 0;
    for (; place < 15 && above + of_places[place] <= target; place++) above += of_places[place];
    return place;
}

// The keys that `is_wanted` finds among `size`, in any order; how many they are.
template <class IsWanted> __device__ int collect(int size, IsWanted is_wanted, unsigned* keys) {
    __shared__ int count;
    __syncthreads();  // who reads the last count, or what lies at `keys`, is done
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    for (int start = 0; start < size; start += blockDim.x) {
        unsigned key = 0;
        const bool wanted = start + threadIdx.x < size && is_wanted(start + threadIdx.x, key);
        const unsigned lanes = __ballot_sync(~0u, wanted);
        int offset = 0;
        if (lane == 0 && lanes) offset = atomicAdd(&count, __popc(lanes));
        offset = __shfl_sync(~0u, offset, 0);
        if (wanted) keys[offset + __popc(lanes & ((1u << lane) - 1))] = key;
    }
    __syncthreads();
    return count;
}

// A row with what is known of it before anything is searched: masses, or numbers, by coarse ranges.
struct Search {
    const Row& row;
    unsigned* keys;  // room for two of every token
    Mass* of_ranges;
    bool are_counted;

    __device__ Ranges coarse() const { return {0, 0.5f}; }

    __device__ Mass mass(unsigned key) const { return are_counted ? 1 : mass_of(row, key); }

    __device__ void begin() {
        add_up(row.size, [&](int i) {
            const float logit = row.logits[i];
            return Part{coarse().of(row, logit), mass(key_of(logit))};
        }, of_ranges);
    }

    __device__ Mass total() const {
        Mass sum = 0;
        for (int place = 0; place < 16; place++) sum += of_ranges[place];
        return sum;
    }
};

struct Place {
    unsigned key;
    Mass above;  // of greater keys
};

// Where, likeliest first, the sum of masses exceeds `target`; or the number of tokens, if they are counted.
__device__ Place find(const Search& search, Mass target) {
    __shared__ Mass of_places[16];
    const Row& row = search.row;
    unsigned *in_range = search.keys, *in_fine_range = search.keys + row.size;
    Place found = {0, 0};
    const Ranges coarse = search.coarse();
    const int range = find_place(search.of_ranges, target, found.above);
    int count = collect(row.size, [&](int i, unsigned& key) {
        key = key_of(row.logits[i]);
        return coarse.of(row, row.logits[i]) == range;
    }, in_range);

    const Ranges fine = {range / coarse.scale, 16 * coarse.scale};
    add_up(count, [&](int i) {
        return Part{fine.of(row, logit_of(in_range[i])), search.mass(in_range[i])};
    }, of_places);
    const int fine_range = find_place(of_places, target, found.above);
    count = collect(count, [&](int i, unsigned& key) {
        key = in_range[i];
        return fine.of(row, logit_of(key)) == fine_range;
    }, in_fine_range);

    // Now by the bits of the keys themselves, four after the other.
    for (int shift = 28; shift >= 0; shift -= 4) {
        add_up(count, [&](int i) {
            const unsigned key = in_fine_range[i];
            const bool is_here = shift == 28 || key >> (shift + 4) == found.key >> (shift + 4);
            return Part{is_here ? (int)(15 - (key >> shift & 15)) : -1, search.mass(key)};
        }, of_places);
        found.key |= (unsigned)(15 - find_place(of_places, target, found.above)) << shift;
    }
    return found;
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
    const float* logits, int vocab_size, const double* settings, int num_drawn, long long* chosen,
    unsigned* keys
) {
    __shared__ Mass of_masses[16], of_numbers[16];
    const double* mine = settings + blockIdx.x;
    if (chosen[(long long)mine[0]] < 0) return;
    const double point = mine[num_drawn], top_p = mine[3 * num_drawn], min_p = mine[4 * num_drawn];
    const long long top_k = (long long)mine[5 * num_drawn];
    const Row row = find_row(logits, vocab_size, settings, num_drawn, chosen);
    keys += 2ll * blockIdx.x * vocab_size;
    Search masses = {row, keys, of_masses, false};
    masses.begin();
    Mass kept = masses.total();
    if (top_k < vocab_size) {
        Search numbers = {row, keys, of_numbers, true};
        numbers.begin();
        const Place place = find(numbers, top_k - 1);
        const Mass above = place.key == ~0u ? 0 : mass_from(row, place.key + 1, 0);
        kept = above + (top_k - place.above) * mass_of(row, place.key);
    }
    if (top_p < 1) {
        const Mass share = max((Mass)ceil(top_p * (double)kept), 1ull);
        const Place place = find(masses, share - 1);
        const Mass each = max(mass_of(row, place.key), 1ull);
        kept = min(kept, place.above + ((share - 1 - place.above) / each + 1) * each);
    }
    if (min_p > 0) kept = min(kept, mass_from(row, 0, min_p));
    const Mass target = min((Mass)(point * (double)kept), kept - 1);
    const Place place = find(masses, target);
    const Mass each = max(mass_of(row, place.key), 1ull);
    const int token = token_at(row, place.key, (target - place.above) / each);
    if (threadIdx.x == 0) chosen[(long long)mine[0]] = token;
}
"""
)


def compile_kernels(xp: Any) -> None:
    """Compile what `draw` launches, so that no step waits for it."""
    for name in (ALL, LIKELIEST):
        kernel(xp, _SOURCE, name)


def draw(logits: Array, states: Sequence[SamplerState], chosen: Array) -> None:
    """Draw a token of each row that is not greedy, by inverse distribution function.

    Args:
        logits: float32 [R, V] on a device.
        states: one per row; a random number is taken of those that are drawn.
        chosen: int64 [R] on the device, the likeliest tokens; gets those that are drawn, except where a row
            has none.
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
    arguments: tuple[Any, ...] = (
        *(logits, np.int32(vocab_size)),
        *(xp.asarray(settings), np.int32(num_drawn), chosen),
    )
    if name == ALL:
        shared_mem = 4 * -(-vocab_size // BLOCK)
    else:
        shared_mem = 0
        arguments += (xp.empty((num_drawn, 2, vocab_size), np.uint32),)
    launch = kernel(xp, _SOURCE, name)
    launch((num_drawn,), (NUM_THREADS,), arguments, shared_mem=shared_mem)
