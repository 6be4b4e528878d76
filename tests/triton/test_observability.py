"""Metrics of the stages through Triton's own endpoint, and traces from the proxy through its stages."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from google.protobuf.json_format import MessageToDict

from tests.triton.conftest import MODEL, image_part
from triton_vlm.stack import ServingStack

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUESTION = {"type": "text", "text": "a secret?"}
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "triton-vlm.json"


def ask(client: openai.OpenAI, picture: Path, **options: Any) -> openai.types.CompletionUsage:
    content = [image_part(picture.read_bytes()), QUESTION]
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        max_tokens=5,
        **options,
    )
    return answer.usage


def scrape(url: str) -> dict[str, float]:
    """Sums of all series, by name."""
    sums: dict[str, float] = {}
    for line in httpx.get(url).text.splitlines():
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            sums[name] = sums.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return sums


def wait_for(url: str, is_there: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The metrics once the stages have published them, which they do every second."""
    deadline = time.monotonic() + 20
    while not is_there(metrics := scrape(url)):
        assert time.monotonic() < deadline, metrics
        time.sleep(0.1)
    return metrics


def test_the_stages_count_pictures_and_steps(stack, client, example_files) -> None:
    url = stack.triton.metrics_url
    hits, tokens = "triton_vlm_image_cache_hits_total", "triton_vlm_decoder_step_tokens_total"
    before = wait_for(url, lambda metrics: {hits, tokens} <= set(metrics))
    for _ in range(2):
        usage = ask(client, example_files[0], extra_body={"cache_salt": "of this test"})
    computed = usage.prompt_tokens + 2 * (usage.completion_tokens - 1)
    metrics = wait_for(
        url,
        lambda metrics: (
            metrics[hits] > before[hits]
            and metrics[tokens] >= before[tokens] + computed
            and metrics["triton_vlm_decoder_rows"] == 0
        ),
    )
    assert metrics["triton_vlm_decoder_step_seconds_total"] > 0


def test_the_dashboard_asks_for_what_is_exported(stack, client, example_files) -> None:
    ask(client, example_files[0])
    exported = set(scrape(stack.triton.metrics_url)) | set(scrape(f"{stack.proxy.url}/metrics"))
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    exprs = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    asked = {name for expr in exprs for name in re.findall(r"\b(?:triton_vlm|nv)_\w+", expr)}
    assert asked
    assert asked <= exported


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP: protobuf from the proxy, JSON from Triton."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.bodies: list[str] = []
        self.spans: list[dict[str, Any]] = []
        self._arrived = threading.Condition()

    def add(self, resource: dict[str, Any]) -> None:
        with self._arrived:
            self.bodies.append(json.dumps(resource))
            for scope in resource["scopeSpans"]:
                self.spans += scope["spans"]
            self._arrived.notify_all()

    def wait_for(self, name: str) -> None:
        """Return once a span of this name is here."""
        with self._arrived:
            assert self._arrived.wait_for(
                lambda: name in {span["name"] for span in self.spans}, timeout=20
            )


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in to_json(self.headers["content-type"], body)["resourceSpans"]:
            self.server.add(resource)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def to_json(content_type: str, body: bytes) -> dict[str, Any]:
    if content_type == "application/json":
        return json.loads(body)
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = MessageToDict(ExportTraceServiceRequest.FromString(body))
    for span in (
        span
        for resource in message["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ):
        for key in ("traceId", "spanId", "parentSpanId"):  # base64 here, hexadecimal in OTLP's JSON
            if key in span:
                span[key] = base64.b64decode(span[key]).hex()
    return message


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_trace_goes_from_the_caller_through_every_stage(
    repository, collector, example_files, tmp_path
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="needs triton-vlm[tracing]")
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    flags = [f"--otlp-endpoint={endpoint}"]
    with (
        ServingStack(repository, MODEL, proxy_arguments=flags, log_dir=tmp_path) as stack,
        openai.OpenAI(base_url=stack.base_url, api_key="None", max_retries=0) as client,
    ):
        ask(
            client,
            example_files[0],
            extra_headers={"traceparent": f"00-{'1' * 32}-{PARENT_ID}-00"},
        )
        ask(
            client,
            example_files[0],
            extra_headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
        )
        # The proxy sends what it has when it ends; Triton may not, so its last span has to be here.
        collector.wait_for("InferRequest")
    # What the caller does not sample is nowhere, nor are requests that belong to no span.
    assert {span["traceId"] for span in collector.spans} == {TRACE_ID}
    names = {span["spanId"]: span["name"] for span in collector.spans}
    parents = {span["name"]: names.get(span["parentSpanId"]) for span in collector.spans}
    parents.pop("compute")  # of each stage
    request = next(name for name in parents if name.startswith("chat "))
    assert parents == {
        request: None,
        "InferRequest": request,
        MODEL: "InferRequest",
        f"{MODEL}-preprocess": MODEL,
        f"{MODEL}-encoder": MODEL,
        f"{MODEL}-decoder": MODEL,
        "queue": request,
        "prefill": request,
        "decode": request,
    }
    times = {
        span["name"]: (int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]))
        for span in collector.spans
    }
    assert times[request][0] < times["InferRequest"][0]
    assert times[f"{MODEL}-encoder"][1] <= times["queue"][0]
    assert times["queue"][1] == times["prefill"][0]
    assert times["prefill"][1] == times["decode"][0]
    assert times["decode"][1] < times[request][1]
    assert not any("secret" in body for body in collector.bodies)
