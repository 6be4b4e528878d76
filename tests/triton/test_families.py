"""Two more families behind one real Triton and one proxy: LLaVA-OneVision and a Gemma 3 that reads text only.

Tiny random checkpoints; the reference are the greedy tokens of Hugging Face in eager fp32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tokenizers import Tokenizer

from python_backend.token_text import TokenText
from tests.conftest import TinyModel
from tests.tiny.conversations import conversations_of
from tests.tiny.reference import hf_greedy, hf_inputs
from tests.triton.conftest import to_openai
from triton_vlm.repository_view import stage_models
from triton_vlm.stack import ServingStack
from triton_vlm.triton_server import TritonPorts, TritonServer

LLAVA, TEXT_ONLY = "tiny-llava", "tiny-gemma3-text"
NUM_TOKENS = 14
PARITY_CASES = [
    *((LLAVA, name) for name in ("text", "wide", "three")),
    *((TEXT_ONLY, name) for name in ("text", "turns")),
]
# No, one and three pictures, and both models at once.
CASES_AT_ONCE = [
    *((LLAVA, "three"), (TEXT_ONLY, "turns"), (LLAVA, "text")),
    *((LLAVA, "wide"), (TEXT_ONLY, "long"), (LLAVA, "tall")),
]


@pytest.fixture(scope="module")
def client(
    tiny_models: Callable[[str], TinyModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """Both models in one repository, one Triton and one proxy."""
    repository = tmp_path_factory.mktemp("two_families")
    for name in (LLAVA, TEXT_ONLY):
        for folder in tiny_models(name).model.folder.parent.iterdir():
            (repository / folder.name).symlink_to(folder)
    models = [model for name in (LLAVA, TEXT_ONLY) for model in stage_models(repository, name)]
    ports = TritonPorts.choose()
    stack = ServingStack(
        repository, LLAVA, triton_ports=ports, log_dir=tmp_path_factory.mktemp("two_families_logs")
    )
    stack.triton = TritonServer(repository, models, ports=ports)
    with stack, openai.OpenAI(base_url=stack.base_url, api_key="None", max_retries=0) as found:
        yield found


def stream(
    client: openai.OpenAI, tiny: TinyModel, case: str, on_token: Callable[[], None] | None = None
) -> list[bytes]:
    """The bytes of each token of a greedy answer."""
    chunks = client.chat.completions.create(
        model=tiny.shape.name,
        messages=to_openai(conversations_of(tiny.shape)[case]),
        temperature=0,
        max_tokens=NUM_TOKENS,
        logprobs=True,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    tokens: list[bytes] = []
    for chunk in chunks:
        if on_token is not None:
            on_token()
        logprobs = chunk.choices[0].logprobs
        tokens += [bytes(token.bytes) for token in (logprobs.content if logprobs else ())]
    return tokens


def expected(tiny: TinyModel, case: str) -> list[bytes]:
    """The bytes of each of Hugging Face's greedy tokens."""
    inputs = hf_inputs(tiny.checkpoint, conversations_of(tiny.shape)[case])
    token_ids, _ = hf_greedy(tiny.hf, inputs, NUM_TOKENS)
    text = TokenText(Tokenizer.from_file(str(tiny.checkpoint / "tokenizer.json")))
    return [text.to_bytes(token_id) for token_id in token_ids]


@pytest.mark.parametrize(("name", "case"), PARITY_CASES)
def test_tokens_equal_hugging_face(client, tiny_models, name, case) -> None:
    tiny = tiny_models(name)
    assert stream(client, tiny, case) == expected(tiny, case)


def test_six_at_once_one_after_the_others_first_token_equal_hugging_face(
    client, tiny_models
) -> None:
    has_begun = [threading.Event() for _ in range(len(CASES_AT_ONCE) + 1)]
    has_begun[0].set()

    def answer(i: int) -> list[bytes]:
        has_begun[i].wait()
        name, case = CASES_AT_ONCE[i]
        try:
            return stream(client, tiny_models(name), case, has_begun[i + 1].set)
        finally:
            has_begun[i + 1].set()

    with ThreadPoolExecutor(len(CASES_AT_ONCE)) as pool:
        answers = list(pool.map(answer, range(len(CASES_AT_ONCE))))
    assert answers == [expected(tiny_models(name), case) for name, case in CASES_AT_ONCE]


def test_models_tell_how_many_images_they_take(client) -> None:
    max_images = {model.id: model.max_images for model in client.models.list()}
    assert max_images == {LLAVA: 16, TEXT_ONLY: 0}


def test_text_only_model_refuses_a_picture_by_its_name(client, tiny_models) -> None:
    messages = to_openai(conversations_of(tiny_models(LLAVA).shape)["wide"])
    with pytest.raises(openai.BadRequestError, match=f"`{TEXT_ONLY}` is text-only") as caught:
        client.chat.completions.create(model=TEXT_ONLY, messages=messages)
    assert caught.value.param == "messages[0].content[0].image_url.url"
