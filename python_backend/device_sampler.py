"""`sampler` for logits on a device: the same tokens for the same random numbers, up to rounding.

On a host rows are cheap loops and selection beats sorting. On a device every operation is a launch, and every
size that depends on a value makes the host wait. So here all rows go together, no shape depends on a logit,
rows without cuts are drawn by one kernel, those with cuts are sorted whole (some 60 bytes of memory per logit
meanwhile), and what the host needs is copied once: token ids, and log probabilities if a row asks for them.
"""

# R rows (one per running choice), N of them that are drawn, V vocabulary, K reported tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from python_backend.arrays import Array, array_module, to_host
from python_backend.draw_kernel import draw
from python_backend.errors import EngineError
from python_backend.sampler_state import MIN_TEMPERATURE, SampledToken, SamplerState

_NO_MAXIMUM: Final = -1
"""In place of a token id: the model's logits are not numbers, or exclude every token."""
_NO_TOKEN: Final = -2
"""In place of a token id: what the request asks for excludes every token."""


def sample(logits: Array, states: Sequence[SamplerState]) -> list[SampledToken]:
    """Choose one token per row; see `Sampler.sample`.

    Args:
        logits: float32 [R, V] on a device. Modified in place.
        states: one per row.

    Raises:
        EngineError: a logit is NaN or +inf, or a row excludes every token.
    """
    xp = array_module(logits)
    reported = [i for i, state in enumerate(states) if state.params.logprobs is not None]
    model_logits = logits[reported] if reported else None  # copies
    has_maximum = xp.isfinite(logits.max(axis=1))
    has_token = has_maximum
    changed = [i for i, state in enumerate(states) if state.changes_logits]
    for i in changed:
        states[i].change_logits(logits[i])
    if changed:
        has_token = xp.isfinite(logits.max(axis=1))
    chosen = _choose(logits, states)
    chosen = xp.where(has_token, chosen, _NO_TOKEN)
    chosen = xp.where(has_maximum, chosen, _NO_MAXIMUM)
    token_ids: list[int] = to_host(chosen).tolist()
    _check(token_ids)
    tokens = [SampledToken(token_id) for token_id in token_ids]
    if model_logits is not None:
        counts = [states[i].params.logprobs or 0 for i in reported]
        report = to_host(_report(model_logits, _rows(chosen, reported), max(counts)))
        for i, count, row in zip(reported, counts, report, strict=True):
            tokens[i] = _with_logprobs(token_ids[i], count, row)
    return tokens


def _check(token_ids: Sequence[int]) -> None:
    rows = [i for i, token_id in enumerate(token_ids) if token_id == _NO_MAXIMUM]
    if rows:
        raise EngineError(f"the logits of rows {rows} have no finite maximum")
    if _NO_TOKEN in token_ids:
        raise EngineError("bias, penalties, min_tokens and grammar leave no token to choose")


def _rows(array: Array, rows: Sequence[int]) -> Array:
    """Some rows of `array`, ascending; the array itself if they are all."""
    return array if len(rows) == len(array) else array[list(rows)]


def _choose(logits: Array, states: Sequence[SamplerState]) -> Array:
    """int64 [R]: the token of each row, whatever the row holds."""
    chosen = logits.argmax(axis=1)
    whole: list[int] = []
    cut: list[int] = []
    for i, state in enumerate(states):
        if not state.params.is_greedy:
            (cut if _cuts(state, logits.shape[1]) else whole).append(i)
    if whole:
        draw(logits, states, whole, chosen)
    if cut:
        drawn = _draw_from_likeliest(_rows(logits, cut), _settings(logits, states, cut))
        if len(cut) == len(states):
            return drawn
        chosen[cut] = drawn
    return chosen


def _cuts(state: SamplerState, vocab_size: int) -> bool:
    params = state.params
    has_top_k = params.top_k is not None and params.top_k < vocab_size
    return has_top_k or params.top_p < 1 or params.min_p > 0


