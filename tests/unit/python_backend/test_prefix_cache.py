"""Prompts that begin like an earlier one: which rows they take, and that answers stay what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from fake_runtime import HIDDEN_SIZE, FakeRuntime, fake_engine, fake_request, scripted

from python_backend.config import EngineConfig
from python_backend.errors import InvalidRequestError
from python_backend.families.base import PreparedPrompt, PromptImage
from python_backend.loading import load_engine
from python_backend.prefix_cache import Prefix, PrefixCache, RowCopy
from python_backend.request import GenerationRequest
from python_backend.sampling_params import SamplingParams
from tests.tiny.conversations import conversations_of
from tests.tiny.pictures import png
from tests.tiny.requests import Requests

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

# --- rows ------------------------------------------------------------------------------------------


@dataclass
class Text:
    """Content of a row: its characters are its tokens."""

    text: str

    @property
    def num_computed_tokens(self) -> int:
        return len(self.text)

    def num_common(self, prompt: str) -> int:
        equal = [one == two for one, two in zip(self.text, prompt, strict=False)]
        return [*equal, False].index(False)


def _rows(*texts):
    cache = PrefixCache(len(texts))
    for slot, text in enumerate(texts):
        cache.put(slot, Text(text) if text is not None else None)
    return cache


def _find(cache, prompt, first_free=0):
    return cache.find(lambda content: content.num_common(prompt), first_free)


@pytest.mark.parametrize(
    ("texts", "first_free", "prefix"),
    [
        (("xyz", None), 0, Prefix(0, 0)),  # nothing
        (("abx", "abcx", "ax"), 0, Prefix(1, 3)),  # the most
        (("abxxxx", "abx", "abxx"), 0, Prefix(1, 2)),  # the one that loses least
        (("abx", "abxxx"), 1, Prefix(1, 2)),  # a free one rather than one that runs
        (("abc", "abx"), 1, Prefix(0, 3)),  # but one that runs if it has more
    ],
)
def test_row_that_holds_most_of_a_prompt_is_found(texts, first_free, prefix):
    assert _find(_rows(*texts), "abcdef", first_free) == prefix


@pytest.mark.parametrize(
    ("texts", "prefix", "first_free", "slot"),
    [
        ((None, "abc", None), Prefix(1, 3), 0, 1),  # nothing is lost
        (("x", "abcd", None), Prefix(1, 3), 0, 2),  # an empty row is there for a copy
        (("x", "abcdef", "y"), Prefix(1, 3), 0, 1),  # as much is used as lost
        (("x", "abcdefg", "y"), Prefix(1, 3), 0, 0),  # more would be lost: the oldest
        (("abc", "x", "y"), Prefix(0, 3), 1, 1),  # a row that runs is left alone
        (("x", "y", "z"), Prefix(0, 0), 0, 0),  # no prefix: the oldest
    ],
)
def test_row_to_compute_in_is_the_one_whose_loss_hurts_least(texts, prefix, first_free, slot):
    assert _rows(*texts).slot_for(prefix, first_free) == slot


def test_row_in_use_until_now_is_given_up_last():
    cache = _rows("x", "y", "z")
    cache.put(0, cache[0])
    assert cache.slot_for(Prefix(0, 0), 0) == 1


def test_exchanged_rows_take_their_age_along():
    cache = _rows("old", "newer", "newest")
    assert cache.exchange(0, 2) == RowCopy(0, 2, num_tokens=3, num_back=6)
    assert [cache[slot].text for slot in range(3)] == ["newest", "newer", "old"]
    assert cache.slot_for(Prefix(0, 0), 0) == 2


# --- the engine, whose fake answers by everything that its row holds ---------------------------------


def _run(engine, *requests):
    """The requests' last outputs, by id."""
    for request in requests:
        engine.add_request(request)
    answers = {}
    while engine.has_unfinished:
        for output in engine.step():
            key = (output.request_id, output.index)
            answers[key] = answers[key].merge(output) if key in answers else output
        engine.scheduler.check()
    return answers


def _ask(engine, prompt, params=GREEDY, request_id="a"):
    request = fake_request(request_id, prompt, params)
    return _run(engine, request)[request_id, 0]


def _alone(prompt, params=GREEDY):
    return _ask(fake_engine(FakeRuntime(), prefix_cache=False), prompt, params)


def _fed(runtime):
    """The tokens of each call, as text."""
    fed = ["/".join(bytes(row).decode("latin-1") for row in call) for call in runtime.fed]
    runtime.fed.clear()
    return fed


