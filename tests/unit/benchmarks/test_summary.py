from __future__ import annotations

import pytest

from benchmarks.summary import (
    Burst,
    RequestTiming,
    Spread,
    count_equal,
    percentile,
    ratios,
    summarize,
)


def make_burst(ttfts_s: list[float], total_s: float = 4.0, wall_s: float = 4.0) -> Burst:
    return Burst(
        requests=[
            RequestTiming(ttft_s=ttft_s, total_s=total_s, num_tokens=5, num_prompt_tokens=7)
            for ttft_s in ttfts_s
        ],
        wall_s=wall_s,
        cpu_s=6.0,
        foreign_cpu_share=0.25,
        texts=["" for _ in ttfts_s],
    )


def test_percentile_is_the_smallest_value_that_enough_values_do_not_exceed():
    values = [float(i) for i in range(100, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]


def test_p99_of_few_values_is_the_largest():
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_that_does_not_exist_is_refused(values: list[float], percent: float):
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_tpot_leaves_the_first_token_out():
    timing = RequestTiming(ttft_s=2.0, total_s=4.0, num_tokens=5, num_prompt_tokens=7)
    assert timing.tpot_s == 0.5


def test_one_token_has_no_tpot():
    timing = RequestTiming(ttft_s=2.0, total_s=2.0, num_tokens=1, num_prompt_tokens=7)
    assert timing.tpot_s is None


def test_percentiles_are_over_the_requests_of_all_repeats():
    summary = summarize([make_burst([1.0, 2.0]), make_burst([3.0])])
    assert (summary.ttft_p50_s, summary.ttft_p99_s, summary.num_requests) == (2.0, 3.0, 3)


def test_throughput_and_cost_are_spread_over_the_repeats():
    summary = summarize([make_burst([1.0, 2.0]), make_burst([1.0, 2.0], wall_s=2.0)])
    assert summary.tokens_per_s == Spread(3.75, 2.5, 5.0)
    assert summary.cpu_s_per_request == Spread(3.0, 3.0, 3.0)


def test_ratio_is_taken_between_neighbours_in_time():
    slow_then_fast = [make_burst([1.0], wall_s=4.0), make_burst([1.0], wall_s=2.0)]
    others = [make_burst([1.0], wall_s=8.0), make_burst([1.0], wall_s=4.0)]
    assert ratios(slow_then_fast, others) == Spread(2.0, 2.0, 2.0)


def test_ratio_of_different_numbers_of_repeats_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        ratios([make_burst([1.0]), make_burst([1.0])], [make_burst([1.0])])


def test_equal_answers_are_counted():
    assert count_equal(["a", "b", "c"], ["a", "x", "c"]) == (2, 3)
