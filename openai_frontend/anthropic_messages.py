"""Anthropic's Messages API: its requests as chat requests.

Clients of that API, with `base_url` set to this server, get what an OpenAI client gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, model_validator

from openai_frontend.protocol.fields import Fields, JsonObject, JsonSchema, by_type, text_or_list
from openai_frontend.protocol.messages import FunctionName
from openai_frontend.protocol.requests import ChatCompletionRequest, StopStrings
from openai_frontend.sse import dumps
from openai_frontend.unsupported import UNSUPPORTED_MESSAGES, documented, without_unsupported
from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import MAX_FUNCTIONS


class CacheControl(Fields):
    """Accepted and without effect on an answer: pictures and prompts are cached in any case."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(Fields):
    """Text inside a message."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class Base64Source(Fields):
    """An image in the request."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Fields):
    """An image elsewhere."""

    type: Literal["url"]
    url: str = Field(min_length=1)


class ImageBlock(Fields):
    """An image inside a message."""

    type: Literal["image"]
    source: Base64Source | UrlSource = Field(discriminator="type")
    cache_control: CacheControl | None = None


_TextOrImage = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")],
    by_type("Content blocks", "text", "image"),
]
_TEXT_OR_LIST = text_or_list("content blocks")


class ToolUseBlock(Fields):
    """A call that the model wrote."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=512)
    name: FunctionName
    input: JsonObject
    cache_control: CacheControl | None = None


class ToolResultBlock(Fields):
    """What came of a call."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=512)
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[_TextOrImage], Tag("<list>")], _TEXT_OR_LIST
    ] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Fields):
    """What the model thought; the signature is this server's, which is empty."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


_Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")],
    by_type("Content blocks", "text", "image", "tool_use", "tool_result", "thinking"),
]
_SWITCH = "enable_thinking"
"""Variable of chat templates that says whether the model reasons."""
_USER_BLOCKS = (TextBlock, ImageBlock, ToolResultBlock)
_ASSISTANT_BLOCKS = (TextBlock, ImageBlock, ToolUseBlock, ThinkingBlock)


class Turn(Fields):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[_Block], Field(min_length=1), Tag("<list>")],
        _TEXT_OR_LIST,
    ]


class InputTool(Fields):
    """A function that the model may call."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: JsonSchema
    strict: bool | None = None
    cache_control: CacheControl | None = None

    def to_chat(self) -> dict[str, Any]:
        """The same as a tool of a chat request."""
        function = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}


