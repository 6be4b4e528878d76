"""Anthropic's Messages API: its answers, events and errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_frontend.answers import Answer, Choice
from openai_frontend.backend import Delta, Usage
from openai_frontend.errors import error_body
from openai_frontend.sse import dumps, named_event

PATH = "/v1/messages"


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
        self._block: dict[str, Any] | None = None
        self._num_blocks = 0

    def chunks(self, delta: Delta, *, is_first: bool) -> bytes:
        """Events for one delta; the first ones open the message, and blocks follow one another."""
        data = self._opening() if is_first else b""
        if delta.reasoning:
            data += self._goes_on({"type": "thinking", "thinking": "", "signature": ""})
            data += self._delta("thinking_delta", "thinking", delta.reasoning)
        if delta.text:
            data += self._goes_on({"type": "text", "text": ""})
            data += self._delta("text_delta", "text", delta.text)
        for call in delta.tool_calls:
            if call.id is not None:
                tool_use = {"type": "tool_use", "id": call.id, "name": call.name}
                data += self._goes_on({**tool_use, "input": {}})
            if call.arguments:
                data += self._delta("input_json_delta", "partial_json", call.arguments)
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
        return named_event("message_start", f'"message":{dumps(message)}')

    def _goes_on(self, block: dict[str, Any]) -> bytes:
        """The events that close the block before and open this one, unless it is open."""
        if self._block == block:
            return b""
        data = self._closing()
        self._block = block
        self._num_blocks += 1
        return data + named_event(
            "content_block_start", f'"index":{self._num_blocks - 1},"content_block":{dumps(block)}'
        )

    def _closing(self) -> bytes:
        if self._block is None:
            return b""
        self._block = None
        return named_event("content_block_stop", f'"index":{self._num_blocks - 1}')

    def _delta(self, kind: str, member: str, text: str) -> bytes:
        return named_event(
            "content_block_delta",
            f'"index":{self._num_blocks - 1},"delta":{{"type":"{kind}","{member}":{dumps(text)}}}',
        )

    def ending(self, usage: Usage) -> bytes:
        """The events that close the block and the message."""
        data = b"" if self._num_blocks else self._goes_on({"type": "text", "text": ""})
        return (
            data
            + self._closing()
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
            | {"content": _blocks(choice)}
            | _stop_fields(choice.finish_reason, choice.matched_stop)
            | {"usage": _usage_json(usage)}
        )
        return dumps(body).encode("utf-8", "replace")


def _blocks(choice: Choice) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if choice.reasoning:
        blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
    if choice.text:
        blocks.append({"type": "text", "text": choice.text})
    for call in choice.tool_calls:
        block = {"type": "tool_use", "id": call["id"], "name": call["name"]}
        blocks.append(block | {"input": _input(call["arguments"])})
    return blocks or [{"type": "text", "text": ""}]


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; those that the answer's end cuts off are no JSON, and none are told."""
    try:
        value: dict[str, Any] = json.loads(arguments)
    except ValueError:
        return {}
    return value


def _stop_fields(finish_reason: str, matched_stop: int | str | None) -> dict[str, Any]:
    if finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if finish_reason == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
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
