"""Tool calls are found in the text of an answer, wherever it is divided."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_frontend.answers import Choice
from openai_frontend.backend import Delta
from openai_frontend.tool_parser import ToolCallParser
from python_backend.tool_calls import FORMATS

HERMES, LLAMA = FORMATS["hermes"], FORMATS["llama3_json"]
WEATHER = ("get_weather", '{"city": "Zürich 🚕", "days": [1, {"a}": "\\"}\\\\"}]}')
NOTHING = ("no-args_2", "{}")


def parse(form, parts, finish_reason="stop"):
    """The whole answer that comes in `parts`, and all deltas but the last."""
    parser, choice = ToolCallParser(form), Choice()
    deltas = [parser.parse(Delta(text=part)) for part in parts]
    last = parser.parse(Delta(text="", finish_reason=finish_reason))
    for delta in (*deltas, last):
        choice.add(delta)
    return choice, deltas


def summary(choice):
    calls = [(call["name"], call["arguments"]) for call in choice.tool_calls]
    return choice.text, calls, choice.finish_reason


@st.composite
def divided(draw, text):
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


ANSWERS = [
    (HERMES, "Just <b>text</b>.\n", ("Just <b>text</b>.\n", [], "stop")),
    (HERMES, "", ("", [], "stop")),
    (HERMES, "a <tool", ("a <tool", [], "stop")),
    (HERMES, HERMES.call(*WEATHER), ("", [WEATHER], "tool_calls")),
    (HERMES, "Let me see. \n\n" + HERMES.call(*NOTHING), ("Let me see.", [NOTHING], "tool_calls")),
    (
        HERMES,
        HERMES.call(*WEATHER) + "\n" + HERMES.call(*NOTHING) + "\n",
        ("", [WEATHER, NOTHING], "tool_calls"),
    ),
    (LLAMA, LLAMA.call(*WEATHER), ("", [WEATHER], "tool_calls")),
    (LLAMA, '{"name" : 1}', ('{"name" : 1}', [], "stop")),
    (LLAMA, 'Text {"name": "x"', ('Text {"name": "x"', [], "stop")),
    (LLAMA, '{"na', ('{"na', [], "stop")),
]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_result_does_not_depend_on_how_the_text_is_divided(data) -> None:
    form, text, expected = data.draw(st.sampled_from(ANSWERS))
    assert summary(parse(form, data.draw(divided(text)))[0]) == expected


@pytest.mark.parametrize("form", [HERMES, LLAMA], ids=lambda form: form.name)
def test_arguments_are_passed_on_as_they_come(form) -> None:
    _, deltas = parse(form, list(form.call(*WEATHER)))
    calls = [call for delta in deltas for call in delta.tool_calls]
    first, *others = calls
    assert (first.index, first.name, first.arguments) == (0, "get_weather", "")
    assert first.id.startswith("call_")
    assert [(call.id, call.name) for call in others] == [(None, None)] * len(WEATHER[1])
    assert [call.arguments for call in others] == list(WEATHER[1])


def test_text_is_held_back_only_where_a_call_may_begin() -> None:
    _, deltas = parse(HERMES, ["Hello", " ", "you <", "b>", "\n<tool_call", "s>"])
    assert [delta.text for delta in deltas] == ["Hello", "", " you", " <b>", "", "\n<tool_calls>"]


@pytest.mark.parametrize("finish_reason", ["length", "stop"])
@pytest.mark.parametrize("form", [HERMES, LLAMA], ids=lambda form: form.name)
def test_a_call_that_is_cut_off_shows_as_far_as_it_has_come(form, finish_reason) -> None:
    text = form.call(*WEATHER)
    end_of_head = text.index(form.middle) + len(form.middle)
    for length in range(len(form.trigger), end_of_head + len(WEATHER[1])):
        choice, _ = parse(form, [text[:length]], finish_reason)
        arguments = text[end_of_head:length]
        calls = [] if length < end_of_head else [("get_weather", arguments)]
        assert summary(choice) == ("", calls, finish_reason)


def test_calls_have_different_ids() -> None:
    choice, _ = parse(HERMES, [HERMES.call(*NOTHING) + "\n" + HERMES.call(*NOTHING)])
    first, second = choice.tool_calls
    assert first["id"] != second["id"]
    assert json.loads(first["arguments"]) == {}
