"""What the proxy itself costs, before a decoder that costs nothing: `python -m benchmarks.proxy`.

The decoder is a gRPC server with Triton's interface that sends tokens at a given rate. As the real one
does, it sends the tokens of a stream that have come due since its last response as one: when whoever
reads is slow, responses get longer and not later. The client reads bytes and counts.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from rich.console import Console
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from benchmarks.processes import CpuMeter
from benchmarks.report import markdown_table
from benchmarks.worker import Worker
from openai_frontend.triton_backend import infer_request
from python_backend.tensor_names import DETAILS, PARAM_SERVED_NAME, PROMPT, SAMPLING, TEXT
from triton_vlm.ports import LOOPBACK, free_ports
from triton_vlm.proxy import OpenAIProxy

MIN_TOKENS_PER_S = 10_000
"""Over `NUM_STREAMS` streams."""
MAX_ADDED_TTFT_S = 0.003
"""Median, against the same request on the decoder's own interface."""
NUM_STREAMS = 64
NUM_TOKENS = 1024
NUM_REQUESTS = 300
RATES = (1_000, 2_500, 5_000, 10_000, 15_000, 30_000)
"""Tokens per second that the decoder makes, over all streams."""

_MODEL = "free"
_TOKEN = " token"
_MAX_COALESCED = 64
_TAIL = 500
_BODY = {"model": _MODEL, "messages": [{"role": "user", "content": "one " * 64}], "stream": True}


def _response(text: str, is_final: bool = False, **details: Any) -> bytes:
    infer = service_pb2.ModelInferResponse(model_name=_MODEL)
    infer.parameters["triton_final_response"].bool_param = is_final
    for name, value in ((TEXT, text), (DETAILS, json.dumps({"index": 0, **details}))):
        data = value.encode()
        infer.outputs.add(name=name, datatype="BYTES", shape=[1])
        infer.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
    return service_pb2.ModelStreamInferResponse(infer_response=infer).SerializeToString()


class FreeDecoder:
    """A Triton that has nothing to compute; meant for a worker process."""

    def __init__(self) -> None:
        """Start the server in a thread of its own."""
        self._tokens_per_s = 1.0
        # Made once: a response costs what gRPC costs and nothing else.
        self._responses = [
            _response(_TOKEN * count, token_ids=[0] * count) for count in range(_MAX_COALESCED + 1)
        ]
        usage = {"prompt_tokens": 64, "completion_tokens": NUM_TOKENS}
        self._last = _response("", is_final=True, finish_reason="length", usage=usage)
        (self._port,) = free_ports(1)
        is_started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(is_started)), daemon=True).start()
        is_started.wait()

    def address(self) -> str:
        """`host:port` of the gRPC endpoint."""
        return f"{LOOPBACK}:{self._port}"

    def set_rate(self, tokens_per_s: float) -> None:
        """How many tokens each stream makes."""
        self._tokens_per_s = tokens_per_s

    async def _serve(self, is_started: threading.Event) -> None:
        server = grpc.aio.server()
        handlers = {
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                self._stream,
                request_deserializer=service_pb2.ModelInferRequest.FromString,
                response_serializer=None,  # they are bytes already
            ),
            "ServerReady": _unary(service_pb2.ServerReadyResponse(ready=True)),
            "RepositoryIndex": _unary(_index()),
            "ModelConfig": _unary(service_pb2.ModelConfigResponse(config=_config())),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        server.add_insecure_port(self.address())
        await server.start()
        is_started.set()
        await server.wait_for_termination()

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        (request,) = [request async for request in requests]
        num_tokens = _max_tokens(request)
        num_sent, interval_s, start = 0, 1 / self._tokens_per_s, time.perf_counter()
        while num_sent < num_tokens:
            num_due = min(int((time.perf_counter() - start) / interval_s) + 1, num_tokens)
            if num_due > num_sent:
                count = min(num_due - num_sent, _MAX_COALESCED)
                await context.write(self._responses[count])
                num_sent += count
            else:
                await asyncio.sleep(start + num_sent * interval_s - time.perf_counter())
        await context.write(self._last)


def _max_tokens(request: Any) -> int:
    for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.name == SAMPLING:
            return int(json.loads(data[4:])["max_tokens"])
    raise ValueError("the request has no sampling parameters")


def _unary(reply: Any) -> Any:
    """A method that always answers the same."""

    async def answer(request: bytes, context: Any) -> bytes:
        return bytes(reply.SerializeToString())

    return grpc.unary_unary_rpc_method_handler(answer)


def _index() -> service_pb2.RepositoryIndexResponse:
    index = service_pb2.RepositoryIndexResponse()
    index.models.add(name=_MODEL, version="1", state="READY")
    return index


