"""`sampler` for logits on a device: the same tokens for the same random numbers, up to rounding.

On a host rows are cheap loops and selection beats sorting. On a device every operation is a launch, and every
size that depends on a value makes the host wait. So here all rows go together, no shape depends on a logit,
tokens are drawn by kernels of our own, and what the host needs is copied once: token ids, and log
probabilities if a row asks for them.
"""

# R rows (one per running choice), N of them that are drawn, V vocabulary, K reported tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from python_backend.arrays import Array, array_module, to_host
from python_backend.draw_kernels import draw
from python_backend.errors import EngineError
from python_backend.sampler_state import SampledToken, SamplerState

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
    chosen = logits.argmax(axis=1)
    draw(logits, states, chosen)
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
