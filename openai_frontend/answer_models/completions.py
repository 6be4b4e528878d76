"""Answers of OpenAI's chat completions and plain completions."""

from __future__ import annotations

from typing import Literal

from openai_frontend.answer_models.base import AnswerFields

FinishReason = Literal["stop", "length"]

ChatFinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(AnswerFields):
    """Which tokens a prompt has."""

    cached_tokens: int
    audio_tokens: int
    image_tokens: int
    video_tokens: int
    text_tokens: int


class CompletionTokensDetails(AnswerFields):
    """Which tokens were generated."""

    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageObject(AnswerFields):
    """Tokens of a request: one prompt and all choices."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    reasoning_tokens: int


class AnswerMetadata(AnswerFields):
    """SGLang's field about the model's weights."""

    weight_version: str


class OpenAIObject(AnswerFields):
    """What OpenAI's answers and chunks begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class TopLogprob(AnswerFields):
    """A token that was likely at some place."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A generated token and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class PromptLogprob(AnswerFields):
    """vLLM's log probability of a token in the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatLogprobs(AnswerFields):
    """Log probabilities of a chat's tokens."""

    content: list[TokenLogprob]
    refusal: None


class FunctionCallObject(AnswerFields):
    """A function that the model calls; the arguments are JSON."""

    name: str
    arguments: str


class ToolCallObject(AnswerFields):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: FunctionCallObject


class AssistantMessage(AnswerFields):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None
    tool_calls: list[ToolCallObject] | None


class ChatChoice(AnswerFields):
    """One answer of a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    matched_stop: int | str | None
    token_ids: list[int] | None = None


class ChatCompletion(OpenAIObject):
    """The whole answer of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageObject
    metadata: AnswerMetadata
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class FunctionCallDelta(AnswerFields):
    """What a chunk adds to a call; the name comes first, then the arguments piece by piece."""

    name: str | None = None
    arguments: str


class ToolCallDelta(AnswerFields):
    """What a chunk adds to the call with this index; its id comes first."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


class ChatDelta(AnswerFields):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(AnswerFields):
    """What a chunk adds to a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    matched_stop: int | str | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(OpenAIObject):
    """An event of `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: UsageObject | None = None
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(AnswerFields):
    """Log probabilities in OpenAI's classic form."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChunkChoice(AnswerFields):
    """What a chunk adds to a choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    matched_stop: int | str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionChoice(CompletionChunkChoice):
    """One answer to a plain prompt."""

    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | None = None


class Completion(OpenAIObject):
    """The whole answer of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageObject
    metadata: AnswerMetadata


class CompletionChunk(OpenAIObject):
    """An event of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: UsageObject | None = None
