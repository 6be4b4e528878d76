"""Anthropic's Messages API: its requests as chat requests, its answers, events and errors.

Clients of that API, with `base_url` set to this server, get what an OpenAI client gets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, model_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_frontend.backend import Delta, Usage
from openai_frontend.errors import error_body
from openai_frontend.protocol import (
    ChatCompletionRequest,
    Fields,
    StopStrings,
    text_or_image,
    text_or_list,
)
from openai_frontend.responses import Answer, Choice
from openai_frontend.sse import dumps, named_event
from openai_frontend.unsupported import UNSUPPORTED_MESSAGES, documented, without_unsupported
from python_backend.errors import InvalidRequestError

PATH = "/v1/messages"


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


_Block = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")],
    text_or_image("Content blocks", "image"),
]
_TEXT_OR_LIST = text_or_list("content blocks")


class Turn(Fields):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[_Block], Field(min_length=1), Tag("<list>")],
        _TEXT_OR_LIST,
    ]


class Metadata(Fields):
    """Names the end user; never changes an answer."""

    user_id: str | None = Field(None, max_length=512)


class CountTokensRequest(Fields):
    """Body of `POST /v1/messages/count_tokens`."""

    model_config = ConfigDict(json_schema_extra=documented(UNSUPPORTED_MESSAGES))

    model: str = Field(min_length=1, max_length=512)
    messages: list[Turn] = Field(min_length=1, max_length=4096)
    system: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[TextBlock], Tag("<list>")], _TEXT_OR_LIST
    ] = ""

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
        turns = [{"role": "system", "content": system}] if system else []
        return [
            *turns,
            *(
                {"role": turn.role, "content": _chat_content(turn.content)}
                for turn in self.messages
            ),
        ]


class MessagesRequest(CountTokensRequest):
    """Body of `POST /v1/messages`."""

    max_tokens: int = Field(ge=1, le=2**31 - 1)
    stop_sequences: StopStrings | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    top_p: float | None = Field(None, ge=0, le=1)
    metadata: Metadata | None = None

    def to_chat(self) -> ChatCompletionRequest:
        """The same as a chat request."""
        return ChatCompletionRequest.model_validate(
            {
                "model": self.model,
                "messages": self.chat_messages(),
                "max_tokens": self.max_tokens,
                "stop": self.stop_sequences,
                "stream": self.stream,
                "temperature": self.temperature,
                "top_k": self.top_k,
                "top_p": self.top_p,
            }
        )


def _chat_content(content: str | list[TextBlock | ImageBlock]) -> str | list[dict[str, Any]]:
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


class MessagesAnswer(Answer):
    """Answers of `/v1/messages`, which have one choice."""

    def __init__(self, *, answer_id: str, model: str, **_: Any) -> None:
        self._head = {
            "id": f"msg_{answer_id}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._finish: dict[str, Any] = {}

    def chunks(self, delta: Delta, *, is_first: bool) -> bytes:
        """Events for one delta; the first ones open the message and its only block."""
        data = self._opening() if is_first else b""
        if delta.text:
            data += named_event(
                "content_block_delta",
                f'"index":0,"delta":{{"type":"text_delta","text":{dumps(delta.text)}}}',
            )
        if delta.finish_reason is not None:
            self._finish = _stop_fields(delta.finish_reason, delta.matched_stop)
        return data

    def _opening(self) -> bytes:
        # How many tokens the prompt has is known at the end; `message_delta` says it.
        message: dict[str, Any] = self._head | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return named_event("message_start", f'"message":{dumps(message)}') + named_event(
            "content_block_start", '"index":0,"content_block":{"type":"text","text":""}'
        )

    def ending(self, usage: Usage) -> bytes:
        """The events that close the block and the message."""
        return (
            named_event("content_block_stop", '"index":0')
            + named_event(
                "message_delta",
                f'"delta":{dumps(self._finish)},"usage":{dumps(_usage_json(usage))}',
            )
            + named_event("message_stop", "")
        )

    def failure(self, error: BaseException) -> bytes:
        """The event of an error after the first event."""
        return named_event("error", f'"error":{dumps(_error_json(error_body(error)))}')

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        (choice,) = choices
        assert choice.finish_reason is not None
        body = (
            self._head
            | {"content": [{"type": "text", "text": choice.text}]}
            | _stop_fields(choice.finish_reason, choice.matched_stop)
            | {"usage": _usage_json(usage)}
        )
        return dumps(body).encode("utf-8", "replace")


def _stop_fields(finish_reason: str, matched_stop: int | str | None) -> dict[str, Any]:
    if finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if isinstance(matched_stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": matched_stop}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _usage_json(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


# HTTP status -> Anthropic's error type; the others are invalid_request_error or api_error.
_ERROR_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _error_json(body: dict[str, Any], status: int = 500) -> dict[str, Any]:
    """The inner object of Anthropic's errors for a body with OpenAI's."""
    type_ = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error = body["error"]
    where = f"{error['param']}: " if error["param"] else ""
    return {"type": type_, "message": f"{where}{error['message']}"}


class AnthropicErrorsMiddleware:
    """Writes the errors of this API's paths in its own shape, whoever answered with them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def translate(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message  # its content-length depends on the body
                return
            if start is None:
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            error = {"type": "error", "error": _error_json(json.loads(body), start["status"])}
            content = dumps(error).encode("utf-8", "replace")
            headers = [(key, value) for key, value in start["headers"] if key != b"content-length"]
            headers.append((b"content-length", str(len(content)).encode()))
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": content})

        await self._app(scope, receive, translate)
