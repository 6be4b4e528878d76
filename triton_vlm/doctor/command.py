"""Looks at everything and puts the report together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from triton_vlm.doctor import gpu, host, machine
from triton_vlm.doctor.check import Check
from triton_vlm.doctor.memory import Footprint
from triton_vlm.doctor.model import (
    Model,
    gpu_footprint,
    host_footprint,
    read_model,
)
from triton_vlm.doctor.report import Report, model_check

if TYPE_CHECKING:
    from python_backend.gpu import Gpu


def examine(model: str | None, repository: Path, tritonserver: Path | None) -> Report:
    """The report about this machine, and about a model on it.

    Args:
        model: folder or name of a built model, checkpoint folder, config.json, or None.
        repository: folder of built models.
        tritonserver: the server to use, None to look for one.

    Raises:
        LaunchError: `model` is none of these.
    """
    from python_backend.gpu import GpuQueryError, find_gpus

    chosen = None if model is None else read_model(model, repository)
    problem = ""
    try:
        gpus = find_gpus()
    except GpuQueryError as error:
        gpus, problem = [], f"nvidia-smi fails: {error}"
    tensorrt = gpu.find_tensorrt()
    checks: list[Check] = [
        host.system_check(),
        host.python_check(),
        host.cpu_check(),
        host.memory_check(),
        host.shared_memory_check(),
        host.triton_check(tritonserver),
        host.ports_check(),
        *gpu.gpu_checks(gpus, problem),
        gpu.tensorrt_check(tensorrt, gpus),
        gpu.cuda_python_check(),
    ]
    footprints: list[Footprint] = []
    if chosen is not None:
        footprints = _footprints(chosen, gpus)
        usable = footprints if tensorrt else footprints[:1]
        checks.append(model_check(chosen, footprints, usable))
    return Report(checks=checks, gpus=gpus, tensorrt=tensorrt, model=chosen, footprints=footprints)


def _footprints(model: Model, gpus: list[Gpu]) -> list[Footprint]:
    """The host's first, then every GPU's."""
    free = machine.free_memory_bytes()
    return [
        host_footprint(model, free),
        *(gpu_footprint(model, index, device, free) for index, device in enumerate(gpus)),
    ]
