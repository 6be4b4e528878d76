"""Anthropic's Messages API as its own client sees it, and counting tokens."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import anthropic
import httpx2
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.backend import Delta
from openai_frontend.settings import Settings
from python_backend.errors import (
    EngineError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
)
from python_backend.tool_calls import FORMATS

pytestmark = pytest.mark.anyio

TEXT = "A red circle. Größe 例 🚕"
HELLO = [{"role": "user", "content": "hi"}]
CALLING = dataclasses.replace(MODEL, tool_format=FORMATS["hermes"], reasons=True)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "In a city.", "input_schema": CITY}
TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "warm"}


def client_of(proxy: Any) -> anthropic.AsyncAnthropic:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(proxy.app))
    return anthropic.AsyncAnthropic(
        base_url="http://proxy", api_key="None", http_client=http, max_retries=0
    )


def image_block(data: bytes) -> dict[str, Any]:
    source = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(data).decode(),
    }
    return {"type": "image", "source": source}


async def test_a_conversation_with_images_reaches_the_backend(make_proxy, png) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(TEXT, image_tokens=3)))
    content = [{"type": "text", "text": "What?"}, image_block(png), image_block(png)]
    message = await client_of(proxy).messages.create(
        model=MODEL.id,
        max_tokens=20,
        system=[
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be kind."},
        ],
        messages=[
            *HELLO,
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": content},
        ],
        stop_sequences=["END"],
        extra_body={"temperature": 0.5, "top_k": 5, "top_p": 0.9},
        metadata={"user_id": "someone"},
    )
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL.id)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": TEXT}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 7)
    (call,) = proxy.backend.calls
    assert call.images == [png, png]
    image = {"type": "image", "detail": "auto"}
    assert call.prompt["messages"] == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": [{"type": "text", "text": "What?"}, image, image]},
    ]
    sampling = {"max_tokens": 20, "stop": ["END"], "temperature": 0.5, "top_k": 5, "top_p": 0.9}
    assert call.sampling == sampling


async def test_a_stream_adds_up_to_the_whole_answer(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(TEXT)))
    client, asked = client_of(proxy), {"model": MODEL.id, "max_tokens": 20, "messages": HELLO}
    whole = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert text == TEXT
    assert message.content[0].text == whole.content[0].text
    for name in ("role", "type", "model", "stop_reason", "stop_sequence", "usage"):
        assert getattr(message, name) == getattr(whole, name)


async def test_a_stream_has_the_events_of_the_api_in_order(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a b")))
    body = {"model": MODEL.id, "max_tokens": 20, "messages": HELLO, "stream": True}
    response = await proxy.http.post("/v1/messages", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [item.split("\n") for item in response.text.rstrip("\n").split("\n\n")]
    names = [lines[0].removeprefix("event: ") for lines in events]
    assert names == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [json.loads(lines[1].removeprefix("data: "))["type"] for lines in events] == names


@pytest.mark.parametrize(
    ("last", "stop"),
    [
        ({"finish_reason": "length", "matched_stop": None}, ("max_tokens", None)),
        ({"matched_stop": "END"}, ("stop_sequence", "END")),
        ({"matched_stop": 151645}, ("end_turn", None)),
    ],
)
async def test_why_an_answer_ended(make_proxy, last, stop) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a", **last)))
    message = await client_of(proxy).messages.create(model=MODEL.id, max_tokens=2, messages=HELLO)
    assert (message.stop_reason, message.stop_sequence) == stop


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Sure"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0]"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [TOOL_USE]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{**TOOL_RESULT, "content": [TOOL_USE]}]}]},
            "messages[0].content[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [TOOL_RESULT]}]}, "messages[0].tool_call_id"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": ["a"] * 17}, "stop"),
        ({"best": 1}, "best"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named(make_proxy, fields, words) -> None:
    proxy = make_proxy()
    body = {"model": MODEL.id, "max_tokens": 5, "messages": HELLO} | fields
    response = await proxy.http.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert list(response.json()) == ["type", "error"]
    assert response.json()["type"] == "error"
    assert list(response.json()["error"]) == ["type", "message"]
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert words in response.json()["error"]["message"]
    assert int(response.headers["content-length"]) == len(response.content)
    assert proxy.backend.calls == []


@pytest.mark.parametrize(
    ("error", "raised", "type_"),
    [
        (OverloadedError("full"), anthropic.RateLimitError, "rate_limit_error"),
        (EngineError("secret"), anthropic.InternalServerError, "api_error"),
        (PromptTooLongError("long"), anthropic.BadRequestError, "invalid_request_error"),
    ],
)
async def test_errors_of_the_backend(make_proxy, error, raised, type_) -> None:
    client = client_of(make_proxy(FakeBackend([error])))
    for stream in (False, True):
        with pytest.raises(raised) as caught:
            await client.messages.create(
                model=MODEL.id, max_tokens=5, messages=HELLO, stream=stream
            )
        assert caught.value.body["error"]["type"] == type_
        assert "secret" not in str(caught.value)


async def test_errors_from_outside_the_routes_have_the_same_shape(make_proxy) -> None:
    proxy = make_proxy(settings=Settings(max_body_bytes=10))
    with pytest.raises(anthropic.RequestTooLargeError) as caught:
        await client_of(proxy).messages.create(model=MODEL.id, max_tokens=5, messages=HELLO)
    assert caught.value.body["error"]["type"] == "request_too_large"
    with pytest.raises(anthropic.NotFoundError):
        await client_of(make_proxy()).messages.create(model="x", max_tokens=5, messages=HELLO)
    assert (await make_proxy().http.get("/v1/messages")).json()["type"] == "error"
    # And nobody else's have.
    assert list((await proxy.chat()).json()) == ["error"]


async def test_an_error_after_the_first_token_ends_the_stream(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([Delta(text="a"), EngineError("secret")]))
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with client_of(proxy).messages.stream(
            model=MODEL.id, max_tokens=5, messages=HELLO
        ) as stream:
            await stream.get_final_message()
    assert "secret" not in str(caught.value)


def calling(*parts: tuple[str, str]) -> FakeBackend:
    """A model that thinks, talks and calls; parts have reasoning and text."""
    script = [Delta(text=text, reasoning=reasoning, token_ids=(1,)) for reasoning, text in parts]
    last = text_deltas("")[-1]
    return FakeBackend([*script, last], [CALLING])


async def test_thoughts_text_and_calls_are_blocks(make_proxy) -> None:
    call = FORMATS["hermes"].call("get_weather", '{"city": "Rome"}')
    parts = [
        ("Hm", ""),
        ("m.", ""),
        ("", "Let me"),
        ("", " see.\n"),
        ("", call[:40]),
        ("", call[40:]),
    ]
    proxy = make_proxy(calling(*parts, ("", "\n"), ("", call)))
    asked = {"model": MODEL.id, "max_tokens": 20, "messages": HELLO, "tools": [TOOL]}
    whole = await client_of(proxy).messages.create(**asked)
    async with client_of(proxy).messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        thinking, text, *calls = message.content
        assert (thinking.type, thinking.thinking) == ("thinking", "Hmm.")
        assert (text.type, text.text) == ("text", "Let me see.")
        assert [(c.type, c.name, c.input) for c in calls] == [
            ("tool_use", "get_weather", {"city": "Rome"})
        ] * 2
        assert calls[0].id != calls[1].id
        assert message.stop_reason == "tool_use"
    assert proxy.backend.calls[0].prompt["tools"] == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "In a city.", "parameters": CITY},
        }
    ]


async def test_calls_and_results_of_a_conversation_reach_the_backend(make_proxy, png) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("ok"), [CALLING]))
    second = {**TOOL_USE, "id": "toolu_2"}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    picture = [{"type": "text", "text": "seen"}, image_block(png)]
    results = [
        {**TOOL_RESULT, "content": picture, "is_error": True},
        {"type": "tool_result", "tool_use_id": "toolu_2"},
    ]
    await client_of(proxy).messages.create(
        model=MODEL.id,
        max_tokens=20,
        tools=[TOOL],
        messages=[
            *HELLO,
            {"role": "assistant", "content": [thought, TOOL_USE, second]},
            {"role": "user", "content": [*results, {"type": "text", "text": "So?"}]},
        ],
    )
    (call,) = proxy.backend.calls
    assert call.images == [png]
    function = {"name": "get_weather", "arguments": {"city": "Rome"}}
    assert call.prompt["messages"] == [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [{"type": "function", "function": function}] * 2,
        },
        {
            "role": "tool",
            "content": [
                {"type": "text", "text": "Error: "},
                {"type": "text", "text": "seen"},
                {"type": "image", "detail": "auto"},
            ],
        },
        {"role": "tool", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "So?"}]},
    ]


@pytest.mark.parametrize(
    ("choice", "is_required", "is_parallel"),
    [
        ({"type": "auto"}, False, True),
        ({"type": "any"}, True, True),
        ({"type": "any", "disable_parallel_tool_use": True}, True, False),
        ({"type": "tool", "name": "get_weather"}, True, False),
    ],
)
async def test_a_choice_of_tools_is_enforced(make_proxy, choice, is_required, is_parallel) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("ok"), [CALLING]))
    await client_of(proxy).messages.create(
        model=MODEL.id, max_tokens=20, messages=HELLO, tools=[TOOL], tool_choice=choice
    )
    calls = proxy.backend.calls[0].sampling["grammar"]["tool_calls"]
    assert (calls["is_required"], calls["is_parallel"]) == (is_required, is_parallel)


async def test_a_call_that_is_cut_off_has_no_input(make_proxy) -> None:
    text = FORMATS["hermes"].call("get_weather", '{"city": "Rome"}')[:-20]
    last = {"finish_reason": "length", "matched_stop": None}
    proxy = make_proxy(FakeBackend(text_deltas(text, **last), [CALLING]))
    message = await client_of(proxy).messages.create(
        model=MODEL.id, max_tokens=20, messages=HELLO, tools=[TOOL]
    )
    assert message.stop_reason == "max_tokens"
    assert [(block.type, block.input) for block in message.content] == [("tool_use", {})]


@pytest.mark.parametrize(
    ("model", "variables"), [(MODEL, None), (CALLING, {"enable_thinking": False})]
)
async def test_only_a_model_that_reasons_is_told_not_to(make_proxy, model, variables) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("Yes."), [model]))
    asked = {"model": model.id, "messages": HELLO, "thinking": {"type": "disabled"}}
    await client_of(proxy).messages.create(max_tokens=20, **asked)
    (call,) = proxy.backend.calls
    assert call.prompt.get("chat_template_kwargs") == variables
    count = await client_of(proxy).messages.count_tokens(**asked)
    assert count.input_tokens == len(json.dumps(call.prompt))


async def test_a_model_that_always_reasons_refuses_not_to(make_proxy) -> None:
    error = InvalidRequestError(
        "the model's chat template does not read enable_thinking: leave it out",
        param="chat_template_kwargs.enable_thinking",
    )
    proxy = make_proxy(FakeBackend([error], [CALLING]))
    asked = {"model": CALLING.id, "messages": HELLO, "thinking": {"type": "disabled"}}
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client_of(proxy).messages.create(max_tokens=20, stream=stream, **asked)
        assert caught.value.body["error"]["message"] == (
            "thinking: the model's chat template always lets it think: leave it out"
        )


async def test_tokens_are_counted_before_a_message_is_sent(make_proxy, png) -> None:
    proxy = make_proxy()
    counts = [
        await client_of(proxy).messages.count_tokens(model=MODEL.id, messages=messages)
        for messages in (HELLO, [{"role": "user", "content": [image_block(png)]}])
    ]
    text = json.dumps({"messages": HELLO})
    image = json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "image", "detail": "auto"}]}]}
    )
    assert [count.input_tokens for count in counts] == [len(text), len(image) + 1]


async def test_tokenize_answers_as_vllm_does(make_proxy, png_url) -> None:
    proxy = make_proxy()
    body = {"model": MODEL.id, "prompt": "hi"}
    tokens = list(json.dumps({"prompt": "hi"}).encode())
    assert (await proxy.http.post("/tokenize", json=body)).json() == {
        "count": len(tokens),
        "max_model_len": MODEL.max_model_len,
        "tokens": tokens,
        "token_strs": None,
    }
    part = {"type": "image_url", "image_url": {"url": png_url}}
    body = {"model": MODEL.id, "messages": [{"role": "user", "content": [part]}]}
    assert (await proxy.http.post("/tokenize", json=body)).json()["tokens"][-1] == 1000


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "a", "messages": HELLO}, 400, "prompt"),
        ({"prompt": ["a"]}, 400, "prompt"),
        ({"prompt": "a", "add_generation_prompt": False}, 400, "add_generation_prompt"),
        ({"prompt": "a", "mm_processor_kwargs": {"max_pixels": 9}}, 400, "mm_processor_kwargs"),
        ({"prompt": "a", "model": "x"}, 404, None),
        ({"messages": []}, 400, "messages"),
    ],
)
async def test_a_wrong_tokenize_request_is_refused(make_proxy, fields, status, param) -> None:
    response = await make_proxy().http.post("/tokenize", json={"model": MODEL.id} | fields)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


async def test_detokenize_is_the_way_back(make_proxy) -> None:
    proxy = make_proxy()
    body = {"model": MODEL.triton_name, "tokens": list(b"hi")}
    assert (await proxy.http.post("/detokenize", json=body)).json() == {"prompt": "hi"}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "tokens"),
        ({"tokens": []}, 400, "tokens"),
        ({"tokens": [1, -1]}, 400, "tokens[1]"),
        ({"tokens": [1, "a"]}, 400, "tokens[1]"),
        ({"tokens": [1, 256]}, 400, "tokens"),
        ({"tokens": [1], "text": "a"}, 400, "text"),
        ({"tokens": [1], "model": "x"}, 404, None),
    ],
)
async def test_a_wrong_detokenize_request_is_refused(make_proxy, fields, status, param) -> None:
    response = await make_proxy().http.post("/detokenize", json={"model": MODEL.id} | fields)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
