"""The default model through the real Triton and the proxy, with OpenAI's Node.js client."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.triton.conftest import CHECKPOINT, MODEL
from tests.triton.node_client import run_node
from tests.triton.test_openai_client import CASES, expected_text
from triton_vlm.ports import free_ports
from triton_vlm.proxy import OpenAIProxy
from triton_vlm.stack import ServingStack

CASE = CASES[1]
PICTURE = (CHECKPOINT / CASE["images"][0]).read_bytes()
KEY = "sk-of-the-test-0123456789"


@pytest.fixture
def run(stack: ServingStack) -> Any:
    return partial(run_node, base_url=stack.base_url, model=MODEL, picture=PICTURE)


@pytest.fixture
def limited(stack: ServingStack, tmp_path: Path) -> Iterator[str]:
    """Base URL of a second proxy on the same Triton, whose one key may make one request a minute."""
    keys = tmp_path / "api-keys"
    keys.write_text(f"{KEY} requests-per-minute=1\n", encoding="utf-8")
    (port,) = free_ports(1)
    flags = [f"--api-key-file={keys}"]
    proxy = OpenAIProxy(stack.triton.grpc_address, host="127.0.0.1", port=port, arguments=flags)
    proxy.start()
    try:
        proxy.wait_ready()
        yield f"{proxy.url}/v1"
    finally:
        proxy.stop()


def test_models(run: Any) -> None:
    assert run("models") == {"ids": [MODEL], "one": MODEL}


def test_whole_and_streamed_answers_about_a_picture_equal_hugging_face(run: Any) -> None:
    printed = run("chat")
    assert printed["whole"]["message"]["content"] == expected_text(CASE)
    assert printed["usage"]["prompt_tokens"] == len(CASE["prompt_token_ids"])
    *chunks, last = printed["chunks"]
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert len(deltas) > 2
    assert "".join(deltas) == expected_text(CASE)
    assert chunks[-1]["choices"][0]["finish_reason"] == printed["whole"]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] == printed["usage"]["total_tokens"]
    helped = run("streamHelper")
    assert "".join(helped["seen"]) == helped["choice"]["message"]["content"] == expected_text(CASE)


def test_structured_output_is_parsed(run: Any) -> None:
    parsed = run("structuredOutput")
    assert parsed.keys() == {"colour", "count"}
    assert parsed["colour"] in ("red", "green")
    assert parsed["count"] in range(10)


def test_responses_are_created_streamed_retrieved_and_deleted(run: Any) -> None:
    printed = run("responses")
    first, second = printed["first"], printed["second"]
    assert (first["status"], first["text"]) == ("completed", expected_text(CASE))
    assert first["usage"]["input_tokens"] == len(CASE["prompt_token_ids"])
    assert second["previous"] is True
    assert second["text"] == printed["again"] != ""
    assert (second["events"][0], second["events"][-1]) == ("response.created", "response.completed")
    assert "response.output_text.delta" in second["events"]
    assert printed["items"] == ["user"]
    assert printed["gone"]["class"] == "NotFoundError"
    assert printed["gone"]["code"] == "response_not_found"


def test_bad_requests_have_their_class_code_and_param(run: Any) -> None:
    errors = run("badRequests")
    url = "messages[0].content[0].image_url.url"
    assert [(e["class"], e["status"], e["code"], e["param"]) for e in errors] == [
        ("BadRequestError", 400, "invalid_value", "temperature"),
        ("BadRequestError", 400, "invalid_base64_image", url),
        ("BadRequestError", 400, "image_parse_error", "messages[0].content[0]"),
        ("BadRequestError", 400, "invalid_value", "messages"),
        ("NotFoundError", 404, "model_not_found", None),
        ("NotFoundError", 404, "model_not_found", None),
    ]
    assert all(error["type"] == "invalid_request_error" and error["hasId"] for error in errors)


def test_keys_and_their_limits(limited: str) -> None:
    printed = run_node("keys", limited, MODEL, PICTURE, KEY)
    refused, late = printed["refused"], printed["limited"]
    assert (refused["class"], refused["status"]) == ("AuthenticationError", 401)
    assert refused["code"] == "invalid_api_key"
    assert printed["answered"] == 1
    assert (late["class"], late["status"]) == ("RateLimitError", 429)
    assert (late["code"], late["type"]) == ("rate_limit_exceeded", "requests")
