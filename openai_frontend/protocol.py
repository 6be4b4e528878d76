"""The fields of the requests: names, types, ranges and the values the proxy passes on.

Policy, for every field: what is here works; OpenAI's other fields (`unsupported.py`) are refused by
name unless they ask for nothing; anything else is unknown and refused. Nothing is accepted and
ignored, with two exceptions that cannot change an answer: `user` and `safety_identifier` name the
end user. `null` means the same as leaving a field out, as in OpenAI's API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from openai_frontend.unsupported import (
    UNSUPPORTED_CHAT,
    UNSUPPORTED_COMPLETION,
    UNSUPPORTED_MESSAGE,
    documented,
    without_unsupported,
    without_unsupported_chat,
)
from openai_frontend.validation import is_finite
from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import FUNCTION_NAME, MAX_FUNCTIONS

MAX_MESSAGES = 4096
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1


class Fields(BaseModel):
    """The fields of an object in a request: no others, and no conversions."""

    # strict: "5" is not 5 and true is not 1; a client that mixes them up has a bug to hear about.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(Fields):
    """Text inside a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    """Where an image is, unless its part has a uuid, and how closely to look at it."""

    url: Annotated[str, StringConstraints(min_length=1)] | None = None
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Fields):
    """An image inside a message; with a `uuid` and no URL the one that was sent with that `uuid` before."""

    type: Literal["image_url"]
    image_url: ImageUrl | None = None
    uuid: str | None = Field(None, pattern=r"^[!-~]{1,256}$")


class VideoUrl(Fields):
    """Where a video is."""

    url: str = Field(min_length=1)


class VideoPart(Fields):
    """A video inside a message."""

    type: Literal["video_url"]
    video_url: VideoUrl


# The tags in angle brackets keep pydantic's error locations apart from what the client wrote.


def by_type(things: str, *kinds: str, default: str | None = None) -> Discriminator:
    """Tells the members of a union, tagged `<{kind}>`, apart by their `type`, one of two or more `kinds`.

    One without a type is of the kind `default`, if there is such a kind.
    """
    *others, last = map(repr, kinds)

    def tag(part: Any) -> str | None:
        kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
        kind = default if kind is None else kind
        return f"<{kind}>" if kind in kinds else None

    return Discriminator(
        tag,
        custom_error_type="union_tag",
        custom_error_message=f"{things} are of type {', '.join(others)} or {last}",
    )


def text_or_list(things: str) -> Discriminator:
    """Tells a string, `<text>`, from an array of `things`, `<list>`."""

    def tag(value: Any) -> str | None:
        return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None

    return Discriminator(
        tag,
        custom_error_type="invalid_type",
        custom_error_message=f"It must be a string or an array of {things}",
    )


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    by_type("Content parts", "text", "image_url", "video_url"),
]
Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[ContentPart], Field(min_length=1), Tag("<list>")],
    text_or_list("content parts"),
]


FunctionName = Annotated[str, StringConstraints(pattern=FUNCTION_NAME)]


class FunctionCall(Fields):
    """Which function to call; the arguments are JSON."""

    name: FunctionName
    arguments: str


class ToolCall(Fields):
    """A call that the model wrote."""

    id: str = Field(min_length=1, max_length=512)
    type: Literal["function"]
    function: FunctionCall


class Message(Fields):
    """One turn of a conversation; `conversation` says which fields belong to which role."""

    model_config = ConfigDict(json_schema_extra=documented(UNSUPPORTED_MESSAGE))

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


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


class ChatTemplateKwargs(Fields):
    """Variables that chat templates read; a model refuses those that its own does not read.

    Nothing that brings messages, tools or templates, and no text in which a control token could stand.
    """

    enable_thinking: bool | None = None
    thinking: bool | None = None
    add_vision_id: bool | None = None
    date_string: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ,.:/-]{0,39}$")


