"""`sampler` for logits on a device: the same tokens for the same random numbers, up to rounding.

On a host rows are cheap loops and selection beats sorting. On a device every operation is a launch, and every
size that depends on a value makes the host wait. So here all rows go together, no shape depends on a logit,
tokens are drawn by kernels of our own, and what the host needs is copied once: token ids, and log
probabilities if a row asks for them.
"""

# R rows (one per running choice), N of them that report log probabilities, V vocabulary, K reported tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from python_backend import draw_kernels, logit_kernels
from python_backend.arrays import Array, array_module, to_host
from python_backend.draw_kernels import draw
from python_backend.errors import EngineError
from python_backend.kernels import NO_MAXIMUM, NO_TOKEN
from python_backend.logit_kernels import change_logits, logprobs, take_likeliest
from python_backend.sampler_state import SampledToken, SamplerState


def compile_kernels(xp: Any) -> None:
    """Compile all that `sample` launches, so that no step waits for it."""
    logit_kernels.compile_kernels(xp)
    draw_kernels.compile_kernels(xp)


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
    chosen = xp.zeros(len(states), np.int64)
    change_logits(logits, states, chosen)
    take_likeliest(logits, chosen)
    draw(logits, states, chosen)
    token_ids: list[int] = to_host(chosen).tolist()
    _check(token_ids)
    tokens = [SampledToken(token_id) for token_id in token_ids]
    if model_logits is not None:
        counts = [states[i].params.logprobs or 0 for i in reported]
        num_likely = min(max(counts), logits.shape[1])
        report = to_host(logprobs(model_logits, _rows(chosen, reported), num_likely))
        for i, count, row in zip(reported, counts, report, strict=True):
            tokens[i] = _with_logprobs(token_ids[i], count, row)
    return tokens


def _check(token_ids: Sequence[int]) -> None:
    rows = [i for i, token_id in enumerate(token_ids) if token_id == NO_MAXIMUM]
    if rows:
        raise EngineError(f"the logits of rows {rows} have no finite maximum")
    if NO_TOKEN in token_ids:
        raise EngineError("bias, penalties, min_tokens and grammar leave no token to choose")


def _rows(array: Array, rows: Sequence[int]) -> Array:
    """Some rows of `array`, ascending; the array itself if they are all."""
    return array if len(rows) == len(array) else array[list(rows)]


def _with_logprobs(token_id: int, count: int, row: np.ndarray) -> SampledToken:
    """Attach one row of `logprobs`, `count` of its likeliest tokens."""
    num_likely = len(row) // 2
    logprobs_of_likely = row[1 : 1 + num_likely].tolist()
    ids = row[1 + num_likely :].astype(np.int64).tolist()
    return SampledToken(
        token_id, float(row[0]), tuple(zip(ids[:count], logprobs_of_likely[:count], strict=True))
    )
