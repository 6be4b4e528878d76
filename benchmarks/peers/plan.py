"""What a comparison measures, and what is expected of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.workload import (
    Load,
    decode_load,
    pictures_load,
    poisson_load,
    same_picture_load,
    system_prompt_load,
    text_load,
)

MIN_TOKENS_PER_S = 1.3
"""Over the best peer, with 8 and 16 pictures at once."""
MAX_TTFT = 0.8
"""Over the best peer, with 1 and with 8 pictures at once (p50)."""
MAX_TPOT = 1.0
"""Over the best peer, with one picture."""
MIN_BANDWIDTH = 0.8
"""Decode floor over TPOT with one picture."""
MIN_ARITHMETIC = 0.7
"""Prompt floor over TTFT with one picture."""
MAX_AGAIN = 0.2
"""TTFT when picture or prefix come again, over that of the first time."""
MAX_COST = 1.0
"""Cold start and memory, over the best peer."""
MIN_SERVED_OVER_OFFLINE = 0.95
"""Tokens/s with 8 pictures at once."""

NUM_REFERENCES = {"fp32": 2, "int8": 4, "int4": 4}
"""By precision: where answers should be equal, few show it."""

LOADS = ("picture", "decode", "text", "same-picture", "system-prompt", "poisson")
"""Groups of loads, as the command line names them."""
POISSON_SHARES = (0.3, 0.6)
"""Requests per second of the Poisson loads, as shares of what the machine's floor allows."""


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One comparison.

    Attributes:
        preset: of the checkpoint.
        precision: of the weights, of every engine.
        loads: measured with every engine that takes them.
        repeats: bursts per load and engine.
        num_references: requests of the first burst of each load that Hugging Face answers too.
    """

    preset: str
    precision: str
    loads: tuple[Load, ...]
    repeats: int
    num_references: int

    @property
    def plain_loads(self) -> list[Load]:
        """Loads in which nothing comes twice: measured without caches."""
        return [load for load in self.loads if load.shared is None]

    @property
    def cached_loads(self) -> list[Load]:
        """Loads that measure caches."""
        return [load for load in self.loads if load.shared is not None]


def loads_of(
    groups: Sequence[str], concurrencies: Sequence[int], requests_per_s: float, *, quick: bool
) -> tuple[Load, ...]:
    """The loads of groups, in the order of `LOADS`.

    Args:
        groups: of `LOADS`.
        concurrencies: of the loads with pictures.
        requests_per_s: requests with a picture that the machine could answer if nothing but the
            model's arithmetic and reads took time.
        quick: short answers.
    """
    short, long, again = (8, 16, 4) if quick else (64, 256, 16)
    loads = {
        "picture": [pictures_load(n, short) for n in sorted(set(concurrencies))],
        "decode": [decode_load(n, long) for n in (1, 8)],
        "text": [text_load(n, short) for n in (1, 8)],
        "same-picture": [same_picture_load(3 if quick else 10, again)],
        "system-prompt": [
            system_prompt_load(1, 2 if quick else 5, again),
            system_prompt_load(2 if quick else 8, 1, again),
        ],
        "poisson": [
            poisson_load(
                f"poisson {share:.0%}", 4 if quick else 16, 1 / (share * requests_per_s), short
            )
            for share in POISSON_SHARES
        ],
    }
    return tuple(load for group in LOADS if group in groups for load in loads[group])
