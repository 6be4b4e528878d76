"""Middleware that bounds what a request body may cost: its size, its time and its packing.

Pure ASGI, so that the limit holds while the body is read and not after: a chunked body is counted
as it arrives and nothing beyond the limit is kept.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_frontend.errors import (
    RequestTimeoutError,
    RequestTooLargeError,
    UnsupportedEncodingError,
    error_response,
)
from python_backend.errors import InvalidRequestError


class BodyLimitMiddleware:
    """Refuses bodies that are too large, too slow or compressed."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the headers, then let the application read at most the limit (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(Headers(scope=scope))
        except InvalidRequestError as error:
            await error_response(error, retry_after_s=0)(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _check_headers(self, headers: Headers) -> None:
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedEncodingError(
                "Compressed request bodies are not accepted; send it without Content-Encoding."
            )
        length = headers.get("content-length")
        if length is None:
            return
        # int() would also take "+1", "1_0" and non-ASCII digits.
        if not (length.isascii() and length.isdigit()):
            raise InvalidRequestError("Content-Length must be a number of bytes.")
        if int(length[:20]) > self._max_body_bytes:
            raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        num_bytes = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def limited() -> Message:
            nonlocal num_bytes, complete
            if complete:
                # Only a disconnect can follow, and that may take as long as the answer does.
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeoutError(
                    f"The request body did not arrive within {self._timeout_s:g} seconds."
                ) from None
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                complete = not message.get("more_body", False)
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"The request body is larger than {self._max_body_bytes} bytes; "
            "send fewer or smaller images, or give their URLs."
        )
