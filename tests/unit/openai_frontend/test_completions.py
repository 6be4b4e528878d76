from __future__ import annotations

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
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
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
