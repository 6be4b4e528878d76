"""What the keys and values of a prompt are computed from, to find an earlier one that begins alike.

Dimension letters: K numbers per token, S prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from python_backend.families.base import PreparedPrompt


class PromptKey:
    """Compares token by token: no hash but those of the images can make two different tokens equal.

    A token's keys and values depend on itself, on what stands before it, and on their positions and images.
    Under cross-attention they depend on all images of the prompt: tokens before the first one see them too.

    Args:
        prompt: tokens, positions and images.
        salt: prompts with different ones, or one with and one without, have nothing in common.
    """

    def __init__(self, prompt: PreparedPrompt, salt: str | None) -> None:
        columns = [prompt.token_ids[None], prompt.image_index[None], prompt.position_ids]
        self._num_axes = len(prompt.position_ids)
        self._next_position = int(prompt.position_ids.max()) + 1
        self._images = tuple(prompt.images)
        has_cross_attention = prompt.cross_range is not None
        self._scope = (salt, self._images if has_cross_attention else None)
        if prompt.cross_range is not None:
            columns.append(prompt.cross_range.T)
        self._columns = np.concatenate(columns)  # int64 [K, S]

    def num_common(self, earlier: PromptKey, output_token_ids: Sequence[int]) -> int:
        """How many of the first tokens have the same keys and values in an earlier prompt and its answer."""
        if self._scope != earlier._scope:
            return 0
        num_tokens = _num_equal(self._columns, earlier._columns)
        num_tokens = min(num_tokens, self._num_before_other_images(earlier))
        if num_tokens < earlier._columns.shape[1]:
            return num_tokens
        answer = earlier._answer(output_token_ids)
        return num_tokens + _num_equal(self._columns[:, num_tokens:], answer)

    def _num_before_other_images(self, earlier: PromptKey) -> int:
        """Tokens before the first one of an image that the earlier prompt does not have in the same place."""
        pairs = zip(self._images, earlier._images, strict=False)
        same = takewhile(lambda pair: pair[0] == pair[1], pairs)
        num_same_tokens = sum(image.num_tokens for image, _ in same)
        return _first(self._columns[1] >= num_same_tokens)

    def _answer(self, token_ids: Sequence[int]) -> np.ndarray:
        """Columns int64 [K, tokens] of what was generated: text that goes on where the prompt ends."""
        columns = np.repeat(self._columns[:, -1:], len(token_ids), axis=1)
        columns[0] = token_ids
        columns[1] = -1
        columns[2 : 2 + self._num_axes] = self._next_position + np.arange(len(token_ids))
        return columns


def _num_equal(one: np.ndarray, other: np.ndarray) -> int:
    """Leading columns that are equal; row by row, because most prompts differ early in the first one."""
    num_columns = min(one.shape[1], other.shape[1])
    for row, other_row in zip(one, other, strict=True):
        num_columns = _first(row[:num_columns] != other_row[:num_columns])
    return num_columns


def _first(is_it: np.ndarray) -> int:
    """Where the first true value is; the length of bool [N] if there is none."""
    place = int(is_it.argmax()) if len(is_it) else 0
    return place if is_it[place : place + 1].any() else len(is_it)
