"""Drafts: what is guessed, when, and that answers are to the last detail those without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from string import ascii_letters
from typing import ClassVar

import numpy as np
import pytest
from fake_runtime import (
    EOS,
    VOCAB_SIZE,
    FakeRuntime,
    byte_tokenizer,
    fake_engine,
    fake_request,
    scripted,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.options import BuildOptions
from builders.pipeline import build
from python_backend.config import EngineConfig
from python_backend.errors import EngineError
from python_backend.loading import load_engine
from python_backend.prompt_lookup import PromptLookup, propose
from python_backend.reasoning import ReasoningTokens
from python_backend.sampling_params import Grammar, SamplingParams
from python_backend.structured_output import GrammarCompiler
from tests.tiny.conversations import conversations_of
from tests.tiny.requests import Requests

# --- what is guessed ---------------------------------------------------------------------------------


def _lookup(text, max_tokens=100):
    """A token is a character's code; a `#` can be in no answer, and none is like another."""
    codes = [-i if char == "#" else ord(char) for i, char in enumerate(text, 1)]
    return PromptLookup(np.array(codes), max_tokens)


def _guess(lookup, max_length=99):
    """Drafts are two tokens long in the beginning."""
    return "".join(map(chr, lookup.propose(max_length)))


@pytest.mark.parametrize(
    ("text", "draft"),
    [
        ("abcd abc", "d "),
        ("xbcd abce abc", "e "),  # the last time
        ("abcd xbce abc", "d "),  # but rather the more that is equal
        ("bcd abc", "d "),  # two tokens are enough
        ("cd abc", ""),  # one is not
        ("abc", ""),
        ("a", ""),
        ("abab", "ab"),  # on and on
        ("aaa", "aa"),
        ("abc# abc", ""),  # what is in no answer is not guessed
        ("abcd# abc", "d"),
        ("#bx#b", ""),  # nor compared
    ],
)
def test_draft_is_what_came_next_the_last_time(text, draft):
    assert _guess(_lookup(text)) == draft


def test_tokens_of_the_answer_are_looked_up_too():
    lookup = _lookup("abc", max_tokens=3)
    for char in "xab":
        lookup.append(ord(char))
    assert _guess(lookup) == "cx"


def test_draft_is_as_long_as_there_is_room():
    assert [_guess(_lookup("abab"), max_length) for max_length in (0, 1, 2)] == ["", "a", "ab"]


def _play(lookup, answer):
    """The length of the draft of each step, while the answer comes."""
    lengths, was_guessed = [], False
    for char in answer:
        if not was_guessed:
            draft = lookup.propose(99)
            lookup.expect(draft)
            lengths.append(len(draft))
        was_guessed = lookup.append(ord(char))
    return lengths


def test_drafts_grow_while_they_are_right():
    assert _play(_lookup(ascii_letters + " abc"), ascii_letters[3:33]) == [2, 4, 8, 16]


def test_draft_is_as_long_as_the_last_one_was_right():
    lookup = _lookup("abcdefgh abcdefgh abcdefgh ab")
    assert _play(lookup, "cdefghX") == [2, 4]
    assert (lookup.num_drafted, lookup.num_accepted) == (6, 5)
    _play(lookup, "ab")
    assert _guess(lookup) == "cde"


def test_pauses_grow_while_every_draft_is_wrong():
    # What follows an "ab" is never what followed the last one.
    answer = "".join(f"ab{chr(200 + i)}" for i in range(200))
    lengths = _play(_lookup("ab", max_tokens=600), answer)
    places = [i for i, length in enumerate(lengths) if length]
    assert lengths[places[0]] == 2
    assert all(lengths[place] == 1 for place in places[1:])
    gaps = np.diff(places)
    assert (gaps[:-1] <= gaps[1:]).all()
    assert len(places) < 15


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        ([("abab", 9), ("xyz", 9)], [2, 0]),
        ([("abab", 9), ("xyz", 9), ("rst", 9)], [0, 0, 0]),
        ([("abab", 2), ("abab", 1), ("xyz", 9)], [2, 1, 0]),
        ([("abab", 2), ("abab", 1), ("xyz", 9), ("rst", 9)], [1, 1, 0, 0]),
    ],
)
def test_drafts_of_a_step_are_at_least_half_of_what_they_add_to_it(rows, lengths):
    texts, max_lengths = zip(*rows, strict=True)
    drafts = propose([_lookup(text) for text in texts], max_lengths)
    assert [len(draft) for draft in drafts] == lengths


