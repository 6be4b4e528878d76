from __future__ import annotations

import dataclasses
import time
import weakref
from collections import defaultdict

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
from hypothesis import example, given, settings
from hypothesis import strategies as st

from python_backend.errors import (
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
)
from python_backend.families.base import PreparedPrompt, PromptImage
from python_backend.prompt_logprobs import prompt_logprobs
from python_backend.request import GenerationRequest
from python_backend.sampling_params import SamplingParams
from python_backend.token_text import TokenText


def _greedy(**changes):
    return SamplingParams(temperature=0, **changes)


def _merge(outputs):
    """Per request and choice, all outputs as one."""
    answers = defaultdict(dict)
    for output in outputs:
        choices = answers[output.request_id]
        earlier = choices.get(output.index)
        assert earlier is None or earlier.finish_reason is None, "an output after the last one"
        choices[output.index] = earlier.merge(output) if earlier else output
    return answers


def _finish(engine):
    outputs = []
    while engine.has_unfinished:
        outputs += engine.step()
        engine.scheduler.check()
    return outputs


def _answer(params, script=None, prompt="Q", **limits):
    """The answer to one request with one choice."""
    runtime = FakeRuntime(scripted(script) if script else None)
    engine = fake_engine(runtime, **limits)
    engine.add_request(fake_request("a", prompt, params))
    (output,) = _merge(_finish(engine))["a"].values()
    return output


# --- results ---------------------------------------------------------------------------------------


def _tokens(prompts, starts, params, *, is_asynchronous=False, **limits):
    """Token ids of each request, which join at the given steps."""
    engine = fake_engine(FakeRuntime(is_asynchronous=is_asynchronous), **limits)
    order = sorted(range(len(prompts)), key=lambda i: (starts[i], i))
    outputs, step = [], 0
    while order or engine.has_unfinished:
        while order and starts[order[0]] <= step:
            i = order.pop(0)
            engine.add_request(fake_request(str(i), prompts[i], params[i]))
        outputs += engine.step()
        engine.scheduler.check()
        step += 1
    merged = _merge(outputs)
    return [
        [list(choice.token_ids) for _, choice in sorted(merged[str(i)].items())]
        for i in range(len(prompts))
    ]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 3),
    n=st.integers(1, 3),
    max_tokens=st.integers(1, 12),
    ignore_eos=st.booleans(),
)


# Many begin alike.
PROMPTS = st.builds(
    bytes.__add__,
    st.sampled_from([b"", b"A short beginning", b"A short one"]),
    st.binary(min_size=1, max_size=20),
)


@settings(max_examples=60, deadline=None)
@given(
    visits=st.lists(
        st.tuples(PROMPTS, st.integers(0, 20), PARAMS),
        min_size=1,
        max_size=6,
    ),
    chunk=st.integers(1, 20),
    max_num_seqs=st.integers(3, 6),
    is_asynchronous=st.booleans(),
)
def test_answer_does_not_depend_on_batch_mates_chunks_or_slots(
    visits, chunk, max_num_seqs, is_asynchronous
):
    prompts, starts, params = (list(column) for column in zip(*visits, strict=True))
    together = _tokens(
        prompts,
        starts,
        params,
        is_asynchronous=is_asynchronous,
        max_num_batched_tokens=chunk,
        max_num_seqs=max_num_seqs,
    )
    for prompt, param, tokens in zip(prompts, params, together, strict=True):
        assert _tokens([prompt], [0], [param], max_num_batched_tokens=64) == [tokens]


def test_greedy_choices_are_equal_and_seeded_ones_differ():
    runtime = FakeRuntime()
    engine = fake_engine(runtime)
    engine.add_request(fake_request("greedy", b"x", _greedy(n=2, max_tokens=8, ignore_eos=True)))
    seeded = SamplingParams(n=2, seed=7, max_tokens=8, ignore_eos=True)
    engine.add_request(fake_request("seeded", b"x", seeded))
    answers = _merge(_finish(engine))
    assert answers["greedy"][0].token_ids == answers["greedy"][1].token_ids
    assert answers["seeded"][0].token_ids != answers["seeded"][1].token_ids


