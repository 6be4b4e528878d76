from __future__ import annotations

from benchmarks.peers.plan import LOADS, POISSON_SHARES, PeerPlan, loads_of


def test_loads_have_labels_of_their_own():
    loads = loads_of(LOADS, [1, 4, 8, 16], 0.4, quick=False)
    assert len({load.label for load in loads}) == len(loads)


def test_only_the_groups_that_are_asked_for_are_measured():
    assert [load.label for load in loads_of(["picture"], [8, 1], 0.4, quick=True)] == [
        "picture x1",
        "picture x8",
    ]


def test_poisson_loads_have_shares_of_the_rate_that_is_possible():
    loads = loads_of(["poisson"], [], 0.5, quick=False)
    assert [1 / load.mean_gap_s for load in loads] == [0.5 * share for share in POISSON_SHARES]


def test_caches_are_on_for_the_loads_in_which_something_comes_again():
    plan = PeerPlan("tiny", "fp32", loads_of(LOADS, [1], 0.4, quick=True), 1, 1)
    assert {load.shared for load in plan.cached_loads} == {"picture", "system prompt"}
    assert {load.shared for load in plan.plain_loads} == {None}
    assert len(plan.cached_loads) + len(plan.plain_loads) == len(plan.loads)
