"""Greedy tokens equal Hugging Face's, in eager fp32, whatever else the engine does meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from python_backend.config import EngineConfig
from python_backend.loading import load_engine, load_vision_encoder
from python_backend.preprocess import Preprocessor
from python_backend.request import GenerationRequest
from python_backend.sampling_params import SamplingParams
from python_backend.vision_encoder import EncoderImage, no_image_embeds
from python_backend.vlm import VLM, split_images
from tests.tiny.conversations import conversations_of
from tests.tiny.reference import hf_greedy, hf_inputs, hf_prompt_logprobs

NUM_TOKENS = 14
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
NEAR_TIE = 1e-4  # below this lead over the second token, rounding may decide: take another seed
SMALL_CHUNKS = EngineConfig(max_num_batched_tokens=16, max_num_seqs=4)


@pytest.fixture(scope="module")
def conversations(tiny):
    return conversations_of(tiny.shape)


@pytest.fixture(scope="module")
def expected(tiny, conversations):
    """Greedy tokens of every conversation."""
    tokens = {}
    for name, messages in conversations.items():
        tokens[name], lead = hf_greedy(tiny.hf, hf_inputs(tiny.checkpoint, messages), NUM_TOKENS)
        assert lead > NEAR_TIE, f"{tiny.shape.name}, {name}: near tie, choose another seed"
    return tokens


def test_pictures_and_questions_change_the_answer(expected):
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected)
    assert all(len(set(tokens)) > 2 for tokens in expected.values())


@pytest.mark.parametrize("config", [EngineConfig(), SMALL_CHUNKS], ids=["default", "small chunks"])
def test_one_conversation_at_a_time_gives_huggingface_tokens(tiny, conversations, expected, config):
    with VLM(tiny.model.folder, config) as vlm:
        for name, messages in conversations.items():
            (generation,) = vlm.generate([messages], GREEDY)
            assert list(generation.token_ids) == expected[name], name


def test_log_probabilities_of_prompts_equal_huggingfaces(tiny, conversations):
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    with VLM(tiny.model.folder, SMALL_CHUNKS) as vlm:
        for name, messages in conversations.items():
            (generation,) = vlm.generate([messages], params)
            entries = generation.choices[0].prompt_logprobs
            inputs = hf_inputs(tiny.checkpoint, messages)
            expected = hf_prompt_logprobs(tiny.hf, inputs)
            token_ids = inputs["input_ids"][0].tolist()
            assert [next(iter(entry)) for entry in entries] == token_ids, name
            found = [
                entry[token]["logprob"] for entry, token in zip(entries, token_ids, strict=True)
            ]
            scored = [i for i, value in enumerate(found) if value is not None]
            assert len(scored) == len(token_ids) - 1 - generation.choices[0].usage.image_tokens
            np.testing.assert_allclose(
                [found[i] for i in scored], [expected[i - 1] for i in scored], atol=2e-4
            )


def test_all_conversations_at_once_give_huggingface_tokens(tiny, conversations, expected):
    with VLM(tiny.model.folder) as vlm:
        generations = vlm.generate(list(conversations.values()), GREEDY)
    tokens = {name: list(g.token_ids) for name, g in zip(conversations, generations, strict=True)}
    assert tokens == expected


def test_eight_staggered_requests_in_small_chunks_give_huggingface_tokens(
    tiny, conversations, expected
):
    engine = load_engine(tiny.model, SMALL_CHUNKS)
    preprocessor = Preprocessor(tiny.model)
    encoder = (
        load_vision_encoder(tiny.model, preprocessor.family, SMALL_CHUNKS)
        if tiny.shape.sees_images
        else None
    )

    def request(number: int, name: str) -> GenerationRequest:
        messages, images = split_images(conversations[name])
        prepared = preprocessor.prepare({"messages": messages}, images)
        pictures = [
            EncoderImage(image.features, image_hash)
            for image, image_hash in zip(prepared.images, prepared.image_hashes, strict=True)
        ]
        if encoder is None:
            embeds = no_image_embeds(tiny.model.manifest.decoder.spec)
        else:
            embeds = encoder.join(pictures, encoder.encode(pictures))
        return GenerationRequest(f"{number}-{name}", prepared.prompt, embeds, GREEDY)

    # The longest between short ones, and some of them twice.
    *others, last = conversations
    names = [last, *others, last, *others[:2]]
    waiting = [request(i, name) for i, name in enumerate(names)]
    tokens: dict[str, list[int]] = {}
    num_steps = 0
    while waiting or engine.has_unfinished:
        if waiting and num_steps % 3 == 0:
            engine.add_request(waiting.pop(0))
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
        engine.scheduler.check()
        num_steps += 1
    assert tokens == {f"{i}-{name}": expected[name] for i, name in enumerate(names)}
    engine.close()
    if encoder is not None:
        encoder.close()
