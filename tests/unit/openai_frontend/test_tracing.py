"""Spans of generation requests, as OpenTelemetry's own SDK records and exports them."""

from __future__ import annotations

import builtins
import dataclasses
import time

import httpx
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas
from loopback_server import serving

pytest.importorskip("opentelemetry.sdk", reason="needs triton-vlm[tracing]")
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from openai_frontend.app import create_app
from openai_frontend.backend import Timing
from openai_frontend.otlp import open_tracing, span_exporter
from openai_frontend.settings import Settings, SettingsError
from openai_frontend.tracing import Tracing
from python_backend.errors import EngineError

pytestmark = pytest.mark.anyio
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
TIMING = Timing(arrived_at=1_700_000_000.5, queue_s=0.25, prefill_s=0.5, decode_s=2.0)


class TracedProxy:
    """The proxy with spans that are kept in memory."""

    def __init__(self, backend: FakeBackend) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.backend = backend
        app = create_app(Settings(), backend, tracing=Tracing(provider))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://proxy")

    async def chat(self, headers: dict[str, str] | None = None, **fields) -> httpx.Response:
        body = {"model": MODEL.id, "messages": [{"role": "user", "content": "secret"}]} | fields
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


def traced_deltas(text: str = "a b"):
    *first, last = text_deltas(text, prompt_tokens=10, cached_tokens=4)
    return [*first, dataclasses.replace(last, timing=TIMING)]


def times_ns(span: ReadableSpan) -> tuple[int, int]:
    return span.start_time, span.end_time


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_below_the_callers(stream) -> None:
    proxy = TracedProxy(FakeBackend(traced_deltas()))
    before_ns = time.time_ns()
    await proxy.chat({"traceparent": TRACEPARENT, "x-request-id": "mine"}, stream=stream)
    span = proxy.spans[f"chat {MODEL.id}"]
    assert span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "triton-vlm",
        "gen_ai.request.model": MODEL.id,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "triton_vlm.request_id": "mine",
    }
    (event,) = span.events
    assert event.name == "first_token"
    assert before_ns <= span.start_time <= event.timestamp <= span.end_time <= time.time_ns()


async def test_the_decoders_stages_are_children_without_a_gap() -> None:
    proxy = TracedProxy(FakeBackend(traced_deltas()))
    await proxy.chat()
    spans = proxy.spans
    request = spans[f"chat {MODEL.id}"]
    start_ns = 1_700_000_000_500_000_000
    assert times_ns(spans["queue"]) == (start_ns, start_ns + 250_000_000)
    assert times_ns(spans["prefill"]) == (start_ns + 250_000_000, start_ns + 750_000_000)
    assert times_ns(spans["decode"]) == (start_ns + 750_000_000, start_ns + 2_750_000_000)
    stages = [spans[name] for name in ("queue", "prefill", "decode")]
    assert all(stage.parent.span_id == request.context.span_id for stage in stages)
    assert all(stage.context.trace_id == request.context.trace_id for stage in stages)


async def test_the_span_is_passed_on_to_the_backend_and_named_in_the_log(caplog) -> None:
    proxy = TracedProxy(FakeBackend(traced_deltas("secret answer")))
    with caplog.at_level("INFO", logger="openai_frontend"):
        await proxy.chat({"traceparent": TRACEPARENT})
    span = proxy.spans[f"chat {MODEL.id}"]
    (call,) = proxy.backend.calls
    assert call.traceparent == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert caplog.messages[0].endswith(f" trace={TRACE_ID}")


@pytest.mark.parametrize(
    "header",
    [
        *("", "garbage", TRACEPARENT[:-1], f"{TRACEPARENT}-", TRACEPARENT.replace("b7", "xx")),
        *(f"00-{'0' * 32}-{PARENT_ID}-01", f"00-{TRACE_ID}-{'0' * 16}-01", f"ff{TRACEPARENT[2:]}"),
    ],
)
async def test_a_malformed_traceparent_is_as_none(header) -> None:
    proxy = TracedProxy(FakeBackend(traced_deltas()))
    response = await proxy.chat({"traceparent": header})
    assert response.status_code == 200
    span = proxy.spans[f"chat {MODEL.id}"]
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE_ID


