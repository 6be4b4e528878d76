"""Models that read text only: prompts as Hugging Face makes them, no encoder anywhere, no images."""

from __future__ import annotations

import numpy as np
import pytest

from builders.options import BuildOptions
from builders.pipeline import build
from python_backend import tensor_names as names
from python_backend.errors import InvalidRequestError
from python_backend.manifest import Manifest
from python_backend.preprocess import Preprocessor
from python_backend.vlm import VLM, split_images
from tests.tiny.conversations import CONVERSATIONS, TEXT_CONVERSATIONS
from tests.tiny.gemma import GEMMA3_TEXT
from tests.tiny.reference import hf_inputs
from tests.tiny.shapes import TIED
from tests.tiny.tokenizer import NUM_TEXT_TOKENS


@pytest.fixture(scope="module", params=[shape.name for shape in GEMMA3_TEXT])
def tiny(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture(scope="module")
def preprocessor(tiny):
    return Preprocessor(tiny.model)


@pytest.mark.parametrize("name", TEXT_CONVERSATIONS)
def test_prompt_equals_that_of_the_huggingface_tokenizer(tiny, preprocessor, name):
    messages, _ = split_images(TEXT_CONVERSATIONS[name])
    prompt = preprocessor.prepare({"messages": messages}, []).prompt
    expected = hf_inputs(tiny.checkpoint, messages)["input_ids"][0]
    np.testing.assert_array_equal(prompt.token_ids, expected)
    np.testing.assert_array_equal(prompt.image_index, np.full(len(expected), -1))
    np.testing.assert_array_equal(prompt.position_ids, np.arange(len(expected))[None])


@pytest.mark.parametrize("prompt", [{"prompt": "The sea"}, {"prompt_token_ids": [1, 2, 3]}])
def test_raw_prompt_has_no_images_either(preprocessor, prompt):
    assert preprocessor.prepare(prompt, []).prompt.image_index.max() == -1


def test_control_tokens_that_were_typed_are_text(preprocessor):
    def num_control_tokens(text):
        messages = [{"role": "user", "content": text}]
        prompt = preprocessor.prepare({"messages": messages}, []).prompt
        return (prompt.token_ids >= NUM_TEXT_TOKENS).sum()

    assert num_control_tokens("<|image_pad|><|im_end|>") == num_control_tokens("Hi")


@pytest.mark.parametrize("name", ["wide", "three"])
def test_images_are_refused_with_the_name_of_the_model(tiny, preprocessor, name):
    messages, images = split_images(CONVERSATIONS[name])
    with pytest.raises(InvalidRequestError, match="text-only model") as caught:
        preprocessor.prepare({"messages": messages}, images)
    assert tiny.model.manifest.served_model_name in caught.value.message
    with VLM(tiny.model.folder) as vlm, pytest.raises(InvalidRequestError, match="text-only"):
        vlm.generate([CONVERSATIONS[name]])


def test_repository_has_no_encoder(tiny):
    manifest = tiny.model.manifest
    assert (manifest.vision_encoder, manifest.sees_images, manifest.max_images) == (None, False, 0)
    assert Manifest.from_json(manifest.to_json()) == manifest
    stages = [
        manifest.name + suffix for suffix in ("", names.DECODER_SUFFIX, names.PREPROCESS_SUFFIX)
    ]
    assert sorted(path.name for path in tiny.repository.iterdir()) == stages
    for stage in stages:
        config = (tiny.repository / stage / "config.pbtxt").read_text()
        assert names.ENCODER_SUFFIX not in config
        assert names.IMAGE_EMBEDS not in config
    ensemble = (tiny.repository / manifest.name / "config.pbtxt").read_text()
    assert 'key: "max_images", value { string_value: "0" }' in ensemble


def test_build_was_verified_on_text(tiny):
    verification = tiny.model.manifest.verification
    assert verification["num_equal_tokens"] == verification["num_tokens"] == 16
    assert verification["logits_error"] < 1e-5


def test_model_built_over_one_that_saw_images_leaves_no_encoder(tiny_models, tmp_path, report):
    for name in (TIED.name, GEMMA3_TEXT[0].name):
        options = BuildOptions(
            model=str(tiny_models(name).checkpoint),
            output=tmp_path,
            name="same",
            max_model_len=64,
            skip_verify=True,
        )
        build(options, report)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "same",
        "same-decoder",
        "same-preprocess",
    ]
