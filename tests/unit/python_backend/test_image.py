from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from python_backend.errors import InvalidImageError
from python_backend.image import ImageLimits, decode_image, image_hash, image_size, to_rgb
from tests.tiny.pictures import encode, picture, png

LIMITS = ImageLimits()


def _refusal(data: bytes, limits: ImageLimits = LIMITS) -> InvalidImageError:
    with pytest.raises(InvalidImageError) as caught:
        decode_image(data, limits)
    assert caught.value.__cause__ is None, "the decoder's words may hold addresses (CVE-2026-22778)"
    return caught.value


def _png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "JPEG"])
def test_formats_are_read_as_rgb(format):
    original = picture(40, 30)
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode_image(encode(original, format, **options), LIMITS)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    if format in ("PNG", "WEBP"):
        assert image.tobytes() == original.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    original = picture(40, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(original, "PNG", exif=exif), LIMITS)
    assert image.size == ((40, 20) if orientation < 5 else (20, 40))
    flips = [
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    ]
    flip = flips[orientation - 1]
    expected = original if flip is None else original.transpose(flip)
    assert image.tobytes() == expected.tobytes()


def _corner(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((0, 0))


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image = decode_image(encode(image), LIMITS)
    pixels = [image.getpixel((x, 0)) for x in range(3)]
    assert pixels[:2] == [(255, 255, 255), (255, 0, 0)]
    assert pixels[2][0] == pytest.approx(127, abs=1)


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_transparency_of_other_modes_is_laid_over_white(mode):
    """Grey with alpha, and tRNS: one entry of a palette, one grey or one colour is transparent."""
    if mode == "LA":
        data = encode(Image.new("LA", (8, 8), (0, 0)))
    elif mode == "P":
        image = Image.new("P", (8, 8), 3)
        image.putpalette([0, 0, 0] * 256)
        data = encode(image, transparency=3)
    else:
        data = encode(Image.new(mode, (8, 8), 0), transparency=0 if mode == "L" else (0, 0, 0))
    assert _corner(decode_image(data, LIMITS)) == (255, 255, 255)


def test_transparent_gif_is_laid_over_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert _corner(decode_image(encode(image, "GIF", transparency=1), LIMITS)) == (255, 255, 255)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (0x8080, 128), (0xFFFF, 255)])
def test_16_bit_grey_is_scaled(value, expected):
    grey = Image.fromarray(np.full((8, 8), value, np.uint16))
    assert _corner(decode_image(encode(grey), LIMITS)) == (expected,) * 3


def test_16_bit_grey_of_a_dark_picture_stays_dark():
    grey = Image.fromarray(np.full((8, 8), 200, np.uint16))
    assert _corner(decode_image(encode(grey), LIMITS)) == (1, 1, 1)


@pytest.mark.parametrize(("mode", "value"), [("1", 1), ("L", 255), ("F", 255.0), ("I", 255)])
def test_other_grey_modes_become_rgb(mode, value):
    assert _corner(to_rgb(Image.new(mode, (8, 8), value))) == (255, 255, 255)


def test_cmyk_jpeg_is_read():
    image = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), LIMITS)
    red, green, blue = _corner(image)
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_counts(format):
    """CVE-2026-54233 (GHSA-6pr9-rp53-2pmc): a small file whose frames unpack to gigabytes."""
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 0, 250))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert _corner(decode_image(data, LIMITS)) == (250, 0, 0)


def test_later_frames_are_never_decoded():
    """CVE-2026-54233: the second frame is damaged, which nobody notices."""
    frames = [picture(60, 60), picture(60, 60).rotate(90)]
    data = bytearray(encode(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    start = data.index(b"fdAT")
    data[start + 8 : start + 200] = bytes(192)
    assert decode_image(bytes(data), LIMITS).tobytes() == frames[0].tobytes()


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 9_000)])
def test_bomb_is_refused_by_its_header(size):
    """CVE-2026-55379: Pillow only warns up to twice its limit, as for the second size."""
    error = _refusal(_png_header(*size))
    assert error.code == "image_too_large"


def test_text_in_a_picture_is_not_unpacked_without_a_limit():
    """CVE-2026-24264: kilobytes of compressed comment that are megabytes."""
    comment = b"comment\0\0" + zlib.compress(bytes(100 * 2**20))
    text = struct.pack(">I", len(comment)) + b"zTXt" + comment
    text += struct.pack(">I", zlib.crc32(b"zTXt" + comment))
    data = png(30, 30)
    end_of_header = 8 + 25
    error = _refusal(data[:end_of_header] + text + data[end_of_header:])
    assert error.code == "invalid_image_format"


