"""Logits to token ids: greedy or random, one row per choice, each independent of the others.

The order of operations on a row is vLLM's: logit bias, `min_tokens`, repetition, frequency and
presence penalties, the grammar, then temperature, top-k, top-p, min-p. Log probabilities are those
of the model, before any of it (vLLM's `raw_logprobs`).

Sorting a vocabulary of 150 000 tokens takes some 20 ms, so only the tokens that a cut may keep are
sorted. They are found by selection, and the result is that of a full sort.
"""

# R rows (one per running choice), V vocabulary, G groups, C candidate tokens

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from python_backend.errors import EngineError, InvalidRequestError
from python_backend.sampling_params import SamplingParams
from python_backend.structured_output import Constraint

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]

_BLOCK: Final = 256
"""Weights summed together in a draw from the whole vocabulary."""
_GROUP: Final = 32
"""Logits of which the selection of the largest keeps one."""
_NUM_LIKELY: Final = 256
"""Tokens sorted in the hope that they cover `top_p`: enough for most steps of a language model."""
_MIN_TEMPERATURE: Final = 1e-5
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
    """How often each of a growing set of tokens occurred, as arrays that index a row of logits."""

    def __init__(self, distinct_ids: Iterable[int] = ()) -> None:
        ids = np.fromiter(distinct_ids, dtype=np.int64)
        self._size = len(ids)
        self._ids = np.resize(ids, max(64, 2 * self._size))
        self._counts = np.ones(len(self._ids), dtype=np.float32)
        self._index = {token_id: i for i, token_id in enumerate(ids.tolist())}

    def add(self, token_id: int) -> None:
        index = self._index.get(token_id)
        if index is not None:
            self._counts[index] += 1
            return
        if self._size == len(self._ids):
            self._ids = np.resize(self._ids, 2 * self._size)
            self._counts = np.resize(self._counts, 2 * self._size)
        self._ids[self._size] = token_id
        self._counts[self._size] = 1
        self._index[token_id] = self._size
        self._size += 1

    @property
    def ids(self) -> _Ids:
        """int64 [C]: distinct tokens."""
        return self._ids[: self._size]

    @property
    def counts(self) -> _Floats:
        """float32 [C]: occurrences of each of `ids`."""
        return self._counts[: self._size]


