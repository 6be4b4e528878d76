"""The GPU of this machine, as NVIDIA's driver describes it."""

from __future__ import annotations

import subprocess

from python_backend.errors import BundleError


def current_gpu() -> str:
    """Compute capability of the first GPU, such as `sm89`: the target that its engines are built for.

    Raises:
        BundleError: there is no GPU, or no driver for it.
    """
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BundleError(
            f"TensorRT needs an NVIDIA GPU and its driver, and nvidia-smi finds none ({error})"
        ) from error
    major, _, minor = result.stdout.split()[0].partition(".")
    return f"sm{major}{minor}"


def find_gpu() -> str | None:
    """The same, or None without a GPU."""
    try:
        return current_gpu()
    except BundleError:
        return None
