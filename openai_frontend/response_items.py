"""Items of OpenAI's Responses API: what one may be, and a list of them as chat messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, TypeAdapter

from openai_frontend.protocol.fields import Fields, by_type, text_or_list
from openai_frontend.protocol.messages import FunctionName
from python_backend.errors import InvalidRequestError

_ItemId = Annotated[str, Field(min_length=1, max_length=512)]
_Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Fields):
    """Text for the model."""

    type: Literal["input_text"]
    text: str


class InputImage(Fields):
    """An image for the model; there are no uploaded files."""

    type: Literal["input_image"]
    image_url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None


class OutputText(Fields):
    """Text of the model; log probabilities of an answer that is sent back change nothing."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field([], max_length=0)
    logprobs: list[Any] | None = None


_InputPart = Annotated[
    Annotated[InputText, Tag("<input_text>")] | Annotated[InputImage, Tag("<input_image>")],
    by_type("Content parts", "input_text", "input_image"),
]
_Part = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[InputImage, Tag("<input_image>")]
    | Annotated[OutputText, Tag("<output_text>")],
    by_type("Content parts", "input_text", "input_image", "output_text"),
]
_TEXT_OR_LIST = text_or_list("content parts")


class MessageItem(Fields):
    """A message of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[_Part], Field(min_length=1), Tag("<list>")],
        _TEXT_OR_LIST,
    ]
    id: _ItemId | None = None
    status: _Status | None = None


class FunctionCallItem(Fields):
    """A call that the model wrote; the arguments are JSON."""

    type: Literal["function_call"]
    call_id: _ItemId
    name: FunctionName
    arguments: str
    id: _ItemId | None = None
    status: _Status | None = None


class FunctionCallOutputItem(Fields):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: _ItemId
    output: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[_InputPart], Field(min_length=1), Tag("<list>")],
        _TEXT_OR_LIST,
    ]
    id: _ItemId | None = None
    status: _Status | None = None


class ReasoningText(Fields):
    """Text of a reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Fields):
    """What the model thought; this server summarizes and encrypts nothing."""

    type: Literal["reasoning"]
    summary: list[Any] = Field([], max_length=0)
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    id: _ItemId | None = None
    status: _Status | None = None


InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    by_type(
        "Items",
        *("message", "function_call", "function_call_output", "reasoning"),
        default="message",
    ),
]
InputItems = TypeAdapter(list[InputItem])


# Of the errors about a chat request: a path to a message or a part of it, and its last step.
_MESSAGE_PATH = re.compile(r"messages\[\d+\](?:\.\w+|\[\d+\])*")
_LAST_STEP = re.compile(r"(?:\.\w+|\[\d+\])$")


class FieldPaths(dict[str, str]):
    """Fields of chat messages to the fields of the client that they came from."""

    def in_client_words(self, text: str) -> str:
        """`text` with the client's fields in place of those of the messages."""
        return _MESSAGE_PATH.sub(self._client_path, text)

    def _client_path(self, match: re.Match[str]) -> str:
        known = match[0]
        while known not in self:
            if known == "messages":  # in a text that the client has sent
                return match[0]
            known = _LAST_STEP.sub("", known)
        path, rest = self[known], match[0][len(known) :]
        if not path.startswith("input["):
            return path.partition(".")[0]
        rest = rest.replace(".image_url.url", ".image_url").replace("tool_call_id", "call_id")
        return path + rest


@dataclass(slots=True)
class ChatMessages:
    """Items as the messages of a chat request.

    A reasoning, a text and calls of the model that follow one another are one message there.

    Attributes:
        messages: of the chat request.
        paths: where they came from.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: FieldPaths = field(default_factory=FieldPaths)
    _answer: dict[str, Any] | None = None

    def add_text(self, role: str, text: str, path: str) -> None:
        """Add a message that is one text, sent as the field `path`."""
        self._append({"role": role, "content": text}, path)

    def add_item(self, item: InputItem, path: str) -> None:
        """Add an item, sent as the field `path`.

        Raises:
            InvalidRequestError: a message has a part that does not belong to its role.
        """
        match item:
            case MessageItem(role="assistant"):
                answer = self._open_answer(path, {"content", "tool_calls"})
                answer["content"] = _chat_content(item.content)
                self.paths[f"{self._last}.content"] = f"{path}.content"
            case MessageItem():
                _refuse_output(item, path)
                self._append({"role": item.role, "content": _chat_content(item.content)}, path)
            case ReasoningItem():
                answer = self._open_answer(path, {"reasoning_content", "content", "tool_calls"})
                answer["reasoning_content"] = "".join(part.text for part in item.content or ())
            case FunctionCallItem():
                calls = self._open_answer(path, set()).setdefault("tool_calls", [])
                place = f"{self._last}.tool_calls"
                self.paths.setdefault(place, path)
                self.paths[f"{place}[{len(calls)}].function"] = path
                function = {"name": item.name, "arguments": item.arguments}
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case FunctionCallOutputItem():
                content = _chat_content(item.output)
                message = {"role": "tool", "tool_call_id": item.call_id, "content": content}
                self._append(message, path)
                self.paths[f"{self._last}.content"] = f"{path}.output"

    @property
    def _last(self) -> str:
        return f"messages[{len(self.messages) - 1}]"

    def _append(self, message: dict[str, Any], path: str) -> None:
        self._answer = None
        self.messages.append(message)
        self.paths[self._last] = path

    def _open_answer(self, path: str, closed_by: set[str]) -> dict[str, Any]:
        """The model's last message, or a new one if there is none or it has a member of `closed_by`."""
        if self._answer is None or closed_by & {*self._answer}:
            self._append({"role": "assistant"}, path)
            self._answer = self.messages[-1]
        return self._answer


def _refuse_output(item: MessageItem, path: str) -> None:
    for i, part in enumerate(item.content):
        if isinstance(part, OutputText):
            raise InvalidRequestError(
                f"Parts of type 'output_text' are for messages of the assistant, not of the {item.role}.",
                param=f"{path}.content[{i}].type",
            )


def _chat_content(
    content: str | Sequence[InputText | InputImage | OutputText],
) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [
        {
            "type": "image_url",
            "image_url": {"url": part.image_url, "detail": part.detail or "auto"},
        }
        if isinstance(part, InputImage)
        else {"type": "text", "text": part.text}
        for part in content
    ]