def _config() -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name=_MODEL)
    config.parameters[PARAM_SERVED_NAME].string_value = _MODEL
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTiming:
    """One answer, as the client saw it.

    Attributes:
        ttft_s: from the request to the first bytes of text.
        total_s: from the request to the end.
        num_tokens: in the text.
        num_reads: pieces in which they came.
    """

    ttft_s: float
    total_s: float
    num_tokens: int
    num_reads: int


class Client:
    """Asks the proxy over plain sockets and counts tokens in what comes back."""

    def __init__(self, port: int, num_tokens: int) -> None:
        body = json.dumps(_BODY | {"max_tokens": num_tokens}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {LOOPBACK}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._port, self._request = port, head.encode() + body

    async def ask(self) -> StreamTiming:
        """One answer, on a connection of its own that is open before the clock starts."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
        start = time.perf_counter()
        writer.write(self._request)
        ttft_s, num_tokens, num_reads, tail = 0.0, 0, 0, b""
        while b"[DONE]" not in tail:
            data = await reader.read(1 << 16)
            if not data:
                raise RuntimeError(f"the proxy did not answer: {tail!r}")
            # A token may be cut in two by the end of a read.
            count = (tail + data).count(_TOKEN.encode()) - tail.count(_TOKEN.encode())
            if count and not num_tokens:
                ttft_s = time.perf_counter() - start
            num_tokens, num_reads = num_tokens + count, num_reads + bool(count)
            tail = (tail + data)[-_TAIL:]
        writer.close()
        total_s = time.perf_counter() - start
        return StreamTiming(
            ttft_s=ttft_s, total_s=total_s, num_tokens=num_tokens, num_reads=num_reads
        )


async def ask_directly(address: str) -> float:
    """Median TTFT of the same request on the decoder's own interface, over one channel."""
    ttfts = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        prompt = json.dumps({"messages": _BODY["messages"]}).encode()
        tensors = {PROMPT: [prompt], SAMPLING: [b'{"max_tokens": 1}']}
        for _ in range(NUM_REQUESTS):
            start = time.perf_counter()
            call = stub.ModelStreamInfer()
            await call.write(infer_request(_MODEL, "", tensors))
            await call.done_writing()
            await call.read()
            ttfts.append(time.perf_counter() - start)
            while await call.read() is not grpc.aio.EOF:
                pass
    return statistics.median(ttfts)


async def ask_in_turn(client: Client) -> float:
    """Median TTFT through the proxy, one request after another."""
    return statistics.median([(await client.ask()).ttft_s for _ in range(NUM_REQUESTS)])


async def ask_at_once(client: Client) -> Sequence[StreamTiming]:
    """All streams together."""
    return await asyncio.gather(*(client.ask() for _ in range(NUM_STREAMS)))


def main() -> None:
    """Measure and print."""
    console = Console(highlight=False, width=120)
    (port,) = free_ports(1)
    with Worker(FreeDecoder) as decoder:
        address = decoder.call("address")
        proxy = OpenAIProxy(address, host=LOOPBACK, port=port, arguments=["--log-level", "warning"])
        proxy.start()
        try:
            proxy.wait_ready()
            decoder.call("set_rate", 1e6)
            one = Client(port, 1)
            asyncio.run(ask_in_turn(one))  # warm
            through, direct = asyncio.run(ask_in_turn(one)), asyncio.run(ask_directly(address))
            rows, most_per_s = [], 0.0
            for rate in RATES:
                decoder.call("set_rate", rate / NUM_STREAMS)
                with CpuMeter([proxy.process.pid], time.perf_counter) as cpu:
                    start = time.perf_counter()
                    answers = asyncio.run(ask_at_once(Client(port, NUM_TOKENS)))
                    wall_s = time.perf_counter() - start
                num_tokens = sum(answer.num_tokens for answer in answers)
                num_reads = sum(answer.num_reads for answer in answers)
                most_per_s = max(most_per_s, num_tokens / wall_s)
                rows.append(
                    (
                        f"{rate:,}",
                        f"{num_tokens / wall_s:,.0f}",
                        f"{num_tokens / num_reads:.1f}",
                        f"{1e6 * cpu.cpu_s / num_tokens:.0f}",
                        f"{1e6 * cpu.cpu_s / num_reads:.0f}",
                        f"{100 * cpu.cpu_s / wall_s:.0f}%",
                    )
                )
        finally:
            proxy.stop()
    head = ("tokens/s made", "delivered", "per event", "us/token", "us/event", "CPU of the proxy")
    console.print(markdown_table(head, rows), soft_wrap=True)
    console.print(
        f"At most {most_per_s:,.0f} tokens/s over {NUM_STREAMS} streams (wanted: {MIN_TOKENS_PER_S:,})"
    )
    console.print(
        f"TTFT of one request, median of {NUM_REQUESTS}: {1e3 * through:.2f} ms, on the decoder's interface "
        f"{1e3 * direct:.2f} ms; the proxy adds {1e3 * (through - direct):.2f} ms "
        f"(wanted: at most {1e3 * MAX_ADDED_TTFT_S:.0f} ms)",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
