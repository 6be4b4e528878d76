"""Video files, made on the spot: every frame has a grey of its own."""

from __future__ import annotations

import io

import numpy as np

GREY_STEP = 8


def video_file(
    num_frames: int,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    size: tuple[int, int] = (64, 48),
    fps: int = 10,
    key_every: int = 5,
) -> bytes:
    """A file whose i-th frame has the grey `GREY_STEP * i`, about."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = key_every
        stream.codec_context.thread_count = 1
        for i in range(num_frames):
            pixels = np.full((size[1], size[0], 3), GREY_STEP * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def held_upright(data: bytes) -> bytes:
    """The MP4 file with the note of a telephone that was turned: shown a quarter turn clockwise."""
    one, minus_one = (1 << 16).to_bytes(4), (-(1 << 16)).to_bytes(4, signed=True)
    zero, scale = bytes(4), (1 << 30).to_bytes(4)
    identity = one + zero * 3 + one + zero * 3 + scale
    turned = zero + one + zero + minus_one + zero * 4 + scale
    place = data.index(identity, data.index(b"tkhd"))
    return data[:place] + turned + data[place + len(turned) :]
