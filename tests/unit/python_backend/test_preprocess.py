from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from python_backend.errors import InvalidImageError, InvalidRequestError, PromptTooLongError
from python_backend.image import ImageLimits
from python_backend.manifest import ModelFolder
from python_backend.preprocess import Preprocessor
from python_backend.prompt_reader import read_prompt
from tests.tiny.gemma import GEMMA3
from tests.tiny.pictures import png
from tests.tiny.shapes import TOOLS
from tests.tiny.tokenizer import TOKEN_IDS

IMAGE = {"type": "image"}
TEXT = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module")
def preprocessor(tied):
    return Preprocessor(tied.model)


def _user(content):
    return {"messages": [{"role": "user", "content": content}]}


def _assistant(**more):
    return {"messages": [{"role": "assistant", "content": "", **more}]}


def _call(**function):
    return _assistant(tool_calls=[{"function": function}])


def _refusal(prompt, images=(), preprocessor=None):
    with pytest.raises(InvalidRequestError) as caught:
        read_prompt(prompt) if preprocessor is None else preprocessor.prepare(prompt, images)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        ("messages", "prompt"),
        ({}, "prompt"),
        ({"messages": [], "prompt": ""}, "prompt"),
        ({"other": 1}, "other"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt_token_ids": "12"}, "prompt_token_ids"),
        ({"prompt_token_ids": [1, "2"]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1, 2.0]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1, True]}, "prompt_token_ids"),
        ({"prompt_token_ids": [[1]]}, "prompt_token_ids"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [None]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name"),
        (_user("a") | {"tools": []}, "tools"),
        (_user("a") | {"tools": ["f"]}, "tools"),
        ({"prompt": "a", "tools": [{}]}, "tools"),
        (_assistant(reasoning_content=1), "messages[0].reasoning_content"),
        (_assistant(tool_calls=[]), "messages[0].tool_calls"),
        (_assistant(tool_calls={}), "messages[0].tool_calls"),
        (_assistant(tool_calls=[{"name": "f"}]), "messages[0].tool_calls[0]"),
        (_call(name=1, arguments={}), "messages[0].tool_calls[0]"),
        (_call(name="f", arguments="{}"), "messages[0].tool_calls[0]"),
        (_assistant(role="tool", tool_calls=[{}]), "messages[0].tool_calls"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user<|im_end|>", "content": "hi"}]}, "messages[0].role"),
        (_user(None), "messages[0].content"),
        (_user(1), "messages[0].content"),
        (_user([]), "messages[0].content"),
        (_user({"type": "text"}), "messages[0].content"),
        (_user(["text"]), "messages[0].content[0]"),
        (_user([{"type": "text"}]), "messages[0].content[0]"),
        (_user([{"type": "text", "text": None}]), "messages[0].content[0]"),
        (_user([TEXT, {"type": "audio"}]), "messages[0].content[1]"),
        (_user([{"type": ["text"], "text": "a"}]), "messages[0].content[0]"),
        (_user([{"type": "image", "detail": "huge"}]), "messages[0].content[0]"),
        (_user([{"type": "image", "detail": ["low"]}]), "messages[0].content[0]"),
        (_user([{"type": "image", "detail": None}]), "messages[0].content[0]"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"add_generation_prompt": True}, "prompt"),
        ({**_user("a"), "add_generation_prompt": 1}, "add_generation_prompt"),
        ({**_user("a"), "continue_final_message": True}, "continue_final_message"),
        ({**_user("a"), "chat_template_kwargs": []}, "chat_template_kwargs"),
        *(
            ({**_user("a"), "chat_template_kwargs": {name: value}}, f"chat_template_kwargs.{name}")
            for name, value in [
                ("messages", []),
                ("tools", []),
                ("chat_template", "x"),
                ("enable_thinking", "yes"),
                ("date_string", ["x"]),
            ]
        ),
    ],
)
def test_malformed_prompt_is_refused_where_it_is_wrong(prompt, param):
    assert _refusal(prompt).param == param


def test_details_are_listed_by_the_place_of_their_image():
    prompt = {
        "messages": [
            {"role": "user", "content": [{**IMAGE, "detail": "low"}, TEXT, IMAGE]},
            {"role": "user", "content": [{**IMAGE, "detail": "high"}]},
        ]
    }
    _, parts = read_prompt(prompt)
    assert [(part.path, part.detail) for part in parts] == [
        ("messages[0].content[0]", "low"),
        ("messages[0].content[2]", "auto"),
        ("messages[1].content[0]", "high"),
    ]


@pytest.mark.parametrize(
    ("content", "num_images"), [("Hi", 1), ([TEXT], 1), ([IMAGE], 0), ([IMAGE], 2)]
)
def test_number_of_images_must_match_the_parts(preprocessor, content, num_images):
    images = [png(30, 30)] * num_images
    assert _refusal(_user(content), images, preprocessor).param == "messages"


