"""The chat page for people: files at `/` and below `/page/`, which hold nothing secret.

The files are read once, at the start. They have no version in their names, so a browser asks each
time and gets 304 while its copy is the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from openai_frontend.settings import Settings

_INDEX = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_LIMITS = ("max_images", "max_image_bytes", "max_total_image_bytes")
# Nothing from elsewhere, nothing inline, and no text that becomes HTML or script: what a model
# writes stays text whatever mistake the scripts make.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page.

    Attributes:
        content: its bytes.
        media_type: its Content-Type, without a charset.
        etag: changes when the content does.
    """

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def named(cls, name: str, content: bytes) -> Asset:
        """The file `name`, whose suffix tells the media type."""
        digest = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, _MEDIA_TYPES[PurePath(name).suffix], f'"{digest}"')


def load_assets() -> dict[str, Asset]:
    """The files in `openai_frontend/page/` by their names."""
    folder = resources.files("openai_frontend") / "page"
    return {file.name: Asset.named(file.name, file.read_bytes()) for file in folder.iterdir()}


def page_router(settings: Settings) -> APIRouter:
    """Routes of the page; `/page/limits.json` tells it what `settings` let it send."""
    assets = load_assets()
    index = assets.pop(_INDEX)
    limits = {name: getattr(settings, name) for name in _LIMITS}
    assets["limits.json"] = Asset.named("limits.json", json.dumps(limits).encode())
    router = APIRouter()

    @router.api_route("/", methods=["GET", "HEAD"])
    async def get_page(request: Request) -> Response:
        """The page itself."""
        return _answer(request, index)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def get_asset(request: Request, name: str) -> Response:
        """What the page consists of."""
        if name not in assets:
            raise HTTPException(404)
        return _answer(request, assets[name])

    return router


def _answer(request: Request, asset: Asset) -> Response:
    headers = _HEADERS | {"etag": asset.etag}
    known = request.headers.get("if-none-match", "")
    # A proxy in between may have made the tag a weak one.
    if asset.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
