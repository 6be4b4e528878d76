"""The checkpoint's own chat template and tokenizer: a conversation to token ids, nothing interpreted.

What a user types is text and stays text: a control token inside it is tokenized like any other
characters, and an image placeholder inside it is refused, because placeholders stand for images
only (CVE-2026-44222: one in a text without an image killed a peer's worker).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from python_backend.errors import BundleError, InvalidRequestError

Message = Mapping[str, Any]

_STAND_IN_BASE = 0xF0000
"""Private-use characters that stand in for typed control tokens while the template is rendered."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the prompt is made of: exactly one of the fields.

    Attributes:
        messages: chat messages; content is a string or parts `{"type": "text", "text": ...}` and
            `{"type": "image"}`.
        prompt: raw text, in which control tokens have their meaning.
        prompt_token_ids: ready ids.
    """

    messages: Sequence[Message] | None = None
    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None


class ChatTemplate:
    """Renders and tokenizes.

    Args:
        processor_dir: folder with the tokenizer's files.
        placeholder_id: the token that stands for an image.

    Raises:
        BundleError: the tokenizer has no such token.
    """

    def __init__(self, processor_dir: Path, placeholder_id: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(processor_dir)
        self._plain = self._tokenizer.backend_tokenizer
        added = self._plain.get_added_tokens_decoder()
        self._special_ids = {token.content: i for i, token in added.items() if token.special}
        if placeholder_id not in added:
            raise BundleError(
                f"the tokenizer has no token {placeholder_id}, which config.json says stands for an "
                "image: download the checkpoint again"
            )
        self._placeholder = added[placeholder_id].content
        self._placeholder_id = placeholder_id
        # Longest first, so that no token hides another that it begins.
        names = sorted(self._special_ids, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, names)))
        self._stand_ins = {name: chr(_STAND_IN_BASE + i) for i, name in enumerate(names)}
        self._names = {stand_in: name for name, stand_in in self._stand_ins.items()}
        self._stand_in = re.compile(f"[{''.join(self._names)}]")

    def token_ids(self, conversation: Conversation) -> np.ndarray:
        """Token ids int64 [S], with one placeholder per image.

        Raises:
            InvalidRequestError: a text holds the image placeholder, or an id is out of range.
        """
        if conversation.prompt_token_ids is not None:
            ids = np.asarray(conversation.prompt_token_ids, np.int64)
            if ids.ndim != 1 or len(ids) == 0 or ids.min() < 0 or ids.max() >= len(self._tokenizer):
                raise InvalidRequestError(
                    f"token ids must be between 0 and {len(self._tokenizer) - 1}", param="prompt"
                )
            if (ids == self._placeholder_id).any():
                raise self._placeholder_error("prompt")
            return ids
        if conversation.prompt is not None:
            if self._placeholder in conversation.prompt:
                raise self._placeholder_error("prompt")
            ids = self._tokenizer(conversation.prompt)["input_ids"]
            if not ids:
                raise InvalidRequestError("the prompt is empty; give it some text", param="prompt")
            return np.asarray(ids, np.int64)
        assert conversation.messages is not None
        return self._chat_token_ids(conversation.messages)

    def _chat_token_ids(self, messages: Sequence[Message]) -> np.ndarray:
        disarmed = [self._disarm_message(message, i) for i, message in enumerate(messages)]
        try:
            text: str = self._tokenizer.apply_chat_template(
                disarmed, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise whatever their author chose
            raise InvalidRequestError(
                f"the model's chat template refuses this conversation: {error}", param="messages"
            ) from error
        ids: list[int] = []
        end = 0
        for match in self._specials.finditer(text):
            ids += self._encode(text[end : match.start()])
            ids.append(self._special_ids[match[0]])
            end = match.end()
        ids += self._encode(text[end:])
        return np.asarray(ids, np.int64)

    def _encode(self, text: str) -> list[int]:
        """Ids of text whose control tokens, restored from their stand-ins, are plain characters."""
        if not text:
            return []
        armed = self._stand_in.sub(lambda match: self._names[match[0]], text)
        if armed == text:
            return list(self._plain.encode(text, add_special_tokens=False).ids)
        self._plain.encode_special_tokens = True
        try:
            return list(self._plain.encode(armed, add_special_tokens=False).ids)
        finally:
            self._plain.encode_special_tokens = False

    def _disarm_message(self, message: Message, index: int) -> dict[str, Any]:
        content, param = message["content"], f"messages[{index}].content"
        if isinstance(content, str):
            return {**message, "content": self._disarm(content, param)}
        parts = [
            {"type": "text", "text": self._disarm(part["text"], f"{param}[{i}].text")}
            if part["type"] == "text"
            else {"type": "image"}
            for i, part in enumerate(content)
        ]
        return {**message, "content": parts}

    def _disarm(self, text: str, param: str) -> str:
        if self._placeholder in text:
            raise self._placeholder_error(param)
        return self._specials.sub(lambda match: self._stand_ins[match[0]], text)

    def _placeholder_error(self, param: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"the text contains {self._placeholder}, which stands for images only: remove it and "
            "send the picture as an image_url part",
            param=param,
        )