class _Settings:
    """What `_choose` needs of the states of some rows, moved to the device at once.

    Attributes:
        point: float64 [N], a random number in [0, 1).
        inverse_temperature: float32 [N].
        top_p: float64 [N], 1 for no cut.
        min_p: float64 [N], 0 for no cut.
        top_k: int64 [N], V for no cut.
    """

    def __init__(self, xp: Any, values: np.ndarray) -> None:
        on_device = xp.asarray(values)
        self.point, inverse, self.top_p, self.min_p, top_k = (on_device[i] for i in range(5))
        self.inverse_temperature, self.top_k = inverse.astype(np.float32), top_k.astype(np.int64)


def _settings(logits: Array, states: Sequence[SamplerState], rows: Sequence[int]) -> _Settings:
    vocab_size = logits.shape[1]
    values = np.empty((5, len(rows)))
    for column, row in enumerate(rows):
        params = states[row].params
        values[:, column] = (
            states[row].generator.random(),
            1 / max(params.temperature, MIN_TEMPERATURE),
            params.top_p,
            params.min_p,
            min(params.top_k or vocab_size, vocab_size),
        )
    return _Settings(array_module(logits), values)


def _exp_weights(logits: Array, peak: Array, settings: _Settings) -> Array:
    """float32 [N, V]: probabilities after temperature, times what makes a row's largest one 1."""
    xp = array_module(logits)
    return xp.exp((logits - peak) * settings.inverse_temperature[:, None])


def _draw_from_likeliest(logits: Array, settings: _Settings) -> Array:
    """int64 [N]: a token of those that top-k, top-p and min-p keep."""
    xp = array_module(logits)
    order = xp.argsort(-logits, axis=1, kind="stable")
    ranked = xp.take_along_axis(logits, order, axis=1)
    weights = _exp_weights(ranked, ranked[:, :1], settings).astype(np.float64)
    sums = xp.cumsum(weights, axis=1)
    top_k, top_p, min_p = settings.top_k, settings.top_p, settings.min_p
    share = top_p * _at(sums, top_k - 1)
    num_likely = (sums < share[:, None]).sum(axis=1) + 1
    num_kept = xp.minimum(top_k, xp.where(top_p < 1, num_likely, top_k))
    num_above = (weights >= (min_p * weights[:, 0])[:, None]).sum(axis=1)
    num_kept = xp.minimum(num_kept, xp.where(min_p > 0, num_above, top_k))
    target = settings.point * _at(sums, num_kept - 1)
    return _at(order, (sums <= target[:, None]).sum(axis=1))


def _at(array: Array, columns: Array) -> Array:
    """[N]: one column of each row of `array` [N, M]."""
    return array_module(array).take_along_axis(array, columns[:, None], axis=1)[:, 0]


def _report(logits: Array, token_ids: Array, num_likely: int) -> Array:
    """float64 [N, 1 + 2 K]: log probabilities of the token and of the K likeliest, then the ids of these."""
    xp = array_module(logits)
    peak = logits.max(axis=1)[:, None]
    total = xp.exp(logits - peak).sum(axis=1, dtype=np.float64)
    log_total = peak.astype(np.float64) + xp.log(total)[:, None]
    ids = token_ids[:, None]
    if num_likely:
        order = xp.argsort(-logits, axis=1, kind="stable")
        ids = xp.concatenate([ids, order[:, :num_likely]], axis=1)
    logprobs = xp.take_along_axis(logits, ids, axis=1).astype(np.float64) - log_total
    return xp.concatenate([logprobs, ids[:, 1:].astype(np.float64)], axis=1)


def _with_logprobs(token_id: int, count: int, row: np.ndarray) -> SampledToken:
    """Attach one row of `_report`, `count` of its likeliest tokens."""
    num_likely = len(row) // 2
    logprobs = row[1 : 1 + num_likely].tolist()
    ids = row[1 + num_likely :].astype(np.int64).tolist()
    return SampledToken(
        token_id, float(row[0]), tuple(zip(ids[:count], logprobs[:count], strict=True))
    )
