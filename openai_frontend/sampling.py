"""From request fields to the SAMPLING JSON of the decoder."""

from __future__ import annotations

import hmac
from typing import Any

from openai_frontend.api_keys import ApiKey
from openai_frontend.protocol.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationFields,
)
from python_backend.errors import InvalidRequestError

# Fields whose name and meaning are the same in HTTP and in the decoder.
_SAME = (
    *("min_tokens", "temperature", "top_p", "min_p", "seed", "stop", "stop_token_ids"),
    *("ignore_eos", "include_stop_str_in_output", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "skip_special_tokens", "priority"),
    *("return_token_ids", "prompt_logprobs"),
)


def sampling_of(request: GenerationFields, max_n: int) -> dict[str, Any]:
    """What the client set, with the decoder's keys; the decoder knows the model's defaults.

    Raises:
        InvalidRequestError: too many choices for this server, or `min_tokens` over `max_tokens`.
    """
    sampling = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    num_candidates = request.num_candidates
    if num_candidates is not None:
        sampling["n"] = num_candidates
        if num_candidates > max_n:
            name = "n" if num_candidates == request.n else "best_of"
            raise InvalidRequestError(
                f"'{name}' is {num_candidates}; this server generates at most {max_n} choices per "
                "request.",
                param=name,
            )
    for name in ("stop", "stop_token_ids", "logit_bias"):
        if not sampling.get(name, True):
            del sampling[name]
    if request.top_k is not None:
        # 0 and -1 are other servers' ways to say "off"; null says so to the decoder, also where the
        # model's own default is a number.
        sampling["top_k"] = request.top_k if request.top_k > 0 else None
    max_tokens = _max_tokens(request)
    if max_tokens is not None:
        sampling["max_tokens"] = max_tokens
        if (request.min_tokens or 0) > max_tokens:
            raise InvalidRequestError(
                f"'min_tokens' is {request.min_tokens}, more than the {max_tokens} tokens "
                "allowed at most.",
                param="min_tokens",
            )
    num_logprobs = num_logprobs_of(request)
    if num_logprobs is not None:
        sampling["logprobs"] = num_logprobs
    if isinstance(request, CompletionRequest):
        _add_for_completion(request, sampling)
    return sampling


def cache_salt_of(request: GenerationFields, api_key: ApiKey | None) -> str | None:
    """What the decoder tells requests apart by that may share its cache; None: any without a salt.

    Callers with different keys never share, so that nobody can tell by the time what another has asked. The
    decoder sees neither the key nor its hash.
    """
    if api_key is None and request.cache_salt is None:
        return None
    key = b"" if api_key is None else api_key.digest
    return hmac.digest(key, (request.cache_salt or "").encode(), "sha256").hex()


def caller_of(api_key: ApiKey) -> str:
    """By what the decoder tells callers apart, to give each its turn.

    It sees neither the key nor its hash.
    """
    return hmac.digest(api_key.digest, b"\0caller", "sha256").hex()


def _add_for_completion(request: CompletionRequest, sampling: dict[str, Any]) -> None:
    if request.echo and request.logprobs is not None:
        sampling["prompt_logprobs"] = request.logprobs
    if (request.best_of or 1) > (request.n or 1):
        sampling.setdefault("logprobs", 0)  # by which the best are found


def _max_tokens(request: GenerationFields) -> int | None:
    if isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens
    return request.max_tokens


def num_logprobs_of(request: GenerationFields) -> int | None:
    """Alternatives to report per token; 0 is the chosen token alone, None nothing at all."""
    if isinstance(request, ChatCompletionRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    assert isinstance(request, CompletionRequest)
    return request.logprobs
