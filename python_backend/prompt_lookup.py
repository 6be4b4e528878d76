"""Drafts by prompt lookup: what may come next is what came next the last time.

An answer often repeats what stands before it: a name, a quotation, a line of code, a row of a table. No
second model is needed to guess such tokens, and as long as reading the weights is what takes the time, a
decode step that checks several takes little longer than one that computes a single token.
"""

# S tokens of prompt and answer

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_MIN_EQUAL: Final = 2
"""Last tokens that an earlier place must have too; fewer say little about the next one."""
_MAX_EQUAL: Final = 3
"""Last tokens that are compared."""
_FIRST_LENGTH: Final = 2
_MAX_PAUSE: Final = 64


class PromptLookup:
    """Guesses the next tokens of one choice.

    It guesses more of them while it is right and fewer when it is wrong. The more drafts in a row were wrong
    from their first token on, the more steps go by before the next one.

    Args:
        prompt_token_ids: int64 [S]; negative ones are never guessed, nor equal to one another.
        max_tokens: of the answer.

    Attributes:
        num_drafted: tokens guessed so far.
        num_accepted: how many of them came.
    """

    def __init__(self, prompt_token_ids: npt.NDArray[np.int64], max_tokens: int) -> None:
        self._size = len(prompt_token_ids)
        self._token_ids = np.empty(self._size + max_tokens, np.int64)
        self._token_ids[: self._size] = prompt_token_ids
        self._draft: list[int] = []
        self._num_right = 0
        self._length = _FIRST_LENGTH
        self._num_misses = 0
        self._pause = 0
        self.num_drafted = 0
        self.num_accepted = 0

    def propose(self, max_length: int) -> list[int]:
        """At most so many tokens that may come next; call it once a step."""
        if self._pause:
            self._pause -= 1
            return []
        length = min(self._length, max_length)
        start = self._find() if length > 0 else None
        if start is None:
            return []
        # What is repeated up to now is taken to be repeated again and again.
        follows = self._token_ids[start : min(start + length, self._size)]
        draft: list[int] = np.resize(follows, length).tolist()
        return draft[: next((i for i, token_id in enumerate(draft) if token_id < 0), length)]

    def _find(self) -> int | None:
        """The place behind the last earlier occurrence of the last tokens, of as many as occur."""
        token_ids = self._token_ids[: self._size]
        ends = np.flatnonzero(token_ids[:-1] == token_ids[-1])
        num_equal = 1
        while num_equal < _MAX_EQUAL:
            longer = ends[ends >= num_equal]
            if len(longer):
                longer = longer[token_ids[longer - num_equal] == token_ids[-1 - num_equal]]
            if not len(longer):
                break
            ends, num_equal = longer, num_equal + 1
        return int(ends[-1]) + 1 if len(ends) and num_equal >= _MIN_EQUAL else None

    def expect(self, draft: Sequence[int]) -> None:
        """Say what the next step computes, to be compared with the tokens that are appended."""
        self._draft, self._num_right = list(draft), 0
        self.num_drafted += len(draft)

    def append(self, token_id: int) -> bool:
        """Record a sampled token; whether it is the one that was expected."""
        self._token_ids[self._size] = token_id
        self._size += 1
        if self._num_right == len(self._draft):
            return False
        is_right = token_id == self._draft[self._num_right]
        self._num_right += is_right
        self.num_accepted += is_right
        if not is_right or self._num_right == len(self._draft):
            self._learn()
        return is_right

    def _learn(self) -> None:
        """Choose the length of the next draft by what became of this one, which is done with."""
        if self._num_right == len(self._draft):
            self._length = max(self._length, 2 * len(self._draft))
            self._num_misses = 0
        elif self._num_right:
            self._length = self._num_right
        else:
            self._length = max(1, len(self._draft) // 2)
            self._num_misses += 1
            self._pause = min(2**self._num_misses, _MAX_PAUSE)
        self._draft, self._num_right = [], 0


def propose(lookups: Sequence[PromptLookup], max_lengths: Sequence[int]) -> list[list[int]]:
    """What the choices of one step expect, one draft for each; all are empty if they would not pay.

    All rows of a step are as long as the longest, so drafts are shortened until they are at least half of
    what they add to it.
    """
    pairs = zip(lookups, max_lengths, strict=True)
    drafts = [lookup.propose(max_length) for lookup, max_length in pairs]
    length = max(map(len, drafts))
    while sum(min(len(draft), length) for draft in drafts) * 2 < length * len(drafts):
        length -= 1
    drafts = [draft[:length] for draft in drafts]
    for lookup, draft in zip(lookups, drafts, strict=True):
        lookup.expect(draft)
    return drafts
