"""`GenerationProbe`: whether text can really be generated, asked of the models themselves."""

from __future__ import annotations

import asyncio
import logging
import struct
import uuid
import zlib
from contextlib import aclosing
from itertools import count
from typing import Any

from openai_frontend.backend import Backend, ModelInfo
from openai_frontend.errors import ServiceUnavailableError
from python_backend.errors import EngineError, OverloadedError, VlmError

_log = logging.getLogger(__name__)
_SIDE = 32
"""Of the picture, in pixels."""
# Before everyone who waits.
_SAMPLING: dict[str, Any] = {"max_tokens": 1, "priority": -(2**31 - 1)}
_ABOUT_NOTHING: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}
_ABOUT_A_PICTURE: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image", "detail": "low"}, {"type": "text", "text": "?"}],
        }
    ]
}


class GenerationProbe:
    """Asks every model for one token, at most once at a time; who comes meanwhile shares the result.

    Args:
        backend: what is asked.
        timeout_s: for all models together.
    """

    def __init__(self, backend: Backend, timeout_s: float) -> None:
        self._backend = backend
        self._timeout_s = timeout_s
        self._numbers = count()
        self._running: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Return if every model generates.

        Raises:
            OverloadedError: a model's queue is full.
            ServiceUnavailableError: there is no model, or one fails or does not answer in time.
        """
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._ask_all())
            # Everyone who waits may have left when it fails.
            self._running.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._running)

    async def _ask_all(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                models = await self._backend.models()
                if not models:
                    raise ServiceUnavailableError
                await self._ask_together(models)
        except OverloadedError:
            raise
        except (VlmError, TimeoutError) as error:
            _log.error("the probe failed: %r", error)
            raise ServiceUnavailableError from error

    async def _ask_together(self, models: list[ModelInfo]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for model in models:
                    group.create_task(self._ask(model))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _ask(self, model: ModelInfo) -> None:
        sees_images = model.max_images != 0
        # A picture that was seen before would come from the encoder's cache.
        images = [_picture(next(self._numbers))] if sees_images else []
        prompt = _ABOUT_A_PICTURE if sees_images else _ABOUT_NOTHING
        request_id = f"probe-{uuid.uuid4().hex}"
        num_tokens = 0
        stream = self._backend.generate(model.triton_name, request_id, prompt, images, _SAMPLING)
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                num_tokens += len(delta.token_ids)
        if not num_tokens:
            raise EngineError(f"{model.id} generated nothing")


def _picture(number: int) -> bytes:
    """A PNG file of one colour, another one for each of 2^24 numbers in a row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    row = b"\0" + (number % 2**24).to_bytes(3, "big") * _SIDE
    pixels = zlib.compress(row * _SIDE)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
