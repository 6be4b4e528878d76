"""What a model that babbles writes under the grammar of tool calls, read by the proxy's parser."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from openai_frontend.answers import Choice
from openai_frontend.backend import Delta
from openai_frontend.tool_parser import ToolCallParser
from python_backend.errors import InvalidRequestError
from python_backend.sampler import Sampler
from python_backend.sampler_state import SamplerState
from python_backend.sampling_params import Grammar, SamplingParams
from python_backend.structured_output import GrammarCompiler, unpack_tokens
from python_backend.tool_calls import FORMATS
from tests.tiny.tokenizer import NUM_TOKENS, TOKEN_IDS, write_tokenizer

EOS = TOKEN_IDS["<|im_end|>"]
FORMAT_NAMES = list(FORMATS)
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 99},
        "near": {"type": "boolean"},
    },
    "required": ["x"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = [{"name": "point", "parameters": POINT}, {"name": "point_back", "parameters": NOTHING}]


class Model:
    """A tokenizer, and random logits that a few tokens and strings can be made likely in."""

    def __init__(self, path) -> None:
        self.tokenizer = Tokenizer.from_file(str(path))
        self.compiler = GrammarCompiler(path, NUM_TOKENS, [EOS])

    def state(self, calls, **params) -> SamplerState:
        grammar = Grammar("tool_calls", json.dumps(calls))
        params = SamplingParams(grammar=grammar, **params)
        constraint = self.compiler.compile(grammar)
        return SamplerState(params, (), NUM_TOKENS, 0, [EOS], constraint=constraint)

    def write(self, state, text: str) -> bool:
        """Write `text` if the grammar lets it; whether it did."""
        for token_id in self.tokenizer.encode(text, add_special_tokens=False).ids:
            if not self.allowed(state)[token_id]:
                return False
            state.append(token_id)
        return True

    def allowed(self, state) -> np.ndarray:
        return unpack_tokens(state.constraint.allowed_tokens([state.constraint])[0], NUM_TOKENS)

    def babble(self, calls, seed: int, num_tokens: int = 300, **biases: float) -> str | None:
        """An answer; None if it does not come to an end."""
        state, sampler = self.state(calls, seed=seed), Sampler()
        rng, token_ids = np.random.default_rng(seed), []
        for _ in range(num_tokens):
            logits = rng.normal(0, 1, (1, NUM_TOKENS)).astype(np.float32)
            for token, bias in biases.items():
                logits[0, EOS if token == "end" else self.call_id] += bias
            (token,) = sampler.sample(logits, [state])
            if token.token_id == EOS:
                return self.tokenizer.decode(token_ids)
            state.append(token.token_id)
            token_ids.append(token.token_id)
        return None

    @property
    def call_id(self) -> int:
        return self.tokenizer.token_to_id("<tool_call>")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Model(folder / "tokenizer.json")


def calls_of(name="hermes", *, is_required=True, is_parallel=True, functions=None, **more):
    return {
        "format": name,
        "functions": functions or FUNCTIONS,
        "is_required": is_required,
        "is_parallel": is_parallel,
        **more,
    }


def parse(name, text):
    choice = Choice()
    choice.add(ToolCallParser(FORMATS[name]).parse(Delta(text=text, finish_reason="stop")))
    return choice


def check_call(call):
    arguments = json.loads(call["arguments"])
    if call["name"] == "point":
        assert {"x"} <= arguments.keys() <= {"x", "near"}
        assert 0 <= arguments["x"] <= 99
        assert type(arguments.get("near", True)) is bool
    else:
        assert (call["name"], arguments) == ("point_back", {})


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("seed", range(8))
def test_a_required_call_is_valid(model, name, seed):
    text = model.babble(calls_of(name, is_parallel=False), seed)
    (call,) = parse(name, text).tool_calls
    check_call(call)
    assert text == FORMATS[name].call(call["name"], call["arguments"])


def test_several_calls_are_valid(model):
    counts = set()
    for seed in range(12):
        choice = parse("hermes", model.babble(calls_of(), seed, end=1.5))
        for call in choice.tool_calls:
            check_call(call)
        assert choice.text == ""
        counts.add(len(choice.tool_calls))
    assert min(counts) == 1
    assert max(counts) > 1


def test_a_named_function_is_the_only_one(model):
    for seed in range(5):
        text = model.babble(calls_of(functions=FUNCTIONS[1:]), seed, end=9)
        assert [call["name"] for call in parse("hermes", text).tool_calls] == ["point_back"]


@pytest.mark.parametrize("seed", range(8))
def test_a_call_that_the_model_begins_itself_is_valid(model, seed):
    text = model.babble(calls_of(is_required=False, is_parallel=False), seed, call=3.5, end=-1)
    choice = parse("hermes", text)
    assert choice.tool_calls
    for call in choice.tool_calls:
        check_call(call)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_without_a_call_text_is_free(model, name):
    calls = calls_of(name, is_required=False)
    for text in ("", 'Hi <b> {"name": 1}\n</tool> 例', "<tool", "{", '{"name": '):
        state = model.state(calls)
        assert model.write(state, text)
        assert model.allowed(state)[EOS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "other'),
        ("hermes", "<tool_call>Hello"),
        ("hermes", 'Well. <tool_call>\n{"name": "point", "arguments": {"x": 100'),
        ("hermes", '<tool_call>\n{"name": "point_back", "arguments": {}}\n</tool_call> Done.'),
        ("hermes", "</tool_call>"),
        ("llama3_json", '{"name": "other'),
        ("llama3_json", '{"name": "point", "parameters": {"x": 100'),
        ("llama3_json", '{"name": "point_back", "parameters": {}};'),
    ],
)
def test_what_is_no_valid_call_cannot_be_written(model, name, text):
    state = model.state(calls_of(name, is_required=False))
    assert not model.write(state, text)


def test_a_mark_cannot_be_spelled_out(model):
    """The proxy reads text: it would take it for a call that the grammar knows nothing of."""
    state = model.state(calls_of(is_required=False))
    for char in "<tool_call":
        assert model.write(state, char)
    assert not model.write(state, ">")


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_beside_calls_may_have_a_schema(model, seed):
    calls = calls_of(is_required=False, is_parallel=False, content=POINT)
    choice = parse("hermes", model.babble(calls, seed, call=3.0 if seed % 2 else -9.0))
    assert len(choice.tool_calls) == seed % 2
    if not seed % 2:
        check_call({"name": "point", "arguments": choice.text})


def test_an_answer_with_a_schema_cannot_be_told_from_a_call_in_json(model):
    with pytest.raises(InvalidRequestError, match="separate requests"):
        model.state(calls_of("llama3_json", is_required=False, content=POINT))
    assert model.babble(calls_of("llama3_json", is_parallel=False, content=POINT), 0)


@pytest.mark.parametrize("is_required", [True, False])
def test_a_schema_that_cannot_be_enforced_is_refused(model, is_required):
    """GHSA-vrq3-r879-7m65: schemas of tools that crash a worker."""
    functions = [
        *FUNCTIONS,
        {"name": "no", "parameters": {"type": "object", "not": {"required": ["a"]}}},
    ]
    with pytest.raises(
        InvalidRequestError, match=r"function 'no': the JSON schema cannot be enforced: .*not"
    ):
        model.state(calls_of(functions=functions, is_required=is_required))


def test_text_in_a_schema_is_no_part_of_the_grammar(model):
    odd = '"} | /x/ <[1]> %json {} \n start: "'
    schema = {
        "type": "object",
        "properties": {odd: {"const": odd}},
        "required": [odd],
        "additionalProperties": False,
    }
    text = model.babble(calls_of(functions=[{"name": "f", "parameters": schema}]), 0, end=9)
    (call,) = parse("hermes", text).tool_calls
    assert json.loads(call["arguments"]) == {odd: odd}


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ([], "grammar"),
        (calls_of() | {"more": 1}, "grammar.more"),
        (calls_of() | {"format": "xml"}, "grammar.format"),
        (calls_of() | {"functions": []}, "grammar.functions"),
        (calls_of() | {"functions": FUNCTIONS * 65}, "grammar.functions"),
        (calls_of() | {"functions": [{"name": "a"}]}, "grammar.functions[0]"),
        (calls_of() | {"functions": [{"name": "a", "parameters": 1}]}, "grammar.functions[0]"),
        (
            calls_of() | {"functions": [{"name": 'a"', "parameters": {}}]},
            "grammar.functions[0].name",
        ),
        (
            calls_of() | {"functions": [{"name": "a\n", "parameters": {}}]},
            "grammar.functions[0].name",
        ),
        (calls_of() | {"is_required": 1}, "grammar.is_required"),
        (calls_of() | {"is_parallel": None}, "grammar.is_parallel"),
        (calls_of() | {"content": []}, "grammar.content"),
        (calls_of(functions=[{"name": "a", "parameters": {"title": "a" * 70_000}}]), "grammar"),
    ],
)
def test_malformed_calls_are_refused(calls, param):
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams.from_json(json.dumps({"grammar": {"tool_calls": calls}}))
    assert caught.value.param == param


def test_calls_survive_their_json():
    given = {"grammar": {"tool_calls": calls_of(content=POINT)}, "separate_reasoning": False}
    params = SamplingParams.from_json(json.dumps(given))
    assert SamplingParams.from_json(params.to_json()) == params
    assert json.loads(params.to_json()) == given
