"""What the engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from python_backend.arrays import Array
from python_backend.errors import VlmError
from python_backend.families.base import PreparedPrompt
from python_backend.sampling_params import SamplingParams
from python_backend.structured_output import Constraint
from python_backend.timing import Timing

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prepared prompt with its image embeddings, ready for the decoder.

    Attributes:
        request_id: unique among the requests under way.
        prompt: token ids, image index and positions.
        image_embeds: [num_embeds, hidden_size], on the host or where the decoder computes; no rows for a
            request without images.
        params: how to sample.
        constraint: what `params.grammar` was compiled to; None without one.
    """

    request_id: str
    prompt: PreparedPrompt
    image_embeds: Array
    params: SamplingParams
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one choice.

    Attributes:
        prompt_tokens: image placeholders included.
        completion_tokens: of this choice, the token that ended it included.
        image_tokens: how many of the prompt tokens stand for images.
        video_tokens: and for videos.
        cached_tokens: prompt tokens that were not computed because a cache row already held them.
        reasoning_tokens: how many of the completion tokens are the model's reasoning, marks included.
        draft_tokens: tokens that were guessed, and computed together with the one before.
        accepted_draft_tokens: how many of them the model chose.
    """

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    video_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What is new for one choice since its last output.

    Attributes:
        request_id: whose.
        index: which of its choices.
        text: of the answer, follows the text sent before; may be empty.
        token_ids: tokens this output covers.
        logprobs: one OpenAI token object per token, None if not asked for.
        finish_reason: `stop` or `length` on the choice's last output, else None.
        matched_stop: the stop token id or string that ended it, if one did.
        usage: on the choice's first and last outputs; the first one's is out of date after a merge but
            for the prompt.
        is_last: whether no choice of the request has anything more to come.
        prompt_token_ids: on the first output of the request's first choice, if asked for.
        prompt_logprobs: of the prompt tokens that this output covers, if asked for; only of the first
            choice. Each is vLLM's object of token ids, the prompt's own token first, to `logprob` (None
            for the first token of a prompt and for images), `rank` and `decoded_token`.
        reasoning: of the model, likewise; its end is before the beginning of `text`.
        timing: on the request's last output, if asked for.
    """

    request_id: str
    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[dict[str, Any]] | None = None
    finish_reason: str | None = None
    matched_stop: int | str | None = None
    usage: Usage | None = None
    is_last: bool = False
    prompt_token_ids: Sequence[int] | None = None
    prompt_logprobs: Sequence[dict[int, dict[str, Any]]] | None = None
    reasoning: str = ""
    timing: Timing | None = None

    def merge(self, *later: RequestOutput) -> RequestOutput:
        """This output and later ones of the same choice, in their order, as one."""
        outputs = (self, *later)
        last = outputs[-1]
        return RequestOutput(
            self.request_id,
            self.index,
            "".join([output.text for output in outputs]),
            list(chain.from_iterable([output.token_ids for output in outputs])),
            _joined([output.logprobs for output in outputs]),
            last.finish_reason,
            last.matched_stop,
            next((output.usage for output in reversed(outputs) if output.usage), None),
            last.is_last,
            _joined([output.prompt_token_ids for output in outputs]),
            _joined([output.prompt_logprobs for output in outputs]),
            "".join([output.reasoning for output in outputs]),
            last.timing,
        )


def _joined(parts: Sequence[Sequence[_T] | None]) -> Sequence[_T] | None:
    present = [part for part in parts if part is not None]
    return list(chain.from_iterable(present)) if present else None


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """A request that ended without its answer.

    Attributes:
        request_id: whose.
        error: what to tell the client.
    """

    request_id: str
    error: VlmError
