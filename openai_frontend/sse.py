"""Server-sent events: framing, and a response that stops when the client leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openai_frontend.disconnect import until_disconnect
from python_backend.errors import RequestCancelledError

DONE = b"data: [DONE]\n\n"
# `json.dumps` would make an encoder for every text.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(value: Any) -> str:
    """Compact JSON with readable non-ASCII text."""
    return _ENCODER.encode(value)


def event(text: str) -> bytes:
    """One event; a lone surrogate, which UTF-8 cannot carry, becomes a question mark."""
    return f"data: {text}\n\n".encode("utf-8", "replace")


def named_event(name: str, members: str) -> bytes:
    """One event of a stream whose events have names; `members` are those of its object besides `type`."""
    body = f'"type":"{name}",{members}' if members else f'"type":"{name}"'
    return f"event: {name}\n".encode() + event(f"{{{body}}}")


class EventStreamResponse(Response):
    """Sends events as they come; closes their generator on every path.

    Starlette's own `StreamingResponse` leaves the generator to the garbage collector when the
    client disconnects; here its `finally` blocks, which cancel the generation, run at once.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        self._first = first
        self._events = events
        self.status_code = 200
        self.background = None
        # no-cache and X-Accel-Buffering: proxies in between must not collect the stream.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    @classmethod
    async def opened(cls, events: AsyncGenerator[bytes, None]) -> EventStreamResponse:
        """Wait for the first event, so that what fails before it is an ordinary HTTP error."""
        return cls(await anext(events), events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        async with aclosing(self._events):
            try:
                await until_disconnect(receive, self._send_events(send))
            except RequestCancelledError:
                scope["state"]["record"].error = "cancelled"

    async def _send_events(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for data in self._events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
