"""Processor time and memory of running programs, read from /proc."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of /proc/<pid>/stat after the command name, numbered as in proc(5) less three.
_GROUP, _USER, _SYSTEM = 2, 11, 12
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_SAMPLE_INTERVAL_S = 1.0


def processes_of(groups: Iterable[int]) -> list[int]:
    """Ids of the processes that are in one of the process groups now."""
    wanted = set(groups)
    return [pid for pid, stat in _all_stats() if int(stat[_GROUP]) in wanted]


def cpu_s_of(groups: Iterable[int]) -> float:
    """Processor time used so far by the processes that are in the groups now."""
    wanted = set(groups)
    ticks = (
        int(stat[_USER]) + int(stat[_SYSTEM])
        for _, stat in _all_stats()
        if int(stat[_GROUP]) in wanted
    )
    return sum(ticks) / _TICKS_PER_S


def machine_cpu_s() -> float:
    """Processor time used so far by everything on the machine, all cores together."""
    first_line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    user, nice, system, _, _, irq, softirq, *_ = map(int, first_line.split()[1:])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def memory_bytes_of(groups: Iterable[int]) -> dict[int, int]:
    """Memory of each of the groups' processes; their sum counts a page that they share once.

    It is the proportional set size, so a page that a process outside of the groups shares counts
    only in part.
    """
    sizes = {}
    for pid in processes_of(groups):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            sizes[pid] = sum(int(kib) for kib in _PSS.findall(rollup)) * 1024
    return sizes


def high_water_bytes_of(groups: Iterable[int]) -> int:
    """The most memory that each of the groups' processes has had so far, added up."""
    total = 0
    for pid in processes_of(groups):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            total += sum(int(kib) for kib in _HIGH_WATER.findall(status)) * 1024
    return total


def command_of(pid: int) -> list[str]:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Processes come and go while the folder is read.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                # The command name is in parentheses and may hold anything.
                yield int(entry.name), text.rpartition(")")[2].split()


class CpuMeter:
    """Processor time between entering and leaving.

    Attributes:
        cpu_s: of the measured groups.
        foreign_share: of the machine's capacity, what neither they nor this program's group used.
    """

    def __init__(self, groups: Iterable[int], clock: Callable[[], float]) -> None:
        """Describe the meter.

        Args:
            groups: process groups to measure.
            clock: seconds since any fixed time.
        """
        self._groups = frozenset(groups)
        self._clock = clock
        self.cpu_s = 0.0
        self.foreign_share = 0.0

    def _read(self) -> tuple[float, float, float, float]:
        ours = self._groups | {os.getpgrp()}
        return self._clock(), machine_cpu_s(), cpu_s_of(ours), cpu_s_of(self._groups)

    def __enter__(self) -> Self:
        self._start = self._read()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        wall, machine, ours, self.cpu_s = (
            end - start for end, start in zip(self._read(), self._start, strict=True)
        )
        capacity = wall * (os.cpu_count() or 1)
        self.foreign_share = max(0.0, machine - ours) / capacity


class MemoryMeter:
    """Highest memory of process groups between entering and leaving, sampled by a thread.

    A sample walks the page tables of gigabytes, so this is not for a part whose time is measured.

    Attributes:
        peak: see `memory_bytes_of`, at the moment when the sum was largest.
    """

    def __init__(self, groups: Iterable[int]) -> None:
        """Describe the meter.

        Args:
            groups: process groups to measure.
        """
        self._groups = frozenset(groups)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self.peak: dict[int, int] = {}

    def _sample(self) -> None:
        while not self._is_over.wait(_SAMPLE_INTERVAL_S):
            self._take_sample()

    def _take_sample(self) -> None:
        sample = memory_bytes_of(self._groups)
        if sum(sample.values()) > sum(self.peak.values()):
            self.peak = sample

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._take_sample()
