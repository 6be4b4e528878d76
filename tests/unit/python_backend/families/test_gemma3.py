"""What only Gemma 3 does: crops of a picture when its details matter."""

from __future__ import annotations

import json

import numpy as np
import pytest

from python_backend.chat_template import Conversation
from python_backend.families import load_family
from python_backend.image import ImageLimits, decode_image
from python_backend.vlm import split_images
from tests.tiny.pictures import png
from tests.tiny.reference import hf_inputs


@pytest.mark.parametrize("size", [(211, 64), (45, 190), (60, 60), (30, 10)])
def test_high_detail_adds_the_crops_of_the_huggingface_processor(tiny_models, size):
    tiny = tiny_models("tiny-gemma3-crops")
    family = load_family(tiny.model.manifest.config, tiny.model.processor_dir)
    text = {"type": "text", "text": "What is this?"}
    messages = [{"role": "user", "content": [text, {"type": "image", "image": png(*size)}, text]}]
    config = json.loads((tiny.checkpoint / "preprocessor_config.json").read_text())
    crops = {name: config[name] for name in config if name.startswith("pan_and_scan")}
    expected = hf_inputs(tiny.checkpoint, messages, do_pan_and_scan=True, **crops)
    image = decode_image(png(*size), ImageLimits())
    prepared = family.prepare_image(image, "high", 1)
    bare, _ = split_images(messages)
    prompt = family.prepare(Conversation(messages=bare), [prepared])
    np.testing.assert_array_equal(prompt.token_ids, expected["input_ids"][0])
    np.testing.assert_array_equal(
        prepared.features["pixel_values"], expected["pixel_values"].numpy()
    )
    is_cropped = max(size) / min(size) >= 1.5 and min(size) >= 20
    assert (len(prepared.features["pixel_values"]) > 1) == is_cropped
    assert len(family.prepare_image(image, "auto", 1).features["pixel_values"]) == 1
