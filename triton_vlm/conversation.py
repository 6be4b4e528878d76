"""The terminal side of `triton-vlm chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from triton_vlm.chat import ChatClient, ChatError

INTRODUCTION = "Ask something. /image PATH adds a picture to the next question, ctrl-D ends.\n"
IMAGE_COMMAND = "/image "


def show_answer(deltas: Iterable[str]) -> None:
    """Write an answer to the terminal as it comes."""
    for delta in deltas:
        sys.stdout.write(delta)
        sys.stdout.flush()
    sys.stdout.write("\n")


def converse(client: ChatClient, images: Sequence[Path]) -> None:
    """Ask what is typed until the input ends; a failed question can be asked again."""
    pending = list(images)
    if sys.stdin.isatty():
        sys.stdout.write(INTRODUCTION)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line.startswith(IMAGE_COMMAND):
            pending.append(Path(line.removeprefix(IMAGE_COMMAND).strip()).expanduser())
        elif line:
            try:
                show_answer(client.ask(line, pending))
                pending = []
            except ChatError as exc:
                sys.stderr.write(f"Error: {exc}\n")