def _image_request(embeds):
    prompt = b"What is \x00\x00\x00\x00 here?"
    tokens = np.frombuffer(prompt, np.uint8).astype(np.int64)
    index = np.where(tokens == 0, np.cumsum(tokens == 0) - 1, -1)
    images = [PromptImage("picture", 4)]
    prepared = PreparedPrompt(tokens, index, np.arange(len(tokens))[None], images=images)
    return GenerationRequest("a", prepared, embeds, _greedy())


def test_image_embeddings_reach_the_rows_they_belong_to():
    """The fake sees embeddings only, so they must arrive in order and across chunks."""
    embeds = np.array([[72, 0], [69, 0], [82, 0], [69, 0]], np.float32)
    runtime = FakeRuntime(scripted({"What is HERE here?": "ok"}))
    engine = fake_engine(runtime, max_num_batched_tokens=3)
    engine.add_request(_image_request(embeds))
    (output,) = _merge(_finish(engine))["a"].values()
    assert output.text == "ok"
    assert output.usage.image_tokens == 4


def test_image_embeddings_are_freed_when_the_prompt_is_computed():
    embeds = np.zeros((4, 2), np.float32)
    freed = weakref.ref(embeds)
    engine = fake_engine(FakeRuntime(), max_num_batched_tokens=6)
    engine.add_request(_image_request(embeds))
    del embeds
    num_prompt_steps = 3  # of 18 tokens
    for _ in range(num_prompt_steps):
        assert freed() is not None
        engine.step()
    assert engine.has_unfinished
    assert freed() is None


# --- ends ------------------------------------------------------------------------------------------


def test_end_of_sequence_ends_the_answer_and_is_not_shown():
    output = _answer(_greedy(), {"Q": "Hello"})
    assert (output.text, output.finish_reason, output.matched_stop) == ("Hello", "stop", EOS)
    assert output.token_ids == [*b"Hello", EOS]
    assert (output.usage.prompt_tokens, output.usage.completion_tokens) == (1, 6)


def test_max_tokens_ends_the_answer():
    output = _answer(_greedy(max_tokens=3), {"Q": "Hello"})
    assert (output.text, output.finish_reason, output.matched_stop) == ("Hel", "length", None)


def test_without_max_tokens_the_context_ends_the_answer():
    output = _answer(_greedy(ignore_eos=True), prompt="x" * 90)
    assert output.finish_reason == "length"
    assert output.usage.completion_tokens == 96 - 90


def test_half_a_character_at_the_end_becomes_a_replacement_character():
    output = _answer(_greedy(max_tokens=4), {"Q": "abcé"})
    assert output.text == "abc\N{REPLACEMENT CHARACTER}"


def test_stop_string_across_tokens_is_cut_off():
    output = _answer(_greedy(stop=("lo w",)), {"Q": "Hello world"})
    assert (output.text, output.finish_reason, output.matched_stop) == ("Hel", "stop", "lo w")
    assert output.token_ids == [*b"Hello w"]
    assert output.usage.completion_tokens == 7


def test_beginning_of_a_stop_string_that_does_not_come_is_shown_at_the_end():
    output = _answer(_greedy(stop=("world!",)), {"Q": "Hello world"})
    assert (output.text, output.finish_reason) == ("Hello world", "stop")


def test_stop_string_in_the_last_token_wins_over_the_length():
    output = _answer(_greedy(stop=("lo",), max_tokens=5), {"Q": "Hello world"})
    assert output.text == "Hel"
    assert output.matched_stop == "lo"


@pytest.mark.parametrize("is_shown", [False, True])
def test_stop_token_is_shown_only_when_asked_for(is_shown):
    params = _greedy(stop_token_ids=(ord("w"),), include_stop_str_in_output=is_shown)
    output = _answer(params, {"Q": "Hello world"})
    assert (output.text, output.matched_stop) == ("Hello " + "w" * is_shown, ord("w"))


def test_control_tokens_are_shown_only_when_asked_for():
    for skips in (True, False):
        params = _greedy(ignore_eos=True, max_tokens=2, skip_special_tokens=skips)
        engine = fake_engine(FakeRuntime(lambda tokens: EOS))
        engine.add_request(fake_request("a", "Q", params))
        assert _merge(_finish(engine))["a"][0].text == ("" if skips else "<eos><eos>")


