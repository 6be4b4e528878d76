"""Log probabilities of a prompt's own tokens, chunk by chunk.

The logits of a token tell how likely the next one was, so a chunk scores the tokens behind each of its own.
The first token of a prompt and those that stand for images have no probability.
"""

# N scored tokens, V vocabulary

from __future__ import annotations

from typing import Any, Final

import numpy as np

from python_backend.families.base import PreparedPrompt
from python_backend.sampler import with_logprobs
from python_backend.token_text import TokenText, finite_logprob

MAX_CHUNK_TOKENS: Final = 64
"""Longest chunk of a prompt that is scored: its logits are N times a whole vocabulary."""


def scored_tokens(prompt: PreparedPrompt, start: int, stop: int) -> np.ndarray:
    """int64 [N]: the tokens of the prompt that the logits of its tokens `start` to `stop` score."""
    followers = np.arange(start + 1, min(stop + 1, len(prompt.token_ids)))
    scored: np.ndarray = followers[prompt.image_index[followers] < 0]
    return scored


def prompt_logprobs(
    prompt: PreparedPrompt,
    start: int,
    stop: int,
    logits: np.ndarray,
    num_logprobs: int,
    token_text: TokenText,
) -> list[dict[int, dict[str, Any]]]:
    """An object for each token behind one of a chunk's, and for the first one of the prompt.

    Args:
        prompt: whose tokens.
        start: the chunk's first token.
        stop: the token after its last one.
        logits: float32 [N, V], before each of `scored_tokens`.
        num_logprobs: how many of the most likely tokens to report besides the prompt's own.
        token_text: of the model.

    Returns:
        As `RequestOutput.prompt_logprobs`.
    """

    def entry(token_id: int, logprob: float | None, rank: int | None) -> dict[str, Any]:
        text = token_text.to_text(token_id)
        return {"logprob": logprob, "rank": rank, "decoded_token": text}

    token_ids = prompt.token_ids.tolist()
    rows = dict(zip(scored_tokens(prompt, start, stop).tolist(), logits, strict=True))
    result = []
    for place in range(start + 1 if start else 0, min(stop + 1, len(token_ids))):
        token_id, row = token_ids[place], rows.get(place)
        if row is None or token_id >= len(row):  # ids that have no logit stand for images
            result.append({token_id: entry(token_id, None, None)})
            continue
        scored = with_logprobs(row, token_id, num_logprobs)
        assert scored.logprob is not None
        rank = int(np.count_nonzero(row > row[token_id])) + 1
        entries = {token_id: entry(token_id, finite_logprob(scored.logprob), rank)}
        for likely_rank, (likely, logprob) in enumerate(scored.top_logprobs or (), 1):
            entries.setdefault(likely, entry(likely, finite_logprob(logprob), likely_rank))
        result.append(entries)
    return result
