"""TritonBackend against a gRPC server that speaks Triton's protocol, on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from openai_frontend.backend import Delta, Timing, Usage
from openai_frontend.errors import ServiceUnavailableError
from openai_frontend.triton_backend import TritonBackend
from python_backend.errors import (
    EngineError,
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
    RequestCancelledError,
    VlmError,
    to_wire,
)
from python_backend.tool_calls import FORMATS

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
async def one_event_loop() -> AsyncIterator[None]:
    """All tests run in one loop: grpc.aio delivers late events of a server to the loop it had."""
    yield  # noqa: PT022 - the loop lives as long as the generator


Response = service_pb2.ModelStreamInferResponse
Answer = Callable[[service_pb2.ModelInferRequest, Any], AsyncGenerator[Response, None]]


def response(text: str = "", is_final: bool = False, **details: Any) -> Response:
    infer = service_pb2.ModelInferResponse(model_name="m")
    infer.parameters["triton_final_response"].bool_param = is_final
    for name, value in (("details", json.dumps(details)), ("text", text)):
        data = value.encode()
        infer.outputs.add(name=name, datatype="BYTES", shape=[1])
        infer.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
    return Response(infer_response=infer)


def empty_final() -> Response:
    infer = service_pb2.ModelInferResponse(model_name="m")
    infer.parameters["triton_final_response"].bool_param = True
    return Response(infer_response=infer)


def elements(data: bytes) -> list[bytes]:
    items = []
    while data:
        size = int.from_bytes(data[:4], "little")
        items.append(data[4 : 4 + size])
        data = data[4 + size :]
    return items


def config(name: str, **parameters: str) -> model_config_pb2.ModelConfig:
    made = model_config_pb2.ModelConfig(name=name)
    for key, value in parameters.items():
        made.parameters[key].string_value = value
    return made


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers streams with `answer`, and cancels with `cancel_replies` in turn."""

    answer: Answer | None = None
    cancel_replies: list[bool] = field(default_factory=lambda: [True])
    configs: list[model_config_pb2.ModelConfig] = field(default_factory=list)
    is_ready: bool = True
    requests: list[service_pb2.ModelInferRequest] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    cancels: asyncio.Queue[tuple[str, str]] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    stream_ended: asyncio.Event = field(default_factory=asyncio.Event)
    num_listings: int = 0

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[service_pb2.ModelInferRequest], context: Any
    ) -> AsyncIterator[Response]:
        # One request per stream, which the client then half-closes.
        (request,) = [request async for request in request_iterator]
        if request.inputs[0].name == "cancel":
            request_id = elements(request.raw_input_contents[0])[0].decode()
            self.cancels.put_nowait((request.model_name, request_id))
            reply = self.cancel_replies.pop(0)
            yield response(is_final=True, cancelled=reply)
            if reply:
                self.cancelled.set()
            return
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        assert self.answer is not None
        try:
            async with aclosing(self.answer(request, context)) as items:
                async for item in items:
                    yield item
        finally:
            self.stream_ended.set()

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.num_listings += 1
        reply = service_pb2.RepositoryIndexResponse()
        for made in self.configs:
            reply.models.add(name=made.name, version="1", state="READY")
        return reply

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        made = next(made for made in self.configs if made.name == request.name)
        return service_pb2.ModelConfigResponse(config=made)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=self.is_ready)


@asynccontextmanager
async def connected(triton: FakeTriton, **options: Any) -> AsyncIterator[TritonBackend]:
    # As Triton: no limit but memory.
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    backend = TritonBackend(f"127.0.0.1:{port}", **options)
    try:
        yield backend
    finally:
        await backend.close()
        await server.stop(grace=None)


def script(*items: Response) -> Answer:
    async def answer(request: Any, context: Any) -> AsyncGenerator[Response, None]:
        for item in items:
            yield item

    return answer


def aborting(code: grpc.StatusCode, text: str, *before: Response) -> Answer:
    async def answer(request: Any, context: Any) -> AsyncGenerator[Response, None]:
        for item in before:
            yield item
        await context.abort(code, text)

    return answer


async def collect(backend: TritonBackend, images: tuple[bytes, ...] = ()) -> list[Delta]:
    prompt, sampling = {"messages": []}, {"n": 1}
    return [delta async for delta in backend.generate("m", "id-1", prompt, images, sampling)]


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "image_tokens": 1, "cached_tokens": 0}


