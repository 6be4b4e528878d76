"""The page in a headless Chromium, with the real proxy and a fake backend behind it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fake_backend import FakeBackend
from loopback_server import Asgi, serving
from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect
from playwright.async_api import Error as PlaywrightError

from openai_frontend.app import create_app
from openai_frontend.settings import Settings
from tests.page.chromium import PLAYWRIGHT_ENVIRONMENT, system_chromium
from tests.page.visit import OpenPage, Visit

# Generous, because a browser is several processes and the machine may be busy.
expect.set_options(timeout=60_000)

VIEWPORT: ViewportSize = {"width": 1180, "height": 760}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if any("NO CHROMIUM" in str(report.longrepr) for report in skipped):
        terminalreporter.section("THE PAGE WAS NOT TESTED: no Chromium; make chromium gets it")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLAYWRIGHT_ENVIRONMENT.items():
            patch.setenv(name, value)
        async with async_playwright() as playwright:
            # Chromium's sandbox refuses to run as root.
            arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
            try:
                chromium = await playwright.chromium.launch(
                    executable_path=system_chromium(), args=arguments
                )
            except PlaywrightError as exc:
                pytest.skip(f"NO CHROMIUM, run `make chromium`: {exc.message.splitlines()[0]}")
            yield chromium
            await chromium.close()


@pytest.fixture(scope="module")
async def tab(browser: Browser) -> Page:
    """One for all tests, because a new one is a new process; each test has another server in it."""
    return await browser.new_page(viewport=VIEWPORT)


@pytest.fixture
async def open_page(tab: Page) -> AsyncIterator[OpenPage]:
    """Opens the page and waits for its models; at the end nobody must have complained."""
    visits: list[Visit] = []
    async with AsyncExitStack() as stack:

        async def open_(
            backend: FakeBackend | None = None,
            *,
            settings: Settings | None = None,
            wrap: Callable[[Asgi], Asgi] = lambda app: app,
        ) -> Visit:
            app = create_app(settings or Settings(), backend or FakeBackend())
            address = await stack.enter_async_context(serving(wrap(app)))
            visit = Visit(tab, f"http://{address}/")
            visits.append(visit)
            stack.enter_context(visit.listening())
            await tab.goto(visit.url)
            await expect(tab.locator("#model-limits")).not_to_have_text("Looking for models…")
            return visit

        yield open_
        await tab.unroute_all()
        await tab.set_viewport_size(VIEWPORT)
        await tab.emulate_media(color_scheme="null", reduced_motion="null")
        await tab.goto("about:blank")
    assert [complaint for visit in visits for complaint in visit.complaints] == []
