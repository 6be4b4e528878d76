"""What a request may ask for besides an answer, through the real Triton and the proxy."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.triton.conftest import MODEL
from tests.triton.test_openai_client import CASES, complete, expected_text, to_openai
from triton_vlm.stack import ServingStack

CASE = next(case for case in CASES if case["images"])


def post(stack: ServingStack, path: str, **body: object) -> dict:
    response = httpx.post(f"{stack.proxy.url}{path}", json={"model": MODEL, **body}, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict = response.json()
    return answer


def test_tokens_and_text_of_a_prompt(stack: ServingStack) -> None:
    text = "<|im_start|>user\nGröße 🚕<|im_end|>"
    tokens = post(stack, "/tokenize", prompt=text)["tokens"]
    assert post(stack, "/detokenize", tokens=tokens) == {"prompt": text}
    refused = httpx.post(f"{stack.proxy.url}/detokenize", json={"model": MODEL, "tokens": [10**6]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")


def test_server_tells_that_it_generates(stack: ServingStack) -> None:
    for _ in range(2):
        response = httpx.get(f"{stack.proxy.url}/health/generate", timeout=60)
        assert (response.status_code, response.json()) == (200, {"status": "generating"})


def test_token_ids_equal_hugging_face(client: openai.OpenAI) -> None:
    answer = complete(client, CASE, extra_body={"return_token_ids": True})
    assert answer.prompt_token_ids == CASE["prompt_token_ids"]
    assert answer.choices[0].token_ids == CASE["greedy_token_ids"]
    chunks = list(complete(client, CASE, stream=True, extra_body={"return_token_ids": True}))
    assert chunks[0].prompt_token_ids == CASE["prompt_token_ids"]
    parts = [getattr(chunk.choices[0], "token_ids", None) or [] for chunk in chunks]
    assert [token for part in parts for token in part] == CASE["greedy_token_ids"]


def test_prompt_logprobs_leave_images_out(client: openai.OpenAI) -> None:
    answer = complete(client, CASE, extra_body={"prompt_logprobs": 1})
    entries = answer.prompt_logprobs
    num_scored = len(CASE["prompt_token_ids"]) - 1 - answer.usage.prompt_tokens_details.image_tokens
    assert len(entries) == len(CASE["prompt_token_ids"])
    assert sum(entry is not None for entry in entries) == num_scored
    for token_id, entry in zip(CASE["prompt_token_ids"], entries, strict=True):
        assert entry is None or next(iter(entry)) == str(token_id)


def test_answer_that_is_scored_as_a_prompt_has_the_same_log_probabilities(
    client: openai.OpenAI,
) -> None:
    options = {"model": MODEL, "logprobs": 0, "echo": True, "temperature": 0}
    written = client.completions.create(prompt="Red", max_tokens=12, **options).choices[0]
    assert written.text.startswith("Red")
    scored = client.completions.create(prompt=written.text, max_tokens=1, **options).choices[0]
    num_tokens = len(written.logprobs.tokens)
    assert scored.logprobs.tokens[:num_tokens] == written.logprobs.tokens
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[1:num_tokens] == pytest.approx(
        written.logprobs.token_logprobs[1:], abs=1e-3
    )


def test_answer_goes_on_with_its_own_beginning(client: openai.OpenAI) -> None:
    whole = expected_text(CASE)
    begun, _, _ = whole.partition(" ")
    assert begun != whole
    messages = [*to_openai(CASE), {"role": "assistant", "content": begun}]
    answer = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert begun + answer.choices[0].message.content == whole


def test_best_of_is_the_likeliest_of_what_the_same_seed_gives(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "prompt": "Red", "max_tokens": 6, "temperature": 1.5, "seed": 3}
    every = client.completions.create(n=4, logprobs=0, **options).choices
    means = [sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in every]
    best = client.completions.create(best_of=4, **options)
    assert [choice.text for choice in best.choices] == [every[means.index(max(means))].text]


def test_variable_that_the_template_does_not_read_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, CASE, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert caught.value.param == "chat_template_kwargs.enable_thinking"


def test_pixels_are_bounded_by_the_request(client: openai.OpenAI) -> None:
    plain, small = (
        complete(client, CASE, extra_body=extra).usage.prompt_tokens_details.image_tokens
        for extra in ({}, {"mm_processor_kwargs": {"max_pixels": 28 * 28 * 12}})
    )
    assert 0 < small <= 12 < plain
