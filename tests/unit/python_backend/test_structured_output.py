"""Answers match their grammar whatever the model would say, and no grammar costs too much."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from python_backend.config import EngineConfig
from python_backend.errors import InvalidRequestError
from python_backend.sampler import Sampler
from python_backend.sampler_state import SamplerState
from python_backend.sampling_params import Grammar, SamplingParams
from python_backend.structured_output import GrammarCompiler, unpack_tokens
from python_backend.vlm import VLM
from tests.tiny.conversations import CONVERSATIONS

TOKENIZER_PATH = Path(__file__).parents[3] / "default_model" / "shapes-vl" / "tokenizer.json"
TOKENIZER = Tokenizer.from_file(str(TOKENIZER_PATH))
VOCAB_SIZE = 1024
EOS = tuple(TOKENIZER.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
COMPILER = GrammarCompiler(TOKENIZER_PATH, VOCAB_SIZE, EOS)
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 12},
        "places": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["colour", "count", "places"],
    "additionalProperties": False,
}
# Fits its text and compiles; the lexer gives up at the second token.
EXPLODING = Grammar("regex", "(a{1000}){1000}{1000}")


def schema(value):
    return Grammar("json_schema", json.dumps(value))


def state_of(grammar, **params):
    params = SamplingParams(grammar=grammar, **params)
    return SamplerState(params, (), VOCAB_SIZE, 0, EOS, constraint=COMPILER.compile(grammar))


def generate(grammar, seed, num_tokens=400, temperature=1.0):
    """What a model that babbles answers under a grammar; None if it does not come to an end."""
    state, sampler = state_of(grammar, temperature=temperature, seed=seed), Sampler()
    rng, token_ids = np.random.default_rng(seed), []
    for _ in range(num_tokens):
        logits = rng.normal(0, 3, (1, VOCAB_SIZE)).astype(np.float32)
        (token,) = sampler.sample(logits, [state])
        if token.token_id in EOS:
            return TOKENIZER.decode(token_ids)
        state.append(token.token_id)
        token_ids.append(token.token_id)
    return None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.sampled_from([0.0, 1.0]))
def test_an_answer_is_what_its_schema_says(seed, temperature):
    answer = json.loads(generate(schema(SCHEMA), seed, temperature=temperature))
    assert answer.keys() == SCHEMA["properties"].keys()
    assert answer["colour"] in ("red", "blue")
    assert type(answer["count"]) is int
    assert 0 <= answer["count"] <= 12
    assert len(answer["places"]) <= 2
    assert all(isinstance(place, str) and len(place) <= 4 for place in answer["places"])


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", "[0-9]{3}-[a-f]+"), r"[0-9]{3}-[a-f]+"),
        (Grammar("choice", json.dumps(["a \"quoted\" one", "två\n", "3"])), r'a "quoted" one|två\n|3'),
        (Grammar("grammar", 'start: "x" ("," NUMBER)*\nNUMBER: /[0-9]/'), r"x(,[0-9])*"),
        (Grammar("grammar", 'root ::= "x" ("," [0-9])*'), r"x(,[0-9])*"),
    ],
)  # fmt: skip
def test_an_answer_matches_the_whole_grammar(grammar, pattern):
    answers = [generate(grammar, seed) for seed in range(5)]
    assert all(answer is None or re.fullmatch(pattern, answer) for answer in answers)
    assert any(answers)


def test_tokens_that_the_tokenizer_lacks_and_the_logits_have_are_never_chosen():
    compiler = GrammarCompiler(TOKENIZER_PATH, VOCAB_SIZE + 40, EOS)
    params = SamplingParams(temperature=0, grammar=Grammar("regex", "a+"))
    state = SamplerState(
        params, (), VOCAB_SIZE + 40, 0, EOS, constraint=compiler.compile(params.grammar)
    )
    logits = np.zeros((1, VOCAB_SIZE + 40), dtype=np.float32)
    logits[0, VOCAB_SIZE:] = 9
    (token,) = Sampler().sample(logits, [state])
    assert set(TOKENIZER.decode([token.token_id])) == {"a"}


def test_logits_may_have_fewer_tokens_than_the_tokenizer():
    compiler = GrammarCompiler(TOKENIZER_PATH, 600, (3,))
    params = SamplingParams(temperature=0, grammar=Grammar("regex", "a+"))
    state = SamplerState(params, (), 600, 0, (3,), constraint=compiler.compile(params.grammar))
    (token,) = Sampler().sample(np.zeros((1, 600), dtype=np.float32), [state])
    assert set(TOKENIZER.decode([token.token_id])) == {"a"}


def test_log_probabilities_are_the_models_own():
    logits = np.random.default_rng(0).normal(0, 3, (1, VOCAB_SIZE)).astype(np.float32)
    free = SamplerState(SamplingParams(logprobs=5), (), VOCAB_SIZE, 0, EOS)
    bound = state_of(Grammar("choice", '["red"]'), logprobs=5)
    (expected,), (token,) = (Sampler().sample(logits.copy(), [state]) for state in (free, bound))
    assert token.top_logprobs == expected.top_logprobs


def test_rows_with_and_without_a_grammar_do_not_disturb_each_other():
    logits = np.random.default_rng(1).normal(0, 3, (4, VOCAB_SIZE)).astype(np.float32)
    grammars = (Grammar("regex", "[0-9]+"), None, schema(SCHEMA), Grammar("choice", '["red"]'))

    def states():
        return [
            state_of(grammar, temperature=0)
            if grammar
            else SamplerState(SamplingParams(temperature=0), (), VOCAB_SIZE, 0, EOS)
            for grammar in grammars
        ]

    alone = [
        Sampler().sample(logits[i : i + 1].copy(), [state])[0] for i, state in enumerate(states())
    ]
    assert Sampler().sample(logits.copy(), states()) == alone


@pytest.mark.parametrize(
    "grammar",
    [
        schema({"not": {"type": "string"}}),
        schema({"type": "array", "uniqueItems": True}),
        schema({"type": "no type"}),
        schema({"$ref": "https://example.com/schema.json"}),
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        schema(json.loads('{"items":' * 150 + "{}" + "}" * 150)),
        schema({"maximum": math.inf}),
        Grammar("regex", "("),
        Grammar("regex", r"(a)\1"),
        Grammar("grammar", "start: missing"),
        Grammar("grammar", ""),
        Grammar("grammar", "(" * 20_000),
        Grammar("grammar", "root ::= " + "(" * 20_000),
        Grammar("regex", "(" * 4000),
    ],
)
def test_what_cannot_be_enforced_is_refused(grammar):
    with pytest.raises(InvalidRequestError, match=r"cannot be enforced: .") as caught:
        COMPILER.compile(grammar)
    assert caught.value.param == "grammar"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("grammar", "start:r0\n" + "".join(f"r{i}:r{i + 1}\n" for i in range(5000)) + 'r5000:"a"'),
        Grammar("grammar", "start:T0\n" + "".join(f"T{i}:T{i + 1}\n" for i in range(5000)) + 'T5000:"a"'),
        schema({
            "$ref": "#/$defs/a0",
            "$defs": {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(1000)} | {"a1000": {}},
        }),
    ],
    ids=["rules", "terminals", "definitions"],
)  # fmt: skip
def test_rules_that_lead_to_each_other_do_not_overflow_the_stack(grammar):
    """As many as fit a grammar's text: with a stack of 8 MiB the process dies.

    CVE-2026-55574, PYSEC-2026-3933, GHSA-vrq3-r879-7m65, GHSA-389x-67px-mjg3.
    """
    assert COMPILER.compile(grammar) is not None


def test_a_grammar_is_compiled_once_and_its_copies_go_their_own_ways():
    grammar = Grammar("choice", '["red", "blue"]')
    first, second = COMPILER.compile(grammar), COMPILER.compile(grammar)
    red, blue = TOKENIZER.encode("red").ids, TOKENIZER.encode("blue").ids
    for token_id in red:
        first.append(token_id)
    allowed = first.allowed_tokens((first, second))
    allowed_first, allowed_second = (unpack_tokens(words, VOCAB_SIZE) for words in allowed)
    assert np.flatnonzero(allowed_first).tolist() == sorted(EOS)
    assert allowed_second[blue[0]]


def test_grammars_that_were_not_used_for_long_are_forgotten():
    """CVE-2025-29770, GHSA-hf3c-wxg2-49q9: caches that grow with every grammar."""
    compiler = GrammarCompiler(TOKENIZER_PATH, VOCAB_SIZE, EOS)
    for i in range(200):
        compiler.compile(Grammar("choice", json.dumps([str(i)])))
    assert len(compiler._cache) == 32


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"grammar": {"regex": "a" * 4097}}, "grammar"),
        ({"grammar": {"json_schema": {"title": "a" * 70_000}}}, "grammar"),
        ({"grammar": {"choice": []}}, "grammar"),
        ({"grammar": {"choice": ["a", 1]}}, "grammar[1]"),
        ({"grammar": {"regex": "a", "choice": ["a"]}}, "grammar"),
        ({"grammar": {"xpath": "a"}}, "grammar"),
        ({"grammar": {"json_schema": "{}"}}, "grammar"),
        ({"grammar": {"json_schema": False}}, "grammar"),
        ({"grammar": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
        ({"grammar": {"regex": "a"}, "min_tokens": 1}, "min_tokens"),
    ],
)
def test_a_malformed_grammar_is_refused(given, param):
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams.from_json(json.dumps(given))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "grammar", [schema(SCHEMA), Grammar("regex", "a|b"), Grammar("choice", '["a"]')]
)
def test_a_grammar_survives_its_json(grammar):
    params = SamplingParams(grammar=grammar)
    assert SamplingParams.from_json(params.to_json()) == params


@pytest.fixture(scope="module")
def vlm(tied):
    with VLM(tied.model.folder, EngineConfig(max_num_seqs=4)) as model:
        yield model


def test_every_choice_of_an_answer_matches(vlm):
    params = SamplingParams(grammar=Grammar("regex", "[a-c]{1,3}"), n=3, seed=1)
    conversations = [CONVERSATIONS["text"], CONVERSATIONS["turns"]]
    choices = [
        choice for answer in vlm.generate(conversations, params) for choice in answer.choices
    ]
    assert len(choices) == 6
    for choice in choices:
        assert re.fullmatch("[a-c]{1,3}", choice.text)
        assert choice.finish_reason == "stop"


def test_a_wrong_grammar_is_refused_before_anything_is_computed(vlm):
    with pytest.raises(InvalidRequestError, match="JSON schema cannot be enforced"):
        vlm.generate([CONVERSATIONS["text"]], SamplingParams(grammar=schema({"not": {}})))


def test_a_grammar_that_explodes_on_the_way_fails_and_leaves_the_engine_whole(vlm):
    """CVE-2026-55574, PYSEC-2026-3933, GHSA-vrq3-r879-7m65."""
    with pytest.raises(InvalidRequestError, match="became too large"):
        vlm.generate([CONVERSATIONS["text"]], SamplingParams(grammar=EXPLODING, n=2))
    greedy = SamplingParams(temperature=0, max_tokens=4)
    assert vlm.generate([CONVERSATIONS["text"]], greedy)[0].token_ids
