"""What a run of the benchmark measures, and what is expected of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.workload import Load, decode_load, pictures_load

MIN_SERVED_OVER_OFFLINE = 0.9
"""Served tokens/s over the offline engine's, at `Plan.target_load`."""
MIN_SERVED_OVER_HUGGING_FACE = 2.0
"""Served tokens/s over those of Hugging Face `generate`, at `Plan.target_load`."""
MAX_EXTRA_BYTES = 10**9
"""Memory of all server processes above weights and caches."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        preset: of the checkpoint.
        loads: measured served and offline.
        target_load: the one of them that the targets are about.
        hugging_face_load: the one of them that Hugging Face computes too.
        repeats: bursts per load and engine.
        hugging_face_repeats: bursts of Hugging Face.
    """

    preset: str
    loads: tuple[Load, ...]
    target_load: Load
    hugging_face_load: Load
    repeats: int
    hugging_face_repeats: int

    @property
    def memory_load(self) -> Load:
        """The load with the most requests at once: the one that memory is measured at."""
        return max(self.loads, key=lambda load: (load.concurrency, load.num_pictures))


def full_plan(repeats: int, concurrencies: Sequence[int] = (1, 4, 8, 16)) -> Plan:
    """The 0.5B-shaped checkpoint; about half an hour on two cores.

    Args:
        repeats: bursts per load and engine.
        concurrencies: of the loads with pictures; the targets are about 8, or the largest without.
    """
    pictures = [pictures_load(concurrency) for concurrency in sorted(set(concurrencies))]
    target = next((load for load in pictures if load.concurrency == 8), pictures[-1])
    loads = (*pictures, decode_load(8))
    return Plan("05b", loads, target, pictures[0], repeats, min(repeats, 3))


def quick_plan(repeats: int) -> Plan:
    """The tiny checkpoint: shows that everything works, its figures mean little."""
    pictures = [pictures_load(concurrency, 16) for concurrency in (1, 8)]
    loads = (*pictures, decode_load(8, 32))
    return Plan("tiny", loads, pictures[1], pictures[0], repeats, 1)
