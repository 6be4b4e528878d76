"""TritonBackend: one gRPC stream per request, over one shared channel.

Uses the generated stubs of `tritonclient` directly: its aio `InferenceServerClient` refuses the
parameter that asks for an empty final response.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from openai_frontend.backend import Delta, ModelInfo, Timing, Usage
from openai_frontend.errors import ServiceUnavailableError
from openai_frontend.model_directory import ModelDirectory
from openai_frontend.triton_stream import TritonStream
from python_backend.errors import EngineError, VlmError
from python_backend.tensor_names import (
    CANCEL,
    DECODER_SUFFIX,
    DETAILS,
    IMAGES,
    PREPROCESS_SUFFIX,
    PROMPT,
    PROMPT_TOKEN_IDS,
    SAMPLING,
    TEXT,
)

_log = logging.getLogger(__name__)

_CHANNEL_OPTIONS = (
    # Images: the limit is the proxy's body limit, not gRPC's 4 MiB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The default waits up to two minutes before it looks for a restarted Triton again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_FINAL = "triton_final_response"
_PROBE_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 2.0
_CANCEL_TIMEOUT_S = 60.0
_CANCEL_PAUSE_S = 0.25


class TritonBackend:
    """`Backend` on a Triton server; used from one event loop."""

    def __init__(
        self,
        target: str,
        *,
        models_ttl_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect on first use, because a channel belongs to the loop that runs then.

        Args:
            target: `host:port` of Triton's gRPC endpoint.
            models_ttl_s: how long the list of models is remembered.
            clock: seconds since any fixed time; replaced in tests.
        """
        self._target = target
        self._channel: grpc.aio.Channel | None = None
        self._stub_of_channel: Any = None
        self._directory = ModelDirectory(lambda: self._stub, models_ttl_s, clock)
        self._cancels: set[asyncio.Task[None]] = set()
        self._num_running = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def generate(
        self,
        model: str,
        request_id: str,
        prompt: dict[str, Any],
        images: Sequence[bytes],
        sampling: dict[str, Any],
        traceparent: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Stream the answer; see `Backend.generate`."""
        if traceparent is not None:
            sampling = {**sampling, "return_timing": True}
        request = infer_request(
            model,
            request_id,
            {
                PROMPT: [json.dumps(prompt).encode()],
                IMAGES: images,
                SAMPLING: [json.dumps(sampling).encode()],
            },
        )
        stream = TritonStream(self._stub, request, traceparent)
        del request, images
        is_over = False
        self._num_running += 1
        self._is_idle.clear()
        try:
            async for response in stream:
                is_over = is_final(response)
                delta = delta_of(response)
                if delta is not None:
                    yield delta
        except VlmError:
            is_over = True
            raise
        finally:
            if not is_over:
                self._cancel_in_decoder(stream, model, request_id)
            self._num_running -= 1
            if not self._num_running:
                self._is_idle.set()

    async def tokenize(
        self, model: str, prompt: dict[str, Any], images: Sequence[bytes]
    ) -> list[int]:
        """The tokens of a prompt; see `Backend.tokenize`."""
        tensors = {PROMPT: [json.dumps(prompt).encode()], IMAGES: images}
        request = infer_request(model + PREPROCESS_SUFFIX, "", tensors)
        request.outputs.add(name=PROMPT_TOKEN_IDS)
        token_ids: list[int] = []
        async for response in TritonStream(self._stub, request):
            for data in response.raw_output_contents:
                token_ids += array("q", data)
        return token_ids

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of tokens; see `Backend.detokenize`."""
        request = infer_request(model + DECODER_SUFFIX, "", {})
        request.inputs.add(name=PROMPT_TOKEN_IDS, datatype="INT64", shape=[len(token_ids)])
        request.raw_input_contents.append(array("q", token_ids).tobytes())
        text = ""
        async for response in TritonStream(self._stub, request):
            delta = delta_of(response)
            text += "" if delta is None else delta.text
        return text

    async def models(self) -> list[ModelInfo]:
        """The models that can be asked for; see `Backend.models`."""
        return await self._directory.models()

    async def find_model(self, name: str) -> ModelInfo | None:
        """The model with this name; see `Backend.find_model`."""
        return await self._directory.find(name)

    async def is_ready(self) -> bool:
        """Whether Triton is ready and serves at least one model."""
        try:
            reply = await self._stub.ServerReady(
                service_pb2.ServerReadyRequest(), timeout=_PROBE_TIMEOUT_S
            )
            return bool(reply.ready) and bool(await self.models())
        except (grpc.aio.AioRpcError, ServiceUnavailableError):
            return False

    async def close(self) -> None:
        """Wait for the ends and cancellations on their way, then close the channel."""
        # At shutdown the tasks of the last requests have been cancelled, but have not run since.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._is_idle.wait()
        if self._cancels:
            await asyncio.wait(self._cancels, timeout=_CLOSE_TIMEOUT_S)
        if self._channel is not None:
            await self._channel.close()

    @property
    def _stub(self) -> Any:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS)
            self._stub_of_channel = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._stub_of_channel

    def _cancel_in_decoder(self, stream: TritonStream, model: str, request_id: str) -> None:
        # Its own task: the one that runs now is being cancelled. Kept in a set, because the event
        # loop alone does not keep a task alive.
        task = asyncio.create_task(self._end(stream, model + DECODER_SUFFIX, request_id))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _end(self, stream: TritonStream, decoder: str, request_id: str) -> None:
        """Free the slot: Triton does not tell a running step that its ensemble was cancelled.

        Tried again while the stream goes on: the request may still be on its way to the decoder.
        """
        request = infer_request(decoder, "", {CANCEL: [request_id.encode()]})
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                while True:
                    async for _ in TritonStream(self._stub, request):
                        pass
                    if await stream.abandon(_CANCEL_PAUSE_S):
                        return
        except (TimeoutError, VlmError) as error:
            _log.warning("request %s could not be cancelled: %r", request_id, error)


