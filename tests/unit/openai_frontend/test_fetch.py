"""The fetch itself: pinning, redirects, limits; with the network replaced below httpx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import httpx
import pytest

from openai_frontend.fetch import MediaFetcher
from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError

pytestmark = pytest.mark.anyio

PUBLIC = "93.184.216.34"
Handler = Callable[[httpx.Request], httpx.Response]


class Names:
    """Name resolution from a table; a list of lists answers one list per question."""

    def __init__(self, **hosts: Sequence[str] | OSError) -> None:
        self.hosts = {name.replace("_", "."): records for name, records in hosts.items()}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        records = self.hosts.get(host, [host])
        if isinstance(records, OSError):
            raise records
        return records


class Network(httpx.AsyncBaseTransport):
    """Records requests as they leave and answers them with `handler`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.handler(request)


def fetcher_of(handler: Handler, names: Names, **settings: object) -> tuple[MediaFetcher, Network]:
    network = Network(handler)
    fetcher = MediaFetcher(
        Settings(**settings), lambda seconds: None, resolve=names, transport=network
    )
    return fetcher, network


def answer(content: bytes = b"picture", **headers: str) -> Handler:
    return lambda request: httpx.Response(200, stream=httpx.ByteStream(content), headers=headers)


def redirect_to(location: str, status: int = 302) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/start":
            return httpx.Response(status, headers={"location": location})
        return answer()(request)

    return handler


async def fetch(fetcher: MediaFetcher, url: str) -> bytes:
    return await fetcher.fetch(url, lambda num_bytes: None)


async def failure(fetcher: MediaFetcher, url: str) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        await fetch(fetcher, url)
    return caught.value


async def test_connection_goes_to_the_checked_address_in_the_name_of_the_host() -> None:
    names = Names(img_example=[PUBLIC])
    fetcher, network = fetcher_of(answer(), names)
    assert await fetch(fetcher, "https://img.example/a.png?b=c") == b"picture"
    request = network.requests[0]
    assert str(request.url) == f"https://{PUBLIC}/a.png?b=c"
    assert request.headers["host"] == "img.example"
    # httpx takes it for SNI and for the verification of the certificate.
    assert request.extensions["sni_hostname"] == "img.example"
    assert request.headers["accept-encoding"] == "identity"


async def test_name_is_resolved_once_so_rebinding_changes_nothing() -> None:
    """CVE-2026-47617: public at the check, private at the connection."""
    asked = 0

    async def rebinding(host: str, port: int) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return [PUBLIC] if asked == 1 else ["127.0.0.1"]

    network = Network(answer())
    fetcher = MediaFetcher(Settings(), lambda s: None, resolve=rebinding, transport=network)
    assert await fetch(fetcher, "http://rebind.example/") == b"picture"
    assert asked == 1
    assert [request.url.host for request in network.requests] == [PUBLIC]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",  # CVE-2026-33626
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://0.0.0.0/",
        "http://internal.example/",
        "http://mixed.example/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://127。0。0。1/",
        "file:///etc/passwd",
    ],
)
async def test_no_connection_is_made_to_anything_private(url) -> None:
    """CVE-2025-6242, CVE-2026-24234, CVE-2026-47614, CVE-2026-47615, CVE-2026-47616, and most other media
    fetchers of the field."""
    names = Names(
        localhost=["127.0.0.1", "::1"],
        internal_example=["10.1.2.3"],
        mixed_example=[PUBLIC, "10.1.2.3"],
    )
    fetcher, network = fetcher_of(answer(), names)
    assert (await failure(fetcher, url)).code == "invalid_image_url"
    assert network.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_followed_and_pinned_again(status) -> None:
    names = Names(a_example=[PUBLIC], b_example=["1.1.1.1"])
    fetcher, network = fetcher_of(redirect_to("https://b.example/end", status), names)
    assert await fetch(fetcher, "https://a.example/start") == b"picture"
    assert [str(request.url) for request in network.requests] == [
        f"https://{PUBLIC}/start",
        "https://1.1.1.1/end",
    ]
    assert network.requests[1].headers["host"] == "b.example"


async def test_relative_redirect_stays_on_the_named_host() -> None:
    fetcher, network = fetcher_of(redirect_to("/end"), Names(a_example=[PUBLIC]))
    assert await fetch(fetcher, "https://a.example/start") == b"picture"
    assert network.requests[1].headers["host"] == "a.example"


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest",
        "http://internal.example/",
        "http://[::1]/",
        "//127.0.0.1/",
        "http://a.example:22/",
        "file:///etc/passwd",
        "https://user:pw@a.example/",
        "https://a.example\\@127.0.0.1/",
    ],
)
async def test_redirect_must_pass_the_same_checks(location) -> None:
    """CVE-2026-63764, CVE-2026-45401, GHSA-7mpg-jvqj-ccxr: a public URL that redirects to a private one."""
    names = Names(a_example=[PUBLIC], internal_example=["192.168.0.1"])
    fetcher, network = fetcher_of(redirect_to(location), names)
    assert (await failure(fetcher, "https://a.example/start")).code == "invalid_image_url"
    assert len(network.requests) == 1


async def test_redirect_must_stay_within_the_allowed_domains() -> None:
    fetcher, network = fetcher_of(
        redirect_to("https://b.example/end"),
        Names(a_example=[PUBLIC], b_example=[PUBLIC]),
        allowed_media_domains=("a.example",),
    )
    assert (await failure(fetcher, "https://a.example/start")).code == "invalid_image_url"
    assert len(network.requests) == 1


