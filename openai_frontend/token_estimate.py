"""How many tokens a request may use, before the tokenizer in Triton has seen it.

Decides only whether a request is admitted under the limit of its key; what it used is counted at its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_BYTES_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 256
_OUTPUT_TOKENS = 256
"""Of a choice without max_tokens: its real limit is the whole context, which few answers fill."""


def estimate_prompt_tokens(prompt: dict[str, Any], num_files: int) -> int:
    """Tokens of a PROMPT JSON and its images and videos; exact for token ids."""
    num_ids = len(prompt.get("prompt_token_ids", ()))
    num_bytes = sum(len(text.encode()) for text in _texts(prompt))
    num_images = num_files + sum(_num_more_frames(m) for m in prompt.get("messages", ()))
    return num_ids - (-num_bytes // _BYTES_PER_TOKEN) + num_images * _TOKENS_PER_IMAGE


def estimate_output_tokens(sampling: dict[str, Any]) -> int:
    """Tokens of all choices for a SAMPLING JSON; an upper bound if it has `max_tokens`."""
    return int(sampling.get("n", 1)) * int(sampling.get("max_tokens", _OUTPUT_TOKENS))


def _num_more_frames(message: dict[str, Any]) -> int:
    """Pictures that come of the files of videos, beside one of each."""
    parts = message["content"] if isinstance(message["content"], list) else ()
    return sum(part["num_frames"] - 1 for part in parts if _is_video_file(part))


def _is_video_file(part: dict[str, Any]) -> bool:
    return part.get("type") == "video" and "is_frames" not in part


def _texts(prompt: dict[str, Any]) -> Iterator[str]:
    yield prompt.get("prompt", "")
    for message in prompt.get("messages", ()):
        content = message["content"]
        if isinstance(content, str):
            yield content
        else:
            yield from (part.get("text", "") for part in content)
        yield message.get("reasoning_content", "")
        if "tool_calls" in message:
            yield json.dumps(message["tool_calls"])
    if "tools" in prompt:
        yield json.dumps(prompt["tools"])
