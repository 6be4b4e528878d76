"""The Grafana dashboard: what its queries ask for exists, and Grafana can lay it out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from openai_frontend.metrics import Metrics
from openai_frontend.record import ENDPOINTS, GENERATION_ENDPOINTS
from python_backend.encoder_cache import EncoderCache
from python_backend.engine import StepCounts
from python_backend.scheduler import Scheduler
from python_backend.stages.metrics import decoder_metrics, encoder_metrics

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy/grafana/triton-vlm.json").read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]
CHARTS = [panel for panel in PANELS if panel["type"] != "row"]
OURS, TRITONS = "triton_vlm_", "nv_inference_"
METRIC = re.compile(rf"\b(?:{OURS}|{TRITONS})\w+")
# Of Triton 24.10; tests/triton holds the dashboard against the real server.
TRITON_METRICS = {
    f"{TRITONS}{name}"
    for name in (
        *("request_success", "request_failure", "count", "exec_count", "request_duration_us"),
        *("queue_duration_us", "compute_input_duration_us", "compute_infer_duration_us"),
        *("compute_output_duration_us", "pending_request_count"),
    )
}


class Engine:
    """As much of an engine as its metrics look at."""

    scheduler = Scheduler(max_num_seqs=1, max_num_batched_tokens=1, max_model_len=1, max_waiting=1)
    step_counts = {"prefill": StepCounts(), "decode": StepCounts()}  # noqa: RUF012


def exprs() -> Iterator[str]:
    return (target["expr"] for panel in CHARTS for target in panel["targets"])


def proxy_metrics() -> set[str]:
    """Names of the series, as scraped."""
    suffixes = {
        "counter": ("_total",),
        "gauge": ("",),
        "histogram": ("_bucket", "_sum", "_count"),
    }
    families = text_string_to_metric_families(Metrics().render().decode())
    return {
        family.name + suffix
        for family in families
        if not family.name.endswith("_created")  # the client library's, beside every other
        for suffix in suffixes[family.type]
    }


def stage_metrics() -> set[str]:
    return {m.name for m in (*decoder_metrics(Engine), *encoder_metrics(EncoderCache(0)))}


def test_every_query_asks_for_metrics_that_are_exported() -> None:
    exported = proxy_metrics() | stage_metrics() | TRITON_METRICS
    for expr in exprs():
        assert METRIC.findall(expr), expr
        assert set(METRIC.findall(expr)) <= exported, expr
        assert expr.count("(") == expr.count(")"), expr


def test_every_metric_of_the_stages_is_shown() -> None:
    shown = {name for expr in exprs() for name in METRIC.findall(expr)}
    assert stage_metrics() <= shown


def test_requests_are_those_of_the_api_without_health_checks_and_scrapes() -> None:
    (panel,) = (panel for panel in CHARTS if panel["title"] == "Requests by outcome")
    (target,) = panel["targets"]
    included, excluded = re.findall(r'endpoint[=!]~"([^"]+)"', target["expr"])
    shown = {
        endpoint
        for endpoint in ENDPOINTS
        if re.fullmatch(included, endpoint) and not re.fullmatch(excluded, endpoint)
    }
    stored = {endpoint for endpoint in ENDPOINTS if endpoint.startswith("/v1/responses/")}
    assert shown == GENERATION_ENDPOINTS | {"/v1/messages/count_tokens"} | stored


def test_what_an_operator_asks_for_has_a_panel() -> None:
    assert {panel["title"] for panel in CHARTS} >= {
        *("Requests by outcome", "Errors", "Running and waiting", "Time to first token"),
        *("Time per output token", "Tokens a second", "Batch rows", "Cache hits"),
        *("Encoder and preprocess time", "Queue time", "Compute time"),
    }


def test_ids_are_unique_and_panels_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert all(0 <= grid["x"] <= 24 - grid["w"] for grid in (p["gridPos"] for p in PANELS))


def test_the_data_source_is_chosen_in_grafana() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        *("datasource", "datasource"),
        "prometheus",
    )
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert all(panel["datasource"] == chosen for panel in CHARTS)
    assert all(target["datasource"] == chosen for panel in CHARTS for target in panel["targets"])
    for panel in CHARTS:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        assert panel["description"]


def test_it_can_be_imported_anywhere() -> None:
    assert DASHBOARD["uid"] == "triton-vlm"
    assert "id" not in DASHBOARD
    assert DASHBOARD["schemaVersion"] >= 39


def test_the_documentation_names_every_metric() -> None:
    files = [ROOT / "docs" / name for name in ("openai-api.md", "deployment.md")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    documented = set(re.findall(rf"`({OURS}\w+)", text))
    series = proxy_metrics() | stage_metrics()
    assert documented == {re.sub(r"_(bucket|sum|count)$", "", name) for name in series}
