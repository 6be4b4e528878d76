"""The checks of everything but GPUs and models: can Triton and the proxy run here?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from triton_vlm import host_check
from triton_vlm.doctor import machine
from triton_vlm.doctor.check import Check, Status, in_gib
from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import LOOPBACK, require_free
from triton_vlm.triton_installation import TritonInstallation, find_installation

SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY_BYTES = 256 * 2**20
"""Every tensor between tritonserver and the three stages goes through it. Idle it holds 3 MiB; a
picture of 1,024 image tokens adds 18 MiB, twice. Docker's default is 64 MiB."""
MIN_FREE_MEMORY_BYTES = 2**30
"""The default model is served in half of that."""
PORTS = (9000, 8000, 8001, 8002)
"""The proxy's, then Triton's own defaults, which containers and people who start it by hand use."""


def system_check() -> Check:
    """The operating system: Linux, and what it is."""
    libc, version = platform.libc_ver()
    finding = (
        f"{machine.distribution()}, {platform.system()} {platform.release()}, "
        f"{platform.machine()}, {libc or 'another libc'} {version}".rstrip()
    )
    is_linux = sys.platform == "linux"
    return Check(
        name="System",
        status=Status.OK if is_linux else Status.MISSING,
        finding=finding,
        next_step="" if is_linux else "Triton runs on Linux: use a container or a virtual machine",
        is_needed=True,
    )


def python_check(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """Whether this Python can run the project."""
    problem = host_check.python_problem(version)
    return Check(
        name="Python",
        status=Status.MISSING if problem else Status.OK,
        finding=".".join(map(str, version)),
        next_step=problem or "",
        is_needed=True,
    )


def cpu_check(root: Path = machine.ROOT) -> Check:
    """Cores this process may use, and their instruction sets."""
    flags = machine.instruction_sets(root)
    is_slow = not {"avx2", "asimd"} & set(flags)
    return Check(
        name="CPU",
        status=Status.WARN if is_slow else Status.OK,
        finding=f"{machine.usable_cores(root)} of {os.cpu_count()} cores usable, "
        f"{' '.join(flags) or 'no notable instruction sets'}",
        next_step="without AVX2 a CPU computes several times slower: use a newer one"
        if is_slow
        else "",
    )


def memory_check(root: Path = machine.ROOT) -> Check:
    """Memory this process can get."""
    free, limit = machine.free_memory_bytes(root), machine.memory_limit_bytes(root)
    bound = f"limit {in_gib(limit)}" if limit is not None else "no limit"
    is_low = free < MIN_FREE_MEMORY_BYTES
    return Check(
        name="Memory",
        status=Status.WARN if is_low else Status.OK,
        finding=f"{in_gib(free)} free of {in_gib(machine.total_memory_bytes(root))}, {bound}",
        next_step=f"even a small model needs {in_gib(MIN_FREE_MEMORY_BYTES)}: stop something or "
        "raise the limit"
        if is_low
        else "",
    )


def shared_memory_check(folder: Path = SHARED_MEMORY) -> Check:
    """Whether Triton's Python backend can make its shared memory."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(
            name="Shared memory",
            status=Status.MISSING,
            finding=f"{folder}: {error.strerror}",
            next_step="Triton's Python backend needs it: mount a tmpfs there that this user may write",
            is_needed=True,
        )
    is_small = free < MIN_SHARED_MEMORY_BYTES
    return Check(
        name="Shared memory",
        status=Status.WARN if is_small else Status.OK,
        finding=f"{folder} is writable, {in_gib(free)} free",
        next_step="several large pictures at once may not fit: docker run --shm-size=1g, or shm_size"
        if is_small
        else "",
        is_needed=True,
    )


def triton_check(explicit: Path | None) -> Check:
    """Which tritonserver `serve` would start.

    Args:
        explicit: the one a person named, None when they did not.
    """
    with tempfile.TemporaryDirectory(prefix="triton-vlm-") as run_dir:
        try:
            installation = find_installation(explicit, Path(run_dir))
        except LaunchError as error:
            return Check(
                name="Triton",
                status=Status.MISSING,
                finding="no tritonserver that can run here",
                next_step=str(error),
                is_needed=True,
            )
    return Check(
        name="Triton",
        status=Status.OK,
        finding=f"{triton_version(installation)} at {installation.executable}",
        is_needed=True,
    )


def triton_version(installation: TritonInstallation) -> str:
    """Version of a tritonserver as far as its files tell: the program itself has no flag for it."""
    # NVIDIA's container has the file beside bin/.
    file = installation.executable.parent.parent / "TRITON_VERSION"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    if "pytriton" in installation.executable.parts:
        from importlib.metadata import version

        return f"nvidia-pytriton {version('nvidia-pytriton')}"
    return "unknown version"


def ports_check(ports: tuple[int, ...] = PORTS) -> Check:
    """Which of the usual ports are taken."""
    taken = []
    for port in ports:
        try:
            require_free(LOOPBACK, port)
        except LaunchError:
            taken.append(port)
    if taken:
        return Check(
            name="Ports",
            status=Status.WARN,
            finding=f"in use on {LOOPBACK}: {', '.join(map(str, taken))}",
            next_step="stop what uses them, or choose others with --port, --triton-grpc-port and "
            "--triton-metrics-port",
        )
    return Check(name="Ports", status=Status.OK, finding=f"{', '.join(map(str, ports))} are free")
