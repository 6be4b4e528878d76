"""What only Llama 3.2 Vision does: pictures that are attended to, and rows that have none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer

from python_backend.chat_template import Conversation
from python_backend.config import EngineConfig
from python_backend.engine import Engine
from python_backend.errors import BundleError, InvalidRequestError
from python_backend.families import load_family
from python_backend.image import ImageLimits, decode_image
from python_backend.loading import (
    load_cross_attention,
    load_engine,
    load_runtime,
    load_vision_encoder,
)
from python_backend.model_runner import ModelRunner
from python_backend.preprocess import Preprocessor
from python_backend.request import GenerationRequest
from python_backend.runtimes.base import EngineRuntime
from python_backend.sampling_params import SamplingParams
from python_backend.scheduler import Scheduler
from python_backend.token_text import TokenText
from python_backend.vision_encoder import EncoderImage
from python_backend.vlm import VLM, split_images
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.mllama import MLLAMA
from tests.tiny.pictures import picture, png
from tests.tiny.reference import hf_greedy, hf_inputs

NUM_TOKENS = 10
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


def _user(*parts):
    """A message of texts, and of pictures of these sizes."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": png(*part)}
            for part in parts
        ],
    }


SEEN = {
    "one": [_user("Look: ", (40, 90), "What is it?")],
    "two together": [_user((40, 90), (33, 31), "Compare.")],
    "three together, one apart": [
        _user((70, 20), (40, 90), (33, 31), "Compare."),
        {"role": "assistant", "content": "No."},
        _user("And this? ", (211, 64)),
    ],
    "apart, then together": [_user((33, 31), "or", (70, 20), (90, 90), "?")],
}


