from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.client import Answer, Request
from benchmarks.peers import comparison
from benchmarks.peers.comparison import Comparison, describe, run_burst
from benchmarks.peers.engine import Engine
from benchmarks.peers.peer import Checkpoint, Peer
from benchmarks.peers.plan import LOADS, loads_of
from benchmarks.peers.work_folder import WorkFolder
from benchmarks.summary import RequestTiming
from benchmarks.workload import Workload, same_picture_load
from tests.unit.benchmarks.peers.test_results import make_results
from triton_vlm.launch_error import LaunchError


class FakeEngine(Engine):
    """Notes what it is asked and fails when it has been asked too often."""

    def __init__(self, max_calls: int = 1000) -> None:
        self.calls: list[Sequence[Request]] = []
        self.is_stopped = False
        self._max_calls = max_calls

    @property
    def groups(self) -> Collection[int]:
        return (os.getpgrp(),)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        if len(self.calls) == self._max_calls:
            raise RuntimeError("too | often")
        self.calls.append(requests)
        return [
            Answer(
                timing=RequestTiming(
                    ttft_s=0.1, total_s=0.2, num_tokens=request.num_tokens, num_prompt_tokens=9
                ),
                text="answer",
            )
            for request in requests
        ]

    def stop(self) -> None:
        self.is_stopped = True


class FakePeer(Peer):
    name = "fake"
    is_served = True
    version = "fake 1"

    def __init__(self, *engines: FakeEngine) -> None:
        super().__init__(WorkFolder(Path()), Checkpoint(Path(), "fp32", 1))
        self._engines = list(engines)
        self.starts: list[bool] = []

    def set_up(self) -> None:
        raise LaunchError("cannot be installed", log_tail="first\nlast")

    def start(self, *, caches: bool) -> Engine:
        self.starts.append(caches)
        return self._engines[len(self.starts) - 1]


@pytest.fixture
def run(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    results = make_results()
    monkeypatch.setattr(comparison, "measure_speed", lambda: results.speed)
    return Comparison(results, workload, Console(quiet=True))


def test_rounds_of_a_burst_follow_each_other(workload: Workload):
    engine = FakeEngine()
    burst = run_burst(engine, workload, same_picture_load(3), 0)
    assert [len(requests) for requests in engine.calls] == [1, 1, 1]
    assert len(burst.requests) == 3


def test_every_load_is_measured_and_caches_are_on_only_where_something_comes_again(run: Comparison):
    peer = FakePeer(FakeEngine(), FakeEngine())
    run.measure(peer, None)
    (result,) = run._results.engines
    assert peer.starts == [False, True]
    assert list(result.bursts) == [load.label for load in run._results.plan.loads]
    assert result.failure is None
    assert result.cold_start_s is not None
    assert result.speed == run._results.speeds[-1]
    assert result.peak_bytes
    assert all(engine.is_stopped for engine in peer._engines)


def test_a_second_start_without_loads_shows_only_how_long_it_takes(run: Comparison):
    plan = run._results.plan
    run._plan = dataclasses.replace(plan, loads=tuple(plan.plain_loads))
    peer = FakePeer(FakeEngine(), FakeEngine())
    run.measure(peer, None)
    assert [len(engine.calls) > 1 for engine in peer._engines] == [True, False]


def test_a_peer_that_fails_keeps_what_was_measured_and_says_why(run: Comparison):
    peer = FakePeer(FakeEngine(max_calls=3), FakeEngine())
    run.measure(peer, None)
    (result,) = run._results.engines
    assert list(result.bursts) == ["picture x1", "same picture x3"]
    assert result.failure == "picture x8: RuntimeError: too / often"
    assert all(engine.is_stopped for engine in peer._engines)


def test_a_peer_that_does_not_start_says_why(run: Comparison):
    run.measure(FakePeer(FakeEngine(max_calls=0)), None)
    (result,) = run._results.engines
    assert result.bursts == {}
    assert result.failure == "RuntimeError: too / often"


def test_a_peer_that_cannot_be_set_up_is_not_started(run: Comparison):
    peer = FakePeer()
    failures = comparison.set_up([peer], Console(quiet=True))
    run.measure(peer, failures["fake"])
    assert peer.starts == []
    assert run._results.engines[0].failure == "LaunchError: cannot be installed; last"


def test_libraries_have_no_arrivals_and_slow_peers_no_large_bursts():
    peer = FakePeer()
    loads = loads_of(LOADS, [1, 16], 0.4, quick=False)
    assert all(peer.measures(load) for load in loads)
    peer.max_concurrency = 8  # type: ignore[misc]
    assert {load.label for load in loads if not peer.measures(load)} == {
        "picture x16",
        "poisson 30% x16",
        "poisson 60% x16",
    }
    peer.max_concurrency, peer.is_served = None, False  # type: ignore[misc]
    assert {load.name for load in loads if not peer.measures(load)} == {
        "poisson 30%",
        "poisson 60%",
    }


def test_a_long_reason_is_cut():
    assert len(describe(RuntimeError("word " * 1000))) < 450
