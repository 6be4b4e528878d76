"""OpenAI's Responses API: its requests as chat requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, Tag, model_validator

from openai_frontend.protocol.fields import Fields, JsonSchema, by_type, text_or_list
from openai_frontend.protocol.messages import MAX_MESSAGES, FunctionName
from openai_frontend.protocol.output_format import NamedSchema
from openai_frontend.protocol.requests import MAX_TOP_LOGPROBS, ChatCompletionRequest
from openai_frontend.protocol.tools import WORD_OR_TOOL, AnyToolChoice
from openai_frontend.response_items import ChatMessages, InputItem
from openai_frontend.unsupported import UNSUPPORTED_RESPONSES, documented, without_unsupported
from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import MAX_FUNCTIONS

# Fields of a chat request that have another name here.
_RENAMED = (
    (re.compile(r"\b(tools\[\d+\]|tool_choice)\.function\b"), r"\1"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\bmax_tokens\b"), "max_output_tokens"),
)


class PlainFormat(Fields):
    """An answer that may be anything, or any JSON object."""

    type: Literal["text", "json_object"]


class JsonSchemaFormat(NamedSchema):
    """An answer that is JSON of a schema."""

    type: Literal["json_schema"]


class TextOptions(Fields):
    """What the text of an answer is like."""

    format: (
        Annotated[
            Annotated[PlainFormat, Tag("<text>")]
            | Annotated[PlainFormat, Tag("<json_object>")]
            | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
            by_type("Formats", "text", "json_object", "json_schema"),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class FunctionTool(Fields):
    """A function that the model may call; `strict` is what happens anyway."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class ChosenFunction(Fields):
    """The function that the model must call."""

    type: Literal["function"]
    name: FunctionName


class ResponsesRequest(Fields):
    """Body of `POST /v1/responses`."""

    model_config = ConfigDict(json_schema_extra=documented(UNSUPPORTED_RESPONSES))

    model: str = Field(min_length=1, max_length=512)
    input: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), Tag("<list>")],
        text_or_list("items"),
    ]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1, max_length=512)
    store: bool | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = Field(None, max_length=1)
    max_output_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    metadata: (
        dict[
            Annotated[str, StringConstraints(max_length=64)],
            Annotated[str, StringConstraints(max_length=512)],
        ]
        | None
    ) = Field(None, max_length=16)
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = Field(None, max_length=512)
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    text: TextOptions | None = None
    tool_choice: (
        Annotated[AnyToolChoice | Annotated[ChosenFunction, Tag("<tool>")], WORD_OR_TOOL] | None
    ) = None
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_FUNCTIONS)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    top_p: float | None = Field(None, ge=0, le=1)
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, fields: Any) -> Any:
        return without_unsupported(fields, UNSUPPORTED_RESPONSES)

    @model_validator(mode="after")
    def _check_logprobs(self) -> ResponsesRequest:
        if self.top_logprobs and not self.has_logprobs:
            raise InvalidRequestError(
                "'include' must have 'message.output_text.logprobs' when 'top_logprobs' is given.",
                param="top_logprobs",
            )
        if self.has_logprobs and self.tools:
            raise InvalidRequestError(
                "'include' cannot ask for log probabilities together with 'tools'.", param="include"
            )
        return self

    @property
    def has_logprobs(self) -> bool:
        """Whether the client wants log probabilities of the answer's tokens."""
        return bool(self.include)

    def items(self) -> list[dict[str, Any]]:
        """The input as JSON of items; a string is a message of the user."""
        if isinstance(self.input, str):
            content = [{"type": "input_text", "text": self.input}]
            return [{"type": "message", "role": "user", "content": content}]
        return [
            {"type": item.type or "message"} | item.model_dump(exclude_none=True)
            for item in self.input
        ]

    def chat_messages(self, earlier: Sequence[InputItem]) -> ChatMessages:
        """The whole conversation.

        Args:
            earlier: what `previous_response_id` stands for.

        Raises:
            InvalidRequestError: it is too long.
        """
        chat = ChatMessages()
        if self.instructions:
            chat.add_text("system", self.instructions, "instructions")
        for item in earlier:
            chat.add_item(item, "previous_response_id")
        if isinstance(self.input, str):
            chat.add_text("user", self.input, "input")
        else:
            for i, item in enumerate(self.input):
                chat.add_item(item, f"input[{i}]")
        if len(chat.messages) > MAX_MESSAGES:
            raise InvalidRequestError(
                f"The conversation has {len(chat.messages)} messages; at most {MAX_MESSAGES} are taken.",
                param="input",
            )
        return chat

    def to_chat(self, chat: ChatMessages) -> ChatCompletionRequest:
        """The same as a chat request about the messages of `chat`."""
        fields: dict[str, Any] = {
            "model": self.model,
            # An answer that was cut off in its reasoning has no content.
            "messages": [{"content": ""} | message for message in chat.messages],
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
        }
        if self.has_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.text is not None and self.text.format is not None:
            fields["response_format"] = _response_format(self.text.format)
        return ChatCompletionRequest.model_validate(fields | self._chat_tools())

    def _chat_tools(self) -> dict[str, Any]:
        choice: Any = self.tool_choice
        if isinstance(choice, ChosenFunction):
            choice = {"type": "function", "function": {"name": choice.name}}
        if not self.tools:
            # Without tools these two ask for nothing.
            return {} if choice in ("auto", "none") else {"tool_choice": choice}
        tools = [
            {"type": "function", "function": tool.model_dump(exclude={"type"})}
            for tool in self.tools
        ]
        calls = {"tool_choice": choice, "parallel_tool_calls": self.parallel_tool_calls}
        return {"tools": tools, **calls}


def _response_format(form: PlainFormat | JsonSchemaFormat) -> dict[str, Any]:
    if isinstance(form, PlainFormat):
        return {"type": form.type}
    schema = form.model_dump(by_alias=True, exclude={"type"})
    return {"type": form.type, "json_schema": schema}


def in_client_words(text: str) -> str:
    """`text` about a chat request with the names that its fields have in this API."""
    if text == "messages":
        return "input"
    for pattern, name in _RENAMED:
        text = pattern.sub(name, text)
    return text