def test_only_the_last_token_of_a_prompt_that_came_before_is_computed():
    runtime = FakeRuntime(scripted({"question": "yes"}))
    engine = fake_engine(runtime, max_num_batched_tokens=64)
    params = replace(GREEDY, ignore_eos=False)
    first = _ask(engine, "question", params)
    assert _fed(runtime) == ["question", "y", "e", "s"]
    second = _ask(engine, "question", params)
    assert _fed(runtime) == ["n", "y", "e", "s"]
    assert first.text == second.text == "yes"
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 7)
    assert first.usage.prompt_tokens == second.usage.prompt_tokens == 8


def test_next_turn_finds_prompt_and_answer():
    runtime = FakeRuntime()
    engine = fake_engine(runtime, max_num_batched_tokens=64)
    answer = _ask(engine, b"What?")
    runtime.fed.clear()
    turn = b"What?" + bytes(min(token, 255) for token in answer.token_ids) + b" And?"
    again = _ask(engine, turn)
    # The last token of an answer is sampled, not computed.
    assert again.usage.cached_tokens == 5 + 5
    assert again.token_ids == _alone(turn).token_ids


def test_prompt_is_copied_from_a_row_that_runs():
    runtime = FakeRuntime()
    engine = fake_engine(runtime, max_num_batched_tokens=64)
    prompts = [b"a long beginning, then one", b"a long beginning, then two"]
    requests = [fake_request(str(i), prompt, GREEDY) for i, prompt in enumerate(prompts)]
    answers = _run(engine, *requests)
    assert [answers[str(i), 0].usage.cached_tokens for i in range(2)] == [0, 23]
    for i, prompt in enumerate(prompts):
        assert answers[str(i), 0].token_ids == _alone(prompt).token_ids


def test_conversations_with_the_same_beginning_do_not_push_each_other_out():
    engine = fake_engine(FakeRuntime(), max_num_seqs=3)
    beginning = b"You are kind. "
    for name in (b"first, in many words", b"second, in many words"):
        _ask(engine, beginning + name)
    for name in (b"first, in many words", b"second, in many words"):
        again = _ask(engine, beginning + name + b"!")
        assert again.usage.cached_tokens == len(beginning + name)


def test_choices_of_one_request_start_from_what_is_in_the_cache():
    engine = fake_engine(FakeRuntime())
    params = SamplingParams(n=3, seed=1, max_tokens=6, ignore_eos=True)
    for _ in range(3):
        answers = _run(engine, fake_request("a", b"Tell me.", params))
        alone = _run(fake_engine(FakeRuntime()), fake_request("a", b"Tell me.", params))
        assert [a.token_ids for a in answers.values()] == [a.token_ids for a in alone.values()]
    assert answers["a", 0].usage.cached_tokens == 7


def test_what_an_aborted_request_computed_is_used():
    engine = fake_engine(FakeRuntime(), max_num_batched_tokens=4)
    engine.add_request(fake_request("gone", b"a prompt in parts", GREEDY))
    engine.step()
    engine.step()
    engine.abort("gone")
    output = _ask(engine, b"a prompt in parts")
    assert output.usage.cached_tokens == 8
    assert output.token_ids == _alone(b"a prompt in parts").token_ids


def test_rows_are_not_trusted_after_a_step_that_raised():
    """The fake writes its cache before it raises, as an engine may."""
    runtime = FakeRuntime(poison=ord("#"))
    engine = fake_engine(runtime, max_num_batched_tokens=4)
    _ask(engine, b"another prompt", request_id="fine")
    engine.add_request(fake_request("bad", b"goodbad#", GREEDY))
    engine.step()
    with pytest.raises(RuntimeError):
        engine.step()
    assert engine.abort_step() == ["bad"]
    for prompt in (b"goodbad!", b"another prompt"):
        output = _ask(engine, prompt)
        assert output.usage.cached_tokens == 0
        assert output.token_ids == _alone(prompt).token_ids


def test_requests_with_different_salts_do_not_share():
    engine = fake_engine(FakeRuntime())
    salted = [replace(GREEDY, cache_salt=salt) for salt in (None, "one", "two", "one", None)]
    outputs = [_ask(engine, b"secret?", params) for params in salted]
    assert [output.usage.cached_tokens for output in outputs] == [0, 0, 0, 6, 6]


def test_cache_that_is_switched_off_keeps_nothing():
    engine = fake_engine(FakeRuntime(), prefix_cache=False)
    outputs = [_ask(engine, b"question") for _ in range(2)]
    assert [output.usage.cached_tokens for output in outputs] == [0, 0]