class InputToolChoice(Fields):
    """Whether the model must call a tool, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None

    def to_chat(self) -> dict[str, Any]:
        """The same as fields of a chat request."""
        if (self.name is not None) != (self.type == "tool"):
            raise InvalidRequestError(
                "'tool_choice.name' belongs to the type 'tool', which needs it.",
                param="tool_choice.name",
            )
        choices: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
        choices["tool"] = {"type": "function", "function": {"name": self.name}}
        fields: dict[str, Any] = {"tool_choice": choices[self.type]}
        if self.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False
        return fields


class Metadata(Fields):
    """Names the end user; never changes an answer."""

    user_id: str | None = Field(None, max_length=512)


class Thinking(Fields):
    """That the model shall not reason; one that reasons does so without being asked."""

    type: Literal["disabled"]


class CountTokensRequest(Fields):
    """Body of `POST /v1/messages/count_tokens`."""

    model_config = ConfigDict(json_schema_extra=documented(UNSUPPORTED_MESSAGES))

    model: str = Field(min_length=1, max_length=512)
    messages: list[Turn] = Field(min_length=1, max_length=4096)
    system: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[TextBlock], Tag("<list>")], _TEXT_OR_LIST
    ] = ""
    tools: list[InputTool] | None = Field(None, max_length=MAX_FUNCTIONS)
    tool_choice: InputToolChoice | None = None
    thinking: Thinking | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, fields: Any) -> Any:
        return without_unsupported(fields, UNSUPPORTED_MESSAGES)

    @model_validator(mode="after")
    def _check_last_turn(self) -> CountTokensRequest:
        if self.messages[-1].role != "user":
            raise InvalidRequestError(
                "The last message must be the user's: this server does not go on with an answer that "
                "the client began.",
                param=f"messages[{len(self.messages) - 1}].role",
            )
        return self

    def chat_messages(self) -> list[dict[str, Any]]:
        """The conversation as `/v1/chat/completions` takes it."""
        system = self.system
        if not isinstance(system, str):
            system = "\n".join(block.text for block in system)
        turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for i, turn in enumerate(self.messages):
            turns += _chat_turns(turn, f"messages[{i}]")
        return turns

    def to_chat(self, *, reasons: bool) -> ChatCompletionRequest:
        """The same as a chat request to a model that reasons, or to one that does not."""
        fields = {"model": self.model, "messages": self.chat_messages()} | self._chat_fields()
        if self.tools:
            fields["tools"] = [tool.to_chat() for tool in self.tools]
        if self.tool_choice is not None:
            fields |= self.tool_choice.to_chat()
        if self.thinking is not None and reasons:
            fields["chat_template_kwargs"] = {_SWITCH: False}
        return ChatCompletionRequest.model_validate(fields)

    def _chat_fields(self) -> dict[str, Any]:
        """What an answer needs to know besides the conversation and its tools."""
        return {}


class MessagesRequest(CountTokensRequest):
    """Body of `POST /v1/messages`."""

    max_tokens: int = Field(ge=1, le=2**31 - 1)
    stop_sequences: StopStrings | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    top_p: float | None = Field(None, ge=0, le=1)
    metadata: Metadata | None = None

    def _chat_fields(self) -> dict[str, Any]:
        return {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "stream": self.stream,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
        }


def in_client_words(text: str) -> str:
    """Text of an error about the chat template's variable, or its path, as one about `thinking`."""
    return text.replace(f"chat_template_kwargs.{_SWITCH}", "thinking").replace(
        f"does not read {_SWITCH}", "always lets it think"
    )


def _chat_turns(turn: Turn, path: str) -> list[dict[str, Any]]:
    """A turn as chat messages: results of tools are messages of their own, before the others of the user."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    allowed = _USER_BLOCKS if turn.role == "user" else _ASSISTANT_BLOCKS
    for i, block in enumerate(turn.content):
        if not isinstance(block, allowed):
            raise InvalidRequestError(
                f"Blocks of type '{block.type}' are not for messages of the {turn.role}.",
                param=f"{path}.content[{i}].type",
            )
    turns = [_chat_result(block) for block in turn.content if isinstance(block, ToolResultBlock)]
    message: dict[str, Any] = {"role": turn.role}
    shown = [block for block in turn.content if isinstance(block, TextBlock | ImageBlock)]
    if shown:
        message["content"] = _chat_content(shown)
    if thoughts := [block.thinking for block in turn.content if isinstance(block, ThinkingBlock)]:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls := [_chat_call(block) for block in turn.content if isinstance(block, ToolUseBlock)]:
        message["tool_calls"] = calls
    return [*turns, message] if len(message) > 1 else turns


def _chat_call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": dumps(block.input)}
    return {"id": block.id, "type": "function", "function": function}


def _chat_result(block: ToolResultBlock) -> dict[str, Any]:
    content = _chat_content(block.content) if block.content else ""
    if block.is_error:  # chat templates have no other word for it
        error = {"type": "text", "text": "Error: "}
        content = f"Error: {content}" if isinstance(content, str) else [error, *content]
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _chat_content(
    content: str | Sequence[TextBlock | ImageBlock],
) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": block.text}
        if isinstance(block, TextBlock)
        else {"type": "image_url", "image_url": {"url": _url(block.source)}}
        for block in content
    ]


def _url(source: Base64Source | UrlSource) -> str:
    if isinstance(source, UrlSource):
        return source.url
    return f"data:{source.media_type};base64,{source.data}"
