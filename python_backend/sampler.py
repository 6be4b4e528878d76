"""Logits to token ids: greedy or random, one row per choice, each independent of the others.

The order of operations on a row is vLLM's: logit bias, `min_tokens`, repetition, frequency and
presence penalties, the grammar, then temperature, top-k, top-p, min-p. Log probabilities are those
of the model, before any of it (vLLM's `raw_logprobs`).

Sorting a vocabulary of 150 000 tokens takes some 20 ms, so only the tokens that a cut may keep are
sorted. They are found by selection, and the result is that of a full sort. How many these are depends on
the logits, which only a host knows at once: for logits on a device see `device_sampler`.
"""

# R rows (one per running choice), V vocabulary, G groups, C candidate tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from python_backend import device_sampler
from python_backend.arrays import Array, array_module
from python_backend.errors import EngineError
from python_backend.sampler_state import (
    BLOCK,
    MIN_TEMPERATURE,
    SampledToken,
    SamplerState,
    apply_grammars,
)

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]

_GROUP: Final = 32
"""Logits of which the selection of the largest keeps one."""
_NUM_LIKELY: Final = 256
"""Tokens sorted in the hope that they cover `top_p`: enough for most steps of a language model."""


class Sampler:
    """Chooses the next token of each choice.

    Holds buffers of one row, so that a step allocates little. Thread: the engine's only.

    Args:
        array_module: of the logits, NumPy or CuPy, whose kernels are compiled here: no step waits for that.
    """

    def __init__(self, array_module: Any = np) -> None:
        if array_module is not np:
            device_sampler.compile_kernels(array_module)
        self._weights = np.zeros((0, BLOCK), dtype=np.float32)

    def sample(self, logits: Array, states: Sequence[SamplerState]) -> list[SampledToken]:
        """Choose one token per row; the caller appends it to the state if it is kept.

        A row's result depends on that row and its state only. Ties go to the lower id.

        Args:
            logits: float32 [R, V], on the host or a device; -inf excludes a token. Modified in place,
                except when read-only.
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
        apply_grammars(states, array_module(logits))
        if not isinstance(logits, np.ndarray):
            return device_sampler.sample(logits, states)
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
        return [
            self._sample_row(row, state, token_id)
            for row, state, token_id in zip(logits, states, most_likely.tolist(), strict=True)
        ]

    def _sample_row(self, row: _Floats, state: SamplerState, most_likely: int) -> SampledToken:
        num_logprobs = state.params.logprobs
        model_row = row
        if state.changes_logits:
            if num_logprobs is not None or not row.flags.writeable:
                row = row.copy()
            state.change_logits(row)
            most_likely = int(row.argmax())
            if not np.isfinite(row[most_likely]):
                raise EngineError(
                    "bias, penalties, min_tokens and grammar leave no token to choose"
                )
        greedy = state.params.is_greedy
        token_id = most_likely if greedy else self._draw(row, row[most_likely], state)
        if num_logprobs is None:
            return SampledToken(token_id)
        return with_logprobs(model_row, token_id, num_logprobs)

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
        """float32 [V / BLOCK rounded up, BLOCK], zero behind V; valid until the next call."""
        num_blocks = -(-len(row) // BLOCK)
        if len(self._weights) != num_blocks:
            self._weights = np.zeros((num_blocks, BLOCK), dtype=np.float32)
        flat = self._weights.reshape(-1)
        _exp_weights(row, peak, temperature, out=flat[: len(row)])
        flat[len(row) :] = 0
        return self._weights


def _exp_weights(
    logits: _Floats,
    peak: np.float32,
    temperature: float,
    out: _Floats | None = None,
) -> _Floats:
    """float32 [C]: probabilities after temperature, times what makes the largest one 1."""
    out = np.subtract(logits, peak, out=out)
    if temperature != 1:
        out *= np.float32(1 / max(temperature, MIN_TEMPERATURE))
    return np.exp(out, out=out)


def _draw_from_blocks(blocks: _Floats, point: float) -> int:
    """The index at share `point` of the sum of `blocks`: first the block, then the place in it.

    Args:
        blocks: float32 [num_blocks, BLOCK] weights, not all zero.
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
    return block * BLOCK + min(int(np.searchsorted(sums, point * sums[-1], side="right")), last)


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


def with_logprobs(row: _Floats, token_id: int, num_logprobs: int) -> SampledToken:
    """A token with its log probability and those of the most likely ones.

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