async def test_what_the_caller_does_not_sample_is_not_recorded_here_or_in_triton() -> None:
    proxy = TracedProxy(FakeBackend(traced_deltas()))
    await proxy.chat({"traceparent": TRACEPARENT[:-1] + "0"})
    assert proxy.spans == {}
    (call,) = proxy.backend.calls
    assert call.traceparent is None


async def test_spans_hold_nothing_that_was_asked_or_answered(png_url) -> None:
    proxy = TracedProxy(FakeBackend(traced_deltas("secret answer")))
    image = {"type": "image_url", "image_url": {"url": png_url}}
    text = {"type": "text", "text": "secret"}
    headers = {"tracestate": "vendor=secret", "baggage": "who=secret"}
    await proxy.chat(headers, messages=[{"role": "user", "content": [text, image]}], user="secret")
    await proxy.chat(headers, model="secret")
    await proxy.chat(headers, messages="secret")
    await proxy.http.post("/v1/completions", content=b'{"secret"')
    assert len(proxy.spans) == 6
    shown = "".join(span.to_json() for span in proxy.spans.values())
    assert "secret" not in shown
    assert png_url not in shown


async def test_errors_are_told_by_code_and_only_the_servers_are_errors() -> None:
    proxy = TracedProxy(FakeBackend([EngineError("secret")]))
    await proxy.chat()
    failed = proxy.spans[f"chat {MODEL.id}"]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["http.response.status_code"] == 500
    assert failed.attributes["error.type"] == "500"
    assert failed.events == ()
    await proxy.chat(temperature=9)
    refused = proxy.spans["chat"]
    assert refused.status.status_code is StatusCode.UNSET
    assert refused.attributes["http.response.status_code"] == 400


async def test_only_generations_are_traced() -> None:
    proxy = TracedProxy(FakeBackend())
    for path in ("/health/live", "/v1/models", "/metrics", "/no/such/path"):
        await proxy.http.get(path, headers={"traceparent": TRACEPARENT})
    await proxy.http.post("/tokenize", json={"model": MODEL.id, "prompt": "a"})
    assert proxy.spans == {}


async def test_without_a_setting_nothing_is_traced_or_asked_of_the_decoder(make_proxy) -> None:
    assert open_tracing(Settings()) is None
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    await proxy.http.post(
        "/v1/completions",
        json={"model": MODEL.id, "prompt": "a"},
        headers={"traceparent": TRACEPARENT},
    )
    assert proxy.backend.calls[0].traceparent is None


async def test_spans_reach_the_collector_of_the_setting_before_the_proxy_ends() -> None:
    received: list[tuple[str, bytes]] = []

    async def collector(scope, receive, send) -> None:
        if scope["type"] == "http":
            body = b""
            while (message := await receive())["type"] == "http.request":
                body += message["body"]
                if not message.get("more_body"):
                    break
            received.append((scope["path"], body))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async with serving(collector) as address:
        tracing = open_tracing(Settings(otlp_endpoint=f"http://{address}/"))
        app = create_app(Settings(), FakeBackend(traced_deltas()), tracing=tracing)
        async with serving(app) as proxy, httpx.AsyncClient() as client:
            await client.post(
                f"http://{proxy}/v1/completions", json={"model": MODEL.id, "prompt": "a"}
            )
    ((path, body),) = received
    assert path == "/v1/traces"
    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    service = {a.key: a.value.string_value for a in sent.resource.attributes}
    assert service["service.name"] == "triton-vlm"
    names = {span.name for scope in sent.scope_spans for span in scope.spans}
    assert names == {"queue", "prefill", "decode", f"text_completion {MODEL.id}"}


def test_without_the_packages_a_setting_is_refused(monkeypatch) -> None:
    settings = Settings(otlp_endpoint="http://localhost:4318")
    assert isinstance(span_exporter(settings), OTLPSpanExporter)
    real_import = builtins.__import__

    def without_opentelemetry(name, *args, **kwargs):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_opentelemetry)
    with pytest.raises(SettingsError, match=r"pip install 'triton-vlm\[tracing\]', or leave"):
        open_tracing(settings)
