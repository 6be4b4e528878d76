"""Conversations for parity tests: no, one and three pictures of odd sizes, several turns."""

from __future__ import annotations

from typing import Any

from tests.tiny.pictures import png
from tests.tiny.shape import Shape

_WIDE, _TALL, _SMALL = png(211, 64), png(45, 190, seed=1), png(33, 31, seed=2)


def _image(data: bytes) -> dict[str, Any]:
    return {"type": "image", "image": data}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


_TEXTS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "What can you tell me about the sea, été comme hiver?"}],
    "turns": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is the sky blue?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [_text("And the sea? "), _text("Think of 1234 waves.")]},
    ],
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    **_TEXTS,
    "wide": [{"role": "user", "content": [_image(_WIDE), _text("What is in this picture?")]}],
    "tall": [{"role": "user", "content": [_text("Describe this."), _image(_TALL)]}],
    "three": [
        {"role": "user", "content": [_image(_TALL), _text("and"), _image(_SMALL)]},
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [_text("How about this one?"), _image(_WIDE)]},
    ],
}
# For models that read text only.
TEXT_CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    **_TEXTS,
    "short": [{"role": "user", "content": "Hi"}],
    "long": [{"role": "user", "content": "How many waves are there? " * 9}],
    "part": [{"role": "user", "content": [_text("Describe the sea.")]}],
}


def conversations_of(shape: Shape) -> dict[str, list[dict[str, Any]]]:
    """What a model of this shape can be asked, always five conversations."""
    return CONVERSATIONS if shape.sees_images else TEXT_CONVERSATIONS
