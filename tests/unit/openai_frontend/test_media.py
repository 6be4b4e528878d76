"""From image URLs of a request to files: counts, sizes, base64 and magic numbers."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Callable

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.media import check_format
from openai_frontend.settings import Settings
from python_backend.errors import InvalidImageError, InvalidRequestError

pytestmark = pytest.mark.anyio

JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class FakeFetcher:
    """Files by URL; an exception is raised, an event is waited for."""

    def __init__(self, **files: bytes | Exception | asyncio.Event) -> None:
        self.files = {f"https://{name}.example/": file for name, file in files.items()}
        self.fetched: list[str] = []
        self.cancelled: list[str] = []

    def check(self, url: str) -> None:
        if url not in self.files:
            raise InvalidRequestError("refused", code="invalid_image_url")

    async def fetch(self, url: str, on_bytes: Callable[[int], None]) -> bytes:
        self.fetched.append(url)
        file = self.files[url]
        if isinstance(file, asyncio.Event):
            try:
                await file.wait()
            except asyncio.CancelledError:
                self.cancelled.append(url)
                raise
            return PNG
        if isinstance(file, Exception):
            raise file
        on_bytes(len(file))
        return file

    async def close(self) -> None:
        pass


def image_parts(*urls: str) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [{"type": "text", "text": "?"}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": parts}]


async def refusal(proxy, *urls: str) -> tuple[str, str]:
    response = await proxy.chat(messages=image_parts(*urls))
    assert response.status_code == 400, response.text
    assert proxy.backend.calls == []
    error = response.json()["error"]
    return error["code"], error["param"]


@pytest.mark.parametrize(
    "url",
    [
        data_url(JPEG, "image/jpeg"),
        data_url(JPEG, "image/png"),  # only the bytes count
        data_url(PNG, "IMAGE/PNG"),
        data_url(PNG, "image/png;charset=utf-8"),
        data_url(b"GIF89a" + bytes(8), "image/gif"),
        data_url(b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
    ],
)
async def test_data_urls_are_decoded(make_proxy, url) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    assert (await proxy.chat(messages=image_parts(url))).status_code == 200
    assert proxy.backend.calls[0].images == [base64.b64decode(url.split(",")[1])]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,iVBORw0KGgo", "invalid_base64_image"),  # padding missing
        ("data:image/png;base64,iVBO Rw0K", "invalid_base64_image"),
        ("data:image/png;base64,iVBO\nRw0K", "invalid_base64_image"),
        ("data:image/png;base64,iVBO-_0K", "invalid_base64_image"),
        ("data:image/png;base64,iVBORw==iVBORw==", "invalid_base64_image"),
        ("data:image/png;base64,=", "invalid_base64_image"),
        ("data:image/png;base64,ä", "invalid_base64_image"),
        ("data:image/png;base64,", "empty_image_file"),
        ("data:image/png,iVBORw0KGgo=", "invalid_image_url"),
        ("data:text/plain;base64,iVBORw0KGgo=", "invalid_image_url"),
        ("data:;base64,iVBORw0KGgo=", "invalid_image_url"),
        ("data:image/png;base64", "invalid_image_url"),
        ("data:image/png;" + "x" * 300 + ";base64,AAAA", "invalid_image_url"),
        (data_url(b"%PDF-1.7 and more"), "invalid_image_format"),
        (data_url(b"<svg xmlns='...'>", "image/svg+xml"), "invalid_image_format"),
        (data_url(b"II*\0" + bytes(10), "image/tiff"), "invalid_image_format"),
        (data_url(b"BM" + bytes(20), "image/bmp"), "invalid_image_format"),
        (data_url(b"RIFF\x10\0\0\0WAVEfmt "), "invalid_image_format"),
        (data_url(b"\x89PN"), "invalid_image_format"),
    ],
)
async def test_bad_data_url_names_the_image(make_proxy, png_url, url, code) -> None:
    assert await refusal(make_proxy(), png_url, url) == (
        code,
        "messages[0].content[2].image_url.url",
    )


async def test_wrong_format_is_refused_in_openais_words(make_proxy) -> None:
    response = await make_proxy().chat(messages=image_parts(data_url(b"%PDF-1.7")))
    assert response.json()["error"]["message"] == (
        "You uploaded an unsupported image. Please make sure your image is of one of the following "
        "formats: ['png', 'jpeg', 'gif', 'webp']."
    )


@pytest.mark.parametrize("data", [PNG, JPEG, b"GIF87a", b"GIF89a", b"RIFF0000WEBP"])
def test_known_formats_pass(data) -> None:
    check_format(data)


@pytest.mark.parametrize("data", [b"", b"\0\0\0\x0cjP  ", b"8BPS\0\1", b"SIMPLE  ="])
def test_formats_with_dangerous_decoders_do_not_pass(data) -> None:
    """CVE-2026-22778 (JPEG 2000), CVE-2026-25990 (PSD), CVE-2026-40192 (FITS)."""
    with pytest.raises(InvalidImageError):
        check_format(data)


async def test_limits_are_checked_before_anything_is_fetched(make_proxy) -> None:
    """CVE-2026-100650 (PYSEC-2026-4184): a refused request must not make this server fetch."""
    fetcher = FakeFetcher(a=PNG)
    proxy = make_proxy(fetcher=fetcher)
    too_many = ["https://a.example/"] * (MODEL.max_images + 1)
    assert await refusal(proxy, *too_many) == ("invalid_value", "messages")
    await refusal(proxy, "https://a.example/", "https://unknown.example/")
    await refusal(proxy, "https://a.example/", "data:image/png;base64,!")
    assert fetcher.fetched == []


async def test_model_and_server_both_limit_the_number_of_images(make_proxy, png_url) -> None:
    proxy = make_proxy(settings=Settings(max_images=1))
    response = await proxy.chat(messages=image_parts(png_url, png_url))
    assert "At most 1 image(s)" in response.json()["error"]["message"]


async def test_one_image_has_a_limit_of_bytes(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=Settings(max_image_bytes=1000))
    code, _ = await refusal(proxy, data_url(PNG + bytes(2000)))
    assert code == "image_file_too_large"
    exact = PNG + bytes(1000 - len(PNG))
    assert (await proxy.chat(messages=image_parts(data_url(exact)))).status_code == 200


async def test_all_images_together_have_a_limit_of_bytes(make_proxy) -> None:
    """CVE-2026-130686 (GHSA-5r3c-5x4v-8gjh): many images, each under the limit of one."""
    fetcher = FakeFetcher(a=PNG, b=PNG + b"2")
    proxy = make_proxy(
        FakeBackend(text_deltas("a")),
        settings=Settings(max_total_image_bytes=2 * len(PNG)),
        fetcher=fetcher,
    )
    code, param = await refusal(proxy, "https://a.example/", "https://b.example/")
    assert code == "image_file_too_large"
    assert param == "messages[0].content[2].image_url.url"
    assert (await refusal(proxy, data_url(PNG), data_url(PNG + b"1")))[0] == code
    assert (
        await proxy.chat(messages=image_parts("https://a.example/", data_url(PNG)))
    ).status_code == 200


async def test_same_url_is_fetched_once_and_used_twice(make_proxy) -> None:
    fetcher = FakeFetcher(a=PNG, b=JPEG)
    proxy = make_proxy(FakeBackend(text_deltas("a")), fetcher=fetcher)
    urls = ["https://a.example/", "https://b.example/", "https://a.example/"]
    await proxy.chat(messages=image_parts(*urls))
    assert proxy.backend.calls[0].images == [PNG, JPEG, PNG]
    assert fetcher.fetched == urls[:2]


@pytest.mark.parametrize("url", ["https://a.example/", data_url(PNG)])
async def test_same_url_twice_counts_twice(make_proxy, url) -> None:
    settings = Settings(max_total_image_bytes=2 * len(PNG))
    proxy = make_proxy(settings=settings, fetcher=FakeFetcher(a=PNG))
    assert (await refusal(proxy, url, url, url))[0] == "image_file_too_large"


async def test_text_only_model_refuses_images_by_its_name(make_proxy, png_url) -> None:
    text_model = dataclasses.replace(MODEL, max_images=0)
    proxy = make_proxy(FakeBackend(text_deltas("a"), models_list=[text_model]))
    response = await proxy.chat(messages=image_parts(png_url))
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (
        "invalid_value",
        "messages[0].content[1].image_url.url",
    )
    assert f"`{MODEL.id}` is text-only" in error["message"]
    assert proxy.backend.calls == []
    assert (await proxy.chat()).status_code == 200


async def test_failed_download_names_the_image_and_stops_the_others(make_proxy) -> None:
    failed = InvalidRequestError("The download failed.", code="failed_to_download_image")
    fetcher = FakeFetcher(a=asyncio.Event(), b=failed)
    proxy = make_proxy(fetcher=fetcher)
    assert await refusal(proxy, "https://a.example/", "https://b.example/") == (
        "failed_to_download_image",
        "messages[0].content[2].image_url.url",
    )
    assert fetcher.cancelled == ["https://a.example/"]


async def test_downloaded_file_must_be_an_image(make_proxy) -> None:
    proxy = make_proxy(fetcher=FakeFetcher(a=b"<html>login</html>", b=b""))
    assert (await refusal(proxy, "https://a.example/"))[0] == "invalid_image_format"
    assert (await refusal(proxy, "https://b.example/"))[0] == "empty_image_file"