def _picture_request(request_id, image_hash, value):
    tokens = np.array([*b"See", 0, 0, *b"what?"])
    index = np.where(tokens == 0, np.cumsum(tokens == 0) - 1, -1)
    images = [PromptImage(image_hash, 2)]
    prompt = PreparedPrompt(tokens, index, np.arange(len(tokens))[None], images=images)
    embeds = np.full((2, HIDDEN_SIZE), value, np.float32)
    return GenerationRequest(request_id, prompt, embeds, GREEDY)


def test_same_text_about_another_picture_is_computed_from_the_picture_on():
    engine = fake_engine(FakeRuntime())
    pictures = [("red", 1), ("blue", 2), ("red", 1)]
    answers = [_run(engine, _picture_request("a", *picture))["a", 0] for picture in pictures]
    assert [answer.usage.cached_tokens for answer in answers] == [0, 3, 9]
    assert answers[0].token_ids == answers[2].token_ids != answers[1].token_ids


@pytest.mark.parametrize("lengths", [(), (1,), (3,), (2, 0), (3, -1)])
def test_images_that_do_not_fit_the_prompt_are_refused(lengths):
    request = _picture_request("a", "red", 1)
    images = [PromptImage("red", length) for length in lengths]
    wrong = replace(request, prompt=replace(request.prompt, images=images))
    with pytest.raises(InvalidRequestError) as caught:
        fake_engine(FakeRuntime()).add_request(wrong)
    assert caught.value.param == "image_lengths"


# --- every family ----------------------------------------------------------------------------------


def _next_turn(request, answer):
    """The same prompt, its answer, and a few tokens more."""
    prompt = request.prompt
    tokens = np.array([*answer, *prompt.token_ids[:4]])
    positions = prompt.position_ids.max() + 1 + np.arange(len(tokens))
    seen = prompt.cross_range
    if seen is not None:
        seen = np.concatenate([seen, seen[-1:].repeat(len(tokens), axis=0)])
    longer = replace(
        prompt,
        token_ids=np.concatenate([prompt.token_ids, tokens]),
        image_index=np.concatenate([prompt.image_index, np.full(len(tokens), -1)]),
        position_ids=np.concatenate(
            [prompt.position_ids, positions[None].repeat(len(prompt.position_ids), axis=0)], axis=1
        ),
        cross_range=seen,
    )
    return replace(request, prompt=longer)


def _with_another_picture(conversation):
    """The last picture is another one of the same size, so that not one token differs."""
    *others, last = conversation
    parts = [
        {**part, "image": png(211, 64, seed=9)} if part["type"] == "image" else part
        for part in last["content"]
    ]
    return [*others, {**last, "content": parts}]


def test_answers_are_the_same_with_the_cache_and_without(tiny):
    """Alone, again, as the next turn, about another picture, of several choices, and all at once."""
    config = EngineConfig(max_num_batched_tokens=16, max_num_seqs=4)
    without, cached = (
        load_engine(tiny.model, replace(config, prefix_cache=is_on)) for is_on in (False, True)
    )
    requests = Requests(tiny.model)
    *_, conversation = conversations_of(tiny.shape).values()
    first = requests.of(conversation, GREEDY)
    answer = _run(without, first)["a", 0].token_ids
    series = {"first": first, "again": first, "next turn": _next_turn(first, answer)}
    if tiny.shape.sees_images:
        *_, conversation = conversations_of(tiny.shape).values()
        series["other picture"] = requests.of(_with_another_picture(conversation), GREEDY)
    series["choices"] = replace(first, params=replace(first.params, n=3))
    num_prompt = len(first.prompt.token_ids)
    num_cached = {}
    for name, request in series.items():
        expected, found = (_run(engine, request) for engine in (without, cached))
        assert {k: a.token_ids for k, a in found.items()} == {
            k: a.token_ids for k, a in expected.items()
        }, name
        num_cached[name] = found["a", 0].usage.cached_tokens
        assert expected["a", 0].usage.cached_tokens == 0
    assert num_cached["first"] == 0
    assert num_cached["again"] == num_cached["choices"] == num_prompt - 1
    assert num_cached["next turn"] == num_prompt + len(answer) - 1
    if tiny.shape.sees_images:
        first_token = np.flatnonzero(first.prompt.image_index >= 0)[-1]
        assert num_cached["other picture"] < first_token
    together = [replace(request, request_id=name) for name, request in series.items()]
    expected, found = (_run(engine, *together) for engine in (without, cached))
    assert {k: a.token_ids for k, a in found.items()} == {
        k: a.token_ids for k, a in expected.items()
    }
    for closing in (requests, without, cached):
        closing.close()