def test_min_tokens_holds_off_every_kind_of_end():
    params = _greedy(min_tokens=4, stop=("H",), max_tokens=6)
    output = _answer(params, {"Q": "HaHaHa"})
    assert output.text == "HaHa"
    output = _answer(_greedy(min_tokens=4, max_tokens=6, stop_token_ids=(97,)))
    assert len(output.token_ids) >= 4
    assert not {EOS, 97} & set(output.token_ids[:4])


def test_ignore_eos_goes_on():
    output = _answer(
        _greedy(ignore_eos=True, max_tokens=4), prompt="x"
    )  # any tokens, but four of them
    assert len(output.token_ids) == 4
    assert output.finish_reason == "length"


def test_a_choice_that_ends_early_leaves_the_others_undisturbed():
    """Which choice ends first depends on the seed; each one must be what it is alone."""
    params = SamplingParams(n=4, seed=5, max_tokens=30, stop_token_ids=tuple(range(0, 256, 16)))
    engine = fake_engine(FakeRuntime())
    engine.add_request(fake_request("a", b"prompt", params))
    outputs = _finish(engine)
    lengths = {i: len(choice.token_ids) for i, choice in _merge(outputs)["a"].items()}
    assert len(set(lengths.values())) > 1
    assert [output.is_last for output in outputs].count(True) == 1
    assert outputs[-1].is_last


def test_logprobs_come_with_every_token_only_when_asked_for():
    output = _answer(_greedy(logprobs=2), {"Q": "Hi"})
    assert [entry["token"] for entry in output.logprobs] == ["H", "i", "<eos>"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in output.logprobs)
    assert _answer(_greedy(), {"Q": "Hi"}).logprobs is None


def test_usage_and_the_prompts_tokens_come_with_the_first_token():
    engine = fake_engine(FakeRuntime())
    params = _greedy(n=2, max_tokens=3, ignore_eos=True, return_token_ids=True)
    engine.add_request(fake_request("a", b"prompt of 19 tokens", params))
    outputs = _finish(engine)
    for index in range(2):
        first, middle, last = (output for output in outputs if output.index == index)
        assert first.usage.prompt_tokens == last.usage.prompt_tokens == 19
        assert (first.usage.completion_tokens, last.usage.completion_tokens) == (1, 3)
        assert middle.usage is None
        assert first.prompt_token_ids == (None if index else list(b"prompt of 19 tokens"))
        assert middle.prompt_token_ids is last.prompt_token_ids is None
        assert first.merge(middle).usage == first.usage
        assert first.merge(middle).merge(last).usage == last.usage
    assert _answer(_greedy(max_tokens=1)).prompt_token_ids is None


def test_timing_comes_with_the_last_token_only_when_asked_for():
    engine = fake_engine(FakeRuntime())
    before = time.time()
    for request_id, asked in (("a", True), ("b", False)):
        params = _greedy(n=2, max_tokens=3, ignore_eos=True, return_timing=asked)
        engine.add_request(fake_request(request_id, b"prompt", params))
    outputs = _finish(engine)
    assert [output.is_last for output in outputs if output.timing is not None] == [True]
    *others, last = (output for output in outputs if output.request_id == "a")
    timing = last.timing
    assert before <= timing.arrived_at <= time.time()
    assert min(timing.queue_s, timing.prefill_s, timing.decode_s) > 0
    assert timing.queue_s + timing.prefill_s + timing.decode_s <= time.time() - before
    assert others[-1].merge(last).timing == timing


def test_steps_are_counted_by_kind():
    engine = fake_engine(FakeRuntime())
    params = _greedy(n=2, max_tokens=3, ignore_eos=True)
    engine.add_request(fake_request("a", b"prompt of 19 tokens", params))
    _finish(engine)
    prefill, decode = engine.step_counts["prefill"], engine.step_counts["decode"]
    assert prefill.num_tokens == 19
    assert (decode.num_steps, decode.num_tokens) == (2, 4)
    assert prefill.seconds > 0 < decode.seconds


