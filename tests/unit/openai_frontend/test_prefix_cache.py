"""Tokens that were in the decoder's cache: who shares them, and where they are counted."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.settings import Settings

pytestmark = pytest.mark.anyio

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"
HELLO = [{"role": "user", "content": "hi"}]


async def test_usage_and_metrics_tell_the_cached_tokens(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a b", prompt_tokens=10, cached_tokens=8)))
    for response in (await proxy.chat(), await proxy.complete()):
        usage = response.json()["usage"]
        assert usage["prompt_tokens"] == 10
        assert usage["prompt_tokens_details"]["cached_tokens"] == 8
    body = {"model": MODEL.id, "messages": HELLO, "max_tokens": 5}
    usage = (await proxy.http.post("/v1/messages", json=body)).json()["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (2, 8)
    metrics = (await proxy.http.get("/metrics")).text.splitlines()
    assert "triton_vlm_prompt_tokens_total 30.0" in metrics
    assert "triton_vlm_prefix_cache_hits_total 24.0" in metrics


async def _salt(proxy, key: str | None = None, **fields: Any) -> str | None:
    """What the decoder is told when a caller with `key` asks."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": MODEL.id, "messages": HELLO} | fields
    response = await proxy.http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return proxy.backend.calls[-1].sampling.get("cache_salt")


async def test_only_the_same_key_with_the_same_salt_shares(make_proxy) -> None:
    keyed = make_proxy(FakeBackend(text_deltas("a")), settings=Settings(api_keys=(ALICE, BOB)))
    open_ = make_proxy(FakeBackend(text_deltas("a")))
    callers = [
        *((keyed, key, salt) for key in (ALICE, BOB) for salt in (None, "x", "y")),
        *((open_, None, salt) for salt in (None, "x", "y")),
    ]
    first = [await _salt(proxy, key, cache_salt=salt) for proxy, key, salt in callers]
    again = [await _salt(proxy, key, cache_salt=salt) for proxy, key, salt in callers]
    assert first == again
    assert len(set(first)) == len(callers)
    assert first[-3] is None  # nobody to be kept apart from


async def test_decoder_learns_neither_key_nor_salt(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=Settings(api_keys=(ALICE,)))
    salt = await _salt(proxy, ALICE, cache_salt="my secret")
    assert salt is not None
    digest = hashlib.sha256(ALICE.encode()).hexdigest()
    assert len(salt) == 64
    caller = proxy.backend.calls[-1].sampling["caller"]
    assert not {salt, caller} & {digest, hashlib.sha256(b"my secret").hexdigest()}
    assert caller != await _salt(proxy, ALICE)


async def test_every_endpoint_keeps_keys_apart(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=Settings(api_keys=(ALICE, BOB)))
    bodies = {
        "/v1/chat/completions": {"messages": HELLO},
        "/v1/completions": {"prompt": "hi"},
        "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    }
    for path, body in bodies.items():
        for key in (ALICE, BOB):
            headers = {"authorization": f"Bearer {key}"}
            await proxy.http.post(path, json={"model": MODEL.id} | body, headers=headers)
    for name in ("cache_salt", "caller"):
        of_calls = [call.sampling[name] for call in proxy.backend.calls]
        assert of_calls == of_calls[:2] * len(bodies)
        assert of_calls[0] != of_calls[1]


@pytest.mark.parametrize("salt", ["", 7, ["x"], "x" * 513])
async def test_salt_that_is_no_string_of_some_length_is_refused(make_proxy, salt) -> None:
    response = await make_proxy().chat(cache_salt=salt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "cache_salt"
