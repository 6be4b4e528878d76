"""OpenAI's Responses API as its own client sees it."""

from __future__ import annotations

import dataclasses
import gc
import json
from typing import Any

import openai
import pydantic
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas
from openai.types.responses import ResponseItem, ResponseStreamEvent

from openai_frontend.answer_models.responses import Response
from openai_frontend.backend import Delta, Usage
from openai_frontend.record import RequestRecord
from openai_frontend.settings import Settings
from python_backend.errors import EngineError, InvalidRequestError, OverloadedError
from python_backend.tool_calls import FORMATS

pytestmark = pytest.mark.anyio

TEXT = "A red circle. Größe 例 🚕"
HERMES = FORMATS["hermes"]
CAPABLE = dataclasses.replace(MODEL, tool_format=HERMES, reasons=True)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "In a city.",
    "parameters": CITY,
    "strict": True,
}
ROME = ("get_weather", '{"city": "Rome"}')
PARIS = ("get_weather", '{"city": "Paris"}')
USER = {"role": "user", "content": "hi"}
THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
PICTURE = {"type": "input_image", "image_url": "ftp://example.com/a.png"}
CALL = {"type": "function_call", "call_id": "call_1", "name": ROME[0], "arguments": ROME[1]}
CALL_OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "warm"}
EVENT = pydantic.TypeAdapter(ResponseStreamEvent)
ITEM = pydantic.TypeAdapter(ResponseItem)
LOGPROBS = "message.output_text.logprobs"


async def create(proxy: Any, **fields: Any) -> Any:
    return await proxy.openai.responses.create(**{"model": MODEL.id, "input": "hi"} | fields)


def thinking_deltas(text: str, **last: Any) -> list[Delta]:
    """A reasoning of two tokens, then `text`."""
    thoughts = [Delta(text="", reasoning=piece, token_ids=(1,)) for piece in ("Hm, ", "so.")]
    return [*thoughts, *text_deltas(text, **last)]


async def events_of(proxy: Any, **fields: Any) -> list[Any]:
    """The events of a stream, each held against the client's own types."""
    body = {"model": MODEL.id, "input": "hi", "stream": True} | fields
    response = await proxy.http.post("/v1/responses", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = []
    for number, block in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == name.removeprefix("event: ")
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        events.append(event)
    return events


async def test_a_conversation_with_images_reaches_the_backend(make_proxy, png, png_url) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(TEXT, image_tokens=3, cached_tokens=2)))
    response = await create(
        proxy,
        instructions="Be brief.",
        input=[
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}]},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What?"},
                    {"type": "input_image", "image_url": png_url, "detail": "low"},
                    {"type": "input_image", "image_url": png_url},
                ],
            },
        ],
        max_output_tokens=20,
        temperature=0.5,
        top_p=0.9,
        metadata={"topic": "shapes"},
        user="someone",
        truncation="disabled",
        service_tier="auto",
    )
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.model) == ("response", "completed", MODEL.id)
    assert response.output_text == TEXT
    assert [item.type for item in response.output] == ["message"]
    assert response.incomplete_details is None
    assert response.completed_at >= response.created_at
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (7, 7, 14)
    assert usage.input_tokens_details.cached_tokens == 2
    assert usage.input_tokens_details.image_tokens == 3
    assert response.metadata == {"topic": "shapes"}
    assert (response.instructions, response.user) == ("Be brief.", "someone")
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 0.9, 20)
    (call,) = proxy.backend.calls
    assert call.images == [png, png]
    assert call.prompt["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                {"type": "image", "detail": "low"},
                {"type": "image", "detail": "auto"},
            ],
        },
    ]
    assert call.sampling == {"max_tokens": 20, "temperature": 0.5, "top_p": 0.9}


async def test_a_stream_has_the_events_of_the_api_in_order(make_proxy) -> None:
    events = await events_of(make_proxy(FakeBackend(text_deltas("a b"))))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["a", " b"]
    assert events[6]["text"] == "a b"
    assert events[0]["response"]["status"] == "in_progress"
    assert {event["item_id"] for event in events if "item_id" in event} == {events[2]["item"]["id"]}
    Response.model_validate(events[-1]["response"])


