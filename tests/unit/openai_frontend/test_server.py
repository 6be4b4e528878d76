"""Over a real uvicorn on loopback: what an in-process transport cannot show.

Timing of a stream, a client that leaves, a picture server, the certificate of a pinned address.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import requests
from fake_backend import MODEL, FakeBackend, text_deltas
from loopback_server import Asgi, serving

from openai_frontend.app import create_app
from openai_frontend.backend import Delta
from openai_frontend.fetch import MediaFetcher
from openai_frontend.settings import Settings, SettingsError
from openai_frontend.tls import tls_options
from python_backend.errors import InvalidRequestError

pytestmark = pytest.mark.anyio


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL.id, "messages": [{"role": "user", "content": "hi"}]} | fields


async def wait_for(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


async def test_tokens_are_sent_as_they_come() -> None:
    gate = asyncio.Event()
    first, *rest = text_deltas("a b")
    backend = FakeBackend([first, gate, *rest])
    async with (
        serving(create_app(Settings(), backend)) as address,
        openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="None") as client,
    ):
        stream = await client.chat.completions.create(**chat_body(), stream=True)
        events = aiter(stream)
        async with asyncio.timeout(5):
            await anext(events)
            assert (await anext(events)).choices[0].delta.content == "a"
            assert not gate.is_set()
            gate.set()
            remaining = [chunk async for chunk in events]
        assert remaining[-1].choices[0].finish_reason == "stop"
    assert backend.cancelled == []
    assert backend.closed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_before", [0, 1])
async def test_client_that_leaves_cancels_the_generation(stream, num_before) -> None:
    script = [*[Delta(text="a")] * num_before, asyncio.Event(), *text_deltas("b")]
    backend = FakeBackend(script)
    async with (
        serving(create_app(Settings(), backend)) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        request = asyncio.create_task(
            client.post("/v1/chat/completions", json=chat_body(stream=stream))
        )
        await wait_for(backend.waiting)
        request.cancel()
        await wait_for(backend.was_cancelled)
        assert backend.cancelled == [backend.calls[0].request_id]
        metrics = (await client.get("/metrics")).text
    assert 'triton_vlm_requests_total{endpoint="/v1/chat/completions",status="499"} 1.0' in metrics
    assert "triton_vlm_requests_running 0.0" in metrics


async def test_request_over_the_limit_is_told_to_come_back() -> None:
    gate = asyncio.Event()
    backend = FakeBackend([gate, *text_deltas("a")])
    app = create_app(Settings(max_concurrent_requests=1, retry_after_s=7), backend)
    async with (
        serving(app) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        first = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body()))
        await wait_for(backend.waiting)
        refused = await client.post("/v1/chat/completions", json=chat_body())
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "7"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await client.get("/health/ready")).status_code == 200
        gate.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/chat/completions", json=chat_body())).status_code == 200


async def test_client_that_leaves_cancels_the_download() -> None:
    is_fetching, was_cancelled = asyncio.Event(), asyncio.Event()

    class NeverFetches(MediaFetcher):
        async def fetch(self, url: str, on_bytes: Callable[[int], None]) -> bytes:
            is_fetching.set()
            try:
                await asyncio.Event().wait()
            finally:
                was_cancelled.set()
            raise AssertionError

    backend = FakeBackend()
    app = create_app(Settings(), backend, fetcher=NeverFetches(Settings(), lambda s: None))
    part = {"type": "image_url", "image_url": {"url": "https://a.example/"}}
    body = chat_body(messages=[{"role": "user", "content": [part]}])
    async with serving(app) as address, httpx.AsyncClient() as client:
        request = asyncio.create_task(
            client.post(f"http://{address}/v1/chat/completions", json=body)
        )
        await wait_for(is_fetching)
        request.cancel()
        await wait_for(was_cancelled)
    assert backend.calls == []


def picture_server(files: dict[str, bytes]) -> Asgi:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = []
        if scope["path"] == "/redirect":
            headers, status = [(b"location", b"/picture.png")], 302
        else:
            status = 200 if scope["path"] in files else 404
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": files.get(scope["path"], b"")})

    return app


async def test_four_requests_of_the_reference_work_word_for_word(png) -> None:
    """curl, requests, the OpenAI client with one image, and with two images before the text."""
    backend = FakeBackend(text_deltas("The image shows a man", prompt_tokens=307))
    settings = Settings(allow_private_media=True)
    pictures = picture_server({"/picture.png": png, "/logo.png": png + b"2"})
    async with (
        serving(pictures) as image_address,
        serving(create_app(settings, backend)) as address,
    ):
        example_image_url = f"http://{image_address}/redirect"
        logo_image_url = f"http://{image_address}/logo.png"
        curl_command = f"""
