"""What the sampler knows of one choice: its random numbers, its penalties, and what it generated.

The order of operations on a row of logits is vLLM's: logit bias, `min_tokens`, repetition, frequency and
presence penalties, the grammar.
"""

# V vocabulary, C distinct tokens that a penalty applies to, W 32-bit words with a bit for each token

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from python_backend.arrays import Array
from python_backend.errors import InvalidRequestError
from python_backend.reasoning import Reasoning
from python_backend.sampling_params import SamplingParams
from python_backend.structured_output import Constraint, unpack_tokens

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


@dataclass(frozen=True, slots=True)
class TokenCount:
    """An entry of `TokenCounts`.

    Attributes:
        position: its index.
        token_id: the token.
        count: how often it occurred.
    """

    position: int
    token_id: int
    count: int


class TokenCounts:
    """How often each of a growing set of tokens occurred, as arrays that index a row of logits.

    They lie where the logits do, so that a step moves one token at most.

    Attributes:
        addresses: on a device, of `ids` and of `counts`.
        unwritten: an entry that the arrays lack while they are on a device. A kernel that is launched anyway
            may write it; `write` does so with launches of its own.
    """

    def __init__(self, array_module: Any, distinct_ids: Iterable[int] = ()) -> None:
        ids = np.fromiter(distinct_ids, dtype=np.int64)
        self._xp = array_module
        self._positions = {token_id: i for i, token_id in enumerate(ids.tolist())}
        self._numbers = [1] * len(ids)
        self.unwritten: TokenCount | None = None
        self._keep(
            self._xp.asarray(np.resize(ids, max(64, 2 * len(ids)))),
            self._xp.ones(max(64, 2 * len(ids)), dtype=np.float32),
        )

    def _keep(self, ids: Array, counts: Array) -> None:
        self._ids, self._counts = ids, counts
        if self._xp is not np:
            self.addresses = ids.data.ptr, counts.data.ptr

    def add(self, token_id: int) -> None:
        """Count a token once more."""
        self.write()
        position = self._positions.setdefault(token_id, self.size)
        if position == len(self._numbers):
            self._numbers.append(0)
            self._make_room()
        self._numbers[position] += 1
        self.unwritten = TokenCount(position, token_id, self._numbers[position])
        if self._xp is np:
            self.write()

    def _make_room(self) -> None:
        if self.size > len(self._ids):
            arrays = (self._ids, self._counts)
            self._keep(*(self._xp.resize(array, 2 * self.size) for array in arrays))

    def write(self) -> None:
        """Write what is `unwritten`."""
        entry, self.unwritten = self.unwritten, None
        if entry is not None:
            self._ids[entry.position] = entry.token_id
            self._counts[entry.position] = entry.count

    @property
    def size(self) -> int:
        """C."""
        return len(self._positions)

    @property
    def ids(self) -> Array:
        """int64 [C]: distinct tokens."""
        return self._ids[: self.size]

    @property
    def counts(self) -> Array:
        """float32 [C]: occurrences of each of `ids`."""
        return self._counts[: self.size]


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

    Attributes:
        bias_ids: int64, tokens with a bias.
        bias: float32, of each of them.
        end_ids: int64, tokens that end the choice; excluded while it `cannot_end`.
        seen: tokens that the repetition penalty applies to, if there is one.
        output: tokens that the frequency and presence penalties apply to, if there are any.
        allowed: uint32 [W], a bit for each token that the grammar allows in this step; None for all.

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
        self.allowed: Array | None = None
        xp = array_module
        self.num_output_tokens = 0
        self.generator = _new_generator(params.seed, choice_index)

        bias = dict(params.logit_bias)
        _check_in_vocabulary("logit_bias", bias, vocab_size)
        _check_in_vocabulary("stop_token_ids", params.stop_token_ids, vocab_size)
        self.bias_ids = xp.asarray(np.array(list(bias), dtype=np.int64))
        self.bias = xp.asarray(np.array(list(bias.values()), dtype=np.float32))
        end_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids.update(token_id for token_id in eos_token_ids if token_id < vocab_size)
        self.end_ids = xp.asarray(np.array(sorted(end_ids), dtype=np.int64))

        self.output: TokenCounts | None = None
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            self.output = TokenCounts(xp)
        self.seen: TokenCounts | None = None
        if params.repetition_penalty != 1:
            prompt_ids = np.unique(np.asarray(prompt_token_ids, dtype=np.int64))
            in_vocabulary = (prompt_ids >= 0) & (prompt_ids < vocab_size)
            self.seen = TokenCounts(xp, prompt_ids[in_vocabulary])
        self._has_constant_changes = (
            len(bias) > 0 or self.output is not None or self.seen is not None
        )

    def append(self, token_id: int) -> None:
        """Record a token that was added to the output."""
        self.num_output_tokens += 1
        self.allowed = None
        if self.reasoning is not None:
            self.reasoning.append(token_id)
        if self.constraint is not None and self._is_answer:
            self.constraint.append(token_id)
        if self.output is not None:
            self.output.add(token_id)
        if self.seen is not None:
            self.seen.add(token_id)

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
    def cannot_end(self) -> bool:
        """Whether no token may end the choice now: it is too short, or the grammar has yet to begin."""
        is_short = self.num_output_tokens < self.params.min_tokens
        waits = (
            self.constraint is not None and self.reasoning is not None and self.reasoning.is_open
        )
        return (is_short or waits) and len(self.end_ids) > 0

    @property
    def penalties(self) -> tuple[float, float, float]:
        """Repetition, frequency, presence."""
        params = self.params
        return params.repetition_penalty, params.frequency_penalty, params.presence_penalty

    @property
    def changes_logits(self) -> bool:
        """Whether `change_logits` has anything to do in this step."""
        return self._has_constant_changes or self.allowed is not None or self.cannot_end

    def change_logits(self, row: np.ndarray) -> None:
        """Apply bias, `min_tokens`, penalties and grammar, on the host.

        Args:
            row: float32 [V] logits. Modified in place.

        Source: repetition penalty: transformers 5.23 `RepetitionPenaltyLogitsProcessor`; frequency
        and presence penalty: the formula of the OpenAI API reference, over output tokens only.
        """
        params = self.params
        if len(self.bias_ids):
            row[self.bias_ids] += self.bias
        if self.cannot_end:
            row[self.end_ids] = -np.inf
        if self.seen is not None:
            logits = row[self.seen.ids]
            penalty = np.float32(params.repetition_penalty)
            row[self.seen.ids] = np.where(logits > 0, logits / penalty, logits * penalty)
        if self.output is not None:
            row[self.output.ids] -= self.output.counts * np.float32(
                params.frequency_penalty
            ) + np.float32(params.presence_penalty)
        if self.allowed is not None:
            row[~unpack_tokens(self.allowed, len(row))] = -np.inf


def apply_grammars(states: Sequence[SamplerState], array_module: Any) -> None:
    """Tell the states with a grammar which tokens may come next, all in one go.

    One whose grammar can no longer be followed is left as it is: its `constraint` has an `error`.
    A token that opens the reasoning may always come.

    Args:
        states: of one model.
        array_module: of the logits, NumPy or CuPy.
    """
    bound = [state for state in states if state.is_bound]
    if not bound:
        return
    constraints = [state.constraint for state in bound if state.constraint]
    masks = Constraint.allowed_tokens(constraints)
    for state, mask in zip(bound, masks, strict=True):
        if state.reasoning is not None and (opening_id := state.reasoning.opening_id) is not None:
            mask[opening_id // 32] |= np.uint32(1 << opening_id % 32)
    masks = array_module.asarray(masks)
    for row, (state, constraint) in enumerate(zip(bound, constraints, strict=True)):
        if not constraint.error:
            state.allowed = masks[row]


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
