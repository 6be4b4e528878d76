from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.floors import MachineSpeed
from benchmarks.plan import Plan
from benchmarks.report import to_markdown
from benchmarks.results import Results
from benchmarks.session import Measured
from benchmarks.summary import Burst, RequestTiming
from benchmarks.workload import pictures_load
from tests.unit.benchmarks.examples import ENVIRONMENT, WORK

LOADS = (pictures_load(1, 4), pictures_load(8, 4))


def make_burst(num_requests: int, wall_s: float, text: str = "a") -> Burst:
    timing = RequestTiming(ttft_s=1.0, total_s=wall_s, num_tokens=4, num_prompt_tokens=300)
    return Burst(
        requests=[timing] * num_requests,
        wall_s=wall_s,
        cpu_s=2.0,
        foreign_cpu_share=0.0,
        texts=[text] * num_requests,
        token_ids=[[1, 2, 3, 4]] * num_requests,
    )


def make_results(served: list[Burst], peak_bytes: int = 10**9) -> Results:
    return Results(
        environment=ENVIRONMENT,
        model="model",
        engine="onnxruntime",
        precision="fp32",
        plan=Plan("tiny", LOADS, LOADS[1], LOADS[0], 1, 1),
        speed=MachineSpeed(read_bytes_per_s=1e9, flops_per_s=1e9),
        work=WORK,
        measured=Measured(
            served=[[burst] for burst in served],
            offline=[[make_burst(1, 2.0)], [make_burst(8, 4.0)]],
            peak_memory={"proxy": peak_bytes},
            gpu_bytes=None,
        ),
        hugging_face=[make_burst(1, 2.0)],
    )


def on_gpu(results: Results, **changes: Any) -> Results:
    """The same, measured on a GPU without Hugging Face."""
    changes = {"engine": "tensorrt", "precision": "bf16", "hugging_face": (), **changes}
    return replace(
        results,
        speed=replace(results.speed, is_gpu=True),
        measured=replace(results.measured, gpu_bytes=5 * 10**9),
        no_hugging_face="torch sees no CUDA device",
        **changes,
    )


def met(results: Results) -> list[bool]:
    return [target.is_met for target in results.targets()]


def test_a_stack_as_fast_as_its_engine_with_equal_answers_meets_every_target():
    assert met(make_results([make_burst(1, 2.0), make_burst(8, 4.0)])) == [True] * 5


def test_a_slow_stack_misses_the_targets_of_speed():
    results = make_results([make_burst(1, 2.0), make_burst(8, 40.0)])
    assert met(results) == [False, False, True, True, True]


def test_memory_counts_above_weights_and_caches():
    served = [make_burst(1, 2.0), make_burst(8, 4.0)]
    caches_bytes = 8 * (300 + 4) * 8 + 8 * WORK.tokens_per_picture * 4
    limit = 10**9 + 1500 + caches_bytes
    assert met(make_results(served, limit))[2]
    assert not met(make_results(served, limit + 1))[2]


def test_a_different_answer_is_found():
    results = make_results([make_burst(1, 2.0), make_burst(8, 4.0, text="b")])
    assert met(results)[3] is False


def test_page_begins_with_the_command_and_has_every_load():
    results = make_results([make_burst(1, 2.0), make_burst(8, 4.0)])
    page = to_markdown(results, Path("plot.png"))
    assert "`python -m benchmarks.run`" in page[:100]
    assert all(f"| {load.label} | served |" in page for load in LOADS)


def test_json_has_the_timings_and_not_the_answers():
    results = make_results([make_burst(1, 2.0), make_burst(8, 4.0)])
    data = json.loads(results.to_json())
    assert data["measured"]["served"][0][0]["requests"][0]["ttft_s"] == 1.0
    assert "texts" not in data["measured"]["served"][0][0]


def test_a_target_says_when_the_machine_was_not_idle():
    busy = replace(make_burst(8, 4.0), foreign_cpu_share=0.3)
    targets = make_results([make_burst(1, 2.0), busy]).targets()
    assert [target.measured.endswith("others had 30%") for target in targets[:2]] == [True, True]


def test_fewer_bits_promise_no_equal_answers():
    results = make_results([make_burst(1, 2.0), make_burst(8, 4.0, text="b")])
    assert not any("=" in target.name for target in replace(results, precision="int4").targets())


def test_a_gpu_without_hugging_face_is_compared_with_the_offline_engine_only():
    results = on_gpu(make_results([make_burst(1, 2.0), make_burst(8, 4.0)]))
    (target,) = results.targets()
    assert target.name.startswith("served / offline")


def test_page_of_a_gpu_has_its_memory_and_why_hugging_face_is_missing():
    results = on_gpu(make_results([make_burst(1, 2.0), make_burst(8, 4.0)]))
    page = to_markdown(results, Path("plot.png"))
    assert "| on the GPU | 5.00 |" in page
    assert "Hugging Face is left out: torch sees no CUDA device." in page
    assert "beside weights and caches" not in page


def test_results_of_other_engines_and_precisions_have_files_of_their_own():
    results = make_results([make_burst(1, 2.0), make_burst(8, 4.0)])
    assert results.name == "model"
    assert replace(results, precision="int4").name == "model_int4"
    assert on_gpu(results).name == "model_tensorrt_bf16"