# --- log probabilities of the prompt ---------------------------------------------------------------


def _expected_logprobs(tokens, place):
    """Of every token at a place of a prompt without images, from the runtime's own logits."""
    column = np.array(list(tokens[:place]), np.float32)[:, None]
    positions = np.arange(place, dtype=np.float32)[:, None]
    logits = FakeRuntime()._logits(column, positions).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


@settings(max_examples=30, deadline=None)
@given(
    prompt=st.binary(min_size=1, max_size=90),
    chunk=st.integers(1, 90),
    num_logprobs=st.integers(0, 3),
)
@example(prompt=bytes(90), chunk=90, num_logprobs=1)
def test_prompt_logprobs_are_those_of_the_runtime_however_the_prompt_is_cut(
    prompt, chunk, num_logprobs
):
    params = _greedy(n=2, max_tokens=2, ignore_eos=True, prompt_logprobs=num_logprobs)
    engine = fake_engine(FakeRuntime(), max_num_batched_tokens=chunk)
    engine.add_request(fake_request("a", prompt, params))
    answers = _merge(_finish(engine))["a"]
    assert answers[1].prompt_logprobs is None
    entries = answers[0].prompt_logprobs
    assert [next(iter(entry)) for entry in entries] == list(prompt)
    assert entries[0] == {
        prompt[0]: {
            "logprob": None,
            "rank": None,
            "decoded_token": entries[0][prompt[0]]["decoded_token"],
        }
    }
    for place in range(1, len(prompt)):
        logprobs = _expected_logprobs(prompt, place)
        ranks = (-logprobs).argsort().argsort() + 1
        likely = set((-logprobs).argsort()[:num_logprobs].tolist())
        assert set(entries[place]) == {prompt[place], *likely}
        for token_id, entry in entries[place].items():
            assert entry["logprob"] == pytest.approx(logprobs[token_id], abs=1e-4)
            assert entry["rank"] == ranks[token_id]
    # What is generated is not changed by it.
    engine = fake_engine(FakeRuntime())
    engine.add_request(fake_request("a", prompt, _greedy(max_tokens=2, ignore_eos=True)))
    assert _merge(_finish(engine))["a"][0].token_ids == answers[0].token_ids


def test_prompt_logprobs_are_computed_for_few_tokens_at_a_time_and_only_if_asked_for():
    shapes = []

    class Watched(FakeRuntime):
        def _run(self, feeds, cache):
            shapes.append(feeds["logits_index"].shape[1])
            return super()._run(feeds, cache)

    for num_logprobs in (0, None):
        engine = fake_engine(Watched(max_model_len=400), max_num_batched_tokens=256)
        params = _greedy(max_tokens=1, prompt_logprobs=num_logprobs)
        engine.add_request(fake_request("a", b"x" * 300, params))
        _finish(engine)
    # Each chunk, and the token to generate.
    assert shapes == [65, 65, 65, 65, 44, 1, 1]


def test_image_tokens_have_no_log_probability_and_cost_no_logits():
    engine = fake_engine(FakeRuntime())
    request = _image_request(np.arange(8, dtype=np.float32).reshape(4, 2))
    params = _greedy(max_tokens=1, prompt_logprobs=0)
    engine.add_request(dataclasses.replace(request, params=params))
    entries = _merge(_finish(engine))[request.request_id][0].prompt_logprobs
    unscored = [
        i for i, entry in enumerate(entries) if next(iter(entry.values()))["logprob"] is None
    ]
    image = np.flatnonzero(request.prompt.image_index >= 0).tolist()
    assert unscored == [0, *image]


def test_token_that_has_no_logit_has_no_log_probability():
    """Llama 3.2 Vision's image token is behind the end of its logits; the decoder takes it as text too."""
    tokens = np.array([1, VOCAB_SIZE, 2])
    prompt = PreparedPrompt(tokens, np.full(3, -1), np.arange(3)[None])
    logits = np.zeros((2, VOCAB_SIZE), np.float32)
    entries = prompt_logprobs(prompt, 0, 3, logits, 0, TokenText(byte_tokenizer()))
    found = [next(iter(entry.values()))["logprob"] for entry in entries]
    assert found == [None, None, pytest.approx(-np.log(VOCAB_SIZE))]