async def test_request_carries_the_tensors_of_the_contract() -> None:
    """CVE-2026-105754: no id or hash of a client's is among them."""
    triton = FakeTriton(script(empty_final()))
    async with connected(triton) as backend:
        assert await collect(backend, (b"one", b"", b"three")) == []
    request = triton.requests[0]
    assert (request.model_name, request.id) == ("m", "id-1")
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    # An error status instead of a text in the stream crashes Triton 2.51.
    assert "triton_grpc_error" not in triton.metadata[0]
    described = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs]
    assert described == [
        ("prompt", "BYTES", [1]),
        ("images", "BYTES", [3]),
        ("sampling", "BYTES", [1]),
    ]
    prompt, images, sampling = map(elements, request.raw_input_contents)
    assert json.loads(prompt[0]) == {"messages": []}
    assert images == [b"one", b"", b"three"]
    assert json.loads(sampling[0]) == {"n": 1}


async def test_a_traced_request_passes_its_span_on_and_asks_where_the_time_went() -> None:
    timing = {"arrived_at": 1.5, "queue_s": 0.1, "prefill_s": 0.2, "decode_s": 0.3}
    triton = FakeTriton(script(response("a", is_final=True, timing=timing)))
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    async with connected(triton) as backend:
        sampling: dict[str, Any] = {"n": 1}
        stream = backend.generate("m", "id-1", {"messages": []}, (), sampling, traceparent)
        (delta,) = [delta async for delta in stream]
        assert sampling == {"n": 1}
        await collect(backend)
    traced, other = triton.metadata
    assert traced["traceparent"] == traceparent
    assert "traceparent" not in other
    asked = [json.loads(elements(r.raw_input_contents[2])[0]) for r in triton.requests]
    assert asked == [{"n": 1, "return_timing": True}, {"n": 1}]
    assert delta.timing == Timing(**timing)


async def test_tokens_of_a_prompt_come_from_the_preprocess_stage() -> None:
    token_ids = [5, 2**40, 0]
    reply = service_pb2.ModelInferResponse(model_name="m-preprocess")
    reply.outputs.add(name="prompt_token_ids", datatype="INT64", shape=[3])
    reply.raw_output_contents.append(b"".join(i.to_bytes(8, "little") for i in token_ids))
    triton = FakeTriton(script(Response(infer_response=reply), empty_final()))
    async with connected(triton) as backend:
        assert await backend.tokenize("m", {"prompt": "x"}, [b"image"]) == token_ids
    (request,) = triton.requests
    assert request.model_name == "m-preprocess"
    assert [tensor.name for tensor in request.inputs] == ["prompt", "images"]
    assert [tensor.name for tensor in request.outputs] == ["prompt_token_ids"]


async def test_text_of_tokens_comes_from_the_decoder() -> None:
    triton = FakeTriton(script(response("Hi", is_final=True)))
    async with connected(triton) as backend:
        assert await backend.detokenize("m", [5, 7]) == "Hi"
    (request,) = triton.requests
    assert request.model_name == "m-decoder"
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("prompt_token_ids", "INT64", [2])
    assert request.raw_input_contents[0] == (5).to_bytes(8, "little") + (7).to_bytes(8, "little")


async def test_no_images_are_an_empty_tensor_not_a_missing_one() -> None:
    triton = FakeTriton(script(empty_final()))
    async with connected(triton) as backend:
        await collect(backend)
    assert list(triton.requests[0].inputs[1].shape) == [0]
    assert triton.requests[0].raw_input_contents[1] == b""


@pytest.mark.parametrize("has_empty_final", [False, True])
async def test_responses_become_deltas_until_the_final_one(has_empty_final) -> None:
    logprobs = [{"token": "ü", "bytes": [195, 188], "logprob": -1.0, "top_logprobs": []}]
    last = {"index": 0, "token_ids": [6], "finish_reason": "stop", "matched_stop": 6}
    items = [
        response("", index=0, token_ids=[4], reasoning="Hm."),
        response("ü", index=0, token_ids=[5], logprobs=logprobs),
        response("", is_final=not has_empty_final, usage=USAGE, **last),
    ]
    triton = FakeTriton(script(*items, *[empty_final()] * has_empty_final))
    async with connected(triton) as backend:
        deltas = await collect(backend)
    assert deltas == [
        Delta(text="", token_ids=[4], reasoning="Hm."),
        Delta(text="ü", token_ids=[5], logprobs=logprobs),
        Delta(
            text="",
            token_ids=[6],
            finish_reason="stop",
            matched_stop=6,
            usage=Usage(prompt_tokens=3, completion_tokens=2, image_tokens=1),
        ),
    ]
    assert triton.cancels.empty()


