from __future__ import annotations

import statistics

from benchmarks.queueing import AS_THEY_COME, Costs, Mix, first_tokens, table
from python_backend.scheduler import AGING

MIX = Mix(num_requests=150)


def _times(aging: float) -> dict[int, list[float]]:
    times: dict[int, list[float]] = {}
    for length, seconds in first_tokens(MIX, Costs(), aging, seed=1):
        times.setdefault(length, []).append(seconds)
    return times


def test_every_request_is_answered_and_the_same_every_time() -> None:
    times = _times(AGING)
    assert sum(map(len, times.values())) == MIX.num_requests
    assert times == _times(AGING)


def test_short_prompts_gain_more_than_long_ones_lose() -> None:
    before, after = _times(AS_THEY_COME), _times(AGING)
    for length in (80, 320):
        assert statistics.mean(after[length]) < 0.5 * statistics.mean(before[length])
    assert statistics.mean(after[4000]) < 1.5 * statistics.mean(before[4000])


def test_prompts_of_one_length_are_served_as_they_come() -> None:
    same = Mix(prompts=((1.0, 320),), num_requests=60)
    before, after = (list(first_tokens(same, Costs(), a, seed=2)) for a in (AS_THEY_COME, AGING))
    assert after == before


def test_table_has_a_row_for_every_aging_and_length() -> None:
    rows = table(Mix(num_requests=40), Costs(), (AS_THEY_COME, AGING), num_seeds=1).splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [
        [name, length] for name in ("as they come", "0.125") for length in ("80", "320", "4000")
    ]
