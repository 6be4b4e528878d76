"""What the answers look like, for `/openapi.json`.

Nothing is built from these models, because that would cost more than the rest of the proxy (see
`responses`); tests hold every answer against them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class AnswerFields(BaseModel):
    """The fields of an object in an answer, and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorObject(AnswerFields):
    """What is wrong and what to change."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(AnswerFields):
    """OpenAI's errors."""

    error: ErrorObject


class AnthropicErrorObject(AnswerFields):
    """What is wrong and what to change."""

    type: str
    message: str


class AnthropicErrorAnswer(AnswerFields):
    """Anthropic's errors."""

    type: Literal["error"]
    error: AnthropicErrorObject


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


class Tokens(AnswerFields):
    """The answer of `/tokenize`."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: None


class DetokenizedText(AnswerFields):
    """The answer of `/detokenize`."""

    prompt: str


class ModelCard(AnswerFields):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None
    max_images: int | None
    calls_tools: bool
    reasons: bool
    takes_videos: bool


class ModelList(AnswerFields):
    """The answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class HealthStatus(AnswerFields):
    """The answer of a health check that passes."""

    status: Literal["live", "ready", "generating"]


class VersionAnswer(AnswerFields):
    """The answer of `/version`."""

    version: str
