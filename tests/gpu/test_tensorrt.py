"""Engines of the default model on this machine's GPU, against what Hugging Face computes in fp32."""

from __future__ import annotations

import time

import pytest

from builders.verify import recorded_cases, verify
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM
from tests.gpu.conftest import CHECKPOINT

# Relative RMS error of logits and embeddings. A format rounds to 2^-8 or 2^-11; a wrong graph is above 1.
TOLERANCES = {"bf16": 0.1, "fp16": 0.02, "fp8": 0.2, "int8": 0.15, "int4": 0.6}


@pytest.fixture(params=TOLERANCES)
def model(request, engines):
    return engines(request.param)


def test_engines_give_the_numbers_of_hugging_face(model, record_property):
    cases = recorded_cases(CHECKPOINT)
    assert cases
    tolerance = TOLERANCES[model.manifest.precision]
    results = verify(model, cases, tolerance, embeds_tolerance=TOLERANCES["bf16"])
    record_property("logits_error", max(result.logits_error for result in results))
    record_property("embeds_error", max(result.embeds_error for result in results))
    record_property("costs", model.manifest.decoder.costs)
    equal = sum(result.num_equal_tokens for result in results)
    total = sum(result.num_tokens for result in results)
    record_property("equal_greedy_tokens", f"{equal}/{total}")


def test_answers_do_not_depend_on_the_batch(model, record_property):
    params = SamplingParams(temperature=0.0, max_tokens=32)
    questions = ["Hello", "What can you do?", "Thanks", "What do you see?"] * 4
    conversations = [[{"role": "user", "content": question}] for question in questions]
    with VLM(model.folder) as vlm:
        alone = [vlm.generate([conversation], params)[0].text for conversation in conversations[:4]]
        start = time.perf_counter()
        together = vlm.generate(conversations, params)
        seconds = time.perf_counter() - start
    assert [answer.text for answer in together] == alone * 4
    num_tokens = sum(len(answer.token_ids) for answer in together)
    record_property("tokens_per_second", round(num_tokens / seconds, 1))