# --- the engine -----------------------------------------------------------------------------------------


class Oracle(PromptLookup):
    """Knows how texts go on, and is wrong at every fifth place.

    Attributes:
        texts: prompts with their answers.
    """

    texts: ClassVar[list[list[int]]] = []

    def propose(self, max_length):
        known = self._token_ids[: self._size].tolist()
        for text in self.texts:
            if text[: self._size] == known:
                draft = text[self._size : self._size + max(max_length, 0)]
                return [
                    (token_id + 1) % EOS if place % 5 == 0 else token_id
                    for place, token_id in enumerate(draft, self._size)
                ]
        return []


def _run(engine, requests, starts):
    """What is told of every choice, but for the counts of drafts; and the sums of these.

    The requests join at the given steps.
    """
    waiting = sorted(zip(starts, range(len(requests)), strict=True))
    answers, counts, step = {}, np.zeros(2, int), 0
    while waiting or engine.has_unfinished:
        while waiting and waiting[0][0] <= step:
            engine.add_request(requests[waiting.pop(0)[1]])
        ended = set()
        for output in engine.step():
            key = (output.request_id, output.index)
            assert output.request_id not in ended, "something came after the last output"
            if output.is_last:
                ended.add(output.request_id)
            answers[key] = answers[key].merge(output) if key in answers else output
        engine.scheduler.check()
        step += 1
    for key, answer in answers.items():
        usage = answer.usage
        counts += (usage.draft_tokens, usage.accepted_draft_tokens)
        # Which choice is the last one, and which prompts are in the cache, depends on when others end.
        usage = replace(usage, draft_tokens=0, accepted_draft_tokens=0, cached_tokens=0)
        answers[key] = replace(answer, usage=usage, is_last=False)
    return answers, counts.tolist()


