"""Tool calls and reasoning as a client sees them, with the real openai library."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import openai
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.backend import Delta, Usage
from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import FORMATS

pytestmark = pytest.mark.anyio

HERMES = FORMATS["hermes"]
CALLING = dataclasses.replace(MODEL, tool_format=HERMES)
REASONING = dataclasses.replace(MODEL, reasons=True)
HELLO = [{"role": "user", "content": "hi"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "In a city.", "parameters": CITY},
}
TIME = {"type": "function", "function": {"name": "get_time"}}
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
ROME = ("get_weather", '{"city": "Rome"}')
PARIS = ("get_weather", '{"city": "Paris"}')
CALLS = f"Let me see.\n{HERMES.call(*ROME)}\n{HERMES.call(*PARIS)}"


def backend_of(text: str, model: Any = CALLING, **last: Any) -> FakeBackend:
    return FakeBackend(text_deltas(text, **last), [model])


async def create(proxy: Any, **fields: Any) -> Any:
    fields = {"messages": HELLO, "tools": [WEATHER, TIME]} | fields
    return await proxy.openai.chat.completions.create(model=MODEL.id, **fields)


async def grammar_of(make_proxy: Any, **fields: Any) -> dict[str, Any]:
    """What the decoder is told about the calls of an answer."""
    proxy = make_proxy(backend_of("hi"))
    await create(proxy, **fields)
    return proxy.backend.calls[0].sampling["grammar"]["tool_calls"]


async def test_calls_are_taken_out_of_the_text(make_proxy) -> None:
    answer = await create(make_proxy(backend_of(CALLS)))
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert [(call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls] \
        == [("function", *ROME), ("function", *PARIS)]  # fmt: skip
    assert len({call.id for call in choice.message.tool_calls}) == 2


async def test_content_is_null_where_there_are_calls_only(make_proxy) -> None:
    proxy = make_proxy(backend_of(HERMES.call(*ROME)))
    message = (await create(proxy)).choices[0].message
    assert message.content is None
    chunks = [chunk async for chunk in await create(proxy, stream=True)]
    assert [chunk.choices[0].delta.content for chunk in chunks] == [None] * len(chunks)


async def test_text_alone_is_an_ordinary_answer(make_proxy) -> None:
    answer = await create(make_proxy(backend_of("It is <b>warm</b>.")))
    assert answer.choices[0].message.content == "It is <b>warm</b>."
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


async def test_a_stream_adds_up_to_the_whole_answer(make_proxy) -> None:
    proxy = make_proxy(backend_of(CALLS))
    whole = (await create(proxy)).choices[0]
    async with proxy.openai.chat.completions.stream(
        model=MODEL.id, messages=HELLO, tools=[WEATHER, TIME]
    ) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    assert streamed.finish_reason == whole.finish_reason
    assert streamed.message.content == whole.message.content
    assert [call.function.model_dump(exclude={"parsed_arguments"}) for call in streamed.message.tool_calls] \
        == [call.function.model_dump() for call in whole.message.tool_calls]  # fmt: skip


async def test_a_stream_has_the_chunks_of_the_api(make_proxy) -> None:
    parts = ["Well", "<tool_call>", '\n{"name": "get_we', 'ather", "arguments": {"ci']
    parts += ['ty": "Rome"}', "}\n</tool_call>"]
    usage = Usage(prompt_tokens=3, completion_tokens=7)
    deltas = [Delta(text=part, token_ids=(i,)) for i, part in enumerate(parts)]
    last = Delta(text="", token_ids=(9,), finish_reason="stop", matched_stop=9, usage=usage)
    proxy = make_proxy(FakeBackend([*deltas, last], [CALLING]))
    chunks = [chunk async for chunk in await create(proxy, stream=True)]
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    call_id = deltas[2]["tool_calls"][0]["id"]
    assert deltas == [
        {"role": "assistant", "content": None, "refusal": None},
        {"content": "Well"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": call_id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "Rome"}'}}]},
        {},
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["tool_calls"]


async def test_log_probabilities_of_calls_are_all_there(make_proxy) -> None:
    def entry(text: str) -> dict[str, Any]:
        return {"token": text, "logprob": -1.0, "bytes": list(text.encode()), "top_logprobs": []}

    text = HERMES.call(*ROME)
    usage = Usage(prompt_tokens=3, completion_tokens=len(text))
    deltas = [Delta(text=char, token_ids=(1,), logprobs=[entry(char)]) for char in text]
    last = Delta(text="", finish_reason="stop", usage=usage)
    proxy = make_proxy(FakeBackend([*deltas, last], [CALLING]))
    whole = (await create(proxy, logprobs=True)).choices[0].logprobs.content
    chunks = [chunk async for chunk in await create(proxy, logprobs=True, stream=True)]
    streamed = [
        item
        for chunk in chunks
        if chunk.choices[0].logprobs
        for item in chunk.choices[0].logprobs.content
    ]
    assert "".join(item.token for item in whole) == text
    assert streamed == whole


async def test_choices_have_calls_of_their_own(make_proxy) -> None:
    first, second = (
        text_deltas(HERMES.call(*call), index=i) for i, call in enumerate((ROME, PARIS))
    )
    script = [delta for pair in zip(first, second, strict=True) for delta in pair]
    answer = await create(make_proxy(FakeBackend(script, [CALLING])), n=2)
    assert [choice.message.tool_calls[0].function.arguments for choice in answer.choices] == [
        ROME[1],
        PARIS[1],
    ]


async def test_the_decoder_is_told_which_calls_are_allowed(make_proxy) -> None:
    weather = {"name": "get_weather", "parameters": CITY}
    time = {"name": "get_time", "parameters": NO_PARAMETERS}
    free = {
        "format": "hermes",
        "functions": [weather, time],
        "is_required": False,
        "is_parallel": True,
    }
    assert await grammar_of(make_proxy) == free
    assert await grammar_of(make_proxy, tool_choice="auto", parallel_tool_calls=True) == free
    assert await grammar_of(make_proxy, parallel_tool_calls=False) == free | {"is_parallel": False}
    assert await grammar_of(make_proxy, tool_choice="required") == free | {"is_required": True}
    named = {"type": "function", "function": {"name": "get_time"}}
    assert await grammar_of(make_proxy, tool_choice=named) == {
        "format": "hermes",
        "functions": [time],
        "is_required": True,
        "is_parallel": False,
    }


async def test_an_answer_beside_calls_may_have_a_schema(make_proxy) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}}
    grammar = await grammar_of(make_proxy, response_format=form)
    assert grammar["content"] == CITY
    assert not grammar["is_required"]


async def test_the_model_is_told_of_the_tools(make_proxy) -> None:
    proxy = make_proxy(backend_of("hi"))
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    await create(proxy, tools=[strict, TIME])
    assert proxy.backend.calls[0].prompt == {"messages": HELLO, "tools": [WEATHER, TIME]}


async def test_tool_choice_none_leaves_the_tools_out(make_proxy) -> None:
    proxy = make_proxy(backend_of(HERMES.call(*ROME)))
    answer = await create(proxy, tool_choice="none")
    assert proxy.backend.calls[0].prompt == {"messages": HELLO}
    assert proxy.backend.calls[0].sampling == {}
    assert answer.choices[0].message.content == HERMES.call(*ROME)
    assert answer.choices[0].finish_reason == "stop"


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def result(call_id: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content} | fields


async def test_results_and_their_pictures_come_in_the_order_of_the_calls(
    make_proxy, png_url, png
) -> None:
    gif_url = "data:image/gif;base64,R0lGODlh"
    assistant = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("a", "draw", '{"what": "a"}'), call("b", "draw", "")],
    }
    parts = [
        {"type": "text", "text": "Here"},
        {"type": "image_url", "image_url": {"url": png_url}},
    ]
    second = [{"type": "image_url", "image_url": {"url": gif_url, "detail": "low"}}]
    proxy = make_proxy(backend_of("Nice."))
    await create(
        proxy,
        messages=[*HELLO, assistant, result("b", second), result("a", parts, name="draw")],
    )
    (seen,) = proxy.backend.calls
    assert seen.images == [png, b"GIF89a"]
    assert seen.prompt["messages"] == [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "draw", "arguments": {"what": "a"}}},
                {"type": "function", "function": {"name": "draw", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": [parts[0], {"type": "image", "detail": "auto"}]},
        {"role": "tool", "content": [{"type": "image", "detail": "low"}]},
    ]


async def test_own_calls_are_accepted_as_history(make_proxy) -> None:
    proxy = make_proxy(backend_of(CALLS))
    message = (await create(proxy)).choices[0].message
    ids = [call.id for call in message.tool_calls]
    await create(
        proxy,
        messages=[*HELLO, message, *(result(call_id, "warm") for call_id in ids)],
    )
    turn = proxy.backend.calls[1].prompt["messages"][1]
    assert turn["content"] == "Let me see."
    assert [call["function"]["arguments"]["city"] for call in turn["tool_calls"]] == [
        "Rome",
        "Paris",
    ]


ONE_CALL = {"role": "assistant", "content": "", "tool_calls": [call("a", "f", "{}")]}
PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [TIME] * 129}, "tools"),
        ({"tools": [TIME, TIME]}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"a": 1}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
        ({"tools": None, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"extra_body": {"regex": "a"}}, "regex"),
        ({"messages": [result("a", "b")]}, "messages[0].tool_call_id"),
        ({"messages": [*HELLO, result("a", "b")]}, "messages[1].tool_call_id"),
        ({"messages": [ONE_CALL, {"role": "tool", "content": "b"}]}, "messages[1].tool_call_id"),
        ({"messages": [ONE_CALL, result("a", "b"), result("a", "b")]}, "messages[2].tool_call_id"),
        ({"messages": [ONE_CALL, *HELLO]}, "messages[0].tool_calls"),
        ({"messages": [ONE_CALL, result("a", "b", name="g")]}, "messages[1].name"),
        ({"messages": [ONE_CALL, {**result("a", "b"), "content": None}]}, "messages[1].content"),
        ({"messages": [{**HELLO[0], "tool_calls": [call("a", "f", "{}")]}]}, "messages[0].tool_calls"),
        ({"messages": [{**HELLO[0], "name": "Ann"}]}, "messages[0].name"),
        (
            {"messages": [{**ONE_CALL, "tool_calls": [call("a", "f", "[]")]}, result("a", "b")]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{**ONE_CALL, "tool_calls": [call("a", "f", '{"x": 1e400}')]}, result("a", "b")]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{**ONE_CALL, "tool_calls": [call("a", "f", "{")]}, result("a", "b")]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{**ONE_CALL, "tool_calls": [call("a", "f", "{}")] * 2}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": PICTURE}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}, "messages"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(make_proxy, fields, param) -> None:
    proxy = make_proxy(backend_of("hi"))
    with pytest.raises(openai.BadRequestError) as caught:
        await create(proxy, **fields)
    assert caught.value.param == param
    assert proxy.backend.calls == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "tools"),
        ({"tool_choice": "required"}, "tools"),
        ({"tools": openai.NOT_GIVEN, "messages": [ONE_CALL, result("a", "b")]}, "messages"),
    ],
)
async def test_a_model_without_tools_refuses_them(make_proxy, fields, param) -> None:
    proxy = make_proxy(backend_of("hi", MODEL))
    with pytest.raises(openai.BadRequestError, match="calls no tools") as caught:
        await create(proxy, **fields)
    assert caught.value.param == param


async def test_a_schema_that_cannot_be_enforced_is_an_error_of_the_tools(make_proxy) -> None:
    error = InvalidRequestError(
        "the schema of the function 'a' cannot be enforced: x", param="grammar"
    )
    with pytest.raises(openai.BadRequestError, match="cannot be enforced") as caught:
        await create(make_proxy(FakeBackend([error], [CALLING])))
    assert caught.value.param == "tools"


def thinking(*deltas: tuple[str, str]) -> FakeBackend:
    """A model that reasons; deltas have reasoning and text."""
    usage = Usage(prompt_tokens=3, completion_tokens=9, reasoning_tokens=4)
    script = [Delta(text=text, reasoning=reasoning, token_ids=(1,)) for reasoning, text in deltas]
    script.append(Delta(text="", finish_reason="stop", usage=usage))
    return FakeBackend(script, [dataclasses.replace(REASONING, tool_format=HERMES)])


async def test_reasoning_is_beside_the_content(make_proxy) -> None:
    proxy = make_proxy(thinking(("Let me", ""), (" see.", "It"), ("", " is.")))
    answer = await create(proxy, tools=openai.NOT_GIVEN)
    assert answer.choices[0].message.content == "It is."
    assert answer.choices[0].message.reasoning_content == "Let me see."
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4
    chunks = [chunk async for chunk in await create(proxy, tools=openai.NOT_GIVEN, stream=True)]
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "Let me"},
        {"reasoning_content": " see."},
        {"content": "It"},
        {"content": " is."},
        {},
    ]


async def test_reasoning_may_lead_to_calls_and_both_come_back_as_history(make_proxy) -> None:
    proxy = make_proxy(thinking(("Hm.", ""), ("", HERMES.call(*ROME))))
    message = (await create(proxy)).choices[0].message
    assert message.reasoning_content == "Hm."
    assert message.content is None
    (called,) = message.tool_calls
    await create(proxy, messages=[*HELLO, message, result(called.id, "warm")])
    turn = proxy.backend.calls[1].prompt["messages"][1]
    assert turn["reasoning_content"] == "Hm."


async def test_a_plain_completion_is_one_text(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a"), [REASONING]))
    await proxy.complete()
    assert proxy.backend.calls[0].sampling == {"separate_reasoning": False}


async def test_tools_count_for_the_limit_of_tokens(make_proxy) -> None:
    from openai_frontend.token_estimate import estimate_prompt_tokens

    prompt = {"messages": [{"role": "user", "content": ""}]}
    assert estimate_prompt_tokens(prompt | {"tools": [WEATHER]}, 0) == -(
        -len(json.dumps([WEATHER])) // 4
    )
    turn = {"role": "assistant", "content": "", "tool_calls": [call("a", "f", "x" * 400)]}
    assert estimate_prompt_tokens({"messages": [turn]}, 0) > 100
