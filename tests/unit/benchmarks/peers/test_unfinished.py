from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.peers.unfinished import Unfinished
from benchmarks.workload import poisson_load
from tests.unit.benchmarks.peers.test_results import make_engine, make_results


@pytest.fixture
def unfinished(tmp_path) -> Unfinished:
    return Unfinished(tmp_path / "unfinished.json")


def test_what_was_measured_is_kept_with_its_answers(unfinished):
    results = make_results(make_engine("triton-vlm", is_ours=True), make_engine("peer"))
    unfinished.save(results)
    loaded = unfinished.load(results.plan)
    assert loaded == results
    assert loaded.to_json() == results.to_json()


def test_an_engine_in_which_something_failed_gets_another_try(unfinished):
    failed = replace(make_engine("peer"), failure="LaunchError: no")
    unfinished.save(make_results(make_engine("triton-vlm", is_ours=True), failed))
    loaded = unfinished.load(make_results().plan)
    assert [engine.name for engine in loaded.engines] == ["triton-vlm"]


def test_arrivals_are_those_of_the_interrupted_run(unfinished):
    def plan(mean_gap_s):
        return replace(make_results().plan, loads=(poisson_load("poisson 30%", 4, mean_gap_s),))

    unfinished.save(replace(make_results(), plan=plan(2.5)))
    assert unfinished.load(plan(2.6)).plan == plan(2.5)


def test_another_run_is_not_gone_on_with(unfinished):
    unfinished.save(make_results())
    with pytest.raises(SystemExit, match="measured something else"):
        unfinished.load(replace(make_results().plan, repeats=9))


def test_there_may_be_nothing_to_go_on_with(unfinished):
    unfinished.save(make_results())
    unfinished.delete()
    with pytest.raises(SystemExit, match="no run was interrupted"):
        unfinished.load(make_results().plan)
