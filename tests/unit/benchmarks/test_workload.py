from __future__ import annotations

import io

import pytest
from PIL import Image

from benchmarks.workload import (
    NUM_SYSTEM_TOKENS,
    NUM_TEXT_TOKENS,
    PICTURE_SIZE,
    Workload,
    decode_load,
    make_picture,
    pictures_load,
    poisson_load,
    same_picture_load,
    system_prompt_load,
)


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
        assert (image.format, image.size) == ("PNG", (PICTURE_SIZE, PICTURE_SIZE))


def test_questions_about_one_picture_have_one_picture_per_burst(workload: Workload):
    load = same_picture_load(3)
    bursts = [workload.conversations(load, repeat) for repeat in range(2)]
    urls = [[c[0]["content"][0]["image_url"]["url"] for c in burst] for burst in bursts]
    texts = {c[0]["content"][1]["text"] for burst in bursts for c in burst}
    assert [len(set(burst)) for burst in urls] == [1, 1]
    assert urls[0][0] != urls[1][0]
    assert len(texts) == 6
    assert (load.num_requests, load.num_pictures) == (3, 1)


def test_system_prompt_is_shared_within_a_burst_only(workload: Workload):
    load = system_prompt_load(2, 2)
    bursts = [workload.conversations(load, repeat) for repeat in range(2)]
    systems = [{c[0]["content"] for c in burst} for burst in bursts]
    assert [len(burst) for burst in systems] == [1, 1]
    assert systems[0] != systems[1]
    assert len(systems[0].pop().split()) == NUM_SYSTEM_TOKENS


def test_requests_of_a_burst_start_together():
    assert pictures_load(3).starts_s(0) == [0.0, 0.0, 0.0]


def test_poisson_arrivals_have_the_wanted_rate_and_come_again():
    load = poisson_load("poisson", 2000, 0.5)
    starts = load.starts_s(0)
    assert starts == load.starts_s(0) != load.starts_s(1)
    assert starts[0] == 0.0
    assert starts == sorted(starts)
    assert starts[-1] / 1999 == pytest.approx(0.5, rel=0.1)
