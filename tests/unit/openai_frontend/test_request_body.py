"""Limits on the request body, and the request id."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.app import create_app
from openai_frontend.settings import Settings

pytestmark = pytest.mark.anyio

BODY = json.dumps({"model": MODEL.id, "prompt": "x"}).encode()


async def chunked(body: bytes) -> AsyncIterator[bytes]:
    for i in range(0, len(body), 10):
        yield body[i : i + 10]


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(("room", "status"), [(0, 200), (-1, 413)])
async def test_body_is_limited_to_the_byte(make_proxy, is_chunked, room, status) -> None:
    """CVE-2025-33201: Triton and very large payloads."""
    settings = Settings(max_body_bytes=len(BODY) + room)
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=settings)
    content = chunked(BODY) if is_chunked else BODY
    response = await proxy.http.post("/v1/completions", content=content)
    assert response.status_code == status
    assert ("content-length" in response.request.headers) is not is_chunked
    if status == 413:
        assert response.json()["error"]["code"] == "request_too_large"
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert response.headers["x-request-id"]


async def test_too_long_chunked_body_is_not_read_to_its_end(make_proxy) -> None:
    num_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b"x" * 10

    proxy = make_proxy(settings=Settings(max_body_bytes=100))
    response = await proxy.http.post("/v1/completions", content=endless())
    assert response.status_code == 413
    assert num_read == 11


@pytest.mark.parametrize("length", ["-1", "abc", "+5", "1_0", "", "0x10", "1.5", "²"])
async def test_content_length_must_be_a_number(length) -> None:
    status, body = await raw_request([(b"content-length", length.encode("latin-1"))])
    assert status == 400
    assert "Content-Length" in body["error"]["message"]


async def test_absurd_content_length_is_too_large() -> None:
    """`int` refuses more than 4300 digits with an exception."""
    status, body = await raw_request([(b"content-length", b"9" * 5000)])
    assert status == 413
    assert body["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
async def test_compressed_bodies_are_refused(make_proxy, encoding) -> None:
    """CVE-2026-24158, CVE-2026-24264: a small body that unpacks to a huge one."""
    response = await make_proxy().http.post(
        "/v1/completions", content=BODY, headers={"content-encoding": encoding}
    )
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_content_encoding"


async def test_identity_encoding_is_no_encoding(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await proxy.http.post(
        "/v1/completions", content=BODY, headers={"content-encoding": "identity"}
    )
    assert response.status_code == 200


async def test_body_that_does_not_arrive_times_out() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    status, body = await raw_request([], receive, Settings(body_timeout_s=0.01))
    assert status == 408
    assert body["error"]["code"] == "request_timeout"


async def test_client_that_leaves_while_it_sends_is_not_a_server_error() -> None:
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    status, _ = await raw_request([], receive)
    assert status == 499


async def raw_request(
    headers: list[tuple[bytes, bytes]], receive: Any = None, settings: Settings | None = None
) -> tuple[int, dict[str, Any]]:
    """A request that an HTTP client would not send."""
    sent: list[dict[str, Any]] = []

    async def receive_body() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path = "/v1/completions"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
    scope |= {"headers": headers, "query_string": b"", "root_path": "", "scheme": "http"}
    scope |= {"http_version": "1.1", "asgi": {"version": "3.0"}, "server": ("proxy", 80)}
    app = create_app(settings or Settings(), FakeBackend(text_deltas("a")))
    await app(scope, receive or receive_body, send)
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))


async def test_request_id_is_echoed_and_made_unique_for_the_backend(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    for _ in range(2):
        response = await proxy.http.post(
            "/v1/completions", content=BODY, headers={"x-request-id": "trace-1"}
        )
        assert response.headers["x-request-id"] == "trace-1"
    first, second = (call.request_id for call in proxy.backend.calls)
    assert first != second
    assert first.startswith("trace-1-")
    assert second.startswith("trace-1-")


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "a\tb", "é", 'a"b'])
async def test_request_id_that_is_missing_or_unfit_is_replaced(make_proxy, given) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    headers = {} if given is None else {"x-request-id": given.encode()}
    response = await proxy.http.post("/v1/completions", content=BODY, headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert proxy.backend.calls[0].request_id == response.headers["x-request-id"]


async def test_responses_forbid_content_sniffing(make_proxy) -> None:
    response = await make_proxy().http.get("/v1/models")
    assert response.headers["x-content-type-options"] == "nosniff"
