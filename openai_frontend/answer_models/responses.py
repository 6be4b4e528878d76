"""Answers of OpenAI's Responses API."""

from __future__ import annotations

from typing import Any, Literal

from openai_frontend.answer_models.base import AnswerFields
from openai_frontend.answer_models.completions import TokenLogprob


class ResponseText(AnswerFields):
    """Text of a response."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[TokenLogprob]


class ResponseReasoningText(AnswerFields):
    """Text of a reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ResponseItem(AnswerFields):
    """What the items of a response have in common."""

    id: str
    status: Literal["completed", "incomplete"]


class ResponseMessage(ResponseItem):
    """What the model says."""

    type: Literal["message"]
    role: Literal["assistant"]
    content: list[ResponseText]


class ResponseReasoning(ResponseItem):
    """What the model thought."""

    type: Literal["reasoning"]
    summary: list[None]
    content: list[ResponseReasoningText]


class ResponseFunctionCall(ResponseItem):
    """A call that the model makes."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResponseInputDetails(AnswerFields):
    """Which tokens the input has."""

    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int


class ResponseOutputDetails(AnswerFields):
    """Which tokens the output has."""

    reasoning_tokens: int


class ResponseUsage(AnswerFields):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails
    total_tokens: int


class ResponseIncompleteDetails(AnswerFields):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseReasoningOptions(AnswerFields):
    """How much the model shall think, which nobody can say."""

    effort: None
    summary: None


class ResponseTextOptions(AnswerFields):
    """What the text of the response must match, as it was asked for."""

    format: dict[str, Any]


class ResponseFunction(AnswerFields):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: Literal[True]


class ResponseFunctionChoice(AnswerFields):
    """The function that the model must call."""

    type: Literal["function"]
    name: str


class Response(AnswerFields):
    """The whole answer of `/v1/responses`, and a stored one."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: ResponseIncompleteDetails | None
    model: str
    output: list[ResponseReasoning | ResponseMessage | ResponseFunctionCall]
    usage: ResponseUsage
    store: bool
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ResponseReasoningOptions
    safety_identifier: str | None
    service_tier: Literal["default"]
    temperature: float | None
    text: ResponseTextOptions
    tool_choice: Literal["none", "auto", "required"] | ResponseFunctionChoice
    tools: list[ResponseFunction]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    user: str | None


class DeletedResponse(AnswerFields):
    """The answer of `DELETE /v1/responses/{id}`."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseItemList(AnswerFields):
    """The answer of `/v1/responses/{id}/input_items`."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