def _compare(patch, make_engine, requests, starts=None):
    """Run without drafts and with the oracle's; the counts of drafts and of those that were right."""
    starts = starts or [0] * len(requests)
    expected, counts = _run(make_engine(0), requests, starts)
    assert counts == [0, 0]
    prompts = {request.request_id: request.prompt.token_ids.tolist() for request in requests}
    patch.setattr("python_backend.engine.PromptLookup", Oracle)
    patch.setattr(
        Oracle,
        "texts",
        [[*prompts[name], *answer.token_ids] for (name, _), answer in expected.items()],
    )
    found, counts = _run(make_engine(8), requests, starts)
    assert found == expected
    return counts


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 3),
    n=st.integers(1, 3),
    max_tokens=st.integers(1, 14),
    min_tokens=st.sampled_from([0, 1]),
    ignore_eos=st.booleans(),
    top_k=st.sampled_from([None, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.sampled_from([(), ((EOS, 6.0),), ((65, 5.0), (66, 5.0))]),
    logprobs=st.sampled_from([None, 0, 2]),
    stop=st.sampled_from([(), ("A",), ("AB", "B")]),
    stop_token_ids=st.sampled_from([(), (66,)]),
)


@settings(max_examples=150, deadline=None)
@given(
    visits=st.lists(
        st.tuples(st.binary(min_size=1, max_size=12), st.integers(0, 12), PARAMS),
        min_size=1,
        max_size=5,
    ),
    chunk=st.integers(1, 20),
    max_num_seqs=st.integers(3, 6),
    room=st.integers(0, 3),
)
def test_answers_are_those_without_drafts(visits, chunk, max_num_seqs, room):
    """Whatever is asked for, whoever else runs, up to the very end of the cache rows."""
    longest = max(len(prompt) + params.max_tokens for prompt, _, params in visits)
    requests = [
        fake_request(str(i), prompt, params) for i, (prompt, _, params) in enumerate(visits)
    ]

    def make_engine(max_draft_tokens):
        return fake_engine(
            FakeRuntime(max_model_len=longest + room),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=chunk,
            max_draft_tokens=max_draft_tokens,
        )

    with pytest.MonkeyPatch.context() as patch:
        _compare(patch, make_engine, requests, [start for _, start, _ in visits])


def _fake(next_token=None, **limits):
    return lambda max_draft_tokens: fake_engine(
        FakeRuntime(next_token), max_draft_tokens=max_draft_tokens, **limits
    )


def test_the_oracle_is_right_and_wrong(monkeypatch):
    """Or the test above would show nothing."""
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    drafted, accepted = _compare(monkeypatch, _fake(), [fake_request("a", b"prompt", params)])
    assert 10 < accepted < drafted


def _steps(runtime):
    return [(len(fed), len(fed[0])) for fed in runtime.fed]


def test_row_without_repetitions_is_fed_one_token_a_step():
    runtime = FakeRuntime(scripted({"question": "abcdefgh"}))
    engine = fake_engine(runtime, max_num_batched_tokens=64, max_draft_tokens=8)
    _run(engine, [fake_request("a", "question")], [0])
    assert _steps(runtime) == [(1, 8)] + [(1, 1)] * 8


def test_answer_that_repeats_the_prompt_takes_fewer_steps():
    text = "the quick brown fox jumps over the lazy dog"
    runtime = FakeRuntime(scripted({f"say {text}: ": text}))
    engine = fake_engine(runtime, max_num_batched_tokens=64, max_draft_tokens=8)
    answers, (_, accepted) = _run(engine, [fake_request("a", f"say {text}: ")], [0])
    assert answers["a", 0].text == text
    assert accepted > 30
    assert len(runtime.fed) < 15
    assert runtime.positions[-1][0][0] == runtime.positions[-2][0][0] + len(runtime.fed[-2][0])


@pytest.mark.parametrize("max_draft_tokens", [0, 1])
def test_nothing_is_looked_up_where_no_draft_fits_a_step(monkeypatch, max_draft_tokens):
    monkeypatch.setattr("python_backend.engine.PromptLookup", None)
    engine = fake_engine(FakeRuntime(), max_draft_tokens=max_draft_tokens)
    answers, counts = _run(engine, [fake_request("a", b"abab")], [0])
    assert answers["a", 0].text
    assert counts == [0, 0]


@pytest.mark.parametrize(("num_rows", "width"), [(1, 8), (2, 4), (3, 2), (4, 2), (5, 1)])
def test_tokens_of_a_step_are_limited(num_rows, width):
    runtime = FakeRuntime(lambda tokens: tokens[-2])
    engine = fake_engine(runtime, max_num_seqs=8, max_draft_tokens=8)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, n=num_rows)
    _run(engine, [fake_request("a", b"ab", params)], [0])
    assert max(len(fed[0]) for fed in runtime.fed[1:]) == width


def test_stop_token_among_the_guessed_ends_the_choice(monkeypatch):
    requests = [fake_request("a", "Q", SamplingParams(temperature=0, stop_token_ids=(ord("o"),)))]
    make_engine = _fake(scripted({"Q": "no, not so"}))
    assert _compare(monkeypatch, make_engine, requests)[1] > 0


def test_stop_string_among_the_guessed_ends_the_choice_and_the_rest_is_not_counted(monkeypatch):
    params = SamplingParams(temperature=0, stop=("four",), logprobs=0)
    requests = [fake_request("a", "Q", params)]
    make_engine = _fake(scripted({"Q": "one two three four five six"}))
    assert _compare(monkeypatch, make_engine, requests)[1] > 0


def test_reasoning_and_grammar_are_obeyed_among_the_guessed(monkeypatch, tmp_path):
    path = tmp_path / "tokenizer.json"
    byte_tokenizer().save(str(path))
    grammar = Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": [True, 12]}}))
    constraint = GrammarCompiler(path, VOCAB_SIZE, (EOS,)).compile(grammar)
    params = SamplingParams(seed=3, max_tokens=60, grammar=grammar, n=3, separate_reasoning=True)
    request = replace(fake_request("a", "Q<", params), constraint=constraint)
    tokens = ReasoningTokens(ord("<"), ord(">"), frozenset({EOS}))
    with_reasoning = _fake(reasoning_tokens=tokens)
    assert _compare(monkeypatch, with_reasoning, [request])[1] > 20


def test_abort_between_steps_leaves_nothing_behind():
    runtime = FakeRuntime(lambda tokens: tokens[-2])
    engine = fake_engine(runtime, max_draft_tokens=8)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    engine.add_request(fake_request("a", b"ab", params))
    for _ in range(4):
        engine.step()
    assert len(runtime.fed[-1][0]) > 1
    assert engine.abort("a")
    assert not engine.has_unfinished
    answers, _ = _run(engine, [fake_request("b", b"ab", params)], [0])
    assert bytes(answers["b", 0].token_ids) == b"ab" * 20


