"""OpenAI's Responses API: its answers and events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from openai_frontend.answers import Answer, Choice
from openai_frontend.backend import Delta, Usage
from openai_frontend.errors import error_body, status_of
from openai_frontend.responses_api import ChosenFunction, ResponsesRequest
from openai_frontend.sse import dumps, named_event

# HTTP status of an error after the first event -> the code of the response that failed.
_FAILURE_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponsesAnswer(Answer):
    """Answers of `/v1/responses`, which have one choice.

    Args:
        request: what is answered.
        keep: is given the id and the body of an answer that has come to its end; None: nobody is.
        answer_id: hexadecimal digits of the id.
        created: Unix time.
        model: name as the client wrote it.
    """

    def __init__(
        self,
        *,
        request: ResponsesRequest,
        keep: Callable[[str, bytes], None] | None,
        answer_id: str,
        created: int,
        model: str,
        **_: Any,
    ) -> None:
        self._keep = keep
        self._has_logprobs = request.has_logprobs
        self._answer_id = answer_id
        self._head = {
            "id": f"resp_{answer_id}",
            "object": "response",
            "created_at": created,
            "model": model,
            "store": keep is not None,
            **_echo(request),
        }
        self._choice = Choice()
        # Of a stream: the item that goes on, by its kind or its call's id, and what events say of it.
        self._open: str | None = None
        self._place = ""
        self._num_items = 0
        self._num_logprobs = 0
        self._num_events = 0

    def chunks(self, delta: Delta, *, is_first: bool) -> bytes:
        """Events for one delta; the first ones open the response, and items follow one another."""
        data = self._opening() if is_first else b""
        self._choice.add(delta)
        if delta.reasoning:
            data += self._goes_on("reasoning")
            data += self._delta("reasoning_text", delta.reasoning)
        if delta.text:
            data += self._goes_on("message")
        if self._open == "message":
            logprobs = self._logprobs(self._choice)[self._num_logprobs :]
            self._num_logprobs += len(logprobs)
            if delta.text or logprobs:
                more = f',"logprobs":{dumps(logprobs)}'
                data += self._delta("output_text", delta.text, more)
        for call in delta.tool_calls:
            if call.id is not None:
                data += self._goes_on(call.id)
            if call.arguments:
                data += self._delta("function_call_arguments", call.arguments)
        return data

    def ending(self, usage: Usage) -> bytes:
        """The events that close the item and the response."""
        data = b"" if self._num_items else self._goes_on("message")
        response = self._finished(self._choice, usage)
        data += self._closing(response["status"])
        return data + self._event(response["status"], f'"response":{dumps(response)}')

    def failure(self, error: BaseException) -> bytes:
        """The event of an error after the first event."""
        failed = {
            "code": _FAILURE_CODES.get(status_of(error), "server_error"),
            "message": error_body(error)["error"]["message"],
        }
        response = self._response("failed") | {"error": failed}
        return self._event("failed", f'"response":{dumps(response)}')

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        (choice,) = choices
        return _encoded(self._finished(choice, usage))

    def _opening(self) -> bytes:
        response = f'"response":{dumps(self._response("in_progress"))}'
        return self._event("created", response) + self._event("in_progress", response)

    def _goes_on(self, which: str) -> bytes:
        """The events that close the item before and open this one, unless it is open."""
        if self._open == which:
            return b""
        data = self._closing("completed")
        self._open = which
        self._num_items += 1
        item = self._item("in_progress")
        self._place = f'"item_id":"{item["id"]}","output_index":{self._num_items - 1}'
        part = None
        if item["type"] == "function_call":
            item["arguments"] = ""
        else:
            self._place += ',"content_index":0'
            part = item["content"].pop() | {"text": ""}
            if "logprobs" in part:
                part["logprobs"] = []
        data += self._event(
            "output_item.added", f'"output_index":{self._num_items - 1},"item":{dumps(item)}'
        )
        if part is not None:
            data += self._event("content_part.added", f'{self._place},"part":{dumps(part)}')
        return data

    def _closing(self, status: str) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        item = self._item(status)
        if item["type"] == "function_call":
            arguments = f'{self._place},"arguments":{dumps(item["arguments"])}'
            data = self._event("function_call_arguments.done", arguments)
        else:
            (part,) = item["content"]
            told = {name: part[name] for name in ("text", "logprobs") if name in part}
            data = self._event(f"{part['type']}.done", f"{self._place},{dumps(told)[1:-1]}")
            data += self._event("content_part.done", f'{self._place},"part":{dumps(part)}')
        return data + self._event(
            "output_item.done", f'"output_index":{self._num_items - 1},"item":{dumps(item)}'
        )

    def _delta(self, what: str, text: str, more: str = "") -> bytes:
        return self._event(f"{what}.delta", f'{self._place},"delta":{dumps(text)}{more}')

    def _event(self, name: str, members: str) -> bytes:
        self._num_events += 1
        return named_event(
            f"response.{name}", f'"sequence_number":{self._num_events - 1},{members}'
        )

    def _item(self, status: str) -> dict[str, Any]:
        """The item of a stream that was opened last, as far as it has come."""
        item = self._output(self._choice)[self._num_items - 1]
        return item | {"status": status}

    def _finished(self, choice: Choice, usage: Usage) -> dict[str, Any]:
        """The response at its end; it is kept, if it shall be."""
        is_cut = choice.finish_reason == "length"
        response = self._response("incomplete" if is_cut else "completed")
        response["output"] = self._output(choice)
        response["output"][-1]["status"] = response["status"]
        response["usage"] = _usage_json(usage)
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        if self._keep is not None:
            self._keep(response["id"], _encoded(response))
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return self._head | {
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }

    def _output(self, choice: Choice) -> list[dict[str, Any]]:
        """The items of an answer, in the order in which a model writes them."""
        items: list[dict[str, Any]] = []
        if choice.reasoning:
            thought = {"type": "reasoning_text", "text": choice.reasoning}
            items.append({"id": f"rs_{self._answer_id}", "type": "reasoning"})
            items[-1] |= {"summary": [], "content": [thought]}
        if choice.text or not (items or choice.tool_calls):
            text = {
                "type": "output_text",
                "text": choice.text,
                "annotations": [],
                "logprobs": self._logprobs(choice),
            }
            items.append({"id": f"msg_{self._answer_id}", "type": "message"})
            items[-1] |= {"role": "assistant", "content": [text]}
        items += [
            {
                "id": f"fc_{call['id'].removeprefix('call_')}",
                "type": "function_call",
                "call_id": call["id"],
                "name": call["name"],
                "arguments": call["arguments"],
            }
            for call in choice.tool_calls
        ]
        return [item | {"status": "completed"} for item in items]

    def _logprobs(self, choice: Choice) -> list[dict[str, Any]]:
        return choice.logprobs if self._has_logprobs else []


def _encoded(response: dict[str, Any]) -> bytes:
    return dumps(response).encode("utf-8", "replace")


def _echo(request: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request; a setting that is the model's own is null."""
    text = request.text.format if request.text is not None else None
    choice = request.tool_choice
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "temperature": request.temperature,
        "text": {
            "format": {"type": "text"}
            if text is None
            else text.model_dump(by_alias=True, exclude_none=True)
        },
        "tool_choice": choice.model_dump()
        if isinstance(choice, ChosenFunction)
        else choice or "auto",
        "tools": [tool.model_dump() | {"strict": True} for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