async def test_reasoning_text_and_calls_are_items_one_after_another(make_proxy) -> None:
    text = f"Let me see.\n{HERMES.call(*ROME)}\n{HERMES.call(*PARIS)}"
    proxy = make_proxy(FakeBackend(thinking_deltas(text), [CAPABLE]))
    events = await events_of(proxy, tools=[WEATHER])
    places = {"added": [], "done": []}
    for event in events:
        kind, _, what = event["type"].removeprefix("response.").partition(".")
        if kind == "output_item":
            places[what].append((event["output_index"], event["item"]["type"]))
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert places["added"] == places["done"] == list(enumerate(kinds))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert done[0]["content"] == [{"type": "reasoning_text", "text": "Hm, so."}]
    assert done[1]["content"][0]["text"] == "Let me see."
    assert [(item["name"], item["arguments"]) for item in done[2:]] == [ROME, PARIS]
    assert len({item["id"] for item in done}) == 4
    pieces = [
        event["delta"]
        for event in events
        if event["type"] == "response.function_call_arguments.delta" and event["output_index"] == 3
    ]
    assert "".join(pieces) == PARIS[1]


async def test_a_stream_adds_up_to_the_whole_answer(make_proxy) -> None:
    text = f"Let me see.\n{HERMES.call(*ROME)}"
    proxy = make_proxy(FakeBackend(thinking_deltas(text), [CAPABLE]))
    whole = await create(proxy, tools=[WEATHER])
    async with proxy.openai.responses.stream(model=MODEL.id, input="hi", tools=[WEATHER]) as stream:
        deltas = [event async for event in stream if event.type == "response.output_text.delta"]
        streamed = await stream.get_final_response()
    assert "".join(delta.delta for delta in deltas) == "Let me see."
    assert streamed.usage == whole.usage
    assert streamed.output_text == whole.output_text == "Let me see."
    for ours, other in zip(streamed.output, whole.output, strict=True):
        ignored = {"id", "call_id"}
        assert ours.model_dump(exclude={*ignored, "parsed_arguments"}, exclude_none=True) \
            == other.model_dump(exclude=ignored, exclude_none=True) \
            or ours.type == "message"  # fmt: skip


async def test_an_answer_that_is_cut_off_is_incomplete(make_proxy) -> None:
    deltas = text_deltas("a", finish_reason="length", matched_stop=None)
    proxy = make_proxy(FakeBackend(deltas))
    response = await create(proxy, max_output_tokens=2)
    assert response.status == response.output[0].status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.completed_at is None
    events = await events_of(proxy)
    assert [event["type"] for event in events[-2:]] \
        == ["response.output_item.done", "response.incomplete"]  # fmt: skip
    assert events[-2]["item"]["status"] == events[-1]["response"]["status"] == "incomplete"
    assert events[-1]["response"]["output"] == [events[-2]["item"]]


async def test_an_empty_answer_is_an_empty_message(make_proxy) -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=1)
    proxy = make_proxy(FakeBackend([Delta(text="", finish_reason="stop", usage=usage)]))
    assert (await create(proxy)).output_text == ""
    events = await events_of(proxy)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert "response.output_text.delta" not in {event["type"] for event in events}


async def test_log_probabilities_come_with_the_text(make_proxy) -> None:
    item = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": []}
    first, last = text_deltas("a")
    deltas = [dataclasses.replace(delta, logprobs=[item]) for delta in (first, last)]
    proxy = make_proxy(FakeBackend(deltas))
    response = await create(proxy, include=[LOGPROBS], top_logprobs=2)
    assert [token.to_dict() for token in response.output[0].content[0].logprobs] == [item, item]
    assert proxy.backend.calls[0].sampling == {"logprobs": 2}
    events = await events_of(proxy, include=[LOGPROBS])
    (part,) = (event["part"] for event in events if event["type"].endswith("part.added"))
    assert (part["text"], part["logprobs"]) == ("", [])
    told = [event["logprobs"] for event in events if event["type"].endswith("text.delta")]
    assert told == [[item], [item]]
    assert (await create(proxy)).output[0].content[0].logprobs == []


