"""A GPU's bandwidth and arithmetic, measured with CuPy, and what of its memory is in use."""

from __future__ import annotations

from importlib import import_module, util

import numpy as np

from benchmarks.floors import MachineSpeed, best_s
from python_backend.errors import BundleError
from python_backend.gpu import Gpu, current_gpu, find_gpus

_COPY_BYTES = 1 << 31
_GEMM_SIZE = 8192


def require_gpu() -> tuple[Gpu, str]:
    """The first GPU as the driver describes it, and what engines for it are built for, such as sm89.

    Raises:
        BundleError: there is none, or CuPy is missing.
    """
    target = current_gpu()
    if util.find_spec("cupy") is None:
        raise BundleError(
            "a GPU is measured with CuPy, which is not installed: pip install 'triton-vlm[gpu]'"
        )
    return find_gpus()[0], target


def gpu_bytes_in_use() -> int | None:
    """Memory of the first GPU that anything uses; None where it shares the host's."""
    gpu = find_gpus()[0]
    if gpu.memory_bytes is None or gpu.free_bytes is None:
        return None
    return gpu.memory_bytes - gpu.free_bytes


class GpuSpeedTest:
    """Measures the first GPU; meant for a worker process, because CuPy keeps the GPU's memory.

    Args:
        copy_bytes: copied at a time.
        gemm_size: rows and columns of the matrices.
    """

    def __init__(self, copy_bytes: int = _COPY_BYTES, gemm_size: int = _GEMM_SIZE) -> None:
        self._cupy = import_module("cupy")
        self._copy_bytes, self._gemm_size = copy_bytes, gemm_size

    def run(self) -> MachineSpeed:
        """Measure both, a few seconds."""
        cupy, size = self._cupy, self._gemm_size
        stream = cupy.cuda.get_current_stream()
        # CuPy copies an element at a time, and bytes a tenth as fast as the memory allows.
        source, target = (cupy.zeros((self._copy_bytes // 4,), "float32") for _ in range(2))
        # Random values: a GPU that multiplies zeros takes less power and runs faster than it can.
        values = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
        # The same products per second as in bfloat16, which CuPy 13 does not have.
        matrices = cupy.asarray(values).astype("float16")
        left, right = matrices[0], matrices[1]

        def copy() -> None:
            cupy.copyto(target, source)
            stream.synchronize()

        def multiply() -> None:
            cupy.matmul(left, right)
            stream.synchronize()

        return MachineSpeed(
            read_bytes_per_s=2 * self._copy_bytes / best_s(copy),
            flops_per_s=2 * size**3 / best_s(multiply),
            is_gpu=True,
        )