def test_engine_without_logits_of_all_tokens_refuses_to_score_prompts():
    class OneRow(FakeRuntime):
        gives_many_logits = False

    engine = fake_engine(OneRow())
    with pytest.raises(InvalidRequestError) as caught:
        engine.add_request(fake_request("a", b"x", _greedy(prompt_logprobs=0)))
    assert caught.value.param == "prompt_logprobs"
    assert not engine.has_unfinished
    engine.add_request(fake_request("a", b"x", _greedy(max_tokens=1)))
    assert _finish(engine)


# --- coming and going ------------------------------------------------------------------------------


def test_abort_frees_the_slot_for_the_next_step():
    engine = fake_engine(FakeRuntime(), max_num_seqs=1)
    for name in "ab":
        engine.add_request(fake_request(name, b"x", _greedy(max_tokens=9, ignore_eos=True)))
    assert [output.request_id for output in engine.step()] == ["a"]
    assert engine.abort("a")
    assert not engine.abort("a")
    assert [output.request_id for output in engine.step()] == ["b"]


def test_aborted_request_id_can_come_again():
    engine = fake_engine(FakeRuntime(scripted({"Q": "yes", "R": "no"})))
    engine.add_request(fake_request("a", "Q"))
    engine.step()
    engine.abort("a")
    engine.add_request(fake_request("a", "R"))
    assert _merge(_finish(engine))["a"][0].text == "no"


@pytest.mark.parametrize(
    ("prompt", "params", "error", "param"),
    [
        (b"x" * 96, {}, PromptTooLongError, "messages"),
        (b"x" * 90, {"max_tokens": 7}, InvalidRequestError, "max_tokens"),
        (b"x", {"n": 5}, InvalidRequestError, "n"),
        (b"x", {"logit_bias": {257: 1.0}}, InvalidRequestError, "logit_bias"),
        (b"x", {"stop_token_ids": (9999,)}, InvalidRequestError, "stop_token_ids"),
    ],
)
def test_request_that_cannot_be_served_is_refused_and_leaves_nothing(prompt, params, error, param):
    engine = fake_engine(FakeRuntime(scripted({"Q": "yes"})))
    with pytest.raises(error) as caught:
        engine.add_request(fake_request("a", prompt, _greedy(**params)))
    assert caught.value.param == param
    assert not engine.has_unfinished
    engine.add_request(fake_request("a", "Q"))
    assert _merge(_finish(engine))["a"][0].text == "yes"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("prompt_token_ids", np.array([[1, 2]])),
        ("prompt_token_ids", np.array([1, 257])),
        ("prompt_token_ids", np.array([1, -1])),
        ("prompt_token_ids", np.array([1.0, 2.0])),
        ("prompt_token_ids", np.array([], np.int64)),
        ("image_index", np.array([-1])),
        ("image_index", np.array([-1, -2])),
        ("image_index", np.array([-1, 1])),
        ("position_ids", np.array([0, 1])),
        ("position_ids", np.array([[0, 1], [0, 1]])),
        ("position_ids", np.array([[0]])),
        ("image_embeds", np.zeros((1, 2), np.float32)),
        ("image_embeds", np.zeros((0, 3), np.float32)),
        ("image_embeds", np.zeros((0, 2))),
        ("image_embeds", np.zeros(2, np.float32)),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_leave_nothing(name, array):
    """One of these, sent to the decoder directly, once ended the engine thread."""
    engine = fake_engine(FakeRuntime(scripted({"Q": "yes"})))
    tensors = {
        "prompt_token_ids": np.array([1, 2]),
        "image_index": np.array([-1, -1]),
        "position_ids": np.array([[0, 1]]),
        "image_embeds": np.zeros((0, 2), np.float32),
        name: array,
    }
    embeds = tensors.pop("image_embeds")
    request = GenerationRequest("a", PreparedPrompt(*tensors.values()), embeds, _greedy())
    with pytest.raises(InvalidRequestError) as caught:
        engine.add_request(request)
    # An index without its embedding is found at the embeddings.
    assert caught.value.param in (name, "image_embeds") or array.size == 0
    assert not engine.has_unfinished
    engine.add_request(fake_request("a", "Q"))
    assert _merge(_finish(engine))["a"][0].text == "yes"


