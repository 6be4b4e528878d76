"""A `Backend` without Triton: plays the deltas it is given and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai_frontend.backend import Delta, ModelInfo, Usage
from python_backend.errors import InvalidRequestError

MODEL = ModelInfo(
    id="Qwen/Qwen2.5-VL-7B-Instruct",
    triton_name="qwen2_5_vl",
    created=1_700_000_000,
    fingerprint="fp_0123456789",
    max_model_len=8192,
    max_images=4,
    takes_videos=True,
)


def text_deltas(
    text: str,
    *,
    index: int = 0,
    prompt_tokens: int = 7,
    image_tokens: int = 0,
    video_tokens: int = 0,
    cached_tokens: int = 0,
    **last: Any,
) -> list[Delta]:
    """One delta per word of `text`, each one token, and a last one that ends the choice."""
    words = text.split(" ")
    pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    deltas = [Delta(text=piece, index=index, token_ids=(i,)) for i, piece in enumerate(pieces)]
    usage = Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=len(pieces) + 1,
        image_tokens=image_tokens,
        video_tokens=video_tokens,
        cached_tokens=cached_tokens,
    )
    end: dict[str, Any] = {"finish_reason": "stop", "matched_stop": 151645, "usage": usage}
    return [*deltas, Delta(text="", index=index, token_ids=(151645,), **end | last)]


@dataclass(frozen=True)
class Call:
    """One `generate` as the backend saw it."""

    model: str
    request_id: str
    prompt: dict[str, Any]
    images: list[bytes]
    sampling: dict[str, Any]
    traceparent: str | None = None


@dataclass
class FakeBackend:
    """Plays `script` for every request: deltas are sent, exceptions raised, events waited for.

    Attributes:
        script: what happens, in order; an `asyncio.Event` holds the rest back until it is set.
        models_list: models that exist.
        ready: what `is_ready` says.
        calls: every `generate`, in order.
        cancelled: ids of the requests whose consumer stopped early.
        was_cancelled: set with the first of them.
        waiting: set when a request waits for an event of the script.
        closed: whether `close` was called.
    """

    script: Sequence[Delta | BaseException | asyncio.Event] = ()
    models_list: list[ModelInfo] = field(default_factory=lambda: [MODEL])
    ready: bool = True
    calls: list[Call] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    was_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    async def generate(
        self,
        model: str,
        request_id: str,
        prompt: dict[str, Any],
        images: Sequence[bytes],
        sampling: dict[str, Any],
        traceparent: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Play the script."""
        self.calls.append(Call(model, request_id, prompt, list(images), sampling, traceparent))
        is_over = False
        try:
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    self.waiting.set()
                    await step.wait()
                elif isinstance(step, BaseException):
                    is_over = True
                    raise step
                else:
                    is_over = step is self.script[-1]
                    yield step
            is_over = True
        finally:
            if not is_over:
                self.cancelled.append(request_id)
                self.was_cancelled.set()

    async def tokenize(
        self, model: str, prompt: dict[str, Any], images: Sequence[bytes]
    ) -> list[int]:
        """The characters of the prompt's JSON, and 1000 for each image."""
        return [*json.dumps(prompt).encode(), *[1000] * len(images)]

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """A character for each token; over 255 there are none."""
        try:
            return bytes(token_ids).decode("latin-1")
        except ValueError:
            raise InvalidRequestError("no such token", param="prompt_token_ids") from None

    async def models(self) -> list[ModelInfo]:
        """The models that exist."""
        return self.models_list

    async def find_model(self, name: str) -> ModelInfo | None:
        """The model with this id or Triton name."""
        return next((m for m in self.models_list if name in (m.id, m.triton_name)), None)

    async def is_ready(self) -> bool:
        """What `ready` says."""
        return self.ready

    async def close(self) -> None:
        """Remember that it was called."""
        self.closed = True