@pytest.mark.parametrize(
    "prompt", [{"prompt": "Hi"}, {"prompt_token_ids": [1, 2]}], ids=["text", "ids"]
)
def test_raw_prompt_takes_no_images(preprocessor, prompt):
    assert _refusal(prompt, [png(30, 30)], preprocessor)
    assert preprocessor.prepare(prompt, []).prompt.image_index.max() == -1


def test_more_images_than_the_model_was_built_for_are_refused(preprocessor, tied):
    most = tied.model.manifest.max_images
    error = _refusal(_user([IMAGE] * (most + 1)), [png(30, 30)] * (most + 1), preprocessor)
    assert f"At most {most} images" in error.message


def test_bad_image_is_named_by_its_place(preprocessor):
    with pytest.raises(InvalidImageError) as caught:
        preprocessor.prepare(_user([IMAGE, TEXT, IMAGE]), [png(30, 30), b"no picture"])
    assert caught.value.param == "messages[0].content[2]"


def test_own_limits_are_obeyed(tied):
    preprocessor = Preprocessor(tied.model, ImageLimits(max_pixels=899))
    with pytest.raises(InvalidImageError, match="30 x 30"):
        preprocessor.prepare(_user([IMAGE]), [png(30, 30)])


def test_pixels_of_all_images_are_counted_before_one_is_decoded(tied):
    """CVE-2026-130686: many pictures, each under the limit of one."""
    preprocessor = Preprocessor(tied.model, ImageLimits(max_total_pixels=1799))
    truncated = png(30, 30)[:60]
    with pytest.raises(InvalidImageError, match="1800 pixels together") as caught:
        preprocessor.prepare(_user([IMAGE, IMAGE]), [truncated, truncated])
    assert caught.value.param == "messages"
    preprocessor.prepare(_user([IMAGE]), [png(30, 30)])


def _length(preprocessor, prompt, images=()):
    return len(preprocessor.prepare(prompt, images).prompt.token_ids)


def _with_max_model_len(tied, max_model_len):
    manifest = dataclasses.replace(tied.model.manifest, max_model_len=max_model_len)
    return Preprocessor(ModelFolder(tied.model.folder, manifest))


@pytest.mark.parametrize("images", [[], [png(90, 60)]])
def test_prompt_must_leave_room_for_one_token(tied, preprocessor, images):
    prompt = _user([IMAGE, TEXT] if images else [TEXT])
    length = _length(preprocessor, prompt, images)
    assert _length(_with_max_model_len(tied, length + 1), prompt, images) == length
    with pytest.raises(PromptTooLongError) as caught:
        _with_max_model_len(tied, length).prepare(prompt, images)
    assert caught.value.code == "context_length_exceeded"
    assert ("1 images" in caught.value.message) == bool(images)


def test_picture_that_is_too_large_for_the_context_is_refused_at_once(tied):
    """CVE-2026-24271; the second file is damaged, and never decoded."""
    images = [png(90, 90), png(90, 90)[:100]]
    with pytest.raises(PromptTooLongError):
        _with_max_model_len(tied, 5).prepare(_user([IMAGE, IMAGE]), images)


def test_placeholders_are_expanded_and_indexed_in_order(preprocessor):
    images = [png(90, 60), png(60, 120)]
    prepared = preprocessor.prepare(_user([IMAGE, TEXT, IMAGE]), images)
    prompt, sizes = prepared.prompt, [image.num_tokens for image in prepared.images]
    is_image = prompt.token_ids == TOKEN_IDS["<|image_pad|>"]
    assert is_image.sum() == sum(sizes)
    np.testing.assert_array_equal(prompt.image_index[is_image], np.arange(sum(sizes)))
    assert (prompt.image_index[~is_image] == -1).all()
    assert prompt.position_ids.shape == (3, len(prompt.token_ids))
    assert {a.dtype.name for a in (prompt.token_ids, prompt.image_index)} == {"int64"}


def test_hash_depends_on_picture_and_detail_only(preprocessor):
    def hashes(*parts):
        content = [part for part, _ in parts]
        return list(preprocessor.prepare(_user(content), [d for _, d in parts]).image_hashes)

    low = {**IMAGE, "detail": "low"}
    one, other = png(60, 60), png(60, 60, seed=5)
    assert len(set(hashes((IMAGE, one), (low, one), (IMAGE, other)))) == 3
    assert hashes((IMAGE, one), (IMAGE, one))[0] == hashes((IMAGE, other), (IMAGE, one))[1]


def test_half_a_surrogate_pair_is_refused(preprocessor):
    """JSON can hold one; UTF-8 cannot."""
    prompt = json.loads('{"messages": [{"role": "user", "content": "a\\ud800b"}]}')
    _refusal(prompt, [], preprocessor)
    _refusal({"prompt": "\ud800"}, [], preprocessor)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (_user("a") | {"tools": [{"type": "function"}]}, "tools"),
        (_call(name="f", arguments={}), "tools"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "tools"),
        (_assistant(reasoning_content="Hm."), "messages"),
    ],
)
def test_what_the_template_would_leave_out_is_refused(preprocessor, prompt, param):
    assert _refusal(prompt, preprocessor=preprocessor).param == param


