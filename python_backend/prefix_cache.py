"""What the rows of the KV cache hold, for prompts that begin like an earlier one.

Pure bookkeeping over integers, on behalf of the scheduler. A row that nobody runs in keeps what was
computed in it until another request needs the row:

    slot  0 .. n-1   running choices
    rest             free, but for the one in which a prompt is computed; a free row keeps what it holds

A prompt takes its first tokens from the row that has the most of them, running or free, and computes the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar


class Key(Protocol):
    """What the keys and values of a prompt are computed from."""

    def num_common(self, earlier: Self, output_token_ids: Sequence[int]) -> int:
        """How many of the first tokens have the same keys and values in another prompt and its answer.

        Args:
            earlier: the other prompt's.
            output_token_ids: the answer's.
        """


class Content(Protocol):
    """The tokens that a row was computed from."""

    @property
    def num_computed_tokens(self) -> int:
        """Of how many the row holds keys and values."""


_Content = TypeVar("_Content", bound=Content)


@dataclass(frozen=True, slots=True)
class RowCopy:
    """Copy the first `num_tokens` positions of cache row `source` to row `target`.

    Attributes:
        num_back: positions of `target` that go to `source` in exchange.
    """

    source: int
    target: int
    num_tokens: int
    num_back: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `num_tokens` of what row `slot` holds."""

    slot: int
    num_tokens: int


class PrefixCache(Generic[_Content]):
    """Which row holds what, and which one is given up when one is needed.

    Args:
        num_slots: rows.
    """

    def __init__(self, num_slots: int) -> None:
        self._contents: list[_Content | None] = [None] * num_slots
        self._last_used = [0] * num_slots
        self._num_uses = 0

    def __getitem__(self, slot: int) -> _Content | None:
        """What a row holds, None for nothing."""
        return self._contents[slot]

    def put(self, slot: int, content: _Content | None) -> None:
        """Say what a row, which is in use now, holds; None for nothing."""
        self._contents[slot] = content
        self._num_uses += 1
        self._last_used[slot] = self._num_uses

    def holds(self, content: _Content) -> bool:
        """Whether a row holds it."""
        return any(held is content for held in self._contents)

    def touch(self, content: _Content) -> None:
        """Say that the row with `content` is in use now."""
        for slot, held in enumerate(self._contents):
            if held is content:
                self.put(slot, held)

    def forget(self, content: _Content) -> None:
        """Say that the row with `content`, if there is one, holds nothing any more."""
        self._contents = [None if held is content else held for held in self._contents]

    def keep_only(self, is_kept: Callable[[_Content], bool]) -> None:
        """Say that rows with other contents hold nothing any more."""
        self._contents = [c if c is not None and is_kept(c) else None for c in self._contents]

    def exchange(self, source: int, target: int) -> RowCopy:
        """Swap two rows, and say what has to be copied for that."""
        _swap(self._contents, source, target)
        _swap(self._last_used, source, target)
        return RowCopy(source, target, self._num_tokens(target), self._num_tokens(source))

    def _num_tokens(self, slot: int) -> int:
        content = self._contents[slot]
        return 0 if content is None else content.num_computed_tokens

    def find(self, num_common: Callable[[_Content], int], first_free: int) -> Prefix:
        """The row that holds the most of a prompt's first tokens.

        Of several with as many, that is a free one, which may be used without a copy, and the one that holds
        least besides.

        Args:
            num_common: how many of them some content begins with.
            first_free: the row after those that run.
        """
        best, best_rank = Prefix(first_free, 0), (0, False, 0)
        for slot, content in enumerate(self._contents):
            num_tokens = 0 if content is None else num_common(content)
            rank = (num_tokens, slot >= first_free, num_tokens - self._num_tokens(slot))
            if num_tokens and rank > best_rank:
                best, best_rank = Prefix(slot, num_tokens), rank
        return best

    def slot_for(self, prefix: Prefix, first_free: int) -> int:
        """The free row in which a prompt that begins with `prefix` should be computed.

        That is the prefix's own, if it is free and holds nothing more; else one that holds nothing; else the
        prefix's own again, if no more of it is lost than used; else the one that was not in use for longest.
        """
        free = range(first_free, len(self._contents))
        num_lost = self._num_tokens(prefix.slot) - prefix.num_tokens
        is_usable = prefix.num_tokens > 0 and prefix.slot >= first_free
        if is_usable and num_lost == 0:
            return prefix.slot
        for slot in free:
            if self._contents[slot] is None:
                return slot
        if is_usable and num_lost <= prefix.num_tokens:
            return prefix.slot
        return min(free, key=self._last_used.__getitem__)


def _swap(values: list[Any], one: int, other: int) -> None:
    values[one], values[other] = values[other], values[one]
