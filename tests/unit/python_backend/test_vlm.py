"""The offline engine's own part: reading conversations, and answers in the order of the questions."""

from __future__ import annotations

import base64

import pytest

from python_backend.config import EngineConfig
from python_backend.errors import InvalidImageError, InvalidRequestError
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM, split_images
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.pictures import png

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PNG = png(40, 30)
DATA_URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def vlm(tied):
    with VLM(tied.model.folder, EngineConfig(max_num_seqs=4, max_waiting=1)) as model:
        yield model


def _user(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_picture_may_be_bytes_a_path_or_a_data_uri(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    parts = [
        {"type": "image", "image": PNG},
        {"type": "image", "image": path, "detail": "low"},
        {"type": "image", "image": str(path)},
        {"type": "image_url", "image_url": {"url": DATA_URI, "detail": "high"}},
        {"type": "text", "text": "Hi"},
    ]
    messages, images = split_images(_user(*parts))
    assert images == [PNG] * 4
    details = ["auto", "low", "auto", "high"]
    expected = [{"type": "image", "detail": detail} for detail in details]
    assert messages == _user(*expected, {"type": "text", "text": "Hi"})


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("https://example.com/a.png", InvalidRequestError),
        ("http:nothing", InvalidRequestError),
        (None, InvalidRequestError),
        (1, InvalidRequestError),
        ("/nowhere/at/all.png", InvalidImageError),
        ("data:image/png,plain", InvalidImageError),
        ("data:image/png;base64,!!!", InvalidImageError),
        ("data:image/png;base64,AAA", InvalidImageError),
    ],
)
def test_picture_that_cannot_be_read_is_refused(image, error):
    with pytest.raises(error):
        split_images(_user({"type": "image", "image": image}))


@pytest.mark.parametrize(
    "part", [{"type": "image"}, {"type": "image_url"}, {"type": "image_url", "image_url": "x"}]
)
def test_image_part_without_an_image_is_refused(part):
    with pytest.raises(InvalidRequestError):
        split_images(_user(part))


@pytest.mark.parametrize(
    "conversation",
    [["Hi"], [None], _user("Hi"), _user(None), [{"role": "user"}], [{"content": "Hi"}], [{}]],
)
def test_malformed_conversation_is_refused(vlm, conversation):
    with pytest.raises(InvalidRequestError) as caught:
        vlm.generate([conversation], GREEDY)
    assert caught.value.param.startswith("messages[0]")


def test_error_of_the_caller_leaves_nothing_behind(vlm):
    def leave(index, output):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vlm.generate([CONVERSATIONS["text"], CONVERSATIONS["wide"]], GREEDY, leave)
    (answer,) = vlm.generate([CONVERSATIONS["text"]], GREEDY)
    assert len(answer.token_ids) == 6


def test_one_bad_conversation_starts_none(vlm):
    with pytest.raises(InvalidRequestError):
        vlm.generate([CONVERSATIONS["text"], []], GREEDY)
    (answer,) = vlm.generate([CONVERSATIONS["text"]], GREEDY)
    assert len(answer.token_ids) == 6


def test_request_refused_by_the_engine_leaves_no_other_behind(vlm):
    """The second prompt leaves too little room; nothing of the first may come up later."""
    long = [{"role": "user", "content": "sea " * 100}]
    with pytest.raises(InvalidRequestError):
        vlm.generate([CONVERSATIONS["text"], long], SamplingParams(temperature=0, max_tokens=300))
    answers = vlm.generate([CONVERSATIONS["tall"]], GREEDY)
    assert [len(answer.token_ids) for answer in answers] == [6]


def test_more_conversations_than_slots_are_answered_in_order(vlm):
    conversations = list(CONVERSATIONS.values()) * 2
    answers = vlm.generate(conversations, GREEDY)
    half = len(CONVERSATIONS)
    assert [a.token_ids for a in answers[:half]] == [a.token_ids for a in answers[half:]]


def test_outputs_come_as_they_are_generated(vlm):
    seen = []
    conversations = [CONVERSATIONS["text"], CONVERSATIONS["wide"]]
    answers = vlm.generate(conversations, GREEDY, lambda i, output: seen.append((i, output)))
    for i, answer in enumerate(answers):
        mine = [output for index, output in seen if index == i]
        assert "".join(output.text for output in mine) == answer.text
        assert [output.is_last for output in mine] == [False] * 5 + [True]


def test_choices_come_in_their_order(vlm):
    params = SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True)
    (answer,) = vlm.generate([CONVERSATIONS["text"]], params)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in answer.choices}) > 1


def test_no_conversations_are_no_answers(vlm):
    assert vlm.generate([]) == []
