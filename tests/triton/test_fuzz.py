"""Thousands of malformed pictures and bodies to the real Triton: each gets its error and leaves nothing."""

from __future__ import annotations

import http.client
import io
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import openai
import pytest
from PIL import Image

from tests.triton.conftest import MODEL
from tests.triton.malformed_bodies import (
    MESSAGES,
    WITH_IMAGES,
    Case,
    good_bodies,
    image_case,
    malformed_texts,
    malformed_urls,
    malformed_values,
)
from tests.triton.malformed_images import malformed_images
from tests.triton.server_processes import Usage, usage_of
from tests.triton.test_observability import scrape, wait_for
from tests.triton.test_openai_client import CASES, complete
from triton_vlm.stack import ServingStack

ROWS, WAITING = "triton_vlm_decoder_rows", "triton_vlm_decoder_waiting"
STEP_TOKENS = "triton_vlm_decoder_step_tokens_total"
SEED = 20_261_126
NUM_CONNECTIONS = 4
NUM_ROWS, NUM_TOKENS = 16, 8
"""Rows of the default model's KV cache; tokens generated in each of them to fill it."""
MAX_GROWTH_BYTES = 32 * 2**20
"""Of all processes together, in 1,389 requests: the image cache and that of grammars are not full yet."""
Answer = tuple[Case, int, Any]
"""A request, the status of its answer, and the answer, decoded if it is JSON."""
STATUSES = {200, 400, 404, 413, 415}
CODES = {
    *("invalid_json", "invalid_type", "invalid_value", "missing_required_parameter"),
    *("unknown_parameter", "unsupported_parameter", "model_not_found"),
    *("invalid_image_url", "invalid_base64_image", "empty_image_file", "invalid_image_format"),
    *("image_parse_error", "image_too_small", "image_too_large", "invalid_image"),
    "unsupported_content_encoding",
}
"""Errors of every check that a body or an image passes on its way; each has to be reached."""


def cases() -> list[Case]:
    random = Random(SEED)
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((28, 28)).save(buffer, "PNG")
    bodies = good_bodies(MODEL, buffer.getvalue())
    images = malformed_images(random, 720)
    return [
        *(
            image_case(name, MODEL, image, WITH_IMAGES[i % len(WITH_IMAGES)])
            for i, (name, image) in enumerate(images)
        ),
        *malformed_urls(random, MODEL, buffer.getvalue(), 135),
        *malformed_values(random, bodies, 1320),
        *malformed_texts(random, bodies, 363),
    ]


def send(stack: ServingStack, some: Sequence[Case]) -> Iterator[Answer]:
    """The answers, over a few connections that are kept."""

    def send_some(part: Sequence[Case]) -> list[Answer]:
        address = stack.proxy.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=60)
        answers = []
        for case in part:
            headers = {"Content-Type": "application/json"} | case.headers
            connection.request("POST", case.path, case.body, headers)
            response = connection.getresponse()
            answers.append((case, response.status, _json(response.read())))
        connection.close()
        return answers

    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        parts = [some[i::NUM_CONNECTIONS] for i in range(NUM_CONNECTIONS)]
        for answers in pool.map(send_some, parts):
            yield from answers


def _json(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return answer


def is_error(case: Case, answer: Any) -> bool:
    """Whether it is the error object that the endpoint's clients know, with all that they need of it."""
    if not isinstance(answer, dict) or not isinstance(error := answer.get("error"), dict):
        return False
    if case.path.startswith(MESSAGES):  # Anthropic's
        shape, needed = ("type", "message"), ("type", "message")
    else:
        shape, needed = ("message", "type", "param", "code"), ("message", "type", "code")
    return (
        error.keys() == set(shape)
        and all(isinstance(error[name], str) and error[name] for name in needed)
        and " object at 0x" not in error["message"]
    )


def check(answers: Iterable[Answer]) -> set[str]:
    """The codes of the errors; fails if one of the answers is not as it should be."""
    codes: set[str] = set()
    wrong = []
    for case, status, answer in answers:
        if status not in STATUSES or (status != 200 and not is_error(case, answer)):
            wrong.append((case.name, case.headers, case.body[:500], status, str(answer)[:500]))
        elif status != 200 and not case.path.startswith(MESSAGES):
            codes.add(answer["error"]["code"])
    assert wrong == []
    return codes


def usage_at_rest(stack: ServingStack, num_files: int) -> Usage:
    """What is held when the connections of the clients are closed on the other side, too."""
    deadline = time.monotonic() + 10
    while (usage := usage_of(stack)).num_files > num_files and time.monotonic() < deadline:
        time.sleep(0.1)
    return usage


def tokens_of_a_good_request(client: openai.OpenAI) -> list[int]:
    answer = complete(client, CASES[1], extra_body={"return_token_ids": True})
    tokens: list[int] = answer.choices[0].token_ids
    return tokens


def touch_the_kv_cache(client: openai.OpenAI) -> None:
    """Write to all rows of it, to their ends; memory that was never written to is not there yet."""

    def fill(token_id: int) -> None:
        length = client.models.retrieve(MODEL).max_model_len - NUM_TOKENS
        client.completions.create(
            model=MODEL,
            prompt=[token_id] * length,
            n=NUM_ROWS // 2,
            max_tokens=NUM_TOKENS,
            extra_body={"ignore_eos": True},
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, (10, 11)))


@pytest.mark.timeout(300)
def test_malformed_requests_get_their_errors_and_leave_nothing(
    stack: ServingStack, client: openai.OpenAI
) -> None:
    every = cases()
    assert len(every) > 2700
    tokens = tokens_of_a_good_request(client)
    touch_the_kv_cache(client)
    num_files = usage_of(stack).num_files
    # The first half also fills caches and heaps; then the other half must do with what is there.
    codes = check(send(stack, every[::2]))
    assert tokens_of_a_good_request(client) == tokens
    usage = usage_at_rest(stack, num_files)
    codes |= check(send(stack, every[1::2]))
    assert codes >= CODES

    def is_idle(metrics: dict[str, float]) -> bool:
        return metrics[ROWS] == metrics[WAITING] == 0

    url = stack.triton.metrics_url
    num_tokens = wait_for(url, is_idle)[STEP_TOKENS]
    assert tokens_of_a_good_request(client) == tokens
    # Metrics that count this request are newer than every answer before it.
    wait_for(url, lambda metrics: metrics[STEP_TOKENS] > num_tokens and is_idle(metrics))
    assert scrape(f"{stack.proxy.url}/metrics")["triton_vlm_requests_running"] == 0
    stack.check()
    after = usage_at_rest(stack, num_files)
    assert after.num_files <= num_files
    assert after.memory_bytes - usage.memory_bytes <= MAX_GROWTH_BYTES
