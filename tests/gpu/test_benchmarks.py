"""What the benchmarks measure of a GPU itself."""

from __future__ import annotations

import pytest

from benchmarks.gpu_speed import GpuSpeedTest, gpu_bytes_in_use, require_gpu
from benchmarks.worker import Worker


def test_bandwidth_and_bf16_products_are_those_of_a_gpu(record_property):
    pytest.importorskip("cupy")
    with Worker(GpuSpeedTest) as test:
        speed = test.call("run")
    record_property("speed", speed.in_words)
    assert speed.read_bytes_per_s > 1e11
    assert speed.flops_per_s > 5e12


def test_memory_that_is_taken_shows():
    cupy = pytest.importorskip("cupy")
    gpu, _ = require_gpu()
    if gpu.memory_bytes is None:
        pytest.skip("this GPU shares the host's memory")
    before = gpu_bytes_in_use()
    taken = cupy.zeros((1 << 30,), "uint8")
    assert gpu_bytes_in_use() - before >= taken.nbytes
