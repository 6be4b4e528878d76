"""create_app: puts settings, backend, service and routes together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from openai_frontend.admission import AdmissionMiddleware
from openai_frontend.anthropic_answers import AnthropicErrorsMiddleware
from openai_frontend.api_keys import ApiKeys
from openai_frontend.authentication import PUBLIC_PATHS, AuthenticationMiddleware, is_public
from openai_frontend.backend import Backend
from openai_frontend.body_limit import BodyLimitMiddleware
from openai_frontend.chat import ChatService
from openai_frontend.errors import install_error_handlers
from openai_frontend.fetch import MediaFetcher
from openai_frontend.health_probe import GenerationProbe
from openai_frontend.image_store import ImageStore
from openai_frontend.media import MediaLoader
from openai_frontend.metrics import Metrics
from openai_frontend.observability import ObservabilityMiddleware
from openai_frontend.openapi import openapi_document
from openai_frontend.page_routes import page_router
from openai_frontend.rate_limit import RateLimitMiddleware
from openai_frontend.response_store import ResponseStore
from openai_frontend.routes import router
from openai_frontend.settings import Settings
from openai_frontend.tokenization import Tokenization

if TYPE_CHECKING:
    from openai_frontend.tracing import Tracing

_EXPOSED_HEADERS = (
    *("x-request-id", "retry-after", "retry-after-ms"),
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
)


def create_app(
    settings: Settings,
    backend: Backend,
    *,
    fetcher: MediaFetcher | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        settings: how it runs.
        backend: generates text; closed with the application.
        fetcher: replaces the fetching of images in tests.
        tracing: makes spans, None for none; closed with the application.

    Raises:
        SettingsError: a file or folder that the settings name cannot be used.
    """
    metrics = Metrics()
    fetcher = fetcher or MediaFetcher(settings, metrics.image_fetched)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await fetcher.close()
        await backend.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    # Nothing generated: bodies are parsed by hand, so FastAPI knows nothing to document.
    app = FastAPI(openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    app.state.backend = backend
    app.state.metrics = metrics
    app.state.responses = ResponseStore(settings)
    media = MediaLoader(settings, fetcher, ImageStore(settings, metrics.image_looked_up))
    app.state.service = ChatService(settings, backend, media, app.state.responses)
    app.state.tokenization = Tokenization(settings, backend, media)
    app.state.probe = GenerationProbe(backend, settings.probe_timeout_s)
    page = page_router(settings)
    app.include_router(router)
    app.include_router(page)
    public_paths = (*PUBLIC_PATHS, "/metrics") if settings.public_metrics else PUBLIC_PATHS
    app.state.openapi = openapi_document(
        (*router.routes, *page.routes),
        lambda path: settings.needs_key and not is_public(path, public_paths),
    )
    install_error_handlers(app, settings.retry_after_s)
    app.add_middleware(
        BodyLimitMiddleware,
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.body_timeout_s,
    )
    if settings.needs_key:
        app.add_middleware(RateLimitMiddleware)
    app.add_middleware(
        AdmissionMiddleware,
        max_requests=settings.max_concurrent_requests,
        retry_after_s=settings.retry_after_s,
    )
    if settings.needs_key:
        app.add_middleware(
            AuthenticationMiddleware,
            keys=ApiKeys(settings),
            public_paths=public_paths,
        )
    app.add_middleware(AnthropicErrorsMiddleware)
    # Outside of the others, so that refused requests are counted and get a request id too.
    app.add_middleware(ObservabilityMiddleware, metrics=metrics, tracing=tracing)
    if settings.cors_origins:
        # Outermost: browsers send no key with a preflight, and may read a refusal only with its headers.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
        )
    return app
