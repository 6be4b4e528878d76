from __future__ import annotations

import pytest

from benchmarks.peers.metrics import (
    CPU_S,
    TOKENS_PER_S,
    TPOT_P50,
    TTFT_P50,
    TTFT_P99,
    again_over_first,
    leading_share,
    ratio,
)
from benchmarks.summary import Burst, RequestTiming, Spread


def make_burst(ttfts_s: list[float], wall_s: float = 4.0) -> Burst:
    return Burst(
        requests=[
            RequestTiming(ttft_s=ttft_s, total_s=ttft_s + 2, num_tokens=5, num_prompt_tokens=7)
            for ttft_s in ttfts_s
        ],
        wall_s=wall_s,
        cpu_s=6.0,
        foreign_cpu_share=0.0,
        texts=["" for _ in ttfts_s],
    )


def test_figures_of_a_burst_are_over_its_requests():
    burst = make_burst([1.0, 3.0, 2.0])
    assert (TTFT_P50.of(burst), TTFT_P99.of(burst)) == (2.0, 3.0)
    assert (TPOT_P50.of(burst), CPU_S.of(burst)) == (500.0, 2.0)


def test_spread_is_over_the_repeats():
    bursts = [make_burst([1.0]), make_burst([1.0], wall_s=2.0)]
    assert TOKENS_PER_S.spread(bursts) == Spread(1.875, 1.25, 2.5)


def test_ratio_has_the_widest_range_that_the_repeats_allow():
    assert ratio(Spread(4.0, 2.0, 6.0), Spread(2.0, 1.0, 4.0)) == Spread(2.0, 0.5, 6.0)


def test_what_comes_again_is_compared_with_its_first_time():
    assert again_over_first(make_burst([10.0, 1.0, 2.0, 30.0])) == 0.2


@pytest.mark.parametrize(
    ("answer", "reference", "share"),
    [([1, 2], [1, 2], 1.0), ([1, 2, 3, 4], [1, 2, 4, 4], 0.5), ([1], [1, 2], 0.5), ([2], [1], 0.0)],
)
def test_answers_are_compared_up_to_the_first_difference(
    answer: list[int], reference: list[int], share: float
):
    assert leading_share(answer, reference) == share
