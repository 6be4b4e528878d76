"""What the proxy needs from whatever generates text: the seam between HTTP and Triton.

`TritonBackend` is the real one; tests put a fake behind the same protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from python_backend.tool_calls import ToolFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that can be asked for.

    Attributes:
        id: public name, such as `Qwen/Qwen2.5-VL-7B-Instruct`.
        triton_name: name of its ensemble in Triton's model repository.
        created: Unix time at which this proxy first saw the model.
        fingerprint: changes when the served configuration changes; OpenAI's `system_fingerprint`.
        max_model_len: context limit in tokens, prompt and output together, if Triton tells.
        max_images: images allowed in one prompt, if Triton tells; 0 for a model that reads text only.
        tool_format: how it writes tool calls; None if it takes no tools.
        reasons: whether it reasons before it answers.
        takes_videos: whether a prompt may have any.
    """

    id: str
    triton_name: str
    created: int
    fingerprint: str
    max_model_len: int | None = None
    max_images: int | None = None
    tool_format: ToolFormat | None = None
    reasons: bool = False
    takes_videos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one choice.

    Attributes:
        prompt_tokens: tokens of the prompt, image tokens included.
        completion_tokens: tokens generated for the choice.
        image_tokens: those of the prompt tokens that stand for images.
        video_tokens: those that stand for videos.
        cached_tokens: those of the prompt tokens that were reused from the KV cache.
        reasoning_tokens: those of the completion tokens that are reasoning.
        draft_tokens: tokens that the engine guessed for the choice.
        accepted_draft_tokens: how many of them were right, and so cost no step of their own.
    """

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    video_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the decoder's time for a request went, without a gap.

    Attributes:
        arrived_at: Unix time in seconds at which the decoder took it.
        queue_s: until its first step.
        prefill_s: from there to its first token.
        decode_s: from there to its last token.
    """

    arrived_at: float
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What follows for one tool call.

    Attributes:
        index: which of the choice's calls.
        arguments: follows the JSON sent before for the same call.
        id: of the call, on its first delta only.
        name: of the function, on the first delta only.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One response of the decoder: what follows for one choice.

    Attributes:
        text: follows the text sent before for the same choice; may be empty.
        index: which of the n choices.
        token_ids: tokens covered by this response.
        logprobs: one `{"token", "bytes", "logprob", "top_logprobs"}` per token, if asked for.
        finish_reason: `stop` or `length` on the last response of a choice, else None.
        matched_stop: on the last response, the token id or string that ended the choice, or None.
        usage: on the first and the last response, the tokens of the choice so far.
        prompt_token_ids: on the first response of choice 0, if asked for.
        prompt_logprobs: of choice 0, on the first responses, of the next tokens of the prompt if asked for:
            vLLM's objects, the prompt's own token first; `logprob` is None where there is none.
        reasoning: text of the reasoning, which comes before the answer's.
        tool_calls: what follows for tool calls, parsed from the text by the proxy, whose finish reason
            `tool_calls` then is.
        timing: on the request's last response, if it is traced.
    """

    text: str
    index: int = 0
    token_ids: Sequence[int] = ()
    logprobs: Sequence[dict[str, Any]] | None = None
    finish_reason: str | None = None
    matched_stop: int | str | None = None
    usage: Usage | None = None
    prompt_token_ids: Sequence[int] | None = None
    prompt_logprobs: Sequence[dict[str, dict[str, Any]]] = ()
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    timing: Timing | None = None


class Backend(Protocol):
    """Generates text; used from one event loop."""

    def generate(
        self,
        model: str,
        request_id: str,
        prompt: dict[str, Any],
        images: Sequence[bytes],
        sampling: dict[str, Any],
        traceparent: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the generator early cancels the generation.

        Args:
            model: `ModelInfo.triton_name`.
            request_id: unique among the requests that run.
            prompt: as `tensor_names.PROMPT` describes it.
            images: encoded files, in the order of the prompt.
            sampling: what the client set; an absent key takes the decoder's default.
            traceparent: the span that the generation belongs to, in W3C's form; the last delta has `timing`
                then.

        Raises:
            VlmError: the request was refused or failed.
        """
        ...

    async def tokenize(
        self, model: str, prompt: dict[str, Any], images: Sequence[bytes]
    ) -> list[int]:
        """The tokens of a prompt, image placeholders included; arguments as of `generate`.

        Raises:
            VlmError: the prompt was refused.
        """
        ...

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of tokens, control tokens included.

        Raises:
            VlmError: the model has no such token.
        """
        ...

    async def models(self) -> list[ModelInfo]:
        """The models that can be asked for now; may be a few seconds old."""
        ...

    async def find_model(self, name: str) -> ModelInfo | None:
        """The model with the public id or the Triton name `name`, or None."""
        ...

    async def is_ready(self) -> bool:
        """Whether a request sent now would be served."""
        ...

    async def close(self) -> None:
        """Release connections; running generations end."""
        ...
