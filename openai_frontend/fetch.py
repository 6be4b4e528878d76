"""The one function that fetches something a client named: `MediaFetcher.fetch`.

The host is resolved once, every address is checked, and the connection goes to a checked address,
so a second answer of the name server cannot change the target (CVE-2026-47617). TLS still verifies
the certificate of the original name. Redirects are followed by hand, each through the same checks
(CVE-2026-63764). Time and bytes are bounded over the whole fetch.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import httpx

from openai_frontend.addresses import Resolve, UrlPolicy, refused
from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError

_MAX_ADDRESSES_TRIED = 3
_REDIRECTS = (301, 302, 303, 307, 308)


async def resolve(host: str, port: int) -> Sequence[str]:
    """IP addresses of `host` in the system's order of preference."""
    records = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(record[4][0]) for record in records))


class MediaFetcher:
    """Fetches images and videos from URLs that clients give."""

    def __init__(
        self,
        settings: Settings,
        observe_s: Callable[[float], None],
        *,
        resolve: Resolve = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Set up connections.

        Args:
            settings: limits and policy.
            observe_s: is told the duration of every fetch.
            resolve: replaces the system's name resolution in tests.
            transport: replaces the network in tests.
        """
        self._settings = settings
        self._policy = UrlPolicy(settings)
        self._observe_s = observe_s
        self._resolve = resolve
        self._client = httpx.AsyncClient(
            transport=transport,
            # Proxy variables would hand name resolution to the proxy and undo the pinning.
            trust_env=False,
            follow_redirects=False,
            # One address that does not answer leaves time for the next one.
            timeout=httpx.Timeout(
                settings.media_timeout_s, connect=settings.media_timeout_s / _MAX_ADDRESSES_TRIED
            ),
            # Connections are pooled by IP address, whatever name their certificate was checked for:
            # keeping one would let another name on that address use it unverified.
            limits=httpx.Limits(
                max_connections=settings.max_media_connections, max_keepalive_connections=0
            ),
        )

    def check(self, url: str) -> None:
        """Refuse `url` as far as that is possible without a name lookup.

        Raises:
            InvalidRequestError: the URL is malformed or not allowed.
        """
        self._policy.check_url(url)

    async def fetch(self, url: str, on_bytes: Callable[[int], None]) -> bytes:
        """The bytes behind `url`.

        Args:
            url: as the client wrote it.
            on_bytes: is told the number of bytes as they arrive, and may raise to stop the fetch.

        Raises:
            InvalidRequestError: the URL is refused, the download fails, is too large or too slow.
        """
        started_at = time.perf_counter()
        try:
            async with asyncio.timeout(self._settings.media_timeout_s):
                return await self._fetch(url, on_bytes)
        except (TimeoutError, httpx.TimeoutException):
            raise _failed(
                f"it took longer than {self._settings.media_timeout_s:g} seconds"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _failed("the connection failed") from error
        finally:
            self._observe_s(time.perf_counter() - started_at)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _fetch(self, url: str, on_bytes: Callable[[int], None]) -> bytes:
        for _ in range(self._settings.max_media_redirects + 1):
            parsed = self._policy.check_url(url)
            async with self._get(parsed) as response:
                if response.status_code not in _REDIRECTS:
                    return await self._read(response, on_bytes)
                url = _redirect_target(parsed, response)
        raise _failed(f"it redirects more than {self._settings.max_media_redirects} times")

    @asynccontextmanager
    async def _get(self, url: httpx.URL) -> AsyncIterator[httpx.Response]:
        """Open `url` at one of its checked addresses."""
        port = url.port or (443 if url.scheme == "https" else 80)
        host = url.raw_host.decode("ascii")
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise _failed("its host name could not be resolved") from error
        addresses = self._policy.check_addresses(addresses)[:_MAX_ADDRESSES_TRIED]
        for address in addresses:
            request = self._client.build_request(
                "GET",
                url.copy_with(host=address),
                headers={
                    "host": url.netloc.decode("ascii"),
                    "accept": "image/*,video/*",
                    # A compressed body could unpack to more than the limit.
                    "accept-encoding": "identity",
                    "connection": "close",
                    "user-agent": "triton-vlm",
                },
                extensions={"sni_hostname": host},
            )
            try:
                response = await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return
        raise _failed("the connection failed")

    async def _read(self, response: httpx.Response, on_bytes: Callable[[int], None]) -> bytes:
        if response.status_code != 200:
            raise _failed(f"its server answered with status {response.status_code}")
        limit = self._settings.max_image_bytes
        length = response.headers.get("content-length", "0")
        data = bytearray()
        if length.isascii() and length.isdigit() and int(length[:20]) > limit:
            raise too_large(limit)
        # aiter_raw: never decompressed, whatever the server says about its encoding.
        async for chunk in response.aiter_raw():
            on_bytes(len(chunk))
            data += chunk
            if len(data) > limit:
                raise too_large(limit)
        return bytes(data)


def too_large(max_bytes: int) -> InvalidRequestError:
    """The error of an image file over the limit."""
    return InvalidRequestError(
        f"The image is larger than {max_bytes} bytes; send a smaller file.",
        code="image_file_too_large",
    )


def _redirect_target(url: httpx.URL, response: httpx.Response) -> str:
    location = response.headers.get("location")
    if not location:
        raise _failed("it redirects without a target")
    if "\\" in location:
        raise refused("it redirects to a URL with a backslash")
    return str(url.join(location))


def _failed(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The image could not be downloaded: {reason}; "
        "make sure that the URL is public, or send the image as a data: URL.",
        code="failed_to_download_image",
    )