def infer_request(
    model: str, request_id: str, tensors: Mapping[str, Sequence[bytes]]
) -> service_pb2.ModelInferRequest:
    """A request with one-dimensional BYTES tensors; a tensor may have no elements."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    # Marks the end even when the decoder ends a request without another response.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, items in tensors.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[len(items)])
        request.raw_input_contents.append(
            b"".join(part for item in items for part in (struct.pack("<I", len(item)), item))
        )
    return request


def is_final(response: service_pb2.ModelInferResponse) -> bool:
    """Whether nothing follows `response` in its stream."""
    return _FINAL in response.parameters and bool(response.parameters[_FINAL].bool_param)


def delta_of(response: service_pb2.ModelInferResponse) -> Delta | None:
    """What a response of the decoder says; None for the empty one that only marks the end.

    Raises:
        EngineError: the response is not what the decoder's contract says.
    """
    if not response.outputs:
        return None
    tensors = _tensors(response)
    try:
        details = json.loads(tensors[DETAILS])
        usage, timing = details.get("usage"), details.get("timing")
        return Delta(
            text=tensors[TEXT].decode(),
            index=details.get("index", 0),
            token_ids=details.get("token_ids") or (),
            logprobs=details.get("logprobs"),
            finish_reason=details.get("finish_reason"),
            matched_stop=details.get("matched_stop"),
            usage=None if usage is None else Usage(**usage),
            prompt_token_ids=details.get("prompt_token_ids"),
            prompt_logprobs=details.get("prompt_logprobs") or (),
            reasoning=details.get("reasoning", ""),
            timing=None if timing is None else Timing(**timing),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"the decoder sent a response that is not understood: {error}") from error


def _tensors(response: service_pb2.ModelInferResponse) -> dict[str, bytes]:
    """The only element of each BYTES tensor, without its length of four bytes."""
    return {
        output.name: data[4:]
        for output, data in zip(response.outputs, response.raw_output_contents, strict=False)
    }
