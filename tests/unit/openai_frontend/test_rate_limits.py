"""Limits per key: the buckets, what is charged, and OpenAI's headers and errors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas
from fake_clock import Clock

from openai_frontend.backend import Delta
from openai_frontend.quota import Quota, TokenBucket, duration
from openai_frontend.settings import Settings
from openai_frontend.token_estimate import estimate_output_tokens, estimate_prompt_tokens
from python_backend.errors import EngineError, OverloadedError

pytestmark = pytest.mark.anyio

KEY = "sk-alice-0123456789abcdef"
OTHER = "sk-bob-0123456789abcdef"


@pytest.fixture
def make_limited(make_proxy):
    """A proxy whose first key has limits; clients use that key."""

    def make(limits: str, script=None):
        settings = Settings(api_keys=(f"{KEY} {limits}", OTHER))
        proxy = make_proxy(
            FakeBackend(text_deltas("a") if script is None else script), settings=settings
        )
        proxy.http.headers["authorization"] = f"Bearer {KEY}"
        return proxy

    return make


def remaining_tokens(response) -> int:
    return int(response.headers["x-ratelimit-remaining-tokens"])


# The bucket


def test_bucket_gives_a_minutes_worth_at_once_and_refills_evenly() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    assert bucket.take(60) == 0
    assert bucket.take(1) == pytest.approx(1.0)
    clock.now = 0.75
    assert bucket.take(1) == pytest.approx(0.25), "what was refused took nothing"
    clock.now = 1.0
    assert bucket.take(1) == 0
    clock.now = 1000.0
    assert bucket.remaining == 60, "never more than a minute's worth"
    assert bucket.reset_s == 0


def test_debt_is_waited_for() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    bucket.correct(90)
    assert bucket.remaining == 0
    assert bucket.reset_s == pytest.approx(90.0)
    assert bucket.take(10) == pytest.approx(40.0)
    bucket.correct(-1000)
    assert bucket.remaining == 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1, "1s"), (7.66, "7.66s"), (60, "1m0s"), (90.5, "1m30.5s")],
)
def test_times_are_written_as_openai_does(seconds, text) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("prompt", "num_images", "num_tokens"),
    [
        ({"prompt_token_ids": [1, 2, 3]}, 0, 3),
        ({"prompt": "12345678"}, 0, 2),
        ({"prompt": "123456789"}, 0, 3),
        ({"messages": [{"role": "user", "content": "1234"}]}, 0, 1),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"text": "12345678"}]}]},
            *(1, 258),
        ),
    ],
)
def test_prompts_are_estimated_by_their_bytes_and_images(prompt, num_images, num_tokens) -> None:
    assert estimate_prompt_tokens(prompt, num_images) == num_tokens


def test_answers_are_estimated_by_their_limit() -> None:
    assert estimate_output_tokens({"max_tokens": 10, "n": 3}) == 30
    assert estimate_output_tokens({}) == 256


# Requests per minute


async def test_requests_over_the_limit_get_openais_429(make_limited) -> None:
    proxy = make_limited("requests-per-minute=2")
    first = await proxy.chat()
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert 29 < float(first.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert (await proxy.complete()).status_code == 200
    refused = await proxy.chat(stream=True)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "requests",
        None,
        "rate_limit_exceeded",
    )
    assert "limit 2" in error["message"]
    assert 29 <= int(refused.headers["retry-after"]) <= 30
    assert 29_000 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(proxy.backend.calls) == 2


async def test_keys_do_not_share_a_limit_and_reads_are_not_counted(make_limited) -> None:
    proxy = make_limited("requests-per-minute=1")
    for _ in range(3):
        response = await proxy.http.get("/v1/models")
        assert response.status_code == 200
        assert "x-ratelimit-limit-requests" not in response.headers
    assert (await proxy.chat()).status_code == 200
    assert (await proxy.chat()).status_code == 429
    proxy.http.headers["authorization"] = f"Bearer {OTHER}"
    response = await proxy.chat()
    assert response.status_code == 200
    assert "x-ratelimit-limit-requests" not in response.headers


async def test_openai_client_raises_its_rate_limit_error(make_limited) -> None:
    proxy = make_limited("requests-per-minute=1")
    client = proxy.openai.with_options(api_key=KEY)
    messages = [{"role": "user", "content": "hi"}]
    await client.chat.completions.create(model=MODEL.id, messages=messages)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model=MODEL.id, messages=messages)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "requests"


async def test_request_over_the_limit_is_refused_unread(make_limited) -> None:
    proxy = make_limited("requests-per-minute=1")
    await proxy.chat()

    async def body():
        raise AssertionError("read")
        yield b""

    response = await proxy.http.post("/v1/chat/completions", content=body())
    assert response.status_code == 429


# Tokens per minute


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_reserved_by_an_estimate_and_settled_by_the_usage(
    make_limited, stream
) -> None:
    proxy = make_limited("tokens-per-minute=1000", text_deltas("a b", prompt_tokens=40))
    first = await proxy.chat(max_tokens=500, stream=stream)
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    # "hi" is one token; some 17 a second come back.
    assert 1000 - 501 <= remaining_tokens(first) <= 1000 - 501 + 40
    second = await proxy.chat(max_tokens=1, stream=stream)
    # 43 were used: 40 of the prompt and 3 generated; a few came back since.
    assert 1000 - 43 - 2 <= remaining_tokens(second) <= 1000


async def test_tokens_over_the_limit_get_openais_429(make_limited) -> None:
    proxy = make_limited("tokens-per-minute=600", text_deltas("a", prompt_tokens=500))
    assert (await proxy.chat(max_tokens=50)).status_code == 200
    refused = await proxy.chat(max_tokens=400)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "requested about 401" in error["message"]
    # 303 are missing at 10 a second.
    assert 28 <= int(refused.headers["retry-after"]) <= 31
    assert len(proxy.backend.calls) == 1


async def test_answer_longer_than_estimated_is_paid_by_the_next_request(make_limited) -> None:
    proxy = make_limited("tokens-per-minute=600", text_deltas("a", prompt_tokens=5000))
    assert (await proxy.chat(max_tokens=1)).status_code == 200
    refused = await proxy.chat(max_tokens=1)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 400


async def test_request_that_can_never_be_admitted_is_told_so(make_limited) -> None:
    proxy = make_limited("tokens-per-minute=100")
    response = await proxy.chat(max_tokens=100)
    assert response.status_code == 400, "nobody should try it again"
    error = response.json()["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert "limit 100, requested about 101" in error["message"]
    assert "retry-after" not in response.headers
    assert (await proxy.chat(max_tokens=50)).status_code == 200


async def test_refused_requests_use_no_tokens(make_limited) -> None:
    for script in ([OverloadedError("full")], [EngineError("broken")]):
        proxy = make_limited("tokens-per-minute=1000", script)
        await proxy.chat(max_tokens=900)
        response = await proxy.chat(max_tokens=900)
        assert response.status_code != 200
        assert remaining_tokens(response) >= 1000 - 901
        assert response.json()["error"]["type"] != "tokens"


async def test_stream_that_fails_is_charged_what_arrived(make_limited) -> None:
    script = [Delta(text="a", token_ids=(1, 2)), EngineError("broken")]
    proxy = make_limited("tokens-per-minute=1000", script)
    await proxy.chat(max_tokens=500, stream=True)
    response = await proxy.chat(max_tokens=1, stream=True)
    # One token of the prompt, estimated, and two that arrived.
    assert 1000 - 3 - 2 <= remaining_tokens(response) <= 1000 - 2


async def test_client_that_leaves_is_charged_what_arrived(make_limited) -> None:
    gate = asyncio.Event()
    script = [Delta(text="a", token_ids=tuple(range(300))), gate, *text_deltas("b")]
    proxy = make_limited("tokens-per-minute=1000", script)
    request = asyncio.create_task(proxy.chat(max_tokens=400))
    async with asyncio.timeout(5):
        await proxy.backend.waiting.wait()
        request.cancel()
        await proxy.backend.was_cancelled.wait()
    gate.set()
    response = await proxy.chat(max_tokens=1)
    assert 1000 - 301 - 2 <= remaining_tokens(response) <= 1000 - 301 + 10


def test_memory_is_bounded_by_the_keys(tmp_path: Path) -> None:
    """A quota has two numbers per limit, however many requests it sees."""
    quota = Quota(10, 10, Clock())
    before = vars(quota).keys()
    for _ in range(1000):
        quota.settle_tokens(1, 1)
    assert vars(quota).keys() == before
    assert not any(isinstance(value, list | dict) for value in vars(quota._requests).values())
