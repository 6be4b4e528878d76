"""What is asked: loads, and the pictures and texts of their requests, the same for every engine."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

Messages = Sequence[Mapping[str, Any]]

PICTURE_SIZE = 448
"""Width and height in pixels."""
NUM_IMAGE_TOKENS = (PICTURE_SIZE // 28) ** 2
"""For Qwen2.5-VL: two by two patches of 14 pixels make a token."""
NUM_TEXT_TOKENS = 64
"""Tokens of the question, the chat template's not counted."""

_JPEG_QUALITY = 90
_GRID_SIZE = 14
_NOISE = 12
_WORDS = (
    *("the", "picture", "shows", "a", "red", "house", "near", "river", "and", "two", "people"),
    *("walk", "under", "green", "trees", "while", "small", "boat", "moves", "slowly", "past"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests that are sent at the same moment.

    Attributes:
        name: of the load, without its concurrency.
        concurrency: requests under way together; all of them start at once.
        num_output_tokens: per request, always all of them: the end-of-sequence token is ignored.
        has_picture: whether each request brings a picture of its own.
    """

    name: str
    concurrency: int
    num_output_tokens: int
    has_picture: bool

    @property
    def label(self) -> str:
        """How tables and files call it."""
        return f"{self.name} x{self.concurrency}"

    @property
    def num_image_tokens(self) -> int:
        """Tokens of a request's picture."""
        return NUM_IMAGE_TOKENS if self.has_picture else 0

    @property
    def num_pictures(self) -> int:
        """Different pictures in one burst."""
        return self.concurrency if self.has_picture else 0


def pictures_load(concurrency: int, num_output_tokens: int = 64) -> Load:
    """A picture and a question, a short answer: mostly the prompt's computation."""
    return Load(
        name="picture",
        concurrency=concurrency,
        num_output_tokens=num_output_tokens,
        has_picture=True,
    )


def decode_load(concurrency: int, num_output_tokens: int = 256) -> Load:
    """A question without a picture, a long answer: mostly the decode steps."""
    return Load(
        name="decode",
        concurrency=concurrency,
        num_output_tokens=num_output_tokens,
        has_picture=False,
    )


class Workload:
    """Makes the requests of a load; any process makes the same ones.

    Args:
        tokenizer_file: the checkpoint's tokenizer.json.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))

    def conversations(self, load: Load, repeat: int) -> list[Messages]:
        """One conversation per request; no picture comes twice, so that no cache can answer.

        Args:
            load: what to make.
            repeat: number of the burst; each has its own pictures and words.
        """
        return [
            self._conversation(load, [repeat, load.concurrency, int(load.has_picture), index])
            for index in range(load.concurrency)
        ]

    def _conversation(self, load: Load, seed: list[int]) -> Messages:
        parts: list[dict[str, Any]] = [{"type": "text", "text": self._question(seed)}]
        if load.has_picture:
            data = base64.b64encode(make_picture(seed)).decode()
            url = f"data:image/jpeg;base64,{data}"
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return [{"role": "user", "content": parts}]

    def _question(self, seed: list[int]) -> str:
        """Words that make exactly `NUM_TEXT_TOKENS` tokens."""
        words = np.random.default_rng(seed).choice(_WORDS, NUM_TEXT_TOKENS)
        text = " ".join(words)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) < NUM_TEXT_TOKENS:
            raise ValueError(f"the question has {len(encoding.ids)} tokens, not {NUM_TEXT_TOKENS}")
        return text[: encoding.offsets[NUM_TEXT_TOKENS - 1][1]]


def make_picture(seed: Sequence[int]) -> bytes:
    """A JPEG of `PICTURE_SIZE` squared: soft colours with some noise, so that no two look alike."""
    random = np.random.default_rng(seed)
    grid = random.integers(0, 256, (_GRID_SIZE, _GRID_SIZE, 3), dtype=np.uint8)
    shape = (PICTURE_SIZE, PICTURE_SIZE)
    soft = np.asarray(Image.fromarray(grid).resize(shape, Image.Resampling.BICUBIC), np.int16)
    noisy = soft + random.integers(-_NOISE, _NOISE + 1, soft.shape)
    buffer = io.BytesIO()
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
