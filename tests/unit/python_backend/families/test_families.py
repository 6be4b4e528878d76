"""Families that see images against Hugging Face: prompts, pixels, the tower over many pictures at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders.families import family_graphs
from builders.hf_reference import image_embeds
from python_backend.chat_template import Conversation
from python_backend.config import EngineConfig
from python_backend.families import load_family
from python_backend.image import ImageLimits, decode_image
from python_backend.loading import load_vision_encoder
from python_backend.vision_encoder import EncoderImage
from python_backend.vlm import split_images
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.pictures import picture, png
from tests.tiny.reference import hf_inputs
from tests.tiny.shapes import SEEING

# Wide, tall, tiny, odd, square, and one that every processor shrinks.
SIZES = [(211, 64), (45, 190), (5, 7), (33, 31), (112, 112), (1200, 700), (400, 20)]


@pytest.fixture(scope="module", params=SEEING)
def tiny(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture(scope="module")
def family(tiny):
    return load_family(tiny.model.manifest.config, tiny.model.processor_dir)


@pytest.fixture(scope="module")
def graphs(tiny):
    config = tiny.model.manifest.config
    return family_graphs(config["model_type"])(config)


def _pictures(sizes):
    parts = [{"type": "image", "image": png(*size, seed=i)} for i, size in enumerate(sizes)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "\nCompare.\n"}]}]


CASES = {
    **CONVERSATIONS,
    **{f"{width}x{height}": _pictures([(width, height)]) for width, height in SIZES},
    "all sizes": _pictures(SIZES),
}


@pytest.mark.parametrize("name", CASES)
def test_prompt_and_pixels_equal_those_of_the_huggingface_processor(tiny, family, graphs, name):
    expected = hf_inputs(tiny.checkpoint, CASES[name])
    messages, images = split_images(CASES[name])
    # All sizes together may be longer than the model's context.
    prepared = [
        family.prepare_image(decode_image(image, ImageLimits()), "auto", len(images))
        for image in images
    ]
    prompt = family.prepare(Conversation(messages=messages), prepared)
    np.testing.assert_array_equal(prompt.token_ids, expected["input_ids"][0])
    assert (prompt.image_index >= 0).sum() == sum(image.num_tokens for image in prepared)
    arrays = graphs.reference_inputs([i.features for i in prepared]) if prepared else {}
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key].numpy(), err_msg=key)


def _num_frame_tokens(config):
    vision = config["vision_config"]
    return (vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2


def _num_tile_tokens(config):
    vision = config["vision_config"]
    return (vision["image_size"] // vision["patch_size"]) ** 2 + 1


# As docs/openai-api.md counts them; the Qwen-VL line has budgets of pixels instead.
LOW_DETAIL_TOKENS = {
    "gemma3": lambda config: config["mm_tokens_per_image"],
    "idefics3": _num_frame_tokens,
    "smolvlm": _num_frame_tokens,
    "llava_onevision": _num_tile_tokens,
    "mllama": lambda config: 1,
}


def test_low_detail_costs_what_one_look_at_the_whole_picture_costs(tiny, family):
    config = tiny.model.manifest.config
    if config["model_type"] not in LOW_DETAIL_TOKENS:
        pytest.skip("test_qwen_vl.py has these")
    low, auto, high = (
        family.prepare_image(picture(1200, 700), detail, 1).num_tokens
        for detail in ("low", "auto", "high")
    )
    assert low == LOW_DETAIL_TOKENS[config["model_type"]](config)
    assert low <= auto <= high


def test_features_have_the_declared_names_and_dtypes(family):
    for sizes in ([], SIZES[:1], SIZES):
        images = [family.prepare_image(picture(*size), "auto", len(sizes)) for size in sizes]
        features = family.join_images(images)
        for spec in family.encoder_tensors:
            spec.check(features[spec.name], {})
        assert features.keys() == {spec.name for spec in family.encoder_tensors}


def test_splitting_is_the_inverse_of_joining(family):
    for sizes in ([], SIZES[:1], SIZES):
        images = [family.prepare_image(picture(*size), "auto", len(sizes)) for size in sizes]
        parts = family.split_images(family.join_images(images))
        assert len(parts) == len(images)
        for part, image in zip(parts, images, strict=True):
            for name, array in image.features.items():
                np.testing.assert_array_equal(part[name], array)


@pytest.mark.parametrize(
    ("sizes", "max_patches"),
    [*(([size], 4096) for size in SIZES), (SIZES, 4096), (SIZES[::-1], 4096), (SIZES, 100)],
)
def test_embeddings_equal_the_huggingface_tower(tiny, family, graphs, sizes, max_patches):
    """Several pictures in one call, and in several calls."""
    prepared = [family.prepare_image(picture(*size, seed=3), "auto", len(sizes)) for size in sizes]
    arrays = graphs.reference_inputs([image.features for image in prepared])
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        expected = image_embeds(graphs, tiny.hf, inputs)
    config = EngineConfig(max_encoder_patches=max_patches)
    encoder = load_vision_encoder(tiny.model, family, config)
    images = [EncoderImage(image.features, str(i)) for i, image in enumerate(prepared)]
    embeds = encoder.encode(images)
    parts = family.split_embeds(expected, [image.features for image in prepared])
    assert [len(e) for e in embeds] == [len(part) for part in parts]
    assert np.abs(np.concatenate(embeds) - expected).max() <= 1e-5 * np.abs(expected).max()
    encoder.close()
