"""Video files: which frames are taken, what is refused, and that a decoder's death is a 400."""

from __future__ import annotations

import importlib.util
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from python_backend import video as video_module
from python_backend.errors import InvalidImageError, InvalidRequestError
from python_backend.image import ImageLimits
from python_backend.preprocess import Preprocessor
from python_backend.video import (
    DecoderOrder,
    FrameSampling,
    Video,
    VideoLimits,
    choose_frames,
    decode_video,
)
from tests.tiny.pictures import encode, picture, png
from tests.tiny.reference import qwen_video_processor
from tests.tiny.videos import GREY_STEP, held_upright, video_file

needs_decoder = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="the decoder of video files is not installed"
)
ALL = FrameSampling(100, None)


def _decode(data, sampling=ALL, **limits):
    return decode_video(data, DecoderOrder(sampling, VideoLimits(**limits)))


def _refusal(data, sampling=ALL, **limits):
    with pytest.raises(InvalidImageError) as caught:
        _decode(data, sampling, **limits)
    return caught.value


@pytest.mark.parametrize("fps", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("total", [2, 3, 5, 57, 1000])
def test_frames_are_those_that_huggingface_takes(total, fps):
    fields = {"num_frames": None, "fps": None, "temporal_patch_size": 2}
    processor = SimpleNamespace(**fields, min_frames=4, max_frames=32)
    metadata = SimpleNamespace(total_num_frames=total, fps=24.0)
    sample = qwen_video_processor().sample_frames
    expected = sample(processor, metadata, fps=fps).tolist()
    found = choose_frames(total, 24.0, FrameSampling(32, fps))
    assert found == expected[: len(found)]
    assert len(expected) - len(found) in (0, 1)  # theirs has one more where a float is rounded up


def test_number_of_frames_is_even_spread_and_within_the_video():
    assert choose_frames(100, 25.0, FrameSampling(4, None)) == [0, 25, 50, 75]
    assert choose_frames(3, 25.0, FrameSampling(32, None)) == [0, 1]
    assert choose_frames(1, 25.0, FrameSampling(32, 2.0)) == [0]
    assert choose_frames(10**6, 25.0, FrameSampling(32, 2.0)) == [31250 * i for i in range(32)]


def test_frames_must_have_one_size():
    video = Video.of_frames([picture(20, 10), picture(20, 10)], 4.0)
    assert (video.times_s, video.fps) == ([0.0, 0.25], 4.0)
    with pytest.raises(InvalidImageError, match="same size"):
        Video.of_frames([picture(20, 10), picture(10, 20)], 4.0)


# --- files ------------------------------------------------------------------------------------------


@needs_decoder
@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "mp4"), ("libx264", "matroska"), ("libvpx", "webm"), ("libvpx-vp9", "webm")],
)
def test_wanted_frames_come_out_of_every_kind_of_file(codec, container):
    video = _decode(video_file(23, codec=codec, container=container), FrameSampling(6, None))
    greys = [np.asarray(frame).mean() for frame in video.frames]
    assert greys == pytest.approx([GREY_STEP * i for i in (0, 3, 7, 11, 15, 19)], abs=3)
    assert video.times_s == pytest.approx([0, 0.3, 0.7, 1.1, 1.5, 1.9])
    assert video.fps == pytest.approx(6 / 2.3)
    assert {frame.size for frame in video.frames} == {(64, 48)}


@needs_decoder
def test_the_same_frames_with_one_key_frame_and_with_many():
    """Between key frames nothing is decoded where no frame is wanted."""
    for key_every in (1, 4, 100):
        video = _decode(video_file(30, key_every=key_every), FrameSampling(4, None))
        greys = [np.asarray(frame).mean() for frame in video.frames]
        assert greys == pytest.approx([GREY_STEP * i for i in (0, 7, 15, 22)], abs=3), key_every


@needs_decoder
def test_video_is_turned_as_its_file_says():
    video = _decode(held_upright(video_file(2)))
    assert {frame.size for frame in video.frames} == {(48, 64)}


@needs_decoder
def test_what_is_no_video_is_refused_without_the_decoders_words():
    """CVE-2026-22778: a decoder's message held an address."""
    file = video_file(8)
    for data in (
        b"",
        png(20, 20),
        file[:100],
        file[: len(file) // 2],
        b"\0\0\0\x18ftypisom" + bytes(100),
        b"\x1aE\xdf\xa3" + bytes(100),
        b"#EXTM3U\nhttp://169.254.169.254/\n",
    ):
        refusal = _refusal(data)
        assert refusal.code == "invalid_video_format"
        assert "send MP4 or WebM" in refusal.message


@needs_decoder
def test_other_codecs_are_refused():
    assert _refusal(video_file(3, codec="mpeg4")).code == "invalid_video_format"
    assert (
        _refusal(video_file(3, codec="ffv1", container="matroska")).code == "invalid_video_format"
    )


@needs_decoder
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_source_frames": 22}, "more than 22 frames"),
        ({"max_duration_s": 2.0}, "2 seconds long"),
        ({"max_pixels": 64 * 48 - 1}, "64 x 48"),
    ],
)
def test_large_videos_are_refused(limits, words):
    refusal = _refusal(video_file(23), **limits)
    assert refusal.code == "video_too_large"
    assert words in refusal.message


@needs_decoder
def test_pixels_of_all_frames_count_together():
    """CVE-2026-130686: a limit of one is none of many."""
    limits = ImageLimits(max_total_pixels=4 * 64 * 48)
    order = DecoderOrder(FrameSampling(4, None), image_limits=limits)
    assert len(decode_video(video_file(9), order).frames) == 4
    order = DecoderOrder(FrameSampling(6, None), image_limits=limits)
    with pytest.raises(InvalidImageError, match="pixels together"):
        decode_video(video_file(9), order)