class Circle(pydantic.BaseModel):
    color: str
    radius: int


async def test_structured_output_is_parsed_by_the_client(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas('{"color": "red", "radius": 3}')))
    response = await proxy.openai.responses.parse(
        model=MODEL.id, input="Which circle?", text_format=Circle
    )
    assert response.output_parsed == Circle(color="red", radius=3)
    schema = proxy.backend.calls[0].sampling["grammar"]["json_schema"]
    assert schema["required"] == ["color", "radius"]
    assert response.text.format.type == "json_schema"
    async with proxy.openai.responses.stream(
        model=MODEL.id, input="Which circle?", text_format=Circle
    ) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Circle(color="red", radius=3)


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"json_schema": {"type": "object"}}),
        ({"type": "json_schema", "name": "city", "schema": CITY}, {"json_schema": CITY}),
    ],
)
async def test_text_formats_are_those_of_chats(make_proxy, form, grammar) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("{}")))
    response = await create(proxy, text={"format": form, "verbosity": "medium"})
    assert proxy.backend.calls[0].sampling.get("grammar") == grammar
    assert response.text.format.type == form["type"]


async def test_a_loop_of_tools_with_history_in_the_input(make_proxy, png, png_url) -> None:
    proxy = make_proxy(FakeBackend(thinking_deltas(HERMES.call(*ROME)), [CAPABLE]))
    response = await create(proxy, tools=[WEATHER], store=False)
    (call,) = [item for item in response.output if item.type == "function_call"]
    picture = {"type": "input_image", "image_url": png_url}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": [picture]}
    await create(
        proxy,
        input=[{"role": "user", "content": "hi"}, *response.output, output],
        tools=[WEATHER],
        store=False,
    )
    sent = proxy.backend.calls[1]
    arguments = json.loads(ROME[1])
    assert sent.prompt["messages"] == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm, so.",
            "tool_calls": [
                {"type": "function", "function": {"name": ROME[0], "arguments": arguments}}
            ],
        },
        {"role": "tool", "content": [{"type": "image", "detail": "auto"}]},
    ]
    assert sent.images == [png]
    assert sent.prompt["tools"][0]["function"]["name"] == "get_weather"


async def test_items_of_one_answer_are_one_message_of_the_chat(make_proxy) -> None:
    other = {"call_id": "call_2"}
    proxy = make_proxy(FakeBackend(text_deltas("a"), [CAPABLE]))
    said = {"role": "assistant", "content": "Let me see."}
    await create(
        proxy,
        input=[
            *(USER, THOUGHT, said, CALL, CALL | other, CALL_OUTPUT | other, CALL_OUTPUT),
            *(CALL, CALL_OUTPUT, said, said, THOUGHT, USER),
        ],
    )
    messages = proxy.backend.calls[0].prompt["messages"]
    assert [message["role"] for message in messages] == [
        *("user", "assistant", "tool", "tool"),
        *("assistant", "tool", "assistant", "assistant", "assistant", "user"),
    ]
    assert messages[1]["content"] == "Let me see."
    assert messages[1]["reasoning_content"] == "Hm."
    assert len(messages[1]["tool_calls"]) == 2
    assert messages[8] == {"role": "assistant", "content": "", "reasoning_content": "Hm."}


@pytest.mark.parametrize(
    ("choice", "required"),
    [("auto", False), ("required", True), ({"type": "function", "name": "get_weather"}, True)],
)
async def test_tool_choice(make_proxy, choice, required) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("hi"), [CAPABLE]))
    response = await create(proxy, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
    calls = proxy.backend.calls[0].sampling["grammar"]["tool_calls"]
    assert (calls["is_required"], calls["is_parallel"]) == (required, False)
    assert response.to_dict()["tool_choice"] == choice
    assert response.parallel_tool_calls is False
    assert [tool.to_dict() for tool in response.tools] == [WEATHER]


async def test_tool_choice_without_tools_may_ask_for_nothing(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("hi")))
    await create(proxy, tools=[], tool_choice="auto", parallel_tool_calls=True)
    assert proxy.backend.calls[0].sampling == {}


