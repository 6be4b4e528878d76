"""The page's files and their headers; tests/page/ opens it in a browser."""

from __future__ import annotations

import re

import pytest

from openai_frontend.page_routes import CONTENT_SECURITY_POLICY, load_assets
from openai_frontend.settings import Settings

ASSETS = load_assets()
PATHS = {name: "/" if name == "index.html" else f"/page/{name}" for name in ASSETS}
MAX_BYTES = 64 * 1024


def text_of(name: str) -> str:
    return ASSETS[name].content.decode("utf-8")


@pytest.mark.anyio
@pytest.mark.parametrize("name", sorted(ASSETS))
async def test_every_file_is_served_with_the_headers_of_a_closed_page(make_proxy, name) -> None:
    response = await make_proxy().http.get(PATHS[name])
    assert response.status_code == 200
    assert response.content == ASSETS[name].content
    assert response.headers["content-type"].partition(";")[0] == ASSETS[name].media_type
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cross-origin-opener-policy"] == "same-origin"


def test_the_policy_lets_no_inline_script_run() -> None:
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}'])
async def test_a_file_that_the_browser_has_is_not_sent_again(make_proxy, form) -> None:
    http = make_proxy().http
    etag = (await http.get("/")).headers["etag"]
    again = await http.get("/", headers={"if-none-match": form.format(etag)})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    other = await http.get("/", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.anyio
async def test_the_page_has_the_same_headers_without_its_body(make_proxy) -> None:
    http = make_proxy().http
    head = await http.head("/")
    assert head.headers["etag"] == (await http.get("/")).headers["etag"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/page/index.html", "/page/other.js", "/page/../app.py", "/page"])
async def test_nothing_else_is_served(make_proxy, path) -> None:
    response = await make_proxy().http.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


@pytest.mark.anyio
async def test_the_page_is_told_the_limits_of_the_settings(make_proxy) -> None:
    settings = Settings(max_images=5, max_image_bytes=6, max_total_image_bytes=7)
    response = await make_proxy(settings=settings).http.get("/page/limits.json")
    assert response.json() == {"max_images": 5, "max_image_bytes": 6, "max_total_image_bytes": 7}


def test_the_page_is_small() -> None:
    assert sum(len(asset.content) for asset in ASSETS.values()) < MAX_BYTES


def test_every_file_that_is_named_is_there() -> None:
    page = {*re.findall(r'(?:src|href)="page/([^"]+)"', text_of("index.html"))}
    scripts = [name for name in ASSETS if name.endswith(".js")]
    imported = {name for s in scripts for name in re.findall(r'from "\./([^"]+)"', text_of(s))}
    assert page | imported | {"index.html"} == set(ASSETS)


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_no_file_names_another_server(name) -> None:
    text = text_of(name).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://", text)
