"""Token ids of one choice to text, as they come: whole characters only, and stop strings obeyed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from python_backend.sampling_params import SamplingParams
    from python_backend.token_text import TokenText


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that follows what was returned before.

    Attributes:
        text: may be empty while characters or a possible stop string are incomplete.
        matched_stop: the stop string that ended the text, else None.
    """

    text: str
    matched_stop: str | None = None


class StopChecker:
    """Finds stop strings in text that comes in parts.

    Text that may be the beginning of a stop string is held back. The stop string that is complete
    first ends the text, the longest one if several end at the same character; so the result does
    not depend on where the parts are divided.

    Args:
        stop: stop strings, none of them empty.
        include_in_output: keep the stop string at the end of the text.
    """

    def __init__(self, stop: Sequence[str], include_in_output: bool = False) -> None:
        self._stop = tuple(stop)
        self._include_in_output = include_in_output
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, can_stop: bool = True) -> str:
        """Add text; return what is certainly output.

        Args:
            text: follows the text of the last call.
            can_stop: whether a stop string that ends in `text` counts.
        """
        if self.matched is not None or not text:
            return ""
        if not self._stop:
            return text
        num_checked = len(self._held)
        text = self._held + text
        if can_stop and (match := self._first_match(text, num_checked)):
            start, self.matched = match
            self._held = ""
            return text[: start + len(self.matched)] if self._include_in_output else text[:start]
        held_from = self._beginning_of_stop(text)
        self._held = text[held_from:]
        return text[:held_from]

    def finish(self) -> str:
        """Return what was held back: no more text comes, so no stop string can complete."""
        text, self._held = self._held, ""
        return text

    def _first_match(self, text: str, num_checked: int) -> tuple[int, str] | None:
        """The start and the stop string of the match that ends first, after `num_checked`."""
        matches = []
        for stop in self._stop:
            start = text.find(stop, max(0, num_checked - len(stop) + 1))
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _beginning_of_stop(self, text: str) -> int:
        """Where the longest end of `text` begins that a stop string may begin with."""
        earliest = len(text)
        for stop in self._stop:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), earliest)
            while start >= 0 and not stop.startswith(text[start:]):
                start = text.find(stop[0], start + 1, earliest)
            if start >= 0:
                earliest = start
        return earliest


class Detokenizer:
    """The text of one choice.

    Without a stop string, all texts returned together are what
    `tokenizer.decode(ids, skip_special_tokens=...)` gives for all ids. The cost of a token does
    not grow with the length of the text.

    Args:
        token_text: the tokens of the model; shared by all requests.
        params: `stop`, `include_stop_str_in_output`, `min_tokens` and `skip_special_tokens` are used.
    """

    def __init__(self, token_text: TokenText, params: SamplingParams) -> None:
        self._stream = token_text.stream(skip_special_tokens=params.skip_special_tokens)
        self._checker = StopChecker(params.stop, params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, else None; `finish` may find one too."""
        return self._checker.matched

    def append(self, token_ids: Sequence[int]) -> TextDelta:
        """Add generated tokens.

        Args:
            token_ids: follow the tokens of the last call. A token that ended generation (end of
                sequence or `stop_token_ids`) has text only if it is no special token; leave it out
                where it must not show.

        Returns:
            The text that is certain now. Tokens after a matched stop string have no effect.
        """
        parts = []
        for token_id in token_ids:
            if self._checker.matched is not None:
                break
            self._num_tokens += 1
            parts.append(self._checker.push(self._stream.push(token_id), can_stop=self._can_stop))
        return TextDelta("".join(parts), self._checker.matched)

    def finish(self) -> str:
        """Return what was held back; the last call for this choice.

        Incomplete characters become U+FFFD. Look at `matched_stop` afterwards: text that was
        incomplete before may contain a stop string.
        """
        if self._checker.matched is not None:
            return ""
        text = self._checker.push(self._stream.flush(), can_stop=self._can_stop)
        return text + self._checker.finish()

    @property
    def _can_stop(self) -> bool:
        return self._num_tokens >= self._min_tokens


class ReasoningText:
    """The text of the reasoning, token by token, without white space at its beginning and its end."""

    def __init__(self, token_text: TokenText, params: SamplingParams) -> None:
        self._stream = token_text.stream(skip_special_tokens=params.skip_special_tokens)
        self._has_begun = False
        self._white_space = ""

    def append(self, token_ids: Sequence[int]) -> str:
        """Add tokens; return the text that is certain now."""
        return self._trim("".join(map(self._stream.push, token_ids)))

    def finish(self) -> str:
        """What was incomplete; the last call."""
        return self._trim(self._stream.flush())

    def _trim(self, text: str) -> str:
        if not self._has_begun:
            text = text.lstrip()
        trimmed = text.rstrip()
        if not trimmed:
            self._white_space += text
            return ""
        self._has_begun = True
        trimmed, self._white_space = self._white_space + trimmed, text[len(trimmed) :]
        return trimmed
