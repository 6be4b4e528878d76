"""What a person can do with the page."""

from __future__ import annotations

import asyncio
import dataclasses
import io

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas
from PIL import Image
from playwright.async_api import expect

from openai_frontend.backend import Delta
from openai_frontend.settings import Settings
from python_backend.errors import EngineError, OverloadedError, PromptTooLongError
from tests.page.visit import OpenPage, png

pytestmark = pytest.mark.anyio

TEXT_ONLY = dataclasses.replace(MODEL, id="reads-text", triton_name="reads_text", max_images=0)


def last_prompt(backend: FakeBackend) -> list[tuple[str, object]]:
    """Roles and contents; of a content with pictures, the types of its parts."""
    return [
        (
            message["role"],
            content if isinstance(content, str) else [part["type"] for part in content],
        )
        for message in backend.calls[-1].prompt["messages"]
        for content in [message["content"]]
    ]


async def test_dropped_pictures_are_asked_about_and_the_answer_comes_as_it_is_made(
    open_page: OpenPage,
) -> None:
    gate = asyncio.Event()
    first, *rest = text_deltas("A red square.", prompt_tokens=1307, image_tokens=280)
    backend = FakeBackend([first, gate, *rest])
    visit = await open_page(backend)
    await visit.drop("red.png", png("red"))
    await visit.drop("blue.png", png("blue"))
    await expect(visit.page.get_by_role("img", name="blue.png")).to_be_visible()
    await visit.ask("What is this?")
    await expect(visit.answer.locator(".text")).to_have_text("A")
    await expect(visit.answer).to_have_attribute("aria-busy", "true")
    gate.set()
    await expect(visit.answer.locator(".text")).to_have_text("A red square.")
    facts = visit.answer.get_by_role("list", name="Times and tokens")
    await expect(facts).to_contain_text("s to the first token")
    await expect(facts).to_contain_text("1,307 prompt tokens, 280 of them pictures")
    await expect(facts).to_contain_text("4 answer tokens")
    assert backend.calls[0].images == [png("red"), png("blue")]
    assert backend.calls[0].sampling == {}
    await expect(visit.draft).to_have_value("")


async def test_what_a_model_thinks_is_told_beside_its_answer(open_page: OpenPage) -> None:
    thoughts = [Delta(text="", reasoning=text, token_ids=(1,)) for text in ("Let me\n", "look.")]
    backend = FakeBackend([*thoughts, *text_deltas("A red square.")])
    visit = await open_page(backend)
    await visit.ask("What is this?")
    await expect(visit.answer.locator(".text")).to_have_text("A red square.")
    thinking = visit.answer.get_by_role("group")
    await expect(thinking.get_by_role("paragraph")).to_be_hidden()
    await thinking.get_by_text("Reasoning").click()
    await expect(thinking.get_by_role("paragraph")).to_have_text("Let me\nlook.")
    await visit.ask_and_wait("And this?")
    assert last_prompt(backend)[1] == ("assistant", "A red square.")


async def test_pictures_are_chosen_pasted_and_removed(open_page: OpenPage) -> None:
    visit = await open_page()
    pictures = visit.page.get_by_role("list", name="Pictures of the question")
    files = [
        {"name": f"{name}.png", "mimeType": "image/png", "buffer": png(name)}
        for name in ("red", "blue")
    ]
    await visit.page.locator("input[type=file]").set_input_files(files)
    await expect(pictures.get_by_role("img")).to_have_count(2)
    await visit.page.evaluate(
        """() => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File(["x"], "pasted.webp", { type: "image/webp" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }"""
    )
    await expect(pictures.get_by_role("img")).to_have_count(3)
    await pictures.get_by_role("button", name="Remove red.png").click()
    assert await pictures.get_by_role("img").evaluate_all("all => all.map((i) => i.alt)") == [
        "blue.png",
        "pasted.webp",
    ]
    await expect(pictures.get_by_role("button", name="Remove blue.png")).to_be_focused()


@pytest.mark.parametrize("is_by_key", [True, False])
async def test_a_stopped_answer_frees_the_row_and_keeps_what_came(
    open_page: OpenPage, is_by_key: bool
) -> None:
    backend = FakeBackend([Delta(text="A red"), asyncio.Event(), *text_deltas("square.")])
    visit = await open_page(backend)
    await visit.ask("What is this?")
    await expect(visit.answer.locator(".text")).to_have_text("A red")
    if is_by_key:
        await visit.page.keyboard.press("Escape")
    else:
        await visit.page.get_by_role("button", name="Stop").click()
    async with asyncio.timeout(30):
        await backend.was_cancelled.wait()
    await expect(visit.answer).to_contain_text("stopped")
    await expect(visit.draft).to_be_focused()
    backend.script = text_deltas("Yes.")
    await visit.ask_and_wait("Is it red?")
    assert last_prompt(backend) == [
        ("user", "What is this?"),
        ("assistant", "A red"),
        ("user", "Is it red?"),
    ]