async def test_large_images_fit() -> None:
    """gRPC's own limit is 4 MiB in both directions."""
    num_bytes = 5 << 20
    triton = FakeTriton(script(response("x" * num_bytes, is_final=True)))
    async with connected(triton) as backend:
        deltas = await collect(backend, (bytes(num_bytes),))
    assert len(deltas[0].text) == num_bytes
    assert len(triton.requests[0].raw_input_contents[1]) == num_bytes + 4


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "in ensemble 'm', " + to_wire(InvalidImageError("too small", param="images[0]")),
            InvalidImageError("too small", param="images[0]"),
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            to_wire(OverloadedError("The queue is full.")),
            OverloadedError("The queue is full."),
        ),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "unexpected shape for input 'images'",
            InvalidRequestError("The model server refused the request as invalid."),
        ),
        (grpc.StatusCode.UNAVAILABLE, "no version is available", ServiceUnavailableError()),
        (grpc.StatusCode.NOT_FOUND, "unknown model", ServiceUnavailableError()),
        (grpc.StatusCode.INTERNAL, to_wire(EngineError("boom")), EngineError("boom")),
        (
            grpc.StatusCode.INTERNAL,
            "boom",
            EngineError("Triton answered StatusCode.INTERNAL: boom"),
        ),
    ],
)
@pytest.mark.parametrize("before", [(), (response("a"),)])
async def test_status_becomes_an_error_of_this_project(code, text, expected, before) -> None:
    triton = FakeTriton(aborting(code, text, *before))
    async with connected(triton) as backend:
        with pytest.raises(VlmError) as caught:
            await collect(backend)
    assert type(caught.value) is type(expected)
    assert (caught.value.message, caught.value.code, caught.value.param) == (
        expected.message,
        expected.code,
        expected.param,
    )
    assert triton.cancels.empty()


async def test_error_text_without_a_status_is_understood_too() -> None:
    text = to_wire(OverloadedError("The queue is full."))
    async with connected(FakeTriton(script(Response(error_message=text)))) as backend:
        with pytest.raises(OverloadedError):
            await collect(backend)


async def test_response_that_is_not_understood_is_an_engine_error() -> None:
    async with connected(FakeTriton(script(response("a", usage={"what": 1})))) as backend:
        with pytest.raises(EngineError):
            await collect(backend)


async def test_triton_that_is_not_there_is_unavailable() -> None:
    backend = TritonBackend("127.0.0.1:1")
    with pytest.raises(ServiceUnavailableError):
        await collect(backend)
    with pytest.raises(ServiceUnavailableError):
        await backend.models()
    assert not await backend.is_ready()
    await backend.close()


def running(started: asyncio.Event, **options: Any) -> FakeTriton:
    """A Triton whose answer goes on until the decoder is told to cancel it."""
    cancelled = asyncio.Event()

    async def answer(request: Any, context: Any) -> AsyncGenerator[Response, None]:
        yield response("a")
        started.set()
        await cancelled.wait()
        yield Response(error_message=to_wire(RequestCancelledError("the request was cancelled")))

    return FakeTriton(answer, cancelled=cancelled, **options)


async def test_closing_the_generator_tells_the_decoder_and_reads_the_stream_to_its_end() -> None:
    """Triton does not pass the cancellation of an ensemble on to its running child."""
    triton = running(asyncio.Event())
    async with connected(triton) as backend, asyncio.timeout(5):
        async with aclosing(backend.generate("m", "id-1", {}, (), {})) as deltas:
            await anext(deltas)
        assert await triton.cancels.get() == ("m-decoder", "id-1")
        await triton.stream_ended.wait()


async def test_cancelled_task_tells_the_decoder_and_reads_the_stream_to_its_end() -> None:
    started = asyncio.Event()
    triton = running(started)
    async with connected(triton) as backend, asyncio.timeout(5):
        task = asyncio.create_task(collect(backend))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await triton.cancels.get() == ("m-decoder", "id-1")
        await triton.stream_ended.wait()


