"""Families that take videos against Hugging Face: prompts, pixels, positions, greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from python_backend.config import EngineConfig
from python_backend.errors import InvalidRequestError
from python_backend.preprocess import Preprocessor
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM, split_images
from tests.tiny.llava import LLAVA_ONEVISION
from tests.tiny.pictures import png
from tests.tiny.qwen import QWEN2_5_VL, QWEN2_VL
from tests.tiny.reference import hf_greedy, hf_inputs

QWEN = [shape.name for shape in (*QWEN2_5_VL, *QWEN2_VL)]
LLAVA = [shape.name for shape in LLAVA_ONEVISION]
NUM_TOKENS = 10
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
NEAR_TIE = 1e-4


def _video(num_frames, fps, size=(90, 60), seed=0):
    frames = [png(*size, seed=seed + i) for i in range(num_frames)]
    return {"type": "video", "video": frames, "fps": fps}


def _text(text):
    return {"type": "text", "text": text}


_IMAGE = {"type": "image", "image": png(64, 70, seed=9)}
CONVERSATIONS = {
    "even": [{"role": "user", "content": [_video(4, 2.0), _text("What happens?")]}],
    # The last frame is repeated; the rate is no fraction of anything.
    "odd": [{"role": "user", "content": [_text("Look: "), _video(5, 1.7, (50, 120))]}],
    "single frame": [{"role": "user", "content": [_video(1, 2.0), _text("And?")]}],
    "with pictures": [
        {"role": "user", "content": [_IMAGE, _video(6, 0.3, (60, 60), 3), _text("Compare.")]},
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [_video(2, 24.0, (99, 40), 5), _text("Or this?"), _IMAGE]},
    ],
}

# Its template puts pictures before videos, and Hugging Face wants as many frames of each video.
LLAVA_CONVERSATIONS = {
    **{name: CONVERSATIONS[name] for name in ("even", "odd", "single frame")},
    "with a picture": [
        {"role": "user", "content": [_IMAGE, _video(3, 0.3, (60, 60), 3), _text("Compare.")]},
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [_video(3, 2.0, (99, 40), 5), _text("Or this?")]},
    ],
}


def _conversations(tiny):
    return LLAVA_CONVERSATIONS if tiny.shape.name in LLAVA else CONVERSATIONS


@pytest.fixture(scope="module", params=[*QWEN, *LLAVA])
def tiny(request, tiny_models):
    return tiny_models(request.param)


@pytest.mark.parametrize("shape", LLAVA)
@pytest.mark.parametrize("name", LLAVA_CONVERSATIONS)
def test_prompt_and_pixels_of_llava_equal_huggingfaces(tiny_models, shape, name):
    tiny = tiny_models(shape)
    expected = hf_inputs(tiny.checkpoint, LLAVA_CONVERSATIONS[name])
    messages, files = split_images(LLAVA_CONVERSATIONS[name])
    prepared = Preprocessor(tiny.model).prepare({"messages": messages}, files)
    np.testing.assert_array_equal(prepared.prompt.token_ids, expected["input_ids"][0])
    pixels = [image.features["pixel_values"] for image in prepared.images if image.is_video]
    np.testing.assert_array_equal(np.stack(pixels), expected["pixel_values_videos"].numpy())


@pytest.mark.parametrize("shape", LLAVA)
def test_another_order_than_the_templates_is_refused(tiny_models, shape):
    conversation = [{"role": "user", "content": [_video(2, 2.0), _IMAGE, _text("Compare.")]}]
    messages, files = split_images(conversation)
    with pytest.raises(InvalidRequestError, match="images before videos"):
        Preprocessor(tiny_models(shape).model).prepare({"messages": messages}, files)


@pytest.mark.parametrize("shape", QWEN)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_pixels_and_positions_equal_huggingfaces(tiny_models, shape, name):
    tiny = tiny_models(shape)
    expected = hf_inputs(tiny.checkpoint, CONVERSATIONS[name])
    messages, files = split_images(CONVERSATIONS[name])
    prepared = Preprocessor(tiny.model).prepare({"messages": messages}, files)
    np.testing.assert_array_equal(prepared.prompt.token_ids, expected["input_ids"][0])
    videos = [image.features for image in prepared.images if image.is_video]
    for key, theirs in (
        ("pixel_values", "pixel_values_videos"),
        ("image_grid_thw", "video_grid_thw"),
    ):
        ours = np.concatenate([features[key] for features in videos])
        np.testing.assert_array_equal(ours, expected[theirs].numpy(), err_msg=key)
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    positions, _ = tiny.hf.model.get_rope_index(
        expected["input_ids"],
        mm_token_type_ids=expected["mm_token_type_ids"],
        attention_mask=torch.ones_like(expected["input_ids"]),
        **{key: expected[key] for key in names if key in expected},
    )
    np.testing.assert_array_equal(prepared.prompt.position_ids, positions[:, 0].numpy())


@pytest.mark.parametrize(
    "config",
    [EngineConfig(), EngineConfig(max_num_batched_tokens=16, max_encoder_patches=64)],
    ids=["default", "small chunks and calls"],
)
def test_greedy_tokens_equal_huggingfaces(tiny, config):
    found = {}
    with VLM(tiny.model.folder, config) as vlm:
        for name, messages in _conversations(tiny).items():
            (generation,) = vlm.generate([messages], GREEDY)
            found[name] = list(generation.token_ids)
    expected = {}
    for name, messages in _conversations(tiny).items():
        inputs = hf_inputs(tiny.checkpoint, messages)
        expected[name], lead = hf_greedy(tiny.hf, inputs, NUM_TOKENS)
        assert lead > NEAR_TIE, f"{tiny.shape.name}, {name}: near tie, choose another seed"
    assert found == expected
    assert len({tuple(tokens) for tokens in found.values()}) > 1
