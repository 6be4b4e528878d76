"""What the kernel says about cores and memory; a container's limits count, not the host's sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")

NOTABLE_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Instruction sets that ONNX Runtime has faster kernels for: x86's, then ARM's."""


def usable_cores(root: Path = ROOT) -> int:
    """Cores this process may use: its affinity, capped by the quotas of its control groups."""
    quotas = [quota for quota in _cpu_quotas(root) if quota > 0]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder in _groups(root, ""):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit():
            yield int(quota) / int(period)
    for folder in _groups(root, "cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit():  # -1 is none
            yield int(quota) / int(period)


def total_memory_bytes(root: Path = ROOT) -> int:
    """Memory of the machine, whatever this process may use of it."""
    return _meminfo(root)["MemTotal"]


def free_memory_bytes(root: Path = ROOT) -> int:
    """Memory this process can still get: the machine's, or what its control groups leave."""
    return min([_meminfo(root)["MemAvailable"], *_left_by_groups(root)])


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The smallest limit of this process's control groups, None when none is below the machine's."""
    limits = [int(limit) for limit, _ in _memory_limits(root)]
    limit = min(limits, default=total_memory_bytes(root))
    return limit if limit < total_memory_bytes(root) else None


def _left_by_groups(root: Path) -> Iterator[int]:
    for limit, folder in _memory_limits(root):
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        # Pages of files count as used until somebody wants the memory.
        reclaimable = {"inactive_file": 0, "total_inactive_file": 0}
        for line in _read(folder / "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            if name in reclaimable:
                reclaimable[name] = int(value)
        yield int(limit) - int(used or 0) + max(reclaimable.values())


def _memory_limits(root: Path) -> Iterator[tuple[str, Path]]:
    """(bytes, folder) of every group that has a limit."""
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _groups(root, controller):
            limit = _read(folder / name).strip()
            if limit.isdigit():
                yield limit, folder


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and those above it.

    Args:
        root: of the file system.
        controller: a name of version 1, or "" for the one hierarchy of version 2.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controller
        # A container sees its own group as the top, but may be told its path outside.
        folder = top / path.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name."""
    rows = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def instruction_sets(root: Path = ROOT) -> tuple[str, ...]:
    """Those of `NOTABLE_FLAGS` that every core has, in that order."""
    flags: set[str] = set()
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return tuple(flag for flag in NOTABLE_FLAGS if flag in flags)


def distribution(root: Path = ROOT) -> str:
    """Name and version of the operating system."""
    for line in _read(root / "etc/os-release").splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip().strip('"')
    return "unknown system"


def _read(path: Path) -> str:
    """Text of a file, empty when it is not there or not for this user."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