async def test_a_question_stopped_before_its_answer_goes_back_before_what_was_written_since(
    open_page: OpenPage,
) -> None:
    backend = FakeBackend([asyncio.Event(), *text_deltas("A")])
    visit = await open_page(backend)
    await visit.drop("red.png", png())
    await visit.ask("What is this?")
    await visit.draft.fill("And this?")
    await visit.page.keyboard.press("Escape")
    await expect(visit.draft).to_have_value("What is this?\n\nAnd this?")
    await expect(visit.page.get_by_role("button", name="Remove red.png")).to_be_visible()
    await expect(visit.page.get_by_role("article")).to_have_count(0)


async def test_a_refusal_is_explained_and_nothing_is_lost(open_page: OpenPage) -> None:
    message = "The prompt has 9,000 tokens and the model takes 8,192."
    backend = FakeBackend([PromptTooLongError(message)])
    visit = await open_page(backend)
    await visit.drop("red.png", png())
    await visit.ask("What is this?")
    alert = visit.page.get_by_role("alert")
    await expect(alert).to_contain_text(message)
    await expect(alert).to_contain_text("Start a new chat")
    await expect(alert).to_contain_text("context_length_exceeded")
    await expect(visit.draft).to_have_value("What is this?")
    backend.script = text_deltas("A red square.")
    await visit.draft.press("Enter")
    await expect(visit.answer.locator(".text")).to_have_text("A red square.")
    await expect(alert).to_be_hidden()
    assert backend.calls[-1].images == [png()]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OverloadedError("The queue is full."), "Send again in 7 seconds or later."),
        (EngineError("secret"), "the reason is in the server’s log, at request"),
    ],
)
async def test_an_error_says_what_to_do(open_page: OpenPage, error: Exception, advice: str) -> None:
    visit = await open_page(FakeBackend([error]), settings=Settings(retry_after_s=7))
    await visit.ask("What is this?")
    await expect(visit.page.get_by_role("alert")).to_contain_text(advice)


async def test_an_answer_that_breaks_off_is_kept_and_can_be_asked_again(
    open_page: OpenPage,
) -> None:
    backend = FakeBackend([Delta(text="A red"), EngineError("secret")])
    visit = await open_page(backend)
    await visit.ask("What is this?")
    await expect(visit.page.get_by_role("alert")).to_contain_text("The server had an error")
    await expect(visit.answer).to_contain_text("broken off")
    backend.script = text_deltas("A red square.")
    await visit.page.get_by_role("button", name="Ask again").click()
    await expect(visit.answer.locator(".text")).to_have_text("A red square.")
    assert last_prompt(backend) == [("user", "What is this?")]
    await expect(visit.page.get_by_role("article", name="Answer")).to_have_count(1)