curl -s http://{address}/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{{
    "model": "{MODEL.id}",
    "messages": [
      {{
        "role": "user",
        "content": [
          {{
            "type": "text",
            "text": "What’s in this image?"
          }},
          {{
            "type": "image_url",
            "image_url": {{
              "url": "{example_image_url}"
            }}
          }}
        ]
      }}
    ],
    "max_tokens": 300
  }}'
"""
        for _ in range(2):
            output = await asyncio.to_thread(subprocess.check_output, curl_command, shell=True)
            content = json.loads(output)["choices"][0]["message"]["content"]
            assert content == "The image shows a man"

        data = {
            "model": MODEL.id,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What’s in this image?"},
                        {"type": "image_url", "image_url": {"url": example_image_url}},
                    ],
                }
            ],
            "max_tokens": 300,
        }
        response = await asyncio.to_thread(
            requests.post, f"http://{address}/v1/chat/completions", json=data, timeout=5
        )
        assert response.json()["choices"][0]["matched_stop"] == 151645
        response.close()

        async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="None") as client:
            answer = await client.chat.completions.create(
                model=MODEL.id,
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "text",
                                "text": "What is in this image?",
                            },
                            {
                                "type": "image_url",
                                "image_url": {"url": example_image_url},
                            },
                        ],
                    }
                ],
                max_tokens=300,
            )
            assert answer.choices[0].message.content == "The image shows a man"
            answer = await client.chat.completions.create(
                model=MODEL.id,
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {
                                    "url": example_image_url,
                                },
                            },
                            {
                                "type": "image_url",
                                "image_url": {
                                    "url": logo_image_url,
                                },
                            },
                            {
                                "type": "text",
                                "text": "I have two very different images. They are not related "
                                "at all. Please describe the first image in one sentence, and then "
                                "describe the second image in another sentence.",
                            },
                        ],
                    }
                ],
                temperature=0,
            )
            assert answer.choices[0].message.content == "The image shows a man"
    assert [call.images for call in backend.calls] == [[png]] * 4 + [[png, png + b"2"]]
    limited = [{"max_tokens": 300}] * 4
    assert [call.sampling for call in backend.calls] == [*limited, {"temperature": 0}]


async def test_loopback_is_refused_unless_private_media_is_allowed(png) -> None:
    backend = FakeBackend(text_deltas("a"))
    async with (
        serving(picture_server({"/picture.png": png})) as image_address,
        serving(create_app(Settings(), backend)) as address,
        httpx.AsyncClient() as client,
    ):
        for host in (image_address, image_address.replace("127.0.0.1", "localhost"), "127.0.0.1"):
            part = {"type": "image_url", "image_url": {"url": f"http://{host}/picture.png"}}
            response = await client.post(
                f"http://{address}/v1/chat/completions",
                json=chat_body(messages=[{"role": "user", "content": [part]}]),
            )
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "invalid_image_url"
    assert backend.calls == []


async def test_body_over_the_limit_is_refused_on_the_wire() -> None:
    backend = FakeBackend(text_deltas("a"))
    app = create_app(Settings(max_body_bytes=1000), backend)
    async with serving(app) as address, httpx.AsyncClient() as client:
        url = f"http://{address}/v1/chat/completions"

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        for content in (b"x" * 2000, chunks()):
            response = await client.post(url, content=content)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "request_too_large"
        assert (await client.post(url, json=chat_body())).status_code == 200


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for the name img.example and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-keyout {key} -out {certificate} -subj /CN=img.example "
        "-addext subjectAltName=DNS:img.example"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize(("host", "is_trusted"), [("img.example", True), ("other.example", False)])
async def test_certificate_is_verified_for_the_name_not_the_address(
    png, certificate, host, is_trusted
) -> None:
    """Pinning an address must not turn off what TLS is for."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    context = ssl.create_default_context(cafile=str(certificate[0]))
    files = {"/picture.png": png}
    async with serving(
        picture_server(files), ssl_certfile=certificate[0], ssl_keyfile=certificate[1]
    ) as address:
        fetcher = MediaFetcher(
            Settings(allow_private_media=True),
            lambda seconds: None,
            resolve=resolve,
            transport=httpx.AsyncHTTPTransport(verify=context),
        )
        url = f"https://{host}:{address.split(':')[1]}/picture.png"
        try:
            if is_trusted:
                assert await fetcher.fetch(url, lambda num_bytes: None) == png
            else:
                with pytest.raises(InvalidRequestError) as caught:
                    await fetcher.fetch(url, lambda num_bytes: None)
                assert caught.value.code == "failed_to_download_image"
        finally:
            await fetcher.close()


