from __future__ import annotations

from dataclasses import replace

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.backend import Delta, Usage
from python_backend.errors import PromptTooLongError

pytestmark = pytest.mark.anyio

LOGPROBS = [
    {
        "token": "Hello",
        "bytes": list(b"Hello"),
        "logprob": -0.25,
        "top_logprobs": [{"token": "Hi", "bytes": [72, 105], "logprob": -0.125}],
    },
    {"token": " you", "bytes": list(b" you"), "logprob": -0.5, "top_logprobs": []},
]
CLASSIC_LOGPROBS = {
    "tokens": ["Hello", " you"],
    "token_logprobs": [-0.25, -0.5],
    "top_logprobs": [{"Hi": -0.125, "Hello": -0.25}, {" you": -0.5}],
    "text_offset": [0, 5],
}


def script_with_logprobs() -> list[Delta]:
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    return [
        Delta(text="Hello", logprobs=LOGPROBS[:1]),
        Delta(text=" you", logprobs=LOGPROBS[1:], finish_reason="length", usage=usage),
    ]


async def test_answer_is_a_text_completion(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a b")))
    answer = await proxy.openai.completions.create(model=MODEL.id, prompt="x", max_tokens=4)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "a b"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert proxy.backend.calls[0].prompt == {"prompt": "x"}
    assert proxy.backend.calls[0].images == []
    assert proxy.backend.calls[0].sampling == {"max_tokens": 4}


@pytest.mark.parametrize(
    ("prompt", "forwarded"),
    [
        ("", {"prompt": ""}),
        (["x"], {"prompt": "x"}),
        ([1, 2], {"prompt_token_ids": [1, 2]}),
        ([[1, 2]], {"prompt_token_ids": [1, 2]}),
    ],
)
async def test_prompt_may_be_text_or_token_ids(make_proxy, prompt, forwarded) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await proxy.complete(prompt=prompt, best_of=1, echo=False, suffix=None)
    assert response.status_code == 200, response.text
    assert proxy.backend.calls[0].prompt == forwarded


async def test_stream_carries_the_same_as_the_whole_answer(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a b c")))
    stream = await proxy.openai.completions.create(
        model=MODEL.id, prompt="x", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "a b c"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert {chunk.object for chunk in chunks} == {"text_completion"}


async def test_logprobs_have_the_classic_form(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(script_with_logprobs()))
    body = (await proxy.complete(logprobs=1)).json()
    assert body["choices"][0]["logprobs"] == CLASSIC_LOGPROBS
    assert proxy.backend.calls[0].sampling == {"logprobs": 1}


async def test_streamed_logprobs_count_offsets_across_chunks(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(script_with_logprobs()))
    stream = await proxy.openai.completions.create(
        model=MODEL.id, prompt="x", logprobs=0, stream=True
    )
    joined: dict[str, list[object]] = {name: [] for name in CLASSIC_LOGPROBS}
    async for chunk in stream:
        if chunk.choices[0].logprobs is not None:
            for name, values in chunk.choices[0].logprobs.model_dump().items():
                joined[name] += values
    assert joined == CLASSIC_LOGPROBS


async def test_prompt_is_named_as_the_client_named_it(make_proxy) -> None:
    error = PromptTooLongError("too long", param="messages")
    response = await make_proxy(FakeBackend([error])).complete(prompt=[1])
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ["a", "b"]}, "prompt", "unsupported_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
        ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"echo": 1}, "echo", "invalid_type"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo", "invalid_value"),
        ({"echo": True, "logprobs": 1, "prompt_logprobs": 2}, "prompt_logprobs", "invalid_value"),
        ({"echo": True, "prompt": [256]}, "prompt", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"best_of": 9}, "best_of", "invalid_value"),
        ({"n": 9, "best_of": 9}, "n", "invalid_value"),
        ({"best_of": 0}, "best_of", "invalid_value"),
        (
            {"chat_template_kwargs": {"thinking": True}},
            "chat_template_kwargs",
            "unsupported_parameter",
        ),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"max_completion_tokens": 3}, "max_completion_tokens", "unknown_parameter"),
    ],
)
async def test_wrong_field_is_refused_by_name(make_proxy, fields, param, code) -> None:
    response = await make_proxy().complete(**fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("prompt", ["hi", [104, 105]])
async def test_echo_puts_the_prompt_before_every_choice(make_proxy, prompt) -> None:
    proxy = make_proxy(FakeBackend([*text_deltas(" a b"), *text_deltas(" c", index=1)]))
    answer = await proxy.openai.completions.create(model=MODEL.id, prompt=prompt, echo=True, n=2)
    assert [choice.text for choice in answer.choices] == ["hi a b", "hi c"]
    stream = await proxy.openai.completions.create(
        model=MODEL.id, prompt=prompt, echo=True, n=2, stream=True
    )
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["hi a b", "hi c"]
    assert all("prompt_logprobs" not in call.sampling for call in proxy.backend.calls)


PROMPT_LOGPROBS = [
    {"1": {"logprob": None, "rank": None, "decoded_token": "Say"}},
    {
        "2": {"logprob": -1.5, "rank": 3, "decoded_token": ": "},
        "3": {"logprob": -0.5, "rank": 1, "decoded_token": "!"},
    },
]


async def test_echo_with_logprobs_tells_those_of_the_prompt_too(make_proxy) -> None:
    script = [Delta(text="", prompt_logprobs=PROMPT_LOGPROBS), *script_with_logprobs()]
    proxy = make_proxy(FakeBackend(script))
    answer = await proxy.openai.completions.create(
        model=MODEL.id, prompt="Say: ", echo=True, logprobs=1, max_tokens=2
    )
    assert answer.choices[0].text == "Say: Hello you"
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["Say", ": ", "Hello", " you"]
    assert logprobs.token_logprobs == [None, -1.5, -0.25, -0.5]
    assert logprobs.top_logprobs == [
        None,
        {"!": -0.5, ": ": -1.5},
        *CLASSIC_LOGPROBS["top_logprobs"],
    ]
    assert logprobs.text_offset == [0, 3, 5, 10]
    assert proxy.backend.calls[0].sampling == {
        "logprobs": 1,
        "prompt_logprobs": 1,
        "max_tokens": 2,
    }


async def test_prompt_logprobs_are_in_every_choice(make_proxy) -> None:
    proxy = make_proxy(
        FakeBackend([Delta(text="", prompt_logprobs=PROMPT_LOGPROBS), *text_deltas("a")])
    )
    (choice,) = (await proxy.complete(prompt_logprobs=1, return_token_ids=True)).json()["choices"]
    assert choice["prompt_logprobs"] == [None, PROMPT_LOGPROBS[1]]
    assert choice["prompt_token_ids"] == []
    assert choice["token_ids"] == [0, 151645]
    assert choice["logprobs"] is None


async def test_the_likeliest_of_several_choices_are_kept(make_proxy) -> None:
    def choice(index: int, *values: float) -> list[Delta]:
        usage = Usage(prompt_tokens=7, completion_tokens=len(values))
        items = [
            {"token": "x", "bytes": [120], "logprob": value, "top_logprobs": []} for value in values
        ]
        *first, last = [Delta(text=str(index), index=index, logprobs=[item]) for item in items]
        return [*first, replace(last, finish_reason="length", usage=usage)]

    # By the mean of its tokens, not by their sum: the third one is the best.
    script = [*choice(0, -1.0), *choice(1, -3.0), *choice(2, -0.5, -0.5, -0.5), *choice(3, -2.0)]
    proxy = make_proxy(FakeBackend(script))
    answer = await proxy.openai.completions.create(model=MODEL.id, prompt="x", n=2, best_of=4)
    assert [choice.text for choice in answer.choices] == ["222", "0"]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.logprobs is None for choice in answer.choices)
    assert answer.usage.completion_tokens == 6
    assert proxy.backend.calls[0].sampling == {"n": 4, "logprobs": 0}


async def test_choices_stay_in_their_order_if_all_are_kept(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([*text_deltas("a"), *text_deltas("b", index=1)]))
    answer = await proxy.openai.completions.create(model=MODEL.id, prompt="x", n=2, best_of=2)
    assert [choice.text for choice in answer.choices] == ["a", "b"]
    assert proxy.backend.calls[0].sampling == {"n": 2}
