"""What is remembered of one HTTP request for its log line and the metrics: numbers, no content."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from openai_frontend.api_keys import ApiKey
from openai_frontend.backend import Timing
from openai_frontend.quota import Quota

GENERATION_ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"}
)
PROMPT_ENDPOINTS = GENERATION_ENDPOINTS | {
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
}
ENDPOINTS = PROMPT_ENDPOINTS | {
    "/v1/responses/{id}",
    "/v1/responses/{id}/cancel",
    "/v1/responses/{id}/input_items",
    "/v1/models",
    "/v1/models/{model}",
    "/health/live",
    "/health/ready",
    "/health/generate",
    "/version",
    "/openapi.json",
    "/metrics",
}
CLIENT_CLOSED_REQUEST = 499
"""Not an HTTP status that anyone receives: nginx's number for a client that left first."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Filled in while a request is served.

    Attributes:
        request_id: the client's `X-Request-Id`, or a generated one.
        backend_request_id: Triton's id of the generation; unlike `request_id` always unique.
        endpoint: route the request belongs to, `other` for an unknown path.
        api_key: what the client showed, None where none is needed.
        status: HTTP status sent, None before the headers.
        error: code of an error after the headers, `cancelled` when the client left.
        model: model asked for, once it is known to exist.
        prompt_tokens: of the request, counted once for all choices.
        completion_tokens: of all choices.
        cached_tokens: those of the prompt tokens that were in the KV cache.
        draft_tokens: tokens that the engine guessed.
        accepted_draft_tokens: how many of them were right.
        num_choices: choices that ended.
        finish_reasons: of the choices that ended.
        traceparent: its span in W3C's form, None when it is not traced.
        timing: what the decoder tells of a traced request at its end.
        num_prompt_tokens_estimated: of the prompt, before it was tokenized.
        num_reserved_tokens: taken from the quota of the key until the end.
    """

    request_id: str
    backend_request_id: str
    endpoint: str
    api_key: ApiKey | None = None
    status: int | None = None
    error: str | None = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    num_choices: int = 1
    finish_reasons: list[str] = field(default_factory=list)
    traceparent: str | None = None
    timing: Timing | None = None
    num_prompt_tokens_estimated: int = 0
    num_reserved_tokens: int = 0
    _num_arrived_tokens: int = 0
    _started_at: float = field(default_factory=time.perf_counter)
    _first_token_at: float | None = None
    _last_token_at: float | None = None

    @property
    def is_generation(self) -> bool:
        """Whether the request asks for text."""
        return self.endpoint in GENERATION_ENDPOINTS

    @property
    def takes_prompt(self) -> bool:
        """Whether the request brings a prompt, with images perhaps, to be worked on."""
        return self.endpoint in PROMPT_ENDPOINTS

    @property
    def quota(self) -> Quota | None:
        """The limits that the request counts under."""
        return self.api_key.quota if self.api_key and self.takes_prompt else None

    @property
    def num_charged_tokens(self) -> int:
        """Tokens to count against the quota: nothing for a refusal, what was there when the client left."""
        if self._first_token_at is None and self.final_status != CLIENT_CLOSED_REQUEST:
            return 0
        num_prompt_tokens = self.prompt_tokens or self.num_prompt_tokens_estimated
        return num_prompt_tokens + max(self.completion_tokens, self._num_arrived_tokens)

    @property
    def final_status(self) -> int:
        """The status to count the request under."""
        if self.error == "cancelled" or self.status is None:
            return CLIENT_CLOSED_REQUEST
        # The headers were sent before the error, but the answer is not a success.
        return 500 if self.error else self.status

    @property
    def trace_id(self) -> str | None:
        """Of its span, 32 hexadecimal digits; None when it is not traced."""
        return None if self.traceparent is None else self.traceparent.split("-")[1]

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._started_at

    @property
    def time_to_first_token_s(self) -> float | None:
        """Seconds from the arrival to the first response of the decoder."""
        return None if self._first_token_at is None else self._first_token_at - self._started_at

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean seconds between the tokens of a choice, None for fewer than two tokens."""
        num_intervals = self.completion_tokens / self.num_choices - 1
        if self._first_token_at is None or self._last_token_at is None or num_intervals < 1:
            return None
        return (self._last_token_at - self._first_token_at) / num_intervals

    def reserve_tokens(self, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Take an estimate of what the request will use from its quota.

        Raises:
            TokenRateError: the quota does not have them now.
            InvalidRequestError: it never will.
        """
        if self.quota is not None:
            self.quota.reserve_tokens(num_prompt_tokens + num_output_tokens)
            self.num_prompt_tokens_estimated = num_prompt_tokens
            self.num_reserved_tokens = num_prompt_tokens + num_output_tokens

    def tokens_arrived(self, num_tokens: int) -> None:
        """Note the time of a response of the decoder, and its tokens."""
        self._num_arrived_tokens += num_tokens
        self._last_token_at = time.perf_counter()
        if self._first_token_at is None:
            self._first_token_at = self._last_token_at
