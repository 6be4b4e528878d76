"""Chat completions as a client sees them, with the real openai library."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.backend import Delta, Usage
from python_backend.errors import InvalidRequestError

pytestmark = pytest.mark.anyio

TEXT = "The image shows a man on a yellow taxi. Größe 例 🚕"


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | fields}


def logprob(token: str, value: float, *top: tuple[str, float]) -> dict[str, Any]:
    def one(token: str, value: float) -> dict[str, Any]:
        return {"token": token, "logprob": value, "bytes": list(token.encode())}

    return one(token, value) | {"top_logprobs": [one(*item) for item in top]}


async def test_answer_has_every_key_of_the_reference_server(make_proxy, png_url) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(TEXT, prompt_tokens=307, image_tokens=280)))
    response = await proxy.chat(
        messages=user(text("What’s in this image?"), image(png_url)), max_tokens=300
    )
    body = response.json()
    assert list(body) == [
        *("id", "object", "created", "model", "system_fingerprint"),
        *("choices", "usage", "metadata"),
    ]
    assert body["id"].startswith("chatcmpl-")
    assert len(body["id"]) == len("chatcmpl-") + 32
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL.id
    assert body["system_fingerprint"] == MODEL.fingerprint
    assert body["metadata"] == {"weight_version": "default"}
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": TEXT,
                "refusal": None,
                "reasoning_content": None,
                "tool_calls": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
            "matched_stop": 151645,
        }
    ]
    usage = body["usage"]
    num_tokens = len(TEXT.split(" ")) + 1
    assert usage["prompt_tokens"] == 307
    assert usage["completion_tokens"] == num_tokens
    assert usage["total_tokens"] == 307 + num_tokens
    assert usage["prompt_tokens_details"]["image_tokens"] == 280
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["reasoning_tokens"] == 0


async def test_openai_client_parses_the_answer(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(TEXT)))
    answer = await proxy.openai.chat.completions.create(
        model=MODEL.id, messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer._request_id


async def test_images_and_text_reach_the_backend_in_the_order_of_the_prompt(
    make_proxy, png_url, png
) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("ok")))
    gif_url = "data:image/gif;base64,R0lGODlh"
    await proxy.openai.chat.completions.create(
        model=MODEL.id,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [image(png_url), image(gif_url, detail="low"), text("?")]},
            {"role": "assistant", "content": [text("A taxi.")]},
            {"role": "user", "content": [text("And"), image(png_url, detail="high")]},
        ],
        temperature=0,
    )
    call = proxy.backend.calls[0]
    assert call.model == MODEL.triton_name
    assert call.images == [png, b"GIF89a", png]
    assert call.prompt == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image", "detail": "auto"},
                    {"type": "image", "detail": "low"},
                    {"type": "text", "text": "?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A taxi."}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "And"}, {"type": "image", "detail": "high"}],
            },
        ]
    }
    assert call.sampling == {"temperature": 0}


async def test_every_sampling_parameter_reaches_the_backend(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([*text_deltas("a"), *text_deltas("b", index=1)]))
    given = {
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 7,
        "n": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "priority": -3,
        "return_token_ids": True,
        "prompt_logprobs": 2,
        "presence_penalty": -1.5,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"123": -100, "5": 1.5},
    }
    extra = {"max_completion_tokens": 5, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    response = await proxy.chat(**given, **extra)
    assert response.status_code == 200, response.text
    assert proxy.backend.calls[0].sampling == given | {"max_tokens": 5, "logprobs": 3}


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, {}),
        ({"temperature": None, "stop": None, "tools": None, "n": None}, {}),
        ({"top_k": 0}, {"top_k": None}),
        ({"top_k": -1}, {"top_k": None}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": [], "logit_bias": {}, "stop_token_ids": []}, {}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": False}, {}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"response_format": {"type": "text"}, "store": False, "user": "u"}, {}),
        ({"safety_identifier": "s", "stream_options": None}, {}),
    ],
)
async def test_what_is_not_asked_for_is_not_forwarded(make_proxy, fields, sampling) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await proxy.chat(**fields)
    assert response.status_code == 200, response.text
    assert proxy.backend.calls[0].sampling == sampling


SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "param", "grammar"),
    [
        (
            {"response_format": {"type": "json_object"}},
            "response_format",
            {"json_schema": {"type": "object"}},
        ),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "response_format",
            {"json_schema": SCHEMA},
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True},
                }
            },
            "response_format",
            {"json_schema": SCHEMA},
        ),
        ({"regex": "a+"}, "regex", {"regex": "a+"}),
        ({"ebnf": 'root ::= "a"'}, "ebnf", {"grammar": 'root ::= "a"'}),
        (
            {"structured_outputs": {"json": SCHEMA}},
            "structured_outputs.json",
            {"json_schema": SCHEMA},
        ),
        (
            {"structured_outputs": {"json_object": True}},
            "structured_outputs.json_object",
            {"json_schema": {"type": "object"}},
        ),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex", {"regex": "a"}),
        (
            {"structured_outputs": {"choice": ["a", "b"]}},
            "structured_outputs.choice",
            {"choice": ["a", "b"]},
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            "structured_outputs.grammar",
            {"grammar": 'start: "a"'},
        ),
    ],
)
async def test_structured_output_reaches_the_backend_and_its_errors_come_back(
    make_proxy, fields, param, grammar
) -> None:
    refused = InvalidRequestError("the grammar cannot be enforced: no", param="grammar[1]")
    proxy = make_proxy(FakeBackend([refused]))
    for response in (await proxy.chat(**fields), await proxy.complete(**fields)):
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == (param, "invalid_value")
    chat, completion = proxy.backend.calls
    assert chat.sampling == completion.sampling == {"grammar": grammar}
    # The order of a schema's properties is the order of the answer's.
    assert json.dumps(chat.sampling) == json.dumps({"grammar": grammar})


async def test_stream_carries_the_same_as_the_whole_answer(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(TEXT)))
    messages = [{"role": "user", "content": "hi"}]
    whole = await proxy.openai.chat.completions.create(model=MODEL.id, messages=messages)
    stream = await proxy.openai.chat.completions.create(
        model=MODEL.id, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant"] + [None] * (
        len(chunks) - 2
    )
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert content == whole.choices[0].message.content
    finishes = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert [reason for reason in finishes if reason] == ["stop"]
    assert chunks[-2].choices[0].matched_stop == 151645
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


async def test_stream_is_framed_as_server_sent_events(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a b")))
    response = await proxy.chat(stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all("usage" not in chunk for chunk in chunks)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "a"},
        {"content": " b"},
        {},
    ]


async def test_stream_options_may_turn_the_usage_chunk_off(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await proxy.chat(stream=True, stream_options={"include_usage": False})
    assert '"usage"' not in response.text


async def test_options_of_the_template_and_the_processor_go_with_the_prompt(
    make_proxy, png_url
) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    options = {
        "chat_template_kwargs": {"enable_thinking": False, "date_string": "26 Jul 2024"},
        "mm_processor_kwargs": {"max_pixels": 50_000},
    }
    messages = user(image(png_url))
    await proxy.openai.chat.completions.create(
        model=MODEL.id, messages=messages, extra_body=options
    )
    (call,) = proxy.backend.calls
    assert {name: call.prompt[name] for name in options} == options
    body = {"model": MODEL.id, "messages": messages, **options}
    tokens = (await proxy.http.post("/tokenize", json=body)).json()["tokens"]
    assert tokens[:-1] == list(json.dumps(call.prompt).encode())


@pytest.mark.parametrize(
    ("fields", "forwarded"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {}, "mm_processor_kwargs": {"max_pixels": None}}, {}),
        ({"add_generation_prompt": True}, {"add_generation_prompt": True}),
        (
            {"continue_final_message": False, "add_generation_prompt": False},
            {"continue_final_message": False, "add_generation_prompt": False},
        ),
        # vLLM's clients send both, others only the one that matters.
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
        (
            {"continue_final_message": True},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
async def test_end_of_the_prompt_is_what_the_client_says(make_proxy, fields, forwarded) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    assert (await proxy.chat(**fields)).status_code == 200
    assert {n: v for n, v in proxy.backend.calls[0].prompt.items() if n != "messages"} == forwarded


async def test_every_chunk_may_tell_the_tokens_so_far(make_proxy) -> None:
    first, *others = text_deltas("a b", prompt_tokens=7, image_tokens=3)
    started = Usage(prompt_tokens=7, completion_tokens=1, image_tokens=3)
    proxy = make_proxy(FakeBackend([replace(first, usage=started), *others]))
    stream = await proxy.openai.chat.completions.create(
        model=MODEL.id,
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    usages = [chunk.usage async for chunk in stream]
    assert all(usage is not None for usage in usages)
    assert [usage.completion_tokens for usage in usages] == [0, 1, 2, 3, 3]
    assert {usage.prompt_tokens for usage in usages} == {7}
    assert usages[-1].total_tokens == 10
    assert usages[0].model_extra == usages[-1].model_extra


async def test_token_ids_are_told_whole_and_streamed(make_proxy) -> None:
    first, *others = text_deltas("a b")
    script = [replace(first, prompt_token_ids=[5, 6]), *others]
    proxy = make_proxy(FakeBackend([*script[:1], Delta(text="", token_ids=(9,)), *script[1:]]))
    whole = (await proxy.chat(return_token_ids=True)).json()
    assert whole["prompt_token_ids"] == [5, 6]
    assert whole["choices"][0]["token_ids"] == [0, 9, 1, 151645]
    stream = await proxy.openai.chat.completions.create(
        model=MODEL.id,
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"return_token_ids": True},
    )
    chunks = [chunk async for chunk in stream]
    assert [getattr(chunk, "prompt_token_ids", None) for chunk in chunks[:2]] == [[5, 6], None]
    ids = [getattr(chunk.choices[0], "token_ids", []) for chunk in chunks]
    assert [token for part in ids for token in part] == [0, 9, 1, 151645]
    assert "token_ids" not in (await proxy.chat()).text


PROMPT_LOGPROBS = [
    {"5": {"logprob": None, "rank": None, "decoded_token": "Hi"}},
    {
        "6": {"logprob": -1.5, "rank": 2, "decoded_token": " you"},
        "8": {"logprob": -0.5, "rank": 1, "decoded_token": " me"},
    },
]


async def test_prompt_logprobs_have_vllms_shape_and_come_in_parts(make_proxy) -> None:
    script = [
        Delta(text="", prompt_logprobs=PROMPT_LOGPROBS[:1]),
        Delta(text="", prompt_logprobs=PROMPT_LOGPROBS[1:]),
        *text_deltas("a"),
        *text_deltas("b", index=1),
    ]
    proxy = make_proxy(FakeBackend(script))
    answer = await proxy.openai.chat.completions.create(
        model=MODEL.id,
        messages=[{"role": "user", "content": "hi"}],
        n=2,
        extra_body={"prompt_logprobs": 1},
    )
    assert answer.prompt_logprobs == [None, PROMPT_LOGPROBS[1]]
    assert "prompt_token_ids" not in answer.model_extra
    assert [choice.message.content for choice in answer.choices] == ["a", "b"]


async def test_several_choices_are_interleaved_by_index(make_proxy) -> None:
    first, second = text_deltas("a b"), text_deltas("c d", index=1, finish_reason="length")
    script = [delta for pair in zip(first, second, strict=True) for delta in pair]
    proxy = make_proxy(FakeBackend(script))
    whole = (await proxy.chat(n=2)).json()
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["a b", "c d"]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "length"]
    assert whole["usage"]["prompt_tokens"] == 7
    assert whole["usage"]["completion_tokens"] == 6
    stream = await proxy.openai.chat.completions.create(
        model=MODEL.id, messages=[{"role": "user", "content": "hi"}], n=2, stream=True
    )
    texts, roles, finishes = ["", ""], [0, 0], ["", ""]
    async for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role == "assistant"
        finishes[choice.index] += choice.finish_reason or ""
    assert (texts, roles, finishes) == (["a b", "c d"], [1, 1], ["stop", "length"])


async def test_logprobs_are_the_same_streamed_and_whole(make_proxy) -> None:
    items = [logprob("A", -0.1, ("A", -0.1), ("B", -2.0)), logprob("!", -0.5)]
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    script = [
        Delta(text="A", token_ids=(1,), logprobs=items[:1]),
        # Text that is held back, because it may become a stop string, still has log probabilities.
        Delta(text="", token_ids=(2,), logprobs=items[1:]),
        Delta(text="!", finish_reason="length", usage=usage),
    ]
    proxy = make_proxy(FakeBackend(script))
    whole = (await proxy.chat(logprobs=True, top_logprobs=2)).json()
    assert whole["choices"][0]["logprobs"] == {"content": items, "refusal": None}
    assert whole["choices"][0]["matched_stop"] is None
    stream = await proxy.openai.chat.completions.create(
        model=MODEL.id,
        messages=[{"role": "user", "content": "hi"}],
        logprobs=True,
        top_logprobs=2,
        stream=True,
    )
    streamed = []
    async for chunk in stream:
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.model_dump()["content"]
    assert streamed == items


async def test_matched_stop_may_be_a_string(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a", matched_stop="###")))
    assert (await proxy.chat()).json()["choices"][0]["matched_stop"] == "###"
    assert '"matched_stop":"###"' in (await proxy.chat(stream=True)).text


async def test_lone_surrogates_do_not_break_the_answer(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a\ud800b")))
    assert (await proxy.chat()).json()["choices"][0]["message"]["content"] == "a?b"
    assert "a?b" in (await proxy.chat(stream=True)).text


async def test_model_may_be_asked_for_by_its_triton_name(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await proxy.chat(model=MODEL.triton_name)
    assert response.json()["model"] == MODEL.triton_name


async def test_own_answer_is_accepted_as_history(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    answer = await proxy.openai.chat.completions.create(
        model=MODEL.id, messages=[{"role": "user", "content": "hi"}]
    )
    history = [answer.choices[0].message.model_dump(), {"role": "user", "content": "more"}]
    assert (await proxy.chat(messages=history)).status_code == 200
    assert proxy.backend.calls[1].prompt["messages"][0] == {"role": "assistant", "content": "a"}
