"""What CUDA kernels on rows of logits have in common; one block of threads computes each row."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

NUM_THREADS: Final = 1024
"""Of a block; the kernels rely on 32 warps."""
CHANGED: Final = 1
"""In place of a token id: nothing is chosen yet, and the logits are no longer the model's."""
NO_MAXIMUM: Final = -1
"""In place of a token id: the model's logits are not numbers, or exclude every token."""
NO_TOKEN: Final = -2
"""In place of a token id: what the request asks for excludes every token."""

_SOURCE: Final = (
    f"""
#define CHANGED {CHANGED}
#define NO_MAXIMUM {NO_MAXIMUM}
#define NO_TOKEN {NO_TOKEN}
"""
    + r"""
#define INFINITE __int_as_float(0x7f800000)

// Greater for greater logits.
__device__ unsigned key_of(float logit) {
    const unsigned bits = __float_as_uint(logit + 0.0f);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

__device__ float logit_of(unsigned key) { return __uint_as_float(key >> 31 ? key & ~(1u << 31) : ~key); }

struct Greater {
    template <class T> __device__ T operator()(T one, T other) const { return one > other ? one : other; }
};

struct Sum {
    template <class T> __device__ T operator()(T one, T other) const { return one + other; }
};

// What the values of all threads come to, for each of them.
template <class T, class Join> __device__ T over_threads(T value, Join join) {
    __shared__ T of_warps[32];
    for (int i = 16; i; i /= 2) value = join(value, __shfl_xor_sync(~0u, value, i));
    __syncthreads();  // who reads the last values is done
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warps[threadIdx.x % 32];
    for (int i = 16; i; i /= 2) value = join(value, __shfl_xor_sync(~0u, value, i));
    return value;
}
"""
)


@cache
def kernel(xp: Any, source: str, name: str) -> Any:
    """A kernel of CUDA source that may use what is above.

    The first one of a source compiles it, which takes a while unless CuPy remembers it from an earlier run.

    Args:
        xp: CuPy.
        source: with the kernel as `extern "C"`.
        name: of the kernel.
    """
    return _module(xp, source).get_function(name)


@cache
def _module(xp: Any, source: str) -> Any:
    return xp.RawModule(code=_SOURCE + source)