async def test_close_waits_for_generations_that_are_being_cancelled() -> None:
    """A server that shuts down cancels its tasks and closes the backend before they have run."""
    started = asyncio.Event()
    triton = running(started)
    async with connected(triton) as backend, asyncio.timeout(5):
        task = asyncio.create_task(collect(backend))
        await started.wait()
        task.cancel()
        await backend.close()
        assert await triton.cancels.get() == ("m-decoder", "id-1")


async def test_cancel_is_repeated_while_the_request_is_on_its_way_to_the_decoder() -> None:
    triton = running(asyncio.Event(), cancel_replies=[False, True])
    async with connected(triton) as backend, asyncio.timeout(5):
        async with aclosing(backend.generate("m", "id-1", {}, (), {})) as deltas:
            await anext(deltas)
        assert await triton.cancels.get() == await triton.cancels.get()
    assert triton.cancels.empty()


async def test_close_waits_for_cancels_on_their_way() -> None:
    triton = running(asyncio.Event())
    async with connected(triton) as backend, asyncio.timeout(5):
        async with aclosing(backend.generate("m", "id-1", {}, (), {})) as deltas:
            await anext(deltas)
        await backend.close()
        assert triton.cancels.qsize() == 1


CONFIGS = [
    config("b", served_model_name="Org/B", max_model_len="100", max_images="2"),
    config("b-decoder", max_model_len="100"),
    config("a", served_model_name="Org/A"),
]
CALLING = config(
    "c", served_model_name="Org/C", tool_format="hermes", reasons="true", takes_videos="true"
)


async def test_models_are_those_with_a_served_name() -> None:
    async with connected(FakeTriton(configs=CONFIGS)) as backend:
        a, b = await backend.models()
        assert (a.id, a.triton_name, a.max_model_len, a.max_images) == ("Org/A", "a", None, None)
        assert (b.id, b.triton_name, b.max_model_len, b.max_images) == ("Org/B", "b", 100, 2)
        assert a.fingerprint.startswith("fp_")
        assert a.fingerprint != b.fingerprint
        assert await backend.find_model("Org/B") == await backend.find_model("b") == b
        assert await backend.find_model("b-decoder") is None


async def test_a_model_tells_what_it_can() -> None:
    unknown = config("d", served_model_name="Org/D", tool_format="of a newer builder")
    async with connected(FakeTriton(configs=[*CONFIGS, CALLING, unknown])) as backend:
        a, b, c, d = await backend.models()
        assert (c.tool_format, c.reasons, c.takes_videos) == (FORMATS["hermes"], True, True)
        for model in (a, b, d):
            assert (model.tool_format, model.reasons, model.takes_videos) == (None, False, False)


async def test_models_are_remembered() -> None:
    now = 100.0
    triton = FakeTriton(configs=CONFIGS)
    async with connected(triton, models_ttl_s=60, clock=lambda: now) as backend:
        await asyncio.gather(*(backend.find_model("b") for _ in range(5)))
        assert triton.num_listings == 1
        now += 59
        await backend.models()
        assert triton.num_listings == 1
        now += 2
        await backend.models()
        assert triton.num_listings == 2


async def test_unknown_names_reach_triton_at_most_once_a_second() -> None:
    now = 100.0
    triton = FakeTriton(configs=CONFIGS)
    async with connected(triton, models_ttl_s=60, clock=lambda: now) as backend:
        for _ in range(5):
            assert await backend.find_model("x") is None
        assert triton.num_listings == 1
        now += 1.5
        assert await backend.find_model("x") is None
        assert triton.num_listings == 2


async def test_new_model_is_found_before_the_memory_expires() -> None:
    triton = FakeTriton(configs=CONFIGS)
    async with connected(triton, models_ttl_s=0) as backend:
        created = (await backend.models())[0].created
        triton.configs = [*CONFIGS, config("c", served_model_name="Org/C")]
        assert await backend.find_model("Org/C") is not None
        assert (await backend.models())[0].created == created


@pytest.mark.parametrize(
    ("is_ready", "configs", "expected"),
    [(True, CONFIGS, True), (False, CONFIGS, False), (True, [], False)],
)
async def test_ready_means_triton_is_ready_and_serves_something(
    is_ready, configs, expected
) -> None:
    async with connected(FakeTriton(is_ready=is_ready, configs=configs)) as backend:
        assert await backend.is_ready() is expected