class MmProcessorKwargs(Fields):
    """How many pixels an image is resized to, within what the checkpoint says."""

    min_pixels: int | None = Field(None, ge=1, le=_MAX_INT32)
    max_pixels: int | None = Field(None, ge=1, le=_MAX_INT32)

    @model_validator(mode="after")
    def _check_order(self) -> MmProcessorKwargs:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise InvalidRequestError(
                f"'min_pixels' is {self.min_pixels}, more than 'max_pixels', {self.max_pixels}.",
                param="mm_processor_kwargs.min_pixels",
            )
        return self


class VideoIoKwargs(Fields):
    """Which frames of a video are looked at; the server's limits hold."""

    num_frames: int | None = Field(None, ge=1, le=_MAX_INT32)
    fps: float | None = Field(None, ge=0.01, le=100)


class MediaIoKwargs(Fields):
    """How media are read; images are read in one way."""

    video: VideoIoKwargs | None = None


class ConversationFields(Fields):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    mm_processor_kwargs: MmProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None

    @model_validator(mode="after")
    def _check_end(self) -> ConversationFields:
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "'continue_final_message' and 'add_generation_prompt' exclude each other; send one.",
                param="continue_final_message",
            )
        return self

    def prompt_options(self) -> dict[str, Any]:
        """What the client set, as members of the PROMPT JSON; video parts have `media_io_kwargs`."""
        names = ConversationFields.model_fields.keys() - {"media_io_kwargs"}
        options = self.model_dump(include=names, exclude_none=True)
        if self.continue_final_message:
            options["add_generation_prompt"] = False
        return {name: value for name, value in options.items() if value != {}}


def _check_numbers(value: dict[str, Any]) -> dict[str, Any]:
    if not is_finite(value):
        raise PydanticCustomError("invalid_value", "A number in it is too large")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_check_numbers)]
JsonSchema = JsonObject


class NamedSchema(Fields):
    """A JSON schema with what OpenAI wants to know besides; `strict` is what happens anyway."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What the answer must be; `schema` beside `json_object` is llama.cpp's way to write it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")


class StructuredOutputs(Fields):
    """vLLM's way to say what the answer must be; one of its fields."""

    json_: JsonSchema | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Function(Fields):
    """A function that the model may call; `strict` is what happens anyway."""

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool that the model may use; there are functions only."""

    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    """A function by its name."""

    name: FunctionName


class NamedTool(Fields):
    """A tool by its name."""

    type: Literal["function"]
    function: NamedFunction


def _tool_choice_kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<tool>" if isinstance(value, dict) else None


AnyToolChoice = Annotated[Literal["none", "auto", "required"], Tag("<text>")]
WORD_OR_TOOL = Discriminator(
    _tool_choice_kind,
    custom_error_type="invalid_type",
    custom_error_message="It must be 'none', 'auto', 'required' or a tool",
)
"""Tells an `AnyToolChoice` from a tool, `<tool>`."""
ToolChoice = Annotated[AnyToolChoice | Annotated[NamedTool, Tag("<tool>")], WORD_OR_TOOL]


_StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
StopStrings = Annotated[list[_StopString], Field(max_length=MAX_STOP_STRINGS)]


def _stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class GenerationFields(Fields):
    """What chat and plain completions share."""

    model: str = Field(min_length=1, max_length=512)
    max_tokens: int | None = Field(None, ge=1, le=_MAX_INT32)
    min_tokens: int | None = Field(None, ge=0, le=_MAX_INT32)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-_MAX_INT64 - 1, le=_MAX_INT64)
    n: int | None = Field(None, ge=1)
    stop: Annotated[
        StopStrings | None,
        BeforeValidator(_stop_list, json_schema_input_type=_StopString | StopStrings | None),
    ] = None
    stop_token_ids: list[Annotated[int, Field(ge=0, le=_MAX_INT32)]] | None = Field(
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
    priority: int | None = Field(None, ge=-_MAX_INT32, le=_MAX_INT32)
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
    max_completion_tokens: int | None = Field(None, ge=1, le=_MAX_INT32)
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
    list[Annotated[int, Field(ge=0, le=_MAX_INT32)]], Field(min_length=1, max_length=1_000_000)
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