async def test_a_conversation_goes_on_by_id(make_proxy, png, png_url) -> None:
    proxy = make_proxy(FakeBackend(thinking_deltas("A circle."), [CAPABLE]))
    picture = {"type": "input_image", "image_url": png_url, "detail": "high"}
    question = {"role": "user", "content": [picture]}
    first = await create(proxy, input=[question], instructions="Be brief.")
    second = await create(proxy, input="Which color?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    await events_of(proxy, input="Really?", previous_response_id=second.id, store=False)
    told = [call.prompt["messages"] for call in proxy.backend.calls]
    answer = {
        "role": "assistant",
        "content": [{"type": "text", "text": "A circle."}],
        "reasoning_content": "Hm, so.",
    }
    image = {"type": "image", "detail": "high"}
    opening = [{"role": "user", "content": [image]}, answer]
    assert told[0] == [{"role": "system", "content": "Be brief."}, opening[0]]
    turn = {"role": "user", "content": [{"type": "text", "text": "Which color?"}]}
    assert told[1] == [*opening, {"role": "user", "content": "Which color?"}]
    assert told[2] == [*opening, turn, answer, {"role": "user", "content": "Really?"}]
    assert [call.images for call in proxy.backend.calls] == [[png]] * 3


async def test_a_loop_of_tools_goes_on_by_id(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(HERMES.call(*ROME)), [CAPABLE]))
    first = await create(proxy, tools=[WEATHER])
    output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "warm"}
    await create(proxy, tools=[WEATHER], previous_response_id=first.id, input=[output])
    roles = [message["role"] for message in proxy.backend.calls[1].prompt["messages"]]
    assert roles == ["user", "assistant", "tool"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stored_response_is_read_and_deleted(make_proxy, stream) -> None:
    proxy = make_proxy(FakeBackend(text_deltas(TEXT)))
    if stream:
        response_id = (await events_of(proxy))[-1]["response"]["id"]
    else:
        response = await create(proxy)
        response_id = response.id
        assert await proxy.openai.responses.retrieve(response_id) == response
    stored = await proxy.openai.responses.retrieve(response_id)
    assert (stored.output_text, stored.status) == (TEXT, "completed")
    with pytest.raises(openai.BadRequestError):
        await proxy.openai.responses.cancel(response_id)
    deleted = await proxy.http.delete(f"/v1/responses/{response_id}")
    assert deleted.json() == {"id": response_id, "object": "response", "deleted": True}
    for method in ("retrieve", "delete", "cancel"):
        with pytest.raises(openai.NotFoundError) as caught:
            await getattr(proxy.openai.responses, method)(response_id)
        assert caught.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError, match="keeps up to 1000") as caught:
        await create(proxy, previous_response_id=response_id)
    assert caught.value.param == "previous_response_id"


