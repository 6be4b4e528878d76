"""Reasoning: what a model thinks before it answers, between two tokens such as `<think>` and `</think>`.

The chat template may open it in the prompt, or the model does so with its first token. It is told from the
answer by tokens, not by text: exactly, wherever the text is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

KNOWN_MARKS: Final = (("<think>", "</think>"),)
"""Texts of the two tokens, as chat templates have them."""


@dataclass(frozen=True, slots=True)
class ReasoningTokens:
    """The tokens around a model's reasoning.

    Attributes:
        start_id: opens it.
        end_id: closes it.
        special_ids: control tokens of the model, which no user can type.
    """

    start_id: int
    end_id: int
    special_ids: frozenset[int]

    def is_opened_by(self, prompt_token_ids: Sequence[int]) -> bool:
        """Whether the answer to a prompt begins inside the reasoning.

        Only what follows the last control token counts: that is the template's, while what stands before
        may be a user's text.
        """
        for token_id in reversed(prompt_token_ids):
            if token_id == self.start_id:
                return True
            if token_id == self.end_id or token_id in self.special_ids:
                return False
        return False


Part = Literal["mark", "reasoning", "answer"]


class Reasoning:
    """Where one choice is in its reasoning.

    Args:
        tokens: of the model.
        prompt_token_ids: what it answers.

    Attributes:
        is_open: whether the next token belongs to the reasoning.
        num_tokens: of the reasoning, with its marks, as far as it was generated.
        part: what the last token belongs to.
    """

    def __init__(self, tokens: ReasoningTokens, prompt_token_ids: Sequence[int]) -> None:
        self._tokens = tokens
        self._is_first = True
        self.is_open = tokens.is_opened_by(prompt_token_ids)
        self.num_tokens = 0
        self.part: Part = "answer"

    @property
    def opening_id(self) -> int | None:
        """The token that would open the reasoning if it came next."""
        return self._tokens.start_id if self._is_first and not self.is_open else None

    def append(self, token_id: int) -> None:
        """Note a generated token."""
        if token_id == self.opening_id:
            self.is_open, self.part = True, "mark"
        elif not self.is_open:
            self.part = "answer"
        elif token_id == self._tokens.end_id:
            self.is_open, self.part = False, "mark"
        else:
            self.part = "reasoning"
        self._is_first = False
        self.num_tokens += self.part != "answer"
