"""What the page must never do, whatever a model, a picture's name or a person brings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from fake_backend import FakeBackend, text_deltas
from loopback_server import Asgi
from playwright.async_api import expect

from tests.page.visit import OpenPage, Visit, png

pytestmark = pytest.mark.anyio

KEY = "secret-key"


async def test_what_a_model_writes_stays_text(open_page: OpenPage) -> None:
    html = "<img src=https://example.com/x onerror=alert(1)><script>alert(1)</script>"
    visit = await open_page(FakeBackend(text_deltas(f"{html}\n\n[a](javascript:alert(1))")))
    await visit.ask_and_wait(html)
    await expect(visit.answer.locator(".text")).to_have_text(f"{html}[a](javascript:alert(1))")
    assert await visit.page.locator("#turns").locator("img, script, a").count() == 0


async def test_the_policy_holds_in_the_browser(open_page: OpenPage) -> None:
    visit = await open_page()
    attempts = {
        "document.body.innerHTML = '<b>x</b>'": "TrustedHTML",
        "fetch('https://example.com/')": "connect-src",
        "document.body.append(Object.assign(new Image(), { src: 'https://example.com/x' }))": "img-src",
        "document.body.setAttribute('style', 'color: red')": "style-src",
    }
    for script, directive in attempts.items():
        error = await visit.page.evaluate(
            f"async () => {{ try {{ await ({script}) }} catch (error) {{ return String(error) }} }}"
        )
        assert directive in " ".join((str(error), *visit.complaints)), script
    visit.complaints.clear()


def key_required(app: Asgi) -> Asgi:
    """Asks for a key below `/v1`, as a server with API keys does."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        is_public = not scope.get("path", "").startswith("/v1")
        if is_public or headers.get(b"authorization") == f"Bearer {KEY}".encode():
            await app(scope, receive, send)
            return
        body = b'{"error": {"message": "No key.", "code": "invalid_api_key"}}'
        head = {"type": "http.response.start", "status": 401, "headers": []}
        await send(head)
        await send({"type": "http.response.body", "body": body})

    return guarded


async def test_a_key_is_asked_for_sent_and_kept_in_the_tab_only(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("Yes."))
    visit = await open_page(backend, wrap=key_required)
    await expect(visit.page.get_by_role("alert")).to_contain_text("Enter the server’s API key")
    key = visit.page.get_by_label("API key")
    await expect(key).to_be_focused()
    await key.fill(KEY)
    await key.press("Enter")
    await expect(visit.page.get_by_role("combobox", name="Model")).to_be_enabled()
    await expect(visit.page.get_by_role("alert")).to_be_hidden()
    await visit.ask_and_wait("Hello?")
    stored = await visit.page.evaluate(
        "() => [{...sessionStorage}, {...localStorage}, document.cookie]"
    )
    assert stored == [{"triton-vlm-api-key": KEY}, {}, ""]
    assert KEY not in await copied(visit, "Copy as curl")
    assert KEY not in await copied(visit, "Copy as Python")


async def copied(visit: Visit, button: str) -> str:
    """What a copy button of the last answer puts on the clipboard."""
    await visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await visit.answer.get_by_role("button", name=button).click()
    await expect(visit.page.get_by_role("status")).to_have_text(f"{button}: done")
    return str(await visit.page.evaluate("() => navigator.clipboard.readText()"))


@pytest.mark.parametrize("button", ["Copy as curl", "Copy as Python"])
async def test_the_copied_request_is_the_one_that_was_sent(
    open_page: OpenPage, button: str, tmp_path: Path
) -> None:
    backend = FakeBackend(text_deltas("Yes."))
    visit = await open_page(backend)
    await visit.page.get_by_role("button", name="Settings").click()
    await visit.page.get_by_label("Instructions").fill("Be 'brief' in $PATH and `x`.\n\\n EOF")
    await visit.page.get_by_label("Temperature").fill("0.5")
    await visit.page.get_by_label("Top k").fill("5")
    await visit.drop("a $(id)'.png", png("red"))
    await visit.drop("image.png", png("blue"))
    await visit.drop("image.png", png("green"))
    await visit.ask_and_wait('Which "colours"?\n\U0001f600')
    snippet = await copied(visit, button)
    for name, colour in (
        ("a __id__.png", "red"),
        ("image.png", "blue"),
        ("image-2.png", "green"),
    ):
        (tmp_path / name).write_bytes(png(colour))
    assert "base64,iVBOR" not in snippet
    command = ["bash", "-c", snippet] if "curl" in button else [sys.executable, "-c", snippet]
    result = await anyio.run_process(command, cwd=tmp_path, check=False, stderr=subprocess.STDOUT)
    assert b"Yes." in result.stdout, result.stdout.decode()
    sent, again = backend.calls
    assert (again.prompt, again.images, again.sampling) == (sent.prompt, sent.images, sent.sampling)
    assert len(sent.images) == 3
    assert sorted(os.listdir(tmp_path)) == ["a __id__.png", "image-2.png", "image.png"]


async def test_markdown_becomes_elements_and_nothing_is_lost(open_page: OpenPage) -> None:
    visit = await open_page()
    source = "# Title\none\ntwo **bold** and *it* `a*b*`\n\n- x\n- y\n3. z\n```py\n<b>\n\nend"
    elements = await visit.page.evaluate(
        """async (source) => {
            const { renderMarkdown } = await import("./page/markdown.js");
            const serialize = (node) => node.nodeType === Node.TEXT_NODE ? node.data
                : [node.localName, ...[...node.childNodes].map(serialize).filter((part) => part)];
            return [...renderMarkdown(source).childNodes].map(serialize);
        }""",
        source,
    )
    assert elements == [
        ["h3", "Title"],
        [
            "p",
            "one",
            ["br"],
            "two ",
            ["strong", "bold"],
            " and ",
            ["em", "it"],
            " ",
            ["code", "a*b*"],
        ],
        ["ul", ["li", "x"], ["li", "y"]],
        ["ol", ["li", "z"]],
        ["pre", ["code", "<b>\n\nend"]],
    ]
