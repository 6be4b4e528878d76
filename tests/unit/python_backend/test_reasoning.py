"""What a model thinks is told from what it answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_runtime import EOS, FakeRuntime, byte_tokenizer, fake_engine, fake_request, scripted
from hypothesis import given, settings
from hypothesis import strategies as st

from python_backend.reasoning import ReasoningTokens
from python_backend.sampling_params import Grammar, SamplingParams
from python_backend.structured_output import GrammarCompiler

OPEN, CLOSE, SPECIAL = ord("("), ord(")"), ord("|")
TOKENS = ReasoningTokens(OPEN, CLOSE, frozenset({SPECIAL, EOS}))


def answer(script, prompt="Q|", tokens=TOKENS, constraint=None, **params):
    """The answer of a model that wants to say `script`, and its parts as they came."""
    engine = fake_engine(FakeRuntime(scripted({prompt: script})), reasoning_tokens=tokens)
    request = fake_request("a", prompt, SamplingParams(temperature=0, **params))
    engine.add_request(replace(request, constraint=constraint))
    parts = []
    while engine.has_unfinished:
        parts += engine.step()
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole, parts


@pytest.mark.parametrize(
    ("prompt", "script", "reasoning", "text", "num_tokens"),
    [
        ("Q|", "(let me see)yes", "let me see", "yes", 12),
        ("Q|(", "let me see)yes", "let me see", "yes", 11),
        ("Q|(\n", "\n let\nme see \n)\n\n yes \n", "let\nme see", "yes \n", 15),
        ("Q|", "()yes", "", "yes", 2),
        ("Q|", "yes (or no)", "", "yes (or no)", 0),
        ("Q|", "\nyes", "", "\nyes", 0),
        ("Q|()", "yes", "", "yes", 0),
        ("what is ( ?|", "yes", "", "yes", 0),
        ("Q|(", "für 例)ü", "für 例", "ü", 9),
    ],
)
def test_reasoning_ends_before_the_answer(prompt, script, reasoning, text, num_tokens) -> None:
    whole, parts = answer(script, prompt)
    assert (whole.reasoning, whole.text) == (reasoning, text)
    assert whole.finish_reason == "stop"
    assert whole.usage.reasoning_tokens == num_tokens
    assert whole.usage.completion_tokens == len(script.encode()) + 1
    assert not any(part.reasoning and part.text for part in parts)


def test_reasoning_is_passed_on_as_it_comes() -> None:
    _, parts = answer("(a b)c")
    assert [part.reasoning for part in parts] == ["", "a", "", " b", "", "", ""]


def test_an_answer_that_ends_while_it_reasons_has_no_text() -> None:
    whole, _ = answer("(let me see", max_tokens=6)
    assert (whole.reasoning, whole.text, whole.finish_reason) == ("let m", "", "length")
    assert whole.usage.reasoning_tokens == 6
    whole, _ = answer("(let me")
    assert (whole.reasoning, whole.text, whole.finish_reason) == ("let me", "", "stop")


def test_a_stop_string_is_looked_for_in_the_answer_only() -> None:
    whole, _ = answer("(a, b)c, d", stop=(",",))
    assert (whole.reasoning, whole.text, whole.matched_stop) == ("a, b", "c", ",")


def test_without_separation_and_for_other_models_everything_is_text() -> None:
    assert answer("(a)b", separate_reasoning=False)[0].text == "(a)b"
    assert answer("(a)b", tokens=None)[0].text == "(a)b"


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.sampled_from("ab \n()"), max_size=12), is_open=st.booleans())
def test_nothing_but_marks_and_white_space_around_is_lost(text, is_open) -> None:
    whole, _ = answer(text, "Q|(" if is_open else "Q|")
    shown = text if is_open else text[1:]
    if is_open or text.startswith("("):
        thought, _, said = shown.partition(")")
        assert (whole.reasoning, whole.text) == (thought.strip(), said.lstrip())
    else:
        assert (whole.reasoning, whole.text) == ("", text)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return GrammarCompiler(path, EOS + 1, [EOS])


@pytest.mark.parametrize(
    ("prompt", "script", "reasoning"),
    [("Q|(", "12 or 13)12", "12 or 13"), ("Q|", "(12?)12", "12?"), ("Q|", "12", "")],
)
def test_a_grammar_begins_after_the_reasoning(compiler, prompt, script, reasoning) -> None:
    grammar = Grammar("regex", "[0-9]{2}")
    whole, _ = answer(script, prompt, constraint=compiler.compile(grammar), grammar=grammar)
    assert (whole.reasoning, whole.text, whole.finish_reason) == (reasoning, "12", "stop")


def test_a_grammar_keeps_an_answer_from_ending_while_it_reasons(compiler) -> None:
    """The model wants to end at once: it is made to go on, and what it would say is bound."""
    grammar = Grammar("choice", json.dumps(["ok"]))
    constraint = compiler.compile(grammar)
    whole, _ = answer("", "Q|(", constraint=constraint, grammar=grammar, max_tokens=5)
    assert (whole.text, whole.finish_reason) == ("", "length")
    assert EOS not in whole.token_ids
    bias = {CLOSE: 100.0}
    whole, _ = answer("", "Q|(", constraint=constraint, grammar=grammar, logit_bias=bias)
    assert (whole.reasoning, whole.text, whole.finish_reason) == ("", "ok", "stop")


def test_only_what_follows_the_last_control_token_opens_the_reasoning() -> None:
    def is_open(text: str) -> bool:
        return TOKENS.is_opened_by(np.frombuffer(text.encode(), np.uint8).tolist())

    assert is_open("a|b(\n")
    assert is_open("(")
    assert not is_open("( a |b")
    assert not is_open("a|()\n")
    assert not is_open("")
