from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.floors import MachineSpeed
from benchmarks.peers.plan import PeerPlan, loads_of
from benchmarks.peers.report import to_markdown
from benchmarks.peers.results import EngineResult, PeerResults, Reference
from benchmarks.results import Target
from benchmarks.summary import Burst, RequestTiming
from benchmarks.workload import Load
from tests.unit.benchmarks.examples import ENVIRONMENT, WORK

LOADS = loads_of(["picture", "same-picture"], [1, 8], 1.0, quick=True)
ONE, EIGHT, SAME = LOADS


def make_burst(load: Load, ttft_s: float, wall_s: float, again_s: float | None = None) -> Burst:
    ttfts_s = [ttft_s] + [again_s or ttft_s] * (load.num_requests - 1)
    return Burst(
        requests=[
            RequestTiming(
                ttft_s=one,
                total_s=one + wall_s,
                num_tokens=load.num_output_tokens,
                num_prompt_tokens=300,
            )
            for one in ttfts_s
        ],
        wall_s=wall_s,
        cpu_s=2.0,
        foreign_cpu_share=0.0,
        texts=["answer"] * load.num_requests,
    )


def make_engine(
    name: str, speed: float = 1.0, *, is_ours: bool = False, is_served: bool = True
) -> EngineResult:
    """An engine that takes 1 s to the first token and 4 s in all, divided by `speed`."""
    bursts = {load.label: [make_burst(load, 1 / speed, 4 / speed)] for load in (ONE, EIGHT)}
    bursts[SAME.label] = [make_burst(SAME, 1 / speed, 4 / speed, again_s=0.1 / speed)]
    return EngineResult(
        name=name,
        version="1",
        is_ours=is_ours,
        is_served=is_served,
        bursts=bursts,
        cold_start_s=10 / speed,
        peak_bytes=int(10**9 / speed),
    )


def make_results(*engines: EngineResult) -> PeerResults:
    return PeerResults(
        environment=replace(ENVIRONMENT, command="python -m benchmarks.peers.run"),
        model="model",
        plan=PeerPlan("tiny", "fp32", LOADS, 1, 1),
        speeds=[MachineSpeed(read_bytes_per_s=1e9, flops_per_s=2e6)],
        work=replace(WORK, decoder_bytes=400_000_000),
        num_prompt_tokens={load.label: 300 for load in LOADS},
        engines=list(engines),
        references={load.label: Reference(token_ids=[[1, 2]], texts=["answer"]) for load in LOADS},
    )


def target(results: PeerResults, *words: str) -> Target:
    (found,) = [t for t in results.targets() if all(word in t.name for word in words)]
    return found


def test_ours_is_compared_with_the_best_peer_of_each_figure():
    results = make_results(
        make_engine("triton-vlm", 1.5, is_ours=True), make_engine("slow", 0.5), make_engine("fast")
    )
    for words in (("tokens/s", "x8"), ("TTFT p50", "x1"), ("cold start",), ("memory GB",)):
        found = target(results, *words)
        assert found.is_met, found
        assert found.measured.endswith("of fast's")


def test_a_slower_engine_misses_its_targets():
    results = make_results(make_engine("triton-vlm", 1.2, is_ours=True), make_engine("peer"))
    assert not target(results, "tokens/s", "x8").is_met
    assert not target(results, "TTFT p50", "x8").is_met
    assert target(results, "TPOT", "x1").is_met


def test_libraries_are_compared_with_libraries():
    results = make_results(
        make_engine("triton-vlm", is_ours=True),
        make_engine("triton-vlm offline", 2.0, is_ours=True, is_served=False),
        make_engine("server", 9.0),
        make_engine("library", is_served=False),
    )
    assert target(results, "triton-vlm offline: tokens/s").measured.endswith("of library's")
    assert target(results, "served / offline").measured.startswith("0.50")


