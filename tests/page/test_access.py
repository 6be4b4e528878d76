"""With the keyboard alone, with a screen reader, in the dark, on a phone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_backend import FakeBackend, text_deltas
from playwright.async_api import Page, expect

from python_backend.errors import OverloadedError
from tests.page.visit import OpenPage, png

pytestmark = pytest.mark.anyio

NAME_OF_FOCUS = """() => {
    const { activeElement: e } = document;
    return e.getAttribute("aria-label") ?? e.labels?.[0]?.textContent.trim() ?? e.textContent.trim();
}"""
# WCAG 2's formula over every element that has text of its own.
LOW_CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    };
    const luminance = (colour) => {
        const [r, g, b] = [...rgba(colour)].map((byte) => byte / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const backgroundOf = (node) => {
        for (; node; node = node.parentElement) {
            const { backgroundColor } = getComputedStyle(node);
            if (rgba(backgroundColor)[3] === 255) return backgroundColor;
        }
    };
    const low = [];
    for (const node of document.querySelectorAll("body *")) {
        const hasText = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!hasText || !node.checkVisibility() || node.localName === "option") continue;
        const [a, b] = [getComputedStyle(node).color, backgroundOf(node)].map(luminance);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) low.push(`${node.textContent.trim()}: ${ratio.toFixed(2)}`);
    }
    return low;
}"""


async def tab_through(page: Page, key: str, count: int) -> list[str]:
    """Names of what gets the focus; each must show that it has it."""
    names = []
    for _ in range(count):
        await page.keyboard.press(key)
        names.append(str(await page.evaluate(NAME_OF_FOCUS)))
        outline = await page.evaluate(
            """() => [document.activeElement, document.activeElement.closest("form")]
                .filter((node) => node)
                .map((node) => getComputedStyle(node).outlineStyle)"""
        )
        assert "solid" in outline, names[-1]
    return names


async def test_a_conversation_needs_no_mouse(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("A red square."))
    visit = await open_page(backend)
    await expect(visit.draft).to_be_focused()
    assert await tab_through(visit.page, "Tab", 2) == ["Add pictures", "Send"]
    assert await tab_through(visit.page, "Shift+Tab", 8) == [
        *("Add pictures", "Question"),
        "Which image has more shapes?",
        "Which number is in the picture?",
        "What is in this image?",
        *("New chat", "Settings", "Model"),
    ]
    await visit.draft.focus()
    await visit.page.keyboard.type("What is")
    await visit.page.keyboard.press("Shift+Enter")
    await visit.page.keyboard.type("this?")
    await visit.page.keyboard.press("Enter")
    await expect(visit.answer.locator(".text")).to_have_text("A red square.")
    assert backend.calls[0].prompt["messages"][0]["content"] == "What is\nthis?"
    await expect(visit.draft).to_be_focused()
    assert await tab_through(visit.page, "Shift+Tab", 5) == [
        *("Ask again", "Copy as Python", "Copy as curl", "Copy answer", "Edit")
    ]
    await visit.page.get_by_role("button", name="Settings").focus()
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.get_by_label("Instructions")).to_be_focused()
    await visit.page.keyboard.press("Escape")
    await expect(visit.page.get_by_role("button", name="Settings")).to_be_focused()


async def test_everything_has_a_name(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("A red square."))
    visit = await open_page(backend)
    await visit.page.get_by_role("button", name="Settings").click()
    await visit.drop("a.png", png())
    await visit.ask_and_wait("What is this?")
    await visit.drop("b.png", png())
    backend.script = [OverloadedError("The queue is full.")]
    await visit.ask("And this?")
    await expect(visit.page.get_by_role("alert")).to_be_visible()
    session = await visit.page.context.new_cdp_session(visit.page)
    nodes = (await session.send("Accessibility.getFullAXTree"))["nodes"]
    named = [(value(node, "role"), value(node, "name")) for node in nodes if not node["ignored"]]
    roles = ("button", "textbox", "spinbutton", "combobox", "image", "form", "article", "list")
    assert [role for role, name in named if role in roles and not name] == []
    for landmark in ("banner", "main"):
        assert [role for role, _ in named].count(landmark) == 1
    assert ("form", "Settings") in named
    assert ("form", "Question") in named
    assert ("heading", "triton-vlm") in named


def value(node: dict[str, Any], field: str) -> str:
    return str(node.get(field, {}).get("value", ""))


async def test_a_screen_reader_hears_the_answer_once(open_page: OpenPage) -> None:
    gate = asyncio.Event()
    first, *rest = text_deltas("A red square.")
    visit = await open_page(FakeBackend([first, gate, *rest]))
    status = visit.page.get_by_role("status")
    await visit.ask("What is this?")
    await expect(visit.answer.locator(".text")).to_have_text("A")
    await expect(status).to_have_text("The answer is coming.")
    assert await visit.answer.evaluate("node => node.closest('[aria-live], [role=log]')") is None
    gate.set()
    await expect(status).to_have_text("Answer: A red square.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_both_schemes(
    open_page: OpenPage, tab: Page, scheme: Any
) -> None:
    await tab.emulate_media(color_scheme=scheme)
    visit = await open_page(FakeBackend(text_deltas("A `red` square.")))
    background = await tab.evaluate(
        "() => getComputedStyle(document.documentElement).backgroundColor"
    )
    assert background == {"light": "rgb(251, 250, 247)", "dark": "rgb(23, 23, 21)"}[scheme]
    assert await tab.evaluate(LOW_CONTRAST) == []
    await visit.page.get_by_role("button", name="Settings").click()
    await visit.ask_and_wait("What is this?")
    await visit.drop("page.pdf", b"%PDF", "application/pdf")
    await expect(visit.page.get_by_role("alert")).to_be_visible()
    assert await tab.evaluate(LOW_CONTRAST) == []


async def test_nothing_moves_for_who_asked_for_that(open_page: OpenPage, tab: Page) -> None:
    visit = await open_page(FakeBackend([asyncio.Event(), *text_deltas("A")]))
    await visit.draft.fill("What is this?")
    for preference, moves in (("no-preference", True), ("reduce", False)):
        await tab.emulate_media(reduced_motion=preference)  # type: ignore[arg-type]
        await visit.draft.press("Enter")
        await expect(visit.answer).to_have_attribute("data-state", "running")
        assert (await tab.evaluate("() => document.getAnimations().length") > 0) is moves
        await tab.keyboard.press("Escape")
        await expect(visit.draft).to_have_value("What is this?")


async def test_the_page_fits_a_phone(open_page: OpenPage, tab: Page) -> None:
    await tab.set_viewport_size({"width": 320, "height": 640})
    visit = await open_page(FakeBackend(text_deltas(f"A {'long' * 50} word.\n```\n{'x' * 200}")))
    overflow = "() => document.scrollingElement.scrollWidth - innerWidth"
    assert await tab.evaluate(overflow) <= 0
    await visit.page.get_by_role("button", name="Settings").click()
    await visit.drop("a.png", png())
    await visit.ask_and_wait("What is this?")
    await visit.drop("b.png", png())
    assert await tab.evaluate(overflow) <= 0
    await expect(visit.page.get_by_role("button", name="Send")).to_be_in_viewport()
