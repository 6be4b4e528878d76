"""Conversations for parity tests: no, one and three pictures of odd sizes, several turns."""

from __future__ import annotations

from typing import Any

from tests.tiny.pictures import png

_WIDE, _TALL, _SMALL = png(211, 64), png(45, 190, seed=1), png(33, 31, seed=2)


def _image(data: bytes) -> dict[str, Any]:
    return {"type": "image", "image": data}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "What can you tell me about the sea, été comme hiver?"}],
    "turns": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is the sky blue?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [_text("And the sea? "), _text("Think of 1234 waves.")]},
    ],
    "wide": [{"role": "user", "content": [_image(_WIDE), _text("What is in this picture?")]}],
    "tall": [{"role": "user", "content": [_text("Describe this."), _image(_TALL)]}],
    "three": [
        {"role": "user", "content": [_image(_TALL), _text("and"), _image(_SMALL)]},
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [_text("How about this one?"), _image(_WIDE)]},
    ],
}
