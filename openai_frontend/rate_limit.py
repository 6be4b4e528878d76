"""Middleware that holds requests with a prompt to the limits of their API key."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from openai_frontend.errors import RequestRateError, error_response
from openai_frontend.record import RequestRecord


class RateLimitMiddleware:
    """Counts requests before their body is read, and tokens when the answer is over.

    In between, the service reserves tokens: only it knows how many there may be.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request (ASGI)."""
        record: RequestRecord | None = scope.get("state", {}).get("record")
        quota = record.quota if record is not None else None
        if record is None or quota is None:
            await self._app(scope, receive, send)
            return
        try:
            quota.admit()
        except RequestRateError as error:
            await error_response(error, retry_after_s=0)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            quota.settle_tokens(record.num_reserved_tokens, record.num_charged_tokens)
