"""Middleware that asks for an API key, on every path but the public ones."""

from __future__ import annotations

import re

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
        self._exact = frozenset(path for path in public_paths if not path.endswith("/*"))
        self._below = tuple(path[:-1] for path in public_paths if path.endswith("/*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request (ASGI)."""
        if scope["type"] == "http" and not self._is_public(scope["path"]):
            try:
                self._authenticate(Headers(scope=scope), scope["state"]["record"])
            except VlmError as error:
                await error_response(error, retry_after_s=0)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_public(self, path: str) -> bool:
        return path in self._exact or path.startswith(self._below)

    def _authenticate(self, headers: Headers, record: RequestRecord) -> None:
        bearer = _BEARER.fullmatch(headers.get("authorization", ""))
        # Anthropic's clients send the latter.
        secret = bearer[1] if bearer else headers.get("x-api-key", "")
        if not secret:
            raise MissingApiKeyError
        record.api_key = self._keys.find(secret.encode("latin-1"))
        if record.api_key is None:
            raise InvalidApiKeyError(secret)