async def test_a_server_that_went_away_is_said_and_nothing_is_lost(open_page: OpenPage) -> None:
    visit = await open_page()
    await visit.page.route("**/v1/chat/completions", lambda route: route.abort())
    await visit.ask("What is this?")
    await expect(visit.page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    await expect(visit.draft).to_have_value("What is this?")
    visit.complaints = [text for text in visit.complaints if "net::ERR_FAILED" not in text]


async def test_an_answer_that_is_refused_again_stays_as_it_was(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("A red square."))
    visit = await open_page(backend)
    await visit.ask_and_wait("What is this?")
    backend.script = [OverloadedError("The queue is full.")]
    await visit.page.get_by_role("button", name="Ask again").click()
    await expect(visit.page.get_by_role("alert")).to_contain_text("The queue is full.")
    await expect(visit.answer.locator(".text")).to_have_text("A red square.")


async def test_an_edited_question_replaces_itself_and_what_follows(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("Red."))
    visit = await open_page(backend)
    await visit.drop("red.png", png())
    await visit.ask_and_wait("Which colour?")
    await visit.ask_and_wait("Sure?")
    await visit.draft.fill("a draft")
    await visit.page.get_by_role("button", name="Edit").first.click()
    await expect(visit.draft).to_have_value("Which colour?")
    await visit.page.keyboard.press("Escape")
    await expect(visit.draft).to_have_value("a draft")
    await visit.page.get_by_role("button", name="Edit").first.click()
    backend.script = [OverloadedError("The queue is full.")]
    await visit.ask("Which shape?")
    await expect(visit.page.get_by_role("alert")).to_be_visible()
    await expect(visit.page.get_by_role("article", name="Answer")).to_have_count(2)
    backend.script = text_deltas("A square.")
    await visit.draft.press("Enter")
    await expect(visit.answer.locator(".text")).to_have_text("A square.")
    await expect(visit.page.get_by_role("article", name="Answer")).to_have_count(1)
    assert last_prompt(backend) == [("user", ["image", "text"])]
    assert backend.calls[-1].images == [png()]
    await expect(visit.draft).to_have_value("a draft")


async def test_a_new_chat_forgets_the_conversation(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("Red."))
    visit = await open_page(backend)
    await visit.ask_and_wait("Which colour?")
    await visit.page.get_by_role("button", name="New chat").click()
    await expect(visit.page.get_by_role("heading", name="Ask about a picture")).to_be_visible()
    await visit.ask_and_wait("Hello")
    assert last_prompt(backend) == [("user", "Hello")]


async def test_pictures_over_a_limit_are_refused_with_the_limit(open_page: OpenPage) -> None:
    settings = Settings(max_image_bytes=2**20, max_total_image_bytes=3 * 2**19)
    visit = await open_page(settings=settings)
    alert = visit.page.get_by_role("alert")
    pictures = visit.page.get_by_role("list", name="Pictures of the question")
    await visit.drop("large.png", bytes(2**21))
    await expect(alert).to_contain_text(
        "large.png has 2 MiB; the server takes pictures of up to 1 MiB."
    )
    await visit.drop("page.pdf", b"%PDF", "application/pdf")
    await expect(alert).to_contain_text("page.pdf is not a PNG, JPEG, WebP or GIF picture.")
    await visit.drop("a.png", bytes(2**20))
    await visit.drop("b.png", bytes(2**20))
    await expect(alert).to_contain_text("together; the server takes up to 1.5 MiB.")
    await expect(pictures.get_by_role("img")).to_have_count(1)


async def test_pictures_of_the_conversation_count_as_well(open_page: OpenPage) -> None:
    visit = await open_page(FakeBackend(text_deltas("Red.")), settings=Settings(max_images=2))
    await expect(visit.page.locator("#model-limits")).to_have_text(
        "up to 2 pictures · 8,192 tokens"
    )
    await visit.drop("a.png", png())
    await visit.ask_and_wait("Which colour?")
    await visit.drop("b.png", png())
    await visit.drop("c.png", png())
    await expect(visit.page.get_by_role("alert")).to_contain_text("at most 2 pictures")
    await expect(visit.page.locator("#composer").get_by_role("img")).to_have_count(1)


async def test_the_chosen_model_and_the_settings_are_asked_for(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("Yes."), models_list=[MODEL, TEXT_ONLY])
    visit = await open_page(backend)
    await visit.page.get_by_role("combobox", name="Model").select_option(TEXT_ONLY.id)
    await expect(visit.page.locator("#model-limits")).to_have_text("reads text only · 8,192 tokens")
    await expect(visit.page.get_by_role("heading", name="Ask something")).to_be_visible()
    await visit.drop("red.png", png())
    await expect(visit.page.get_by_role("alert")).to_contain_text("This model reads text only")
    await expect(visit.page.get_by_role("form", name="Settings")).to_be_hidden()
    await visit.page.get_by_role("button", name="Settings").click()
    await visit.page.get_by_label("Instructions").fill("Be brief.")
    await visit.page.get_by_label("Temperature").fill("0.5")
    await visit.page.get_by_label("Top k").fill("5")
    await visit.page.get_by_label("Longest answer").fill("30")
    await visit.ask_and_wait("Hello?")
    call = backend.calls[0]
    assert call.model == TEXT_ONLY.triton_name
    assert call.sampling == {"temperature": 0.5, "top_k": 5, "max_tokens": 30}
    assert last_prompt(backend) == [("system", "Be brief."), ("user", "Hello?")]


async def test_a_wrong_setting_is_shown_before_anything_is_sent(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("Yes."))
    visit = await open_page(backend)
    await visit.page.get_by_role("button", name="Settings").click()
    temperature = visit.page.get_by_label("Temperature")
    await temperature.fill("3")
    await temperature.press("Escape")
    await expect(temperature).to_be_hidden()
    await visit.ask("Hello?")
    await expect(temperature).to_be_focused()
    await expect(visit.draft).to_have_value("Hello?")
    assert backend.calls == []


@pytest.mark.parametrize(("index", "num_pictures"), [(0, 1), (1, 1), (2, 2)])
async def test_an_example_is_one_click(open_page: OpenPage, index: int, num_pictures: int) -> None:
    backend = FakeBackend(text_deltas("Yes."))
    visit = await open_page(backend)
    examples = visit.page.locator("#examples button")
    await expect(examples).to_have_count(3)
    await examples.nth(index).click()
    await expect(visit.answer.locator(".text")).to_have_text("Yes.")
    sizes = [Image.open(io.BytesIO(image)).size for image in backend.calls[0].images]
    assert sizes == [(448, 448)] * num_pictures
    await expect(visit.draft).to_be_focused()


async def test_a_server_without_a_model_says_so_and_is_asked_again(open_page: OpenPage) -> None:
    backend = FakeBackend(text_deltas("Yes."), models_list=[])
    visit = await open_page(backend)
    await expect(visit.page.get_by_role("alert")).to_contain_text("The server has no model yet.")
    backend.models_list = [MODEL]
    await visit.ask("Hello?")
    await expect(visit.answer.locator(".text")).to_have_text("Yes.")