@pytest.mark.parametrize(("max_redirects", "num_requests"), [(0, 1), (3, 4)])
async def test_redirect_loop_ends(max_redirects, num_requests) -> None:
    fetcher, network = fetcher_of(
        redirect_to("https://a.example/start"),
        Names(a_example=[PUBLIC]),
        max_media_redirects=max_redirects,
    )
    error = await failure(fetcher, "https://a.example/start")
    assert error.code == "failed_to_download_image"
    assert len(network.requests) == num_requests


@pytest.mark.parametrize("headers", [{}, {"location": ""}, {"location": "data:,x"}])
async def test_redirect_without_a_target_fails(headers) -> None:
    fetcher, _ = fetcher_of(
        lambda request: httpx.Response(302, headers=headers), Names(a_example=[PUBLIC])
    )
    assert (await failure(fetcher, "https://a.example/")).code == "failed_to_download_image"


class SlowBody(httpx.AsyncByteStream):
    """Sends `chunks`, then nothing more without ending."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.num_sent = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.num_sent += 1
            yield chunk
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.is_closed = True


async def test_slow_body_times_out_and_is_closed() -> None:
    body = SlowBody(b"pic")
    fetcher, _ = fetcher_of(
        lambda request: httpx.Response(200, stream=body),
        Names(a_example=[PUBLIC]),
        media_timeout_s=0.01,
    )
    error = await failure(fetcher, "https://a.example/")
    assert error.code == "failed_to_download_image"
    assert "0.01 seconds" in error.message
    assert body.is_closed


async def test_slow_name_server_times_out() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    fetcher = MediaFetcher(Settings(media_timeout_s=0.01), lambda s: None, resolve=never)
    assert (await failure(fetcher, "https://a.example/")).code == "failed_to_download_image"
    await fetcher.close()


async def test_declared_size_over_the_limit_is_refused_unread() -> None:
    body = SlowBody()
    fetcher, _ = fetcher_of(
        lambda request: httpx.Response(200, stream=body, headers={"content-length": "11"}),
        Names(a_example=[PUBLIC]),
        max_image_bytes=10,
    )
    assert (await failure(fetcher, "https://a.example/")).code == "image_file_too_large"
    assert body.num_sent == 0
    assert body.is_closed


async def test_body_over_the_limit_is_not_read_to_its_end() -> None:
    """The declared size may be missing or a lie."""
    body = SlowBody(b"x" * 6, b"x" * 6, b"x" * 6)
    fetcher, _ = fetcher_of(
        lambda request: httpx.Response(200, stream=body),
        Names(a_example=[PUBLIC]),
        max_image_bytes=10,
    )
    assert (await failure(fetcher, "https://a.example/")).code == "image_file_too_large"
    assert body.num_sent == 2


async def test_body_at_the_limit_is_accepted() -> None:
    fetcher, _ = fetcher_of(answer(b"x" * 10), Names(a_example=[PUBLIC]), max_image_bytes=10)
    assert await fetch(fetcher, "https://a.example/") == b"x" * 10


async def test_body_is_never_decompressed() -> None:
    fetcher, _ = fetcher_of(
        lambda request: httpx.Response(
            200, stream=httpx.ByteStream(b"\x1f\x8b"), headers={"content-encoding": "gzip"}
        ),
        Names(a_example=[PUBLIC]),
    )
    assert await fetch(fetcher, "https://a.example/") == b"\x1f\x8b"


@pytest.mark.parametrize("status", [204, 304, 404, 500])
async def test_any_other_status_fails(status) -> None:
    fetcher, _ = fetcher_of(lambda request: httpx.Response(status), Names(a_example=[PUBLIC]))
    error = await failure(fetcher, "https://a.example/")
    assert error.code == "failed_to_download_image"
    assert str(status) in error.message


async def test_unknown_name_fails() -> None:
    fetcher, _ = fetcher_of(answer(), Names(a_example=OSError("Name or service not known")))
    assert (await failure(fetcher, "https://a.example/")).code == "failed_to_download_image"


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def test_next_address_is_tried_when_one_does_not_answer() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return refuse(request) if ":" in request.url.host else answer()(request)

    names = Names(a_example=["2606:4700:4700::1111", PUBLIC])
    fetcher, network = fetcher_of(handler, names)
    assert await fetch(fetcher, "https://a.example/") == b"picture"
    assert [request.url.host for request in network.requests] == ["2606:4700:4700::1111", PUBLIC]
    assert len(names.asked) == 1


async def test_connection_errors_do_not_reach_the_client() -> None:
    fetcher, network = fetcher_of(refuse, Names(a_example=[PUBLIC] * 9))
    error = await failure(fetcher, "https://a.example/")
    assert error.code == "failed_to_download_image"
    assert "refused" not in error.message
    assert len(network.requests) == 3


async def test_every_fetch_is_measured() -> None:
    seconds: list[float] = []
    fetcher = MediaFetcher(Settings(), seconds.append, resolve=Names(), transport=Network(answer()))
    await fetch(fetcher, f"https://{PUBLIC}/")
    await failure(fetcher, "http://127.0.0.1/")
    assert len(seconds) == 2
