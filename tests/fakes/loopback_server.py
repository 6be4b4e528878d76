"""A real uvicorn on loopback, in the event loop of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class QuietServer(uvicorn.Server):
    """Leaves the signals of the test run alone, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    @property
    def started(self) -> bool:
        return self.is_listening.is_set()

    @started.setter
    def started(self, value: bool) -> None:
        if value:
            self.is_listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Asgi, **config: Any) -> AsyncIterator[str]:
    """Serve `app` on a free port; yields `host:port`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = QuietServer(
            uvicorn.Config(
                app, http="httptools", ws="none", log_config=None, lifespan="auto", **config
            )
        )
        task = asyncio.create_task(server.serve([listener]))
        async with asyncio.timeout(5):
            await server.is_listening.wait()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            async with asyncio.timeout(10):
                await task
