"""What parameters of sampling do to the answers of the served default model: sync, async and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.triton.conftest import MODEL
from triton_vlm.stack import ServingStack

QUESTION = [{"role": "user", "content": "What can you do?"}]
GREEDY = {"temperature": 0, "max_tokens": 96}
OWN = {
    *("min_tokens", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "top_k", "min_p"),
    *("repetition_penalty", "priority", "cache_salt", "return_token_ids", "truncate_prompt_tokens"),
}
"""Parameters that the client of OpenAI does not know by name."""


def _arguments(**params: Any) -> dict[str, Any]:
    known = {name: value for name, value in params.items() if name not in OWN}
    extra = {name: value for name, value in params.items() if name in OWN}
    return {"model": MODEL, "messages": QUESTION, "extra_body": extra, **GREEDY, **known}


Ask = Callable[..., ChatCompletion]


@pytest.fixture(scope="module")
def ask(client: openai.OpenAI) -> Ask:
    return lambda **params: client.chat.completions.create(**_arguments(**params))


@pytest.fixture(scope="module")
def plain(ask: Ask) -> ChatCompletion:
    """The greedy answer that the others are compared with."""
    return ask(return_token_ids=True)


def _text(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def test_length_is_bounded_from_above_and_below(ask, plain):
    length = plain.usage.completion_tokens
    assert plain.choices[0].finish_reason == "stop"
    short = ask(max_completion_tokens=3, max_tokens=openai.omit)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    assert ask(ignore_eos=True).usage.completion_tokens == GREEDY["max_tokens"] > length
    longer = ask(min_tokens=length + 2)
    assert longer.usage.completion_tokens >= length + 2


def test_answers_end_where_the_client_says(ask, plain):
    token_ids = plain.choices[0].token_ids
    cut = ask(stop_token_ids=[token_ids[2]], return_token_ids=True).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.token_ids[:2] == token_ids[:2]
    assert len(cut.token_ids) <= 3
    word = _text(plain).split()[1]
    without, with_it = ask(stop=word), ask(stop=word, include_stop_str_in_output=True)
    assert _text(without) == _text(plain).partition(word)[0]
    assert _text(with_it) == _text(without) + word


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.0}])
def test_a_cut_that_leaves_one_token_is_greedy(ask, plain, cut):
    assert _text(ask(temperature=1.5, seed=3, **cut)) == _text(plain)


@pytest.mark.parametrize(
    "change",
    [
        {"repetition_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"logit_bias": "first"},
    ],
)
def test_what_changes_logits_changes_the_answer(ask, change):
    long = {"ignore_eos": True, "max_tokens": 64, "return_token_ids": True}
    before = ask(**long).choices[0].token_ids
    if change == {"logit_bias": "first"}:
        change = {"logit_bias": {str(before[0]): -100}}
    after = ask(**long, **change).choices[0].token_ids
    assert after != before


def test_a_seed_repeats_the_answer_and_choices_differ(ask):
    drawn = {"temperature": 2.0, "seed": 11, "n": 3, "ignore_eos": True}
    first, second = ([c.message.content for c in ask(**drawn).choices] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


def test_who_asks_and_how_urgently_changes_no_token(ask, plain):
    other = ask(priority=-5, cache_salt="mine", user="u1", safety_identifier="s1")
    assert _text(other) == _text(plain)
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    again = ask(cache_salt="mine")
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_only_the_end_of_a_long_prompt_is_read(ask, client, plain):
    length = plain.usage.prompt_tokens
    assert ask(truncate_prompt_tokens=length - 2).usage.prompt_tokens == length - 2
    assert _text(ask(truncate_prompt_tokens=length)) == _text(plain)
    extra = {"truncate_prompt_tokens": 2}
    with pytest.raises(openai.BadRequestError, match="not with 'echo'"):
        client.completions.create(model=MODEL, prompt="Hello you", echo=True, extra_body=extra)


def test_running_usage_grows_with_the_answer(client, plain):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(**_arguments(), stream=True, stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts)
    assert counts[-1] == plain.usage.completion_tokens


CASES = [
    {},
    {"max_tokens": 5, "ignore_eos": True},
    {"temperature": 1.0, "seed": 1, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    {"frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"stop": ["a"], "include_stop_str_in_output": True},
    {"temperature": 1.0, "seed": 2, "min_tokens": 8},
]


def test_async_streams_are_the_answers_of_the_sync_client(ask, stack: ServingStack):
    """All cases at once, each as a stream and whole."""

    async def gather() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(
            base_url=stack.base_url, api_key="None", max_retries=0
        ) as client:

            async def streamed(case: dict[str, Any]) -> str:
                stream = await client.chat.completions.create(**_arguments(**case), stream=True)
                return "".join(
                    [
                        chunk.choices[0].delta.content or ""
                        async for chunk in stream
                        if chunk.choices
                    ]
                )

            async def whole(case: dict[str, Any]) -> str:
                return _text(await client.chat.completions.create(**_arguments(**case)))

            async def both(case: dict[str, Any]) -> tuple[str, str]:
                return await streamed(case), await whole(case)

            return await asyncio.gather(*map(both, CASES))

    expected = [_text(ask(**case)) for case in CASES]
    assert asyncio.run(gather()) == [(text, text) for text in expected]