async def raw(address: str, request: bytes) -> bytes:
    """Everything that is answered to bytes that no HTTP client would send."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


def raw_request(*headers: str, body: bytes = b"") -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: proxy", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: -5",),
        ("Transfer-Encoding: chunked, identity", "Content-Length: 3"),
    ],
)
async def test_length_that_contradicts_itself_is_refused(headers) -> None:
    """Request smuggling: two programs that read two lengths; CVE-2026-24206, CVE-2026-24207."""
    backend = FakeBackend(text_deltas("a"))
    async with serving(create_app(Settings(), backend)) as address:
        smuggled = b"0\r\n\r\nPOST /v1/completions HTTP/1.1\r\nHost: proxy\r\n\r\n"
        answer = await raw(address, raw_request(*headers, body=smuggled))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert backend.calls == []


async def test_body_shorter_than_its_length_times_out_on_the_wire() -> None:
    """A Content-Length that lies."""
    app = create_app(Settings(body_timeout_s=0.05), FakeBackend())
    async with serving(app) as address:
        request = raw_request("Content-Length: 100", body=b"{")
        answer = await raw(address, request)
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_body_longer_than_its_length_is_not_read_on() -> None:
    """A Content-Length that lies the other way: what follows would have to be a request, and is none."""
    backend = FakeBackend(text_deltas("a"))
    body = json.dumps(chat_body()).encode()
    async with serving(create_app(Settings(), backend)) as address:
        request = raw_request(f"Content-Length: {len(body)}", body=body + b"rest of a lie\r\n\r\n")
        answer = await raw(address, request.replace(b"Connection: close\r\n", b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_body_in_very_many_chunks_is_read_like_any_other() -> None:
    """CVE-2025-23310, CVE-2025-23311: Triton's HTTP server overflowed its stack by chunks."""
    backend = FakeBackend(text_deltas("a"))
    body = json.dumps(chat_body()).encode() + b" " * 20_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    async with serving(create_app(Settings(), backend)) as address:
        answer = await raw(address, raw_request("Transfer-Encoding: chunked", body=chunks))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(backend.calls) == 1


# TLS


@pytest.mark.parametrize(
    ("version", "is_accepted"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_api_is_served_over_tls_1_2_and_later(certificate, version, is_accepted) -> None:
    settings = Settings(tls_cert=str(certificate[0]), tls_key=str(certificate[1]))
    context = ssl.create_default_context(cafile=str(certificate[0]))
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # or OpenSSL would not even offer 1.1
    context.minimum_version = context.maximum_version = version
    app = create_app(settings, FakeBackend(text_deltas("a")))
    options = tls_options(settings)
    assert options["ssl_context_factory"](None, None).minimum_version is ssl.TLSVersion.TLSv1_2
    async with serving(app, **options) as address:
        host, port = address.split(":")
        connecting = asyncio.open_connection(
            host, int(port), ssl=context, server_hostname="img.example"
        )
        if not is_accepted:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await connecting
            return
        reader, writer = await connecting
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: img.example\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


def test_no_certificate_is_no_tls() -> None:
    assert tls_options(Settings()) == {}


@pytest.mark.parametrize("case", ["missing", "garbage", "swapped", "encrypted", "other key"])
def test_certificate_that_cannot_be_used_is_one_sentence(certificate, tmp_path, case) -> None:
    cert, key = certificate
    if case == "missing":
        cert = tmp_path / "missing.pem"
    elif case == "garbage":
        cert = tmp_path / "garbage.pem"
        cert.write_text("no certificate")
    elif case == "swapped":
        cert, key = key, cert
    else:
        new = tmp_path / "key.pem"
        command = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
        if case == "encrypted":
            command = f"openssl pkey -in {key} -aes256 -passout pass:secret"
        subprocess.run([*command.split(), "-out", new], check=True, capture_output=True)
        key = new
    with pytest.raises(SettingsError, match="cannot be used") as caught:
        tls_options(Settings(tls_cert=str(cert), tls_key=str(key)))
    assert "\n" not in str(caught.value)
