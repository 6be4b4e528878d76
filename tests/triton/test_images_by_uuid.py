"""Images by uuid, through the real Triton and a proxy with API keys: all caches go by the content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.triton.conftest import MODEL, image_part
from triton_vlm.ports import LOOPBACK, free_ports
from triton_vlm.proxy import OpenAIProxy
from triton_vlm.stack import ServingStack

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"
NAMED = {"type": "image_url", "image_url": None, "uuid": "picture"}


@pytest.fixture(scope="module")
def ask(
    stack: ServingStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, dict], ChatCompletion]]:
    """From an API key and an image part to the answer of a proxy beside that of `stack`."""
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "api-keys").write_text(f"{ALICE}\n{BOB}\n")
    (port,) = free_ports(1)
    proxy = OpenAIProxy(
        stack.proxy.settings.triton,
        host=LOOPBACK,
        port=port,
        log_path=folder / "proxy.log",
        arguments=["--api-key-file", str(folder / "api-keys")],
    )

    def ask(key: str, part: dict) -> ChatCompletion:
        content = [{"type": "text", "text": "What is in the picture?"}, part]
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=key, max_retries=0) as client:
            return client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=16,
            )

    proxy.start()
    try:
        proxy.wait_ready()
        yield ask
    finally:
        proxy.stop()


def text(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content


def test_a_uuid_never_leads_to_the_cache_of_another_image(ask, example_files: list[Path]) -> None:
    """CVE-2026-105754 (GHSA-ph72-cqr5-qpp7): it names what the same key has sent last, and only that."""
    first, other = (image_part(file.read_bytes()) for file in example_files[:2])
    about_first, about_other = (text(ask(BOB, part)) for part in (first, other))
    assert about_first != about_other

    assert text(ask(ALICE, first | {"uuid": "picture"})) == about_first
    assert text(ask(BOB, other | {"uuid": "picture"})) == about_other
    named = ask(ALICE, NAMED)
    assert text(named) == about_first
    assert named.usage.prompt_tokens_details.cached_tokens == named.usage.prompt_tokens - 1

    assert text(ask(ALICE, other | {"uuid": "picture"})) == about_other
    assert text(ask(ALICE, NAMED)) == about_other
