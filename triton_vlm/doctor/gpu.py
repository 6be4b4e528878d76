"""What NVIDIA GPUs are good for, and the libraries that compute on them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton_vlm.doctor.check import Check, Status, in_gib

if TYPE_CHECKING:
    from python_backend.gpu import Gpu

_MIN_TENSORRT = (7, 5)
"""Triton's release notes 26.08: compute capability 7.5 and later."""
_RTX_TARGETS = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""`ComputeCapability` of TensorRT-RTX 1.7: no data-centre GPU after Ampere."""
_MIN_BF16 = (8, 0)
"""TensorRT's support matrix: Turing computes no bfloat16, the format of this project's engines."""

_TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_CUDA_MODULES = ("cupy", "cuda.bindings")


@dataclass(frozen=True, slots=True)
class Library:
    """An installed Python module.

    Attributes:
        module: what is imported.
        version: of the package it came with, empty if none says so.
    """

    module: str
    version: str


def find_libraries(modules: tuple[str, ...]) -> list[Library]:
    """Those of `modules` that are installed; nothing is imported, which could load a driver."""
    distributions = importlib.metadata.packages_distributions()
    found = []
    for module in modules:
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # the package around it is missing
            continue
        if spec is None:
            continue
        names = distributions.get(module.partition(".")[0], [])
        version = importlib.metadata.version(names[0]) if names else ""
        found.append(Library(module, version))
    return found


def find_tensorrt() -> list[Library]:
    """The TensorRT modules that are installed."""
    return find_libraries(_TENSORRT_MODULES)


def supports(module: str, capability: tuple[int, int]) -> bool:
    """Whether a TensorRT module makes engines for a compute capability, as far as NVIDIA says."""
    if module == "tensorrt":
        return capability >= _MIN_TENSORRT
    return capability in _RTX_TARGETS


def gpu_checks(gpus: list[Gpu], problem: str) -> list[Check]:
    """One line per GPU.

    Args:
        gpus: what was found.
        problem: why the driver could not be asked, empty when it could.
    """
    if not gpus:
        return [
            Check(
                name="GPU",
                status=Status.MISSING,
                finding=problem or "nvidia-smi finds none",
                next_step="serve on the CPU, or install NVIDIA's driver (for a container its "
                "container toolkit, and --gpus all)",
            )
        ]
    return [_gpu_check(index, gpu) for index, gpu in enumerate(gpus)]


def _gpu_check(index: int, gpu: Gpu) -> Check:
    memory = "memory shared with the host"
    if gpu.memory_bytes is not None and gpu.free_bytes is not None:
        memory = f"{in_gib(gpu.free_bytes)} of {in_gib(gpu.memory_bytes)} free"
    is_old = gpu.compute_capability < _MIN_BF16
    return Check(
        name=f"GPU {index}",
        status=Status.WARN if is_old else Status.OK,
        finding=f"{gpu.name}, compute capability {_dotted(gpu.compute_capability)}, {memory}, "
        f"driver {gpu.driver}",
        next_step="it computes no bfloat16, which engines use: serve on the CPU" if is_old else "",
    )


def tensorrt_check(libraries: list[Library], gpus: list[Gpu]) -> Check:
    """Whether TensorRT is there and makes engines for the GPUs that are."""
    if not libraries:
        return Check(
            name="TensorRT",
            status=Status.MISSING,
            finding="neither tensorrt nor tensorrt_rtx is installed",
            next_step="only engines need it; take it from NVIDIA's Triton image, or "
            "pip install 'triton-vlm[tensorrt]'",
        )
    finding = ", ".join(f"{library.module} {library.version}".strip() for library in libraries)
    left_out = [
        _dotted(gpu.compute_capability)
        for gpu in gpus
        if not any(supports(library.module, gpu.compute_capability) for library in libraries)
    ]
    if left_out:
        return Check(
            name="TensorRT",
            status=Status.WARN,
            finding=f"{finding}; no engines for compute capability {', '.join(left_out)}",
            next_step="TensorRT-RTX is for "
            + ", ".join(map(_dotted, _RTX_TARGETS))
            + ": use tensorrt (NVIDIA's Triton image) for other GPUs from 7.5 on",
        )
    return Check(name="TensorRT", status=Status.OK, finding=finding)


def cuda_python_check() -> Check:
    """Whether Python can allocate memory on a GPU."""
    libraries = find_libraries(_CUDA_MODULES)
    if not libraries:
        return Check(
            name="CUDA Python",
            status=Status.MISSING,
            finding="neither cupy nor cuda.bindings is installed",
            next_step="only engines on a GPU need one; pip install 'triton-vlm[gpu]'",
        )
    finding = ", ".join(f"{library.module} {library.version}".strip() for library in libraries)
    return Check(name="CUDA Python", status=Status.OK, finding=finding)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
