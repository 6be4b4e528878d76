"""The process that decodes one video file: an order and the file in, pixels out.

Only here FFmpeg sees a client's bytes. Before it does, the process gives up what it does not need: it cannot
open files or sockets, and has a limit of memory and of time.
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from python_backend.errors import InvalidImageError, to_wire
from python_backend.image import ImageLimits
from python_backend.video import DecoderOrder, VideoLimits, choose_frames

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d")
"""The only decoders of FFmpeg's hundreds; the last two are both for AV1."""

_MP4, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
"""The only containers, by FFmpeg's names; nothing else is probed for."""
_OPTIONS = {
    "format_whitelist": f"{_MP4},{_MATROSKA}",
    "codec_whitelist": ",".join(CODECS),
    # A container may name other files and hosts; no protocol is of this name.
    "protocol_whitelist": "none",
}


@dataclass(frozen=True, slots=True)
class DecodedFrames:
    """What comes of a file.

    Attributes:
        pixels: uint8 [height, width, 3] each, all of one size.
        times_s: as `Video` has them.
        fps: as `Video` has it.
    """

    pixels: Sequence[np.ndarray]
    times_s: Sequence[float]
    fps: float


def decode(data: bytes, order: DecoderOrder) -> DecodedFrames:
    """Take the frames out of a file.

    Raises:
        InvalidImageError: the file is not accepted or outside the limits.
    """
    import av

    limits, image_limits = order.limits, order.image_limits
    with av.open(io.BytesIO(data), "r", format=_container(data), options=_OPTIONS) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None:
            raise _unsupported()
        codec = stream.codec_context
        if codec.name not in CODECS:
            raise _unsupported()
        _check_size(codec.width, codec.height, limits, image_limits)
        codec.thread_count = 1
        codec.options = {"max_pixels": str(limits.max_pixels)}
        packets = _packets(container.demux(stream), limits)
        points = sorted(packet.pts for packet in packets)
        times = [float((point - points[0]) * stream.time_base) for point in points]
        if times[-1] > limits.max_duration_s:
            raise _too_large(
                f"is {times[-1]:.0f} seconds long, more than {limits.max_duration_s:g}"
            )
        source_fps = (len(times) - 1) / times[-1] if times[-1] > 0 else 1.0
        indices = choose_frames(len(times), source_fps, order.sampling)
        image_limits.check_total([(codec.width, codec.height)] * len(indices))
        pixels = list(_shown_at([points[i] for i in indices], codec, packets))
    if len({frame.shape for frame in pixels}) != 1:
        raise InvalidImageError("the video changes its size on the way; convert it to one size")
    fps = len(indices) / len(times) * source_fps
    return DecodedFrames(pixels, [times[i] for i in indices], fps)


def _container(data: bytes) -> str:
    """FFmpeg's name for what the file begins like."""
    if data[4:8] == b"ftyp":
        return "mp4"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    raise _unsupported()


def _packets(demuxed: Iterator[Any], limits: VideoLimits) -> list[Any]:
    """Everything of the stream, still encoded, in the order of decoding."""
    packets: list[Any] = []
    for packet in demuxed:
        if not packet.size:
            continue
        if len(packets) == limits.max_source_frames:
            raise _too_large(f"has more than {limits.max_source_frames} frames")
        if packet.pts is None:
            raise _unsupported()
        packets.append(packet)
    if not packets:
        raise _unsupported()
    return packets


def _shown_at(points: Sequence[int], codec: Any, packets: Sequence[Any]) -> Iterator[np.ndarray]:
    """What is shown at each of the ascending `points` in time: the last frame until then."""
    waiting = deque(points)
    shown = None
    for frame in _decoded(points, codec, packets):
        while waiting and waiting[0] <= frame.pts:
            is_it = waiting.popleft() == frame.pts or shown is None
            yield _pixels(frame if is_it else shown)
        if not waiting:
            return
        shown = frame
    if shown is None:
        raise _unsupported()
    for _ in waiting:
        yield _pixels(shown)


def _decoded(points: Sequence[int], codec: Any, packets: Sequence[Any]) -> Iterator[Any]:
    """Frames in the order they are shown, left out from one key frame to the next where none is wanted."""
    groups: list[list[Any]] = []
    for packet in packets:
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(packet)
    group_of = {packet.pts: i for i, group in enumerate(groups) for packet in group}
    wanted = set()
    for point in points:
        i = group_of[point]
        wanted.add(i)
        if point < groups[i][0].pts:  # shown before its key frame: it depends on those before, too
            wanted.add(max(i - 1, 0))
    for i in sorted(wanted):
        for packet in groups[i]:
            yield from codec.decode(packet)
        if i + 1 not in wanted:
            yield from codec.decode(None)
            codec.flush_buffers()


def _pixels(frame: Any) -> np.ndarray:
    """Upright RGB; telephones film in one orientation and write down how they were held."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


def _check_size(width: int, height: int, limits: VideoLimits, image_limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise _too_large(f"is {width} x {height}, more than {limits.max_pixels} pixels a frame")
    image_limits.check(width, height)


def _too_large(reason: str) -> InvalidImageError:
    return InvalidImageError(
        f"the video {reason}; send a shorter or smaller one", code="video_too_large"
    )


def _unsupported() -> InvalidImageError:
    return InvalidImageError(
        "the file is not a readable video; send MP4 or WebM with H.264, H.265, VP8, VP9 or AV1",
        code="invalid_video_format",
    )


def _give_up_rights(limits: VideoLimits) -> None:
    """From here on: no files, no sockets, and so much memory and time."""
    seconds = math.ceil(limits.timeout_s)
    for kind, limit in (
        (resource.RLIMIT_AS, limits.max_memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def main() -> None:
    """One line and pixels to the standard output: JSON about them, or an error in its wire form."""
    order = DecoderOrder.from_json(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    # Imported while files can still be opened; the second one is what `av` itself imports late.
    import av
    import av.subtitles.stream

    _give_up_rights(order.limits)
    out = sys.stdout.buffer
    try:
        frames = decode(data, order)
    except InvalidImageError as error:
        out.write(to_wire(error).encode() + b"\n")
        return
    except (av.FFmpegError, MemoryError):
        out.write(to_wire(_unsupported()).encode() + b"\n")
        return
    height, width, _ = frames.pixels[0].shape
    head = {"height": height, "width": width, "times_s": frames.times_s, "fps": frames.fps}
    out.write(json.dumps(head).encode() + b"\n")
    for pixels in frames.pixels:
        out.write(np.ascontiguousarray(pixels).data)


if __name__ == "__main__":
    main()