def test_pictures_of_tools_take_their_place_in_the_prompt(tiny_models):
    """Their order is that of the conversation, whoever sent them."""
    model = tiny_models(TOOLS.name).model
    assert model.manifest.tool_format == "hermes"
    messages = [
        {"role": "user", "content": [IMAGE, TEXT]},
        *_call(name="draw", arguments={})["messages"],
        {"role": "tool", "content": [TEXT, IMAGE]},
    ]
    sizes = [(64, 64), (128, 64)]
    prepared = Preprocessor(model).prepare(
        {"messages": messages, "tools": [{"type": "function", "function": {"name": "draw"}}]},
        [png(*size) for size in sizes],
    )
    index = prepared.prompt.image_index
    first, second = (image.num_tokens for image in prepared.images)
    assert index[index >= 0].tolist() == list(range(first + second))
    assert first < second


# --- how many pixels -------------------------------------------------------------------------------


def _bounded(content, **bounds):
    return {**_user(content), "mm_processor_kwargs": bounds}


@pytest.mark.parametrize(
    ("bounds", "param"),
    [
        ([], "mm_processor_kwargs"),
        ({"size": 1}, "mm_processor_kwargs"),
        ({"max_pixels": 0}, "mm_processor_kwargs.max_pixels"),
        ({"min_pixels": True}, "mm_processor_kwargs.min_pixels"),
        ({"max_pixels": 1.5}, "mm_processor_kwargs.max_pixels"),
    ],
)
def test_malformed_pixel_bounds_are_refused(preprocessor, bounds, param):
    prompt = {**_user([IMAGE]), "mm_processor_kwargs": bounds}
    assert _refusal(prompt, [png(30, 30)], preprocessor).param == param


def test_pixel_bounds_of_a_request_are_kept_within_the_checkpoints(preprocessor):
    picture = png(280, 224)
    size = preprocessor.family._processor.size
    fewest, most = size["shortest_edge"], size["longest_edge"]

    def prepared(**bounds):
        return preprocessor.prepare(_bounded([IMAGE], **bounds), [picture])

    plain = preprocessor.prepare(_user([IMAGE]), [picture])
    num_tokens = plain.images[0].num_tokens
    pixels = 28**2 * num_tokens
    assert fewest < pixels <= most
    smaller = prepared(max_pixels=pixels // 2)
    assert fewest <= smaller.images[0].num_tokens * 28**2 <= pixels // 2
    # Bounds beyond the checkpoint's are the checkpoint's.
    assert prepared(max_pixels=2**31 - 1).images[0].num_tokens == num_tokens
    assert prepared(max_pixels=1).images[0].num_tokens * 28**2 <= max(fewest, 28**2)
    assert prepared(min_pixels=1).images[0].num_tokens == num_tokens
    # And the next request is not changed by those of others.
    assert preprocessor.prepare(_user([IMAGE]), [picture]).images[0].num_tokens == num_tokens
    assert smaller.image_hashes != plain.image_hashes


def test_family_with_sizes_of_its_own_takes_no_pixel_bounds(tiny_models):
    gemma = Preprocessor(tiny_models(GEMMA3[0].name).model)
    error = _refusal(_bounded([IMAGE], max_pixels=1000), [png(30, 30)], gemma)
    assert error.param == "mm_processor_kwargs"


# --- truncate_prompt_tokens ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [_user("a b c d e f"), {"prompt": "a b c d e f"}, {"prompt_token_ids": [5] * 9}],
)
def test_only_the_end_of_a_long_prompt_is_kept(preprocessor, prompt):
    whole = preprocessor.prepare(prompt, []).prompt
    for num_kept in (1, 3, len(whole.token_ids), 400):
        kept = preprocessor.prepare({**prompt, "truncate_prompt_tokens": num_kept}, []).prompt
        assert kept.token_ids.tolist() == whole.token_ids[-num_kept:].tolist()
        assert kept.position_ids.shape[-1] == len(kept.token_ids)
        assert kept.position_ids.min() == 0


def test_minus_one_keeps_what_the_model_holds(preprocessor, tied):
    prompt = {"prompt_token_ids": [5] * 1000, "truncate_prompt_tokens": -1}
    kept = preprocessor.prepare(prompt, []).prompt
    assert len(kept.token_ids) == tied.model.manifest.max_model_len - 1


def test_a_prompt_with_images_is_not_cut(preprocessor):
    prompt = {**_user([IMAGE]), "truncate_prompt_tokens": 5}
    with pytest.raises(InvalidRequestError, match=r"would cut a prompt of .* that has images"):
        preprocessor.prepare(prompt, [png(56, 56)])
    preprocessor.prepare({**prompt, "truncate_prompt_tokens": 400}, [png(56, 56)])


@pytest.mark.parametrize("value", [0, -2, 1.0, "1", True])
def test_a_number_of_kept_tokens_that_is_none_is_refused(preprocessor, value):
    with pytest.raises(InvalidRequestError) as caught:
        preprocessor.prepare({"prompt": "a", "truncate_prompt_tokens": value}, [])
    assert caught.value.param == "truncate_prompt_tokens"