@needs_decoder
def test_size_in_the_stream_counts_and_not_only_the_one_in_the_header():
    """CVE-2026-54233's lesson: what a header promises is not what comes out."""
    large, small = video_file(4, size=(640, 480)), video_file(4)
    assert _refusal(large, max_pixels=64 * 48).code == "video_too_large"
    # The same streams under a header that claims the small size.
    lie = large.replace(struct.pack(">HH", 640, 480), struct.pack(">HH", 64, 48))
    assert lie != large
    assert _refusal(lie, max_pixels=64 * 48).code in ("video_too_large", "invalid_video_format")
    assert len(_decode(small, max_pixels=64 * 48).frames) == 4


@needs_decoder
def test_decoder_that_takes_too_long_is_ended():
    assert "longer than 0.01 seconds" in _refusal(video_file(3), timeout_s=0.01).message


@needs_decoder
def test_decoder_that_needs_too_much_memory_ends_alone():
    refusal = _refusal(video_file(8, size=(640, 480)), max_memory_bytes=2**20)
    assert refusal.code in ("video_parse_error", "invalid_video_format")


def test_decoder_that_dies_is_a_refusal(monkeypatch):
    """A file that crashes FFmpeg takes down the process that reads this one file."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(video_module, "_DECODER", "tests.tiny.crash")
    assert _refusal(b"anything").code == "video_parse_error"


@needs_decoder
def test_decoder_can_open_nothing_and_knows_no_secret(monkeypatch):
    monkeypatch.setenv("TRITON_VLM_API_KEYS", "secret")
    assert "TRITON_VLM_API_KEYS" not in video_module._environment()
    source = (
        "import sys, socket\n"
        "from python_backend.video import VideoLimits\n"
        "from python_backend.video_decoder import _give_up_rights\n"
        "_give_up_rights(VideoLimits())\n"
        "for attempt in (lambda: open('/etc/hostname'), socket.socket):\n"
        "    try:\n        attempt()\n        sys.exit(1)\n    except OSError:\n        pass\n"
    )
    process = video_module.subprocess.run(
        [video_module.sys.executable, "-c", source], env=video_module._environment(), check=False
    )
    assert process.returncode == 0


def test_without_the_decoder_frames_are_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "data:video/jpeg;base64," in _refusal(b"\0\0\0\x18ftypisom").message


# --- in a prompt ------------------------------------------------------------------------------------


def _prompt(**part):
    return {"messages": [{"role": "user", "content": [{"type": "video", **part}]}]}


@needs_decoder
def test_file_and_its_frames_give_the_same_prompt(tied):
    preprocessor = Preprocessor(tied.model)
    file = video_file(20, codec="libvpx", container="webm")
    decoded = _decode(file, FrameSampling(6, None))
    frames = [encode(frame) for frame in decoded.frames]
    one = preprocessor.prepare(_prompt(num_frames=6, fps=None), [file])
    many = _prompt(num_frames=6, fps=decoded.fps, is_frames=True)
    other = preprocessor.prepare(many, frames)
    np.testing.assert_array_equal(one.prompt.token_ids, other.prompt.token_ids)
    np.testing.assert_array_equal(one.prompt.position_ids, other.prompt.position_ids)
    assert one.image_hashes == other.image_hashes
    assert len(one.images) == 1


@pytest.mark.parametrize(
    ("part", "num_files"),
    [({"num_frames": 2, "is_frames": True}, 3), ({"num_frames": 2}, 2), ({}, 0)],
)
def test_number_of_files_must_match_the_parts(tied, part, num_files):
    with pytest.raises(InvalidRequestError, match="files"):
        Preprocessor(tied.model).prepare(_prompt(**part), [png(30, 30)] * num_files)


@pytest.mark.parametrize(
    "part",
    [
        {"num_frames": 0},
        {"num_frames": 257},
        {"num_frames": True},
        {"fps": 0},
        {"fps": float("inf")},
        {"fps": "2"},
        {"is_frames": 1},
        {"detail": "low"},
    ],
)
def test_malformed_video_part_is_named(tied, part):
    with pytest.raises(InvalidRequestError) as caught:
        Preprocessor(tied.model).prepare(_prompt(**part), [png(30, 30)])
    assert caught.value.param == "messages[0].content[0]"


def test_model_without_videos_is_named(tiny_models):
    model = tiny_models("tiny-gemma3").model
    with pytest.raises(
        InvalidRequestError, match=rf"{model.manifest.served_model_name} takes no videos"
    ):
        Preprocessor(model).prepare(_prompt(num_frames=1, is_frames=True), [png(30, 30)])


def test_typed_placeholder_of_a_video_is_refused(tied):
    """CVE-2026-44222: a placeholder in a text without media killed a worker."""
    prompt = {"messages": [{"role": "user", "content": "a <|video_pad|> b"}]}
    with pytest.raises(InvalidRequestError, match="stands for images only"):
        Preprocessor(tied.model).prepare(prompt, [])


def test_another_order_or_rate_is_another_video(tied):
    preprocessor = Preprocessor(tied.model)
    frames = [png(30, 30, seed=i) for i in range(4)]
    part = _prompt(num_frames=4, is_frames=True)
    hashes = {
        preprocessor.prepare(part, files).image_hashes[0]
        for files in (frames, frames[::-1], [frames[0]] * 4)
    }
    assert len(hashes) == 3
    slow = preprocessor.prepare(_prompt(num_frames=4, is_frames=True, fps=0.5), frames)
    fast = preprocessor.prepare(part, frames)
    assert slow.image_hashes == fast.image_hashes  # their embeddings are the same
    assert (slow.prompt.position_ids != fast.prompt.position_ids).any()
