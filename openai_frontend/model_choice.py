"""The model that a request asks for, if it can do what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_frontend.anthropic_messages import CountTokensRequest
from openai_frontend.backend import Backend, ModelInfo
from openai_frontend.conversation import ImageSource
from openai_frontend.errors import ModelNotFoundError
from openai_frontend.protocol.requests import ChatCompletionRequest
from python_backend.errors import InvalidRequestError


async def find_model(
    backend: Backend, name: str, prompt: dict[str, Any], sources: Sequence[ImageSource]
) -> ModelInfo:
    """The model with the given name.

    Raises:
        ModelNotFoundError: there is none.
        InvalidRequestError: it cannot do what the prompt asks for.
        VlmError: Triton cannot be asked about it.
    """
    model = await backend.find_model(name)
    if model is None:
        raise ModelNotFoundError(name)
    if sources and model.max_images == 0:
        raise InvalidRequestError(
            f"The model `{model.id}` is text-only: send the request without images, or ask a "
            "model that sees them.",
            param=sources[0].param,
        )
    _check_capabilities(prompt, model)
    video = next((source for source in sources if source.kind != "image"), None)
    if video is not None and not model.takes_videos:
        raise InvalidRequestError(
            f"The model `{model.id}` takes no videos: send pictures, or ask a model that takes videos.",
            code="unsupported_value",
            param=video.param,
        )
    return model


async def to_chat(backend: Backend, request: CountTokensRequest) -> ChatCompletionRequest:
    """What a request of Anthropic's API asks for: how it says so depends on whether its model reasons.

    Raises:
        ModelNotFoundError: there is no such model.
        VlmError: the request is wrong, or Triton cannot be asked.
    """
    model = await find_model(backend, request.model, {}, ())
    return request.to_chat(reasons=model.reasons)


def _check_capabilities(prompt: dict[str, Any], model: ModelInfo) -> None:
    """Refuse what the model's chat template would leave out."""
    messages = prompt.get("messages", ())
    has_tools = "tools" in prompt
    if model.tool_format is None and (
        has_tools or any(turn["role"] == "tool" or "tool_calls" in turn for turn in messages)
    ):
        raise InvalidRequestError(
            f"The model `{model.id}` calls no tools: its chat template takes none, or asks for calls in a "
            "form that this server does not know.",
            code="unsupported_parameter",
            param="tools" if has_tools else "messages",
        )
    if not model.reasons and any("reasoning_content" in turn for turn in messages):
        raise InvalidRequestError(
            f"The model `{model.id}` does not reason: send its messages without 'reasoning_content'.",
            code="unsupported_parameter",
            param="messages",
        )
