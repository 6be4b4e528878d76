"""Families that take videos against Hugging Face: prompts, pixels, positions, greedy tokens."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    Qwen3VLVideoProcessor,
    smart_resize,
)

from python_backend.chat_template import Conversation, TemplateOptions
from python_backend.config import EngineConfig
from python_backend.errors import BundleError, InvalidRequestError
from python_backend.families import load_family
from python_backend.families.base import PixelBounds
from python_backend.families.idefics3 import number_in_words
from python_backend.families.qwen3_vl import fit_frames, read_video_size
from python_backend.preprocess import Preprocessor
from python_backend.sampling_params import SamplingParams
from python_backend.video import Video
from python_backend.vlm import VLM, split_images
from tests.tiny.idefics import IDEFICS3
from tests.tiny.llava import LLAVA_ONEVISION
from tests.tiny.pictures import picture, png
from tests.tiny.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from tests.tiny.reference import hf_greedy, hf_inputs

QWEN3 = [shape.name for shape in QWEN3_VL]
QWEN = [shape.name for shape in (*QWEN2_5_VL, *QWEN2_VL, *QWEN3_VL)]
LLAVA = [shape.name for shape in LLAVA_ONEVISION]
SMOLVLM = [shape.name for shape in IDEFICS3 if shape.model_type == "smolvlm"]
NUM_TOKENS = 10
_SIZES = [{"shortest_edge": 4096, "longest_edge": 10**6 + i} for i in range(3)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
NEAR_TIE = 1e-4


def _video(num_frames, fps, size=(90, 60), seed=0):
    frames = [png(*size, seed=seed + i) for i in range(num_frames)]
    return {"type": "video", "video": frames, "fps": fps}


def _text(text):
    return {"type": "text", "text": text}


def _prepare(tiny, conversation):
    messages, files = split_images(conversation)
    return Preprocessor(tiny.model).prepare({"messages": messages}, files)


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


# Hugging Face refuses a single frame.
QWEN3_CONVERSATIONS = {name: CONVERSATIONS[name] for name in ("even", "odd", "with pictures")}


# Its template for videos shows parts only, and Hugging Face wants as many frames of each video.
SMOLVLM_CONVERSATIONS = {
    **{name: CONVERSATIONS[name] for name in ("even", "odd", "single frame")},
    "several": [
        {"role": "system", "content": [_text("Be short.")]},
        {"role": "user", "content": [_video(3, 0.01, (60, 60), 3), _text("Compare.")]},
        {"role": "assistant", "content": [_text("Noise.")]},
        {"role": "user", "content": [_text("With: "), _video(3, 0.3, (99, 40), 5)]},
    ],
}


def _conversations(name):
    if name in SMOLVLM:
        return SMOLVLM_CONVERSATIONS
    if name in LLAVA:
        return LLAVA_CONVERSATIONS
    return QWEN3_CONVERSATIONS if name in QWEN3 else CONVERSATIONS


@pytest.fixture(scope="module", params=[*QWEN, *LLAVA, *SMOLVLM])
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


@pytest.mark.parametrize("shape", SMOLVLM)
@pytest.mark.parametrize("name", SMOLVLM_CONVERSATIONS)
def test_prompt_and_pixels_of_smolvlm_equal_huggingfaces(tiny_models, shape, name):
    tiny = tiny_models(shape)
    expected = hf_inputs(tiny.checkpoint, SMOLVLM_CONVERSATIONS[name])
    prepared = _prepare(tiny, SMOLVLM_CONVERSATIONS[name])
    np.testing.assert_array_equal(prepared.prompt.token_ids, expected["input_ids"][0])
    pixels = [image.features["pixel_values"] for image in prepared.images]
    np.testing.assert_array_equal(np.stack(pixels), expected["pixel_values"].numpy())


@pytest.mark.parametrize("shape", SMOLVLM)
def test_pictures_stand_where_they_are_beside_a_video_of_smolvlm(tiny_models, shape):
    tiny = tiny_models(shape)
    video = _video(3, 2.0)
    conversation = [{"role": "user", "content": [_IMAGE, video, _text("Compare."), _IMAGE]}]
    prepared = _prepare(tiny, conversation)
    expected = hf_inputs(tiny.checkpoint, conversation)
    np.testing.assert_array_equal(prepared.prompt.token_ids, expected["input_ids"][0])
    ((alone,), (film,)) = (
        _prepare(tiny, [{"role": "user", "content": [part]}]).images for part in (_IMAGE, video)
    )
    family = load_family(tiny.model.manifest.config, tiny.model.processor_dir)
    found = family.split_images(family.join_images(prepared.images))
    assert len(found) == 3
    for features, image in zip(found, (alone, film, alone), strict=True):
        np.testing.assert_array_equal(features["pixel_values"], image.features["pixel_values"])


@pytest.mark.parametrize("shape", SMOLVLM)
def test_measured_rate_of_smolvlms_video_leaves_full_seconds_full(tiny_models, shape):
    model = tiny_models(shape).model
    family = load_family(model.manifest.config, model.processor_dir)
    video = Video([picture(30, 30)] * 2, [0.0, 4203.0], 2 / 8405.99999999)
    text = family.image_text(family.prepare_video(video))
    assert text.startswith(
        "You are provided the following series of two frames from a 2:20:06 [H:MM:SS] video.\n"
    )
    assert "\nFrame from 00:00:<" in text
    assert "\nFrame from 70:03:<" in text


@pytest.mark.parametrize("shape", SMOLVLM)
def test_strings_count_as_text_parts_beside_a_video_of_smolvlm(tiny_models, shape):
    def conversation(answer):
        return [
            {"role": "user", "content": [_video(1, 2.0)]},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": [_text("And?")]},
        ]

    tiny = tiny_models(shape)
    found, expected = (
        _prepare(tiny, conversation(answer)).prompt.token_ids
        for answer in ("Noise.", [_text("Noise.")])
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", SMOLVLM)
@pytest.mark.parametrize("media", [[], [_video(1, 2.0)]], ids=["alone", "beside a video"])
def test_typed_placeholder_of_smolvlms_videos_is_text(tiny_models, shape, media):
    tiny = tiny_models(shape)
    found, other = (
        _prepare(
            tiny, [{"role": "user", "content": [*media, _text(f"What is <{name}> in HTML?")]}]
        ).prompt
        for name in ("video", "audio")
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny.checkpoint)
    text = tokenizer.decode(found.token_ids)
    assert text.count("<video>") == 1
    assert text.replace("<video>", "<audio>") == tokenizer.decode(other.token_ids)


@pytest.mark.parametrize("shape", SMOLVLM)
@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {}),
        ({"options": TemplateOptions(variables={"message": "Hm."})}, {}),
        ({}, {"reasoning_content": "Hm."}),
    ],
    ids=["tools", "variables", "reasoning"],
)
def test_what_smolvlms_template_for_videos_leaves_out_is_refused(tiny_models, shape, more, answer):
    model = tiny_models(shape).model
    template = load_family(model.manifest.config, model.processor_dir).template
    messages = [
        {"role": "user", "content": [{"type": "video"}]},
        {"role": "assistant", "content": "Noise.", **answer},
    ]
    with pytest.raises(InvalidRequestError, match="beside a video"):
        template.token_ids(Conversation(messages=messages, **more), ["a video"])


@pytest.mark.parametrize("shape", SMOLVLM)
def test_frames_of_another_size_than_smolvlms_tower_takes_are_refused(tiny_models, shape, tmp_path):
    model = tiny_models(shape).model
    folder = shutil.copytree(model.processor_dir, tmp_path / "processor")
    config = json.dumps({"max_image_size": {"longest_edge": 999}})
    (folder / "video_preprocessor_config.json").write_text(config)
    with pytest.raises(BundleError, match="video processor makes frames of 999 pixels"):
        load_family(model.manifest.config, folder).load_processors()


@pytest.mark.parametrize("shape", SMOLVLM)
def test_frames_of_smolvlm_count_as_images(tiny_models, shape):
    tiny = tiny_models(shape)
    conversation = SMOLVLM_CONVERSATIONS["even"]
    (image,) = _prepare(tiny, conversation).images
    with VLM(tiny.model.folder) as vlm:
        (generation,) = vlm.generate([conversation], SamplingParams(max_tokens=1))
    usage = generation.choices[0].usage
    assert (usage.image_tokens, usage.video_tokens) == (image.num_tokens, 0)


def test_idefics3_takes_no_videos(tiny_models):
    (shape,) = (shape.name for shape in IDEFICS3 if shape.model_type == "idefics3")
    with pytest.raises(InvalidRequestError, match="takes no videos"):
        _prepare(tiny_models(shape), CONVERSATIONS["even"])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "one"),
        (13, "thirteen"),
        (20, "twenty"),
        (32, "thirty-two"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (112, "one hundred and twelve"),
        (256, "two hundred and fifty-six"),
    ],
)
def test_numbers_of_frames_in_words(number, words):
    assert number_in_words(number) == words


@pytest.mark.parametrize(
    ("shape", "name"), [(shape, name) for shape in QWEN for name in _conversations(shape)]
)
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


@pytest.mark.parametrize("shape", QWEN3)
def test_single_frame_of_qwen3_is_shown_twice_at_its_time(tiny_models, shape):
    preprocessor = Preprocessor(tiny_models(shape).model)
    prepared = []
    for num_frames in (1, 2):
        video = {"type": "video", "video": [png(90, 60)] * num_frames}
        messages, files = split_images([{"role": "user", "content": [video]}])
        prepared.append(preprocessor.prepare({"messages": messages}, files).images[0])
    single, double = prepared
    for key in ("pixel_values", "image_grid_thw"):
        np.testing.assert_array_equal(single.features[key], double.features[key])
    text = preprocessor.family.image_text(single)
    pads = "<|video_pad|>" * single.num_tokens
    assert text == f"<0.0 seconds><|vision_start|>{pads}<|vision_end|>"


@settings(max_examples=60, deadline=None)
@given(num_frames=st.integers(2, 33), height=st.integers(8, 900), width=st.integers(8, 900))
def test_size_of_qwen3s_frames_equals_huggingfaces(num_frames, height, width):
    fitted = fit_frames(
        (num_frames, height, width),
        depth=2,
        factor=32,
        size={"shortest_edge": 50_000, "longest_edge": 1_000_000},
    )
    assert fitted == smart_resize(
        num_frames, height, width, factor=32, min_pixels=50_000, max_pixels=1_000_000
    )


def test_bounds_of_a_request_are_for_all_of_qwen3s_frames_together(tiny_models):
    model = tiny_models(QWEN3[0]).model
    family = load_family(model.manifest.config, model.processor_dir)
    video = Video.of_frames([picture(320, 320)] * 4, 2.0)
    few = family.within(PixelBounds(max_pixels=8 * 32**2)).prepare_video(video)
    assert family.prepare_video(video).features["image_grid_thw"].tolist() == [[2, 4, 4]]
    assert few.features["image_grid_thw"].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(
    "files",
    [
        {"preprocessor_config.json": {"size": _SIZES[0]}},
        {"preprocessor_config.json": {"min_pixels": 9}},
        {
            "preprocessor_config.json": {"size": _SIZES[0]},
            "video_preprocessor_config.json": {"size": _SIZES[1]},
            "processor_config.json": {"processor_class": "Qwen3VLProcessor"},
        },
        {
            "preprocessor_config.json": {"size": _SIZES[0]},
            "processor_config.json": {"video_processor": {"size": _SIZES[2]}},
        },
    ],
)
def test_limits_of_qwen3s_videos_are_read_where_huggingface_reads_them(tmp_path, files):
    for name, config in files.items():
        (tmp_path / name).write_text(json.dumps(config))
    expected = Qwen3VLVideoProcessor.from_pretrained(tmp_path).size
    assert read_video_size(tmp_path) == dict(expected)


@pytest.mark.parametrize(
    "config",
    [EngineConfig(), EngineConfig(max_num_batched_tokens=16, max_encoder_patches=64)],
    ids=["default", "small chunks and calls"],
)
def test_greedy_tokens_equal_huggingfaces(tiny, config):
    found = {}
    with VLM(tiny.model.folder, config) as vlm:
        for name, messages in _conversations(tiny.shape.name).items():
            (generation,) = vlm.generate([messages], GREEDY)
            found[name] = list(generation.token_ids)
    expected = {}
    for name, messages in _conversations(tiny.shape.name).items():
        inputs = hf_inputs(tiny.checkpoint, messages)
        expected[name], lead = hf_greedy(tiny.hf, inputs, NUM_TOKENS)
        assert lead > NEAR_TIE, f"{tiny.shape.name}, {name}: near tie, choose another seed"
    assert found == expected
    assert len({tuple(tokens) for tokens in found.values()}) > 1
