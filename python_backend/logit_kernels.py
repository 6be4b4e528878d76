"""CUDA kernels on rows of logits: what requests change, the likeliest tokens, and log probabilities.

Written with CuPy's own operations, penalties are ten launches for each row of a step, and log probabilities
sort the vocabulary.
"""

# R rows of logits, N of them that something is done to, V vocabulary, K reported tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from python_backend.arrays import Array, array_module
from python_backend.kernels import NUM_THREADS, kernel
from python_backend.sampler_state import SamplerState, TokenCounts

CHANGE: Final = "change_logits"
TAKE: Final = "take_likeliest"
REPORT: Final = "report_logprobs"

_SOURCE: Final = r"""
// Key and id of a token: the likelier it is the greater, and of equal ones the lower id is greater.
typedef unsigned long long Ranked;
#define UNSOUND ~0ull

__device__ int id_of(Ranked token) { return (int)~(unsigned)token; }

// Of the tokens below a limit; 0 if there are none, UNSOUND if a logit is not a number or infinite.
__device__ Ranked likeliest(const float* logits, int vocab_size, Ranked limit) {
    Ranked best = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        const float logit = logits[i];
        const Ranked token = logit < INFINITE ? (Ranked)key_of(logit) << 32 | (unsigned)~i : UNSOUND;
        if (token > best && (token < limit || token == UNSOUND)) best = token;
    }
    return over_threads(best, Greater());
}

__device__ bool is_token(Ranked token) { return token != UNSOUND && token >> 32 > key_of(-INFINITE); }

// How often tokens occurred, and one entry that the arrays lack; none if its position is negative.
struct Counts {
    long long* ids;
    float* counts;
    long long size, position, token, count;

    __device__ void write() const {
        if (position < 0) return;
        ids[position] = token;
        counts[position] = count;
    }
};

struct Changes {
    long long row;
    const long long* bias_ids;
    const float* bias;
    long long num_biases;
    const long long* end_ids;
    long long num_ends;
    const unsigned* allowed;
    Counts seen, output;
    double repetition, frequency, presence;
};

extern "C" __global__ __launch_bounds__(1024) void change_logits(
    float* logits, int vocab_size, const Changes* changes, long long* chosen
) {
    const Changes mine = changes[blockIdx.x];
    logits += mine.row * vocab_size;
    if (threadIdx.x == 0) {
        mine.seen.write();
        mine.output.write();
    }
    const bool is_sound = is_token(likeliest(logits, vocab_size, UNSOUND));
    if (threadIdx.x == 0) chosen[mine.row] = is_sound ? CHANGED : NO_MAXIMUM;
    if (!is_sound) return;
    for (int i = threadIdx.x; i < mine.num_biases; i += blockDim.x) logits[mine.bias_ids[i]] += mine.bias[i];
    __syncthreads();
    for (int i = threadIdx.x; i < mine.num_ends; i += blockDim.x) logits[mine.end_ids[i]] = -INFINITE;
    __syncthreads();
    const float repetition = mine.repetition, frequency = mine.frequency, presence = mine.presence;
    for (int i = threadIdx.x; i < mine.seen.size; i += blockDim.x) {
        float& logit = logits[mine.seen.ids[i]];
        logit = logit > 0 ? logit / repetition : logit * repetition;
    }
    __syncthreads();
    // Without a fused multiplication and addition: to the bit what a host computes.
    for (int i = threadIdx.x; i < mine.output.size; i += blockDim.x)
        logits[mine.output.ids[i]] -= __fadd_rn(__fmul_rn(mine.output.counts[i], frequency), presence);
    if (mine.allowed == nullptr) return;
    __syncthreads();
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x)
        if (!(mine.allowed[i / 32] >> i % 32 & 1)) logits[i] = -INFINITE;
}

extern "C" __global__ __launch_bounds__(1024) void take_likeliest(
    const float* logits, int vocab_size, long long* chosen
) {
    const Ranked best = likeliest(logits + (long long)blockIdx.x * vocab_size, vocab_size, UNSOUND);
    if (threadIdx.x) return;
    long long& mine = chosen[blockIdx.x];
    if (mine != NO_MAXIMUM) mine = is_token(best) ? id_of(best) : mine == CHANGED ? NO_TOKEN : NO_MAXIMUM;
}

// Of the chosen token and of the likeliest ones, then the ids of these.
extern "C" __global__ __launch_bounds__(1024) void report_logprobs(
    const float* logits, int vocab_size, const long long* chosen, int num_likely, double* report
) {
    logits += (long long)blockIdx.x * vocab_size;
    report += (long long)blockIdx.x * (1 + 2 * num_likely);
    Ranked token = likeliest(logits, vocab_size, UNSOUND);
    const float peak = logits[id_of(token)];
    double total = 0;
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) total += expf(logits[i] - peak);
    const double log_total = peak + log(over_threads(total, Sum()));
    if (threadIdx.x == 0) report[0] = logits[chosen[blockIdx.x]] - log_total;
    for (int i = 0; i < num_likely; i++) {
        if (i) token = likeliest(logits, vocab_size, token);
        if (threadIdx.x) continue;
        report[1 + i] = logits[id_of(token)] - log_total;
        report[1 + num_likely + i] = id_of(token);
    }
}
"""


