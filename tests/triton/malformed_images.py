"""Image files that are not what they say, of every format that is accepted; the same ones for a seed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from random import Random

from PIL import Image

SIZES = (0, 1, 3, 199, 8000, 9433, 9434, 20_000, 65_535, 2**24 - 1, 2**31 - 1, 2**32 - 1)
"""Around the limits of the sides and of the pixels, and of the formats' own fields."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Mutation = Callable[[Random, bytes], bytes]


def malformed_images(random: Random, num_images: int) -> Iterator[tuple[str, bytes]]:
    """Names and files: every mutation of every picture in turn."""
    originals = list(_pictures())
    mutations = [*_MUTATIONS.items()]
    for i in range(num_images):
        kind, data = originals[i % len(originals)]
        name, mutate = mutations[i // len(originals) % len(mutations)]
        yield f"{kind}, {name}", mutate(random, data)
        if i % 3 == 0:  # damage that the mutation itself would have hidden
            yield f"{kind}, {name}, flipped", _flipped(random, mutate(random, data))


def _pictures() -> Iterator[tuple[str, bytes]]:
    rgb = Image.radial_gradient("L").resize((48, 40)).convert("RGB")
    frames = [rgb.rotate(90 * i) for i in range(1, 4)]
    for kind, image, options in (
        ("PNG", rgb, {}),
        ("PNG", rgb.convert("P"), {"transparency": 3}),
        ("PNG", rgb.convert("I;16"), {}),
        ("PNG", rgb.convert("RGBA"), {"save_all": True, "append_images": frames}),
        ("JPEG", rgb, {}),
        ("JPEG", rgb, {"progressive": True, "exif": _exif(rgb)}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("GIF", rgb, {"save_all": True, "append_images": frames}),
        ("WEBP", rgb, {}),
        ("WEBP", rgb, {"lossless": True}),
        ("WEBP", rgb.convert("RGBA"), {"save_all": True, "append_images": frames}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield kind, buffer.getvalue()


def _exif(image: Image.Image) -> Image.Exif:
    exif = image.getexif()
    exif[0x0112] = 6  # orientation
    return exif


def _slice(random: Random, data: bytes, longest: int = 64) -> tuple[int, int]:
    start = random.randrange(len(data))
    return start, min(len(data), start + random.randint(1, longest))


def _truncated(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def _flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(random.randint(1, 8)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwritten(random: Random, data: bytes) -> bytes:
    start, end = _slice(random, data)
    return data[:start] + random.randbytes(end - start) + data[end:]


def _zeroed(random: Random, data: bytes) -> bytes:
    start, end = _slice(random, data)
    return data[:start] + bytes(end - start) + data[end:]


def _removed(random: Random, data: bytes) -> bytes:
    start, end = _slice(random, data)
    return data[:start] + data[end:]


def _repeated(random: Random, data: bytes) -> bytes:
    start, end = _slice(random, data)
    return data[:end] + data[start:end] * random.randint(1, 50) + data[end:]


def _of_another_format(random: Random, data: bytes) -> bytes:
    other = random.choice([other for _, other in _pictures()])
    cut = random.randint(4, 40)
    return data[:cut] + other[cut:]


def _with_wrong_number(random: Random, data: bytes) -> bytes:
    """A length or a size that lies: two or four bytes, either way round."""
    size = random.choice((2, 4))
    number = random.choice(SIZES) % 2 ** (8 * size)
    start = random.randrange(max(1, len(data) - size))
    order = random.choice(("big", "little"))
    return data[:start] + number.to_bytes(size, order) + data[start + size :]


def _with_wrong_sides(random: Random, data: bytes) -> bytes:
    """Sides of the whole picture where the format has them; the pixels stay what they were."""
    width, height = random.choice(SIZES), random.choice(SIZES)
    if data.startswith(PNG_SIGNATURE):
        chunks = _png_chunks(data)
        header = struct.pack(">II", width, height) + chunks[0][1][8:]
        return _png([(b"IHDR", header), *chunks[1:]])
    if data.startswith(b"GIF"):
        sides = struct.pack("<HH", width % 2**16, height % 2**16)
        return data[:6] + sides + data[10:]
    if data.startswith(b"RIFF"):
        if data[12:16] == b"VP8X":
            sides = (width % 2**24).to_bytes(3, "little") + (height % 2**24).to_bytes(3, "little")
            return data[:24] + sides + data[30:]
        start = {b"VP8 ": 26, b"VP8L": 21}[data[12:16]]
        return data[:start] + struct.pack("<HH", width % 2**16, height % 2**16) + data[start + 4 :]
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    sides = struct.pack(">HH", height % 2**16, width % 2**16)
    return data[: frame + 5] + sides + data[frame + 9 :]


def _with_wrong_chunk(random: Random, data: bytes) -> bytes:
    """Of a PNG: damage behind the checksums, or a chunk that unpacks to far more than it has."""
    if not data.startswith(PNG_SIGNATURE):
        return _with_wrong_number(random, data)
    chunks = _png_chunks(data)
    i = random.randrange(len(chunks))
    name, content = chunks[i]
    bomb = zlib.compress(bytes(2**24), 9)
    extra = random.choice(
        (
            (name, _flipped(random, content)),
            (name, content[: len(content) // 2]),
            (b"zTXt", b"Comment\0\0" + bomb),
            (b"iCCP", b"profile\0\0" + bomb),
            (b"IDAT", bomb),
            (b"eXIf", b"MM\0*" + random.randbytes(40)),
            (b"acTL", struct.pack(">II", 2**31 - 1, 0)),
            (b"PLTE", random.randbytes(random.randint(0, 800))),
            (b"tRNS", random.randbytes(random.randint(0, 300))),
            (b"IHDR", content),
        )
    )
    kept = i if extra[0] == name else i + 1
    return _png([*chunks[:kept], extra, *chunks[i + 1 :]])


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, position = [], len(PNG_SIGNATURE)
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        content = data[position + 8 : position + 8 + length]
        chunks.append((data[position + 4 : position + 8], content))
        position += 12 + length
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [PNG_SIGNATURE]
    for name, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        parts.append(struct.pack(">I", len(content)) + name + content + checksum)
    return b"".join(parts)


_MUTATIONS: dict[str, Mutation] = {
    "truncated": _truncated,
    "flipped": _flipped,
    "overwritten": _overwritten,
    "zeroed": _zeroed,
    "removed": _removed,
    "repeated": _repeated,
    "of another format": _of_another_format,
    "wrong number": _with_wrong_number,
    "wrong sides": _with_wrong_sides,
    "wrong chunk": _with_wrong_chunk,
}