@pytest.fixture(scope="module", params=[shape.name for shape in MLLAMA])
def tiny(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture(scope="module")
def mllama(tiny_models):
    return tiny_models("tiny-mllama")


@pytest.mark.parametrize("name", SEEN)
def test_tokens_see_what_the_mask_of_the_huggingface_processor_shows(tiny, name):
    family = load_family(tiny.model.manifest.config, tiny.model.processor_dir)
    expected = hf_inputs(tiny.checkpoint, SEEN[name])["cross_attention_mask"][0].numpy()
    messages, images = split_images(SEEN[name])
    prepared = [
        family.prepare_image(decode_image(image, ImageLimits()), "auto", len(images))
        for image in images
    ]
    prompt = family.prepare(Conversation(messages=messages), prepared)
    # The mask, in rows of embeddings and in the order that the decoder takes them.
    num_images, num_tiles = expected.shape[1:]
    vision = family.config["vision_config"]
    num_tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    numbers = np.arange(num_images * num_tiles).repeat(num_tokens)[:, None]
    features = [image.features for image in prepared]
    order = family.join_embeds(np.split(numbers, num_images), features)[:, 0]
    mask = expected.reshape(len(expected), -1)[:, order]
    rows = np.arange(len(order))
    first, after = prompt.cross_range[:, :1], prompt.cross_range[:, 1:]
    np.testing.assert_array_equal((rows >= first) & (rows < after), mask)


@pytest.mark.parametrize("name", SEEN)
def test_pictures_that_stand_together_give_huggingface_tokens(tiny, name):
    expected, _ = hf_greedy(tiny.hf, hf_inputs(tiny.checkpoint, SEEN[name]), NUM_TOKENS)
    with VLM(tiny.model.folder) as vlm:
        (generation,) = vlm.generate([SEEN[name]], GREEDY)
    assert list(generation.token_ids) == expected


def test_every_choice_of_a_request_sees_its_pictures(mllama):
    """Choices get copies of the row, and the rows move when others leave."""
    messages = [_user((40, 90), "What is it?")]
    expected, _ = hf_greedy(mllama.hf, hf_inputs(mllama.checkpoint, messages), NUM_TOKENS)
    short = dataclasses.replace(GREEDY, max_tokens=2)
    engine = load_engine(mllama.model, EngineConfig(max_num_seqs=4))
    for number, params in enumerate((short, dataclasses.replace(GREEDY, n=3))):
        engine.add_request(_request(mllama, f"r{number}", messages, params))
    tokens: dict[tuple[str, int], list[int]] = {}
    while engine.has_unfinished:
        for output in engine.step():
            tokens.setdefault((output.request_id, output.index), []).extend(output.token_ids)
    assert tokens.pop(("r0", 0)) == expected[:2]
    assert list(tokens.values()) == [expected] * 3
    engine.close()


def _request(tiny, request_id, messages, params=GREEDY):
    preprocessor = Preprocessor(tiny.model)
    bare, images = split_images(messages)
    prepared = preprocessor.prepare({"messages": bare}, images)
    encoder = load_vision_encoder(tiny.model, preprocessor.family, EngineConfig())
    pictures = [
        EncoderImage(image.features, image_hash)
        for image, image_hash in zip(prepared.images, prepared.image_hashes, strict=True)
    ]
    embeds = encoder.join(pictures, encoder.encode(pictures))
    encoder.close()
    return GenerationRequest(request_id, prepared.prompt, embeds, params)


class _Recorded(EngineRuntime):
    """A runtime that keeps the shapes of what it was fed."""

    def __init__(self, runtime: EngineRuntime) -> None:
        super().__init__(runtime.spec)
        self._runtime = runtime
        self.fed: list[dict[str, tuple[int, ...]]] = []

    def _run(self, feeds, cache):
        self.fed.append({name: array.shape for name, array in feeds.items()})
        return self._runtime.run(feeds, cache)

    def close(self):
        self._runtime.close()


def test_pictures_are_filled_in_once_and_steps_without_any_leave_their_layers_out(mllama):
    manifest, config = mllama.model.manifest, EngineConfig()
    decoder = _Recorded(load_runtime(mllama.model, manifest.decoder, config))
    filling = _Recorded(load_cross_attention(mllama.model, config))
    scheduler = Scheduler(
        max_num_seqs=2,
        max_num_batched_tokens=8,
        max_model_len=manifest.max_model_len,
        max_waiting=2,
    )
    tokenizer = Tokenizer.from_file(str(mllama.model.processor_dir / "tokenizer.json"))
    engine = Engine(scheduler, ModelRunner(decoder, 2, filling), TokenText(tokenizer), ())

    def finish(name):
        engine.add_request(_request(mllama, name, CONVERSATIONS[name]))
        while engine.has_unfinished:
            engine.step()

    finish("text")
    assert filling.fed == []
    assert {feeds["cross_lengths"] for feeds in decoder.fed} == {(0,)}
    finish("wide")
    assert filling.fed == [{"image_embeds": (4 * 17, 128)}]
    assert decoder.fed[-1]["cross_lengths"] == (1,)
    engine.close()


def test_usage_counts_image_tokens_of_the_prompt(mllama):
    with VLM(mllama.model.folder) as vlm:
        (generation,) = vlm.generate([SEEN["two together"]], GREEDY)
    assert generation.choices[0].usage.image_tokens == 2


def test_low_detail_takes_one_tile(mllama):
    family = load_family(mllama.model.manifest.config, mllama.model.processor_dir)
    large = picture(200, 60)
    counts = [
        len(family.prepare_image(large, detail, 1).features["pixel_values"])
        for detail in ("low", "auto", "high")
    ]
    assert counts[0] == 1
    assert counts[1] == counts[2] > 1


def test_more_images_than_the_cache_holds_are_refused(mllama):
    limit = mllama.model.manifest.max_images
    messages = [_user(*[(20, 20)] * (limit + 1), "?")]
    with VLM(mllama.model.folder) as vlm, pytest.raises(InvalidRequestError, match="At most 16"):
        vlm.generate([messages], GREEDY)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"cross_range": None}, "cross_range"),
        ({"cross_range": np.zeros((3, 2), np.int64)}, "cross_range"),
        ({"cross_range": "far"}, "cross_range"),
        ({"cross_range": "negative"}, "cross_range"),
        ({"embeds": "none"}, "image_embeds"),
        ({"embeds": "too many"}, "image_embeds"),
        ({"embeds": "narrow"}, "image_embeds"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(mllama, image_request, change, param):
    request, engine = image_request
    prompt, embeds = request.prompt, request.image_embeds
    seen = prompt.cross_range.copy()
    if "cross_range" in change:
        seen = change["cross_range"]
        if isinstance(seen, str):
            offset = {"far": len(embeds), "negative": -1}[seen]
            seen = prompt.cross_range + offset
    embeds = {
        None: embeds,
        "none": embeds[:0],
        "too many": np.repeat(embeds, 17, axis=0),
        "narrow": embeds[:, :-1],
    }[change.get("embeds")]
    wrong = dataclasses.replace(
        request, prompt=dataclasses.replace(prompt, cross_range=seen), image_embeds=embeds
    )
    with pytest.raises(InvalidRequestError) as caught:
        engine.add_request(wrong)
    assert caught.value.param == param
    assert not engine.has_unfinished


@pytest.fixture(scope="module")
def image_request(mllama):
    """A request with one picture, and an engine."""
    engine = load_engine(mllama.model, EngineConfig())
    yield _request(mllama, "r", SEEN["one"]), engine
    engine.close()


def test_image_processor_of_another_tower_is_refused(mllama):
    config = mllama.model.manifest.config
    vision = {**config["vision_config"], "image_size": 64}
    family = load_family({**config, "vision_config": vision}, mllama.model.processor_dir)
    with pytest.raises(BundleError, match="tiles of 32 pixels"):
        family.load_processors()
