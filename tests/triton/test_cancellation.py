"""A client that leaves frees its row, with the real Triton between client and engine."""

import json
import queue
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import openai
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from builders.options import BuildOptions
from builders.pipeline import build
from python_backend import tensor_names as names
from tests.conftest import SilentReport
from tests.triton.conftest import CHECKPOINT, MODEL
from triton_vlm.stack import ServingStack

MESSAGES = [{"role": "user", "content": "What can you do?"}]
NUM_TOKENS = 1500
FOREVER = {"max_tokens": NUM_TOKENS, "ignore_eos": True}
WAIT_S = 60


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingStack]:
    """A stack with a single row, where one request may wait: whoever holds the row stops the rest."""
    folder = tmp_path_factory.mktemp("narrow")
    build(BuildOptions(model=str(CHECKPOINT), output=folder, max_seqs=1), SilentReport())
    config = folder / (MODEL + names.DECODER_SUFFIX) / "config.pbtxt"
    text = config.read_text()
    narrow = 'key: "max_waiting", value { string_value: "1" }'
    config.write_text(re.sub(r'key: "max_waiting", value \{ string_value: "\d+" \}', narrow, text))
    with ServingStack(folder, MODEL) as serving:
        yield serving


@pytest.fixture(scope="module")
def client(stack: ServingStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stack.base_url, api_key="x", max_retries=0) as openai_client:
        yield openai_client


def bytes_input(name: str, *texts: str) -> InferInput:
    tensor = InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object))
    return tensor


class Stream:
    """Answers of a gRPC stream to Triton itself, in order; errors as they are."""

    def __init__(self, address: str) -> None:
        self._client = InferenceServerClient(address)
        self._answers: queue.Queue = queue.Queue()
        self._client.start_stream(lambda result, error: self._answers.put(error or result))

    def send(self, model: str, inputs: list[InferInput], request_id: str = "") -> None:
        self._client.async_stream_infer(model, inputs, request_id=request_id)

    def details(self) -> dict:
        answer = self._answers.get(timeout=WAIT_S)
        if isinstance(answer, Exception):
            raise answer
        details: dict = json.loads(answer.as_numpy(names.DETAILS)[0])
        return details

    def read_to_the_end(self) -> None:
        for _ in range(NUM_TOKENS):
            self.details()

    def cancel(self, request_id: str) -> bool:
        self.send(MODEL + names.DECODER_SUFFIX, [bytes_input(names.CANCEL, request_id)])
        cancelled: bool = self.details()["cancelled"]
        return cancelled

    def close(self) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def test_cancel_frees_the_row_of_a_running_ensemble_request(stack: ServingStack) -> None:
    """What the proxy does when its client leaves, step by step."""
    generating, control = Stream(stack.triton.grpc_address), Stream(stack.triton.grpc_address)
    try:
        inputs = [
            bytes_input(names.PROMPT, json.dumps({"messages": MESSAGES})),
            bytes_input(names.IMAGES),
            bytes_input(names.SAMPLING, json.dumps(FOREVER)),
        ]
        generating.send(MODEL, inputs, request_id="long")
        assert generating.details()["token_ids"]
        assert control.cancel("nobody") is False
        assert control.cancel("long") is True
        with pytest.raises(InferenceServerException, match="cancelled"):
            generating.read_to_the_end()
        assert control.cancel("long") is False
    finally:
        generating.close()
        control.close()


def seconds(client: openai.OpenAI, max_tokens: int) -> float:
    start = time.monotonic()
    client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True},
        timeout=WAIT_S,
    )
    return time.monotonic() - start


def test_closed_stream_does_not_keep_the_next_request_waiting(client: openai.OpenAI) -> None:
    """Without cancellation the next answer waits until all tokens are generated: some seconds."""
    whole_answer_s = seconds(client, NUM_TOKENS)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        stream=True,
        max_tokens=NUM_TOKENS,
        extra_body={"ignore_eos": True},
    )
    for _ in range(3):
        next(iter(stream))
    stream.close()
    assert seconds(client, max_tokens=1) < whole_answer_s / 2


def test_abandoned_plain_request_does_not_keep_the_next_one_waiting(client: openai.OpenAI) -> None:
    whole_answer_s = seconds(client, NUM_TOKENS)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=NUM_TOKENS,
            extra_body={"ignore_eos": True},
            timeout=whole_answer_s / 10,
        )
    assert seconds(client, max_tokens=1) < whole_answer_s / 2


def test_streams_cancelled_while_they_wait_leave_the_server_whole(
    client: openai.OpenAI, stack: ServingStack
) -> None:
    """CVE-2025-23322: cancelling a request that was still queued crashed tritonserver."""
    for _ in range(20):
        with pytest.raises((openai.APITimeoutError, openai.RateLimitError)):
            client.chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                max_tokens=NUM_TOKENS,
                extra_body={"ignore_eos": True},
                timeout=0.02,
            )
    stack.check()
    assert seconds(client, max_tokens=1) > 0


def test_full_queue_answers_429_with_retry_after(client: openai.OpenAI) -> None:
    """One stream holds the row, one request may wait: the others are told to come back."""
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        stream=True,
        max_tokens=NUM_TOKENS,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))

    def ask(_: int) -> openai.RateLimitError | str:
        try:
            client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
        except openai.RateLimitError as error:
            return error
        return "answered"

    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(ask, i) for i in range(4)]
        refused = next(future.result() for future in as_completed(pending))
        stream.close()
        outcomes = [future.result() for future in pending]
    assert isinstance(refused, openai.RateLimitError)
    assert refused.code == "rate_limit_exceeded"
    assert int(refused.response.headers["retry-after"]) >= 1
    assert "answered" in outcomes
