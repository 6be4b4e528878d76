"""Figures of one burst, their spread over repeats, and ratios between engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.summary import Burst, Spread, percentile


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a burst.

    Attributes:
        name: for tables, with its unit.
        of: takes it from a burst.
        digits: after the point.
        is_better_high: which of two engines is the better one.
    """

    name: str
    of: Callable[[Burst], float]
    digits: int
    is_better_high: bool = False

    def spread(self, bursts: Sequence[Burst]) -> Spread:
        """Over the repeats."""
        return Spread.of([self.of(burst) for burst in bursts])


def _ttft(percent: float) -> Callable[[Burst], float]:
    return lambda burst: percentile([request.ttft_s for request in burst.requests], percent)


def _tpot_ms(percent: float) -> Callable[[Burst], float]:
    def of(burst: Burst) -> float:
        tpots = [tpot for request in burst.requests if (tpot := request.tpot_s) is not None]
        return percentile(tpots, percent) * 1e3

    return of


TOKENS_PER_S = Metric("tokens/s", lambda burst: burst.tokens_per_s, 2, is_better_high=True)
TTFT_P50 = Metric("TTFT p50 s", _ttft(50), 2)
TTFT_P99 = Metric("TTFT p99 s", _ttft(99), 2)
TPOT_P50 = Metric("TPOT p50 ms", _tpot_ms(50), 1)
TPOT_P99 = Metric("TPOT p99 ms", _tpot_ms(99), 1)
CPU_S = Metric("CPU s per request", lambda burst: burst.cpu_s / len(burst.requests), 2)
METRICS = (TOKENS_PER_S, TTFT_P50, TTFT_P99, TPOT_P50, TPOT_P99, CPU_S)


def ratio(spread: Spread, other: Spread) -> Spread:
    """One figure over another one of another engine, with the widest range that repeats allow."""
    return Spread(spread.median / other.median, spread.low / other.high, spread.high / other.low)


def again_over_first(burst: Burst) -> float:
    """TTFT when something comes again over TTFT of its first time, for requests in turn."""
    first, *again = [request.ttft_s for request in burst.requests]
    return median(again) / first


def leading_share(answer: Sequence[object], reference: Sequence[object]) -> float:
    """How much of a reference an answer has before the first difference, 0 to 1."""
    pairs = zip(answer, reference, strict=False)
    num_leading = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    if num_leading is None:
        num_leading = min(len(answer), len(reference))
    return num_leading / max(len(answer), len(reference), 1)
