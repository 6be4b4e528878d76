"""The default model through the real Triton and the proxy, with the real `openai` client.

The reference are the answers that Hugging Face gave to the same conversations, recorded beside the
checkpoint (`default_model/record_reference.py`).
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.triton.conftest import CHECKPOINT, EXAMPLES, MODEL, image_part
from triton_vlm.stack import ServingStack

CASES = json.loads((CHECKPOINT / "reference.json").read_text(encoding="utf-8"))["cases"]
END_OF_TURN = "<|im_end|>"


def to_openai(case: dict) -> list[dict]:
    """A recorded conversation as a client would send it."""
    images = iter(case["images"])
    messages = []
    for message in case["messages"]:
        content = message["content"]
        if isinstance(content, list):
            content = [
                image_part((CHECKPOINT / next(images)).read_bytes())
                if part["type"] == "image"
                else part
                for part in content
            ]
        messages.append({**message, "content": content})
    return messages


def complete(client: openai.OpenAI, case: dict, **options):
    return client.chat.completions.create(
        model=MODEL,
        messages=to_openai(case),
        temperature=0,
        max_tokens=len(case["greedy_token_ids"]),
        **options,
    )


def expected_text(case: dict) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    text: str = tokenizer.decode(case["greedy_token_ids"], skip_special_tokens=True)
    return text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_answer_and_usage_equal_hugging_face(client: openai.OpenAI, case: dict) -> None:
    response = complete(client, case)
    assert response.choices[0].message.content == expected_text(case)
    assert response.usage.prompt_tokens == len(case["prompt_token_ids"])
    assert response.usage.completion_tokens == len(case["greedy_token_ids"])
    placeholder = json.loads((CHECKPOINT / "config.json").read_text())["image_token_id"]
    details = response.usage.prompt_tokens_details
    assert details.image_tokens == case["prompt_token_ids"].count(placeholder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tokens_equal_hugging_face_one_by_one(client: openai.OpenAI, case: dict) -> None:
    """With logprobs, every token shows; the one that ends the answer too."""
    response = complete(client, case, logprobs=True, top_logprobs=1)
    tokens = response.choices[0].logprobs.content
    assert len(tokens) == len(case["greedy_token_ids"])
    assert all(token.top_logprobs[0].token == token.token for token in tokens)
    data = b"".join(bytes(token.bytes) for token in tokens)
    assert data.decode(errors="replace").removesuffix(END_OF_TURN) == expected_text(case)


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case["name"])
def test_stream_equals_non_stream(client: openai.OpenAI, case: dict) -> None:
    whole = complete(client, case)
    chunks = list(complete(client, case, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *contents, usage = chunks
    assert usage.choices == []
    # The prompt is in the cache now, but for its last token, which gives the first logits.
    details = (usage.usage.prompt_tokens_details, whole.usage.prompt_tokens_details)
    assert details[0].cached_tokens == whole.usage.prompt_tokens - 1
    for part in details:
        part.cached_tokens = 0
    assert usage.usage == whole.usage
    assert contents[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in contents[1:])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in contents)
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in contents if c.choices[0].finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert contents[-1].choices[0].matched_stop == whole.choices[0].matched_stop


def test_sixteen_streams_at_once_give_the_same_answers(client: openai.OpenAI) -> None:
    def answer(case: dict) -> str:
        chunks = complete(client, case, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    cases = [CASES[i % len(CASES)] for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(answer, cases))
    assert answers == [expected_text(case) for case in cases]


def test_n_gives_that_many_choices_that_differ_and_repeat_with_the_seed(
    client: openai.OpenAI,
) -> None:
    def sample(seed: int) -> list[str]:
        response = client.chat.completions.create(
            model=MODEL,
            messages=to_openai(CASES[0]),
            n=4,
            temperature=2,
            seed=seed,
            max_tokens=24,
        )
        assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in response.choices]

    first = sample(7)
    assert len(set(first)) > 1
    assert sample(7) == first
    assert sample(8) != first


def test_two_greedy_choices_of_a_stream_are_equal(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in complete(client, CASES[1], n=2, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
    assert texts[0] == texts[1] == expected_text(CASES[1])


def test_stop_string_ends_the_answer_and_is_reported(client: openai.OpenAI) -> None:
    text = expected_text(CASES[1])
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    response = complete(client, CASES[1], stop=[stop])
    choice = response.choices[0]
    assert choice.message.content == text[: text.index(stop)]
    assert (choice.finish_reason, choice.matched_stop) == ("stop", stop)


def test_completions_take_raw_text(client: openai.OpenAI) -> None:
    """The chat template, written by hand, gives what the chat endpoint gives."""
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat can you do?<|im_end|>\n<|im_start|>assistant\n"
    )
    response = client.completions.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=len(CASES[0]["greedy_token_ids"])
    )
    assert response.choices[0].text == expected_text(CASES[0])
    assert response.usage.prompt_tokens == len(CASES[0]["prompt_token_ids"])


def test_image_url_is_fetched_and_gives_the_same_as_its_bytes(
    client: openai.OpenAI, pictures: str
) -> None:
    case = CASES[1]
    messages = to_openai(case)
    for part in messages[0]["content"]:
        if part["type"] == "image_url":
            part["image_url"]["url"] = f"{pictures}/{Path(case['images'][0]).name}"
    response = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=len(case["greedy_token_ids"])
    )
    assert response.choices[0].message.content == expected_text(case)


def test_models_are_listed_with_their_limits(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    assert model.max_model_len > 0
    assert model.max_images == 16


def test_health_and_metrics(stack: ServingStack, client: openai.OpenAI) -> None:
    complete(client, CASES[0])
    for path in ("/health/live", "/health/ready"):
        assert httpx.get(stack.proxy.url + path).status_code == 200
    metrics = httpx.get(stack.proxy.url + "/metrics").text
    assert "triton_vlm_time_to_first_token_seconds" in metrics


def test_example_pictures_are_all_readable(client: openai.OpenAI) -> None:
    """Sizes from small to wide and tall; each gets an answer and a count of image tokens."""
    for path in sorted(EXAMPLES.glob("*.png")):
        response = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [image_part(path.read_bytes())]}],
            max_tokens=2,
        )
        assert response.usage.prompt_tokens_details.image_tokens > 0
