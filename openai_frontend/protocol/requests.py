"""The bodies of chat and plain completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, Tag, model_validator

from openai_frontend.protocol.fields import MAX_INT32, MAX_INT64, Fields, text_or_list
from openai_frontend.protocol.messages import MAX_MESSAGES, Message
from openai_frontend.protocol.output_format import ResponseFormat, StructuredOutputs
from openai_frontend.protocol.prompt_options import ConversationFields
from openai_frontend.protocol.tools import Tool, ToolChoice
from openai_frontend.unsupported import (
    UNSUPPORTED_CHAT,
    UNSUPPORTED_COMPLETION,
    documented,
    without_unsupported,
    without_unsupported_chat,
)
from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import MAX_FUNCTIONS

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16


class StreamOptions(Fields):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @model_validator(mode="after")
    def _check_related_fields(self) -> StreamOptions:
        if self.continuous_usage_stats and not self.include_usage:
            raise InvalidRequestError(
                "'include_usage' must be true when 'continuous_usage_stats' is.",
                param="stream_options.continuous_usage_stats",
            )
        return self


_StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
StopStrings = Annotated[list[_StopString], Field(max_length=MAX_STOP_STRINGS)]


def _stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class GenerationFields(Fields):
    """What chat and plain completions share."""

    model: str = Field(min_length=1, max_length=512)
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    min_tokens: int | None = Field(None, ge=0, le=MAX_INT32)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-MAX_INT64 - 1, le=MAX_INT64)
    n: int | None = Field(None, ge=1)
    stop: Annotated[
        StopStrings | None,
        BeforeValidator(_stop_list, json_schema_input_type=_StopString | StopStrings | None),
    ] = None
    stop_token_ids: list[Annotated[int, Field(ge=0, le=MAX_INT32)]] | None = Field(
        None, max_length=64
    )
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: (
        dict[
            Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
            Annotated[float, Field(ge=-100, le=100)],
        ]
        | None
    ) = Field(None, max_length=1024)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    regex: str | None = None
    ebnf: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=512)
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    truncate_prompt_tokens: int | None = Field(None, ge=-1, le=MAX_INT32)
    priority: int | None = Field(None, ge=-MAX_INT32, le=MAX_INT32)
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError(
                "'prompt_logprobs' cannot be streamed; send the request without 'stream'.",
                param="prompt_logprobs",
            )
        return self

    @property
    def num_candidates(self) -> int | None:
        """How many choices are generated, if the client says so."""
        return self.n

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk about its tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def has_running_usage(self) -> bool:
        """Whether every chunk of a stream tells its tokens so far."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class ChatCompletionRequest(GenerationFields, ConversationFields):
    """Body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(json_schema_extra=documented(UNSUPPORTED_CHAT))

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = Field(None, min_length=1, max_length=MAX_FUNCTIONS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, fields: Any) -> Any:
        return without_unsupported_chat(fields)

    @model_validator(mode="after")
    def _check_related_fields(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "'logprobs' must be true when 'top_logprobs' is given.", param="top_logprobs"
            )
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequestError(
                "'max_tokens' and 'max_completion_tokens' differ; send only one of them.",
                param="max_completion_tokens",
            )
        return self


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_INT32)]], Field(min_length=1, max_length=1_000_000)
]
_Prompts = str | TokenIds | Annotated[list[str] | list[TokenIds], Field(min_length=1, max_length=1)]


def _single_prompt(prompt: Any) -> Any:
    """OpenAI takes a batch of prompts; a batch of one is the same as its only member."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise InvalidRequestError(
                "Only one prompt per request is supported; send one request for each prompt.",
                code="unsupported_value",
                param="prompt",
            )
        return prompt[0]
    return prompt


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`."""

    model_config = ConfigDict(json_schema_extra=documented(UNSUPPORTED_COMPLETION))

    prompt: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[TokenIds, Tag("<list>")],
        text_or_list("token ids"),
        BeforeValidator(_single_prompt, json_schema_input_type=_Prompts),
    ]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, fields: Any) -> Any:
        return without_unsupported(fields, UNSUPPORTED_COMPLETION)

    @model_validator(mode="after")
    def _check_related_fields(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise InvalidRequestError(
                f"'best_of' is {self.best_of}; it must be at least 'n', which is {self.n}.",
                param="best_of",
            )
        if self.stream and (self.best_of or 1) > 1:
            raise InvalidRequestError(
                "The best of several choices is known at the end only; send 'best_of' without "
                "'stream'.",
                param="best_of",
            )
        if self.echo and self.truncate_prompt_tokens is not None:
            raise InvalidRequestError(
                "Send 'truncate_prompt_tokens' not with 'echo', which shows the whole prompt.",
                param="truncate_prompt_tokens",
            )
        has_both = self.echo and self.logprobs is not None
        if self.stream and has_both:
            raise InvalidRequestError(
                "Log probabilities of the prompt cannot be streamed; send 'echo' with 'logprobs' "
                "without 'stream'.",
                param="echo",
            )
        if has_both and self.prompt_logprobs not in (None, self.logprobs):
            raise InvalidRequestError(
                "'echo' with 'logprobs' tells the same as 'prompt_logprobs'; make both numbers equal "
                "or leave one out.",
                param="prompt_logprobs",
            )
        return self

    @property
    def num_candidates(self) -> int | None:
        """How many choices are generated, if the client says so."""
        return self.best_of or self.n
