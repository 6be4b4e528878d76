"""The terminal side of `triton-vlm chat`: answers on stdout, everything about them on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from triton_vlm.chat import Answer, ChatClient, ChatError

INTRODUCTION = (
    "Ask something. /image PATH or /video PATH adds a file to the next question, ctrl-C stops an "
    "answer, ctrl-D ends.\n"
)
FILE_COMMANDS = ("/image", "/video")


def show_answer(answer: Answer) -> None:
    """Write an answer to the terminal as it comes, then its times and tokens in a dim line.

    Raises:
        ChatError: the question was not answered.
        KeyboardInterrupt: ctrl-C; the server has been told to stop.
    """
    try:
        with contextlib.closing(iter(answer)) as pieces:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
    finally:
        if answer.text:
            sys.stdout.write("\n")
            sys.stdout.flush()
    Console(stderr=True).print(answer.facts(), style="dim", highlight=False, soft_wrap=True)


def converse(client: ChatClient, files: Sequence[Path]) -> None:
    """Ask what is typed until the input ends; a failed question can be asked again."""
    pending = list(files)
    if sys.stdin.isatty():
        import readline  # noqa: F401 - arrow keys and a history at the prompt

        sys.stdout.write(INTRODUCTION)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        command, _, name = line.partition(" ")
        if command in FILE_COMMANDS and name:
            path = Path(name.strip()).expanduser()
            if path.is_file():
                pending.append(path)
            else:
                sys.stderr.write(f"Error: {path} is not a file\n")
        elif line and _is_answered(client, line, pending):
            pending = []


def _is_answered(client: ChatClient, question: str, files: Sequence[Path]) -> bool:
    """Ask and show; whether the question is part of the conversation now."""
    try:
        answer = client.ask(question, files)
        try:
            show_answer(answer)
        except KeyboardInterrupt:
            sys.stderr.write("Stopped.\n")
            return answer.text != ""
    except ChatError as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return False
    return True
