"""Videos as pictures: which frames of a file are looked at, and who takes them out of it.

The decoder is FFmpeg, a great deal of C that reads what a stranger sends. It runs in a process of its own
for every file (`video_decoder`), with limits of time and memory, and can open nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

from python_backend.errors import EngineError, InvalidImageError, from_wire
from python_backend.image import ImageLimits

FRAMES_PER_SECOND = 2.0
"""How closely a video is looked at, and how frames follow each other, unless the request says so.

Source: `FPS` of qwen-vl-utils.
"""
MIN_FRAMES = 4
"""Taken of a video at least, if it has them. Source: `FPS_MIN_FRAMES` of qwen-vl-utils."""

_DECODER = "python_backend.video_decoder"


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """Which frames of a video are looked at: evenly spread ones.

    Attributes:
        num_frames: at most.
        fps: so many of a second; None: `num_frames`, however long the video is.
    """

    num_frames: int = 32
    fps: float | None = FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLimits:
    """What a video may cost, beside what is true of every picture.

    Attributes:
        max_frames: taken out of one video.
        max_source_frames: of the file; every one of them has a packet that is looked at.
        max_duration_s: from the first to the last frame.
        max_pixels: of one frame.
        timeout_s: for one file, start of the process included.
        max_memory_bytes: address space of that process.
    """

    max_frames: int = 256
    max_source_frames: int = 36_000
    max_duration_s: float = 3600.0
    max_pixels: int = 2**24
    timeout_s: float = 30.0
    max_memory_bytes: int = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Video:
    """Frames of a video.

    Attributes:
        frames: RGB pictures of one size, at least one.
        times_s: when each is shown, seconds from the first frame of the video.
        fps: frames per second among these.
    """

    frames: Sequence[Image.Image]
    times_s: Sequence[float]
    fps: float

    @classmethod
    def of_frames(cls, frames: Sequence[Image.Image], fps: float) -> Video:
        """Pictures that follow each other, `fps` of them a second.

        Raises:
            InvalidImageError: their sizes differ.
        """
        if len({frame.size for frame in frames}) != 1:
            raise InvalidImageError("the frames of a video must all have the same size")
        return cls(frames, [i / fps for i in range(len(frames))], fps)


def choose_frames(num_source_frames: int, source_fps: float, sampling: FrameSampling) -> list[int]:
    """Indices of the frames that are looked at, in order; an even number, because models take them in pairs.

    Source: `Qwen2VLVideoProcessor.sample_frames` in transformers 5.23, which has none for a single frame.
    """
    most = min(sampling.num_frames, num_source_frames)
    wanted = float(most)
    if sampling.fps is not None:
        wanted = max(num_source_frames / source_fps * sampling.fps, MIN_FRAMES)
    num_frames = max(int(min(wanted, most)) // 2 * 2, 1)
    return [int(i * (num_source_frames / num_frames)) for i in range(num_frames)]


@dataclass(frozen=True, slots=True)
class DecoderOrder:
    """What the decoder's process is told before it gets the file.

    Attributes:
        sampling: which frames.
        limits: of videos.
        image_limits: of pictures; the pixels of all frames count together.
    """

    sampling: FrameSampling
    limits: VideoLimits = field(default_factory=VideoLimits)
    image_limits: ImageLimits = field(default_factory=ImageLimits)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> DecoderOrder:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(
            FrameSampling(**data["sampling"]),
            VideoLimits(**data["limits"]),
            ImageLimits(**data["image_limits"]),
        )


def decode_video(data: bytes, order: DecoderOrder) -> Video:
    """Some frames of a video file, upright, RGB.

    Raises:
        InvalidImageError: it is not a file of the kinds that are accepted, damaged, outside the limits, or
            takes too long; or this installation has no decoder. FFmpeg's own words are never passed on.
    """
    limits = order.limits
    if len(data) > order.image_limits.max_file_bytes:
        raise InvalidImageError(
            f"the video file has {len(data)} bytes, more than {order.image_limits.max_file_bytes}; "
            "send a shorter or smaller one",
            code="video_file_too_large",
        )
    if importlib.util.find_spec("av") is None:
        raise InvalidImageError(
            "this server has no decoder for video files (pip install triton-vlm[video]): send frames as "
            "data:video/jpeg;base64,<frame>,<frame>",
            code="invalid_video_format",
        )
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-m", _DECODER],
            input=order.to_json().encode() + b"\n" + data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=limits.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidImageError(
            f"the video takes longer than {limits.timeout_s:g} seconds to decode; send a shorter one",
            code="video_too_large",
        ) from None
    except OSError as error:
        raise EngineError(f"the video decoder cannot be started: {error.strerror}") from error
    head, _, pixels = process.stdout.partition(b"\n")
    if process.returncode or not head:  # killed by its limits, or by the file
        raise InvalidImageError(
            "the video file is damaged, or takes too much to decode; convert it to MP4 with H.264",
            code="video_parse_error",
        )
    if (refusal := from_wire(head.decode())) is not None:
        raise refusal
    answer = json.loads(head)
    shape = (len(answer["times_s"]), answer["height"], answer["width"], 3)
    frames = np.frombuffer(pixels, np.uint8).reshape(shape)
    return Video([Image.fromarray(frame) for frame in frames], answer["times_s"], answer["fps"])


def _environment() -> dict[str, str]:
    """What the decoder's process needs to find the same packages, and no secret of this one."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return {**kept, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
