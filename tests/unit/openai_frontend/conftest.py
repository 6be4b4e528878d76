"""The proxy in-process, with a real OpenAI client in front and a fake backend behind."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from fake_backend import MODEL, FakeBackend
from fastapi import FastAPI

from openai_frontend.app import create_app
from openai_frontend.fetch import MediaFetcher
from openai_frontend.settings import Settings

PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def png() -> bytes:
    return PNG


@pytest.fixture
def png_url() -> str:
    return "data:image/png;base64," + base64.b64encode(PNG).decode()


@dataclass
class Proxy:
    app: FastAPI
    backend: FakeBackend
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    async def chat(self, **fields: Any) -> httpx.Response:
        """POST a chat request; `fields` are added to a minimal valid body."""
        body = {"model": MODEL.id, "messages": [{"role": "user", "content": "hi"}]} | fields
        return await self.http.post("/v1/chat/completions", json=body)

    async def complete(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL.id, "prompt": "hi"} | fields
        return await self.http.post("/v1/completions", json=body)


MakeProxy = Callable[..., Proxy]


@pytest.fixture
def make_proxy() -> MakeProxy:
    def make(
        backend: FakeBackend | None = None,
        *,
        settings: Settings | None = None,
        fetcher: MediaFetcher | None = None,
        raise_app_exceptions: bool = True,
    ) -> Proxy:
        backend = backend or FakeBackend()
        app = create_app(settings or Settings(), backend, fetcher=fetcher)
        transport = httpx.ASGITransport(app, raise_app_exceptions=raise_app_exceptions)
        http = httpx.AsyncClient(transport=transport, base_url="http://proxy")
        client = openai.AsyncOpenAI(
            base_url="http://proxy/v1", api_key="None", http_client=http, max_retries=0
        )
        return Proxy(app, backend, http, client)

    return make
