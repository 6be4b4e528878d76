"""What is asked: loads, and the pictures and texts of their requests, the same for every engine."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
NUM_SYSTEM_TOKENS = 1000
"""Tokens of a shared system prompt."""

Shared = Literal["picture", "system prompt"]
"""What all requests of a burst have in common."""

_GRID_SIZE = 14
_NOISE = 12
_WORDS = (
    *("the", "picture", "shows", "a", "red", "house", "near", "river", "and", "two", "people"),
    *("walk", "under", "green", "trees", "while", "small", "boat", "moves", "slowly", "past"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests that belong together: a burst.

    Attributes:
        name: of the load, without its concurrency.
        concurrency: requests under way together; all of them start at once, unless `mean_gap_s`.
        num_output_tokens: per request, always all of them: the end-of-sequence token is ignored.
        has_picture: whether each request brings a picture, of its own unless `shared`.
        num_rounds: how often `concurrency` requests are sent, each time when all are answered.
        shared: what the requests of a burst have in common, None for nothing.
        mean_gap_s: of the times between two starts, which are those of a Poisson process.
    """

    name: str
    concurrency: int
    num_output_tokens: int
    has_picture: bool
    num_rounds: int = 1
    shared: Shared | None = None
    mean_gap_s: float = 0.0

    @property
    def label(self) -> str:
        """How tables and files call it."""
        return f"{self.name} x{self.num_requests}"

    @property
    def num_requests(self) -> int:
        """Requests in one burst."""
        return self.concurrency * self.num_rounds

    @property
    def num_image_tokens(self) -> int:
        """Tokens of a request's picture."""
        return NUM_IMAGE_TOKENS if self.has_picture else 0

    @property
    def num_pictures(self) -> int:
        """Different pictures in one burst."""
        if not self.has_picture:
            return 0
        return 1 if self.shared == "picture" else self.num_requests

    def starts_s(self, repeat: int) -> list[float]:
        """When the requests of a round start, from its beginning."""
        if not self.mean_gap_s:
            return [0.0] * self.concurrency
        gaps = np.random.default_rng([repeat, self.concurrency]).exponential(size=self.concurrency)
        return (self.mean_gap_s * (np.cumsum(gaps) - gaps[0])).tolist()


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


def text_load(concurrency: int, num_output_tokens: int = 64) -> Load:
    """A question without a picture, a short answer."""
    return Load(
        name="text",
        concurrency=concurrency,
        num_output_tokens=num_output_tokens,
        has_picture=False,
    )


def poisson_load(
    name: str, num_requests: int, mean_gap_s: float, num_output_tokens: int = 64
) -> Load:
    """Requests as of `pictures_load` that come when they come."""
    return Load(
        name=name,
        concurrency=num_requests,
        num_output_tokens=num_output_tokens,
        has_picture=True,
        mean_gap_s=mean_gap_s,
    )


def same_picture_load(num_questions: int, num_output_tokens: int = 16) -> Load:
    """Questions about one picture, one after another: what a cache of pictures or prefixes saves."""
    return Load(
        name="same picture",
        concurrency=1,
        num_output_tokens=num_output_tokens,
        has_picture=True,
        num_rounds=num_questions,
        shared="picture",
    )


def system_prompt_load(concurrency: int, num_rounds: int, num_output_tokens: int = 16) -> Load:
    """Questions under one long system prompt: what a cache of prefixes saves."""
    return Load(
        name="system prompt, one by one" if concurrency == 1 else "system prompt",
        concurrency=concurrency,
        num_output_tokens=num_output_tokens,
        has_picture=False,
        num_rounds=num_rounds,
        shared="system prompt",
    )


class Workload:
    """Makes the requests of a load; any process makes the same ones.

    Args:
        tokenizer_file: the checkpoint's tokenizer.json.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))

    def conversations(self, load: Load, repeat: int) -> list[Messages]:
        """One conversation per request; no picture comes twice unless the load says so.

        Args:
            load: what to make.
            repeat: number of the burst; each has its own pictures and words.
        """
        kind = [repeat, load.concurrency, zlib.crc32(load.name.encode())]
        seeds = [[*kind, index] for index in range(load.num_requests)]
        system: Messages = ()
        if load.shared == "system prompt":
            system = [{"role": "system", "content": self._text(kind, NUM_SYSTEM_TOKENS)}]
        picture_seeds = [kind] * len(seeds) if load.shared == "picture" else seeds
        return [
            [*system, self._question(seed, picture_seed if load.has_picture else None)]
            for seed, picture_seed in zip(seeds, picture_seeds, strict=True)
        ]

    def _question(self, seed: list[int], picture_seed: list[int] | None) -> dict[str, Any]:
        text = self._text(seed, NUM_TEXT_TOKENS)
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if picture_seed is not None:
            data = base64.b64encode(make_picture(picture_seed)).decode()
            url = f"data:image/png;base64,{data}"
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return {"role": "user", "content": parts}

    def _text(self, seed: list[int], num_tokens: int) -> str:
        """Words that make exactly so many tokens."""
        words = np.random.default_rng(seed).choice(_WORDS, num_tokens)
        text = " ".join(words)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) < num_tokens:
            raise ValueError(f"the text has {len(encoding.ids)} tokens, not {num_tokens}")
        return text[: encoding.offsets[num_tokens - 1][1]]


def make_picture(seed: Sequence[int]) -> bytes:
    """A PNG of `PICTURE_SIZE` squared: soft colours with some noise, so that no two look alike.

    Not a JPEG: decoders differ in its pixels, and with random weights that changes answers.
    """
    random = np.random.default_rng(seed)
    grid = random.integers(0, 256, (_GRID_SIZE, _GRID_SIZE, 3), dtype=np.uint8)
    shape = (PICTURE_SIZE, PICTURE_SIZE)
    soft = np.asarray(Image.fromarray(grid).resize(shape, Image.Resampling.BICUBIC), np.int16)
    noisy = soft + random.integers(-_NOISE, _NOISE + 1, soft.shape)
    buffer = io.BytesIO()
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    image.save(buffer, "PNG")
    return buffer.getvalue()
