"""The GPUs of this machine, as the driver's own program tells."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass

from python_backend.errors import BundleError

_QUERY = ("name", "compute_cap", "memory.total", "memory.free", "driver_version")
_TIMEOUT_S = 30.0
"""Waking a driver without persistence mode takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as NVIDIA sells it.
        compute_capability: (major, minor).
        memory_bytes: of the device; None where it shares the host's.
        free_bytes: of it; None where it shares the host's.
        driver: version of the driver.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int | None
    free_bytes: int | None
    driver: str


class GpuQueryError(Exception):
    """nvidia-smi is there and did not tell; the message is its own."""


def find_gpus() -> list[Gpu]:
    """The GPUs that the driver shows this process.

    Raises:
        GpuQueryError: the driver's program is there and fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GpuQueryError(str(error)) from error
    if result.returncode != 0:
        text = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        raise GpuQueryError(text.splitlines()[0])
    return parse_gpus(result.stdout)


def parse_gpus(text: str) -> list[Gpu]:
    """What nvidia-smi printed as GPUs.

    Raises:
        GpuQueryError: it is something else.
    """
    gpus = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            name, capability, total, free, driver = row
            major, minor = map(int, capability.split("."))
        except ValueError:
            raise GpuQueryError(f"nvidia-smi printed {', '.join(row)!r}") from None
        gpu = Gpu(
            name=name,
            compute_capability=(major, minor),
            memory_bytes=_mebibytes(total),
            free_bytes=_mebibytes(free),
            driver=driver,
        )
        gpus.append(gpu)
    return gpus


def _mebibytes(text: str) -> int | None:
    # "[N/A]" on GPUs that share the host's memory.
    return int(text) * 2**20 if text.isdigit() else None


def current_gpu() -> str:
    """Compute capability of the first GPU, such as `sm89`: the target that its engines are built for.

    Raises:
        BundleError: there is no GPU, or no driver for it.
    """
    needed = "TensorRT needs an NVIDIA GPU and its driver, and nvidia-smi"
    try:
        gpus = find_gpus()
    except GpuQueryError as error:
        raise BundleError(f"{needed} fails: {error}") from error
    if not gpus:
        raise BundleError(f"{needed} finds none")
    major, minor = gpus[0].compute_capability
    return f"sm{major}{minor}"


def find_gpu() -> str | None:
    """The same, or None without a GPU."""
    try:
        return current_gpu()
    except BundleError:
        return None
