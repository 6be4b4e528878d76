"""Pictures with structure at every scale, the same on every machine."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture; each seed gives another one."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [x * x + y * (3 + seed), x * (5 + seed) + y * y, x * y + 37 * seed]
    return Image.fromarray((np.stack(channels, axis=2) % 256).astype(np.uint8))


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A picture as a PNG file."""
    return encode(picture(width, height, seed))
