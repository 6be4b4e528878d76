"""OpenAI's Responses API on the default model, through the real Triton, with the real `openai` client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.triton.conftest import CHECKPOINT, MODEL, image_part
from tests.triton.test_openai_client import CASES, complete, expected_text

CASE = CASES[1]
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def to_items(case: dict) -> list[dict]:
    """A recorded conversation of one picture as this API takes it."""
    url = image_part((CHECKPOINT / case["images"][0]).read_bytes())["image_url"]["url"]
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "input_image", "image_url": url, "detail": "auto"}
                if part["type"] == "image"
                else {"type": "input_text", "text": part["text"]}
                for part in message["content"]
            ],
        }
        for message in case["messages"]
    ]


def create(client: openai.OpenAI, **fields: Any) -> Any:
    limit = len(CASE["greedy_token_ids"])
    given = {"model": MODEL, "temperature": 0, "max_output_tokens": limit}
    return client.responses.create(**(given | fields))


def test_answer_about_a_picture_equals_hugging_face(client: openai.OpenAI) -> None:
    response = create(client, input=to_items(CASE), store=False)
    assert (response.status, response.output_text) == ("completed", expected_text(CASE))
    chat = complete(client, CASE).usage
    assert response.usage.input_tokens == len(CASE["prompt_token_ids"]) == chat.prompt_tokens
    assert response.usage.output_tokens == len(CASE["greedy_token_ids"])
    details = response.usage.input_tokens_details
    assert details.image_tokens == chat.prompt_tokens_details.image_tokens > 0
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_stream_equals_the_whole_answer(client: openai.OpenAI) -> None:
    events = list(create(client, input=to_items(CASE), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 2
    assert "".join(deltas) == events[-1].response.output_text == expected_text(CASE)
    stored = client.responses.retrieve(events[-1].response.id)
    assert stored.output_text == expected_text(CASE)
    assert stored.usage == events[-1].response.usage


def test_answer_that_is_cut_off_is_incomplete(client: openai.OpenAI) -> None:
    response = create(client, input=to_items(CASE), max_output_tokens=2)
    assert (response.status, response.output[0].status) == ("incomplete", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 2


def test_conversation_goes_on_with_its_picture_until_it_is_deleted(client: openai.OpenAI) -> None:
    """What the server remembers is what a chat client would send again."""
    question = "What can you do?"
    first = create(client, input=to_items(CASE))
    second = create(client, input=question, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    messages = [
        *to_items(CASE),
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": question},
    ]
    sent_again = create(client, input=messages, store=False)
    assert second.output_text == sent_again.output_text
    assert second.usage.input_tokens == sent_again.usage.input_tokens
    assert second.usage.input_tokens_details.image_tokens > 0

    items = client.responses.input_items.list(second.id, order="asc").data
    assert items[-1].content[0].text == question
    assert client.responses.retrieve(first.id).output_text == expected_text(CASE)
    client.responses.delete(first.id)
    for use in (
        lambda: client.responses.retrieve(first.id),
        lambda: client.responses.delete(first.id),
        lambda: create(client, input=question, previous_response_id=first.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            use()
        assert caught.value.code == "response_not_found"
    # What continued it has its own copy of the conversation.
    third = create(client, input=question, previous_response_id=second.id)
    assert third.usage.input_tokens_details.image_tokens > 0


def test_output_matches_its_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "name": "found", "schema": SCHEMA, "strict": True}
    response = create(client, input=to_items(CASE), text={"format": form}, max_output_tokens=64)
    found = json.loads(response.output_text)
    assert found.keys() == {"colour", "count"}
    assert found["colour"] in ("red", "green")


def test_errors_name_fields_of_this_api(client: openai.OpenAI) -> None:
    cut = image_part((CHECKPOINT / CASE["images"][0]).read_bytes()[:100])["image_url"]["url"]
    picture = {"type": "input_image", "image_url": cut, "detail": "auto"}
    for fields, code, param in (
        ({"input": "hi", "max_output_tokens": 10**6}, "invalid_value", "max_output_tokens"),
        ({"input": "word " * 20_000}, "context_length_exceeded", "input"),
        ({"input": [{"role": "user", "content": [picture]}]}, "image_parse_error", "input[0].content[0]"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            create(client, **fields)
        assert (caught.value.code, caught.value.param) == (code, param)
