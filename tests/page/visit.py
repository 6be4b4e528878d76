"""A page that is open in the browser, and what tests do with it."""

from __future__ import annotations

import base64
import io
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from playwright.async_api import Locator, Page, expect

# What Chromium itself writes to the console when an answer has an error status.
EXPECTED_CONSOLE = "Failed to load resource: the server responded with a status of"


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()


@dataclass
class Visit:
    """A page that is open.

    Attributes:
        page: Playwright's handle.
        url: of the server, with a slash at the end.
        complaints: console messages, exceptions of scripts and requests to other servers.
    """

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Collect complaints meanwhile."""
        listeners: dict[str, Callable[[Any], None]] = {
            "console": lambda message: self._console(message.type, message.text),
            "pageerror": lambda error: self.complaints.append(f"script: {error}"),
            "request": lambda request: self._request(request.url),
        }
        for event, listener in listeners.items():
            self.page.on(event, listener)  # type: ignore[call-overload]
        try:
            yield
        finally:
            for event, listener in listeners.items():
                self.page.remove_listener(event, listener)

    @property
    def draft(self) -> Locator:
        """The field for the next question."""
        return self.page.get_by_role("textbox", name="Question", exact=True)

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.page.get_by_role("article", name="Answer").last

    async def ask(self, question: str) -> None:
        """Send a question with the keyboard."""
        await self.draft.fill(question)
        await self.draft.press("Enter")

    async def ask_and_wait(self, question: str) -> None:
        """Send a question and wait for the end of its answer."""
        await self.ask(question)
        await expect(self.answer).to_have_attribute("data-state", "complete")

    async def drop(self, name: str, data: bytes, kind: str = "image/png") -> None:
        """Drop a file onto the page, as from the desktop."""
        await self.page.evaluate(
            """([name, data, kind]) => {
                const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([bytes], name, { type: kind }));
                for (const type of ["dragover", "drop"]) {
                    document.body.dispatchEvent(
                        new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
                }
            }""",
            [name, base64.b64encode(data).decode(), kind],
        )

    def _console(self, kind: str, text: str) -> None:
        if not text.startswith(EXPECTED_CONSOLE):
            self.complaints.append(f"console {kind}: {text}")

    def _request(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "about:blank")):
            self.complaints.append(f"request to {url}")


OpenPage = Callable[..., Awaitable[Visit]]
