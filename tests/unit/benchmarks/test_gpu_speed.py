from __future__ import annotations

import sys

import pytest

from benchmarks import floors
from benchmarks.gpu_speed import GpuSpeedTest, gpu_bytes_in_use, require_gpu
from python_backend.errors import BundleError


@pytest.mark.usefixtures("no_gpu")
def test_a_machine_without_a_gpu_is_refused():
    with pytest.raises(BundleError, match="nvidia-smi finds none"):
        require_gpu()


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_cupy_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BundleError, match="CuPy, which is not installed: pip install"):
        require_gpu()


@pytest.mark.usefixtures("gpu")
def test_the_gpu_is_the_drivers():
    gpu, target = require_gpu()
    assert (gpu.name, target) == ("NVIDIA L4", "sm89")


@pytest.mark.usefixtures("gpu")
def test_memory_in_use_is_what_is_not_free():
    assert gpu_bytes_in_use() == 1000 * 2**20


@pytest.mark.usefixtures("gpu")
def test_a_copy_counts_twice_and_a_product_its_multiplications_and_additions(
    monkeypatch: pytest.MonkeyPatch,
):
    clock = iter(range(1000))
    monkeypatch.setattr(floors.time, "perf_counter", lambda: float(next(clock)))
    speed = GpuSpeedTest(copy_bytes=1024, gemm_size=8).run()
    assert (speed.read_bytes_per_s, speed.flops_per_s) == (2048, 2 * 8**3)
    assert speed.in_words.endswith("GFLOP/s of bf16 matrix products")