def test_request_that_ends_in_a_step_that_raises_is_told_so(monkeypatch):
    """The logits behind a right guess are broken; the other request has had its last token by then."""

    class Broken(FakeRuntime):
        def _logits(self, tokens, positions):
            logits = super()._logits(tokens, positions)
            return logits * np.nan if tokens[-1, 0] == ord("y") else logits

    monkeypatch.setattr("python_backend.engine.PromptLookup", Oracle)
    monkeypatch.setattr(Oracle, "texts", [list(b"Qwxyz")])
    engine = fake_engine(Broken(scripted({"Q": "wxyz", "R": "no"})), max_draft_tokens=8)
    engine.add_request(fake_request("ends", "R"))
    engine.step()
    engine.add_request(fake_request("fails", "Q"))
    engine.step()
    engine.step()
    with pytest.raises(EngineError):
        engine.step()
    assert engine.abort_step() == ["fails", "ends"]
    assert not engine.has_unfinished


def test_what_was_guessed_wrong_is_not_in_the_prefix_cache(monkeypatch):
    """The next turn finds prompt and answer, and not one token more."""
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    first = fake_request("a", b"What?", params)
    answer = _run(_fake()(0), [first], [0])[0]["a", 0].token_ids
    turn = b"What?" + bytes(answer[:-1]) + bytes([(answer[-1] + 1) % EOS]) + b"?"
    monkeypatch.setattr("python_backend.engine.PromptLookup", Oracle)
    wrong = [*answer[:-1], (answer[-1] + 1) % EOS]
    monkeypatch.setattr(Oracle, "texts", [[*b"What?", *wrong]])
    engine = _fake()(8)
    _, (drafted, accepted) = _run(engine, [first], [0])
    assert accepted < drafted
    engine.add_request(fake_request("b", turn, params))
    cached = [output.usage.cached_tokens for output in engine.step() if output.usage]
    assert cached == [len(b"What?") + len(answer) - 1]


def test_engine_that_gives_one_logit_a_row_is_asked_for_no_more(tied, monkeypatch):
    requests = Requests(tied.model)
    params = SamplingParams(
        temperature=0, max_tokens=20, ignore_eos=True, logit_bias=((65, 100.0),)
    )
    request = requests.of(conversations_of(tied.shape)["text"], params)
    accepted = []
    for gives_many in (True, False):
        monkeypatch.setattr("python_backend.runtimes.ort.OrtRuntime.gives_many_logits", gives_many)
        engine = load_engine(tied.model, EngineConfig())
        accepted.append(_run(engine, [request], [0])[1][1])
        engine.close()
    requests.close()
    assert accepted[0] > 10
    assert accepted[1] == 0


# --- every family -----------------------------------------------------------------------------------------


def _compare_model(monkeypatch, model, shape, temperature):
    """All conversations, every second one with the given temperature, some at once and some later."""
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    make_requests, requests = Requests(model), []
    for i, (name, conversation) in enumerate(conversations_of(shape).items()):
        sampling = replace(params, temperature=temperature * (i % 2), seed=i, n=1 + (i == 1))
        requests.append(make_requests.of(conversation, sampling, name))
    engines = []

    def make_engine(max_draft_tokens):
        config = EngineConfig(
            max_num_seqs=3, max_num_batched_tokens=64, max_draft_tokens=max_draft_tokens
        )
        engines.append(load_engine(model, config))
        return engines[-1]

    drafted, accepted = _compare(monkeypatch, make_engine, requests, [0, 0, 9, 9, 20])
    assert 20 < accepted < drafted
    for closing in (make_requests, *engines):
        closing.close()


def test_every_family_answers_as_without_drafts(tiny, monkeypatch):
    _compare_model(monkeypatch, tiny.model, tiny.shape, temperature=1)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_model_answers_as_without_drafts(
    tied, monkeypatch, tmp_path: Path, report, precision
):
    """Greedily: its products depend on the number of rows in the last bits, which a draw may notice."""
    options = BuildOptions(
        model=str(tied.checkpoint), output=tmp_path, max_model_len=512, precision=precision
    )
    _compare_model(monkeypatch, build(options, report)[0], tied.shape, temperature=0)
