"""What the scheduler knows of requests and of their choices, the n answers of each: counts of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from python_backend.prefix_cache import Key


class FinishReason(StrEnum):
    """Why a choice ended, in OpenAI's words; `CANCELLED` never reaches a client."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class Choice:
    """One of the n answers of a request.

    Attributes:
        request: whose answer it is.
        index: 0 to n - 1.
        slot: its cache row, None unless running.
        output_token_ids: tokens sampled so far; the last one is not in the cache yet.
        finish_reason: None while it runs.
    """

    request: Request
    index: int
    slot: int | None = None
    output_token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.output_token_ids)

    @property
    def num_tokens_left(self) -> int:
        """Tokens that may still be sampled."""
        return self.request.max_tokens - self.num_output_tokens

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose keys and values are in the cache; behind them it may hold guesses that were wrong."""
        return self.request.num_computed_tokens + max(self.num_output_tokens - 1, 0)


@dataclass(slots=True, eq=False)
class Request:
    """What the scheduler knows of a request.

    Attributes:
        request_id: unique among the requests it holds.
        num_prompt_tokens: image placeholders included.
        max_tokens: output tokens per choice, at most.
        stop_token_ids: tokens that end a choice.
        num_choices: answers to generate.
        whole_ranges: parts of the prompt, as (first token, token after the last), in order, that are
            computed in one step each even if that takes a longer chunk.
        key: what its prompt is compared with others by; None shares nothing.
        priority: who waits is admitted in this order, the lowest first.
        caller: whom it is for.
        max_chunk_tokens: longest prefill chunk, but for parts that must be whole; None: the scheduler's.
        num_cached_tokens: prompt tokens that another request had computed.
        num_computed_tokens: prompt tokens in the cache so far.
        arrival: when it came, in prompt tokens that the scheduler had computed by then.
        rank: its place among those that wait.
        choices: the answers.
    """

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    num_choices: int = 1
    whole_ranges: tuple[tuple[int, int], ...] = ()
    key: Key | None = None
    priority: int = 0
    caller: str | None = None
    max_chunk_tokens: int | None = None
    num_cached_tokens: int = 0
    num_computed_tokens: int = 0
    arrival: int = 0
    rank: tuple[int, float] = (0, 0.0)
    choices: list[Choice] = field(init=False)

    def __post_init__(self) -> None:
        self.choices = [Choice(self, index) for index in range(self.num_choices)]

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def chunk_end(self, num_tokens: int) -> int:
        """Where a chunk of about `num_tokens` that begins at the first uncomputed token ends."""
        start = self.num_computed_tokens
        num_tokens = min(num_tokens, self.max_chunk_tokens or num_tokens)
        end = min(start + num_tokens, self.num_prompt_tokens)
        for first, after in self.whole_ranges:
            if first < end < after:
                return first if first > start else after
        return end

    def num_common_tokens(self, choice: Choice) -> int:
        """How many of the prompt's first tokens can be taken from the row of `choice`.

        One token at least is left to compute, because there would be no logits otherwise.
        """
        other = choice.request
        if self.key is None or other.key is None:
            return 0
        num_tokens = min(
            self.key.num_common(other.key, choice.output_token_ids),
            choice.num_computed_tokens,
            self.num_prompt_tokens - 1,
        )
        for first, after in self.whole_ranges:
            if first < num_tokens < after:
                return first
        return num_tokens
