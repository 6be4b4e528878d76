"""From timings to the figures of a table: percentiles over requests, spread over repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTiming:
    """One request as its caller saw it.

    Attributes:
        ttft_s: from sending it to its first token.
        total_s: from sending it to its last token.
        num_tokens: output tokens.
        num_prompt_tokens: image tokens included.
    """

    ttft_s: float
    total_s: float
    num_tokens: int
    num_prompt_tokens: int

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first one; None if there is no other."""
        if self.num_tokens < 2:
            return None
        return (self.total_s - self.ttft_s) / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """One burst of a load on one engine.

    Attributes:
        requests: their timings, in the order of the workload.
        wall_s: from the first request's start to the last one's end.
        cpu_s: processor time of the engine's processes meanwhile, over all cores.
        foreign_cpu_share: share of the machine's processor time that others used, 0 to 1.
        texts: the answers.
        token_ids: the answers as tokens, None where the engine does not tell.
    """

    requests: Sequence[RequestTiming]
    wall_s: float
    cpu_s: float
    foreign_cpu_share: float
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]] | None = None

    @property
    def num_tokens(self) -> int:
        """Output tokens of all requests."""
        return sum(request.num_tokens for request in self.requests)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of all requests per second of the burst."""
        return self.num_tokens / self.wall_s


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repeats.

    Attributes:
        median: the figure to quote.
        low: smallest repeat.
        high: largest repeat.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one load on one engine.

    Attributes:
        tokens_per_s: output tokens per second, over the repeats.
        wall_s: of one burst, over the repeats.
        cpu_s_per_request: processor time, over the repeats.
        ttft_p50_s: time to the first token, over the requests of all repeats.
        ttft_p99_s: the same, 99th percentile; the slowest request if there are fewer than 100.
        tpot_p50_s: mean time per output token of a request, over the requests of all repeats.
        tpot_p99_s: the same, 99th percentile.
        num_requests: how many the percentiles are over.
        foreign_cpu_share: largest share of the machine that others used during a repeat.
    """

    tokens_per_s: Spread
    wall_s: Spread
    cpu_s_per_request: Spread
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    num_requests: int
    foreign_cpu_share: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed ("nearest rank").

    Raises:
        ValueError: there are no values, or `percent` is not in (0, 100].
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def summarize(bursts: Sequence[Burst]) -> Summary:
    """Summarize the repeats of one load on one engine."""
    requests = [request for burst in bursts for request in burst.requests]
    ttfts = [request.ttft_s for request in requests]
    tpots = [tpot for request in requests if (tpot := request.tpot_s) is not None]
    return Summary(
        tokens_per_s=Spread.of([burst.tokens_per_s for burst in bursts]),
        wall_s=Spread.of([burst.wall_s for burst in bursts]),
        cpu_s_per_request=Spread.of([burst.cpu_s / len(burst.requests) for burst in bursts]),
        ttft_p50_s=percentile(ttfts, 50),
        ttft_p99_s=percentile(ttfts, 99),
        tpot_p50_s=percentile(tpots, 50) if tpots else math.nan,
        tpot_p99_s=percentile(tpots, 99) if tpots else math.nan,
        num_requests=len(requests),
        foreign_cpu_share=max(burst.foreign_cpu_share for burst in bursts),
    )


def ratios(bursts: Sequence[Burst], others: Sequence[Burst]) -> Spread:
    """Tokens/s of `bursts` over those of `others`, repeat by repeat: neighbours in time.

    Raises:
        ValueError: the numbers of repeats differ.
    """
    pairs = zip(bursts, others, strict=True)
    return Spread.of([burst.tokens_per_s / other.tokens_per_s for burst, other in pairs])


def count_equal(answers: Sequence[object], others: Sequence[object]) -> tuple[int, int]:
    """How many answers are equal, and how many were compared."""
    pairs = list(zip(answers, others, strict=True))
    return sum(answer == other for answer, other in pairs), len(pairs)
