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
NUM_TEXT_TOKENS = 64
"""Tokens of a question, unless a load says otherwise."""
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
        num_pictures_each: pictures that a request brings, of its own unless `shared`.
        num_text_tokens: of a question, the chat template's not counted.
        num_rounds: how often `concurrency` requests are sent, each time when all are answered.
        shared: what the requests of a burst have in common, None for nothing.
        mean_gap_s: of the times between two starts, which are those of a Poisson process.
    """

    name: str
    concurrency: int
    num_output_tokens: int
    num_pictures_each: int = 0
    num_text_tokens: int = NUM_TEXT_TOKENS
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
    def has_picture(self) -> bool:
        """Whether requests bring pictures."""
        return self.num_pictures_each > 0

    @property
    def num_pictures(self) -> int:
        """Different pictures in one burst."""
        return self.num_pictures_each * (1 if self.shared == "picture" else self.num_requests)

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
        num_pictures_each=1,
    )


def decode_load(concurrency: int, num_output_tokens: int = 256) -> Load:
    """A question without a picture, a long answer: mostly the decode steps."""
    return Load(
        name="decode",
        concurrency=concurrency,
        num_output_tokens=num_output_tokens,
    )


def text_load(concurrency: int, num_output_tokens: int = 64) -> Load:
    """A question without a picture, a short answer."""
    return Load(
        name="text",
        concurrency=concurrency,
        num_output_tokens=num_output_tokens,
    )


def poisson_load(
    name: str, num_requests: int, mean_gap_s: float, num_output_tokens: int = 64
) -> Load:
    """Requests as of `pictures_load` that come when they come."""
    return Load(
        name=name,
        concurrency=num_requests,
        num_output_tokens=num_output_tokens,
        num_pictures_each=1,
        mean_gap_s=mean_gap_s,
    )


def same_picture_load(num_questions: int, num_output_tokens: int = 16) -> Load:
    """Questions about one picture, one after another: what a cache of pictures or prefixes saves."""
    return Load(
        name="same picture",
        concurrency=1,
        num_output_tokens=num_output_tokens,
        num_pictures_each=1,
        num_rounds=num_questions,
        shared="picture",
    )


def system_prompt_load(concurrency: int, num_rounds: int, num_output_tokens: int = 16) -> Load:
    """Questions under one long system prompt: what a cache of prefixes saves."""
    return Load(
        name="system prompt, one by one" if concurrency == 1 else "system prompt",
        concurrency=concurrency,
        num_output_tokens=num_output_tokens,
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
            [*system, self._question(load, seed, picture_seed)]
            for seed, picture_seed in zip(seeds, picture_seeds, strict=True)
        ]

    def _question(self, load: Load, seed: list[int], picture_seed: list[int]) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        for number in range(load.num_pictures_each):
            # The first one has the seed itself: loads of one picture keep theirs.
            picture = make_picture([*picture_seed, number] if number else picture_seed)
            url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        parts.append({"type": "text", "text": self._text(seed, load.num_text_tokens)})
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
