"""One request's gRPC stream to Triton, which is always read to its end.

A stream is never cancelled. Triton 2.51 crashes when the cancellation of a stream meets its answer,
and also when it ends a stream with an error status (reported upstream as server issues 7368 and 8034;
seen here: signal 11 within a few hundred refused requests). So errors are taken as text in the stream,
not as its status, and a request whose client has left is ended by a side request to the decoder while
this task reads what still comes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from openai_frontend.triton_errors import to_vlm_error
from python_backend.errors import VlmError

_Item = Any
"""A `ModelInferResponse`, a `VlmError`, or None at the end."""


class TritonStream:
    """Sends one request and iterates over its responses.

    Triton's tracer, if it is on, takes the span that its own belong to from gRPC's metadata: `traceparent`.

    The stream belongs to a task of its own, because grpc.aio cancels a call when the task that
    waits for it is cancelled.
    """

    def __init__(
        self, stub: Any, request: service_pb2.ModelInferRequest, traceparent: str | None = None
    ) -> None:
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._is_wanted = True
        self._task = asyncio.create_task(self._run(stub, request, traceparent))

    async def _run(
        self, stub: Any, request: service_pb2.ModelInferRequest, traceparent: str | None
    ) -> None:
        metadata = None if traceparent is None else (("traceparent", traceparent),)
        call = stub.ModelStreamInfer(metadata=metadata)
        error: VlmError | None = None
        try:
            await call.write(request)
            # The images are with Triton now; the answer may take minutes.
            del request
            await call.done_writing()
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.error_message:
                    error = to_vlm_error(None, response.error_message)
                elif self._is_wanted:
                    self._queue.put_nowait(response.infer_response)
        except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            # Writing to a stream that the server has just ended fails in three ways; why the server
            # ended it is in the status.
            error = to_vlm_error(await call.code(), await call.details())
        self._queue.put_nowait(error)

    def __aiter__(self) -> TritonStream:
        return self

    async def __anext__(self) -> service_pb2.ModelInferResponse:
        """The next response.

        Raises:
            VlmError: the request failed.
        """
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, VlmError):
            raise item
        return item

    async def abandon(self, timeout_s: float) -> bool:
        """Wait for the end and drop what comes until then; False if it takes longer."""
        self._is_wanted = False
        done, _ = await asyncio.wait({self._task}, timeout=timeout_s)
        return bool(done)
