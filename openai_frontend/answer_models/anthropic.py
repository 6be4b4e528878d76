"""Answers of Anthropic's Messages API."""

from __future__ import annotations

from typing import Any, Literal

from openai_frontend.answer_models.base import AnswerFields


class AnthropicErrorObject(AnswerFields):
    """What is wrong and what to change."""

    type: str
    message: str


class AnthropicErrorAnswer(AnswerFields):
    """Anthropic's errors."""

    type: Literal["error"]
    error: AnthropicErrorObject


class AnthropicTextBlock(AnswerFields):
    """Text of an answer."""

    type: Literal["text"]
    text: str


class AnthropicThinkingBlock(AnswerFields):
    """What the model thought; nothing is signed."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class AnthropicToolUseBlock(AnswerFields):
    """A call that the model makes."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnthropicUsage(AnswerFields):
    """Tokens of a message."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(AnswerFields):
    """The whole answer of `/v1/messages`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnthropicThinkingBlock | AnthropicTextBlock | AnthropicToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(AnswerFields):
    """The answer of `/v1/messages/count_tokens`."""

    input_tokens: int