def test_full_queue_refuses():
    engine = fake_engine(FakeRuntime(), max_waiting=1)
    engine.add_request(fake_request("a", b"x"))
    with pytest.raises(OverloadedError):
        engine.add_request(fake_request("b", b"x"))


def test_failed_step_is_undone_by_dropping_its_requests():
    engine = fake_engine(FakeRuntime(scripted({"Q": "yes", "#": "no"}), poison=ord("#")))
    engine.add_request(fake_request("good", "Q"))
    outputs = engine.step()
    engine.add_request(fake_request("bad", "#"))
    outputs += engine.step()
    with pytest.raises(RuntimeError):
        engine.step()
    assert engine.abort_step() == ["bad"]
    assert _merge(outputs + _finish(engine))["good"][0].text == "yes"


# --- steps that are launched ahead -----------------------------------------------------------------


def _ahead(script=None, poison=None, **limits):
    runtime = FakeRuntime(scripted(script or {}), poison=poison, is_asynchronous=True)
    return fake_engine(runtime, **limits), runtime


def test_the_next_step_computes_while_texts_are_made():
    engine, runtime = _ahead({"Q": "yes"})
    engine.add_request(fake_request("a", "Q"))
    num_fed, texts = [], []
    while engine.has_unfinished:
        texts += [output.text for output in engine.step()]
        num_fed.append(len(runtime.fed))
    assert texts == ["y", "e", "s", ""]
    assert num_fed == [2, 3, 4, 4]  # nothing is computed behind a token that ends the answer


def test_what_a_stop_string_cuts_off_is_not_answered_and_its_row_is_free():
    engine, _ = _ahead({"Q": "Hello world", "R": "Goodbye world"}, max_num_seqs=2)
    engine.add_request(fake_request("a", "Q", _greedy(stop=("lo",))))
    engine.add_request(fake_request("b", "R"))
    answers = _merge(_finish(engine))
    assert (answers["a"][0].text, answers["a"][0].usage.completion_tokens) == ("Hel", 5)
    assert answers["b"][0].text == "Goodbye world"
    engine.add_request(fake_request("c", "R", _greedy(n=2)))
    assert [choice.text for choice in _merge(_finish(engine))["c"].values()] == [
        "Goodbye world"
    ] * 2


def test_requests_that_are_aborted_on_their_way_are_not_answered():
    engine, _ = _ahead({"Q": "yes", "R": "no"})
    engine.add_request(fake_request("a", "Q"))
    engine.add_request(fake_request("b", "R"))
    engine.step()
    engine.step()
    assert engine.abort("a")
    engine.add_request(fake_request("a", "R"))
    answers = _merge(_finish(engine))
    assert [answers[name][0].text for name in "ab"] == ["no", "no"]


def test_a_step_that_cannot_be_launched_fails_after_the_answers_of_the_one_before():
    engine, _ = _ahead({"Q": "yes", "#": "no"}, poison=ord("#"))
    engine.add_request(fake_request("good", "Q"))
    engine.add_request(fake_request("bad", "#"))
    outputs = []

    def steps():
        while engine.has_unfinished:
            outputs.extend(engine.step())

    with pytest.raises(RuntimeError):
        steps()
    assert engine.abort_step() == ["bad"]
    assert _merge(outputs + _finish(engine))["good"][0].text == "yes"


# --- what the runtime is fed -----------------------------------------------------------------------


def test_prompt_and_answer_are_fed_once_each_token_at_its_position():
    runtime = FakeRuntime(scripted({"question": "yes"}))
    engine = fake_engine(runtime, max_num_batched_tokens=3)
    engine.add_request(fake_request("a", "question"))
    _finish(engine)
    fed = [bytes(call[0]) for call in runtime.fed]
    assert fed == [b"que", b"sti", b"on", b"y", b"e", b"s"]
    assert [position for call in runtime.positions for position in call[0]] == list(range(11))