def test_targets_of_what_was_not_measured_are_left_out():
    results = make_results(make_engine("triton-vlm", is_ours=True))
    assert not [t for t in results.targets() if "best peer" in t.wanted]


def test_floors_are_those_of_the_machine_just_before_the_engine():
    engine = make_engine("triton-vlm", is_ours=True)
    results = make_results(engine)
    shares = []
    for factor in (1, 2):
        speed = results.speeds[0]
        engine.speed = replace(speed, read_bytes_per_s=factor * speed.read_bytes_per_s)
        share = target(results, "decode, share").measured
        shares.append(float(share.removesuffix("%")))
    assert shares[0] == pytest.approx(2 * shares[1], abs=1)


def test_one_fast_moment_of_the_machine_does_not_move_the_floor():
    results = make_results()
    usual = results.speeds[0]
    results.speeds.extend([usual, replace(usual, read_bytes_per_s=9 * usual.read_bytes_per_s)])
    assert results.speed == usual


def test_floors_are_targets_too():
    results = make_results(make_engine("triton-vlm", is_ours=True))
    floor = results.floor(ONE)
    measured = 4.0 / (ONE.num_output_tokens - 1)
    assert target(results, "decode, share").measured == f"{floor.tpot_s / measured:.0%}"
    assert target(results, "prompt, share").measured == f"{floor.ttft_s / 1.0:.0%}"


def test_what_comes_again_has_a_target():
    found = target(make_results(make_engine("triton-vlm", is_ours=True)), "again / first")
    assert found.is_met
    assert found.measured.startswith("0.10")


def test_texts_are_compared_without_replacement_characters_and_tokens_where_there_are_some():
    engine = make_engine("triton-vlm", is_ours=True)
    results = make_results(engine)
    results.references[ONE.label] = Reference(token_ids=[[1, 2]], texts=["\ufffdanswer\ufffd"])
    assert results.equal_answers(engine, ONE) == (1, 1, 1.0)
    engine.bursts[ONE.label] = [replace(engine.bursts[ONE.label][0], token_ids=[[1, 3]])]
    assert results.equal_answers(engine, ONE) == (0, 1, 0.5)
    assert not target(results, "answers").is_met


def test_page_has_figures_ratios_and_why_a_peer_is_missing():
    failed = EngineResult(
        name="broken", version="2", is_ours=False, is_served=True, failure="does not compile"
    )
    results = make_results(
        make_engine("triton-vlm", 2.0, is_ours=True), make_engine("peer"), failed
    )
    page = to_markdown(results, Path("plot.png"))
    assert "| broken | 2 | HTTP | - | - | - | does not compile |" in page
    assert "| peer | 1 | HTTP | 10.0 | 1.00 | 3 of 3 | - |" in page.replace("|  |", "| - |")
    assert f"| {EIGHT.label} | peer | 2.00 (2.00 to 2.00) |" in page
    assert f"| {SAME.label} | peer | 1.00 (1.00 to 1.00) | 0.10 (0.10 to 0.10) |" in page


def test_json_has_the_timings_and_not_the_answers():
    results = make_results(make_engine("triton-vlm", is_ours=True))
    data = json.loads(results.to_json())
    assert data["engines"][0]["bursts"][ONE.label][0]["requests"][0]["ttft_s"] == 1.0
    assert "answer" not in results.to_json().replace("answers", "")


def test_answers_of_fewer_bits_are_told_and_are_no_target():
    engine = make_engine("triton-vlm", is_ours=True)
    results = make_results(engine)
    engine.bursts[ONE.label] = [replace(engine.bursts[ONE.label][0], token_ids=[[1, 3]])]
    few = replace(results, plan=replace(results.plan, precision="int4"))
    assert few.all_equal_answers(engine) == (2, 3, 2.5 / 3)
    assert "| 2 of 3, 83% before a difference |" in to_markdown(few, Path("plot.png"))
    assert [t for t in results.targets() if "answers" in t.name]
    assert not [t for t in few.targets() if "answers" in t.name]
