"""Tool calls out of the text of an answer as it comes: what follows for the content, and for which call."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum, auto

from openai_frontend.backend import Delta, ToolCallDelta
from python_backend.tool_calls import ToolFormat


class _State(Enum):
    CONTENT = auto()
    NAME = auto()
    ARGUMENTS = auto()
    CLOSING = auto()
    ONLY_CONTENT = auto()
    """No call can begin any more."""


class ToolCallParser:
    """The calls and the content of one choice.

    What comes out does not depend on how the text is divided. Text that may be the beginning of a call is
    held back, and so is white space before it, which belongs to neither. The decoder's grammar makes sure
    that a call that has begun is well-formed; one that the answer's end cuts off is passed on as far as it
    has come.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._state = _State.CONTENT
        self._held = ""
        self._num_calls = 0
        self._object = _ObjectEnd()

    def parse(self, delta: Delta) -> Delta:
        """`delta` with its text taken apart."""
        self._held += delta.text
        content, calls = "", []
        for event in self._events():
            if isinstance(event, str):
                content += event
            else:
                calls.append(event)
        finish_reason = delta.finish_reason
        if finish_reason is not None:
            content += self._rest()
            is_cut = self._state in (_State.NAME, _State.ARGUMENTS)
            if finish_reason == "stop" and self._num_calls and not is_cut:
                finish_reason = "tool_calls"
        return replace(delta, text=content, tool_calls=calls, finish_reason=finish_reason)

    def _events(self) -> Iterator[str | ToolCallDelta]:
        """What is certain in the text that is held."""
        has_moved = True
        while has_moved and self._held:
            before = self._state, len(self._held)
            match self._state:
                case _State.CONTENT:
                    yield self._take_content()
                case _State.NAME:
                    yield from self._take_name()
                case _State.ARGUMENTS:
                    yield self._take_arguments()
                case _State.CLOSING:
                    self._take_closing()
                case _State.ONLY_CONTENT:
                    yield self._take(len(self._held))
            has_moved = before != (self._state, len(self._held))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _take_content(self) -> str:
        opening = self._form.opening
        if not self._form.trigger_is_token:
            if self._held.startswith(opening):
                self._take(len(opening))
                self._state = _State.NAME
            elif not opening.startswith(self._held):
                self._state = _State.ONLY_CONTENT
            return ""
        start = self._held.find(opening)
        if start < 0:
            held_from = len(self._held) - _overlap(self._held, opening)
            return self._take(len(self._held[:held_from].rstrip()))
        content = self._take(start).rstrip()
        self._take(len(opening))
        self._state = _State.NAME
        return content

    def _take_name(self) -> Iterator[ToolCallDelta]:
        name, middle, rest = self._held.partition(self._form.middle)
        if not middle:
            return
        self._held = rest
        self._state = _State.ARGUMENTS
        self._object = _ObjectEnd()
        self._num_calls += 1
        yield ToolCallDelta(index=self._num_calls - 1, id=f"call_{uuid.uuid4().hex}", name=name)

    def _take_arguments(self) -> ToolCallDelta:
        end = self._object.find(self._held)
        if end is not None:
            self._state = _State.CLOSING
        arguments = self._take(len(self._held) if end is None else end)
        return ToolCallDelta(index=self._num_calls - 1, arguments=arguments)

    def _take_closing(self) -> None:
        if len(self._held) >= len(self._form.closing):
            self._take(len(self._form.closing))
            can_go_on = self._form.separator is not None
            self._state = _State.CONTENT if can_go_on else _State.ONLY_CONTENT

    def _rest(self) -> str:
        """The content in what is held when nothing follows: all of it, unless it belongs to a call."""
        if self._state is not _State.CONTENT or self._form.trigger in self._held:
            return ""
        return "" if self._num_calls and self._held.isspace() else self._held


class _ObjectEnd:
    """Finds where a JSON object ends that comes in parts."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def find(self, text: str) -> int | None:
        """The index behind the object's end in `text`, which follows that of the last call; None without."""
        for i, char in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = char == "\\"
                self._is_in_string = char != '"'
            elif char == '"':
                self._is_in_string = True
            elif char == "{":
                self._depth += 1
            elif char == "}":
                self._depth -= 1
                if not self._depth:
                    return i + 1
        return None


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
