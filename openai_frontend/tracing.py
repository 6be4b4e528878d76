"""Spans of generation requests; imported only where OpenTelemetry is installed and wanted.

The span of a request is the child of the caller's `traceparent` and is passed on to Triton. What the
decoder did for it are three children, made here from the times that its last response tells, so that
the engine needs no exporter. Spans hold names, numbers and times; nothing that a client wrote as prompt and
nothing that was answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers

from openai_frontend.backend import Timing
from openai_frontend.record import CLIENT_CLOSED_REQUEST, RequestRecord
from openai_frontend.version import VERSION

_PROPAGATOR = TraceContextTextMapPropagator()
_NS = 1_000_000_000


class Tracing:
    """Makes spans with a provider, which it owns."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("openai_frontend", VERSION)

    def start(self, record: RequestRecord, headers: Headers) -> RequestSpan:
        """Start the span of a request and note its `traceparent` in the record."""
        # Without `tracestate`, which may hold anything. A malformed header is as none.
        carrier = {"traceparent": headers.get("traceparent", "")}
        parent = _PROPAGATOR.extract(carrier, Context())
        started_at_ns = time.time_ns()
        span = self._tracer.start_span(
            _operation(record), parent, SpanKind.SERVER, start_time=started_at_ns
        )
        if span.is_recording():  # Triton would record the others: it ignores the flag
            passed_on: dict[str, str] = {}
            _PROPAGATOR.inject(passed_on, set_span_in_context(span, Context()))
            record.traceparent = passed_on["traceparent"]
        return RequestSpan(self._tracer, span, started_at_ns)

    def close(self) -> None:
        """Send what waits; blocks until it is sent or given up."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request."""

    def __init__(self, tracer: Tracer, span: Span, started_at_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._started_at_ns = started_at_ns

    def end(self, record: RequestRecord) -> None:
        """Report how the request ended."""
        span = self._span
        if record.model is not None:
            span.update_name(f"{_operation(record)} {record.model}")
        span.set_attributes(dict(_attributes(record)))
        if record.time_to_first_token_s is not None:
            at_ns = self._started_at_ns + int(record.time_to_first_token_s * _NS)
            span.add_event("first_token", timestamp=at_ns)
        if record.final_status >= 500:  # as HTTP's conventions have it for servers
            span.set_status(StatusCode.ERROR)
        if record.timing is not None:
            self._add_stages(record.timing)
        span.end()

    def _add_stages(self, timing: Timing) -> None:
        parent = set_span_in_context(self._span, Context())
        start_ns = int(timing.arrived_at * _NS)
        stages = {"queue": timing.queue_s, "prefill": timing.prefill_s, "decode": timing.decode_s}
        for name, seconds in stages.items():
            end_ns = start_ns + int(seconds * _NS)
            self._tracer.start_span(name, parent, start_time=start_ns).end(end_ns)
            start_ns = end_ns


def _operation(record: RequestRecord) -> str:
    return "text_completion" if record.endpoint == "/v1/completions" else "chat"


def _attributes(record: RequestRecord) -> Iterator[tuple[str, AttributeValue]]:
    """By OpenTelemetry's conventions for generative AI and for HTTP."""
    yield "gen_ai.operation.name", _operation(record)
    yield "gen_ai.provider.name", "triton-vlm"
    yield "http.route", record.endpoint
    yield "http.response.status_code", record.final_status
    yield "triton_vlm.request_id", record.request_id
    if record.error or record.final_status >= CLIENT_CLOSED_REQUEST:
        yield "error.type", record.error or str(record.final_status)
    if record.model is not None:
        yield "gen_ai.request.model", record.model
    if record.finish_reasons:
        yield "gen_ai.response.finish_reasons", record.finish_reasons
        yield "gen_ai.usage.input_tokens", record.prompt_tokens
        yield "gen_ai.usage.output_tokens", record.completion_tokens
        yield "gen_ai.usage.cache_read.input_tokens", record.cached_tokens
