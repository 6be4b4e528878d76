"""Real CUDA kernels for the fake of TensorRT: a toy that computes on the GPU what a decoder's contract asks.

So a GPU without TensorRT shows what CUDA and CuPy make of everything around an engine: the order of streams,
captured graphs and their replays, memory in place, embeddings that never leave the device. A toy's token
depends on every token and picture of its row that the cache holds, and on nothing else.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime
from fake_tensorrt import Work

_SOURCE = r"""
// Late, so that who forgets to wait reads what was there before.
__device__ void dawdle() {
    long long start = clock64();
    while (clock64() - start < 100000) {}
}

extern "C" __global__ void write_cache(
    const long long* ids, const long long* image_index, const float* embeds, int width,
    const long long* write_at, float* cache, int num_heads, int capacity, int head_size
) {
    dawdle();
    int row = blockIdx.x, token = blockIdx.y, num_tokens = gridDim.y;
    long long image = image_index[row * num_tokens + token];
    float value = image < 0 ? ids[row * num_tokens + token] % 1009 : embeds[image * width];
    for (int i = threadIdx.x; i < num_heads * head_size; i += blockDim.x) {
        long long head = (long long)row * num_heads + i / head_size;
        cache[(head * capacity + write_at[row] + token) * head_size + i % head_size] = value;
    }
}

extern "C" __global__ void logits(
    const float* cache, long long row_size, int head_size, const int* lengths, float* out, int vocab_size
) {
    __shared__ float state;
    int row = blockIdx.x;
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < lengths[row]; i++) sum = 0.9f * sum + cache[row * row_size + i * head_size];
        state = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x)
        out[(long long)row * vocab_size + i] = cosf(0.37f * i + state);
}

extern "C" __global__ void encode(const float* pixels, long long num_pixels, float* out, long long size) {
    dawdle();
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) out[i] = pixels[i * 31 % num_pixels];
}
"""
_SPIN = r"""
extern "C" __global__ void spin(long long num_cycles) {
    long long start = clock64();
    while (clock64() - start < num_cycles) {}
}
"""
_THREADS = 256


class _CudaStreams:
    """What both kinds of kernels say of a stream."""

    def is_capturing(self, handle: int) -> bool:
        return bool(runtime.streamIsCapturing(handle))


class ToyKernels(_CudaStreams):
    """Streams that run the toy."""

    @cached_property
    def _module(self) -> Any:
        return cupy.RawModule(code=_SOURCE)

    def put(self, handle: int, work: Work) -> None:
        with cupy.cuda.ExternalStream(handle):
            if "input_ids" in work.inputs:
                self._decode(work)
            else:
                self._encode(work)

    def _decode(self, work: Work) -> None:
        ids, index, embeds, write_at, lengths = (
            work.inputs[name]
            for name in ("input_ids", "image_index", "image_embeds", "write_indices", "kv_lengths")
        )
        caches = [memory for name, memory in work.outputs.items() if name != "logits"]
        for cache in caches:
            _, num_heads, capacity, head_size = cache.shape
            self._launch(
                "write_cache",
                ids.shape,
                *(ids, index, embeds, embeds.shape[1], write_at),
                *(cache, num_heads, capacity, head_size),
            )
        logits = work.outputs["logits"]
        row_size = np.int64(np.prod(caches[0].shape[1:]))
        head_size, vocab_size = caches[0].shape[3], logits.shape[2]
        rows = (logits.shape[0],)
        self._launch("logits", rows, caches[0], row_size, head_size, lengths, logits, vocab_size)

    def _encode(self, work: Work) -> None:
        pixels = next(iter(work.inputs.values()))
        (embeds,) = work.outputs.values()
        num_pixels, size = (np.int64(np.prod(memory.shape)) for memory in (pixels, embeds))
        blocks = (-(-int(size) // _THREADS),)
        self._launch("encode", blocks, pixels, num_pixels, embeds, size)

    def _launch(self, name: str, grid: tuple[int, ...], *args: Any) -> None:
        kernel = self._module.get_function(name)
        passed = [
            arg
            if isinstance(arg, np.int64)
            else np.int32(arg)
            if isinstance(arg, int)
            else np.uint64(arg.address)
            for arg in args
        ]
        kernel(grid, (_THREADS,), tuple(passed))


class IdleKernels(_CudaStreams):
    """An engine that costs next to nothing: what is left is the price of a step's other work."""

    def put(self, handle: int, work: Work) -> None:
        """Every token is as likely as every other."""
        logits = work.outputs.get("logits")
        if logits is not None:
            num_bytes = int(np.prod(logits.shape)) * logits.dtype.itemsize
            runtime.memsetAsync(logits.address, 0, num_bytes, handle)


class BusyKernels(IdleKernels):
    """An engine whose steps take some two milliseconds, however many rows they have."""

    _CYCLES = np.int64(4_000_000)

    @cached_property
    def _spin(self) -> Any:
        return cupy.RawKernel(_SPIN, "spin")

    def put(self, handle: int, work: Work) -> None:
        if "input_ids" in work.inputs:
            with cupy.cuda.ExternalStream(handle):
                self._spin((1,), (1,), (self._CYCLES,))
        super().put(handle, work)
