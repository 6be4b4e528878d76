from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.floors import MachineSpeed
from benchmarks.growth import FULL, QUICK, Points
from benchmarks.growth_plot import draw
from benchmarks.growth_report import to_markdown
from benchmarks.growth_results import GrowthResults
from benchmarks.session import Measured
from benchmarks.summary import Burst, RequestTiming
from benchmarks.workload import Load, Workload
from tests.unit.benchmarks.examples import ENVIRONMENT, WORK

POINTS = Points(
    concurrencies=(1, 4), prompt_lengths=(64, 512), picture_counts=(2,), num_output_tokens=8
)
LOADS = [load for curve in POINTS.curves for load in curve.loads]


def make_burst(load: Load, wall_s: float) -> Burst:
    timing = RequestTiming(
        ttft_s=1.0,
        total_s=wall_s,
        num_tokens=load.num_output_tokens,
        num_prompt_tokens=load.num_text_tokens + 2 * load.num_pictures_each,
    )
    return Burst(
        requests=[timing] * load.num_requests,
        wall_s=wall_s,
        cpu_s=1.0,
        foreign_cpu_share=0.0,
        texts=["answer"] * load.num_requests,
    )


@pytest.fixture
def results() -> GrowthResults:
    return GrowthResults(
        environment=ENVIRONMENT,
        model="model",
        engine="onnxruntime",
        precision="int4",
        speed=MachineSpeed(read_bytes_per_s=1e6, flops_per_s=1e6),
        work=WORK,
        curves=POINTS.curves,
        measured=Measured(
            served=[[make_burst(load, 4.0)] for load in LOADS],
            offline=[[make_burst(load, 2.0)] for load in LOADS],
            peak_memory={},
            gpu_bytes=None,
        ),
    )


@pytest.mark.parametrize("points", [FULL, QUICK])
def test_every_point_has_a_load_of_its_own(points: Points):
    labels = [load.label for curve in points.curves for load in curve.loads]
    assert len(set(labels)) == len(labels)


def test_the_ends_are_those_that_were_asked_for():
    assert (FULL.concurrencies[0], FULL.concurrencies[-1]) == (1, 64)
    assert (FULL.prompt_lengths[0], FULL.prompt_lengths[-1]) == (64, 8192)
    assert (FULL.picture_counts[0], FULL.picture_counts[-1]) == (1, 16)


def test_the_number_that_grows_is_that_of_the_requests(workload: Workload):
    _, prompts, pictures = POINTS.curves
    (conversation,) = workload.conversations(prompts.loads[1], 0)
    assert len(conversation[0]["content"][0]["text"].split()) == 512
    (conversation,) = workload.conversations(pictures.loads[0], 0)
    urls = [part["image_url"]["url"] for part in conversation[0]["content"][:-1]]
    assert len(set(urls)) == 2


def test_every_point_has_its_own_bursts_and_floor(results: GrowthResults):
    requests, prompts, pictures = results.points()
    assert [point.value for point in requests] == [1, 4]
    assert [point.served.tokens_per_s.median for point in requests] == [2.0, 8.0]
    assert [point.offline.tokens_per_s.median for point in requests] == [4.0, 16.0]
    assert [point.num_prompt_tokens for point in (*prompts, *pictures)] == [64, 512, 68]
    assert prompts[1].floor.ttft_s == WORK.prompt_flops(512, 0) / 1e6
    assert pictures[0].floor.ttft_s == WORK.prompt_flops(68, 2) / 1e6


def test_page_has_a_table_for_each_curve(results: GrowthResults):
    page = to_markdown(results, Path("plot.png"))
    assert "| 4 | 64 | 8.0 | 16.0 |" in page
    assert page.count("## ") == len(POINTS.curves)
    assert results.name == "growth_model_int4"


def test_json_has_the_points_and_not_the_answers(results: GrowthResults):
    text = results.to_json()
    assert json.loads(text)["curves"][1]["points"][1]["num_prompt_tokens"] == 512
    assert "answer" not in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's own
def test_picture_is_drawn(results: GrowthResults, tmp_path: Path):
    pytest.importorskip("matplotlib")
    draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
