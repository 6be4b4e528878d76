"""The other end of `ProgramEngine`; imported by programs that run in a peer's own environment.

A program says `ready()` once it could answer. Then every line of standard input is a JSON list of
requests {messages, prompt, num_tokens}, and the program writes a list of answers {ttft_s, total_s,
token_ids, num_prompt_tokens} in the same order as one line.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]

# Libraries print what they like; that goes to the log.
_OUT = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def serve(answer: Callable[[list[Request]], list[dict[str, Any]]]) -> None:
    """Say that the program is ready, and answer until standard input ends."""
    _write("ready")
    for line in sys.stdin:
        _write(answer(json.loads(line)))


def _write(value: object) -> None:
    _OUT.write(json.dumps(value) + "\n")
    _OUT.flush()


def pictures(request: Request) -> list[bytes]:
    """The encoded pictures of a request."""
    return [
        base64.b64decode(part["image_url"]["url"].partition(",")[2])
        for message in request["messages"]
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