async def test_nothing_is_kept_where_nothing_shall_be(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await create(proxy, store=False)
    assert response.to_dict()["store"] is False
    assert proxy.app.state.responses.num_bytes == 0
    with pytest.raises(openai.NotFoundError):
        await proxy.openai.responses.retrieve(response.id)


async def test_a_server_may_store_nothing(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=Settings(max_stored_responses=0))
    assert (await create(proxy)).to_dict()["store"] is False
    with pytest.raises(openai.BadRequestError) as caught:
        await create(proxy, store=True)
    assert (caught.value.code, caught.value.param) == ("unsupported_value", "store")
    assert proxy.app.state.responses.num_bytes == 0


async def test_input_that_can_never_be_stored_is_refused_at_once(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=Settings(max_stored_bytes=10_000))
    with pytest.raises(openai.BadRequestError) as caught:
        await create(proxy, input="a" * 10_000)
    assert caught.value.param == "store"
    await create(proxy, input="a" * 10_000, store=False)


async def test_a_conversation_that_outgrows_a_request_is_not_continued(make_proxy) -> None:
    settings = Settings(max_body_bytes=10_000)
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=settings)
    first = await create(proxy, input="a" * 4000)
    second = await create(proxy, input="a" * 4000, previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await create(proxy, previous_response_id=second.id)
    assert caught.value.param == "previous_response_id"
    assert len(proxy.backend.calls) == 2


async def test_paths_with_ids_are_one_endpoint_each_in_the_metrics(make_proxy) -> None:
    proxy = make_proxy()
    for path in ("", "/input_items", "/what"):
        await proxy.http.get(f"/v1/responses/resp_1{path}")
    metrics = (await proxy.http.get("/metrics")).text
    for endpoint in ("/v1/responses/{id}", "/v1/responses/{id}/input_items", "other"):
        assert f'requests_total{{endpoint="{endpoint}",status="404"}} 1.0' in metrics


async def test_keys_do_not_see_each_others_responses(make_proxy) -> None:
    keys = [f"sk-{name}-0123456789abcdef" for name in ("alice", "bob")]
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=Settings(api_keys=tuple(keys)))
    alice, bob = (proxy.openai.with_options(api_key=key).responses for key in keys)
    response = await alice.create(model=MODEL.id, input="a secret")
    for attempt in (
        bob.retrieve(response.id),
        bob.delete(response.id),
        bob.cancel(response.id),
        bob.input_items.list(response.id),
        bob.create(model=MODEL.id, input="Tell me.", previous_response_id=response.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await attempt
        assert caught.value.code == "response_not_found"
    assert len(proxy.backend.calls) == 1
    assert (await alice.retrieve(response.id)).output_text == "a"


async def test_input_items_are_listed_page_by_page(make_proxy, png_url) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a"), [CAPABLE]))
    picture = {"type": "input_image", "image_url": png_url}
    items = [
        {"role": "user", "content": [picture]},
        THOUGHT,
        CALL,
        CALL_OUTPUT,
        {"role": "assistant", "content": "Warm."},
        {"role": "user", "content": "Thanks."},
    ]
    response = await create(proxy, input=items, tools=[WEATHER])
    listed = proxy.openai.responses.input_items.list(response.id, limit=4, order="asc")
    found = [item.to_dict() async for item in listed]
    assert [item["type"] for item in found] == [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ]
    assert found[0]["content"][0]["image_url"] == png_url
    assert found[4]["content"] == [{"type": "output_text", "text": "Warm."}]
    assert len({item["id"] for item in found}) == 6
    latest = await proxy.openai.responses.input_items.list(response.id)
    assert [item.id for item in latest.data] == [item["id"] for item in reversed(found)]
    answer = await proxy.http.get(f"/v1/responses/{response.id}/input_items?limit=101")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
    answer = await proxy.http.get(f"/v1/responses/{response.id}/input_items?after=x")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


async def test_a_query_is_refused(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await create(proxy)
    with pytest.raises(openai.BadRequestError) as caught:
        await proxy.openai.responses.retrieve(response.id, starting_after=3)
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "starting_after")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "user", "content": [PICTURE]}]}, "input[0].content[0].image_url"),
        ({"input": [USER, {"role": "system", "content": [PICTURE]}]}, "input[1].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "output_text", "text": "a"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [USER, CALL_OUTPUT]}, "input[1].call_id"),
        ({"input": [USER, CALL]}, "input[1]"),
        ({"input": [THOUGHT, {"role": "assistant", "content": [PICTURE]}]}, "input[1].content[0]"),
        ({"input": [USER, {**CALL, "arguments": "x"}, CALL_OUTPUT]}, "input[1].arguments"),
        (
            {
                "input": [
                    CALL,
                    {**CALL_OUTPUT, "output": [{"type": "input_text", "text": "a"}, PICTURE]},
                ]
            },
            "input[1].output[1].image_url",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
            "tool_choice.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "include": [LOGPROBS]}, "include"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"top_k": 3}, "top_k"),
    ],
)
async def test_wrong_field_is_refused_by_name(make_proxy, fields, param) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a"), [CAPABLE]))
    body = {"model": MODEL.id, "input": "hi"} | fields
    response = await proxy.http.post("/v1/responses", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert "messages[" not in error["message"]
    assert not proxy.backend.calls


async def test_a_fault_in_what_was_stored_names_the_id(make_proxy, png_url) -> None:
    backend = FakeBackend(text_deltas("a"))
    proxy = make_proxy(backend)
    picture = {"type": "input_image", "image_url": png_url}
    first = await create(proxy, input=[{"role": "user", "content": [picture]}])
    backend.models_list = [dataclasses.replace(MODEL, max_images=0)]
    with pytest.raises(openai.BadRequestError) as caught:
        await create(proxy, previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"


async def test_a_model_without_tools_or_reasoning_refuses_both(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    with pytest.raises(openai.BadRequestError, match="calls no tools"):
        await create(proxy, tools=[WEATHER])
    with pytest.raises(openai.BadRequestError, match="does not reason") as caught:
        await create(proxy, input=[USER, THOUGHT, USER])
    assert caught.value.param == "input"


async def test_a_model_that_is_called_like_a_path_is_not_found(make_proxy) -> None:
    with pytest.raises(openai.NotFoundError, match=r"messages\[9\]"):
        await create(make_proxy(), model="messages[9].content")


async def test_errors_of_the_backend_name_the_clients_fields(make_proxy) -> None:
    for theirs, ours in (
        ("prompt", "input"),
        ("grammar.json_schema", "text.format"),
        ("max_tokens", "max_output_tokens"),
        ("messages[1].content[0]", "input[0].content[0]"),
        ("messages[0].content", "instructions"),
    ):
        proxy = make_proxy(FakeBackend([InvalidRequestError("wrong", param=theirs)]))
        items = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
        form = {"format": {"type": "json_object"}}
        with pytest.raises(openai.BadRequestError) as caught:
            await create(proxy, instructions="Look.", input=items, text=form)
        assert caught.value.param == ours


async def test_a_request_that_is_refused_gives_back_its_room(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    with pytest.raises(openai.BadRequestError):
        await create(proxy, input=[{"role": "user", "content": [PICTURE]}])
    gc.collect()  # errors and their frames refer to each other
    assert proxy.app.state.responses.num_bytes == 0


async def test_a_stream_that_the_client_leaves_is_not_stored(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a b")))
    service, store = proxy.app.state.service, proxy.app.state.responses
    record = RequestRecord(request_id="1", backend_request_id="1", endpoint="/v1/responses")
    body = json.dumps({"model": MODEL.id, "input": "x" * 5000, "stream": True}).encode()
    events = service.events(await service.prepare_response(body, record), record)
    await anext(events)
    assert store.num_bytes > 5000
    await events.aclose()
    del events
    gc.collect()
    assert store.num_bytes == store.num_responses == 0


async def test_a_failure_within_a_stream_is_its_last_event(make_proxy) -> None:
    deltas = [text_deltas("a b")[0], EngineError("secret")]
    proxy = make_proxy(FakeBackend(deltas))
    events = await events_of(proxy)
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert "secret" not in response["error"]["message"]
    assert proxy.app.state.responses.num_responses == 0


async def test_a_failure_before_the_stream_is_an_http_error(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([OverloadedError("full")]))
    with pytest.raises(openai.RateLimitError):
        await create(proxy, stream=True)


async def test_items_of_a_response_are_valid_items_of_the_client(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(thinking_deltas(HERMES.call(*ROME)), [CAPABLE]))
    response = await create(proxy, tools=[WEATHER])
    raw = (await proxy.http.get(f"/v1/responses/{response.id}")).json()
    Response.model_validate(raw)
    for item in raw["output"]:
        ITEM.validate_python(item)