class SamplerState:
    """What the sampler remembers of one choice: its random numbers and what it generated.

    A step costs time in proportion to the distinct tokens that penalties apply to, not to V.

    Args:
        params: of the request.
        prompt_token_ids: the repetition penalty applies to them; ids outside the vocabulary, as
            image placeholders may be, are left out.
        vocab_size: V.
        choice_index: which of the `params.n` choices; each draws other random numbers.
        eos_token_ids: not generated before `params.min_tokens` tokens, unless `params.ignore_eos`.
        constraint: what `params.grammar` was compiled to; this choice's own.

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
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.constraint = constraint
        self.num_output_tokens = 0
        self.generator = _new_generator(params.seed, choice_index)

        bias = dict(params.logit_bias)
        _check_in_vocabulary("logit_bias", bias, vocab_size)
        _check_in_vocabulary("stop_token_ids", params.stop_token_ids, vocab_size)
        self._bias_ids = np.array(list(bias), dtype=np.int64)
        self._bias = np.array(list(bias.values()), dtype=np.float32)
        end_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids.update(token_id for token_id in eos_token_ids if token_id < vocab_size)
        self._end_ids = np.array(sorted(end_ids), dtype=np.int64)

        self._output: _TokenCounts | None = None
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            self._output = _TokenCounts()
        self._seen: _TokenCounts | None = None
        if params.repetition_penalty != 1:
            prompt_ids = np.unique(np.asarray(prompt_token_ids, dtype=np.int64))
            self._seen = _TokenCounts(prompt_ids[(prompt_ids >= 0) & (prompt_ids < vocab_size)])
        self._has_constant_changes = (
            len(bias) > 0 or self._output is not None or self._seen is not None
        )

    def append(self, token_id: int) -> None:
        """Record a token that was added to the output."""
        self.num_output_tokens += 1
        if self.constraint is not None:
            self.constraint.append(token_id)
        if self._output is not None:
            self._output.add(token_id)
        if self._seen is not None:
            self._seen.add(token_id)

    @property
    def changes_logits(self) -> bool:
        """Whether `change_logits` has anything to do in this step."""
        return self._has_constant_changes or (
            self.num_output_tokens < self.params.min_tokens and len(self._end_ids) > 0
        )

    def change_logits(self, row: _Floats) -> None:
        """Apply bias, `min_tokens` and penalties.

        Args:
            row: float32 [V] logits. Modified in place.

        Source: repetition penalty: transformers 5.23 `RepetitionPenaltyLogitsProcessor`; frequency
        and presence penalty: the formula of the OpenAI API reference, over output tokens only.
        """
        params = self.params
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self.num_output_tokens < params.min_tokens:
            row[self._end_ids] = -np.inf
        if self._seen is not None:
            logits = row[self._seen.ids]
            penalty = np.float32(params.repetition_penalty)
            row[self._seen.ids] = np.where(logits > 0, logits / penalty, logits * penalty)
        if self._output is not None:
            row[self._output.ids] -= np.float32(
                params.frequency_penalty
            ) * self._output.counts + np.float32(params.presence_penalty)


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


class Sampler:
    """Chooses the next token of each choice.

    Holds buffers of one row, so that a step allocates little. Thread: the engine's only.
    """

    def __init__(self) -> None:
        self._weights = np.zeros((0, _BLOCK), dtype=np.float32)

    def sample(self, logits: _Floats, states: Sequence[SamplerState]) -> list[SampledToken]:
        """Choose one token per row; the caller appends it to the state if it is kept.

        A row's result depends on that row and its state only. Ties go to the lower id.

        Args:
            logits: float32 [R, V]; -inf excludes a token. Modified in place, except when read-only.
            states: one per row.

        Raises:
            EngineError: a logit is NaN or +inf, or a row excludes every token.
        """
        if not states:
            return []
        if logits.ndim != 2 or len(logits) != len(states) or logits.dtype != np.float32:
            raise EngineError(
                f"the sampler got {logits.dtype} logits {list(logits.shape)} for {len(states)} "
                "choices; it needs float32 with one row for each"
            )
        # A mask of finfo.min overflows to -inf, and small probabilities to 0: both as they should.
        with np.errstate(over="ignore", under="ignore"):
            return self._sample_rows(logits, states)

    def _sample_rows(self, logits: _Floats, states: Sequence[SamplerState]) -> list[SampledToken]:
        most_likely = logits.argmax(axis=1)
        # argmax finds NaN first, then +inf; a maximum of -inf has no token to take.
        is_finite = np.isfinite(logits[np.arange(len(logits)), most_likely])
        if not is_finite.all():
            rows = np.flatnonzero(~is_finite).tolist()
            raise EngineError(f"the logits of rows {rows} have no finite maximum")
        allowed = _allowed_tokens(states, logits.shape[1])
        return [
            self._sample_row(row, state, token_id, allowed.get(i))
            for i, (row, state, token_id) in enumerate(
                zip(logits, states, most_likely.tolist(), strict=True)
            )
        ]

    def _sample_row(
        self,
        row: _Floats,
        state: SamplerState,
        most_likely: int,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> SampledToken:
        num_logprobs = state.params.logprobs
        model_row = row
        if state.changes_logits or allowed is not None:
            if num_logprobs is not None or not row.flags.writeable:
                row = row.copy()
            state.change_logits(row)
            if allowed is not None:
                row[~allowed] = -np.inf
            most_likely = int(row.argmax())
            if not np.isfinite(row[most_likely]):
                raise EngineError(
                    "bias, penalties, min_tokens and grammar leave no token to choose"
                )
        greedy = state.params.is_greedy
        token_id = most_likely if greedy else self._draw(row, row[most_likely], state)
        if num_logprobs is None:
            return SampledToken(token_id)
        return _with_logprobs(model_row, token_id, num_logprobs)

    def _draw(self, row: _Floats, peak: np.float32, state: SamplerState) -> int:
        """Draw a token by inverse distribution function, with one random number in any case."""
        params = state.params
        point = state.generator.random()
        if params.top_k is not None and params.top_k < len(row):
            ids = largest_ids(row, params.top_k)
            weights = _exp_weights(row[ids], peak, params.temperature).astype(np.float64)
            total = float(weights.sum())
        else:
            blocks = self._all_weights(row, peak, params.temperature)
            if params.top_p == 1 and params.min_p == 0:
                return _draw_from_blocks(blocks, point)
            all_weights = blocks.reshape(-1)[: len(row)]
            total = float(blocks.sum(axis=1).sum(dtype=np.float64))
            ids = _likely_ids(row, all_weights, total, params.top_p, params.min_p)
            weights = all_weights[ids].astype(np.float64)
        sums = np.cumsum(weights)
        num_kept = len(ids)
        if params.top_p < 1:
            num_kept = min(num_kept, int(np.searchsorted(sums, params.top_p * total)) + 1)
        if params.min_p > 0:
            num_kept = min(num_kept, int(np.count_nonzero(weights >= params.min_p * weights[0])))
        sums = sums[:num_kept]
        return int(ids[np.searchsorted(sums, point * sums[-1], side="right")])

    def _all_weights(self, row: _Floats, peak: np.float32, temperature: float) -> _Floats:
        """float32 [V / _BLOCK rounded up, _BLOCK], zero behind V; valid until the next call."""
        num_blocks = -(-len(row) // _BLOCK)
        if len(self._weights) != num_blocks:
            self._weights = np.zeros((num_blocks, _BLOCK), dtype=np.float32)
        flat = self._weights.reshape(-1)
        _exp_weights(row, peak, temperature, out=flat[: len(row)])
        flat[len(row) :] = 0
        return self._weights


def _allowed_tokens(
    states: Sequence[SamplerState], vocab_size: int
) -> dict[int, npt.NDArray[np.bool_]]:
    """For each row whose grammar can be followed, bool [V]: the tokens that may come next."""
    rows, constraints = [], []
    for row, state in enumerate(states):
        if state.constraint is not None and not state.constraint.error:
            rows.append(row)
            constraints.append(state.constraint)
    if not rows:
        return {}
    masks = Constraint.allowed_tokens(constraints, vocab_size)
    return {
        row: mask
        for row, constraint, mask in zip(rows, constraints, masks, strict=True)
        if not constraint.error
    }


def _exp_weights(
    logits: _Floats,
    peak: np.float32,
    temperature: float,
    out: _Floats | None = None,
) -> _Floats:
    """float32 [C]: probabilities after temperature, times what makes the largest one 1."""
    out = np.subtract(logits, peak, out=out)
    if temperature != 1:
        out *= np.float32(1 / max(temperature, _MIN_TEMPERATURE))
    return np.exp(out, out=out)


def _draw_from_blocks(blocks: _Floats, point: float) -> int:
    """The index at share `point` of the sum of `blocks`: first the block, then the place in it.

    Args:
        blocks: float32 [num_blocks, _BLOCK] weights, not all zero.
        point: in [0, 1).
    """
    sums = np.cumsum(blocks.sum(axis=1), dtype=np.float64)
    target = point * sums[-1]
    block = int(np.searchsorted(sums, target, side="right"))
    before = float(sums[block - 1]) if block else 0.0
    point = (target - before) / (float(sums[block]) - before)
    sums = np.cumsum(blocks[block], dtype=np.float64)
    # Rounding may put the point at the end of the block: take the last weight then.
    last = int(np.searchsorted(sums, sums[-1]))
    return block * _BLOCK + min(int(np.searchsorted(sums, point * sums[-1], side="right")), last)


def _likely_ids(row: _Floats, weights: _Floats, total: float, top_p: float, min_p: float) -> _Ids:
    """int64 [C]: the most likely tokens, sorted, at least all that top-p and min-p keep.

    Args:
        row: float32 [V] logits. They order the tokens: close logits may have equal weights.
        weights: float32 [V], the largest one 1.
        total: their sum.
        top_p: the likeliest tokens have this share of `total`.
        min_p: the smallest weight to keep.
    """
    if top_p < 1:
        ids = largest_ids(row, min(_NUM_LIKELY, len(row)))
        if weights[ids].sum(dtype=np.float64) >= top_p * total or weights[ids[-1]] < min_p:
            return ids
    # All tokens below this weight together have less than the share 1 - top_p.
    lowest = max(min_p, (1 - top_p) * total / len(weights))
    ids = np.flatnonzero(weights >= np.float32(lowest) * np.float32(1 - 1e-6))
    likely: _Ids = ids[np.argsort(-row[ids], kind="stable")]
    return likely


def largest_ids(values: _Floats, count: int) -> _Ids:
    """int64 [count]: where the largest values are, largest first, lower index first among equals.

    Args:
        values: float32 [V].
        count: from 1 to V.
    """
    # The count-th largest of G group maxima is a lower bound of the count-th largest value, found
    # among G values instead of V.
    num_groups = len(values) // _GROUP
    if count * 2 <= num_groups:
        bounds = values[: num_groups * _GROUP].reshape(_GROUP, num_groups).max(axis=0)
    else:
        bounds = values
    bound = np.partition(bounds, len(bounds) - count)[len(bounds) - count]
    ids = np.flatnonzero(values >= bound)
    largest: _Ids = ids[np.argsort(-values[ids], kind="stable")[:count]]
    return largest


def _with_logprobs(row: _Floats, token_id: int, num_logprobs: int) -> SampledToken:
    """Attach log probabilities.

    Args:
        row: float32 [V] logits of the model.
        token_id: the chosen token.
        num_logprobs: how many of the most likely tokens to report.
    """
    peak = row.max()
    log_total = float(peak) + float(np.log(np.exp(row - peak).sum(dtype=np.float64)))
    ids: list[int] = []
    if num_logprobs > 0:
        ids = largest_ids(row, min(num_logprobs, len(row))).tolist()
    return SampledToken(
        token_id,
        float(row[token_id]) - log_total,
        tuple((i, float(row[i]) - log_total) for i in ids),
    )