def compile_kernels(xp: Any) -> None:
    """Compile what this module launches, so that no step waits for it."""
    for name in (CHANGE, TAKE, REPORT):
        kernel(xp, _SOURCE, name)


def change_logits(logits: Array, states: Sequence[SamplerState], chosen: Array) -> None:
    """`SamplerState.change_logits` of all rows that something changes, in one launch.

    Args:
        logits: float32 [R, V] on a device. Modified in place.
        states: one per row, with arrays on that device.
        chosen: int64 [R] on the device; gets what became of the rows.
    """
    changed = [(row, state) for row, state in enumerate(states) if state.changes_logits]
    if not changed:
        return
    fields = np.array([_fields(row, state) for row, state in changed], np.int64)
    penalties = np.array([state.penalties for _, state in changed])
    changes = np.concatenate([fields, penalties.view(np.int64)], axis=1)
    _launch(CHANGE, len(changed), logits, array_module(logits).asarray(changes), chosen)


def _fields(row: int, state: SamplerState) -> tuple[int, ...]:
    """The members of `Changes`, but for the penalties."""
    ends, allowed = state.end_ids, state.allowed
    return (
        *(row, state.bias_ids.data.ptr, state.bias.data.ptr, len(state.bias)),
        *(ends.data.ptr, len(ends) if state.cannot_end else 0),
        0 if allowed is None else allowed.data.ptr,
        *_counts(state.seen),
        *_counts(state.output),
    )


def _counts(counts: TokenCounts | None) -> tuple[int, ...]:
    """The members of `Counts`. The kernel writes what was unwritten."""
    if counts is None:
        return 0, 0, 0, -1, 0, 0
    entry, counts.unwritten = counts.unwritten, None
    unwritten = (-1, 0, 0) if entry is None else (entry.position, entry.token_id, entry.count)
    return *counts.addresses, counts.size, *unwritten


def take_likeliest(logits: Array, chosen: Array) -> None:
    """Choose the likeliest token of each row, the lower id of equal ones.

    Args:
        logits: float32 [R, V] on a device.
        chosen: int64 [R] on the device, 0 or what `change_logits` made of it; gets token ids, `NO_MAXIMUM`
            where the model's logits are not numbers or exclude every token, and `NO_TOKEN` where changes do.
    """
    _launch(TAKE, len(chosen), logits, chosen)


def logprobs(logits: Array, chosen: Array, num_likely: int) -> Array:
    """Log probabilities, float64 [N, 1 + 2 K]: of the token, of the K likeliest, then the ids of these.

    Args:
        logits: float32 [N, V] on a device; numbers.
        chosen: int64 [N] on the device, tokens.
        num_likely: K, at most V.
    """
    report = array_module(logits).empty((len(logits), 1 + 2 * num_likely), np.float64)
    _launch(REPORT, len(logits), logits, chosen, np.int32(num_likely), report)
    return report


def _launch(name: str, num_rows: int, logits: Array, *arguments: Array) -> None:
    assert logits.flags.c_contiguous
    launch = kernel(array_module(logits), _SOURCE, name)
    launch((num_rows,), (NUM_THREADS,), (logits, np.int32(logits.shape[1]), *arguments))
