"""Answers of the served default model that match a grammar, with the real `openai` client."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.triton.conftest import EXAMPLES, MODEL, image_part

MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is in this image?"},
            image_part((EXAMPLES / "two-shapes.png").read_bytes()),
        ],
    }
]
DIGITS = {"regex": "[0-9]{3}"}


class Shape(BaseModel):
    """Small enough that a model which never saw JSON comes to its end."""

    colour: Literal["red", "green", "blue"]
    name: Literal["circle", "square", "star"]
    size: int = Field(ge=0, le=9)


class Picture(BaseModel):
    shapes: list[Shape] = Field(min_length=1, max_length=2)
    is_empty: bool


def create(client: openai.OpenAI, **fields):
    fields = {"temperature": 0, "max_tokens": 200} | fields
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)


def test_a_pydantic_model_is_parsed_from_a_picture(client: openai.OpenAI) -> None:
    response = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Picture, max_tokens=200, temperature=0
    )
    (choice,) = response.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Picture)


def test_a_stream_is_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    whole = create(client, extra_body=DIGITS)
    chunks = list(create(client, extra_body=DIGITS, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert re.fullmatch("[0-9]{3}", text)
    assert text == whole.choices[0].message.content


def test_requests_with_and_without_a_grammar_share_steps(client: openai.OpenAI) -> None:
    bodies = [
        {},
        {"structured_outputs": {"choice": ["a cat", "a dog"]}},
        {"ebnf": 'root ::= ("x" | "y") ("x" | "y")'},
        DIGITS,
    ]
    alone = [create(client, extra_body=body).choices[0].message.content for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: create(client, extra_body=body), bodies * 2))
    assert [answer.choices[0].message.content for answer in answers] == alone * 2
    for pattern, text in zip((".*", "a cat|a dog", "[xy]{2}", "[0-9]{3}"), alone, strict=True):
        assert re.fullmatch(pattern, text, re.DOTALL)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"not": {"type": "string"}}},
                }
            },
            "response_format",
        ),
        ({"extra_body": {"regex": "(" * 300}}, "regex"),
        ({"extra_body": {"regex": "(a{1000}){1000}{1000}"}}, "regex"),
    ],
)
def test_what_cannot_be_enforced_is_an_error_and_the_server_goes_on(
    client: openai.OpenAI, fields, param
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **fields)
    assert caught.value.param == param
    assert create(client, extra_body=DIGITS).choices[0].finish_reason == "stop"
