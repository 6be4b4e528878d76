"""A picture small enough for a command line: a red circle on white, drawn without any library."""

from __future__ import annotations

import base64
import struct
import zlib

SIZE = 96
RADIUS = 30
PALETTE = bytes((255, 255, 255, 255, 0, 0))


def sample_picture() -> bytes:
    """A PNG file of about 200 bytes."""
    rows = b"".join(b"\x00" + _row(y) for y in range(SIZE))
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 1, 3, 0, 0, 0)  # 1 bit, palette
    chunks = (("IHDR", header), ("PLTE", PALETTE), ("IDAT", zlib.compress(rows, 9)), ("IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def sample_picture_uri() -> str:
    """The picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(sample_picture()).decode("ascii")


def _row(y: int) -> bytes:
    """Line `y`: one bit per pixel, 1 inside the circle."""
    centre = SIZE // 2
    bits = "".join(
        "1" if (x - centre) ** 2 + (y - centre) ** 2 <= RADIUS**2 else "0" for x in range(SIZE)
    )
    return int(bits, 2).to_bytes(SIZE // 8, "big")


def _chunk(name: str, data: bytes) -> bytes:
    body = name.encode("ascii") + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
