"""Video parts: files and frames, limits, what reaches the backend, what is counted."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.settings import Settings
from openai_frontend.token_estimate import estimate_prompt_tokens
from python_backend.errors import InvalidImageError

pytestmark = pytest.mark.anyio

MP4 = b"\0\0\0\x18ftypisom" + bytes(20)
WEBM = b"\x1aE\xdf\xa3" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
URL = "messages[0].content[1].video_url.url"


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def frames_url(num_frames: int, frame: bytes = JPEG) -> str:
    return "data:video/jpeg;base64," + ",".join([base64.b64encode(frame).decode()] * num_frames)


def video_parts(*urls: str, role: str = "user") -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [{"type": "text", "text": "?"}]
    parts += [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    return [{"role": role, "content": parts}]


async def sent_part(make_proxy, url: str, settings: Settings | None = None, **fields: object):
    """The video part that reached the backend, and the files."""
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=settings)
    response = await proxy.chat(messages=video_parts(url), **fields)
    assert response.status_code == 200, response.text
    (call,) = proxy.backend.calls
    assert "media_io_kwargs" not in call.prompt
    return call.prompt["messages"][0]["content"][1], call.images


async def refusal(proxy, messages, **fields: object) -> dict[str, str]:
    response = await proxy.chat(messages=messages, **fields)
    assert response.status_code == 400, response.text
    assert proxy.backend.calls == []
    return response.json()["error"]


def io_kwargs(**video: object) -> dict[str, object]:
    return {"media_io_kwargs": {"video": video}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"num_frames": 32}),
        (io_kwargs(num_frames=8), {"num_frames": 8, "fps": None}),
        (io_kwargs(num_frames=8, fps=4.0), {"num_frames": 8, "fps": 4.0}),
        (io_kwargs(fps=0.5), {"num_frames": 32, "fps": 0.5}),
        (io_kwargs(num_frames=10**9, fps=100.0), {"num_frames": 32, "fps": 100.0}),
    ],
)
async def test_sampling_of_a_file_is_kept_within_the_servers_limit(make_proxy, fields, expected):
    """CVE-2026-105758, CVE-2026-105760, CVE-2026-126396: fps and frames of requests without a limit."""
    part, files = await sent_part(make_proxy, data_url(MP4), **fields)
    assert part == {"type": "video", **expected}
    assert files == [MP4]


async def test_frames_reach_the_backend_one_by_one(make_proxy):
    part, files = await sent_part(make_proxy, frames_url(3), **io_kwargs(fps=1.0))
    assert part == {"type": "video", "is_frames": True, "num_frames": 3, "fps": 1.0}
    assert files == [JPEG] * 3


@pytest.mark.parametrize("url", [data_url(WEBM, "video/webm"), data_url(MP4, "VIDEO/quicktime")])
async def test_kinds_of_files_are_told_by_their_bytes(make_proxy, url):
    _, files = await sent_part(make_proxy, url)
    assert len(files) == 1


async def test_video_is_read_from_the_allowed_folder(make_proxy, tmp_path):
    (tmp_path / "a.mp4").write_bytes(MP4)
    settings = Settings(allowed_media_path=str(tmp_path))
    _, files = await sent_part(make_proxy, (tmp_path / "a.mp4").as_uri(), settings)
    assert files == [MP4]
    missing = (tmp_path / "b.mp4").as_uri()
    error = await refusal(make_proxy(settings=settings), video_parts(missing))
    assert (error["code"], error["param"]) == ("video_file_not_found", URL)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (data_url(JPEG), "invalid_video_format"),
        (data_url(b""), "empty_video_file"),
        (data_url(MP4, "image/mp4"), "invalid_video_url"),
        ("data:video/mp4;base64,AAA", "invalid_base64_video"),
        ("data:video/jpeg;base64,", "empty_image_file"),
        (frames_url(2) + ",", "empty_image_file"),
        (frames_url(2, MP4), "invalid_image_format"),
        ("file:///etc/passwd", "invalid_video_url"),
        ("http://127.0.0.1/a.mp4", "invalid_video_url"),
        ("ftp://example.com/a.mp4", "invalid_video_url"),
    ],
)
async def test_bad_video_is_named(make_proxy, url, code):
    error = await refusal(make_proxy(), video_parts(url))
    assert (error["code"], error["param"]) == (code, URL)


async def test_an_image_part_takes_no_video(make_proxy):
    parts = [{"type": "image_url", "image_url": {"url": data_url(MP4)}}]
    error = await refusal(make_proxy(), [{"role": "user", "content": parts}])
    assert error["code"] == "invalid_image_url"


@pytest.mark.parametrize(
    ("urls", "settings", "words"),
    [
        ([data_url(MP4)] * 2, Settings(), "At most 1 video(s)"),
        ([frames_url(33)], Settings(), "at most 32 frames, but got 33"),
        ([frames_url(5)], Settings(max_video_frames=4), "at most 4 frames, but got 5"),
    ],
)
async def test_numbers_are_limited_before_anything_is_decoded(make_proxy, urls, settings, words):
    error = await refusal(make_proxy(settings=settings), video_parts(*urls))
    assert words in error["message"]
    assert error["param"].endswith("video_url.url")


async def test_bytes_of_videos_and_images_count_together(make_proxy):
    """CVE-2026-130686: a limit of one is none of many."""
    settings = Settings(max_videos=2, max_total_image_bytes=2 * len(MP4) - 1)
    error = await refusal(make_proxy(settings=settings), video_parts(*[data_url(MP4)] * 2))
    assert error["code"] in ("image_file_too_large", "video_file_too_large")
    settings = Settings(max_total_image_bytes=3 * len(JPEG) - 1)
    error = await refusal(make_proxy(settings=settings), video_parts(frames_url(3)))
    assert error["code"] == "image_file_too_large"


async def test_frames_of_a_video_are_no_images_of_the_request(make_proxy):
    part, files = await sent_part(make_proxy, frames_url(8), Settings(max_images=1))
    assert part["num_frames"] == len(files) == 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (io_kwargs(num_frames=0), "media_io_kwargs.video.num_frames"),
        (io_kwargs(fps=0), "media_io_kwargs.video.fps"),
        (io_kwargs(fps=1e9), "media_io_kwargs.video.fps"),
        (io_kwargs(backend="opencv"), "media_io_kwargs.video.backend"),
        ({"media_io_kwargs": {"image": {}}}, "media_io_kwargs.image"),
    ],
)
async def test_what_is_not_on_the_list_is_refused(make_proxy, fields, param):
    error = await refusal(make_proxy(), video_parts(data_url(MP4)), **fields)
    assert error["param"] == param


async def test_model_without_videos_is_named_before_anything_is_fetched(make_proxy):
    models = [dataclasses.replace(MODEL, takes_videos=False)]
    for url in ("https://video.example/a.mp4", frames_url(2)):
        error = await refusal(make_proxy(FakeBackend(models_list=models)), video_parts(url))
        assert MODEL.id in error["message"]
        assert (error["code"], error["param"]) == ("unsupported_value", URL)


async def test_videos_are_for_users_and_tools(make_proxy):
    error = await refusal(make_proxy(), video_parts(data_url(MP4), role="assistant"))
    assert "Images and videos are only allowed" in error["message"]


async def test_refusal_of_the_decoder_reaches_the_client(make_proxy):
    error = InvalidImageError("the video is damaged", code="video_parse_error", param=URL)
    proxy = make_proxy(FakeBackend([error]))
    response = await proxy.chat(messages=video_parts(data_url(MP4)))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "video_parse_error"


async def test_video_tokens_are_told_apart(make_proxy):
    deltas = text_deltas("a", prompt_tokens=100, image_tokens=10, video_tokens=60)
    proxy = make_proxy(FakeBackend(deltas))
    response = await proxy.chat(messages=video_parts(data_url(MP4)))
    details = response.json()["usage"]["prompt_tokens_details"]
    assert (details["image_tokens"], details["video_tokens"], details["text_tokens"]) == (
        10,
        60,
        30,
    )


async def test_a_video_can_be_tokenized(make_proxy):
    proxy = make_proxy()
    body = {"messages": video_parts(frames_url(3)), **io_kwargs(fps=1.0)}
    response = await proxy.http.post("/tokenize", json={"model": "qwen2_5_vl", **body})
    assert response.json()["tokens"].count(1000) == 3


async def test_other_endpoints_refuse_videos(make_proxy):
    part = {"type": "input_video", "video_url": data_url(MP4)}
    body = {"model": "qwen2_5_vl", "input": [{"role": "user", "content": [part]}]}
    response = await make_proxy().http.post("/v1/responses", json=body)
    assert response.status_code == 400
    response = await make_proxy().complete(**io_kwargs(fps=1.0))
    assert response.json()["error"]["code"] == "unsupported_parameter"


async def test_estimate_counts_every_frame():
    def estimate(part: dict[str, object], num_files: int) -> int:
        return estimate_prompt_tokens({"messages": [{"content": [part]}]}, num_files)

    file = {"type": "video", "num_frames": 8}
    frames = {"type": "video", "num_frames": 8, "is_frames": True}
    assert estimate(file, 1) == estimate(frames, 8) == 8 * estimate({"type": "image"}, 1)