def test_picture_over_the_limit_is_refused_before_it_is_decoded():
    error = _refusal(_png_header(30, 30), ImageLimits(max_pixels=899))
    assert error.code == "image_too_large"
    assert "30 x 30" in error.message


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (100, 3)])
def test_tiny_picture_is_refused(size):
    """CVE-2026-22773 (GHSA-grg2-63fw-f2qr): a 1x1 image crashed a peer."""
    assert _refusal(png(*size)).code == "image_too_small"


@pytest.mark.parametrize("size", [(1000, 4), (4, 1000)])
def test_extreme_aspect_ratio_is_refused(size):
    """CVE-2026-22773: a crop or a resize would leave a side of nothing."""
    assert "more than 200 times" in _refusal(png(*size)).message
    width, height = (max(side * 4 // 5, 4) for side in size)
    assert decode_image(png(width, height), LIMITS).size == (width, height)


def test_size_is_read_without_decoding():
    """The pixels are missing, and nobody asks for them."""
    assert image_size(_png_header(30, 20), LIMITS) == (30, 20)
    with pytest.raises(InvalidImageError):
        image_size(_png_header(30, 20), ImageLimits(max_pixels=599))


def test_all_pictures_together_have_a_limit_of_pixels():
    """CVE-2026-130686: many pictures, each under the limit of one."""
    limits = ImageLimits(max_total_pixels=1800)
    limits.check_total([(30, 30)] * 2)
    with pytest.raises(InvalidImageError, match="together") as caught:
        limits.check_total([(30, 30)] * 3)
    assert caught.value.code == "image_too_large"


def test_smallest_picture_is_taken():
    assert decode_image(png(4, 4), LIMITS).size == (4, 4)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_truncated_file_is_refused(format, part):
    data = encode(picture(60, 60), format)
    assert _refusal(data[: int(len(data) * part)]).code in (
        "image_parse_error",
        "invalid_image_format",
    )


def test_file_with_damaged_pixels_is_refused():
    data = bytearray(png(60, 60))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    assert _refusal(bytes(data)).code == "image_parse_error"


def test_decoders_words_are_never_passed_on():
    """CVE-2026-22778: a message of Pillow held a heap address; CVE-2026-47622."""
    damaged = bytearray(png(60, 60))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 40] = bytes(40)
    own_words = {
        "the image file is damaged or truncated; send it again",
        "the file is not a readable image; send one of PNG, JPEG, WEBP, GIF",
    }
    for data in (bytes(damaged), png(60, 60)[:100], b"\x89PNG\r\n\x1a\n" + bytes(99), b"GIF89a"):
        assert _refusal(data).message in own_words


@pytest.mark.parametrize("format", ["TIFF", "BMP", "PPM", "ICO", "JPEG2000", "TGA", "PCX"])
def test_every_other_decoder_stays_out_of_reach(format):
    """CVE-2026-22778 was in a JPEG 2000 decoder."""
    assert _refusal(encode(picture(32, 32), format)).code == "invalid_image_format"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_image_file"),
        (b"<html>not found</html>", "invalid_image_format"),
        (b"%PDF-1.7" + bytes(100), "invalid_image_format"),
        (b"\x89PNG\r\n\x1a\n", "invalid_image_format"),
        (b"GIF89a", "invalid_image_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image_format"),
    ],
)
def test_what_is_no_picture_is_refused(data, code):
    error = _refusal(data)
    assert error.code == code
    assert "0x" not in error.message


def test_large_file_is_refused_by_its_length():
    assert _refusal(bytes(101), ImageLimits(max_file_bytes=100)).code == "image_file_too_large"


# --- hashes ----------------------------------------------------------------------------------------


def test_equal_pixels_in_another_shape_have_another_hash():
    """CVE-2025-46722 (GHSA-c65p-x677-fgj6, PYSEC-2025-43), CVE-2026-24255: 30x100 and 100x30 pictures
    shared a cache entry."""
    pixels = bytes(range(250)) * 36
    wide, tall = (Image.frombytes("RGB", size, pixels) for size in ((100, 30), (30, 100)))
    assert wide.tobytes() == tall.tobytes()
    assert image_hash([wide]) != image_hash([tall])


def test_same_picture_in_two_files_has_one_hash():
    images = [
        decode_image(encode(picture(20, 20), *args, **options), LIMITS)
        for args, options in ((("PNG",), {}), (("WEBP",), {"lossless": True}))
    ]
    assert image_hash([images[0]], "p") == image_hash([images[1]], "p")


def test_every_part_of_the_context_counts_and_parts_do_not_run_together():
    image = picture(8, 8)
    hashes = {
        image_hash([image], *context)
        for context in ((), ("a",), ("a", "b"), ("ab",), ("b", "a"), ("a", "", "b"))
    }
    assert len(hashes) == 6


def test_one_changed_pixel_changes_the_hash():
    image = picture(8, 8)
    changed = image.copy()
    changed.putpixel((7, 7), (1, 2, 3))
    assert image_hash([image]) != image_hash([changed])
