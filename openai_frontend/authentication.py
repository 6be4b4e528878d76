"""Middleware that asks for an API key, on every path but the public ones."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from openai_frontend.api_keys import ApiKeys
from openai_frontend.errors import InvalidApiKeyError, MissingApiKeyError, error_response
from openai_frontend.record import RequestRecord
from python_backend.errors import VlmError

PUBLIC_PATHS: tuple[str, ...] = ("/health/live", "/health/ready", "/", "/page/*")
"""What needs no key; a path that ends in `/*` stands for all below it. Nothing else is open: a route
that is forgotten here is closed."""

_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


def is_public(path: str, public_paths: Iterable[str]) -> bool:
    """Whether `path` is one of `public_paths`, which are as `PUBLIC_PATHS`."""
    return any(
        path.startswith(public[:-1]) if public.endswith("/*") else path == public
        for public in public_paths
    )


class AuthenticationMiddleware:
    """Refuses requests without a valid key before anything of them is read.

    Args:
        app: what it protects.
        keys: those that are accepted.
        public_paths: as `PUBLIC_PATHS`.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys, public_paths: tuple[str, ...]) -> None:
        self._app = app
        self._keys = keys
        self._public_paths = public_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request (ASGI)."""
        if scope["type"] == "http" and not is_public(scope["path"], self._public_paths):
            try:
                self._authenticate(Headers(scope=scope), scope["state"]["record"])
            except VlmError as error:
                await error_response(error, retry_after_s=0)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _authenticate(self, headers: Headers, record: RequestRecord) -> None:
        bearer = _BEARER.fullmatch(headers.get("authorization", ""))
        # Anthropic's clients send the latter.
        secret = bearer[1] if bearer else headers.get("x-api-key", "")
        if not secret:
            raise MissingApiKeyError
        record.api_key = self._keys.find(secret.encode("latin-1"))
        if record.api_key is None:
            raise InvalidApiKeyError(secret)
