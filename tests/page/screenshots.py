"""The pictures in docs/images: `python tests/page/screenshots.py http://127.0.0.1:9000`.

The server is one that `make serve` started, with the default model.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.page.chromium import PLAYWRIGHT_ENVIRONMENT, system_chromium  # noqa: E402

FOLDER = ROOT / "docs" / "images"
expect.set_options(timeout=60_000)


def take(
    browser: Browser, url: str, name: str, scheme: Literal["light", "dark"], *, fails: bool = False
) -> None:
    """Ask about a picture, with a setting that the server refuses if `fails`; keep what can be seen."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 640})
    page.goto(url)
    page.get_by_role("button", name="What is in this image?").wait_for()
    if fails:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Longest answer").fill("100000")
        page.keyboard.press("Escape")
    page.get_by_role("button", name="What is in this image?").click()
    if fails:
        expect(page.get_by_role("alert")).to_be_visible()
    else:
        answer = page.get_by_role("article", name="Answer")
        expect(answer).to_have_attribute("data-state", "complete")
    page.screenshot(path=FOLDER / f"page-{name}.png")
    page.close()


def main(url: str) -> None:
    """Take all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ.update(PLAYWRIGHT_ENVIRONMENT)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system_chromium(), args=arguments)
        take(browser, url, "light", "light")
        take(browser, url, "dark", "dark")
        take(browser, url, "error", "light", fails=True)


if __name__ == "__main__":
    main(sys.argv[1])
