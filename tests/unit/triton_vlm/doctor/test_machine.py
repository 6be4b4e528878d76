from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from triton_vlm.doctor import machine

GIB = 2**30
MEMINFO = """\
MemTotal:       16777216 kB
MemFree:         1048576 kB
MemAvailable:    8388608 kB
"""
UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture
def root(tmp_path: Path):
    """A file system with the given files: 16 GiB of memory, 8 available."""

    def make(files: Mapping[str, str]) -> Path:
        for name, text in {"proc/meminfo": MEMINFO, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return make


def test_without_control_groups_the_machine_is_the_limit(root) -> None:
    bare = root({})
    assert machine.total_memory_bytes(bare) == 16 * GIB
    assert machine.free_memory_bytes(bare) == 8 * GIB
    assert machine.memory_limit_bytes(bare) is None
    assert machine.usable_cores(bare) == len(os.sched_getaffinity(0))


def test_a_container_gets_what_its_group_leaves(root) -> None:
    container = root(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon {GIB}\ninactive_file {GIB}\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
        }
    )
    assert machine.memory_limit_bytes(container) == 4 * GIB
    assert machine.free_memory_bytes(container) == 2 * GIB  # pages of files can go
    assert machine.usable_cores(container) == 1


def test_the_tightest_group_on_the_way_up_counts(root) -> None:
    nested = root(
        {
            "proc/self/cgroup": "0::/slice/service\n",
            "sys/fs/cgroup/slice/memory.max": f"{6 * GIB}\n",
            "sys/fs/cgroup/slice/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/slice/service/memory.max": "max\n",
            "sys/fs/cgroup/slice/service/cpu.max": "max 100000\n",
        }
    )
    assert machine.memory_limit_bytes(nested) == 6 * GIB
    assert machine.free_memory_bytes(nested) == GIB


def test_version_1_groups_are_read_too(root) -> None:
    old = root(
        {
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(GIB),
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
        }
    )
    assert machine.memory_limit_bytes(old) == 2 * GIB
    assert machine.free_memory_bytes(old) == GIB
    assert machine.usable_cores(old) == len(os.sched_getaffinity(0))


def test_instruction_sets_that_matter_are_named(root) -> None:
    x86 = root({"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu sse2 avx2 amx_int8 fma\n"})
    assert machine.instruction_sets(x86) == ("avx2", "fma", "amx_int8")
    arm = root({"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd i8mm\n"})
    assert machine.instruction_sets(arm) == ("asimd", "i8mm")


def test_the_distribution_names_itself(root) -> None:
    assert machine.distribution(root({})) == "unknown system"
    release = root({"etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n'})
    assert machine.distribution(release) == "Ubuntu 24.04.3 LTS"
