"""What the sampler knows of one choice: its random numbers, its penalties, and what it generated.

The order of operations on a row of logits is vLLM's: logit bias, `min_tokens`, repetition, frequency and
presence penalties, the grammar.
"""

# V vocabulary, C distinct tokens that a penalty applies to

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from python_backend.arrays import Array
from python_backend.errors import InvalidRequestError
from python_backend.reasoning import Reasoning
from python_backend.sampling_params import SamplingParams
from python_backend.structured_output import Constraint

BLOCK: Final = 256
"""Weights summed together in a draw from the whole vocabulary."""
MIN_TEMPERATURE: Final = 1e-5
"""Below, float32 overflows; the draw is as good as greedy already here."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One generated token.

    Attributes:
        token_id: the token.
        logprob: natural logarithm of the model's probability; None if not asked for.
        top_logprobs: the `SamplingParams.logprobs` most likely tokens and their logprobs, most
            likely first, lower id first among equals; None if not asked for.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None


class _TokenCounts:
    """How often each of a growing set of tokens occurred, as arrays that index a row of logits.

    They lie where the logits do, so that a step moves one token at most.
    """

    def __init__(self, array_module: Any, distinct_ids: Iterable[int] = ()) -> None:
        ids = np.fromiter(distinct_ids, dtype=np.int64)
        self._xp = array_module
        self._size = len(ids)
        self._ids = self._xp.asarray(np.resize(ids, max(64, 2 * self._size)))
        self._counts = self._xp.ones(len(self._ids), dtype=np.float32)
        self._index = {token_id: i for i, token_id in enumerate(ids.tolist())}

    def add(self, token_id: int) -> None:
        index = self._index.get(token_id)
        if index is not None:
            self._counts[index] += 1
            return
        if self._size == len(self._ids):
            self._ids = self._xp.resize(self._ids, 2 * self._size)
            self._counts = self._xp.resize(self._counts, 2 * self._size)
        self._ids[self._size] = token_id
        self._counts[self._size] = 1
        self._index[token_id] = self._size
        self._size += 1

    @property
    def ids(self) -> Array:
        """int64 [C]: distinct tokens."""
        return self._ids[: self._size]

    @property
    def counts(self) -> Array:
        """float32 [C]: occurrences of each of `ids`."""
        return self._counts[: self._size]


class SamplerState:
    """What the sampler remembers of one choice: its random numbers and what it generated.

    Random numbers are the host's wherever the logits are, so that a seed gives the same tokens everywhere.

    A step costs time in proportion to the distinct tokens that penalties apply to, not to V.

    Args:
        params: of the request.
        prompt_token_ids: the repetition penalty applies to them; ids outside the vocabulary, as
            image placeholders may be, are left out.
        vocab_size: V.
        choice_index: which of the `params.n` choices; each draws other random numbers.
        eos_token_ids: not generated before `params.min_tokens` tokens, unless `params.ignore_eos`.
        array_module: of the logits, NumPy or CuPy.
        constraint: what `params.grammar` was compiled to; this choice's own. It begins after the reasoning.
        reasoning: where the choice is in its reasoning; None for a model without.

    Raises:
        InvalidRequestError: a token id in `params` is outside the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
        choice_index: int,
        eos_token_ids: Iterable[int],
        array_module: Any = np,
        constraint: Constraint | None = None,
        reasoning: Reasoning | None = None,
    ) -> None:
        self.params = params
        self.constraint = constraint
        self.reasoning = reasoning
        self._allowed: Array | None = None
        self._xp = xp = array_module
        self.num_output_tokens = 0
        self.generator = _new_generator(params.seed, choice_index)

        bias = dict(params.logit_bias)
        _check_in_vocabulary("logit_bias", bias, vocab_size)
        _check_in_vocabulary("stop_token_ids", params.stop_token_ids, vocab_size)
        self._bias_ids = xp.asarray(np.array(list(bias), dtype=np.int64))
        self._bias = xp.asarray(np.array(list(bias.values()), dtype=np.float32))
        end_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids.update(token_id for token_id in eos_token_ids if token_id < vocab_size)
        self._end_ids = xp.asarray(np.array(sorted(end_ids), dtype=np.int64))

        self._output: _TokenCounts | None = None
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            self._output = _TokenCounts(xp)
        self._seen: _TokenCounts | None = None
        if params.repetition_penalty != 1:
            prompt_ids = np.unique(np.asarray(prompt_token_ids, dtype=np.int64))
            in_vocabulary = (prompt_ids >= 0) & (prompt_ids < vocab_size)
            self._seen = _TokenCounts(xp, prompt_ids[in_vocabulary])
        self._has_constant_changes = (
            len(bias) > 0 or self._output is not None or self._seen is not None
        )

    def append(self, token_id: int) -> None:
        """Record a token that was added to the output."""
        self.num_output_tokens += 1
        self._allowed = None
        if self.reasoning is not None:
            self.reasoning.append(token_id)
        if self.constraint is not None and self._is_answer:
            self.constraint.append(token_id)
        if self._output is not None:
            self._output.add(token_id)
        if self._seen is not None:
            self._seen.add(token_id)

    @property
    def _is_answer(self) -> bool:
        return self.reasoning is None or self.reasoning.part == "answer"

    @property
    def is_bound(self) -> bool:
        """Whether the grammar says which tokens may come next."""
        if self.constraint is None or self.constraint.error:
            return False
        return self.reasoning is None or not self.reasoning.is_open

    @property
    def _cannot_end(self) -> bool:
        """Whether no token may end the choice now: it is too short, or the grammar has yet to begin."""
        is_short = self.num_output_tokens < self.params.min_tokens
        waits = (
            self.constraint is not None and self.reasoning is not None and self.reasoning.is_open
        )
        return (is_short or waits) and len(self._end_ids) > 0

    @property
    def changes_logits(self) -> bool:
        """Whether `change_logits` has anything to do in this step."""
        return self._has_constant_changes or self._allowed is not None or self._cannot_end

    def allow(self, mask: np.ndarray) -> None:
        """Let `change_logits` exclude all other tokens in this step, but for one that opens the reasoning.

        Args:
            mask: bool [V]. Modified in place.
        """
        if self.reasoning is not None and self.reasoning.opening_id is not None:
            mask[self.reasoning.opening_id] = True
        self._allowed = self._xp.asarray(mask)

    def change_logits(self, row: Array) -> None:
        """Apply bias, `min_tokens`, penalties and grammar.

        Args:
            row: float32 [V] logits. Modified in place.

        Source: repetition penalty: transformers 5.23 `RepetitionPenaltyLogitsProcessor`; frequency
        and presence penalty: the formula of the OpenAI API reference, over output tokens only.
        """
        params = self.params
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self._cannot_end:
            row[self._end_ids] = -np.inf
        if self._seen is not None:
            logits = row[self._seen.ids]
            penalty = np.float32(params.repetition_penalty)
            row[self._seen.ids] = self._xp.where(logits > 0, logits / penalty, logits * penalty)
        if self._output is not None:
            row[self._output.ids] -= self._output.counts * np.float32(
                params.frequency_penalty
            ) + np.float32(params.presence_penalty)
        if self._allowed is not None:
            row[~self._allowed] = -np.inf


def apply_grammars(states: Sequence[SamplerState], vocab_size: int) -> None:
    """Tell the states with a grammar which tokens may come next, all in one go.

    One whose grammar can no longer be followed is left as it is: its `constraint` has an `error`.
    """
    bound = [state for state in states if state.is_bound]
    if not bound:
        return
    constraints = [state.constraint for state in bound if state.constraint]
    masks = Constraint.allowed_tokens(constraints, vocab_size)
    for state, constraint, mask in zip(bound, constraints, masks, strict=True):
        if not constraint.error:
            state.allow(mask)


def _new_generator(seed: int | None, choice_index: int) -> np.random.Generator:
    if seed is None:
        return np.random.Generator(np.random.PCG64())
    # SeedSequence takes no negative numbers.
    return np.random.Generator(np.random.PCG64([seed % 2**64, choice_index]))


def _check_in_vocabulary(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"{param} has the token id {token_id}; the vocabulary has {vocab_size} tokens",
                param=param,
            )
