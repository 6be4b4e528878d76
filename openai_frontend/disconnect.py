"""Stop working when the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from python_backend.errors import RequestCancelledError

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, but cancel it as soon as the client closes the connection.

    Args:
        receive: the request's channel, with the body already read.
        work: is awaited to its end on every path, so its `finally` blocks have run.

    Raises:
        RequestCancelledError: the client left before `work` was done.
    """
    work_task = asyncio.ensure_future(work)
    watch_task = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((work_task, watch_task), return_when=asyncio.FIRST_COMPLETED)
        if work_task.done():
            return work_task.result()
        raise RequestCancelledError("The client closed the connection.")
    finally:
        watch_task.cancel()
        work_task.cancel()
        await asyncio.gather(work_task, watch_task, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
