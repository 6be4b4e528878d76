from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from benchmarks.workload import (
    NUM_TEXT_TOKENS,
    PICTURE_SIZE,
    Workload,
    decode_load,
    make_picture,
    pictures_load,
)


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return Workload(path)


def test_every_request_has_a_picture_of_its_own(workload: Workload):
    load = pictures_load(3)
    bursts = [workload.conversations(load, repeat) for repeat in range(2)]
    urls = {burst[i][0]["content"][0]["image_url"]["url"] for burst in bursts for i in range(3)}
    assert len(urls) == 6


def test_the_same_burst_is_the_same_everywhere(workload: Workload):
    load = pictures_load(2)
    assert workload.conversations(load, 1) == workload.conversations(load, 1)


def test_question_has_exactly_the_promised_tokens(workload: Workload):
    (conversation,) = workload.conversations(decode_load(1), 0)
    (part,) = conversation[0]["content"]
    assert len(part["text"].split()) == NUM_TEXT_TOKENS


def test_picture_has_the_promised_size():
    with Image.open(io.BytesIO(make_picture([1, 2]))) as image:
        assert (image.format, image.size) == ("JPEG", (PICTURE_SIZE, PICTURE_SIZE))
