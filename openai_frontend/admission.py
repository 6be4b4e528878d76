"""Middleware that bounds how many requests with a prompt are in this process at a time.

The decoder has a waiting queue of its own, but a request costs memory here, for its body and its
images, before it gets there.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from openai_frontend.errors import error_response
from openai_frontend.record import RequestRecord
from python_backend.errors import OverloadedError


class AdmissionMiddleware:
    """Refuses requests with a prompt over the limit before their body is read."""

    def __init__(self, app: ASGIApp, *, max_requests: int, retry_after_s: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._retry_after_s = retry_after_s
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request (ASGI)."""
        record: RequestRecord | None = scope.get("state", {}).get("record")
        if record is None or not record.takes_prompt:
            await self._app(scope, receive, send)
            return
        if self._num_requests >= self._max_requests:
            error = OverloadedError(
                f"The server is busy with {self._num_requests} requests; try again later."
            )
            await error_response(error, self._retry_after_s)(scope, receive, send)
            return
        self._num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
