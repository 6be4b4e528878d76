"""Middleware around every request: its id in and out, its metrics, its span, its one log line."""

from __future__ import annotations

import logging
import re
import uuid
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_frontend.metrics import Metrics
from openai_frontend.record import CLIENT_CLOSED_REQUEST, ENDPOINTS, RequestRecord

if TYPE_CHECKING:
    from openai_frontend.tracing import Tracing

_log = logging.getLogger(__name__)
# What may be echoed into a header, a log line and a Triton request id.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}", re.ASCII)
# Paths with an id, and the routes that they belong to.
_ROUTES_WITH_IDS = (
    (re.compile(r"/v1/models/.*", re.DOTALL), "/v1/models/{model}"),
    (re.compile(r"/v1/responses/[^/]+(|/cancel|/input_items)"), r"/v1/responses/{id}\1"),
)


class ObservabilityMiddleware:
    """Gives every request a `RequestRecord` and reports it at the end."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _new_record(scope)
        scope.setdefault("state", {})["record"] = record

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.request_id
                headers["x-content-type-options"] = "nosniff"
                if record.quota is not None:
                    headers.update(record.quota.headers())
            await send(message)

        span = None
        if self._tracing is not None and record.is_generation:
            span = self._tracing.start(record, Headers(scope=scope))
        self._metrics.request_started(record)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # The answer is sent further out, by the handler of unexpected errors.
            record.status = record.status or 500
            record.error = record.error or "internal_error"
            raise
        finally:
            self._metrics.request_ended(record)
            if span is not None:
                span.end(record)
            _log_request(record)


def _new_record(scope: Scope) -> RequestRecord:
    path = scope["path"]
    for pattern, route in _ROUTES_WITH_IDS:
        if match := pattern.fullmatch(path):
            path = match.expand(route)
    generated = uuid.uuid4().hex
    asked = Headers(scope=scope).get("x-request-id", "")
    is_usable = _REQUEST_ID.fullmatch(asked) is not None
    return RequestRecord(
        request_id=asked if is_usable else generated,
        # Two clients, or one that retries, may send the same id at the same time; Triton's side
        # requests find a generation by its id alone.
        backend_request_id=f"{asked}-{generated}" if is_usable else generated,
        endpoint=path if path in ENDPOINTS else "other",
    )


def _log_request(record: RequestRecord) -> None:
    ttft, tpot = record.time_to_first_token_s, record.time_per_output_token_s
    is_worth_reading = record.is_generation or record.final_status >= CLIENT_CLOSED_REQUEST
    _log.log(
        logging.INFO if is_worth_reading else logging.DEBUG,
        "request %s %s status=%d error=%s key=%s model=%s prompt_tokens=%d completion_tokens=%d "
        "ttft_ms=%s tpot_ms=%s total_ms=%.0f trace=%s",
        record.request_id,
        record.endpoint,
        record.final_status,
        record.error,
        record.api_key.name if record.api_key else None,
        record.model,
        record.prompt_tokens,
        record.completion_tokens,
        None if ttft is None else round(ttft * 1000),
        None if tpot is None else round(tpot * 1000, 1),
        record.elapsed_s * 1000,
        record.trace_id,
    )
