"""Encoded image files to RGB pictures, within limits that are checked before anything is decoded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from python_backend.errors import InvalidImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""The only decoders that ever see a client's bytes (CVE-2026-22778: JPEG 2000; Pillow's FITS, PSD)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What images may cost; sizes are read from the headers before anything is decoded.

    Attributes:
        max_file_bytes: of the encoded file.
        max_pixels: width times height.
        max_total_pixels: of all images of a request (CVE-2026-130686: each was under the limit of one).
        max_aspect_ratio: of the longer side to the shorter one; Qwen's `smart_resize` refuses more.
        min_side: of the shorter side, in pixels (CVE-2026-22773: a 1x1 image crashed a peer).
    """

    max_file_bytes: int = 32 * 2**20
    max_pixels: int = 89_478_485
    max_total_pixels: int = 2**28
    max_aspect_ratio: int = 200
    min_side: int = 4

    def check(self, width: int, height: int) -> None:
        """Raise `InvalidImageError` unless a picture of this size is allowed."""
        if width * height > self.max_pixels:
            raise InvalidImageError(
                f"the image is {width} x {height}, more than {self.max_pixels} pixels; shrink it",
                code="image_too_large",
            )
        if min(width, height) < self.min_side:
            raise InvalidImageError(
                f"the image is {width} x {height}; each side needs at least {self.min_side} pixels",
                code="image_too_small",
            )
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            raise InvalidImageError(
                f"the image is {width} x {height}: one side is more than {self.max_aspect_ratio} times "
                "the other; crop it"
            )

    def check_total(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Raise `InvalidImageError` unless pictures of these sizes are allowed in one request."""
        num_pixels = sum(width * height for width, height in sizes)
        if num_pixels > self.max_total_pixels:
            raise InvalidImageError(
                f"the images of the request have {num_pixels} pixels together, more than "
                f"{self.max_total_pixels}; send fewer or smaller images",
                code="image_too_large",
                param="messages",
            )


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """The picture in an encoded file: first frame, upright, on white, RGB.

    Raises:
        InvalidImageError: not one of `FORMATS`, damaged, or outside `limits`. The decoder's own words
            are never passed on (CVE-2026-22778: they held heap addresses).
    """
    image = _open(data, limits)
    try:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except Exception:
        raise InvalidImageError(
            "the image file is damaged or truncated; send it again", code="image_parse_error"
        ) from None


def image_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Width and height in pixels, as the header of an encoded file says; nothing is decoded.

    Raises:
        InvalidImageError: as `decode_image`, but for damage behind the header.
    """
    return _open(data, limits).size


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    if not data:
        raise InvalidImageError("the image file is empty", code="empty_image_file")
    if len(data) > limits.max_file_bytes:
        raise InvalidImageError(
            f"the image file has {len(data)} bytes, more than {limits.max_file_bytes}; compress it",
            code="image_file_too_large",
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InvalidImageError(
            f"the image has more than {limits.max_pixels} pixels; shrink it", code="image_too_large"
        ) from None
    except Exception:
        raise InvalidImageError(
            f"the file is not a readable image; send one of {', '.join(FORMATS)}",
            code="invalid_image_format",
        ) from None
    limits.check(*image.size)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB: transparency over white, 16-bit greys scaled to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float64)
        scale = 65535 if image.mode.startswith("I;16") or pixels.max(initial=0) > 255 else 255
        image = Image.fromarray((pixels.clip(0, scale) * (255 / scale)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def image_hash(frames: Sequence[Image.Image], *context: str) -> str:
    """Content hash of an RGB picture or a video and of everything that decides its embeddings.

    The size is part of what is hashed (CVE-2025-46722, CVE-2026-24255: 30x100 and 100x30 pictures of
    equal bytes shared a cache entry), and every part is framed by its length.

    Args:
        frames: of a video, or the picture alone, as `decode_image` returns it.
        context: processor fingerprint, detail, and whatever else changes the result.
    """
    digest = hashlib.blake2b(digest_size=32)
    header = repr((context, [(frame.mode, frame.size) for frame in frames]))
    for part in (header.encode(), *(frame.tobytes() for frame in frames)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
