"""Videos through the proxy and the real Triton: a file, its frames, and a file that is none."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest

from tests.tiny.pictures import encode, picture
from tests.tiny.videos import video_file
from tests.triton.conftest import MODEL


def ask(client: openai.OpenAI, url: str, **video: Any) -> Any:
    parts = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": "What happens?"},
    ]
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": parts}],
        max_tokens=8,
        temperature=0,
        extra_body={"media_io_kwargs": {"video": video}},
    )


def data_url(kind: str, *files: bytes) -> str:
    payload = ",".join(base64.b64encode(file).decode() for file in files)
    return f"data:video/{kind};base64,{payload}"


def test_frames_of_a_video_are_answered(client: openai.OpenAI) -> None:
    frames = [encode(picture(96, 64, seed=i), "JPEG") for i in range(6)]
    usage = ask(client, data_url("jpeg", *frames)).usage
    assert usage.prompt_tokens_details.image_tokens == 0
    half = ask(client, data_url("jpeg", *frames[::2][:2])).usage.prompt_tokens_details
    assert usage.prompt_tokens_details.video_tokens == 3 * half.video_tokens > 0


def test_file_is_decoded_in_the_stage_and_a_bad_one_harms_nobody(client: openai.OpenAI) -> None:
    pytest.importorskip("av", reason="the decoder of video files is not installed")
    file = video_file(20, codec="libvpx", container="webm", size=(96, 64))
    answer = ask(client, data_url("webm", file), num_frames=6)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, data_url("webm", file[: len(file) // 8]))
    assert caught.value.code in ("invalid_video_format", "video_parse_error")
    again = ask(client, data_url("webm", file), num_frames=6)
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage.prompt_tokens_details.video_tokens > 0
